"""The connection to a Greengrass nucleus: following its configuration by the real SDK, and what that costs where it fails."""

import logging
import subprocess
import threading
import time
from pathlib import Path

import pytest

from edge_agent import nucleus as ours
from edge_agent.nucleus import Follower, Nucleus
from support import nucleus as nuclei
from support import scripts
from support.nucleus import GET_CONFIGURATION, SOCKET_VARIABLE, SUBSCRIBE, UPDATES, Configuration
from support.waiting import until

# Longer than any of these tests may take, so that one that waits for it is noticed.
PATIENCE = 60.0
FOLLOWED = "The component's configuration is followed: what can change while the agent runs does."
AGAIN = FOLLOWED.replace("followed:", "followed again:")


@pytest.fixture(autouse=True)
def environment(monkeypatch, caplog):
    for name in ("SVCUID", SOCKET_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ours, "PATIENCE", PATIENCE)
    monkeypatch.setattr(ours, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(ours, "LONGEST_PAUSE", 0.05)
    monkeypatch.setattr(ours, "SETTLING", 0.05)
    caplog.set_level(logging.INFO)


@pytest.fixture
def nucleus(folder, monkeypatch):
    with nuclei.running(folder / "ipc.socket") as one:
        for name, value in one.environment().items():
            monkeypatch.setenv(name, value)
        yield one


@pytest.fixture
def configuration(nucleus):
    return Configuration(nucleus, LogLevel="info", QueueLimit="")


class Taken(list):
    """Each configuration that was taken, and a follower of it that is ended with the test."""

    def __init__(self, nucleus: nuclei.Nucleus) -> None:
        super().__init__()
        self.follower = Follower(Nucleus(str(nucleus.path), nuclei.TOKEN), self.append)

    def end(self) -> None:
        self.follower.close()
        if self.follower._thread.ident:
            self.follower._thread.join(30)
        assert not self.follower._thread.is_alive()


@pytest.fixture
def taken(nucleus):
    one = Taken(nucleus)
    yield one
    one.end()


def lines(caplog, level: int = logging.INFO) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= level]


def test_a_nucleus_that_the_environment_names(monkeypatch):
    assert Nucleus.of_environment() is None
    monkeypatch.setenv("SVCUID", "token")
    assert Nucleus.of_environment() is None
    monkeypatch.setenv(SOCKET_VARIABLE, "/socket")
    assert Nucleus.of_environment() == Nucleus("/socket", "token")
    monkeypatch.setenv("SVCUID", "")
    assert Nucleus.of_environment() is None


def test_the_token_is_in_no_message():
    assert "secret" not in repr(Nucleus("/socket", "secret"))


