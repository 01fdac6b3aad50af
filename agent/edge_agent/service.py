"""The five RPCs: message in, domain call, message out, and one boundary that turns errors into a status."""

import itertools
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from edge_agent import bitmaps, wire
from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent._proto.edge_agent_pb2_grpc import METHODS, SERVICE
from edge_agent.accepted import AcceptedCalls
from edge_agent.bitmaps import Image, Pixels, Segment
from edge_agent.calls import Turn
from edge_agent.errors import NAMELESS, Code, EdgeAgentError, InvalidArgument, no_more_files, shown
from edge_agent.jobs import Job, Verdict
from edge_agent.lifecycle import State
from edge_agent.log import LIMITED
from edge_agent.manifest import Manifest
from edge_agent.metrics import Metrics
from edge_agent.models import Models
from edge_agent.trimming import Trimmer

logger = logging.getLogger(__name__)

# Makes a call's arguments besides the context of a message's bytes.
Parse = Callable[[bytes], tuple[Any, ...]]
# What is sent: a message, or the bytes of one that is too large to be copied.
Response = Message | bytes
STATUS = {code.value[0]: code for code in grpc.StatusCode}
MASK_HANDLE = "anomaly_mask_params.shared_memory_handle"
NO_FILES = "The agent can open no more files; close connections that are idle, or allow it more open files."
# Beyond this a deadline is as good as none; gRPC gives clients without one a remaining time of centuries.
LONGEST_DEADLINE = 86_400.0 * 365


class EdgeAgentService:
    """The API's calls, each in the order of checks that the contract states."""

    def __init__(self, models: Models, accepted: AcceptedCalls, inline_mask_limit: int | None) -> None:
        self._models = models
        self._accepted = accepted
        self._inline_mask_limit = inline_mask_limit

    def DetectAnomalies(  # noqa: N802
        self, request: pb2.DetectAnomaliesRequest, context: grpc.ServicerContext, pixels: Pixels | None
    ) -> Response:
        """Judge one image, whose `pixels` are inline or, when None, in shared memory."""
        model = self._models.get(request.model_component)

        def prepare(manifest: Manifest) -> Job:
            return describe(request, pixels, model.required_size(manifest), masked=manifest.stage.segmentation)

        first, expected = prepare(manifest := model.running_manifest()), manifest
        self._accepted.check_read()
        self._models.admit(model.name)
        try:
            turn = Turn()
            if not context.add_callback(turn.give_up):
                turn.give_up()  # the call ended before it was taken up
            manifest, answer, inline_mask = model.detect(
                lambda manifest: first if manifest is expected else prepare(manifest), pixels, _deadline(context), turn
            )
        finally:
            self._models.release(model.name)
        result = _result(answer.verdict)
        if inline_mask is not None and self._may_be_sent(inline_mask):
            return wire.answer(result, pb2.Bitmap(width=first.image.width, height=first.image.height), inline_mask)
        if inline_mask is None and manifest.stage.segmentation:
            _tell_where_the_mask_is(result, request, first.image)
        return pb2.DetectAnomaliesResponse(detect_anomaly_result=result)

    def StartModel(self, request: pb2.StartModelRequest, _: grpc.ServicerContext) -> Message:  # noqa: N802
        """Begin to load a model."""
        self._models.start(request.model_component)
        return pb2.StartModelResponse(status=_wire(State.STARTING))

    def StopModel(self, request: pb2.StopModelRequest, _: grpc.ServicerContext) -> Message:  # noqa: N802
        """Unload a model."""
        self._models.stop(request.model_component)
        return pb2.StopModelResponse(status=_wire(State.STOPPED))

    def ListModels(self, _: pb2.ListModelsRequest, __: grpc.ServicerContext) -> Message:  # noqa: N802
        """List the deployed models."""
        listed = []
        for model in self._models.all():
            state, message = model.describe()
            listed.append(
                pb2.ModelMetadata(
                    model_component=model.name,
                    lookout_vision_model_arn=model.arn,
                    status=_wire(state),
                    status_message=message,
                )
            )
        return pb2.ListModelsResponse(models=listed)

    def DescribeModel(self, request: pb2.DescribeModelRequest, _: grpc.ServicerContext) -> Message:  # noqa: N802
        """Describe one deployed model."""
        model = self._models.get(request.model_component)
        state, message = model.describe()
        return pb2.DescribeModelResponse(
            model_description=pb2.ModelDescription(
                model_component=model.name,
                lookout_vision_model_arn=model.arn,
                status=_wire(state),
                status_message=message,
            )
        )

    def _may_be_sent(self, mask: bytes) -> bool:
        return self._inline_mask_limit is None or len(mask) <= self._inline_mask_limit


