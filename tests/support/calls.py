"""Making calls and reading their outcome as (code, details)."""

from typing import Any

import grpc
import numpy as np

from edge_agent._proto import edge_agent_pb2 as pb2
from support.agent import PLENTY

OK, INVALID, NOT_FOUND, EXHAUSTED, PRECONDITION, INTERNAL = 0, 3, 5, 8, 9, 13


def outcome(call: Any, request: Any, timeout: float = PLENTY) -> tuple[int, str, Any]:
    """Make a call; return its code's number, its details and the response (None when it failed)."""
    try:
        response = call(request, timeout=timeout)
    except grpc.RpcError as error:
        return error.code().value[0], error.details(), None
    return OK, "", response


def request(
    model: str, width: int, height: int, pixels: bytes | None = None, **fields: Any
) -> pb2.DetectAnomaliesRequest:
    """Return a request; `handle` and `mask` are (name, size, offset)."""
    bitmap = pb2.Bitmap(width=width, height=height)
    if pixels is not None:
        bitmap.byte_data = pixels
    if "handle" in fields:
        bitmap.shared_memory_handle.CopyFrom(handle(*fields["handle"]))
    made = pb2.DetectAnomaliesRequest(model_component=model, bitmap=bitmap)
    if "mask" in fields:
        made.anomaly_mask_params.shared_memory_handle.CopyFrom(handle(*fields["mask"]))
    if "legacy_mask" in fields:
        made.anomaly_mask_params.legacy_shared_memory_handle.CopyFrom(handle(*fields["legacy_mask"]))
    return made


def handle(name: str, size: int, offset: int = 0) -> pb2.SharedMemoryHandle:
    return pb2.SharedMemoryHandle(name=name, size=size, offset=offset)


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Return a random image, height x width x 3 (uint8)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def padded(pixels: np.ndarray) -> bytes:
    """Return an image's bytes with rows padded to 4 bytes, the padding filled with what must not be read."""
    height, width, _ = pixels.shape
    row = 3 * width
    rows = np.full((height, row + -row % 4), 0xAA, np.uint8)
    rows[:, :row] = pixels.reshape(height, row)
    return rows.tobytes()


def expected_mask(pixels: np.ndarray) -> np.ndarray:
    """Return the mask of the `brightness` model: red above one half is class 1 (#23A436), the rest background."""
    bright = pixels[:, :, 0] / np.float32(255) > 0.5
    return np.where(bright[:, :, None], np.array([0x23, 0xA4, 0x36], np.uint8), np.uint8(255))
