"""A server that stands in for the agent, and does with a call whatever a test says."""

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path

import grpc

from edge_agent._proto import edge_agent_pb2 as pb2


@contextmanager
def serving(folder: Path, judge: Callable[[int, grpc.ServicerContext], None]) -> Iterator[tuple[str, list[int]]]:
    """Yield the address of a server, and the sizes of the images that it was sent.

    `judge` gets the number of the call, from 0, and may wait or abort.
    """
    sizes: list[int] = []
    lock = threading.Lock()

    def detect(request: pb2.DetectAnomaliesRequest, context: grpc.ServicerContext) -> pb2.DetectAnomaliesResponse:
        with lock:
            number = len(sizes)
            sizes.append(len(request.bitmap.byte_data))
        judge(number, context)
        return pb2.DetectAnomaliesResponse()

    server = grpc.server(futures.ThreadPoolExecutor(40))
    method = grpc.unary_unary_rpc_method_handler(
        detect, pb2.DetectAnomaliesRequest.FromString, pb2.DetectAnomaliesResponse.SerializeToString
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("AWS.LookoutVision.EdgeAgent", {"DetectAnomalies": method}),)
    )
    address = f"unix://{folder}/stand-in.sock"
    server.add_insecure_port(address)
    server.start()
    try:
        yield address, sizes
    finally:
        server.stop(None).wait()
