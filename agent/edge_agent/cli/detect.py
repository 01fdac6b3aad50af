"""`edge-agent detect`: judge images, and show what was found."""

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from PIL import Image

from edge_agent import overlay as overlays
from edge_agent.cli import places
from edge_agent.cli.models import connected, socket_option
from edge_agent.cli.places import Places
from edge_agent.cli.progress import Progress
from edge_agent.client import CallFailed, Detection, EdgeAgentClient
from edge_agent.errors import printable
from edge_agent.images import NotAnImage, Pixels, read_image

ANOMALOUS = 3
LEFT_OUT = "the agent left the mask out, which is above its inline_mask_limit; use --shm, or raise that limit"
NO_MASK = "the model makes no mask: it has no segmentation head"


@click.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE|DIR...")
@click.option("--model", help="The model component that judges; may be left out when one model is RUNNING.")
@click.option("--shm", is_flag=True, help="Send the images through shared memory.")
@click.option(
    "--mask", type=click.Path(path_type=Path), metavar="OUT.png", help="Write the anomaly mask of the one image."
)
@click.option(
    "--overlay",
    type=click.Path(path_type=Path),
    metavar="OUT.png|DIR",
    help="Write image, mask and legend in one picture; into a folder, as IMAGE.png, when there are several images.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print a JSON list with one object for each image, and nothing else."
)
@click.option(
    "--fail-on-anomaly", is_flag=True, help=f"Exit with {ANOMALOUS} when an image is anomalous and none failed."
)
@socket_option
def detect(
    images: tuple[str, ...],
    model: str | None,
    shm: bool,
    mask: Path | None,
    overlay: Path | None,
    as_json: bool,
    fail_on_anomaly: bool,
    socket: str,
) -> None:
    """Judge images, or all images of a folder.

    Exits with 0 when every image was judged, whatever the verdicts; with 1 when one could not be.
    """
    paths = list(expand(images))
    targets = places.plan(paths, mask, overlay)
    width = max(len(printable(path)) for path in paths)
    results: list[dict[str, Any]] = []
    begin = time.monotonic()
    with (
        connected(socket) as client,
        Progress("judging", len(paths), shown=len(paths) > 1 and not as_json and sys.stderr.isatty()) as progress,
    ):
        name = _only_running(client) if model is None else model
        for path, target in zip(paths, targets, strict=True):
            progress.show(len(results))
            result = _judge(client, name, path, target, shm=shm)
            results.append(result)
            if not as_json:
                progress.clear()
                _tell(result, width)
    if as_json:
        click.echo(json.dumps(_as_json(results), indent=1, allow_nan=False))
    elif len(results) > 1:
        click.echo(_summary(results, time.monotonic() - begin, overlay))
    if any("error" in result for result in results):
        sys.exit(1)
    if fail_on_anomaly and any(result["is_anomalous"] for result in results):
        sys.exit(ANOMALOUS)


def expand(images: tuple[str, ...]) -> Iterator[str]:
    """Yield each image as it was named, a folder's images by their paths in alphabetical order."""
    for argument in images:
        if not os.path.isdir(argument):  # noqa: PTH112  (which raises for no path whatever)
            yield argument
            continue
        try:
            inside = sorted(str(path) for path in Path(argument).iterdir() if path.suffix.lower() in places.SUFFIXES)
        except OSError as error:
            raise click.BadParameter(f"the folder {printable(argument)} cannot be read: {error.strerror}") from None
        if not inside:
            raise click.BadParameter(f"there is no image in the folder {printable(argument)}")
        yield from inside


def _only_running(client: EdgeAgentClient) -> str:
    running = [one.name for one in client.list_models() if one.status == "RUNNING"]
    if len(running) != 1:
        known = printable(", ".join(running)) or "none"
        raise click.BadParameter(f"say which model judges; RUNNING are: {known}", param_hint="--model")
    return running[0]


def _judge(client: EdgeAgentClient, model: str, path: str, target: Places, *, shm: bool) -> dict[str, Any]:
    """Return what there is to say of an image: its verdict, or `error`, or both when a picture could not be written."""
    try:
        pixels = read_image(path)
        detection = client.detect(model, pixels, shm=shm)
    except NotAnImage as error:
        return {"image": path, "error": error.reason}
    except (CallFailed, OSError, ValueError) as error:
        return {"image": path, "error": _sentence(error)}
    anomalies = [
        {"name": one.name, "total_percentage_area": one.total_percentage_area, "hex_color": one.hex_color}
        for one in detection.anomalies
    ]
    return {
        "image": path,
        "is_anomalous": detection.is_anomalous,
        "confidence": detection.confidence,
        "anomaly_score": detection.anomaly_score,
        "anomaly_threshold": detection.anomaly_threshold,
        "anomalies": anomalies,
        **_show(pixels, detection, Path(path).name, target),
    }


def _show(pixels: Pixels, detection: Detection, title: str, target: Places) -> dict[str, str]:
    """Write the pictures that are wanted of an image; return where each is, and an `error` when one is not."""
    shown, errors = {}, []
    for kind, place in (("overlay", target.overlay), ("mask", target.mask)):
        if place is None:
            continue
        if detection.mask_left_out:
            errors.append(LEFT_OUT)
        elif kind == "mask" and detection.mask is None:
            errors.append(NO_MASK)
        else:
            try:
                _picture(kind, pixels, detection, title).save(place)
                shown[kind] = str(place)
            except (OSError, ValueError) as error:
                errors.append(f"the {kind} cannot be written into {place}: {_sentence(error)}")
    return {**shown, **({"error": "; ".join(dict.fromkeys(errors))} if errors else {})}


def _picture(kind: str, pixels: Pixels, detection: Detection, title: str) -> Image.Image:
    if kind == "mask" and detection.mask is not None:
        return Image.fromarray(detection.mask)
    return overlays.draw(pixels, detection, title)


def _sentence(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _tell(result: dict[str, Any], width: int) -> None:
    """Print what there is to say of an image: its verdict on stdout, what went wrong on stderr."""
    if "is_anomalous" in result:
        click.echo(_line(result, width))
    if "error" in result:
        click.echo(printable(f"{result['image']}: {result['error']}"), err=True)


def _line(result: dict[str, Any], width: int) -> str:
    verdict = click.style("ANOMALOUS", "red") if result["is_anomalous"] else click.style("normal   ", "green")
    types = ", ".join(
        f"{printable(one['name'])} {one['total_percentage_area']:.2%}"
        for one in result["anomalies"]
        if one["name"] != "background"
    )
    return f"{printable(result['image']):{width}}  {verdict}  confidence {result['confidence']:.4f}  {types}".rstrip()


def _as_json(value: Any) -> Any:
    """Return results with null for each number that JSON has no word for."""
    if isinstance(value, dict):
        return {key: _as_json(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_as_json(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _summary(results: list[dict[str, Any]], seconds: float, overlay: Path | None) -> str:
    judged = [result for result in results if "is_anomalous" in result]
    anomalous = sum(result["is_anomalous"] for result in judged)
    told = f"{len(results)} images: {anomalous} anomalous, {len(judged) - anomalous} normal"
    for what, count in (
        ("failed", len(results) - len(judged)),
        ("without a picture", sum("error" in result for result in judged)),
    ):
        told += f", {count} {what}" if count else ""
    told += f"; {seconds:.1f} s"
    return told + (f"; overlays in {overlay}" if overlay else "")
