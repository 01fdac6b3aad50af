"""`edge-agent component`: makes the agent's Greengrass component, and looks at components before they reach a device."""

import json
import platform as machine
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge_agent.errors import extra, printable
from edge_agent.files import read_regular

if TYPE_CHECKING:
    from model_packager.agent_component import Built
    from model_packager.linting import Finding, Nucleus

BAD_ARGUMENTS = 2
COLOURS = {"error": "red", "warning": "yellow"}
# What this machine calls its processor -> what Greengrass does.
PLATFORMS = {"x86_64": "amd64", "aarch64": "aarch64", "arm64": "aarch64"}
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
# Stands for the bucket in recipes, as it does for gdk.
BUCKET = "BUCKET_NAME"


class _Unreadable(click.ClickException):
    exit_code = BAD_ARGUMENTS


@click.group()
def component() -> None:
    """Make the agent's component, and check components.

    They are those of AWS IoT Greengrass v2; what is wrong with one is found before it reaches a device.
    """


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
    """Find what a nucleus would refuse, ignore or misread.

    Recipes are YAML or JSON. Exits with 1 when there are errors; warnings alone are no reason to.
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


def _bucket(_: click.Context, __: click.Parameter, value: str) -> str:
    if value != BUCKET and not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", value):
        raise click.BadParameter("write the name of an S3 bucket, of 3 to 63 small letters, digits, dots and hyphens")
    return value


@component.command()
@click.option(
    "--output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Folder that gets recipes/ and artifacts/; what it has already stays.",
)
@click.option(
    "--platform",
    "platforms",
    multiple=True,
    type=click.Choice(sorted(set(PLATFORMS.values()))),
    help="Processor of the devices; may be repeated. Default: this machine's.",
)
@click.option(
    "--python",
    "pythons",
    multiple=True,
    type=click.Choice(PYTHONS),
    help="Python of the devices; may be repeated. Default: the one that runs this.",
)
@click.option(
    "--variant",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="The runtime: for the CPU, or for NVIDIA GPUs, too.",
)
@click.option(
    "--nucleus",
    type=click.Choice(["java", "lite", "both"]),
    default="both",
    show_default=True,
    help="The nucleus that the recipe must be right for.",
)
@click.option(
    "--zip",
    "zipped",
    is_flag=True,
    help="Make one artifact of all wheels for a platform: a short recipe, for nucleus lite.",
)
@click.option(
    "--bucket",
    default=BUCKET,
    show_default=True,
    callback=_bucket,
    metavar="NAME",
    help="The S3 bucket that the recipe names, for deployments from the cloud.",
)
@click.option(
    "--gdk", is_flag=True, help="Call the recipe recipes/recipe.yaml, as `gdk component publish` looks for it."
)
def build(
    output: Path,
    platforms: tuple[str, ...],
    pythons: tuple[str, ...],
    variant: str,
    nucleus: "Nucleus",
    zipped: bool,
    bucket: str,
    gdk: bool,
) -> None:
    """Build the agent's component in a checkout.

    A deployment takes it as it is, and a device installs it offline. pip fetches the wheels for the devices, in the versions of the checkout. The same checkout gives the same bytes.
    """
    try:
        from model_packager import agent_component
        from model_packager.wheels import Kind
    except ModuleNotFoundError as error:
        raise click.ClickException(f"Building needs the package `{error.name}`; {extra('cpu')}.") from None
    from model_packager.errors import PackagingRefused

    kinds = tuple(Kind(one, python) for one in _platforms(platforms) for python in _pythons(pythons))
    order = agent_component.Order(output, kinds, variant, nucleus, bucket, zipped, gdk)
    try:
        checkout = agent_component.find_checkout(Path.cwd(), Path(__file__).resolve().parent)
        built = agent_component.build(order, checkout, lambda line: click.echo(printable(line), err=True))
    except PackagingRefused as refusal:
        raise click.ClickException(printable(str(refusal))) from None
    _tell(built, nucleus)


def _platforms(given: Sequence[str]) -> list[str]:
    here = PLATFORMS.get(machine.machine())
    if not given and here is None:
        raise click.UsageError(
            f"This machine is a {machine.machine()}, which the agent has no wheels for; give --platform."
        )
    return sorted(set(given or [str(here)]))


def _pythons(given: Sequence[str]) -> list[str]:
    return sorted(set(given or [f"{sys.version_info[0]}.{sys.version_info[1]}"]), key=PYTHONS.index)


def _tell(built: "Built", nucleus: "Nucleus") -> None:
    click.echo(f"{printable(str(built.recipe))}: {built.recipe_size} bytes")
    click.echo(f"{printable(str(built.artifacts))}: {_plural(built.wheels, 'wheel')}, {built.size / 1e6:.0f} MB in all")
    if nucleus != "java" and not built.fits_lite:
        click.echo(
            f"For local deployments only on nucleus lite: from the cloud the recipe comes with digests, as {built.cloud_size} bytes "
            "of the 8196 that it reads; --zip makes a shorter one.",
            err=True,
        )


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
