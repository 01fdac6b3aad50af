"""`edge-agent package`: from the model that a customer holds to a compiled component; looks at jobs and packages."""

import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from edge_agent import state
from edge_agent.cli.tables import table
from edge_agent.errors import AgentRefused, extra, printable
from edge_agent.files import read_regular
from edge_agent.manifest import INTERPOLATIONS

NEEDS_EXTRA = f"Packaging needs the package `onnx` and ONNX Runtime; {extra('cpu,packaging')}."
BAD_ARGUMENTS = 2
PRECISIONS = ("fp32", "fp16", "int8")
FOLDER = "packaging"
# What is longer is cut, and then no JSON.
LARGEST_REQUEST = 1 << 20
STATUS_COLOURS = {"SUCCEEDED": "green", "FAILED": "red", "RUNNING": "yellow"}


class _BadArguments(click.ClickException):
    exit_code = BAD_ARGUMENTS


class _Commands(click.Group):
    """The commands of this module, and one whose module is imported when it is run: it takes what the agent takes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), "prebuild"])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "prebuild":
            from edge_agent.cli.prebuild import prebuild

            return prebuild
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Commands)
def package() -> None:
    """Make model components: from training outputs, components, and ONNX, for a named target.

    Each job imports a model, compiles it, compares it with its source, and writes a component that the agent serves.
    """


_existing_file = click.Path(exists=True, dir_okay=False, path_type=Path)
_existing_folder = click.Path(exists=True, file_okay=False, path_type=Path)
_state_dir = click.option(
    "--state-dir",
    envvar="EDGE_AGENT_STATE_DIR",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder that keeps the jobs; default: the agent's.",
)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout, and nothing else.")


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


def _fraction(flag: str, told: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(flag, type=click.FloatRange(0, 1), callback=_number, help=told)


_SETTINGS: tuple[tuple[str, str, str], ...] = (
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


def _settings(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the settings of the original packaging job."""
    for flag, metavar, told in reversed(_SETTINGS):
        function = click.option(flag, default="", metavar=metavar, help=told)(function)
    return function


