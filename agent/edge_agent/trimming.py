"""Giving back what large messages leave: malloc keeps it, in pieces between which others lie, and never lets go by itself.

gRPC reads a message in pieces of some kilobytes, and copies them into one. Sixteen images of 48 MiB at once are freed to the
last byte, and yet hundreds of megabytes of their pieces stay with the process, as holes below something small that is in use.
"""

import contextlib
import logging
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path

from edge_agent import malloc

logger = logging.getLogger(__name__)

# Smaller messages leave little, and are not worth a thought.
LARGE = 1 << 20
# The pieces of those above this are given back as they come, so many bytes at a time, where several are in hand. It makes
# the next ones slower, which have to find pages anew; one caller alone is to be spared that.
HUGE = malloc.ORDINARY[malloc.M_MMAP_THRESHOLD]
AT_A_TIME = 128 << 20
SEVERAL = 192 << 20
# What is kept for the next messages when none has come, and none was answered, for QUIET seconds.
KEPT = malloc.ORDINARY[malloc.M_TRIM_THRESHOLD]
QUIET, LOOK = 1.0, 0.25


def resident() -> int:
    """Return the bytes that this process has in memory; 0 where /proc cannot be read."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return 0


class Trimmer:
    """Gives memory back between `start` and `close`: during huge messages, and after large ones. For any thread."""

    def __init__(
        self, give_back: Callable[[], None] = malloc.give_back, has: Callable[[], int] = resident, quiet: float = QUIET
    ) -> None:
        """Give back by `give_back` what is above what this process `has` by now; `quiet` is in seconds."""
        self._give_back = give_back
        self._has = has
        self._quiet = quiet
        self._lock = threading.Lock()
        self._came = threading.Event()
        self._active = False
        self._huge = 0
        self._last = 0.0
        self._least = 0
        self._thread = threading.Thread(target=self._run, name="trimming", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._least = self._has()
        self._active = True
        self._thread.start()

    def close(self) -> None:
        """End."""
        self._active = False
        self._came.set()
        self._thread.join()

    def received(self, size: int) -> None:
        """Take note of a message of `size` bytes that has been put together; its pieces are free."""
        if not self._active or size < LARGE:
            return
        self._note()
        if size <= HUGE:
            return
        with self._lock:
            self._huge += size
            if self._huge < AT_A_TIME or self._has() <= self._least + SEVERAL:
                return
            self._huge = 0
        # Here and now: those that follow would else find room beside the holes, before any other thread can fill them.
        self._trim()

    def answered(self, size: int) -> None:
        """Take note that a message of `size` bytes has been answered."""
        if self._active and size >= LARGE:
            self._note()

    def _note(self) -> None:
        self._last = time.monotonic()
        self._came.set()

    def _run(self) -> None:
        while self._active:
            self._came.wait()
            self._came.clear()
            while self._active and time.monotonic() - self._last < self._quiet:
                time.sleep(min(LOOK, self._quiet))
            if self._has() > self._least + KEPT:
                self._trim()

    def _trim(self) -> None:
        begin, before = time.monotonic(), self._has()
        self._give_back()
        after = self._has()
        self._least = min(self._least, after)
        took = 1000 * (time.monotonic() - begin)
        logger.debug("%d of %d MB were given back in %.0f ms", (before - after) // 10**6, before // 10**6, took)
