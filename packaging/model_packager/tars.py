"""The entries of a tar archive, plain or compressed, read once from front to back within a bounded memory.

A reader of its own: `tarfile` reads a header of any declared size into memory, gives sparse files and damaged headers a
meaning, and takes the end of a truncated archive for its end.
"""

import bz2
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple, Protocol

from model_packager.entries import CHUNK, TRUNCATED, Entry, Hostile, Limits, Wanted

BLOCK = 512
END = bytes(BLOCK)
READ = 2**14
# A header that holds a name and attributes; those of real archives have a few hundred bytes.
LONGEST_HEADER = 2**20
# `xz -9` needs 65 MiB to unpack; an archive may ask for 4 GiB.
MOST_XZ_MEMORY = 80 * 2**20

OLD_FILE, FILES, FOLDER = b"\0", {b"0", b"\0", b"7"}, b"5"
OTHERS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a FIFO",
    b"S": "a sparse file",
}
SPARSE, LINKS = b"S", {b"1", b"2"}
# What has no content, though some tools pass over as much as its size says.
WITHOUT_CONTENT = {*LINKS, b"3", b"4", b"6"}
# Headers that say more of the entry after them, or of all that follow.
GNU_NAME, GNU_LINK, PAX, PAX_GLOBAL = b"L", b"K", b"x", b"g"
GNU_KEYS = {GNU_NAME: b"path", GNU_LINK: b"link"}
PAX_RECORD = re.compile(rb"([1-9][0-9]{0,6}) ([^=]{1,255})=")
PAX_SPARSE = (b"GNU.sparse.", b"SCHILY.realsize", b"SUN.holesdata")
NO_TAR = "has a damaged header, or is neither a zip nor a tar archive"
OCTAL = re.compile(rb"[ \0]*([0-7]*)[ \0]*")


class _Decoder(Protocol):
    """What the decoders of `bz2` and `lzma` have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes: ...


class _Gzip:
    """The same of zlib's."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(16 + zlib.MAX_WBITS)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data

    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes:
        out = self._inflate.decompress(self._inflate.unconsumed_tail + data, max_length)
        self.needs_input = not self._inflate.unconsumed_tail and len(out) < max_length
        return out


DECODERS: dict[bytes, Callable[[], _Decoder]] = {
    b"\x1f\x8b": _Gzip,
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\0": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, MOST_XZ_MEMORY),
}


class _Header(NamedTuple):
    name: bytes
    kind: bytes
    size: int


def entries(file: BinaryIO, size: int, limits: Limits, wanted: Wanted) -> Iterator[Entry]:
    """Yield the wanted entries of the archive `file`, `size` bytes long; the content of each is readable until the next.

    Raises:
        Hostile: the archive is not in order; all of it is looked at, also the content that nobody reads.

    """
    stream = _Stream(_expanded(file, limits), limits.expanded(size))
    count = 0
    while header := _next_header(stream):
        count += 1
        if count > limits.entries:
            raise Hostile(f"comes after {limits.entries} files and folders, the most to be unpacked", header.name)
        is_folder = header.kind == FOLDER or (header.kind == OLD_FILE and header.name.endswith(b"/"))
        if not wanted(header.name):
            if header.size and (is_folder or header.kind in WITHOUT_CONTENT):
                raise Hostile("has a size although it is no file, which tools read differently", header.name)
            for _ in stream.content(header.size):
                pass
            continue
        if not is_folder and header.kind not in FILES:
            kind = OTHERS.get(header.kind, "of an unknown kind")
            raise Hostile(f"is {kind}; only files and folders can be unpacked", header.name)
        if is_folder and header.size:
            raise Hostile("is a folder with content", header.name)
        if header.size > limits.file:
            raise Hostile(f"is a file of {header.size} bytes; {limits.file} are the most", header.name)
        content = stream.content(header.size)
        yield Entry(header.name, is_folder, content)
        for _ in content:
            pass
    stream.finish()


class _Stream:
    """Bytes of an archive's content, at most `most` of them."""

    def __init__(self, chunks: Iterator[bytes], most: int) -> None:
        self._chunks = chunks
        self._most = most
        self._left = most
        self._buffer = memoryview(b"")

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        return b"".join(self._pieces(count))

    def content(self, size: int) -> Iterator[bytes]:
        """Yield the `size` bytes of a file in chunks and pass over what fills its last block."""
        yield from self._pieces(size)
        self.take(-size % BLOCK)

    def finish(self) -> None:
        """Read what follows the end; raise Hostile when there is anything but zeros."""
        while self._buffer or self._fill():
            if any(self._buffer):
                raise Hostile("has other content after its end")
            self._buffer = memoryview(b"")

    def _pieces(self, count: int) -> Iterator[bytes]:
        while count:
            if not self._buffer and not self._fill():
                raise Hostile(TRUNCATED)
            piece, self._buffer = self._buffer[:count], self._buffer[count:]
            count -= len(piece)
            yield bytes(piece)

    def _fill(self) -> bool:
        chunk = next(self._chunks, b"")
        self._left -= len(chunk)
        if self._left < 0:
            raise Hostile(f"expands to more than {self._most} bytes, the most for an archive of its size")
        self._buffer = memoryview(chunk)
        return bool(chunk)


