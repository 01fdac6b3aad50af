"""Something that is done again and again, in a thread of its own."""

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)

# Seconds that what is being done gets to come to its end.
PATIENCE = 1.0


class Repeated:
    """Does `action` at once, every so many seconds, and once more at the end.

    What it raises in between is logged as `failed`, a sentence, and it is tried again.
    """

    def __init__(self, action: Callable[[], None], every: float, name: str, failed: str) -> None:
        self._action = action
        self._every = every
        self._failed = failed
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Do it for the first time, and go on in a thread."""
        self._action()
        self._thread.start()

    def close(self) -> None:
        """Do it for the last time; also where it was never started."""
        self._ended.set()
        if self._thread.ident:
            self._thread.join(PATIENCE)
        self._action()

    def _run(self) -> None:
        while not self._ended.wait(self._every):
            try:
                self._action()
            except Exception:
                logger.exception("%s", self._failed)
