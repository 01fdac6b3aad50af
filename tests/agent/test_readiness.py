"""Readiness: what the agent tells systemd's socket and a Greengrass nucleus, by the real SDK, and what it costs where it fails."""

import logging
import os
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from edge_agent import readiness
from support import nucleus as nuclei
from support import scripts
from support.nucleus import SOCKET_VARIABLE, UPDATE_STATE, Nucleus
from support.waiting import until

ATTEMPTS = 3
# Longer than any of these tests may take, so that one that waits for it is noticed.
PATIENCE = 60.0


@pytest.fixture(autouse=True)
def environment(monkeypatch, caplog):
    for name in ("NOTIFY_SOCKET", "SVCUID", SOCKET_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(readiness, "NUCLEUS_PATIENCE", PATIENCE)
    monkeypatch.setattr(readiness, "PAUSES", (0.01,) * (ATTEMPTS - 1))
    caplog.set_level(logging.INFO)


@pytest.fixture
def nucleus(folder, monkeypatch):
    with nuclei.running(folder / "ipc.socket") as one:
        for name, value in one.environment().items():
            monkeypatch.setenv(name, value)
        yield one


@pytest.fixture
def systemd(folder, monkeypatch):
    """What stands behind NOTIFY_SOCKET."""
    path = folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        yield listener


def tell() -> float:
    """Tell, and wait until there is nobody left to tell; return how long the caller had to wait."""
    began = time.monotonic()
    readiness.tell()
    took = time.monotonic() - began
    for thread in telling():
        thread.join(30)
    assert not telling()
    return took


def telling() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "readiness"]


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def threads() -> list[str]:
    """Return the names of all threads of this process, the SDK's own among them."""
    names = []
    for task in Path("/proc/self/task").iterdir():
        try:
            names.append((task / "comm").read_text().strip())
        except OSError:  # it has ended
            continue
    return names


def sdk_threads() -> list[str]:
    return [name for name in threads() if name.startswith(("Aws", "Evnt"))]


def test_nobody_is_told_where_nobody_asks(caplog, monkeypatch):
    assert tell() < 1
    monkeypatch.setenv("SVCUID", "alone")
    tell()
    monkeypatch.delenv("SVCUID")
    monkeypatch.setenv(SOCKET_VARIABLE, "/alone")
    tell()
    assert caplog.records == []


def full(sender: socket.socket, listener: socket.socket) -> bool:
    try:
        sender.sendto(b"x", listener.getsockname())
    except BlockingIOError:
        return True
    return False


class TestSystemd:
    def test_a_path(self, systemd, caplog):
        tell()
        assert systemd.recv(100) == b"READY=1"
        assert warnings(caplog) == []

    def test_an_abstract_socket(self, monkeypatch, caplog):
        name = f"edge-agent-test-{os.urandom(6).hex()}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(f"\0{name}")
            listener.settimeout(10)
            monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
            tell()
            assert listener.recv(100) == b"READY=1"
        assert warnings(caplog) == []

    @pytest.mark.parametrize(
        ("address", "why"),
        [
            ("/nonexistent/notify", "No such file or directory"),
            ("/" + 200 * "x", "too long"),
            ("@" + 200 * "x", "too long"),
            ("vsock:2:1234", "neither an absolute path nor an abstract socket"),
            ("notify", "neither an absolute path nor an abstract socket"),
        ],
    )
    def test_a_failure_is_one_warning(self, monkeypatch, caplog, address, why):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        tell()
        [told] = warnings(caplog)
        assert why in told
        assert "NOTIFY_SOCKET" in told

    def test_a_socket_that_nobody_reads_is_not_waited_for_long(self, systemd, monkeypatch, caplog):
        monkeypatch.setattr(readiness, "NOTIFY_PATIENCE", 0.1)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            until(lambda: full(sender, systemd), "there is no room left")
        assert tell() < 5
        [told] = warnings(caplog)
        assert "timed out" in told


