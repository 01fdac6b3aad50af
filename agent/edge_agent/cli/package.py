"""`edge-agent package`: from the model that a customer holds to a compiled component; looks at jobs and packages."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from edge_agent import state
from edge_agent.cli import package_options, package_shown
from edge_agent.cli.package_options import EXISTING_FILE
from edge_agent.errors import AgentRefused, extra, printable
from edge_agent.files import read_regular

NEEDS_EXTRA = f"Packaging needs the package `onnx` and ONNX Runtime; {extra('cpu,packaging')}."
BAD_ARGUMENTS = 2
FOLDER = "packaging"
# What is longer is cut, and then no JSON.
LARGEST_REQUEST = 1 << 20


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
    """Make model components, and look at them.

    They are made from training outputs, components and ONNX, for a named target. Each job imports a model, compiles it, compares it with its source, and writes a component that the agent serves.
    """


_state_dir = click.option(
    "--state-dir",
    envvar="EDGE_AGENT_STATE_DIR",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder that keeps the jobs; default: the agent's.",
)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout, and nothing else.")


@package.command()
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@package_options.of_job
@click.option("--output", default="", metavar="DIR|s3://BUCKET/PREFIX", help="Where the component goes. Required.")
@click.option(
    "--request",
    "document",
    type=EXISTING_FILE,
    help="The job's settings as one JSON document with the field names of StartModelPackagingJob, instead of the flags above.",
)
@package_options.of_model
@click.option("--detach", is_flag=True, help="Return at once; `package describe` tells how it goes.")
@_as_json
@_state_dir
def start(
    source: Path, output: str, document: Path | None, detach: bool, as_json: bool, state_dir: Path | None, **given: Any
) -> None:
    """Make a component of a model.

    SOURCE is a training output (model.tar.gz), a component (.zip or folder), an .onnx or a .pt. Waits, and exits with 0 when the job SUCCEEDED, 1 when it FAILED, and 2 when a setting was refused before there was a job.
    """
    with _imported("onnx", "onnxruntime"):
        from model_packager import foreman, request
        from model_packager.errors import PackagingRefused

    settings = {key: given.pop(key) for key in package_options.JOB_KEYS}
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
            with package_shown.progress(quiet=as_json) as show:
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
        click.echo(package_shown.report(told), err=told["Status"] == "FAILED")
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
    click.echo(json.dumps(told, indent=1) if as_json else package_shown.report(told))


@package.command("list")
@click.option("--project-name", metavar="P", help="Only the jobs of this project.")
@_as_json
@_state_dir
def list_(project_name: str | None, as_json: bool, state_dir: Path | None) -> None:
    """List the packaging jobs, the newest first."""
    with _imported(), _refused(1):
        jobs = [one.document() for one in _store(state_dir).list(project_name)]
    click.echo(json.dumps(jobs, indent=1) if as_json else package_shown.jobs(jobs))


@package.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--nodes", is_flag=True, help="Also list the operators that hold weights, by the names that --int8-exclude takes."
)
@_as_json
def inspect(path: Path, nodes: bool, as_json: bool) -> None:
    """Show what a package is and what it says of itself.

    Classes, colours, threshold, sizes, target, digests, parity.
    """
    with _imported(), _refused(1):
        from model_packager import inspecting

        told = inspecting.inspect(path, nodes=nodes)
    click.echo(json.dumps(told, indent=1) if as_json else package_shown.inspected(told))


@package.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--any-target", is_flag=True, help="Pass packages for other devices, too; they are not loaded.")
@_as_json
def verify(path: Path, any_target: bool, as_json: bool) -> None:
    """Check a package as the agent would on this device.

    Files, digests, target, and a first run. The recipes that a packaging job wrote beside it are linted, too.
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
