"""The metrics over HTTP, for Prometheus to scrape: a few connections at a time, none for long, and calls come first."""

import contextlib
import io
import logging
import re
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import choose_encoder

from edge_agent.errors import AgentRefused, no_more_files
from edge_agent.exporter.address import Loopback
from edge_agent.log import LIMITED

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

logger = logging.getLogger(__name__)

# Any user of the machine may connect: what they can take of the agent has limits.
MOST_AT_ONCE = 8
PATIENCE = 5.0
# A scraper's takes some hundred bytes.
LONGEST_HEAD = 16 << 10
HEAD_END = re.compile(rb"\r?\n\r?\n")
# Seconds from one collection to the next: each reads the memory of all processes, and would take its time from calls.
PACE = 0.1
# Seconds within which the server notices that it is to end.
NOTICES_END = 0.2


class _Handler(WSGIRequestHandler):
    """Reads a request within PATIENCE, however it comes, answers within as much, and logs none."""

    timeout = PATIENCE

    def setup(self) -> None:
        """Read all that there is to read; raises TimeoutError, or ValueError for what no scraper sends."""
        super().setup()
        self.rfile.close()
        self.rfile = io.BytesIO(self._head())
        self.connection.settimeout(self.timeout)

    def _head(self) -> bytes:
        head, give_up = bytearray(), time.monotonic() + self.timeout
        looked = 0
        while not HEAD_END.search(head, looked):
            if len(head) >= LONGEST_HEAD:
                raise ValueError(f"The request has more than {LONGEST_HEAD} bytes.")
            if (left := give_up - time.monotonic()) <= 0:
                raise TimeoutError
            self.connection.settimeout(left)
            looked = max(0, len(head) - 3)  # the end may be there in part
            if not (more := self.connection.recv(LONGEST_HEAD - len(head))):
                break
            head += more
        return bytes(head)

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

    def get_request(self) -> Any:
        """Accept a connection; where no more files can be opened, it waits, and would be tried again all the time."""
        try:
            return super().get_request()
        except OSError as error:
            if no_more_files(error):
                time.sleep(NOTICES_END)
            raise

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
    """Return the library's application, asked not too often, whose failures are logged as ours are."""
    application, turn = make_wsgi_app(registry), _turns()

    def answer(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        if not _understood(environ.get("HTTP_ACCEPT", "")):
            del environ["HTTP_ACCEPT"]
        try:
            with turn():
                answered: Iterable[bytes] = application(environ, start_response)
        except Exception:
            logger.exception("The metrics could not be collected; they are again at the next request.", extra=LIMITED)
            start_response("500 Internal Server Error", [("Content-Type", "text/plain; charset=utf-8")])
            return [b"The metrics could not be collected; the agent's log has the cause.\n"]
        return answered

    return answer


def _understood(accept: str) -> bool:
    """Return whether the library can read an Accept header; one that it cannot gets the text that all can read."""
    try:
        choose_encoder(accept)
    except (TypeError, ValueError):  # a version that is none
        return False
    return True


def _turns() -> Callable[[], AbstractContextManager[None]]:
    """Return what lets one in at a time, PACE seconds after the one before has gone."""
    lock = threading.Lock()
    free = 0.0

    @contextlib.contextmanager
    def turn() -> Iterator[None]:
        nonlocal free
        with lock:
            time.sleep(max(0.0, free - time.monotonic()))
            try:
                yield
            finally:
                free = time.monotonic() + PACE

    return turn
