"""U3: from the instant on at which a socket can be reached, it has the mode and the group that were asked for.

1. A mode is drawn, a group or none is given, whoever starts the agent has one umask or another, and the folder may have
   a default ACL that permits everything to everybody. The kernel records what becomes of the entries of the folder.
2. The agent starts. When it has bound its socket it stands still: its path is not there yet, and what is there may be
   entered or called by nobody who may not call the agent.
3. It goes on and serves: the socket at its path has exactly the mode and the group.
4. Nothing in the folder was changed or renamed after it had been made, so that it was at each instant what it was when
   it was looked at; and nothing was ever there but the socket and what was seen when the agent stood still.
5. It ends in order, and the folder is empty.
"""

import os
import shutil
import signal
import stat
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest

from promises.socket_mode.watching import Event, Watch
from support.agent import Agent, place
from support.processes import fields
from support.promises import Promise
from support.sabotage import sabotaged
from support.users import AGENT, User, agent_user
from support.waiting import until

PROMISE = Promise(
    id="U3",
    text="the socket never has a wider mode, or another group, than asked for, at any instant of a start",
    case="an agent that served and ended in order, of whose start the kernel has recorded every change",
    full=200,
    fast=2,
)
GROUP = 54_403
USER = User(AGENT.uid, AGENT.gid, (GROUP,)) if agent_user() == AGENT else agent_user()
MODES = (0o600, 0o660, 0o666, 0o620)
UMASKS = (0, 0o022, 0o077)
NAME = "agent.sock"
STANDS = """
import os, signal
from edge_agent.unix_socket import ServedSocket
publish = ServedSocket.publish
def standing(self):
    os.kill(os.getpid(), signal.SIGSTOP)
    publish(self)
ServedSocket.publish = standing
"""
# The entries of a default ACL (acl(5)), as the file system takes it: owner, group and others may do everything.
OWNER, OWNING_GROUP, OTHERS, NOBODY = 0x01, 0x04, 0x20, 0xFFFFFFFF
DEFAULT_ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", who, 7, NOBODY) for who in (OWNER, OWNING_GROUP, OTHERS)
)


class Start(NamedTuple):
    """How an agent is started."""

    mode: int
    group: bool
    umask: int
    acl: bool

    @staticmethod
    def draw(random: Random, nth: int) -> "Start":
        return Start(random.choice(MODES), nth % 2 == 0, UMASKS[nth % len(UMASKS)], random.random() < 0.3)

    def gid(self) -> int:
        """Return the group that the socket is to have."""
        return GROUP if self.group and USER.groups else USER.gid

    def check(self, path: Path) -> None:
        """Fail unless a socket has exactly the mode and the group, or a folder is the agent's alone."""
        info = path.lstat()
        mode, asked = stat.S_IMODE(info.st_mode), self.mode
        if stat.S_ISDIR(info.st_mode):
            assert (mode, info.st_uid) == (0o700, USER.uid), f"{path.name} is open to others: {mode:04o}"
            return
        assert stat.S_ISSOCK(info.st_mode), f"{path.name} is no socket"
        assert mode == asked, f"{path.name} has mode {mode:04o}, and {asked:04o} was asked for"
        assert info.st_gid == self.gid(), f"{path.name} has group {info.st_gid}, and {self.gid()} was asked for"


def check_record(record: list[Event], seen: set[str]) -> None:
    """Fail unless nothing was ever in a folder but what was seen, and nothing was changed after it was made."""
    later = [event for event in record if event.kind not in {"made", "removed"}]
    assert not later, f"not left as it was made: {later}"
    made = Counter(event.name for event in record if event.kind == "made")
    assert made == Counter(seen), f"made were {dict(made)}, and seen {seen}"


def stands(agent: Agent) -> bool:
    assert agent.process.poll() is None, agent.log()
    return fields(Path(f"/proc/{agent.pid}/stat"))[0] == "T"


