"""A client of the agent, which benchmarks/peers.py starts; with the stock gRPC library, as component authors use it."""

import grpc
import turns
from work import Task

from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent._proto.edge_agent_pb2_grpc import EdgeAgentStub
from edge_agent.bench.bare import Frame


def main() -> None:
    """Call as told, the frame in shared memory, as a camera component leaves it there, or in the message."""
    task = Task.given()
    pixels = task.frame()
    frame = Frame(pixels, task.width, task.height)
    try:
        with grpc.insecure_channel(f"unix://{task.socket}") as channel:
            stub = EdgeAgentStub(channel)

            def judge(bitmap: pb2.Bitmap) -> float:
                request = pb2.DetectAnomaliesRequest(model_component="small", bitmap=bitmap)
                return float(stub.DetectAnomalies(request).detect_anomaly_result.anomaly_score)

            def shared_memory() -> float:
                handle = pb2.SharedMemoryHandle(name=frame.name, size=frame.size)
                return judge(pb2.Bitmap(width=task.width, height=task.height, shared_memory_handle=handle))

            def inline() -> float:
                return judge(pb2.Bitmap(width=task.width, height=task.height, byte_data=pixels))

            turns.take({"gRPC, shared memory": shared_memory, "gRPC, bytes": inline})
    finally:
        frame.close()


if __name__ == "__main__":
    main()
