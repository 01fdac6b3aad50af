"""The commands that talk to a serving agent: models, start, stop, detect."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from edge_agent import address
from edge_agent.client import CallFailed, Detection, EdgeAgentClient, ModelInfo

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
ANOMALOUS = 3

_socket = click.option(
    "--socket",
    envvar="EDGE_AGENT_SOCKET",
    default=address.DEFAULT,
    show_default=True,
    metavar="ADDRESS",
    help="The agent's address.",
)


def _connect(socket: str) -> EdgeAgentClient:
    try:
        return EdgeAgentClient(socket)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--socket") from None


@click.command()
@_socket
def models(socket: str) -> None:
    """List the deployed models and their states."""
    with _connect(socket) as client:
        try:
            listed = client.list_models()
        except CallFailed as error:
            raise click.ClickException(str(error)) from None
    if not listed:
        click.echo("No models are deployed.")
        return
    width = max(len(one.name) for one in listed)
    for one in listed:
        click.echo(f"{one.name:{width}}  {one.status:8}  {one.status_message}".rstrip())


@click.command()
@click.argument("name")
@click.option("--wait", is_flag=True, help="Wait until the model is RUNNING; also succeeds when it already was.")
@_socket
def start(name: str, wait: bool, socket: str) -> None:
    """Start a model."""
    with _connect(socket) as client:
        try:
            if wait:
                client.start_and_wait(name, progress=_say)
            else:
                client.start_model(name)
                click.echo(f"{name} STARTING")
        except CallFailed as error:
            raise click.ClickException(f"{name}: {error}") from None


@click.command()
@click.argument("name")
@_socket
def stop(name: str, socket: str) -> None:
    """Stop a model; returns when everything it held is released."""
    with _connect(socket) as client:
        try:
            client.stop_model(name)
        except CallFailed as error:
            raise click.ClickException(f"{name}: {error}") from None
    click.echo(f"{name} STOPPED")


@click.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE|DIR...")
@click.option("--model", required=True, help="The model component that judges.")
@click.option("--shm", is_flag=True, help="Send the images through shared memory.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print a JSON list with one object for each image, and nothing else."
)
@click.option(
    "--fail-on-anomaly", is_flag=True, help=f"Exit with {ANOMALOUS} when an image is anomalous and none failed."
)
@_socket
def detect(images: tuple[str, ...], model: str, shm: bool, as_json: bool, fail_on_anomaly: bool, socket: str) -> None:
    """Judge images, or all images of a folder.

    Exits with 0 when every image was judged, whatever the verdicts; with 1 when one could not be.
    """
    results = []
    paths = list(_expand(images))
    width = max(map(len, paths))
    with _connect(socket) as client:
        for path in paths:
            result = {"image": path, **_judge(client, model, path, shm=shm)}
            results.append(result)
            if not as_json:
                click.echo(_line(result, width), err="error" in result)
    if as_json:
        click.echo(json.dumps(results, indent=1))
    if any("error" in result for result in results):
        sys.exit(1)
    if fail_on_anomaly and any(result["is_anomalous"] for result in results):
        sys.exit(ANOMALOUS)


def _say(info: ModelInfo) -> None:
    click.echo(f"{info.name} {info.status} {info.status_message}".rstrip())


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


def _judge(client: EdgeAgentClient, model: str, path: str, *, shm: bool) -> dict[str, Any]:
    try:
        return _as_dict(client.detect(model, _read(path), shm=shm))
    except (CallFailed, OSError, ValueError) as error:
        return {"error": str(error)}


def _read(path: str) -> NDArray[np.uint8]:
    """Return a file's pixels, height x width x 3 (uint8), RGB, as every client of the field reads them."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError:
        raise ValueError("is not an image that Pillow can read") from None
    except FileNotFoundError:
        raise ValueError("does not exist") from None


def _as_dict(detection: Detection) -> dict[str, Any]:
    return {
        "is_anomalous": detection.is_anomalous,
        "confidence": detection.confidence,
        "anomaly_score": detection.anomaly_score,
        "anomaly_threshold": detection.anomaly_threshold,
        "anomalies": [
            {"name": one.name, "total_percentage_area": one.total_percentage_area, "hex_color": one.hex_color}
            for one in detection.anomalies
        ],
    }


def _line(result: dict[str, Any], width: int) -> str:
    if "error" in result:
        return f"{result['image']}: {result['error']}"
    verdict = "ANOMALOUS" if result["is_anomalous"] else "normal   "
    types = ", ".join(
        f"{one['name']} {one['total_percentage_area']:.2%}"
        for one in result["anomalies"]
        if one["name"] != "background"
    )
    return f"{result['image']:{width}}  {verdict}  confidence {result['confidence']:.4f}  {types}".rstrip()
