"""Queues, limits, deadlines and control calls while a model is busy: held busy by stopping its worker."""

import os
import signal
import socket
import struct
import threading

import grpc
import pytest

from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent.server import CONTROL_THREADS
from promises.fuzzed_wire import frames
from support import packages
from support.agent import PLENTY, serving
from support.calls import EXHAUSTED, INTERNAL, OK, PRECONDITION, outcome, request
from support.waiting import until

SIZE = 3 * 64 * 64


class Busy:
    """A RUNNING model whose worker is stopped in the middle of a call."""

    def __init__(self, agent, model: str = "board"):
        self.agent, self.model = agent, model
        before = set(agent.workers())
        agent.run_model(model)
        self.worker = (set(agent.workers()) - before).pop()
        os.kill(self.worker, signal.SIGSTOP)
        marked = os.urandom(SIZE)
        self.stub = agent.stub()
        self.call = self.stub.DetectAnomalies.future(request(model, 64, 64, marked))
        until(lambda: agent.inbox_holds(marked), "the call is in the worker")

    def queue(self) -> grpc.Future:
        """Send one more call; return when it waits in the queue."""
        waits = self.agent.log().count("a call waits")
        call = self.send()
        until(lambda: self.agent.log().count("a call waits") > waits, "the call waits")
        return call

    def send(self, timeout: float | None = None) -> grpc.Future:
        """Send one more call."""
        return self.stub.DetectAnomalies.future(request(self.model, 64, 64, os.urandom(SIZE)), timeout=timeout)

    def go_on(self) -> None:
        os.kill(self.worker, signal.SIGCONT)


@pytest.fixture
def models(folder):
    for name in ("board", "part"):
        packages.segmenter(folder / "models" / name)
    return folder / "models"


def code(call: grpc.Future) -> int:
    error = call.exception(PLENTY)
    return 0 if error is None else error.code().value[0]


def refusals(agent) -> int:
    return agent.log().count("RESOURCE_EXHAUSTED")


def test_queue_limit(models):
    with serving(models, queue_limit=3) as agent:
        busy = Busy(agent)
        calls = [busy.send() for _ in range(8)]
        until(lambda: sum(call.done() for call in calls) == 5, "all beyond the limit are refused")
        waiting = [call for call in calls if not call.done()]
        refused = [call for call in calls if call.done()]
        busy.go_on()
        assert [code(call) for call in [busy.call, *waiting]] == [OK] * 4
        assert [code(call) for call in refused] == [EXHAUSTED] * 5
        assert all("3 calls waiting, its queue_limit" in call.exception().details() for call in refused)
        assert code(busy.send()) == OK, "the model goes on afterwards"


def test_max_calls_counts_all_models(models):
    with serving(models, max_calls=3) as agent:
        busy, other = Busy(agent), Busy(agent, "part")
        third = busy.queue()
        refused = other.send()
        assert code(refused) == EXHAUSTED
        assert "3 detections in hand, its max_calls" in refused.exception().details()
        busy.go_on()
        other.go_on()
        for call in (busy.call, other.call, third):
            assert code(call) == OK


def test_first_come_first_served(folder):
    """Each call takes some 200 ms, so that the log lines of two answers cannot change places."""
    packages.write(folder / "models" / "board", packages.manifest(), packages.slow(100_000))
    with serving(folder / "models", queue_limit=20) as agent:
        busy = Busy(agent)
        calls = [busy.queue() for _ in range(6)]
        busy.go_on()
        assert [code(call) for call in calls] == [OK] * 6
        done = [line for line in agent.log().splitlines() if "DetectAnomalies" in line and line.endswith("OK")]
        ids = [int(line.split("request ")[1].split()[0], 16) for line in done]
        assert ids == sorted(ids), "answered in the order of arrival"


def test_expired_calls_are_dropped_and_not_computed(models):
    with serving(models) as agent:
        busy = Busy(agent)
        calls = [busy.send(timeout=2.0) for _ in range(5)]
        for call in calls:
            # The client's own clock, or the agent's answer, whichever comes first at that instant.
            assert code(call) in {grpc.StatusCode.DEADLINE_EXCEEDED.value[0], EXHAUSTED}
        until(lambda: refusals(agent) == 5, "the agent has let go of them, while the worker still stands")
        assert agent.log().count("deadline passed, or its caller went away") == 5
        busy.go_on()
        assert code(busy.call) == OK


def test_cancelled_calls_free_their_place(models):
    with serving(models, queue_limit=1) as agent:
        busy = Busy(agent)
        first = busy.queue()
        assert code(busy.send()) == EXHAUSTED, "the queue is full"
        first.cancel()
        until(lambda: "caller went away" in agent.log(), "the place is free again")
        second = busy.queue()
        busy.go_on()
        assert (code(busy.call), code(second)) == (OK, OK)


def test_control_calls_do_not_wait_for_detections(models):
    with serving(models, max_calls=4, queue_limit=100) as agent:
        busy = Busy(agent)
        flood = [busy.send() for _ in range(60)]
        until(lambda: refusals(agent) >= 57, "everything beyond max_calls is refused")
        stub = agent.stub()
        for _ in range(50):
            # No deadline is needed to see them hang: the suite's own would end it.
            assert outcome(stub.ListModels, pb2.ListModelsRequest(), timeout=10)[0] == OK
            assert outcome(stub.DescribeModel, pb2.DescribeModelRequest(model_component="board"), timeout=10)[0] == OK
        agent.run_model("part")
        assert busy.call.done() is False
        busy.go_on()
        assert sorted(code(call) for call in flood) == [OK] * 3 + [EXHAUSTED] * 57


