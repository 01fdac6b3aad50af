"""A client process that sends a large image inline, so that its malloc is its own: as it is, or told to keep what it frees."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import grpc
from harness import inline_request, noise

from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent._proto.edge_agent_pb2_grpc import EdgeAgentStub

# mallopt(3): what `message_memory: keep` sets in the agent, as glibc takes it from the environment of any program.
TUNED = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
}


class Client:
    """A process that calls when it is told; to be closed."""

    def __init__(self, socket: Path, model: str, size: tuple[int, int], *, tuned: bool) -> None:
        plain = {key: value for key, value in os.environ.items() if key not in TUNED}
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(socket), model, *map(str, size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**plain, **(TUNED if tuned else {})},
        )

    def timed(self, calls: int) -> list[float]:
        """Return how long each of so many calls took, in milliseconds."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{calls}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=30)


def main() -> None:
    """Call as often as each line of stdin says, making the message anew each time, as a client does with a new frame."""
    socket, model, width, height = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    pixels = noise(width, height)
    limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"unix://{socket}", limits) as channel:
        stub = EdgeAgentStub(channel)
        stub.ListModels(pb2.ListModelsRequest(), wait_for_ready=True)
        for line in sys.stdin:
            times = []
            for _ in range(int(line)):
                begin = time.perf_counter()
                stub.DetectAnomalies(inline_request(model, (width, height), pixels))
                times.append(1000 * (time.perf_counter() - begin))
            print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main()
