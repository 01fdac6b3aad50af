"""Accepted calls: counted until their answers are written, so that the agent ends after the last of them.

An answer that its caller does not read is held until it does, or is gone; callers that read nothing must not be able to
fill the memory.
"""

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import grpc

from edge_agent.errors import CannotKeepUp


class AcceptedCalls:
    """The calls in hand. Every method may be called from any thread."""

    def __init__(self, most: int) -> None:
        """Count calls; detections are refused while there are more than `most` of all kinds."""
        self._most = most
        self._changed = threading.Condition()
        self._in_hand = 0
        self._over = False

    def accept(self, context: "grpc.ServicerContext") -> bool:
        """Count a call in until its answer is written; return False when no more are accepted."""
        with self._changed:
            if self._over:
                return False
            self._in_hand += 1
        if not context.add_callback(self._answered):
            self._answered()  # its caller is gone already
        return True

    def check_read(self) -> None:
        """Raise CannotKeepUp when there are so many calls that most of them must be answers which nobody reads."""
        if self._in_hand > self._most:
            raise CannotKeepUp(
                f"More than {self._most} calls are not done, most of them answers that wait to be read; read the answers, or "
                "call again later."
            )

    def refuse(self) -> None:
        """Accept no more."""
        with self._changed:
            self._over = True

    def wait(self, timeout: float) -> bool:
        """Return whether within `timeout` seconds every accepted call is answered."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._in_hand, timeout)

    def _answered(self) -> None:
        with self._changed:
            self._in_hand -= 1
            self._changed.notify_all()