@pytest.mark.parametrize(("restart", "others"), [("never", INTERNAL), ("on-failure", OK)])
def test_a_hanging_model_is_ended_and_its_call_fails(models, restart, others):
    with serving(models, call_timeout=3.0, restart=restart) as agent:
        busy = Busy(agent)
        waiting = [busy.queue() for _ in range(3)]
        assert code(busy.call) == INTERNAL
        assert "did not answer within 3 s (call_timeout)" in busy.call.exception().details()
        assert [code(call) for call in waiting] == [others] * 3
        assert agent.state("board") == ("FAILED" if restart == "never" else "RUNNING")
        assert busy.worker not in agent.workers()


def test_a_load_that_hangs_is_ended(folder):
    packages.write(folder / "models" / "slow", packages.manifest(), packages.slow(10**12))
    with serving(folder / "models", load_timeout=1.0) as agent:
        agent.stub().StartModel(pb2.StartModelRequest(model_component="slow"), timeout=PLENTY)
        until(lambda: agent.state("slow") == "FAILED", "it was ended")
        assert "did not load within 1 s (load_timeout)" in agent.describe("slow").status_message
        assert agent.workers() == []


def test_stop_answers_what_waits_and_refuses_what_comes(models):
    with serving(models, drain_timeout=60) as agent:
        busy = Busy(agent)
        waiting = [busy.queue() for _ in range(3)]
        stopped: list[int] = []
        stopping = threading.Thread(
            target=lambda: stopped.append(
                outcome(agent.stub().StopModel, pb2.StopModelRequest(model_component="board"))[0]
            )
        )
        stopping.start()
        until(lambda: agent.state("board") == "STOPPING", "the model stops")
        late = busy.send()
        assert code(late) == PRECONDITION
        assert "STOPPING" in late.exception().details()
        assert stopped == []
        busy.go_on()
        assert [code(call) for call in (busy.call, *waiting)] == [OK] * 4
        stopping.join(PLENTY)
        assert stopped == [OK]


def test_stop_does_not_wait_for_ever(models):
    with serving(models, drain_timeout=0.2) as agent:
        busy = Busy(agent)
        waiting = busy.queue()
        assert outcome(agent.stub().StopModel, pb2.StopModelRequest(model_component="board"))[0] == OK
        assert agent.state("board") == "STOPPED"
        assert agent.workers() == []
        assert code(busy.call) == INTERNAL
        assert code(waiting) == PRECONDITION
        agent.run_model("board")


def test_memory_is_decided_before_start_model_answers(models):
    huge = {"board": {"memory": "1000GiB"}}
    with serving(models, model_settings=huge) as agent:
        stub = agent.stub()
        answered, details, _ = outcome(stub.StartModel, pb2.StartModelRequest(model_component="board"))
        assert answered == EXHAUSTED
        assert "needs about 1024000 MiB" in details
        assert agent.state("board") == "STOPPED"
        agent.run_model("part")


def test_parallel_models_run_in_parallel(models):
    """One model's calls wait for nothing but that model."""
    with serving(models) as agent:
        busy = Busy(agent)
        agent.run_model("part")
        stub = agent.stub()
        for _ in range(20):
            assert outcome(stub.DetectAnomalies, request("part", 64, 64, bytes(SIZE)))[0] == OK
        assert not busy.call.done()
        busy.go_on()
        assert code(busy.call) == OK


def test_answers_that_nobody_reads_are_bounded(models):
    """A client lets the agent write no answer's bytes: its window stays at 0."""
    most, sent = 2 * (4 + CONTROL_THREADS), 100
    with serving(models, max_calls=4) as agent, socket.socket(socket.AF_UNIX) as connection:
        agent.run_model("board")
        asked = request("board", 64, 64, bytes(SIZE)).SerializeToString()
        to = frames.headers(b"/AWS.LookoutVision.EdgeAgent/DetectAnomalies")
        connection.connect(str(agent.socket))
        connection.sendall(frames.PREFACE + frames.frame(frames.SETTINGS, 0, 0, struct.pack(">HI", 4, 0)))
        for number in range(sent):
            stream = 2 * number + 1
            connection.sendall(
                frames.frame(frames.HEADERS, frames.END_HEADERS, stream, to)
                + frames.frame(frames.DATA, frames.END_STREAM, stream, frames.message(asked))
            )
            until(lambda: agent.log().count(" DetectAnomalies 'board' ") == number + 1, "it is judged or refused")
        lines = [line for line in agent.log().split("\n") if " DetectAnomalies 'board' " in line]
        assert all(line.endswith(" ms OK") for line in lines[:most])
        assert all(f"More than {most} calls are not done" in line for line in lines[most + 1 :])
        assert refusals(agent) >= sent - most - 1
        assert agent.state("board") == "RUNNING", "other calls go on"
        connection.close()
        until(
            lambda: code(agent.stub().DetectAnomalies.future(request("board", 64, 64, bytes(SIZE)))) == OK,
            "all is well",
        )
