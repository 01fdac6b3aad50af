"""Hostile messages: trees of wire fields that are grown from good requests, broken at random, and written as bytes."""

from dataclasses import dataclass
from random import Random

from support.broken import SIZE

VARINT, FIXED64, LENGTH, GROUP, END, FIXED32 = range(6)
# In the place of a wire type: bytes that are written as they are.
VERBATIM = -1
LARGEST_NUMBER = 2**29 - 1

RPCS = ("DetectAnomalies", "StartModel", "StopModel", "ListModels", "DescribeModel")
WIDTH, HEIGHT = SIZE
PACKED = 3 * WIDTH * HEIGHT

NUMBERS = (
    *(0, 1, -1, 2, 63, 64, 65, 127, 128, 255, 256, 4095, 4096, 4097, 16383, 16384),
    *(PACKED - 1, PACKED, PACKED + 1, 4 * WIDTH * HEIGHT, 3 * 4096 * 4096, 3 * 4096 * 4096 + 1),
    *(base + by for base in (2**31, 2**32, 2**62, 2**63, 2**64) for by in (-1, 0, 1)),
    *(-(2**31), -(2**31) - 1, -(2**63), 2**63 - PACKED, 2**64 - PACKED),
)
# Names that a log or a terminal would act on, a path or a program would take for its own, or that sit at the bounds.
CONTROLS = (
    "\0",
    "a\0b",
    "\n",
    "a\nb",
    "\r",
    "\x1b[2J\x1b[31m",
    "\x7f",
    "\x85",
    "\x9b31m",
    "\u2028",
    "\u202e",
    "\ufeff",
)
FORGED = ("2031-01-01T00:00:00.000Z ERROR forged\n", "a\n2031-01-01T00:00:00.000Z INFO forged")
PATHS = (".", "..", "/", "//", "../../etc/passwd", "/dev/shm/x", "a/b", "sem.x", "~")
CODE = ("%s%s%n", "{0}{}", "$(id)", "'", '"', "\\", "\\x1b", "'; drop")
NEARLY = ("", " ", "board\n", "board ", " board", "board\0", "Board", "b\u00f6ard", "\u200bboard")
LONG = ("a" * 127, "a" * 128, "a" * 129, "a" * 255, "a" * 256, "a" * 5000, "\u00e9" * 64, "\U0001f600" * 33)
NO_TEXT = (b"\xff", b"\xc0\x80", b"\xe2\x82", b"\xf4\x90\x80\x80", b"\xed\xa0\x80", b"board\xff", b"\x80" * 20)
UNKNOWN = ("nobody", "board2", "-", "_", "0", "a.b-c_d")
TEXTS = (*(text.encode() for text in (*CONTROLS, *FORGED, *PATHS, *CODE, *NEARLY, *LONG, *UNKNOWN)), *NO_TEXT)


@dataclass
class Field:
    """A field as it goes over the wire; what is nested is a list."""

    number: int
    wire: int
    content: "int | bytes | list[Field]"


def varint(value: int) -> bytes:
    """Return an integer of 64 bits in seven at a time."""
    value %= 2**64
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def encoded(tree: list[Field]) -> bytes:
    """Return the bytes of a tree."""
    return b"".join(_encoded(one) for one in tree)


def _encoded(field: Field) -> bytes:
    content = encoded(field.content) if isinstance(field.content, list) else field.content
    if field.wire == VERBATIM:
        return content
    tag = varint(field.number << 3 | field.wire)
    if field.wire == GROUP:
        return tag + content + varint(field.number << 3 | END)
    if field.wire == LENGTH:
        return tag + varint(len(content)) + content
    number = content if isinstance(content, int) else int.from_bytes(content[:8], "little")
    if field.wire in (FIXED64, FIXED32):
        size = 8 if field.wire == FIXED64 else 4
        return tag + (number % 256**size).to_bytes(size, "little")
    return tag + varint(number)


