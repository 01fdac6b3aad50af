"""The entries of a zip archive, all of them checked against each other before the first one's content is read.

A reader of its own: `zipfile` reads a directory of any declared size into memory, and believes it. Here the directory
must fill the place between the entries and the end exactly, and each entry's own header must say what the directory says.
"""

import os
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from model_packager.entries import CHUNK, TRUNCATED, Entry, Hostile, Limits, Wanted

MAGIC = (b"PK\3\4", b"PK\5\6")
END = struct.Struct("<4s4H2LH")
END_64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR_64 = struct.Struct("<4sLQL")
CENTRAL = struct.Struct("<4s6H3L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")
LONGEST_COMMENT = 2**16 - 1
LARGEST_DIRECTORY = 2**23
# What a field of 16 or 32 bits holds when its value stands in the larger one; FULL for count, size and offset.
FULL_16, FULL_32 = 2**16 - 1, 2**32 - 1
FULL = (FULL_16, FULL_32, FULL_32)

STORED, DEFLATED = 0, 8
ENCRYPTED, SIZES_FOLLOW, UTF_8 = 1, 8, 0x800
LEVELS = 2 | 4  # how hard the compressor tried
EXTRA_64, EXTRA_NAME = 1, 0x7075

ELSEWHERE = "points at something that is not there or not in its place; it is damaged, or made to deceive"
KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}


@dataclass(frozen=True)
class _File:
    """The archive's file; reads nothing beyond its end."""

    fd: int
    size: int

    def read(self, offset: int, count: int, wrong: str = TRUNCATED, name: bytes | None = None) -> bytes:
        data = os.pread(self.fd, count, offset) if offset + count <= self.size else b""
        if len(data) != count:
            raise Hostile(wrong, name)
        return data


class _Place(NamedTuple):
    """Where the directory is and how many entries it has."""

    entries: int
    size: int
    offset: int


class _Record(NamedTuple):
    """An entry as the directory has it; `packed` is its size in the archive, `mode` that of Unix or 0."""

    name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    offset: int
    mode: int


def entries(fd: int, size: int, limits: Limits, wanted: Wanted) -> Iterator[Entry]:
    """Yield the wanted entries of the archive that `fd` is open for, `size` bytes long.

    Raises:
        Hostile: the archive is not in order; what an entry's content is, is only known when it is read.

    """
    file = _File(fd, size)
    place = _find_directory(file)
    if place.entries > limits.entries:
        raise Hostile(f"has {place.entries} entries; {limits.entries} are the most")
    if place.size > LARGEST_DIRECTORY:
        raise Hostile(f"has a directory of {place.size} bytes; {LARGEST_DIRECTORY} are the most")
    records = list(_records(file, place))
    total = 0
    for record in records:
        if wanted(record.name):
            _check(record, limits)
        total += record.size
        if total > limits.expanded(size):
            raise Hostile(
                f"expands to more than {limits.expanded(size)} bytes with those before it, the most for an archive of its size",
                record.name,
            )
    starts = {}
    end = 0
    for record in sorted(records, key=lambda one: one.offset):
        if record.offset < end:
            raise Hostile("overlaps another entry", record.name)
        starts[record.offset] = start = _data_start(file, record)
        end = start + record.packed
        if end > place.offset:
            raise Hostile("reaches beyond the archive's entries", record.name)
    for record in filter(lambda one: wanted(one.name), records):
        content = _content(file, record, starts[record.offset])
        yield Entry(record.name, record.name.endswith(b"/"), content)


def _find_directory(file: _File) -> _Place:
    tail = file.read(max(0, file.size - END.size - LONGEST_COMMENT), min(file.size, END.size + LONGEST_COMMENT))
    found = tail.rfind(b"PK\5\6")
    if found < 0 or found + END.size > len(tail):
        raise Hostile(TRUNCATED)
    _, *disks, here, count, size, offset, comment = END.unpack_from(tail, found)
    if found + END.size + comment != len(tail):
        raise Hostile("has other content after its end, or ends in the middle of its comment")
    at = file.size - len(tail) + found
    place = _Place(count, size, offset)
    locator = file.read(at - LOCATOR_64.size, LOCATOR_64.size) if at >= LOCATOR_64.size + END_64.size else b""
    if locator.startswith(b"PK\6\7"):
        at -= LOCATOR_64.size + END_64.size
        _, last_disk, end_64, _ = LOCATOR_64.unpack(locator)
        magic, length, _, _, *disks_64, here, count, size, offset = END_64.unpack(file.read(at, END_64.size))
        if end_64 != at or magic != b"PK\6\6" or length != END_64.size - 12:
            raise Hostile(ELSEWHERE)
        disks = [last_disk, *disks_64, *(disk for disk in disks if disk != FULL_16)]
        small, place = place, _Place(count, size, offset)
        if any(one not in {other, full} for one, other, full in zip(small, place, FULL, strict=True)):
            raise Hostile("has two ends that contradict each other")
    if any(disks) or here != place.entries:
        raise Hostile("is one of several parts; join them first")
    if place.offset + place.size != at:
        raise Hostile(ELSEWHERE)
    return place


