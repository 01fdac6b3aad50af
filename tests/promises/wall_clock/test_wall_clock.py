"""C4: the wall clock is stepped by a day, forward or back, and nobody notices but who reads the log.

1. An agent and its children read a wall clock that the test steps: a module that Python runs before all else puts an
   offset, which it reads from a file, into all that tells the time of day. Nobody else's clock is touched.
2. It is stepped while models are called without a pause; while a call hangs, one waits with a deadline and one without;
   while a model starts; while one stops with a call under way; while a new version takes over; and between the deaths of
   a worker, the fifth of which within a minute is one too many.
3. After each step the agent's next log line and a worker's next one bear the new time, or the clock was not stepped. Each
   call is answered, by the process that was there, no deadline or limit comes sooner, and each model is what it must be.
4. At the end no duration in the log is below zero or above minutes, and the agent has counted no death and no start but
   those that the test made.

gRPC alone is told the true time: it compares Python's clock to that of its C library, which is not stepped.
"""

import os
import re
import signal
import struct
import time
from collections import Counter
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path
from random import Random

import grpc
import numpy as np
import pytest

from edge_agent._proto import edge_agent_pb2 as pb2
from support import hanging, packages
from support.agent import PLENTY, Agent, alive
from support.broken import SCORES, SIZE, Outputs, Parts
from support.calls import EXHAUSTED, INTERNAL, OK, outcome, request
from support.hanging import GREY, grey, nearly_black
from support.load import Load, load
from support.promises import Promise
from support.sabotage import MODULE, sabotaged
from support.waiting import until

PROMISE = Promise(
    id="C4",
    text="a wall clock that is stepped by a day: nothing restarts, no call fails, no duration is wrong, and deadlines hold",
    case="a step of the agent's and its workers' clock, which the agent's answer to a call has shown in the log",
    full=50,
    fast=10,
)
DEATHS = 5
# When the clock is stepped -> how often in full; once in fast. The deaths are one more, with a step before each.
MOMENTS = {"calling": 14, "hanging": 10, "starting": 7, "stopping": 7, "swapping": 7}
DAY = 86_400
LOADED = ("alpha", "beta")
PROBE, ENDLESS, HEAVY, SWAPPED, MORTAL = "probe", "endless", "heavy", "swapped", "mortal"
STEADY = (*LOADED, PROBE, ENDLESS, SWAPPED)
# Seconds: the limit of a call that hangs, and the deadline of one that waits meanwhile.
LIMIT, DEADLINE = 4.0, 2.0
# Rounds of a warm-up and for each level above it, about 2 us each: a second and less.
WARM_UP, A_LEVEL = 200_000, 20_000
ENDED = "The model did not answer within its call_timeout and was interrupted."
KILLED = "it was ended by signal 9 (SIGKILL)"

# Python runs it before all else, in the agent and in its children.
STEPPED = """
import datetime, mmap, struct, sys, time

with open({path!r}, "rb") as file:
    memory = mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ)

def offset():
    asking = sys._getframe(2).f_globals.get("__name__", "")
    return 0 if asking.partition(".")[0] == "grpc" else struct.unpack("<q", memory)[0]

def stepped(tell, scale):
    return lambda: tell() + offset() * scale

def stepped_if_wall(tell, scale):
    return lambda clock: tell(clock) + (offset() * scale if clock == time.CLOCK_REALTIME else 0)

def of_now(convert):
    return lambda seconds=None: convert(time.time() if seconds is None else seconds)

def writer(write):
    return lambda form, moment=None: write(form, time.localtime() if moment is None else moment)

for ending, scale in (("", 1), ("_ns", 10**9)):
    setattr(time, "time" + ending, stepped(getattr(time, "time" + ending), scale))
    setattr(time, "clock_gettime" + ending, stepped_if_wall(getattr(time, "clock_gettime" + ending), scale))
for name in ("gmtime", "localtime", "ctime"):
    setattr(time, name, of_now(getattr(time, name)))
time.strftime = writer(time.strftime)

class Stepped(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(time.time(), tz)
    @classmethod
    def utcnow(cls):
        return cls.now(datetime.timezone.utc).replace(tzinfo=None)
    @classmethod
    def today(cls):
        return cls.now()

datetime.datetime = Stepped
"""
# A clock that only goes on, for whoever asks for one: the stepped one.
WALL_FOR_MONOTONIC = "time.monotonic = time.time\n"
# What the log says of durations, in milliseconds or seconds, and more than any of them may be.
DURATIONS = (
    r"request \w+ \w+ \S+ (-?[\d.]+) ms",
    r"warm-up (-?[\d.]+) ms",
    r"loaded in (-?[\d.]+) s",
    r"started again in (-?[\d.]+) s",
)
LONGEST = 600_000


