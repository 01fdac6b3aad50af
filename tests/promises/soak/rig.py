"""The soak: an agent with four models, clients that call and are killed, a model that comes and goes, and what is seen."""

import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import grpc

from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent._proto.edge_agent_pb2_grpc import EdgeAgentStub
from promises.soak import plan
from promises.soak.plan import ANY, CHURNED, EPOCH, LARGE_SIDE, MIDDLE, SIDES, WIDE
from support import packages, shm, stubs
from support.agent import PLENTY, Agent, environment, place
from support.load import fill_the_pool
from support.processes import python_threads
from support.users import AGENT, MYSELF, User, agent_user
from support.waiting import until

LANE = Path(__file__).with_name("lane.py")
LANES = 4
MAX_CALLS = 16
POOL = MAX_CALLS + 16
SHM = Path("/dev/shm")
# Levels of grey, one for each lane: two whose mask is all bright, and two whose mask is not.
LEVELS = (60, 100, 160, 220)
LARGEST = 3 * LARGE_SIDE * LARGE_SIDE + 4096 * 8
OUTCOMES = ("judged", "refused", "stopped", "killed")
# One of this run's own where we may choose, so that nobody else has segments as this user.
UID = 65_000 + os.getpid() % 400
USER = User(UID, UID) if agent_user() == AGENT else agent_user()


@dataclass(frozen=True)
class Memory:
    """What memory was taken after so many calls, while none was under way, in bytes.

    `memory` is the proportional set size (PSS) of all processes, without files, that is without libraries: of these a process
    has the smaller a share the more others on the machine use them. `front` is that of the agent's own process, and `pss` is
    the whole PSS of all.
    """

    calls: int
    seconds: float
    memory: int
    front: int
    pss: int


@dataclass(frozen=True)
class Sample(Memory):
    """What was seen right after an epoch: besides the memory what is held, and the latencies of its calls, in ms."""

    files: int
    threads: int
    processes: int
    segments: int
    p50: float
    p99: float


@dataclass(frozen=True)
class Holds:
    """What the agent holds, of everything but memory, in all its processes together.

    The threads are those that Python made; gRPC's own come and go.
    """

    processes: int
    files: Counter[str]
    threads: int
    segments: frozenset[str]

    @staticmethod
    def of(agent: Agent) -> "Holds":
        pids = [agent.pid, *agent.children()]
        files = sum((_files(pid) for pid in pids), Counter())
        return Holds(len(pids), files, sum(map(_threads, pids)), frozenset(_segments()))

    def beyond(self, before: "Holds") -> dict[str, Any]:
        """Return what is held other than before, by kind."""
        mine, theirs = vars(self), vars(before)
        return {kind: (theirs[kind], mine[kind]) for kind in mine if mine[kind] != theirs[kind]}

    def told(self) -> dict[str, int]:
        """Return how much it is of each kind."""
        return {
            "files": self.files.total(),
            "threads": self.threads,
            "processes": self.processes,
            "segments": len(self.segments),
        }


