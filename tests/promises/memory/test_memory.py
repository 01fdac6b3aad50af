"""M1: memory that runs out costs the model that it runs out for, and nothing else.

1. Models are started until one is refused: at once, where there is memory for some of them by what they state, and with
   heavy weights one after the other, where memory_reserve leaves room for some of them. Those that were accepted run and
   judge images; those that were refused stay STOPPED, and there is room again once others have loaded, or were stopped.
   No process is killed, by the kernel or otherwise.
2. Bombs take far more than memory_limit, at once or in steps, on an image or while they load. Each costs its own call, or
   its own start, with the sentence that says so; the neighbour's callers, who call all the time, get every answer. So
   do bombs under no limit but what memory_reserve leaves, and several bombs at once.
3. After that agent and neighbour are the processes that they were, and the machine's memory is as free as before.
4. The limits of the workers are what the system says of them: address space, no core file, first to go for the kernel.
"""

import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from edge_agent import memory
from edge_agent._proto import edge_agent_pb2 as pb2
from support import broken, packages
from support.agent import PLENTY, Agent, serving
from support.broken import BLACK, BOMB, LIGHT, SIZE
from support.calls import EXHAUSTED, INTERNAL, OK, outcome, request
from support.load import load
from support.neighbour import Neighbour
from support.promises import Promise, Promises, Run
from support.waiting import until

PROMISE = Promise(
    id="M1",
    text="models started until one is refused: nothing is killed; bombs that take far more than their limit cost only "
    "themselves",
    case="a start, or a bomb that went off",
    full=20 + 50,
    fast=14 + 6,
)
# Started at once, and how many of them fit; one more once they are loaded. The others are started one by one.
AT_ONCE, FIT = 5, 3
ONE_BY_ONE = {True: 14, False: 8}

MIB = 1 << 20
SOUND = "sound"
WEIGHTS = 96 * MIB
# What the agent counts for such a model: its file four times, and 96 MiB. It takes a quarter of that in the end.
NEEDED = 481
# What is free above the reserve while models are started: for about five of them.
ROOM = 1024 * MIB
HEAVY = [f"heavy-{number}" for number in range(14)]
SLOW_TO_LOAD = [f"slow-to-load-{number}" for number in range(AT_ONCE + 1)]
ATTEMPTS = 5
# About a quarter of a second, twice: none is loaded before the last has been asked for.
ROUNDS = 120_000
LIMIT = 256 * MIB
# And while bombs have no limit of their own: far less than a BOMB.
ROOM_FOR_BOMBS = 640 * MIB
# What other programs of the machine may take meanwhile, or half of what all bombs together take if that is more.
SLACK = 1024 * MIB
# What the agent itself may grow by meanwhile.
GROWTH = 64 * MIB
OUT_OF_MEMORY = "The model ran out of memory on the image."
DOES_NOT_FIT = "The model does not fit into memory; stop another model, or raise memory_limit if it is set."
BOMBS = {"bomb": broken.memory, "creeper": broken.creeping}
CREEPERS_AT_ONCE = [f"creeper-{number}" for number in range(3)]
BOMBS_AT_LOAD = {"bomb-at-load": broken.memory, "creeper-at-load": broken.creeping}
OOM_SCORE = 500


@pytest.fixture(scope="module")
def models(module_folder) -> Path:
    folder = module_folder / "models"
    packages.segmenter(folder / SOUND, SIZE)
    for name, way in BOMBS.items():
        broken.package(folder / name, way)
    for name in CREEPERS_AT_ONCE:
        broken.package(folder / name, broken.creeping)
    for name, way in BOMBS_AT_LOAD.items():
        broken.package(folder / name, way, always=True)
    return folder


