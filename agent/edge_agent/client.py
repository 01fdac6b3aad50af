"""A small client of the Edge Agent API for Python programs: images inline or through shared memory.

It needs neither OpenCV nor an inference runtime, and lives beside a program's own generated `edge_agent_pb2`.
"""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
from numpy.typing import NDArray

from edge_agent import address, bitmaps, block
from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent._proto.edge_agent_pb2_grpc import EdgeAgentStub
from edge_agent.errors import InvalidArgument, shown
from edge_agent.images import pixels_of
from edge_agent.segments import Segment, SegmentPool

if TYPE_CHECKING:
    from PIL import Image
    from typing_extensions import Self

OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # An agent that was restarted is found again within a second, not after gRPC's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
POLL = 0.05
# Seconds that a call gets at least where there is a time to give up: else one that is nearly over would say nothing new.
LEAST = 1.0


class CallFailed(Exception):
    """A call that the agent refused or could not answer; `code` is the gRPC status code, the text the agent's own."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code


class ImageRejected(CallFailed):
    """The image, its size or its segment is not what the model takes (INVALID_ARGUMENT); the text says what to do."""


class NameRejected(CallFailed):
    """The name can be no model component's (INVALID_ARGUMENT)."""


class ModelNotFound(CallFailed):
    """No model of that name is deployed (NOT_FOUND)."""


class ModelNotRunning(CallFailed):
    """The model is not RUNNING, which detecting and stopping need (FAILED_PRECONDITION)."""


class ModelNotStartable(CallFailed):
    """The model is neither STOPPED nor FAILED, so it cannot be started (FAILED_PRECONDITION)."""


class AgentBusy(CallFailed):
    """The agent cannot keep up, or has no room for a mask (RESOURCE_EXHAUSTED); send fewer calls at once, or again later."""


class NotEnoughMemory(CallFailed):
    """There is not enough memory to load the model (RESOURCE_EXHAUSTED)."""


class ModelFailed(CallFailed):
    """The model ended FAILED while it was waited for; the text is its `status_message`. The code is UNKNOWN."""


class AgentUnavailable(CallFailed):
    """No agent answers on the socket, or it went away during the call (UNAVAILABLE)."""


class AgentError(CallFailed):
    """The model or the agent failed on the call (INTERNAL)."""


class CallTimedOut(CallFailed):
    """The deadline that the caller gave has passed (DEADLINE_EXCEEDED)."""


