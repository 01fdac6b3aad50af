"""A client's place in the soak: a process that makes calls, is killed in the middle of one, and is replaced.

Run as a program of its own, with nothing but gRPC and the stock stubs, as a customer's. What calls is forked from it, so
that ten thousand of them can be killed; it itself makes no channel. Orders come and results go as lines of JSON.
"""

import json
import os
import signal
import sys
import time
from collections import Counter
from typing import Any

import edge_agent_pb2 as pb2
import edge_agent_pb2_grpc as stubs
import grpc

TIMEOUT = 120.0
TOLERANCE = 1e-3
LIMITS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
DETECT = "/AWS.LookoutVision.EdgeAgent/DetectAnomalies"
OK, INVALID, NOT_FOUND, PRECONDITION = 0, 3, 5, 9
BRIGHT, REST = bytes.fromhex("23a436"), b"\xff\xff\xff"
# What no mask has, and is written over it, so that the next mask is seen to be another one.
NOTHING = b"\x00\x00\x00"


class Frames:
    """Images of one level of grey, inline and in a segment, and where masks go; made before anything is forked."""

    def __init__(self, level: int, image: str, mask: str, sides: list[int]) -> None:
        self.level, self.image, self.mask = level, image, mask
        self.inline = {side: bytes([level]) * (3 * side * side) for side in sides}
        self.mask_file = os.open(f"/dev/shm/{mask}", os.O_RDWR)

    def request(self, model: str, side: int, way: str) -> pb2.DetectAnomaliesRequest:
        """Return the request to judge an image; `way` is inline, shared, or masked: shared, with the mask."""
        made = pb2.DetectAnomaliesRequest(model_component=model, bitmap=pb2.Bitmap(width=side, height=side))
        if way == "inline":
            made.bitmap.byte_data = self.inline[side]
            return made
        source = made.bitmap.shared_memory_handle
        # Anywhere in the segment, which is of one level.
        source.name, source.size, source.offset = self.image, 3 * side * side, 4096 * (side % 7)
        if way == "masked":
            mask = made.anomaly_mask_params.shared_memory_handle
            mask.name, mask.size = self.mask, source.size
        return made

    def wrong(self, result: pb2.DetectAnomalyResult, side: int, way: str) -> str:
        """Return what is wrong with an answer, "" if nothing is."""
        if abs(result.anomaly_score - self.level / 255) > TOLERANCE:
            return f"a score of {result.anomaly_score} where the image has {self.level / 255}"
        if way == "masked":
            last = 3 * side * side - 3
            seen = {os.pread(self.mask_file, 3, 0), os.pread(self.mask_file, 3, last)}
            os.pwrite(self.mask_file, NOTHING, 0)
            os.pwrite(self.mask_file, NOTHING, last)
        elif result.anomaly_mask.WhichOneof("data") == "byte_data":
            mask = result.anomaly_mask.byte_data
            seen = {mask[:3], mask[-3:], mask[:0] if len(mask) == 3 * side * side else b"not its length"} - {b""}
        else:
            return ""
        return "" if seen == {BRIGHT if self.level > 127 else REST} else f"a mask of {seen}"

    def malformed(self, way: str, model: str) -> tuple[bytes, int]:
        """Return the bytes of a call that is to be refused, and the code of its refusal."""
        good = self.request(model, 64, "shared")
        if way == "garbage":
            return b"\xff" * 100, INVALID
        if way == "nobody":
            good.model_component = "nobody"
            return good.SerializeToString(), NOT_FOUND
        if way == "short":
            good.bitmap.byte_data = self.inline[64][1:]
        elif way == "beyond":
            good.bitmap.shared_memory_handle.offset = 1 << 40
        elif way == "missing":
            good.bitmap.shared_memory_handle.name = "edge-agent-soak-missing"
        else:
            good.ClearField("bitmap")
        return good.SerializeToString(), INVALID


