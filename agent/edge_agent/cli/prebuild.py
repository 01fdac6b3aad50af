"""`edge-agent package prebuild`: build the engines of models ahead of their first start, which takes minutes."""

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any, get_args

import click

from edge_agent import config, state
from edge_agent.accelerators import Wanted
from edge_agent.catalog import Catalog
from edge_agent.cli.deployed import living, registry_of
from edge_agent.config import Settings
from edge_agent.doctor.users import named
from edge_agent.errors import AgentRefused, printable
from edge_agent.packages import Found
from edge_agent.state import StateFolder
from edge_agent.tuned import Tuned
from edge_agent.ways import Ways

if TYPE_CHECKING:
    from typing_extensions import Self

AT_WORK = {"RUNNING", "STARTING"}


@click.command()
@click.argument(
    "packages", nargs=-1, metavar="[FOLDER]...", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option("--config", "file", metavar="FILE", type=click.Path(path_type=Path), help="The agent's settings.")
@click.option("--state-dir", metavar="DIR", help="The agent's state folder; default: as for `serve`.")
@click.option(
    "--accelerator",
    type=click.Choice(get_args(Wanted)),
    help="The agent's setting, by which it chooses the models that engines are built for; default: as for `serve`.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, and nothing else.")
def prebuild(packages: tuple[Path, ...], file: Path | None, as_json: bool, **given: str | None) -> None:
    """Build TensorRT engines ahead of the first start.

    FOLDER is a package, or has packages in it; default: all that the settings name. Run it on the device, as the agent's
    user and with the agent's settings: an engine is of one GPU, driver and TensorRT, and is loaded only by the user who
    built it. The exit code is 0 when all that the agent needs is there, 1 when something could not be built.
    """
    try:
        settings = config.load(file, {key: value for key, value in given.items() if value})
        _refuse_another_user(settings)
        folder = StateFolder(state.folder(settings.state_dir), settings.socket_path)
    except AgentRefused as refusal:
        raise click.UsageError(printable(str(refusal))) from None
    _warn_of_work(folder)
    told = _built(packages, settings, folder, as_json=as_json)
    ok = all(one["outcome"] != "failed" for one in told)
    if as_json:
        click.echo(json.dumps({"ok": ok, "models": told}, indent=1))
    if not ok:
        sys.exit(1)


def _refuse_another_user(settings: Settings) -> None:
    """Raise AgentRefused unless we are who the agent will be: it does not load what anybody else has built."""
    path = (settings.state_dir or state.default_folder()).absolute()
    try:
        owner = path.stat().st_uid
    except OSError:
        owner = None  # it will be made, or refused
    if owner not in (None, os.geteuid()):
        raise AgentRefused(
            f"--state-dir {path} belongs to {named(owner)}, and an engine is loaded only by who built it. "
            f"Run this as that user: sudo -u {_for_sudo(owner)} edge-agent package prebuild ..."
        )
    if os.geteuid() == 0 and not settings.allow_root:
        raise AgentRefused(
            "The agent does not run as root, and an engine is loaded only by who built it. Run this as the agent's user: "
            "sudo -u USER edge-agent package prebuild ... (or set allow_root, where the agent has it, too)."
        )


def _for_sudo(uid: int) -> str:
    name = named(uid).partition(" (uid")[0]
    return f"'#{uid}'" if name == named(uid) else name


def _warn_of_work(folder: StateFolder) -> None:
    at_work = sorted(name for name, one in living(folder).items() if one.get("state") in AT_WORK)
    if at_work:
        click.echo(
            f"warning: the agent has {printable(', '.join(at_work))} loaded; building takes the GPU's time and memory from them, "
            "and is best done while the line stands still.",
            err=True,
        )


def _built(
    folders: Sequence[Path], settings: Settings, state_folder: StateFolder, *, as_json: bool
) -> list[dict[str, Any]]:
    """Build the engines of all packages; return what became of each, and print it unless it will be JSON."""
    from edge_agent.prebuilding import Prebuilder

    ways = Ways(settings)
    told = []
    with _deployed(folders, settings, ways) as models:
        builder = Prebuilder(settings, ways, Tuned(state_folder.tuned_file()).of)
        for found in models:
            with _Teller(found.name) as teller:
                one = asdict(builder.build(found, teller.tell))
            told.append({"name": found.name, "version": found.version, "package": str(found.folder), **one})
            if not as_json:
                click.echo(_line(told[-1]), err=one["outcome"] == "failed")
    return told


@contextmanager
def _deployed(folders: Sequence[Path], settings: Settings, ways: Ways) -> Iterator[list[Found]]:
    """Yield the packages in some folders, or else all that the agent would find; raise click.ClickException for none."""
    rules = ways.rules()
    with tempfile.TemporaryDirectory(prefix="edge-agent-packages-") as unpacked:
        if folders:
            catalog = Catalog(folders, rules)
        else:
            catalog = Catalog(
                settings.models, rules, registry_of(settings, settings.trusted_uids, Path(unpacked)), settings.scan
            )
        models = [found[0] for _, found in sorted(catalog.look().items())]
        if not models:
            where = "in " + ", ".join(map(str, folders)) if folders else "where the settings look; name their FOLDER"
            raise click.ClickException(printable(f"There is no model package {where}."))
        yield models


class _Teller:
    """Shows on stderr what is being done to a model: on a terminal in one line, which is taken away at the end."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._drawn = 0

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()

    def tell(self, text: str) -> None:
        """Show it."""
        line = printable(f"{self._name}: {text}")
        if not sys.stderr.isatty():
            click.echo(line, err=True)
            return
        self._clear()
        line = line[: get_terminal_size().columns - 1]
        self._drawn = len(line)
        click.echo(line, nl=False, err=True)

    def _clear(self) -> None:
        if self._drawn:
            # Spaces, since not every terminal knows how to erase a line.
            click.echo(f"\r{' ' * self._drawn}\r", nl=False, err=True)
            self._drawn = 0


def _line(told: dict[str, Any]) -> str:
    """Return what became of a model as people read it."""
    name = printable(f"{told['name']} {told['version']}")
    if told["outcome"] == "failed":
        return f"{name}: {click.style('FAILED', 'red')}: {printable(told['reason'])}"
    if told["outcome"] == "nothing":
        return f"{name}: nothing to build. {printable(told['reason'])}"
    what = "built" if told["outcome"] == "built" else "in the cache already"
    return f"{name}: {click.style(what, 'green')}, loaded in {told['seconds']:.1f} s on {printable(told['provider'])}"
