"""Unpacking a zip or tar archive that somebody else made, whole or not at all, into a folder of its own."""

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from edge_agent.errors import shown
from model_packager import tars, zips
from model_packager.entries import Entry, Hostile, Limits, Names, Wanted
from model_packager.errors import PackagingRefused

__all__ = ["LIMITS", "Limits", "unpack"]

LIMITS = Limits()
FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def _everything(_name: str) -> bool:
    return True


def unpack(
    archive: Path, into: Path, wanted: Callable[[str], bool] = _everything, limits: Limits = LIMITS
) -> list[str]:
    """Unpack a .zip, or a tar that is plain or packed with gzip, bzip2 or xz, and return the paths of the files written.

    What the archive is, is told by its content. Entries that are not wanted are passed over, whatever they are and are
    called; they count towards the limits of the whole archive. Files get mode 0600 and folders 0700, whatever the archive
    says; a folder without files in it is not made.

    Args:
        archive: the file to unpack, which may be hostile.
        into: the folder to write into; it must not exist, and after a refusal it does not.
        wanted: chooses the entries by their path in the archive, without a leading "./" or a slash at the end. It is asked
            before that path is checked, which may be any text.
        limits: how much the archive may hold.

    Raises:
        PackagingRefused: the archive is not what it has to be, or the disk does not take it.

    """
    try:
        with _opened(archive) as file, _made(into) as folder:
            written = []
            names = Names(limits)
            for entry in _entries(file, limits, lambda name: wanted(_text(name))):
                path = names.claim(entry.name, is_folder=entry.is_folder)
                if not entry.is_folder:
                    _write(folder, path, entry.content)
                    written.append(path)
            return written
    except Hostile as found:
        subject = "it" if found.name is None else f"its entry {shown(found.name.decode(errors='backslashreplace'))}"
        why = f"{subject} {found.wrong}"
    except OSError as error:
        why = os.strerror(error.errno or errno.EIO)
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            why = "there is not enough room on the disk for its content; make room and try again"
    raise PackagingRefused(f"{shown(archive.name)} cannot be unpacked: {why}.")


@contextmanager
def _opened(archive: Path) -> Iterator[BinaryIO]:
    """Open a regular file, never waiting for a FIFO's other end."""
    fd = os.open(archive, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Hostile("is no regular file")
        with os.fdopen(fd, "rb", buffering=0, closefd=False) as file:
            yield file
    finally:
        os.close(fd)


@contextmanager
def _made(into: Path) -> Iterator[int]:
    """Make a folder and open it; remove it and all that was written when the work in it fails."""
    try:
        into.mkdir(0o700)
    except OSError as error:
        raise PackagingRefused(
            f"The folder {shown(into.name)} to unpack into cannot be made: {os.strerror(error.errno or errno.EIO)}."
        ) from None
    try:
        fd = os.open(into, FOLDER_FLAGS)
        try:
            yield fd
        finally:
            os.close(fd)
    except BaseException:
        shutil.rmtree(into, ignore_errors=True)
        raise


def _text(name: bytes) -> str:
    return name.decode(errors="backslashreplace").removeprefix("./").removesuffix("/")


def _entries(file: BinaryIO, limits: Limits, wanted: Wanted) -> Iterator[Entry]:
    size = os.fstat(file.fileno()).st_size
    if size > limits.total:
        raise Hostile(f"has {size} bytes; {limits.total} are the most")
    if os.pread(file.fileno(), 4, 0) in zips.MAGIC:
        return zips.entries(file.fileno(), size, limits, wanted)
    return tars.entries(file, size, limits, wanted)


def _write(folder: int, path: str, content: Iterable[bytes]) -> None:
    """Write a new file at `path` below the open `folder`, following no link on the way."""
    *folders, name = path.split("/")
    above = os.dup(folder)
    try:
        for one in folders:
            with suppress(FileExistsError):
                os.mkdir(one, 0o700, dir_fd=above)
            below = os.open(one, FOLDER_FLAGS, dir_fd=above)
            os.close(above)
            above = below
        fd = os.open(name, FILE_FLAGS, 0o600, dir_fd=above)
    finally:
        os.close(above)
    try:
        for chunk in content:
            left = memoryview(chunk)
            while left:
                left = left[os.write(fd, left) :]
    finally:
        os.close(fd)
