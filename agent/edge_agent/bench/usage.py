"""How much of the device the agent's processes use, from /proc (proc(5)), which everybody may read the most of."""

import contextlib
import os
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edge_agent.bench.report import Memory, Usage

PROC = Path("/proc")
TICK = 1 / os.sysconf("SC_CLK_TCK")
CREDENTIALS = struct.Struct("3i")
# Of the fields of /proc/stat: user, nice, system, irq, softirq and steal are work, idle and iowait are none.
WORK = (0, 1, 2, 5, 6)


def served_by(path: Path) -> int:
    """Return the pid of the process that listens on a socket, 0 where the system does not tell; raise OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        connection.settimeout(5)
        connection.connect(str(path))
        pid: int = CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))[0]
    return pid if pid > 0 and (PROC / str(pid) / "stat").exists() else 0


@dataclass(frozen=True)
class Sample:
    """Seconds of processors by then: of each of the agent's processes, of the clients, and of the whole device."""

    agent: dict[int, float]
    clients: float
    device: float

    @classmethod
    def take(cls, agent: int, clients: Iterable[int]) -> "Sample":
        """Return what has been used until now by the tree of processes below `agent`, by `clients`, and by all."""
        tree = {pid: seconds_of(pid) for pid in (agent, *below(agent))} if agent else {}
        return cls(tree, sum(map(seconds_of, clients)), _device())

    def since(self, before: "Sample", seconds: float) -> Usage | None:
        """Return the processors in use on average since another sample, None where the agent cannot be seen."""
        if not self.agent or seconds <= 0:
            return None
        agent = sum(max(0.0, used - before.agent.get(pid, 0.0)) for pid, used in self.agent.items())
        return Usage(
            agent / seconds,
            (self.clients - before.clients) / seconds,
            (self.device - before.device) / seconds,
            os.cpu_count() or 1,
        )


def seconds_of(pid: int) -> float:
    """Return the processor's seconds that a process has used, 0 when it is gone."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) * TICK if fields else 0.0


def below(pid: int) -> list[int]:
    """Return the processes below another, children first, then theirs."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, wave = [], [pid]
    while wave:
        wave = [child for one in wave for child in children.get(one, [])]
        found += wave
    return found


def memory(agent: int, busy: dict[int, float]) -> tuple[Memory, ...]:
    """Return the memory of the agent's front process, of the model's worker, and of what is beside them.

    The worker is that of the processes below the agent's children that was `busy` the longest, in seconds.
    """
    tree = below(agent) if agent else []
    workers = [pid for pid in tree if (fields := _stat(pid)) and int(fields[1]) != agent]
    worker = max(workers, key=lambda pid: busy.get(pid, 0.0), default=0)
    named = [(agent, "front process"), (worker, "worker of the model")]
    named += [(pid, "another model's worker" if pid in workers else "helper") for pid in tree if pid != worker]
    return tuple(found for pid, what in named if pid and (found := _memory(pid, what)))


def _memory(pid: int, what: str) -> Memory | None:
    pss = None
    try:
        rss = int((PROC / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        with contextlib.suppress(PermissionError):
            rollup = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
            pss = next(1024 * int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return None
    return Memory(what, pid, rss, pss)


def _stat(pid: int) -> list[str]:
    """Return the fields of a process's `stat` from the third, the state, on; none when it is gone."""
    try:
        return (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _device() -> float:
    fields = (PROC / "stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(int(fields[index]) for index in WORK) * TICK