class TestFollowing:
    def test_what_there_is_and_each_change(self, nucleus, configuration, taken, caplog):
        taken.follower.start()
        until(lambda: taken, "it was read")
        assert taken == [{"LogLevel": "info", "QueueLimit": ""}]
        configuration.change(QueueLimit="3")
        until(lambda: taken[-1]["QueueLimit"] == "3", "the change was read")
        configuration.change(LogLevel=None)
        until(lambda: "LogLevel" not in taken[-1], "the removal was read")
        assert nucleus.tokens == [nuclei.TOKEN]
        assert lines(caplog) == [FOLLOWED]

    def test_it_subscribes_before_it_reads(self, nucleus, configuration, taken):
        """What changes between the two would never be noticed."""
        taken.follower.start()
        until(lambda: taken, "it was read")
        assert [call.operation for call in nucleus.calls] == [SUBSCRIBE, GET_CONFIGURATION]

    def test_a_change_while_it_reads_is_read(self, nucleus, configuration, taken):
        def read(call: nuclei.Call) -> None:
            configuration.read(call)
            if configuration.reads == 1:
                configuration.change(QueueLimit="7")

        nucleus.operations[GET_CONFIGURATION] = read
        taken.follower.start()
        until(lambda: taken and taken[-1]["QueueLimit"] == "7", "the change was read")

    def test_the_keys_of_a_deployment_are_read_together(self, configuration, taken, monkeypatch):
        monkeypatch.setattr(ours, "SETTLING", 0.5)
        taken.follower.start()
        until(lambda: taken, "it was read")
        configuration.change(**{f"Key{number}": str(number) for number in range(40)})
        until(lambda: len(taken[-1]) == 42, "all were read")
        assert configuration.reads <= 3

    def test_a_nucleus_that_forgets_to_tell(self, nucleus, configuration, taken, caplog, monkeypatch):
        monkeypatch.setattr(ours, "LONGEST_SILENCE", 0.1)
        nucleus.operations[SUBSCRIBE] = lambda call: call.send(f"{SUBSCRIBE}Response", {})
        taken.follower.start()
        until(lambda: taken, "it was read")
        configuration.change(QueueLimit="3")
        until(lambda: taken[-1]["QueueLimit"] == "3", "the change was read without being told")
        assert len(nucleus.tokens) == 1
        assert lines(caplog) == [FOLLOWED]

    def test_a_failure_to_take_it_ends_nothing(self, nucleus, configuration, caplog):
        seen = []

        def take(values: dict) -> None:
            seen.append(values)
            if len(seen) == 1:
                raise ZeroDivisionError

        follower = Follower(Nucleus(str(nucleus.path), nuclei.TOKEN), take)
        follower.start()
        until(lambda: seen, "it was read")
        configuration.change(QueueLimit="3")
        until(lambda: len(seen) == 2, "it was read again")
        follower.close()
        follower._thread.join(30)
        [told] = lines(caplog, logging.WARNING)
        assert "goes on as before" in told
        assert len(nucleus.tokens) == 1

    def test_no_thread_can_be_had(self, taken, caplog, monkeypatch):
        def refuse(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            taken.follower.start()
        taken.follower.close()
        [told] = lines(caplog, logging.WARNING)
        assert "can't start new thread" in told


REFUSALS = [
    pytest.param(nuclei.fail, "ServiceError: it cannot be done", id="service error"),
    pytest.param(nuclei.unauthorized, "UnauthorizedError: it is not yours", id="unauthorized"),
]
MALFORMED = [
    pytest.param(nuclei.answer({}), "no configuration", id="no value"),
    pytest.param(nuclei.answer({"value": ["LogLevel"]}), "no configuration", id="a list"),
    pytest.param(nuclei.answer({"value": "LogLevel"}), "no configuration", id="a text"),
    pytest.param(nuclei.answer(7), "DeserializeError", id="no object"),
    pytest.param(nuclei.answer({}, "aws.greengrass#ListComponentsResponse"), "Unexpected response type", id="another"),
    pytest.param(nuclei.answer({}, "nothing"), "Unexpected response type", id="no shape"),
    pytest.param(nuclei.babble, "", id="no message"),
    pytest.param(nuclei.vanish, "", id="it ends in the middle"),
]


class TestFailing:
    @pytest.mark.parametrize(("answers", "why"), REFUSALS)
    def test_a_subscription_that_is_refused_is_asked_for_again(
        self, nucleus, configuration, taken, caplog, answers, why
    ):
        nucleus.operations[SUBSCRIBE] = answers
        taken.follower.start()
        until(lambda: len(taken) >= 3, "it was read again and again")
        configuration.change(QueueLimit="5")
        until(lambda: taken[-1]["QueueLimit"] == "5", "the change was read without being told")
        [told] = lines(caplog)
        assert why in told
        nucleus.operations[SUBSCRIBE] = configuration.subscribe
        until(lambda: AGAIN in lines(caplog), "it is followed")
        assert len(lines(caplog)) == 2

    @pytest.mark.parametrize(("answers", "why"), [*REFUSALS, *MALFORMED])
    def test_a_reading_that_fails_is_one_line(self, nucleus, configuration, taken, caplog, answers, why):
        nucleus.operations[GET_CONFIGURATION] = answers
        taken.follower.start()
        until(lambda: len(nucleus.tokens) >= 4, "it was tried again and again")
        [told] = lines(caplog)
        assert why in told
        assert taken == []
        nucleus.operations[GET_CONFIGURATION] = configuration.read
        until(lambda: taken, "it was read")
        until(lambda: AGAIN in lines(caplog), "it is followed")
        assert len(lines(caplog)) == 2

    @pytest.mark.parametrize(
        "payload", [{}, {"configurationUpdateEvent": 7}, [], {"configurationUpdateEvent": {"keyPath": 7}}]
    )
    def test_an_event_that_makes_no_sense_misses_nothing(self, configuration, taken, payload):
        taken.follower.start()
        until(lambda: configuration.subscribed and taken, "it was read")
        configuration.values["QueueLimit"] = "9"
        configuration.subscribed[0].send(UPDATES, payload)
        until(lambda: taken[-1]["QueueLimit"] == "9", "the change was read")

    def test_an_event_of_another_shape(self, configuration, taken, caplog):
        taken.follower.start()
        until(lambda: configuration.subscribed and FOLLOWED in lines(caplog), "it is followed")
        configuration.subscribed[0].send("nothing", {})
        until(lambda: AGAIN in lines(caplog), "it is followed again")
        assert "Unexpected response stream event type" in lines(caplog)[1]

    def test_a_subscription_that_the_nucleus_ends_is_made_anew(self, configuration, taken, caplog):
        taken.follower.start()
        until(lambda: configuration.subscribed and FOLLOWED in lines(caplog), "it is followed")
        configuration.subscribed[0].send(UPDATES, {}, flags=nuclei.TERMINATES)
        until(lambda: len(configuration.subscribed) == 2, "it has subscribed again")
        configuration.change(QueueLimit="2")
        until(lambda: taken[-1]["QueueLimit"] == "2", "the change was read")

    @pytest.mark.parametrize("where", ["at_connect", SUBSCRIBE, GET_CONFIGURATION])
    def test_one_that_does_not_answer_is_given_up(self, nucleus, configuration, taken, caplog, monkeypatch, where):
        monkeypatch.setattr(ours, "PATIENCE", 0.3)
        if where == "at_connect":
            nucleus.at_connect = nuclei.hang
        else:
            nucleus.operations[where] = nuclei.hang
        taken.follower.start()
        until(lambda: len(nucleus.tokens) >= 3, "it was tried again")
        [told] = lines(caplog)
        assert "no answer within 0.3 s" in told

    @pytest.mark.parametrize("at_connect", [nuclei.refuse, nuclei.end])
    def test_one_that_refuses_the_token(self, nucleus, configuration, taken, caplog, at_connect):
        nucleus.at_connect = at_connect
        taken.follower.start()
        until(lambda: len(nucleus.tokens) >= 4, "it was tried again")
        assert len(lines(caplog)) == 1
        assert nucleus.calls == []

    def test_one_that_vanishes_and_comes_back(self, nucleus, configuration, taken, caplog):
        taken.follower.start()
        until(lambda: FOLLOWED in lines(caplog), "it is followed")
        nucleus.stop()
        until(lambda: len(lines(caplog)) == 2, "the loss was told")
        configuration.change(QueueLimit="4")
        time.sleep(0.3)  # several attempts in vain
        nucleus.start()
        until(lambda: taken[-1]["QueueLimit"] == "4", "the change made meanwhile was noticed")
        until(lambda: AGAIN in lines(caplog), "it is followed again")
        configuration.change(QueueLimit="6")
        until(lambda: taken[-1]["QueueLimit"] == "6", "the next one, too")
        assert len(lines(caplog)) == 3
        assert len(lines(caplog, logging.WARNING)) == 1

    def test_one_that_comes_and_goes_at_once_is_asked_less_and_less_often(
        self, nucleus, configuration, taken, monkeypatch
    ):
        monkeypatch.setattr(ours, "LONGEST_PAUSE", 60.0)

        def read(call: nuclei.Call) -> None:
            configuration.read(call)
            call.connection.end()

        nucleus.operations[GET_CONFIGURATION] = read
        began = time.monotonic()
        taken.follower.start()
        until(lambda: len(nucleus.tokens) >= 6, "it was tried six times")
        # The pauses before the second to the sixth: 1, 2, 4, 8 and 16 times the first.
        assert time.monotonic() - began >= 31 * 0.01


def held() -> tuple[int, int]:
    """Return how many threads, the SDK's own among them, and how many open files this process has."""
    return len([*Path("/proc/self/task").iterdir()]), len([*Path("/proc/self/fd").iterdir()])


def reconnect(nucleus: nuclei.Nucleus, configuration: Configuration, times: int) -> None:
    """Follow a nucleus that ends each connection, so many times."""
    before = len(nucleus.tokens)
    taken = Taken(nucleus)
    taken.follower.start()
    for number in range(times):
        until(lambda count=number: len(configuration.subscribed) > count and len(taken) > count, "it is followed")
        configuration.subscribed[number].connection.end()
    taken.end()
    configuration.subscribed.clear()
    assert len(nucleus.tokens) - before >= times
    until(lambda: nucleus.open_connections() == 0, "no connection is open", 10)


class TestLeaks:
    def test_fifty_reconnects_leave_nothing(self, nucleus, configuration):
        reconnect(nucleus, configuration, 2)  # the SDK keeps a file of its own open from its first use on
        before = held()
        reconnect(nucleus, configuration, 50)
        until(lambda: all(now <= then for now, then in zip(held(), before, strict=True)), f"{before} are left", 10)

    def test_what_is_left_would_be_noticed(self, nucleus, configuration, monkeypatch):
        """Negative control: links that somebody holds on to."""
        kept = []
        closed = ours.Link.close

        def keep(link: ours.Link) -> None:
            kept.append(link)
            closed(link)

        before = held()
        monkeypatch.setattr(ours.Link, "close", keep)
        reconnect(nucleus, configuration, 10)
        time.sleep(1)
        assert all(now >= then + 10 for now, then in zip(held(), before, strict=True))


def child(script: str, **env: str) -> subprocess.CompletedProcess:
    """Run a script that begins with `follower`, which prints what it takes, and log lines on stderr."""
    begin = (
        "import logging, sys, time\n"
        "from edge_agent.nucleus import Follower, Nucleus\n"
        "logging.basicConfig(level='INFO', format='%(message)s')\n"
        "follower = Follower(Nucleus.of_environment(), print)\n"
    )
    return scripts.run(begin, script, **env)


def test_without_the_sdk_one_line_says_what_follows_and_what_to_install(nucleus):
    script = """
        sys.modules["awscrt"] = sys.modules["awsiot"] = None
        follower.start()
        follower._thread.join()
    """
    done = child(script, **nucleus.environment())
    assert done.returncode == 0
    [told] = done.stderr.splitlines()
    assert "take effect when the component starts again" in told
    assert "'.[greengrass]'" in told
    assert nucleus.tokens == []


@pytest.mark.parametrize("how", ["follower.close()", ""], ids=["closed", "left alone"])
@pytest.mark.parametrize("where", ["at_connect", SUBSCRIBE, GET_CONFIGURATION, "nowhere"])
@pytest.mark.parametrize("after", [0.0, 0.1, 0.5])
def test_an_agent_ends_at_once_while_the_nucleus_hangs(nucleus, configuration, how, where, after):
    if where == "at_connect":
        nucleus.at_connect = nuclei.hang
    elif where != "nowhere":
        nucleus.operations[where] = nuclei.hang
    began = time.monotonic()
    done = child(f"follower.start()\ntime.sleep({after})\n{how}", **nucleus.environment())
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert time.monotonic() - began < 8  # which is less than the child gives one step