@package.command()
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@_settings
@click.option("--output", default="", metavar="DIR|s3://BUCKET/PREFIX", help="Where the component goes. Required.")
@click.option(
    "--request",
    "document",
    type=_existing_file,
    help="The job's settings as one JSON document with the field names of StartModelPackagingJob, instead of the flags above.",
)
@click.option(
    "--manifest", type=_existing_file, help="manifest.json, where the source has none; a sidecar for other ONNX."
)
@click.option("--model", type=_existing_file, help="The .pt or .onnx that belongs to a component with compiled code.")
@click.option("--images", type=_existing_folder, help="Images to compare source and package on; default: noise.")
@click.option("--calibration", type=_existing_folder, help="Images to calibrate int8 on; default: those of --images.")
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="fp32",
    show_default=True,
    help="Arithmetic of the package; int8 needs --images.",
)
@click.option(
    "--int8-weights",
    type=click.Choice(["per-channel", "per-tensor"]),
    default="per-channel",
    show_default=True,
    help="What has a scale of its own.",
)
@click.option(
    "--int8-operators",
    callback=_names,
    metavar="A,B",
    help="ONNX operators to quantise; default: Conv,Clip,Relu,Add.",
)
@click.option(
    "--int8-exclude",
    multiple=True,
    metavar="NODE",
    help="Node that stays float32, as `package inspect --nodes` names it. Repeatable.",
)
@_fraction(
    "--score-tolerance",
    "Largest difference of a score from the source's; default: 0.001 for fp32, 0.01 for fp16, 0.05 for int8.",
)
@_fraction(
    "--mask-tolerance",
    "Largest part of a mask that differs from the source's; default: 0.001 for fp32, 0.01 for fp16, 0.02 for int8.",
)
@click.option("--image-size", callback=_size, metavar="WxH", help="Size of the camera's images (anomalib exports).")
@click.option(
    "--interpolation",
    callback=_interpolation,
    metavar="NAME|CODE",
    help="How images are resized (anomalib exports).",
)
@click.option(
    "--threshold",
    type=float,
    callback=_number,
    help="Score from which on an image is anomalous (anomalib exports).",
)
@click.option(
    "--pixel-threshold",
    type=float,
    callback=_number,
    help="The same for pixels of the anomaly map; default: the image's.",
)
@click.option("--classes", callback=_names, metavar="A,B", help="Names of the pixel classes (anomalib exports).")
@click.option(
    "--color",
    "colours",
    multiple=True,
    callback=_colours,
    metavar="CLASS=#RRGGBB",
    help="Colour of a pixel class in the mask. Repeatable.",
)
@click.option("--any-image-size", is_flag=True, help="The classification model takes images of any size.")
@click.option("--detach", is_flag=True, help="Return at once; `package describe` tells how it goes.")
@_as_json
@_state_dir
def start(
    source: Path, output: str, document: Path | None, detach: bool, as_json: bool, state_dir: Path | None, **given: Any
) -> None:
    """Package a model: a training output (model.tar.gz), a component (.zip or folder), an .onnx or a .pt.

    Waits, and exits with 0 when the job SUCCEEDED, 1 when it FAILED, and 2 when a setting was refused before there was a job.
    """
    with _imported("onnx", "onnxruntime"):
        from model_packager import foreman, request
        from model_packager.errors import PackagingRefused

    settings = {key: given.pop(key) for key in (_key(flag) for flag, _, _ in _SETTINGS)}
    with _refused(BAD_ARGUMENTS):
        if document is None:
            asked = request.from_flags(**settings, output=output)
        else:
            _refuse_both(settings)
            asked = request.from_document(_read_document(document), output)
        order = {
            "request": request.to_document(asked),
            "output": asked.output,
            "source": str(source.absolute()),
            "options": _options(given),
        }
        store = _store(state_dir)
        store.list()  # clears up after jobs that were killed, whose half a component would seem to be there already
        _refuse_taken(order)
        job = store.create(order)
    try:
        if detach:
            job = foreman.run_detached(store, job)
        else:
            with _progress(as_json) as show:
                job = foreman.run_attached(store, job, show)
    except foreman.Interrupted as ended:
        click.echo(f"Error: {ended.job.message}", err=True)
        raise
    except PackagingRefused as refusal:
        raise click.ClickException(printable(str(refusal))) from None
    told = job.document()
    if as_json:
        click.echo(json.dumps(told, indent=1))
    elif detach:
        click.echo(f"{job.name} {told['Status']}")
    else:
        click.echo(_report(told), err=told["Status"] == "FAILED")
    if told["Status"] == "FAILED":
        sys.exit(1)


@package.command()
@click.argument("job_name")
@_as_json
@_state_dir
def describe(job_name: str, as_json: bool, state_dir: Path | None) -> None:
    """Tell how a packaging job goes, or how it went."""
    with _imported(), _refused(1):
        told = _store(state_dir).get(job_name).document()
    click.echo(json.dumps(told, indent=1) if as_json else _report(told))


@package.command("list")
@click.option("--project-name", metavar="P", help="Only the jobs of this project.")
@_as_json
@_state_dir
def list_(project_name: str | None, as_json: bool, state_dir: Path | None) -> None:
    """List the packaging jobs, the newest first."""
    with _imported(), _refused(1):
        jobs = [one.document() for one in _store(state_dir).list(project_name)]
    if as_json:
        click.echo(json.dumps(jobs, indent=1))
        return
    rows = [
        (
            one["JobName"],
            one["ProjectName"],
            "{ComponentName} {ComponentVersion}".format(**one["ModelPackagingOutputDetails"]["Greengrass"]),
            click.style(one["Status"], STATUS_COLOURS.get(one["Status"])),
            one["CreationTimestamp"],
            printable(one["StatusMessage"]),
        )
        for one in jobs
    ]
    click.echo(table(("JOB", "PROJECT", "COMPONENT", "STATUS", "CREATED", "MESSAGE"), rows) if rows else "No jobs.")


