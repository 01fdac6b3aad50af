"""The real onnxruntime-gpu, in an environment of its own: its names, its parser, and that it serves where there is no GPU.

`make test-accelerators`. NVIDIA's own part is tested as far as a machine without a GPU lets: with its libraries, and a
driver made here that has no device, the providers read their options before they fail.
"""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_agent.backends import ort_binding, ort_errors, ort_options, tensorrt
from edge_agent.backends.ort_options import CPU, CUDA, TENSORRT, Engine
from edge_agent.jobs import GpuOptions, SessionOptions
from edge_agent.packages import ModelFiles
from support import fake_onnxruntime, networks, packages
from support.agent import environment, serving
from support.calls import OK, outcome, picture, request


def _installed(name: str) -> bool:
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False


HAS_GPU = Path("/dev/nvidiactl").exists() or Path("/dev/nvhost-gpu").exists()
pytestmark = pytest.mark.skipif(
    not _installed("onnxruntime-gpu"), reason="onnxruntime-gpu is not what is installed here"
)
no_gpu = pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU")

FULL = SessionOptions(
    threads=1, accelerator="tensorrt", gpu=GpuOptions(memory_limit=1 << 30, precision="int8", name="none", code="sm_0")
)
ENGINE = Engine("/nowhere", keep=True, calibration="calibration.cache", shape="x:1")


@pytest.fixture(scope="module")
def wheel() -> Path:
    """The folder with the runtime's binaries."""
    import onnxruntime

    return Path(onnxruntime.__file__).parent / "capi"


@pytest.fixture(scope="module")
def strings(wheel):
    """A function that returns the text in a binary: what is between its bytes that are none."""

    def read(pattern: str) -> bytes:
        (path,) = wheel.glob(pattern)
        return path.read_bytes()

    kept: dict[str, bytes] = {}
    return lambda pattern: kept.setdefault(pattern, read(pattern))


BINARIES = {CUDA: "libonnxruntime_providers_cuda.so", TENSORRT: "libonnxruntime_providers_tensorrt.so"}
CORE = "onnxruntime_pybind11_state*.so"


class TestNames:
    @pytest.mark.parametrize(
        ("provider", "name"), [(one, name) for one in BINARIES for name in fake_onnxruntime.OPTIONS[one]]
    )
    def test_options(self, strings, provider, name):
        assert name.encode() + b"\0" in strings(BINARIES[provider])

    def test_those_that_we_give_are_in_that_list(self):
        for provider, options in ort_options.providers(FULL, ENGINE, graphs=True):
            assert set(options) <= set(fake_onnxruntime.OPTIONS[provider])

    @pytest.mark.parametrize("provider", BINARIES)
    def test_a_name_that_was_made_up_is_not_found(self, strings, provider):
        assert b"trt_engine_cache_folder\0" not in strings(BINARIES[provider])
        assert b"cuda_mem_limit_bytes\0" not in strings(BINARIES[provider])

    @pytest.mark.parametrize(
        ("binary", "text"),
        [
            (CORE, "session.record_ep_graph_assignment_info"),
            (CORE, "session.intra_op.allow_spinning"),
            (CORE, ort_binding.UNRECORDED[0]),
            (CORE, "cannot use the graph capture feature"),
            (CORE, "Failed to allocate memory"),
            (BINARIES[CUDA], "%s failure %d: %s ; GPU=%d ; hostname=%s"),
            (BINARIES[TENSORRT], "TensorRT EP failed to create engine from network"),
            (BINARIES[TENSORRT], "TensorRT EP execution context enqueue failed"),
        ],
    )
    def test_keys_and_messages(self, strings, binary, text):
        assert text.encode() in strings(binary)

    def test_classes(self):
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        for name in ort_errors.OF_THE_MODEL | ort_errors.OF_THE_PROVIDER:
            assert issubclass(getattr(state, name), Exception)


# A driver that has no device, and a TensorRT that has nothing: enough to let the providers be loaded.
DRIVER = "int cuTensorMapEncodeTiled(void) { return 100; }"
INFER = """
static long zero(void) { return 0; }
static void *table[512], *object[64];
__attribute__((constructor)) static void fill(void) {
  for (int i = 0; i < 512; i++) table[i] = (void *)zero;
  object[0] = table;
}
void *getPluginRegistry(void) { return object; }
void *createInferBuilder_INTERNAL(void) { return 0; }
void *createInferRuntime_INTERNAL(void) { return 0; }
void *createInferRefitter_INTERNAL(void) { return 0; }
int getInferLibVersion(void) { return 0; }
"""
PARSER = """
void *createNvOnnxParser_INTERNAL(void) { return 0; }
void *createNvOnnxParserRefitter_INTERNAL(void) { return 0; }
"""
TRY = """
import json, sys
from edge_agent.backends import onnxruntime as ours
from edge_agent.probe.runtime import TINY
ours.preload(ours.ort)
ours.ort.set_default_logger_severity(4)
for given in json.load(sys.stdin):
    settings = ours.ort.SessionOptions()
    settings.log_severity_level = 4
    try:
        ours.ort.InferenceSession(TINY, settings, providers=[tuple(one) for one in given], enable_fallback=0)
        print(json.dumps("opened"))
    except Exception as error:
        print(json.dumps(str(error)))
"""


