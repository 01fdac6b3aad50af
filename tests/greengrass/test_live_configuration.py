"""A component's configuration changes while its agent runs: told by a nucleus over its IPC, seen in what the agent does."""

import contextlib
import os
import signal
import time

import grpc
import numpy as np
import pytest

from edge_agent._proto import edge_agent_pb2 as pb2
from support import hanging, packages
from support import nucleus as nuclei
from support.agent import PLENTY, Agent
from support.broken import SCORES, Outputs, Parts
from support.broken import SIZE as SHAPE
from support.calls import EXHAUSTED, INTERNAL, OK, PRECONDITION, outcome, request
from support.nucleus import GET_CONFIGURATION, SUBSCRIBE, Configuration
from support.waiting import until

SIZE = 3 * 64 * 64
# Those of the recipe that matter here, as a deployment that changes none of them leaves them.
KEYS = (
    "LogLevel", "QueueLimit", "MaxCalls", "Restart", "CallTimeout", "MemoryReserve", "MemoryFactor", "GpuMemoryReserve",
    "ModelSettings", "Slots",
)  # fmt: skip
FOLLOWED = "configuration is followed"


@pytest.fixture
def models(folder):
    for name in ("board", "part"):
        packages.segmenter(folder / "models" / name)
    return folder / "models"


@pytest.fixture
def nucleus(folder):
    with nuclei.running(folder / "ipc.socket") as one:
        yield one


@pytest.fixture
def configuration(nucleus):
    return Configuration(nucleus, **dict.fromkeys(KEYS, ""))


@pytest.fixture
def start(models, nucleus):
    """A function that starts an agent as the nucleus does, and waits until it follows its configuration."""
    with contextlib.ExitStack() as opened:

        def begin(*, follows: bool = True, **settings: object) -> Agent:
            agent = Agent(models, **settings)
            opened.callback(agent.close)
            agent.start(**nucleus.environment())
            if follows:
                until(lambda: FOLLOWED in agent.log(), "the configuration is followed")
            return agent

        yield begin


def change(agent: Agent, configuration: Configuration, **values: str) -> str:
    """Change the configuration; return the lines of the agent's log about it, once each key has one."""
    before = len(agent.log())
    configuration.change(**values)
    until(lambda: all(f" {key} " in agent.log()[before:] for key in values), "the change has been taken over")
    return agent.log()[before:]


class Busy:
    """A RUNNING model whose worker is stopped in the middle of a call, and calls that come meanwhile."""

    def __init__(self, agent: Agent, model: str = "board") -> None:
        self.agent, self.model = agent, model
        before = set(agent.workers())
        agent.run_model(model)
        [self.worker] = set(agent.workers()) - before
        self.stub = agent.stub()
        self.stop()

    def stop(self) -> None:
        """Begin a call that does not end."""
        os.kill(self.worker, signal.SIGSTOP)
        marked = os.urandom(SIZE)
        self.calls = [self.stub.DetectAnomalies.future(request(self.model, 64, 64, marked))]
        until(lambda: self.agent.inbox_holds(marked), "the call is in the worker")

    def send(self, count: int) -> list[grpc.Future]:
        """Send calls; return those that are refused at once, so many as are not expected to wait."""
        sent = [self.stub.DetectAnomalies.future(request(self.model, 64, 64, os.urandom(SIZE))) for _ in range(count)]
        self.calls += sent
        return sent

    def go_on(self) -> list[int]:
        """Let the worker go on; return how all calls ended."""
        os.kill(self.worker, signal.SIGCONT)
        return [code(call) for call in self.calls]


def code(call: grpc.Future) -> int:
    error = call.exception(PLENTY)
    return 0 if error is None else error.code().value[0]


def refused(sent: list[grpc.Future], count: int) -> list[str]:
    """Wait until exactly so many calls are refused; return what they are told."""
    until(lambda: sum(call.done() for call in sent) >= count, f"{count} calls are refused")
    time.sleep(0.2)  # in which one more would be
    done = [call for call in sent if call.done()]
    assert len(done) == count
    assert {code(call) for call in done} <= {EXHAUSTED}
    return [call.exception().details() for call in done]


def start_model(agent: Agent, name: str) -> tuple[int, str]:
    return outcome(agent.stub().StartModel, pb2.StartModelRequest(model_component=name))[:2]


