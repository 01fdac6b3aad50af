"""How fast each model was of late: calls a second and percentiles, over the last seconds."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edge_agent.histograms import percentile

WINDOW = 10.0

Counts = Mapping[str, Sequence[int]]


class Recent:
    """What has been counted within the last WINDOW seconds, as far as it was looked at. One thread may use it."""

    def __init__(self, counts: Callable[[], Counts], clock: Callable[[], float] = time.monotonic) -> None:
        """Look at `counts`, those of how long good calls took, by model."""
        self._counts = counts
        self._clock = clock
        self._looks: deque[tuple[float, Counts]] = deque([(clock(), {})])

    def look(self) -> dict[str, dict[str, Any]]:
        """Return the calls, calls a second, and percentiles in seconds of each model that answered any."""
        now, counts = self._clock(), self._counts()
        self._looks.append((now, counts))
        while len(self._looks) > 2 and self._looks[1][0] <= now - WINDOW:
            self._looks.popleft()
        since, before = self._looks[0]
        found = {}
        for model, these in sorted(counts.items()):
            fresh = _difference(these, before.get(model))
            if calls := sum(fresh):
                found[model] = {
                    "calls": calls,
                    "calls_per_s": round(calls / max(now - since, 1e-3), 3),
                    "p50": percentile(fresh, 0.5),
                    "p99": percentile(fresh, 0.99),
                }
        return found


def _difference(now: Sequence[int], before: Sequence[int] | None) -> list[int]:
    """Return what came since; counts that are less than they were have begun anew (Metrics.keep), as Prometheus takes it."""
    since = [one - other for one, other in zip(now, before, strict=True)] if before else []
    return since if since and min(since) >= 0 else list(now)
