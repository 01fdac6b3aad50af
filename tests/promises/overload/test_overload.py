"""Q1: more calls than a model can do cost those that are too many, and nothing else.

1. Four clients, each a process of its own, send four times as many calls as the model does in a second when it is called one
   call after the other, and do not wait for answers. Each call is answered once: judged, or told at once that too many wait.
2. Never more wait than may.
3. Meanwhile DescribeModel and another model go on answering; how long the rejections took is read from the agent's own
   histogram.
4. Four models are sent three times as many calls as each can do, which together are more than the agent takes. What is refused
   for that is told so, with the name of one of them. A fifth, whose one caller sends one call after the other, is never
   refused.
"""

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from edge_agent import histograms
from edge_agent._proto import edge_agent_pb2 as pb2
from support import packages
from support.agent import PLENTY, Agent, environment
from support.broken import LIGHT, SIZE
from support.calls import OK, outcome, request
from support.promises import Promise
from support.sabotage import sabotaged
from support.waiting import until

PROMISE = Promise(
    id="Q1",
    text="calls sent at four times the model's rate are judged or rejected, each once and at once; the queue never exceeds its "
    "limit, and DescribeModel and another model go on answering, the latter also while four models are sent more than the agent takes",
    case="a call that the agent has counted",
    full=20_000,
    fast=600,
)
CLIENTS, FACTOR = 4, 4
QUEUE_LIMIT = 8
BUSY, OTHER = "busy", "other"
# Some 5 ms of a processor for an image: far more than it takes to send, and to reject, three.
ROUNDS = 6_000
MEASURED = 40
SENDER = Path(__file__).with_name("sender.py")
REJECTED = f"RESOURCE_EXHAUSTED The model has {QUEUE_LIMIT} calls waiting, its queue_limit; send fewer calls at once, or call again later."
# What others may take under load: so many times what they took before, but not less than so many seconds, which are more
# where five models share the processors with four clients.
SLOWER, LEAST_BOUND, LEAST_BOUND_OF_A_CROWD = 10, 2.0, 10.0
# Seconds that 99 of 100 rejections may take from the entry of their handler. Ten times what was measured is less.
LATEST = 1.0
# With the agent's own limits: 4 x (16 + 1) detections in hand, where it takes 64. About 20 ms of a processor for an image: gRPC
# itself cancels calls when a thousand have not been taken up, so there must not be more in a second than can be refused.
CROWD = ("crowd-1", "crowd-2", "crowd-3", "crowd-4")
CROWD_ROUNDS = 24_000
CROWD_FACTOR = 3
CROWD_CALLS, CROWD_CALLS_FULL = 400, 6_000
# Of a model's own queue, or of the agent, which names one of those that fill it.
CROWDED = re.compile(
    r"RESOURCE_EXHAUSTED The (model has 16 calls waiting, its queue_limit; |"
    rf"(?P<agent>agent) has \d+ detections in hand.* max_calls.*; '({'|'.join(CROWD)})' has the most, )"
)


class Others:
    """DescribeModel of a busy model, and another model's images, called all the time from a thread each."""

    def __init__(self, agent: Agent, busy: str, least: float) -> None:
        self._ended = threading.Event()
        stub = agent.stub()
        describe = pb2.DescribeModelRequest(model_component=busy)
        image = request(OTHER, *SIZE, LIGHT)
        self._calls: dict[str, Callable[[], int]] = {
            "DescribeModel": lambda: outcome(stub.DescribeModel, describe)[0],
            OTHER: lambda: outcome(stub.DetectAnomalies, image)[0],
        }
        for name in self._calls:
            self._timed(name)  # which connects
        self.bounds = {
            name: max(least, SLOWER * statistics.median(self._timed(name)[1] for _ in range(20)))
            for name in self._calls
        }
        self.times: dict[str, list[float]] = {name: [] for name in self._calls}
        self.codes: dict[str, Counter[int]] = {name: Counter() for name in self._calls}
        self._threads = [threading.Thread(target=self._go_on, args=(name,), daemon=True) for name in self._calls]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(PLENTY)

    def check(self, name: str) -> None:
        """Fail unless every call was answered OK, and in time."""
        assert set(self.codes[name]) == {OK}, f"{name} answered {dict(self.codes[name])}"
        slowest = max(self.times[name])
        assert slowest <= self.bounds[name], f"{name} took {slowest:.2f} s, of {self.bounds[name]:.2f} s that it may"

    def _timed(self, name: str) -> tuple[int, float]:
        begin = time.monotonic()
        return self._calls[name](), time.monotonic() - begin

    def _go_on(self, name: str) -> None:
        while not self._ended.wait(0.02):
            code, seconds = self._timed(name)
            self.codes[name][code] += 1
            self.times[name].append(seconds)


