"""A client that sends at a fixed rate, whatever becomes of its calls (open loop).

Arguments: the socket, a file with the request's bytes, how many calls, and how many a second. Told to begin by a line.
"""

import json
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import grpc

RPC = "/AWS.LookoutVision.EdgeAgent/DetectAnomalies"
PATIENCE = 120.0


class Sender:
    """Sends, and notes each answer."""

    def __init__(self, channel: grpc.Channel, data: bytes) -> None:
        self._judge = channel.unary_unary(RPC)
        self._data = data
        self._lock = threading.Lock()
        self._all = threading.Event()
        self.answers: Counter[str] = Counter()
        self.answered: Counter[int] = Counter()

    def send(self, calls: int, rate: float) -> float:
        """Send the calls at a rate; return the seconds that it took, once all are answered."""
        begin = time.monotonic()
        for number in range(calls):
            time.sleep(max(0.0, begin + number / rate - time.monotonic()))
            future = self._judge.future(self._data, timeout=PATIENCE)
            future.add_done_callback(lambda done, number=number: self._note(done, number, calls))
        took = time.monotonic() - begin
        self._all.wait(PATIENCE)
        return took

    def _note(self, done: grpc.Future, number: int, calls: int) -> None:
        error = done.exception()
        with self._lock:
            self.answered[number] += 1
            self.answers["OK" if error is None else f"{error.code().name} {error.details()}"] += 1
            if len(self.answered) == calls:
                self._all.set()


def main() -> None:
    """Send; print what was answered, how many calls were answered once, and how long it took to send."""
    socket, file, calls, rate = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    with grpc.insecure_channel(f"unix://{socket}") as channel:
        sender = Sender(channel, file.read_bytes())
        grpc.channel_ready_future(channel).result(PATIENCE)
        print("ready", flush=True)
        sys.stdin.readline()
        took = sender.send(calls, rate)
        once = sum(count == 1 for count in sender.answered.values())
        print(json.dumps({"answers": sender.answers, "once": once, "seconds": took}), flush=True)


if __name__ == "__main__":
    main()
