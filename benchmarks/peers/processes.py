"""The processes of a contender: a server with all that it starts, and the client that calls it in its turns."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

TICKS = os.sysconf("SC_CLK_TCK")
# Seconds that a process may take to be ready, and to end by itself.
START, END = 60.0, 15.0


class NotRun(Exception):
    """A peer could not be run; the text says why, with the last lines of its log."""


class Tree:
    """A process and all below it."""

    def __init__(self, root: int) -> None:
        self._root = root

    def pids(self) -> list[int]:
        """Return the processes that there are now."""
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    children.setdefault(int(_fields(int(entry.name))[1]), []).append(int(entry.name))
        found = [self._root]
        for pid in found:  # which grows as it goes
            found += children.get(pid, [])
        return found

    def memory_mb(self) -> float:
        """Return the proportional set size (PSS) of all of them together, in MB."""
        kib = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
                kib += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
        return kib * 1024 / 1e6

    def cpu_seconds(self) -> float:
        """Return how long they have computed, those that have ended and were waited for included."""
        ticks = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                ticks += sum(map(int, _fields(pid)[11:15]))
        return ticks / TICKS

    def signal(self, number: int) -> None:
        """Send a signal to each."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


@contextlib.contextmanager
def server(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server; in the end, end it and all that it started."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
    try:
        yield process
    finally:
        # Children outlive a server that is killed or that forgets them; whose they were is known only before.
        started = {pid: _started(pid) for pid in Tree(process.pid).pids()}
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END)
        for pid, when in started.items():
            if when is not None and _started(pid) == when:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        process.wait()


def wait(process: subprocess.Popen[bytes], ready: Any, log: Path) -> float:
    """Wait until `ready()`; return the seconds that took, or raise NotRun when the server ends or takes too long."""
    begin = time.perf_counter()
    while not ready():
        if process.poll() is not None or time.perf_counter() - begin > START:
            told = "it ended" if process.poll() is not None else f"it was not ready after {START:.0f} s"
            raise NotRun(f"{told}: {last_lines(log)}")
        time.sleep(0.005)
    return time.perf_counter() - begin


def last_lines(log: Path) -> str:
    """Return the last line of a log that says something."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


class Client:
    """A client in a process of its own, in the environment of its peer, which calls when told to: turns.py."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        """Start it; raise NotRun when it cannot reach its server. `close` ends it."""
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment, text=True
            )
        self.ways: list[str] = self._line()

    def call(self, way: str, calls: int) -> tuple[list[float], float]:
        """Make so many calls; return the milliseconds of each, and the last score."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps([way, calls]) + "\n")
        self._process.stdin.flush()
        answer = self._line()
        if "error" in answer:
            raise NotRun(f"{way}: {answer['error'].partition(chr(10))[0]:.300}")
        return answer["times"], answer["score"]

    def close(self) -> None:
        """Close its input, whereupon it ends."""
        try:
            self._process.communicate(timeout=END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def _line(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self.close()
            raise NotRun(f"its client ended: {last_lines(self._log)}")
        return json.loads(line)


def _fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat (proc(5)) from the third, the state, on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _started(pid: int) -> str | None:
    """Return when a process was started, as the system counts it; None when there is none."""
    try:
        return _fields(pid)[19]
    except OSError:
        return None
