"""C5: a model that breaks costs itself only, and is told of in a sentence that says how.

1. One agent serves a sound model, and one for each way to break. After each case the agent and the sound model's worker
   are the processes that they were, and the sound model judges an image, rightly.
2. Models that break on every image, or while they load, or whose process is killed while they load, are FAILED; the
   sentence says why.
3. Models that break on black images without an end of their process fail these calls INTERNAL, with the sentence, stay
   RUNNING in the same process, and judge the next image.
4. Models whose process ends on an image, by the processor's signal or by one from outside, fail that call INTERNAL; the
   next call waits for another process, which is started no sooner than the back-off allows. The fifth death in a minute
   makes the model FAILED with the last cause; StartModel begins anew, and so do 100 good answers.
5. A process that dies again and again while it loads in the place of another, or dies with no call, is counted alike.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edge_agent._proto import edge_agent_pb2 as pb2
from support import broken, hanging, packages
from support.agent import PLENTY, Agent, serving
from support.broken import BLACK, LIGHT, SIZE
from support.calls import INTERNAL, OK, outcome, request
from support.neighbour import Neighbour
from support.processes import TICK, computes, cpu_ticks, started_at
from support.promises import Promise, Promises
from support.waiting import until

PROMISE = Promise(
    id="C5",
    text="a model that crashes, runs out of memory or gives nonsense, at load or on an image, costs itself only: the right "
    "sentence, back-off and budget kept, agent and neighbour untouched",
    case="a failed start, a failed call or a dead process",
    full=100,
    fast=24,
)

SOUND = "sound"
# Above what the models need, and far below the BOMB that some take.
MEMORY_LIMIT = 256 << 20
GOOD_ANSWERS = 100
DEATHS = 5
FIRST_DELAY, JITTER = 0.1, 0.25

WARM_UP = "The model failed its warm-up: "
OUT_OF_MEMORY = "The model does not fit into memory; stop another model, or raise memory_limit if it is set."
NAN_SCORE = "The model gave the score nan, which is no number to compare; its weights may be damaged."
NAN_MASK = "The model gave mask logits that are no numbers; its weights may be damaged."
SCORES_ARE = (
    "The model's outputs are 1x1; with class_normal_ids [1] the class scores must be 1xK with a channel for each."
)
MASK_IS = "The model's outputs are 1x1x64x64, 1x2; for 2 pixel classes the mask logits must be 1x2xHxW."

# What each model that breaks on every image, or while it loads, is told to be FAILED for.
AT_LOAD = {
    broken.memory: OUT_OF_MEMORY,
    broken.creeping: OUT_OF_MEMORY,
    broken.score_shape: WARM_UP + SCORES_ARE,
    broken.mask_shape: WARM_UP + MASK_IS,
    broken.score_nan: WARM_UP + NAN_SCORE,
    broken.mask_nan: WARM_UP + NAN_MASK,
    broken.count: WARM_UP + "The model's outputs are 1x2, 1x2; the manifest promises class scores 1xK.",
    broken.text: WARM_UP + "The model has an output that is no tensor of numbers.",
}
CRASH_AT_LOAD = (broken.crash, broken.crash_at_load)
DAMAGED = "ONNX Runtime cannot load the model: Failed to load model because protobuf parsing failed."
# What the caller is told who sends a black image.
ON_AN_IMAGE = {
    broken.memory: "The model ran out of memory on the image.",
    broken.creeping: "The model ran out of memory on the image.",
    broken.score_shape: SCORES_ARE,
    broken.mask_shape: MASK_IS,
    broken.score_nan: NAN_SCORE,
    broken.mask_nan: NAN_MASK,
}
# Below those that the agent has; not below what it polls at once, which poll(2) would refuse.
NO_MORE_FILES = 8
SIGNALS = [signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGKILL]
# Models whose processes the test kills: while they judge a black image, and while they load.
ENDLESS, HEAVY = "endless", "heavy"
# About half a second, twice.
HEAVY_ROUNDS = 250_000


def named(way: Callable, *, always: bool) -> str:
    return ("always-" if always else "at-times-") + way.__name__.replace("_", "-")


CRASH = named(broken.crash, always=False) if broken.TRAPS else ENDLESS


@pytest.fixture(scope="module")
def models(module_folder) -> Path:
    folder = module_folder / "models"
    packages.segmenter(folder / SOUND, SIZE)
    hanging.package(folder / ENDLESS, hanging.endless)
    packages.write(folder / HEAVY, packages.manifest(size=SIZE), packages.slow(HEAVY_ROUNDS))
    for way in (*AT_LOAD, *CRASH_AT_LOAD):
        broken.package(folder / named(way, always=True), way, always=True)
    for way in (*ON_AN_IMAGE, broken.crash):
        broken.package(folder / named(way, always=False), way)
    damaged = broken.package(folder / "damaged", broken.count)
    (damaged / "mochi" / "model.onnx").write_bytes(b"\x08\x07 no model")
    return folder


def how(number: int) -> str:
    """Return what is told of a process that a signal ended."""
    hint = "; the system kills like this when memory runs out" if number == signal.SIGKILL else ""
    return f"it was ended by signal {int(number)} ({signal.Signals(number).name}){hint}"


def crashed(number: int) -> str:
    return f"The model's worker process ended: {how(number)}."


def crashed_at_load(number: int) -> str:
    return f"The worker process ended while the model was loading: {how(number)}."


class Bench:
    """An agent with a sound model that runs, and what may be done to the others."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.stub = agent.stub()
        agent.run_model(SOUND)
        self.sound = Neighbour(agent, SOUND)

    def start(self, name: str) -> None:
        self.stub.StartModel(pb2.StartModelRequest(model_component=name), timeout=PLENTY)

    def stop(self, name: str) -> None:
        self.stub.StopModel(pb2.StopModelRequest(model_component=name), timeout=PLENTY)

    def worker(self) -> int:
        """Return the process of the only other model that runs, or is being loaded."""
        return until(lambda: (self.sound.other_workers() or [0])[0], "there is a worker")

    def judged(self, name: str, image: bytes = LIGHT) -> tuple[int, str]:
        return outcome(self.stub.DetectAnomalies, request(name, *SIZE, image))[:2]

    def fails_to_load(self, name: str, sentence: str, number: int | None = None) -> None:
        """Start a model, and kill it by a signal while it loads where one is given; fail unless it is FAILED for that."""
        self.start(name)
        if number is not None:
            os.kill(self.worker(), number)
        until(lambda: self.agent.state(name) != "STARTING", f"{name} has started")
        description = self.agent.describe(name)
        assert description.status == pb2.FAILED, name
        assert description.status_message == sentence
        assert self.sound.other_workers() == []

    def fails_on_an_image(self, name: str, sentence: str) -> None:
        """Let a model judge a black image; fail unless that fails with the sentence, and nothing else has changed."""
        self.agent.run_model(name)
        worker = self.worker()
        assert self.judged(name, BLACK) == (INTERNAL, sentence)
        assert self.agent.state(name) == "RUNNING"
        assert self.judged(name) == (OK, "")
        assert self.worker() == worker, "the model has another process"
        self.stop(name)

    def dies_on_an_image(self, name: str, number: int | None) -> str:
        """Let a model die of a black image, or of a signal while it judges one; return what the caller must be told."""
        if name == CRASH and broken.TRAPS:
            told = crashed(signal.SIGFPE)
            assert self.judged(name, BLACK) == (INTERNAL, told)
            return told
        number = number or signal.SIGFPE
        worker = self.worker()
        before = cpu_ticks(worker)
        call = self.stub.DetectAnomalies.future(request(name, *SIZE, BLACK))
        until(lambda: computes(worker, before), "the model judges the image")
        os.kill(worker, number)
        error = call.exception(PLENTY)
        assert (error.code().value[0], error.details()) == (INTERNAL, crashed(number))
        return crashed(number)

    def goes_on(self, name: str, nth: int, before: float) -> None:
        """Fail unless after the nth death since `before` the model is RUNNING, and judges an image in another process."""
        assert self.agent.state(name) == "RUNNING", f"after {nth} deaths it is not RUNNING"
        assert self.judged(name) == (OK, "")
        backed_off(self.worker(), nth, before)

    def has_failed(self, name: str, told: str) -> None:
        description = self.agent.describe(name)
        assert description.status == pb2.FAILED
        assert description.status_message == (
            f"{told} It was the last of {DEATHS} deaths within a minute. Start the model again."
        )

    def spend(self, name: str, numbers: list[int | None]) -> None:
        """Let a model that runs die of each signal in turn, None is of its own; fail unless the last makes it FAILED."""
        for nth, number in enumerate(numbers, 1):
            before = time.clock_gettime(time.CLOCK_BOOTTIME)
            told = self.dies_on_an_image(name, number)
            if nth < len(numbers):
                self.goes_on(name, nth, before)
        self.has_failed(name, told)


