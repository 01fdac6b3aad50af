"""`edge-agent fit template`: a model from photographs of good parts alone."""

from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from edge_agent.block import NAME
from edge_agent.cli.places import SUFFIXES
from edge_agent.errors import extra
from edge_agent.images import NotAnImage, read_image


@click.group()
def fit() -> None:
    """Fit a model to images of your own."""


def _threshold(_: click.Context, __: click.Parameter, value: str) -> float | None:
    if value == "auto":
        return None
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e6:
        raise click.BadParameter("write a number above 0, or auto")
    return number


@fit.command()
@click.option(
    "--normal",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of good parts.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="The package to write: a new folder, its name the component's.",
)
@click.option(
    "--threshold",
    default="auto",
    callback=_threshold,
    show_default=True,
    metavar="NUMBER|auto",
    help="Smoothed z-score from which on a pixel is a defect.",
)
def template(normal: Path, out: Path, threshold: float | None) -> None:
    """Fit a golden template: each pixel against its mean and spread over good parts.

    For parts that lie still in the picture, under constant light. It needs no defective parts.
    """
    try:
        from model_packager import template as templates
        from model_packager import writing
    except ImportError:
        raise click.ClickException(f"Fitting needs the `onnx` package; {extra('packaging')}") from None
    name = out.absolute().name
    if not NAME.fullmatch(name):
        raise click.BadParameter(f"{name!r} cannot name a component; use a-z A-Z 0-9 - _ .", param_hint="--out")
    paths = sorted(path for path in normal.iterdir() if path.suffix.lower() in SUFFIXES)
    try:
        images = [_read(path) for path in paths]
        fitted = templates.fit(images, threshold)
    except templates.CannotFit as error:
        raise click.ClickException(str(error)) from None
    manifest = writing.mochi_manifest(fitted.size, 0.5, ("background", "defect"), normalize=False)
    try:
        writing.write(out, manifest, templates.to_onnx(fitted), name)
    except OSError as error:
        raise click.ClickException(f"{out} cannot be written: {error.strerror}") from None
    peaks = sorted(fitted.held_out)
    width, height = fitted.size
    click.echo(f"{out}: {len(images)} images of {width}x{height}, threshold {fitted.threshold:.2f}")
    click.echo(f"good parts that were held out: median {peaks[len(peaks) // 2]:.2f}, worst {peaks[-1]:.2f}")
    for warning in fitted.warnings:
        click.echo(f"warning: {warning}", err=True)


def _read(path: Path) -> NDArray[np.uint8]:
    try:
        return read_image(path)
    except NotAnImage as error:
        raise click.ClickException(str(error)) from None
