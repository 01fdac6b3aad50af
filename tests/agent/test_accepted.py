"""What the end of the agent waits for: that accepted calls are answered, and the answers read."""

import socket
import threading
import time

import pytest

from edge_agent.accepted import AcceptedCalls
from edge_agent.errors import CannotKeepUp
from edge_agent.unix_socket import ServedSocket


class Context:
    """A call as gRPC shows it; `gone` is its caller before it is taken up."""

    def __init__(self, *, gone: bool = False) -> None:
        self.gone = gone
        self.callbacks = []

    def add_callback(self, callback) -> bool:
        if not self.gone:
            self.callbacks.append(callback)
        return not self.gone

    def end(self) -> None:
        for callback in self.callbacks:
            callback()


class TestAcceptedCalls:
    def test_answers_that_nobody_reads_are_not_made_without_bound(self):
        calls = AcceptedCalls(2)
        contexts = [Context() for _ in range(3)]
        for context in contexts:
            calls.check_read()
            assert calls.accept(context)
        with pytest.raises(CannotKeepUp, match="More than 2 calls are not done"):
            calls.check_read()
        contexts[0].end()
        calls.check_read()

    def test_every_accepted_call_is_waited_for_and_no_other_is_accepted(self):
        calls = AcceptedCalls(2)
        first, second = Context(), Context()
        assert calls.accept(first)
        assert calls.accept(second)
        calls.refuse()
        assert not calls.accept(Context())
        first.end()
        assert not calls.wait(0.0)
        threading.Timer(0.05, second.end).start()
        assert calls.wait(30.0)

    def test_who_is_gone_is_not_waited_for(self):
        calls = AcceptedCalls(2)
        assert calls.accept(Context(gone=True))
        assert calls.wait(0.0)


class TestWaitUntilRead:
    @pytest.fixture
    def connection(self, tmp_path):
        served = ServedSocket(tmp_path / "agent.sock", 0o660, "")
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            served.bind(lambda address: server.bind(address.removeprefix("unix:")))
            server.listen()
            client.connect(server.getsockname())
            ours, _ = server.accept()
            with ours:
                yield served, ours, client

    def test_what_is_not_read_is_waited_for_as_long_as_it_may_be(self, connection):
        served, ours, _ = connection
        ours.sendall(b"answer")
        give_up = time.monotonic() + 0.1
        served.wait_until_read(give_up)
        assert time.monotonic() >= give_up

    def test_what_is_read_is_not(self, connection):
        served, ours, client = connection
        ours.sendall(b"answer")
        threading.Timer(0.05, client.recv, [16]).start()
        give_up = time.monotonic() + 30
        served.wait_until_read(give_up)
        assert time.monotonic() < give_up

    def test_other_connections_do_not_matter(self, connection):
        served, _, _ = connection
        one, other = socket.socketpair()
        with one, other:
            one.sendall(b"to somebody else")
            give_up = time.monotonic() + 30
            served.wait_until_read(give_up)
            assert time.monotonic() < give_up
