"""`edge-agent demo`: the whole product in half a minute, on parts that never existed."""

import sys
from pathlib import Path

import click

from edge_agent.cli import places
from edge_agent.errors import extra


@click.command()
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Which board is made, and which defects it gets.",
)
@click.option(
    "--keep",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Keep photographs, package and overlays in this folder.",
)
def demo(seed: int, keep: Path | None) -> None:
    """Try it all: render boards, fit a model, serve it, judge.

    The model is fitted to good circuit boards, and judges good and bad ones. Exits with 1 when a verdict is wrong.
    """
    try:
        from edge_agent.demo import run
    except ImportError as error:
        raise click.ClickException(f"The demo needs {error.name}; {extra('cpu,demo')}") from None
    if keep:
        places.make_folder(keep, "--keep")
    try:
        right = run.demo(seed, keep)
    except run.DemoFailed as error:
        raise click.ClickException(str(error)) from None
    sys.exit(0 if right else 1)
