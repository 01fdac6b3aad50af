"""`edge-agent bench`: how fast a model is on this very device, under the loads that a line puts on it."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_agent import bitmaps
from edge_agent.bench.shown import Watched, say, tell
from edge_agent.cli.detect import expand
from edge_agent.cli.models import connected, socket_option
from edge_agent.client import EdgeAgentClient, ImageRejected
from edge_agent.errors import printable

if TYPE_CHECKING:
    from edge_agent.bench.frames import Frames
    from edge_agent.bench.plan import Plan
    from edge_agent.bench.report import Report
    from edge_agent.bench.subject import Beside, Subject

WAYS = {"both": ("shm", "inline"), "shm": ("shm",), "inline": ("inline",)}
MOST_CLIENTS = 64
QUICK = 0.5
PROBE = 120.0
# Exports: the flag, and the module and function that make them.
FILES = {"json": ("export", "as_json"), "csv": ("export", "as_csv"), "html": ("page", "as_html")}


def _clients(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, ...]:
    if value is None:
        return ()
    try:
        numbers = tuple(sorted({int(one) for one in value.split(",")}))
    except ValueError:
        numbers = ()
    if not numbers or not 1 <= numbers[0] <= numbers[-1] <= MOST_CLIENTS:
        raise click.BadParameter(f"write numbers of clients from 1 to {MOST_CLIENTS}, as in 1,2,4,8")
    return numbers


def _sizes(_: click.Context, __: click.Parameter, values: Sequence[str]) -> list[tuple[int, int]]:
    found = []
    for value in values:
        width, _by, height = value.partition("x")
        sides = (int(width), int(height)) if width.isdecimal() and height.isdecimal() else (0, 0)
        if not all(bitmaps.SHORTEST_SIDE <= side <= bitmaps.LONGEST_SIDE for side in sides):
            told = f"{bitmaps.SHORTEST_SIDE} to {bitmaps.LONGEST_SIDE} pixels a side"
            raise click.BadParameter(f"{printable(value)} is no size; write it as in 1280x720, {told}")
        found.append(sides)
    return list(dict.fromkeys(found))


def _file(_: click.Context, __: click.Parameter, path: Path | None) -> Path | None:
    """Refuse a file that cannot be written before minutes have been spent."""
    if path and not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise click.BadParameter(f"{printable(str(path))} cannot be written; name another file")
    return path


def _written_to(flag: str, what: str) -> Callable[..., Any]:
    kind = click.Path(path_type=Path, dir_okay=False)
    return click.option(f"--{flag}", type=kind, callback=_file, metavar="FILE", help=f"Write {what} into a file, too.")


@click.command()
@click.argument("model")
@click.argument("images", nargs=-1, metavar="[IMAGE|DIR]...")
@click.option(
    "--rate",
    "rates",
    type=click.FloatRange(0.1, 10_000),
    multiple=True,
    metavar="N",
    help="Parts a second that your line makes. Repeatable; default: 50, 80 and 95 % of what the model manages.",
)
@click.option(
    "--clients", callback=_clients, metavar="N,N...", help="How many clients call at once.  [default: 1,2,4,8]"
)
@click.option("--way", type=click.Choice(list(WAYS)), default="both", show_default=True, help="How images are sent.")
@click.option(
    "--seconds",
    type=click.FloatRange(0.2, 3600),
    metavar="S",
    help="How long each measurement takes, without its warm-up.  [default: 4]",
)
@click.option("--quick", is_flag=True, help="A first impression: half a second each, fewer clients and rates.")
@click.option(
    "--size",
    "sizes",
    multiple=True,
    callback=_sizes,
    metavar="WxH",
    help="Without images: size of the noise that is sent; default: the model's. Repeatable.",
)
@click.option(
    "--package",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="DIR",
    help="The model's package, for the comparison with the bare model; default: what the agent's status says.",
)
@click.option(
    "--state-dir",
    envvar="EDGE_AGENT_STATE_DIR",
    type=click.Path(path_type=Path, readable=False),
    metavar="DIR",
    help="The agent's state folder; default: as for `serve`.",
)
@_written_to("json", "all figures")
@_written_to("csv", "a row of figures for each measurement")
@_written_to("html", "a page with plots, for browser and printer,")
@socket_option
def bench(
    model: str,
    images: tuple[str, ...],
    rates: tuple[float, ...],
    clients: tuple[int, ...],
    way: str,
    seconds: float | None,
    quick: bool,
    sizes: list[tuple[int, int]],
    package: Path | None,
    state_dir: Path | None,
    socket: str,
    **files: Path | None,
) -> None:
    """Measure how fast MODEL is on this device.

    With your IMAGEs, or with noise of its size: one call at a time beside the bare model, then clients that call as fast as they can, then parts that come at the
    pace of a line, whose times count from the instant at which each was due. Takes about two minutes. A model that is
    STOPPED is started, and stopped again afterwards.
    """
    if images and sizes:
        raise click.UsageError("Give images or --size, not both: images have sizes of their own.")
    paths = list(expand(images))
    sent = _read(paths) if paths else []
    from edge_agent.bench.plan import Plan
    from edge_agent.bench.subject import Subject

    few = {"loads": (0.5,)} if quick else {}
    plan = Plan(
        WAYS[way],
        clients or ((1, 2) if quick else Plan.clients),
        rates,
        seconds or (QUICK if quick else Plan.seconds),
        **few,
    )
    with connected(socket, model) as client, _running(client, model):
        subject = Subject.find(model, client.socket_path, state_dir)
        beside = subject.beside(package)
        sent = sent or _noise(sizes, beside)
        for one in sent:
            _probe(client, model, one, plan)
        report = _measure(subject, plan, sent, beside, len(paths))
    tell(report)
    _write(report, files)


def _read(paths: list[str]) -> "list[Frames]":
    from edge_agent.bench import frames
    from edge_agent.images import NotAnImage

    try:
        return frames.read(paths)
    except NotAnImage as error:
        raise click.BadParameter(printable(str(error)), param_hint="IMAGE") from None


@contextmanager
def _running(client: EdgeAgentClient, model: str) -> Iterator[None]:
    """Start the model unless it runs, and stop it again in that case."""
    if client.describe_model(model).status == "RUNNING":
        yield
        return
    say(f"{model} does not run: it is started, and stopped afterwards.")
    client.start_and_wait(model)
    try:
        yield
    finally:
        client.stop_model(model)


def _noise(sizes: list[tuple[int, int]], beside: "Beside | None") -> "list[Frames]":
    from edge_agent.bench import frames

    if not sizes and beside and (size := beside.image_size()):
        sizes = [size]
    if not sizes:
        raise click.UsageError(
            "The size of the model's images cannot be found out, since its package cannot be read; name images, or give "
            "--size, as in --size 1280x720."
        )
    return [frames.noise(size) for size in sizes]


def _probe(client: EdgeAgentClient, model: str, frames: "Frames", plan: "Plan") -> None:
    """Judge one image each way: what the agent refuses is told at once, with the image's name."""
    import numpy as np

    width, height = frames.size
    pixels = np.frombuffer(frames.pixels[0], np.uint8).reshape(height, width, 3)
    name = printable(frames.names[0]) if frames.names else f"noise of {width}x{height}"
    try:
        client.detect(model, pixels, shm=False, timeout=PROBE)
    except ImageRejected as error:
        raise click.BadParameter(
            f"{name}: {printable(str(error))}", param_hint="IMAGE" if frames.names else "--size"
        ) from None
    try:
        if "shm" in plan.ways:
            client.detect(model, pixels, shm=True, timeout=PROBE)
    except (ImageRejected, OSError) as error:
        raise click.ClickException(
            f"Shared memory cannot be used: {printable(str(error))} Or measure --way inline."
        ) from None


