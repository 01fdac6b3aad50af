"""What the front process knows of GPUs: from a driver's files, NVML asked in a child process, and recorded Tegra files."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from edge_agent import gpus
from edge_agent.accelerators import NO_CUDA, NO_DRIVER, NO_TENSORRT, Gpu, Here
from edge_agent.gpus import Gpus
from edge_agent.probe import child, libraries
from edge_agent.probe.gpu import Gpu as Told
from edge_agent.probe.gpu import Gpus as AllTold
from edge_agent.probe.jetson import Jetson
from edge_agent.probe.libraries import Libraries
from edge_agent.probe.runtime import CPU, CUDA, TENSORRT, Runtime
from support import fake_gpu
from support.agent import environment

RELEASE = "# R36 (release), REVISION: 4.3, GCID: 12345678, BOARD: generic, EABI: aarch64\n"
ORIN = Jetson("Orin NX", "tegra234", "sm_87", "36.4.3", gpu_there=True)


def file(root: Path, name: str, content: str = "") -> Path:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(content)
    return root


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """A function (**fake) that puts a fake NVML where the child finds it; returns the list of questions asked."""
    questions: list[str] = []
    really = child.Child

    def ask(question: str) -> child.Child:
        questions.append(question)
        return really(question)

    def fake(**fake: object) -> list[str]:
        env = fake_gpu.environment(tmp_path, **fake)
        (tmp_path / "fake-gpu" / "sitecustomize.py").unlink()  # the agent's part
        monkeypatch.setenv("FAKE_GPU", env["FAKE_GPU"])
        # The child's path is made of ours.
        monkeypatch.syspath_prepend(str(tmp_path / "fake-gpu"))
        monkeypatch.setattr(child, "Child", ask)
        return questions

    monkeypatch.setattr(libraries, "look", lambda: Libraries("10.3.0", "", "", ()))
    return fake


class TestDriver:
    def test_none(self, tmp_path, monkeypatch):
        monkeypatch.setattr(child, "Child", None)  # which would fail if it were asked
        seen = Gpus(tmp_path)
        assert not gpus.driver_there(tmp_path)
        assert seen.here() == Here(no_gpu=NO_DRIVER)
        assert seen.free(0) is None

    @pytest.mark.parametrize("name", gpus.DRIVER_FILES)
    def test_a_sign_of_one(self, tmp_path, name):
        assert gpus.driver_there(file(tmp_path, name))

    def test_the_front_imports_no_probe_where_there_is_none(self):
        script = """
