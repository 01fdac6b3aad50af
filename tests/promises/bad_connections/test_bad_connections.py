"""U4: garbage, conversations that stop half-way and idle connections cost other callers nothing, and leave nothing.

1. An agent's front process is looked at when every kind of bad connection has been made already: the files that it has
   open, and its memory.
2. Connections are made at random. Some send garbage: bytes, words of other protocols, frames without sense; each is
   closed by the agent. Others stop half-way and stay open for a while: before or in the opening of HTTP/2, in a frame, in
   a call, in a message, or without taking the answer. Each is taken up by the agent, which greets it or closes it.
3. Then idle ones are opened, all of which are open at the same time, as the agent's open files show.
4. All the while DescribeModel is called, on a channel that is kept and on new ones, and is answered in time.
5. When all are closed, the front process has as many files open as before, and its memory is what it was but for
   KEPT bytes.

Half-open calls hold a thread each, of which there are `max_calls` + 16: that many at once are more than this promises.
"""

import os
import resource
import signal
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from random import Random

import grpc
import pytest

from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent._proto.edge_agent_pb2_grpc import EdgeAgentStub
from promises.fuzzed_wire.frames import DATA, END_HEADERS, HEADERS, PREFACE, SETTINGS, frame, headers, message
from support import packages
from support.agent import Agent, serving
from support.calls import OK, outcome
from support.processes import hold
from support.promises import Promise
from support.sabotage import sabotaged
from support.waiting import PATIENCE, until

BAD, IDLE = 10_000, 1_000
FEW_BAD, FEW_IDLE = 300, 100
PROMISE = Promise(
    id="U4",
    text="garbage, half-open and idle connections: DescribeModel goes on answering; memory and open files come back",
    case="a connection that the agent took up: it sent its greeting or closed it, as the kernel told the client",
    full=BAD + IDLE,
    fast=FEW_BAD + FEW_IDLE,
)
BOARD = "board"
ASKED = pb2.DescribeModelRequest(model_component=BOARD)
MIB = 1 << 20
# What is half-way at a time; of those that are half-open calls, fewer than there are threads.
HELD = 40
# Measured: at most 0.4 s, on two busy cores.
LIVENESS = 5.0
# Measured: less than before, to 0.1 MiB more, after eleven thousand connections.
KEPT = 4 * MIB
LEAST_CALLS = 20
# Those of DescribeModel's callers, who come and go.
FEW_FILES = 4
# Starts an agent that may open fewer files than it needs for the connections, until it allows itself more.
FEW_ALLOWED = ["/bin/sh", "-c", f'ulimit -S -n {FEW_IDLE} && exec "$0" "$@"']

OPENING = PREFACE + frame(SETTINGS, 0, 0, b"")
CALL = frame(HEADERS, END_HEADERS, 1, headers(b"/AWS.LookoutVision.EdgeAgent/DescribeModel"))
LETS_NOTHING_THROUGH = PREFACE + frame(SETTINGS, 0, 0, b"\0\4\0\0\0\0")
WHOLE_CALL = CALL + frame(DATA, 1, 1, message(ASKED.SerializeToString()))


def garbage(random: Random) -> tuple[str, bytes]:
    """Return what the agent must close the connection for, at the latest when no more comes."""
    noise = random.randbytes(random.choice([1, 9, 24, 100, 3000, 70_000]))
    kinds = {
        "noise": noise,
        "HTTP/1": b"GET / HTTP/1.1\r\nHost: agent\r\n\r\n",
        "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + noise,
        "noise behind the opening": OPENING + noise,
        "noise for headers": OPENING + frame(HEADERS, END_HEADERS, 1, noise[:200]),
        "a frame that is too large": OPENING + frame(DATA, 0, 1, noise, length=(1 << 24) - 1),
        "noise for a message": OPENING + CALL + frame(DATA, 1, 1, noise[:200]),
    }
    return random.choice(list(kinds.items()))


