"""Metrics for Prometheus, served on a loopback address or written as a text file; the library is imported only for that."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.errors import AgentRefused, extra
from edge_agent.exporter.address import Loopback

if TYPE_CHECKING:
    from edge_agent.exporter.served import MetricsServer
    from edge_agent.exporter.textfile import MetricsFile

# Returns the status that the agent tells of itself, as JSON would have it.
Look = Callable[[], Mapping[str, Any]]


class Exporter:
    """Tells what the agent has counted where the settings want it told, which may be nowhere.

    A file says at once that no agent serves, so that the one before, which may have been killed, is taken for alive no more.
    """

    def __init__(self, address: Loopback | None, file: Path | None) -> None:
        """Write the file, and take the address.

        Raises:
            AgentRefused: the library is not installed, or the address cannot be served on.

        """
        self._server: MetricsServer | None = None
        self._file: MetricsFile | None = None
        if address or file:
            _check_library("metrics_address" if address else "metrics_file")
            self._open(address, file)

    def _open(self, address: Loopback | None, file: Path | None) -> None:
        from edge_agent.exporter import families, served, textfile

        self._collector = families.AgentCollector()
        registry = families.registry(self._collector)
        if file:
            self._file = textfile.MetricsFile(file.absolute(), registry)
            self._file.write()
        if address:
            self._server = served.MetricsServer(address, registry)

    def start(self, look: Look) -> None:
        """Begin to tell of what `look` returns, in threads of its own."""
        if self._server or self._file:
            self._collector.begin(look)
        if self._server:
            self._server.start()
        if self._file:
            self._file.keep()

    def close(self) -> None:
        """Tell no more; the file is written for the last time, and says that the agent has ended."""
        if self._server:
            self._server.close()
        if self._file:
            self._collector.end()
            self._file.close()


def _check_library(setting: str) -> None:
    if not find_spec("prometheus_client"):
        raise AgentRefused(f"{setting} needs the `prometheus_client` package; {extra('metrics')}.")
