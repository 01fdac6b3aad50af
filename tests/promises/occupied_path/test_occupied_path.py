"""U2: the path of a socket is free again after kill -9, and is never taken from anything else that lies there.

1. Agents follow each other on one path. Each is killed: at an instant of its start that is known (its socket is bound;
   it is at its path, too) or drawn, or while it serves.
2. The next one serves on that path, a client's old channel reaches it, and beside the path nothing is left of those
   before.
3. Then something else lies on the path: a file, a folder, a link to a dead socket, a link to nothing, and sockets,
   live and dead, of the agent's user and of another.
4. Where it is a dead socket of the agent's user, the agent serves. Else it ends with exit code 2 and one line that says
   what is there and what to do; what is there is what it was, and a live server there goes on to serve.
"""

import contextlib
import os
import shutil
import signal
import socket
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random

import pytest

from edge_agent._proto import edge_agent_pb2 as pb2
from support.agent import PLENTY, Agent, place
from support.calls import OK, outcome
from support.promises import Promise
from support.sabotage import sabotaged
from support.users import AGENT, OTHER, User, agent_user
from support.waiting import until

TWO_UIDS = agent_user() == AGENT
# What lies on the path, and what the agent says of it; nothing where it serves.
OBJECTS = {
    "file": "exists and is no socket. Remove it",
    "folder": "exists and is no socket. Remove it",
    "link": "exists and is no socket. Remove it",
    "dangling link": "exists and is no socket. Remove it",
    "live socket": "A server answers on ",
    "dead socket": "",
}
if TWO_UIDS:
    OBJECTS["live socket of another user"] = (
        f"belongs to uid {OTHER.uid}, not to the agent's user. Let its owner remove"
    )
    OBJECTS["dead socket of another user"] = OBJECTS["live socket of another user"]
FEW_OBJECTS = [
    kind for kind in ("link", "live socket", "dead socket", "dead socket of another user") if kind in OBJECTS
]
KILLS, FEW_KILLS = 100, 3
PROMISE = Promise(
    id="U2",
    text="after kill -9 the next agent serves on the same path; anything else on the path is refused and left as it is",
    case="an agent process that ended by signal 9, or that met something on its path",
    full=KILLS + len(OBJECTS),
    fast=FEW_KILLS + len(FEW_OBJECTS),
)
NAME = "agent.sock"
REFUSED = 2
# Instants of a start at which an agent is killed; at "any", from outside.
BOUND, LINKED, ANY = "bound", "linked", "any"
DIES = """
import os, signal
from edge_agent.unix_socket import ServedSocket
publish, link, instant = ServedSocket.publish, os.link, os.environ["DIES"]
def dies(*_):
    os.kill(os.getpid(), signal.SIGKILL)
def dies_linked(*arguments, **more):
    link(*arguments, **more)
    dies()
if instant == "bound":
    ServedSocket.publish = dies
elif instant == "linked":
    os.link = dies_linked
"""


