"""Files that nobody but we ourselves can have written, and that are whole or not there: what engines are kept in.

An engine is code, and so is whatever a runtime deserialises: who wrote a file, and whether it is all that was written, is
found out on the opened descriptor, before a byte of it is returned. Such a file is

    head     magic, format, length of the key, length of the payload (little-endian), a serial of its own
    digest   SHA-256 of all the rest
    key      what it was kept for, as JSON
    payload

and is written beside its place, with a lock on it, then put there by rename: a temporary file that nobody has locked is
left over by a process that was killed. Locks are flock(2)'s, which end with their process.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

HEAD = struct.Struct("<8sIIQ16s")
SERIAL = 16
DIGEST = 32
MAGIC = b"EAENGINE"
FORMAT = 1
# A key is some names, versions and options.
LONGEST_KEY = 1 << 16
CHUNK = 1 << 20
TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.new")
FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
READING_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
WRITING_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# What opening says of something that is there and that we have not written so; anything else is a fault of the system.
NOT_OURS = {
    errno.ELOOP: "it is a link",
    errno.ENOTDIR: "it is a link or no folder",
    errno.EACCES: "we may not read it",
    errno.ENXIO: "it is no plain file",
}

# The size and the SHA-256 (hexadecimal) of each file of a folder, by name.
Digests = Mapping[str, tuple[int, str]]


@dataclass(frozen=True)
class _Head:
    """What comes before the payload: the head as it is packed, the digest, the key, the payload's size, the serial."""

    packed: bytes
    digest: bytes
    key: bytes
    size: int
    serial: bytes


class Unfit(Exception):
    """Something is not as we wrote it, and must not be used; the text says what is wrong with it, as "it is ..."."""


def size_with(key: bytes, data: bytes) -> int:
    """Return the bytes of a file with a key and a payload."""
    return HEAD.size + DIGEST + len(key) + len(data)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """Yield the descriptor of a folder, which is made with mode 0700 where it is missing.

    Raises:
        Unfit: somebody else's files could be in it.
        OSError: it cannot be made or opened.

    """
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700, parents=True)
    fd = _open(path, FOLDER_FLAGS)
    try:
        info = os.fstat(fd)
        _check_owner(info)
        if stat.S_IMODE(info.st_mode) != 0o700:
            os.fchmod(fd, 0o700)
        yield fd
    finally:
        os.close(fd)


def open_folder(store: int, name: str) -> int:
    """Return the descriptor of a folder in `store`; raise FileNotFoundError, or Unfit where it is not ours alone."""
    fd = _open(name, FOLDER_FLAGS, store)
    try:
        _check_owner(os.fstat(fd))
    except BaseException:
        os.close(fd)
        raise
    return fd


def read(store: int, name: str, key: bytes, most: int) -> bytes:
    """Return the payload of a file of at most `most` bytes that was kept for `key`, and note that it was used.

    Raises:
        FileNotFoundError: there is none.
        Unfit: it must not be used.
        OSError: the system could not read it.

    """
    with _plain(store, name) as (file, info):
        _check_owner(info)
        if info.st_size > most:
            raise Unfit(f"it has {info.st_size} bytes, more than the {most} that all may have")
        head = _head(file, info.st_size)
        if head.key != key:
            raise Unfit(_difference(head.key, key))
        data = file.read(head.size)
        if _digest(head.packed, key, data) != head.digest:
            raise Unfit("it is damaged: its content is not the one that was written")
        with contextlib.suppress(OSError):  # the file system may be read-only by now
            os.utime(file.fileno())
        return data


def about(store: int, name: str) -> tuple[str, Mapping[str, Any]] | None:
    """Return a file's serial and what it was kept for, as far as it tells; its payload is not looked at."""
    try:
        with _plain(store, name) as (file, info):
            head = _head(file, info.st_size)
        content = json.loads(head.key)
    except (OSError, Unfit, ValueError, RecursionError):
        return None
    return (head.serial.hex(), content) if isinstance(content, dict) else None


def write(store: int, name: str, key: bytes, data: bytes) -> None:
    """Keep a payload for a key: whole, on the disk, and with mode 0600, or not at all; raise OSError."""
    fd, beside = _temporary(store)
    try:
        with os.fdopen(fd, "wb") as file:
            head = HEAD.pack(MAGIC, FORMAT, len(key), len(data), os.urandom(SERIAL))
            file.write(head + _digest(head, key, data) + key)
            file.write(data)
            file.flush()
            os.fsync(fd)
            os.rename(beside, name, src_dir_fd=store, dst_dir_fd=store)
        os.fsync(store)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside, dir_fd=store)
        raise