def describe(
    request: pb2.DetectAnomaliesRequest, pixels: Pixels | None, image_size: tuple[int, int] | None, *, masked: bool
) -> Job:
    """Return the image and the mask's segment of a request; raise InvalidArgument, opening nothing.

    `pixels` are those that it brings inline. `image_size` is the (width, height) that the image must have; None allows
    any. A model that makes no mask, one that is not `masked`, ignores a handle but for its numbers, which must be ones
    all the same.
    """
    if not request.HasField("bitmap"):
        raise InvalidArgument("bitmap is missing; send the image to judge.")
    bitmap = request.bitmap
    if pixels is None and not bitmap.HasField("shared_memory_handle"):
        raise InvalidArgument("bitmap has neither byte_data nor shared_memory_handle; send the pixels in one of them.")
    if pixels is not None:
        image = bitmaps.describe(bitmap.width, bitmap.height, None, len(pixels))
    else:
        segment = _segment("bitmap.shared_memory_handle", bitmap.shared_memory_handle)
        image = bitmaps.describe(bitmap.width, bitmap.height, segment, segment.size)
    if image_size:
        bitmaps.check_size(image, image_size)
    handle = _mask_handle(request.anomaly_mask_params)
    if handle is None:
        return Job(image, None)
    if not masked:
        bitmaps.check_range(MASK_HANDLE, handle.offset, handle.size)
        return Job(image, None)
    mask = _segment(MASK_HANDLE, handle)
    bitmaps.check_mask(mask, image)
    return Job(image, mask)


def handlers(
    service: EdgeAgentService, metrics: Metrics, accepted: AcceptedCalls, trimmer: Trimmer
) -> grpc.GenericRpcHandler:
    """Return the service as gRPC takes it."""
    requests = itertools.count(1)
    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            rpc: grpc.unary_unary_rpc_method_handler(
                _boundary(
                    rpc, getattr(service, rpc), _parser(rpc, request_class), requests, metrics, accepted, trimmer
                ),
                # Requests are parsed within the boundary, so that bytes which are no request get a clear answer; in a
                # list, so that they can be let go of there while gRPC still holds the list.
                request_deserializer=partial(_received, trimmer),
                response_serializer=_bytes_of,
            )
            for rpc, (request_class, _) in METHODS.items()
        },
    )


def _received(trimmer: Trimmer, data: bytes) -> list[bytes]:
    trimmer.received(len(data))
    return [data]


def _bytes_of(response: Response) -> bytes:
    return response if isinstance(response, bytes) else response.SerializeToString()


def _parser(rpc: str, request_class: Any) -> Parse:
    """Return what makes a call's arguments of a message's bytes; raises InvalidArgument for bytes that are none."""

    def parse(data: bytes) -> tuple[Any, ...]:
        try:
            if rpc == "DetectAnomalies":
                return wire.parse(data)
            # ListModels asks for nothing, so there is nothing in its bytes to be wrong.
            return (request_class.FromString(b"" if rpc == "ListModels" else data),)
        except DecodeError:
            raise InvalidArgument(
                f"The bytes are no {request_class.DESCRIPTOR.name}; send what edge-agent.proto says."
            ) from None

    return parse


