"""A storm of starts, stops and detections: nothing breaks, and nothing is left of it.

1. Four models are deployed; every call thread that the agent may have is made, every model is run once and stopped.
2. The agent's threads, open files and processes are counted, and the forkserver's.
3. 32 threads each start, stop and call models at random, each on a channel of its own, with nobody waiting for a state.
4. Each code is one that the contract documents for that call, and nothing is INTERNAL.
5. Every model is then started, judges an image rightly, and is stopped.
6. Threads, files and processes are what they were; the log has no illegal move and no traceback.

A case is a call of the storm that the agent has counted.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random
from typing import NamedTuple

import grpc
import pytest

from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent._proto.edge_agent_pb2_grpc import EdgeAgentStub
from support import packages
from support.agent import PLENTY, Agent, serving
from support.calls import EXHAUSTED, INTERNAL, OK, PRECONDITION, outcome, request
from support.load import fill_the_pool
from support.processes import python_threads
from support.promises import Promise
from support.sabotage import sabotaged
from support.waiting import until

PROMISE = Promise(
    id="L1",
    text="a storm of starts, stops and detections by 32 threads leaves every model working and nothing behind",
    case="a call that the agent has counted",
    full=32 * 256,
    fast=32 * 24,
)
THREADS = 32
NAMES = ("alpha", "beta", "gamma", "delta")
SIZE = 64
LEVEL = 0x33
PIXELS = bytes([LEVEL]) * (3 * SIZE * SIZE)
# Of detections in hand there may be fewer than threads, so that both limits are met.
MAX_CALLS = 24
POOL = MAX_CALLS + 16
# What each call may answer here, where nothing dies, every name is deployed and every image is right.
DOCUMENTED = {
    "DetectAnomalies": {OK, PRECONDITION, EXHAUSTED},
    "StartModel": {OK, PRECONDITION, EXHAUSTED},
    "StopModel": {OK, PRECONDITION},
}
# So that models are up often enough for both a stop and a detection to find them so.
OFTEN = {"DetectAnomalies": 6, "StartModel": 3, "StopModel": 1}


class Held(NamedTuple):
    """What the agent and its forkserver hold: threads made by Python, open files; and the agent's processes."""

    threads: int
    files: int
    processes: int


def held(agent: Agent) -> Held:
    pids = [agent.pid, agent.forkserver()]
    return Held(sum(map(python_threads, pids)), sum(map(_files, pids)), len(agent.children()))


def _files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def ask(agent_stub, rpc: str, name: str) -> tuple[int, str, object]:
    asked = {
        "DetectAnomalies": lambda: request(name, SIZE, SIZE, PIXELS),
        "StartModel": lambda: pb2.StartModelRequest(model_component=name),
        "StopModel": lambda: pb2.StopModelRequest(model_component=name),
    }
    return outcome(getattr(agent_stub, rpc), asked[rpc]())


