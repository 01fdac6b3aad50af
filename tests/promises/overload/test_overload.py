"""Q1: more calls than a model can do cost those that are too many, and nothing else.

1. Four clients, each a process of its own, send four times as many calls as the model does in a second when it is called one
   call after the other, and do not wait for answers. Each call is answered once: judged, or told at once that too many wait.
2. Never more wait than may.
3. Meanwhile DescribeModel and another model go on answering; what is told of the rejections is the agent's own histogram.
"""

import json
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from edge_agent import histograms
from edge_agent._proto import edge_agent_pb2 as pb2
from support import packages
from support.agent import PLENTY, Agent, environment
from support.broken import LIGHT, SIZE
from support.calls import OK, outcome, request
from support.promises import Promise
from support.sabotage import sabotaged

PROMISE = Promise(
    id="Q1",
    text="calls sent at four times the model's rate are judged or rejected, each once; the queue never exceeds its limit, and "
    "DescribeModel and another model go on answering",
    case="a call that the agent has counted",
    full=20_000,
    fast=600,
)
CLIENTS, FACTOR = 4, 4
QUEUE_LIMIT = 8
BUSY, OTHER = "busy", "other"
# About 12 ms of a processor for an image: far more than it takes to send, and to reject, three.
ROUNDS = 6_000
MEASURED = 40
SENDER = Path(__file__).with_name("sender.py")
REJECTED = f"RESOURCE_EXHAUSTED The model has {QUEUE_LIMIT} calls waiting, its queue_limit; send fewer calls at once, or call again later."
# What others may take under load: so many times what they took before, but not less than two seconds.
SLOWER, LEAST_BOUND = 10, 2.0


class Others:
    """DescribeModel of the busy model, and another model's images, called all the time from a thread each."""

    def __init__(self, agent: Agent) -> None:
        self._ended = threading.Event()
        stub = agent.stub()
        describe = pb2.DescribeModelRequest(model_component=BUSY)
        image = request(OTHER, *SIZE, LIGHT)
        self._calls: dict[str, Callable[[], int]] = {
            "DescribeModel": lambda: outcome(stub.DescribeModel, describe)[0],
            OTHER: lambda: outcome(stub.DetectAnomalies, image)[0],
        }
        self.bounds = {
            name: max(LEAST_BOUND, SLOWER * max(self._timed(name)[1] for _ in range(20))) for name in self._calls
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


class Overload:
    """An agent, the model that is called too often, and what became of all calls."""

    def __init__(self, agent: Agent, folder: Path) -> None:
        self.agent = agent
        self._file = folder / "request"
        self._file.write_bytes(request(BUSY, *SIZE, LIGHT).SerializeToString())
        for name in (BUSY, OTHER):
            agent.run_model(name)
        self.rate = self._measured()
        self.answers: Counter[str] = Counter()
        self.once = 0
        self.sent_rate = 0.0

    def _measured(self) -> float:
        """Return how many images the model judges in a second, one after the other."""
        stub, image, times = self.agent.stub(), request(BUSY, *SIZE, LIGHT), []
        for _ in range(MEASURED):
            begin = time.monotonic()
            assert outcome(stub.DetectAnomalies, image)[0] == OK
            times.append(time.monotonic() - begin)
        return 1 / statistics.median(times)

    def send(self, calls: int) -> None:
        """Have the calls sent, while the others are called."""
        rate = FACTOR * self.rate / CLIENTS
        command = [
            sys.executable,
            str(SENDER),
            str(self.agent.socket),
            str(self._file),
            str(calls // CLIENTS),
            str(rate),
        ]
        senders = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment())
            for _ in range(CLIENTS)
        ]
        for sender in senders:
            assert sender.stdout.readline() == "ready\n"
        self.others = Others(self.agent)
        for sender in senders:
            sender.stdin.write("begin\n")
            sender.stdin.flush()
        results = [json.loads(sender.communicate(timeout=400)[0]) for sender in senders]
        self.others.end()
        for result in results:
            self.answers.update(result["answers"])
            self.once += result["once"]
        self.sent_rate = calls / max(result["seconds"] for result in results)

    def check_answers(self, sent: int) -> None:
        """Fail unless each call was judged or rejected, once, and the agent counts them alike; and there were too many."""
        assert self.once == sent, f"{self.once} of {sent} calls were answered once"
        assert set(self.answers) <= {"OK", REJECTED}, f"other answers: {self.answers}"
        assert self.answers.total() == sent
        assert self.answers["OK"] <= sent / 2, (
            f"there were not too many: {self.answers}, sent at {self.sent_rate:.0f} a second"
        )
        rejected = sum(one["count"] for one in self.agent.status()["calls"] if one["reason"] == "rejected")
        assert rejected == self.answers[REJECTED] == self.agent.status()["rejections"][BUSY]["count"]

    def check_queue(self) -> None:
        """Fail unless as many waited as may, and never more."""
        longest = self.agent.status()["queue_longest"][BUSY]
        assert longest == QUEUE_LIMIT, f"{longest} calls waited, where {QUEUE_LIMIT} may"

    def counted(self) -> int:
        """Return how many of the clients' calls the agent has counted, which has ended."""
        return self.agent.calls(BUSY) - MEASURED

    def tell(self) -> None:
        """Print what was seen."""
        told = self.agent.status()["rejections"][BUSY]
        counts = dict.fromkeys((*histograms.BOUNDS, None), 0) | dict(told["buckets"])
        p50, p99 = (1e3 * histograms.percentile(list(counts.values()), share) for share in (0.5, 0.99))
        slowest = {name: f"{1e3 * max(times):.0f} ms of {len(times)}" for name, times in self.others.times.items()}
        print(
            f"  {self.rate:.0f} images/s alone, {self.sent_rate:.0f} sent a second: {self.answers['OK']} judged, "
            f"{self.answers[REJECTED]} rejected, within {p50:.2f} ms (p50) and {p99:.2f} ms (p99); slowest of others: {slowest}"
        )