def failing(parts: Parts) -> Outputs:
    """Fail on a black image in a way that the worker logs."""
    two = parts.constant("two", [0, 0], np.float32)
    parts.node("Gather", [two, parts.scaled_gate(0, 9, "which")], "number")
    parts.add_nothing("number")
    parts.scores("anomaly_of_all")
    return [SCORES]


class Bench:
    """An agent whose wall clock can be stepped; each moment at which it is stepped is a method."""

    def __init__(self, folder: Path, random: Random, besides: str = "") -> None:
        self.events: dict[str, Counter[str]] = {"started": Counter(), "died": Counter(), "hung": Counter()}
        self.steps = 0
        self._random = random
        self._offset = 0
        self._version = 0
        self._pids: dict[str, int] = {}
        self._clock = folder / "clock"
        self._clock.write_bytes(struct.pack("<q", 0))
        self._clock.chmod(0o644)
        self._models = folder / "models"
        for name in (*LOADED, MORTAL):
            packages.classifier(self._models / name, SIZE)
        self._deploy()
        hanging.package(self._models / PROBE, failing)
        hanging.package(self._models / ENDLESS, hanging.endless)
        hanging.package(self._models / HEAVY, hanging.by_level(WARM_UP, A_LEVEL))
        limits = {ENDLESS: {"call_timeout": LIMIT}}
        self.agent = Agent(self._models, call_timeout=PLENTY, drain_timeout=60, model_settings=limits)
        self._env = sabotaged(folder, STEPPED.format(path=str(self._clock)) + besides)

    def begin(self) -> None:
        """Start the agent and the models that run all the time."""
        self.agent.start(**self._env)
        assert MODULE.removesuffix(".py") not in self.agent.log(), "the module that steps the clock has failed"
        self._stub = self.agent.stub()
        for name in STEADY:
            self._run(name)

    def step_by(self, seconds: int) -> None:
        """Step the clock; fail unless the agent and a worker see it, and no model has another process."""
        self._offset += seconds
        with self._clock.open("r+b") as file:
            file.write(struct.pack("<q", self._offset))
        self.steps += 1
        assert outcome(self._stub.ListModels, pb2.ListModelsRequest())[0] == OK
        self._see(" ListModels ", "the agent")
        assert outcome(self._stub.DetectAnomalies, request(PROBE, *SIZE, nearly_black()))[0] == INTERNAL
        self._see(f" {PROBE}: the model failed on an image", "a worker")
        for name, pid in self._pids.items():
            assert alive(pid), f"{name} has lost its process"

    def step(self) -> None:
        """Step the clock by a day, forward or back, towards the true time where it is a day off already."""
        days = self._random.choice((-DAY, DAY))
        self.step_by(days if abs(self._offset + days) <= DAY else -days)

    def _see(self, line: str, who: str) -> None:
        """Fail unless the last line of the log with these words bears the new time."""
        (*_, last) = (one for one in self.agent.log().splitlines() if line in one)
        told = datetime.strptime(last.split()[0], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc).timestamp()
        assert abs(told - time.time() - self._offset) < DAY / 10, f"{who} does not see the step: {last}"

    def _step_within(self, seconds: float) -> None:
        time.sleep(self._random.uniform(0, seconds))  # the moment, which nothing tells
        self.step()

    def _deploy(self) -> float:
        """Write another version of a package; return its threshold."""
        self._version += 1
        threshold = 0.4 + self._version / 1000
        packages.classifier(self._models / SWAPPED, SIZE, threshold=threshold)
        return threshold

    def _start(self, name: str) -> None:
        assert outcome(self._stub.StartModel, pb2.StartModelRequest(model_component=name))[0] == OK
        self.events["started"][name] += 1

    def _has_started(self, name: str) -> None:
        until(lambda: self.agent.state(name) != "STARTING", f"{name} has started", PLENTY)
        assert self.agent.state(name) == "RUNNING", self.agent.describe(name).status_message

    def _run(self, name: str) -> None:
        """Run a model, and note its process."""
        self._start(name)
        self._has_started(name)
        self._pids[name] = self._newest()

    def _newest(self) -> int:
        """Return the process of the model whose process is not noted."""
        return until(self._others, "there is a process").pop()

    def _others(self) -> set[int]:
        return {*self.agent.workers()} - {*self._pids.values()}

    def _stop(self, name: str) -> None:
        assert outcome(self._stub.StopModel, pb2.StopModelRequest(model_component=name))[0] == OK

    def calling(self, calls: Load) -> None:
        """Models are called without a pause."""
        for step in (self.step, lambda: None):
            begun = {caller: number for name in LOADED for caller, number in calls.begun(name).items()}
            until(lambda: calls.answered_since(begun), "calls are answered")
            step()

    def hanging(self, _: Load) -> None:
        """A call hangs, one waits for it with a deadline that comes sooner, and one with a later deadline."""
        image = nearly_black()
        begin = time.monotonic()
        hangs = self._stub.DetectAnomalies.future(request(ENDLESS, *SIZE, image))
        until(lambda: self.agent.inbox_holds(image), "the call is in the worker")
        queued = self._queued()
        sent = time.monotonic()
        expires = self._stub.DetectAnomalies.future(request(ENDLESS, *SIZE, grey(1)), timeout=DEADLINE)
        waits = self._stub.DetectAnomalies.future(request(ENDLESS, *SIZE, grey(2)), timeout=PLENTY)
        until(lambda: self._queued() == queued + 2, "both wait in the agent")
        # Forward: to the day at which a wall clock would tell that the later deadline has passed.
        self.step_by(DAY)
        error = expires.exception(PLENTY)
        assert time.monotonic() - sent >= DEADLINE, f"a call ended before its deadline: {error}"
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED or error.code().value[0] == EXHAUSTED
        error = hangs.exception(PLENTY)
        assert time.monotonic() - begin >= LIMIT, f"a call ended before its limit: {error}"
        assert (error.code().value[0], error.details()) == (INTERNAL, ENDED)
        self.events["hung"][ENDLESS] += 1
        assert waits.exception() is None, f"its deadline had not passed: {waits.exception()}"

    def _queued(self) -> int:
        return self.agent.log().count(f" {ENDLESS}: a call waits")

    def starting(self, _: Load) -> None:
        """A model is being loaded and warmed up."""
        self._start(HEAVY)
        self._step_within(0.4)
        self._has_started(HEAVY)
        self._stop(HEAVY)

    def stopping(self, _: Load) -> None:
        """A model is to stop, and its last call is under way."""
        self._start(HEAVY)
        self._has_started(HEAVY)
        image = grey(GREY + 5)
        last = self._stub.DetectAnomalies.future(request(HEAVY, *SIZE, image))
        until(lambda: self.agent.inbox_holds(image), "the call is in the worker")
        stopped = self._stub.StopModel.future(pb2.StopModelRequest(model_component=HEAVY))
        self._step_within(0.2)
        assert last.exception(PLENTY) is None, f"the last call was cut off: {last.exception()}"
        assert stopped.result(PLENTY).status == pb2.STOPPED

    def swapping(self, _: Load) -> None:
        """A new version is found, loaded beside the old one, and takes over."""
        old = self._pids.pop(SWAPPED)
        threshold = self._deploy()
        self._step_within(0.4)

        def taken_over() -> bool:
            code, details, response = outcome(self._stub.DetectAnomalies, request(SWAPPED, *SIZE, grey(9)))
            assert code == OK, details
            return abs(response.detect_anomaly_result.anomaly_threshold - threshold) < 1e-6

        until(taken_over, "the new version takes over")
        until(lambda: not alive(old), "the old version's process has ended")
        self.events["started"][SWAPPED] += 1
        self._pids[SWAPPED] = self._newest()

    def spending(self) -> None:
        """A model's process dies again and again: the last death within a minute is one too many."""
        self._start(MORTAL)
        self._has_started(MORTAL)
        for nth in range(1, DEATHS + 1):
            killed = self._newest()
            os.kill(killed, signal.SIGKILL)
            # Before it knows, the agent may hand the next call to a process that is about to go.
            until(lambda: self.agent.log().count(f" WARNING {MORTAL}: ") >= nth or nth == DEATHS, "the death is known")
            self.events["died"][MORTAL] += 1
            self.step()
            if nth < DEATHS:
                code, details, _ = outcome(self._stub.DetectAnomalies, request(MORTAL, *SIZE, grey(nth)))
                assert code == OK, f"after {nth} deaths: {details}"
                self.events["started"][MORTAL] += 1
        until(
            lambda: self.agent.state(MORTAL) == "FAILED" or self._others() - {killed},
            "it is FAILED, or has another process",
        )
        assert self.agent.state(MORTAL) == "FAILED", f"it has another process after {DEATHS} deaths within a minute"
        assert f"It was the last of {DEATHS} deaths" in self.agent.describe(MORTAL).status_message

    def wrong_durations(self) -> list[str]:
        """Return the durations of the log that none of them can be."""
        told = [one for form in DURATIONS for one in re.finditer(form, self.agent.log())]
        return [one[0] for one in told if not 0 <= float(one[1]) < LONGEST]

    def failures(self) -> Counter[tuple[str, str, str]]:
        """Return how many calls of which model failed how, as the agent has counted them."""
        return Counter(
            {
                (one["model"], one["code"], one["reason"]): one["count"]
                for one in self.agent.status()["calls"]
                if one["code"] != "OK"
            }
        )


