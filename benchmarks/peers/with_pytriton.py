"""PyTriton: a Python function behind NVIDIA's Triton, called by PyTriton's own client and by Triton's.

By its documentation: `bind` without batching, since each frame is a request of its own, and `ModelClient` for HTTP and
gRPC. That client knows no shared memory; Triton's does, with the frame in a region that is registered once. PyTriton
restricts the registering by default: it has to be opened with a TritonSecurityConfig.
"""

import signal
import sys
from collections.abc import Callable

import numpy as np
import turns
from numpy.typing import NDArray
from work import Task, Work

MODEL, REGION = "judge", "frame"


def serve(task: Task) -> None:
    """Serve until ended."""
    # Triton is told to end, and shared memory removed, only by the end of a `with`, which SIGTERM would not bring.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    from pytriton.model_config import ModelConfig, Tensor
    from pytriton.proxy.types import Request
    from pytriton.triton import Triton, TritonConfig, TritonSecurityConfig

    work = Work(task)

    def judge(requests: list[Request]) -> list[dict[str, NDArray[np.float32]]]:
        return [{"score": np.array([work.score(one["frame"])], np.float32)} for one in requests]

    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=task.ports[0],
        grpc_address="127.0.0.1",
        grpc_port=task.ports[1],
        allow_metrics=False,
    )
    with Triton(config=config, security_config=TritonSecurityConfig(restricted_endpoints=[])) as triton:
        triton.bind(
            model_name=MODEL,
            infer_func=judge,
            inputs=[Tensor(name="frame", dtype=np.uint8, shape=(task.height, task.width, 3))],
            outputs=[Tensor(name="score", dtype=np.float32, shape=(1,))],
            config=ModelConfig(batching=False),
        )
        triton.serve()


def call(task: Task) -> None:
    """Call as told: over HTTP and over gRPC, with the frame in the message or in shared memory."""
    import tritonclient.grpc
    import tritonclient.http
    from tritonclient.utils import shared_memory

    frame = np.frombuffer(task.frame(), np.uint8).reshape(task.height, task.width, 3)
    key = f"/edge-agent-peer-{task.ports[0]}"
    region = shared_memory.create_shared_memory_region(REGION, key, frame.nbytes)
    try:
        shared_memory.set_shared_memory_region(region, [frame])
        http = tritonclient.http.InferenceServerClient(f"127.0.0.1:{task.ports[0]}")
        grpc = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{task.ports[1]}")
        http.register_system_shared_memory(REGION, key, frame.nbytes)
        turns.take(
            {
                "HTTP": plain(f"http://127.0.0.1:{task.ports[0]}", frame),
                "gRPC": plain(f"grpc://127.0.0.1:{task.ports[1]}", frame),
                "HTTP, shared memory": by_region(http, tritonclient.http.InferInput, frame),
                "gRPC, shared memory": by_region(grpc, tritonclient.grpc.InferInput, frame),
            }
        )
    finally:
        shared_memory.destroy_shared_memory_region(region)


def plain(url: str, frame: NDArray[np.uint8]) -> Callable[[], float]:
    """Return a call through PyTriton's client."""
    from pytriton.client import ModelClient

    client = ModelClient(url, MODEL)
    return lambda: float(client.infer_sample(frame)["score"][0])


def by_region(client: object, kind: type, frame: NDArray[np.uint8]) -> Callable[[], float]:
    """Return a call through Triton's client; `kind` is its library's class of inputs."""
    tensor = kind("frame", list(frame.shape), "UINT8")
    tensor.set_shared_memory(REGION, frame.nbytes)
    return lambda: float(client.infer(MODEL, [tensor]).as_numpy("score")[0])


if __name__ == "__main__":
    {"serve": serve, "call": call}[sys.argv[1]](Task.given())
