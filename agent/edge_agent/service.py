"""The five RPCs: message in, domain call, message out, and one boundary that turns errors into a status."""

import itertools
import logging
import time
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from edge_agent import bitmaps
from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent._proto.edge_agent_pb2_grpc import METHODS, SERVICE
from edge_agent.accepted import AcceptedCalls
from edge_agent.bitmaps import Image, Segment
from edge_agent.calls import Turn
from edge_agent.errors import Code, EdgeAgentError, InvalidArgument, InvalidName, ModelNotFound, no_more_files, shown
from edge_agent.jobs import Job, Verdict
from edge_agent.lifecycle import State
from edge_agent.log import LIMITED
from edge_agent.manifest import Manifest
from edge_agent.metrics import Metrics
from edge_agent.models import Models

logger = logging.getLogger(__name__)

STATUS = {code.value[0]: code for code in grpc.StatusCode}
NO_FILES = "The agent can open no more files; close connections that are idle, or allow it more open files."
# Why calls fail that name no deployed model.
NAMELESS = {ModelNotFound.reason, InvalidName.reason}
# Beyond this a deadline is as good as none; gRPC gives clients without one a remaining time of centuries.
LONGEST_DEADLINE = 86_400.0 * 365


class EdgeAgentService:
    """The API's calls, each in the order of checks that the contract states."""

    def __init__(self, models: Models, accepted: AcceptedCalls, inline_mask_limit: int | None) -> None:
        self._models = models
        self._accepted = accepted
        self._inline_mask_limit = inline_mask_limit

    def DetectAnomalies(self, request: pb2.DetectAnomaliesRequest, context: grpc.ServicerContext) -> Message:  # noqa: N802
        """Judge one image."""
        model = self._models.get(request.model_component)

        def prepare(manifest: Manifest) -> Job:
            return describe(request, model.required_size(manifest), masked=manifest.stage.segmentation)

        first, expected = prepare(manifest := model.running_manifest()), manifest
        self._accepted.check_read()
        self._models.admit()
        try:
            turn = Turn()
            if not context.add_callback(turn.give_up):
                turn.give_up()  # the call ended before it was taken up
            # Taken out of the message only when its turn has come: what waits is held once.
            inline = None if first.image.segment else (lambda: request.bitmap.byte_data)
            manifest, answer, inline_mask = model.detect(
                lambda manifest: first if manifest is expected else prepare(manifest), inline, _deadline(context), turn
            )
        finally:
            self._models.release()
        result = _result(answer.verdict)
        if manifest.stage.segmentation:
            self._add_mask(result, request, first.image, inline_mask)
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

    def _add_mask(
        self, result: pb2.DetectAnomalyResult, request: pb2.DetectAnomaliesRequest, image: Image, inline: bytes | None
    ) -> None:
        if inline is not None and self._inline_mask_limit is not None and len(inline) > self._inline_mask_limit:
            return
        mask = result.anomaly_mask
        mask.width, mask.height = image.width, image.height
        if inline is not None:
            mask.byte_data = inline
        elif handle := _mask_handle(request.anomaly_mask_params):
            mask.shared_memory_handle.CopyFrom(handle)


def describe(request: pb2.DetectAnomaliesRequest, image_size: tuple[int, int] | None, *, masked: bool) -> Job:
    """Return the image and the mask's segment of a request; raise InvalidArgument, opening nothing.

    `image_size` is the (width, height) that the image must have; None allows any. A model that makes no mask (`masked`)
    ignores a handle, whose numbers must be ones all the same.
    """
    if not request.HasField("bitmap"):
        raise InvalidArgument("bitmap is missing; send the image to judge.")
    bitmap = request.bitmap
    source = bitmap.WhichOneof("data")
    if source is None:
        raise InvalidArgument("bitmap has neither byte_data nor shared_memory_handle; send the pixels in one of them.")
    if source == "byte_data":
        image = bitmaps.describe(bitmap.width, bitmap.height, None, len(bitmap.byte_data))
    else:
        segment = _segment("bitmap.shared_memory_handle", bitmap.shared_memory_handle)
        image = bitmaps.describe(bitmap.width, bitmap.height, segment, segment.size)
    if image_size:
        bitmaps.check_size(image, image_size)
    handle = _mask_handle(request.anomaly_mask_params)
    if handle is None:
        return Job(image, None)
    mask = _segment("anomaly_mask_params.shared_memory_handle", handle)
    if not masked:
        return Job(image, None)
    bitmaps.check_mask(mask, image)
    return Job(image, mask)


