"""The watchdog: systemd is told after each answered call and after no other, and nothing where it does not ask."""

import os
import socket
import threading
import time
from concurrent import futures

import grpc
import pytest

from edge_agent import watchdog
from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent._proto.edge_agent_pb2_grpc import SERVICE
from edge_agent.watchdog import Watchdog
from support.greengrass_notify import NotifySocket
from support.waiting import until

LIVES = "WATCHDOG=1"
LIMIT = 0.4


class Front:
    """A server of ListModels, whose answers can be held back or refused."""

    def __init__(self, path) -> None:
        self.path = path
        self.calls = 0
        self.code = None
        self.free = threading.Event()
        self.free.set()
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        method = grpc.unary_unary_rpc_method_handler(
            self._list,
            request_deserializer=pb2.ListModelsRequest.FromString,
            response_serializer=pb2.ListModelsResponse.SerializeToString,
        )
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"ListModels": method}),))
        self._server.add_insecure_port(f"unix:{path}")
        self._server.start()

    def _list(self, request, context):
        self.calls += 1
        self.free.wait(30)
        if self.code:
            context.abort(self.code, "as the test wants it")
        return pb2.ListModelsResponse()

    def close(self) -> None:
        self.free.set()
        self._server.stop(None).wait()


@pytest.fixture
def front(folder):
    one = Front(folder / "s")
    yield one
    one.close()


class Told(list[str]):
    """What systemd is told."""

    def __init__(self, path) -> None:
        self.systemd = NotifySocket(path, self.append)

    def begin(self) -> None:
        """Forget what was told until now, also what is on its way."""
        self.systemd.flush()
        self.clear()


@pytest.fixture
def told(folder, monkeypatch):
    lines = Told(folder / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(lines.systemd.path))
    yield lines
    lines.systemd.close()


@pytest.fixture
def watching(front, told, caplog):
    caplog.set_level("INFO")
    one = Watchdog(front.path, LIMIT)
    one.start()
    yield one
    one.close()


def silent(told: Told) -> bool:
    """Return whether nothing is told for longer than systemd would wait."""
    told.begin()
    time.sleep(2 * LIMIT)
    return not told


class Pauses(threading.Event):
    """How long the watchdog would wait, whatever the machine makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def wait(self, timeout=None) -> bool:
        self.seconds.append(timeout)
        return super().wait(timeout)


def test_each_sign_of_life_comes_after_an_answered_call(front, told, watching):
    until(lambda: len(told) >= 4, "systemd is told again and again")
    watching.close()
    assert set(told) == {LIVES}
    assert front.calls >= len(told)


def test_it_comes_in_time(front, told):
    """At half of the limit, so that one late answer does no harm."""
    one = Watchdog(front.path, LIMIT)
    one._ended = pauses = Pauses()
    one.start()
    until(lambda: told, "systemd is told")
    began, before = time.monotonic(), len(told)
    until(lambda: len(told) >= before + 4, "systemd is told again and again")
    assert time.monotonic() - began >= 3 * LIMIT * watchdog.EACH
    assert max(pauses.seconds) <= LIMIT * watchdog.EACH < LIMIT / 1.5
    one.close()


def test_calls_that_hang_are_no_sign_of_life(front, told, watching, caplog):
    until(lambda: told, "systemd is told")
    front.free.clear()
    until(lambda: "did not answer on its own socket" in caplog.text, "the log says so")
    assert silent(told)
    assert "DEADLINE_EXCEEDED" in caplog.text
    front.free.set()
    until(lambda: told, "systemd is told again")
    until(lambda: "answers on its own socket again" in caplog.text, "the log says so")


def test_calls_that_fail_are_no_sign_of_life(front, told, watching):
    until(lambda: told, "systemd is told")
    front.code, before = grpc.StatusCode.INTERNAL, front.calls
    until(lambda: front.calls > before + 1, "what was asked before is answered")
    assert silent(told)
    until(lambda: front.calls > before + 4, "it is tried again and again")
    assert silent(told)


def test_a_socket_that_is_gone_is_noticed(front, told, watching, caplog):
    """A connection that was there before would not: each call has its own."""
    until(lambda: told, "systemd is told")
    front.path.unlink()
    until(lambda: "did not answer on its own socket" in caplog.text, "the log says so")
    assert silent(told)


def test_a_socket_on_which_nobody_accepts_is_noticed(folder, told):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "deaf"))
        listener.listen()
        one = Watchdog(folder / "deaf", LIMIT)
        one.start()
        assert silent(told)
        one.close()


def test_nothing_is_told_any_more_when_it_is_closed(front, told, watching):
    until(lambda: told, "systemd is told")
    watching.close()
    assert silent(told)


def test_a_systemd_that_is_gone_is_said_once_in_a_while(front, folder, monkeypatch, caplog):
    monkeypatch.setenv("NOTIFY_SOCKET", str(folder / "nobody"))
    one = Watchdog(front.path, LIMIT)
    one.start()
    until(lambda: "systemd could not be told" in caplog.text, "the log says so")
    one.close()


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}, 0.5),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid() + 1)}, None),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": ""}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "NOTIFY_SOCKET": ""}, None),
        ({"WATCHDOG_USEC": "30000000", "NOTIFY_SOCKET": "notify"}, None),
        ({"WATCHDOG_USEC": ""}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "30s"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "٣٠٠٠٠"}, None),
        ({"WATCHDOG_USEC": str(2**64 - 1)}, watchdog.LONGEST),
        ({"WATCHDOG_USEC": "9" * 400}, None),
        ({"WATCHDOG_USEC": "9" * 5000}, None),
    ],
)
def test_it_is_on_where_systemd_asks_this_process(monkeypatch, variables, seconds):
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"NOTIFY_SOCKET": "@notify", **variables}.items():
        monkeypatch.setenv(name, value)
    assert watchdog.limit() == seconds


def test_a_limit_that_never_comes_ends_no_thread(front, told):
    one = Watchdog(front.path, watchdog.LONGEST)
    one.start()
    until(lambda: told, "systemd is told")
    one._thread.join(0.2)
    assert one._thread.is_alive()
    one.close()


@pytest.mark.parametrize("failed", ["", "as the test wants it"])
def test_calls_have_pauses_between_them_however_little_systemd_waits(front, told, monkeypatch, failed):
    calls = []
    monkeypatch.setattr(Watchdog, "_call", lambda _: calls.append(1) or failed)
    one = Watchdog(front.path, 1e-6)
    began = time.monotonic()
    one.start()
    until(lambda: len(calls) >= 10, "there are calls")
    one.close()
    assert len(calls) - 1 <= (time.monotonic() - began) / watchdog.LEAST_PAUSE


def test_nothing_happens_where_nobody_asks(front, monkeypatch):
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    before = threading.active_count()
    with watchdog.watched(front.path):
        assert threading.active_count() == before
    assert front.calls == 0
