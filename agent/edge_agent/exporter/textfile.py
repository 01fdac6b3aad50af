"""The metrics as a text file that is whole at any instant, for node_exporter's textfile collector."""

import contextlib
import logging
import os
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from edge_agent.repeated import Repeated

logger = logging.getLogger(__name__)

INTERVAL = 15.0


class MetricsFile:
    """A file, mode 0644, of what a registry collects every INTERVAL seconds."""

    def __init__(self, path: Path, registry: CollectorRegistry) -> None:
        self._path = path
        self._registry = registry
        self._told = ""
        self._kept = Repeated(
            self.write, INTERVAL, "metrics-file", "The metrics file cannot be written; it is tried again."
        )

    def keep(self) -> None:
        """Write the file, and keep it up to date in a thread of its own, until `close`."""
        self._kept.start()

    def close(self) -> None:
        """Write it for the last time."""
        self._kept.close()

    def write(self) -> None:
        """Write it; what goes wrong is logged."""
        # A name that node_exporter, which takes *.prom, does not read.
        beside = self._path.with_name(f".{self._path.name}.new")
        try:
            data = generate_latest(self._registry)
            with contextlib.suppress(FileNotFoundError):
                beside.unlink()
            with open(beside, "xb", opener=_readable) as file:
                # Whatever the umask is: node_exporter is another user. By its name it may be another's file by now.
                os.fchmod(file.fileno(), 0o644)
                file.write(data)
            beside.replace(self._path)
        except OSError as error:
            with contextlib.suppress(OSError):
                beside.unlink()
            self._complain(f"{self._path} cannot be written ({error.strerror}); it is tried again.")
        except Exception:
            logger.exception("The metrics could not be collected; it is tried again.")
        else:
            self._told = ""

    def _complain(self, sentence: str) -> None:
        """Say it once, and again only after something else."""
        if sentence != self._told:
            self._told = sentence
            logger.warning("metrics_file: %s", sentence)


def _readable(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
