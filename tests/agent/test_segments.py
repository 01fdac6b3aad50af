"""The client's segments after calls that end in every way: none is used again that the agent may still read or write."""

import _thread
import os
import threading
from concurrent import futures
from pathlib import Path

import grpc
import numpy as np
import pytest

from edge_agent import segments
from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent._proto.edge_agent_pb2_grpc import METHODS, SERVICE
from edge_agent.client import CallFailed, CallTimedOut, EdgeAgentClient
from support.calls import picture
from support.shm import of_clients
from support.waiting import PATIENCE

pytestmark = pytest.mark.usefixtures("client_segments")

Code = grpc.StatusCode
# What no answer but the agent's own can be, or none after which something is still written.
ANSWERS = [Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.FAILED_PRECONDITION, Code.RESOURCE_EXHAUSTED]
OTHERS = [code for code in Code if code not in (Code.OK, *ANSWERS)]
SIZE = 64 * 64 * 3
IN_TIME, LATE = 238, 17


class FakeAgent:
    """Ends calls as it is told to, and keeps their segments open as a worker does that goes on with its work."""

    def __init__(self, socket: Path) -> None:
        self.ends_with: Code | None = None
        self.interrupts = self.hangs = False
        self.over = threading.Event()
        # The names of the image and the mask of each call, and the files.
        self.names: list[tuple[str, str]] = []
        self._files: list[tuple[int, int]] = []
        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        request_class, _ = METHODS["DetectAnomalies"]
        handler = grpc.unary_unary_rpc_method_handler(
            self._detect, request_class.FromString, pb2.DetectAnomaliesResponse.SerializeToString
        )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {"DetectAnomalies": handler}),)
        )
        self._server.add_insecure_port(f"unix://{socket}")
        self._server.start()

    def image(self, call: int) -> bytes:
        """What is in the image's segment of a call now."""
        return os.pread(self._files[call][0], SIZE, 0)

    def write_mask(self, call: int, value: int) -> None:
        os.pwrite(self._files[call][1], bytes([value]) * SIZE, 0)

    def close(self) -> None:
        self.over.set()
        self._server.stop(None).wait(PATIENCE)
        for fd in (one for files in self._files for one in files):
            os.close(fd)

    def _detect(
        self, request: pb2.DetectAnomaliesRequest, context: grpc.ServicerContext
    ) -> pb2.DetectAnomaliesResponse:
        image, mask = request.bitmap.shared_memory_handle, request.anomaly_mask_params.shared_memory_handle
        if self.hangs:
            self.over.wait(PATIENCE)
        self.names.append((image.name, mask.name))
        self._files.append(tuple(os.open(f"/dev/shm{one.name}", os.O_RDWR) for one in (image, mask)))
        if self.interrupts:
            _thread.interrupt_main()
            self.over.wait(PATIENCE)
        if self.ends_with:
            context.abort(self.ends_with, "told to")
        self.write_mask(-1, IN_TIME)
        answer = pb2.DetectAnomaliesResponse()
        answer.detect_anomaly_result.anomalies.add(name="background")
        answer.detect_anomaly_result.anomaly_mask.CopyFrom(pb2.Bitmap(width=64, height=64, shared_memory_handle=mask))
        return answer


@pytest.fixture
def agent(folder):
    made = FakeAgent(folder / "agent.sock")
    yield made
    made.close()


@pytest.fixture
def client(agent, folder):
    with EdgeAgentClient(str(folder / "agent.sock")) as made:
        yield made


def judge_after(client: EdgeAgentClient, agent: FakeAgent) -> None:
    """Make a call after one that ended without the agent, and let that one go on; neither has what is the other's."""
    assert of_clients() == set()
    agent.ends_with, agent.interrupts = None, False
    result = client.detect("board", picture(64, 64, 2))
    agent.write_mask(0, LATE)
    assert (result.mask == IN_TIME).all()
    assert agent.image(0) == picture(64, 64, 1).tobytes()
    assert not set(agent.names[0]) & set(agent.names[1])


@pytest.mark.parametrize("code", OTHERS, ids=lambda code: code.name)
def test_a_call_that_may_go_on_without_its_caller_touches_no_other(client, agent, code):
    agent.ends_with = code
    with pytest.raises(CallFailed) as caught:
        client.detect("board", picture(64, 64, 1))
    assert caught.value.code is code
    judge_after(client, agent)


def test_a_call_that_is_interrupted_touches_no_other(client, agent):
    agent.interrupts = True
    with pytest.raises(KeyboardInterrupt):
        client.detect("board", picture(64, 64, 1))
    judge_after(client, agent)


def test_a_call_that_times_out_keeps_no_segment(client, agent):
    """Not even as long as its error is kept, as programs do that make many calls at once."""
    agent.hangs = True
    with pytest.raises(CallTimedOut) as caught:
        client.detect("board", picture(64, 64), timeout=0.2)
    assert of_clients() == set()
    assert segments.PREFIX not in Path("/proc/self/maps").read_text()
    assert caught.value.code is Code.DEADLINE_EXCEEDED


@pytest.mark.parametrize("code", ANSWERS, ids=lambda code: code.name)
def test_segments_serve_again_after_a_refusal(client, agent, code):
    """Also while its error is kept: who is refused again and again needs no room for more than one call."""
    agent.ends_with = code
    kept = []
    for _ in range(5):
        with pytest.raises(CallFailed) as caught:
            client.detect("board", picture(64, 64))
        kept.append(caught.value)
    agent.ends_with = None
    assert (client.detect("board", picture(64, 64)).mask == IN_TIME).all()
    assert {one.code for one in kept} == {code}
    assert len({name for names in agent.names for name in names}) == len(of_clients()) == 2


def test_no_room_for_the_mask_costs_no_segment(client, agent, monkeypatch):
    real, asked = os.posix_fallocate, []

    def full_for_the_second(fd: int, offset: int, size: int) -> None:
        asked.append(size)
        if len(asked) == 2:
            raise OSError(28, "No space left on device")
        real(fd, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", full_for_the_second)
    with pytest.raises(segments.SharedMemoryFull):
        client.detect("board", picture(64, 64))
    (image,) = of_clients()
    assert (client.detect("board", picture(64, 64)).mask == IN_TIME).all()
    assert agent.names[0][0] == f"/{image}"


def test_a_segment_that_is_dropped_after_the_pool_was_closed(tmp_path):
    """Its descriptor's number may be another file's by then."""
    pool = segments.SegmentPool(tmp_path)
    segment = pool.lend(100)
    kept = segment.array()
    pool.close()
    fd = os.open(os.devnull, os.O_RDONLY)
    pool.drop(segment)
    os.close(fd)
    assert (kept == np.zeros(100, np.uint8)).all()
