"""The metrics over HTTP, for Prometheus to scrape: a few connections at a time, none for long."""

import logging
import socket
import socketserver
import threading
from collections.abc import Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

from edge_agent.errors import AgentRefused
from edge_agent.exporter.address import Loopback

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

logger = logging.getLogger(__name__)

# Any user of the machine may connect: what they can take of the agent has limits.
MOST_AT_ONCE = 8
PATIENCE = 5.0
# Seconds within which the server notices that it is to end.
NOTICES_END = 0.2


class _Handler(WSGIRequestHandler):
    """Reads a request within PATIENCE for each of its pieces, and logs none."""

    timeout = PATIENCE

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the library's signature)
        pass


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    # Two agents on one port are told so, and do not share it.
    allow_reuse_port = False

    def __init__(self, address: Loopback) -> None:
        self._room = threading.BoundedSemaphore(MOST_AT_ONCE)
        self.address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind; the library would ask the network for our name, and wait where there is none."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own, or hang up when there are too many."""
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._room.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and make room for another."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  (the library's signature)
        """Take note of a connection that broke, which is not ours to mend."""
        logger.debug("A connection for metrics failed.", exc_info=True)


class MetricsServer:
    """Serves what a registry collects at each request."""

    def __init__(self, address: Loopback, registry: CollectorRegistry) -> None:
        """Take the address; raise AgentRefused when it cannot be had."""
        self._address = address
        try:
            self._server = _Server(address)
        except OSError as error:
            raise AgentRefused(
                f"metrics_address: {address} cannot be served on: {error.strerror}. Name another port, or end what uses it."
            ) from None
        self._server.set_app(_guarded(registry))
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(NOTICES_END,), name="metrics", daemon=True
        )

    def start(self) -> None:
        """Begin to serve, in a thread of its own."""
        self._thread.start()
        logger.info("Metrics are served on http://%s/metrics", self._address)

    def close(self) -> None:
        """Serve no more."""
        if self._thread.ident:
            self._server.shutdown()
        self._server.server_close()


def _guarded(registry: CollectorRegistry) -> Any:
    """Return the library's application, whose failures are logged as ours are."""
    application = make_wsgi_app(registry)

    def answer(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        try:
            answered: Iterable[bytes] = application(environ, start_response)
        except Exception:
            logger.exception("The metrics could not be collected; they are again at the next request.")
            start_response("500 Internal Server Error", [("Content-Type", "text/plain; charset=utf-8")])
            return [b"The metrics could not be collected; the agent's log has the cause.\n"]
        return answered

    return answer
