"""Threads that a limit may refuse: systemd's TasksMax and a container's pids limit count them as they do processes."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent import futures

from edge_agent.log import LIMITED

logger = logging.getLogger(__name__)

NONE_LEFT = (
    "no further thread can be started; let the agent have more tasks (systemd's TasksMax, a container's pids limit), or stop "
    "another model"
)


class NoThread(Exception):
    """No further thread can be started; the text is the end of a sentence for operators."""


def start(name: str, act: Callable[..., object], *arguments: object) -> None:
    """Do something in a daemon thread of its own; raise NoThread where none can be started."""
    try:
        threading.Thread(target=act, args=arguments, name=name, daemon=True).start()
    except (RuntimeError, MemoryError):
        raise NoThread(NONE_LEFT) from None


class Pool(futures.ThreadPoolExecutor):
    """Threads for calls, of which there is one from the begin; calls wait for them where no further one can be started.

    The library raises instead, when the call is in its queue already, and gRPC's own thread, which hands the calls to it,
    ends with that: no call would be answered any more.
    """

    def __init__(self, most: int, name: str) -> None:
        """Have at most so many threads, whose names begin with `name`."""
        # Threads that were refused: in Python 3.11, for one, each leaves a sign of an idle thread that there is not.
        self._refused = 0
        super().__init__(most, thread_name_prefix=name)
        self.submit(int).result()

    def end(self, timeout: float) -> bool:
        """Take no more work; return whether all threads have ended within `timeout` seconds.

        The interpreter waits for those that have not, however long.
        """
        self.shutdown(wait=False)
        give_up = time.monotonic() + timeout
        for one in self._threads:
            one.join(max(0.0, give_up - time.monotonic()))
        return not any(one.is_alive() for one in self._threads)

    def _adjust_thread_count(self) -> None:
        while self._refused and self._idle_semaphore.acquire(blocking=False):
            self._refused -= 1
        try:
            super()._adjust_thread_count()
        except (RuntimeError, MemoryError):
            if not self._threads:
                raise
            self._refused += 1
            logger.warning("Calls wait for each other: %s.", NONE_LEFT, extra=LIMITED)