class Road:
    """A path on which agents follow each other, each killed."""

    def __init__(self, folder: Path, random: Random) -> None:
        self.kills: Counter[str] = Counter()
        self.ended: list[int] = []
        self._folder = folder
        self._random = random
        self._sockets = owned(folder / "sockets", Path.mkdir)
        self._starts_in = 0.1
        self.agent = self._next()
        # One channel of one client, kept over all of them.
        self._stub = self.agent.stub()

    def close(self) -> None:
        self.agent.close()

    def kill(self, instant: str, env: dict[str, str]) -> None:
        """Start an agent, and kill it at an instant of its start."""
        agent = self._next()
        agent.spawn(DIES=instant, **env)
        if instant == ANY:
            time.sleep(self._random.uniform(0, self._starts_in))  # the instant, which nothing tells
            agent.process.kill()
        agent.process.wait(PLENTY)
        self._died(agent, instant)
        if instant != ANY:
            assert any(one.is_socket() for one in self._sockets.rglob("*")), "it had bound nothing"
            assert (self._sockets / NAME).exists() == (instant == LINKED)

    def serves(self, **env: str) -> None:
        """Start the next agent; fail unless it serves, and all is as if those before had never been."""
        begin = time.monotonic()
        self.agent = self._next()
        self.agent.spawn(**env)
        until(lambda: self.agent._serves() or self.agent.process.poll() is not None, "the next one serves")
        assert self.agent.process.poll() is None, f"it does not serve: {self.agent.log()}"
        until(lambda: outcome(self._stub.ListModels, pb2.ListModelsRequest())[0] == OK, "the old channel works again")
        assert self.agent.status()["agent"]["pid"] == self.agent.pid
        # It removes what it had beside it right after it has made the path.
        until(lambda: {one.name for one in self._sockets.iterdir()} == {NAME}, "nothing is left beside the path", 3.0)
        assert "Traceback" not in self.agent.log()
        self._starts_in = time.monotonic() - begin

    def kill_serving(self) -> None:
        self.agent.process.kill()
        self.agent.process.wait(PLENTY)
        self._died(self.agent, "serving")

    def end(self) -> None:
        """End the last one in order."""
        assert self.agent.stop() == 0
        assert list(self._sockets.iterdir()) == []

    def _next(self) -> Agent:
        return Agent(folder=self._folder, socket=str(self._sockets / NAME), log_level="info")

    def _died(self, agent: Agent, instant: str) -> None:
        assert agent.process.returncode == -signal.SIGKILL, f"exit code {agent.process.returncode}: {agent.log()}"
        self.kills[instant] += 1
        self.ended.append(agent.pid)


def owned(path: Path, make: Callable[[Path], object], user: User | None = None) -> Path:
    """Make something that belongs to a user (default: the agent's)."""
    user = user or agent_user()
    make(path)
    os.chown(path, user.uid, user.gid, follow_symlinks=False)
    return path


class Occupied:
    """An agent on whose path something lies."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.folder = place()
        self.agent = Agent(folder=self.folder, log_level="info")
        self._server = socket.socket(socket.AF_UNIX)
        self._put(self.agent.socket)
        self._before = self._look()

    def close(self) -> None:
        self.agent.close()
        self._server.close()
        shutil.rmtree(self.folder)

    def check(self) -> None:
        """Fail unless the agent, which was spawned, does with it what it should."""
        agent, said = self.agent, OBJECTS[self.kind]
        until(lambda: agent.process.poll() is not None or "Serving" in agent.log(), f"it has seen the {self.kind}")
        if not said:
            assert agent.process.poll() is None, f"a {self.kind} was refused: {agent.log()}"
            assert agent._serves()
            assert agent.stop() == 0
            return
        assert agent.process.poll() == REFUSED, f"a {self.kind} was not refused: {agent.log()}"
        (line,) = agent.log().splitlines()
        assert line.startswith("Error: "), line
        assert said in line, line
        assert line.endswith("give another --socket."), line
        assert self._look() == self._before, f"the {self.kind} is not what it was"

    def _put(self, path: Path) -> None:
        """Put onto the path what is to lie there."""
        kind, target = self.kind, path.with_name("target")
        user = OTHER if kind.endswith("another user") else agent_user()
        if kind == "file":
            owned(path, lambda path: path.write_text("precious"))
        elif kind == "folder":
            owned(path, Path.mkdir)
            owned(path / "precious", Path.touch)
        elif kind.endswith("link"):
            if kind == "link":
                with closing(socket.socket(socket.AF_UNIX)) as dead:
                    owned(target, lambda path: dead.bind(str(path)))
            owned(path, lambda path: path.symlink_to(target))
        else:
            owned(path, lambda path: self._server.bind(str(path)), user)
            if kind.startswith("live"):
                self._server.listen()
            else:
                self._server.close()

    def _look(self) -> list[object]:
        """Return all that can be seen of what lies on the path; fail if a live server there does not serve."""
        path = self.agent.socket
        info = path.lstat()
        seen: list[object] = [info.st_ino, info.st_mode, info.st_uid, info.st_gid, info.st_nlink, info.st_ctime_ns]
        if stat.S_ISREG(info.st_mode):
            seen.append(path.read_text())
        elif stat.S_ISDIR(info.st_mode):
            seen.append(os.listdir(path))
        elif stat.S_ISLNK(info.st_mode):
            seen += [os.readlink(path), os.path.exists(path)]
        elif self.kind.startswith("live"):
            self._answers(path)
        return seen

    def _answers(self, path: Path) -> None:
        """Let the server answer a client; the agent's own connection comes before it."""
        self._server.settimeout(PLENTY)
        with closing(socket.socket(socket.AF_UNIX)) as client:
            client.connect(str(path))
            client.sendall(b"ping")
            while True:
                server, _ = self._server.accept()
                with closing(server):
                    if server.recv(4) == b"ping":
                        server.sendall(b"pong")
                        break
            assert client.recv(4) == b"pong"