@pytest.fixture(scope="module")
def heavy_models(module_folder) -> Path:
    """Many copies of a package of heavy weights, which are zeros and take no room on disk, and of one that takes its time."""
    folder = module_folder / "heavy"
    first = broken.package(folder / HEAVY[0], broken.ballast(WEIGHTS))
    slow = packages.write(folder / SLOW_TO_LOAD[0], packages.manifest(size=SIZE), packages.slow(ROUNDS))
    for names, package in ((HEAVY, first), (SLOW_TO_LOAD, slow)):
        for name in names[1:]:
            subprocess.run(["cp", "-r", "--sparse=always", package, folder / name], check=True)
    return folder


def kernel_kills() -> int:
    """Return how many processes the kernel has killed for want of memory since the machine was started."""
    (line,) = re.findall(r"^oom_kill (\d+)$", Path("/proc/vmstat").read_text(), re.MULTILINE)
    return int(line)


def reserve_for(room: int) -> int:
    """Return the memory_reserve that leaves so much room."""
    return memory.available() - room


class Until:
    """Models started until one is refused, each of which needs so many MiB by the agent's reckoning."""

    def __init__(self, agent: Agent, needed: int) -> None:
        self.agent = agent
        self.running: list[str] = []
        self.refused = 0
        self._needed = needed
        self._stub = agent.stub()

    def start(self, *names: str) -> None:
        """Start models at once; fail unless those run that were accepted, and the others were told why not."""
        calls = [(one, self._stub.StartModel.future(pb2.StartModelRequest(model_component=one))) for one in names]
        for name, call in calls:
            error = call.exception(PLENTY)
            if error is None:
                until(lambda: self.agent.state(name) != "STARTING", f"{name} has started")
                assert self.agent.state(name) == "RUNNING", self.agent.describe(name).status_message
                self.running.append(name)
            else:
                self.refused += 1
                assert error.code().value[0] == EXHAUSTED, error
                (free,) = re.fullmatch(
                    rf"Loading the model needs about {self._needed} MiB of memory; (\d+) MiB are free above the reserve. "
                    "Stop another model, or lower memory_reserve.",
                    error.details(),
                ).groups()
                assert int(free) < self._needed
                assert self.agent.state(name) == "STOPPED"

    def judge(self) -> None:
        """Fail unless every model that runs judges an image."""
        for name in self.running:
            assert outcome(self._stub.DetectAnomalies, request(name, *SIZE, LIGHT))[:2] == (OK, "")

    def stop_all(self) -> None:
        while self.running:
            name = self.running.pop()
            self._stub.StopModel(pb2.StopModelRequest(model_component=name), timeout=PLENTY)

    def counted(self) -> int:
        """End the agent; return how many starts it has counted."""
        assert self.agent.stop() == 0
        return self.agent.calls(rpc="StartModel")


def check_nothing_was_killed(agent: Agent, kills_before: int) -> None:
    """Fail if a worker of the agent, which has ended, or anything else was killed for want of memory."""
    died = {name: one for name, one in agent.status()["workers"].items() if one.get("died") or one.get("hung")}
    assert died == {}, "workers died"
    assert kernel_kills() == kills_before, "the kernel has killed a process"


def start_at_once(agent: Agent, needed: int) -> int:
    """Start more models at once than there is memory for by what they state; return the starts that were counted."""
    at = Until(agent, needed)
    at.start(*SLOW_TO_LOAD[:AT_ONCE])
    assert (len(at.running), at.refused) == (FIT, AT_ONCE - FIT), "it was not as many that fit"
    at.judge()
    # What they stated they have not taken: there is room again.
    at.start(SLOW_TO_LOAD[AT_ONCE])
    assert at.refused == AT_ONCE - FIT, "there is no room for one more"
    return at.counted()


class NoneRefused(AssertionError):
    """All models were started; `most_free` is the most memory that there was before any start, the weights of those that ran included."""

    def __init__(self, most_free: int) -> None:
        super().__init__("no model was refused")
        self.most_free = most_free


