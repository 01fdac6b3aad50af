"""How far a command is, on the last line of a terminal, which other output must not run into."""

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from typing_extensions import Self

WIDTH = 24


class Progress:
    """A bar of what is done; whoever prints anything else clears it first. Nothing of it is left at the end."""

    def __init__(self, label: str, total: int, *, shown: bool) -> None:
        self._label = label
        self._total = total
        self._shown = shown
        self._drawn = 0

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def show(self, done: int) -> None:
        """Draw the bar with `done` things done."""
        if not self._shown:
            return
        self.clear()
        full = WIDTH * done // self._total
        line = f"{self._label} [{'#' * full}{'-' * (WIDTH - full)}] {done}/{self._total}"
        self._drawn = len(line)
        click.echo(line, nl=False, err=True)

    def clear(self) -> None:
        """Take the bar away, the line free for what comes."""
        if self._drawn:
            # Spaces, since not every terminal knows how to erase a line.
            click.echo(f"\r{' ' * self._drawn}\r", nl=False, err=True)
            self._drawn = 0
