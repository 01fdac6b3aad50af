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

# Messages with less bring no image and leave nothing.
IMAGE = 4 << 10
# Smaller ones leave little, which is not worth a thought until no image comes any more.
LARGE = 1 << 20
# The pieces of those above this are given back as they come, so many bytes at a time, where several are in hand. It makes
# the next ones slower, which have to find pages anew; one caller alone is to be spared that.
HUGE = malloc.ORDINARY[malloc.M_MMAP_THRESHOLD]
AT_A_TIME = 128 << 20
SEVERAL = 192 << 20
# What is kept for the next messages when none has come, and none was answered, for QUIET seconds.
KEPT = malloc.ORDINARY[malloc.M_TRIM_THRESHOLD]
QUIET, LOOK = 1.0, 0.25
# While they do not cease, what is above TOO_MUCH is given back each STEADY seconds. All calls wait meanwhile: for 2 to 75 ms
# where streams of 3 to 11 MB an image need it again, for up to 285 ms where a burst of 32 MiB images left 500 MB. Of ten
# seconds that is 3 % at most; the median and the 99th percentile of a stream of 1280x720 images do not show it.
TOO_MUCH = 2 * KEPT
STEADY = 10.0
# After so many seconds without an image everything is given back. The next image pays for it: of 1280x720 pixels, inline, it
# took 14 ms instead of 10, one of 1920x1080 23 instead of 15, which is nothing to a line that stood still, and too much for
# each part of a slow one.
IDLE = 30.0


def resident() -> int:
    """Return the bytes that this process has in memory; 0 where /proc cannot be read."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return 0


class Trimmer:
    """Gives memory back from `start` on: during huge messages, during and after large ones, and when none comes.

    For any thread.
    """

    def __init__(
        self,
        give_back: Callable[[], None] = malloc.give_back,
        has: Callable[[], int] = resident,
        quiet: float = QUIET,
        steady: float = STEADY,
        idle: float = IDLE,
    ) -> None:
        """Give back by `give_back` what is above what this process `has` by now; `quiet`, `steady` and `idle` are in seconds."""
        self._give_back = give_back
        self._has = has
        self._quiet = quiet
        self._steady = steady
        self._idle = idle
        self._lock = threading.Lock()
        self._came = threading.Event()
        self._large_came = threading.Event()
        self._active = False
        self._huge = 0
        self._last = self._last_large = 0.0
        self._least = 0
        self._thread = threading.Thread(target=self._run, name="trimming", daemon=True)

    def start(self) -> None:
        """Begin, for as long as the process lives."""
        self._least = self._has()
        self._active = True
        self._thread.start()

    def received(self, size: int) -> None:
        """Take note of a message of `size` bytes that has been put together; its pieces are free."""
        if not self._active or size < IMAGE:
            return
        self._note(size)
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
        """Take note that a message has been answered; of it and its answer the larger one has `size` bytes."""
        if self._active and size >= IMAGE:
            self._note(size)

    def _note(self, size: int) -> None:
        self._last = time.monotonic()
        if size >= LARGE:
            self._last_large = self._last
            self._large_came.set()
        if not self._came.is_set():
            self._came.set()

    def _run(self) -> None:
        while True:
            self._came.wait()
            if self._large_came.wait(self._until_idle()):
                self._large_came.clear()
                self._wait_until_quiet()
                if self._has() > self._least + KEPT:
                    self._trim()
                continue
            self._came.clear()
            if self._until_idle():
                self._came.set()  # one came meanwhile, perhaps before it was cleared
            else:
                self._trim()

    def _until_idle(self) -> float:
        return max(0.0, self._last + self._idle - time.monotonic())

    def _wait_until_quiet(self) -> None:
        """Return when no large message came, and none was answered, for a while; until then give back what is far too much."""
        due = time.monotonic() + self._steady
        while time.monotonic() - self._last_large < self._quiet:
            time.sleep(min(LOOK, self._quiet))
            if time.monotonic() >= due:
                if self._has() > self._least + TOO_MUCH:
                    self._trim()
                due = time.monotonic() + self._steady

    def _trim(self) -> None:
        begin, before = time.monotonic(), self._has()
        self._give_back()
        after = self._has()
        self._least = min(self._least, after)
        took = 1000 * (time.monotonic() - begin)
        logger.debug("%d of %d MB were given back in %.0f ms", (before - after) // 10**6, before // 10**6, took)
