"""What the agent counts, in one object: calls by model, code and reason, and what became of the workers."""

import threading
from collections import Counter
from typing import Any


class Metrics:
    """Plain counters since the agent began. Any thread may count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: Counter[tuple[str, str, str, str]] = Counter()
        self._events: Counter[tuple[str, str]] = Counter()
        self._queue_longest: dict[str, int] = {}
        self._bytes_received = 0

    def called(self, rpc: str, model: str, code: str, reason: str, received: int) -> None:
        """Count a call that was answered, and the bytes of its request."""
        with self._lock:
            self._calls[rpc, model, code, reason] += 1
            self._bytes_received += received

    def happened(self, event: str, model: str) -> None:
        """Count what happened to a model's worker: started, died, hung, or was swapped for a new version's."""
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
