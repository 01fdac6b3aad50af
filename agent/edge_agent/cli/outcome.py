"""What `edge-agent tune` found, as people read it and as JSON."""

from dataclasses import asdict
from typing import Any

import click

from edge_agent.cli.plots import bars
from edge_agent.cli.tables import table
from edge_agent.packages import Found
from edge_agent.tuned import cores
from edge_agent.tuning import GOALS, SAME, SPINNING_GAIN, Candidate, Figures, Goal, Measured, Outcome, best

HEADS = ("THREADS", "SLOTS", "SPINNING", "P50 ms", "P99 ms", "CALLS/S", "CPU ms/CALL", "MEMORY MiB", "")
NUMBERS = (0, 1, 3, 4, 5, 6, 7)


def tabled(outcome: Outcome) -> str:
    """Return all figures as a table."""
    marks = dict.fromkeys(outcome.dropped, "clearly slower")
    for goal in GOALS:
        if winner := best(outcome.measured, goal):
            marks[winner] = f"{marks[winner]} and {goal}" if winner in marks else f"best for {goal}"
    rows = [_row(one, figures, marks.get(one, "")) for one, figures in outcome.measured.items()]
    return table(HEADS, rows, NUMBERS)


def _row(one: Candidate, figures: Figures, mark: str) -> tuple[str, ...]:
    return (
        str(one.threads),
        str(one.slots),
        "yes" if one.spinning else "no",
        f"{1000 * figures.p50:.2f}",
        f"{1000 * figures.p99:.2f}",
        f"{figures.rate:.1f}",
        f"{1000 * figures.cpu:.1f}",
        "-" if figures.memory is None else f"{figures.memory / 2**20:.0f}",
        click.style(mark, "green") if mark.startswith("best") else mark,
    )


def plotted(measured: Measured, goal: Goal) -> str:
    """Return a bar for each candidate, the best in bold."""
    latency = goal == "latency"
    title = "Milliseconds a call, one at a time" if latency else "Calls a second, all slots busy"
    winner = best(measured, goal)
    rows = [
        (
            click.style(str(one), bold=True) if one == winner else str(one),
            1000 * figures.p50 if latency else figures.rate,
        )
        for one, figures in measured.items()
    ]
    return f"{title} (median, without gRPC):\n{bars(rows, unit='ms' if latency else 'calls/s')}"


def verdict(measured: Measured, goal: Goal) -> str:
    """Return in sentences what is best, how much it brings, and what there is to know of spinning."""
    chosen = best(measured, goal)
    assert chosen is not None  # somebody was measured
    speed = measured[chosen].speed(goal)
    reached = f"{1000 / speed:.2f} ms a call" if goal == "latency" else f"{speed:.1f} calls a second"
    told = [f"Best for {goal}: {click.style(str(chosen), bold=True)}; {reached}{_gain(measured, chosen, goal)}."]
    if chosen.spinning:
        told.append("Its threads spin: faster while the device has nothing else to do, slower beside other work.")
    elif (gain := _by_spinning(measured, goal)) > SAME:
        told.append(
            f"Spinning gained {gain:.1%}; up to {SPINNING_GAIN:.0%} it is not taken, since beside other work it loses more."
        )
    return "\n".join(told)


def _by_spinning(measured: Measured, goal: Goal) -> float:
    """Return by which part the fastest that spins is faster than the fastest that does not."""
    able = [one for one in measured if one.can_be_best(goal)]
    spinning = max((measured[one].speed(goal) for one in able if one.spinning), default=0.0)
    quiet = max(measured[one].speed(goal) for one in able if not one.spinning)
    return spinning / quiet - 1


def _gain(measured: Measured, chosen: Candidate, goal: Goal) -> str:
    """Return the end of a sentence: how much it brings above the default, a thread for each processor and one slot."""
    quiet = [one for one in measured if one.slots == 1 and not one.spinning]
    default = max(quiet, key=lambda one: one.threads, default=None)
    if default is None:
        return ""
    than = measured[chosen].speed(goal) / measured[default].speed(goal)
    return ", which is the default" if chosen == default else f", {than:.2f} times the speed of the default ({default})"


def as_json(found: Found, outcome: Outcome, goal: Goal) -> dict[str, Any]:
    """Return everything as it is written to a file: seconds, calls a second, bytes."""
    assert found.package is not None  # it was measured
    every = [
        *({**asdict(one), **asdict(own), "dropped": one in outcome.dropped} for one, own in outcome.measured.items()),
        *({**asdict(one), "failure": reason} for one, reason in outcome.failed.items()),
    ]
    winners = {one: best(outcome.measured, one) for one in GOALS}
    return {
        "model": found.name,
        "version": found.version,
        "package": str(found.folder),
        "image_size": found.package.manifest.image_size,
        "cores": cores(),
        "for": goal,
        "candidates": every,
        "best": {one: asdict(winner) for one, winner in winners.items() if winner},
    }