def _records(file: _File, place: _Place) -> Iterator[_Record]:
    data = file.read(place.offset, place.size)
    at = 0
    for _ in range(place.entries):
        if at + CENTRAL.size > len(data):
            raise Hostile(ELSEWHERE)
        magic, _, _, flags, method, _, _, crc, packed, size, *lengths, disk, _, attributes, offset = (
            CENTRAL.unpack_from(data, at)
        )
        texts_at = at + CENTRAL.size
        at = texts_at + sum(lengths)
        if magic != b"PK\1\2" or at > len(data):
            raise Hostile(ELSEWHERE)
        name = data[texts_at : texts_at + lengths[0]]
        extra = data[texts_at + lengths[0] : texts_at + lengths[0] + lengths[1]]
        size, packed, offset = _large(name, extra, (size, packed, offset))
        if disk not in {0, FULL_16}:
            raise Hostile("lies in another part of the archive; join the parts first", name)
        yield _Record(name, flags, method, crc, packed, size, offset, attributes >> 16)
    if at != len(data):
        raise Hostile(ELSEWHERE)


def _large(name: bytes, extra: bytes, values: tuple[int, ...]) -> list[int]:
    """Return `values` with those that 32 bits cannot hold taken from the extra field."""
    fields: dict[int, bytes] = {}
    at = 0
    # What is shorter than a field's head is padding, as writers align with.
    while len(extra) - at >= 4:
        kind, length = struct.unpack_from("<2H", extra, at)
        fields.setdefault(kind, extra[at + 4 : at + 4 + length])
        at += 4 + length
    if at > len(extra) or fields.get(EXTRA_NAME, bytes(5) + name)[5:] != name:
        raise Hostile("has an extra field that is damaged or gives it another name", name)
    data = fields.get(EXTRA_64, b"")
    large = (int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data) - 7, 8))
    return [next(large, value) if value == FULL_32 else value for value in values]


def _check(record: _Record, limits: Limits) -> None:
    """Raise Hostile unless the entry is a file or a folder that can be read and is not too large."""
    name = record.name
    kind = stat.S_IFMT(record.mode)
    is_folder = name.endswith(b"/")
    if record.flags & ENCRYPTED:
        raise Hostile("is encrypted; pack it anew without a password", name)
    if record.flags & ~(LEVELS | SIZES_FOLLOW | UTF_8) or record.method not in {STORED, DEFLATED}:
        raise Hostile("is packed in a way that is not supported; pack it anew with deflate", name)
    if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
        raise Hostile(f"is {KINDS.get(kind, 'of an unknown kind')}; only files and folders can be unpacked", name)
    if (kind and stat.S_ISDIR(record.mode) != is_folder) or (is_folder and record.size):
        raise Hostile("is a file and a folder at once", name)
    if record.size > limits.file:
        raise Hostile(f"is a file of {record.size} bytes; {limits.file} are the most", name)
    if record.method == STORED and record.size != record.packed:
        raise Hostile("has two sizes that contradict each other", name)


def _data_start(file: _File, record: _Record) -> int:
    """Return where an entry's data begins; raise Hostile when its own header contradicts the directory."""
    name = record.name
    outside = "lies outside the archive"
    head = file.read(record.offset, LOCAL.size, outside, name)
    magic, _, flags, method, _, _, crc, packed, size, name_length, extra_length = LOCAL.unpack(head)
    if magic != b"PK\3\4":
        raise Hostile("lies where no entry begins", name)
    texts = file.read(record.offset + LOCAL.size, name_length + extra_length, outside, name)
    if texts[:name_length] != name:
        raise Hostile("has another name in the archive's directory than in its own header", name)
    size, packed = _large(name, texts[name_length:], (size, packed))
    contradicts = method != record.method or (flags ^ record.flags) & ~LEVELS
    if not flags & SIZES_FOLLOW:
        contradicts = contradicts or (crc, packed, size) != (record.crc, record.packed, record.size)
    if contradicts:
        raise Hostile("is described otherwise in the archive's directory than in its own header", name)
    return record.offset + LOCAL.size + len(texts)


def _content(file: _File, record: _Record, start: int) -> Iterator[bytes]:
    """Yield the content in chunks of at most 64 KiB, never more than the entry declares."""
    stored = _stored(file, start, record.packed)
    left, crc = record.size, 0
    try:
        for chunk in _inflated(stored) if record.method == DEFLATED else stored:
            left -= len(chunk)
            if left < 0:
                break
            crc = zlib.crc32(chunk, crc)
            yield chunk
    except zlib.error:
        raise Hostile("is damaged", record.name) from None
    if left or crc != record.crc:
        raise Hostile("is damaged, or longer or shorter than it says", record.name)


def _stored(file: _File, start: int, size: int) -> Iterator[bytes]:
    for at in range(start, start + size, CHUNK):
        yield file.read(at, min(CHUNK, start + size - at))


def _inflated(stored: Iterator[bytes]) -> Iterator[bytes]:
    """Yield what raw deflate data expands to; raise zlib.error unless the data ends where it says."""
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    for read in stored:
        if inflate.eof:
            raise zlib.error
        data = read
        while data and not inflate.eof:
            if chunk := inflate.decompress(data, CHUNK):
                yield chunk
            data = inflate.unconsumed_tail
    while not inflate.eof and (chunk := inflate.decompress(b"", CHUNK)):
        yield chunk
    if not inflate.eof or inflate.unused_data:
        raise zlib.error
