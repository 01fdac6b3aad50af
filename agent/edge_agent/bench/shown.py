"""What is seen of a benchmark on a terminal: how far it is, what it found, and at the end a table and a verdict."""

import sys
from typing import TYPE_CHECKING

import click

from edge_agent.bench import words
from edge_agent.bench.report import Measurement, Report
from edge_agent.bench.words import errors, ms, per_second
from edge_agent.cli.progress import Progress
from edge_agent.cli.tables import table
from edge_agent.errors import printable

if TYPE_CHECKING:
    from typing_extensions import Self


class Watched:
    """What is seen of a benchmark while it runs: a bar on a terminal, and a line for each finding."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._done = 0
        self._bar = Progress("", total, shown=False)

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.clear()

    def before(self, what: str) -> None:
        """Show what is measured now."""
        self._bar.clear()
        self._bar = Progress(what, self.total, shown=sys.stderr.isatty())
        self._bar.show(self._done)
        self._done += 1

    def found(self, one: Measurement) -> None:
        """Say what was found."""
        self._bar.clear()
        figures = one.figures
        told = f"{ms(figures.p50)} ms, 99 % within {ms(figures.p99)} ms" if figures else "no verdict"
        told += f", {per_second(one.throughput)} a second" if one.kind == "closed" else ""
        say(f"  {one.name}: {told}{', ' if one.errors else ''}{errors(one)}")


def tell(report: Report) -> None:
    """Print what was found: a table, the verdict, and what is not known."""
    click.echo()
    click.echo(table(words.HEADS, [words.row(one) for one in report.measurements], range(1, len(words.HEADS))))
    click.echo(
        "Times in milliseconds; of parts a second from the instant at which each was due. AGENT CPU: processors."
    )
    for one in report.measurements:
        if sum(one.errors.values()):
            click.echo(f"{one.name}: {words.errors(one)}")
    click.echo()
    for sentence in (*words.verdict(report), words.remembered(report.memory)):
        if sentence:
            click.echo(printable(sentence))
    for note in report.notes:
        click.echo(printable(f"Note: {note}"))


def say(text: str) -> None:
    """Tell whoever watches."""
    click.echo(printable(text), err=True)