@contextmanager
def channel(agent: Agent) -> Iterator[grpc.Channel]:
    """A channel of its own, closed afterwards: the agent's open files count the clients, too."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"unix://{agent.socket}", options=options) as made:
        yield made


def every_model_works(agent: Agent) -> None:
    """Run each model from whatever state it is in, judge an image, and stop it."""
    with channel(agent) as made:
        stub = EdgeAgentStub(made)
        for name in NAMES:
            until(lambda: agent.state(name) in ("RUNNING", "STOPPED"), f"{name} has settled")
            if agent.state(name) == "STOPPED":
                assert ask(stub, "StartModel", name)[0] == OK
            until(lambda: agent.state(name) == "RUNNING", f"{name} runs")
            code, details, response = ask(stub, "DetectAnomalies", name)
            assert code == OK, f"{name}: {details}"
            assert response.detect_anomaly_result.anomaly_score == pytest.approx(LEVEL / 255, abs=1e-4)
            assert ask(stub, "StopModel", name)[0] == OK
            assert agent.state(name) == "STOPPED"


def storm(agent: Agent, random: Random, calls: int) -> Counter:
    """Call from all threads, `calls` times in all; return how often each call answered what."""
    seen: Counter = Counter()
    lock = threading.Lock()

    def caller(random: Random) -> None:
        with channel(agent) as made:
            stub = EdgeAgentStub(made)
            for _ in range(calls // THREADS):
                (rpc,) = random.choices(list(OFTEN), list(OFTEN.values()))
                code, details, _ = ask(stub, rpc, random.choice(NAMES))
                with lock:
                    seen[rpc, code, "" if code in DOCUMENTED[rpc] else details] += 1

    threads = [threading.Thread(target=caller, args=(Random(random.random()),)) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PLENTY * 4)
        assert not thread.is_alive(), "a call was never answered"
    return seen


def counted(agent: Agent) -> int:
    return sum(agent.calls(rpc=rpc) for rpc in DOCUMENTED)


def prepared(agent: Agent) -> tuple[Held, int]:
    """Let the agent have all that it will ever have; return what it holds then, and how many calls it has counted."""
    with channel(agent) as made:
        fill_the_pool(made, POOL)
    every_model_works(agent)
    until(lambda: counted(agent) == 3 * len(NAMES), "the calls are counted")
    looks = [held(agent)]

    def settled() -> bool:  # connections that were closed go one after the other
        looks.append(held(agent))
        return looks[-1] == looks[-2]

    until(settled, "what the agent holds has settled")
    return looks[-1], 3 * len(NAMES)


def gone_back(agent: Agent, before: Held) -> None:
    """Wait until the agent holds again what it held."""
    try:
        until(lambda: held(agent) == before, f"it holds {before} again")
    except AssertionError as error:
        raise AssertionError(f"{error}; it holds {held(agent)}") from None


def undocumented(seen: Counter) -> set[tuple[str, int, str]]:
    return {(rpc, code, details) for rpc, code, details in seen if code not in DOCUMENTED[rpc]}


def faults_in(log: str) -> list[str]:
    return [word for word in ("IllegalMove", "Traceback", "unexpected") if word in log]


@pytest.fixture
def models(folder) -> Path:
    for name in NAMES:
        packages.classifier(folder / "models" / name)
    return folder / "models"


def test_storm(promises, models):
    with promises.run(PROMISE) as run, serving(models, max_calls=MAX_CALLS, queue_limit=8) as agent:
        before, earlier = prepared(agent)
        seen = storm(agent, run.random, run.declared)
        print(f"  {dict(seen)}")
        assert undocumented(seen) == set()
        for rpc in DOCUMENTED:
            assert seen[rpc, OK, ""] > 0, f"{rpc} was never in time: no storm"
            assert seen[rpc, PRECONDITION, ""] > 0, f"{rpc} was always in time: no storm"
        until(lambda: counted(agent) - earlier >= seen.total(), "the calls are counted")
        run.count(counted(agent) - earlier)
        every_model_works(agent)
        gone_back(agent, before)
        assert faults_in(agent.log()) == []
        assert agent.stop() == 0


LEAKS = """
import threading
from edge_agent.serving import Serving
from edge_agent.supervisor import Worker

Worker.stop = Worker.release = lambda self: None
watch = Serving.watch


def watch_for_ever(self):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    watch(self)


Serving.watch = watch_for_ever
"""
STARTS_WHENEVER = """
from edge_agent import lifecycle

require = lifecycle.require
lifecycle.require = lambda state, call: call == "StartModel" or require(state, call)
"""


@contextmanager
def broken(models: Path, code: str) -> Iterator[Agent]:
    agent = Agent(models, max_calls=MAX_CALLS, queue_limit=8)
    with closing(agent):
        yield agent.start(**sabotaged(models.parent, code))


def test_threads_files_and_processes_that_are_left_are_noticed(models):
    with broken(models, LEAKS) as agent:
        before, _ = prepared(agent)
        every_model_works(agent)
        now = held(agent)
        for what in Held._fields:
            assert getattr(now, what) - getattr(before, what) >= len(NAMES), what


def test_illegal_moves_are_noticed(models):
    with broken(models, STARTS_WHENEVER) as agent:
        seen = storm(agent, Random(0), 8 * THREADS)
        assert {code for _, code, _ in undocumented(seen)} == {INTERNAL}
        assert "IllegalMove" in faults_in(agent.log())
