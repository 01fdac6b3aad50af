"""An agent's status for people: one table of models, the memory of each process, what went wrong last."""

from typing import Any

import click

from edge_agent.cli.models import STATUS_COLOURS
from edge_agent.cli.tables import table
from edge_agent.errors import printable

EVENTS = ("died", "hung", "swapped")
FALLBACK = " (fallback)"
HEADS = ("MODEL", "VERSION", "STATUS", "RUNS ON", "CALLS", "FAILED", "PER S", "P50 MS", "P99 MS", "QUEUE", "MB")
NONE = "-"


def shown(found: dict[str, Any]) -> str:
    """Return the status for people; what is no status makes it stumble (LookupError, TypeError and so on)."""
    agent = {key: printable(str(value)) for key, value in found["agent"].items()}
    lines = [f"Edge Agent {agent['version']}, pid {agent['pid']}, since {agent['started']}, on {agent['socket']}"]
    lines.append(_memory(found["memory"]))
    heads = (*HEADS, "RESTARTS", *map(str.upper, EVENTS))
    rows = [_row(found, model) for model in found["models"]]
    lines.append(table(heads, rows, range(4, len(heads))) if rows else "No models are deployed.")
    return "\n".join([*lines, *_troubles(found)])


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


def _troubles(found: dict[str, Any]) -> list[str]:
    """Return why models are FAILED, and the last error of each that had one."""
    failed = [
        f"{printable(one['model'])} is FAILED: {printable(one['message'])}"
        for one in found["models"]
        if one["state"] == "FAILED"
    ]
    errors = found.get("last_errors", {})
    deployed = [one["model"] for one in found["models"] if one["model"] in errors]
    told = [
        (printable(name), *(printable(errors[name][key]) for key in ("time", "reason", "text"))) for name in deployed
    ]
    blocks = [["", *failed]] if failed else []
    if told:
        blocks.append(["", table(("MODEL", "LAST ERROR", "REASON", "SAID"), told)])
    return [line for block in blocks for line in block]
