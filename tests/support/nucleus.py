"""A Greengrass nucleus as far as its IPC goes: the event stream protocol on a Unix socket, spoken to the real SDK.

What it answers is set by tests: `at_connect` says what becomes of a connection, and `operations` holds one function for each
operation, which is called with the `Call` and does with it what it wants to.
"""

import json
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

TOKEN = "token-of-the-component"
SOCKET_VARIABLE = "AWS_GG_NUCLEUS_DOMAIN_SOCKET_FILEPATH_FOR_COMPONENT"
UPDATE_STATE = "aws.greengrass#UpdateState"
GET_CONFIGURATION = "aws.greengrass#GetConfiguration"
SUBSCRIBE = "aws.greengrass#SubscribeToConfigurationUpdate"
UPDATES = "aws.greengrass#ConfigurationUpdateEvents"
COMPONENT = "aws.iot.lookoutvision.EdgeAgent"

PRELUDE = struct.Struct(">III")
CHECKSUM = struct.Struct(">I")
FRAME = PRELUDE.size + CHECKSUM.size
LARGEST = 16 << 20
# The types of header values; those of a fixed size, with their formats.
INT32, BYTES, TEXT = 4, 6, 7
FIXED = {0: "", 1: "", 2: ">b", 3: ">h", INT32: ">i", 5: ">q", 8: ">q", 9: ">16s"}

ACCEPTED, TERMINATES = 1, 2
VERSION = "0.1.0"


class Type(IntEnum):
    """What a message is."""

    APPLICATION_MESSAGE = 0
    APPLICATION_ERROR = 1
    PING = 2
    PING_RESPONSE = 3
    CONNECT = 4
    CONNECT_ACK = 5


@dataclass
class Message:
    """One message of the event stream protocol."""

    type: int
    flags: int = 0
    stream: int = 0
    headers: dict[str, Any] = field(default_factory=dict)
    payload: bytes = b""

    def encoded(self) -> bytes:
        numbers = {":message-type": self.type, ":message-flags": self.flags, ":stream-id": self.stream}
        headers = b"".join(_header(name, value) for name, value in {**numbers, **self.headers}.items())
        sizes = struct.pack(">II", FRAME + len(headers) + len(self.payload), len(headers))
        head = sizes + CHECKSUM.pack(zlib.crc32(sizes)) + headers + self.payload
        return head + CHECKSUM.pack(zlib.crc32(head))

    @classmethod
    def read(cls, read: Callable[[int], bytes]) -> "Message":
        """Return the next message; `read` returns so many bytes. Fails where the sender breaks the protocol."""
        prelude = read(PRELUDE.size)
        size, headers_size, checksum = PRELUDE.unpack(prelude)
        assert checksum == zlib.crc32(prelude[:8]), "the checksum of a prelude is wrong"
        assert FRAME + headers_size <= size <= LARGEST, "the sizes in a prelude make no sense"
        rest = read(size - PRELUDE.size)
        body, checksum = rest[: -CHECKSUM.size], CHECKSUM.unpack(rest[-CHECKSUM.size :])[0]
        assert checksum == zlib.crc32(prelude + body), "the checksum of a message is wrong"
        headers = _headers(body[:headers_size])
        numbers = [headers.pop(name) for name in (":message-type", ":message-flags", ":stream-id")]
        return cls(*numbers, headers, body[headers_size:])


def _header(name: str, value: str | int) -> bytes:
    data = name.encode()
    begin = struct.pack(">B", len(data)) + data
    if isinstance(value, int):
        return begin + struct.pack(">Bi", INT32, value)
    text = value.encode()
    return begin + struct.pack(">BH", TEXT, len(text)) + text


