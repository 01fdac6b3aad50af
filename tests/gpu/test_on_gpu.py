"""On a device with an NVIDIA GPU, everything real: what benchmarks/gpu_check.py looks at, as promises. Elsewhere it skips.

1. Each package on each accelerator agrees with its source on the CPU.
2. A session runs on what was asked for, and says so.
3. An engine that was built is found again.
4. The GPU's memory is back after each stop, 50 times.
5. A CUDA error ends the process; a full GPU refuses a start; a killed worker is replaced; a damaged engine is built anew.
"""

import importlib
import shutil
import sys
from pathlib import Path

import pytest

from edge_agent import gpus, probe
from support.agent import place

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
# Seconds that a look at the device may take: CUDA's libraries are read from the disk for it, and an engine is built.
LOOK = 180.0
PRECISIONS = ("fp32", "fp16", "int8")
FAULTS = ("poisoned", "full", "killed", "damaged")
PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorRT"}


@pytest.fixture(scope="module")
def here():
    """The device."""
    found = gpus.of_probe(probe.Look(LOOK, LOOK).finish())
    if not found.gpus:
        pytest.skip(f"needs an NVIDIA GPU with its driver, and the extras `cuda` and `tensorrt`. {found.no_gpu}")
    return found


@pytest.fixture(scope="module", params=["cuda", "tensorrt"])
def accelerator(here, request):
    """Each that can be used."""
    if lacks := here.lacks(request.param, here.gpus[0].index):
        pytest.skip(f"needs {request.param}: {lacks}")
    return request.param


@pytest.fixture(scope="module")
def steps(here):
    """The benchmark's steps, imported as they are when it runs, and its packages: (module, place, models by name)."""
    sys.path.insert(0, str(BENCHMARKS))
    folder = place()
    try:
        module = importlib.import_module("gpu_steps")
        (folder / "models").mkdir()
        models = importlib.import_module("gpu_models").make(folder / "models", here)
        yield module, module.Place(folder, here), {one.name: one for one in models}
    finally:
        sys.path.remove(str(BENCHMARKS))
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("source", ["small", "cookies-segmentation"])
def test_it_agrees_with_the_cpu(steps, accelerator, source, precision):
    module, where, models = steps
    if (model := models.get(f"{source}-{precision}")) is None:
        pytest.skip("int8 needs real images" if precision == "int8" else f"needs the shared model {source}")
    told = module.in_process(module.agreement, where, model, accelerator)
    assert told.get("ok"), told
    assert told["provider"].startswith((PROVIDERS[accelerator], "TensorrtExecutionProvider"))


def test_an_engine_is_built_once(steps, accelerator):
    module, where, models = steps
    if accelerator != "tensorrt":
        pytest.skip("CUDA builds no engine")
    told = module.builds(where, models["small-fp32"], accelerator)
    assert told["engine_bytes"]
    assert told["cached_s"] < told["built_s"]


def test_memory_is_back_after_each_stop(steps, accelerator):
    module, where, models = steps
    told = module.cycles(where, models["small-fp32"], accelerator, 50)
    assert told["ok"], told


@pytest.mark.parametrize("fault", FAULTS)
def test_what_breaks_costs_what_it_must(steps, accelerator, fault):
    _, where, models = steps
    told = getattr(importlib.import_module("gpu_faults"), fault)(where, models["small-fp32"], accelerator)
    if told.seen.startswith("not tried"):
        pytest.skip(told.seen)
    assert told.ok, told.seen
