"""`edge-agent status`: what a serving agent is doing, from the file that it keeps in its state folder."""

import json
from pathlib import Path
from typing import Any

import click

from edge_agent import address, state
from edge_agent.cli.models import STATUS_COLOURS, socket_option
from edge_agent.cli.tables import table
from edge_agent.errors import AgentRefused, printable

LONGEST = 64 << 20
EVENTS = ("started", "died", "hung", "swapped")
FALLBACK = " (fallback)"


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
def status(socket: str, state_dir: Path | None, as_json: bool) -> None:
    """Show what an agent is doing and what it has counted, as its own user or root.

    It comes from a file in the agent's state folder, at most a second behind.
    """
    path = _file(socket, state_dir)
    try:
        found: dict[str, Any] = json.loads(state.read_plain(path, LONGEST))
        told = json.dumps(found, indent=1) if as_json else _shown(found)
        ended = not Path(f"/proc/{int(found['agent']['pid'])}").exists()
    except FileNotFoundError:
        raise click.ClickException(
            f"No agent on {printable(socket)} has kept a status in {printable(str(path.parent))}; name its folder with --state-dir."
        ) from None
    except OSError as error:
        raise click.ClickException(f"{printable(str(path))} cannot be read: {error.strerror}.") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise click.ClickException(
            f"{printable(str(path))} is damaged; an agent that serves replaces it with the next call that it answers."
        ) from None
    if ended:
        raise click.ClickException(f"The agent on {printable(socket)} has ended.")
    click.echo(told)


def _file(socket: str, state_dir: Path | None) -> Path:
    try:
        folder = (state_dir or state.default_folder()).absolute()
        return state.StateFolder(folder, address.socket_path(socket)).status_file()
    except (AgentRefused, ValueError) as error:
        raise click.ClickException(printable(str(error))) from None


def _shown(found: dict[str, Any]) -> str:
    """Return the status for people."""
    agent = {key: printable(str(value)) for key, value in found["agent"].items()}
    lines = [f"Edge Agent {agent['version']}, pid {agent['pid']}, since {agent['started']}, on {agent['socket']}"]
    heads = ("MODEL", "VERSION", "STATUS", "RUNS ON", "CALLS", "FAILED", *map(str.upper, EVENTS))
    rows = _rows(found)
    lines.append(table(heads, rows, range(4, 4 + 2 + len(EVENTS))) if rows else "No models are deployed.")
    return "\n".join(lines)


def _rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for model in found["models"]:
        calls = [one for one in found["calls"] if (one["rpc"], one["model"]) == ("DetectAnomalies", model["model"])]
        failed = sum(one["count"] for one in calls if one["code"] != "OK")
        events = found["workers"].get(model["model"], {})
        rows.append(
            (
                printable(model["model"]),
                printable(model["version"]),
                click.style(printable(model["state"]), STATUS_COLOURS.get(model["state"])),
                _runs_on(model),
                str(sum(one["count"] for one in calls)),
                str(failed),
                *(str(int(events.get(event, 0))) for event in EVENTS),
            )
        )
    return rows


def _runs_on(model: dict[str, Any]) -> str:
    """Return what a model runs on, and whether it fell back to that; an older agent does not tell."""
    return printable(str(model.get("accelerator") or "-")) + (FALLBACK if model.get("fallback") else "")
