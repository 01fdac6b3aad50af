"""The command line: argv to a call; one module for each group of commands."""

from importlib import import_module
from importlib.metadata import version

import click

from edge_agent.cli.boundary import ending_in_order

# Command -> the module it is in. A module is imported when one of its commands is run, so that the daemon does not
# carry the client's libraries.
COMMANDS = {
    "serve": "agent",
    "config": "agent",
    "models": "models",
    "describe": "models",
    "start": "models",
    "stop": "models",
    "status": "status",
    "detect": "detect",
    "bench": "bench",
    "tune": "tune",
    "doctor": "doctor",
    "fit": "fit",
    "package": "package",
    "component": "component",
    "demo": "demo",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (click's signature)
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        found: click.Command = getattr(import_module(f"edge_agent.cli.{COMMANDS[cmd_name]}"), cmd_name)
        return found


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("vision-edge-agent"), package_name="vision-edge-agent")
@click.pass_context
def command(ctx: click.Context) -> None:
    """Find defects in images on the device: the Edge Agent and its client."""
    if ctx.invoked_subcommand != "serve":  # which has an end of its own
        ctx.with_resource(ending_in_order())
