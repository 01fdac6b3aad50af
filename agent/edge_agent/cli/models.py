"""The commands that talk to a serving agent about its models: models, describe, start, stop."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from edge_agent import address
from edge_agent.cli.tables import table
from edge_agent.client import CallFailed, EdgeAgentClient, ModelInfo
from edge_agent.errors import printable

socket_option: Callable[..., Any] = click.option(
    "--socket",
    envvar="EDGE_AGENT_SOCKET",
    default=address.DEFAULT,
    show_default=True,
    metavar="ADDRESS",
    help="The agent's address.",
)
STATUS_COLOURS = {"RUNNING": "green", "FAILED": "red", "STARTING": "yellow", "STOPPING": "yellow"}


@contextmanager
def connected(socket: str, name: str = "") -> Iterator[EdgeAgentClient]:
    """Yield a client; what the agent refuses ends the command with its sentence and exit code 1."""
    try:
        client = EdgeAgentClient(socket)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--socket") from None
    with client:
        try:
            yield client
        except CallFailed as error:
            raise click.ClickException(printable(f"{name}: {error}" if name else str(error))) from None


@click.command()
@socket_option
def models(socket: str) -> None:
    """List the deployed models and their states."""
    with connected(socket) as client:
        listed = client.list_models()
    if not listed:
        click.echo("No models are deployed.")
        return
    rows = [
        (printable(one.name), click.style(one.status, STATUS_COLOURS.get(one.status)), printable(one.status_message))
        for one in listed
    ]
    click.echo(table(("MODEL", "STATUS", "MESSAGE"), rows))


@click.command()
@click.argument("name")
@socket_option
def describe(name: str, socket: str) -> None:
    """Describe one model."""
    with connected(socket, name) as client:
        info = client.describe_model(name)
    for label, value in (
        ("model", info.name),
        ("arn", info.arn),
        ("status", info.status),
        ("message", info.status_message),
    ):
        click.echo(f"{label:8} {printable(value)}".rstrip())


@click.command()
@click.argument("name")
@click.option("--wait", is_flag=True, help="Wait until the model is RUNNING; also succeeds when it already was.")
@socket_option
def start(name: str, wait: bool, socket: str) -> None:
    """Start a model."""
    with connected(socket, name) as client:
        if wait:
            client.start_and_wait(name, progress=_say)
        else:
            client.start_model(name)
            click.echo(f"{name} STARTING")


@click.command()
@click.argument("name")
@socket_option
def stop(name: str, socket: str) -> None:
    """Stop a model; returns when everything it held is released."""
    with connected(socket, name) as client:
        client.stop_model(name)
    click.echo(f"{name} STOPPED")


def _say(info: ModelInfo) -> None:
    click.echo(printable(f"{info.name} {info.status} {info.status_message}".rstrip()))
