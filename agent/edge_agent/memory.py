"""How much memory is there for another model: the machine's and, in a container, the control group's."""

from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


def available(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Return the bytes that can be taken without swapping: MemAvailable (proc(5)), or less where a cgroup v2 limits us."""
    machine = _field(proc / "meminfo", "MemAvailable:") * 1024
    return min([machine, *_headrooms(proc, cgroups)])


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
