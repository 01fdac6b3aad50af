"""Load on models: threads that call without a pause, and what became of each call."""

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import grpc

from support.agent import Agent
from support.calls import OK, outcome, request
from support.waiting import until

# Of what a `brightness` model says of a grey image.
TOLERANCE = 1e-3


class Caller(threading.Thread):
    """Calls one model again and again, on a channel of its own, with an image of its own level of grey."""

    def __init__(self, agent: Agent, model: str, level: int, ended: threading.Event) -> None:
        super().__init__(name=f"caller-{model}", daemon=True)
        self.model = model
        self.begun = 0
        self.answered = 0
        # The number of the last call that was answered OK.
        self.last_good = 0
        self.failed: Counter[tuple[int, str]] = Counter()
        self.wrong: list[float] = []
        self._score = level / 255
        self._request = request(model, 64, 64, bytes([level]) * (3 * 64 * 64))
        self._stub = agent.stub()
        self._ended = ended

    def run(self) -> None:
        """Call until it is told to end."""
        while not self._ended.is_set():
            self.begun += 1
            code, details, response = outcome(self._stub.DetectAnomalies, self._request)
            if code != OK:
                self.failed[code, details] += 1
                continue
            score = response.detect_anomaly_result.anomaly_score
            if abs(score - self._score) > TOLERANCE:
                self.wrong.append(score)
            self.answered += 1
            self.last_good = self.begun


class Load:
    """All callers, by model."""

    def __init__(self, agent: Agent, models: Iterable[str], callers: int) -> None:
        self._ended = threading.Event()
        names = [name for name in models for _ in range(callers)]
        self.callers = [Caller(agent, name, 20 + 7 * index, self._ended) for index, name in enumerate(names)]

    def of(self, model: str) -> list[Caller]:
        """Return the callers of a model."""
        return [caller for caller in self.callers if caller.model == model]

    def answered(self, model: str) -> int:
        """Return how many calls of a model were answered OK."""
        return sum(caller.answered for caller in self.of(model))

    def failed(self, model: str) -> Counter[tuple[int, str]]:
        """Return how often calls of a model failed, by code and details."""
        return sum((caller.failed.copy() for caller in self.of(model)), Counter())

    def wrong(self) -> list[float]:
        """Return the scores that were not the image's."""
        return [score for caller in self.callers for score in caller.wrong]

    def begun(self, model: str) -> dict[Caller, int]:
        """Return how many calls each caller of a model has begun, for `answered_since`."""
        return {caller: caller.begun for caller in self.of(model)}

    @staticmethod
    def answered_since(begun: dict[Caller, int]) -> bool:
        """Return whether each caller has had a good answer to a call that it began after it was looked at."""
        return all(caller.last_good > number for caller, number in begun.items())

    def end(self) -> None:
        """End the load; every call that was begun is answered."""
        self._ended.set()
        for caller in self.callers:
            caller.join(60)
            assert not caller.is_alive(), f"a call of {caller.model} was never answered"


@contextmanager
def load(agent: Agent, *models: str, callers: int) -> Iterator[Load]:
    """Call models from `callers` threads each until the end of the block; all are answered when it begins."""
    made = Load(agent, models, callers)
    for caller in made.callers:
        caller.start()
    try:
        until(lambda: all(caller.answered or caller.failed for caller in made.callers), "calls are answered")
        yield made
    finally:
        made.end()


def fill_the_pool(channel: grpc.Channel, threads: int) -> None:
    """Let the agent make every call thread that it may have: calls whose request never comes hold one each."""
    never = threading.Event()

    def nothing() -> Iterator[bytes]:
        never.wait()
        yield from ()

    rpc = "/AWS.LookoutVision.EdgeAgent/ListModels"
    calls = [channel.stream_unary(rpc).future(nothing()) for _ in range(threads)]

    def all_are_held() -> bool:
        try:
            channel.unary_unary(rpc)(b"", timeout=2)  # an answer takes milliseconds
        except grpc.RpcError as error:
            return error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        return False

    until(all_are_held, "no thread is left for a call")
    never.set()
    for call in calls:
        call.cancel()
