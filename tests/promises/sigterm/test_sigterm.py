"""T1: an agent that is told to end under load answers every call that it has accepted, and leaves nothing.

1. Callers call two models without a pause, one quick and one slow, inline and through shared memory; another one asks
   for what there is not. Nobody has a deadline, and nobody calls again once a call was not accepted.
2. At a random moment the agent gets SIGTERM; in every second run all its processes get it first, as Greengrass does it.
3. The agent ends with exit code 0. What it has counted, by its status file, is what the callers were told: as many calls
   of each outcome, and of detections no outcome but OK. What was not accepted is in no count.
4. No process, socket, segment or file of its own is left but what stays between runs.
"""

import contextlib
import os
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from edge_agent._proto import edge_agent_pb2 as pb2
from support import packages
from support.broken import LIGHT, SIZE
from support.calls import NOT_FOUND, OK, outcome, request
from support.ending import MARK, SHM, EndingAgent, ending
from support.processes import hold
from support.promises import Promise, Promises
from support.sabotage import sabotaged
from support.waiting import until

PROMISE = Promise(
    id="T1",
    text="SIGTERM under load, in half of the runs to the children first: every accepted call is answered, exit code 0, "
    "nothing is left",
    case="an agent that was ended",
    full=100,
    fast=4,
)

BOARD, SLOW = "board", "slow"
# About 10 ms.
ROUNDS = 5_000
# Calls answered before the signal, so that it comes while the load is in any phase.
FEWEST, MOST = 20, 200
# Accepted calls take a tenth of a second at most, all that wait included; a machine may be ten times as slow.
END = 5.0
# Outcomes of calls that were not accepted: there is no server any more, or it is about to go.
NOT_ACCEPTED = {grpc.StatusCode.UNAVAILABLE.value[0], grpc.StatusCode.CANCELLED.value[0]}
Told = Counter[tuple[str, str, int]]


@pytest.fixture(scope="module")
def models(module_folder) -> Path:
    packages.segmenter(module_folder / "models" / BOARD, SIZE)
    packages.write(module_folder / "models" / SLOW, packages.manifest(size=SIZE), packages.slow(ROUNDS))
    return module_folder / "models"


