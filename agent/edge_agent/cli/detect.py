"""`edge-agent detect`: judge images, and show what was found."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from PIL import Image

from edge_agent import overlay as overlays
from edge_agent.cli.models import connected, socket_option
from edge_agent.client import CallFailed, Detection, EdgeAgentClient, read_image

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
ANOMALOUS = 3


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
    help="Write image, mask and legend in one picture; into a folder when there are several images.",
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
    paths = list(_expand(images))
    into_folder = overlay is not None and _is_folder(overlay, paths)
    if mask and len(paths) != 1:
        raise click.BadParameter("is for one image", param_hint="--mask")
    if into_folder and overlay:
        overlay.mkdir(parents=True, exist_ok=True)
    results = []
    begin = time.monotonic()
    with connected(socket) as client:
        name = model or _only_running(client)
        for path in _with_progress(paths, shown=not as_json and sys.stderr.isatty()):
            result, detection = _judge(client, name, path, shm=shm)
            results.append(result)
            if not as_json:
                click.echo(_line(result, max(map(len, paths))), err="error" in result)
            if detection and overlay:
                target = overlay / f"{Path(path).stem}.png" if into_folder else overlay
                _write(overlays.draw(read_image(path), detection, Path(path).name), target)
            if detection and mask:
                _write_mask(detection, mask)
    if as_json:
        click.echo(json.dumps(results, indent=1))
    elif len(results) > 1:
        click.echo(_summary(results, time.monotonic() - begin, overlay))
    if any("error" in result for result in results):
        sys.exit(1)
    if fail_on_anomaly and any(result["is_anomalous"] for result in results):
        sys.exit(ANOMALOUS)


def _expand(images: tuple[str, ...]) -> Iterator[str]:
    """Yield each image as it was named, a folder's images by their paths in alphabetical order."""
    for argument in images:
        folder = Path(argument)
        if not folder.is_dir():
            yield argument
            continue
        inside = sorted(str(path) for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        if not inside:
            raise click.BadParameter(f"there is no image in the folder {argument}")
        yield from inside


def _is_folder(overlay: Path, paths: list[str]) -> bool:
    """Return whether overlays go into a folder: when there are several, or when the name is no picture's."""
    if len(paths) > 1 and overlay.suffix.lower() in IMAGE_SUFFIXES and not overlay.is_dir():
        raise click.BadParameter("several images need a folder", param_hint="--overlay")
    return overlay.is_dir() or overlay.suffix.lower() not in IMAGE_SUFFIXES


def _only_running(client: EdgeAgentClient) -> str:
    running = [one.name for one in client.list_models() if one.status == "RUNNING"]
    if len(running) != 1:
        known = ", ".join(running) or "none"
        raise click.BadParameter(f"say which model judges; RUNNING are: {known}", param_hint="--model")
    return running[0]


def _with_progress(paths: list[str], *, shown: bool) -> Iterator[str]:
    """Yield the paths; of a folder's worth of images, show on a terminal how many are done."""
    if not shown or len(paths) < 2:
        yield from paths
        return
    with click.progressbar(paths, label="judging", show_pos=True, file=sys.stderr) as bar:
        yield from bar


def _judge(client: EdgeAgentClient, model: str, path: str, *, shm: bool) -> tuple[dict[str, Any], Detection | None]:
    try:
        detection = client.detect(model, path, shm=shm)
    except (CallFailed, OSError, ValueError) as error:
        return {"image": path, "error": str(error)}, None
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
    }, detection


def _write_mask(detection: Detection, target: Path) -> None:
    if detection.mask is None:
        raise click.ClickException("The model makes no mask: it has no segmentation head.")
    _write(Image.fromarray(detection.mask), target)


def _write(picture: Image.Image, target: Path) -> None:
    try:
        picture.save(target)
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{target} cannot be written: {error}") from None


def _line(result: dict[str, Any], width: int) -> str:
    if "error" in result:
        return f"{result['image']}: {result['error']}"
    verdict = click.style("ANOMALOUS", "red") if result["is_anomalous"] else click.style("normal   ", "green")
    types = ", ".join(
        f"{one['name']} {one['total_percentage_area']:.2%}"
        for one in result["anomalies"]
        if one["name"] != "background"
    )
    return f"{result['image']:{width}}  {verdict}  confidence {result['confidence']:.4f}  {types}".rstrip()


def _summary(results: list[dict[str, Any]], seconds: float, overlay: Path | None) -> str:
    failed = sum("error" in result for result in results)
    anomalous = sum(result.get("is_anomalous", False) for result in results)
    told = f"{len(results)} images: {anomalous} anomalous, {len(results) - anomalous - failed} normal"
    told += f", {failed} failed" if failed else ""
    told += f"; {seconds:.1f} s"
    return told + (f"; overlays in {overlay}" if overlay else "")
