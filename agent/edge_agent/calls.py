"""Waiting for one's turn: a bounded first-in, first-out queue in front of a model's worker."""

import itertools
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
        # The worker's slot that was granted, and how early the call came.
        self.slot = 0
        self.number = 0
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

    def in_vain(self, deadline: float | None) -> bool:
        """Return whether nobody waits for the answer any more, by `deadline` (time.monotonic) or because it was given up."""
        return self.given_up or (deadline is not None and time.monotonic() >= deadline)

    def wait(self, deadline: float | None) -> None:
        """Wait until woken or until `deadline` (time.monotonic)."""
        self._woken.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))


class CallQueue:
    """Lets as many calls in as the worker has slots, in the order of arrival; at most `limit` wait.

    Not a lock: the threads of a lock are served in no order, which costs the slowest callers a third of their time.
    """

    def __init__(self, name: str, limit: int, slots: int = 1, grown: Callable[[int], object] = lambda _: None) -> None:
        """Let `limit` calls wait; `grown` is told at once how many do when they are more than ever before."""
        self._name = name
        self._limit = limit
        self._slots = slots
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        # The one used last is taken first: its memory is in the caches.
        self._free = list(reversed(range(slots)))
        self._numbers = itertools.count()
        self._paused = False
        self._over = False
        self._waiting: deque[Turn] = deque()
        self._closed: MakeError | None = None
        self._longest = 0
        self._grown = grown

    def limit(self, most: int) -> None:
        """Let at most so many wait from now on; nobody who waits already is sent away."""
        with self._lock:
            self._limit = most

    def status(self) -> dict[str, int]:
        """Return how many wait, how many may, and how many have their turn."""
        with self._lock:
            return {
                "waiting": len(self._waiting),
                "limit": self._limit,
                "in_flight": self._slots - len(self._free),
            }

    def enter(self, deadline: float | None, turn: Turn) -> None:
        """Return when it is the caller's turn, in `turn.slot`; `leave` must follow.

        Args:
            deadline: time.monotonic() after which nobody waits for the answer any more, or None.
            turn: the caller's place; its `give_up` ends the wait.

        Raises:
            Expired: nobody waits for the answer any more, be it before the call came here.
            CannotKeepUp: too many calls wait already.
            EdgeAgentError: the queue was closed with this error.

        """
        with self._lock:
            if self._closed:
                raise self._closed()
            if turn.in_vain(deadline):
                raise Expired(EXPIRED)
            turn.number = next(self._numbers)
            if self._free and not self._paused:
                turn.slot, turn.granted = self._free.pop(), True
                return
            # Who would have the turn by now, but for a pause, waits for nobody.
            if len(self._waiting) >= self._limit + len(self._free):
                raise CannotKeepUp(
                    f"The model has {self._limit} calls waiting, its queue_limit; send fewer calls at once, or call again later."
                )
            self._line_up(len(self._waiting), turn)
            logger.debug("%s: a call waits, %d before it", self._name, len(self._waiting))
        self._wait(deadline, turn)

    def again(self, deadline: float | None, turn: Turn) -> None:
        """Give the turn up for as long as the queue is paused, and return when it is the caller's again; as `enter`."""
        with self._lock:
            if not self._paused and not self._over:
                if turn.in_vain(deadline):
                    raise Expired(EXPIRED)  # the caller still has its turn, and leaves
                return
            turn.renew()
            # Before all that came later, and after those that came earlier and gave theirs up just before.
            place = sum(one.number < turn.number for one in self._waiting)
            self._line_up(place, turn)
            self._free.append(turn.slot)
            if self._over:
                self._send_away()
            self._idle.notify_all()
        self._wait(deadline, turn)

    def _line_up(self, place: int, turn: Turn) -> None:
        self._waiting.insert(place, turn)
        if len(self._waiting) > self._longest:
            self._longest = len(self._waiting)
            self._grown(self._longest)

    def _wait(self, deadline: float | None, turn: Turn) -> None:
        turn.wait(deadline)
        with self._lock:
            if not turn.granted:
                if turn in self._waiting:
                    self._waiting.remove(turn)
                    self._idle.notify_all()
                raise turn.error() if turn.error else Expired(EXPIRED)
        if turn.in_vain(deadline):
            turn.granted = False
            self.leave(turn.slot)
            raise Expired(EXPIRED)

    def leave(self, slot: int = 0) -> None:
        """Give the turn in a slot to the next in line."""
        with self._lock:
            self._free.append(slot)
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
            return self._idle.wait_for(lambda: self._all_free and not self._waiting, timeout)

    def wait_free(self, timeout: float) -> bool:
        """Return whether within `timeout` seconds nobody has the turn."""
        with self._lock:
            return self._idle.wait_for(lambda: self._all_free, timeout)

    @property
    def _all_free(self) -> bool:
        return len(self._free) == self._slots

    def _grant(self) -> None:
        while self._waiting and self._free and not self._paused:
            following = self._waiting.popleft()
            following.slot, following.granted = self._free.pop(), True
            following.wake()

    def _send_away(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            turn.error = self._closed
            turn.wake()