class Load:
    """Callers that call until a call is not accepted, and what they were told."""

    def __init__(self, agent: EndingAgent, segment: str) -> None:
        self.told: Told = Counter()
        self.refused: Counter[str] = Counter()
        self._lock = threading.Lock()
        inline = {name: request(name, *SIZE, LIGHT) for name in (BOARD, SLOW)}
        shared = request(BOARD, *SIZE, handle=(segment, len(LIGHT)), mask=(segment, len(LIGHT), len(LIGHT)))
        nothing = pb2.DescribeModelRequest(model_component="nothing")
        orders = [("DetectAnomalies", one) for one in (*[inline[BOARD]] * 3, shared, *[inline[SLOW]] * 2)]
        orders.append(("DescribeModel", nothing))
        self._threads = [threading.Thread(target=self._call, args=(agent.stub(), *order)) for order in orders]

    def begin(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a call was never answered"

    def answered(self) -> int:
        with self._lock:
            return self.told.total()

    def _call(self, stub, rpc: str, asked) -> None:
        model = asked.model_component
        while True:
            code, details, _ = outcome(getattr(stub, rpc), asked)
            with self._lock:
                if code in NOT_ACCEPTED:
                    self.refused[details] += 1
                    return
                # What nobody deployed is counted without its name.
                self.told[rpc, "" if code == NOT_FOUND else model, code] += 1


def counted(agent: EndingAgent) -> Told:
    """Return the outcomes of the callers' kinds of calls as the agent has counted them."""
    codes = {code.name: code.value[0] for code in grpc.StatusCode}
    return Counter(
        {
            (one["rpc"], one["model"], codes[one["code"]]): one["count"]
            for one in agent.status()["calls"]
            if one["rpc"] == "DetectAnomalies" or one["code"] == "NOT_FOUND"
        }
    )


def check_answers(agent: EndingAgent, load: Load) -> None:
    """Fail unless the callers were told what the agent, which has ended, has counted, and detections were all made."""
    assert counted(agent) == load.told, (
        f"what the agent has counted is not what callers were told: {dict(load.refused)}"
    )
    failed = {key: count for key, count in load.told.items() if key[0] == "DetectAnomalies" and key[2] != OK}
    assert failed == {}, "accepted calls failed"


@contextlib.contextmanager
def under_load(models: Path, segment: Callable, **settings) -> Iterator[tuple[EndingAgent, Load]]:
    """Yield an agent and its load, which has begun; the load ends with the agent."""
    with ending(models, autostart=[BOARD, SLOW], log_level="info", **settings) as agent:
        until(lambda: {agent.state(name) for name in (BOARD, SLOW)} == {"RUNNING"}, "the models run")
        load = Load(agent, segment(2 * len(LIGHT), LIGHT))
        load.begin()
        try:
            yield agent, load
        finally:
            agent.process.kill()
            load.end()


def end_under_load(agent: EndingAgent, load: Load, after: int, *, children_first: bool) -> int:
    """End an agent once so many calls have been answered; return how many were answered after that was asked for."""
    until(lambda: load.answered() >= after, "calls are answered")
    before = load.answered()
    begin = agent.terminate(children_first=children_first)
    agent.check_end(begin, END)
    load.end()
    check_answers(agent, load)
    return load.answered() - before


def test_every_accepted_call_is_answered(models, segment, promises: Promises):
    with promises.run(PROMISE) as run:
        answered_late, ended = 0, set()
        for number in range(run.declared):
            with under_load(models, segment) as (agent, load):
                after = run.random.randint(FEWEST, MOST)
                answered_late += end_under_load(agent, load, after, children_first=number % 2 == 0)
                assert load.refused.total() == 7, "each caller's last call was not accepted"
                if agent.process.returncode == 0:
                    ended.add(agent.pid)
        assert answered_late > 0, "no signal came while there were calls"
        run.count(len(ended))


def test_notices_children_that_obey(models, segment, folder):
    """A forkserver and workers that end on SIGTERM, as they would by themselves."""
    obey = sabotaged(
        folder,
        "import signal\n"
        "ours = signal.signal\n"
        "def obedient(number, handler):\n"
        "    return ours(number, signal.SIG_DFL if handler is signal.SIG_IGN else handler)\n"
        "signal.signal = obedient\n",
    )
    for _ in range(5):  # now and then no call is under way when they are signalled
        with under_load(models, segment, env=obey) as (agent, load):
            try:
                end_under_load(agent, load, FEWEST, children_first=True)
            except AssertionError as noticed:
                assert "accepted calls failed" in str(noticed)  # noqa: PT017
                assert load.told["DetectAnomalies", SLOW, OK]
                return
    pytest.fail("children that obey were not noticed")


def test_notices_calls_that_are_cut_off(models, segment):
    """No time to drain: a call that is under way fails."""
    with under_load(models, segment, drain_timeout=0) as (agent, load):
        hold(agent.workers()[0])
        with pytest.raises(AssertionError, match="accepted calls failed"):
            end_under_load(agent, load, FEWEST, children_first=False)


def test_notices_an_agent_that_was_killed(models, segment):
    with under_load(models, segment) as (agent, load):
        until(lambda: load.answered() > FEWEST, "calls are answered")
        agent.process.kill()
        with pytest.raises(AssertionError, match="exit code -9"):
            agent.check_end(0.0, float("inf"))
        load.end()
        assert str(agent.socket) in agent.left()
        load.told["DetectAnomalies", BOARD, OK] += 1  # told since it counted last, a second ago at most
        with pytest.raises(AssertionError, match="is not what callers were told"):
            check_answers(agent, load)


@contextlib.contextmanager
def something(kind: str, agent: EndingAgent) -> Iterator[str]:
    """Leave something as if the agent had; yield how it is told."""
    if kind == "process":
        with subprocess.Popen(["/bin/sleep", "60"], env={MARK: agent.mark}) as process:
            try:
                yield f"process {process.pid}"
            finally:
                process.kill()
        return
    folders = {"segment": SHM, "socket": agent.folder, "file": agent.folder / "state"}
    path = folders[kind] / f"left-{agent.mark}-{kind}"
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind(str(path))
    else:
        path.write_text("")
    os.chown(path, agent.user.uid, agent.user.gid)
    yield str(path)
    path.unlink()


def test_notices_what_is_left(models):
    kinds = ("process", "segment", "socket", "file")
    with ending(models) as agent, contextlib.ExitStack() as stack:
        told = {stack.enter_context(something(kind, agent)) for kind in kinds}
        begin = agent.terminate(children_first=False)
        with pytest.raises(AssertionError, match="this is left of the agent: "):
            agent.check_end(begin, END, liveness=0.1)
        until(lambda: set(agent.left()) == told, "nothing else is left")
