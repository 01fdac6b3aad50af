"""HTTP/2 by hand: conversations that no client library would hold, and what the server answers to them."""

import gzip
import re
import select
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RESET, SETTINGS, PUSH, PING, GOAWAY, WINDOW, MORE = range(10)
END_STREAM, END_HEADERS, PADDED = 0x1, 0x4, 0x8
# No table of headers, so that answers come in plain text; and a window that no answer fills.
OURS = struct.pack(">HIHI", 1, 0, 4, 1 << 20)
# Bounds the wait for an answer; gRPC itself makes callers wait up to a second who send malformed headers.
PATIENCE = 30.0
# How long an answer may take that need not come.
GLANCE = 0.02

GZIP = ("grpc-encoding", b"gzip")
# gRPC's own answers, by code.
CANCELLED, INVALID, DEADLINE, EXHAUSTED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 1, 3, 4, 8, 12, 13, 14
# In the place of a code: the stream was reset, the connection closed, nothing came before we ended.
RESET_ONLY, CLOSED = -1, -2


def frame(kind: int, flags: int, stream: int, payload: bytes, length: int | None = None) -> bytes:
    """Return a frame, of a `length` that is not its own where one is given."""
    size = len(payload) if length is None else length
    return struct.pack(">I", size)[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def message(data: bytes, flag: int = 0, length: int | None = None) -> bytes:
    """Return a message with gRPC's prefix."""
    return bytes([flag]) + struct.pack(">I", len(data) if length is None else length) + data


def header(name: str, value: bytes) -> bytes:
    """Return a header in HPACK, plain and indexed nowhere."""
    return b"\0" + _length(len(name.encode())) + name.encode() + _length(len(value)) + value


def _length(value: int) -> bytes:
    if value < 127:
        return bytes([value])
    out, value = bytearray([127]), value - 127
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def headers(to: bytes, *more: tuple[str, bytes], **other: bytes | None) -> bytes:
    """Return the headers of a call to a path; `other` ones replace those of the same name, None leaves one out."""
    good = {
        "method": (":method", b"POST"),
        "scheme": (":scheme", b"http"),
        "path": (":path", to),
        "authority": (":authority", b"localhost"),
        "te": ("te", b"trailers"),
        "content": ("content-type", b"application/grpc"),
    }
    kept = [(name, other.get(key, value)) for key, (name, value) in good.items()]
    return b"".join(header(name, value) for name, value in [*kept, *more] if value is not None)


@dataclass(frozen=True)
class Conversation:
    """What is sent, and the answers that are in order: codes, RESET_ONLY, CLOSED; with CLOSED among them none is waited for."""

    kind: str
    sent: bytes
    answers: frozenset[int]


@dataclass
class Answer:
    """What came back: the codes and details of calls, and whether the stream was reset and the connection closed."""

    codes: list[int] = field(default_factory=list)
    details: list[str] = field(default_factory=list)
    reset: bool = False
    closed: bool = False

    def outcome(self) -> int:
        """Return the first code, or what came in its place."""
        return self.codes[0] if self.codes else RESET_ONLY if self.reset else CLOSED


def hold(path: Path, conversation: Conversation) -> Answer:
    """Hold a conversation on a connection of its own, to its end; fail when the server leaves us waiting."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(str(path))
        got, closed = b"", False
        waited_for = CLOSED not in conversation.answers
        try:
            connection.sendall(conversation.sent)
            while not closed and not (seen := read(got)).codes and not seen.reset:
                if not waited_for and not select.select([connection], [], [], GLANCE)[0]:
                    break
                got, closed = _more(connection, got)
            connection.shutdown(socket.SHUT_WR)
            while not closed:
                got, closed = _more(connection, got)
        except (BrokenPipeError, ConnectionResetError):  # it was closed before we had said all
            closed = True
        except OSError as error:
            raise AssertionError(f"{conversation.kind}: {error}; the server sent {got!r}") from None
    answer = read(got)
    answer.closed = closed
    return answer


def _more(connection: socket.socket, got: bytes) -> tuple[bytes, bool]:
    received = connection.recv(1 << 16)
    return got + received, not received


def read(got: bytes) -> Answer:
    """Return what whole frames of a server say of our calls."""
    answer, at = Answer(), 0
    while at + 9 <= len(got):
        length, kind = int.from_bytes(got[at : at + 3], "big"), got[at + 3]
        payload = got[at + 9 : at + 9 + length]
        at += 9 + length
        if kind == RESET:
            answer.reset = True
        elif kind == HEADERS and (value := _value(payload, b"grpc-status")) is not None:
            answer.codes.append(int(value))
            answer.details.append((_value(payload, b"grpc-message") or b"").decode(errors="backslashreplace"))
    return answer


def _value(payload: bytes, name: bytes) -> bytes | None:
    """Return a header's value as a server sends it that has no table of headers."""
    found = re.search(re.escape(bytes([len(name)]) + name), payload)
    if not found:
        return None
    at = found.end()
    length, at = payload[at], at + 1
    if length == 127:
        shift = 0
        while True:
            one, at = payload[at], at + 1
            length += (one & 127) << shift
            shift += 7
            if one < 128:
                break
    return payload[at : at + length]


class Conversations:
    """Makes conversations about a good call of `path`, whose message is `good`."""

    def __init__(self, random: Random, path: str, good: bytes) -> None:
        self._random = random
        self._path = path.encode()
        self._good = good
        self.kinds: dict[str, tuple[Callable[[], bytes], frozenset[int]]] = {
            **self._calls(),
            **self._metadata(),
            **self._broken(),
        }

    def make(self) -> Conversation:
        """Return a conversation of any kind, or a good call of which some bytes are changed or missing."""
        if self._random.random() < 0.4:
            return Conversation("scrambled", self._scrambled(), EVERY_ANSWER)
        return self.of(self._random.choice(list(self.kinds)))

    def of(self, kind: str) -> Conversation:
        """Return a conversation of a kind."""
        make, answers = self.kinds[kind]
        return Conversation(kind, make(), answers)

    def _call(self, block: bytes, data: bytes, *before: bytes) -> bytes:
        """Return a conversation with one call in it; `before` are the frames between the greeting and the call."""
        greeting = PREFACE + frame(SETTINGS, 0, 0, OURS)
        return greeting + b"".join(before) + frame(HEADERS, END_HEADERS, 1, block) + frame(DATA, END_STREAM, 1, data)

    def _calls(self) -> dict[str, tuple[Callable[[], bytes], frozenset[int]]]:
        """Return kinds whose HTTP/2 is in order, and what carries the message is not."""
        good, plain = self._good, headers(self._path)
        packed = headers(self._path, GZIP)

        def call(block: bytes, data: bytes, *answers: int) -> tuple[Callable[[], bytes], frozenset[int]]:
            return lambda: self._call(block, data), frozenset(answers)

        return {
            "good": call(plain, message(good), 0),
            "compressed": call(packed, message(gzip.compress(good), 1), 0),
            "compressed, no gzip": call(packed, message(b"nonsense", 1), INTERNAL),
            "compressed, cut": call(packed, message(gzip.compress(good)[:-9], 1), INTERNAL),
            "compressed, no message": call(packed, message(gzip.compress(b"\xff" * 99), 1), INVALID),
            "compressed, none said": call(plain, message(good, 1), INTERNAL),
            "unknown compression": call(headers(self._path, ("grpc-encoding", b"snappy")), message(good), INTERNAL),
            "undefined flags": call(plain, message(good, 7), 0, INVALID, INTERNAL),
            "longer than allowed": call(plain, message(good, length=2**32 - 1), EXHAUSTED),
            "half a message": call(plain, message(good, length=len(good) + 9), UNIMPLEMENTED),
            "half a prefix": call(plain, b"\0\0\0", UNIMPLEMENTED),
            "no message": call(plain, b"", UNIMPLEMENTED),
            "two messages": call(plain, message(good) * 2, 0),
            "unknown method": (self._unknown_method, frozenset({UNIMPLEMENTED})),
        }

    def _unknown_method(self) -> bytes:
        text = self._random.choice((b"Nothing", b"", b"detectanomalies", b"\x1b[31m\n", b"\xff\xfe", b"a" * 3000))
        service = self._random.choice((b"/AWS.LookoutVision.EdgeAgent/", b"/", b"/aws/", b"//", b"no path"))
        return self._call(headers(service + text), message(self._good))

    def _metadata(self) -> dict[str, tuple[Callable[[], bytes], frozenset[int]]]:
        """Return kinds whose headers are not in order, or those of another protocol."""

        def given(*more: tuple[str, bytes], **other: bytes | None) -> Callable[[], bytes]:
            return lambda: self._call(headers(self._path, *more, **other), message(self._good))

        kinds = {
            "text that is none": (given(("x-text", b"\x1b]0;title\x07\n\r\0\xff\xfe")), {0}),
            # Between gRPC's soft and hard limit it lets chance decide, the more the less often.
            "much metadata": (given(("x-much", b"a" * 15000)), {0, EXHAUSTED}),
            "binary that is none": (given(("x-data-bin", b"***")), {INTERNAL}),
            "a name in capitals": (given(("X-Name", b"1")), {INTERNAL}),
            "a name of control characters": (given(("x-\x1b\n", b"1")), {INTERNAL}),
            "no time": (given(("grpc-timeout", b"soon")), {INTERNAL}),
            "no time left": (given(("grpc-timeout", b"0n")), {0, DEADLINE}),  # whichever is seen first
            "time for ever": (given(("grpc-timeout", b"99999999H")), {0}),
            "another type": (given(content=b"text/html"), {0}),
            "an empty path": (given(path=b""), {CANCELLED, UNIMPLEMENTED}),
            "another verb": (given(method=self._random.choice((b"GET", b"PUT"))), {RESET_ONLY}),
            "no verb at all": (given(method=b"\xff"), {INTERNAL}),
        }
        for name in ("method", "scheme", "path", "authority", "te"):
            kinds[f"no {name}"] = given(**{name: None}), {RESET_ONLY}
        return {kind: (make, frozenset(answers)) for kind, (make, answers) in kinds.items()}

    def _broken(self) -> dict[str, tuple[Callable[[], bytes], frozenset[int]]]:
        """Return kinds that are no HTTP/2."""
        greeting, good = PREFACE + frame(SETTINGS, 0, 0, OURS), message(self._good)
        block = headers(self._path)
        settings = [(5, 0), (4, 2**32 - 1), (2, 7), (99, 99), (3, 0)]

        def after(*frames: bytes) -> Callable[[], bytes]:
            return lambda: greeting + b"".join(frames)

        kinds: dict[str, Callable[[], bytes]] = {
            "HTTP/1": lambda: b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            "random": lambda: self._random.randbytes(self._random.choice((1, 24, 300, 70000))),
            "random after the greeting": lambda: greeting + self._random.randbytes(200),
            "half a greeting": lambda: PREFACE[:10],
            "random frames": lambda: greeting + b"".join(self._frame() for _ in range(20)),
            "headers that go on alone": after(frame(MORE, END_HEADERS, 1, block)),
            "headers that never end": after(frame(HEADERS, 0, 1, block), frame(PING, 0, 0, bytes(8))),
            "headers without end": after(
                frame(HEADERS, 0, 1, block), frame(MORE, 0, 1, header("x-b", b"b" * 16000)) * 40
            ),
            "headers that are none": after(frame(HEADERS, END_HEADERS, 1, self._random.choice((b"\x80", b"\xff" * 9)))),
            "data of no call": after(frame(DATA, END_STREAM, 1, good)),
            "data of stream 0": after(frame(DATA, 0, 0, good)),
            "a stream of the server": after(frame(HEADERS, END_HEADERS, 2, block), frame(DATA, END_STREAM, 2, good)),
            "a push": after(frame(PUSH, END_HEADERS, 1, bytes(4) + block)),
            "a short ping": after(frame(PING, 0, 0, bytes(7))),
            "a flood of pings": after(frame(PING, 0, 0, bytes(8)) * 500),
            "a flood of settings": after(frame(SETTINGS, 0, 0, OURS) * 200),
            "a window of nothing": after(frame(WINDOW, 0, 0, bytes(4))),
            "a window too large": after(frame(WINDOW, 0, 0, b"\x7f\xff\xff\xff") * 3),
            "half settings": after(frame(SETTINGS, 0, 0, bytes(5))),
            "settings of nonsense": lambda: (
                greeting + frame(SETTINGS, 0, 0, struct.pack(">HI", *self._random.choice(settings)))
            ),
            "the largest frame": after(frame(DATA, 0, 1, b"", 2**24 - 1)),
            "more padding than data": after(
                frame(HEADERS, END_HEADERS, 1, block), frame(DATA, PADDED | END_STREAM, 1, b"\xff" + good)
            ),
            "calls that are taken back": lambda: (
                greeting
                + b"".join(
                    frame(HEADERS, END_HEADERS, stream, block) + frame(RESET, 0, stream, b"\0\0\0\x08")
                    for stream in range(1, 61, 2)
                )
            ),
            "a call after a farewell": after(frame(GOAWAY, 0, 0, bytes(8)), self._call(block, good)[len(greeting) :]),
        }
        return {kind: (make, EVERY_ANSWER) for kind, make in kinds.items()}

    def _frame(self) -> bytes:
        random = self._random
        payload = random.randbytes(random.choice((0, 4, 5, 8, 40)))
        length = None if random.random() < 0.9 else random.choice((0, 1, 16385, 2**24 - 1))
        return frame(
            random.randrange(12), random.randrange(256), random.choice((0, 1, 1, 2, 3, 2**31)), payload, length
        )

    def _scrambled(self) -> bytes:
        sent = bytearray(self._call(headers(self._path), message(self._good)))
        for _ in range(self._random.choice((1, 1, 2, 5))):
            at = self._random.randrange(len(sent))
            if self._random.random() < 0.8:
                sent[at] = self._random.randrange(256)
            else:
                del sent[at:]
                sent += b"\0"
        return bytes(sent)


EVERY_ANSWER = frozenset(
    {0, CANCELLED, INVALID, DEADLINE, EXHAUSTED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, 5, RESET_ONLY, CLOSED}
)