import sys
from edge_agent.gpus import Gpus
from edge_agent.ways import Ways
from edge_agent.config import Settings
Ways(Settings()).of_target("board", None)
print([one for one in sys.modules if one.startswith(("edge_agent.probe", "pynvml", "onnxruntime", "tensorrt", "numpy"))])
"""
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, timeout=60, check=True
        )
        if gpus.driver_there():
            pytest.skip("there is a driver")
        assert done.stdout == "[]\n"


class TestAsked:
    def test_once(self, asked, tmp_path):
        questions = asked(count=2)
        seen = Gpus(file(tmp_path, "dev/nvidiactl"), patience=60)
        here = seen.here()
        assert here.gpus == (Gpu(0, fake_gpu.NAME, "sm_89"), Gpu(1, fake_gpu.NAME, "sm_89"))
        assert (here.driver, here.cuda_driver, here.no_gpu) == ("550.54.15", "12.4", "")
        assert here.tensorrt_version == "10.3.0"
        seen.forget_absence()
        assert seen.here() is here
        assert questions == ["gpu"], "what is there stays there"

    def test_what_was_not_there_is_asked_again_when_it_is_wanted(self, asked, tmp_path):
        questions = asked(count=0)
        seen = Gpus(tmp_path, patience=60)
        assert seen.here().no_gpu == NO_DRIVER
        file(tmp_path, "dev/nvidiactl")
        assert seen.here().no_gpu == NO_DRIVER
        assert questions == []
        seen.forget_absence()
        assert seen.here().no_gpu == "NVIDIA's driver answers, and there is no GPU."
        seen.forget_absence()
        assert questions == ["gpu"], "not before it is wanted"
        seen.here()
        assert questions == ["gpu"] * 2

    def test_a_driver_that_hangs(self, asked, tmp_path):
        asked(hangs=60)
        begin = time.monotonic()
        here = Gpus(file(tmp_path, "dev/nvidiactl"), patience=0.3).here()
        assert time.monotonic() - begin < 20
        assert (here.gpus, here.no_gpu) == ((), "NVIDIA's driver library was asked, and it did not answer in time.")

    def test_free_memory_is_that_of_the_moment(self, asked, tmp_path, monkeypatch):
        asked(count=2, free=3 << 30)
        seen = Gpus(file(tmp_path, "dev/nvidiactl"), patience=60)
        assert seen.free(1) == 3 << 30
        monkeypatch.setenv("FAKE_GPU", json.dumps({"count": 2, "free": 1 << 30}))
        assert seen.free(1) == 1 << 30
        assert seen.free(2) is None

    def test_a_jetson_whose_nvml_tells_nothing(self, asked, tmp_path):
        asked(count=0)
        root = file(tmp_path, "etc/nv_tegra_release", RELEASE)
        file(root, "proc/device-tree/compatible", "nvidia,p3768-0000\0nvidia,tegra234\0")
        file(root, "proc/device-tree/model", "NVIDIA Jetson Orin NX\0")
        here = Gpus(root, patience=60).here()
        assert here.gpus == (), "a container without the GPU's device file"
        here = Gpus(file(root, "dev/nvhost-gpu"), patience=60).here()
        assert here.gpus == (Gpu(0, "NVIDIA Jetson Orin NX", "sm_87"),)
        assert Gpus(root, patience=60).free(0) is None, "its memory is the system's"


class TestInstalled:
    def runtime(self, root: Path, monkeypatch, *providers: str) -> None:
        file(root, "onnxruntime/__init__.py", "raise AssertionError('it was imported')")
        for one in providers:
            file(root, f"onnxruntime/capi/libonnxruntime_providers_{one}.so")
        monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
        monkeypatch.syspath_prepend(str(root))

    @pytest.mark.parametrize(
        ("providers", "modules", "version", "no_cuda", "no_tensorrt"),
        [
            ((), (), "", NO_CUDA, NO_TENSORRT),
            (("shared",), (), "10.3.0", NO_CUDA, NO_TENSORRT),
            (("cuda",), (), "10.3.0", "", NO_TENSORRT),
            (("cuda", "tensorrt"), (), "", "", NO_TENSORRT),
            (("cuda", "tensorrt"), (), "10.3.0", "", ""),
            ((), ("tensorrt",), "10.3.0", NO_CUDA, NO_TENSORRT),
            ((), ("cuda",), "10.3.0", NO_CUDA, NO_TENSORRT),
            ((), ("tensorrt", "cuda"), "10.3.0", NO_CUDA, NO_TENSORRT),  # of `cuda` others have parts, too
            ((), ("tensorrt", "cuda/pathfinder"), "10.3.0", NO_CUDA, NO_TENSORRT),
            ((), ("tensorrt", "cuda/bindings"), "10.3.0", NO_CUDA, ""),
            ((), ("tensorrt", "cuda/cudart"), "10.3.0", NO_CUDA, ""),
        ],
    )
    def test_is_told_by_files(self, tmp_path, monkeypatch, providers, modules, version, no_cuda, no_tensorrt):
        self.runtime(tmp_path, monkeypatch, *providers)
        for one in modules:
            file(tmp_path, f"{one}/__init__.py", "raise AssertionError('it was imported')")
        for one in ("tensorrt", "cuda"):
            monkeypatch.delitem(sys.modules, one, raising=False)
        assert gpus._no_cuda() == no_cuda
        assert gpus._no_tensorrt(version) == no_tensorrt

    def test_what_cannot_be_found_out_is_not_there(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        assert gpus._no_cuda() == NO_CUDA

    def test_this_environment(self):
        import onnxruntime

        has = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        assert gpus._provider("cuda") == has


class TestOfProbe:
    """The doctor's word, which has tried the providers."""

    def here(self, found: AllTold, board: Jetson | None = None, **tried: str) -> Here:
        runtime = Runtime("9.9", (CUDA, CPU), {CPU: "", **tried})
        libraries_ = Libraries("10.3.0", "", "", ())
        return gpus.of_probe(SimpleNamespace(gpus=found, jetson=board, libraries=libraries_, runtime=runtime))

    L4 = AllTold((Told(0, "L4", (8, 9), 24 << 30, 20 << 30),), "550", "12.4")

    @pytest.mark.skipif(gpus.driver_there(), reason="there is a driver")
    def test_without_a_driver(self):
        assert self.here(AllTold(absent=("NVML is not found.",))) == Here(no_gpu=NO_DRIVER)

    def test_what_is_used(self):
        here = self.here(self.L4, **{CUDA: "", TENSORRT: ""})
        assert (here.gpus, here.no_gpu, here.no_cuda, here.no_tensorrt) == ((Gpu(0, "L4", "sm_89"),), "", "", "")

    def test_what_is_listed_and_not_used(self):
        here = self.here(self.L4, **{CUDA: "libcublas.so: gone"})
        assert here.no_cuda == "ONNX Runtime does not use its CUDAExecutionProvider: libcublas.so: gone."
        assert here.no_tensorrt == NO_TENSORRT

    def test_what_is_not_there(self):
        assert self.here(self.L4).no_cuda == NO_CUDA

    def test_the_code_of_a_jetson(self):
        assert self.here(AllTold((Told(0, "Orin"),)), ORIN).gpus == (Gpu(0, "Orin", "sm_87"),)