def backed_off(worker: int, nth: int, before: float) -> None:
    """Fail unless a process was started no sooner after `before` than the back-off after the nth death is long."""
    after = started_at(worker) + TICK - before
    least = FIRST_DELAY * 2 ** (nth - 1) * (1 - JITTER)
    assert after > least, f"started again after {after:.2f} s, not {least:.2f} s"


@contextmanager
def bench(models: Path, **settings) -> Iterator[Bench]:
    with serving(models, memory_limit=MEMORY_LIMIT, restore=False, **settings) as agent:
        yield Bench(agent)


class Cases:
    """The cases, as functions that fail unless the promise is kept."""

    def __init__(self, bench: Bench, rounds: Callable[[str], int], shuffle: Callable[[list], None]) -> None:
        self.bench = bench
        self.stops: dict[str, int] = {}
        self.all: list[Callable[[], None]] = []
        for _ in range(rounds("load")):
            self.all += [lambda way=way, told=told: self.at_load(way, told) for way, told in AT_LOAD.items()]
            self.all += [lambda way=way: self.crash_at_load(way) for way in CRASH_AT_LOAD]
            self.all.append(lambda: bench.fails_to_load("damaged", DAMAGED))
            self.all.append(lambda: self.killed_at_load(signal.SIGSEGV))
        for _ in range(rounds("image")):
            self.all += [lambda way=way, told=told: self.on_an_image(way, told) for way, told in ON_AN_IMAGE.items()]
        self.all += [lambda: self.spent(CRASH, [None] * DEATHS)] * rounds("crash")
        for _ in range(rounds("signal")):
            shuffle(numbers := list(SIGNALS))
            self.all.append(lambda numbers=numbers: self.spent(ENDLESS, numbers))
        self.all += [self.dies_while_it_is_replaced] * rounds("replaced")
        self.all += [self.good_answers_begin_anew] * rounds("anew")
        self.all += [self.dies_idle] * rounds("idle")
        shuffle(self.all)

    def at_load(self, way: Callable, told: str) -> None:
        self.bench.fails_to_load(named(way, always=True), told)

    def crash_at_load(self, way: Callable) -> None:
        if broken.TRAPS:
            self.bench.fails_to_load(named(way, always=True), crashed_at_load(signal.SIGFPE))
        else:
            self.killed_at_load(signal.SIGFPE)

    def killed_at_load(self, number: int) -> None:
        self.bench.fails_to_load(HEAVY, crashed_at_load(number), number)

    def on_an_image(self, way: Callable, told: str) -> None:
        self.bench.fails_on_an_image(named(way, always=False), told)

    def spent(self, name: str, numbers: list[int | None]) -> None:
        self.bench.agent.run_model(name)
        self.bench.spend(name, numbers)

    def good_answers_begin_anew(self) -> None:
        """Four deaths, a hundred good answers, and once more as many deaths as it takes."""
        self.bench.agent.run_model(CRASH)
        for nth in range(1, DEATHS):
            before = time.clock_gettime(time.CLOCK_BOOTTIME)
            self.bench.dies_on_an_image(CRASH, None)
            self.bench.goes_on(CRASH, nth, before)
        for _ in range(GOOD_ANSWERS):
            assert self.bench.judged(CRASH) == (OK, "")
        self.bench.spend(CRASH, [None] * DEATHS)

    def dies_while_it_is_replaced(self) -> None:
        """One death with no call under way, and then each process that is started while it loads."""
        bench = self.bench
        bench.agent.run_model(HEAVY)
        waiting = None
        for nth in range(1, DEATHS + 1):
            before = time.clock_gettime(time.CLOCK_BOOTTIME)
            worker = bench.worker()
            os.kill(worker, signal.SIGKILL)
            until(lambda: worker not in bench.sound.other_workers(), "it is gone")
            if nth < DEATHS:
                waiting = waiting or bench.stub.DetectAnomalies.future(request(HEAVY, *SIZE, LIGHT))
                assert bench.agent.state(HEAVY) == "RUNNING"
                backed_off(bench.worker(), nth, before)
        error = waiting.exception(PLENTY)
        assert (error.code().value[0], error.details()) == (INTERNAL, crashed(signal.SIGKILL))
        bench.has_failed(HEAVY, crashed(signal.SIGKILL))

    def dies_idle(self) -> None:
        bench = self.bench
        bench.agent.run_model(ENDLESS)
        before = time.clock_gettime(time.CLOCK_BOOTTIME)
        worker = bench.worker()
        os.kill(worker, signal.SIGSEGV)
        until(lambda: bench.sound.other_workers() not in ([], [worker]), "there is another one")
        bench.goes_on(ENDLESS, 1, before)
        bench.stop(ENDLESS)


