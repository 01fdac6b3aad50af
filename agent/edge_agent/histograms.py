"""How long things took, as counts by fixed bounds: cheap to count, and percentiles can be told of them."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

# Ten for each power of ten (Renard's preferred numbers, ISO 3), from 10 us to 100 s: each bound is at most 1.28 times the
# one before, so that a percentile read from them is never further off.
MANTISSAS = ("1", "1.25", "1.6", "2", "2.5", "3.15", "4", "5", "6.3", "8")
BOUNDS = (*(float(f"{one}e{power}") for power in range(-5, 2) for one in MANTISSAS), 100.0)


class Histogram:
    """Counts of durations in seconds, those up to each of BOUNDS and one for all that are longer, and their sum.

    Who shares one between threads has a lock for it.
    """

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        """Count a duration."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds

    def json(self) -> dict[str, Any]:
        """Return it as it would be written as JSON: the buckets that are not empty, by upper bound, the last one's null."""
        bounds = (*BOUNDS, None)
        buckets = [[bound, count] for bound, count in zip(bounds, self.counts, strict=True) if count]
        return {"count": sum(self.counts), "sum": self.total, "buckets": buckets}


def percentile(counts: Sequence[int], share: float) -> float | None:
    """Return the seconds that a share (0 < share <= 1) of what was counted took at most, None where nothing was.

    Within a bucket it is read from a straight line; of what is longer than the last bound, that bound is all that is known.
    """
    rank = share * sum(counts)
    before = 0
    for place, reached in enumerate(accumulate(counts)):
        if counts[place] and reached >= rank:
            low = BOUNDS[place - 1] if place else 0.0
            high = BOUNDS[min(place, len(BOUNDS) - 1)]
            return low + (high - low) * (rank - before) / counts[place]
        before = reached
    return None
