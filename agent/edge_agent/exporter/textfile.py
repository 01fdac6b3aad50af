"""The metrics as a text file that is whole at any instant, for node_exporter's textfile collector."""

import logging
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from edge_agent.files import replacing
from edge_agent.repeated import Repeated

logger = logging.getLogger(__name__)

INTERVAL = 15.0
# For node_exporter, which is another user.
READABLE = 0o644


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
            with replacing(self._path, beside, READABLE) as file:
                file.write(data)
        except OSError as error:
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
