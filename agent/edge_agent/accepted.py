"""Accepted calls: counted until their answers are written, so that the agent ends after the last of them."""

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import grpc


class AcceptedCalls:
    """The calls in hand. Every method may be called from any thread."""

    def __init__(self) -> None:
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