def test_the_size_of_queues(start, configuration):
    agent = start(queue_limit=2)
    busy = Busy(agent)
    assert all("2 calls waiting, its queue_limit" in told for told in refused(busy.send(4), 2))
    change(agent, configuration, QueueLimit="3")
    assert all("3 calls waiting, its queue_limit" in told for told in refused(busy.send(4), 3))
    change(agent, configuration, QueueLimit="0")
    refused(busy.send(2), 2)
    assert busy.go_on().count(OK) == 4, "who waited before the queue became smaller was not sent away"
    change(agent, configuration, QueueLimit="")
    busy.stop()
    assert all("2 calls waiting, its queue_limit" in told for told in refused(busy.send(3), 1))
    assert busy.go_on().count(OK) == 3


def test_the_queue_of_one_model(start, configuration):
    agent = start(queue_limit=2)
    change(agent, configuration, ModelSettings='{"part": {"queue_limit": 0}}')
    board, part = Busy(agent), Busy(agent, "part")
    refused(board.send(2), 0)
    refused(part.send(2), 2)
    change(agent, configuration, ModelSettings='{"part": {"queue_limit": 1}, "board": {"slots": 4}}')
    refused(part.send(2), 1)
    assert board.go_on() == [OK] * 3
    assert part.go_on().count(OK) == 2


def test_the_level_of_log_lines(start, configuration):
    agent = start(log_level="info")
    agent.run_model("board")
    assert "DEBUG" not in agent.log()
    change(agent, configuration, LogLevel="debug")
    agent.run_model("part")
    assert "DEBUG part: loaded in" in agent.log()
    change(agent, configuration, LogLevel="error")
    before = len(agent.log())
    agent.stub().StopModel(pb2.StopModelRequest(model_component="part"))
    assert agent.log()[before:] == ""


def test_how_models_are_started_again(start, configuration):
    agent = start()
    agent.run_model("board")
    change(agent, configuration, Restart="never")
    os.kill(agent.workers()[0], signal.SIGKILL)
    until(lambda: agent.state("board") == "FAILED", "it is not started again")
    agent.run_model("board")
    change(agent, configuration, Restart="")
    [first] = agent.workers()
    os.kill(first, signal.SIGKILL)
    until(lambda: {*agent.workers()} - {first}, "it is started again")
    assert agent.state("board") == "RUNNING"


def test_how_much_memory_stays_free(start, configuration):
    agent = start()
    change(agent, configuration, MemoryReserve="100TiB")
    status, told = start_model(agent, "board")
    assert status == EXHAUSTED
    assert "memory_reserve" in told
    change(agent, configuration, MemoryReserve="")
    agent.run_model("board")


def test_how_much_memory_a_model_is_reckoned_to_take(start, configuration):
    agent = start(memory_reserve="0")
    change(agent, configuration, ModelSettings='{"board": {"memory": "100TiB"}}')
    assert start_model(agent, "board")[0] == EXHAUSTED
    change(agent, configuration, ModelSettings="")
    agent.run_model("board")


def failing(parts: Parts) -> Outputs:
    """Fail on a black image, which the worker warns of."""
    parts.node("Gather", [parts.constant("two", [0, 0], np.float32), parts.scaled_gate(0, 9, "which")], "number")
    parts.add_nothing("number")
    parts.scores("anomaly_of_all")
    return [SCORES]


def test_the_level_of_a_process_that_is_started_later(start, models, configuration):
    hanging.package(models / "fails", failing)
    agent = start(log_level="info")

    def warns() -> bool:
        """Let the model fail on an image; return whether its process wrote a line."""
        before = len(agent.log())
        assert outcome(agent.stub().DetectAnomalies, request("fails", *SHAPE, hanging.nearly_black()))[0] == INTERNAL
        return "the model failed on an image" in agent.log()[before:]

    agent.run_model("fails")
    change(agent, configuration, LogLevel="error")
    assert warns(), "one that runs already goes on as before"
    agent.stub().StopModel(pb2.StopModelRequest(model_component="fails"))
    agent.run_model("fails")
    assert not warns()
    agent.stub().StopModel(pb2.StopModelRequest(model_component="fails"))
    configuration.change(LogLevel="warning")
    until(lambda: configuration.reads >= 3, "the change was read")
    time.sleep(0.3)  # no line says at this level that it counts
    agent.run_model("fails")
    assert warns()


def test_how_long_a_call_may_take_counts_for_the_next_worker(start, configuration):
    agent = start(call_timeout=60)
    agent.run_model("board")
    change(agent, configuration, CallTimeout="0.5")
    [first] = agent.workers()
    os.kill(first, signal.SIGKILL)
    until(lambda: {*agent.workers()} - {first}, "it is started again")
    until(lambda: "being started" not in agent.describe("board").status_message, "it serves again")
    os.kill(agent.workers()[0], signal.SIGSTOP)
    status, told, _ = outcome(agent.stub().DetectAnomalies, request("board", 64, 64, os.urandom(SIZE)))
    assert status == INTERNAL
    assert "within 0.5 s (call_timeout)" in told


