"""C2: a model that hangs costs the call that it hangs on, and nobody is taken for hanging who only takes its time.

1. One agent runs models that hang in different ways on some images, honest ones that are slow, and a neighbour. Each way
   has a lane of its own, and while a model hangs the neighbour judges an image.
2. A loop without an end: the runtime ends it at the agent's word. The call fails INTERNAL, the process goes on.
3. A kernel so large that the runtime does not look up: SIGABRT ends the process, its stacks are in the log.
4. A process that is stopped from outside, idle or with its call: nothing but SIGKILL ends it.
5. Each time, no sooner than after its call_timeout; what waited behind it is answered.
6. Honest calls compute for more than half of their call_timeout, or their process is stopped for nine tenths of it, or
   they take 15 of the 20 warm-ups that are the limit of a model whose warm-up is long. They are answered by the process
   that was there from the start.

An honest model that computes is not the only one to do so on its machine: a call of its that took longer than the limit,
and was ended, is no case, and neither is one that took less than half of it; another one is made. A call that was ended
sooner is a false kill.
"""

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import grpc
import pytest

from edge_agent._proto import edge_agent_pb2 as pb2
from support import hanging, packages
from support.agent import PLENTY, Agent, alive, serving
from support.broken import SIZE
from support.calls import INTERNAL, OK, outcome, request
from support.hanging import GREY, grey, nearly_black, nearly_white
from support.processes import hold
from support.promises import Promise
from support.sabotage import sabotaged
from support.waiting import until

PROMISE = Promise(
    id="C2",
    text="models that hang in a loop, in a kernel or as a stopped process are ended or replaced, and their next calls "
    "answered; slow ones that are honest are never ended",
    case="a call that hung and was ended, or a slow one that was answered, as the agent has counted it",
    full=60,
    fast=5,
)
# Way -> cases in full and fast. Ways of one lane are taken in turn, lanes run beside each other.
LANES = (
    {"loop": (14, 1), "kernel": (12, 1)},
    {"stopped": (12, 1)},
    {"halted": (8, 1), "spinning": (12, 1), "warmed": (2, 0)},
)
HANGING, HONEST = ("loop", "kernel", "stopped"), ("halted", "spinning", "warmed")
# Another one that loops, which nobody ends.
NEIGHBOUR, ALONE = "neighbour", "left-alone"
# Seconds: call_timeout of those that hang, and of those that are honest.
LIMIT, HONEST_LIMIT = 1.0, 3.0
LEAST_DEFAULT, WARM_UPS = 10.0, 20
# Ten times what a stopped process takes to be ended: its limit, 1 s for the runtime, 2 s for its stacks.
PATIENCE = 40.0
GOOD_ANSWERS = 100
# Rounds of a loop: for each level above the warm-up's; and for a warm-up that gives a limit above 10 s.
A_LEVEL, LONG_WARM_UP = 40_000, 1_200_000
# Of the limit: what a call that computes takes at least and is to take, and for how long one is stopped.
LEAST, COMPUTES, STOPPED = 0.5, 0.65, 0.9
MOST_TRIES = 10

ENDED = "The model did not answer within its call_timeout and was interrupted."
REPLACED = "The model's worker process ended: it did not answer within 1 s (call_timeout)."
ABORTED = "Fatal Python error: Aborted"
WHERE = '/backends/onnxruntime.py", line '


