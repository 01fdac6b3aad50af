"""Waiting for one's turn: a bounded first-in, first-out queue in front of a model's worker."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from edge_agent.errors import CannotKeepUp, EdgeAgentError, Expired

logger = logging.getLogger(__name__)

EXPIRED = "The call's deadline passed, or its caller went away, while it waited; send fewer calls at once."


# Makes an error for one caller: an exception that several threads raise keeps all their frames alive, images included.
MakeError = Callable[[], EdgeAgentError]


class Turn:
    """One call's place in the queue."""

    def __init__(self) -> None:
        self.granted = False
        self.given_up = False
        self.error: MakeError | None = None
        self._woken = threading.Event()

    def wake(self) -> None:
        """End the wait, whether the turn was granted or not."""
        self._woken.set()

    def renew(self) -> None:
        """Begin to wait once more."""
        self.granted = False
        self._woken.clear()
        if self.given_up:
            self.wake()

    def give_up(self) -> None:
        """End the wait because nobody waits for the answer any more."""
        self.given_up = True
        self.wake()

    def wait(self, deadline: float | None) -> None:
        """Wait until woken or until `deadline` (time.monotonic)."""
        self._woken.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))


class CallQueue:
    """Lets one call in at a time, in the order of arrival; at most `limit` wait.

    Not a lock: the threads of a lock are served in no order, which costs the slowest callers a third of their time.
    """

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._limit = limit
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._busy = False
        self._paused = False
        self._over = False
        self._waiting: deque[Turn] = deque()
        self._closed: MakeError | None = None
        self.longest = 0

    def enter(self, deadline: float | None, turn: Turn) -> None:
        """Return when it is the caller's turn; `leave` must follow.

        Args:
            deadline: time.monotonic() after which nobody waits for the answer any more, or None.
            turn: the caller's place; its `give_up` ends the wait.

        Raises:
            CannotKeepUp: too many calls wait already, or the deadline passed.
            EdgeAgentError: the queue was closed with this error.

        """
        with self._lock:
            if self._closed:
                raise self._closed()
            if not self._busy and not self._paused:
                self._busy = turn.granted = True
                return
            # Who would have the turn by now, but for a pause, waits for nobody.
            if len(self._waiting) >= self._limit + (not self._busy):
                raise CannotKeepUp(
                    f"The model has {self._limit} calls waiting, its queue_limit; send fewer calls at once, or call again later."
                )
            self._waiting.append(turn)
            self.longest = max(self.longest, len(self._waiting))
            logger.debug("%s: a call waits, %d before it", self._name, len(self._waiting))
        self._wait(deadline, turn)

    def again(self, deadline: float | None, turn: Turn) -> None:
        """Give the turn up for as long as the queue is paused, and return when it is the caller's again; as `enter`."""
        with self._lock:
            if not self._paused and not self._over:
                return
            turn.renew()
            self._waiting.appendleft(turn)
            self._busy = False
            if self._over:
                self._send_away()
            self._idle.notify_all()
        self._wait(deadline, turn)

    def _wait(self, deadline: float | None, turn: Turn) -> None:
        turn.wait(deadline)
        with self._lock:
            if not turn.granted:
                if turn in self._waiting:
                    self._waiting.remove(turn)
                    self._idle.notify_all()
                raise turn.error() if turn.error else Expired(EXPIRED)
        if turn.given_up or (deadline is not None and time.monotonic() >= deadline):
            turn.granted = False
            self.leave()
            raise Expired(EXPIRED)

    def leave(self) -> None:
        """Give the turn to the next in line."""
        with self._lock:
            self._busy = False
            self._grant()
            self._idle.notify_all()

    def pause(self) -> None:
        """Give no more turns until `resume`; who has one keeps it."""
        with self._lock:
            self._paused = True

    def resume(self) -> None:
        """Give turns again."""
        with self._lock:
            self._paused = False
            self._grant()

    def seal(self, error: MakeError) -> None:
        """Send everybody away who comes from now on, with `error`; those who wait keep their turn."""
        with self._lock:
            self._closed = error

    def close(self, error: MakeError) -> None:
        """Send everybody away who waits, and everybody who comes, with `error`."""
        with self._lock:
            self._closed = error
            self._over = True
            self._send_away()
            self._idle.notify_all()

    def wait_idle(self, timeout: float) -> bool:
        """Return whether within `timeout` seconds the last call left and nobody waits any more."""
        with self._lock:
            return self._idle.wait_for(lambda: not self._busy and not self._waiting, timeout)

    def wait_free(self, timeout: float) -> bool:
        """Return whether within `timeout` seconds nobody has the turn."""
        with self._lock:
            return self._idle.wait_for(lambda: not self._busy, timeout)

    def _grant(self) -> None:
        if self._waiting and not self._busy and not self._paused:
            following = self._waiting.popleft()
            self._busy = following.granted = True
            following.wake()

    def _send_away(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            turn.error = self._closed
            turn.wake()
