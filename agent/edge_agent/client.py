"""A small client of the Edge Agent API for Python programs: images inline or through shared memory.

It needs neither OpenCV nor an inference runtime, and lives beside a program's own generated `edge_agent_pb2`.
"""

import contextlib
import mmap
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import posix_ipc
from numpy.typing import NDArray

from edge_agent import address
from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent._proto.edge_agent_pb2_grpc import EdgeAgentStub

if TYPE_CHECKING:
    from typing_extensions import Self

OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # An agent that was restarted is found again within a second, not after gRPC's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
POLL = 0.05
SEGMENT_MODE = 0o660


class CallFailed(Exception):
    """A call that the agent refused or could not answer; `code` is the gRPC status code, the text the agent's own."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code


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
    """A verdict; `mask` is height x width x 3 (uint8), None when the model makes none."""

    is_anomalous: bool
    confidence: float
    anomaly_score: float
    anomaly_threshold: float
    anomalies: tuple[AnomalyType, ...]
    mask: NDArray[np.uint8] | None


class EdgeAgentClient:
    """A connection to the agent; usable from several threads, as a context manager or with `close`."""

    def __init__(self, socket: str = address.DEFAULT) -> None:
        """Connect to the agent at `socket` (`unix:///path`, `unix:path` or a path); raise ValueError for any other."""
        self.socket_path = address.socket_path(socket)
        self._channel = grpc.insecure_channel(address.target(socket), options=OPTIONS)
        self._stub: Any = EdgeAgentStub(self._channel)  # type: ignore[no-untyped-call]

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def list_models(self) -> list[ModelInfo]:
        """Return every deployed model; raise CallFailed."""
        return [_info(one) for one in self._call(self._stub.ListModels, pb2.ListModelsRequest()).models]

    def describe_model(self, name: str) -> ModelInfo:
        """Return one deployed model; raise CallFailed."""
        response = self._call(self._stub.DescribeModel, pb2.DescribeModelRequest(model_component=name))
        return _info(response.model_description)

    def start_model(self, name: str) -> None:
        """Begin to load a model; raise CallFailed."""
        self._call(self._stub.StartModel, pb2.StartModelRequest(model_component=name))

    def stop_model(self, name: str) -> None:
        """Unload a model; raise CallFailed."""
        self._call(self._stub.StopModel, pb2.StopModelRequest(model_component=name))

    def start_and_wait(
        self, name: str, timeout: float | None = None, progress: Callable[[ModelInfo], None] = lambda _: None
    ) -> ModelInfo:
        """Start a model unless it runs or is starting already, and wait until it is RUNNING.

        Args:
            name: the model component.
            timeout: seconds to wait, or None.
            progress: called with what DescribeModel says, each time that it says something new.

        Raises:
            CallFailed: a call failed, or the model ended FAILED (code UNKNOWN, with its `status_message`).
            TimeoutError: it was not RUNNING in time.

        """
        give_up = None if timeout is None else time.monotonic() + timeout
        try:
            self.start_model(name)
        except CallFailed as error:
            if error.code is not grpc.StatusCode.FAILED_PRECONDITION:
                raise
        told = None
        while True:
            info = self.describe_model(name)
            if info != told:
                progress(info)
                told = info
            if info.status == "RUNNING":
                return info
            if info.status != "STARTING":
                raise CallFailed(grpc.StatusCode.UNKNOWN, f"The model is {info.status}: {info.status_message}")
            if give_up is not None and time.monotonic() >= give_up:
                raise TimeoutError(f"The model was not RUNNING within {timeout:g} s: {info.status_message}")
            time.sleep(POLL)

    def detect(
        self, name: str, image: NDArray[np.uint8], *, shm: bool = False, timeout: float | None = None
    ) -> Detection:
        """Judge one image.

        Args:
            name: the model component, RUNNING.
            image: height x width x 3, uint8, RGB.
            shm: send image and mask through shared memory instead of inline.
            timeout: the call's deadline in seconds, or None.

        Raises:
            CallFailed: the agent refused the image or could not answer.
            ValueError: the image is not height x width x 3 of uint8.

        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(
                f"image is {image.dtype} {'x'.join(map(str, image.shape))}; it must be uint8 height x width x 3."
            )
        height, width = image.shape[:2]
        request = pb2.DetectAnomaliesRequest(model_component=name, bitmap=pb2.Bitmap(width=width, height=height))
        if not shm:
            request.bitmap.byte_data = image.tobytes()
            return _detection(self._call(self._stub.DetectAnomalies, request, timeout), None)
        # The frame and, behind it, room for the mask.
        with self._segment(2 * image.nbytes) as (segment, memory):
            memory[: image.nbytes] = np.ascontiguousarray(image).reshape(-1)
            request.bitmap.shared_memory_handle.name = segment
            request.bitmap.shared_memory_handle.size = image.nbytes
            mask = request.anomaly_mask_params.shared_memory_handle
            mask.name, mask.size, mask.offset = segment, image.nbytes, image.nbytes
            response = self._call(self._stub.DetectAnomalies, request, timeout)
            return _detection(response, memory[image.nbytes :].reshape(image.shape).copy())

    @contextlib.contextmanager
    def _segment(self, size: int) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        """Yield the name and the bytes of a new segment that the agent's group may use; unlink it afterwards."""
        name = f"/edge-agent-{os.getpid()}-{secrets.token_hex(4)}"
        segment = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=SEGMENT_MODE, size=size)
        try:
            os.fchmod(segment.fd, SEGMENT_MODE)  # whatever the umask took away
            with contextlib.suppress(OSError):  # not a member: then the agent must be of the same user
                os.fchown(segment.fd, -1, self.socket_path.stat().st_gid)
            # np.frombuffer keeps the mapping alive; it goes with the last array.
            yield name, np.frombuffer(mmap.mmap(segment.fd, size), np.uint8)
        finally:
            segment.close_fd()
            segment.unlink()

    def _call(self, method: Callable[..., Any], request: Any, timeout: float | None = None) -> Any:
        try:
            return method(request, timeout=timeout)
        except grpc.RpcError as error:
            code, details = error.code(), error.details() or ""
            if code is grpc.StatusCode.UNAVAILABLE:
                details = f"No agent answers on unix://{self.socket_path}. Is it running, and may this user call it?"
            raise CallFailed(code, details) from None


def _info(message: Any) -> ModelInfo:
    return ModelInfo(
        message.model_component,
        message.lookout_vision_model_arn,
        pb2.ModelStatus.Name(message.status),
        message.status_message,
    )


def _detection(response: Any, shared_mask: NDArray[np.uint8] | None) -> Detection:
    result = response.detect_anomaly_result
    mask = None
    if result.HasField("anomaly_mask"):
        bitmap = result.anomaly_mask
        mask = shared_mask
        if bitmap.WhichOneof("data") == "byte_data":
            mask = np.frombuffer(bitmap.byte_data, np.uint8).reshape(bitmap.height, bitmap.width, 3)
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
