"""How much memory is there for another model: the machine's and, in a container, the control group's."""

import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

from edge_agent.errors import NotEnoughMemory

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


def available(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Return the bytes that can be taken without swapping, or less where a cgroup v2 limits us.

    They are MemAvailable (proc(5)) and the free pages that are kept for each CPU, which the kernel counts neither as used
    nor as free. Since Linux 6.7 up to an eighth of the memory stays there for tens of seconds, such as that of a model that
    has just been stopped, and the next one would be refused meanwhile.
    """
    machine = _field(proc / "meminfo", "MemAvailable:") * 1024 + _kept_for_cpus(proc)
    return min([machine, *_headrooms(proc, cgroups)])


class MemoryLedger:
    """What models that are being loaded will take, so that two started at once do not both count on the same memory."""

    def __init__(self, reserve: int, free: Callable[[], int] = available, what: str = "memory") -> None:
        """Keep account of the memory that `free` tells of; `what` is its name, and in that of the setting of its reserve."""
        self._reserve = reserve
        self._free = free
        self._what = what
        self._lock = threading.Lock()
        self._promised: dict[str, int] = {}

    def reserve(self, size: int) -> None:
        """Keep another number of bytes free from now on; what was set aside already stays so."""
        with self._lock:
            self._reserve = size

    def room(self, *names: str) -> int:
        """Return the bytes that are free above the reserve and not set aside for others than `names`."""
        with self._lock:
            return self._room() + sum(self._promised.get(name, 0) for name in names)

    def admit(self, name: str, needed: int) -> None:
        """Set memory aside for a model; raise NotEnoughMemory when it is not there."""
        with self._lock:
            free = self._room()
            if needed > free:
                raise NotEnoughMemory(
                    f"Loading the model needs about {_mib(needed)} MiB of {self._what}; {_mib(max(free, 0))} MiB are free "
                    f"above the reserve. Stop another model, or lower {self._what.lower().replace(' ', '_')}_reserve."
                )
            self._promised[name] = needed

    def _room(self) -> int:
        return self._free() - sum(self._promised.values()) - self._reserve

    def settle(self, name: str) -> None:
        """Forget what was set aside: the model has taken it by now, or never will."""
        with self._lock:
            self._promised.pop(name, None)


def _kept_for_cpus(proc: Path) -> int:
    """Return the bytes of the free pages in the page sets of all CPUs and zones (zoneinfo, in proc(5)).

    At most an eighth of MemTotal, as the kernel has it (vm.percpu_pagelist_high_fraction), since where a container is shown
    a meminfo of its own, this is still the machine's.
    """
    try:
        counts = re.findall(r"^\s+count:\s+(\d+)$", (proc / "zoneinfo").read_text(), re.MULTILINE)
    except OSError:
        return 0  # hidden in some containers
    return min(sum(map(int, counts)) * os.sysconf("SC_PAGE_SIZE"), _field(proc / "meminfo", "MemTotal:") * 1024 // 8)


def _headrooms(proc: Path, cgroups: Path) -> list[int]:
    """Return what is left under each memory.max from our own cgroup up to the root; page cache counts as left."""
    try:
        own = next(line[3:] for line in (proc / "self/cgroup").read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return []
    rooms = []
    folder = cgroups / own.strip("/")
    for group in (folder, *folder.parents):
        try:
            most = (group / "memory.max").read_text().strip()
            used = int((group / "memory.current").read_text())
            if most != "max":
                rooms.append(int(most) - used + _field(group / "memory.stat", "inactive_file"))
        except (OSError, ValueError):
            pass  # the root group has no limit, and some kernels hide the rest
        if group == cgroups:
            break
    return rooms


def _field(file: Path, name: str) -> int:
    return next((int(line.split()[1]) for line in file.read_text().splitlines() if line.split()[0] == name), 0)


def _mib(size: int) -> int:
    return -(-size >> 20)
