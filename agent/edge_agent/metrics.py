"""What the agent counts, in one object: calls by model, code and reason, how long they took, what became of the workers."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from edge_agent.errors import CannotKeepUp, Expired, InvalidArgument, InvalidName, WrongState
from edge_agent.histograms import Histogram
from edge_agent.jobs import STAGES

DETECT = "DetectAnomalies"
OK = "OK"
# What is told of a judged image: how long it waited for its turn, and then each of the worker's stages.
PHASES = ("queue", *STAGES)
LONGEST_ERROR = 300
# What callers do wrong; everything else is a fault of the agent, of a model or of its worker.
OF_CALLERS = {one.reason for one in (InvalidArgument, InvalidName, WrongState, CannotKeepUp, Expired)}
CALLER, AGENT = "caller", "agent"
# Of either, by model. There are fewer reasons than that.
MOST_ERRORS = 16
# Models that are gone of which the counts are kept, about 5 kB each: one that is replaced by way of removing it goes on.
MOST_GONE = 64


@dataclass(frozen=True)
class _Error:
    """What went wrong, the how-manieth error of all it was, and when (time.time, which may have been stepped)."""

    number: int
    code: str
    reason: str
    text: str
    at: float

    def json(self, of: str) -> dict[str, Any]:
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.at))
        return {
            "number": self.number,
            "time": when,
            "of": of,
            "code": self.code,
            "reason": self.reason,
            "text": self.text,
        }


class _Errors:
    """The last error of one model for each reason; those of its callers never take the place of its own."""

    def __init__(self) -> None:
        self._last: dict[str, dict[str, _Error]] = {AGENT: {}, CALLER: {}}

    def add(self, error: _Error) -> None:
        last = self._last[CALLER if error.reason in OF_CALLERS else AGENT]
        last.pop(error.reason, None)  # the newest is the last one
        last[error.reason] = error
        if len(last) > MOST_ERRORS:
            del last[next(iter(last))]

    def json(self) -> list[dict[str, Any]]:
        """Return them: its own before those of its callers, and of either the newest first."""
        return [one.json(of) for of, last in self._last.items() for one in reversed(last.values())]


class _Judged:
    """The images of one model that were judged."""

    def __init__(self) -> None:
        self.anomalous = 0
        self.phases = [Histogram() for _ in PHASES]


class Metrics:
    """Plain counters since the agent began. Any thread may count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: Counter[tuple[str, str, str, str]] = Counter()
        self._events: Counter[tuple[str, str]] = Counter()
        self._restarts: Counter[str] = Counter()
        self._queue_longest: dict[str, int] = {}
        self._judged: dict[str, _Judged] = {}
        self._answered: dict[str, Histogram] = {}
        self._rejected: dict[str, Histogram] = {}
        self._errors: dict[str, _Errors] = {}
        self._numbers = itertools.count(1)
        self._bytes_received = 0
        # The models that are gone, in the order in which they went.
        self._gone: dict[str, None] = {}

    def called(
        self, rpc: str, model: str, code: str, reason: str, received: int, seconds: float = 0.0, text: str = ""
    ) -> None:
        """Count a call that was answered: the bytes of its request, the seconds since its handler was entered.

        `text` is what its caller was told of what went wrong.
        """
        with self._lock:
            self._calls[rpc, model, code, reason] += 1
            self._bytes_received += received
            if code != OK:
                if model:
                    self._failed(model, code, reason, text)
                if rpc == DETECT and reason == CannotKeepUp.reason:
                    _of(self._rejected, model).add(seconds)
            elif rpc == DETECT:
                _of(self._answered, model).add(seconds)

    def judged(self, model: str, queue: float, stages: tuple[float, ...], *, anomalous: bool = False) -> None:
        """Count an image that was judged: the seconds it waited for its turn, and those of each of the worker's STAGES."""
        with self._lock:
            found = self._judged.get(model)
            if found is None:
                found = self._judged[model] = _Judged()
            found.anomalous += anomalous
            for histogram, seconds in zip(found.phases, (queue, *stages), strict=True):
                histogram.add(seconds)

    def stages(self, model: str) -> dict[str, float]:
        """Return how many images of a model were judged, and the sums of the seconds of each stage, the queue first."""
        with self._lock:
            found = self._judged.get(model) or _Judged()
            return {
                "calls": sum(found.phases[0].counts),
                **{name: one.total for name, one in zip(PHASES, found.phases, strict=True)},
            }

    def happened(self, event: str, model: str, text: str = "") -> None:
        """Count what happened to a model's worker: started, died, hung, swapped for a new version's, or fell_back.

        It fell back when it was loaded on something else than what would have come first. `text` is for operators, where
        something went wrong.
        """
        with self._lock:
            self._events[event, model] += 1
            if text:
                self._failed(model, "", event, text)

    def restarted(self, model: str) -> None:
        """Count a worker that took the place of one that had died."""
        with self._lock:
            self._restarts[model] += 1

    def queued(self, model: str, length: int) -> None:
        """Note how many calls wait for a model; the most are kept."""
        with self._lock:
            self._queue_longest[model] = max(length, self._queue_longest.get(model, 0))

    def keep(self, deployed: Collection[str]) -> None:
        """Forget what was counted of models that are not deployed, but for the MOST_GONE that went last.

        Names come and go for as long as the agent runs. What comes back later begins anew, which Prometheus takes for
        an agent that was started anew.
        """
        with self._lock:
            there = {"", *deployed}
            counted = {model for _, model, _, _ in self._calls} | {model for _, model in self._events}
            self._gone = {name: None for name in (*self._gone, *sorted(counted)) if name in counted - there}
            while len(self._gone) > MOST_GONE:
                name = next(iter(self._gone))
                del self._gone[name]
                self._forget(name)

    def _forget(self, model: str) -> None:
        """Drop all that was counted of a model; the lock must be held."""
        self._calls = Counter({key: count for key, count in self._calls.items() if key[1] != model})
        self._events = Counter({key: count for key, count in self._events.items() if key[1] != model})
        of_models: tuple[dict[str, Any], ...] = (
            self._restarts,
            self._queue_longest,
            self._judged,
            self._answered,
            self._rejected,
            self._errors,
        )
        for one in of_models:
            one.pop(model, None)

    def answered(self) -> dict[str, tuple[int, ...]]:
        """Return the counts of how long good detections took, by model, as a Histogram has them."""
        with self._lock:
            return {model: tuple(one.counts) for model, one in self._answered.items()}

    def snapshot(self) -> dict[str, Any]:
        """Return all of it as it would be written as JSON."""
        with self._lock:
            calls = [
                {"rpc": rpc, "model": model, "code": code, "reason": reason, "count": count}
                for (rpc, model, code, reason), count in sorted(self._calls.items())
            ]
            workers: dict[str, dict[str, int]] = {}
            for (event, model), count in sorted(self._events.items()):
                workers.setdefault(model, {})[event] = count
            return {
                "calls": calls,
                "workers": workers,
                "restarts": dict(sorted(self._restarts.items())),
                "queue_longest": dict(sorted(self._queue_longest.items())),
                "images": self._images(),
                "latency": {model: one.json() for model, one in sorted(self._answered.items())},
                "rejections": {model: one.json() for model, one in sorted(self._rejected.items())},
                "last_errors": {model: one.json() for model, one in sorted(self._errors.items())},
                "bytes_received": self._bytes_received,
            }

    def _failed(self, model: str, code: str, reason: str, text: str) -> None:
        """Keep an error as the last of its kind; the lock must be held."""
        found = self._errors.get(model)
        if found is None:
            found = self._errors[model] = _Errors()
        found.add(_Error(next(self._numbers), code, reason, text[:LONGEST_ERROR], time.time()))

    def _images(self) -> dict[str, dict[str, Any]]:
        """Return what became of each model's images; the lock must be held."""
        images: dict[str, dict[str, Any]] = {
            model: {
                "processed": sum(one.phases[0].counts),
                "anomalous": one.anomalous,
                "invalid": 0,
                "phases": {name: phase.json() for name, phase in zip(PHASES, one.phases, strict=True)},
            }
            for model, one in self._judged.items()
        }
        for (rpc, model, _, reason), count in self._calls.items():
            if rpc == DETECT and model and reason == InvalidArgument.reason:
                found = images.setdefault(model, {"processed": 0, "anomalous": 0, "invalid": 0, "phases": {}})
                found["invalid"] += count
        return dict(sorted(images.items()))


def _of(histograms: dict[str, Histogram], model: str) -> Histogram:
    found = histograms.get(model)
    if found is None:
        found = histograms[model] = Histogram()
    return found
