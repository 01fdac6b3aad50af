"""`edge-agent status`: what a serving agent is doing, from the file that it keeps in its state folder."""

import json
import os
import socket as sockets
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from edge_agent import address, heartbeat, processes, state
from edge_agent.cli.models import socket_option
from edge_agent.cli.shown import Room, shown, wrapped
from edge_agent.cli.watching import terminal, watching
from edge_agent.errors import AgentRefused, printable
from edge_agent.heartbeat import Life

LONGEST = 64 << 20
EVERY = 2.0
PROBE_PATIENCE = 1.0
SILENT = (
    "The agent has told nothing for {age:.0f} s; what follows is that old. It stands still, or it cannot write its state "
    "folder, which its log says."
)
# What a file that is no status makes us stumble over.
DAMAGE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
ELSEWHERE = "Whether the agent lives cannot be told here: it runs in another PID namespace. Ask in its container."


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
    """Show what an agent does and what it has counted.

    For the agent's own user and root: it comes from a file in the state folder, at most a second behind. Rates and percentiles are those of good answers
    within the last ten seconds. The exit code is 1 where the agent has ended, or has told nothing for three seconds.
    """
    path = _file(socket, state_dir)
    on_terminal = sys.stdout.isatty()
    if every is None:
        told = _told(path, socket)
        room = Room(terminal().columns) if on_terminal else Room()
        click.echo(json.dumps(told.found, indent=1) if as_json else _shown(told, path, room))
        if told.life.silent:
            sys.exit(1)
        return

    def look() -> str:
        room = Room(*terminal()) if on_terminal else Room()
        try:
            told = _told(path, socket)
            return json.dumps(told.found) if as_json else _shown(told, path, room)
        except click.ClickException as error:  # it may be started again
            return json.dumps({"error": error.message}) if as_json else "\n".join(wrapped([f"Error: {error}"], room))

    watching(look, every, in_place=not as_json and on_terminal)


@dataclass(frozen=True)
class _Told:
    """What an agent has told, and what is known of its life."""

    found: dict[str, Any]
    life: Life


def _told(path: Path, socket: str) -> _Told:
    """Return what an agent tells; raise ClickException where there is nothing."""
    try:
        found: dict[str, Any] = json.loads(state.read_plain(path, LONGEST))
        life = heartbeat.life(found)
        found["age_s"] = None if life.age is None else round(life.age, 3)
        found["memory"] = _memory(int(found["agent"]["pid"]), found["models"], here=life.lives is not None)
    except FileNotFoundError:
        raise click.ClickException(
            f"No agent on {printable(socket)} has kept a status in {printable(str(path.parent))}; name its folder with --state-dir."
        ) from None
    except OSError as error:
        raise click.ClickException(f"{printable(str(path))} cannot be read: {error.strerror}.") from None
    except DAMAGE:
        raise _damaged(path) from None
    if life.lives is False:
        raise click.ClickException(_ended(socket))
    return _Told(found, life)


def _shown(told: _Told, path: Path, room: Room) -> str:
    """Return it for people; raise ClickException where it is no status."""
    warning = SILENT.format(age=told.life.age) if told.life.silent else "" if told.life.lives else ELSEWHERE
    try:
        return shown(told.found, warning, room)
    except DAMAGE:
        raise _damaged(path) from None


def _damaged(path: Path) -> click.ClickException:
    return click.ClickException(
        f"{printable(str(path))} is damaged; an agent that serves replaces it with the next call that it answers."
    )


def _ended(socket: str) -> str:
    """Return what is to be said of a status whose agent has ended."""
    if _served(socket):
        return (
            f"Something serves on {printable(socket)}, but the last status there is of an agent that has ended. If this "
            "stays so, the log of the one that serves says why it cannot write its own."
        )
    return f"The agent on {printable(socket)} has ended."


def _served(socket: str) -> bool:
    """Return whether somebody accepts connections there."""
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_PATIENCE)
        try:
            probe.connect(os.fspath(address.socket_path(socket)))
        except OSError:
            return False
    return True


def _memory(front: int, models: list[dict[str, Any]], *, here: bool) -> dict[str, Any]:
    """Return the proportional memory, in bytes, of each of the agent's processes; None where it cannot be read.

    Where the agent's pids do not hold `here`, they would be those of other processes.
    """

    def of(pid: int) -> int | None:
        found = processes.memory(pid) if here else None
        return found.proportional if found else None

    workers = {one["model"]: of(int(one["worker_pid"])) for one in models if one.get("worker_pid")}
    helpers = [of(pid) or 0 for pid in (processes.children(front) if here else [])]
    return {"front": of(front), "helpers": sum(helpers) if helpers else None, "workers": workers}


def _file(socket: str, state_dir: Path | None) -> Path:
    try:
        folder = (state_dir or state.default_folder()).absolute()
        return state.StateFolder(folder, address.socket_path(socket)).status_file()
    except (AgentRefused, ValueError) as error:
        raise click.ClickException(printable(str(error))) from None
