"""`edge-agent serve` and `edge-agent config`: the flags are the settings themselves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
import yaml

from edge_agent import config as settings_of
from edge_agent.config import Settings
from edge_agent.errors import AgentRefused

REFUSED = 2
METAVARS = {
    **dict.fromkeys(("models", "registry", "registry_roots", "scan", "state_dir"), "DIR"),
    **dict.fromkeys(("log_file", "metrics_file"), "FILE"),
    **dict.fromkeys(("socket", "metrics_address"), "ADDRESS"),
    "autostart": "MODEL,...",
    "trusted_uids": "UID,...",
    "cpus": "N,N...",
}
# Settings that people write in MiB and GiB.
SIZES = {"memory_reserve", "gpu_memory_reserve", "engine_cache_size", "log_file_size"}


def _flags(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --config and one flag for each setting that can be written in one word."""
    for key, field in reversed(Settings.model_fields.items()):
        if key == "model_settings":
            continue  # a table: it belongs into the file
        flag = f"--{key.replace('_', '-')}"
        has_default = field.default not in (None, (), "")
        told = f"{field.description}{f'  [default: {written(key, field.default)}]' if has_default else ''}"
        if field.annotation is bool:
            option = click.option(f"{flag}/--no-{flag[2:]}", key, default=None, help=told)
        else:
            choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
            metavar = f"[{'|'.join(choices)}]" if choices else METAVARS.get(key, "VALUE")
            many = key in {"models", "registry_roots", "trusted_uids", "autostart"}
            help_text = f"{told} Repeatable." if many else told
            option = click.option(flag, key, multiple=many, default=None, metavar=metavar, help=help_text)
        function = option(function)
    file = click.Path(path_type=Path)
    return click.option(
        "--config", "file", type=file, help="YAML file of settings; flags and EDGE_AGENT_* win over it."
    )(function)


def written(key: str, value: object) -> str:
    """Return a value as one would write it in the YAML file."""
    if key == "socket_mode":
        return f'"{value:04o}"'
    if key in SIZES:
        assert isinstance(value, int)  # bytes
        return f"{value >> 30}GiB" if value >= 1 << 30 else f"{value >> 20}MiB"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _settings(file: Path | None, flags: dict[str, Any]) -> Settings:
    given = {key: value for key, value in flags.items() if value is not None and value != ()}
    for sentence in settings_of.strange_variables():
        click.echo(f"warning: {sentence}", err=True)
    try:
        return settings_of.load(file, given)
    except AgentRefused as refusal:
        raise _Refused(str(refusal)) from None


class _Refused(click.ClickException):
    """A start that was refused, as one sentence on stderr."""

    exit_code = REFUSED


@click.command()
@_flags
def serve(file: Path | None, **flags: Any) -> None:
    """Serve the models in the models folders until SIGTERM.

    Settings come from defaults < the YAML file < EDGE_AGENT_* variables < flags.
    """
    settings = _settings(file, flags)
    from edge_agent import server

    try:
        stuck = server.Agent(settings).run()
    except AgentRefused as refusal:
        raise _Refused(str(refusal)) from None
    if stuck:
        server.leave()


@click.command()
@_flags
def config(file: Path | None, **flags: Any) -> None:
    """Print the effective settings as YAML."""
    settings = _settings(file, flags).model_dump(mode="json")
    settings["socket_mode"] = f"{settings['socket_mode']:04o}"
    click.echo(yaml.safe_dump(settings, sort_keys=False), nl=False)
