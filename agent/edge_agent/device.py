"""What this device is, and whether a package that was compiled for a target can run on it.

| of the target          | fits a device                                            | source |
|------------------------|----------------------------------------------------------|--------|
| `arch`                 | of that architecture                                     | uname(2) |
| `cpu_flags` (of `mcpu` | whose processor has them all                             | proc_cpuinfo(5); which flags an `mcpu` is: LLVM's tables, |
| and `mattr`)           |                                                          | in model_packager/targets.py |
| `gpu-code` sm_XY       | whose GPU is X.Z with Z >= Y; where either is a Tegra's, | CUDA C++ Programming Guide, "Binary Compatibility" and |
|                        | X.Y itself                                               | its note on Tegra |
| `trt-ver` x.y.z        | with TensorRT x.y.z: engines are bound to their version, | TensorRT documentation, "Engine Compatibility" |
|                        | unless built version-compatible, which ours are not      | |
| `cuda-ver` x.y         | whose driver serves CUDA x or newer                      | CUDA Compatibility, "Minor Version Compatibility" |

The first two bind. The others tell of engines, and a package is ONNX, from which an engine is built on the device: they
are said, and refused only where a setting wants that. What a package that fits is run on is chosen in `accelerators`.
"""

import functools
import platform
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_agent.block import Target
from edge_agent.errors import PackageRefused

# What uname(2) calls the architectures of a target platform.
MACHINES = {"X86_64": ("x86_64", "AMD64"), "ARM64": ("aarch64", "arm64")}
CPUINFO = Path("/proc/cpuinfo")
# The GPUs of Tegra, for which code is compiled exactly or not at all.
TEGRA_CODES = {"sm_53", "sm_62", "sm_72", "sm_87", "sm_110"}
# The compiler options that tell of an accelerator.
OF_GPUS = {"gpu-code", "trt-ver", "cuda-ver"}
GPU_CODE = re.compile("sm_([0-9]+)([0-9])")


@dataclass(frozen=True)
class Device:
    """A device: machine as uname(2) names it, the processor's flags, and the GPU and TensorRT, empty without one.

    `cuda` is the newest CUDA that the GPU's driver serves, empty where that is not known.
    """

    machine: str
    cpu_flags: frozenset[str]
    gpu_code: str = ""
    tensorrt: str = ""
    cuda: str = ""


@functools.cache
def this_one() -> Device:
    """Return the device that we run on, its processor alone: a GPU is looked for where it matters, in `gpus`."""
    return Device(platform.machine(), cpu_flags(CPUINFO))


def cpu_flags(cpuinfo: Path) -> frozenset[str]:
    """Return the processor's flags: the line `flags` of x86, `Features` of ARM (proc_cpuinfo(5))."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(
        flag
        for line in lines
        if line.partition(":")[0].strip() in {"flags", "Features"}
        for flag in line.partition(":")[2].split()
    )


def check(target: Target, device: Device, *, strict: bool) -> tuple[str, ...]:
    """Return what an operator should know of a package's target; raise PackageRefused when it cannot run here.

    Bound are the architecture and the processor's instructions. A model for another GPU or another TensorRT is still
    ONNX, from which an engine is built on the device; `strict` refuses it all the same.
    """
    if target.arch not in MACHINES:
        raise PackageRefused(f"package.target.arch is {target.arch!r:.80}; known are {' and '.join(MACHINES)}.")
    if device.machine not in MACHINES[target.arch]:
        raise PackageRefused(
            f"The package was compiled for {target.arch}; this device is {device.machine}. Compile it for this architecture."
        )
    missing = sorted(set(target.cpu_flags) - device.cpu_flags)
    if missing:
        named = target.options.get("mcpu", "its target")
        raise PackageRefused(
            f"The package was compiled for {named}, which needs {', '.join(missing)!s:.200}; this device's processor lacks "
            "that. Compile it with an mcpu that this device has."
        )
    notes = _other_accelerator(target, device)
    if notes and strict:
        raise PackageRefused(f"{notes[0]} The setting `target` is strict, so it is refused.")
    return notes


def fit(_: str, target: Target | None, strict: bool) -> tuple[str, ...]:
    """Check a target against this device's processor alone, for tools that look at packages and run none on a GPU."""
    return check(target, this_one(), strict=strict) if target else ()


def _other_accelerator(target: Target, device: Device) -> tuple[str, ...]:
    other = [f"{kind} {wanted} (here: {here or 'none'})" for kind, wanted, here in accelerator_misfits(target, device)]
    return (f"The package was compiled for {' and '.join(other)}.",) if other else ()


def accelerator_misfits(target: Target, device: Device) -> Iterator[tuple[str, str, str]]:
    """Yield what of a target's accelerator does not fit a device: what it is, the version wanted, the one here or ""."""
    rules: tuple[tuple[str, str, str, Callable[[str, str], bool]], ...] = (
        ("GPU", "gpu-code", device.gpu_code, _runs_code),
        ("TensorRT", "trt-ver", device.tensorrt, _same_release),
        # Where no driver is, there is no GPU, and that is said already.
        ("CUDA", "cuda-ver", device.cuda, lambda wanted, here: not here or _major(here) >= _major(wanted)),
    )
    for kind, option, here, fits in rules:
        wanted = target.options.get(option, "")
        if wanted and not fits(wanted, here):
            yield kind, wanted, here


def _runs_code(wanted: str, here: str) -> bool:
    """Return whether a GPU runs code that was compiled for a compute capability, both as in sm_87."""
    code, gpu = GPU_CODE.fullmatch(wanted), GPU_CODE.fullmatch(here)
    if wanted == here or not code or not gpu or {wanted, here} & TEGRA_CODES:
        return wanted == here
    return code[1] == gpu[1] and int(gpu[2]) >= int(code[2])


def _same_release(wanted: str, here: str) -> bool:
    """Return whether a TensorRT is the one wanted; what is installed may have a fourth number, of its build."""
    return wanted.split(".")[:3] == here.split(".")[:3]


def _major(version: str) -> int:
    first = version.partition(".")[0]
    return int(first) if first.isdecimal() else 0
