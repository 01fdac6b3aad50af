"""Where a command meets the system: its streams, the signals that end it, and errors that nobody else has a word for."""

import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TextIO

import click

from edge_agent.errors import printable

ENDING = (signal.SIGTERM, signal.SIGHUP)


def run(command: Callable[[], object]) -> int:
    """Run the command line; return its exit code, 1 when the system failed it, which is told in a sentence."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # they are written for programmers
    _open_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name need not be text
    try:
        command()
    except OSError as error:
        what = error.filename or ("The output cannot be written" if _printing(error) else "The system refused")
        _let_go(sys.stdout)
        click.echo(printable(f"Error: {what}: {error.strerror or error}."), err=True)
        return 1
    return 0


def _open_streams() -> None:
    """Open /dev/null for each standard stream that the caller has closed, or what is opened next would be taken for it."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115  (it gets the lowest number, which is the closed one's)
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the command as an exception does, so that nothing is left behind; code 128 + number.

    A signal that is ignored stays so (nohup).
    """
    before = {number: signal.getsignal(number) for number in ENDING}
    ours = [number for number, handler in before.items() if handler is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def undivided() -> Iterator[None]:
    """Let no signal come in between: what ends the command does so afterwards. For a process that is started and noted.

    It is to be within the `try` that ends the process: a signal that has come raises when this is left.
    """
    came: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (*ENDING, signal.SIGINT)}
    ours = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in ours:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
        for one in came:
            signal.raise_signal(one)


def _end(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


def _printing(error: OSError) -> bool:
    """Return whether it was `click.echo` that failed, by which all output goes."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_code.co_name == click.echo.__name__


def _let_go(stream: TextIO) -> None:
    """Drop what is still to be written, if it cannot be: the interpreter would try once more, and complain."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
