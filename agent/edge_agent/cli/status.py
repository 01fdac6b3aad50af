"""`edge-agent status`: what a serving agent is doing, from the file that it keeps in its state folder."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from edge_agent import address, processes, state
from edge_agent.cli.models import socket_option
from edge_agent.cli.shown import shown
from edge_agent.cli.watching import watching
from edge_agent.errors import AgentRefused, printable

LONGEST = 64 << 20
EVERY = 2.0


@click.command()
@socket_option
@click.option(
    "--state-dir",
    envvar="EDGE_AGENT_STATE_DIR",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The agent's state folder; default: as for `serve`.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout, and nothing else.")
@click.option(
    "--watch",
    "every",
    is_flag=False,
    flag_value=EVERY,
    type=click.FloatRange(0.1, 3600),
    metavar="[SECONDS]",
    help=f"Show it again every so many seconds, {EVERY:g} if none are said, until it is interrupted.",
)
def status(socket: str, state_dir: Path | None, as_json: bool, every: float | None) -> None:
    """Show what an agent is doing and what it has counted, as its own user or root.

    It comes from a file in the agent's state folder, at most a second behind. Rates and percentiles are those of the last
    ten seconds.
    """
    path = _file(socket, state_dir)
    if every is None:
        click.echo(_told(path, socket, as_json=as_json))
        return

    def look() -> str:
        try:
            return _told(path, socket, as_json=as_json, indent=None)
        except click.ClickException as error:  # it may be started again
            return json.dumps({"error": error.message}) if as_json else f"Error: {error.message}"

    watching(look, every, in_place=not as_json and sys.stdout.isatty())


def _told(path: Path, socket: str, *, as_json: bool, indent: int | None = 1) -> str:
    """Return what is to be printed; raise ClickException where there is nothing."""
    try:
        found: dict[str, Any] = json.loads(state.read_plain(path, LONGEST))
        front = int(found["agent"]["pid"])
        ended = not Path(f"/proc/{front}").exists()
        found["memory"] = _memory(front, found["models"])
        told = json.dumps(found, indent=indent) if as_json else shown(found)
    except FileNotFoundError:
        raise click.ClickException(
            f"No agent on {printable(socket)} has kept a status in {printable(str(path.parent))}; name its folder with --state-dir."
        ) from None
    except OSError as error:
        raise click.ClickException(f"{printable(str(path))} cannot be read: {error.strerror}.") from None
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
        raise click.ClickException(
            f"{printable(str(path))} is damaged; an agent that serves replaces it with the next call that it answers."
        ) from None
    if ended:
        raise click.ClickException(f"The agent on {printable(socket)} has ended.")
    return told


def _memory(front: int, models: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the proportional memory, in bytes, of each of the agent's processes; None where it cannot be read."""

    def of(pid: int) -> int | None:
        found = processes.memory(pid)
        return found.proportional if found else None

    workers = {one["model"]: of(int(one["worker_pid"])) for one in models if one.get("worker_pid")}
    helpers = [of(pid) or 0 for pid in processes.children(front)]
    return {"front": of(front), "helpers": sum(helpers) if helpers else None, "workers": workers}


def _file(socket: str, state_dir: Path | None) -> Path:
    try:
        folder = (state_dir or state.default_folder()).absolute()
        return state.StateFolder(folder, address.socket_path(socket)).status_file()
    except (AgentRefused, ValueError) as error:
        raise click.ClickException(printable(str(error))) from None