def start_one_by_one(agent: Agent, starts: int) -> int:
    """Start models, whose weights take real memory, until one is refused, and on; return the starts that were counted."""
    at, most_free = Until(agent, NEEDED), 0
    for _ in range(starts):
        made_room = at.refused > 0 and not at.running
        refused = at.refused
        most_free = max(most_free, memory.available() + len(at.running) * WEIGHTS)
        at.start(next(name for name in HEAVY if name not in at.running))
        if at.refused > refused:
            assert not made_room, "there is no room although all models were stopped"
            at.judge()
            at.stop_all()
    at.judge()
    if not at.refused:
        raise NoneRefused(most_free)
    return at.counted()


def start_until_refused(models: Path, starts: int, kills_before: int) -> int:
    """Start models one by one under a reserve that leaves ROOM; return the starts that were counted.

    It is begun anew where other programs, such as other tests, have given back so much memory meanwhile that there was room
    for all: those that run have taken their weights at least.
    """
    for attempts_left in reversed(range(ATTEMPTS)):
        reserve = reserve_for(ROOM)
        with serving(models, memory_reserve=reserve) as agent:
            try:
                counted = start_one_by_one(agent, starts)
            except NoneRefused as none:
                if none.most_free <= reserve + ROOM or not attempts_left:
                    raise
            else:
                check_nothing_was_killed(agent, kills_before)
                return counted
    raise AssertionError


