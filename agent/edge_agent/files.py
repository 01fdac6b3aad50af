"""Files that somebody else names, which are read with care, and files of our own, which are whole at any instant."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO


def read_regular(path: Path, most: int) -> bytes:
    """Return a file's first `most` bytes; raise OSError for what is no regular file.

    A FIFO, whose writer may never come, is not waited for, and a device, which may have no end, is not read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
        with os.fdopen(fd, "rb", closefd=False) as file:
            return file.read(most)
    finally:
        os.close(fd)


@contextlib.contextmanager
def replacing(path: Path, beside: Path, mode: int = 0o600, *, sync: bool = False) -> Iterator[BinaryIO]:
    """Yield a new file that takes the place of `path` at the end, or leaves it alone and nothing behind where that fails.

    Until then it lies at `beside`, in the same folder; what was there goes first, and is never followed. It has `mode`,
    whatever the umask is. With `sync` it is on the disk before it takes its place. Raises OSError.
    """
    with contextlib.suppress(FileNotFoundError):
        beside.unlink()
    try:
        with open(beside, "xb", opener=partial(_made, mode=mode)) as file:
            os.fchmod(file.fileno(), mode)  # by its name it may be another's file by now
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


def _made(path: str, flags: int, mode: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
