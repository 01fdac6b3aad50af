"""What this device is, and whether a package that was compiled for a target can run on it."""

import functools
import platform
from dataclasses import dataclass
from pathlib import Path

from edge_agent.block import Target
from edge_agent.errors import PackageRefused

# What uname(2) calls the architectures of a target platform.
MACHINES = {"X86_64": ("x86_64", "AMD64"), "ARM64": ("aarch64", "arm64")}
CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Device:
    """A device: machine as uname(2) names it, the processor's flags, and the GPU and TensorRT, empty without one."""

    machine: str
    cpu_flags: frozenset[str]
    gpu_code: str = ""
    tensorrt: str = ""


@functools.cache
def this_one() -> Device:
    """Return the device that we run on. No runtime for accelerators is used yet, so none is looked for."""
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
    if target.accelerator:
        raise PackageRefused(
            f"The package was compiled for {target.device or target.accelerator}; this agent runs models on the CPU only. "
            "Compile it for a target platform without an accelerator."
        )
    return notes


def _other_accelerator(target: Target, device: Device) -> tuple[str, ...]:
    wanted = {"GPU": target.options.get("gpu-code", ""), "TensorRT": target.options.get("trt-ver", "")}
    there = {"GPU": device.gpu_code, "TensorRT": device.tensorrt}
    other = [
        f"{kind} {wanted[kind]} (here: {there[kind] or 'none'})"
        for kind in wanted
        if wanted[kind] not in ("", there[kind])
    ]
    return (f"The package was compiled for {' and '.join(other)}.",) if other else ()
