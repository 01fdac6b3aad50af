"""What the agent counts, in one object: calls by model, code and reason, and what became of the workers."""

import threading
from collections import Counter
from typing import Any

from edge_agent.jobs import STAGES


class Metrics:
    """Plain counters since the agent began. Any thread may count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: Counter[tuple[str, str, str, str]] = Counter()
        self._events: Counter[tuple[str, str]] = Counter()
        self._queue_longest: dict[str, int] = {}
        self._stages: dict[str, list[float]] = {}
        self._bytes_received = 0

    def called(self, rpc: str, model: str, code: str, reason: str, received: int) -> None:
        """Count a call that was answered, and the bytes of its request."""
        with self._lock:
            self._calls[rpc, model, code, reason] += 1
            self._bytes_received += received

    def judged(self, model: str, queue: float, stages: tuple[float, ...]) -> None:
        """Count an image that was judged: the seconds it waited for its turn, and those of each of the worker's STAGES."""
        with self._lock:
            sums = self._stages.setdefault(model, [0.0] * (2 + len(stages)))
            for place, value in enumerate((1, queue, *stages)):
                sums[place] += value

    def stages(self, model: str) -> dict[str, float]:
        """Return how many images of a model were judged, and the sums of the seconds of each stage, the queue first."""
        names = ("calls", "queue", *STAGES)
        with self._lock:
            sums = self._stages.get(model, [0.0] * len(names))
            return dict(zip(names, [int(sums[0]), *sums[1:]], strict=True))

    def happened(self, event: str, model: str) -> None:
        """Count what happened to a model's worker: started, died, hung, swapped for a new version's, or fell_back.

        It fell back when it was loaded on something else than what would have come first.
        """
        with self._lock:
            self._events[event, model] += 1

    def queued(self, model: str, length: int) -> None:
        """Note how many calls wait for a model; the most are kept."""
        with self._lock:
            self._queue_longest[model] = max(length, self._queue_longest.get(model, 0))

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
                "queue_longest": dict(sorted(self._queue_longest.items())),
                "bytes_received": self._bytes_received,
            }
