"""An agent's status for people: what is wrong, one table of models, the memory of each process, what callers did wrong."""

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import click

from edge_agent.cli.models import STATUS_COLOURS
from edge_agent.cli.tables import table
from edge_agent.errors import printable
from edge_agent.metrics import CALLER

EVENTS = ("died", "hung", "swapped")
FALLBACK = " (fallback)"
HEADS = (
    *("MODEL", "VERSION", "STATUS", "RUNS ON", "CALLS", "FAILED", "OK/S", "OK P50 MS", "OK P99 MS", "QUEUE", "MB"),
    *("RESTARTS", *map(str.upper, EVENTS)),
)
# From here on there are numbers, which are aligned to the right.
NUMBERS = HEADS.index("CALLS")
# What is left out where there is no room for all, the least important first.
SPARED = (
    *("SWAPPED", "VERSION", "MB", "OK P50 MS", "RESTARTS", "QUEUE", "OK P99 MS", "RUNS ON", "OK/S"),
    *("HUNG", "DIED", "FAILED", "CALLS"),
)
NONE = "-"
# A name gets a quarter of a line, but never less than this.
SHORTEST_NAME = 16
# Of a screen's lines, at most every third tells what is wrong, and at least so many do.
FEWEST = 3
# Columns that a text is wrapped to at least.
NARROWEST = 10


@dataclass(frozen=True)
class Room:
    """How much of it a terminal shows, in columns and lines; None where there is no end to them."""

    columns: int | None = None
    lines: int | None = None