def _boundary(
    rpc: str,
    call: Callable[..., Response],
    parse: Parse,
    requests: "itertools.count[int]",
    metrics: Metrics,
    accepted: AcceptedCalls,
    trimmer: Trimmer,
) -> Callable[[list[bytes], grpc.ServicerContext], Response]:
    """Wrap a call: every error becomes a documented code with a sentence, anything unknown INTERNAL with a request id."""

    def guarded(received: list[bytes], context: grpc.ServicerContext) -> Response:
        if not accepted.accept(context):
            # What gRPC itself tells its caller an instant later, when there is no server any more.
            context.abort(grpc.StatusCode.UNAVAILABLE, "The agent ends and accepts no more calls.")
        request_id = f"{next(requests):08x}"
        begin = time.monotonic()
        name = counted = ""
        size = len(received[0])
        try:
            data = received.pop()
            request, *more = parse(data)
            del data
            name = counted = getattr(request, "model_component", "")
            response = call(request, context, *more)
        except EdgeAgentError as error:
            code, details, reason = error.code, str(error), error.reason
            if isinstance(error, NAMELESS):
                counted = ""  # names that nobody deployed are counted as one: anybody can make up more
        except Exception as error:
            code, reason = Code.INTERNAL, EdgeAgentError.reason
            if no_more_files(error):
                logger.warning("request %s %s %s: %s", request_id, rpc, shown(name), NO_FILES, extra=LIMITED)
                details = NO_FILES
            else:
                logger.exception("request %s %s %s failed unexpectedly", request_id, rpc, shown(name), extra=LIMITED)
                details = f"Internal error; the agent's log has the cause under request {request_id}."
        else:
            metrics.called(rpc, name, "OK", "", size, time.monotonic() - begin)
            _log(request_id, rpc, name, begin, "OK")
            trimmer.answered(max(size, len(response)) if isinstance(response, bytes) else size)
            return response
        took = time.monotonic() - begin
        metrics.called(rpc, counted, code.name, reason, size, took, details)
        _log(request_id, rpc, name, begin, f"{code.name}: {details}")
        trimmer.answered(size)
        context.abort(STATUS[code], details)
        raise AssertionError("unreachable: abort raises")

    return guarded


def _log(request_id: str, rpc: str, name: str, begin: float, outcome: str) -> None:
    if logger.isEnabledFor(logging.DEBUG):
        milliseconds = (time.monotonic() - begin) * 1000
        logger.debug("request %s %s %s %.2f ms %s", request_id, rpc, shown(name), milliseconds, outcome)


def _deadline(context: grpc.ServicerContext) -> float | None:
    """Return the caller's deadline as time.monotonic(), None when it gave none."""
    remaining = context.time_remaining()
    return None if remaining is None or remaining > LONGEST_DEADLINE else time.monotonic() + remaining


def _segment(field: str, handle: pb2.SharedMemoryHandle) -> Segment:
    return bitmaps.segment(field, handle.name, handle.offset, handle.size)


def _tell_where_the_mask_is(result: pb2.DetectAnomalyResult, request: pb2.DetectAnomaliesRequest, image: Image) -> None:
    mask = result.anomaly_mask
    mask.width, mask.height = image.width, image.height
    if handle := _mask_handle(request.anomaly_mask_params):
        mask.shared_memory_handle.CopyFrom(handle)


def _mask_handle(params: pb2.AnomalyMaskParams) -> pb2.SharedMemoryHandle | None:
    """Return the mask's handle, at its own field or at the legacy one; None when the mask is wanted inline.

    An empty one, which names nothing, does not stand in the way of the other.
    """
    fields = ("shared_memory_handle", "legacy_shared_memory_handle")
    handles = [getattr(params, field) for field in fields if params.HasField(field)]
    return next((one for one in handles if one.ByteSize()), handles[0] if handles else None)


def _result(verdict: Verdict) -> pb2.DetectAnomalyResult:
    return pb2.DetectAnomalyResult(
        is_anomalous=verdict.is_anomalous,
        confidence=verdict.confidence,
        anomaly_score=verdict.score,
        anomaly_threshold=verdict.threshold,
        anomalies=[
            pb2.Anomaly(
                name=one.name, pixel_anomaly=pb2.PixelAnomaly(total_percentage_area=one.area, hex_color=one.hex_color)
            )
            for one in verdict.anomalies
        ],
    )


def _wire(state: State) -> Any:
    """Return the state as the enum of the wire; the numbers are the same by definition."""
    return int(state)
