"""Showing something again and again: in place on a terminal, one below the other elsewhere."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from edge_agent.cli.shown import shortened

# Terminals' control sequences (ECMA-48; the private modes are DEC's).
OTHER_SCREEN, OWN_SCREEN = "\x1b[?1049h", "\x1b[?1049l"
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
# A line that is too long ends at the edge, and does not push the others down.
NO_WRAP, WRAP = "\x1b[?7l", "\x1b[?7h"
HOME, TO_LINE_END, TO_SCREEN_END = "\x1b[H", "\x1b[K", "\x1b[J"


def watching(look: Callable[[], str], every: float, *, in_place: bool) -> None:
    """Show what `look` returns every so many seconds, until it is interrupted, which ends it in order."""
    try:
        if in_place:
            _in_place(look, every)
        else:
            _below_each_other(look, every)
    except KeyboardInterrupt:
        return


def _in_place(look: Callable[[], str], every: float) -> None:
    with _screen():
        while True:
            end = f"Every {every:g} s; ends with Ctrl-C."
            most = terminal().lines
            lines = shortened(look().splitlines(), most - 1)
            lines = [*lines, *([""] if len(lines) < most - 1 else []), end][:most]
            text = "\n".join(f"{line}{TO_LINE_END}" for line in lines)
            click.echo(f"{HOME}{text}{TO_SCREEN_END}", nl=False)
            time.sleep(every)


def terminal() -> os.terminal_size:
    """Return the size that the terminal has this instant, whatever the environment's LINES and COLUMNS once were."""
    try:
        size = os.get_terminal_size(sys.stdout.fileno())
    except (OSError, ValueError):
        size = os.terminal_size((0, 0))
    return size if all(size) else shutil.get_terminal_size()


@contextmanager
def _screen() -> Iterator[None]:
    """Use a screen of its own, so that what was there comes back, whatever ends it."""
    click.echo(f"{OTHER_SCREEN}{HIDE_CURSOR}{NO_WRAP}", nl=False)
    try:
        yield
    finally:
        click.echo(f"{WRAP}{SHOW_CURSOR}{OWN_SCREEN}", nl=False)


def _below_each_other(look: Callable[[], str], every: float) -> None:
    while True:
        click.echo(look())
        sys.stdout.flush()
        time.sleep(every)
