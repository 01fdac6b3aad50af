"""What a benchmark was run on: the device, its processors, and the versions of what matters."""

import contextlib
import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
BOARD = Path("/proc/device-tree/model")
GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
# Of /proc/cpuinfo: x86's, then those of ARM kernels.
NAMES = ("model name", "Hardware", "Model")
RUNTIMES = ("onnxruntime", "onnxruntime-gpu")


def describe() -> dict[str, str]:
    """Return what the device is, by what people call it; what cannot be found out is left out."""
    usable, there = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    cores = str(there) if usable == there else f"{usable} of {there}"
    found = {
        "device": _text(BOARD),
        "processor": processor(CPUINFO) or platform.machine(),
        "cores": cores,
        "clock governor": _text(GOVERNOR),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / (1 << 30):.1f} GiB",
        "system": f"{_distribution()}, Linux {platform.release()}",
        "python": platform.python_version(),
        "edge agent": _version("vision-edge-agent"),
        "grpcio": _version("grpcio"),
        "onnxruntime": next(filter(None, map(_version, RUNTIMES)), ""),
        "measured": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }
    return {key: value for key, value in found.items() if value}


def processor(cpuinfo: Path) -> str:
    """Return the processor's name, empty where the kernel does not tell."""
    lines = _text(cpuinfo).splitlines()
    named = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
    return next((named[name] for name in NAMES if named.get(name)), "")


def _distribution() -> str:
    with contextlib.suppress(OSError):
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    return "Linux"


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""
