"""Packaging jobs and packages as people read them: how far a job is, what came of it, what a package is."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click

from edge_agent.cli.tables import table
from edge_agent.errors import printable

STATUS_COLOURS = {"SUCCEEDED": "green", "FAILED": "red", "RUNNING": "yellow"}


@contextmanager
def progress(*, quiet: bool) -> Iterator[Callable[[str, float], None]]:
    """Yield what shows progress: a bar on a terminal, else a line for each step, all on stderr."""
    if quiet:
        yield lambda _step, _fraction: None
        return
    if not sys.stderr.isatty():
        told = ""

        def line(step: str, _fraction: float) -> None:
            nonlocal told
            if step != told:
                told = step
                click.echo(step, err=True)

        yield line
        return
    with click.progressbar(length=1000, file=sys.stderr, item_show_func=lambda step: step) as bar:

        def move(step: str, fraction: float) -> None:
            bar.update(max(0, round(1000 * fraction) - bar.pos), step)

        yield move
        bar.update(1000 - bar.pos, "")


def report(told: Mapping[str, Any]) -> str:
    """Return a job as people read it."""
    output, result = told["ModelPackagingOutputDetails"]["Greengrass"], told["Result"]
    lines = [
        f"job        {told['JobName']} (project {told['ProjectName']}, model version {told['ModelVersion']})",
        f"component  {output['ComponentName']} {output['ComponentVersion']}",
        f"status     {click.style(told['Status'], STATUS_COLOURS.get(told['Status']))}",
    ]
    if told["StatusMessage"]:
        lines.append(f"message    {printable(told['StatusMessage'])}")
    if told["Status"] == "RUNNING":
        lines.append(f"progress   {told['Progress']['Fraction']:.0%} {told['Progress']['Step']}")
    if result:
        lines.append(f"source     {result['Source']}")
        lines.append(f"parity     {_parity(result['Parity'])}")
        measured = result["Measured"]
        lines.append(
            f"measured   {measured['peak_memory_bytes'] / 2**20:.0f} MiB, warm-up {measured['warm_up_seconds'] * 1000:.0f} ms"
        )
        lines.append(f"output     {result['Output']}")
        lines += [f"note       {one}" for one in result["Notes"]]
    return "\n".join(lines)


def _parity(told: Mapping[str, Any]) -> str:
    mask = told["largest_mask_difference"]
    images = f"{told['images']} images{' of noise (give --images for real ones)' if told['noise'] else ''}"
    differences = [
        f"{told['verdict_flips']} verdicts differ from the source's",
        f"scores by at most {told['largest_score_difference']:.2g}",
        *([] if mask is None else [f"masks in at most {mask:.2%} of the pixels"]),
    ]
    return f"on {images}: {', '.join(differences)}"


def jobs(documents: Iterable[Mapping[str, Any]]) -> str:
    """Return packaging jobs as a table."""
    rows = [
        (
            one["JobName"],
            one["ProjectName"],
            "{ComponentName} {ComponentVersion}".format(**one["ModelPackagingOutputDetails"]["Greengrass"]),
            click.style(one["Status"], STATUS_COLOURS.get(one["Status"])),
            one["CreationTimestamp"],
            printable(one["StatusMessage"]),
        )
        for one in documents
    ]
    return table(("JOB", "PROJECT", "COMPONENT", "STATUS", "CREATED", "MESSAGE"), rows) if rows else "No jobs."


def inspected(told: Mapping[str, Any]) -> str:
    """Return what a package is, a line for each of its properties."""
    return "\n".join(f"{name.replace('_', ' '):18} {_value(name, value)}".rstrip() for name, value in told.items())


def _value(name: str, value: Any) -> str:
    return f"{value[0]}x{value[1]}" if name.endswith("_size") and isinstance(value, list) else _shown(value)


def _shown(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "".join(f"\n  {json.dumps(one)}" for one in value)
    if isinstance(value, dict):
        return "".join(f"\n  {key:24} {one if isinstance(one, str) else json.dumps(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)
