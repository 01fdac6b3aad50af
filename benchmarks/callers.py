"""What throughput.py and scaling.py share: processes that call something over and over, counted in one window of time.

Each member calls the agent, or a bare model of its own. All begin a little before the window, so that it sees
nothing but a load that has settled; a call counts when it ends within the window, and so does what it took of the CPU.
"""

import contextlib
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
from harness import agent, largest_descendant, request, start_model

from edge_agent import block, manifest
from edge_agent._proto.edge_agent_pb2_grpc import EdgeAgentStub
from edge_agent.bench.bare import Bare, Frame
from edge_agent.jobs import SessionOptions
from edge_agent.packages import Package

# Seconds before a window in which everybody calls already, uncounted.
RAMP = 0.2
# Seconds that a member gets to begin, or to answer after a window.
PATIENCE = 60.0
TICKS = os.sysconf("SC_CLK_TCK")

Call = Callable[[], object]
Size = tuple[int, int]
# What a member calls, by a key that each turn names; made in its own process.
Prepare = Callable[[], AbstractContextManager[Callable[[Any], Call]]]


@dataclass(frozen=True)
class Target:
    """A model of an agent, and the size of the frame that it is to judge."""

    socket: str
    model: str
    size: Size


@dataclass(frozen=True)
class Turn:
    """What the members did in a window of `seconds`: the milliseconds of each call by member, and seconds of CPU.

    `members_cpu` is what the members took, `watched_cpu` what each of the watched processes took.
    """

    seconds: float
    times: list[list[float]]
    members_cpu: float
    watched_cpu: list[float]

    @property
    def calls(self) -> int:
        """The calls of all members."""
        return sum(map(len, self.times))

    @property
    def rate(self) -> float:
        """Calls a second."""
        return self.calls / self.seconds


@dataclass(frozen=True)
class Served:
    """A model that an agent of its own serves: the processes to watch, and what the clients are to call."""

    front: int
    worker: int
    targets: list[Target]


class Callers:
    """Processes of their own, spawned and warmed up; `turn` lets them work, the rest of the time they sleep."""

    def __init__(self, prepares: Sequence[Prepare]) -> None:
        """Start a process for each of `prepares`; `close` ends them."""
        context = multiprocessing.get_context("spawn")
        self._members = []
        for prepare in prepares:
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, prepare), daemon=True)
            process.start()
            theirs.close()
            self._members.append((process, ours))
        for _, pipe in self._members:
            _receive(pipe, PATIENCE)

    def turn(self, keys: Sequence[Any], seconds: float, watched: Sequence[int] = ()) -> Turn:
        """Let the first len(keys) members call what their key says, for a window of `seconds`."""
        pipes = [pipe for _, pipe in self._members[: len(keys)]]
        begin = time.monotonic() + RAMP
        for pipe, key in zip(pipes, keys, strict=True):
            pipe.send((key, begin, begin + seconds))
        marks = []
        for instant in (begin, begin + seconds):
            time.sleep(max(0.0, instant - time.monotonic()))
            marks.append([cpu_of(pid) for pid in watched])
        answers = [_receive(pipe, PATIENCE) for pipe in pipes]
        used = [after - before for before, after in zip(*marks, strict=True)]
        return Turn(seconds, [times for times, _ in answers], sum(cpu for _, cpu in answers), used)

    def close(self) -> None:
        """End the processes."""
        for process, pipe in self._members:
            pipe.close()
            process.join(PATIENCE)


@contextlib.contextmanager
def callers(prepares: Sequence[Prepare]) -> Iterator[Callers]:
    """Yield callers that are closed afterwards."""
    found = Callers(prepares)
    try:
        yield found
    finally:
        found.close()


@contextlib.contextmanager
def bare_model(package: Package, frame: Frame, options: SessionOptions) -> Iterator[Callable[[Any], Call]]:
    """Prepare a bare model; there is but one thing to call."""
    bare = Bare(package, frame, options)
    yield lambda _: bare.call


@contextlib.contextmanager
def client(frames: Mapping[Size, Frame]) -> Iterator[Callable[[Target], Call]]:
    """Prepare a client with a channel of its own to each agent, and segments of its own."""
    with contextlib.ExitStack() as channels:
        stubs: dict[str, EdgeAgentStub] = {}

        def calling(target: Target) -> Call:
            if target.socket not in stubs:
                stubs[target.socket] = EdgeAgentStub(
                    channels.enter_context(grpc.insecure_channel(f"unix:{target.socket}"))
                )
            stub, asked = stubs[target.socket], request(target.model, frames[target.size])
            return lambda: stub.DetectAnomalies(asked)

        yield calling


@contextlib.contextmanager
def served(folder: Path, names: Sequence[str], size: Size, options: SessionOptions) -> Iterator[Served]:
    """Serve the models of `folder`/models with `options`, and start those that clients call by `names`, one for each."""
    with agent(folder, options, slots=options.slots) as (pid, stub, _):
        for name in dict.fromkeys(names):
            start_model(stub, name)
        targets = [Target(str(folder / "agent.sock"), name, size) for name in names]
        yield Served(pid, largest_descendant(pid), targets)


def folder_of(work: Path, models: Path, label: str, names: Sequence[str]) -> Path:
    """Return a new folder for an agent, with copies of the packages `names`."""
    for name in names:
        copy_model(models, name, name, work / label / "models")
    return work / label


def cpu_of(pid: int) -> float:
    """Return the seconds of CPU that a process has taken, all its threads together: proc(5), utime and stime."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def descendants(pid: int) -> list[int]:
    """Return the processes below a process: proc(5), children."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found += [child, *descendants(child)]
    return found


def copy_model(models: Path, name: str, new: str, to: Path) -> None:
    """Copy the package `name` of the folder `models` into the folder `to`, as the component `new`."""
    shutil.copytree(models / name, to / new)
    for path in (to / new).rglob(manifest.FILE):
        content = json.loads(path.read_text())
        if "package" in content:
            content["package"]["component"]["name"] = new
            path.write_bytes(block.sign(json.dumps(content, indent=1).encode() + b"\n"))


def _work(pipe: Connection, prepare: Prepare) -> None:
    """Be a member: tell that it is ready, then call from each begin to its end until the pipe is closed."""
    with contextlib.suppress(EOFError, KeyboardInterrupt), prepare() as calling:
        pipe.send(None)
        while True:
            key, begin, end = pipe.recv()
            pipe.send(_call_until(calling(key), begin, end))


def _call_until(call: Call, begin: float, end: float) -> tuple[list[float], float]:
    """Call until `end` (time.monotonic); return the milliseconds of the calls that ended since `begin`, and their CPU."""
    times: list[float] = []
    cpu = 0.0
    start = time.monotonic()
    while start < end:
        call()
        now = time.monotonic()
        if begin <= now < end:
            # The call that is under way at `begin` counts, and the one under way at `end` does not: so with the CPU.
            cpu = cpu or time.process_time()
            times.append(1000 * (now - start))
        start = now
    return times, time.process_time() - cpu if times else 0.0


def _receive(pipe: Connection, patience: float) -> Any:
    """Return what a member sends; end the benchmark when it has died, which it tells on stderr, or does not answer."""
    try:
        if pipe.poll(patience):
            return pipe.recv()
    except (EOFError, OSError):
        raise SystemExit("A process of the benchmark died; its traceback is above.") from None
    raise SystemExit(f"A process of the benchmark did not answer within {patience:g} s.")
