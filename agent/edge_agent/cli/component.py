"""`edge-agent component`: looks at Greengrass components before they reach a device."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge_agent.errors import printable
from edge_agent.files import read_regular

if TYPE_CHECKING:
    from model_packager.linting import Finding, Nucleus

BAD_ARGUMENTS = 2
COLOURS = {"error": "red", "warning": "yellow"}


class _Unreadable(click.ClickException):
    exit_code = BAD_ARGUMENTS


@click.group()
def component() -> None:
    """Look at Greengrass components before they reach a device."""


@component.command()
@click.argument(
    "recipes",
    nargs=-1,
    required=True,
    metavar="RECIPE...",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
@click.option(
    "--nucleus",
    type=click.Choice(["java", "lite", "both"]),
    default="both",
    show_default=True,
    help="The nucleus that the recipe is for.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout, and nothing else.")
def lint(recipes: tuple[Path, ...], nucleus: "Nucleus", as_json: bool) -> None:
    """Find what a nucleus would refuse, ignore or misread in recipes, YAML or JSON.

    Exits with 1 when there are errors; warnings alone are no reason to.
    """
    from model_packager import linting

    found = [(path, linting.lint_bytes(_read(path, linting.FARTHEST + 1), nucleus=nucleus)) for path in recipes]
    if as_json:
        told = [{"recipe": str(path), "findings": [asdict(one) for one in findings]} for path, findings in found]
        click.echo(json.dumps(told, indent=1))
    else:
        for path, findings in found:
            for one in findings:
                click.echo(_line(path, one))
        click.echo(_summary([one for _, findings in found for one in findings], len(found)))
    if any(one.severity == "error" for _, findings in found for one in findings):
        sys.exit(1)


def _read(path: Path, most: int) -> bytes:
    try:
        return read_regular(path, most)
    except OSError as error:
        raise _Unreadable(f"{printable(str(path))} cannot be read: {error.strerror}.") from None


def _line(path: Path, finding: "Finding") -> str:
    """Return a finding as compilers tell theirs, so that editors lead to its line."""
    where = printable(str(path)) + (f":{finding.line}" if finding.line else "")
    severity = click.style(finding.severity, COLOURS[finding.severity])
    place = f"{finding.place}: " if finding.place else ""
    nucleus = "" if finding.nucleus == "both" else f"{finding.nucleus}, "
    return f"{where}: {severity}: {place}{finding.sentence} [{nucleus}{finding.rule}]"


def _summary(findings: Sequence["Finding"], recipes: int) -> str:
    counted = Counter[str](one.severity for one in findings)
    parts = [_plural(counted[severity], severity) for severity in COLOURS if counted[severity]]
    return f"{' and '.join(parts) or 'No findings'} in {_plural(recipes, 'recipe')}."


def _plural(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