def half(random: Random) -> tuple[str, bytes]:
    """Return the first half of what would be in order."""
    whole = OPENING + WHOLE_CALL
    kinds = {
        "nothing": b"",
        "half an opening": PREFACE[: random.randrange(1, len(PREFACE))],
        "an opening": OPENING,
        "headers that go on": OPENING + frame(HEADERS, 0, 1, headers(b"/AWS.LookoutVision.EdgeAgent/DescribeModel")),
        "a call without a message": OPENING + CALL,
        "half a message": OPENING + CALL + frame(DATA, 0, 1, message(b"\n", length=1_000_000)),
        "cut off somewhere": whole[: random.randrange(len(OPENING), len(whole))],
        "an answer that is not taken": LETS_NOTHING_THROUGH + WHOLE_CALL,
    }
    return random.choice(list(kinds.items()))


def connect(path: Path, data: bytes, patience: float = PATIENCE) -> socket.socket:
    """Return a connection on which `data` was sent; closed by the agent, maybe, before all was."""
    one = socket.socket(socket.AF_UNIX)
    one.settimeout(patience)
    one.connect(str(path))
    with suppress(BrokenPipeError, ConnectionResetError):
        one.sendall(data)
    return one


def is_taken_up(one: socket.socket) -> bool:
    """Wait until the agent has sent its greeting, or closed the connection; fail if it does neither."""
    try:
        one.recv(1 << 16)
    except ConnectionResetError:
        pass
    except TimeoutError:
        raise AssertionError("the agent neither greets nor closes") from None
    return True


def is_closed(one: socket.socket) -> None:
    """Say no more, and wait until the agent has closed the connection; fail if it does not."""
    try:
        one.shutdown(socket.SHUT_WR)
        while one.recv(1 << 16):
            pass
    except (BrokenPipeError, ConnectionResetError):
        pass
    except TimeoutError:
        raise AssertionError("the agent does not close") from None


class Describing(threading.Thread):
    """Calls DescribeModel without a pause, every tenth time on a new channel."""

    def __init__(self, path: Path, liveness: float = LIVENESS) -> None:
        super().__init__(name="describing", daemon=True)
        self.answered = 0
        self.slowest = 0.0
        self.failed: Counter[tuple[int, str]] = Counter()
        self._target = f"unix://{path}"
        self._liveness = liveness
        self._ended = threading.Event()

    def run(self) -> None:
        with self._channel() as kept:
            while not self._ended.is_set():
                if self.answered % 10:
                    self._call(kept)
                else:
                    with self._channel() as new:
                        self._call(new)

    def check(self) -> None:
        """Fail unless it goes on being answered."""
        before = self.answered
        until(lambda: self.failed or self.answered >= before + LEAST_CALLS, "DescribeModel goes on being answered")
        assert not self.failed, f"DescribeModel failed: {dict(self.failed)}"

    def end(self) -> None:
        self._ended.set()
        self.join()

    def _channel(self) -> grpc.Channel:
        return grpc.insecure_channel(self._target, options=[("grpc.use_local_subchannel_pool", 1)])

    def _call(self, channel: grpc.Channel) -> None:
        begin = time.monotonic()
        code, details, _ = outcome(EdgeAgentStub(channel).DescribeModel, ASKED, timeout=self._liveness)
        self.slowest = max(self.slowest, time.monotonic() - begin)
        if code == OK:
            self.answered += 1
        else:
            self.failed[code, details] += 1


