"""C1: workers are killed under load, and that costs each time one call of their own model at most.

1. One agent runs four models; three callers each call them without a pause, and each knows what its answers must be.
2. A model is drawn whose process has answered 100 calls, so that the budget of its deaths begins anew; the agent's status
   says which process that is, and it is killed.
3. Meanwhile the model stays RUNNING. At most the one call under way fails, INTERNAL and told why; those that wait are
   answered by the next process. None of another model fails.
4. When each of its callers has had a good answer to a call begun after the kill, the next model is drawn.
5. At the end the agent has counted as many deaths as there were kills, one start more for each model, no hang, and the
   very answers that the callers have seen.
"""

import os
import signal
from collections import Counter
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from support import packages
from support.agent import Agent, alive, serving
from support.calls import INTERNAL
from support.load import Load, load
from support.promises import Promise
from support.sabotage import sabotaged
from support.waiting import until

PROMISE = Promise(
    id="C1",
    text="kill -9 of workers over 4 models under load, each after it has answered 100 calls: no failed call on the other "
    "three, at most one on the killed, which answers again",
    case="a worker process that was killed, and that the agent has counted as dead",
    full=300,
    fast=4,
)
NAMES = ("alpha", "beta", "gamma", "delta")
CALLERS = 3
GOOD_ANSWERS = 100
KILLED = "The model's worker process ended: it was ended by signal 9 (SIGKILL); the system kills like this when memory runs out."


class Range:
    """Models under load whose workers are killed one after the other."""

    def __init__(self, agent: Agent, load: Load, names: tuple[str, ...]) -> None:
        self.agent = agent
        self.kills: Counter[str] = Counter()
        self._load = load
        self._names = names
        self._killed: set[int] = set()
        # Answers that came before the process that runs: of its callers' good ones, what it has not given itself.
        self._before = dict.fromkeys(names, 0)

    def kill_one(self, random: Random, others: int = 0) -> None:
        """Kill the worker of a model that is drawn; with it, for what they cost, those of `others` that are not to fail."""
        victim, *more = random.sample(self._names, 1 + others)
        pids = [self._worker(name) for name in (victim, *more)]
        failed = {name: self._load.failed(name) for name in self._names}
        begun = self._load.begun(victim)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self._killed.update(pids)
        self.kills[victim] += 1
        assert self.agent.state(victim) == "RUNNING", f"{victim} is {self.agent.state(victim)} after a death"

        def answers_again() -> bool:
            self._check(victim, failed)
            return self._load.answered_since(begun)

        until(answers_again, f"{victim} answers again")
        until(lambda: not any(map(alive, pids)), "what was killed has ended")
        self._before[victim] = self._load.answered(victim)
        self._check(victim, failed)

    def _worker(self, name: str) -> int:
        """Wait until a model's worker has answered enough; return its pid."""

        def proved() -> int:
            """The status is up to a second behind: who was killed is not the worker."""
            answered = self._load.answered(name) - self._before[name] >= GOOD_ANSWERS
            (pid,) = (one["worker_pid"] for one in self.agent.status()["models"] if one["model"] == name)
            return pid if pid and answered and pid not in self._killed else 0

        return until(proved, f"the worker of {name} has answered {GOOD_ANSWERS} calls")

    def _check(self, victim: str, failed: dict[str, Counter]) -> None:
        """Fail if a call failed that must not have failed."""
        for name in self._names:
            more = self._load.failed(name) - failed[name]
            if name != victim:
                assert not more, f"the death of {victim} cost calls of {name}: {dict(more)}"
            elif more:
                assert set(more) == {(INTERNAL, KILLED)}, f"{victim} was killed, and calls failed: {dict(more)}"
                assert more.total() == 1, f"{more.total()} calls failed, and one was under way: {dict(more)}"


def models_in(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        packages.classifier(folder / "models" / name)
    return folder / "models"


def test_killed_workers(promises, folder):
    with promises.run(PROMISE) as run, serving(models_in(folder, NAMES), log_level="info") as agent:
        for name in NAMES:
            agent.run_model(name)
        with load(agent, *NAMES, callers=CALLERS) as calls:
            ground = Range(agent, calls, NAMES)
            for _ in range(run.declared):
                ground.kill_one(run.random)
        assert calls.wrong() == []
        assert agent.stop() == 0
        for name in NAMES:
            failed = calls.failed(name).total()
            assert agent.counted(name, "died") == ground.kills[name]
            assert agent.counted(name, "started") == ground.kills[name] + 1
            assert agent.counted(name, "hung") == 0
            assert agent.calls(name, "OK") == calls.answered(name)
            assert agent.calls(name, "INTERNAL") == failed == agent.calls(name) - agent.calls(name, "OK")
            assert failed <= ground.kills[name]
            run.count(agent.counted(name, "died"))
        assert "Traceback" not in agent.log()
        answered = {name: calls.answered(name) for name in NAMES}
        print(f"  kills {dict(ground.kills)}; answered {answered}; failed {agent.calls(code='INTERNAL')}")


QUEUE_DROPPED = """
from edge_agent.errors import WorkerCrashed
from edge_agent.serving import Serving
died = Serving._died
def dropped(self, worker):
    worker.wait()
    with self._queue._lock:
        self._queue._closed = lambda: WorkerCrashed("it was dropped")
        self._queue._send_away()
        self._queue._closed = None
    died(self, worker)
Serving._died = dropped
"""
# What is broken -> settings, code that breaks it, workers that are killed besides, and what is noticed.
CONTROLS = {
    "a dead worker is not replaced": ({"restart": "never"}, "", 0, "is FAILED after a death|calls failed"),
    "what waits is dropped": ({}, QUEUE_DROPPED, 0, "calls failed"),
    "a death costs another model": ({}, "", 1, "cost calls of"),
}


@pytest.mark.parametrize("broken", CONTROLS)
def test_what_a_death_may_not_cost_is_noticed(folder, broken):
    settings, code, others, noticed = CONTROLS[broken]
    random = Random(0)
    names = NAMES[:2]
    with closing(Agent(models_in(folder, names), **settings)) as agent:
        agent.start(**(sabotaged(folder, code) if code else {}))
        for name in names:
            agent.run_model(name)

        def kill_some(calls) -> None:
            ground = Range(agent, calls, names)
            for _ in range(20):  # now and then no call is under way
                ground.kill_one(random, others)

        with load(agent, *names, callers=CALLERS) as calls, pytest.raises(AssertionError, match=noticed):
            kill_some(calls)
