"""S6: calls, refused or accepted, leave nothing behind in the agent.

1. An agent runs a model with a mask and one without; a third stays STOPPED. All call threads that it may have are made,
   and every kind of call has been made a few times.
2. Its processes are looked at, with what each holds: open files, mappings, threads; and what its user has in /dev/shm.
3. Calls of every kind are made at random, by callers with a channel of their own: names, numbers, bytes, states, and
   segments that are missing, too short, forbidden, no segments, or overlap; images and masks inline and in segments.
   Each is answered with the code of its kind.
4. The agent's processes, and what they hold, are what they were.

Threads are those that Python made: gRPC's own come and go as it likes, and with them mappings without a name.
"""

import contextlib
import os
import re
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random
from typing import NamedTuple

import grpc
import posix_ipc
import pytest

from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent._proto.edge_agent_pb2_grpc import EdgeAgentStub
from support import packages
from support.agent import PLENTY, Agent, alive, place
from support.calls import INVALID, NOT_FOUND, OK, PRECONDITION, outcome, padded, picture, request
from support.load import fill_the_pool
from support.processes import python_threads
from support.promises import Promise
from support.sabotage import sabotaged
from support.users import AGENT, MYSELF, User, agent_user
from support.waiting import until

PROMISE = Promise(
    id="S6",
    text="refused and accepted calls leave open files, mappings, threads, processes and /dev/shm as they were",
    case="a call that the agent has counted, refused or accepted",
    full=10_000 + 10_000,
    fast=200 + 200,
)
CALLERS = 2
MAX_CALLS = 4
POOL = MAX_CALLS + 16
# An odd width, so that rows can be padded.
WIDTH, HEIGHT = 65, 64
PIXELS = picture(WIDTH, HEIGHT)
IMAGE, PADDED = PIXELS.tobytes(), padded(PIXELS)
SIZE = len(IMAGE)
MASKED, PLAIN, STOPPED = "masked", "plain", "stopped"
RPC = "/AWS.LookoutVision.EdgeAgent/{}"
# What gRPC's threads, which come and go, may make of mappings without a name, in all processes together.
NAMELESS_SLACK = 24
# One of this run's own where we may choose, so that nobody else has processes or segments as this user.
UID = 60_000 + os.getpid() % 5_000
USER = User(UID, UID) if agent_user() == AGENT else agent_user()
SHM = Path("/dev/shm")


class Calls:
    """The kinds of calls, each with the code of its answer, and the segments that they name."""

    def __init__(self) -> None:
        self._made: list[Path] = []
        image = self._segment(3 * SIZE + 8192, PADDED)
        mask = self._segment(SIZE, b"")
        link = self._name("link")
        os.link(SHM / image, SHM / link)
        short = self._segment(SIZE - 1, b"")
        folder, fifo, symlink, missing = (self._name(one) for one in ("folder", "fifo", "symlink", "missing"))
        (SHM / folder).mkdir()
        os.mkfifo(SHM / fifo, 0o666)
        (SHM / symlink).symlink_to(SHM / image)
        there = (image, len(PADDED))

        def judge(model: str = MASKED, width: int = WIDTH, **fields: object) -> tuple[str, bytes]:
            return "DetectAnomalies", request(model, width, HEIGHT, **fields).SerializeToString()

        def named(rpc: str, name: str) -> tuple[str, bytes]:
            return rpc, pb2.DescribeModelRequest(model_component=name).SerializeToString()

        into = {"mask": (mask, SIZE)}
        behind = {"mask": (link, SIZE, len(PADDED))}
        self.accepted = [
            (OK, judge(pixels=IMAGE)),
            (OK, judge(pixels=PADDED, **into)),
            (OK, judge(handle=there)),
            (OK, judge(handle=there, **into)),
            (OK, judge(handle=there, **behind)),
            (OK, judge(PLAIN, pixels=IMAGE)),
            (OK, judge(PLAIN, handle=there, **into)),
            (OK, named("DescribeModel", STOPPED)),
        ]
        self.refused = [
            (INVALID, judge("no/name", pixels=IMAGE)),
            (NOT_FOUND, judge("nobody", pixels=IMAGE)),
            (NOT_FOUND, named("DescribeModel", "nobody")),
            (NOT_FOUND, named("StopModel", "nobody")),
            (PRECONDITION, judge(STOPPED, handle=there, **into)),
            (PRECONDITION, named("StartModel", PLAIN)),
            (PRECONDITION, named("StopModel", STOPPED)),
            (INVALID, ("DetectAnomalies", b"\xff" * 100)),
            (INVALID, judge()),
            (INVALID, judge(width=0, pixels=b"")),
            (INVALID, judge(width=64, pixels=IMAGE[: 3 * 64 * HEIGHT])),
            (INVALID, judge(pixels=IMAGE[1:])),
            (INVALID, judge(handle=("a/b", SIZE))),
            (INVALID, judge(handle=(missing, SIZE), **into)),
            (INVALID, judge(handle=(short, SIZE), **into)),
            (INVALID, judge(handle=(image, SIZE, 3 * SIZE + 8192), **into)),
            *((INVALID, judge(handle=(one, SIZE), **into)) for one in (folder, fifo, symlink)),
            (INVALID, judge(handle=there, mask=(missing, SIZE))),
            (INVALID, judge(handle=there, mask=(mask, SIZE - 1))),
            (INVALID, judge(handle=there, mask=(short, SIZE))),
            (INVALID, judge(handle=there, mask=there)),
            (INVALID, judge(handle=there, mask=(link, SIZE, 1))),
            *((INVALID, judge(handle=there, mask=(one, SIZE))) for one in (folder, fifo, symlink)),
        ]
        if USER != MYSELF:
            private, read_only = self._segment(SIZE, IMAGE, 0o600), self._segment(SIZE, IMAGE, 0o644)
            self.refused += [
                (INVALID, judge(handle=(private, SIZE), **into)),
                (INVALID, judge(handle=there, mask=(read_only, SIZE))),
            ]

    def close(self) -> None:
        for path in self._made:
            path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)

    def _name(self, kind: str) -> str:
        self._made.append(SHM / f"edge-agent-leaks-{kind}-{os.urandom(6).hex()}")
        return self._made[-1].name

    def _segment(self, size: int, content: bytes, mode: int = 0o660) -> str:
        name = self._name("segment")
        memory = posix_ipc.SharedMemory(f"/{name}", posix_ipc.O_CREX, size=size)
        os.fchmod(memory.fd, mode)
        os.fchown(memory.fd, -1, USER.gid)
        os.pwrite(memory.fd, content, 0)
        memory.close_fd()
        return name


