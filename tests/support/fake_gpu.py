"""An agent on a device that seems to have a GPU: NVML, the driver's files and the runtimes are stand-ins at their edges.

What a worker would run on the GPU is computed by ONNX Runtime on the CPU, and fails as a test wants it.
"""

import json
import os
from pathlib import Path
from typing import Any

from support.users import code_path

GIB = 1 << 30
NAME, CODE, DRIVER = "Imaginary L4", "sm_89", "550.54.15"
# At NVML's own surface: the real names, as tests/agent/test_probe_gpu.py proves.
NVML = """
import json, os, time
from types import SimpleNamespace
FAKE = json.loads(os.environ["FAKE_GPU"])
class NVMLError(Exception):
    value = 0
NVML_ERROR_LIBRARY_NOT_FOUND, NVML_ERROR_DRIVER_NOT_LOADED = 12, 9
NVML_ERROR_NO_PERMISSION, NVML_ERROR_LIB_RM_VERSION_MISMATCH = 4, 18
def nvmlInit():
    time.sleep(FAKE.get("hangs", 0))
def nvmlShutdown(): pass
def nvmlSystemGetDriverVersion(): return "550.54.15"
def nvmlSystemGetCudaDriverVersion_v2(): return 12040
def nvmlDeviceGetCount(): return FAKE.get("count", 1)
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetName(handle): return "Imaginary L4"
def nvmlDeviceGetCudaComputeCapability(handle): return (8, 9)
def nvmlDeviceGetMemoryInfo(handle): return SimpleNamespace(total=24 << 30, free=FAKE.get("free", 20 << 30), used=0)
"""
AGENT = """
import json, os, resource, time
FAKE = json.loads(os.environ["FAKE_GPU"])
from edge_agent import backends, gpus
from edge_agent.errors import AcceleratorFailed, AcceleratorMissing
from edge_agent.jobs import Progress, SessionOptions
gpus.DRIVER_FILES = ("proc/self/status",)
gpus._provider = lambda name: name in FAKE.get("installed", ["cuda", "tensorrt"])
gpus._native = lambda: "tensorrt" in FAKE.get("installed", ["cuda", "tensorrt"])
really = backends.open_session

class OnGpu:
    def __init__(self, session, accelerator, fake):
        self.provider, self.input_dtype = f"Imaginary {accelerator}", session.input_dtype
        self._session, self._fake, self._accelerator = session, fake, accelerator
    def run(self, tensor):
        if self._fake.get("broken_by_white") and tensor.min() >= 0.99:
            raise AcceleratorFailed("CUDA error 700 (cudaErrorIllegalAddress).")
        return self._session.run(tensor)
    def another(self):
        return OnGpu(self._session.another(), self._accelerator, self._fake)
    def terminate(self):
        self._session.terminate()

def open_session(model, options, tell=lambda _: None):
    if options.accelerator == "cpu":
        return really(model, options, tell)
    fake = FAKE.get(options.accelerator, {})
    with open(FAKE["asked"], "a") as asked:
        limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
        told = {"accelerator": options.accelerator, "limited": limited, **vars(options.gpu)}
        asked.write(json.dumps(told) + "\\n")
    if fake.get("missing"):
        raise AcceleratorMissing(fake["missing"])
    if fake.get("failed"):
        raise AcceleratorFailed(fake["failed"])
    for number, text in enumerate(fake.get("building", [])):
        tell(Progress(text, building=True))
        while not os.path.exists(FAKE["asked"] + f".go-on-{number}"):
            time.sleep(0.01)
    return OnGpu(really(model, SessionOptions(), tell), options.accelerator, fake)

backends.open_session = open_session
"""


def environment(folder: Path, **fake: Any) -> dict[str, str]:
    """Return the environment of such an agent.

    `cuda` and `tensorrt` say how each fails: `missing` or `failed` with a sentence, `building` with texts, after
    each of which it waits for `go_on`, `broken_by_white` by a white image; `free` is the GPU's memory in bytes, `count` how many GPUs there are,
    `hangs` the seconds that NVML takes, `installed` what is.
    """
    place = folder / "fake-gpu"
    place.mkdir(mode=0o755, exist_ok=True)
    for name, code in (("pynvml.py", NVML), ("sitecustomize.py", AGENT)):
        (place / name).write_text(code)
        (place / name).chmod(0o644)
    path = [str(place), code_path() or os.environ.get("PYTHONPATH", "")]
    asked = folder / "asked.jsonl"
    asked.touch()
    asked.chmod(0o666)
    return {"PYTHONPATH": os.pathsep.join(filter(None, path)), "FAKE_GPU": json.dumps({"asked": str(asked), **fake})}


def asked(folder: Path) -> list[dict[str, Any]]:
    """Return what workers were told of how to run their model on the GPU, in order."""
    return [json.loads(line) for line in (folder / "asked.jsonl").read_text().splitlines()]


def go_on(folder: Path, number: int) -> None:
    """Let what is being built go on after its text of that number, counted from 0."""
    Path(folder, f"asked.jsonl.go-on-{number}").touch()