def watch(agent: Agent, start: Start, record: Watch) -> None:
    """Look at a start and an end of an agent that stands still; fail if the socket could be reached with other rights."""
    sockets = agent.socket.parent
    until(lambda: stands(agent), "it has bound its socket")
    for entry in sockets.iterdir():
        start.check(entry)
    seen = {entry.name for entry in sockets.iterdir()}
    assert seen, "nothing is bound"
    assert NAME not in seen, "the path is there before the server"
    agent.process.send_signal(signal.SIGCONT)
    until(agent._serves, "it serves")
    start.check(agent.socket)
    until(lambda: [entry.name for entry in sockets.iterdir()] == [NAME], "its path is all that is left")
    check_record(record.record(), seen | {NAME})
    assert agent.stop() == 0
    assert list(sockets.iterdir()) == []
    check_record(record.record(), seen | {NAME})
    assert "WARNING" not in agent.log()
    assert "Traceback" not in agent.log()


@contextmanager
def begun(start: Start, code: str = "") -> Iterator[tuple[Agent, Watch]]:
    """Yield an agent that is started and stands still when it has bound its socket, and the record of its folder."""
    folder = place(USER)
    sockets = folder / "sockets"
    sockets.mkdir()
    os.chown(sockets, USER.uid, USER.gid)
    if start.acl:
        os.setxattr(sockets, "system.posix_acl_default", DEFAULT_ACL)
    agent = Agent(
        folder=folder,
        user=USER,
        socket=str(sockets / NAME),
        socket_mode=f"{start.mode:04o}",
        socket_group=str(start.gid()) if start.group else "",
        log_level="info",
    )
    env = sabotaged(folder, STANDS + code)
    with closing(Watch(sockets)) as record:
        before = os.umask(start.umask)
        try:
            agent.spawn(**env)
        finally:
            os.umask(before)
        try:
            yield agent, record
        finally:
            if agent.process.poll() is None:
                agent.process.send_signal(signal.SIGCONT)
            agent.close()
            shutil.rmtree(folder)


def test_socket_mode(promises):
    with promises.run(PROMISE) as run:
        starts = [Start.draw(run.random, nth) for nth in range(run.declared)]
        for start in starts:
            with begun(start) as (agent, record):
                watch(agent, start, record)
                run.count(agent.process.returncode == 0)
        modes = dict(Counter(f"{start.mode:04o}" for start in starts))
        groups, acls = sum(start.group for start in starts), sum(start.acl for start in starts)
        print(f"  modes {modes}; {groups} with a group, {acls} in a folder with a default ACL")


CHANGED_LATER = """
import stat
def bind(self, bind):
    self._private = self._path.with_name(".private")
    before = os.umask(0)
    bind(f"unix:{self._private}")
    os.umask(before)
    self._private.chmod(self._mode)
ServedSocket.bind = bind
"""
NO_UMASK = """
umask = os.umask
os.umask = lambda mode: umask(0)
"""
GROUP_LATER = """
from edge_agent import unix_socket
give, published = unix_socket.give_to_group, ServedSocket.publish
unix_socket.give_to_group = lambda *_: None
def late(self):
    published(self)
    give(self._path, self._group, "the socket")
ServedSocket.publish = late
"""
# What is broken -> code that breaks it, and what is noticed.
CONTROLS = {
    "bound with any mode, then changed": (CHANGED_LATER, "not left as it was made"),
    "bound without a umask": (NO_UMASK, "has mode 0777"),
    "the group comes later": (GROUP_LATER, "has group|not left as it was made"),
}


@pytest.mark.parametrize("broken", CONTROLS)
def test_a_socket_for_others_is_noticed(broken):
    code, noticed = CONTROLS[broken]
    if "group" in broken and not USER.groups:
        pytest.skip("needs root, to run the agent with a group besides its own")
    start = Start(0o660, group="group" in broken, umask=0, acl=False)
    with begun(start, code) as (agent, record), pytest.raises(AssertionError, match=noticed):
        watch(agent, start, record)