@pytest.fixture(scope="module")
def driverless(tmp_path_factory, wheel):
    """A function that opens sessions in a process, and returns what the runtime says of each."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler to make a driver without a device with")
    if not list(wheel.parents[1].glob("nvidia/**/libcudnn.so.9")):
        pytest.skip("NVIDIA's libraries are not installed here: onnxruntime-gpu[cuda,cudnn]")
    folder = tmp_path_factory.mktemp("driver")
    for name, source in (("libcuda.so.1", DRIVER), ("libnvinfer.so.10", INFER), ("libnvonnxparser.so.10", PARSER)):
        (folder / "made.c").write_text(source)
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", folder / name, folder / "made.c"]
        subprocess.run(command, check=True, capture_output=True)

    def ask(*providers: list) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", TRY],
            input=json.dumps(providers),
            env=environment(LD_LIBRARY_PATH=str(folder)),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(said) == len(providers)
        return said

    return ask


@no_gpu
class TestOptionsByTheRuntimeItself:
    @staticmethod
    def ours(provider: str) -> dict[str, str]:
        accelerator = "tensorrt" if provider == TENSORRT else "cuda"
        options = SessionOptions(accelerator=accelerator, gpu=FULL.gpu)
        return ort_options.providers(options, ENGINE, graphs=True)[0][1]

    @pytest.mark.parametrize("provider", [CUDA, TENSORRT])
    def test_it_takes_all_that_we_give(self, driverless, provider):
        """And fails with the driver alone. The GPU's number is apart, since to read it is to ask the driver."""
        options = self.ours(provider)
        number = {"device_id": options.pop("device_id")}
        assert len(options) > 4
        for said in driverless([[provider, options]], [[provider, number]]):
            assert ort_errors.NO_GPU.search(said), said

    @pytest.mark.parametrize("provider", [CUDA, TENSORRT])
    def test_it_refuses_each_under_another_name(self, driverless, provider):
        options = self.ours(provider)
        said = driverless(*([[provider, {f"{name}_": value}]] for name, value in options.items()))
        for name, text in zip(options, said, strict=True):
            assert f'Unknown provider option: "{name}_"' in text or f"Invalid TensorRT EP option: {name}_" in text, text

    def test_it_refuses_other_words_for_true_and_false(self, driverless):
        """Which differ between the two: a mistake that nothing but the runtime tells of."""
        wrong = [[CUDA, {"enable_cuda_graph": "yes"}]], [[TENSORRT, {"trt_fp16_enable": "1"}]]
        for text in driverless(*wrong):
            assert not ort_errors.NO_GPU.search(text), text

    def test_what_we_say_of_it(self, driverless):
        (said,) = driverless([[CUDA, self.ours(CUDA)]])
        told = str(ort_errors.not_loaded(RuntimeError(said), CUDA))
        assert told.startswith(f"ONNX Runtime cannot run the model on {CUDA}: CUDA failure ")
        assert "onnxruntime_src" not in told
        assert "hostname" not in told


class TestWithoutAGpu:
    LOAD = """
import json, sys
from edge_agent.backends import open_session, tensorrt
from edge_agent.jobs import SessionOptions
from edge_agent.packages import ModelFiles
tensorrt.installed = lambda: False
try:
    session = open_session(ModelFiles(sys.stdin.buffer.read()), SessionOptions(accelerator=sys.argv[1]))
    print(json.dumps(["", session.provider]))
except Exception as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""

    @no_gpu
    @pytest.mark.parametrize(("accelerator", "wanted"), [("cuda", CUDA), ("tensorrt", TENSORRT)])
    def test_a_model_for_one(self, accelerator, wanted):
        model = networks.mochi().SerializeToString()
        command = [sys.executable, "-c", self.LOAD, accelerator]
        done = subprocess.run(command, input=model, env=environment(), capture_output=True, check=True)
        kind, told = json.loads(done.stdout)
        assert kind == "AcceleratorMissing"
        assert wanted in told
        assert len(told.splitlines()) == 1
        assert "onnxruntime_src" not in told
        assert "cannot open shared object file" in told
        assert done.stderr == b""

    def test_the_cpu_serves(self, folder):
        packages.segmenter(folder / "models" / "board", (64, 64))
        with serving(folder / "models") as agent:
            agent.run_model("board")
            code, _, answer = outcome(agent.stub().DetectAnomalies, request("board", 64, 64, picture(64, 64).tobytes()))
            assert code == OK
            assert answer.detect_anomaly_result.confidence > 0
            (worker,) = agent.workers()
            assert "libonnxruntime_providers_cuda" not in Path(f"/proc/{worker}/maps").read_text()

    def test_tensors_are_bound_on_the_cpu_to_the_same_bits(self, monkeypatch):
        from edge_agent.backends import onnxruntime, open_session

        model = ModelFiles(networks.mochi().SerializeToString())
        plain = open_session(model, SessionOptions(threads=1))
        monkeypatch.setattr(onnxruntime, "DEVICES", {"cpu": "cpu"})
        bound = open_session(model, SessionOptions(threads=1))
        random = np.random.default_rng(1)
        for _ in range(3):
            tensor = random.random((1, 3, 64, 72), np.float32)
            assert [one.tobytes() for one in bound.run(tensor)] == [one.tobytes() for one in plain.run(tensor)]
        assert bound._binding.fixed

    @no_gpu
    def test_the_doctor_tells_the_truth(self, tmp_path):
        command = [sys.executable, "-m", "edge_agent", "doctor", "--json", "--models", str(tmp_path)]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
        found = json.loads(done.stdout)
        assert found["gpu"] is None
        providers = json.dumps(found["providers"])
        assert all(one in providers for one in (CPU, CUDA, TENSORRT))
        assert "cannot open shared object file" in providers


def test_tensorrts_own_package_is_not_what_is_tested_here():
    assert not tensorrt.installed()
    assert os.environ.get("CUDA_VISIBLE_DEVICES") is None