def _headers(data: bytes) -> dict[str, Any]:
    headers: dict[str, Any] = {}
    at = 0
    while at < len(data):
        length = data[at]
        name = data[at + 1 : at + 1 + length].decode()
        kind = data[at + 1 + length]
        at += 2 + length
        if kind in FIXED:
            size = struct.calcsize(FIXED[kind])
            value = struct.unpack(FIXED[kind], data[at : at + size])[0] if size else kind == 0
        else:
            assert kind in {BYTES, TEXT}, f"the header {name} is of no type: {kind}"
            size = 2 + struct.unpack(">H", data[at : at + 2])[0]
            value = data[at + 2 : at + size] if kind == BYTES else data[at + 2 : at + size].decode()
        assert name not in headers, f"the header {name} is there twice"
        headers[name] = value
        at += size
    return headers


class Connection:
    """One client's connection."""

    def __init__(self, ours: socket.socket) -> None:
        self._socket = ours
        self._sending = threading.Lock()

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self._socket.recv(size - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def send(self, message: Message) -> None:
        """Send a message, unless the client is gone."""
        self.write(message.encoded())

    def write(self, data: bytes) -> None:
        """Send bytes, be they a message or not, unless the client is gone."""
        with self._sending, suppress(OSError):
            self._socket.sendall(data)

    def end(self) -> None:
        """End the connection, so that the client sees it, and so that our thread of it ends."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True)
class Call:
    """An operation that a client asked for, and the ways of answering."""

    operation: str
    request: Mapping[str, Any]
    connection: Connection
    stream: int

    def send(self, shape: str, payload: Mapping[str, Any], *, flags: int = 0) -> None:
        """Send a message of the operation: its response, or after that an event of its stream."""
        self._send(Type.APPLICATION_MESSAGE, shape, payload, flags)

    def reply(self, payload: Mapping[str, Any] | None = None) -> None:
        """Answer, and end the stream."""
        self.send(f"{self.operation}Response", payload or {}, flags=TERMINATES)

    def fail(self, shape: str = "aws.greengrass#ServiceError", message: str = "it cannot be done") -> None:
        """Answer with an error, and end the stream."""
        self._send(Type.APPLICATION_ERROR, shape, {"message": message}, TERMINATES)

    def _send(self, kind: Type, shape: str, payload: Mapping[str, Any], flags: int) -> None:
        headers = {":content-type": "application/json", "service-model-type": shape}
        self.connection.send(Message(kind, flags, self.stream, headers, json.dumps(payload).encode()))


# What becomes of a connection.


def accept(connection: Connection) -> None:
    connection.send(Message(Type.CONNECT_ACK, ACCEPTED))


def refuse(connection: Connection) -> None:
    """Do as the Java nucleus does with a token that it does not know."""
    connection.send(Message(Type.CONNECT_ACK, 0))


def end(connection: Connection) -> None:
    """Do as nucleus lite does with a token that it does not know."""
    connection.end()


def hang(_: Connection | Call) -> None:
    """Never answer."""


# What becomes of an operation.


def succeed(call: Call) -> None:
    call.reply()


def fail(call: Call) -> None:
    call.fail()


def unauthorized(call: Call) -> None:
    call.fail("aws.greengrass#UnauthorizedError", "it is not yours")


def vanish(call: Call) -> None:
    """End the connection in the middle of the call."""
    call.connection.end()


def babble(call: Call) -> None:
    """Answer with what is no message."""
    call.connection.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def answer(payload: Any, shape: str = "") -> Callable[[Call], None]:
    """Return what answers with a payload, be it a right one or not."""
    return lambda call: call.send(shape or f"{call.operation}Response", payload, flags=TERMINATES)


class Nucleus:
    """The server. It notes the tokens that clients came with, and their calls, before it answers them."""

    def __init__(self, path: Path, token: str = TOKEN) -> None:
        self.path = path
        self.token = token
        self.at_connect: Callable[[Connection], None] = accept
        self.operations: dict[str, Callable[[Call], None]] = {UPDATE_STATE: succeed}
        self.tokens: list[str] = []
        self.calls: list[Call] = []
        self._connections: list[Connection] = []
        self._threads: list[threading.Thread] = []

    def start(self) -> "Nucleus":
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(self.path))
        self.path.chmod(0o666)
        self._socket.listen()
        self._run(self._accept)
        return self

    def stop(self) -> None:
        """End all connections and free the path."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        while self._threads:
            for connection in self._connections:
                connection.end()
            thread = self._threads.pop(0)
            thread.join(30)
            assert not thread.is_alive()
        self._socket.close()
        self.path.unlink(missing_ok=True)

    def environment(self) -> dict[str, str]:
        """Return what the nucleus puts into a component's environment."""
        return {"SVCUID": self.token, SOCKET_VARIABLE: str(self.path)}

    def states(self) -> list[str]:
        """Return the states that components said they are in."""
        return [call.request["state"] for call in self.calls if call.operation == UPDATE_STATE]

    def open_connections(self) -> int:
        """Return how many clients have not ended their connections."""
        return sum(thread.is_alive() for thread in self._threads) - 1

    def _run(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                ours, _ = self._socket.accept()
            except OSError:  # stopped
                return
            connection = Connection(ours)
            self._connections.append(connection)
            self._run(self._serve, connection, ours)

    def _serve(self, connection: Connection, ours: socket.socket) -> None:
        with ours, suppress(EOFError, ConnectionError):
            first = Message.read(connection.read)
            assert first.type == Type.CONNECT, "the first message is to be a connect"
            assert (first.flags, first.stream) == (0, 0)
            assert first.headers[":version"] == VERSION
            token = json.loads(first.payload)["authToken"]
            self.tokens.append(token)
            (self.at_connect if token == self.token else refuse)(connection)
            while True:
                self._answer(connection, Message.read(connection.read))

    def _answer(self, connection: Connection, message: Message) -> None:
        if message.type == Type.PING:
            connection.send(Message(Type.PING_RESPONSE, payload=message.payload))
            return
        assert message.type == Type.APPLICATION_MESSAGE
        assert message.stream > 0
        if message.flags & TERMINATES:  # the client needs a stream no more
            return
        operation = message.headers["operation"]
        assert message.headers["service-model-type"] == f"{operation}Request"
        call = Call(operation, json.loads(message.payload), connection, message.stream)
        self.calls.append(call)
        self.operations.get(operation, fail)(call)


class Configuration:
    """The configuration of a component as a nucleus keeps it: clients read it, and are told which keys have changed."""

    def __init__(self, nucleus: Nucleus, **values: Any) -> None:
        self.values: dict[str, Any] = values
        self.reads = 0
        self.subscribed: list[Call] = []
        nucleus.operations.update({GET_CONFIGURATION: self.read, SUBSCRIBE: self.subscribe})

    def change(self, **values: Any) -> None:
        """Change some keys, one after the other; one that is None is removed."""
        for key, value in values.items():
            self.values[key] = value
            if value is None:
                del self.values[key]
            for call in [*self.subscribed]:
                call.send(UPDATES, {"configurationUpdateEvent": {"componentName": COMPONENT, "keyPath": [key]}})

    def read(self, call: Call) -> None:
        self.reads += 1
        found: Any = self.values
        for key in call.request.get("keyPath", ()):
            if not isinstance(found, dict) or key not in found:
                call.fail("aws.greengrass#ResourceNotFoundError", "Key not found")
                return
            found = found[key]
        value = found if isinstance(found, dict) else {call.request["keyPath"][-1]: found}
        call.reply({"componentName": COMPONENT, "value": value})

    def subscribe(self, call: Call) -> None:
        self.subscribed.append(call)
        call.send(f"{SUBSCRIBE}Response", {})


@contextmanager
def running(path: Path) -> Iterator[Nucleus]:
    """Yield a nucleus that listens on `path`, and stop it afterwards."""
    nucleus = Nucleus(path).start()
    try:
        yield nucleus
    finally:
        nucleus.stop()
