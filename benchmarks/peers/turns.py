"""A client that calls when it is told to: the far end of `Client` in processes.py."""

import http
import http.client
import json
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any


def take(ways: Mapping[str, Callable[[], float]]) -> None:
    """Say which ways there are; then, for each line [way, calls] of stdin, call so often and answer in one line.

    A way is a function that makes one call and returns the score. All lines are JSON. The answer has the milliseconds
    of each call and the last score; or the error, whatever it was.
    """
    print(json.dumps(list(ways)), flush=True)
    for line in sys.stdin:
        way, calls = json.loads(line)
        try:
            answer = measure(ways[way], calls)
        except Exception as error:  # noqa: BLE001  (each client library raises its own)
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


def measure(call: Callable[[], float], calls: int) -> dict[str, object]:
    """Call one after the other; return how long each took, in milliseconds, and the last score."""
    times, score = [], 0.0
    for _ in range(calls):
        begin = time.perf_counter()
        score = call()
        times.append(1000 * (time.perf_counter() - begin))
    return {"times": times, "score": score}


class Poster:
    """An HTTP connection that is kept, and opened again when the server has closed it meanwhile."""

    def __init__(self, port: int) -> None:
        """Connect to a port of 127.0.0.1 when it is needed."""
        self._connection = http.client.HTTPConnection("127.0.0.1", port)

    def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> Any:
        """Return what the server answers, which is JSON; raise ValueError with its text when it refuses."""
        try:
            answer = self._send(path, body, headers)
        except (BrokenPipeError, ConnectionResetError, http.client.RemoteDisconnected):
            self._connection.close()
            answer = self._send(path, body, headers)
        text = answer.read()
        if answer.status != http.HTTPStatus.OK:
            raise ValueError(f"{answer.status} {text!r}")
        return json.loads(text)

    def _send(self, path: str, body: bytes, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        self._connection.request("POST", path, body, headers)
        return self._connection.getresponse()


def upload(field: str, content: bytes) -> tuple[bytes, dict[str, str]]:
    """Return the body of a form that uploads `content` as a file, and its headers (RFC 7578)."""
    boundary = uuid.uuid4().hex
    disposition = f'Content-Disposition: form-data; name="{field}"; filename="{field}"'
    head = f"--{boundary}\r\n{disposition}\r\nContent-Type: application/octet-stream\r\n\r\n"
    body = b"".join((head.encode(), content, f"\r\n--{boundary}--\r\n".encode()))
    return body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}