def shown(found: dict[str, Any], warning: str = "", room: Room = Room()) -> str:
    """Return the status for people; what is no status makes it stumble (LookupError, TypeError and so on)."""
    agent = {key: printable(str(value)) for key, value in found["agent"].items()}
    head = f"Edge Agent {agent['version']}, pid {agent['pid']}, since {agent['started']}, on {agent['socket']}"
    warned = [click.style(line, "red") for line in wrapped([warning], room)] if warning else []
    lines = [*warned, *wrapped([head, _memory(found["memory"])], room, most=1)]
    errors = _errors(found)
    of_callers = [line for of, line in errors if of == CALLER]
    wrong = wrapped([*_failed(found), *(line for of, line in errors if of != CALLER)], room)
    if wrong:
        lines += [*shortened(wrong, room.lines and max(FEWEST, room.lines // 3)), ""]
    lines += _models(found, room)
    if of_callers:
        lines += ["", click.style("The last errors of callers", bold=True), *wrapped(of_callers, room)]
    return "\n".join(lines)


def wrapped(lines: Iterable[str], room: Room, most: int = 2) -> list[str]:
    """Return texts as lines that fit; where there is an end to lines, no text takes more than `most`."""
    if room.columns is None:
        return [*lines]
    return [
        part
        for line in lines
        for part in textwrap.wrap(
            line,
            max(room.columns, NARROWEST),
            subsequent_indent="  ",
            max_lines=most if room.lines else None,
            placeholder=" ...",
            break_on_hyphens=False,
        )
    ]


def shortened(lines: Sequence[str], most: int | None) -> list[str]:
    """Return at most so many lines; what is left out is told in the last of them."""
    if most is None or len(lines) <= most:
        return [*lines]
    kept = max(0, most - 1)
    return [*lines[:kept], f"... {len(lines) - kept} more lines"]


def _models(found: dict[str, Any], room: Room) -> list[str]:
    rows = [_row(found, model) for model in found["models"]]
    if not rows:
        return ["No models are deployed."]
    if room.columns:
        longest = max(SHORTEST_NAME, room.columns // 4)
        rows = [(_middle_out(row[0], longest), *row[1:]) for row in rows]
    left_out: list[str] = []
    for head in (*SPARED, None):
        lines = _table([head for head in HEADS if head not in left_out], rows)
        if head is None or room.columns is None or max(len(click.unstyle(line)) for line in lines) <= room.columns:
            break
        left_out.append(head)
    if not left_out:
        return lines
    told = f"Too narrow for {len(left_out)} more columns: {', '.join(one for one in HEADS if one in left_out)}"
    return [*wrapped([told], room, most=1), *lines]


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    columns = [HEADS.index(head) for head in heads]
    right = [place for place, column in enumerate(columns) if column >= NUMBERS]
    return table(heads, [[row[column] for column in columns] for row in rows], right).splitlines()


def _middle_out(name: str, longest: int) -> str:
    """Return a name that is not longer than that; names differ at their ends, so its middle goes."""
    if len(name) <= longest:
        return name
    tail = (longest - 1) // 2
    return f"{name[: longest - 1 - tail]}…{name[-tail:]}"


def _row(found: dict[str, Any], model: dict[str, Any]) -> tuple[str, ...]:
    name = model["model"]
    calls = [one for one in found["calls"] if (one["rpc"], one["model"]) == ("DetectAnomalies", name)]
    failed = sum(one["count"] for one in calls if one["code"] != "OK")
    events = found["workers"].get(name, {})
    recent = found.get("recent", {}).get(name)
    return (
        printable(name),
        printable(model["version"]),
        click.style(printable(model["state"]), STATUS_COLOURS.get(model["state"])),
        _runs_on(model),
        str(sum(one["count"] for one in calls)),
        str(failed),
        f"{recent['calls_per_s']:.1f}" if recent else NONE,
        *(f"{recent[key] * 1000:.1f}" if recent else NONE for key in ("p50", "p99")),
        _queue(model.get("queue")),
        _megabytes(found["memory"]["workers"].get(name)),
        str(int(found.get("restarts", {}).get(name, 0))),
        *(str(int(events.get(event, 0))) for event in EVENTS),
    )


def _queue(queue: dict[str, int] | None) -> str:
    """Return how many calls wait, of how many that may."""
    return f"{queue['waiting']:d}/{queue['limit']:d}" if queue else NONE


def _runs_on(model: dict[str, Any]) -> str:
    """Return what a model runs on, and whether it fell back to that; an older agent does not tell."""
    return printable(str(model.get("accelerator") or NONE)) + (FALLBACK if model.get("fallback") else "")


def _memory(memory: dict[str, Any]) -> str:
    workers = [size for size in memory["workers"].values() if size]
    sizes = [memory["front"], memory["helpers"], *workers]
    parts = (
        f"{_megabytes(memory['front'])} MB the front process",
        f"{_megabytes(sum(workers))} MB {len(workers)} worker{'' if len(workers) == 1 else 's'}",
        f"{_megabytes(memory['helpers'])} MB what starts them",
    )
    return f"Memory {_megabytes(sum(filter(None, sizes)))} MB: {', '.join(parts)}"


def _megabytes(size: int | None) -> str:
    return NONE if size is None else f"{size / 1e6:.0f}"


def _failed(found: dict[str, Any]) -> list[str]:
    """Return why models are FAILED."""
    return [
        f"{printable(one['model'])} is FAILED: {printable(one['message'])}"
        for one in found["models"]
        if one["state"] == "FAILED"
    ]


def _errors(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return whose errors the deployed models had last, and what they were, the newest first."""
    last = found.get("last_errors", {})
    # An older agent tells one of each model, not whose it is nor which came first.
    told = [
        (one.get("number", 0), one.get("of", ""), name, one)
        for name in (model["model"] for model in found["models"])
        for one in ([last[name]] if isinstance(last.get(name), dict) else last.get(name, []))
    ]
    lines: dict[tuple[str, str], tuple[str, str]] = {}
    for _, of, name, one in sorted(told, key=lambda each: each[0], reverse=True):
        line = printable(f"{one['time']} {name}: {one['reason']}: {one['text']}")
        lines.setdefault((name, one["text"]), (of, line))  # a death is its caller's error, too
    return [*lines.values()]
