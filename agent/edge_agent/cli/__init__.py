"""The command line: argv to a call; one module for each group of commands."""

from importlib.metadata import version

import click

from edge_agent.cli import agent, models


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("vision-edge-agent"), package_name="vision-edge-agent")
def command() -> None:
    """Find defects in images on the device: the Edge Agent and its client."""


for one in (agent.serve, agent.config, models.models, models.start, models.stop, models.detect):
    command.add_command(one)
