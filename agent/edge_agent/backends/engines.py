"""The engine cache: what was built for one model, one GPU and one set of versions, kept for the next start.

It never stands in the way of serving: whatever is wrong with it costs a log line, and the time to build once more.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from edge_agent.backends import engine_entries as entries
from edge_agent.backends import engine_files as files
from edge_agent.backends.engine_entries import ENGINE, FILES, SEAL, TIMING
from edge_agent.backends.engine_files import Unfit
from edge_agent.errors import shown
from edge_agent.packages import ModelFiles

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Of a key, what may change under a model that stays.
WHAT = {"tensorrt": "TensorRT", "driver": "the driver"}
LENGTHS = struct.Struct("<QQ")


@dataclass(frozen=True)
class EngineKey:
    """All that an engine depends on: with another value of any of these it is another engine.

    `model_sha256` is `digest_of` the model; `gpu_code` as sm_87; `tensorrt` the version of what builds; `options` is
    whatever else the builder is told, precision and limits among it.
    """

    model_sha256: str
    gpu_name: str
    gpu_code: str
    tensorrt: str
    driver: str
    options: Mapping[str, str]

    @property
    def json(self) -> bytes:
        """The key as JSON, equal keys to the byte."""
        content = {**asdict(replace(self, options={})), "options": dict(self.options)}
        return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()

    @property
    def digest(self) -> str:
        """The SHA-256 of the key, hexadecimal."""
        return hashlib.sha256(self.json).hexdigest()


def digest_of(model: ModelFiles) -> str:
    """Return the SHA-256 (hexadecimal) of a model: its graph, and its other files with their names."""
    digest = hashlib.sha256()
    for name, content in [("", model.graph), *sorted(model.external.items())]:
        coded = os.fsencode(name)
        digest.update(LENGTHS.pack(len(coded), len(content)) + coded)
        digest.update(content)
    return digest.hexdigest()


class EngineCache:
    """A folder of engines, at most `most` bytes of them; the least recently used go first.

    Several processes may use it at once, and each of them has one EngineCache, from one thread.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self._path = folder
        self._most = most
        # The runtime's folders that this process uses, and their locks, by key.
        self._held: dict[str, int] = {}
        self._told = False

    def read(self, key: EngineKey) -> bytes | None:
        """Return the engine that was built for a key, None where there is none that can be trusted."""
        return self._trying("read", lambda store: self._read(store, key.digest + ENGINE, key))

    def write(self, key: EngineKey, data: bytes) -> None:
        """Keep an engine; where there is no room for it, that is logged."""
        self._trying("kept", lambda store: self._write(store, key.digest + ENGINE, key, data))

    def read_timing(self, key: EngineKey) -> bytes:
        """Return what earlier builds measured on this GPU with these versions, for whatever model; b"" if nothing."""
        of_device = _of_device(key)
        return self._trying("read", lambda store: self._read(store, of_device.digest + TIMING, of_device)) or b""

    def write_timing(self, key: EngineKey, data: bytes) -> None:
        """Keep what was measured, for the builds of other models; as `write`."""
        of_device = _of_device(key)
        self._trying("kept", lambda store: self._write(store, of_device.digest + TIMING, of_device, data))

    def folder(self, key: EngineKey) -> Path | None:
        """Return a folder for a runtime that keeps its engine itself: with what was sealed in it, or else empty.

        It is ours until this process ends, and is not removed meanwhile. None where there can be none, or where another
        process is building the same engine in it: then nothing is to be kept.
        """
        return self._trying("kept", lambda store: self._folder(store, key))

    def seal(self, key: EngineKey) -> None:
        """Note what is in the key's folder now, as the only content that `folder` will return it with."""
        self._trying("kept", lambda store: self._seal(store, key))

    def of_model(self, model_sha256: str) -> Mapping[str, int]:
        """Return a serial for each engine that is kept of a model, and when it was last used, to compare only.

        With another serial one was built, and with a later use one was read.
        """
        return self._trying("listed", lambda store: entries.of_model(store, model_sha256)) or {}

    def _trying(self, done: str, action: Callable[[int], T]) -> T | None:
        """Do something with the folder, unless it cannot be used; None where it failed."""
        if self._most <= 0:
            return None
        try:
            with files.opened(self._path) as store:
                return action(store)
        except Unfit as reason:
            if not self._told:
                logger.warning("The engine cache %s is not used, since %s; remove it.", self._path, reason)
            self._told = True
        except OSError as error:
            logger.warning("An engine could not be %s in %s: %s.", done, self._path, error.strerror)
        return None

    def _read(self, store: int, name: str, key: EngineKey) -> bytes | None:
        try:
            return files.read(store, name, key.json, self._most)
        except FileNotFoundError:
            return None
        except Unfit as reason:
            self._discard(store, (name,), str(reason))
            return None

    def _write(self, store: int, name: str, key: EngineKey, data: bytes) -> None:
        size = files.size_with(key.json, data)
        if size > self._most:
            logger.warning(
                "An engine of %d bytes is not kept, since the cache may have %d in all; raise engine_cache_size.",
                size,
                self._most,
            )
            return
        files.sweep(store)
        self._outdate(store, key)
        self._make_room(store, name, self._most - size)
        files.write(store, name, key.json, data)

    def _folder(self, store: int, key: EngineKey) -> Path | None:
        name = key.digest + FILES
        if (before := self._held.pop(name, None)) is not None:
            os.close(before)
        claimed = self._claim(store, name)
        if claimed is None:
            return None
        inner, alone = claimed
        sealed = self._as_sealed(store, inner, key)
        if not sealed and not alone:
            os.close(inner)
            self._tell_busy()
            return None
        self._held[name] = inner
        if sealed:
            fcntl.flock(inner, fcntl.LOCK_SH)  # others may use it, too
        else:
            entries.empty(self._path / name)
        return self._path / name

    def _claim(self, store: int, name: str) -> tuple[int, bool] | None:
        """Return a folder of the store, locked, and whether for us alone; None where another process builds in it."""
        while True:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=store)
            try:
                inner = files.open_folder(store, name)
            except Unfit as reason:
                files.remove(self._path / name)
                self._tell_removed(name, str(reason))
                continue
            try:
                alone = entries.lock(inner)
                if alone is not None and entries.is_there(inner, store, name):
                    return inner, alone
            except OSError:  # a file system without locks, for one
                os.close(inner)
                raise
            os.close(inner)
            if alone is None:
                self._tell_busy()
                return None

    def _as_sealed(self, store: int, inner: int, key: EngineKey) -> bool:
        """Return whether a folder is as it was sealed for the key; what was wrong is logged, and its seal removed."""
        name = key.digest + SEAL
        sealed = self._read(store, name, key)
        if sealed is None:
            return False
        try:
            if sealed == _as_json(files.digests(inner)):
                return True
            reason = "it is damaged: its content is not the one that was sealed"
        except Unfit as what:
            reason = f"of a file in it, {what}"
        self._discard(store, (name,), reason)
        return False

    def _seal(self, store: int, key: EngineKey) -> None:
        name = key.digest + FILES
        inner = files.open_folder(store, name)
        try:
            data = _as_json(files.digests(inner, close=True))
            size = files.size_of(inner) + len(data)
        finally:
            os.close(inner)
        if self._read(store, key.digest + SEAL, key) != data:
            files.sweep(store)
            files.write(store, key.digest + SEAL, key.json, data)
        self._outdate(store, key)
        self._make_room(store, name, self._most - size)
        if (held := self._held.get(name)) is not None:
            fcntl.flock(held, fcntl.LOCK_SH)

    def _outdate(self, store: int, key: EngineKey) -> None:
        """Remove what was built for the same model and GPU with another driver or TensorRT: no start will look for it."""
        for entry in entries.of(store):
            told = files.about(store, entry.names[-1])
            if told is None:
                continue
            _, theirs = told
            same = ("model_sha256", "gpu_name", "gpu_code")
            if any(theirs.get(part) != getattr(key, part) for part in same):
                continue
            for part, what in WHAT.items():
                if theirs.get(part) != getattr(key, part):
                    was, now = shown(str(theirs.get(part))), shown(getattr(key, part))
                    reason = f"it was built with {what} {was}, and now there is {now}"
                    self._discard(store, entry.names, reason, logging.INFO)
                    break

    def _make_room(self, store: int, name: str, most: int) -> None:
        """Remove what was used least recently until all but `name`, which is not looked at, has at most `most` bytes."""
        others = sorted((one for one in entries.of(store) if one.names[0] != name), key=lambda one: one.used)
        size = sum(one.size for one in others)
        for entry in others:
            if size <= most:
                return
            if self._discard(store, entry.names, "it was used least recently, and room is needed", logging.INFO):
                size -= entry.size

    def _discard(self, store: int, names: tuple[str, ...], reason: str, level: int = logging.WARNING) -> bool:
        """Remove what is kept under some names, unless a process uses it; log why. Return whether it is gone."""
        try:
            with entries.unused(store, names[0]) as unused:
                if not unused:
                    return False
                for name in names:
                    files.remove(self._path / name)
        except OSError as error:
            logger.warning(
                "%s of the engine cache is not used, since %s; it cannot be removed: %s.",
                _short(names[0]),
                reason,
                error.strerror,
            )
            return False
        self._tell_removed(names[0], reason, level)
        return True

    def _tell_removed(self, name: str, reason: str, level: int = logging.WARNING) -> None:
        logger.log(level, "%s was removed from the engine cache, since %s.", _short(name), reason)

    def _tell_busy(self) -> None:
        logger.info("Another process builds the same engine in %s; the one that is built now is not kept.", self._path)


def _of_device(key: EngineKey) -> EngineKey:
    """Return a key without what is of the model."""
    return replace(key, model_sha256="", options={})


def _short(name: str) -> str:
    digest, _, kind = name.partition(".")
    return f"{digest[:12]}.{kind}"


def _as_json(content: files.Digests) -> bytes:
    return json.dumps(content, sort_keys=True).encode()