# What a code means depends on the call.
ERRORS: dict[grpc.StatusCode, dict[str, type[CallFailed]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: {"DetectAnomalies": ImageRejected, "": NameRejected},
    grpc.StatusCode.NOT_FOUND: {"": ModelNotFound},
    grpc.StatusCode.FAILED_PRECONDITION: {"StartModel": ModelNotStartable, "": ModelNotRunning},
    grpc.StatusCode.RESOURCE_EXHAUSTED: {"StartModel": NotEnoughMemory, "": AgentBusy},
    grpc.StatusCode.UNAVAILABLE: {"": AgentUnavailable},
    grpc.StatusCode.INTERNAL: {"": AgentError},
    grpc.StatusCode.DEADLINE_EXCEEDED: {"": CallTimedOut},
}

# Ends of a call, besides OK, after which nothing touches its segments any more. gRPC itself never makes the first three. It
# makes RESOURCE_EXHAUSTED of a request that does not reach the agent and of an answer that was complete; and of calls which a
# server cuts off to save memory or for too many pings, but the agent's has no such limits. So an agent that is called too
# often costs its clients no new segments. INTERNAL is not one of them: gRPC makes it of much that goes wrong in the middle of
# a call, and the agent's own may be about a worker that it has lost sight of. Nor is UNAVAILABLE, after which a worker may go
# on for a moment without its agent: frames that are sent where no agent is cost new segments, too.
ANSWERS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


@dataclass(frozen=True)
class ModelInfo:
    """A deployed model; `status` is one of STOPPED, STARTING, RUNNING, FAILED, STOPPING."""

    name: str
    arn: str
    status: str
    status_message: str


@dataclass(frozen=True)
class AnomalyType:
    """An anomaly type present in an image: fraction 0..1 of its area, colour "#RRGGBB" in the mask."""

    name: str
    total_percentage_area: float
    hex_color: str


@dataclass(frozen=True)
class Detection:
    """A verdict; `mask` is height x width x 3 (uint8), None when there is none (see `mask_left_out`).

    A mask that came through shared memory is a view of it: keep it as long as you like, and copy it to keep many.
    """

    is_anomalous: bool
    confidence: float
    anomaly_score: float
    anomaly_threshold: float
    anomalies: tuple[AnomalyType, ...]
    mask: NDArray[np.uint8] | None

    @property
    def mask_left_out(self) -> bool:
        """Whether the model made a mask, and the agent left it out of its answer (its setting `inline_mask_limit`)."""
        return self.mask is None and bool(self.anomalies)


class EdgeAgentClient:
    """A connection to the agent, found again by itself when the agent is restarted.

    Usable from several threads, as a context manager or with `close`. Several clients may live in one process. A child
    process made by `fork` needs a client of its own.

        with EdgeAgentClient() as client:
            client.start_and_wait("board")
            print(client.detect("board", "part-1.png").is_anomalous)
    """

    def __init__(self, socket: str = address.DEFAULT) -> None:
        """Connect to the agent at `socket` (`unix:///path`, `unix:path` or a path); raise ValueError for any other."""
        self.socket_path = address.socket_path(socket)
        self._channel = grpc.insecure_channel(address.target(socket), options=OPTIONS)
        self._stub: Any = EdgeAgentStub(self._channel)
        self._segments = SegmentPool(self.socket_path)
        # Models that made no mask when they were given a handle: no room is taken for one again.
        self._maskless: set[str] = set()

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and remove the shared memory; masks that were returned stay valid."""
        self._channel.close()
        self._segments.close()

    def list_models(self, timeout: float | None = None) -> list[ModelInfo]:
        """Return every deployed model; raise CallFailed. `timeout`, here and below, is the call's deadline in seconds."""
        return [_info(one) for one in self._call("ListModels", pb2.ListModelsRequest(), timeout).models]

    def describe_model(self, name: str, timeout: float | None = None) -> ModelInfo:
        """Return one deployed model; raise CallFailed."""
        response = self._call("DescribeModel", pb2.DescribeModelRequest(model_component=_component(name)), timeout)
        return _info(response.model_description)

    def start_model(self, name: str, timeout: float | None = None) -> None:
        """Begin to load a model; raise CallFailed."""
        self._call("StartModel", pb2.StartModelRequest(model_component=_component(name)), timeout)

    def stop_model(self, name: str, timeout: float | None = None) -> None:
        """Unload a model; raise CallFailed. The agent goes on unloading it where the deadline passes."""
        self._call("StopModel", pb2.StopModelRequest(model_component=_component(name)), timeout)

    def start_and_wait(
        self, name: str, timeout: float | None = None, progress: Callable[[ModelInfo], None] = lambda _: None
    ) -> ModelInfo:
        """Start a model unless it runs or is starting already, and wait until it is RUNNING.

        One that is STOPPING is waited for, and then started.

        Args:
            name: the model component.
            timeout: seconds to wait, or None. An agent that does not answer at all gets a second at least.
            progress: called with what DescribeModel says, each time that it says something new.

        Raises:
            ModelFailed: the model ended FAILED, or somebody stopped it; the text has its `status_message`.
            CallFailed: a call failed; a subclass says how.
            TimeoutError: it was not RUNNING in time.

        """
        give_up = math.inf if timeout is None else time.monotonic() + timeout
        started, told = False, None
        try:
            while True:
                if told is None or told.status == "STOPPED":
                    started = self._start(name, _left(give_up))
                info = self.describe_model(name, _left(give_up))
                if info != told:
                    progress(info)
                told = info
                if info.status == "RUNNING":
                    return info
                if info.status == "FAILED" or (info.status == "STOPPED" and started):
                    raise ModelFailed(grpc.StatusCode.UNKNOWN, f"The model is {info.status}: {info.status_message}")
                if time.monotonic() >= give_up:
                    raise TimeoutError(f"The model was not RUNNING within {timeout:g} s: {info.status_message}")
                time.sleep(POLL)
        except CallTimedOut:
            if timeout is None:
                raise
            raise TimeoutError(f"The model was not RUNNING within {timeout:g} s: the agent did not answer.") from None

    def _start(self, name: str, timeout: float | None) -> bool:
        """Start a model; return whether it could be started, which needs one that is STOPPED or FAILED."""
        try:
            self.start_model(name, timeout)
        except ModelNotStartable:
            return False
        return True

    def detect(
        self,
        name: str,
        image: "NDArray[np.uint8] | Image.Image | str | os.PathLike[str]",
        *,
        shm: bool = True,
        timeout: float | None = None,
    ) -> Detection:
        """Judge one image.

        Args:
            name: the model component, RUNNING.
            image: height x width x 3, uint8, RGB; or a Pillow image or the path of a file, read as by
                `edge_agent.images.read_image`.
            shm: send image and mask through shared memory, else inline. Inline works also where client and agent share
                no /dev/shm.
            timeout: the call's deadline in seconds, or None.

        Raises:
            CallFailed: the agent refused the image or could not answer; a subclass says how.
            ValueError: it is no image, or none that 8-bit RGB can be made of (NotAnImage).
            SharedMemoryFull: there is no room for the image in /dev/shm.
            OSError: shared memory cannot be used at all.

        """
        pixels = pixels_of(image)
        height, width = pixels.shape[:2]
        request = pb2.DetectAnomaliesRequest(
            model_component=_component(name), bitmap=pb2.Bitmap(width=width, height=height)
        )
        if not shm:
            _check_inline(pixels)
            request.bitmap.byte_data = pixels.tobytes()
            return _detection(self._call("DetectAnomalies", request, timeout), None, (width, height))
        response, mask = self._detect_shared(request, pixels, timeout)
        # Every answer of a segmentation model has anomalies, be it the background alone.
        if response.detect_anomaly_result.anomalies:
            self._maskless.discard(name)
        else:
            self._maskless.add(name)
        return _detection(response, mask, (width, height))

    def _detect_shared(
        self, request: Any, pixels: NDArray[np.uint8], timeout: float | None
    ) -> tuple[Any, NDArray[np.uint8] | None]:
        """Call with image and mask in segments; return the answer, and the bytes where a mask is that was asked for."""
        segments, size = self._segments, pixels.nbytes
        lent = [frame := segments.lend(size)]
        mask, begun = None, False
        try:
            frame.array()[:size].reshape(pixels.shape)[...] = pixels
            _point_to(frame, size, request.bitmap.shared_memory_handle)
            if request.model_component not in self._maskless:
                lent.append(mask := segments.lend(size))
                _point_to(mask, size, request.anomaly_mask_params.shared_memory_handle)
            begun = True
            response = self._call("DetectAnomalies", request, timeout)
        except BaseException as error:
            over = not begun or (isinstance(error, CallFailed) and error.code in ANSWERS)
            for one in lent:
                # Of a call that goes on without us, the agent may still read the image and write the mask.
                (segments.give_back if over else segments.drop)(one)
            raise
        segments.give_back(frame)
        return response, None if mask is None else segments.give_back_with_views(mask)[:size]

    def _call(self, rpc: str, request: Any, timeout: float | None = None) -> Any:
        try:
            return getattr(self._stub, rpc)(request, timeout=timeout)
        except grpc.RpcError as error:
            code, details = error.code(), error.details() or ""
        if code is grpc.StatusCode.UNAVAILABLE:
            details = f"No agent answers on unix://{self.socket_path}. Is it running, and may this user call it?"
        kinds = ERRORS.get(code, {"": CallFailed})
        raise kinds.get(rpc, kinds[""])(code, details)


def _left(give_up: float) -> float | None:
    """Return the deadline in seconds of a call that nobody waits for after `give_up`; None where that is never."""
    return None if give_up == math.inf else max(LEAST, give_up - time.monotonic())


def _component(name: str) -> str:
    """Return what can be a model's name; raise NameRejected, in the agent's words, for what cannot.

    The code of the agent's own refusal would not tell whether it was the name or the image.
    """
    if not isinstance(name, str) or not block.NAME.fullmatch(name):
        told = (
            f"model_component is {shown(str(name))}; a name has 1 to 128 of the characters a-z A-Z 0-9 - _ . "
            "ListModels names the deployed models."
        )
        raise NameRejected(grpc.StatusCode.INVALID_ARGUMENT, told)
    return name


def _point_to(segment: Segment, size: int, handle: Any) -> None:
    handle.name, handle.size = segment.name, size


def _check_inline(pixels: NDArray[np.uint8]) -> None:
    """Raise ImageRejected, as the agent would, for an image so large that gRPC would refuse its message before the agent sees it."""
    if pixels.nbytes <= bitmaps.LARGEST_IMAGE:
        return
    height, width = pixels.shape[:2]
    try:
        bitmaps.describe(width, height, None, pixels.nbytes)
    except InvalidArgument as error:
        raise ImageRejected(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None


def _info(message: Any) -> ModelInfo:
    return ModelInfo(
        message.model_component,
        message.lookout_vision_model_arn,
        _status_name(message.status),
        message.status_message,
    )


def _status_name(number: int) -> str:
    """Return a status by name, one that a newer agent may have by its number."""
    return pb2.ModelStatus.Name(number) if number in pb2.ModelStatus.values() else f"STATUS_{number}"


def _detection(response: Any, shared: NDArray[np.uint8] | None, size: tuple[int, int]) -> Detection:
    """Return the typed result for an image of that size; `shared` is where a mask that was asked for by handle was written."""
    if not response.HasField("detect_anomaly_result"):
        raise CallFailed(grpc.StatusCode.INTERNAL, "The agent answered without a verdict.")
    result = response.detect_anomaly_result
    mask = None
    if result.HasField("anomaly_mask"):
        mask = _mask(result.anomaly_mask, shared, size)
    return Detection(
        is_anomalous=result.is_anomalous,
        confidence=result.confidence,
        anomaly_score=result.anomaly_score,
        anomaly_threshold=result.anomaly_threshold,
        anomalies=tuple(
            AnomalyType(one.name, one.pixel_anomaly.total_percentage_area, one.pixel_anomaly.hex_color)
            for one in result.anomalies
        ),
        mask=mask,
    )


def _mask(bitmap: Any, shared: NDArray[np.uint8] | None, size: tuple[int, int]) -> NDArray[np.uint8] | None:
    """Return the pixels of a mask, inline or `shared`; raise CallFailed when it is not the mask of an image of that size."""
    inline = bitmap.WhichOneof("data") == "byte_data"
    pixels = np.frombuffer(bitmap.byte_data, np.uint8) if inline else shared
    if pixels is None:
        return None
    width, height = size
    if (bitmap.width, bitmap.height) != size or pixels.size != 3 * width * height:
        told = (
            f"The agent answered with a mask of {bitmap.width}x{bitmap.height} pixels in {pixels.size} bytes for an image of "
            f"{width}x{height}."
        )
        raise CallFailed(grpc.StatusCode.INTERNAL, told)
    return pixels.reshape(height, width, 3)