@pytest.mark.parametrize("value", ["many", "-1", '{"a": 1}'])
def test_a_bad_value_is_refused_and_the_old_one_stays(start, configuration, value):
    agent = start()
    change(agent, configuration, QueueLimit="1")
    told = change(agent, configuration, QueueLimit=value)
    [line] = [line for line in told.splitlines() if "QueueLimit" in line]
    assert "WARNING QueueLimit cannot be" in line
    busy = Busy(agent)
    refused(busy.send(2), 1)
    assert busy.go_on().count(OK) == 2


def test_of_a_good_and_a_bad_key_the_good_one_counts(start, configuration):
    agent = start(queue_limit=5)
    told = change(agent, configuration, LogLevel="loud", QueueLimit="1", MaxCalls="2", Slots="none")
    assert "WARNING LogLevel cannot be 'loud', and stays as it was: LogLevel: Input should be 'debug'" in told
    assert "WARNING Slots cannot be 'none'" in told
    assert "INFO QueueLimit is '1' now; it counts from now on." in told
    assert "INFO MaxCalls is '2' now; it takes effect when the component starts again." in told
    busy = Busy(agent)
    refused(busy.send(4), 3)
    assert busy.go_on().count(OK) == 2


def test_a_change_made_since_the_nucleus_started_the_agent(start, configuration):
    configuration.values["QueueLimit"] = "0"
    agent = start(queue_limit=5)
    busy = Busy(agent)
    refused(busy.send(1), 1)
    assert busy.go_on().count(OK) == 1


def test_a_nucleus_that_vanishes_and_comes_back(start, nucleus, configuration):
    """It is a new process behind a new socket of the same path, as after an update of the nucleus."""
    agent = start(queue_limit=5)
    busy = Busy(agent)
    nucleus.stop()
    until(lambda: "cannot be followed" in agent.log(), "the loss was noticed")
    configuration.change(QueueLimit="0")
    refused(busy.send(1), 0)
    nucleus.start()
    until(lambda: "is followed again" in agent.log(), "it is followed again")
    refused(busy.send(1), 1)
    change(agent, configuration, QueueLimit="2")
    refused(busy.send(2), 1)
    assert busy.go_on().count(OK) == 3
    assert agent.log().count("cannot be followed") == 1


@pytest.mark.parametrize("answers", [nuclei.fail, nuclei.unauthorized, nuclei.hang, nuclei.vanish, nuclei.babble])
@pytest.mark.parametrize("operation", [SUBSCRIBE, GET_CONFIGURATION])
def test_a_nucleus_that_does_not_do_it_is_not_in_the_way(start, nucleus, configuration, operation, answers):
    nucleus.operations[operation] = answers
    agent = start(follows=False)
    until(lambda: operation in [call.operation for call in nucleus.calls], "it was asked")
    agent.run_model("board")
    assert outcome(agent.stub().DetectAnomalies, request("board", 64, 64, os.urandom(SIZE)))[0] == OK
    began = time.monotonic()
    assert agent.stop() == 0
    assert time.monotonic() - began < 3
    assert agent.log().count("cannot be followed") <= 1
    assert "Traceback" not in agent.log()


@pytest.mark.parametrize("at_connect", [nuclei.refuse, nuclei.end, nuclei.hang])
def test_a_nucleus_that_lets_nobody_in_is_not_in_the_way(start, nucleus, configuration, at_connect):
    nucleus.at_connect = at_connect
    agent = start(follows=False)
    until(lambda: len(nucleus.tokens) >= 2, "both wanted to connect: who tells, and who follows")
    assert start_model(agent, "board")[0] == OK
    began = time.monotonic()
    assert agent.stop() == 0
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("again", range(3))
def test_an_agent_that_follows_ends_in_order(start, nucleus, configuration, again):
    agent = start()
    began = time.monotonic()
    assert agent.stop() == 0
    assert time.monotonic() - began < 3
    assert agent.log().splitlines()[-1].endswith("INFO Ended.")
    until(lambda: nucleus.open_connections() == 0, "its connections are closed")


def test_without_a_nucleus_nobody_is_asked(models, nucleus, configuration):
    agent = Agent(models)
    try:
        agent.start(SVCUID=nuclei.TOKEN)
        assert start_model(agent, "board")[0] == OK
        assert start_model(agent, "board")[0] == PRECONDITION
        assert nucleus.tokens == []
    finally:
        agent.close()
