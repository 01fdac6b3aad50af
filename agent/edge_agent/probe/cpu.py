"""The processor: what the kernel says of it, and how much of it this process may use.

Names in /proc/cpuinfo: x86's `vendor_id`, `model name`, `flags` (arch/x86/kernel/cpu/proc.c); arm64's `Features`,
`CPU implementer`, `CPU part` (arch/arm64/kernel/cpuinfo.c), whose numbers arch/arm64/include/asm/cputype.h names.
Limits of control groups: `cpu.max` (Documentation/admin-guide/cgroup-v2.rst).
"""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from edge_agent import device

# What speeds a model up, in the kernel's words.
NOTABLE = (
    *("avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2"),
)
IMPLEMENTERS = {0x41: "ARM", 0x4E: "NVIDIA"}
PARTS = {
    (0x41, 0xD03): "Cortex-A53",
    (0x41, 0xD04): "Cortex-A35",
    (0x41, 0xD05): "Cortex-A55",
    (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD09): "Cortex-A73",
    (0x41, 0xD0A): "Cortex-A75",
    (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD0D): "Cortex-A77",
    (0x41, 0xD40): "Neoverse-V1",
    (0x41, 0xD41): "Cortex-A78",
    (0x41, 0xD42): "Cortex-A78AE",
    (0x41, 0xD49): "Neoverse-N2",
    (0x41, 0xD4F): "Neoverse-V2",
    (0x41, 0xD83): "Neoverse-V3AE",
    (0x4E, 0x004): "Carmel",
}


@dataclass(frozen=True)
class Cpu:
    """A processor; `cores` are there, `usable` of them may be used, `quota` processors' time at most (None: all of it)."""

    machine: str
    vendor: str
    model: str
    flags: frozenset[str]
    cores: int
    usable: int
    quota: float | None
    absent: tuple[str, ...] = ()

    @property
    def notable(self) -> tuple[str, ...]:
        """What of its features speeds a model up."""
        return tuple(flag for flag in NOTABLE if flag in self.flags)


def look(proc: Path, sys: Path) -> Cpu:
    """Return the processor."""
    fields = _fields(proc / "cpuinfo")
    flags = device.cpu_flags(proc / "cpuinfo")
    vendor, model = fields.get("vendor_id", ""), fields.get("model name", "")
    if "CPU implementer" in fields:
        vendor, model = _arm(fields["CPU implementer"], fields.get("CPU part", ""))
    absent = () if flags else (f"{proc / 'cpuinfo'} tells no features of the processor, so none is counted on.",)
    usable = len(os.sched_getaffinity(0))
    return Cpu(platform.machine(), vendor, model, flags, os.cpu_count() or usable, usable, _quota(proc, sys), absent)


def _fields(cpuinfo: Path) -> dict[str, str]:
    """Return what stands in the file by name; of processors that differ, the first."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields


def _arm(implementer: str, part: str) -> tuple[str, str]:
    """Return vendor and core by their numbers, which are told where they have no name here."""
    try:
        numbers = int(implementer, 16), int(part, 16)
    except ValueError:
        return implementer, part
    return IMPLEMENTERS.get(numbers[0], f"implementer {implementer}"), PARTS.get(numbers, f"part {part}")


def _quota(proc: Path, sys: Path) -> float | None:
    """Return the least that any control group from ours up to the root allows, in processors."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
        own = next(line.removeprefix("0::") for line in lines if line.startswith("0::"))
    except (OSError, StopIteration, ValueError):
        return None
    root = sys / "fs/cgroup"
    found = []
    folder = root / own.strip("/")
    for group in (folder, *folder.parents):
        try:
            quota, period = (group / "cpu.max").read_text().split()
            if quota != "max":
                found.append(int(quota) / int(period))
        except (OSError, ValueError, ZeroDivisionError):
            pass  # the root group has no limit, and some containers hide the groups above
        if group == root:
            break
    return min(found, default=None)