class Holds(NamedTuple):
    """What an agent holds: everything by process, but for what is in /dev/shm."""

    processes: list[int]
    files: dict[int, Counter[str]]
    named: dict[int, Counter[str]]
    nameless: int
    threads: dict[int, int]
    segments: set[str]

    @staticmethod
    def of(agent: Agent) -> "Holds":
        pids = sorted({agent.pid, *agent.children(), *_of_user()})
        maps = {pid: Counter(_maps(pid)) for pid in pids}
        nameless = sum(one.pop("", 0) for one in maps.values())
        return Holds(
            pids,
            {pid: _files(pid) for pid in pids},
            maps,
            nameless,
            {pid: python_threads(pid) for pid in pids},
            _segments(),
        )

    def beyond(self, before: "Holds") -> dict[str, object]:
        """Return what is held other than before, by kind."""
        found = {
            kind: (getattr(before, kind), getattr(self, kind))
            for kind in self._fields
            if kind != "nameless" and getattr(before, kind) != getattr(self, kind)
        }
        if abs(self.nameless - before.nameless) > NAMELESS_SLACK:
            found["nameless"] = before.nameless, self.nameless
        return found


def _of_user() -> list[int]:
    """Return the processes of the user, where it is the agent's alone: also one whose parent has ended."""
    if USER in (MYSELF, AGENT):
        return []
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and entry.stat().st_uid == USER.uid and alive(int(entry.name)):
                found.append(int(entry.name))
    return found


def _files(pid: int) -> Counter[str]:
    """Count open files by kind, whose numbers differ from one to the next."""
    found: Counter[str] = Counter()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[re.sub(r"\[\d+\]$", "", str(fd.readlink()))] += 1
    return found


