"""What the system says of processes: how much memory they take, and which are whose children (proc(5))."""

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
