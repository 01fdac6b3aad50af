"""Clients that send a large message each, again and again, all at once: a process of its own for each, forked from this one.

Arguments: the socket, a file with the request's bytes, how many clients, and the calls of each. Told to begin by a line.
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path

import grpc

RPC = "/AWS.LookoutVision.EdgeAgent/DetectAnomalies"
LIMITS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
TIMEOUT = 300.0


def send(socket: str, data: bytes, calls: int) -> Counter[str]:
    """Make the calls; return how often each was answered, by code and the bytes of the answer."""
    answers: Counter[str] = Counter()
    with grpc.insecure_channel(f"unix://{socket}", LIMITS) as channel:
        judge = channel.unary_unary(RPC)
        for _ in range(calls):
            try:
                answers[f"OK {judge(data, timeout=TIMEOUT).hex()}"] += 1
            except grpc.RpcError as error:
                answers[f"{error.code().name} {error.details()}"] += 1
    return answers


def main() -> None:
    """Be the clients; print what they were answered."""
    socket, file, clients, calls = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    data = file.read_bytes()
    told, tell = os.pipe()
    results, result = os.pipe()
    for _ in range(clients):
        if not os.fork():
            os.read(told, 1)
            os.write(result, json.dumps(send(socket, data, calls)).encode() + b"\n")
            os._exit(0)
    os.close(result)
    sys.stdin.readline()
    os.write(tell, b"x" * clients)
    answers: Counter[str] = Counter()
    with os.fdopen(results) as lines:
        for line in lines:
            answers.update(json.loads(line))
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
