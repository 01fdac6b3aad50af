"""What the system says of a process: how busy it has been, when it was started, whether it stands still."""

import os
import signal
from contextlib import suppress
from pathlib import Path

from support.waiting import until

# The system tells times in hundredths of a second.
TICK = 1 / os.sysconf("SC_CLK_TCK")
# More than a worker takes to do anything but judge an image.
BUSY_TICKS = 5


def fields(stat: Path) -> list[str]:
    """Return the fields of a `stat` of proc(5) from the third, the state, on."""
    return stat.read_text().rpartition(")")[2].split()


def cpu_ticks(pid: int) -> int:
    """Return the time that a process has computed."""
    user, system = fields(Path(f"/proc/{pid}/stat"))[11:13]
    return int(user) + int(system)


def started_at(pid: int) -> float:
    """Return when a process was started, by the clock CLOCK_BOOTTIME, which it tells a TICK too early at most."""
    return int(fields(Path(f"/proc/{pid}/stat"))[19]) * TICK


def python_threads(pid: int) -> int:
    """Count the threads of a process that Python made: gRPC names its own, which come and go as it likes."""
    names = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # it has just ended
            names.append((task / "comm").read_text())
    return names.count(Path(f"/proc/{pid}/comm").read_text())


def hold(pid: int) -> None:
    """Stop a process; return when every thread of it stands."""

    def stands(task: Path) -> bool:
        with suppress(FileNotFoundError):  # it has just ended
            return fields(task / "stat")[0] == "T"
        return True

    os.kill(pid, signal.SIGSTOP)
    until(lambda: all(map(stands, Path(f"/proc/{pid}/task").iterdir())), f"{pid} stands")


def computes(pid: int, before: int) -> bool:
    """Return whether a process that had computed `before` ticks has been at work since."""
    return cpu_ticks(pid) - before >= BUSY_TICKS
