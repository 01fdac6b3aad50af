"""NVIDIA's GPUs, told from a fake of NVML at its own surface: the real names, and the real module's errors."""

import ast
import inspect
import json
import sys
from types import SimpleNamespace

import pynvml
import pytest

from edge_agent.probe import gpu
from edge_agent.probe.gpu import Gpu, Gpus


class Nvml:
    """NVML's own surface, with two GPUs: each function may be told to fail with one of NVML's errors."""

    GPUS = (("Imaginary L4", (8, 9), 24 << 30, 20 << 30), (b"Old \xff L4", (8, 9), 8 << 30, 1 << 30))

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.failing: dict[str, int | Exception] = {}
        self.calls: list[str] = []
        for name, answer in {
            "nvmlInit": lambda: None,
            "nvmlShutdown": lambda: None,
            "nvmlSystemGetDriverVersion": lambda: "550.54.15",
            "nvmlSystemGetCudaDriverVersion_v2": lambda: 12040,
            "nvmlDeviceGetCount": lambda: len(self.GPUS),
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetName": lambda handle: self.GPUS[handle][0],
            "nvmlDeviceGetCudaComputeCapability": lambda handle: self.GPUS[handle][1],
            "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(
                total=self.GPUS[handle][2], free=self.GPUS[handle][3], used=0
            ),
        }.items():
            # Called as in the real module: a call with other arguments fails.
            signature = inspect.signature(getattr(pynvml, name))
            monkeypatch.setattr(pynvml, name, self._fake(name, answer, signature))

    def _fake(self, name, answer, signature):
        def fake(*arguments):
            signature.bind(*arguments)
            self.calls.append(name)
            error = self.failing.get(name)
            if isinstance(error, Exception):
                raise error
            if error is not None:
                raise pynvml.NVMLError(error)
            return answer(*arguments)

        return fake


@pytest.fixture
def nvml(monkeypatch):
    return Nvml(monkeypatch)


class TestNvml:
    def test_every_name_is_one_of_the_real_module(self):
        tree = ast.parse(inspect.getsource(gpu))
        names = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pynvml"
        }
        assert len(names) == 13, "as many as are used"
        assert [one for one in names if not hasattr(pynvml, one)] == []
        memory = dict(pynvml.c_nvmlMemory_t._fields_)
        assert {"total", "free"} <= memory.keys()

    def test_all_that_is_told(self, nvml):
        found = gpu.look()
        assert found == Gpus(
            (
                Gpu(0, "Imaginary L4", (8, 9), 24 << 30, 20 << 30),
                Gpu(1, "Old \ufffd L4", (8, 9), 8 << 30, 1 << 30),
            ),
            "550.54.15",
            "12.4",
        )
        assert found.found[0].code == "sm_89"
        assert (nvml.calls[0], nvml.calls[-1]) == ("nvmlInit", "nvmlShutdown")

    @pytest.mark.parametrize(
        ("function", "words", "lost"),
        [
            ("nvmlSystemGetDriverVersion", "The version of NVIDIA's driver", ("driver", "")),
            ("nvmlSystemGetCudaDriverVersion_v2", "The CUDA version of NVIDIA's driver", ("cuda_driver", "")),
            ("nvmlDeviceGetCount", "How many GPUs there are", ("found", ())),
            ("nvmlDeviceGetHandleByIndex", "GPU 1", ("found", ())),
            ("nvmlDeviceGetName", "The name of GPU 1", None),
            ("nvmlDeviceGetCudaComputeCapability", "The compute capability of GPU 0", None),
            ("nvmlDeviceGetMemoryInfo", "The memory of GPU 0", None),
        ],
    )
    @pytest.mark.parametrize("error", [pynvml.NVML_ERROR_NOT_SUPPORTED, 12345, RuntimeError("odd")])
    def test_what_fails_costs_what_it_would_have_told(self, nvml, function, words, lost, error):
        nvml.failing[function] = error
        found = gpu.look()
        assert any(one.startswith(f"{words} cannot be told: ") for one in found.absent)
        assert not found.broken
        if lost:
            assert getattr(found, lost[0]) == lost[1]
        else:
            assert len(found.found) == 2
        assert nvml.calls[-1] == "nvmlShutdown"

    @pytest.mark.parametrize(
        ("error", "words", "broken"),
        [
            (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "No NVIDIA driver is installed", False),
            (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "the driver is not loaded", True),
            (pynvml.NVML_ERROR_NO_PERMISSION, "may not use NVIDIA's driver", True),
            (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "restart the device", True),
            (pynvml.NVML_ERROR_GPU_IS_LOST, "does not start: NVMLError_GpuIsLost: GPU is lost", True),
            (RuntimeError("odd\x1b"), "does not start: RuntimeError: odd\\x1b", True),
        ],
    )
    def test_no_nvml_is_one_sentence(self, nvml, error, words, broken):
        nvml.failing["nvmlInit"] = error
        found = gpu.look()
        assert words in found.absent[0]
        assert (len(found.absent), found.found, found.broken) == (1, (), broken)

    def test_a_shutdown_that_fails_is_nothing(self, nvml):
        nvml.failing["nvmlShutdown"] = pynvml.NVML_ERROR_UNKNOWN
        assert len(gpu.look().found) == 2

    def test_no_gpu(self, nvml, monkeypatch):
        monkeypatch.setattr(Nvml, "GPUS", ())
        assert gpu.look().absent == ("NVIDIA's driver answers, and there is no GPU.",)

    def test_without_nvidia_ml_py(self, monkeypatch, tmp_path):
        monkeypatch.setitem(sys.modules, "pynvml", None)
        lines = json.loads(json.dumps(list(gpu.answers())))
        assert gpu.told(lines, "", tmp_path) == Gpus(absent=("No NVIDIA driver is loaded.",))
        (tmp_path / "driver/nvidia").mkdir(parents=True)
        (tmp_path / "driver/nvidia/version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15\n")
        found = gpu.told(lines, "", tmp_path)
        assert found.broken
        assert "nvidia-ml-py, which asks it, is not installed" in found.absent[0]

    def test_a_broken_nvidia_ml_py(self, monkeypatch):
        def fail(_):
            raise SyntaxError("odd")

        monkeypatch.setattr(gpu, "import_module", fail)
        assert gpu.look() == Gpus(absent=("nvidia-ml-py cannot be imported: SyntaxError: odd.",), broken=True)

    def test_is_the_same_after_its_way_through_a_process(self, nvml, tmp_path):
        assert gpu.told(json.loads(json.dumps(list(gpu.answers()))), "", tmp_path) == gpu.look()

    def test_a_driver_that_hangs(self, tmp_path):
        found = gpu.told([], "it did not answer in time", tmp_path)
        assert found == Gpus(absent=("NVIDIA's driver library was asked, and it did not answer in time.",), broken=True)
