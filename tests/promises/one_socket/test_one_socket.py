"""U1: of agents that are started at once on one path, one serves, and its clients never notice the others.

1. An agent that was killed has left its dead socket on the path. Many are started there at once, with one state folder;
   each stops just before it looks for the lock of the socket, so that all of them are there.
2. Half of them go on in the same instant. One serves; each of the others ends with exit code 2 and one sentence.
3. From the first call that is answered no call fails, each of them over a connection of its own: the model that the agent
   starts by itself is asked for until it runs, and from then on it is called.
4. The other half go on while it is called, and end like the others. For each of them, as soon as it has ended, some more
   calls are made.
5. The one that serves has answered all calls, by its status file, and ends with exit code 0.

Without a state folder in common there is no lock in common: then the connect probe and the link that makes the path
leave only one of them, on a path where there is nothing yet.
"""

import fcntl
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import grpc
import pytest

from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent._proto.edge_agent_pb2_grpc import EdgeAgentStub
from support import packages
from support.agent import Agent
from support.broken import LIGHT, SIZE
from support.calls import OK, outcome, request
from support.promises import Promise
from support.sabotage import sabotaged
from support.waiting import until

AGENTS, CALLS = 50, 1_000
FEWER_AGENTS, FEWER_CALLS = 4, 60
PROMISE = Promise(
    id="U1",
    text="50 agents started at once on one path: one serves, the others end with exit code 2 and a sentence; of 1,000 calls "
    "meanwhile none fails",
    case="an agent process that has ended as it must, or a call that the one that serves has counted as answered",
    full=AGENTS + CALLS,
    fast=FEWER_AGENTS + FEWER_CALLS,
)
MODEL = "part"
CALLERS = 4
LOCKED = (
    "Error: Another agent serves this socket already (it holds the lock in the state folder). Stop it first, or give this "
    "one another --socket."
)
ANSWERED = "Error: A server answers on {} already (another agent, or the original one). Stop it first, or give another --socket."
TAKEN = "Error: {} was taken by another process just now. Give another --socket."
# They all start within some seconds on an idle machine.
PATIENCE = 120.0
REFUSED = 2

# Which file's lock an agent waits for.
GATE = "GATE_OF_THE_PROMISE"
GATED = """
import fcntl, os
from edge_agent.state import StateFolder
lock = StateFolder.lock
def gated(self):
    gate = os.environ["GATE_OF_THE_PROMISE"]
    os.close(os.open(f"{gate}-{os.getpid()}", os.O_WRONLY | os.O_CREAT, 0o644))
    with open(gate) as opened:
        fcntl.flock(opened, fcntl.LOCK_SH)
    lock(self)
StateFolder.lock = gated
"""


class Gate:
    """Before which agents wait until it is opened."""

    def __init__(self, path: Path) -> None:
        path.touch(0o644)
        self.path = path
        self._file = path.open()
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def wait_for(self, agents: list[Agent]) -> None:
        """Wait until these agents have come to the gate."""
        pids = {agent.pid for agent in agents}

        def all_there() -> bool:
            lost = [agent.log() for agent in agents if agent.process.poll() is not None]
            assert not lost, lost
            return pids == {int(one.name.rpartition("-")[2]) for one in self.path.parent.glob(f"{self.path.name}-*")}

        until(all_there, f"{len(pids)} agents are at the gate", PATIENCE)

    def open(self) -> None:
        self._file.close()


