"""`edge-agent doctor`: what this device has and lacks for serving models."""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from shutil import get_terminal_size
from textwrap import wrap

import click

from edge_agent import config
from edge_agent.doctor import examine
from edge_agent.doctor.report import Finding, Report
from edge_agent.doctor.users import named
from edge_agent.errors import AgentRefused, printable

MARKS = {"ok": ("ok", "green"), "none": ("-", None), "warn": ("warn", "yellow"), "problem": ("PROBLEM", "red")}
MARK_WIDTH = max(len(word) for word, _ in MARKS.values()) + 1


@click.command()
@click.option("--config", "file", metavar="FILE", type=click.Path(path_type=Path), help="The agent's settings.")
@click.option("--socket", metavar="ADDRESS", help="The agent's address; default: as for `serve`.")
@click.option("--state-dir", metavar="DIR", help="The agent's state folder; default: as for `serve`.")
@click.option("--models", multiple=True, metavar="DIR", help="Folder of packages, as for `serve`. Repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, and nothing else.")
def doctor(
    file: Path | None, socket: str | None, state_dir: str | None, models: tuple[str, ...], as_json: bool
) -> None:
    """Show what this device has, what it lacks, and what will run.

    Of packages, which will run, and why others will not. Nothing is started or changed, and an agent need not run. The exit code is 0 when models can be served on the CPU, 1
    when something prevents that; that there is no GPU is no fault.
    """
    given = {"socket": socket, "state_dir": state_dir, "models": models}
    try:
        settings = config.load(file, {key: value for key, value in given.items() if value})
    except AgentRefused as refusal:
        raise click.UsageError(str(refusal)) from None
    report = examine(settings, config.strange_variables())
    click.echo(json.dumps(report.as_json(), indent=1) if as_json else _shown(report))
    if not report.ok:
        sys.exit(1)


def _shown(report: Report) -> str:
    versions, user = report.data["versions"], report.data["user"]
    lines = [f"Edge Agent {version('vision-edge-agent')}, Python {versions['python']}, Linux {versions['linux']}"]
    if user["uid"] != user["agent_uid"]:
        lines.append(f"Looked at by {named(user['uid'])}; the agent is {named(user['agent_uid'])}.")
    width = max(len(one.label) for one in report.findings) + 1
    columns = get_terminal_size().columns if sys.stdout.isatty() else None
    section = ""
    for finding in report.findings:
        if finding.section != section:
            section = finding.section
            lines += ["", click.style(section.upper(), bold=True)]
        lines += _lines(finding, width, columns)
    return "\n".join([*lines, "", _verdict(report)])


def _lines(finding: Finding, width: int, columns: int | None) -> list[str]:
    word, colour = MARKS[finding.mark]
    indent = 2 + MARK_WIDTH + width
    texts = [printable(finding.text), *([f"-> {printable(finding.cure)}"] if finding.cure else [])]
    if columns:
        room = max(20, columns - indent)
        texts = [line for text in texts for line in wrap(text, room, break_long_words=False) or [""]]
    mark = click.style(f"{word:{MARK_WIDTH}}", fg=colour, bold=finding.mark == "problem")
    return [f"  {mark}{printable(finding.label):{width}}{texts[0]}", *(f"{'':{indent}}{text}" for text in texts[1:])]


def _verdict(report: Report) -> str:
    marks = [one.mark for one in report.findings]
    problems, warnings = marks.count("problem"), marks.count("warn")
    also = f"; {warnings} warning{'s' * (warnings != 1)}" if warnings else ""
    if problems:
        text = f"{problems} problem{'s' * (problems != 1)} prevent{'s' * (problems == 1)} serving{also}."
        return click.style(text, fg="red")
    return click.style(f"Models can be served on the CPU{also}.", fg="green")
