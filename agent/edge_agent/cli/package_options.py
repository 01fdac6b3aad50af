"""The options of `edge-agent package start`, and how their values are read."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edge_agent.manifest import INTERPOLATIONS

PRECISIONS = ("fp32", "fp16", "int8")
EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
EXISTING_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)

Command = Callable[..., Any]


def _size(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    found = re.fullmatch(r"([0-9]{1,5})[xX,]([0-9]{1,5})", value)
    if not found:
        raise click.BadParameter("write width and height in pixels, as in 1000x667")
    return int(found[1]), int(found[2])


def _names(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...]:
    names = tuple(one.strip() for one in (value or "").split(",")) if value else ()
    if any(not one for one in names):
        raise click.BadParameter("write names with commas between them, as in background,scratch")
    return names


def _colours(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    colours = {}
    for value in values:
        name, _equals, colour = value.rpartition("=")
        if not name or not re.fullmatch("#[0-9a-fA-F]{6}", colour):
            raise click.BadParameter("write the class and its colour, as in scratch=#FF2EDC")
        colours[name] = colour
    return colours


def _interpolation(_: click.Context, __: click.Parameter, value: str | None) -> str | int | None:
    if value is None or value in INTERPOLATIONS:
        return value
    if value.isdecimal() and int(value) in INTERPOLATIONS.values():
        return int(value)
    raise click.BadParameter(f"known are {', '.join(INTERPOLATIONS)}, and OpenCV's codes 0 to 4")


def _number(_: click.Context, __: click.Parameter, value: float | None) -> float | None:
    """Refuse what is no number: nothing is larger than nan, so as a tolerance it would pass everything."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter("write a finite number")
    return value


def _fraction(flag: str, told: str) -> Callable[[Command], Command]:
    return click.option(flag, type=click.FloatRange(0, 1), callback=_number, help=told)


_JOB = (
    ("--project-name", "P", "Project of the model. Required."),
    ("--model-version", "V", "Version of the model, a number. Required."),
    ("--job-name", "NAME", "Name of the job; default: made of the component's name and the time."),
    ("--description", "TEXT", "Description of the job."),
    ("--component-name", "C", "Name of the component, which is the model's name for clients. Required."),
    ("--component-version", "X.Y.Z", "Version of the component; default: <model version>.0.0."),
    ("--component-description", "TEXT", "Description of the component."),
    ("--target-device", "D", "Device to compile for, as in jetson_orin_nx. This or a platform is required."),
    (
        "--target-platform",
        "os=LINUX,arch=X86_64[,accelerator=NVIDIA]",
        "Platform to compile for, instead of a device; arch is X86_64 or ARM64.",
    ),
    (
        "--compiler-options",
        "JSON",
        """As in '{"mcpu": "core-avx2"}': mcpu and mattr; for NVIDIA gpu-code, trt-ver and cuda-ver, all three.""",
    ),
    ("--tags", "K=V,...", "Tags of the component."),
)
_MODEL = (
    click.option(
        "--manifest", type=EXISTING_FILE, help="manifest.json, where the source has none; a sidecar for other ONNX."
    ),
    click.option(
        "--model", type=EXISTING_FILE, help="The .pt or .onnx that belongs to a component with compiled code."
    ),
    click.option("--images", type=EXISTING_FOLDER, help="Images to compare source and package on; default: noise."),
    click.option(
        "--calibration", type=EXISTING_FOLDER, help="Images to calibrate int8 on; default: those of --images."
    ),
    click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        default="fp32",
        show_default=True,
        help="Arithmetic of the package; int8 needs --images.",
    ),
    click.option(
        "--int8-weights",
        type=click.Choice(["per-channel", "per-tensor"]),
        default="per-channel",
        show_default=True,
        help="What has a scale of its own.",
    ),
    click.option(
        "--int8-operators",
        callback=_names,
        metavar="A,B",
        help="ONNX operators to quantise; default: Conv,Clip,Relu,Add.",
    ),
    click.option(
        "--int8-exclude",
        multiple=True,
        metavar="NODE",
        help="Node that stays float32, as `package inspect --nodes` names it. Repeatable.",
    ),
    _fraction(
        "--score-tolerance",
        "Largest difference of a score from the source's; default: 0.001 for fp32, 0.01 for fp16, 0.05 for int8.",
    ),
    _fraction(
        "--mask-tolerance",
        "Largest part of a mask that differs from the source's; default: 0.001 for fp32, 0.01 for fp16, 0.02 for int8.",
    ),
    click.option("--image-size", callback=_size, metavar="WxH", help="Size of the camera's images (anomalib exports)."),
    click.option(
        "--interpolation",
        callback=_interpolation,
        metavar="NAME|CODE",
        help="How images are resized (anomalib exports).",
    ),
    click.option(
        "--threshold",
        type=float,
        callback=_number,
        help="Score from which on an image is anomalous (anomalib exports).",
    ),
    click.option(
        "--pixel-threshold",
        type=float,
        callback=_number,
        help="The same for pixels of the anomaly map; default: the image's.",
    ),
    click.option("--classes", callback=_names, metavar="A,B", help="Names of the pixel classes (anomalib exports)."),
    click.option(
        "--color",
        "colours",
        multiple=True,
        callback=_colours,
        metavar="CLASS=#RRGGBB",
        help="Colour of a pixel class in the mask. Repeatable.",
    ),
    click.option("--any-image-size", is_flag=True, help="The classification model takes images of any size."),
)

# The arguments that they become.
JOB_KEYS = tuple(flag.removeprefix("--").replace("-", "_") for flag, _, _ in _JOB)


def of_job(function: Command) -> Command:
    """Add the settings of the original packaging job."""
    for flag, metavar, told in reversed(_JOB):
        function = click.option(flag, default="", metavar=metavar, help=told)(function)
    return function


def of_model(function: Command) -> Command:
    """Add what there is to say of the model itself: how it is imported, quantised and compared."""
    for option in reversed(_MODEL):
        function = option(function)
    return function
