"""C3: the agent is killed at any instant, and the next one finds all in order.

1. Agents follow each other in one place: each is killed, and the next one starts there.
2. An instant is drawn: while the agent starts; while it loads models; while new versions take over, the files of the old
   deleted or not; while models are started and stopped, so that the state file is written again and again; under load,
   with a worker busy for ever; while it ends.
3. The state file parses whenever it is read, and names what was acknowledged as started and nothing that was
   acknowledged as stopped; only of a call that was never answered either may be so.
4. No process of the agent is left, nobody holds memory that it shared with its workers, no segment of its user is new in
   /dev/shm, and no new file is in the state folder.
5. The next agent serves; the models that ran run again, each in its newest version, and judge an image.

A process of an agent is known by a mark in its environment, which all its children inherit.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random

import posix_ipc
import pytest

from edge_agent._proto import edge_agent_pb2 as pb2
from support import hanging, packages
from support.agent import PLENTY, Agent, alive, place
from support.broken import SIZE
from support.calls import OK, outcome, request
from support.load import load
from support.promises import Promise
from support.sabotage import sabotaged
from support.users import AGENT, User, agent_user
from support.waiting import PATIENCE, until

PROMISE = Promise(
    id="C3",
    text="the agent is killed -9 at random instants: the state file always parses, the models come back, and no process, "
    "segment or memfd is left",
    case="an agent process that ended by signal 9",
    full=100,
    fast=6,
)
# Instant -> how often it is drawn in full; once in fast.
INSTANTS = {"starting": 20, "loading": 16, "swapping": 16, "writing": 20, "calling": 16, "ending": 12}
VERSIONED = ("board", "part")
# Busy for ever with a black image.
ENDLESS = "endless"
# Started and stopped all the time, and one that fails at once when it is started, which is remembered all the same.
TOGGLED, BROKEN = "toggled", "broken"
UNAVAILABLE = 14
MARK = "PROMISE_OF_THE_AGENT"
STATE_FILES = {"lock", "run", "running.json", "running.new", "status.json", "status.new"}
MEMFD = "/memfd:edge-agent-"
LEVEL = 77
# One of this run's own where we may choose, so that nobody else makes segments as this user.
UID = 55_000 + os.getpid() % 5_000
USER = User(UID, UID) if agent_user() == AGENT else agent_user()
MODEL = packages.brightness(SIZE, mask=False)


def processes() -> Iterator[Path]:
    return (entry for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _environment(entry: Path) -> bytes:
    with contextlib.suppress(OSError):
        return (entry / "environ").read_bytes()
    return b""


def memfds(entry: Path) -> set[int]:
    """Return the inodes of the agent's shared memory that a process has open or mapped."""
    inodes = set()
    with contextlib.suppress(OSError):
        for fd in (entry / "fd").iterdir():
            with contextlib.suppress(OSError):
                if str(fd.readlink()).startswith(MEMFD):
                    inodes.add(fd.stat().st_ino)
    with contextlib.suppress(OSError):
        inodes |= {int(line.split()[4]) for line in (entry / "maps").read_text().splitlines() if MEMFD in line}
    return inodes


def segments() -> set[str]:
    """Return what the agent's user has in /dev/shm."""
    found = set()
    for entry in Path("/dev/shm").iterdir():
        with contextlib.suppress(OSError):
            if entry.lstat().st_uid == USER.uid:
                found.add(entry.name)
    return found


