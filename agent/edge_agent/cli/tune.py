"""`edge-agent tune`: find how a model runs best on this device, and let the agent run it so."""

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from edge_agent import config
from edge_agent.cli.deployed import NotDeployed, deployed, living, state_path
from edge_agent.cli.outcome import as_json, plotted, tabled, verdict
from edge_agent.cli.progress import Progress
from edge_agent.config import Settings
from edge_agent.errors import AgentRefused, printable
from edge_agent.packages import Found
from edge_agent.state import StateFolder
from edge_agent.tuned import Tuned, cores
from edge_agent.tuning import GOALS, ROUNDS, Candidate, Goal, Outcome, best, compete, plan

TUNABLE = ("threads", "slots", "spinning")
# Processors; what an idle system does by itself takes less.
NOTICEABLE = 0.15
AT_WORK = {"RUNNING", "STARTING"}


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say where the agent and its models are."""
    for option in (
        click.option("--config", "file", metavar="FILE", type=click.Path(path_type=Path), help="The agent's settings."),
        click.option("--socket", metavar="ADDRESS", help="The agent's address; default: as for `serve`."),
        click.option("--state-dir", metavar="DIR", help="The agent's state folder; default: as for `serve`."),
        click.option("--models", multiple=True, metavar="DIR", help="Folder of packages, as for `serve`. Repeatable."),
        click.option(
            "--package",
            metavar="DIR",
            type=click.Path(exists=True, file_okay=False, path_type=Path),
            help="The model's package, or a folder in which it is.",
        ),
    ):
        function = option(function)
    return function


@click.command()
@click.argument("model")
@_options
@click.option(
    "--for", "goal", type=click.Choice(GOALS), default="latency", show_default=True, help="What to be best at."
)
@click.option(
    "--seconds",
    type=click.FloatRange(0, 3600, min_open=True),
    default=6.0,
    show_default=True,
    metavar="S",
    help="For how long each way to run it is measured; loading comes on top.",
)
@click.option("--dry-run", is_flag=True, help="Only measure, and leave the settings as they are.")
@click.option(
    "--json",
    "report",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write all figures to FILE.",
)
def tune(
    model: str, goal: Goal, seconds: float, dry_run: bool, report: Path | None, package: Path | None, **where: Any
) -> None:
    """Find how MODEL runs best on this device.

    Threads, slots and spinning are tried in every combination that makes sense. The best is kept in the agent's state folder, and used from the model's next start on; what the agent's own
    model_settings say wins over it. Whatever else the device does disturbs the measurement.
    """
    settings, path = _settings(where.pop("file"), where, for_writing=not dry_run)
    _check_writable(report)
    folder = StateFolder(path, settings.socket_path)
    told = living(folder)
    owner = path.stat().st_uid if path.exists() else os.geteuid()
    try:
        with deployed(model, package, settings, owner, told) as found:
            _warn_of_work(told)
            outcome, others = _measured(found, settings, seconds)
    except NotDeployed as refusal:
        raise click.ClickException(printable(str(refusal))) from None
    chosen = best(outcome.measured, goal)
    if chosen is None:
        raise click.ClickException(f"{model} could be run in no way; the reasons are above.")
    click.echo(f"\n{tabled(outcome)}\n\n{plotted(outcome.measured, goal)}\n\n{verdict(outcome.measured, goal)}")
    if report:
        content = {**as_json(found, outcome, goal), "seconds": seconds, "others": others}
        report.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    _warn_of_others(others)
    if dry_run:
        click.echo("Nothing was written (--dry-run).")
        return
    file = folder.tuned_file()
    Tuned(file).write(model, threads=chosen.threads, slots=chosen.slots, spinning=chosen.spinning)
    _warn_of_own(model, settings, chosen)
    click.echo(f"Written to {printable(str(file))}. {_from_when(model, living(folder), where['socket'])}")


def _settings(file: Path | None, where: Mapping[str, Any], *, for_writing: bool) -> tuple[Settings, Path]:
    """Return the agent's settings and its state folder."""
    try:
        settings = config.load(file, {key: value for key, value in where.items() if value})
        return settings, state_path(settings, for_writing=for_writing)
    except AgentRefused as refusal:
        raise click.UsageError(str(refusal)) from None