@package.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--nodes", is_flag=True, help="Also list the operators that hold weights, by the names that --int8-exclude takes."
)
@_as_json
def inspect(path: Path, nodes: bool, as_json: bool) -> None:
    """Show what a package is: classes, colours, threshold, sizes, target, digests, parity."""
    with _imported(), _refused(1):
        from model_packager import inspecting

        told = inspecting.inspect(path, nodes=nodes)
    if as_json:
        click.echo(json.dumps(told, indent=1))
        return
    for key, value in told.items():
        size = f"{value[0]}x{value[1]}" if key.endswith("_size") and isinstance(value, list) else _shown(value)
        click.echo(f"{key.replace('_', ' '):18} {size}".rstrip())


@package.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--any-target", is_flag=True, help="Pass packages for other devices, too; they are not loaded.")
@_as_json
def verify(path: Path, any_target: bool, as_json: bool) -> None:
    """Check a package as the agent would on this device: files, digests, target, and a first run.

    The recipes that a packaging job wrote beside it are linted, too.
    """
    with _imported(), _refused(1):
        from model_packager import inspecting

        found = inspecting.verify(path, any_target=any_target, load=not any_target)
    if as_json:
        told = {"ok": not found.bad, "good": found.good, "bad": found.bad, "notes": found.notes}
        click.echo(json.dumps(told, indent=1))
    else:
        for sentence in found.good:
            click.echo(f"{click.style('ok', 'green')}   {sentence}")
        for sentence in found.notes:
            click.echo(f"note {sentence}")
        for sentence in found.bad:
            click.echo(f"{click.style('FAIL', 'red')} {printable(sentence)}", err=True)
    if found.bad:
        sys.exit(1)


def _key(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


@contextmanager
def _imported(*needed: str) -> Iterator[None]:
    """Explain a missing package instead of showing a traceback; `needed` are those that only the job will import."""
    try:
        for name in needed:
            if find_spec(name) is None:
                raise ImportError(name)
        yield
    except ImportError:
        raise click.ClickException(NEEDS_EXTRA) from None


@contextmanager
def _refused(code: int) -> Iterator[None]:
    """End the command with the sentence of a refusal."""
    from model_packager.errors import PackagingRefused

    try:
        yield
    except (PackagingRefused, AgentRefused) as refusal:
        error = (
            _BadArguments(printable(str(refusal)))
            if code == BAD_ARGUMENTS
            else click.ClickException(printable(str(refusal)))
        )
        raise error from None


def _store(state_dir: Path | None) -> Any:
    from model_packager import jobs

    return jobs.Store(state.folder(state_dir) / FOLDER)


def _read_document(path: Path) -> Mapping[str, Any]:
    from model_packager.errors import PackagingRefused

    try:
        content = json.loads(read_regular(path, LARGEST_REQUEST))
    except (OSError, ValueError, RecursionError) as error:
        raise PackagingRefused(f"--request {path.name} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise PackagingRefused(f"--request {path.name} must be an object, as StartModelPackagingJob takes it.")
    return content


def _refuse_both(settings: Mapping[str, str]) -> None:
    from model_packager.errors import PackagingRefused

    for key, value in settings.items():
        if value:
            raise PackagingRefused(
                f"--{key.replace('_', '-')} and --request are both given; write the setting into the document."
            )


def _refuse_taken(order: Mapping[str, Any]) -> None:
    """Refuse a version that is there already before a job is made for it."""
    from model_packager import destinations
    from model_packager.errors import PackagingRefused

    greengrass = order["request"]["Configuration"]["Greengrass"]
    name, version = greengrass["ComponentName"], greengrass["ComponentVersion"]
    if destinations.of(order["output"]).taken(name, version):
        raise PackagingRefused(
            f"Component {name} version {version} exists already in {order['output']}; give another --component-version."
        )


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of an order: paths made absolute, since the work is done elsewhere."""
    return {key: str(value.absolute()) if isinstance(value, Path) else value for key, value in given.items()}


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str, float], None]]:
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


def _report(told: Mapping[str, Any]) -> str:
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
