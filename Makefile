# `make test` and `make demo` do all their own set-up from a fresh clone: Python 3.10 to 3.13, make, and PyPI.

# Tests of permissions need a Python that a second user can run and a folder that it can enter. Run by root, a Python or
# a clone below a private home is neither, so then another Python and a folder in /var/tmp are used where they exist.
ifeq ($(shell id -u),0)
  AS_ANOTHER = setpriv --reuid=65534 --regid=65534 --clear-groups
  PYTHON ?= $(shell for python in python3 /usr/bin/python3; do \
      $(AS_ANOTHER) $$python -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null \
      && echo $$python && exit; done; echo python3)
  VENV ?= $(shell $(AS_ANOTHER) test -r "$(CURDIR)/pyproject.toml" 2>/dev/null && echo .venv \
      || echo /var/tmp/vision-edge-agent-$$(echo "$(CURDIR)" | cksum | cut -d' ' -f1))
else
  PYTHON ?= python3
  VENV ?= .venv
endif

BIN := $(VENV)/bin

# The tests that need PyTorch have an environment of their own, which is large and which nothing else needs.
TORCH := 2.13.0
TORCH_VENV := $(VENV)-torch

# So have those that look NVIDIA's libraries through without a GPU, and those that need one.
ACCELERATORS_VENV := $(VENV)-accelerators
# Where no driver is, what is there already can say so.
NVIDIA := $(wildcard /proc/driver/nvidia/version /dev/nvidiactl /dev/nvhost-gpu /sys/devices/platform/gpu.0)
GPU_VENV ?= $(if $(NVIDIA),$(VENV)-gpu,$(VENV))

.PHONY: test test-prometheus test-torch test-components test-accelerators test-gpu promises soak mutations lint demo proto lock clean

# Four files of tests at a time, also on two cores: most of them wait for processes. Those that take long come first.
test: $(VENV)/.installed lint
	$(BIN)/pytest -n 4 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# Packages from TorchScript, with a CPU build of PyTorch where pip finds one.
test-torch: $(TORCH_VENV)/.installed
	$(TORCH_VENV)/bin/pytest -m torch tests/torchscript $(PYTEST_ARGS)

# The Greengrass components: their recipes, their scripts, and their lifecycles as each nucleus would run them.
test-components: $(VENV)/.installed
	$(BIN)/pytest -n 2 --dist loadfile -m components tests/greengrass tests/recipes $(PYTEST_ARGS)

# The backends with onnxruntime-gpu in the place of onnxruntime, their branch coverage, and each name of NVIDIA's that they
# use, looked up in NVIDIA's own wheels.
test-accelerators: $(ACCELERATORS_VENV)/.installed
	$(ACCELERATORS_VENV)/bin/pytest -m accelerators tests/accelerators $(PYTEST_ARGS)
	$(ACCELERATORS_VENV)/bin/pytest tests/agent/backends --cov edge_agent.backends --cov-branch --cov-report term-missing \
	    --cov-fail-under 95 $(PYTEST_ARGS)

# On a device with an NVIDIA GPU, everything real; elsewhere it says what it needs. GPU_VENV may name an environment that is
# there already, as on Jetson, whose onnxruntime-gpu is not on PyPI.
test-gpu: $(GPU_VENV)/.installed
	$(GPU_VENV)/bin/pytest -m gpu tests/gpu $(PYTEST_ARGS)
	$(GPU_VENV)/bin/python benchmarks/gpu_check.py

# An agent as a real Prometheus server and its linter see it: Debian's package `prometheus`, or PROMETHEUS=FOLDER.
test-prometheus: $(VENV)/.installed
	$(BIN)/pytest -m prometheus tests/prometheus $(PYTEST_ARGS)

# Each promise with its full count of cases, one after the other; an interrupted run goes on where it was. One alone, as
# in `make promise-C1`. Results: benchmarks/results/promises.json.
promises: $(VENV)/.installed
	$(BIN)/python tests/promises/run.py

promise-%: $(VENV)/.installed
	$(BIN)/python tests/promises/run.py $*

# A million calls, in the background; interrupted, it is followed again. Results: benchmarks/results/soak.json and .svg.
soak: $(VENV)/.installed
	$(BIN)/python tests/promises/soak/background.py

# Breaks a safeguard at a time and shows which suite notices.
mutations: $(VENV)/.installed
	$(BIN)/python tests/promises/mutations.py

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Renders circuit boards, fits a model to the good ones, serves it and judges good and bad ones with it.
demo: $(VENV)/.installed
	@$(BIN)/edge-agent demo

# Regenerates agent/edge_agent/_proto from proto/edge-agent.proto.
proto: $(VENV)/.installed
	$(BIN)/python proto/generate.py

# Renews the versions that CI and every newcomer get. Needs uv.
lock:
	uv pip compile --universal --python-version 3.10 --extra cpu --extra cuda --extra packaging --extra demo --extra s3 --extra greengrass --extra metrics --extra dev \
	    --no-header --no-annotate --upgrade -o constraints.txt pyproject.toml

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cpu,dev]'
	touch $@

$(TORCH_VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(TORCH_VENV)
	$(TORCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cpu,dev]' torch==$(TORCH)
	touch $@

$(ACCELERATORS_VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(ACCELERATORS_VENV)
	$(ACCELERATORS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	    -e '.[cuda,dev]' cuda-python pytest-cov
	touch $@

$(VENV)-gpu/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-gpu
	$(VENV)-gpu/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	    -e '.[cuda,tensorrt,dev]' 'onnxruntime-gpu[cuda,cudnn]'
	touch $@

clean:
	rm -rf $(VENV) $(TORCH_VENV) $(ACCELERATORS_VENV) $(VENV)-gpu .mypy_cache .pytest_cache .ruff_cache
