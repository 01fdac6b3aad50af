"""U5: the group decides who may call, and a call opens nothing to anybody that the agent's own user may not open.

1. An agent runs as a user of its own, in the group of its socket; a client is another user.
2. As a member of the group, with it as its own or as a further one, the client makes a call, which is answered.
3. Without the group, whatever else it is in, the agent's own group too, it cannot connect to any socket on which a
   process of the agent listens: permission denied.
4. Segments that the agent's user may not read, or for masks not write, are refused with the sentence that names the
   cure; what is in them stays as it is. Packages that it may not read in whole are never loaded: FAILED with a sentence,
   or unknown.
5. No process of the agent has a capability or a group that its user was not given.
"""

import contextlib
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest

from edge_agent._proto import edge_agent_pb2 as pb2
from support import packages
from support.agent import PLENTY, Agent, descendants, environment
from support.calls import INVALID, NOT_FOUND, OK, outcome, request
from support.promises import Promise
from support.shm import SHM, create, new_name
from support.users import AGENT, I_AM_ROOT, MYSELF, OTHER, User, agent_user
from support.waiting import until

pytestmark = [
    pytest.mark.two_uids,
    pytest.mark.skipif(
        not I_AM_ROOT or agent_user() == MYSELF, reason="needs root and a Python for all, to act as two users"
    ),
]


class Shares(NamedTuple):
    """How many cases there are of each kind."""

    members: int
    strangers: int
    segments: int
    packages: int


FULL, FAST = Shares(25, 25, 30, 20), Shares(2, 3, 6, 4)
PROMISE = Promise(
    id="U5",
    text="a client in the socket's group can call, one outside cannot; the agent reads and writes nothing that its own uid "
    "may not",
    case="a client process that was let in or turned away, or a call, counted by the agent, for what it may not open",
    full=sum(FULL),
    fast=sum(FAST),
)
GROUP, ANOTHER_GROUP = 54_404, 54_405
USER = User(AGENT.uid, AGENT.gid, (GROUP,))
BOARD = "board"
# What /proc/net/unix says of sockets on which somebody listens.
LISTENS = 0x10000
SIDE = 64
SIZE = 3 * SIDE * SIDE
PIXELS = b"\x33" * SIZE
RPC = "/AWS.LookoutVision.EdgeAgent/DescribeModel"
CURE = "create it with mode 0660 and a group that the agent belongs to"

CALLS = f"""
import sys
import grpc
with grpc.insecure_channel(f"unix://{{sys.argv[1]}}") as channel:
    try:
        channel.unary_unary({RPC!r})(bytes.fromhex(sys.argv[2]), timeout={PLENTY})
        print("answered")
    except grpc.RpcError as error:
        print(error.code().name)
"""
CONNECTS = """
import errno, socket, sys
for path in sys.argv[1:]:
    with socket.socket(socket.AF_UNIX) as one:
        try:
            one.connect(path)
            print("connected")
        except OSError as error:
            print(errno.errorcode[error.errno])
"""


class Client:
    """A program run by a user, and what it said."""

    def __init__(self, user: User, *command: object) -> None:
        self.user = user
        self._process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd="/",
            env=environment(),
            **user.popen(),
        )
        self.pid = self._process.pid

    def said(self) -> set[str]:
        output, _ = self._process.communicate(timeout=PLENTY)
        return set(output.split())


class Segment(NamedTuple):
    """A segment that the agent's user may not read, or not write: of whom, and its mode; as an image, or for a mask."""

    owner: User
    group: int
    mode: int
    mask: bool


