"""Health as grpc.health.v1 tells it, on the agent's socket: the agent's by the empty name, a model's by its component's.

The messages are described here, in a descriptor pool of their own, as those of `_proto` are: the stock package wants a
newer protobuf than the agent does.
Source: https://github.com/grpc/grpc/blob/master/doc/health-checking.md
"""

import threading
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from edge_agent.errors import InvalidName, ModelNotFound
from edge_agent.lifecycle import State
from edge_agent.models import Models
from edge_agent.threads import Pool
from edge_agent.trimming import Trimmer

PACKAGE = "grpc.health.v1"
SERVICE = f"{PACKAGE}.Health"
# Streams that are held at once: each holds a thread, of the pool of streams alone.
MOST_STREAMS = 16
# The threads that refuse the streams beyond.
REFUSING = 2
# Characters of a name that a stream holds: one that is longer is no model's, and neither is its beginning.
KEPT = 256
# Seconds between two looks at what a stream tells of.
PAUSE = 0.2
TOO_MANY = f"{MOST_STREAMS} health streams are open, which is the most; close some, or use Check."
NO_REQUEST = "The bytes are no HealthCheckRequest; send what grpc.health.v1 says."
ENDS = "The agent ends and tells of no more health."


class Status(IntEnum):
    """HealthCheckResponse.ServingStatus."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3


def _messages() -> tuple[Any, Any]:
    """Return the classes of the request and of the response."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="grpc/health/v1/health.proto", package=PACKAGE, syntax="proto3")
    request = file.message_type.add(name="HealthCheckRequest")
    request.field.add(name="service", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    response = file.message_type.add(name="HealthCheckResponse")
    statuses = response.enum_type.add(name="ServingStatus")
    for status in Status:
        statuses.value.add(name=status.name, number=status.value)
    response.field.add(
        name="status",
        number=1,
        type=field.TYPE_ENUM,
        label=field.LABEL_OPTIONAL,
        type_name=f".{PACKAGE}.HealthCheckResponse.ServingStatus",
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    one, other = (pool.FindMessageTypeByName(f"{PACKAGE}.{message.name}") for message in file.message_type)
    return message_factory.GetMessageClass(one), message_factory.GetMessageClass(other)


Request, Response = _messages()


class Health:
    """What is asked for, and what becomes of it while somebody listens. Any thread may call."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._streams = 0
        self._ending = False
        self._changed = threading.Condition()

    def status(self, service: str) -> Status:
        """Return the status of the agent ("") or of a model, SERVICE_UNKNOWN for a name that nobody deployed.

        A model whose process is being replaced is RUNNING, and its calls wait: it is SERVING.
        """
        try:
            model = self._models.get(service) if service else None
        except (InvalidName, ModelNotFound):
            return Status.SERVICE_UNKNOWN
        serves = not self._ending and (model is None or model.state is State.RUNNING)
        return Status.SERVING if serves else Status.NOT_SERVING

    def end(self) -> None:
        """Serve nothing any more, and end the streams: each is told so."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()

    def check(self, received: list[bytes], context: grpc.ServicerContext) -> Any:
        """Answer Check."""
        service = _service(received, context)
        status = self.status(service)
        if status is Status.SERVICE_UNKNOWN:
            context.abort(grpc.StatusCode.NOT_FOUND, str(ModelNotFound(service)))
        return Response(status=status)

    def watch(self, received: list[bytes], context: grpc.ServicerContext) -> Iterator[Any]:
        """Answer Watch: the status now, and whenever it is another, until the caller or the agent ends it."""
        service = _service(received, context)[:KEPT]
        gone = threading.Event()

        def leave() -> None:
            with self._changed:
                gone.set()
                self._changed.notify_all()

        if not context.add_callback(leave):
            return
        with self._changed:
            full = self._streams >= MOST_STREAMS
            self._streams += not full
        if full:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, TOO_MANY)
        try:
            for status in self._changes(service, gone):
                yield Response(status=status)
            if self._ending:
                context.abort(grpc.StatusCode.UNAVAILABLE, ENDS)
        finally:
            with self._changed:
                self._streams -= 1

    def _changes(self, service: str, gone: threading.Event) -> Iterator[Status]:
        """Yield the status, and each other that it is found to be, until `gone` or the agent's end."""
        told = None
        while not gone.is_set():
            ending = self._ending
            status = self.status(service)
            if status is not told:
                told = status
                yield status
            if ending:
                return
            with self._changed:
                self._changed.wait_for(lambda: gone.is_set() or self._ending, PAUSE)


def handlers(health: Health, trimmer: Trimmer) -> grpc.GenericRpcHandler:
    """Return the service as gRPC takes it; `trimmer` is told of its messages, which may be as large as any."""

    def received(data: bytes) -> list[bytes]:
        trimmer.received(len(data))
        return [data]  # let go of there while gRPC still holds the list, which it does for as long as a stream is open

    def watch(received: list[bytes], context: grpc.ServicerContext) -> Iterator[Any]:
        return health.watch(received, context)

    # gRPC looks for this name, and its own health package uses it. Streams in the pool of all other calls would hold the
    # threads that those need.
    pool = Pool(MOST_STREAMS + REFUSING, "health")
    watch.experimental_thread_pool = pool  # type: ignore[attr-defined]
    coded = {"request_deserializer": received, "response_serializer": lambda response: response.SerializeToString()}
    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "Check": grpc.unary_unary_rpc_method_handler(health.check, **coded),
            "Watch": grpc.unary_stream_rpc_method_handler(watch, **coded),
        },
    )


def _service(received: list[bytes], context: grpc.ServicerContext) -> str:
    """Return the name that is asked for; end the call with INVALID_ARGUMENT where the bytes are no request."""
    try:
        service: str = Request.FromString(received.pop()).service
    except DecodeError:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, NO_REQUEST)
        raise
    return service
