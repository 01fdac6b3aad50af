"""The device's GPUs as the front process sees them: asked for in a process of their own, and only where there is a driver.

A device without a driver costs a look for five files. No library of NVIDIA's is loaded here, nor a runtime: whether they
are installed is told by their files.
"""

import importlib.util
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agent.accelerators import NO_CUDA, NO_DRIVER, NO_TENSORRT, Gpu, Here

if TYPE_CHECKING:
    from edge_agent import probe
    from edge_agent.probe.gpu import Gpus as Told
    from edge_agent.probe.jetson import Jetson

# One of them is there where a driver of NVIDIA's is: /proc of the driver itself (its README, "proc Interface"), its
# device file, and what Jetson Linux has. The last also tells of a container on a Jetson that was given no GPU.
DRIVER_FILES = (
    "proc/driver/nvidia/version",
    "dev/nvidiactl",
    "dev/nvgpu/igpu0",
    "dev/nvhost-gpu",
    "etc/nv_tegra_release",
)
# Seconds that the driver may take to answer: it is loaded by the first who asks, GPU by GPU.
PATIENCE = 10.0


class Gpus:
    """What the device has, asked once and kept. Any thread may ask."""

    def __init__(self, root: Path = Path("/"), patience: float = PATIENCE, known: Here | None = None) -> None:
        """Look below `root`; the driver has `patience` seconds for each answer. What is `known` is not asked for."""
        self._root = root
        self._patience = patience
        self._lock = threading.Lock()
        self._here = known

    def here(self) -> Here:
        """Return what there is."""
        with self._lock:
            if self._here is None:
                self._here = self._look()
            return self._here

    def forget_absence(self) -> None:
        """Ask again the next time, unless there was a GPU: a driver may have been loaded meanwhile."""
        with self._lock:
            if self._here and not self._here.gpus:
                self._here = None

    def free(self, index: int) -> int | None:
        """Return the bytes of a GPU's memory that are free right now, None where it does not tell (as on a Jetson)."""
        if not driver_there(self._root):
            return None
        return next((one.memory_free for one in self._ask().found if one.index == index), None)

    def _look(self) -> Here:
        if not driver_there(self._root):
            return Here()
        from edge_agent.probe import jetson, libraries

        root = self._root
        board = jetson.look(root / "proc", root / "sys", root / "etc", root / "dev")
        tensorrt = libraries.look().tensorrt
        return _here(self._ask(), board, tensorrt, _no_cuda(), _no_tensorrt(tensorrt))

    def _ask(self) -> "Told":
        from edge_agent.probe import child, gpu

        question = child.Child("gpu")
        return gpu.told(*question.answers(time.monotonic() + self._patience), self._root / "proc")


def driver_there(root: Path = Path("/")) -> bool:
    """Return whether there is any sign of a driver of NVIDIA's."""
    return any((root / one).exists() for one in DRIVER_FILES)


def of_probe(found: "probe.Device", root: Path = Path("/")) -> Here:
    """Return what a whole look at the device says, where a session has told which providers are really used."""
    from edge_agent.probe.runtime import CUDA, TENSORRT

    if not driver_there(root) and not found.gpus.found:
        return Here()

    def why_not(provider: str, absent: str) -> str:
        why = found.runtime.tried.get(provider, absent)
        return f"ONNX Runtime does not use its {provider}: {why}." if why and why != absent else why

    tensorrt = found.libraries.tensorrt
    no_tensorrt = "" if _native() else why_not(TENSORRT, NO_TENSORRT)
    return _here(found.gpus, found.jetson, tensorrt, why_not(CUDA, NO_CUDA), no_tensorrt)


def _here(told: "Told", board: "Jetson | None", tensorrt: str, no_cuda: str, no_tensorrt: str) -> Here:
    gpus = _gpus(told, board)
    why = " ".join(told.absent) or NO_DRIVER
    # On a Jetson the driver is part of the system.
    driver = told.driver or (board.l4t if board else "")
    return Here(gpus, driver, told.cuda_driver, tensorrt, "" if gpus else why, no_cuda, no_tensorrt)


def _gpus(told: "Told", board: "Jetson | None") -> tuple[Gpu, ...]:
    """Return the GPUs; that of a Jetson is there also where NVML does not tell of it, and has its SoC's code."""
    code = board.gpu_code if board and (board.gpu_there or told.found) else ""
    if told.found:
        return tuple(Gpu(one.index, one.name, one.code or code) for one in told.found)
    return (Gpu(0, board.board or board.soc, code),) if board and code else ()


def _no_cuda() -> str:
    return "" if _provider("cuda") else NO_CUDA


def _no_tensorrt(version: str) -> str:
    """Say why TensorRT cannot be used: by its own Python package, or else by ONNX Runtime with TensorRT's library."""
    return "" if _native() or (version and _provider("tensorrt")) else NO_TENSORRT


def _native() -> bool:
    """Return whether TensorRT's Python package is installed, and CUDA's: of `cuda` itself others have parts, too."""
    files = ("bindings", "cudart*")  # from 12.8 on, and before
    return _modules("tensorrt") and any(any(Path(folder).glob(one)) for folder in _spec("cuda") for one in files)


def _modules(*names: str) -> bool:
    """Return whether modules are installed; none is imported."""
    return all(_spec(one) for one in names)


def _spec(name: str) -> Sequence[str]:
    """Return the folders of an installed package, none where it is not there."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # a module that was put in its place has none
        return ()
    return list(spec.submodule_search_locations or [spec.name]) if spec else ()


def _provider(name: str) -> bool:
    """Return whether ONNX Runtime is installed with a provider: each is a shared library of its own, in `capi`."""
    return any(
        (Path(folder) / "capi" / f"libonnxruntime_providers_{name}.so").exists() for folder in _spec("onnxruntime")
    )
