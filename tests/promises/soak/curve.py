"""What the samples of a soak say: how much the memory grew, whether anything was left behind, and how the latency went."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edge_agent.trimming import IDLE
from promises.soak.plan import EPOCH
from promises.soak.rig import Holds, Memory, Sample, Soak

# The part of the calls after which memory is to be level: by then every kind of call has come, in every worker.
WARM_UP = 0.1
MOST_GROWTH = 0.01
# Points of the curve that is kept.
BLOCKS = 100
# Times that the clients rest, and for how long: until the agent has given back all that they left.
RESTS, REST = 12, IDLE + 2
# How often samples are drawn anew, and how many neighbours at a time: at most, and of all.
RESAMPLED, TOGETHER, PARTS = 200, 10, 8


@dataclass(frozen=True)
class Growth:
    """How much memory grew from the first sample to the last: in bytes, as a part of what there was at first, and between
    what parts it is with 95 % confidence.
    """

    bytes: float
    part: float
    least: float = 0.0
    most: float = 0.0


def growth(samples: Sequence[Memory]) -> Growth:
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
    """Return places of samples drawn in runs of neighbours, as many as there are."""
    together = max(1, min(TOGETHER, count // PARTS))
    begins = random.integers(0, count - together + 1, -(-count // together))
    return (begins[:, None] + np.arange(together)).ravel()[:count]


@dataclass(frozen=True)
class Result:
    """A soak that came to its end: its samples, the memory each time the clients rested, what was held when it was warm and at
    the end, what was counted, and how memory grew from then on: at rest, and right after an epoch, where what a large inline
    image has just left comes and goes.
    """

    samples: list[Sample]
    rests: list[Memory]
    warm: Holds
    end: Holds
    outcomes: dict[str, int]
    counted: dict[str, int]
    growth: Growth
    busy_growth: Growth

    def broken(self) -> list[str]:
        """Return what was promised and is not so.

        Memory is judged at rest; under way, where it goes up and down, once it is plain that it grew.
        """
        found = []
        if self.growth.part >= MOST_GROWTH:
            found.append(f"memory grew by {self.growth.part:.2%}, {self.growth.bytes / 1e6:.1f} MB")
        elif self.busy_growth.least >= MOST_GROWTH:
            found.append(f"memory under way grew by at least {self.busy_growth.least:.2%}")
        if beyond := self.end.beyond(self.warm):
            found.append(f"the agent holds other than before: {beyond}")
        answered = sum(self.outcomes.values()) - self.outcomes["killed"]
        counted = sum(self.counted.values())
        if not answered <= counted <= answered + self.outcomes["killed"]:
            found.append(f"{answered} calls were answered, {self.outcomes['killed']} cut off, and {counted} counted")
        return found


def soak(rig: Soak, calls: int, tell: Any = lambda _: None, rest: float = REST) -> Result:
    """Make so many calls, a multiple of a thousand; `tell` is told each sample, and a `rest` is so many seconds long."""
    samples: list[Sample] = []
    rests: list[Memory] = []
    warm = None
    epochs = calls // EPOCH
    between = max(1, epochs // RESTS)
    for number in range(1, epochs + 1):
        samples.append(rig.epoch())
        tell(samples[-1])
        if number % between == 0:
            rests.append(rig.rest(rest))
        if warm is None and number >= WARM_UP * epochs:
            warm, warm_at = rig.settled(), number * EPOCH
    end = rig.settled()
    counted = rig.end()
    at_rest, busy = (growth([one for one in seen if one.calls >= warm_at]) for seen in (rests, samples))
    return Result(samples, rests, warm, end, dict(rig.outcomes), dict(counted), at_rest, busy)


def figures(result: Result) -> dict[str, Any]:
    """Return what is kept of a soak."""
    samples = result.samples
    tenth = max(1, len(samples) // 10)
    return {
        "calls": sum(result.outcomes.values()),
        "seconds": samples[-1].seconds,
        "outcomes": result.outcomes,
        "counted_by_the_agent": result.counted,
        "growth_at_rest": _kept(result.growth),
        "growth_under_way": _kept(result.busy_growth),
        "held_when_warm": result.warm.told(),
        "held_at_the_end": result.end.told(),
        "p99_first_tenth_ms": round(statistics.median(one.p99 for one in samples[:tenth]), 3),
        "p99_last_tenth_ms": round(statistics.median(one.p99 for one in samples[-tenth:]), 3),
        "p50_first_tenth_ms": round(statistics.median(one.p50 for one in samples[:tenth]), 3),
        "p50_last_tenth_ms": round(statistics.median(one.p50 for one in samples[-tenth:]), 3),
        "broken": result.broken(),
        "curve": [asdict(_middle(block)) for block in _blocks(samples)],
        "at_rest": [asdict(one) for one in result.rests],
    }


def _kept(found: Growth) -> dict[str, Any]:
    between = [round(found.least, 6), round(found.most, 6)]
    return {"bytes": round(found.bytes), "part": round(found.part, 6), "between": between}


def _blocks(samples: list[Sample]) -> list[list[Sample]]:
    size = max(1, len(samples) // BLOCKS)
    return [samples[begin : begin + size] for begin in range(0, len(samples), size)]


def _middle(block: list[Sample]) -> Sample:
    """Return the medians of a block, at its end."""
    middle = {key: statistics.median_low(getattr(one, key) for one in block) for key in vars(block[0])}
    return Sample(**{**middle, "calls": block[-1].calls, "seconds": block[-1].seconds})
