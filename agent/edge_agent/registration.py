"""A registry entry: what a component says of the package that it brings, believed only if nobody else can have written it."""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from edge_agent import packages
from edge_agent.block import NAME, VERSION
from edge_agent.errors import PackageRefused, shown

LONGEST = 4096
KEYS = ("component", "version", "path", "autostart")
FLAGS = {"true": True, "false": False}
# Never waits for a FIFO's other end.
READING_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
# What opening says of an entry that is itself at fault; anything else is a fault of the system, which may pass.
NO_ENTRY = {
    errno.ELOOP: "it is a link",
    errno.EACCES: "it cannot be read (Permission denied)",
    errno.EPERM: "it cannot be read (Operation not permitted)",
    errno.ENXIO: "it is no regular file",
    errno.ENODEV: "it is no regular file",
}


class EntryRefused(Exception):
    """A registry entry does not count; the text says why and what to do."""


class PackageGone(Exception):
    """What an entry names is not there any more, though the folder that it was in is."""


@dataclass(frozen=True)
class Entry:
    """An entry: a component, its version, the absolute path of its package or of the zip, and whether it is started."""

    raw: bytes
    component: str
    version: str
    path: str
    autostart: bool


@dataclass(frozen=True)
class Place:
    """Where a registered package is: its folder, below a folder that is trusted."""

    folder: Path
    root: Path


def read(folder: int, name: str, trusted: Collection[int]) -> bytes:
    """Return the content of the file `name` in the open `folder`.

    Raises:
        EntryRefused: somebody else could have written it, or it is no plain file of at most 4 KiB.
        FileNotFoundError: it is gone.
        OSError: the system could not read it.

    """
    try:
        fd = os.open(name, READING_FLAGS, dir_fd=folder)
    except OSError as error:
        if error.errno not in NO_ENTRY:
            raise
        raise EntryRefused(f"{NO_ENTRY[error.errno]}; write a plain file") from None
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise EntryRefused("it is no regular file; write a plain one")
        if info.st_nlink != 1:
            raise EntryRefused("it has a second hard link; write a file of its own")
        if info.st_uid not in trusted:
            raise EntryRefused(
                f"it belongs to uid {info.st_uid}; only root, the agent's user and trusted_uids may register models"
            )
        if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise EntryRefused(f"its mode {stat.S_IMODE(info.st_mode):04o} lets others write it; chmod go-w")
        data = os.pread(fd, LONGEST + 1, 0)
    finally:
        os.close(fd)
    if len(data) > LONGEST:
        raise EntryRefused(f"it is longer than {LONGEST} bytes")
    return data


def parse(name: str, data: bytes) -> Entry:
    """Return what the entry of the component `name` says; raise EntryRefused, naming the key, when it is none."""
    try:
        content = json.loads(data, object_pairs_hook=_once)
        json.dumps(content, ensure_ascii=False).encode()
    except EntryRefused:
        raise
    except (ValueError, RecursionError):
        raise EntryRefused(f"it is no JSON; write an object of {_listed(KEYS)}") from None
    if not isinstance(content, dict) or content.keys() != {*KEYS}:
        raise EntryRefused(f"it must be an object of exactly {_listed(KEYS)}")
    for key in KEYS:
        if not isinstance(content[key], str):
            raise EntryRefused(f"`{key}` is {shown(json.dumps(content[key]))}; it must be a text")
    if content["component"] != name:
        raise EntryRefused(f"`component` is {shown(content['component'])}; the file's name says {name}")
    if not VERSION.fullmatch(content["version"]):
        raise EntryRefused(f"`version` is {shown(content['version'])}; it must be x.y.z")
    if content["autostart"] not in FLAGS:
        raise EntryRefused(f'`autostart` is {shown(content["autostart"])}; it must be "true" or "false"')
    path = content["path"]
    if not path.startswith("/") or not path.isprintable():
        raise EntryRefused(f"`path` is {shown(path)}; it must be an absolute path of printable characters")
    return Entry(data, name, content["version"], path, FLAGS[content["autostart"]])


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise EntryRefused(f"the key {shown(key)} is there twice")
    return dict(pairs)