class Clients:
    """Calls, each over a connection of its own; none may fail once one was answered."""

    def __init__(self, socket: Path, pool: ThreadPoolExecutor) -> None:
        self._address = f"unix://{socket}"
        self._pool = pool
        self._request = request(MODEL, *SIZE, LIGHT)
        self._made: list[Future[tuple[int, str]]] = []
        self._answered = False

    def model_runs(self) -> bool:
        """Ask for the model, whose agent may not serve yet; return whether it runs."""
        code, details, response = self._call("DescribeModel", pb2.DescribeModelRequest(model_component=MODEL))
        assert code == OK or not self._answered, f"DescribeModel failed, and one was answered before: {code} {details}"
        self._answered |= code == OK
        return code == OK and response.model_description.status == pb2.RUNNING

    def make(self, calls: int) -> None:
        """Have calls made."""
        self._made += [self._pool.submit(self._detect) for _ in range(calls)]

    def answered(self) -> int:
        return sum(one.done() for one in self._made)

    def check(self) -> None:
        """Fail unless all calls were answered."""
        outcomes = Counter(one.result() for one in self._made)
        assert set(outcomes) <= {(OK, "")}, f"calls failed: {dict(outcomes)}"

    def _detect(self) -> tuple[int, str]:
        code, details, _ = self._call("DetectAnomalies", self._request)
        return code, details

    def _call(self, rpc: str, asked) -> tuple[int, str, object]:
        with grpc.insecure_channel(self._address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            return outcome(getattr(EdgeAgentStub(channel), rpc), asked)


class Crowd:
    """Agents on one path, in two waves, and what becomes of them."""

    def __init__(self, models: Path, folder: Path, many: int, code: str = "", *, one_state: bool = True) -> None:
        self._stack = ExitStack()
        self.agents: list[Agent] = []
        self.waves: list[tuple[Gate, list[Agent]]] = []
        for _ in range(many):
            first = self.agents[0] if self.agents else None
            state = {"state_dir": str(first.folder / "state")} if first and one_state else {}
            agent = Agent(models, autostart=[MODEL], **({"socket": str(first.socket)} if first else {}), **state)
            self.agents.append(self._stack.enter_context(closing(agent)))
        self.socket = self.agents[0].socket
        self._environment = sabotaged(folder, code + GATED)
        for number, wave in enumerate((self.agents[: many // 2], self.agents[many // 2 :])):
            gate = Gate(folder / f"gate{number}")
            self._stack.callback(gate.open)  # before they are closed
            self.waves.append((gate, wave))

    def leave_a_dead_socket(self) -> None:
        """Have an agent serve on the path, and kill it."""
        with closing(Agent(folder=self.agents[0].folder)) as agent:
            assert agent.start().stop(signal.SIGKILL) == -signal.SIGKILL
        agent.log_path.unlink()
        assert self.socket.is_socket()

    def start(self) -> None:
        """Start them all, and wait until they are at their gates."""
        for gate, wave in self.waves:
            for agent in wave:
                agent.spawn(**{GATE: str(gate.path)}, **self._environment)
        for gate, wave in self.waves:
            gate.wait_for(wave)

    def close(self) -> None:
        self._stack.close()

    def serving(self) -> list[Agent]:
        """Return the agents that have served; fail if they are more than one."""
        serving = [agent for agent in self.agents if "Serving " in agent.log()]
        assert len(serving) <= 1, f"{len(serving)} agents serve"
        return serving

    def has_ended(self, agent: Agent) -> bool:
        """Return whether an agent has ended, or serves."""
        return agent in self.serving() or agent.process.poll() is not None


def check_refused(agent: Agent, *sentences: str) -> None:
    """Fail unless an agent has ended with exit code 2 and one of these sentences, and nothing else."""
    assert agent.process.returncode == REFUSED, f"exit code {agent.process.returncode}: {agent.log()}"
    assert agent.log().rstrip("\n") in sentences, f"it says: {agent.log()}"


@contextmanager
def clients(socket: Path) -> Iterator[Clients]:
    with ThreadPoolExecutor(CALLERS) as pool:
        yield Clients(socket, pool)


def contend(crowd: Crowd, calls: Clients, share: int) -> Agent:
    """Let both waves go, making calls for each agent that has ended; return the one that serves, all calls answered."""
    (first, wave), (second, late) = crowd.waves
    first.open()
    until(lambda: calls.model_runs() and crowd.serving(), "one serves", PATIENCE)
    calls.make(share * len(wave))
    until(lambda: calls.answered() > 0, "calls are answered")
    second.open()
    for agent in (*late, *wave):
        until(lambda: crowd.has_ended(agent), "an agent has ended", PATIENCE)
        if agent in late:
            calls.make(share)
    until(lambda: calls.answered() == share * len(crowd.agents), "all calls are answered", PATIENCE)
    calls.check()
    (one,) = crowd.serving()
    assert one.process.poll() is None
    return one


@pytest.fixture(scope="module")
def models(module_folder) -> Path:
    return packages.classifier(module_folder / "models" / MODEL, SIZE).parent


def test_one_socket(promises, models, folder):
    with promises.run(PROMISE) as run, closing(Crowd(models, folder, AGENTS if run.full else FEWER_AGENTS)) as crowd:
        share = (CALLS if run.full else FEWER_CALLS) // len(crowd.agents)
        crowd.leave_a_dead_socket()
        crowd.start()
        with clients(crowd.socket) as calls:
            one = contend(crowd, calls, share)
        others = [agent for agent in crowd.agents if agent is not one]
        for agent in others:
            check_refused(agent, LOCKED)
        assert one.stop() == 0
        assert "Removed the dead socket" in one.log()
        assert "Traceback" not in one.log()
        assert [path.name for path in crowd.socket.parent.iterdir() if path.is_socket()] == []
        status = crowd.agents[0].status()
        assert status["agent"]["pid"] == one.pid
        answered = sum(each["count"] for each in status["calls"] if each["rpc"] == "DetectAnomalies")
        assert answered == crowd.agents[0].calls(MODEL, "OK") == share * len(crowd.agents)
        run.count(len({agent.pid for agent in (one, *others)}))
        run.count(answered)


def test_without_a_state_folder_in_common(models, folder):
    with closing(Crowd(models, folder, 2, one_state=False)) as crowd:
        crowd.start()
        with clients(crowd.socket) as calls:
            one = contend(crowd, calls, 5)
        sentences = [sentence.format(crowd.socket) for sentence in (ANSWERED, TAKEN)]
        for agent in crowd.agents:
            if agent is not one:
                assert agent.process.returncode == REFUSED
                assert agent.log().splitlines()[-1] in sentences
        assert one.stop() == 0


STEALS = """
from edge_agent.state import StateFolder
from edge_agent.unix_socket import ServedSocket
StateFolder.lock = lambda self: None
ServedSocket.claim = lambda self: self._path.unlink(missing_ok=True)
"""
CLEARS_AWAY = """
from edge_agent import server
run = server.Agent.run
def clearing(self):
    try:
        return run(self)
    except server.AgentRefused:
        self._settings.socket_path.unlink(missing_ok=True)
        raise RuntimeError from None
server.Agent.run = clearing
"""
# What is broken -> code that breaks it, and what is noticed.
CONTROLS = {
    "the path is stolen": (STEALS, "2 agents serve"),
    "who is refused clears away": (CLEARS_AWAY, "calls failed: .*14"),
}


@pytest.mark.parametrize("broken", CONTROLS)
def test_what_others_do_is_noticed(models, folder, broken):
    code, noticed = CONTROLS[broken]
    with closing(Crowd(models, folder, 2, code)) as crowd, clients(crowd.socket) as calls:
        crowd.start()
        with pytest.raises(AssertionError, match=noticed):
            contend(crowd, calls, 5)
        refused = [agent for agent in crowd.agents if agent.process.poll() is not None]
        if code == CLEARS_AWAY:
            with pytest.raises(AssertionError, match="exit code 1: "):
                check_refused(refused[0], LOCKED)
