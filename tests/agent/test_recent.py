"""Rates and percentiles of the last seconds: what is older counts no more."""

import pytest

from edge_agent.metrics import Metrics
from edge_agent.recent import WINDOW, Recent


class Clocked:
    """Metrics that are looked at by a clock of the test's."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.metrics = Metrics()
        self.recent = Recent(self.metrics.answered, lambda: self.now)

    def answer(self, often: int, seconds: float, model: str = "board") -> None:
        for _ in range(often):
            self.metrics.called("DetectAnomalies", model, "OK", "", 1, seconds)

    def look(self, after: float) -> dict:
        self.now += after
        return self.recent.look()


@pytest.fixture
def clocked():
    return Clocked()


def test_nothing_at_first(clocked):
    assert clocked.look(1) == {}


def test_a_rate_is_over_the_time_that_was_looked_at(clocked):
    clocked.answer(30, 0.002)
    found = clocked.look(2)["board"]
    assert (found["calls"], found["calls_per_s"]) == (30, 15.0)
    assert 0.0016 < found["p50"] <= found["p99"] <= 0.002


def test_what_is_older_than_the_window_counts_no_more(clocked):
    clocked.answer(1000, 2.0)
    clocked.look(1)
    for _ in range(9):
        clocked.answer(10, 0.002)
        assert clocked.look(1)["board"]["calls"] >= 1000
    clocked.answer(10, 0.002)
    found = clocked.look(1)["board"]
    assert (found["calls"], found["calls_per_s"]) == (100, 10.0)
    assert found["p99"] <= 0.002
    while (found := clocked.look(1)) != {}:
        assert found["board"]["calls"] < 100
    assert clocked.look(1) == {}, "and the file is left alone while nothing happens"


def test_models_by_themselves(clocked):
    clocked.answer(10, 0.002)
    clocked.look(WINDOW)
    clocked.answer(5, 0.5, "part")
    assert {model: one["calls"] for model, one in clocked.look(WINDOW).items()} == {"part": 5}


def test_counts_that_began_anew(clocked):
    """A model that was forgotten among many that went, and is back within the window."""
    clocked.answer(101, 0.002)
    for number in range(66):
        clocked.answer(1, 0.002, f"z{number}")
    clocked.look(1)
    clocked.look(WINDOW)
    clocked.metrics.keep([])
    clocked.answer(3, 0.002)
    found = clocked.look(2)["board"]
    assert (found["calls"], found["calls_per_s"]) == (3, 0.25)
    assert 0 < found["p50"] <= 0.002


def test_looks_are_not_kept_for_ever(clocked):
    for _ in range(1000):
        clocked.look(1)
    assert len(clocked.recent._looks) <= WINDOW + 2


def test_after_a_long_pause_the_time_is_that_of_the_pause(clocked):
    """The looks are a second apart, but not where the machine slept, or a debugger stood."""
    clocked.look(1)
    clocked.answer(100, 0.002)
    assert clocked.look(100)["board"]["calls_per_s"] == 1.0


def test_two_looks_in_one_instant(clocked):
    clocked.answer(1, 0.002)
    assert clocked.look(0)["board"]["calls"] == 1
