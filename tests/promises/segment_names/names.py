"""Segments' names to be fuzzed with: good and bad ones, and which is which by the rule of the API."""

from pathlib import Path
from random import Random

# Parts of the names of segments that are there, around what nobody else has.
ODD = [
    ("", ""),
    (".", ""),
    ("..", ""),
    ("...", "..."),
    (" ", " "),
    ("\t", "\n"),
    ("\x01\x1b[2J", "\x7f"),
    ("-", "*?[!a]"),
    ("~", "$HOME"),
    ("%s%n{0}", "\\"),
    ("sem", ""),
    ("SEM.", ""),
    (".sem.", "sem."),
    ("é\u202e", "\U0001f600"),
    ("\ufeff", "\uffff"),
    ("'\"`;", "&|#"),
]
ATOMS = [
    *[
        b"/",
        b".",
        b"..",
        b"../",
        b"/..",
        b"./",
        b"//",
        b"\0",
        b"sem.",
        b"sem",
        b"dev/shm/",
        b"proc/self/fd/0",
        b"etc/passwd",
    ],
    *[
        b"\n",
        b"\x1b[2J",
        b"\x7f",
        b"\\",
        b" ",
        b"%s",
        b"~",
        b"*",
        b"a",
        "é".encode(),
        "\u202e".encode(),
        b"\xe2\x88\x95",
    ],
    *[b"\xff", b"\xc0\xaf", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"],
]


def is_text(name: bytes) -> bool:
    """Return whether it is UTF-8, as the API's strings are."""
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def plain(name: bytes) -> bytes | None:
    """Return the name of the file in /dev/shm that a handle's name means; None when it can be none."""
    if not is_text(name):
        return None
    rest = name[1:] if name[:1] == b"/" else name
    if not 1 <= len(rest) <= 255 or b"/" in rest or b"\0" in rest or rest in {b".", b".."} or rest[:4] == b"sem.":
        return None
    return rest


class Names:
    """Draws names."""

    def __init__(self, random: Random, there: list[bytes], outside: Path) -> None:
        self._random = random
        self._there = there
        self._outside = bytes(outside)

    def draw(self) -> bytes:
        ways = (
            self._of_a_segment,
            self._changed,
            self._forbidden,
            self._way_out,
            self._of_atoms,
            self._of_any_bytes,
            self._long,
        )
        return self._random.choice(ways)()

    def _of_a_segment(self) -> bytes:
        return self._random.choice([b"", b"", b"/", b"//"]) + self._random.choice(self._there)

    def _changed(self) -> bytes:
        """A name with a byte more, less, or another one."""
        name = bytearray(self._of_a_segment())
        place = self._random.randrange(len(name))
        name[place : place + self._random.randint(0, 1)] = self._random.choice(
            [b"", self._random.randbytes(1), self._random.choice(ATOMS)]
        )
        return bytes(name)

    def _forbidden(self) -> bytes:
        """A name that would do but for what it is kept for."""
        semaphore = b"sem." + self._random.choice([b"", b"mutex", *self._there])
        return self._random.choice([b"", b"/"]) + self._random.choice([b"", b".", b"..", semaphore, semaphore])

    def _way_out(self) -> bytes:
        """A path to the file outside, or back to a segment."""
        name = self._random.choice(self._there)
        return self._random.choice(
            [
                self._outside,
                b"/" + self._outside,
                b"../.." + self._outside,
                b"/../.." + self._outside,
                name + b"/../../.." + self._outside,
                b"../../proc/self/root" + self._outside,
                self._outside + b"\0",
                b"/dev/shm/" + name,
                b"../shm/" + name,
                b"./" + name,
                name + b"/",
                name + b"/.",
                name + b"\0",
                name + b"\0.raw",
            ]
        )

    def _of_atoms(self) -> bytes:
        return b"".join(self._random.choices(ATOMS, k=self._random.randint(0, 6)))

    def _of_any_bytes(self) -> bytes:
        most = self._random.choice([2, 16, 300])
        if self._random.random() < 0.5:
            return self._random.randbytes(self._random.randrange(most))
        return bytes(self._random.choices(range(1, 0x80), k=self._random.randrange(most)))

    def _long(self) -> bytes:
        one = self._random.choice(["x", "é", "\u20ac", "\U0001f600"]).encode()
        size = self._random.choice([254, 255, 256, 257, 5000, 70_000])
        return self._random.choice([b"", b"/"]) + b"x" * (size % len(one)) + one * (size // len(one))