class _Lane:
    """A lane's process, as the rig sees it."""

    def __init__(self, rig: "Soak", number: int) -> None:
        env = environment(PYTHONPATH=str(rig.stubs))
        self._process = subprocess.Popen(
            [sys.executable, str(LANE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        sides = sorted({side for sides in SIDES.values() for side in sides} | {LARGE_SIDE})
        self._tell(
            {
                "socket": str(rig.agent.socket),
                "level": LEVELS[number],
                "image": rig.segment(LARGEST, bytes([LEVELS[number]])),
                "mask": rig.segment(3 * max(SIDES[WIDE]) ** 2, b""),
                "sides": sides,
                "churned": CHURNED,
            }
        )

    def begin(self, calls: list[plan.Call]) -> None:
        """Have calls made."""
        self._tell(calls)

    def result(self) -> dict[str, Any]:
        """Return what became of the calls, once they are made."""
        line = self._process.stdout.readline()
        assert line, f"a lane ended: {self._process.poll()}"
        return json.loads(line)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait(PLENTY)
        self._process.stdout.close()

    def _tell(self, what: Any) -> None:
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()


class Soak:
    """The agent and its clients; to be closed."""

    def __init__(self, folder: Path, seed: int, **env: str) -> None:
        """Start all of it; `folder` is one that the agent's user may read, `env` is for the agent."""
        self._random = Random(seed)
        self._made: list[str] = []
        self._lanes: list[_Lane] = []
        self._epochs = 0
        self.outcomes: Counter[str] = Counter()
        self.stubs = folder / "stubs"
        self.stubs.mkdir()
        stubs.generate(self.stubs)
        self._place = place(USER)
        _write_models(folder / "models")
        self.agent = Agent(
            folder / "models",
            folder=self._place,
            user=USER,
            max_calls=MAX_CALLS,
            any_image_size=True,
            log_level="info",
        )
        try:
            self.agent.start(**env)
            for name in SIDES:
                self.agent.run_model(name)
            self._stub = self._only_stub()
            with grpc.insecure_channel(f"unix://{self.agent.socket}") as channel:
                fill_the_pool(channel, POOL)
            self._lanes = [_Lane(self, number) for number in range(LANES)]
        except BaseException:
            self.close()
            raise
        self._began = time.monotonic()

    def _only_stub(self) -> EdgeAgentStub:
        """Close all channels, and return a stub on a new one.

        One that is idle for half an hour is closed by gRPC, and would be missed among the agent's open files.
        """
        for channel in self.agent._channels:
            channel.close()
        self.agent._channels.clear()
        self.agent._stub = self.agent.stub()
        return self.agent._stub

    def segment(self, size: int, content: bytes) -> str:
        """Return the name of a segment whose every byte is `content`, which the agent may read and write."""
        name = f"edge-agent-soak-{os.urandom(6).hex()}"
        shm.create(name, content * size, size)
        os.chown(SHM / name, -1, USER.gid)
        self._made.append(name)
        return name

    def epoch(self) -> Sample:
        """Have a thousand calls made, while a model is stopped and started; return what is seen after them."""
        for lane, calls in zip(self._lanes, plan.epoch(self._random, self._epochs, LANES), strict=True):
            lane.begin(calls)
        self._epochs += 1
        self._stub.StopModel(pb2.StopModelRequest(model_component=CHURNED), timeout=PLENTY)
        self._stub.StartModel(pb2.StartModelRequest(model_component=CHURNED), timeout=PLENTY)
        until(lambda: self.agent.state(CHURNED) == "RUNNING", "the model runs again")
        results = [lane.result() for lane in self._lanes]
        wrong = [one for result in results for one in result["wrong"]]
        assert not wrong, wrong[:10]
        for result in results:
            self.outcomes.update(result["outcomes"])
        assert self.outcomes.total() == self._epochs * EPOCH, f"calls are missing: {self.outcomes}"
        return self._sample(sorted(time for result in results for time in result["times"]))

    def settled(self) -> Holds:
        """Return what the agent holds, once it goes on holding it: what was closed goes one after the other."""
        looks = [Holds.of(self.agent)]

        def the_same() -> bool:
            time.sleep(0.2)
            looks.append(Holds.of(self.agent))
            return looks[-1] == looks[-2]

        until(the_same, "what the agent holds has settled")
        return looks[-1]

    def end(self) -> Counter[str]:
        """End clients and agent; return how many calls the agent has counted, by code."""
        for lane in self._lanes:
            lane.close()
        self._lanes = []
        assert self.agent.stop() == 0
        assert "Traceback" not in self.agent.log()
        died = {name: one for name, one in self.agent.status()["workers"].items() if one.get("died") or one.get("hung")}
        assert died == {}, "workers died"
        counted: Counter[str] = Counter()
        for one in self.agent.status()["calls"]:
            if one["rpc"] == "DetectAnomalies":
                counted[one["code"]] += one["count"]
        return counted

    def close(self) -> None:
        for lane in self._lanes:
            lane.close()
        self.agent.close()
        shutil.rmtree(self._place, ignore_errors=True)
        for name in self._made:
            (SHM / name).unlink(missing_ok=True)

    def rest(self, seconds: float) -> Memory:
        """Make no call for a while; return what memory is taken then."""
        time.sleep(seconds)
        return Memory(**self._memory())

    def _sample(self, times: list[float]) -> Sample:
        pids = self._pids()
        return Sample(
            **self._memory(),
            files=sum(_files(pid).total() for pid in pids),
            threads=sum(len(os.listdir(f"/proc/{pid}/task")) for pid in pids),
            processes=len(pids),
            segments=sum(1 for _ in _segments()),
            p50=statistics.median(times),
            p99=times[round(0.99 * (len(times) - 1))],
        )

    def _memory(self) -> dict[str, Any]:
        found = [_proportional(pid) for pid in self._pids()]
        return {
            "calls": self._epochs * EPOCH,
            "seconds": round(time.monotonic() - self._began, 1),
            "memory": sum(own for own, _ in found),
            "front": found[0][0],
            "pss": sum(whole for _, whole in found),
        }

    def _pids(self) -> list[int]:
        return [self.agent.pid, *self.agent.children()]


def _write_models(folder: Path) -> None:
    for name in (CHURNED, MIDDLE, WIDE):
        (side,) = SIDES[name]
        packages.segmenter(folder / name, (side, side))
    packages.classifier(folder / ANY, (64, 64))


def _proportional(pid: int) -> tuple[int, int]:
    """Return the PSS of a process without files, and with them, in bytes; zeros where it has just ended."""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        found = {kind: 1024 * int(size) for kind, size in re.findall(r"^Pss(\w*):\s+(\d+) kB$", text, re.MULTILINE)}
        return found["_Anon"] + found["_Shmem"], found[""]
    return 0, 0


def _files(pid: int) -> Counter[str]:
    """Count open files by kind, whose numbers differ from one to the next."""
    found: Counter[str] = Counter()
    with contextlib.suppress(OSError):
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found[str(fd.readlink()).partition("[")[0]] += 1
    return found


def _threads(pid: int) -> int:
    """Count threads that Python made, none of a process that is gone."""
    with contextlib.suppress(OSError):
        return python_threads(pid)
    return 0


def _segments() -> Iterator[str]:
    """Yield what is in /dev/shm of the agent's user, and the soak's own."""
    for entry in SHM.iterdir():
        with contextlib.suppress(OSError):
            if entry.name.startswith("edge-agent-soak-") or (
                USER not in (MYSELF, AGENT) and entry.stat().st_uid == USER.uid
            ):
                yield entry.name