def handlers(service: EdgeAgentService, metrics: Metrics, accepted: AcceptedCalls) -> grpc.GenericRpcHandler:
    """Return the service as gRPC takes it."""
    requests = itertools.count(1)
    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            rpc: grpc.unary_unary_rpc_method_handler(
                _boundary(rpc, getattr(service, rpc), request_class, requests, metrics, accepted),
                # Requests are parsed within the boundary, so that bytes which are no request get a clear answer; in a
                # list, so that they can be let go of there while gRPC still holds the list.
                request_deserializer=lambda data: [data],
                response_serializer=lambda response: response.SerializeToString(),
            )
            for rpc, (request_class, _) in METHODS.items()
        },
    )


def _boundary(
    rpc: str,
    call: Callable[[Any, grpc.ServicerContext], Message],
    request_class: Any,
    requests: "itertools.count[int]",
    metrics: Metrics,
    accepted: AcceptedCalls,
) -> Callable[[list[bytes], grpc.ServicerContext], Message]:
    """Wrap a call: every error becomes a documented code with a sentence, anything unknown INTERNAL with a request id."""

    def guarded(received: list[bytes], context: grpc.ServicerContext) -> Message:
        if not accepted.accept(context):
            # What gRPC itself tells its caller an instant later, when there is no server any more.
            context.abort(grpc.StatusCode.UNAVAILABLE, "The agent ends and accepts no more calls.")
        request_id = f"{next(requests):08x}"
        begin = time.monotonic()
        name = ""
        size = len(received[0])
        try:
            try:
                # ListModels asks for nothing, so there is nothing in its bytes to be wrong.
                data = received.pop()
                request = request_class.FromString(b"" if rpc == "ListModels" else data)
                del data
            except DecodeError:
                raise InvalidArgument(
                    f"The bytes are no {request_class.DESCRIPTOR.name}; send what edge-agent.proto says."
                ) from None
            name = getattr(request, "model_component", "")
            response = call(request, context)
        except EdgeAgentError as error:
            code, details, reason = error.code, str(error), error.reason
        except Exception as error:
            code, reason = Code.INTERNAL, EdgeAgentError.reason
            if no_more_files(error):
                logger.warning("request %s %s %s: %s", request_id, rpc, shown(name), NO_FILES, extra=LIMITED)
                details = NO_FILES
            else:
                logger.exception("request %s %s %s failed unexpectedly", request_id, rpc, shown(name), extra=LIMITED)
                details = f"Internal error; the agent's log has the cause under request {request_id}."
        else:
            metrics.called(rpc, name, "OK", "", size)
            _log(request_id, rpc, name, begin, "OK")
            return response
        # Names that nobody deployed are counted as one: anybody can make up more.
        metrics.called(rpc, "" if reason in NAMELESS else name, code.name, reason, size)
        _log(request_id, rpc, name, begin, f"{code.name}: {details}")
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


def _mask_handle(params: pb2.AnomalyMaskParams) -> pb2.SharedMemoryHandle | None:
    """Return the mask's handle, at its own field or at the legacy one; None when the mask is wanted inline."""
    if params.HasField("shared_memory_handle"):
        return params.shared_memory_handle
    return params.legacy_shared_memory_handle if params.HasField("legacy_shared_memory_handle") else None


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