def ready(agent: Agent, *names: str) -> float:
    """Wait for the models; return how many images the first judges in a second at best, one after the other."""
    for name in names:
        until(lambda name=name: agent.state(name) == "RUNNING", f"{name} runs")
    stub, image, times = agent.stub(), request(names[0], *SIZE, LIGHT), []
    for _ in range(MEASURED):
        begin = time.monotonic()
        assert outcome(stub.DetectAnomalies, image)[0] == OK
        times.append(time.monotonic() - begin)
    return 1 / min(times)


class Flood:
    """Calls of several clients, each a process of its own, that do not wait for answers; and what became of them."""

    def __init__(self, agent: Agent, folder: Path, names: tuple[str, ...], calls: int, rate: float) -> None:
        """Send so many calls, as many to each of the names, at so many a second in all, while others are called."""
        self.agent = agent
        self.sent = calls
        senders = [self._sender(folder, name, calls // len(names), rate / len(names)) for name in names]
        for sender in senders:
            assert sender.stdout.readline() == "ready\n"
        self.others = Others(agent, names[0], LEAST_BOUND_OF_A_CROWD if names == CROWD else LEAST_BOUND)
        for sender in senders:
            sender.stdin.write("begin\n")
            sender.stdin.flush()
        results = [json.loads(sender.communicate(timeout=400)[0]) for sender in senders]
        self.others.end()
        self.answers: Counter[str] = Counter()
        for result in results:
            self.answers.update(result["answers"])
        self.once = sum(result["once"] for result in results)
        self.rate = calls / max(result["seconds"] for result in results)

    def _sender(self, folder: Path, name: str, calls: int, rate: float) -> "subprocess.Popen[str]":
        file = folder / f"request-{name}"
        file.write_bytes(request(name, *SIZE, LIGHT).SerializeToString())
        command = [sys.executable, str(SENDER), str(self.agent.socket), str(file), str(calls), str(rate)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment())

    @property
    def rejected(self) -> int:
        return self.answers.total() - self.answers["OK"]

    def check_answers(self, known: re.Pattern[str]) -> None:
        """Fail unless each call was judged or rejected, once, and the agent counts them alike; and there were too many."""
        assert self.once == self.sent, f"{self.once} of {self.sent} calls were answered once"
        strange = [text for text in self.answers if text != "OK" and not known.match(text)]
        assert strange == [], f"other answers: {self.answers}"
        assert self.answers.total() == self.sent
        assert self.answers["OK"] <= 2 * self.sent / 3, (
            f"there were not too many: {self.answers}, sent at {self.rate:.0f} a second"
        )
        status = self.agent.status()
        counted = sum(one["count"] for one in status["calls"] if one["reason"] == "rejected")
        assert counted == self.rejected == sum(one["count"] for one in status["rejections"].values())

    def check_others(self) -> None:
        """Fail unless all that was called besides was answered, and in time."""
        for name in ("DescribeModel", OTHER):
            self.others.check(name)

    def check_rejections(self) -> None:
        """Fail unless rejections came at once."""
        late = self.rejections(0.99)
        assert late <= LATEST, f"one rejection in a hundred took {late:.2f} s, of {LATEST:.2f} s that it may"

    def check_queue(self) -> None:
        """Fail unless as many waited for the first of the models as may, and never more."""
        longest = self.agent.status()["queue_longest"][BUSY]
        assert longest == QUEUE_LIMIT, f"{longest} calls waited, where {QUEUE_LIMIT} may"

    def rejections(self, share: float) -> float:
        """Return the seconds within which a share of the rejections came, from the entry of their handler."""
        counts: Counter[float | None] = Counter(dict.fromkeys((*histograms.BOUNDS, None), 0))
        for one in self.agent.status()["rejections"].values():
            counts.update(dict(one["buckets"]))
        return histograms.percentile(list(counts.values()), share) or 0.0

    def tell(self) -> dict[str, Any]:
        """Print what was seen, and return it; times are milliseconds."""
        seen = {
            "sent_per_second": round(self.rate, 1),
            "judged": self.answers["OK"],
            "rejected": self.rejected,
            "rejected_by_the_agent": sum(count for text, count in self.answers.items() if "max_calls" in text),
            "rejection_p50": round(1e3 * self.rejections(0.5), 3),
            "rejection_p99": round(1e3 * self.rejections(0.99), 3),
            "calls_of_others": {name: len(times) for name, times in self.others.times.items()},
            "slowest_of_others": {name: round(1e3 * max(times), 1) for name, times in self.others.times.items()},
        }
        print(f"  {seen}")
        return seen


@pytest.fixture
def models(folder) -> Path:
    for name, rounds in ((BUSY, ROUNDS), *((name, CROWD_ROUNDS) for name in CROWD)):
        packages.write(folder / "models" / name, packages.manifest(size=SIZE), packages.slow(rounds))
    packages.classifier(folder / "models" / OTHER)
    return folder / "models"


@contextmanager
def overload(models: Path, calls: int, **env: str) -> Iterator[Flood]:
    """Call one model too often."""
    names = BUSY, OTHER
    with closing(Agent(models, autostart=[*names], queue_limit=QUEUE_LIMIT, log_level="info")) as agent:
        rate = ready(agent.start(**env), *names)
        yield Flood(agent, models.parent, CLIENTS * (BUSY,), calls, FACTOR * rate)


@contextmanager
def crowd(models: Path, calls: int, **env: str) -> Iterator[Flood]:
    """Call so many models too often that the agent has not the places for all of their calls."""
    names = *CROWD, OTHER
    with closing(Agent(models, autostart=[*names], log_level="info")) as agent:
        rate = ready(agent.start(**env), *names)
        assert agent.log().count("models that are loaded may have") == 1, "it is said that they may be too many"
        yield Flood(agent, models.parent, CROWD, calls, CROWD_FACTOR * len(CROWD) * rate)


def check_crowd(flood: Flood) -> None:
    """Fail unless the agent was full at times, and said so to those who filled it, and to no other."""
    flood.check_answers(CROWDED)
    told = [text for text in flood.answers if (found := CROWDED.match(text)) and found["agent"]]
    assert told, f"the agent was never full: {flood.answers}"
    flood.check_others()
    flood.check_rejections()


def test_overload(promises, models, pytestconfig):
    with promises.run(PROMISE) as run:
        with overload(models, run.declared) as flood:
            assert flood.agent.stop(patience=PLENTY) == 0
            flood.check_answers(re.compile(re.escape(REJECTED) + "$"))
            flood.check_queue()
            flood.check_others()
            flood.check_rejections()
            seen = {"one model": flood.tell()}
            run.count(flood.agent.calls(BUSY) - MEASURED)
        with crowd(models, CROWD_CALLS_FULL if run.full else CROWD_CALLS) as flood:
            assert flood.agent.stop(patience=PLENTY) == 0
            check_crowd(flood)
            seen["four models"] = flood.tell()
    if run.full and (results := pytestconfig.getoption("--promise-results")):
        machine = {"cores": os.cpu_count(), "python": platform.python_version(), "grpcio": grpc.__version__}
        results.with_name("overload.json").write_text(json.dumps({"machine": machine, **seen}, indent=1) + "\n")


# Once there are more calls than it took to measure: twice as many wait as may, one in fifty fails, others take long, and so
# does every tenth rejection.
DAMAGE = f"""
import itertools, time
from edge_agent import calls, errors, models
make, enter, describe, detect = calls.CallQueue.__init__, calls.CallQueue.enter, models.Model.describe, models.Model.detect
numbers, rejections, over = itertools.count(1), itertools.count(1), []
def roomy(self, name, limit, *more):
    make(self, name, 2 * limit, *more)
def late(self, *told):
    try:
        return enter(self, *told)
    except errors.CannotKeepUp:
        time.sleep(0 if next(rejections) % 10 else 2)
        raise
def slow(self):
    time.sleep(2.5 if over and self.name == "{BUSY}" else 0)
    return describe(self)
def failing(self, *told):
    if self.name == "{OTHER}":
        time.sleep(2.5 if over else 0)
    elif (number := next(numbers)) > {MEASURED}:
        over.append(number)
        if number % 50 == 0:
            raise RuntimeError
    return detect(self, *told)
calls.CallQueue.__init__, calls.CallQueue.enter, models.Model.describe, models.Model.detect = roomy, late, slow, failing
calls.CallQueue.limit = lambda self, most: None
"""


def test_ways_to_be_overloaded_are_noticed(models):
    with overload(models, 400, **sabotaged(models.parent, DAMAGE)) as flood:
        assert flood.agent.stop(patience=PLENTY) == 0
        with pytest.raises(AssertionError, match="other answers"):
            flood.check_answers(re.compile(re.escape(REJECTED) + "$"))
        with pytest.raises(AssertionError, match=f"calls waited, where {QUEUE_LIMIT} may"):
            flood.check_queue()
        for name in ("DescribeModel", OTHER):
            with pytest.raises(AssertionError, match=f"{name} took"):
                flood.others.check(name)
        with pytest.raises(AssertionError, match="one rejection in a hundred took 2"):
            flood.check_rejections()


# Whoever comes first has the place, whatever else there is.
GREEDY = """
from edge_agent import admission
admission.Admission._check = lambda self, name: None
enter = admission.Admission.enter
def greedy(self, name):
    if self._total >= self._most:
        raise admission.CannotKeepUp(self._full(name, 0))
    enter(self, name)
admission.Admission.enter = greedy
"""


def test_a_model_that_is_refused_for_what_others_are_sent_is_noticed(models):
    with crowd(models, CROWD_CALLS, **sabotaged(models.parent, GREEDY)) as flood:
        assert flood.agent.stop(patience=PLENTY) == 0
        with pytest.raises(AssertionError, match=f"{OTHER} answered .*8: "):
            flood.check_others()