class Bombs:
    """An agent with a sound model that runs, and bombs beside it."""

    def __init__(self, agent: Agent, most: int) -> None:
        """Fail where a bomb gets to have more than `most` bytes in memory."""
        self.agent = agent
        self._most = most
        agent.run_model(SOUND)
        self.sound = Neighbour(agent, SOUND)
        self._stub = agent.stub()
        self._bombs = 0
        self._free = memory.available()
        self._files = open_files(agent)
        self._resident = resident(agent.pid)

    def go_off(self, name: str) -> None:
        if name == "at-once":
            self.on_images(CREEPERS_AT_ONCE)
        elif name in BOMBS:
            self.on_images([name])
        else:
            self.at_load(name)
        self.sound.check()
        self._bombs += len(CREEPERS_AT_ONCE) if name == "at-once" else 1

    def on_images(self, names: list[str]) -> None:
        """Let models judge a black image all at once; fail unless each fails at it, is what it was, and is stopped."""
        for name in names:
            self.agent.run_model(name)
        workers = set(self.sound.other_workers())
        calls = [self._stub.DetectAnomalies.future(request(name, *SIZE, BLACK)) for name in names]
        for call in calls:
            error = call.exception(PLENTY)
            assert error is not None, "the bomb did not go off"
            assert (error.code().value[0], error.details()) == (INTERNAL, OUT_OF_MEMORY)
        for name in names:
            assert outcome(self._stub.DetectAnomalies, request(name, *SIZE, LIGHT))[:2] == (OK, "")
        assert set(self.sound.other_workers()) == workers, "a bomb's process is another one"
        for worker in workers:
            assert highest(worker) < self._most, f"a bomb had {highest(worker) // MIB} MiB in memory"
        for name in names:
            self._stub.StopModel(pb2.StopModelRequest(model_component=name), timeout=PLENTY)

    def at_load(self, name: str) -> None:
        self._stub.StartModel(pb2.StartModelRequest(model_component=name), timeout=PLENTY)
        until(lambda: self.agent.state(name) != "STARTING", f"{name} has started")
        description = self.agent.describe(name)
        assert description.status == pb2.FAILED, "the bomb did not go off"
        assert description.status_message == DOES_NOT_FIT

    def check_memory(self) -> None:
        until(lambda: self.sound.other_workers() == [], "all bombs are gone")
        until(lambda: open_files(self.agent) <= self._files, "the agent has let go of what it shared with them")
        assert resident(self.agent.pid) < self._resident + GROWTH
        check_free_again(self._free, max(SLACK, self._bombs * LIMIT // 2))

    def counted(self) -> int:
        """Return how many bombs went off, by the agent, which has ended."""
        on_images = self.agent.calls(code="INTERNAL")
        at_load = sum(self.agent.counted(name, "started") for name in BOMBS_AT_LOAD)
        return on_images + at_load


def highest(pid: int) -> int:
    """Return the most bytes that a process has had in memory."""
    (line,) = re.findall(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(line) * 1024


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def open_files(agent: Agent) -> int:
    """Return how much memory the agent shares with others, in files."""
    links = []
    for one in Path(f"/proc/{agent.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # a connection that has just been closed
            links.append(os.readlink(one))
    return sum(link.startswith("/memfd:") for link in links)


def check_free_again(before: int, slack: int, patience: float = 30.0) -> None:
    until(lambda: memory.available() > before - slack, "the machine's memory is free again", patience)


def bombs_go_off(agent: Agent, most: int, plan: list[str]) -> int:
    """Let bombs go off while their neighbour is called all the time; return how many the agent has counted."""
    bombs = Bombs(agent, most)
    with load(agent, SOUND, callers=2) as callers:
        for name in plan:
            begun = callers.begun(SOUND)
            bombs.go_off(name)
            until(lambda: callers.answered_since(begun), "the neighbour's callers are answered")
    assert callers.failed(SOUND) == {}
    assert callers.wrong() == []
    bombs.check_memory()
    assert agent.stop() == 0
    return bombs.counted()


def planned(run: Run, counts: dict[str, int]) -> list[str]:
    plan = [name for name, count in counts.items() for _ in range(count)]
    run.random.shuffle(plan)
    return plan


# How many bombs of each kind: under memory_limit, and under what memory_reserve leaves.
ONE_OF_EACH = dict.fromkeys([*BOMBS, *BOMBS_AT_LOAD], 1)
ONE_OF_TWO = dict.fromkeys(["creeper", "bomb-at-load"], 1)
MANY = {"bomb": 16, "creeper": 10, "bomb-at-load": 10, "creeper-at-load": 4, "at-once": 2}
# What a process has besides, and what its threads leave of the address space that is reserved for them.
BESIDES = 256 * MIB


@pytest.mark.alone
def test_costs_the_model_only(models, heavy_models, promises: Promises):
    with promises.run(PROMISE) as run:
        kills = kernel_kills()
        stated = int(memory.available() / (FIT + 0.5))
        with serving(heavy_models, model_settings={name: {"memory": stated} for name in SLOW_TO_LOAD}) as agent:
            run.count(start_at_once(agent, -(-stated // MIB)))
            check_nothing_was_killed(agent, kills)
        run.count(start_until_refused(heavy_models, ONE_BY_ONE[run.full], kills))
        with serving(models, memory_limit=LIMIT) as agent:
            run.count(bombs_go_off(agent, LIMIT + BESIDES, planned(run, MANY if run.full else ONE_OF_EACH)))
            check_nothing_was_killed(agent, kills)
        for name in planned(run, ONE_OF_EACH if run.full else ONE_OF_TWO):
            # An agent for each, since others take memory and give it back all the time.
            with serving(models, memory_reserve=reserve_for(ROOM_FOR_BOMBS)) as agent:
                run.count(bombs_go_off(agent, ROOM_FOR_BOMBS + BESIDES, [name]))
                check_nothing_was_killed(agent, kills)


def limit(pid: int, name: str) -> list[int]:
    """Return a process's soft and hard limit."""
    (line,) = re.findall(rf"^Max {name}\s+(\S+)\s+(\S+)", Path(f"/proc/{pid}/limits").read_text(), re.MULTILINE)
    return [resource.RLIM_INFINITY if one == "unlimited" else int(one) for one in line]


def address_space(pid: int) -> int:
    """Fail unless a process's address space has a limit; return it."""
    soft, _ = limit(pid, "address space")
    assert soft != resource.RLIM_INFINITY, "its address space has no limit"
    return soft


def check_dumps_no_core(pid: int) -> None:
    assert limit(pid, "core file size") == [0, 0], "it may write a core file"


def check_goes_first(pid: int) -> None:
    assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) == OOM_SCORE, "the kernel has no reason to take it first"


@pytest.mark.alone
def test_limits_are_what_the_system_says(models):
    limits = {"bomb": LIMIT, "creeper": 2 * LIMIT}
    own = {name: {"memory_limit": limit} for name, limit in limits.items()}
    with serving(models, memory_reserve=reserve_for(ROOM_FOR_BOMBS), model_settings=own) as agent:
        pids = {}
        for name in (SOUND, *limits):
            before = set(agent.workers())
            agent.run_model(name)
            (pids[name],) = set(agent.workers()) - before
        for pid in pids.values():
            check_dumps_no_core(pid)
            check_goes_first(pid)
        spaces = {name: address_space(pid) for name, pid in pids.items()}
        # The processes differ a little by themselves.
        assert spaces["creeper"] - spaces["bomb"] == pytest.approx(LIMIT, abs=8 * MIB)
        assert LIMIT / 2 < spaces[SOUND] - (spaces["bomb"] - LIMIT) < ROOM_FOR_BOMBS + SLACK
        # Controls: what has no such limits is the agent itself, and whoever runs this.
        for pid in (agent.pid, agent.forkserver(), os.getpid()):
            with pytest.raises(AssertionError, match="has no limit"):
                address_space(pid)
            with pytest.raises(AssertionError, match="the kernel has no reason"):
                check_goes_first(pid)
        with pytest.raises(AssertionError, match="core file"), core_files():
            check_dumps_no_core(os.getpid())


def test_threads_and_frames_take_nothing_of_the_limit(models):
    """Sixteen threads reserve more than a gigabyte of address space; a runtime that does not get it waits for ever."""
    with serving(models, memory_limit=LIMIT // 8, threads=16) as agent:
        agent.run_model(SOUND)
        Neighbour(agent, SOUND).check()


@contextmanager
def core_files() -> Iterator[None]:
    """Be allowed to write the least of a core file."""
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, max(before[1], 1) if before[1] != resource.RLIM_INFINITY else -1))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, before)


def test_notices_that_none_is_refused(heavy_models):
    with serving(heavy_models) as agent, pytest.raises(AssertionError, match="no model was refused"):
        start_one_by_one(agent, 1)


def test_begins_anew_where_memory_was_given_back(heavy_models, monkeypatch):
    """As if others had given back all that is free now; then there is no room from the first."""
    reserves = iter([0, 1 << 50])
    monkeypatch.setattr(sys.modules[__name__], "reserve_for", lambda _: next(reserves))
    assert start_until_refused(heavy_models, 1, kernel_kills()) == 1
    assert next(reserves, None) is None


def test_notices_models_that_count_on_the_same_memory(heavy_models):
    """What they state is what they take, which is little: all fit."""
    with serving(heavy_models) as agent, pytest.raises(AssertionError, match="it was not as many that fit"):
        start_at_once(agent, NEEDED)


def test_notices_a_bomb_that_does_not_go_off(models):
    """A limit above what it takes: it has it all."""
    with serving(models, memory_limit=2 * BOMB) as agent:
        bombs = Bombs(agent, LIMIT + BESIDES)
        with pytest.raises(AssertionError, match="the bomb did not go off"):
            bombs.on_images(["bomb"])
        (worker,) = bombs.sound.other_workers()
        assert highest(worker) > BOMB


def test_notices_a_worker_that_was_killed(models):
    kills = kernel_kills()
    with serving(models) as agent:
        agent.run_model(SOUND)
        os.kill(agent.workers()[0], signal.SIGKILL)
        until(lambda: "Another one is being started" in agent.describe(SOUND).status_message, "it is seen")
        assert agent.stop() == 0
        with pytest.raises(AssertionError, match="workers died"):
            check_nothing_was_killed(agent, kills)


def test_notices_memory_that_is_not_free_again():
    before = memory.available()
    kept = np.ones(SLACK // 4 // 8)
    with pytest.raises(AssertionError, match="in vain until the machine's memory is free again"):
        # As if much more were kept, so that what others give back meanwhile does not hide it.
        check_free_again(before + 2 * SLACK, SLACK, patience=0.1)
    assert kept.all()
