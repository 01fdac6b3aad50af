"""Several images of one model at once: in order, beside each other, and what befalls one costs the others no more than it must.

The model spins for ever on black images, and the runtime can be told to end that; it answers all others at once.
"""

import os
import signal
import threading
import time

import pytest

from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent.tuned import Tuned
from support import hanging, packages
from support.agent import serving
from support.broken import SIZE
from support.calls import EXHAUSTED, INTERNAL, OK, outcome, request
from support.hanging import grey, nearly_black
from support.waiting import until

LIMIT = 3.0


@pytest.fixture
def models(folder):
    hanging.package(folder / "models" / "board", hanging.endless)
    return folder / "models"


class InHand:
    """Calls that are under way, each in a thread of its own."""

    def __init__(self, agent):
        self.agent = agent
        self.outcomes: list[tuple[int, str, object]] = []
        self._threads: list[threading.Thread] = []

    def send(self, image: bytes) -> None:
        """Send a call."""

        def call() -> None:
            self.outcomes.append(outcome(self.agent.stub().DetectAnomalies, request("board", *SIZE, image)))

        self._threads.append(threading.Thread(target=call))
        self._threads[-1].start()

    def send_hanging(self, count: int) -> None:
        """Send calls on which the model hangs, and wait until it does on all of them."""
        for _ in range(count):
            image = nearly_black()
            self.send(image)
            until(lambda: self.agent.inbox_holds(image), "the call is in the worker")

    def wait(self) -> list[tuple[int, str, object]]:
        for one in self._threads:
            one.join(60)
        return self.outcomes


def judged(agent, level: int = 200) -> int:
    return outcome(agent.stub().DetectAnomalies, request("board", *SIZE, grey(level)))[0]


def test_a_call_goes_on_beside_one_that_hangs(models):
    with serving(models, slots=2, call_timeout=LIMIT) as agent:
        agent.run_model("board")
        calls = InHand(agent)
        calls.send_hanging(1)
        begin = time.monotonic()
        assert [judged(agent) for _ in range(20)] == [OK] * 20
        assert time.monotonic() - begin < LIMIT, "none of them has waited for it"
        ((code, text, _),) = calls.wait()
        assert (code, "did not answer within its call_timeout" in text) == (INTERNAL, True)
        assert len(agent.workers()) == 1
        assert judged(agent) == OK


def test_with_one_slot_it_waits(models):
    """Negative control."""
    with serving(models, call_timeout=LIMIT) as agent:
        agent.run_model("board")
        calls = InHand(agent)
        calls.send_hanging(1)
        begin = time.monotonic()
        assert judged(agent) == OK
        assert time.monotonic() - begin > LIMIT / 2
        assert [code for code, *_ in calls.wait()] == [INTERNAL]


def test_no_more_run_than_there_are_slots(models):
    with serving(models, slots=2, queue_limit=1, call_timeout=LIMIT) as agent:
        agent.run_model("board")
        calls = InHand(agent)
        calls.send_hanging(2)
        calls.send(grey(200))
        until(lambda: "a call waits, 1 before it" in agent.log(), "the third waits")
        code, text, _ = outcome(agent.stub().DetectAnomalies, request("board", *SIZE, grey(201)))
        assert code == EXHAUSTED
        assert "1 calls waiting, its queue_limit" in text
        assert sorted(code for code, *_ in calls.wait()) == [OK, INTERNAL, INTERNAL]


def test_a_death_costs_the_calls_in_hand_and_no_other(models):
    with serving(models, slots=3, call_timeout=60) as agent:
        agent.run_model("board")
        calls = InHand(agent)
        calls.send_hanging(3)
        calls.send(grey(200))
        until(lambda: "a call waits" in agent.log(), "the fourth waits")
        os.kill(agent.workers()[0], signal.SIGKILL)
        told = sorted(calls.wait(), key=lambda one: one[0])
        assert [code for code, *_ in told] == [OK, INTERNAL, INTERNAL, INTERNAL]
        assert all("SIGKILL" in text for _, text, _ in told[1:])
        until(lambda: agent.counted("board", "died") == 1, "one death is counted")
        assert agent.state("board") == "RUNNING"


def test_the_answers_are_those_of_their_images(models, folder, segment):
    packages.segmenter(folder / "models" / "marks")
    with serving(models, slots=4) as agent:
        agent.run_model("marks")
        images = [bytes([level]) * (3 * 64 * 64) for level in range(0, 240, 20)]
        scores: dict[int, set[float]] = {}

        def call(image: bytes, name: str | None) -> None:
            stub = agent.stub()
            made = request("marks", 64, 64, image)
            if name:
                made = request("marks", 64, 64, handle=(name, len(image)))
            for _ in range(10):
                _, _, answer = outcome(stub.DetectAnomalies, made)
                scores.setdefault(image[0], set()).add(answer.detect_anomaly_result.anomaly_score)

        named = [(one, segment(len(one), one) if place % 2 else None) for place, one in enumerate(images)]
        threads = [threading.Thread(target=call, args=one) for one in named]
        for one in threads:
            one.start()
        for one in threads:
            one.join(60)
        assert len(scores) == 12
        assert all(len(found) == 1 for found in scores.values())
        assert len({next(iter(found)) for found in scores.values()}) == 12


def test_what_was_tuned_is_how_it_runs(models):
    with serving(models, slots=1, model_settings={"board": {"threads": 1}}) as agent:
        state = agent.folder / "state"
        Tuned(state / "tuned.json").write("board", threads=2, slots=3, spinning=True)
        agent.run_model("board")
        until(lambda: options(agent) == {"threads": 1, "slots": 3, "spinning": True}, "its own setting comes first")
        assert judged(agent) == OK


def options(agent) -> dict[str, object] | None:
    return next(one["options"] for one in agent.status()["models"] if one["model"] == "board")


def test_a_process_keeps_to_its_processors(models):
    with serving(models, model_settings={"board": {"cpus": [0]}}) as agent:
        agent.run_model("board")
        assert judged(agent) == OK
        (pid,) = agent.workers()
        threads = [int(one) for one in os.listdir(f"/proc/{pid}/task")]
        pinned = [os.sched_getaffinity(one) for one in threads]
        # The one that looks after the agent came before.
        assert pinned.count({0}) >= len(threads) - 1


def test_processors_that_are_not_there_are_named(models):
    with serving(models, model_settings={"board": {"cpus": [4095]}}) as agent:
        stub = agent.stub()
        stub.StartModel(pb2.StartModelRequest(model_component="board"))
        until(lambda: agent.state("board") == "FAILED", "it fails")
        assert "none of the processors 4095; correct the setting cpus." in agent.describe("board").status_message


def test_the_stages_of_a_call_are_counted(models):
    with serving(models) as agent:
        agent.run_model("board")
        for _ in range(7):
            assert judged(agent) == OK
        until(lambda: stages(agent)["calls"] == 7, "seven are counted")
        assert all(stages(agent)[one] > 0 for one in ("queue", "copy", "preprocess", "run", "postprocess"))


def stages(agent) -> dict[str, float]:
    return next(one["stages"] for one in agent.status()["models"] if one["model"] == "board")