def _check_writable(report: Path | None) -> None:
    """Refuse a file that could not be written once all is measured."""
    if report and not os.access(report if report.exists() else report.absolute().parent, os.W_OK):
        raise click.BadParameter(f"{printable(str(report))} cannot be written; name another file", param_hint="--json")


class _Teller:
    """Shows on stderr how far the measurement is: a bar on a terminal, else a line for each round."""

    def __init__(self, bar: Progress, turns: int) -> None:
        self._bar = bar
        self._turns = turns
        self._told = 0

    def turned(self, done: int) -> None:
        self._bar.show(done)
        if not sys.stderr.isatty() and done * ROUNDS // self._turns > self._told:
            self._told = done * ROUNDS // self._turns
            self._say(f"{done} of {self._turns} turns")

    def dropped(self, candidate: Candidate) -> None:
        self._say(f"{candidate}: clearly slower, measured no further")

    def failed(self, candidate: Candidate, reason: str) -> None:
        self._say(f"{candidate}: left out. {printable(reason)}")

    def _say(self, line: str) -> None:
        self._bar.clear()
        click.echo(line, err=True)


def _measured(found: Found, settings: Settings, seconds: float) -> tuple[Outcome, float]:
    """Return what was measured, and how many processors other work used meanwhile."""
    from edge_agent.trials import Stand  # and NumPy with it

    assert found.package is not None  # who found it has looked
    manifest = found.package.manifest
    width, height = manifest.image_size
    processors = _cores(settings, found.name)
    candidates = plan(processors)
    mask = " with mask" if manifest.stage.segmentation else ""
    click.echo(
        f"{found.name} {found.version}, {width}x{height}{mask}, on {_counted(processors, 'processor')}: "
        f"{_counted(len(candidates), 'way')} to run it, {seconds:g} s and {ROUNDS} starts each.",
        err=True,
    )
    turns = ROUNDS * len(candidates)
    bar = Progress("Measuring", turns, shown=sys.stderr.isatty())
    with bar, Stand(found, settings, seconds / ROUNDS) as stand:
        return compete(candidates, stand.turn, _Teller(bar, turns)), stand.used_by_others()


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"


def _cores(settings: Settings, model: str) -> int:
    """Return how many processors the model may use."""
    pinned = settings.of_model(model, "cpus")
    return len(set(pinned) & os.sched_getaffinity(0)) or cores()


def _warn_of_work(told: Mapping[str, Mapping[str, Any]]) -> None:
    at_work = sorted(name for name, one in told.items() if one.get("state") in AT_WORK)
    if at_work:
        names = printable(", ".join(at_work))
        click.echo(
            f"warning: the agent has {names} {'loaded' if len(at_work) == 1 else 'all loaded'}; images that it judges "
            "meanwhile disturb the measurement. Tune while the line stands still.",
            err=True,
        )


def _warn_of_others(others: float) -> None:
    if others > NOTICEABLE:
        click.echo(
            f"warning: other work kept {others:.1f} processors busy meanwhile, which disturbs what was measured; measure "
            "again while the device is idle.",
            err=True,
        )


def _warn_of_own(model: str, settings: Settings, chosen: Candidate) -> None:
    own = settings.model_settings.get(model)
    winning = [key for key in TUNABLE if getattr(own, key, None) not in (None, getattr(chosen, key))]
    if winning:
        click.echo(
            f"warning: model_settings has {', '.join(winning)} of {model}, which wins; take it out for what was measured.",
            err=True,
        )


def _from_when(model: str, told: Mapping[str, Mapping[str, Any]], socket: str | None) -> str:
    at = f" --socket {printable(socket)}" if socket else ""
    if told.get(model, {}).get("state") in AT_WORK:
        return f"It is used from the next start on: edge-agent stop {model}{at}; edge-agent start {model}{at}"
    return f"It is used from the next start on: edge-agent start {model}{at}"
