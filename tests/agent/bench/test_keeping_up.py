"""When a schedule counts as kept."""

import pytest

from edge_agent.bench.report import Measurement


def paced(*times: float, **errors: int) -> Measurement:
    return Measurement("open", "shm", (64, 64), 1, 5.0, times, errors, rate=10.0)


@pytest.mark.parametrize("growth", [0.0, 0.05, 0.09])
def test_waits_that_do_not_grow(growth):
    """One that is slow for good keeps up as well: parts overlap."""
    assert paced(*(0.5 + growth * index / 40 for index in range(40))).keeps_up


def test_waits_that_grow():
    """Five parts in a hundred too slow: each waits five milliseconds longer than the one before."""
    assert not paced(*(0.01 + 0.005 * index for index in range(60))).keeps_up


def test_one_slow_part_is_no_growth():
    assert paced(*[0.01] * 39, 3.0).keeps_up


@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "INTERNAL"])
def test_a_part_that_was_not_judged(code):
    assert not paced(*[0.01] * 40, **{code: 1}).keeps_up


def test_no_part_at_all():
    assert not paced().keeps_up


def test_what_has_no_schedule():
    assert not Measurement("closed", "shm", (64, 64), 1, 5.0, (0.1,) * 9).keeps_up


def test_counts():
    one = paced(0.1, 0.1, RESOURCE_EXHAUSTED=3, INTERNAL=1)
    assert (one.calls, one.rejected, one.throughput) == (6, 3, 0.4)
