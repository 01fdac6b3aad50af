"""Figures of times against their plain definitions."""

import random
import statistics

import pytest

from edge_agent.bench.figures import PERCENTILES, Figures, histogram, percentile


def plainly(times: list[float], percent: float) -> float:
    """The smallest time that at least so many percent of the times do not exceed, by counting."""
    return min(one for one in times if 100 * sum(other <= one for other in times) >= percent * len(times))


@pytest.mark.parametrize("count", [1, 2, 3, 7, 99, 100, 101, 200, 1000])
@pytest.mark.parametrize("percent", [0.1, 1, 50, 90, 95, 99, 99.9, 100])
def test_percentile(count, percent):
    times = [random.Random(count).choice((1.0, 2.0, 3.5, random.random())) for _ in range(count)]
    assert percentile(sorted(times), percent) == plainly(times, percent)


def test_of_a_hundred_different_times_p99_is_the_second_largest():
    times = [float(one) for one in range(1, 101)]
    random.Random(3).shuffle(times)
    assert Figures.of(times) == Figures(p50=50, p90=90, p95=95, p99=99, max=100, mean=50.5)


def test_figures_are_in_order_and_the_mean_is_the_mean():
    times = [random.Random(1).expovariate(1) for _ in range(333)] + [50.0]
    figures = Figures.of(times)
    assert figures.p50 <= figures.p90 <= figures.p95 <= figures.p99 <= figures.max == 50
    assert figures.mean == pytest.approx(statistics.fmean(times))
    assert len(PERCENTILES) == 4


def test_no_times_have_no_figures():
    assert Figures.of([]) is None


def test_histogram():
    assert histogram([0, 0.5, 1, 1.5, 2, 2.5, -1], 0, 2, 4) == [1, 1, 1, 2]
    times = [random.Random(5).uniform(0, 9) for _ in range(1000)]
    assert sum(histogram(times, 0, 9, 17)) == 1000
