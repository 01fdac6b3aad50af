"""The agent's log lines: one event a line on stdout, as text or JSON, never broken by what a caller sent."""

import json
import logging
import sys
import time

from edge_agent.errors import printable


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


def set_up(level: str, form: str) -> None:
    """Send all log lines to stdout in the given form; a line that cannot be written is dropped, not raised."""
    logging.raiseExceptions = False
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _timestamp(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
