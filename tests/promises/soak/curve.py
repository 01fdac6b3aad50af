"""What the samples of a soak say: how much the memory grew, whether anything was left behind, and how the latency went."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from promises.soak.plan import EPOCH, large_way
from promises.soak.rig import Holds, Sample, Soak

# The part of the calls after which memory is to be level: by then every kind of call has come, in every worker.
WARM_UP = 0.1
MOST_GROWTH = 0.01
# Points of the curve that is kept.
BLOCKS = 100
# How often samples are drawn anew, and how many neighbours at a time.
RESAMPLED, TOGETHER = 200, 10


@dataclass(frozen=True)
class Growth:
    """How much memory grew from the first sample to the last: in bytes, as a part of what there was at first, and between
    what parts it is with 95 % confidence.
    """

    bytes: float
    part: float
    least: float = 0.0
    most: float = 0.0


def growth(samples: Sequence[Sample]) -> Growth:
    """Return the growth of the memory by the median of the slopes between any two samples (Theil and Sen).

    Up to 29 % of samples that are tens of megabytes off move this slope by little, wherever they are, where one at an end
    moves that of least squares. Its confidence is that of slopes of samples drawn anew, neighbours together.
    """
    x = np.array([one.calls for one in samples], np.float64)
    y = np.array([one.memory for one in samples], np.float64)
    slope = _slope(x, y)
    level = float(np.median(y - slope * (x - x[0])))
    random = np.random.default_rng(0)
    slopes = [_slope(x[drawn], y[drawn]) for drawn in (_drawn(random, len(x)) for _ in range(RESAMPLED))]
    run = x[-1] - x[0]
    least, most = np.percentile(slopes, [2.5, 97.5]) * run / level
    return Growth(slope * run, slope * run / level, float(least), float(most))


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    first, second = np.triu_indices(len(x), 1)
    across, up = x[second] - x[first], y[second] - y[first]
    return float(np.median(up[across != 0] / across[across != 0])) if across.any() else 0.0


def _drawn(random: np.random.Generator, count: int) -> np.ndarray:
    """Return places of samples drawn in runs of TOGETHER, as many as there are."""
    begins = random.integers(0, max(1, count - TOGETHER + 1), -(-count // TOGETHER))
    return np.minimum((begins[:, None] + np.arange(TOGETHER)).ravel()[:count], count - 1)


def calm(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples after an epoch without a large inline image, whose memory is given back a second later; of very few
    samples all.
    """
    found = [one for one in samples if large_way(one.calls // EPOCH - 1) != "inline"]
    return found if len(found) > 1 else list(samples)


@dataclass(frozen=True)
class Result:
    """A soak that came to its end: its samples, what was held when it was warm and at the end, and what was counted."""

    samples: list[Sample]
    warm: Holds
    end: Holds
    outcomes: dict[str, int]
    counted: dict[str, int]
    growth: Growth

    def broken(self) -> list[str]:
        """Return what was promised and is not so."""
        found = []
        if self.growth.part >= MOST_GROWTH:
            found.append(f"memory grew by {self.growth.part:.2%}, {self.growth.bytes / 1e6:.1f} MB")
        if beyond := self.end.beyond(self.warm):
            found.append(f"the agent holds other than before: {beyond}")
        answered = sum(self.outcomes.values()) - self.outcomes["killed"]
        counted = sum(self.counted.values())
        if not answered <= counted <= answered + self.outcomes["killed"]:
            found.append(f"{answered} calls were answered, {self.outcomes['killed']} cut off, and {counted} counted")
        return found


def soak(rig: Soak, calls: int, tell: Any = lambda _: None) -> Result:
    """Make so many calls, a multiple of a thousand; `tell` is told each sample."""
    samples: list[Sample] = []
    warm = None
    for number in range(1, calls // EPOCH + 1):
        samples.append(rig.epoch())
        tell(samples[-1])
        if warm is None and number * EPOCH >= WARM_UP * calls:
            warm, warm_at = rig.settled(), number - 1
    end = rig.settled()
    counted = rig.end()
    return Result(samples, warm, end, dict(rig.outcomes), dict(counted), growth(calm(samples[warm_at:])))


def figures(result: Result) -> dict[str, Any]:
    """Return what is kept of a soak."""
    samples = result.samples
    tenth = max(1, len(samples) // 10)
    return {
        "calls": sum(result.outcomes.values()),
        "seconds": samples[-1].seconds,
        "outcomes": result.outcomes,
        "counted_by_the_agent": result.counted,
        "growth_bytes": round(result.growth.bytes),
        "growth_part": round(result.growth.part, 6),
        "growth_part_between": [round(result.growth.least, 6), round(result.growth.most, 6)],
        "held_when_warm": result.warm.told(),
        "held_at_the_end": result.end.told(),
        "p99_first_tenth_ms": round(statistics.median(one.p99 for one in samples[:tenth]), 3),
        "p99_last_tenth_ms": round(statistics.median(one.p99 for one in samples[-tenth:]), 3),
        "p50_first_tenth_ms": round(statistics.median(one.p50 for one in samples[:tenth]), 3),
        "p50_last_tenth_ms": round(statistics.median(one.p50 for one in samples[-tenth:]), 3),
        "broken": result.broken(),
        "curve": [asdict(_middle(block)) for block in _blocks(samples)],
    }


def _blocks(samples: list[Sample]) -> list[list[Sample]]:
    size = max(1, len(samples) // BLOCKS)
    return [samples[begin : begin + size] for begin in range(0, len(samples), size)]


def _middle(block: list[Sample]) -> Sample:
    """Return the medians of a block, at its end."""
    middle = {key: statistics.median_low(getattr(one, key) for one in block) for key in vars(block[0])}
    return Sample(**{**middle, "calls": block[-1].calls, "seconds": block[-1].seconds})