def test_stepped_clock(promises, folder):
    with promises.run(PROMISE) as run:
        bench = Bench(folder, run.random)
        agent = bench.agent
        with closing(agent):
            bench.begin()
            moments = [one for one, often in MOMENTS.items() for _ in range(often if run.full else 1)]
            run.random.shuffle(moments)
            with load(agent, *LOADED, callers=1) as calls:
                for moment in moments:
                    getattr(bench, moment)(calls)
                bench.spending()
            assert [calls.failed(name) for name in LOADED] == [Counter()] * len(LOADED)
            assert calls.wrong() == []
            assert agent.stop() == 0
            hung = bench.events["hung"][ENDLESS]
            assert bench.failures() == {
                (PROBE, "INTERNAL", "model"): bench.steps,
                (ENDLESS, "INTERNAL", "hung"): hung,
                (ENDLESS, "RESOURCE_EXHAUSTED", "expired"): hung,
            }
            for event, counted in bench.events.items():
                assert {name: agent.counted(name, event) for name in (*STEADY, HEAVY, MORTAL)} == {
                    name: counted[name] for name in (*STEADY, HEAVY, MORTAL)
                }
            assert bench.wrong_durations() == []
            for form in DURATIONS:
                assert re.search(form, agent.log()), f"the log tells no duration like {form!r}"
            assert "Traceback" not in agent.log()
            # The first call was the one that waited for the agent to serve.
            run.count(agent.calls(rpc="ListModels", code="OK") - 1)
            print(f"  {moments} and {DEATHS} deaths; answered {sum(map(calls.answered, LOADED))}")


def test_an_agent_that_goes_by_the_wall_clock_is_noticed(folder):
    bench = Bench(folder, Random(0), besides=WALL_FOR_MONOTONIC)
    with closing(bench.agent):
        bench.begin()
        with pytest.raises(AssertionError, match="its deadline had not passed"):
            bench.hanging(None)
        until(bench.wrong_durations, "a wrong duration is in the log")
        with pytest.raises(AssertionError, match="it has another process after"):
            bench.spending()
