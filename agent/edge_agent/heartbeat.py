"""Whether the agent that keeps a status lives, and how old is what it tells.

The number of a process is another's after a while, and after a reboot at once. So the agent says when its process was
started, and in which boot of the machine. Not by the lock in its state folder: an agent that serves may hold it and not be
the one that kept the status, as while the disk is full; and who tries a lock has it for an instant, in which no agent could
start.

When the status was last true stands in memory that the agent holds open, memfd_create(2), and that goes with it: a file on
the disk would be a write each second, also when nothing happens. By the clock that nobody steps, which all processes share.
"""

import os
import stat
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge_agent import processes

# Seconds; the status is looked through each second.
LATE = 3.0
WHEN = struct.Struct("=d")


class Heartbeat:
    """The agent's side, as long as its process lives: tells who it is, and notes each time at which its status was true."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("edge-agent-status")
        pid = os.getpid()
        self._told = {
            "boot": processes.boot(),
            "pid_namespace": processes.namespace(),
            "started_ticks": processes.started(pid),
            "fd": self._fd,
        }

    def told(self) -> dict[str, Any]:
        """Return what `life` needs, as part of the status."""
        return self._told

    def beat(self) -> None:
        """Note that the status is true this instant."""
        os.pwrite(self._fd, WHEN.pack(time.monotonic()), 0)


@dataclass(frozen=True)
class Life:
    """Whether an agent lives, None where it cannot be told from here, and the seconds since its status was true, if known."""

    lives: bool | None
    age: float | None = None

    @property
    def silent(self) -> bool:
        """Return whether it should have told something by now."""
        return self.age is not None and self.age > LATE


def life(status: Mapping[str, Any]) -> Life:
    """Return whether the agent that kept a status lives; what is no status makes it stumble (LookupError and so on)."""
    pid = int(status["agent"]["pid"])
    told = status.get("heartbeat")
    if told is None:  # an older agent, of which there is no more to know
        return Life(processes.started(pid) is not None)
    boots = (told["boot"], processes.boot())
    if None not in boots and boots[0] != boots[1]:
        return Life(lives=False)
    if told["pid_namespace"] != processes.namespace():
        return Life(lives=None)
    if told["started_ticks"] != processes.started(pid):
        return Life(lives=False)
    return Life(True, _age(pid, int(told["fd"])))


def _age(pid: int, number: int) -> float | None:
    """Return the seconds since the last beat, None where it may not be read."""
    try:
        # Looked at before it is opened: what else the agent has open must not be opened by whoever asks, who may be root.
        look = os.open(f"/proc/{pid}/fd/{number}", os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(look).st_mode):
                return None
            fd = os.open(f"/proc/self/fd/{look}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        finally:
            os.close(look)
        with os.fdopen(fd, "rb") as file:
            (when,) = WHEN.unpack(file.read(WHEN.size))
    except (OSError, struct.error):
        return None
    return max(0.0, time.monotonic() - float(when))