def _measure(
    subject: "Subject",
    plan: "Plan",
    sent: "list[Frames]",
    beside: "Beside | None",
    given: int,
) -> "Report":
    from edge_agent.bench import device, run
    from edge_agent.bench.crew import MeasuringFailed
    from edge_agent.bench.report import Report
    from edge_agent.bench.subject import unknown

    told = subject.status.model()
    report = Report(
        subject.model,
        device.describe(),
        told.get("options"),
        _images(given, sent),
        notes=tuple(unknown(subject, beside)),
    )
    with Watched(plan.steps() * len(sent)) as watched:
        say(f"Measuring {subject.model}: {watched.total} loads, about {_minutes(plan, len(sent), subject)}.")
        try:
            report = run.run(subject, plan, sent, beside, report, run.Told(watched.before, watched.found))
        except (MeasuringFailed, OSError) as error:
            raise click.ClickException(printable(str(error))) from None
    silent = [one.name for one in report.measurements if not one.times]
    if silent:
        raise click.ClickException(f"No call was answered with a verdict: {printable(', '.join(silent))}.")
    return report


def _images(given: int, sent: "list[Frames]") -> str:
    """Say what is sent; `given` is how many images were named."""
    sizes = ", ".join(f"{one.size[0]}x{one.size[1]}" for one in sent)
    count = sum(len(one.pixels) for one in sent)
    return f"{count} of {given}, {sizes}" if given else f"noise, {sizes}"


def _minutes(plan: "Plan", sizes: int, subject: "Subject") -> str:
    seconds = sizes * plan.lasts(settling=not subject.status.why_not)
    return f"{math.ceil(seconds)} s" if seconds < 100 else f"{seconds / 60:.1f} minutes"


def _write(report: "Report", files: dict[str, Path | None]) -> None:
    from importlib import import_module

    for flag, path in files.items():
        if path:
            module, function = FILES[flag]
            path.write_text(getattr(import_module(f"edge_agent.bench.{module}"), function)(report), encoding="utf-8")
            say(f"Written: {path}")
