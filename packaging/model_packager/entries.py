"""What an archive may hold: files and folders with plain relative names, each once, within limits. Touches no disk.

An archive comes from somebody else and may be hostile. What is valid here means the same to every reader: a name that
one tool reads in another way than the next is refused, not interpreted.
"""

import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto

from edge_agent.errors import shown

# Small archives may be of zeros: only what expands beyond this is compared with the archive's size.
FREE = 2**20
CHUNK = 2**16
LONGEST_PART = 255
TRUNCATED = "ends in the middle; copy or download it again"
# Control and invisible characters, line and paragraph separators.
INVISIBLE = {"Cc", "Cf", "Zl", "Zp"}
# Whether an entry is to be written, by its name as it stands in the archive.
Wanted = Callable[[bytes], bool]


class Hostile(Exception):
    """An archive is not what it may be: `wrong` completes a sentence about its entry `name`, or, without, about it."""

    def __init__(self, wrong: str, name: bytes | None = None) -> None:
        super().__init__(wrong)
        self.wrong = wrong
        self.name = name


@dataclass(frozen=True)
class Limits:
    """How much an archive may hold, in bytes where nothing else is said.

    `entries` are files and folders, those included that only file names mention; `ratio` is how many times the
    archive's own size it may expand to; `path` is a whole name and `depth` the parts of one.
    """

    entries: int = 10_000
    file: int = 2 * 2**30
    total: int = 4 * 2**30
    ratio: int = 200
    path: int = 1024
    depth: int = 32

    def expanded(self, size: int) -> int:
        """Return how many bytes an archive of `size` bytes may expand to."""
        return min(self.total, FREE + self.ratio * size)


@dataclass(frozen=True)
class Entry:
    """A file or folder of an archive; `content` is read once at most and raises Hostile when it is not as declared."""

    name: bytes
    is_folder: bool
    content: Iterator[bytes]


class _Kind(Enum):
    FILE = auto()
    FOLDER = auto()
    MENTIONED = auto()  # a folder that so far only the names of others mention


class Names:
    """The names of one archive, each claimed once."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._claimed: dict[str, tuple[str, _Kind]] = {}

    def claim(self, name: bytes, *, is_folder: bool) -> str:
        """Return an entry's name as a plain relative path, "" for the archive's own root.

        Raises:
            Hostile: the name may not be written, or an earlier entry has it or one that some disks take for it.

        """
        path = _plain(name, self._limits, is_folder=is_folder)
        parts = path.split("/")
        for depth in range(1, len(parts)):
            self._claim_one(name, "/".join(parts[:depth]), _Kind.MENTIONED)
        self._claim_one(name, path, _Kind.FOLDER if is_folder else _Kind.FILE)
        return path

    def _claim_one(self, name: bytes, path: str, kind: _Kind) -> None:
        key = unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
        if key not in self._claimed:
            self._claimed[key] = (path, kind)
            if len(self._claimed) > self._limits.entries:
                raise Hostile(f"comes after {self._limits.entries} files and folders, the most to be unpacked", name)
            return
        spelling, known = self._claimed[key]
        if spelling != path:
            raise Hostile(f"differs from {shown(spelling)} only in case or in how its letters are composed", name)
        if (known is _Kind.FILE) != (kind is _Kind.FILE):
            raise Hostile(f"makes {shown(path)} a file and a folder at once", name)
        if known is kind and kind is not _Kind.MENTIONED:
            raise Hostile("comes twice", name)
        if kind is _Kind.FOLDER:
            self._claimed[key] = (path, kind)


def _plain(name: bytes, limits: Limits, *, is_folder: bool) -> str:
    if len(name) > limits.path:
        raise Hostile(f"has a name of {len(name)} bytes; {limits.path} are the most", name)
    try:
        text = name.decode()
    except UnicodeDecodeError:
        raise Hostile("has a name that is not UTF-8", name) from None
    if any(unicodedata.category(letter) in INVISIBLE for letter in text):
        raise Hostile("has a control or invisible character in its name", name)
    if "\\" in text:
        raise Hostile("has a backslash in its name", name)
    if text.startswith("/"):
        raise Hostile("has an absolute name", name)
    if is_folder and text in {".", "./"}:
        return ""
    path = text.removeprefix("./")
    if is_folder:
        path = path.removesuffix("/")
    parts = path.split("/")
    if len(parts) > limits.depth:
        raise Hostile(f"lies {len(parts)} folders deep; {limits.depth} are the most", name)
    for part in parts:
        _check_part(part, name)
    return path


def _check_part(part: str, name: bytes) -> None:
    if part == "..":
        raise Hostile("leads out of its folder with '..'", name)
    if part in {"", "."}:
        raise Hostile("has an empty or '.' part in its name", name)
    if part[1:2] == ":" and part[0].isalpha():
        raise Hostile("has a drive letter in its name", name)
    if len(part.encode()) > LONGEST_PART:
        raise Hostile(f"has a part of more than {LONGEST_PART} bytes in its name", name)