class Front:
    """The front process of an agent, and bad connections to it."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.kinds: Counter[str] = Counter()
        self.taken = 0

    def warm_up(self, random: Random, bad: int, idle: int) -> None:
        """Make connections until all is there that is made once; remember what is held then."""
        self._files = self.files()
        for _ in range(2):
            self.bad(random, bad)
            self.idle(idle)
        self.files_are_back()
        self._memory = self.memory()
        self.kinds.clear()
        self.taken = 0

    def bad(self, random: Random, connections: int) -> None:
        """Make bad connections; those that stop half-way stay open until HELD others have followed."""
        held: deque[socket.socket] = deque()
        for _ in range(connections):
            make = random.choice([garbage, half])
            kind, data = make(random)
            one = connect(self.agent.socket, data)
            self.taken += is_taken_up(one)
            self.kinds[kind] += 1
            if make is garbage:
                is_closed(one)
                one.close()
                continue
            held.append(one)
            if len(held) == HELD:
                held.popleft().close()
        for one in held:
            one.close()

    def idle(self, connections: int) -> None:
        """Open connections, all at the same time, on which nothing is said; close them."""
        with ExitStack() as stack:
            opened = [stack.enter_context(connect(self.agent.socket, b"")) for _ in range(connections)]
            self.taken += sum(is_taken_up(one) for one in opened)
            assert self.files() >= self._files - FEW_FILES + connections, "they are not all open at the same time"

    def files(self) -> int:
        """Return how many files it has open."""
        return len(os.listdir(f"/proc/{self.agent.pid}/fd"))

    def memory(self) -> int:
        """Return the bytes that it holds of its own."""
        status = Path(f"/proc/{self.agent.pid}/status").read_text()
        return int(status.partition("RssAnon:")[2].split()[0]) * 1024

    def files_are_back(self, patience: float = PATIENCE) -> None:
        until(lambda: self.files() <= self._files + FEW_FILES, "its files are closed", patience)

    def memory_is_back(self) -> int:
        """Return how much more it holds than before; fail if that is more than KEPT."""
        more = self.memory() - self._memory
        assert more <= KEPT, f"the front process holds {more / MIB:.1f} MiB more than before"
        return more


@contextmanager
def many_files() -> Iterator[None]:
    """Be allowed to open as many files as the system lets us."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextmanager
def described(path: Path, liveness: float = LIVENESS) -> Iterator[Describing]:
    describing = Describing(path, liveness)
    describing.start()
    try:
        yield describing
    finally:
        describing.end()


@pytest.fixture(scope="module")
def models(module_folder) -> Path:
    return packages.classifier(module_folder / "models" / BOARD).parent


def test_bad_connections(promises, models):
    with promises.run(PROMISE) as run, many_files(), closing(Agent(models, log_level="info")) as agent:
        agent.prefix = FEW_ALLOWED
        agent.start()
        bad, idle = (BAD, IDLE) if run.full else (FEW_BAD, FEW_IDLE)
        front = Front(agent)
        with described(agent.socket) as describing:
            describing.check()
            front.warm_up(run.random, min(bad, 1_000), idle)
            front.bad(run.random, bad)
            describing.check()
            front.idle(idle)
            describing.check()
        front.files_are_back()
        more = front.memory_is_back()
        assert not describing.failed, f"DescribeModel failed: {dict(describing.failed)}"
        assert "Traceback" not in agent.log()
        assert agent.stop() == 0
        assert agent.calls(rpc="DescribeModel", code="OK") >= describing.answered
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(front.kinds.items()))
        print(
            f"  {kinds}; {describing.answered} calls answered, the slowest in {describing.slowest:.2f} s; {more / MIB:.1f} MiB more"
        )
        run.count(front.taken)


LEAKS = """
import os
from edge_agent.metrics import Metrics
called, kept = Metrics.called, []
def keeping(self, *told):
    kept.append(b"x" * (1 << 20))
    os.open("/dev/null", os.O_RDONLY)
    called(self, *told)
Metrics.called = keeping
"""


def test_what_is_kept_is_noticed(models, folder):
    with closing(Agent(models)) as agent:
        agent.start(**sabotaged(folder, LEAKS))
        front = Front(agent)
        front.warm_up(Random(0), 10, 10)
        with described(agent.socket) as describing:
            describing.check()
        with pytest.raises(AssertionError, match="the front process holds .* MiB more than before"):
            front.memory_is_back()
        with pytest.raises(AssertionError, match="in vain until its files are closed"):
            front.files_are_back(patience=0.1)


def test_an_agent_that_does_not_answer_is_noticed(models):
    with serving(models) as agent:
        hold(agent.pid)
        try:
            with (
                described(agent.socket, liveness=0.2) as describing,
                pytest.raises(AssertionError, match="DescribeModel failed: .*Deadline"),
            ):
                describing.check()
            with closing(connect(agent.socket, b"", patience=0.1)) as one:
                with pytest.raises(AssertionError, match="neither greets nor closes"):
                    is_taken_up(one)
                with pytest.raises(AssertionError, match="does not close"):
                    is_closed(one)
        finally:
            agent.process.send_signal(signal.SIGCONT)
