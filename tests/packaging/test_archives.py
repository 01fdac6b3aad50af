"""Archives of strangers: whole or not at all, and nothing outside the new folder.

1. The builders write tar and zip archives byte by byte.
2. Every hostile archive is refused for its own reason, in a sentence, and the tree around is as it was.
3. A naive unpacker shows that the comparison of the trees notices what the archives aim at.
4. Archives of `tar`, `zip` and Python unpack; so does what a customer has.
"""

import bz2
import contextlib
import errno
import gzip
import hashlib
import io
import lzma
import os
import re
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tarfile
import time
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from model_packager import archives
from model_packager.errors import PackagingRefused
from support import shared
from support.agent import environment
from support.open_files import nothing_stays_open

# How many hostile archives there are; the last test counts those that were refused.
HOSTILE = 318
# Seconds of a processor that a refusal may take, ten times what the longest took; and seconds after which one hangs.
MOST_WORK, LIVENESS = 10.0, 60.0
MIB = 2**20


# 1. Builders of tar


def octal(number: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, number)


def head(
    name: bytes,
    kind: bytes = b"0",
    size: int | bytes = 0,
    link: bytes = b"",
    prefix: bytes = b"",
    magic: bytes = b"ustar\x0000",
    mode: int = 0o644,
    checksum: bytes = b"",
) -> bytes:
    """Return a block of 512 bytes; `size` is a number or the field's 12 bytes."""
    before = name.ljust(100, b"\0") + octal(mode, 8) + octal(0, 8) * 2
    before += (octal(size, 12) if isinstance(size, int) else size.ljust(12, b"\0")) + octal(0, 12)
    after = kind + link.ljust(100, b"\0") + magic + bytes(64) + octal(0, 8) * 2 + prefix.ljust(155, b"\0") + bytes(12)
    return before + (checksum or b"%06o\0 " % (sum(before) + 256 + sum(after))) + after


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def gnu(name: bytes, kind: bytes = b"L") -> bytes:
    return head(b"././@LongLink", kind, len(name) + 1) + padded(name + b"\0")


def item(name: bytes, data: bytes = b"evil", kind: bytes = b"0", **fields: Any) -> bytes:
    """Return an entry of a tar."""
    long = gnu(name) if len(name) > 100 else b""
    return long + head(name[:100], kind, len(data), **fields) + padded(data)


def folder(name: bytes) -> bytes:
    return item(name, b"", b"5")


def link(name: bytes, target: bytes, kind: bytes = b"2") -> bytes:
    long = gnu(target, b"K") if len(target) > 100 else b""
    return long + head(name, kind, link=target[:100])


def record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    while length != len(b"%d" % length) + len(key) + len(value) + 3:
        length = len(b"%d" % length) + len(key) + len(value) + 3
    return b"%d %s=%s\n" % (length, key, value)


def pax(*records: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    return item(b"./PaxHeaders/x", b"".join(record(*one) for one in records), kind)


def tar(*parts: bytes) -> bytes:
    return b"".join(parts) + bytes(1024)


# 1. Builders of zip


@dataclass
class Z:
    """An entry of a zip. What `own` names, its own header says otherwise than the directory."""

    name: bytes
    data: bytes = b"evil"
    method: int = 8
    flags: int = 0
    mode: int = 0
    crc: int | None = None
    size: int | None = None
    packed: int | None = None
    raw: bytes | None = None
    extra: bytes = b""
    disk: int = 0
    offset: int | None = None
    own: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.raw is None:
            self.raw = deflated(self.data) if self.method == 8 else self.data
        self.crc = zlib.crc32(self.data) if self.crc is None else self.crc
        self.size = len(self.data) if self.size is None else self.size
        self.packed = len(self.raw) if self.packed is None else self.packed

    def local(self) -> bytes:
        own = {**vars(self), "extra": b"", **self.own}
        numbers = (own["crc"], own["packed"], own["size"], len(own["name"]), len(own["extra"]))
        return (
            struct.pack("<4s5H3L2H", b"PK\3\4", 20, own["flags"], own["method"], 0, 33, *numbers)
            + own["name"]
            + own["extra"]
        )

    def central(self, offset: int) -> bytes:
        numbers = (self.flags, self.method, 0, 33, self.crc, self.packed, self.size, len(self.name), len(self.extra))
        where = (0, self.disk, 0, self.mode << 16, offset if self.offset is None else self.offset)
        return struct.pack("<4s6H3L5H2L", b"PK\1\2", 0x314, 20, *numbers, *where) + self.name + self.extra


def deflated(data: bytes) -> bytes:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflate.compress(data) + deflate.flush()


def ending(count: int, size: int, offset: int, disks: tuple[int, int] = (0, 0), comment: bytes = b"") -> bytes:
    return struct.pack("<4s4H2LH", b"PK\5\6", *disks, count, count, size, offset, len(comment)) + comment


def ending_64(at: int, count: int, size: int, offset: int, where: int | None = None, disk: int = 0) -> bytes:
    return struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, disk, disk, count, count, size, offset) + struct.pack(
        "<4sLQL", b"PK\6\7", 0, at if where is None else where, 1
    )


def zipped(*items: Z, end: Callable[[int, int, int], bytes] = ending) -> bytes:
    """Return a zip; `end` makes what follows the directory from (count, size of the directory, its offset)."""
    data, directory = b"", b""
    for one in items:
        directory += one.central(len(data))
        data += one.local() + (one.raw or b"")
    return data + directory + end(len(items), len(directory), len(data))


def large(**changes: int) -> bytes:
    """Return a zip with a zip64 end, which says what `changes` say."""

    def end(count: int, size: int, offset: int) -> bytes:
        said = {"at": offset + size, "count": count, "size": size, "offset": offset, **changes}
        return ending_64(**said) + ending(2**16 - 1, 2**32 - 1, 2**32 - 1)

    return zipped(Z(b"a"), end=end)


