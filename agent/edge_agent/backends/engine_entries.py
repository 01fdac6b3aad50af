"""What is in an engine cache, by its names; and who uses the folders in it that runtimes keep their files in themselves.

A name is a key's digest and the kind of what is kept. A runtime's folder is locked (flock(2)) by its users: by one alone
while it builds in it, by all together once that is done.
"""

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_agent.backends import engine_files as files
from edge_agent.backends.engine_files import Unfit

# An engine, a timing cache, a runtime's folder, and what was in such a folder when it was sealed.
ENGINE, TIMING, FILES, SEAL = ".engine", ".timing", ".files", ".seal"
KEPT = re.compile(r"[0-9a-f]{64}\.(engine|timing|files|seal)")


@dataclass(frozen=True)
class Entry:
    """Something kept: its names, the last of which has its key, its bytes, and when it was last used (to compare only)."""

    names: tuple[str, ...]
    size: int
    used: int


def of(store: int) -> list[Entry]:
    """Return all that is kept; what is not named as ours is not looked at."""
    with os.scandir(store) as listed:
        infos = {one.name: one.stat(follow_symlinks=False) for one in listed if KEPT.fullmatch(one.name)}
    entries = []
    for name, info in infos.items():
        path, kind = Path(name), Path(name).suffix
        seal = str(path.with_suffix(SEAL))
        if kind == FILES and seal in infos:
            size = infos[seal].st_size + _size_of(store, name, info)
            entries.append(Entry((name, seal), size, infos[seal].st_mtime_ns))
        elif kind == FILES:
            entries.append(Entry((name,), _size_of(store, name, info), info.st_mtime_ns))
        elif kind != SEAL or str(path.with_suffix(FILES)) not in infos:
            entries.append(Entry((name,), info.st_size, info.st_mtime_ns))
    return entries


def of_model(store: int, model_sha256: str) -> Mapping[str, int]:
    """Return the serial of each engine of a model, be it a file's or a folder's, and when it was last used."""
    found = {}
    for entry in of(store):
        told = files.about(store, entry.names[-1]) if entry.names[-1].endswith((ENGINE, SEAL)) else None
        if told and told[1].get("model_sha256") == model_sha256:
            found[told[0]] = entry.used
    return found


def _size_of(store: int, name: str, info: os.stat_result) -> int:
    """Return the bytes in a folder, those of itself where it is none, or not ours."""
    try:
        inner = files.open_folder(store, name)
    except (Unfit, FileNotFoundError):
        return info.st_size
    try:
        return files.size_of(inner)
    finally:
        os.close(inner)


def empty(folder: Path) -> None:
    """Remove all that is in a folder."""
    for one in list(folder.iterdir()):
        files.remove(one)


def lock(fd: int) -> bool | None:
    """Lock a folder: True for us alone, False together with others who use it, None where another builds in it."""
    for kind in (fcntl.LOCK_EX, fcntl.LOCK_SH):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
            return kind == fcntl.LOCK_EX
    return None


def is_there(fd: int, store: int, name: str) -> bool:
    """Return whether a folder still has its name: another process may have removed it before it was locked."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(name, dir_fd=store, follow_symlinks=False))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def unused(store: int, name: str) -> Iterator[bool]:
    """Yield whether something may be removed: a runtime's folder may not while a process uses it."""
    if not name.endswith(FILES):
        yield True
        return
    try:
        inner = files.open_folder(store, name)
    except (Unfit, FileNotFoundError):
        yield True
        return
    try:
        yield lock(inner) is True
    finally:
        os.close(inner)