SEGMENTS = (
    Segment(OTHER, OTHER.gid, 0o600, mask=False),
    Segment(OTHER, OTHER.gid, 0o660, mask=False),
    Segment(OTHER, GROUP, 0o620, mask=False),
    Segment(USER, GROUP, 0o060, mask=False),  # its owner comes first, and has no right
    Segment(OTHER, OTHER.gid, 0o600, mask=True),
    Segment(OTHER, GROUP, 0o640, mask=True),
)
# What of a package only root may read -> what becomes of it; nothing where it is not found.
PACKAGES = {
    "mochi/model.onnx": "mochi/model.onnx cannot be read: Permission denied.",
    "manifest.json": "manifest.json cannot be read: Permission denied.",
    "mochi": "The package cannot be read: Permission denied.",
    ".": "",
}


def named(share: int) -> dict[str, str]:
    """Return the names of packages, and what only root may read of each."""
    closed = list(PACKAGES)
    return {f"closed-{nth}": closed[nth % len(closed)] for nth in range(share)}


def write_packages(folder: Path, share: int) -> Path:
    packages.segmenter(folder / BOARD)
    for name, closed in named(share).items():
        path = packages.segmenter(folder / name) / closed
        path.chmod(0o700 if path.is_dir() else 0o600)
    return folder