def same_data(count: int) -> bytes:
    """Return a zip of entries that all are the first one's data: the plain overlap."""
    return zipped(Z(b"a", bytes(MIB // 16)), *(Z(b"a", bytes(MIB // 16), raw=b"", offset=0) for _ in range(count)))


def quoted(count: int) -> bytes:
    """Return Fifield's bomb: each entry's data quotes the next one's header and goes on as its data."""
    content = bytes(MIB // 8)
    last = Z(b"%04d" % count, content)
    tail, items = last.local() + last.raw, [last]
    for number in reversed(range(count)):
        header = items[0].local()
        content = header + content
        quote = b"\0" + struct.pack("<HH", len(header), len(header) ^ 0xFFFF)
        one = Z(b"%04d" % number, content, raw=b"", packed=len(quote) + len(tail))
        tail, items = one.local() + quote + tail, [one, *items]
    directory, at = b"", 0
    for one in items:
        directory += one.central(at)
        at += len(one.local()) + 5
    return tail + directory + ending(len(items), len(directory), len(tail))


# 2. What is hostile

EVIL = Z(b"a")
LINK, REGULAR, DIRECTORY = stat.S_IFLNK | 0o777, stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755
ABSOLUTE, LEADS_OUT, EMPTY = "has an absolute name", "leads out of its folder", "has an empty or '.' part"
INVISIBLE, UTF_8, BACKSLASH = "control or invisible", "not UTF-8", "has a backslash"
TWIN, BOTH, TWICE = "only in case or in how", "a file and a folder at once", "comes twice"
MIDDLE, AFTER, EXPANDS = "ends in the middle", "other content after its end", "expands to more than"
DAMAGED, NO_NUMBER, SPARSE = (
    "has a damaged header, or is neither",
    "below 0 or one that is no number",
    "is a sparse file",
)
OTHERWISE, ELSEWHERE, LONGER = "described otherwise", "not there or not in its place", "longer or shorter"

# Names that no archive may write, and what is said of them.
NAMES: dict[str, tuple[bytes, str]] = {
    "zip slip": (b"../canary", LEADS_OUT),
    "zip slip after a dot": (b"./../canary", LEADS_OUT),
    "zip slip to the twin of a prefix": (b"../out-evil/canary", LEADS_OUT),
    "zip slip, far": (b"../" * 30 + b"tmp/evil", LEADS_OUT),
    "two dots in the middle": (b"a/../../canary", LEADS_OUT),
    "two dots that stay inside": (b"a/../b", LEADS_OUT),
    "two dots at the end": (b"a/..", LEADS_OUT),
    "two dots alone": (b"..", LEADS_OUT),
    "absolute": (b"/etc/cron.d/evil", ABSOLUTE),
    "absolute with two slashes": (b"//server/share/evil", ABSOLUTE),
    "no name": (b"", EMPTY),
    "dot alone": (b".", EMPTY),
    "dot in the middle": (b"a/./b", EMPTY),
    "two dots of the current folder": (b"././a", EMPTY),
    "empty part": (b"a//b", EMPTY),
    "backslashes": (b"..\\..\\canary", BACKSLASH),
    "drive with backslash": (b"C:\\x", BACKSLASH),
    "drive with slash": (b"C:/x", "drive letter"),
    "drive without slash": (b"c:x", "drive letter"),
    "server": (b"\\\\server\\share\\x", BACKSLASH),
    "newline": (b"a\nb", INVISIBLE),
    "escape sequence": (b"a\x1b[2Jb", INVISIBLE),
    "delete": (b"a\x7fb", INVISIBLE),
    "C1 control": ("a\x85b".encode(), INVISIBLE),
    "right to left": ("a\u202egnp.exe".encode(), INVISIBLE),
    "zero width": ("ca\u200bnary".encode(), INVISIBLE),
    "line separator": ("a\u2028b".encode(), INVISIBLE),
    "Latin-1": (b"caf\xe9", UTF_8),
    "overlong dots": (b"\xc0\xae\xc0\xae/canary", UTF_8),
    "surrogate": (b"a\xed\xa0\x80", UTF_8),
    "part too long": (b"p" * 256, "a part of more than 255 bytes"),
    "too long": (b"p/" * 600 + b"x", "a name of 1201 bytes; 1024 are the most"),
    "too deep": (b"p/" * 32 + b"x", "33 folders deep"),
}

# Pairs of names of which the second is refused.
PAIRS: dict[str, tuple[bytes, bytes, str]] = {
    "file twice": (b"a", b"a", TWICE),
    "file twice by a dot": (b"a", b"./a", TWICE),
    "folder twice": (b"a/", b"a/", TWICE),
    "folder after file": (b"a", b"a/", BOTH),
    "file after folder": (b"a/", b"a", BOTH),
    "file below a file": (b"a", b"a/b", BOTH),
    "file far below a file": (b"a", b"a/b/c/d", BOTH),
    "file above a file": (b"a/b", b"a", BOTH),
    "file above a folder": (b"a/b/", b"a", BOTH),
    "case twins": (b"Model.pt", b"model.PT", TWIN),
    "case twins of folders": (b"A/x", b"a/y", TWIN),
    "case twins, file below": (b"a", b"A/b", TWIN),
    "case twins beyond ASCII": ("straße".encode(), b"STRASSE", TWIN),
    "case twins of symbols": (b"K", "\u212a".encode(), TWIN),
    "composition twins": ("é".encode(), unicodedata.normalize("NFD", "é").encode(), TWIN),
    "composition and case twins": ("é".encode(), unicodedata.normalize("NFD", "É").encode(), TWIN),
}

HEADERS: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "tar: absolute, to a file that is there": (lambda at: tar(item(str(at / "canary").encode())), ABSOLUTE),
    "tar: folder of the root": (lambda at: tar(folder(b"/"), item(b"a")), ABSOLUTE),
    "tar: folder outside": (lambda at: tar(folder(b"../out-evil")), LEADS_OUT),
    "tar: folder with two slashes": (lambda at: tar(folder(b"a//")), EMPTY),
    "tar: file with a slash at its end": (lambda at: tar(item(b"a/")), EMPTY),
    "tar: NUL and more in a name": (lambda at: tar(item(b"a\0/../canary")), INVISIBLE),
    "tar: NUL in a pax path": (lambda at: tar(pax((b"path", b"a\0b")), item(b"a")), INVISIBLE),
    "tar: NUL in a GNU long name": (lambda at: tar(gnu(b"a\0b"), item(b"a")), INVISIBLE),
    "tar: zip slip by prefix": (lambda at: tar(item(b"canary", prefix=b"..")), LEADS_OUT),
    "tar: absolute by prefix": (lambda at: tar(item(b"evil", prefix=b"/tmp")), ABSOLUTE),
    "tar: zip slip by pax": (lambda at: tar(pax((b"path", b"../canary")), item(b"a")), LEADS_OUT),
    "tar: absolute by pax": (lambda at: tar(pax((b"path", b"/tmp/evil")), item(b"a")), ABSOLUTE),
    "tar: zip slip by GNU long name": (lambda at: tar(gnu(b"../canary"), item(b"a")), LEADS_OUT),
    "tar: zip slip by pax for all": (lambda at: tar(pax((b"path", b"../a"), kind=b"g"), item(b"a")), "many at once"),
    "tar: size by pax for all": (lambda at: tar(pax((b"size", b"0"), kind=b"g"), item(b"a")), "many at once"),
    "tar: binary pax path": (lambda at: tar(pax((b"hdrcharset", b"BINARY"), (b"path", b"\xff")), item(b"a")), UTF_8),
    "tar: empty pax path": (lambda at: tar(pax((b"path", b"")), item(b"a")), EMPTY),
    "tar: symbolic link": (lambda at: tar(link(b"a", b"../canary")), "is a symbolic link"),
    "tar: symbolic link inside": (lambda at: tar(item(b"a"), link(b"b", b"a")), "is a symbolic link"),
    "tar: symbolic link with content": (lambda at: tar(item(b"a", kind=b"2", link=b"b")), "is a symbolic link"),
    "tar: write through a symbolic link": (
        lambda at: tar(link(b"a", b"../elsewhere"), item(b"a/canary")),
        "is a symbolic link",
    ),
    "tar: write through an absolute symbolic link": (
        lambda at: tar(link(b"a", str(at / "elsewhere").encode()), item(b"a/canary")),
        r"is a (symbolic )?link",
    ),
    "tar: write to a symbolic link": (lambda at: tar(link(b"a", b"../canary"), item(b"a")), "is a symbolic link"),
    "tar: folder, then a symbolic link of its name": (
        lambda at: tar(folder(b"a"), link(b"a", b"../elsewhere"), item(b"a/canary")),
        "is a symbolic link",
    ),
    "tar: symbolic link by pax": (
        lambda at: tar(pax((b"linkpath", b"../canary")), link(b"a", b"b"), item(b"a")),
        "is a symbolic link",
    ),
    "tar: symbolic link by GNU long name": (
        lambda at: tar(gnu(b"../canary", b"K"), link(b"a", b"")),
        "is a symbolic link",
    ),
    "tar: hard link to /etc/passwd": (lambda at: tar(link(b"a", b"/etc/passwd", b"1")), "is a hard link"),
    "tar: write through a hard link": (
        lambda at: tar(link(b"a", b"../canary", b"1"), item(b"a")),
        "is a hard link",
    ),
    "tar: hard link inside": (lambda at: tar(item(b"a"), link(b"b", b"a", b"1")), "is a hard link"),
    "tar: character device": (lambda at: tar(head(b"null", b"3")), "is a character device"),
    "tar: block device": (lambda at: tar(head(b"sda", b"4")), "is a block device"),
    "tar: FIFO": (lambda at: tar(head(b"pipe", b"6")), "is a FIFO"),
    "tar: unknown kind": (lambda at: tar(item(b"a", kind=b"Z")), "is of an unknown kind"),
    "tar: name of a volume": (lambda at: tar(item(b"a", b"", b"V")), "is of an unknown kind"),
    "tar: rest of another volume": (lambda at: tar(item(b"a", kind=b"M")), "is of an unknown kind"),
    "tar: folder as a dump has it": (lambda at: tar(item(b"a", kind=b"D")), "is of an unknown kind"),
    "tar: pax of Solaris": (lambda at: tar(item(b"a", record(b"path", b"../a"), b"X"), item(b"a")), "unknown kind"),
    "tar: GNU sparse": (lambda at: tar(head(b"a", b"S", magic=b"ustar  \0")), SPARSE),
    "tar: pax sparse 0.0": (
        lambda at: tar(
            pax((b"GNU.sparse.size", b"99"), (b"GNU.sparse.offset", b"0"), (b"GNU.sparse.numbytes", b"4")), item(b"a")
        ),
        SPARSE,
    ),
    "tar: pax sparse 0.1": (lambda at: tar(pax((b"GNU.sparse.map", b"0,4,9,1")), item(b"a")), SPARSE),
    "tar: pax sparse 1.0": (
        lambda at: tar(
            pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9" * 18)),
            item(b"a", b"1\n0\n1\n".ljust(512, b"\0") + b"x"),
        ),
        SPARSE,
    ),
    "tar: name of a pax sparse file": (lambda at: tar(pax((b"GNU.sparse.name", b"../canary")), item(b"a")), SPARSE),
    "tar: sparse for all": (lambda at: tar(pax((b"GNU.sparse.map", b"0,4"), kind=b"g"), item(b"a")), "many at once"),
    "tar: sparse of star": (lambda at: tar(pax((b"SCHILY.realsize", b"9")), item(b"a")), SPARSE),
    "tar: sparse of Solaris": (lambda at: tar(pax((b"SUN.holesdata", b" 0 4")), item(b"a")), SPARSE),
    "tar: twin by pax": (lambda at: tar(item(b"a"), pax((b"path", b"A")), item(b"b")), TWIN),
    "tar: folder and its old form": (lambda at: tar(folder(b"a"), item(b"a/", b"", b"\0")), TWICE),
    "tar: folder of the root twice": (lambda at: tar(folder(b"."), folder(b"./")), TWICE),
    "tar: folder with content": (lambda at: tar(item(b"a", kind=b"5")), "is a folder with content"),
    "tar: negative size": (lambda at: tar(head(b"a", size=b"-0000000001\0")), NO_NUMBER),
    "tar: negative size of base 256": (lambda at: tar(head(b"a", size=b"\xff" * 12)), NO_NUMBER),
    "tar: size that is no number": (lambda at: tar(head(b"a", size=b"0x10")), NO_NUMBER),
    "tar: size of the digit 8": (lambda at: tar(head(b"a", size=b"00000000008\0")), NO_NUMBER),
    "tar: size with more behind a NUL": (lambda at: tar(head(b"a", size=b"4\x0000000009")), NO_NUMBER),
    "tar: size of 2^80": (lambda at: tar(head(b"a", size=b"\x80\0" + bytes([0, 255]) * 5)), "are the most"),
    "tar: size of 8 GiB less one": (lambda at: tar(head(b"a", size=8**11 - 1)), "are the most"),
    "tar: size beyond the end": (lambda at: tar(head(b"a", size=MIB)), MIDDLE),
    "tar: negative pax size": (lambda at: tar(pax((b"size", b"-512")), item(b"a")), "size that is no number"),
    "tar: pax size that is no number": (lambda at: tar(pax((b"size", b"4e9")), item(b"a")), "size that is no number"),
    "tar: pax size of 10^4000": (lambda at: tar(pax((b"size", b"9" * 4000)), item(b"a")), "size that is no number"),
    "tar: pax size of 2^60": (lambda at: tar(pax((b"size", b"%d" % 2**60)), item(b"a")), "are the most"),
    "tar: pax size that hides an entry": (
        lambda at: tar(pax((b"size", b"512")), head(b"a"), item(b"../canary", b"")) + item(b"b"),
        AFTER,
    ),
    "tar: wrong checksum": (lambda at: tar(head(b"a", checksum=b"000000\0 ")), DAMAGED),
    "tar: wrong checksum later": (lambda at: tar(item(b"a"), head(b"b", checksum=b"000000\0 ")), DAMAGED),
    "tar: negative checksum": (lambda at: tar(head(b"a", checksum=b"-00001\0 ")), DAMAGED),
    "tar: checksum of base 256": (lambda at: tar(head(b"a", checksum=b"\x80" + b"\xff" * 7)), DAMAGED),
    "tar: pax of 1 GiB": (lambda at: tar(head(b"x", b"x", 2**30)), "is a header of 1073741824 bytes"),
    "tar: pax for all of 1 GiB": (lambda at: tar(head(b"g", b"g", 2**30)), "is a header of 1073741824 bytes"),
    "tar: pax of 2^64": (lambda at: tar(head(b"x", b"x", b"\x80" + b"\xff" * 11)), "is a header of"),
    "tar: GNU long name of 1 GiB": (lambda at: tar(head(b"L", b"L", 2**30)), "is a header of 1073741824 bytes"),
    "tar: GNU long link of 1 GiB": (lambda at: tar(head(b"K", b"K", 2**30)), "is a header of 1073741824 bytes"),
    "tar: pax of 1 GiB that is there": (lambda at: gzip.compress(head(b"x", b"x", 2**30) + b"1" * MIB), "a header of"),
    "tar: GNU long name of 1 MiB": (lambda at: tar(gnu(b"a" * (MIB - 1)), item(b"a")), "a name of 1048575 bytes"),
    "tar: pax path of 1 MiB": (lambda at: tar(pax((b"path", b"a" * (MIB - 99))), item(b"a")), "a name of 1048477"),
    "tar: pax record without length": (lambda at: tar(item(b"x", b"path=a\n", b"x"), item(b"a")), "damaged pax"),
    "tar: pax record of length 0": (lambda at: tar(item(b"x", b"0 path=a\n", b"x"), item(b"a")), "damaged pax"),
    "tar: pax record too short": (lambda at: tar(item(b"x", b"5 path=a\n", b"x"), item(b"a")), "damaged pax"),
    "tar: pax record too long": (lambda at: tar(item(b"x", b"99 path=a\n", b"x"), item(b"a")), "damaged pax"),
    "tar: pax record without end": (lambda at: tar(item(b"x", b"10 path=a ", b"x"), item(b"a")), "damaged pax"),
    "tar: pax record of many digits": (lambda at: tar(item(b"x", b"9" * MIB, b"x"), item(b"a")), "damaged pax"),
    "tar: pax with two paths": (
        lambda at: tar(pax((b"path", b"a"), (b"path", b"../canary")), item(b"a")),
        "gives the name or size of an entry twice",
    ),
    "tar: two pax for one entry": (
        lambda at: tar(pax((b"mtime", b"1")), pax((b"path", b"b")), item(b"a")),
        "more than once",
    ),
    "tar: pax and GNU long name": (lambda at: tar(pax((b"path", b"b")), gnu(b"c"), item(b"a")), "more than once"),
    "tar: 100,000 pax for one entry": (lambda at: tar(*[head(b"x", b"x")] * 100_000), "more than once"),
    "tar: 100,000 pax for all": (lambda at: tar(*[head(b"g", b"g")] * 100_000), "more than once"),
    "tar: pax before the end of the file": (lambda at: pax((b"path", b"a")), MIDDLE),
    "tar: no end": (lambda at: item(b"a"), MIDDLE),
    "tar: cut in a header": (lambda at: item(b"a") + head(b"b")[:300], MIDDLE),
    "tar: cut in a file": (lambda at: item(b"a", b"x" * 2000)[:1500], MIDDLE),
    "tar: second archive after the end": (lambda at: tar(item(b"a")) + tar(item(b"../canary")), AFTER),
    "tar: text after the end": (lambda at: tar(item(b"a")) + b"text", AFTER),
    "tar: hostile after 1,000 good ones": (
        lambda at: tar(*(item(b"f/%d" % number) for number in range(1000)), link(b"a", b"b")),
        "is a symbolic link",
    ),
    "tar: 10,001 entries": (lambda at: tar(*(head(b"%d" % number) for number in range(10_001))), "comes after 10000"),
    "tar: 10,001 folders by mention": (
        lambda at: tar(*(head(b"%d/" % number * 19 + b"f") for number in range(530))),
        "comes after 10000",
    ),
    "no archive": (lambda at: b"This is a text.\n" * 64, DAMAGED),
    "no bytes": (lambda at: b"", MIDDLE),
    "one byte": (lambda at: b"P", MIDDLE),
}

ZEROS = 8 * MIB
COMPRESSED: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "gzip: bomb by ratio": (lambda at: gzip.compress(tar(item(b"a", bytes(ZEROS)))), EXPANDS),
    "bzip2: bomb by ratio": (lambda at: bz2.compress(tar(item(b"a", bytes(ZEROS)))), EXPANDS),
    "xz: bomb by ratio": (lambda at: lzma.compress(tar(item(b"a", bytes(ZEROS)))), EXPANDS),
    "gzip: bomb of 1 GiB": (
        lambda at: gzip.compress(head(b"a", size=2**30)) + gzip.compress(bytes(ZEROS)) * 128,
        EXPANDS,
    ),
    "bzip2: bomb of 1 GiB": (
        lambda at: bz2.compress(head(b"a", size=2**30)) + bz2.compress(bytes(ZEROS)) * 128,
        EXPANDS,
    ),
    "xz: bomb of 1 GiB": (
        lambda at: lzma.compress(head(b"a", size=2**30)) + lzma.compress(bytes(ZEROS)) * 128,
        EXPANDS,
    ),
    "gzip: bomb after the end": (lambda at: gzip.compress(tar(item(b"a")) + bytes(ZEROS)), EXPANDS),
    "gzip: endless parts without content": (
        lambda at: gzip.compress(tar(item(b"a"))) + gzip.compress(b"") * 100_000,
        "more than 10000 compressed parts",
    ),
    "bzip2: endless parts without content": (
        lambda at: bz2.compress(tar(item(b"a"))) + bz2.compress(b"") * 20_000,
        "more than 10000 compressed parts",
    ),
    "xz: dictionary of 4 GiB": (
        # Stream header, then the header of a block whose LZMA2 filter asks for the largest dictionary, then nothing.
        lambda at: b"\xfd7zXZ\0\0\4\xe6\xd6\xb4F" + checked(b"\2\0!\1\x28\0\0\0") + bytes(64),
        "Memory usage limit",
    ),
    "gzip: garbage after the end": (lambda at: gzip.compress(tar(item(b"a"))) + b"garbage", AFTER),
    "bzip2: garbage after the end": (lambda at: bz2.compress(tar(item(b"a"))) + b"garbage", AFTER),
    "xz: garbage after the end": (lambda at: lzma.compress(tar(item(b"a"))) + b"garbage" * 9, AFTER),
    "gzip: start of a second part": (lambda at: gzip.compress(tar(item(b"a"))) + b"\x1f\x8b\x08", MIDDLE),
    "gzip: wrong CRC": (lambda at: changed(gzip.compress(tar(item(b"a"))), -8), "incorrect data check"),
    "gzip: wrong length": (lambda at: changed(gzip.compress(tar(item(b"a"))), -1), "incorrect length check"),
    "bzip2: wrong CRC": (lambda at: changed(bz2.compress(tar(item(b"a"))), -6), "is damaged"),
    "xz: wrong check": (lambda at: changed(lzma.compress(tar(item(b"a"))), -40), "is damaged"),
    "gzip: cut": (lambda at: gzip.compress(tar(item(b"a", os.urandom(9999))))[:5000], MIDDLE),
    "bzip2: cut": (lambda at: bz2.compress(tar(item(b"a", os.urandom(9999))))[:5000], MIDDLE),
    "xz: cut": (lambda at: lzma.compress(tar(item(b"a", os.urandom(9999))))[:5000], MIDDLE),
    "gzip: cut after its magic": (lambda at: b"\x1f\x8b", MIDDLE),
    "gzip: no tar in it": (lambda at: gzip.compress(b"A model, not an archive. " * 99), DAMAGED),
    "gzip: nothing in it": (lambda at: gzip.compress(b""), MIDDLE),
    "gzip: a tar.gz in it": (lambda at: gzip.compress(gzip.compress(tar(item(b"a", os.urandom(999))))), DAMAGED),
    "gzip: zip slip": (lambda at: gzip.compress(tar(item(b"../canary"))), LEADS_OUT),
    "bzip2: symbolic link": (lambda at: bz2.compress(tar(link(b"a", b"../canary"))), "is a symbolic link"),
    "xz: hard link": (lambda at: lzma.compress(tar(link(b"a", b"../canary", b"1"))), "is a hard link"),
}

ZIPS: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "zip: absolute, to a file that is there": (lambda at: zipped(Z(str(at / "canary").encode())), ABSOLUTE),
    "zip: folder outside": (lambda at: zipped(Z(b"../out-evil/", b"")), LEADS_OUT),
    "zip: NUL in a name": (lambda at: zipped(Z(b"a\0.txt")), INVISIBLE),
    "zip: name of code page 437": (lambda at: zipped(Z(b"caf\x82")), UTF_8),
    "zip: name that only says it is UTF-8": (lambda at: zipped(Z(b"caf\x82", flags=0x800)), UTF_8),
    "zip: symbolic link": (lambda at: zipped(Z(b"a", b"../canary", mode=LINK)), "is a symbolic link"),
    "zip: write through a symbolic link": (
        lambda at: zipped(Z(b"a", b"../elsewhere", mode=LINK), Z(b"a/canary")),
        "is a symbolic link",
    ),
    "zip: symbolic link that ends like a folder": (
        lambda at: zipped(Z(b"a/", b"../elsewhere", mode=LINK)),
        "is a symbolic link",
    ),
    "zip: FIFO": (lambda at: zipped(Z(b"a", mode=stat.S_IFIFO)), "is a FIFO"),
    "zip: character device": (lambda at: zipped(Z(b"a", mode=stat.S_IFCHR)), "is a character device"),
    "zip: block device": (lambda at: zipped(Z(b"a", mode=stat.S_IFBLK)), "is a block device"),
    "zip: socket": (lambda at: zipped(Z(b"a", mode=stat.S_IFSOCK)), "is a socket"),
    "zip: unknown kind": (lambda at: zipped(Z(b"a", mode=0o130644)), "is of an unknown kind"),
    "zip: folder by its mode": (lambda at: zipped(Z(b"a", mode=DIRECTORY)), BOTH),
    "zip: file by its mode": (lambda at: zipped(Z(b"a/", b"", mode=REGULAR)), BOTH),
    "zip: folder with content": (lambda at: zipped(Z(b"a/")), BOTH),
    "zip: encrypted": (lambda at: zipped(Z(b"a", bytes(12) + b"evil", method=0, flags=1)), "is encrypted"),
    "zip: encrypted among others": (lambda at: zipped(Z(b"a"), Z(b"b", flags=1)), "is encrypted"),
    "zip: encrypted, strong": (lambda at: zipped(Z(b"a", flags=0x41)), "is encrypted"),
    "zip: encrypted by AES": (lambda at: zipped(Z(b"a", method=99, flags=1, raw=bytes(32))), "is encrypted"),
    "zip: strong encryption only": (lambda at: zipped(Z(b"a", flags=0x40)), "not supported"),
    "zip: masked headers": (lambda at: zipped(Z(b"a", flags=0x2000)), "not supported"),
    "zip: patch": (lambda at: zipped(Z(b"a", flags=0x20)), "not supported"),
    "zip: bzip2": (lambda at: zipped(Z(b"a", method=12, raw=bz2.compress(bytes(ZEROS)))), "not supported"),
    "zip: LZMA": (lambda at: zipped(Z(b"a", method=14, raw=bytes(40))), "not supported"),
    "zip: unknown compression": (lambda at: zipped(Z(b"a", method=1234)), "not supported"),
    "zip: other name in its own header": (lambda at: zipped(Z(b"a", own={"name": b"b"})), "has another name"),
    "zip: zip slip in its own header": (lambda at: zipped(Z(b"a", own={"name": b"../a"})), "has another name"),
    "zip: longer name in its own header": (lambda at: zipped(Z(b"a", own={"name": b"aa"})), "has another name"),
    "zip: zip slip in the directory": (lambda at: zipped(Z(b"../canary", own={"name": b"a"})), "has another name"),
    "zip: other compression in its own header": (lambda at: zipped(Z(b"a", own={"method": 0})), OTHERWISE),
    "zip: other size in its own header": (lambda at: zipped(Z(b"a", own={"size": 5})), OTHERWISE),
    "zip: other packed size in its own header": (lambda at: zipped(Z(b"a", own={"packed": 1})), OTHERWISE),
    "zip: other CRC in its own header": (lambda at: zipped(Z(b"a", own={"crc": 5})), OTHERWISE),
    "zip: encrypted in its own header": (lambda at: zipped(Z(b"a", own={"flags": 1})), OTHERWISE),
    "zip: size of 64 bits that is not there": (lambda at: zipped(Z(b"a", own={"size": 2**32 - 1})), OTHERWISE),
    "zip: wrong CRC": (lambda at: zipped(Z(b"a", crc=5)), LONGER),
    "zip: wrong CRC, stored": (lambda at: zipped(Z(b"a", method=0, crc=5)), LONGER),
    "zip: longer than it says": (lambda at: zipped(Z(b"a", size=3)), LONGER),
    "zip: empty, it says": (lambda at: zipped(Z(b"a", size=0, crc=0)), LONGER),
    "zip: shorter than it says": (lambda at: zipped(Z(b"a", size=5)), LONGER),
    "zip: two sizes": (lambda at: zipped(Z(b"a", method=0, size=5)), "contradict each other"),
    "zip: data damaged": (lambda at: zipped(Z(b"a", raw=b"\xff" * 9)), "is damaged"),
    "zip: data cut": (lambda at: zipped(Z(b"a", raw=deflated(b"evil")[:-2])), "is damaged"),
    "zip: data with more behind it": (lambda at: zipped(Z(b"a", raw=deflated(b"evil") + b"more")), "is damaged"),
    "zip: data with chunks behind it": (lambda at: zipped(Z(b"a", raw=deflated(b"evil") + bytes(MIB))), "is damaged"),
    "zip: data that ends with a chunk, with more behind it": (
        lambda at: zipped(Z(b"a", x := bytes(65531), raw=b"\1\xfb\xff\4\0" + x + b"more")),
        "is damaged",
    ),
    "zip: no data": (lambda at: zipped(Z(b"a", raw=b"")), "is damaged"),
    "zip: bomb by ratio": (lambda at: zipped(Z(b"a", bytes(ZEROS))), EXPANDS),
    "zip: bomb of many entries": (lambda at: zipped(*(Z(b"%d" % n, bytes(MIB - 1)) for n in range(3))), EXPANDS),
    "zip: bomb that says it is small": (lambda at: zipped(Z(b"a", bytes(ZEROS), size=9)), LONGER),
    "zip: bomb that says it has 4 GiB": (lambda at: zipped(Z(b"a", size=2**32 - 2)), "is a file of 4294967294"),
    "zip: overlap of one header": (lambda at: same_data(9), "overlaps another entry"),
    "zip: overlap by quotes": (lambda at: quoted(7), "overlaps another entry"),
    "zip: overlap in part": (
        lambda at: zipped(Z(b"a", b"x" * 40 + Z(b"b").local(), method=0), Z(b"b", offset=71)),
        "overlaps another entry",
    ),
    "zip: entry beyond the end": (lambda at: zipped(Z(b"a", offset=9999)), "lies outside"),
    "zip: entry in the directory": (lambda at: zipped(Z(b"a", offset=37)), "lies where no entry begins"),
    "zip: entry where none begins": (lambda at: zipped(Z(b"a", offset=1)), "lies where no entry begins"),
    "zip: data that reaches into the directory": (lambda at: zipped(Z(b"a", packed=20)), "reaches beyond"),
    "zip: data that reaches beyond the end": (lambda at: zipped(Z(b"a", packed=2**32 - 2)), "reaches beyond"),
    "zip: fewer entries than it says": (lambda at: zipped(EVIL, end=lambda n, s, o: ending(n + 1, s, o)), ELSEWHERE),
    "zip: more entries than it says": (lambda at: zipped(EVIL, end=lambda n, s, o: ending(0, s, o)), ELSEWHERE),
    "zip: directory longer than it is": (lambda at: zipped(EVIL, end=lambda n, s, o: ending(n, s + 9, o)), ELSEWHERE),
    "zip: directory shorter than it is": (lambda at: zipped(EVIL, end=lambda n, s, o: ending(n, s - 9, o)), ELSEWHERE),
    "zip: directory elsewhere": (lambda at: zipped(EVIL, end=lambda n, s, o: ending(n, s, 0)), ELSEWHERE),
    "zip: directory beyond the end": (lambda at: zipped(EVIL, end=lambda n, s, o: ending(n, s, 2**31)), ELSEWHERE),
    "zip: directory that is none": (lambda at: b"PK\3\4" + bytes(99) + ending(1, 103, 0), ELSEWHERE),
    "zip: directory of other records": (lambda at: zipped(EVIL).replace(b"PK\1\2", b"PK\1\3"), ELSEWHERE),
    "zip: directory of 4 GiB": (lambda at: zipped(EVIL, end=lambda n, s, o: ending(n, 2**32 - 1, o)), ELSEWHERE),
    "zip: directory of 9 MiB": (lambda at: b"PK\3\4" + bytes(9 * MIB) + ending(9, 9 * MIB, 4), "has a directory of"),
    "zip: a million entries": (
        lambda at: b"PK\3\4" + (million := EVIL.central(0) * 1_000_000) + million_end(len(million)),
        "has 1000000 entries",
    ),
    "zip: garbage after the end": (lambda at: zipped(EVIL) + b"garbage", AFTER),
    "zip: second end in the comment": (
        lambda at: zipped(EVIL, end=lambda n, s, o: ending(n, s, o, comment=b"x" + ending(0, 0, 0) + b"y")),
        AFTER,
    ),
    "zip: empty second end in the comment": (
        lambda at: zipped(EVIL, end=lambda n, s, o: ending(n, s, o, comment=ending(0, 0, 0))),
        ELSEWHERE,
    ),
    "zip: comment cut": (lambda at: zipped(EVIL, end=lambda *at: ending(*at, comment=b"comment"))[:-3], AFTER),
    "zip: end cut": (lambda at: zipped(EVIL)[:-3], MIDDLE),
    "zip: only its first half": (lambda at: zipped(*(Z(b"%d" % n) for n in range(9)))[:300], MIDDLE),
    "zip: other content before": (lambda at: b"MZ" + zipped(EVIL), MIDDLE),
    "zip: second of two parts": (lambda at: zipped(EVIL, end=lambda *at: ending(*at, disks=(1, 0))), "several parts"),
    "zip: directory in another part": (
        lambda at: zipped(EVIL, end=lambda *at: ending(*at, disks=(0, 1))),
        "several parts",
    ),
    "zip: entry in another part": (lambda at: zipped(Z(b"a", disk=3)), "lies in another part"),
    "zip: counts of two parts": (lambda at: changed(zipped(EVIL), -14), "several parts"),
    "zip64: end that is elsewhere": (lambda at: large(where=0), ELSEWHERE),
    "zip64: end beyond all": (lambda at: large(where=2**64 - 1), ELSEWHERE),
    "zip64: 2^63 entries": (lambda at: large(count=2**63), "has 9223372036854775808 entries"),
    "zip64: directory of 2^63 bytes": (lambda at: large(size=2**63), ELSEWHERE),
    "zip64: directory at 2^64": (lambda at: large(offset=2**64 - 1), ELSEWHERE),
    "zip64: sum beyond 2^64": (lambda at: large(offset=2**64 - 47, size=47 + 84), ELSEWHERE),
    "zip64: several parts": (lambda at: large(disk=1), "several parts"),
    "zip64: two ends that differ": (
        lambda at: zipped(EVIL, end=lambda n, s, o: ending_64(o + s, n, s, o) + ending(n + 1, s, o)),
        "two ends",
    ),
    "zip64: size of 2^63": (
        lambda at: zipped(Z(b"a", size=2**32 - 1, extra=struct.pack("<2HQ", 1, 8, 2**63))),
        "is a file of 9223372036854775808",
    ),
    "zip64: offset of 2^63": (
        lambda at: zipped(Z(b"a", offset=2**32 - 1, extra=struct.pack("<2HQ", 1, 8, 2**63))),
        "lies outside",
    ),
    "zip64: offset that is not there": (lambda at: zipped(Z(b"a", offset=2**32 - 1)), "lies outside"),
    "zip64: field cut": (lambda at: zipped(Z(b"a", extra=struct.pack("<2HL", 1, 8, 0))), "extra field that is damaged"),
    "zip: second name in an extra field": (
        lambda at: zipped(Z(b"a", extra=struct.pack("<2HBL", 0x7075, 14, 1, zlib.crc32(b"a")) + b"../canary")),
        "gives it another name",
    ),
}


def checked(data: bytes) -> bytes:
    return data + struct.pack("<L", zlib.crc32(data))


def changed(data: bytes, at: int, by: int = 1) -> bytes:
    at %= len(data)
    return data[:at] + bytes([data[at] ^ by]) + data[at + 1 :]


def million_end(size: int) -> bytes:
    return ending_64(4 + size, 1_000_000, size, 4) + ending(2**16 - 1, 2**32 - 1, 2**32 - 1)


def as_folder(name: bytes) -> bool:
    return name.endswith(b"/")


def tar_of(*names: bytes) -> bytes:
    return tar(*(folder(name) if as_folder(name) else item(name) for name in names))


def zip_of(*names: bytes) -> bytes:
    return zipped(*(Z(name, b"" if as_folder(name) else b"evil") for name in names))


CASES: dict[str, tuple[Callable[[Path], bytes], str]] = {
    **{f"tar: {what}": (lambda at, name=name: tar_of(name), says) for what, (name, says) in NAMES.items()},
    **{f"zip: {what}": (lambda at, name=name: zip_of(name), says) for what, (name, says) in NAMES.items()},
    **{f"tar: {what}": (lambda at, a=a, b=b: tar_of(a, b), says) for what, (a, b, says) in PAIRS.items()},
    **{f"zip: {what}": (lambda at, a=a, b=b: zip_of(a, b), says) for what, (a, b, says) in PAIRS.items()},
    **HEADERS,
    **COMPRESSED,
    **ZIPS,
}

refused: list[str] = []
digests: set[bytes] = set()


class Hung(BaseException):
    """Nothing that the code under test could take for a failure of its own."""


@pytest.fixture(autouse=True)
def alive() -> Iterator[None]:
    def hung(*_: object) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, hung)
    signal.setitimer(signal.ITIMER_REAL, LIVENESS)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def around(tmp_path) -> Path:
    """A folder to unpack in, with canaries where archives aim at; `out` is not there yet."""
    for name in ("canary", "elsewhere/canary", "work/canary", "work/elsewhere/canary", "work/out-evil/canary"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("alive")
    return tmp_path


def tree(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Return what is in a folder: kinds, modes and contents, and whether files were linked or touched."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        what: tuple[Any, ...] = (status.st_mode,)
        if path.is_symlink():
            what += (os.readlink(path),)
        elif path.is_file():
            what += (status.st_nlink, status.st_mtime_ns, status.st_ctime_ns, path.read_bytes())
        found[str(path.relative_to(folder))] = what
    return found


@contextlib.contextmanager
def nothing_happens(around: Path) -> Iterator[None]:
    before = tree(around), Path("/etc/passwd").stat().st_nlink, Path("/tmp/evil").exists()
    yield
    assert (tree(around), Path("/etc/passwd").stat().st_nlink, Path("/tmp/evil").exists()) == before


def given(around: Path, data: bytes, name: str = "given") -> Path:
    archive = around / "work" / name
    archive.write_bytes(data)
    return archive


def refusal(archive: Path, into: Path, **options: Any) -> str:
    """Unpack and return the sentence of the refusal."""
    started = time.process_time()
    with pytest.raises(PackagingRefused) as caught:
        archives.unpack(archive, into, **options)
    assert time.process_time() - started < MOST_WORK
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    sentence = str(caught.value)
    assert re.fullmatch(r"[ -~]{1,300}\.", sentence), sentence
    assert "Traceback" not in sentence
    assert "Error(" not in sentence
    return sentence


@pytest.mark.parametrize("case", CASES)
def test_hostile_archive(around, case):
    build, says = CASES[case]
    data = build(around)
    archive = given(around, data)
    with nothing_happens(around):
        sentence = refusal(archive, around / "work" / "out")
    assert sentence.startswith("'given' cannot be unpacked: it")
    assert re.search(says, sentence), sentence
    if str(around).encode() not in data:
        assert str(around) not in sentence
    refused.append(case)
    digests.add(hashlib.sha256(data).digest())


SKIPPED = b"checkpoints/"
SPARSE_FILE = pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9"))
# Entries below a folder that nobody wants, each of which would be refused elsewhere, and what it would be refused for.
UNWANTED: dict[str, tuple[bytes, str]] = {
    "tar: symbolic link": (link(SKIPPED + b"last", b"../../canary"), "is a symbolic link"),
    "tar: symbolic link of a long target": (link(SKIPPED + b"last", b"x" * 120), "is a symbolic link"),
    "tar: symbolic link instead of the folder": (link(b"checkpoints", b"/opt/ml/checkpoints"), "is a symbolic link"),
    "tar: hard link": (link(SKIPPED + b"last", b"/etc/passwd", b"1"), "is a hard link"),
    "tar: device": (head(SKIPPED + b"sda", b"4"), "is a block device"),
    "tar: FIFO": (head(SKIPPED + b"pipe", b"6"), "is a FIFO"),
    "tar: unknown kind": (item(SKIPPED + b"a", kind=b"Z"), "is of an unknown kind"),
    "tar: sparse": (SPARSE_FILE + item(SKIPPED + b"a", b"1\n0\n1\n".ljust(512, b"\0") + b"x"), SPARSE),
    "tar: file that is too large": (item(SKIPPED + b"a", bytes(2001)), "is a file of 2001 bytes; 2000 are the most"),
    "tar: folder": (folder(SKIPPED + b"a\\b"), BACKSLASH),
    "tar: backslash": (item(SKIPPED + b"epoch\\1"), BACKSLASH),
    "tar: Latin-1": (item(SKIPPED + b"caf\xe9"), UTF_8),
    "tar: too long": (item(SKIPPED + b"p" * 256), "a part of more than 255 bytes"),
    "tar: leads out": (item(SKIPPED + b"../../canary"), LEADS_OUT),
    "tar: twins": (item(SKIPPED + b"a") + item(SKIPPED + b"A"), TWIN),
    "tar: twice": (item(SKIPPED + b"a") * 2, TWICE),
}
UNWANTED_ZIP: dict[str, tuple[tuple[Z, ...], str]] = {
    "zip: symbolic link": ((Z(SKIPPED + b"last", b"../../canary", mode=LINK),), "is a symbolic link"),
    "zip: device": ((Z(SKIPPED + b"sda", mode=stat.S_IFBLK),), "is a block device"),
    "zip: file that is too large": ((Z(SKIPPED + b"a", bytes(2001)),), "is a file of 2001 bytes; 2000 are the most"),
    "zip: backslash": ((Z(SKIPPED + b"epoch\\1"),), BACKSLASH),
    "zip: Latin-1": ((Z(SKIPPED + b"caf\xe9"),), UTF_8),
    "zip: leads out": ((Z(SKIPPED + b"../../canary"),), LEADS_OUT),
    "zip: encrypted": ((Z(SKIPPED + b"a", flags=1),), "is encrypted"),
    "zip: bzip2": ((Z(SKIPPED + b"a", method=12, raw=bz2.compress(b"evil")),), "not supported"),
    "zip: wrong CRC": ((Z(SKIPPED + b"a", crc=5),), LONGER),
    "zip: twice": ((Z(SKIPPED + b"a"), Z(SKIPPED + b"a")), TWICE),
}
PASSED_OVER: dict[str, tuple[bytes, str]] = {
    **{what: (tar(item(b"b"), entry, item(b"c/d", b"four")), says) for what, (entry, says) in UNWANTED.items()},
    **{what: (zipped(Z(b"b"), *entries, Z(b"c/d", b"four")), says) for what, (entries, says) in UNWANTED_ZIP.items()},
}


def is_wanted(name: str) -> bool:
    return "checkpoints" not in name.split("/")


@pytest.mark.parametrize("case", PASSED_OVER)
def test_what_nobody_wants_is_passed_over_whatever_it_is(around, case):
    data, says = PASSED_OVER[case]
    archive, out = given(around, data), around / "work" / "out"
    limits = archives.Limits(file=2000)
    assert re.search(says, refusal(archive, out, limits=limits)), "somebody who wants it is told"

    def unpack_and_remove() -> None:
        assert archives.unpack(archive, out, is_wanted, limits) == ["b", "c/d"]
        assert contents(out) == {"b": b"evil", "c/d": b"four"}
        assert os.listdir(out / "c") == ["d"]
        shutil.rmtree(out)

    with nothing_happens(around):
        unpack_and_remove()


@pytest.mark.parametrize("case", ["tar: second archive after the end", "zip: overlap by quotes", "tar: wrong checksum"])
def test_hostile_although_nobody_wants_anything(around, case):
    archive = given(around, CASES[case][0](around))
    with nothing_happens(around):
        assert re.search(CASES[case][1], refusal(archive, around / "work" / "out", wanted=lambda name: False))


# What comes after these differs from tool to tool: for one an entry is what for another is content.
AMBIGUOUS = {
    "folder with content": tar(item(SKIPPED + b"a", tar(item(b"b")), b"5")),
    "old folder with content": tar(item(SKIPPED + b"a/", tar(item(b"b")), b"\0")),
    "symbolic link with content": tar(head(SKIPPED + b"last", b"2", 4, link=b"epoch"), item(b"b")),
    "file with a link's target": tar(gnu(b"target", b"K"), item(SKIPPED + b"a", tar(item(b"b")))),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_what_tools_read_differently_is_refused_although_nobody_wants_it(around, case):
    archive = given(around, AMBIGUOUS[case])
    with nothing_happens(around):
        assert "which tools read differently" in refusal(archive, around / "work" / "out", wanted=is_wanted)


@pytest.mark.parametrize("kind", ["gzip", "zip"])
def test_how_much_nobody_wants_is_limited(around, kind):
    names, data = [b"checkpoints/%d" % number for number in range(5)], bytes(20_000)
    made = zipped(*(Z(name, data) for name in names))
    archive = given(around, made if kind == "zip" else gzip.compress(tar(*(item(name, data) for name in names))))
    for limits, says in (
        (archives.Limits(entries=4), "comes after 4 files|has 5 entries; 4 are the most"),
        (archives.Limits(total=50_000), "expands to more than 50000 bytes"),
    ):
        with nothing_happens(around):
            assert re.search(says, refusal(archive, around / "work" / "out", wanted=is_wanted, limits=limits))
    assert archives.unpack(archive, around / "work" / "out", is_wanted) == []


@pytest.mark.parametrize("kind", ["gzip", "zip"])
def test_bomb_that_nobody_wants(around, kind):
    skipped = gzip.compress(tar(item(b"export/a"), item(b"checkpoint", bytes(ZEROS))))
    archive = given(around, skipped if kind == "gzip" else zipped(Z(b"export/a"), Z(b"checkpoint", bytes(ZEROS))))
    with nothing_happens(around):
        assert EXPANDS in refusal(archive, around / "work" / "out", wanted=lambda name: name.startswith("export/"))


def samples() -> dict[str, bytes]:
    content = bytes(range(256))
    plain = tar(folder(b"d"), item(b"d/a", content), pax((b"path", b"d/b")), item(b"b"))
    return {
        "tar": plain,
        "gzip": gzip.compress(plain),
        "bzip2": bz2.compress(plain),
        "xz": lzma.compress(plain),
        "zip": zipped(Z(b"d/", b""), Z(b"d/a", content), Z(b"d/b", b"x", method=0)),
        "zip64": large(),
    }


@pytest.mark.parametrize("kind", samples())
def test_cut_anywhere(around, kind):
    data = samples()[kind]
    # Half the end of a tar is an end too: all content is there.
    most = len(data) - 512 if kind == "tar" else len(data)
    archive = given(around, data)
    lengths = range(0, most, 11 if kind == "tar" else 1)
    for length in lengths:
        archive.write_bytes(data[:length])
        refusal(archive, around / "work" / "out")
        assert sorted(path.name for path in archive.parent.iterdir()) == ["canary", "elsewhere", "given", "out-evil"]
    assert len(lengths) >= 100


@pytest.mark.parametrize("kind", samples())
def test_any_byte_changed(around, kind):
    """Whatever a byte is changed to: a refusal in words, or files in the new folder only."""
    data = samples()[kind]
    archive = given(around, data)
    out = around / "work" / "out"
    counts = [0, 0]
    before = tree(around / "elsewhere"), tree(around / "work" / "out-evil")
    for at in range(0, len(data), 5 if kind == "tar" else 1):
        archive.write_bytes(changed(data, at, (0x01, 0x80, 0xFF)[at % 3]))
        try:
            written = archives.unpack(archive, out)
        except PackagingRefused:
            counts[0] += 1
        else:
            counts[1] += 1
            assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()) == sorted(written)
            shutil.rmtree(out)
        assert sorted(path.name for path in archive.parent.iterdir()) == ["canary", "elsewhere", "given", "out-evil"]
    assert (tree(around / "elsewhere"), tree(around / "work" / "out-evil")) == before
    assert counts[0] > 50


# 3. The comparison of trees notices


def naive_tar(archive: Path, into: Path) -> None:
    trusting: dict[str, Any] = {"filter": "fully_trusted"} if hasattr(tarfile, "fully_trusted_filter") else {}
    with tarfile.open(archive) as opened:
        opened.extractall(into, **trusting)


def naive_zip(archive: Path, into: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        for one in opened.infolist():
            (into / one.filename).parent.mkdir(parents=True, exist_ok=True)
            (into / one.filename).write_bytes(opened.read(one))


@pytest.mark.parametrize(
    ("case", "naive", "victim"),
    [
        ("tar: write through a symbolic link", naive_tar, "work/elsewhere/canary"),
        ("tar: zip slip", naive_tar, "work/canary"),
        ("zip: zip slip to the twin of a prefix", naive_zip, "work/out-evil/canary"),
        ("zip: absolute, to a file that is there", naive_zip, "canary"),
    ],
)
def test_a_naive_unpacker_is_noticed(around, case, naive, victim):
    archive = given(around, CASES[case][0](around))

    def attack() -> None:
        out = around / "work" / "out"
        with nothing_happens(around):
            out.mkdir()
            naive(archive, out)
            shutil.rmtree(out)

    with pytest.raises(AssertionError):
        attack()
    assert (around / victim).read_text() == "evil"


# 4. What unpacks

LONG = "/".join(["a-folder-with-a-rather-long-name"] * 4) + "/model with a rather long name, also in Grüße.onnx"


@pytest.fixture
def source(tmp_path) -> Path:
    """A folder as customers pack it."""
    made = tmp_path / "source"
    contents = {
        "manifest.json": b"{}",
        "export_artifacts/manifest.json": b'{"a": 1}' * 9,
        "export_artifacts/mochi.pt": os.urandom(300_000) + bytes(300_000),
        "empty": b"",
        "a block": bytes(512),
    }
    for name, content in contents.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(content)
    (made / "empty folder").mkdir()
    (made / "export_artifacts" / "mochi.pt").chmod(0o6755)
    return made


def add_long(source: Path) -> None:
    (source / LONG).parent.mkdir(parents=True)
    (source / LONG).write_bytes(b"long")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_unpacks(archive: Path, source: Path, below: str = "") -> None:
    out = archive.parent / "out"
    written = archives.unpack(archive, out)
    assert len(written) == len(set(written))
    found = contents(out)
    assert set(written) == set(found)
    assert found == {below + name: data for name, data in contents(source).items()}
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    for path in out.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    shutil.rmtree(out)


@pytest.mark.skipif(not shutil.which("tar"), reason="there is no tar")
@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_archives_of_tar(tmp_path, source, form):
    if form != "v7":
        add_long(source)
    for number, arguments in enumerate((["."], ["--owner=somebody", *sorted(os.listdir(source))])):
        archive = tmp_path / f"{number}.tar"
        subprocess.run(["tar", f"--format={form}", "-cf", archive, "-C", source, *arguments], check=True)
        check_unpacks(archive, source)


@pytest.mark.skipif(not shutil.which("tar"), reason="there is no tar")
@pytest.mark.parametrize(("letter", "tool"), [("z", "gzip"), ("j", "bzip2"), ("J", "xz")])
def test_compressed_archives_of_tar(tmp_path, source, letter, tool):
    if not shutil.which(tool):
        pytest.skip(f"there is no {tool}")
    archive = tmp_path / "customer's archive.zip"  # a name says nothing
    subprocess.run(["tar", f"-c{letter}f", archive, "-C", tmp_path, "source"], check=True)
    check_unpacks(archive, source, "source/")


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz", "w|gz"])
def test_archives_of_tarfile(tmp_path, source, form, mode):
    add_long(source)
    with tarfile.open(str(tmp_path / "a"), mode, format=form) as made:
        made.add(source, ".")
    check_unpacks(tmp_path / "a", source)


@pytest.mark.skipif(not shutil.which("zip"), reason="there is no zip")
@pytest.mark.parametrize("options", ["-r", "-rD", "-r0", "-r9", "-rfd"])
def test_archives_of_zip(tmp_path, source, options):
    add_long(source)
    archive = tmp_path / "a.zip"
    subprocess.run(["zip", "-q", options, archive, "."], cwd=source, check=True)
    check_unpacks(archive, source)
    with archive.open("wb") as streamed:
        subprocess.run(["zip", "-q", options, "-", "."], cwd=source, check=True, stdout=streamed)
    check_unpacks(archive, source)


class Unseekable(io.RawIOBase):
    def __init__(self) -> None:
        self.data = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.data += bytes(data)
        return len(data)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("zip64", [False, True])
def test_archives_of_zipfile(tmp_path, source, method, zip64):
    add_long(source)
    streamed = Unseekable()
    for target in (tmp_path / "a", streamed):
        with zipfile.ZipFile(target, "w", method) as made:
            made.comment = b"made by a test"
            for path in sorted(source.rglob("*")):
                if path.is_dir():
                    made.write(path, path.relative_to(source))
                    continue
                info = zipfile.ZipInfo.from_file(path, path.relative_to(source))
                info.compress_type = method
                with made.open(info, "w", force_zip64=zip64) as entry:
                    entry.write(path.read_bytes())
    check_unpacks(tmp_path / "a", source)
    (tmp_path / "a").write_bytes(streamed.data)
    check_unpacks(tmp_path / "a", source)


@pytest.mark.parametrize("form", ["zip", "tar", "gztar", "bztar", "xztar"])
def test_archives_of_shutil(tmp_path, source, form):
    check_unpacks(Path(shutil.make_archive(str(tmp_path / "a"), form, source)), source)


@pytest.mark.parametrize("data", [*samples().values(), gzip.compress(samples()["tar"]) + bytes(512)])
def test_samples_unpack(tmp_path, data):
    """The archives that the tests above cut and change are good ones."""
    (tmp_path / "a").write_bytes(data)
    assert archives.unpack(tmp_path / "a", tmp_path / "out") in (["d/a", "d/b"], ["a"])


def test_parts_of_a_parallel_compressor(tmp_path):
    plain = tar(item(b"a", bytes(range(256)) * 999))
    parts = [plain[at : at + 10_000] for at in range(0, len(plain), 10_000)]
    for compress in (gzip.compress, bz2.compress, lzma.compress):
        (tmp_path / "a").write_bytes(b"".join(map(compress, parts)))
        assert archives.unpack(tmp_path / "a", tmp_path / "out") == ["a"]
        assert (tmp_path / "out" / "a").read_bytes() == bytes(range(256)) * 999
        shutil.rmtree(tmp_path / "out")


def test_only_what_is_wanted_is_written(tmp_path, source):
    for form in ("zip", "gztar"):
        archive = Path(shutil.make_archive(str(tmp_path / "a"), form, source))
        asked = []

        def wanted(name: str) -> bool:
            asked.append(name)
            return name.startswith("export_artifacts/")

        assert sorted(archives.unpack(archive, tmp_path / form, wanted)) == [
            "export_artifacts/manifest.json",
            "export_artifacts/mochi.pt",
        ]
        assert asked == [name for name in asked if not name.endswith("/")]
        assert set(asked) >= set(contents(source))
        assert os.listdir(tmp_path / form) == ["export_artifacts"]


@shared.needed
def test_what_a_customer_has(tmp_path):
    archive = shared.FOLDER / "models" / "cookies-segmentation" / "model.tar.gz"
    written = archives.unpack(archive, tmp_path / "out", lambda name: name.startswith("export_artifacts/"))
    assert sorted(written) == ["export_artifacts/manifest.json", "export_artifacts/mochi.pt"]
    with tarfile.open(archive) as opened:
        for name in written:
            assert (tmp_path / "out" / name).read_bytes() == opened.extractfile(name).read()


def test_limits_are_those_of_the_caller(tmp_path):
    (tmp_path / "a").write_bytes(tar(item(b"a/b/c", b"four"), item(b"a/d", b"five5")))
    enough = archives.Limits(entries=4, file=5, total=6 * 512, ratio=1, path=5, depth=3)
    assert archives.unpack(tmp_path / "a", tmp_path / "out", limits=enough) == ["a/b/c", "a/d"]
    for name in ("entries", "file", "total", "path", "depth"):
        fewer = archives.Limits(**{**vars(enough), name: getattr(enough, name) - 1})
        assert "most" in refusal(tmp_path / "a", tmp_path / "none", limits=fewer)


# What is no archive, and what the disk does not take


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, says in [("missing", "No such file"), ("pipe", "is no regular file"), (".", "is no regular file")]:
        assert says in refusal(tmp_path / name, tmp_path / "out")
    assert "is no regular file" in refusal(Path("/dev/zero"), tmp_path / "out")
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_folder_that_is_there_is_left_alone(around):
    archive = given(around, samples()["tar"])
    (around / "work" / "link").symlink_to("nowhere")
    with nothing_happens(around):
        for name in ("elsewhere", "canary", "link"):
            assert refusal(archive, around / "work" / name).endswith("cannot be made: File exists.")
        assert "cannot be made: No such file" in refusal(archive, around / "nowhere" / "out")


@pytest.mark.parametrize(
    ("code", "says"),
    [(errno.ENOSPC, "not enough room on the disk"), (errno.EDQUOT, "not enough room"), (errno.EIO, "output error")],
)
@pytest.mark.parametrize("kind", ["gzip", "zip"])
def test_a_disk_that_fails(around, monkeypatch, kind, code, says):
    archive = given(around, samples()[kind])
    write, writes = os.write, []

    def fail_later(fd: int, data: memoryview) -> int:
        writes.append(len(data))
        if len(writes) == 3:
            raise OSError(code, os.strerror(code), "/a/path/of/the/machine")
        return write(fd, data[:100])

    with nothing_happens(around):
        monkeypatch.setattr(os, "write", fail_later)
        assert says in refusal(archive, around / "work" / "out")


def test_a_disk_that_takes_little_at_once(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(samples()["zip"])
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:100]))
    archives.unpack(tmp_path / "a", tmp_path / "out")
    assert (tmp_path / "out" / "d" / "a").read_bytes() == bytes(range(256))


def test_an_interruption_leaves_nothing(around):
    def interrupt(name: str) -> bool:
        if name == "d/b":
            raise KeyboardInterrupt
        return True

    archive = given(around, samples()["gzip"])
    with nothing_happens(around), pytest.raises(KeyboardInterrupt):
        archives.unpack(archive, around / "work" / "out", interrupt)


def test_no_file_stays_open(tmp_path):
    with nothing_stays_open():
        for number, data in enumerate(samples().values()):
            (tmp_path / "a").write_bytes(data)
            archives.unpack(tmp_path / "a", tmp_path / str(number))
            (tmp_path / "a").write_bytes(data[:90])
            refusal(tmp_path / "a", tmp_path / "out")


MEASURE = """
import resource, sys
from pathlib import Path
from model_packager import archives
from model_packager.errors import PackagingRefused

def status(key):
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith(key))) * 1024

at, before, room = status("VmSize"), status("VmHWM"), int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (at + 2 * room, at + 2 * room))
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
for path in map(Path, sys.argv[2:]):
    try:
        archives.unpack(path, path.parent / "out")
    except PackagingRefused as refusal:
        print(status("VmHWM") - before, refusal)
"""


def peaks(room: int, *paths: Path) -> dict[str, int]:
    """Return each refusal and by how many bytes the peak of a new process's memory had grown after it."""
    command = [sys.executable, "-W", "ignore", "-c", MEASURE, str(room), *map(str, paths)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = (line.split(maxsplit=1) for line in done.stdout.splitlines())
    return {sentence: int(grown) for grown, sentence in lines}


def test_memory_stays_small(around):
    bombs = [case for case in CASES if re.search("bomb|GiB|endless|million|directory of|overlap by|100,000", case)]
    assert len(bombs) >= 24
    paths = [given(around, CASES[case][0](around), str(number)) for number, case in enumerate(bombs)]
    grown = peaks(24 * MIB, *paths)
    assert len(grown) == len(bombs)
    assert max(grown.values()) < 24 * MIB, grown


def test_memory_of_names_stays_small(around):
    above = ("ö" * 120 + "/").encode() * 3
    names = (above + b"%05d" % number + "ö".encode() * 100 for number in range(10_001))
    archive = given(around, gzip.compress(tar(*(pax((b"path", name)) + head(b"a") for name in names)), 1))
    ((sentence, grown),) = peaks(64 * MIB, archive).items()
    assert "comes after 10000" in sentence
    assert MIB < grown < 64 * MIB


def test_every_hostile_archive_was_refused(request):
    ran = [one for one in request.session.items if one.name.startswith("test_hostile_archive[")]
    assert len(CASES) == HOSTILE
    if len(ran) < HOSTILE:
        pytest.skip("only some hostile archives were asked for")
    assert len(refused) == len(set(refused)) == len(digests) == HOSTILE
