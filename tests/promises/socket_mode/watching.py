"""What the kernel records of the entries of a folder (inotify(7)): each that is made, changed or removed, in order."""

import ctypes
import os
import struct
from pathlib import Path
from typing import NamedTuple

ATTRIB, MOVED_FROM, MOVED_TO, CREATE, DELETE, OVERFLOW = 0x4, 0x40, 0x80, 0x100, 0x200, 0x4000
ON_A_FOLDER = 0x40000000
KINDS = {ATTRIB: "changed", MOVED_FROM: "moved", MOVED_TO: "moved", CREATE: "made", DELETE: "removed"}
EVENT = struct.Struct("iIII")


class Event(NamedTuple):
    """What became of an entry."""

    kind: str
    name: str
    folder: bool


class Watch:
    """Records from when it is made until it is closed; nothing is merged but the very same twice in a row."""

    def __init__(self, folder: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._record: list[Event] = []
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0 or libc.inotify_add_watch(self._fd, os.fsencode(folder), sum(KINDS)) < 0:
            raise OSError(ctypes.get_errno(), "inotify cannot watch", str(folder))

    def close(self) -> None:
        os.close(self._fd)

    def record(self) -> list[Event]:
        """Return all that has happened so far."""
        while True:
            try:
                data = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                return self._record
            at = 0
            while at < len(data):
                _, mask, _, length = EVENT.unpack_from(data, at)
                name = data[at + EVENT.size : at + EVENT.size + length].rstrip(b"\0")
                at += EVENT.size + length
                assert not mask & OVERFLOW, "the record is not whole"
                kind = next(KINDS[one] for one in KINDS if mask & one)
                self._record.append(Event(kind, os.fsdecode(name), bool(mask & ON_A_FOLDER)))
