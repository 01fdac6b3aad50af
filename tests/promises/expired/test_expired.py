"""Q2: a call whose deadline passes while it waits is dropped, and not computed.

1. The model's process is stopped in the middle of a call, and calls with deadlines are sent, up to a hundred at a time. Each is
   let go of at its deadline, while the process still stands.
2. When the process goes on, it finishes that one call, and what is called next is judged at once. It judges no other: by what
   the agent counts, and by the processor time that the system says it took.
3. Nor is a call judged that was over when it came for its turn, because its message took long to be read, although the model
   has nothing else to do.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import grpc
import pytest

from support import packages
from support.agent import PLENTY, Agent
from support.calls import EXHAUSTED, OK, outcome, request
from support.processes import cpu_ticks, hold
from support.promises import Promise, Run
from support.sabotage import sabotaged
from support.waiting import until

PROMISE = Promise(
    id="Q2",
    text="a call whose deadline passes while it waits is dropped at its deadline, and never computed",
    case="a call that the agent has counted as expired",
    full=1_000,
    fast=100,
)
MODEL = "board"
SIZE = 3 * 64 * 64
# About 50 ms of a processor for an image: what is computed shows in the process's time.
ROUNDS = 25_000
AT_ONCE = 100
MEASURED = 5
# Seconds: so long that all of a hundred calls have come by then, which takes 0.05 s and took 0.4 s on a busy machine.
DEADLINES = (4.0, 5.0)
EXPIRED = "The call's deadline passed"
DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
# Ticks, 10 ms each, that the process may take besides: what is computed of a hundred calls is hundreds.
SLACK = 30


class Standing:
    """A model whose process is stopped while calls with deadlines are sent."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        agent.run_model(MODEL)
        (self._worker,) = agent.workers()
        self._stub = agent.stub()
        self.judged = 0
        begin = cpu_ticks(self._worker)
        for _ in range(MEASURED):
            self._judges()
        self._ticks = (cpu_ticks(self._worker) - begin) / MEASURED

    def expire(self, run: Run, calls: int) -> None:
        """Let calls expire while the process stands; fail unless they are let go of, and none is computed afterwards."""
        hold(self._worker)
        marked = os.urandom(SIZE)
        first = self._stub.DetectAnomalies.future(request(MODEL, 64, 64, marked))
        until(lambda: self.agent.inbox_holds(marked), "the call is with the process")
        expired = self.agent.log().count(EXPIRED)
        futures = [
            self._stub.DetectAnomalies.future(
                request(MODEL, 64, 64, bytes(SIZE)), timeout=run.random.uniform(*DEADLINES)
            )
            for _ in range(calls)
        ]
        for future in futures:
            # The client's own clock, or the agent's answer, whichever comes first at that instant.
            assert future.exception(PLENTY).code().value[0] in {DEADLINE_EXCEEDED, EXHAUSTED}
        self.check_let_go(expired + calls)
        before = cpu_ticks(self._worker)
        os.kill(self._worker, signal.SIGCONT)
        assert first.exception(PLENTY) is None
        self.judged += 1
        self._judges()
        self.check_not_computed(cpu_ticks(self._worker) - before)

    def check_let_go(self, expired: int, patience: float = 10.0) -> None:
        """Fail unless so many calls have expired, by the agent's log, while the process stands."""
        until(lambda: self.agent.log().count(EXPIRED) >= expired, "the agent has let go of every call", patience)

    def check_not_computed(self, ticks: int) -> None:
        """Fail if the process took more time than two images take."""
        most = 2 * self._ticks + SLACK
        assert ticks <= most, f"the process took {ticks} ticks, where two images take {2 * self._ticks:.0f}"

    def check_judged(self) -> None:
        """Fail unless the agent, which has ended, has counted the calls without a deadline, and no others, as judged."""
        processed = self.agent.status()["images"][MODEL]["processed"]
        assert processed == self.judged, f"{processed} images were judged, of {self.judged} that were waited for"

    def counted(self) -> int:
        """Return how many calls the agent, which has ended, has counted as expired."""
        return sum(one["count"] for one in self.agent.status()["calls"] if one["reason"] == "expired")

    def _judges(self) -> None:
        assert outcome(self._stub.DetectAnomalies, request(MODEL, 64, 64, bytes(SIZE)))[0] == OK
        self.judged += 1


@pytest.fixture
def models(folder) -> Path:
    packages.write(folder / "models" / MODEL, packages.manifest(), packages.slow(ROUNDS))
    return folder / "models"


@contextmanager
def standing(models: Path, **env: str) -> Iterator[Standing]:
    with closing(Agent(models, queue_limit=AT_ONCE, max_calls=AT_ONCE + 4, call_timeout=60)) as agent:
        yield Standing(agent.start(**env))


def test_expired(promises, models):
    with promises.run(PROMISE) as run, standing(models) as made:
        for _ in range(run.declared // AT_ONCE):
            made.expire(run, AT_ONCE)
        assert made.agent.stop() == 0
        made.check_judged()
        run.count(made.counted())


# Once there are more calls than it took to measure, it takes long to read one, while other calls go on.
SLOW_READING = f"""
import itertools, time
from edge_agent import wire
parse, numbers = wire.parse, itertools.count(1)
def slow(data):
    time.sleep(4 if next(numbers) > {MEASURED} else 0)
    return parse(data)
wire.parse = slow
"""


def test_what_is_over_when_it_comes_for_its_turn_is_not_computed(models):
    few = 8
    with standing(models, **sabotaged(models.parent, SLOW_READING)) as made:
        image = request(MODEL, 64, 64, bytes(SIZE))
        futures = [made._stub.DetectAnomalies.future(image, timeout=2) for _ in range(few)]
        for future in futures:
            assert future.exception(PLENTY).code().value[0] == DEADLINE_EXCEEDED
        made.check_let_go(few)
        assert made.agent.stop() == 0
        made.check_judged()
        assert made.counted() == few


# Nobody looks at the time, nor whether the caller is still there.
DAMAGE = """
from edge_agent import calls
wait = calls.Turn.wait
calls.Turn.wait = lambda self, deadline: wait(self, None)
calls.Turn.give_up = lambda self: None
await_turn = calls.CallQueue._wait
calls.CallQueue._wait = lambda self, deadline, turn: await_turn(self, None, turn)
"""


def test_what_is_computed_in_vain_is_noticed(models):
    few = 20
    with standing(models, **sabotaged(models.parent, DAMAGE)) as made:
        hold(worker := made._worker)
        before, stub = cpu_ticks(worker), made._stub
        futures = [stub.DetectAnomalies.future(request(MODEL, 64, 64, bytes(SIZE)), timeout=1) for _ in range(few)]
        for future in futures:
            assert future.exception(PLENTY).code().value[0] == DEADLINE_EXCEEDED
        with pytest.raises(AssertionError, match="has let go of every call"):
            made.check_let_go(few - 1, patience=1.0)
        os.kill(worker, signal.SIGCONT)
        made._judges()
        with pytest.raises(AssertionError, match="the process took"):
            made.check_not_computed(cpu_ticks(worker) - before)
        assert made.agent.stop() == 0
        with pytest.raises(AssertionError, match="images were judged"):
            made.check_judged()