def _maps(pid: int) -> Iterator[str]:
    """Yield the file of each mapping, or "" for memory without a name."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        name = line.split(maxsplit=5)[5:]
        yield name[0] if name and not name[0].startswith("[") else ""


def _segments() -> set[str]:
    found = set()
    for entry in SHM.iterdir():
        with contextlib.suppress(OSError):
            if entry.lstat().st_uid == USER.uid:
                found.add(entry.name)
    return found


class Device:
    """An agent with everything that it may ever have, and its callers.

    Calls of ListModels are not counted: they look whether it serves.
    """

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self._kinds = Calls()
        self._channels = [
            grpc.insecure_channel(f"unix://{agent.socket}", options=[("grpc.use_local_subchannel_pool", 1)])
            for _ in range(CALLERS)
        ]
        self.expected = Counter(accepted=2)
        self._run(MASKED, PLAIN)
        segments = _segments()
        fill_the_pool(self._channels[0], POOL)
        for channel in self._channels:
            for kind in 2 * (self._kinds.accepted + self._kinds.refused):
                self._call(channel, kind)
                self.expected["refused" if kind[0] else "accepted"] += 1
        # A segment that the first call leaves is there for the others.
        self.before = self._settled()._replace(segments=segments)

    def close(self) -> None:
        for channel in self._channels:
            channel.close()
        self._kinds.close()
        self.agent.close()

    def call(self, random: Random, refused: int, accepted: int) -> None:
        """Make calls at random."""
        kinds = random.choices(self._kinds.refused, k=refused) + random.choices(self._kinds.accepted, k=accepted)
        random.shuffle(kinds)
        failed: list[BaseException] = []

        def caller(channel: grpc.Channel, kinds: list) -> None:
            try:
                for kind in kinds:
                    self._call(channel, kind)
            except BaseException as error:
                failed.append(error)

        threads = [
            threading.Thread(target=caller, args=(channel, kinds[nth::CALLERS]))
            for nth, channel in enumerate(self._channels)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed, failed
        self.expected.update(refused=refused, accepted=accepted)

    def counted(self) -> Counter[str]:
        """Return how many calls the agent, which has ended, has counted."""
        counted: Counter[str] = Counter()
        for one in self.agent.status()["calls"]:
            if one["rpc"] != "ListModels":
                counted["accepted" if one["code"] == "OK" else "refused"] += one["count"]
        return counted

    def beyond(self) -> dict[str, object]:
        """Return what the agent holds other than before its calls."""
        return Holds.of(self.agent).beyond(self.before)

    def _run(self, *names: str) -> None:
        stub = EdgeAgentStub(self._channels[0])
        for name in names:
            stub.StartModel(pb2.StartModelRequest(model_component=name), timeout=PLENTY)

        def running() -> int:
            models = stub.ListModels(pb2.ListModelsRequest(), timeout=PLENTY).models
            return sum(one.status == pb2.RUNNING for one in models)

        until(lambda: running() == len(names), "the models run")

    def _settled(self) -> Holds:
        """Return what the agent holds, once it goes on holding it: what was closed goes one after the other."""
        looks = [Holds.of(self.agent)]

        def the_same() -> bool:
            looks.append(Holds.of(self.agent))
            return not looks[-1].beyond(looks[-2])

        until(the_same, "what the agent holds has settled")
        return looks[-1]

    @staticmethod
    def _call(channel: grpc.Channel, kind: tuple[int, tuple[str, bytes]]) -> None:
        code, (rpc, data) = kind
        answer = outcome(channel.unary_unary(RPC.format(rpc)), data)
        assert answer[0] == code, f"{rpc} answers {answer[:2]}, not {code}"


@pytest.fixture
def models(folder) -> Path:
    packages.segmenter(folder / "models" / MASKED, (WIDTH, HEIGHT))
    for name in (PLAIN, STOPPED):
        packages.classifier(folder / "models" / name, (WIDTH, HEIGHT))
    return folder / "models"


@contextmanager
def device(models: Path, **env: str) -> Iterator[Device]:
    place_ = place(USER)
    try:
        agent = Agent(models, folder=place_, user=USER, max_calls=MAX_CALLS, log_level="info").start(**env)
        with closing(agent), closing(Device(agent)) as made:
            yield made
    finally:
        shutil.rmtree(place_)


def test_leaks(promises, models):
    with promises.run(PROMISE) as run, device(models) as made:
        earlier = made.expected.total()
        made.call(run.random, run.declared // 2, run.declared // 2)
        try:
            until(lambda: not made.beyond(), "the agent holds what it held")
        except AssertionError:
            raise AssertionError(f"the agent holds more than before: {made.beyond()}") from None
        before, after = made.before.nameless, Holds.of(made.agent).nameless
        print(f"  {len(made.before.processes)} processes; mappings without a name: {before}, then {after}")
        assert "Traceback" not in made.agent.log()
        assert made.agent.stop() == 0
        assert made.counted() == made.expected
        run.count(made.counted().total() - earlier)


# One call in a hundred leaves something behind: in the worker, a file and a mapping; in the agent, the rest.
LEAKS = """
import itertools, mmap, os, subprocess, sys, threading
from edge_agent import bitmaps
copy_in, describe, numbers = bitmaps.copy_in, bitmaps.describe, itertools.count(1)
def leaking(*told):
    if next(numbers) % 100 == 0:
        os.open("/dev/null", os.O_RDONLY)
        fd = os.memfd_create("leak")
        os.ftruncate(fd, 4096)
        kept.append(mmap.mmap(fd, 4096))
        os.close(fd)
    return copy_in(*told)
kept = []
def leaving(*told):
    if next(numbers) % 100 == 0:
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        # It ends with the agent, which holds its standard input.
        command = [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"]
        kept.append(subprocess.Popen(command, stdin=subprocess.PIPE, env={}))
        open(f"/dev/shm/edge-agent-leaks-{os.urandom(6).hex()}", "x").close()
    return describe(*told)
bitmaps.copy_in, bitmaps.describe = leaking, leaving
"""


def test_what_is_left_is_noticed(models):
    with device(models, **sabotaged(models.parent, LEAKS)) as made:
        made.call(Random(0), 200, 200)
        now = Holds.of(made.agent)
        for name in now.segments - made.before.segments:
            if name.startswith("edge-agent-leaks-"):
                (SHM / name).unlink()
        assert set(now.beyond(made.before)) >= {"processes", "files", "named", "threads", "segments"}