class Device:
    """A place in which agents live and are killed, one after the other."""

    def __init__(self, folder: Path, random: Random) -> None:
        self.models = folder / "models"
        self.folder = place(USER)
        self.agent = self._next()
        self.instants: Counter[str] = Counter()
        self.slowest = 0.0
        self.memfds = 0
        self.patience = PATIENCE
        self._random = random
        self._mark = ""
        self._versions = dict.fromkeys(VERSIONED, 0)
        # What is acknowledged as to run; and what was asked for and never acknowledged.
        self._wanted: set[str] = set()
        self._open: set[str] = set()
        self._segments = segments()
        self._starts_in = 1.0
        for name in VERSIONED:
            self._deploy(name)
        hanging.package(self.models / ENDLESS, hanging.endless)
        packages.classifier(self.models / TOGGLED, SIZE)
        (packages.classifier(self.models / BROKEN, SIZE) / "mochi" / "model.onnx").unlink()

    def _deploy(self, name: str, *, deleting: bool = False) -> None:
        """Write the next version of a model, which its threshold tells; delete the one before the last, or also that."""
        version = self._versions[name] = self._versions[name] + 1
        threshold = 0.4 + version / 1000
        packages.write(self._place(name, version) / "abc", packages.manifest(size=SIZE, threshold=threshold), MODEL)
        shutil.rmtree(self._place(name, version - (1 if deleting else 2)), ignore_errors=True)

    def _place(self, name: str, version: int) -> Path:
        return self.models / name / f"{version}.0.0"

    def _next(self) -> Agent:
        return Agent(self.models, folder=self.folder, user=USER, call_timeout=600, load_timeout=600, drain_timeout=600)

    def close(self) -> None:
        """End what runs, and remove the place."""
        self.agent.close()
        shutil.rmtree(self.folder)

    def spawn(self, **env: str) -> None:
        """Start another agent, all of whose processes are marked."""
        self.agent.close()
        self.agent = self._next()
        self._mark = f"{MARK}={os.urandom(8).hex()}"
        name, _, value = self._mark.partition("=")
        self.agent.spawn(**{name: value}, **env)

    def serves(self) -> None:
        """Wait until the agent serves, the models that are to run do, and are those that they are to be."""
        agent = self.agent
        until(lambda: agent._serves() or agent.process.poll() is not None, "the agent serves")
        assert agent.process.poll() is None, agent.log()
        stub = agent.stub()
        for name in sorted(self._wanted - {BROKEN}):
            until(lambda: agent.state(name) == "RUNNING", f"{name} comes back", self.patience)
            code, details, response = outcome(stub.DetectAnomalies, request(name, *SIZE, hanging.grey(LEVEL)))
            assert code == OK, f"{name} answers {code}: {details}"
            result = response.detect_anomaly_result
            assert abs(result.anomaly_score - LEVEL / 255) < 1e-3
            if name in VERSIONED:
                assert abs(result.anomaly_threshold - 0.4 - self._versions[name] / 1000) < 1e-6, f"{name} is an old one"
        if TOGGLED not in self._wanted:
            assert agent.state(TOGGLED) == "STOPPED"

    def begin(self, **env: str) -> None:
        """Start the first agent, and what is to run."""
        self.spawn(**env)
        self.serves()
        for name in (*VERSIONED, ENDLESS):
            self.agent.run_model(name)
            self._wanted.add(name)

    def kill(self, instant: str) -> set[int]:
        """Kill the agent at a kind of instant; return the memory that it shared with its workers."""
        shared: set[int] = set()
        with getattr(self, instant)() as most:
            time.sleep(self._random.uniform(0, most))  # the instant, which nothing tells
            for pid in self.left():
                shared |= memfds(Path(f"/proc/{pid}"))
            self.agent.process.kill()
            assert self.agent.process.wait(PATIENCE) == -signal.SIGKILL
        self.instants[instant] += 1
        self.memfds += len(shared)
        return shared

    def all_is_in_order(self, shared: set[int]) -> None:
        """Fail if anything is left of an agent that was killed, or its state is not what it must be."""
        self.no_process_is_left()
        self.no_memory_is_left(shared)
        self.nothing_new_is_left()
        self.state_is_right()

    def goes_on(self) -> None:
        """Start the next agent; fail unless all is as it was."""
        begin = time.monotonic()
        self.spawn()
        self.serves()
        self._starts_in = time.monotonic() - begin

    def left(self) -> list[int]:
        """Return the living processes of the agent."""
        return [
            int(entry.name)
            for entry in processes()
            if self._mark.encode() in _environment(entry) and alive(int(entry.name))
        ]

    def no_process_is_left(self) -> None:
        begin = time.monotonic()
        until(lambda: not self.left(), "no process of the agent is left", self.patience)
        self.slowest = max(self.slowest, time.monotonic() - begin)

    def no_memory_is_left(self, shared: set[int]) -> None:
        """Fail if somebody goes on to hold memory of the agent.

        A process that ends gives its own memory back first, and its environment, by which we know it, with that; it closes
        its files afterwards, up to 0.1 s later for 1 GiB (measured).
        """
        give_up = time.monotonic() + self.patience
        while (
            holders := [entry.name for entry in processes() if memfds(entry) & shared]
        ) and time.monotonic() < give_up:
            time.sleep(0.01)
        assert not holders, f"process {', '.join(holders)} holds memory of the agent"

    def nothing_new_is_left(self) -> None:
        assert segments() <= self._segments, "a segment is left in /dev/shm"
        there = {entry.name.partition(".")[2] for entry in (self.folder / "state").iterdir()}
        assert there <= STATE_FILES, f"left in the state folder: {there - STATE_FILES}"

    def names(self) -> set[str]:
        """Return what the state file names, which is nothing if it is absent; fail if it does not parse."""
        try:
            (path,) = (self.folder / "state").glob("*.running.json")
            data = path.read_bytes()
        except (ValueError, FileNotFoundError):
            return set()
        try:
            return set(json.loads(data))
        except ValueError:
            raise AssertionError(f"the state file does not parse: {data!r}") from None

    def state_is_right(self) -> None:
        """Fail unless the state file names what it must; from now on, that is what must run."""
        names = self.names()
        assert self._wanted - self._open <= names, f"forgotten: {self._wanted - self._open - names}"
        assert names <= self._wanted | self._open, f"never started: {names - self._wanted - self._open}"
        self._wanted, self._open = names, set()
        for path in (self.folder / "state").glob("*.status.json"):
            json.loads(path.read_bytes())

    @contextmanager
    def starting(self) -> Iterator[float]:
        """Another agent starts, after one that ended in order."""
        assert self.agent.stop() == 0
        self.spawn()
        yield self._starts_in

    @contextmanager
    def loading(self) -> Iterator[float]:
        """It serves already, and its models are being loaded."""
        assert self.agent.stop() == 0
        self.spawn()
        until(self.agent._serves, "the agent serves")
        yield 0.4

    @contextmanager
    def swapping(self) -> Iterator[float]:
        """New versions are found, loaded beside the old, and take over."""
        for name in VERSIONED:
            self._deploy(name, deleting=self._random.random() < 0.5)
        yield 0.8

    @contextmanager
    def calling(self) -> Iterator[float]:
        """Models are called without a pause, and one worker is busy."""
        with self._busy(), load(self.agent, *VERSIONED, callers=2) as calls:
            yield 0.1
        for name in VERSIONED:
            assert {code for code, _ in calls.failed(name)} <= {UNAVAILABLE}
        assert calls.wrong() == []

    @contextmanager
    def ending(self) -> Iterator[float]:
        """It ends, and a call is still under way."""
        with self._busy():
            self.agent.process.terminate()
            yield 0.2

    @contextmanager
    def _busy(self) -> Iterator[None]:
        """A call is under way, and will be for ever."""
        image = hanging.nearly_black()
        call = self.agent.stub().DetectAnomalies.future(request(ENDLESS, *SIZE, image))
        until(lambda: self.agent.inbox_holds(image), "the call is in the worker")
        yield
        assert call.exception(PATIENCE).code().value[0] == UNAVAILABLE

    @contextmanager
    def writing(self) -> Iterator[float]:
        """Models are started and stopped all the time; meanwhile the state file is read all the time."""
        ended = threading.Event()
        started: Counter[str] = Counter()
        unread: list[str] = []

        def start(name: str) -> int:
            asked = pb2.StartModelRequest(model_component=name)
            self._open.add(name)
            code, *_ = outcome(stub.StartModel, asked)
            if code == OK:
                self._wanted.add(name)
                started[name] += 1
            if code != UNAVAILABLE:
                self._open.discard(name)
            return code

        def stop(name: str) -> int:
            self._open.add(name)
            code, *_ = outcome(stub.StopModel, pb2.StopModelRequest(model_component=name))
            if code == OK:
                self._wanted.discard(name)
            if code != UNAVAILABLE:
                self._open.discard(name)
            return code

        def toggle() -> None:
            while not ended.is_set():
                if start(TOGGLED) == UNAVAILABLE or stop(TOGGLED) == UNAVAILABLE:
                    return

        def fail() -> None:
            while not ended.is_set() and start(BROKEN) != UNAVAILABLE:
                pass

        def read() -> None:
            while not ended.is_set():
                try:
                    self.names()
                except AssertionError as error:
                    unread.append(str(error))
                    return

        stub = self.agent.stub()
        threads = [threading.Thread(target=one) for one in (toggle, fail, read)]
        for thread in threads:
            thread.start()
        try:
            until(lambda: started[BROKEN] >= 10 or unread, "the state was written again and again")
            yield 0.2
        finally:
            ended.set()
            for thread in threads:
                thread.join(PLENTY)
                assert not thread.is_alive()
        assert not unread, unread