def _listed(keys: Iterable[str]) -> str:
    return ", ".join(f"`{key}`" for key in keys)


class Places:
    """Finds the package that an entry names, below the allowed roots; unpacks zips into a folder of the agent's own."""

    def __init__(self, roots: Iterable[Path], trusted: Collection[int], unpacked: Path) -> None:
        self._roots = tuple(roots)
        self._trusted = trusted
        self._unpacked = unpacked

    def find(self, entry: Entry) -> Place:
        """Return where the entry's package is.

        Raises:
            EntryRefused: it is outside the allowed roots, others may write there, or it holds no package.
            PackageGone: it is not there.
            OSError: the system could not look.

        """
        real = Path(os.path.realpath(entry.path))
        root = self._root_of(real, entry.path)
        try:
            info = real.lstat()
        except (FileNotFoundError, NotADirectoryError):
            # As long as the root is not there, as before its file system is mounted, nobody knows.
            root.stat()
            raise PackageGone from None
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            raise EntryRefused(f"`path` is {shown(entry.path)}, which is longer than a path can be") from None
        self._check_trust(real, root)
        if stat.S_ISDIR(info.st_mode):
            return Place(_only_package(real, entry.path), root)
        if stat.S_ISREG(info.st_mode):
            return Place(_only_package(self._unpack(real, info), entry.path), self._unpacked)
        raise EntryRefused(f"`path` is {shown(entry.path)}, which is neither a folder nor a zip")

    def _root_of(self, real: Path, path: str) -> Path:
        roots = [Path(os.path.realpath(root)) for root in self._roots]
        for root in roots:
            if root in real.parents:
                return root
        allowed = " or ".join(shown(str(root)) for root in roots)
        raise EntryRefused(f"`path` is {shown(path)}, which is not below {allowed} (registry_roots)")

    def _check_trust(self, real: Path, root: Path) -> None:
        above = [real, *real.parents]
        for path in above[: above.index(root) + 1]:
            info = path.lstat()
            if info.st_mode & stat.S_IWOTH:
                raise EntryRefused(f"{shown(str(path))} is writable by everybody; take that away with chmod o-w")
            if info.st_uid not in self._trusted:
                raise EntryRefused(
                    f"{shown(str(path))} belongs to uid {info.st_uid}; only root, the agent's user and trusted_uids may "
                    "own packages"
                )

    def _unpack(self, archive: Path, info: os.stat_result) -> Path:
        """Return the folder with the content of a zip, which is unpacked once for as long as the zip stays as it is."""
        # Of the packager, but a module of the standard library's means alone.
        from model_packager import archives
        from model_packager.errors import PackagingRefused

        known = f"{archive}\0{info.st_dev} {info.st_ino} {info.st_size} {info.st_mtime_ns} {info.st_ctime_ns}"
        folder = self._unpacked / hashlib.sha256(os.fsencode(known)).hexdigest()[:16]
        if not folder.is_dir():
            try:
                archives.unpack(archive, folder)
            except PackagingRefused as refusal:
                raise EntryRefused(str(refusal).removesuffix(".")) from None
        return folder


def _only_package(folder: Path, path: str) -> Path:
    try:
        found = list(packages.search(folder, packages.raise_error))
    except PackageRefused as refusal:
        raise EntryRefused(str(refusal).removesuffix(".")) from None
    if len(found) != 1:
        count = "no model package" if not found else f"{len(found)} model packages; register one"
        raise EntryRefused(f"`path` is {shown(path)}, which holds {count}")
    return found[0]


def trusted(uids: Collection[int]) -> frozenset[int]:
    """Return who may register models and own packages: root, the agent's user, and `uids`."""
    return frozenset({0, os.geteuid(), *uids})


def component_of(file_name: str) -> str | None:
    """Return which component an entry is of by the name of its file, None where it is no entry.

    Names with a dot in front are of files that are still being written.
    """
    name = file_name.removesuffix(".json")
    return name if name != file_name and not name.startswith(".") and NAME.fullmatch(name) else None
