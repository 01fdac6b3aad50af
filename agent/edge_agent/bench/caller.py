"""A client in a process of its own: it calls the agent as it is ordered to, and costs as little as a client can.

Instants are those of time.perf_counter(), which on Linux is one clock for all processes of a device.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc

from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent._proto.edge_agent_pb2_grpc import EdgeAgentStub
from edge_agent.bench import child
from edge_agent.bench.child import Order, Refused
from edge_agent.client import OPTIONS

# After these there is nothing left to measure.
FATAL = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNIMPLEMENTED,
}
CALL_TIMEOUT = 30.0
# Calls of a schedule that may be on their way at once; more than that wait here, and their waits count.
MOST_AT_ONCE = 128
MOST_BYTES_AT_ONCE = 512 << 20


class Tally:
    """The outcomes of calls, by the order in which they were begun; kept from several threads."""

    def __init__(self) -> None:
        self._times: dict[int, float] = {}
        self._errors: Counter[str] = Counter()
        self._fatal = ""
        self._last = 0.0
        self._good = 0
        self._lock = threading.Lock()

    def add(self, number: int, begin: float, end: float, error: grpc.RpcError | None, *, counted: bool) -> None:
        """Keep the outcome of a call; one of the warm-up is not `counted`."""
        with self._lock:
            if error is None:
                self._good += 1
            elif error.code() in FATAL:
                self._fatal = self._fatal or f"{error.code().name}: {error.details()}"
            if counted:
                self._last = max(self._last, end)
                if error is None:
                    self._times[number] = end - begin
                else:
                    self._errors[error.code().name] += 1

    def check(self) -> None:
        """Raise Refused when a call has failed in a way that all will."""
        if self._fatal:
            raise Refused(f"The agent refused a call, {self._fatal}")

    def answer(self) -> Order:
        """Return the outcomes: `good` counts those of the warm-up, too; `last` is the instant of the last answer."""
        self.check()
        times = [self._times[number] for number in sorted(self._times)]
        return {"times": times, "errors": dict(self._errors), "good": self._good, "last": self._last}


class Caller:
    """A client with a channel and requests of its own."""

    def __init__(self, setup: Order) -> None:
        """Connect to `target`, and prepare requests about the images of `setup`, see `client.setup`."""
        channel = grpc.insecure_channel(setup["target"], options=OPTIONS)
        stub: Any = EdgeAgentStub(channel)
        self._call = stub.DetectAnomalies
        self._setup = setup
        self._ready: dict[str, list[pb2.DetectAnomaliesRequest]] = {}

    def __call__(self, order: Order) -> Order:
        """Do an order: `turn`, `closed` or `open`."""
        work: dict[str, Callable[[Order, Sequence[Any]], Order]] = {
            "turn": self._turn,
            "closed": self._closed,
            "open": self._open,
        }
        return work[order["kind"]](order, self._requests(order["way"]))

    def _requests(self, way: str) -> list[Any]:
        """Return a request for each image, made once."""
        if way not in self._ready:
            self._ready[way] = inline(self._setup) if way == "inline" else by_handle(self._setup)
        return self._ready[way]

    def _turn(self, order: Order, requests: Sequence[Any]) -> Order:
        """Judge one image again and again for `seconds`, at least twice; the first time is not counted."""
        request, tally = requests[order["image"] % len(requests)], Tally()
        number, until = 0, time.perf_counter() + order["seconds"]
        while number < 2 or time.perf_counter() < until:
            self._timed(tally, number, request, time.perf_counter(), counted=number > 0)
            number += 1
        return tally.answer()

    def _timed(self, tally: Tally, number: int, request: Any, begin: float, *, counted: bool) -> None:
        error = None
        try:
            self._call(request, timeout=CALL_TIMEOUT)
        except grpc.RpcError as failure:
            error = failure
        tally.add(number, begin, time.perf_counter(), error, counted=counted)
        tally.check()

    def _closed(self, order: Order, requests: Sequence[Any]) -> Order:
        """Call as soon as there is an answer, from `begin` until `until`; calls begun before `counted` are the warm-up."""
        tally, number = Tally(), order["first"]
        _sleep_until(order["begin"])
        while (begin := time.perf_counter()) < order["until"]:
            self._timed(tally, number, requests[number % len(requests)], begin, counted=begin >= order["counted"])
            number += 1
        return tally.answer()

    def _open(self, order: Order, requests: Sequence[Any]) -> Order:
        """Call at `rate` a second from `begin` until `until`, whatever has become of the calls before.

        A call's time runs from the instant for which it was scheduled, so that a wait that keeps a call from being sent
        counts as well as one that comes after.
        """
        tally, late = Tally(), []
        room = threading.BoundedSemaphore(at_once(requests[0].ByteSize()))
        number, pending = 0, []
        while (scheduled := order["begin"] + number / order["rate"]) < order["until"]:
            _sleep_until(scheduled)
            while not room.acquire(timeout=CALL_TIMEOUT):
                tally.check()
            tally.check()
            counted = scheduled >= order["counted"]
            if counted:
                late.append(time.perf_counter() - scheduled)
            call = self._call.future(requests[number % len(requests)], timeout=CALL_TIMEOUT)
            done = threading.Event()
            call.add_done_callback(_on_end(tally, number, scheduled, room, done, counted=counted))
            pending.append(done)
            number += 1
        for one in pending:
            one.wait(CALL_TIMEOUT)
        return {**tally.answer(), "late": late}


def _on_end(
    tally: Tally,
    number: int,
    scheduled: float,
    room: threading.BoundedSemaphore,
    done: threading.Event,
    *,
    counted: bool,
) -> Callable[[Any], None]:
    def end(call: Any) -> None:
        now = time.perf_counter()
        # A failed future is itself the error, with code and details.
        error = None if call.code() is grpc.StatusCode.OK else call
        tally.add(number, scheduled, now, error, counted=counted)
        room.release()
        done.set()

    return end


def at_once(size: int) -> int:
    """Return how many calls with messages of `size` bytes may be on their way."""
    return max(1, min(MOST_AT_ONCE, MOST_BYTES_AT_ONCE // size))


def by_handle(setup: Order) -> list[pb2.DetectAnomaliesRequest]:
    """Return a request for each image in the segment; the masks all go behind the last, where nobody reads them."""
    requests = []
    size = 3 * setup["width"] * setup["height"]
    for index in range(setup["images"]):
        request = _request(setup)
        source, mask = request.bitmap.shared_memory_handle, request.anomaly_mask_params.shared_memory_handle
        source.name = mask.name = setup["segment"]
        source.size = mask.size = size
        source.offset, mask.offset = index * size, setup["images"] * size
        requests.append(request)
    return requests


def inline(setup: Order) -> list[pb2.DetectAnomaliesRequest]:
    """Return a request for each image in the file `frames`, its pixels in it."""
    requests = []
    pixels, size = Path(setup["frames"]).read_bytes(), 3 * setup["width"] * setup["height"]
    for index in range(setup["images"]):
        request = _request(setup)
        request.bitmap.byte_data = pixels[index * size : (index + 1) * size]
        requests.append(request)
    return requests


def _request(setup: Order) -> pb2.DetectAnomaliesRequest:
    bitmap = pb2.Bitmap(width=setup["width"], height=setup["height"])
    return pb2.DetectAnomaliesRequest(model_component=setup["model"], bitmap=bitmap)


def _sleep_until(instant: float) -> None:
    left = instant - time.perf_counter()
    if left > 0:
        time.sleep(left)


if __name__ == "__main__":
    child.serve(Caller)