def tracebacks(log: str) -> list[str]:
    """Return the tracebacks in a log, but for that of a forkserver or a new worker whose agent was killed just then.

    It ends at once, as it has to; the last words are those of the standard library.
    """
    found = re.findall(r"Traceback \(most recent call last\):\n(?:[ \t].*\n)+.*", log)
    return [one for one in found if not ("multiprocessing/forkserver.py" in one and "\nEOFError" in one)]


def test_only_the_last_words_of_a_forkserver_are_no_traceback():
    own = 'Traceback (most recent call last):\n  File "multiprocessing/forkserver.py", line 258, in main\n    x\nEOFError\n'
    other = 'Traceback (most recent call last):\n  File "edge_agent/model.py", line 1, in start\n    x\nEOFError\n'
    assert tracebacks(f"INFO a\n{own}INFO b\n") == []
    assert tracebacks(f"INFO a\n{own.strip()}: Ran out of input\nINFO b\n") == []
    assert len(tracebacks(f"INFO a\n{own}{other}INFO b\n")) == 1


def test_agent_killed(promises, folder):
    with promises.run(PROMISE) as run:
        device = Device(folder, run.random)
        with closing(device):
            device.begin()
            instants = [one for one, often in INSTANTS.items() for _ in range(often if run.full else 1)]
            run.random.shuffle(instants)
            for instant in instants:
                device.all_is_in_order(device.kill(instant))
                device.goes_on()
            run.count(device.instants.total())
            assert device.agent.stop() == 0
            assert tracebacks(device.agent.log()) == []
        assert device.memfds, "no shared memory was seen to go"
        print(f"  {dict(device.instants)}; {device.memfds} memfds gone; processes gone within {device.slowest:.3f} s")


