"""Durations counted by bounds: each falls where it belongs, and percentiles are as near as the bounds are."""

import itertools
import json
import random
import statistics

import pytest

from edge_agent.histograms import BOUNDS, Histogram, percentile


def of(*seconds: float) -> Histogram:
    made = Histogram()
    for one in seconds:
        made.add(one)
    return made


def test_bounds_are_round_numbers_that_grow_by_a_quarter_or_so():
    assert (BOUNDS[0], BOUNDS[-1], len(BOUNDS)) == (1e-5, 100.0, 71)
    assert BOUNDS[10:20] == (0.0001, 0.000125, 0.00016, 0.0002, 0.00025, 0.000315, 0.0004, 0.0005, 0.00063, 0.0008)
    assert all(1.24 < high / low < 1.29 for low, high in itertools.pairwise(BOUNDS))


@pytest.mark.parametrize(
    ("seconds", "bound"),
    [(0.0, 1e-5), (1e-5, 1e-5), (1.0001e-5, 1.25e-5), (0.001, 0.001), (0.0011, 0.00125), (100.0, 100.0), (101.0, None)],
)
def test_a_duration_is_counted_up_to_the_first_bound_that_it_does_not_exceed(seconds, bound):
    assert of(seconds).json() == {"count": 1, "sum": seconds, "buckets": [[bound, 1]]}


def test_nothing_is_nothing():
    assert Histogram().json() == {"count": 0, "sum": 0.0, "buckets": []}
    assert percentile(Histogram().counts, 0.5) is None


def test_it_can_be_written():
    found = of(0.001, 0.002, 0.002, 1000).json()
    assert json.loads(json.dumps(found)) == found
    assert found["buckets"] == [[0.001, 1], [0.002, 2], [None, 1]]


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("seed", range(5))
def test_percentiles_are_as_near_as_the_bounds(share, seed):
    times = [random.Random(seed * 10_000 + number).lognormvariate(-5, 1) for number in range(5000)]
    true = statistics.quantiles(times, n=100)[round(share * 100) - 1]
    assert percentile(of(*times).counts, share) == pytest.approx(true, rel=0.15)


def test_percentiles_lie_within_what_was_counted():
    counts = of(*[0.002] * 99, 0.5).counts
    assert 0.0016 < percentile(counts, 0.5) <= 0.002
    assert 0.0016 < percentile(counts, 0.99) <= 0.002
    assert 0.4 < percentile(counts, 1.0) <= 0.5
    assert percentile(of(1000.0).counts, 0.5) == 100.0, "no more is known than that it was longer"