@pytest.fixture
def models(folder) -> Path:
    packages.write(folder / "models" / BUSY, packages.manifest(size=SIZE), packages.slow(ROUNDS))
    packages.classifier(folder / "models" / OTHER)
    return folder / "models"


@contextmanager
def overload(models: Path, **env: str) -> Iterator[Overload]:
    with closing(Agent(models, queue_limit=QUEUE_LIMIT, log_level="info")) as agent:
        yield Overload(agent.start(**env), models.parent)


def test_overload(promises, models):
    with promises.run(PROMISE) as run, overload(models) as made:
        made.send(run.declared)
        assert made.agent.stop(patience=PLENTY) == 0
        made.check_answers(run.declared)
        made.check_queue()
        for name in ("DescribeModel", OTHER):
            made.others.check(name)
        made.tell()
        run.count(made.counted())


# Once there are more calls than it took to measure: twice as many wait as may, one in fifty fails, and others take long.
DAMAGE = f"""
import itertools, time
from edge_agent import calls, models
make, describe, detect = calls.CallQueue.__init__, models.Model.describe, models.Model.detect
numbers, over = itertools.count(1), []
def roomy(self, name, limit, *more):
    make(self, name, 2 * limit, *more)
def slow(self):
    time.sleep(2.5 if over else 0)
    return describe(self)
def failing(self, *told):
    if self.name == "{OTHER}":
        time.sleep(2.5 if over else 0)
    elif (number := next(numbers)) > {MEASURED}:
        over.append(number)
        if number % 50 == 0:
            raise RuntimeError
    return detect(self, *told)
calls.CallQueue.__init__, models.Model.describe, models.Model.detect = roomy, slow, failing
calls.CallQueue.limit = lambda self, most: None
"""


def test_ways_to_be_overloaded_are_noticed(models):
    with overload(models, **sabotaged(models.parent, DAMAGE)) as made:
        made.send(400)
        assert made.agent.stop(patience=PLENTY) == 0
        with pytest.raises(AssertionError, match="other answers"):
            made.check_answers(400)
        with pytest.raises(AssertionError, match=f"calls waited, where {QUEUE_LIMIT} may"):
            made.check_queue()
        for name in ("DescribeModel", OTHER):
            with pytest.raises(AssertionError, match=f"{name} took"):
                made.others.check(name)