@contextmanager
def occupied(*kinds: str, **env: str) -> Iterator[list[Occupied]]:
    """Yield agents that were started at once, each with something else on its path."""
    with contextlib.ExitStack() as stack:
        agents = [stack.enter_context(closing(Occupied(kind))) for kind in kinds]
        for one in agents:
            one.agent.spawn(**env)
        yield agents


def test_occupied_path(promises, folder):
    with promises.run(PROMISE) as run:
        env = sabotaged(folder, DIES)
        with closing(Road(folder, run.random)) as road:
            instants = [BOUND, LINKED, *([ANY] * 3 if run.full else [])]
            for nth in range(KILLS if run.full else FEW_KILLS):
                if nth % 2:
                    road.serves()
                    road.kill_serving()
                else:
                    road.kill(instants[nth // 2 % len(instants)], env)
            road.serves()
            road.end()
        print(f"  kills: {dict(road.kills)}")
        run.count(len(set(road.ended)))
        with occupied(*(OBJECTS if run.full else FEW_OBJECTS)) as agents:
            for one in agents:
                one.check()
                run.count(one.agent.process.returncode in {0, REFUSED})


TAKES_ALL = """
import shutil
from edge_agent.unix_socket import ServedSocket
def take(self):
    if self._path.is_dir():
        shutil.rmtree(self._path)
    else:
        self._path.unlink()
ServedSocket.claim = take
"""
TOUCHES = """
import os
from edge_agent.unix_socket import ServedSocket
claim = ServedSocket.claim
def touch(self):
    os.chmod(self._path, 0o777)
    claim(self)
ServedSocket.claim = touch
"""
# What is broken -> code that breaks it, what lies on the path, and what is noticed.
CONTROLS = {
    "everything is taken": (TAKES_ALL, ["folder", "live socket"], "was not refused"),
    "what is there is touched": (TOUCHES, ["file"], "is not what it was"),
    "a dead socket is taken for a live one": (
        "from edge_agent import unix_socket\nunix_socket._answers = lambda _: True\n",
        ["dead socket"],
        "was refused",
    ),
}


@pytest.mark.parametrize("broken", CONTROLS)
def test_what_may_not_become_of_it_is_noticed(folder, broken):
    code, kinds, noticed = CONTROLS[broken]
    with occupied(*kinds, **sabotaged(folder, code)) as agents:
        for one in agents:
            with pytest.raises(AssertionError, match=noticed):
                one.check()


def test_what_is_left_beside_the_path_is_noticed(folder):
    """By an agent that finds what another left that was killed, and leaves it there."""
    with closing(Road(folder, Random(0))) as road:
        road.kill(BOUND, sabotaged(folder, DIES))
        (kept := folder / "keeps").mkdir()
        keeps = "from edge_agent.unix_socket import ServedSocket\nServedSocket._remove_left = lambda _: None\n"
        with pytest.raises(AssertionError, match="left beside the path"):
            road.serves(**sabotaged(kept, keeps))