# Whose failures are calls, and whose processes all died while their models ran.
CALLS_ONLY = {named(way, always=False) for way in ON_AN_IMAGE}
DIE_AS_THEY_RUN = {CRASH, ENDLESS}

# How often each kind of case is run: in `make promises`, and in `make test`.
FULL = {"load": 3, "image": 4, "crash": 3, "signal": 2, "replaced": 1, "anew": 1, "idle": 1}
FAST = {"load": 1, "image": 1, "crash": 1, "idle": 1}


def test_costs_itself_only(models, promises: Promises):
    with promises.run(PROMISE) as run, bench(models) as at:
        cases = Cases(at, lambda kind: (FULL if run.full else FAST).get(kind, 0), run.random.shuffle)
        for case in cases.all:
            case()
            at.sound.check()
        assert "Traceback" not in at.agent.log()
        assert at.agent.stop() == 0
        run.count(counted(at.agent))
        assert at.agent.calls(SOUND, "OK") == at.sound.answered
        assert {one["code"] for one in at.agent.status()["calls"] if one["model"] == SOUND} == {"OK"}


def counted(agent: Agent) -> int:
    """Return how many cases the agent has counted; it must have ended, and all models before."""
    cases = 0
    for name, events in agent.status()["workers"].items():
        if name == SOUND:
            assert events == {"started": 1}
            continue
        # Each stop ended one process well.
        broke = events["started"] - agent.calls(name, "OK", "StopModel")
        died = events.get("died", 0)
        if name in CALLS_ONLY:
            assert (broke, died) == (0, 0)
            cases += agent.calls(name, "INTERNAL")
        else:
            assert died == broke if name in DIE_AS_THEY_RUN else died <= broke
            cases += broke
    return cases


