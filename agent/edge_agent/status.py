"""What the agent is doing, in a file of its state folder for operators: its models, and what has been counted."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edge_agent.files import replacing
from edge_agent.repeated import Repeated

logger = logging.getLogger(__name__)

INTERVAL = 1.0


class StatusFile:
    """A JSON file, mode 0600, that is whole at any instant and at most a second behind."""

    def __init__(self, path: Path, look: Callable[[], Mapping[str, Any]], current: Callable[[], None]) -> None:
        """Write what `look` returns, and call `current` each time that this is what the file says."""
        self._path = path
        self._look = look
        self._current = current
        self._written = b""
        self._trouble = ""
        failed = "The status file cannot be written; it is tried again."
        self._kept = Repeated(self._write, INTERVAL, "status", failed)

    def keep(self) -> None:
        """Write the file, and keep it up to date in a thread of its own, until `close`."""
        self._kept.start()

    def close(self) -> None:
        """Write it for the last time."""
        self._kept.close()

    def _write(self) -> None:
        data = json.dumps(self._look()).encode() + b"\n"
        if data == self._written or self._replace(data):
            self._current()

    def _replace(self, data: bytes) -> bool:
        """Return whether the file has become `data`."""
        try:
            with replacing(self._path, self._path.with_suffix(".new")) as file:
                file.write(data)
        except OSError as error:
            self._complain(error.strerror or str(error))
            return False
        self._written = data
        if self._trouble:
            self._trouble = ""
            logger.info("The status file is written again.")
        return True

    def _complain(self, why: str) -> None:
        """Say it once, and again only after something else, or after it was written meanwhile."""
        if why != self._trouble:
            self._trouble = why
            logger.warning("The status file cannot be written: %s. It is tried again each second.", why)
