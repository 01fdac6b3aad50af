"""Shared memory segments of a client: created for the agent to read, reused, grown, and never left behind.

A segment's owner holds a lock (flock) on it as long as it lives, in whatever container. What no owner holds was left by a
client that was killed, and is removed by the next client of the same user, or of root: nobody else may remove it.
"""

import contextlib
import fcntl
import mmap
import os
import secrets
import threading
import weakref
from collections import deque
from pathlib import Path

import numpy as np
import posix_ipc
from numpy.typing import NDArray

PREFIX = "edge-agent-client-"
FOLDER = Path("/dev/shm")
# The agent runs as another user, in the group that may call it.
MODE = 0o660

Bytes = NDArray[np.uint8]


class SharedMemoryFull(OSError):
    """There is no room in /dev/shm for a frame."""

    def __str__(self) -> str:
        """Return the sentence alone, without the number that OSError puts before it."""
        return str(self.strerror)


class Segment:
    """One segment and its mapping, owned by this process."""

    def __init__(self, size: int, group: int | None) -> None:
        """Create a segment of `size` bytes that members of `group` may use; raise SharedMemoryFull."""
        self.name, self._fd = _create(group)
        self._size = 0
        self._map: mmap.mmap | None = None
        try:
            self.grow(size)
        except BaseException:
            self.unlink()
            raise

    @property
    def size(self) -> int:
        """Bytes that the segment holds."""
        return self._size

    def grow(self, size: int) -> None:
        """Make room for `size` bytes; raise SharedMemoryFull when there is none."""
        if size <= self._size:
            return
        try:
            # Not ftruncate: it promises memory that is perhaps not there, and the first write would end in SIGBUS.
            os.posix_fallocate(self._fd, 0, size)
        except OSError as error:
            raise SharedMemoryFull(
                error.errno, f"/dev/shm has no room for a frame of {size} bytes; free some or make it larger"
            ) from None
        self._map = mmap.mmap(self._fd, size)
        self._size = size

    def array(self) -> Bytes:
        """Return the segment's bytes as a new array; every view of it keeps it alive."""
        assert self._map is not None
        return np.frombuffer(self._map, np.uint8)

    def unlink(self) -> None:
        """Remove the segment's name and give up its lock; arrays of it stay valid."""
        _remove(self.name, self._fd)

    def drop(self) -> None:
        """Remove the segment and give up its memory now, whoever still refers to it; it must not be used any more."""
        self.unlink()
        self._map = None


class SegmentPool:
    """The segments of one client: lent to one call at a time, kept for the next, removed at the end."""

    def __init__(self, group_of: Path) -> None:
        """Make an empty pool whose segments get the group of the file `group_of`, the agent's socket."""
        self._group_of = group_of
        self._lock = threading.Lock()
        self._free: list[Segment] = []
        self._lent: set[Segment] = set()
        # Appended to without the lock: an array may be collected at any instant, also while the lock is held.
        self._returned: deque[Segment] = deque()
        self._swept = False
        self._owner = os.getpid()
        # Runs when the pool is forgotten, and at the latest when the interpreter ends.
        self.close = weakref.finalize(self, _unlink_all, self._free, self._lent, self._lock, self._owner)

    def lend(self, size: int) -> Segment:
        """Return a segment of at least `size` bytes; `give_back` or `drop` must follow. Raises SharedMemoryFull."""
        with self._lock:
            if not self.close.alive:
                raise ValueError("the client is closed")
            if not self._swept:
                sweep()
                self._swept = True
            while self._returned:
                returned = self._returned.popleft()
                self._lent.discard(returned)
                self._free.append(returned)
            # The smallest that is large enough, else the largest, which then grows.
            self._free.sort(key=lambda segment: segment.size)
            index = next((place for place, one in enumerate(self._free) if one.size >= size), len(self._free) - 1)
            segment = self._free.pop(index) if self._free else None
            if segment is None:
                segment = Segment(size, _group(self._group_of))
            else:
                try:
                    segment.grow(size)
                except BaseException:
                    self._free.append(segment)
                    raise
            self._lent.add(segment)
            return segment

    def give_back(self, segment: Segment) -> None:
        """Take a segment back for the next call."""
        self._returned.append(segment)

    def give_back_with_views(self, segment: Segment) -> Bytes:
        """Return a segment's bytes; it is taken back as soon as they and all views of them are gone."""
        array = segment.array()
        weakref.finalize(array, self._returned.append, segment).atexit = False
        return array

    def drop(self, segment: Segment) -> None:
        """Remove a segment that was lent; who has it open may use it as before, and no call ever gets it again."""
        with self._lock:
            if segment in self._lent:  # else the pool was closed meanwhile
                self._lent.discard(segment)
                segment.drop()


def sweep() -> int:
    """Remove the segments whose clients were killed; return how many.

    Those of other users stay, unless we are root: /dev/shm is sticky, like /tmp.
    """
    removed = 0
    for path in FOLDER.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                removed += 1
            finally:
                os.close(fd)
    return removed


def _create(group: int | None) -> tuple[str, int]:
    """Create an empty segment and lock it; return its name and descriptor. Raises OSError where none can be made."""
    while True:
        name = f"/{PREFIX}{secrets.token_hex(8)}"
        try:
            fd = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=MODE).fd
        except posix_ipc.Error as error:
            raise OSError(f"no segment can be made in /dev/shm: {error}; send the images inline") from None
        try:
            os.set_inheritable(fd, False)
            os.fchmod(fd, MODE)  # whatever the umask took away
            if group is not None:
                with contextlib.suppress(PermissionError):  # not a member: then the agent has to be the same user
                    os.fchown(fd, -1, group)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink:
                return name, fd
        except BlockingIOError:
            pass
        except BaseException:
            _remove(name, fd)
            raise
        # Another client swept it, or is about to, in the instant before it was locked.
        _remove(name, fd)


def _remove(name: str, fd: int) -> None:
    with contextlib.suppress(posix_ipc.ExistentialError):
        posix_ipc.unlink_shared_memory(name)
    os.close(fd)


def _group(path: Path) -> int | None:
    try:
        return path.stat().st_gid
    except OSError:
        return None


def _unlink_all(free: list[Segment], lent: set[Segment], lock: threading.Lock, owner: int) -> None:
    if os.getpid() != owner:
        return  # a forked child has the names, not the segments
    with lock:
        for segment in (*free, *lent):
            segment.unlink()
        free.clear()
        lent.clear()