class Fuzz:
    """Makes messages: `names` are the deployed models, `segment` is one of shared memory that the agent may use."""

    def __init__(self, random: Random, names: tuple[str, ...], segment: str) -> None:
        self._random = random
        self._names = [name.encode() for name in names]
        self._segment = segment.encode()

    def message(self) -> tuple[str, bytes]:
        """Return an RPC and a message that is broken field by field, or not at all."""
        rpc = self._random.choices(RPCS, (6, 2, 2, 1, 4))[0]
        tree = self._good(rpc)
        for _ in range(self._random.choice((0, 1, 1, 1, 2, 2, 3, 5))):
            self._break(tree)
        return rpc, encoded(tree)

    def raw(self) -> tuple[str, bytes]:
        """Return an RPC and bytes that are no message, or were one before some were changed."""
        rpc = self._random.choice(RPCS)
        if self._random.random() < 0.3:
            return rpc, self._random.randbytes(self._random.choice((0, 1, 2, 3, 7, 8, 16, 64, 300, 5000)))
        return rpc, scrambled(self._random, encoded(self._good(rpc, pixels=self._random.random() < 0.1)))

    def _good(self, rpc: str, *, pixels: bool = True) -> list[Field]:
        if rpc == "ListModels":
            return []
        name = Field(1, LENGTH, self._name())
        if rpc != "DetectAnomalies":
            return [name]
        bitmap = [Field(1, VARINT, WIDTH), Field(2, VARINT, HEIGHT)]
        if pixels and self._random.random() < 0.3:
            bitmap.append(Field(3, LENGTH, bytes(PACKED)))
        else:
            bitmap.append(Field(4, LENGTH, self._handle(0)))
        tree = [name, Field(2, LENGTH, bitmap)]
        if self._random.random() < 0.4:
            at = self._random.choice((2, 2, 3))
            tree.append(Field(3, LENGTH, [Field(at, LENGTH, self._handle(PACKED))]))
        return tree

    def _handle(self, offset: int) -> list[Field]:
        return [Field(1, LENGTH, self._segment), Field(2, VARINT, PACKED), Field(3, VARINT, offset)]

    def _name(self) -> bytes:
        return self._random.choice(self._names) if self._random.random() < 0.9 else self._text()

    def _text(self) -> bytes:
        if self._random.random() < 0.8:
            return self._random.choice(TEXTS)
        return "".join(chr(self._random.randrange(0x3000)) for _ in range(self._random.randrange(1, 140))).encode()

    def _number(self) -> int:
        return self._random.choice(NUMBERS) if self._random.random() < 0.8 else self._random.getrandbits(64)

    def _value(self) -> tuple[int, int | bytes | list[Field]]:
        """Return a value of any type, the right one or not."""
        wire = self._random.choice((VARINT, VARINT, LENGTH, LENGTH, FIXED64, FIXED32, GROUP))
        if wire in (LENGTH, GROUP):
            nested = self._random.random() < 0.5 or wire == GROUP
            return wire, [Field(self._random.randrange(1, 6), VARINT, self._number())] if nested else self._text()
        return wire, self._number()

    def _break(self, tree: list[Field]) -> None:
        """Break one thing somewhere in a tree."""
        place = self._random.choice(_lists(tree))
        ways = [self._unknown, self._verbatim]
        if place:
            ways += [self._other_value, self._other_value, self._other_value, self._other_type, self._other_number]
            ways += [self._twice, self._without, self._both, self._reorder]
        self._random.choice(ways)(place)

    def _unknown(self, place: list[Field]) -> None:
        number = self._random.choice((0, 4, 5, 9, 15, 16, 2047, 19000, LARGEST_NUMBER, LARGEST_NUMBER + 1, 2**32))
        place.insert(self._random.randrange(len(place) + 1), Field(number, *self._value()))

    def _verbatim(self, place: list[Field]) -> None:
        deep = self._random.choice((1, 50, 99, 100, 101, 5000))
        junk = self._random.choice(
            (
                b"\x08" + b"\xff" * 9 + b"\x01",  # the largest varint
                b"\x08" + b"\xff" * 10 + b"\x01",  # one byte longer than any may be
                b"\x08" + b"\x80" * 9 + b"\x00",  # zero, as long as it gets
                b"\x10\x80",  # ends within a number
                b"\x0a" + varint(2**31),  # longer than all there is
                b"\x0a" + varint(2**64 - 1),
                b"\x0a\x05ab",
                b"\x0e",  # wire types that there are not
                b"\x0f\x00",
                b"\x0b",  # a group that never ends, and an end of none
                b"\x0c",
                b"\x0b\x14",
                b"\x7b" * deep + b"\x7c" * deep,
                b"\x12" * deep,
                self._random.randbytes(self._random.randrange(1, 12)),
            )
        )
        place.insert(self._random.randrange(len(place) + 1), Field(0, VERBATIM, junk))

    def _other_value(self, place: list[Field]) -> None:
        field = self._random.choice(place)
        if field.wire == LENGTH:
            field.content = self._text() if self._random.random() < 0.8 else bytes(self._random.choice((1, PACKED + 1)))
        elif field.wire != VERBATIM:
            field.content = self._number()
            field.wire = VARINT

    def _other_type(self, place: list[Field]) -> None:
        field = self._random.choice(place)
        field.wire, field.content = self._value()

    def _other_number(self, place: list[Field]) -> None:
        self._random.choice(place).number = self._random.choice((0, 1, 2, 3, 4, 5, LARGEST_NUMBER))

    def _twice(self, place: list[Field]) -> None:
        field = self._random.choice(place)
        place.append(Field(field.number, field.wire, field.content))

    def _without(self, place: list[Field]) -> None:
        place.remove(self._random.choice(place))

    def _both(self, place: list[Field]) -> None:
        """Set both members of a bitmap's oneof, in either order; elsewhere they are unknown fields, or of a wrong type."""
        both = [Field(3, LENGTH, bytes(self._random.choice((0, 1, PACKED)))), Field(4, LENGTH, self._handle(0))]
        self._random.shuffle(both)
        place += both

    def _reorder(self, place: list[Field]) -> None:
        self._random.shuffle(place)


def _lists(tree: list[Field]) -> list[list[Field]]:
    """Return a tree and all that is nested in it."""
    found = [tree]
    for field in tree:
        if isinstance(field.content, list):
            found += _lists(field.content)
    return found


def scrambled(random: Random, data: bytes) -> bytes:
    """Return bytes after a few were changed, left out, doubled or put in."""
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 3, 8))):
        at = random.randrange(len(out) + 1)
        end = min(len(out), at + random.choice((1, 1, 2, 8, 100)))
        way = random.randrange(5)
        if way == 0:
            out[at:end] = random.randbytes(end - at)
        elif way == 1:
            del out[at:end]
        elif way == 2:
            out[at:at] = out[at:end]
        elif way == 3:
            out[at:at] = random.choice((b"\xff", b"\0", b"\x80", b"\x7f", random.randbytes(4)))
        else:
            del out[at:]
    return bytes(out)