def models_in(folder: Path) -> Path:
    made = folder / "models"
    for name in ("halted", NEIGHBOUR):
        packages.classifier(made / name, SIZE)
    for name in ("loop", ALONE):
        hanging.package(made / name, hanging.endless)
    hanging.package(made / "kernel", hanging.kernel)
    for name in ("stopped", "spinning"):
        hanging.package(made / name, hanging.by_level(0, A_LEVEL))
    # White takes 15 warm-ups, of the 20 that are its limit.
    hanging.package(made / "warmed", hanging.by_level(LONG_WARM_UP, 14 * LONG_WARM_UP // (255 - GREY)))
    return made


def limits(names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    own = {**dict.fromkeys((*HANGING, ALONE), LIMIT), "halted": HONEST_LIMIT, "spinning": HONEST_LIMIT}
    return {name: {"call_timeout": own[name]} for name in names if name in own}


class Bench:
    """An agent and its models; each way to hang or to be slow is a method."""

    def __init__(self, agent: Agent, names: tuple[str, ...]) -> None:
        self.agent = agent
        self.too_slow: Counter[str] = Counter()
        self.too_quick: Counter[str] = Counter()
        self._stub = agent.stub()
        # Levels above the warm-up's that take as long as a call that computes is to take.
        self._levels = 50.0
        for name in names:
            self._stub.StartModel(pb2.StartModelRequest(model_component=name), timeout=PLENTY)
        until(lambda: all(agent.state(name) != "STARTING" for name in names), "all have started", PLENTY)
        until(lambda: all(map(self._pid, names)), "the status names their processes")
        self.pids = {name: self._pid(name) for name in names}

    def _pid(self, name: str) -> int:
        (pid,) = (one["worker_pid"] for one in self.agent.status()["models"] if one["model"] == name)
        return pid or 0

    def _worker(self, name: str) -> int:
        """Return a model's process; the status is up to a second behind, and may name one that is dead."""
        return until(lambda: alive(pid := self._pid(name)) and pid, f"the process of {name} is known")

    def _judged(self, name: str, level: int) -> None:
        """Fail unless a model judges an image, rightly."""
        image = request(name, *SIZE, grey(level))
        code, details, response = outcome(self._stub.DetectAnomalies, image, PATIENCE)
        assert code == OK, f"{name} answers {code}: {details}"
        assert abs(response.detect_anomaly_result.anomaly_score - level / 255) < 1e-3, f"{name} is wrong"

    def _ended(
        self, name: str, image: bytes, meanwhile: Callable[[], None] = lambda: None, patience: float = PATIENCE
    ) -> str:
        """Let a model hang on an image; return what the caller is told, once what waited behind it is answered."""
        begin = time.monotonic()
        call = self._stub.DetectAnomalies.future(request(name, *SIZE, image))
        until(lambda: self.agent.inbox_holds(image), f"the call is with {name}")
        meanwhile()
        stub = self.agent.stub()
        waiting = [stub.DetectAnomalies.future(request(name, *SIZE, grey(level))) for level in (101, 102)]
        self._judged(NEIGHBOUR, 103)
        try:
            error = call.exception(patience)
        except grpc.FutureTimeoutError:
            raise AssertionError(f"{name} was not ended within {patience:g} s") from None
        elapsed = time.monotonic() - begin
        assert error.code().value[0] == INTERNAL
        assert elapsed >= LIMIT, f"{name} was ended after {elapsed:.3f} s"
        assert [call.exception(PATIENCE) for call in waiting] == [None, None], "what waited was not answered"
        return error.details()

    def _begin_anew(self, name: str) -> None:
        """Let a model's budget of deaths begin anew."""
        for _ in range(GOOD_ANSWERS):
            self._judged(name, 104)

    def loop(self, _: int, name: str = "loop", patience: float = PATIENCE) -> None:
        """The runtime ends a loop; the process goes on."""
        told = self._ended(name, nearly_black(), patience=patience)
        assert alive(self.pids[name]), "the process was ended, where it would have done to end the run"
        assert told == ENDED
        self._judged(name, 105)

    def kernel(self, _: int) -> None:
        """The runtime does not end a kernel; the process tells where it is, and ends."""
        dumps, worker = self.agent.log().count(ABORTED), self._worker("kernel")
        assert self._ended("kernel", nearly_black()) == REPLACED
        assert not alive(worker)
        dumped = self.agent.log().split(ABORTED)[dumps + 1 :]
        assert len(dumped) == 1, "the process did not tell where it was"
        assert WHERE in dumped[0], "the stacks do not show where it was"
        self._begin_anew("kernel")

    def stopped(self, nth: int) -> None:
        """A process that is stopped, before its call or in the middle of it, does nothing any more, and is killed."""
        worker = self._worker("stopped")
        stop = partial(hold, worker)
        if nth % 2 == 0:
            stop()
            told = self._ended("stopped", nearly_black())
        else:
            told = self._ended("stopped", nearly_white(), stop)
        assert told == REPLACED
        assert not alive(worker)
        self._begin_anew("stopped")

    def halted(self, _: int, limit: float = HONEST_LIMIT) -> None:
        """A process is stopped for nine tenths of the limit, and then goes on."""
        worker = self.pids["halted"]

        def call() -> float:
            hold(worker)
            begin = time.monotonic()
            call = self._stub.DetectAnomalies.future(request("halted", *SIZE, grey(106)))
            try:
                until(lambda: call.done() or time.monotonic() - begin >= STOPPED * limit, "it is time")
            finally:
                with suppress(ProcessLookupError):  # where it was ended, which is told below
                    os.kill(worker, signal.SIGCONT)
            return self._honest("halted", call, begin, limit)

        self._until_answered("halted", call)

    def spinning(self, _: int) -> None:
        """A process computes for more than half of the limit."""

        def call() -> float:
            level = min(255, GREY + max(1, round(self._levels)))
            begin = time.monotonic()
            call = self._stub.DetectAnomalies.future(request("spinning", *SIZE, grey(level)))
            part = self._honest("spinning", call, begin, HONEST_LIMIT)
            self._levels = (level - GREY) * COMPUTES * HONEST_LIMIT / (time.monotonic() - begin)
            if 0 < part < LEAST and level < 255:
                self.too_quick["spinning"] += 1
                return 0
            return part

        self._until_answered("spinning", call)

    def warmed(self, _: int) -> None:
        """A process computes for 15 times its warm-up, where 20 are its limit."""

        def call() -> float:
            (told,) = re.findall(r"warmed: STARTING -> RUNNING: .* warm-up ([\d.]+) ms", self.agent.log())
            begin = time.monotonic()
            call = self._stub.DetectAnomalies.future(request("warmed", *SIZE, grey(255)))
            limit = max(LEAST_DEFAULT, WARM_UPS * float(told) / 1000)
            return self._honest("warmed", call, begin, limit)

        self._until_answered("warmed", call)

    def _until_answered(self, name: str, call: Callable[[], float]) -> None:
        for _ in range(MOST_TRIES):
            if part := call():
                print(f"  {name}: {part:.2f} of its call_timeout")
                return
        raise AssertionError(f"{name} did not take what it was to take in {MOST_TRIES} calls; the machine is too busy")

    def _honest(self, name: str, call: grpc.Future, begin: float, limit: float) -> float:
        """Return what part of its limit a call took, 0 for one that took all of it; fail if it was ended sooner."""
        error = call.exception(PLENTY)
        elapsed = time.monotonic() - begin
        if error is None:
            return elapsed / limit
        assert elapsed >= limit, f"{name} was ended after {elapsed:.3f} s of {limit:g} s: {error.details()}"
        self.too_slow[name] += 1
        return 0.0


def test_models_that_hang(promises, folder):
    names = (*HANGING, *HONEST, NEIGHBOUR)
    models = models_in(folder)
    with promises.run(PROMISE) as run, serving(models, model_settings=limits(names)) as agent:
        if not run.full:
            names = tuple(name for name in names if name != "warmed")
        bench = Bench(agent, names)

        def take(lane: dict[str, tuple[int, int]]) -> None:
            turns = [way for way, (full, fast) in lane.items() for _ in range(full if run.full else fast)]
            for nth, way in enumerate(turns):
                getattr(bench, way)(nth)

        with ThreadPoolExecutor(len(LANES)) as pool:
            for lane in [pool.submit(take, lane) for lane in LANES]:
                lane.result()
        assert agent.stop() == 0
        cases = {way: case[0] if run.full else case[1] for lane in LANES for way, case in lane.items()}
        for way in HANGING:
            assert agent.counted(way, "hung") == agent.calls(way, "INTERNAL") == cases[way]
            assert agent.counted(way, "died") == (0 if way == "loop" else cases[way])
            run.count(agent.counted(way, "hung"))
        for way in HONEST:
            assert agent.counted(way, "hung") == agent.calls(way, "INTERNAL") == bench.too_slow[way]
            assert agent.counted(way, "died") == 0
            run.count(agent.calls(way, "OK") - bench.too_quick[way])
        assert agent.counted(NEIGHBOUR, "died") == agent.counted(NEIGHBOUR, "hung") == 0
        assert agent.calls(NEIGHBOUR) == agent.calls(NEIGHBOUR, "OK") == sum(cases[way] for way in HANGING)
        assert agent.log().count(ABORTED) == cases["kernel"]
        print(f"  {cases}; besides, too slow {dict(bench.too_slow)}, too quick {dict(bench.too_quick)}")


# The runtime ends nothing, no process tells where it was, calls are ended long before their limit, or long after it.
DAMAGE = """
import faulthandler
from functools import partial
from edge_agent.backends.onnxruntime import OrtSession
from edge_agent.supervisor import Worker
OrtSession.terminate = lambda self: None
faulthandler.enable = lambda: None
make = Worker.__init__
def hasty(answers, name, timeout):
    return answers({"halted": 0.2, "left-alone": 10}.get(name, 1.0) * timeout)
def made(self, *told):
    make(self, *told)
    for slot in self._slots:
        slot.answers = partial(hasty, slot.answers, self._name)
Worker.__init__ = made
"""
# Seconds: of the one that is halted, and is killed 2 s after a fifth of it.
LONG_LIMIT = 6.0
# Model -> how it is treated, and what is noticed.
NOTICED = {
    "loop": (Bench.loop, "the process was ended, where it would have done to end the run"),
    ALONE: (partial(Bench.loop, name=ALONE, patience=3.0), f"{ALONE} was not ended within 3 s"),
    "kernel": (Bench.kernel, "the process did not tell where it was"),
    "halted": (partial(Bench.halted, limit=LONG_LIMIT), r"halted was ended after [345]\.\d+ s of 6 s"),
}


def test_ways_to_be_wrong_about_a_hang_are_noticed(folder):
    names = (*NOTICED, NEIGHBOUR)
    settings = {**limits(names), "halted": {"call_timeout": LONG_LIMIT}}
    with closing(Agent(models_in(folder), model_settings=settings)) as agent:
        agent.start(**sabotaged(folder, DAMAGE))
        bench = Bench(agent, names)

        def take(treat: Callable[..., None], noticed: str) -> None:
            with pytest.raises(AssertionError, match=noticed):
                treat(bench, 0)

        try:
            with ThreadPoolExecutor(len(NOTICED)) as pool:
                for one in [pool.submit(take, *way) for way in NOTICED.values()]:
                    one.result()
        finally:
            agent.process.kill()
