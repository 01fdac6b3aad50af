"""Plots for terminals: lengths in proportion, at most as wide as asked for, and legible without Unicode."""

import io
from types import SimpleNamespace

import click
import pytest

from edge_agent.cli import plots

FULL = "█"


def stdout_is(monkeypatch, stream) -> None:
    """Give the module a stdout of its own; pytest puts its capture in the place of everybody's."""
    monkeypatch.setattr(plots, "sys", SimpleNamespace(stdout=stream))


@pytest.fixture(params=["utf-8", "UTF8", "utf-16"])
def unicode(request, monkeypatch):
    stdout_is(monkeypatch, io.TextIOWrapper(io.BytesIO(), encoding=request.param))


@pytest.fixture(params=["ascii", "latin-1", "ANSI_X3.4-1968", None])
def plain(request, monkeypatch):
    stdout_is(monkeypatch, request.param and io.TextIOWrapper(io.BytesIO(), encoding=request.param))


def lengths(text: str) -> list[float]:
    """Return the bars' lengths in characters."""
    eighths = {one: (index + 1) / 8 for index, one in enumerate(plots.EIGHTHS)}
    return [sum(eighths.get(one, one == plots.PLAIN) for one in line) for line in text.splitlines()]


def test_lengths_are_in_proportion_to_an_eighth(unicode):
    values = [8.0, 4.0, 1.0, 2.5, 0.1]
    drawn = lengths(plots.bars([("x", value) for value in values], width=40))
    assert drawn == [round(8 * 40 * value / 8.0) / 8 for value in values]
    assert drawn[:3] == [40, 20, 5]


def test_what_it_looks_like(unicode):
    assert plots.bars([("1 thread", 12.0), ("2", 7.5), ("none", 0.0)], width=8, unit="calls/s").splitlines() == [
        "1 thread  ████████  12.0 calls/s",
        "2         █████      7.5 calls/s",
        "none                 0.0 calls/s",
    ]


def test_ascii_where_stdout_shows_nothing_else(plain):
    text = plots.bars([("a", 10.0), ("b", 5.0), ("c", 0.01), ("d", 0.0)], width=10)
    assert text.isascii()
    assert lengths(text) == [10, 5, 1, 0]


def test_what_is_there_at_all_is_seen_and_what_is_not_is_not(unicode):
    tiny, none = lengths(plots.bars([("tiny", 1e-9), ("none", 0.0), ("all", 1.0)]))[:2]
    assert (tiny, none) == (1 / 8, 0)


@pytest.mark.parametrize(
    ("most", "told"), [(0.123, "0.12"), (9.876, "9.88"), (54.32, "54.3"), (987.6, "988"), (12345.6, "12346")]
)
def test_decimals_go_by_the_largest_value(unicode, most, told):
    assert plots.bars([("x", most)]).endswith(f" {told} ms")


def test_styled_labels_take_no_room(unicode):
    styled, plain_one = plots.bars([(click.style("ab", bold=True), 1.0), ("abc", 1.0)]).splitlines()
    assert click.unstyle(styled).index(FULL) == plain_one.index(FULL)


def test_all_zero_and_none(unicode):
    assert plots.bars([]) == ""
    assert lengths(plots.bars([("x", 0.0), ("y", 0.0)])) == [0, 0]


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_what_has_no_length_is_refused(value):
    with pytest.raises(ValueError, match="bar of 'x'"):
        plots.bars([("y", 1.0), ("x", value)])
