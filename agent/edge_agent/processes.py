"""What the system says of processes: which they are, what memory they take, and which are whose children (proc(5))."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True)
class Memory:
    """A process's bytes of memory: all that is resident, and that with shared pages divided among those who share them."""

    resident: int
    proportional: int


def memory(pid: int, proc: Path = PROC) -> Memory | None:
    """Return what a process takes; None where there is none, or the system does not say."""
    sizes = {}
    try:
        with (proc / str(pid) / "smaps_rollup").open() as file:
            for line in file:
                name, *words = line.split()
                if name in {"Rss:", "Pss:"}:
                    sizes[name] = int(words[0]) * 1024
        return Memory(sizes["Rss:"], sizes["Pss:"])
    except (OSError, LookupError, ValueError):
        return None


def children(pid: int, proc: Path = PROC) -> list[int]:
    """Return the children of a process, none where the system does not say."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for one in (proc / str(pid) / "task").iterdir():
            with contextlib.suppress(OSError, ValueError):
                found += map(int, (one / "children").read_text().split())
    return sorted(found)


def started(pid: int, proc: Path = PROC) -> int | None:
    """Return when a process was started, in clock ticks since the machine was; None where there is none any more."""
    try:
        # Its name, in parentheses, may hold anything.
        fields = (proc / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
        return None if fields[0] in {b"Z", b"X"} else int(fields[19])
    except (OSError, LookupError, ValueError):
        return None


def boot(proc: Path = PROC) -> str | None:
    """Return the name of this boot of the machine, which no other has; None where the system does not say."""
    try:
        return (proc / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def namespace(proc: Path = PROC) -> int | None:
    """Return the number of the namespace in which the pids that this process sees hold; None as `boot`."""
    try:
        return (proc / "self/ns/pid").stat().st_ino
    except OSError:
        return None