def test_notices_a_model_that_is_not_replaced_or_without_back_off(models):
    with bench(models, restart="never") as at:
        at.agent.run_model(ENDLESS)
        before = time.clock_gettime(time.CLOCK_BOOTTIME)
        with pytest.raises(AssertionError, match="after 1 deaths it is not RUNNING"):
            at.spend(ENDLESS, SIGNALS)
        at.agent.run_model(ENDLESS)
        with pytest.raises(AssertionError, match="started again after"):
            # As after so many deaths that the machine would have to be very slow indeed.
            backed_off(at.worker(), 9, before)


def test_notices_a_model_that_is_replaced_too_often(models):
    with bench(models) as at:
        at.agent.run_model(ENDLESS)
        with pytest.raises(AssertionError, match="assert 2 == 3"):  # RUNNING, not FAILED
            at.spend(ENDLESS, SIGNALS[:1])


def test_notices_a_wrong_sentence_and_a_model_that_does_not_break(models):
    with bench(models) as at:
        with pytest.raises(AssertionError, match="damaged"):
            at.fails_to_load(named(broken.score_nan, always=True), WARM_UP + NAN_MASK)
        with pytest.raises(AssertionError, match=ENDLESS):
            at.fails_to_load(ENDLESS, OUT_OF_MEMORY)
        at.stop(ENDLESS)
        with pytest.raises(AssertionError, match=r"\(0, ''\) == "):
            at.fails_on_an_image(HEAVY, NAN_SCORE)


def test_notices_that_the_neighbour_or_the_agent_is_another(models):
    with bench(models) as at:
        at.sound.check()
        os.kill(at.sound.worker, signal.SIGKILL)
        until(lambda: at.sound.other_workers(), "there is another worker")
        with pytest.raises(AssertionError, match="the neighbour's worker has ended"):
            at.sound.check()
    with bench(models) as at:
        at.agent.stop(signal.SIGKILL)
        with pytest.raises(AssertionError, match="the agent has ended"):
            at.sound.check()
        at.agent.start()
        with pytest.raises(AssertionError, match="the agent is another process"):
            at.sound.check()


def test_a_worker_that_cannot_be_started_is_tried_again(models):
    """For want of file descriptors, say, which are the agent's own trouble and pass."""
    with bench(models) as at:
        at.agent.run_model(ENDLESS)
        worker = at.worker()
        allowed = allow_files(at.agent, NO_MORE_FILES)
        os.kill(worker, signal.SIGKILL)
        until(lambda: "could not be replaced" in at.agent.log(), "it was tried")
        allow_files(at.agent, allowed)
        assert at.judged(ENDLESS) == (OK, "")
        at.sound.check()
        assert at.agent.stop() == 0
        assert at.agent.counted(ENDLESS, "died") == at.agent.counted(ENDLESS, "started") - 1 == 1
        assert at.agent.counted(ENDLESS, "not_started") >= 1


def allow_files(agent: Agent, most: int) -> int:
    """Let an agent open no file above so many; return how many it could have had before."""
    code = """
import resource, sys
pid, most = map(int, sys.argv[1:])
before, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, hard))
print(before)
"""
    command = [sys.executable, "-c", code, str(agent.pid), str(most)]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, **agent.user.popen()).stdout)
