"""Every state x RPC x name over a real socket: the documented code and no other.

A state is held for as long as the test wants by stopping processes: a stopped forkserver keeps a model STARTING, a
stopped worker keeps it STOPPING.
"""

import os
import signal
import threading
from collections import Counter

import grpc
import pytest

from edge_agent._proto import edge_agent_pb2 as pb2
from support import packages
from support.agent import PLENTY, serving
from support.waiting import until

OK, INVALID, NOT_FOUND, PRECONDITION = 0, 3, 5, 9
STATES = ("STOPPED", "STARTING", "RUNNING", "FAILED", "STOPPING")
NAMES = {"unknown": "no-such-model", "empty": "", "10 kB": "x" * 10_000, "strange": "a b/../\n\x1b[31m"}
EXPECTED_FOR_NAME = {"unknown": NOT_FOUND, "empty": INVALID, "10 kB": INVALID, "strange": INVALID}
ALLOWED = {
    "DetectAnomalies": {"RUNNING"},
    "StartModel": {"STOPPED", "FAILED"},
    "StopModel": {"RUNNING"},
    "DescribeModel": set(STATES),
    "ListModels": set(STATES),
}
SIZE = (64, 64)
ASKED: Counter = Counter()


def ask(stub, rpc: str, name: str, image: bytes = bytes(3 * 64 * 64)) -> tuple[int, str]:
    """Make one call; return its code and details."""
    requests = {
        "DetectAnomalies": lambda: pb2.DetectAnomaliesRequest(
            model_component=name, bitmap=pb2.Bitmap(width=64, height=64, byte_data=image)
        ),
        "StartModel": lambda: pb2.StartModelRequest(model_component=name),
        "StopModel": lambda: pb2.StopModelRequest(model_component=name),
        "DescribeModel": lambda: pb2.DescribeModelRequest(model_component=name),
        "ListModels": lambda: pb2.ListModelsRequest(),
    }
    try:
        getattr(stub, rpc)(requests[rpc](), timeout=PLENTY)
    except grpc.RpcError as error:
        answer = error.code().value[0], error.details()
    else:
        answer = OK, ""
    return answer


@pytest.fixture(scope="module")
def agent(module_folder):
    packages.segmenter(module_folder / "models" / "board", SIZE)
    with serving(module_folder / "models", drain_timeout=60, restore=False, restart="never") as running:
        yield running


def hold(agent, state: str, model: str = "board"):
    """Bring the model into a state and keep it there; return what lets it go again."""
    if agent.state(model) == "RUNNING" and state != "RUNNING":
        agent.stub().StopModel(pb2.StopModelRequest(model_component=model), timeout=PLENTY)
    if state == "STOPPED":
        if agent.state(model) == "FAILED":
            agent.run_model(model)
            return hold(agent, state, model)
        return lambda: None
    if state == "STARTING":
        forkserver = agent.forkserver()
        os.kill(forkserver, signal.SIGSTOP)
        agent.stub().StartModel(pb2.StartModelRequest(model_component=model), timeout=PLENTY)

        def let_start():
            os.kill(forkserver, signal.SIGCONT)
            until(lambda: agent.state(model) == "RUNNING", "the model runs")

        return let_start
    if agent.state(model) != "RUNNING":
        agent.run_model(model)
    if state == "RUNNING":
        return lambda: None
    worker = agent.workers()[0]
    if state == "FAILED":
        os.kill(worker, signal.SIGKILL)
        until(lambda: agent.state(model) == "FAILED", "the death is seen")
        return lambda: None
    os.kill(worker, signal.SIGSTOP)  # STOPPING: busy with a call that goes on
    answered = []
    image = os.urandom(3 * 64 * 64)
    detecting = threading.Thread(target=lambda: answered.append(ask(agent.stub(), "DetectAnomalies", model, image)[0]))
    detecting.start()
    until(lambda: agent.inbox_holds(image), "the call is in the worker's inbox")
    stopping = threading.Thread(target=lambda: answered.append(ask(agent.stub(), "StopModel", model)[0]))
    stopping.start()
    until(lambda: agent.state(model) == "STOPPING", "the model stops")

    def let_stop():
        os.kill(worker, signal.SIGCONT)
        detecting.join(PLENTY)
        stopping.join(PLENTY)
        assert answered == [OK, OK], "the accepted call was answered before the model was stopped"
        assert agent.state(model) == "STOPPED"

    return let_stop


@pytest.mark.parametrize("state", STATES)
def test_known_name(agent, state):
    for rpc, allowed in ALLOWED.items():
        release = hold(agent, state)
        assert agent.state("board") == state
        code, details = ask(agent.stub(), rpc, "board")
        assert code == (OK if state in allowed else PRECONDITION), (rpc, details)
        if code == PRECONDITION:
            needed = {"DetectAnomalies": "RUNNING", "StartModel": "STOPPED or FAILED", "StopModel": "RUNNING"}[rpc]
            assert details == f"The model is {state}; {rpc} needs {needed}."
            assert agent.state("board") == state
        ASKED[state, rpc] += 1
        release()
        until(lambda: agent.state("board") not in {"STARTING", "STOPPING"}, "it has settled")


@pytest.mark.parametrize("state", STATES)
def test_other_names(agent, state):
    release = hold(agent, state)
    for kind, name in NAMES.items():
        for rpc in ALLOWED:
            if rpc == "ListModels":
                continue
            code, details = ask(agent.stub(), rpc, name)
            assert code == EXPECTED_FOR_NAME[kind], (rpc, kind, details)
            assert len(details) < 400
            assert details.isascii()
            assert details.isprintable()
            ASKED[state, rpc, kind] += 1
    assert agent.state("board") == state
    release()
    until(lambda: agent.state("board") not in {"STARTING", "STOPPING"}, "it has settled")


def test_every_pair_was_asked():
    assert len(ASKED) == 5 * 5 + 5 * 4 * 4
    assert set(ASKED.values()) == {1}


def test_starting_is_visible_before_start_model_answers(agent):
    hold(agent, "STOPPED")
    stub = agent.stub()
    for _ in range(20):
        status = stub.StartModel(pb2.StartModelRequest(model_component="board"), timeout=PLENTY).status
        description = stub.DescribeModel(
            pb2.DescribeModelRequest(model_component="board"), timeout=PLENTY
        ).model_description
        assert status == pb2.STARTING
        assert description.status in {pb2.STARTING, pb2.RUNNING}
        until(lambda: agent.state("board") == "RUNNING", "the model runs")
        stub.StopModel(pb2.StopModelRequest(model_component="board"), timeout=PLENTY)


def test_stop_model_answers_when_everything_is_released(agent):
    hold(agent, "RUNNING")
    workers = agent.workers()
    assert len(workers) == 1
    assert ask(agent.stub(), "StopModel", "board") == (OK, "")
    assert agent.workers() == []


def test_list_models_asks_for_nothing_and_so_refuses_nothing(agent):
    channel = grpc.insecure_channel(f"unix://{agent.socket}")
    answer = channel.unary_unary("/AWS.LookoutVision.EdgeAgent/ListModels")(b"\xff\xff", timeout=PLENTY)
    assert pb2.ListModelsResponse.FromString(answer).models[0].model_component == "board"
    channel.close()


def test_unknown_bytes_are_an_invalid_argument(agent):
    channel = grpc.insecure_channel(f"unix://{agent.socket}")
    call = channel.unary_unary("/AWS.LookoutVision.EdgeAgent/DetectAnomalies")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"\xff\xff\xff\xff", timeout=PLENTY)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "DetectAnomaliesRequest" in caught.value.details()
    channel.close()
