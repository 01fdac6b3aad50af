"""The watchdog: systemd is told that the agent lives, each time only after a call through its own socket was answered.

What hangs answers no call, so systemd is told nothing and starts the agent again. Each call has a connection of its own, as
a new client's has, so that a socket that nobody accepts on, or that somebody removed, is noticed too.
Sources: sd_watchdog_enabled(3), sd_notify(3).
"""

import contextlib
import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edge_agent import notify
from edge_agent.errors import shown
from edge_agent.log import LIMITED

logger = logging.getLogger(__name__)

LIVES = b"WATCHDOG=1"
INTERVAL, PROCESS = "WATCHDOG_USEC", "WATCHDOG_PID"
# Of the time after which systemd takes the agent for dead: a call is made each half of it, has a quarter of it to be
# answered, and is made again after a twentieth where it was not.
EACH, PATIENCE, AGAIN = 0.5, 0.25, 0.05
# Between two calls, however little systemd waits: calls without a pause would keep the agent from all others.
LEAST_PAUSE = 0.02
# No thread waits longer; systemd's own word for never, 2**64 - 1, is more.
LONGEST = 86_400.0 * 365
NUMBER = re.compile(r"[0-9]{1,20}")
# Longer than systemd needs, whose socket is read all the time.
TELLING = 1.0
# Of a call under way when the agent ends, which must not wait for one that is not answered.
CLOSING = 0.5
NO_NUMBER = "WATCHDOG_USEC is %s, which is no number of microseconds, so the watchdog is off."
SILENT = "The agent did not answer on its own socket %s: %s. Until it does, systemd is not told that it lives."


def limit() -> float | None:
    """Return the seconds without a sign of life after which systemd starts the agent again, None where it does not."""
    told, process = os.environ.get(INTERVAL), os.environ.get(PROCESS)
    if not told or not notify.is_one(notify.address()) or (process and process != str(os.getpid())):
        return None
    if not NUMBER.fullmatch(told) or not int(told):
        logger.warning(NO_NUMBER, shown(told))
        return None
    return min(int(told) / 1e6, LONGEST)


@contextlib.contextmanager
def watched(socket: Path) -> Iterator[None]:
    """Tell systemd for so long that the agent lives, where it wants to be told."""
    if (seconds := limit()) is None:
        yield
        return
    watchdog = Watchdog(socket, seconds)
    watchdog.start()
    try:
        yield
    finally:
        watchdog.close()


class Watchdog:
    """A thread that calls the agent through its socket, and tells systemd of each answer."""

    def __init__(self, socket: Path, seconds: float) -> None:
        """Call through `socket`; systemd waits `seconds` for a sign of life."""
        self._socket = socket
        self._seconds = seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._silent = False

    def start(self) -> None:
        """Begin, with a first call at once."""
        logger.info("The watchdog is on: systemd is told at least each %g s that the agent answers.", self._seconds)
        self._thread.start()

    def close(self) -> None:
        """Tell no more."""
        self._ended.set()
        self._thread.join(CLOSING)

    def _watch(self) -> None:
        due = time.monotonic()
        while not self._ended.wait(max(0.0, due - time.monotonic())):
            began = time.monotonic()
            failed = self._call()
            if self._ended.is_set():
                return
            failed = failed or _tell()
            self._say(failed)
            now = time.monotonic()
            due = max(now + LEAST_PAUSE, now + self._seconds * AGAIN if failed else began + self._seconds * EACH)

    def _call(self) -> str:
        """Call as any client does; return why that failed, empty where it was answered."""
        import grpc

        from edge_agent._proto import edge_agent_pb2 as pb2
        from edge_agent._proto.edge_agent_pb2_grpc import EdgeAgentStub

        options = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1))
        try:
            with grpc.insecure_channel(f"unix://{self._socket}", options=options) as channel:
                stub: Any = EdgeAgentStub(channel)
                stub.ListModels(pb2.ListModelsRequest(), timeout=self._seconds * PATIENCE)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
        except Exception as error:  # noqa: BLE001  (whatever it is, it must not end the thread)
            return f"{type(error).__name__}: {error}"
        return ""

    def _say(self, failed: str) -> None:
        if failed:
            logger.warning(SILENT, self._socket, failed, extra=LIMITED)
        elif self._silent:
            logger.info("The agent answers on its own socket again.")
        self._silent = bool(failed)


def _tell() -> str:
    """Tell systemd that the agent lives; return why it could not be told."""
    try:
        notify.send(notify.address(), LIVES, TELLING)
    except OSError as error:
        return f"systemd could not be told: {error.strerror or error}"
    return ""
