"""Health as a stock health client sees it, and what systemd is told, of a real agent with real models."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from edge_agent import health
from edge_agent._proto import edge_agent_pb2 as pb2
from support import packages
from support.agent import PLENTY, Agent, serving
from support.calls import EXHAUSTED, INVALID, NOT_FOUND, OK, outcome, request
from support.greengrass_notify import NotifySocket
from support.processes import hold
from support.sabotage import HANGS, TELLS_BY_A_TIMER, sabotaged
from support.waiting import until

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
UNAVAILABLE, UNIMPLEMENTED = 14, 12
PIXELS = bytes(3 * 64 * 64)
# Seconds after which systemd would start the agent again.
LIMIT = 1.0


def asked(service: str = "") -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=service)


@pytest.fixture
def agent(folder) -> Iterator[Agent]:
    packages.segmenter(folder / "models" / "board")
    with serving(folder / "models", max_calls=1) as one:
        yield one


@pytest.fixture
def channel(agent) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"unix://{agent.socket}", (("grpc.use_local_subchannel_pool", 1),)) as one:
        yield one


@pytest.fixture
def stub(channel) -> health_pb2_grpc.HealthStub:
    return health_pb2_grpc.HealthStub(channel)


def check(stub, service: str = "") -> tuple[int, int | None]:
    """Return the code and the status."""
    code, _, response = outcome(stub.Check, asked(service))
    return code, response and response.status


def test_a_model_is_followed_through_its_life(agent, stub, folder):
    agent_stream, board, other = (stub.Watch(asked(name), timeout=PLENTY) for name in ("", "board", "other"))
    assert [next(one).status for one in (agent_stream, board, other)] == [SERVING, NOT_SERVING, UNKNOWN]
    assert check(stub) == (OK, SERVING)
    assert check(stub, "board") == (OK, NOT_SERVING)
    assert check(stub, "other") == (NOT_FOUND, None)
    agent.run_model("board")
    assert check(stub, "board") == (OK, SERVING)
    assert next(board).status == SERVING
    packages.segmenter(folder / "models" / "other")
    assert next(other).status == NOT_SERVING
    # A process that dies is replaced, while calls wait: that is no change.
    os.kill(agent.workers()[0], signal.SIGKILL)
    until(lambda: agent.counted("board", "died") == 1, "the death is seen")
    assert outcome(agent.stub().DetectAnomalies, request("board", 64, 64, PIXELS))[0] == OK
    agent.stub().StopModel(pb2.StopModelRequest(model_component="board"), timeout=PLENTY)
    assert next(board).status == NOT_SERVING
    assert check(stub, "board") == (OK, NOT_SERVING)
    assert check(stub) == (OK, SERVING)


def test_what_nobody_deployed_and_what_is_no_request_or_no_method(channel, stub):
    for name in ("x" * 10_000, "a b/../\n", "AWS.LookoutVision.EdgeAgent", "bördé"):
        assert check(stub, name) == (NOT_FOUND, None)
        assert next(stub.Watch(asked(name), timeout=PLENTY)).status == UNKNOWN
    raw = channel.unary_unary("/grpc.health.v1.Health/Check")
    assert outcome(raw, b"\xff\xff")[:2] == (INVALID, health.NO_REQUEST)
    with pytest.raises(grpc.RpcError) as refused:
        next(channel.unary_stream("/grpc.health.v1.Health/Watch")(b"\xff\xff", timeout=PLENTY))
    assert refused.value.code().value[0] == INVALID
    for method in (
        "/grpc.health.v1.Health/Nothing",
        "/AWS.LookoutVision.EdgeAgent/Check",
        "/grpc.health.v2.Health/Check",
    ):
        assert outcome(channel.unary_unary(method), b"")[0] == UNIMPLEMENTED


def test_streams_take_nothing_from_calls_and_are_bounded(agent, channel, stub):
    streams = [stub.Watch(asked("board")) for _ in range(health.MOST_STREAMS)]
    assert {next(one).status for one in streams} == {NOT_SERVING}
    for _ in range(20):
        with pytest.raises(grpc.RpcError) as refused:
            next(stub.Watch(asked(), timeout=PLENTY))
        assert (refused.value.code().value[0], refused.value.details()) == (EXHAUSTED, health.TOO_MANY)
    agent.run_model("board")
    assert {next(one).status for one in streams} == {SERVING}
    # All streams are open, and a detection waits, as many as there may be.
    (worker,) = agent.workers()
    os.kill(worker, signal.SIGSTOP)
    detection = agent.stub().DetectAnomalies.future(request("board", 64, 64, PIXELS), timeout=PLENTY)
    assert check(stub) == (OK, SERVING)
    assert agent.describe("board").status == pb2.RUNNING
    os.kill(worker, signal.SIGCONT)
    assert detection.result().detect_anomaly_result.anomaly_threshold > 0


def test_streams_are_told_of_the_end_and_do_not_hold_it_up(agent, stub):
    streams = [stub.Watch(asked(name), timeout=PLENTY) for name in ("", "board")]
    assert [next(one).status for one in streams] == [SERVING, NOT_SERVING]
    began = time.monotonic()
    assert agent.stop() == 0
    assert time.monotonic() - began < 3
    assert next(streams[0]).status == NOT_SERVING
    for one in streams:
        with pytest.raises(grpc.RpcError) as ended:
            next(one)
        assert ended.value.code().value[0] == UNAVAILABLE
    assert "Traceback" not in agent.log()


class TestWatchdog:
    """What systemd is told by an agent that it started with `WatchdogSec=`."""

    @pytest.fixture
    def told(self) -> list[str]:
        return []

    @pytest.fixture
    def systemd(self, folder, told) -> Iterator[NotifySocket]:
        made = NotifySocket(folder / "notify", told.append)
        yield made
        made.close()

    def start(self, folder, **variables: str) -> Agent:
        agent = Agent(folder / "models", folder=folder)
        variables = {"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": str(int(LIMIT * 1e6)), **variables}
        return agent.start(**variables)

    def test_it_is_told_of_life_but_not_while_the_front_hangs(self, folder, systemd, told):
        agent = self.start(folder)
        try:
            until(lambda: told.count("WATCHDOG=1") >= 3, "it is told again and again")
            assert told[0] == "READY=1"
            assert set(told[1:]) == {"WATCHDOG=1"}
            hold(agent.pid)
            systemd.flush()
            told.clear()
            time.sleep(1.5 * LIMIT)
            assert told == []
            os.kill(agent.pid, signal.SIGCONT)
            until(lambda: told, "it is told again")
            assert agent.stop() == 0
            systemd.flush()
        finally:
            agent.close()
        assert told[-1] == "STOPPING=1"
        assert set(told[:-1]) == {"WATCHDOG=1"}

    @pytest.mark.parametrize(("sabotage", "noticed"), [("", True), (TELLS_BY_A_TIMER, False)], ids=["ours", "a timer"])
    def test_it_is_not_told_of_life_while_calls_are_not_answered(self, folder, systemd, told, sabotage, noticed):
        """The process runs, and with it the thread that tells: only calls hang. One that tells by a timer is noticed."""
        hangs = folder / "hangs"
        agent = self.start(folder, **sabotaged(folder, HANGS.format(flag=str(hangs)) + sabotage))
        try:
            until(lambda: told.count("WATCHDOG=1") >= 2, "it is told of life")
            self.hang(hangs, agent)
            if noticed:
                until(lambda: "did not answer on its own socket" in agent.log(), "what was asked before is answered")
            systemd.flush()
            told.clear()
            time.sleep(1.5 * LIMIT)
            assert (told == []) == noticed
            assert Path(f"/proc/{agent.pid}/stat").read_text().rpartition(") ")[2][0] not in "TZ", "it runs"
            assert ("did not answer on its own socket" in agent.log()) == noticed
            hangs.unlink()
            told.clear()
            until(lambda: told, "it is told again")
            assert agent.stop() == 0
        finally:
            agent.close()

    def hang(self, flag: Path, agent: Agent) -> None:
        beside = flag.with_suffix(".new")
        beside.write_text(str(agent.pid))
        beside.chmod(0o644)
        beside.replace(flag)
        with pytest.raises(grpc.RpcError) as unanswered:
            agent.stub().ListModels(pb2.ListModelsRequest(), timeout=0.3)
        assert unanswered.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED

    def test_a_watchdog_of_another_process_is_not_ours(self, folder, systemd, told):
        agent = self.start(folder, WATCHDOG_PID="1")
        try:
            time.sleep(1.5 * LIMIT)
            assert agent.stop() == 0
            systemd.flush()
        finally:
            agent.close()
        assert told == ["READY=1", "STOPPING=1"]
