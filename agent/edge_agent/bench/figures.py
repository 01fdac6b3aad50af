"""Figures of measured times: percentiles by nearest rank, and how times are spread."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

PERCENTILES = (50, 90, 95, 99)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the smallest of `ordered` (ascending, not empty) that at least `percent` (above 0) of them do not exceed."""
    return ordered[max(0, math.ceil(percent / 100 * len(ordered) - 1e-9) - 1)]


@dataclass(frozen=True)
class Figures:
    """What there is to say of some times, in their unit."""

    p50: float
    p90: float
    p95: float
    p99: float
    max: float
    mean: float

    @classmethod
    def of(cls, times: Sequence[float]) -> "Figures | None":
        """Return the figures of times in any order, None when there are none."""
        if not times:
            return None
        ordered = sorted(times)
        p50, p90, p95, p99 = (percentile(ordered, percent) for percent in PERCENTILES)
        return cls(p50, p90, p95, p99, ordered[-1], math.fsum(ordered) / len(ordered))


def histogram(times: Sequence[float], low: float, high: float, bins: int) -> list[int]:
    """Return how many of the times are in each of `bins` equal parts of low..high; what is outside counts in none."""
    counts = [0] * bins
    for one in times:
        if low <= one <= high:
            counts[min(bins - 1, int((one - low) / (high - low) * bins))] += 1
    return counts