class Caller:
    """What makes the calls, in the forked process."""

    def __init__(self, socket: str, frames: Frames, churned: str) -> None:
        channel = grpc.insecure_channel(f"unix://{socket}", options=LIMITS)
        self._stub = stubs.EdgeAgentStub(channel)
        self._raw = channel.unary_unary(DETECT)
        self._frames = frames
        self._churned = churned
        self._anew()

    def _anew(self) -> None:
        self._times: list[float] = []
        self._outcomes: Counter[str] = Counter()
        self._wrong: list[str] = []

    def results(self, *, kills: bool) -> str:
        """Return what the calls since the last time were, as a line."""
        told = {"times": self._times, "outcomes": self._outcomes, "wrong": self._wrong, "kills": kills}
        self._anew()
        return json.dumps(told) + "\n"

    def call(self, model: str, side: int, way: str) -> None:
        """Make a call; note how long it took, and whether the answer was right."""
        if not side:
            data, expected = self._frames.malformed(way, model)
            self._note("refused", self._code(lambda: self._raw(data, timeout=TIMEOUT)), {expected}, f"a {way} one")
            return
        request = self._frames.request(model, side, way)
        begin = time.perf_counter()
        try:
            response = self._stub.DetectAnomalies(request, timeout=TIMEOUT)
        except grpc.RpcError as error:
            # It is stopped and started all the time.
            allowed = {PRECONDITION} if model == self._churned else {OK}
            self._note("stopped", error.code().value[0], allowed, f"{model} {side} {way}: {error.details()}")
            return
        self._times.append(round(1000 * (time.perf_counter() - begin), 3))
        self._outcomes["judged"] += 1
        if wrong := self._frames.wrong(response.detect_anomaly_result, side, way):
            self._wrong.append(f"{model} {side} {way}: {wrong}")

    def begin(self, model: str, side: int, way: str, seconds: float) -> None:
        """Begin a call, and be killed so many seconds later."""
        call = self._stub.DetectAnomalies.future(self._frames.request(model, side, way), timeout=TIMEOUT)
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)
        call.result()

    def _note(self, outcome: str, code: int, allowed: set[int], what: str) -> None:
        self._outcomes[outcome] += 1
        if code not in allowed:
            self._wrong.append(f"{what}: code {code}")

    @staticmethod
    def _code(call: Any) -> int:
        try:
            call()
        except grpc.RpcError as error:
            return error.code().value[0]
        return OK


class Session:
    """A forked process that calls, as its parent sees it."""

    def __init__(self, socket: str, frames: Frames, churned: str) -> None:
        orders, self._orders = os.pipe()
        self._results, results = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            os.close(self._orders)
            os.close(self._results)
            try:
                _serve(orders, results, Caller(socket, frames, churned))
            finally:
                os._exit(1)
        os.close(orders)
        os.close(results)
        self._lines = os.fdopen(self._results, "rb")

    def work(self, plan: list[list[Any]]) -> dict[str, Any]:
        """Let it make the calls of a plan, up to the one that it is killed under; return what they were."""
        data = json.dumps(plan).encode() + b"\n"
        while data:
            data = data[os.write(self._orders, data) :]
        line = self._lines.readline()
        return json.loads(line) if line else {"wrong": [f"a client ended by itself: {self.end()}"]}

    def end(self) -> int:
        """Return the number of the signal that ended it, once it has ended."""
        os.close(self._orders)
        self._lines.close()
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])


def _serve(orders: int, results: int, caller: Caller) -> None:
    with os.fdopen(orders) as lines, os.fdopen(results, "w") as answers:
        for line in lines:
            for model, side, way, kill in json.loads(line):
                if kill:
                    answers.write(caller.results(kills=True))
                    answers.flush()
                    caller.begin(model, side, way, kill)
                caller.call(model, side, way)
            answers.write(caller.results(kills=False))
            answers.flush()
    os._exit(0)


class Lane:
    """The place: there is one client in it at any time."""

    def __init__(self, setting: dict[str, Any]) -> None:
        self._frames = Frames(setting["level"], setting["image"], setting["mask"], setting["sides"])
        self._of_session = setting["socket"], self._frames, setting["churned"]
        self._session = Session(*self._of_session)

    def work(self, plan: list[list[Any]]) -> dict[str, Any]:
        """Make the calls of a plan; return what became of them."""
        times: list[float] = []
        outcomes: Counter[str] = Counter()
        wrong: list[str] = []
        while plan:
            found = self._session.work(plan)
            wrong += found["wrong"]
            if "outcomes" not in found:
                break
            times += found["times"]
            outcomes.update(found["outcomes"])
            plan = plan[sum(found["outcomes"].values()) + found["kills"] :]
            if found["kills"]:
                ended = self._session.end()
                outcomes["killed"] += ended == -signal.SIGKILL
                self._session = Session(*self._of_session)
        return {"times": times, "outcomes": outcomes, "wrong": wrong}


def main() -> None:
    """Do what each line of stdin says."""
    lane = Lane(json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        print(json.dumps(lane.work(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