def sweep(store: int) -> None:
    """Remove the temporary files of processes that ended in the middle of a write."""
    for name in os.listdir(store):
        if TEMPORARY.fullmatch(name):
            # Somebody writes it, or has just put it in its place.
            with contextlib.suppress(OSError, Unfit), _plain(store, name) as (file, _):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(name, dir_fd=store)


def digests(folder: int, *, close: bool = False) -> Digests:
    """Return what is in a folder; raise Unfit where it is anything but plain files of ours, or OSError.

    With `close` nobody else may write them from now on: a runtime makes files as the umask has it.
    """
    found = {}
    for name in sorted(os.listdir(folder)):
        with _plain(folder, name) as (file, info):
            if close and info.st_uid == os.geteuid():
                os.fchmod(file.fileno(), 0o600)
            else:
                _check_owner(info)
            digest = hashlib.sha256()
            while chunk := file.read(CHUNK):
                digest.update(chunk)
            found[name] = (info.st_size, digest.hexdigest())
    return found


def size_of(folder: int) -> int:
    """Return the bytes of the files in a folder."""
    with os.scandir(folder) as entries:
        return sum(one.stat(follow_symlinks=False).st_size for one in entries)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder; raise OSError where that does not work."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        if not stat.S_ISDIR(path.lstat().st_mode):
            raise error from None
        shutil.rmtree(path)


def _open(path: Path | str, flags: int, store: int | None = None) -> int:
    try:
        return os.open(path, flags, dir_fd=store)
    except OSError as error:
        if error.errno in NOT_OURS:
            raise Unfit(NOT_OURS[error.errno]) from None
        raise


@contextlib.contextmanager
def _plain(store: int, name: str) -> Iterator[tuple[BinaryIO, os.stat_result]]:
    """Yield a plain file and what is said of it; raise Unfit for anything else, which is not waited for either."""
    fd = _open(name, READING_FLAGS, store)
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise Unfit("it is no plain file")
        if info.st_nlink > 1:
            raise Unfit("it has a second name (a hard link)")
        with os.fdopen(fd, "rb", closefd=False) as file:
            yield file, info
    finally:
        os.close(fd)


def _temporary(store: int) -> tuple[int, str]:
    """Return a new file, locked, and its name."""
    while True:
        name = f".{os.urandom(8).hex()}.new"
        fd = os.open(name, WRITING_FLAGS, 0o600, dir_fd=store)
        # Not every file system has locks; there it might be swept, and the write fail.
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            return fd, name
        os.close(fd)  # it was swept before it was locked


def _check_owner(info: os.stat_result) -> None:
    if info.st_uid != os.geteuid():
        raise Unfit(f"it belongs to uid {info.st_uid}, and the agent runs as uid {os.geteuid()}")
    if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Unfit(f"others may write it (its mode is {stat.S_IMODE(info.st_mode):04o})")


def _head(file: BinaryIO, length: int) -> _Head:
    """Read what comes before the payload of a file that has `length` bytes."""
    begin = file.read(HEAD.size + DIGEST)
    if len(begin) < HEAD.size + DIGEST:
        raise Unfit("it is cut off")
    packed, digest = begin[: HEAD.size], begin[HEAD.size :]
    magic, version, key_size, size, serial = HEAD.unpack(packed)
    if magic != MAGIC or version != FORMAT:
        raise Unfit("it is of another format")
    if key_size > LONGEST_KEY or length != len(begin) + key_size + size:
        raise Unfit("it is damaged or cut off: it does not have the length that it says")
    return _Head(packed, digest, file.read(key_size), size, serial)


def _digest(head: bytes, key: bytes, data: bytes) -> bytes:
    digest = hashlib.sha256(head + key)
    digest.update(data)
    return digest.digest()


def _difference(theirs: bytes, ours: bytes) -> str:
    """Say in what a key is another than ours, both as JSON."""
    try:
        told, wanted = json.loads(theirs), json.loads(ours)
        parts = [part.replace("_", " ") for part in wanted if told[part] != wanted[part]]
    except (ValueError, LookupError, TypeError, RecursionError):
        return "it is damaged: what it was built for cannot be read"
    return f"it was built for another {' and '.join(parts)}" if parts else "it is damaged: its key is written otherwise"