# Workers outlive the agent, and the state file is written in place.
DAMAGE = """
import json, time
from edge_agent import worker
from edge_agent.state import RunningModels
worker._end_with_parent = lambda: None
def in_place(self, names):
    with open(self._path, "w") as file:
        time.sleep(0.02)
        json.dump(list(names), file)
RunningModels.write = in_place
"""


def a_memfd(agent: Agent) -> int:
    """Hold memory that an agent shares with a worker that it is not about to stop; return the descriptor."""

    def worker() -> int:
        """The status is up to a second behind."""
        return next(one["worker_pid"] for one in agent.status()["models"] if one["model"] == ENDLESS) or 0

    shared = memfds(Path(f"/proc/{until(worker, 'the worker is known')}"))
    for fd in Path(f"/proc/{agent.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if fd.stat().st_ino in shared and str(fd.readlink()).startswith(MEMFD):
                return os.open(fd, os.O_RDONLY)
    raise AssertionError("the agent shares no memory with its worker")


def test_what_is_left_is_noticed(folder):
    device = Device(folder, Random(0))
    leak = posix_ipc.SharedMemory(None, posix_ipc.O_CREX, size=1)
    with closing(device):
        device.begin(**sabotaged(folder, DAMAGE))
        with pytest.raises(AssertionError, match="the state file does not parse"), device.writing():
            pass
        held = a_memfd(device.agent)
        shared = device.kill("calling")
        try:
            os.fchown(leak.fd, USER.uid, -1)
            device.patience = 1.0  # ten times what it takes
            with pytest.raises(AssertionError, match="no process of the agent is left"):
                device.no_process_is_left()
            for pid in device.left():
                os.kill(pid, signal.SIGKILL)
            device.patience = PATIENCE
            device.no_process_is_left()
            device.patience = 1.0
            with pytest.raises(AssertionError, match=rf"process .*\b{os.getpid()}\b.* holds memory of the agent"):
                device.no_memory_is_left(shared)
            device.patience = PATIENCE
            with pytest.raises(AssertionError, match="a segment is left"):
                device.nothing_new_is_left()
        finally:
            threading.Timer(0.2, os.close, [held]).start()  # as a process does that is about to end
            leak.close_fd()
            leak.unlink()
        device.no_memory_is_left(shared)
        device.nothing_new_is_left()
        device.state_is_right()
        state = next((device.folder / "state").glob("*.running.json"))
        state.write_text("[]")
        with pytest.raises(AssertionError, match="forgotten"):
            device.state_is_right()
        device.patience = 1.0
        with pytest.raises(AssertionError, match="until board comes back"):
            device.goes_on()