class TestNucleus:
    def test_it_takes_the_state(self, nucleus, caplog):
        tell()
        assert nucleus.tokens == [nuclei.TOKEN]
        assert nucleus.states() == ["RUNNING"]
        assert [record.getMessage() for record in caplog.records] == [
            "Told the Greengrass nucleus that the agent is RUNNING."
        ]

    def test_lite_asks_for_both(self, nucleus, systemd):
        tell()
        assert systemd.recv(100) == b"READY=1"
        assert nucleus.states() == ["RUNNING"]

    @pytest.mark.parametrize(
        ("at_connect", "at_call", "calls", "why"),
        [
            pytest.param(nuclei.refuse, nuclei.succeed, 0, "access denied", id="the Java nucleus refuses the token"),
            pytest.param(nuclei.end, nuclei.succeed, 0, "socket is closed", id="nucleus lite refuses the token"),
            pytest.param(nuclei.accept, nuclei.fail, ATTEMPTS, "ServiceError: it cannot be done", id="service error"),
            pytest.param(nuclei.accept, nuclei.vanish, ATTEMPTS, "Closed", id="it ends in the middle"),
        ],
    )
    def test_a_failure_is_one_warning_after_some_attempts(self, nucleus, caplog, at_connect, at_call, calls, why):
        nucleus.at_connect = at_connect
        nucleus.operations[UPDATE_STATE] = at_call
        assert tell() < 1
        assert len(nucleus.tokens) == ATTEMPTS
        assert nucleus.states() == ["RUNNING"] * calls
        [told] = warnings(caplog)
        assert why in told
        assert "the Java nucleus lets the start of this component time out" in told

    def test_a_wrong_token(self, nucleus, caplog, monkeypatch):
        monkeypatch.setenv("SVCUID", "of another component")
        tell()
        assert nucleus.tokens == ["of another component"] * ATTEMPTS
        assert len(warnings(caplog)) == 1

    @pytest.mark.parametrize("where", ["at_connect", "at_call"])
    def test_one_that_does_not_answer_is_given_up(self, nucleus, caplog, monkeypatch, where):
        monkeypatch.setattr(readiness, "NUCLEUS_PATIENCE", 0.3)
        if where == "at_connect":
            nucleus.at_connect = nuclei.hang
        else:
            nucleus.operations[UPDATE_STATE] = nuclei.hang
        assert tell() < 1
        [told] = warnings(caplog)
        assert "no answer within 0.3 s" in told

    def test_one_that_comes_later_is_told(self, folder, caplog, monkeypatch):
        """As after a restart of the nucleus: the path is not there at first, then a dead socket is, then it serves."""
        monkeypatch.setattr(readiness, "PAUSES", (0.2,) * 100)
        late = Nucleus(folder / "ipc.socket")
        for name, value in late.environment().items():
            monkeypatch.setenv(name, value)
        seen = []
        tried = readiness._update_state
        monkeypatch.setattr(readiness, "_update_state", lambda *of: seen.append(tried(*of)) or seen[-1])
        readiness.tell()
        until(lambda: len(seen) == 2, "it was tried twice")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
            dead.bind(str(late.path))
        count = len(seen)
        until(lambda: len(seen) >= count + 2, "it was tried on a dead socket")
        late.path.unlink()
        late.start()
        until(late.states, "it was told")
        for thread in telling():
            thread.join(30)
        late.stop()
        assert all(seen[:-1])
        assert late.states() == ["RUNNING"]
        assert warnings(caplog) == []

    @pytest.mark.parametrize(
        ("at_connect", "at_call"),
        [
            (nuclei.accept, nuclei.succeed),
            (nuclei.refuse, nuclei.succeed),
            (nuclei.end, nuclei.succeed),
            (nuclei.hang, nuclei.succeed),
            (nuclei.accept, nuclei.fail),
            (nuclei.accept, nuclei.hang),
            (nuclei.accept, nuclei.vanish),
        ],
    )
    def test_no_connection_and_no_thread_is_left(self, nucleus, monkeypatch, at_connect, at_call):
        monkeypatch.setattr(readiness, "NUCLEUS_PATIENCE", 0.3)
        nucleus.at_connect = at_connect
        nucleus.operations[UPDATE_STATE] = at_call
        tell()
        assert nucleus.tokens
        until(lambda: nucleus.open_connections() == 0, "all connections are closed", 10)
        until(lambda: not sdk_threads(), "the threads of the SDK have ended", 10)

    def test_threads_of_the_sdk_are_noticed(self, nucleus):
        """Negative control: the SDK's own client leaves both where nobody closes it."""
        from awsiot.greengrasscoreipc import connect

        client = connect()
        assert sdk_threads()
        assert nucleus.open_connections() == 1
        client.close().result(10)
        del client
        until(lambda: not sdk_threads(), "the threads of the SDK have ended", 10)

    def test_no_thread_can_be_had(self, nucleus, caplog, monkeypatch):
        def refuse(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", refuse)
        readiness.tell()
        [told] = warnings(caplog)
        assert "can't start new thread" in told


def child(script: str, **env: str) -> subprocess.CompletedProcess:
    """Run a script that begins with `readiness` imported and log lines on stderr."""
    begin = "import logging, sys, threading, time\nfrom edge_agent import readiness\nlogging.basicConfig(level='INFO', format='%(message)s')\n"
    return scripts.run(begin, script, **env)


def test_without_the_sdk_one_warning_says_what_follows_and_what_to_install(nucleus):
    script = """
        sys.modules["awscrt"] = sys.modules["awsiot"] = None
        readiness.tell()
        for thread in threading.enumerate():
            if thread.name == "readiness":
                thread.join()
    """
    done = child(script, **nucleus.environment())
    assert done.returncode == 0
    [told] = done.stderr.splitlines()
    assert "the Java nucleus lets the start of this component time out" in told
    assert "'.[greengrass]'" in told
    assert nucleus.tokens == []


def test_nothing_heavy_is_imported_before_somebody_asks(nucleus):
    script = """
        readiness.tell()
        print([name for name in sys.modules if name.startswith(("aws", "_aws", "grpc", "numpy"))])
    """
    assert child(script, SVCUID="").stdout == "[]\n"
    # Negative control: asked, it does.
    script = """
        readiness.tell()
        while not any(name == "awscrt" for name in sys.modules):
            time.sleep(0.01)
    """
    assert child(script, **nucleus.environment()).returncode == 0


@pytest.mark.parametrize("after", [0.0, 0.03, 0.06, 0.1, 0.2])
def test_an_agent_that_ends_while_the_nucleus_hangs_ends_at_once(nucleus, after):
    nucleus.operations[UPDATE_STATE] = nuclei.hang
    began = time.monotonic()
    done = child(f"readiness.tell()\ntime.sleep({after})", **nucleus.environment())
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - began < 8  # which is less than the child gives one attempt
