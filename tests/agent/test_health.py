"""Health: what each name's status is, the stock package's words for it, and streams that hold no thread that calls need."""

import contextlib
import tracemalloc
from concurrent import futures
from types import SimpleNamespace

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from edge_agent import health
from edge_agent.errors import InvalidName, ModelNotFound
from edge_agent.health import MOST_STREAMS, Health, Status
from edge_agent.lifecycle import State
from edge_agent.trimming import Trimmer
from support.waiting import until

SERVING, NOT_SERVING, SERVICE_UNKNOWN = Status.SERVING, Status.NOT_SERVING, Status.SERVICE_UNKNOWN
SOON = 10.0
# A message that gRPC takes by default.
LARGE = 3 << 20


class Models:
    """Models by name, of which only the state is asked for."""

    def __init__(self, **states: State) -> None:
        self.states = states

    def get(self, name: str) -> SimpleNamespace:
        if " " in name:
            raise InvalidName(name)
        if name not in self.states:
            raise ModelNotFound(name)
        return SimpleNamespace(state=self.states[name])


@pytest.fixture
def models() -> Models:
    return Models(**{state.name: state for state in State})


@contextlib.contextmanager
def served(one: Health, folder, handlers=None):
    """Yield the stock stub of a server that has a single thread for calls."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((handlers or health.handlers(one, Trimmer()),))
    server.add_insecure_port(f"unix:{folder}/s")
    server.start()
    try:
        with grpc.insecure_channel(f"unix:{folder}/s") as channel:
            yield health_pb2_grpc.HealthStub(channel)
    finally:
        server.stop(None).wait()


def request(service: str = "") -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=service)


def refusal(call) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code()


@pytest.mark.parametrize("state", State)
def test_a_model_serves_when_it_is_running(models, state):
    assert Health(models).status(state.name) is (SERVING if state is State.RUNNING else NOT_SERVING)


def test_the_agent_serves_whatever_its_models_do():
    assert Health(Models()).status("") is SERVING
    assert Health(Models(board=State.FAILED)).status("") is SERVING


@pytest.mark.parametrize("name", ["other", "no name", "grpc.health.v1.Health"])
def test_other_names_are_unknown(models, name):
    assert Health(models).status(name) is SERVICE_UNKNOWN


def test_nothing_serves_when_the_agent_ends(models):
    one = Health(models)
    one.end()
    assert one.status("") is NOT_SERVING
    assert one.status("RUNNING") is NOT_SERVING
    assert one.status("other") is SERVICE_UNKNOWN


def test_the_messages_are_those_of_the_stock_package():
    assert {status.name: status.value for status in Status} == dict(
        health_pb2.HealthCheckResponse.ServingStatus.items()
    )
    assert health_pb2.DESCRIPTOR.services_by_name["Health"].full_name == health.SERVICE
    for status in Status:
        written = health.Response(status=status).SerializeToString()
        assert health_pb2.HealthCheckResponse.FromString(written).status == status
    assert health.Request.FromString(request("bördé").SerializeToString()).service == "bördé"


def test_check(models, folder):
    with served(Health(models), folder) as stub:
        assert stub.Check(request(), timeout=SOON).status == SERVING
        assert stub.Check(request("RUNNING"), timeout=SOON).status == SERVING
        assert stub.Check(request("STARTING"), timeout=SOON).status == NOT_SERVING
        assert refusal(lambda: stub.Check(request("other"), timeout=SOON)) is grpc.StatusCode.NOT_FOUND


def test_a_stream_tells_of_each_change(models, folder):
    with served(one := Health(models), folder) as stub:
        stream = stub.Watch(request("board"), timeout=SOON)
        told = [next(stream).status]
        for state in (State.STOPPED, State.RUNNING, State.STOPPING):
            models.states["board"] = state
            told.append(next(stream).status)
        del models.states["board"]
        told.append(next(stream).status)
        assert told == [SERVICE_UNKNOWN, NOT_SERVING, SERVING, NOT_SERVING, SERVICE_UNKNOWN]
        agent = stub.Watch(request(), timeout=SOON)
        assert next(agent).status == SERVING
        one.end()
        assert next(agent).status == NOT_SERVING
        assert refusal(lambda: next(agent)) is grpc.StatusCode.UNAVAILABLE
        assert refusal(lambda: next(stream)) is grpc.StatusCode.UNAVAILABLE


def test_a_stream_is_silent_while_nothing_changes(models, folder):
    with served(Health(models), folder) as stub:
        stream = stub.Watch(request("RUNNING"), timeout=5 * health.PAUSE)
        assert next(stream).status == SERVING
        assert refusal(lambda: next(stream)) is grpc.StatusCode.DEADLINE_EXCEEDED


def test_streams_are_few_and_hold_no_thread_of_calls(models, folder):
    with served(Health(models), folder) as stub:
        streams = [stub.Watch(request("RUNNING")) for _ in range(MOST_STREAMS)]
        assert [next(stream).status for stream in streams] == [SERVING] * MOST_STREAMS
        assert stub.Check(request(), timeout=SOON).status == SERVING
        assert refusal(lambda: next(stub.Watch(request(), timeout=SOON))) is grpc.StatusCode.RESOURCE_EXHAUSTED
        streams[0].cancel()

        def admitted() -> bool:
            with contextlib.suppress(grpc.RpcError):
                return next(stub.Watch(request(), timeout=SOON)).status == SERVING
            return False

        until(admitted, "the place of a stream that its caller ended is free")


def test_a_stream_holds_nothing_of_a_large_request(models, folder):
    """Streams are for days; sixteen with the largest message each would be a gigabyte."""
    data = request("x" * LARGE).SerializeToString()  # which the caller's side holds, and all of its streams together
    with served(Health(models), folder), grpc.insecure_channel(f"unix:{folder}/s") as channel:
        watch = channel.unary_stream(f"/{health.SERVICE}/Watch", response_deserializer=health.Response.FromString)
        next(watch(b"", timeout=SOON))  # what is made once is made
        tracemalloc.start()
        try:
            streams = [watch(data) for _ in range(4)]
            assert [next(stream).status for stream in streams] == [SERVICE_UNKNOWN] * 4
            until(lambda: tracemalloc.get_traced_memory()[0] < LARGE // 2, "the requests are let go of")
        finally:
            tracemalloc.stop()
        for stream in streams:
            stream.cancel()


def test_what_large_requests_leave_is_given_back(models, folder):
    sizes: list[int] = []
    trimmer = SimpleNamespace(received=sizes.append)
    with served(one := Health(models), folder, health.handlers(one, trimmer)) as stub:
        name = "x" * LARGE
        assert refusal(lambda: stub.Check(request(name), timeout=SOON)) is grpc.StatusCode.NOT_FOUND
        stream = stub.Watch(request(name), timeout=SOON)
        assert next(stream).status == SERVICE_UNKNOWN
        stream.cancel()
    assert sizes == [len(request(name).SerializeToString())] * 2


def test_what_is_no_request_is_refused(models, folder):
    with served(Health(models), folder), grpc.insecure_channel(f"unix:{folder}/s") as channel:
        check = channel.unary_unary(f"/{health.SERVICE}/Check")
        watch = channel.unary_stream(f"/{health.SERVICE}/Watch")
        for data in (b"\n\x02\xff\xfe", b"\n\x7f", b"\xff"):
            assert refusal(lambda data=data: check(data, timeout=SOON)) is grpc.StatusCode.INVALID_ARGUMENT
            assert refusal(lambda data=data: next(watch(data, timeout=SOON))) is grpc.StatusCode.INVALID_ARGUMENT


def test_in_the_pool_of_calls_a_stream_would_hold_their_thread(models, folder, monkeypatch):
    """Negative control: without a pool of their own, the only thread is taken by the first stream."""
    handlers = health.handlers(Health(models), Trimmer())
    watch = handlers.service(SimpleNamespace(method=f"/{health.SERVICE}/Watch"))
    del watch.unary_stream.experimental_thread_pool
    with served(Health(models), folder, handlers) as stub:
        stream = stub.Watch(request(), timeout=SOON)
        assert next(stream).status == SERVING
        assert refusal(lambda: stub.Check(request(), timeout=0.5)) is grpc.StatusCode.DEADLINE_EXCEEDED
        stream.cancel()
