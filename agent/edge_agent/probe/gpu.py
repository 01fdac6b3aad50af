"""NVIDIA's GPUs, as NVML tells of them through `nvidia-ml-py` (module `pynvml`).

Functions and errors: https://docs.nvidia.com/deploy/nvml-api/; their Python names: pynvml.py of nvidia-ml-py. CUDA's
version comes as 1000 * major + 10 * minor, memory in bytes.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from edge_agent.errors import extra, printable

T = TypeVar("T")

LONGEST = 200
NOT_INSTALLED = "not installed"


@dataclass(frozen=True)
class Gpu:
    """A GPU; what it does not tell is None. Memory is in bytes."""

    index: int
    name: str
    compute_capability: tuple[int, int] | None = None
    memory_total: int | None = None
    memory_free: int | None = None

    @property
    def code(self) -> str:
        """The code that its programs are compiled for, as in sm_87; empty where it does not tell."""
        return "sm_{}{}".format(*self.compute_capability) if self.compute_capability else ""


@dataclass(frozen=True)
class Gpus:
    """The GPUs that answer, the driver's version, the newest CUDA that it can serve, and what is missing, in sentences.

    `broken` says that there is a driver, and that it does not answer.
    """

    found: tuple[Gpu, ...] = ()
    driver: str = ""
    cuda_driver: str = ""
    absent: tuple[str, ...] = ()
    broken: bool = False


def answers() -> Iterator[Mapping[str, Any]]:
    """Yield what NVML says, as JSON has it; called in a process of its own."""
    yield asdict(look())


def told(lines: Sequence[Mapping[str, Any]], failed: str, proc: Path) -> Gpus:
    """Return what that process said, and judge whether a driver is there that should have answered."""
    driver = (proc / "driver/nvidia/version").exists()
    if not lines:
        return Gpus(absent=(f"NVIDIA's driver library was asked, and {failed or 'it said nothing'}.",), broken=True)
    one = dict(lines[-1])
    gpus = tuple(
        Gpu(**{**gpu, "compute_capability": tuple(gpu["compute_capability"]) if gpu["compute_capability"] else None})
        for gpu in one.pop("found")
    )
    if one["absent"] == [NOT_INSTALLED]:
        if driver:
            sentence = f"NVIDIA's driver is loaded, and nvidia-ml-py, which asks it, is not installed; {extra('cuda')}."
        else:
            sentence = "No NVIDIA driver is loaded."
        return Gpus(absent=(sentence,), broken=driver)
    return Gpus(gpus, one["driver"], one["cuda_driver"], tuple(one["absent"]), one["broken"] or (driver and not gpus))


def look() -> Gpus:
    """Ask NVML for all that it tells."""
    try:
        pynvml: Any = import_module("pynvml")
    except Exception as error:  # noqa: BLE001  (a broken installation raises what it likes)
        if isinstance(error, ModuleNotFoundError):
            return Gpus(absent=(NOT_INSTALLED,))
        return Gpus(absent=(f"nvidia-ml-py cannot be imported: {_said(error)}.",), broken=True)
    try:
        pynvml.nvmlInit()
    except Exception as error:  # noqa: BLE001
        return _no_nvml(pynvml, error)
    try:
        return _ask(pynvml)
    finally:
        with contextlib.suppress(Exception):
            pynvml.nvmlShutdown()


def _no_nvml(pynvml: Any, error: Exception) -> Gpus:
    """Say why NVML does not start."""
    causes = {
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "No NVIDIA driver is installed: its library libnvidia-ml.so.1 is not found.",
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "NVIDIA's driver library is installed, and the driver is not loaded.",
        pynvml.NVML_ERROR_NO_PERMISSION: "This user may not use NVIDIA's driver (see the rights of /dev/nvidiactl).",
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
            "NVIDIA's driver library and the loaded driver are of two versions; the driver was updated: restart the device."
        ),
    }
    code = getattr(error, "value", None)
    sentence = causes.get(code, f"NVIDIA's driver library does not start: {_said(error)}.")
    return Gpus(absent=(sentence,), broken=code != pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)


def _ask(pynvml: Any) -> Gpus:
    missing: list[str] = []

    def ask(what: str, function: Callable[..., T], *arguments: Any) -> T | None:
        try:
            return function(*arguments)
        except Exception as error:  # noqa: BLE001
            missing.append(f"{what} cannot be told: {_said(error)}.")
            return None

    driver = ask("The version of NVIDIA's driver", pynvml.nvmlSystemGetDriverVersion)
    cuda = ask("The CUDA version of NVIDIA's driver", pynvml.nvmlSystemGetCudaDriverVersion_v2)
    count = ask("How many GPUs there are", pynvml.nvmlDeviceGetCount)
    gpus = []
    for index in range(count or 0):
        handle = ask(f"GPU {index}", pynvml.nvmlDeviceGetHandleByIndex, index)
        if handle is None:
            continue
        name = ask(f"The name of GPU {index}", pynvml.nvmlDeviceGetName, handle)
        capability = ask(f"The compute capability of GPU {index}", pynvml.nvmlDeviceGetCudaComputeCapability, handle)
        memory = ask(f"The memory of GPU {index}", pynvml.nvmlDeviceGetMemoryInfo, handle)
        gpus.append(
            Gpu(
                index,
                _text(name),
                (int(capability[0]), int(capability[1])) if capability else None,
                int(memory.total) if memory else None,
                int(memory.free) if memory else None,
            )
        )
    if count == 0:
        missing.append("NVIDIA's driver answers, and there is no GPU.")
    version = f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else ""
    return Gpus(tuple(gpus), _text(driver), version, tuple(missing))


def _text(value: str | bytes | None) -> str:
    """Return a text of NVML's, which older modules return as bytes."""
    return printable(value.decode(errors="replace") if isinstance(value, bytes) else value or "")[:LONGEST]


def _said(error: Exception) -> str:
    return printable(f"{type(error).__name__}: {error}".rstrip(".: "))[:LONGEST]