def _expanded(file: BinaryIO, limits: Limits) -> Iterator[bytes]:
    """Yield the decompressed bytes in chunks of at most 64 KiB."""
    head = file.read(max(map(len, DECODERS)))
    file.seek(0)
    new = next((new for magic, new in DECODERS.items() if head.startswith(magic)), None)
    if not new:
        yield from iter(lambda: file.read(CHUNK), b"")
        return
    data = b""
    # A compressed file may be several ones after each other; parallel compressors write such.
    for _ in range(limits.entries):
        decoder = new()
        while not decoder.eof:
            if decoder.needs_input and not data:
                data = file.read(READ)
                if not data:
                    raise Hostile(TRUNCATED)
            try:
                chunk = decoder.decompress(data, CHUNK)
            except (zlib.error, lzma.LZMAError, OSError) as error:
                raise Hostile(
                    f"is damaged, has other content after its end or takes too much memory ({error})"
                ) from None
            data = b""
            if chunk:
                yield chunk
        data = decoder.unused_data.lstrip(b"\0")
        while not data:
            read = file.read(READ)
            if not read:
                return
            data = read.lstrip(b"\0")
    raise Hostile(f"consists of more than {limits.entries} compressed parts")


def _next_header(stream: _Stream) -> _Header | None:
    """Return the header of the next entry with what the headers before it say of it, or None at the archive's end."""
    seen = set()
    said: dict[bytes, bytes] = {}
    while (block := stream.take(BLOCK)) != END:
        name, kind, size = header = _parse(block)
        if kind not in {*GNU_KEYS, PAX, PAX_GLOBAL}:
            return _extended(header, said)
        if size > LONGEST_HEADER:
            raise Hostile(f"is a header of {size} bytes; {LONGEST_HEADER} are the most", name)
        data = stream.take(size + -size % BLOCK)[:size]
        more = {GNU_KEYS[kind]: data.removesuffix(b"\0")} if kind in GNU_KEYS else _records(data, name)
        if kind in seen or more.keys() & said.keys() or (kind == PAX_GLOBAL and more):
            raise Hostile("gives the name, size or form of an entry more than once or of many at once", name)
        seen.add(kind)
        said.update(more)
    return None


def _extended(header: _Header, said: dict[bytes, bytes]) -> _Header:
    name, size = said.get(b"path", header.name), said.get(b"size")
    if b"link" in said and header.kind not in LINKS:
        raise Hostile("has a link's target and is no link, which tools read differently", name)
    kind = SPARSE if b"sparse" in said else header.kind
    header = header._replace(name=name, kind=kind)
    if size is None:
        return header
    # One digit more than the largest number of 64 bits.
    if not re.fullmatch(rb"[0-9]{1,20}", size):
        raise Hostile("has a size that is no number", name)
    return header._replace(size=int(size))


def _records(data: bytes, name: bytes) -> dict[bytes, bytes]:
    """Return those records of a pax header that say what an entry is: its path, its size, whether it is sparse."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        match = PAX_RECORD.match(data, at)
        end = at + int(match[1]) if match else 0
        if not match or not match.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            raise Hostile("is a damaged pax header", name)
        key = b"sparse" if match[2].startswith(PAX_SPARSE) else match[2]
        if key in {b"path", b"size"} and key in found:
            raise Hostile("gives the name or size of an entry twice", name)
        if key in {b"path", b"size", b"sparse"}:
            found[key] = data[match.end() : end - 1]
        at = end
    return found


def _parse(block: bytes) -> _Header:
    if _number(block[148:156]) != sum(block[:148]) + sum(b" " * 8) + sum(block[156:]):
        raise Hostile(NO_TAR)
    name, prefix = _text(block[:100]), _text(block[345:500])
    # GNU's own format has other things there.
    if prefix and block[257:263] == b"ustar\0":
        name = prefix + b"/" + name
    return _Header(name, block[156:157], _number(block[124:136], name))


def _text(field: bytes) -> bytes:
    """Return a field's text; one that goes on after a NUL is kept whole, and so is no valid name."""
    return field.rstrip(b"\0")


def _number(field: bytes, name: bytes | None = None) -> int:
    """Return an octal number, or one of base 256 as GNU writes those that octal digits cannot hold."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    if not (match := OCTAL.fullmatch(field)):
        raise Hostile(NO_TAR if name is None else "has a size below 0 or one that is no number", name)
    return int(match[1] or b"0", 8)