class Device:
    """An agent, and what is tried on it."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.clients: set[int] = set()
        self._stub = agent.stub()

    def members(self, random: Random, share: int) -> None:
        """Fail unless those in the group are answered."""
        self._begin(random, share, self._member, "-c", CALLS, self.agent.socket, _describe().hex())
        self._all({"answered"}, "a member of the group")

    def strangers(self, random: Random, share: int) -> None:
        """Fail unless those outside are turned away at every socket on which the agent or a process of it listens."""
        listens = listening(self.agent)
        assert str(self.agent.socket) in listens
        assert len(listens) > 1, "the agent's own processes have none?"
        self._begin(random, share, self._stranger, "-S", "-c", CONNECTS, *listens)
        self._all({"EACCES"}, "who is not in the group")

    def packages(self, names: dict[str, str]) -> None:
        """Fail unless packages of which the agent may not read something are never loaded, and it says so."""
        for name, closed in names.items():
            asked = pb2.StartModelRequest(model_component=name)
            code, *_ = outcome(self._stub.StartModel, asked)
            if not PACKAGES[closed]:
                assert code == NOT_FOUND, "a package was found whose folder may not be read"
                continue
            assert code == OK
            until(lambda: self.agent.state(name) not in {"STARTING", "STOPPED"}, f"{name} is not loaded")
            described = self.agent.describe(name)
            assert described.status == pb2.FAILED, f"a package was loaded of which {closed} may not be read"
            assert described.status_message == PACKAGES[closed]

    def check_rights(self) -> None:
        """Fail if a process of the agent may do more than its user."""
        for pid in (self.agent.pid, *descendants(self.agent.pid)):
            status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            capabilities = {int(status[one], 16) for one in ("CapEff", "CapPrm", "CapInh", "CapAmb")}
            assert capabilities == {0}, f"process {pid} of the agent has capabilities"
            assert set(status["Uid"].split()) == {str(USER.uid)}
            assert {*status["Gid"].split(), *status["Groups"].split()} == {str(USER.gid), str(GROUP)}

    def _begin(self, random: Random, share: int, who, *command: object) -> None:
        self._running = [Client(who(random, nth), *command) for nth in range(share)]
        self.clients |= {client.pid for client in self._running}

    def _all(self, expected: set[str], who: str) -> None:
        said = [(client.user, client.said()) for client in self._running]
        wrong = [(user, one) for user, one in said if one != expected]
        assert not wrong, f"{who} is told: {wrong}"

    @staticmethod
    def _member(random: Random, nth: int) -> User:
        uid = random.randrange(55_000, 59_000)
        return User(uid, GROUP) if nth % 2 else User(uid, uid, (GROUP, ANOTHER_GROUP))

    @staticmethod
    def _stranger(random: Random, nth: int) -> User:
        uid = random.randrange(55_000, 59_000)
        groups = ((), (ANOTHER_GROUP,), (USER.gid,), (USER.gid, ANOTHER_GROUP))
        return User(uid, uid, groups[nth % len(groups)])

    def segment(self, segment: Segment) -> None:
        """Fail unless a segment that the agent may not open is refused, and is what it was."""
        name = new_name()
        create(name, PIXELS)
        try:
            os.chown(SHM / name, segment.owner.uid, segment.group)
            os.chmod(SHM / name, segment.mode)
            there = {"pixels": PIXELS, "mask": (name, SIZE)} if segment.mask else {"handle": (name, SIZE)}
            code, details, _ = outcome(self._stub.DetectAnomalies, request(BOARD, SIDE, SIDE, **there))
            assert code == INVALID, f"the agent opened {segment}: {code} {details}"
            assert CURE in details, details
            assert (SHM / name).read_bytes() == PIXELS
        finally:
            (SHM / name).unlink()


def _describe() -> bytes:
    return pb2.DescribeModelRequest(model_component=BOARD).SerializeToString()


def listening(agent: Agent) -> list[str]:
    """Return the paths of all sockets on which the processes of an agent listen."""
    inodes = set()
    for pid in (agent.pid, *descendants(agent.pid)):
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                inodes.add(str(fd.readlink()))
    found = set()
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        _, _, _, flags, _, _, inode, *path = line.split()
        if f"socket:[{inode}]" in inodes and int(flags, 16) & LISTENS:
            assert path, "a process of the agent listens where there are no permissions"
            # The kernel knows the agent's own by the name that it was bound to.
            found.add(path[0] if "/state/" in path[0] else str(agent.socket))
    return sorted(found)


@pytest.fixture(scope="module")
def models(module_folder) -> Path:
    return write_packages(module_folder / "models", len(PACKAGES))


def served(models: Path, user: User = USER, **settings: object) -> Agent:
    return Agent(models, user=user, socket_group=str(GROUP), log_level="info", **settings)


def counted(agent: Agent, code: str | None = None, rpc: str = "DetectAnomalies") -> int:
    """Return how many calls the agent, which has ended, has counted."""
    return agent.calls(rpc=rpc, code=code)


def test_two_users(promises, folder):
    with promises.run(PROMISE) as run:
        share = FULL if run.full else FAST
        models = write_packages(folder / "models", share.packages)
        with closing(served(models)) as agent:
            device = Device(agent.start())
            device.members(run.random, share.members)
            device.strangers(run.random, share.strangers)
            agent.run_model(BOARD)
            device.check_rights()
            for nth in range(share.segments):
                device.segment(SEGMENTS[nth % len(SEGMENTS)])
            device.packages(named(share.packages))
            assert agent.stop() == 0
            assert "Traceback" not in agent.log()
            assert counted(agent, "INVALID_ARGUMENT") == counted(agent) == share.segments
            assert counted(agent, rpc="StartModel") == share.packages + 1
            run.count(len(device.clients) + counted(agent) + counted(agent, rpc="StartModel") - 1)


def test_a_socket_for_the_wrong_is_noticed(models):
    """One that everybody may call, and one that nobody else may."""
    with closing(served(models, socket_mode="0666")) as agent:
        device = Device(agent.start())
        with pytest.raises(AssertionError, match="who is not in the group is told: .*connected"):
            device.strangers(Random(0), 2)
        agent.socket.chmod(0o600)
        with pytest.raises(AssertionError, match="a member of the group is told: .*UNAVAILABLE"):
            device.members(Random(0), 1)


def test_what_root_opens_is_noticed(models):
    with closing(served(models, MYSELF)) as agent:
        device = Device(agent.start())
        agent.run_model(BOARD)
        with pytest.raises(AssertionError, match="has capabilities"):
            device.check_rights()
        for segment in SEGMENTS:
            with pytest.raises(AssertionError, match="the agent opened"):
                device.segment(segment)
        for name, closed in named(len(PACKAGES)).items():
            with pytest.raises(AssertionError, match="a package was (loaded|found)"):
                device.packages({name: closed})
