"""The agent's log lines: one event a line on stdout and in a file, as text or JSON, never broken by what a caller sent."""

import json
import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler, WatchedFileHandler
from pathlib import Path
from typing import Any

from edge_agent.errors import printable, shown

# What a call may cause as often as it is made: `logger.warning(..., extra=log.LIMITED)`.
LIMITED = {"limited": True}
MOST_A_SECOND = 10
# Where gRPC tells, with a traceback, of metadata that is no text.
GRPC = "grpc._cython.cygrpc"
# Seconds between two warnings that the file cannot be written.
QUIET = 60.0


@dataclass(frozen=True)
class LogSettings:
    """How log lines are written: the least severe level, `text` or `json`, and a file besides with its size in bytes."""

    level: str
    form: str
    file: Path | None = None
    file_size: int = 0


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z INFO message`, control characters escaped so that one event stays one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; a traceback follows on lines of its own, indented."""
        line = f"{_timestamp(record)} {record.levelname} {printable(record.getMessage())}"
        for told in self.formatException(record.exc_info).split("\n") if record.exc_info else ():
            line += f"\n  {printable(told)}"
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, message and, after an unexpected error, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object as one line of ASCII."""
        event = {"time": _timestamp(record), "level": record.levelname.lower(), "message": record.getMessage()}
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return json.dumps(event)


class RateLimit(logging.Filter):
    """Lets ten lines of a kind through in a second, where a kind may be limited, and tells how many were left out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        # By kind, which is its text without its values: when its second began, and how many lines came since then.
        self._kinds: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the line is written."""
        if not getattr(record, "limited", False):
            return True
        kind, now = str(record.msg), self._clock()
        with self._lock:
            began, lines = self._kinds.get(kind, (now, 0))
            left_out = 0
            if now - began >= 1:
                left_out = max(0, lines - MOST_A_SECOND)
                began, lines = now, 0
            self._kinds[kind] = began, lines + 1
        if left_out:
            record.msg = f"{record.msg} (%d more like this were left out)"
            record.args = (*(record.args if isinstance(record.args, tuple) else ()), left_out)
        through = lines < MOST_A_SECOND
        record.__dict__["let_through"] = through
        return through


class _Complaining:
    """What both file handlers do when the file cannot be written: go on, count, and say so once a minute on stdout."""

    path: Path
    _lost = 0
    _told = -QUIET

    def handleError(self, _: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
        self._lost += 1
        now = time.monotonic()
        if now - self._told < QUIET:
            return
        self._told = now
        cause = sys.exc_info()[1]
        reason = cause.strerror if isinstance(cause, OSError) else cause
        logger = logging.getLogger(__name__)
        record = logger.makeRecord(
            __name__,
            logging.WARNING,
            "",
            0,
            "%s cannot be written (%s); %d lines were lost so far.",
            (self.path, reason, self._lost),
            None,
        )
        for handler in logging.getLogger().handlers:
            if not isinstance(handler, _Complaining):
                handler.handle(record)


class _OwnFile(_Complaining, RotatingFileHandler):
    """The agent's file: at its size it becomes `<file>.1`, in the place of an older one."""

    def __init__(self, path: Path, size: int) -> None:
        super().__init__(path, maxBytes=size, backupCount=1, encoding="utf-8", delay=True)
        self.path = path


class _SharedFile(_Complaining, WatchedFileHandler):
    """The same file in a worker, which follows it when the agent renames it, and writes no more where it is overdue."""

    def __init__(self, path: Path, size: int) -> None:
        super().__init__(path, encoding="utf-8", delay=True)
        self.path = path
        self._most = 2 * size

    def emit(self, record: logging.LogRecord) -> None:
        try:
            overdue = self.path.stat().st_size > self._most
        except OSError:
            overdue = False
        try:
            if not overdue:
                super().emit(record)
        except OSError:  # to look whether it was renamed, it is flushed
            self.handleError(record)


def set_up(settings: LogSettings, *, own: bool = True) -> None:
    """Send all log lines to stdout, and into the file if there is one; a line that cannot be written is dropped.

    A process that does not `own` the file leaves its renaming to the one that does.
    """
    logging.raiseExceptions = False
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if settings.file:
        handlers.append((_OwnFile if own else _SharedFile)(settings.file, settings.file_size))
    formatter: Any = JsonFormatter() if settings.form == "json" else TextFormatter()
    limit = RateLimit()
    for handler in handlers:
        handler.setFormatter(formatter)
    logging.basicConfig(level=settings.level.upper(), handlers=handlers, force=True)
    logging.getLogger(GRPC).addFilter(_in_one_line)
    # What the first leaves out, the others do: it is counted once.
    handlers[0].addFilter(limit)
    for handler in handlers[1:]:
        handler.addFilter(lambda record: getattr(record, "let_through", True))


def set_level(level: str) -> None:
    """Write lines of another least severe level from now on."""
    logging.getLogger().setLevel(level.upper())


def _in_one_line(record: logging.LogRecord) -> bool:
    """Make a limited line of what gRPC has to say of a caller's metadata; any caller may cause it, of any length."""
    record.exc_info = record.exc_text = None
    record.msg, record.args = "gRPC: %s", (shown(record.getMessage()),)
    record.levelno, record.levelname = logging.WARNING, logging.getLevelName(logging.WARNING)
    record.__dict__.update(LIMITED)
    return True


def _timestamp(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
