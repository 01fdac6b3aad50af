"""Turns that tests take when they run in several processes: what measures the whole machine runs while no other does."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Every process of one run has these files, and nothing of them is left behind. Whoever wants to be alone waits at the door
# until the room is empty, and nobody else enters meanwhile: with the room alone, tests that follow each other without a gap
# would keep it waiting.
DOOR, ROOM = Path(__file__), Path(__file__).with_name("__init__.py")


@contextmanager
def turn(*, alone: bool, door: Path = DOOR, room: Path = ROOM) -> Iterator[None]:
    """Wait until no test that must be alone runs or waits, and with `alone` until none runs at all."""
    with _locked(room) as inside:
        with _locked(door) as waiting:
            fcntl.flock(waiting, fcntl.LOCK_EX)
            fcntl.flock(inside, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Open a file to be locked; it is unlocked in the end, also where a child process still has it open (flock(2))."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)
