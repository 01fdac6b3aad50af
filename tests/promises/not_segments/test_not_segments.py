"""S2: what lies in /dev/shm and is no segment is refused, at once and untouched, as an image and as a place for a mask.

1. One agent runs a model. Twelve kinds of objects are made in /dev/shm, open to everybody, and named to the agent as the
   image's segment and as the mask's: pipes, a folder, links, devices, a socket, a semaphore.
2. Each call is INVALID_ARGUMENT within a few seconds, for it blocks nowhere, with a sentence that says that this is no
   segment, cannot be used, or bears a semaphore's name.
3. The object is what it was: a pipe holds its bytes, a semaphore its value, nobody has connected to the socket, and
   nothing has come or changed behind a link.
4. The worker is the process that it was, and judges an image in a segment.

Devices need root, and a system that lets it make them; where /dev/shm is mounted `nodev` the kernel does not open them.
"""

import array
import contextlib
import fcntl
import os
import select
import socket
import stat
import termios
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import posix_ipc
import pytest

from support import packages
from support.agent import Agent, serving
from support.calls import INVALID, OK, outcome, request
from support.promises import Promise
from support.sabotage import sabotaged
from support.shm import SHM, create, new_name

PROMISE = Promise(
    id="S2",
    text="a FIFO, directory, symlink, device, socket or semaphore in /dev/shm, for image and mask: refused without blocking",
    case="a call that the agent has counted as refused",
    full=24,
    fast=24,
)
MODEL = "board"
SIDE = 64
SIZE = 3 * SIDE * SIDE
PIXELS = b"\x33" * SIZE
FIELDS = ("handle", "mask")
# More than a thousand times what a call takes.
AT_ONCE = 5.0
REFUSALS = ("is not a shared memory segment", "does not exist or the agent may not", "belong to semaphores")
NO_DEVICES = "devices cannot be made here"


class Thing:
    """Something in /dev/shm that is no segment; `look` tells what else must not change."""

    def __init__(self, path: Path, look: Callable[[], object] = lambda: None) -> None:
        self.path = path
        self._look = look
        self._before = self._seen()

    def check_untouched(self) -> None:
        """Fail if it is not what it was."""
        after = self._seen()
        assert after == self._before, f"it was {self._before}, and is {after}"

    def _seen(self) -> object:
        there = self.path.lstat()
        return there.st_ino, there.st_mode, there.st_nlink, there.st_uid, there.st_size, there.st_mtime_ns, self._look()


def new_path(stack: ExitStack) -> Path:
    """Return a path in /dev/shm; what is there in the end is removed."""
    path = SHM / new_name()
    stack.callback(lambda: path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True))
    return path


def fifo(stack: ExitStack) -> Thing:
    """A pipe whose other end nobody has."""
    path = new_path(stack)
    os.mkfifo(path)
    path.chmod(0o666)
    return Thing(path)


def full_fifo(stack: ExitStack) -> Thing:
    """A pipe with an image in it."""
    path = fifo(stack).path
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    stack.callback(os.close, fd)
    assert os.write(fd, PIXELS) == SIZE

    def bytes_in_it() -> int:
        count = array.array("i", [0])
        fcntl.ioctl(fd, termios.FIONREAD, count)
        return count[0]

    return Thing(path, bytes_in_it)


def directory(stack: ExitStack) -> Thing:
    path = new_path(stack)
    path.mkdir()
    path.chmod(0o777)
    return Thing(path, lambda: list(path.iterdir()))


def link(stack: ExitStack, target: Path, look: Callable[[], object]) -> Thing:
    path = new_path(stack)
    path.symlink_to(target)
    return Thing(path, look)


def link_to_a_segment(stack: ExitStack) -> Thing:
    target = new_path(stack)
    create(target.name, PIXELS)
    return link(stack, target, target.read_bytes)


def link_to_a_file(stack: ExitStack) -> Thing:
    """A file elsewhere that everybody may read and write, as large as an image."""
    target = Path("/tmp", new_name())
    target.write_bytes(PIXELS)
    stack.callback(target.unlink)
    target.chmod(0o666)
    return link(stack, target, target.read_bytes)


def link_to_nothing(stack: ExitStack) -> Thing:
    target = new_path(stack)
    return link(stack, target, target.exists)


def link_to_a_fifo(stack: ExitStack) -> Thing:
    target = full_fifo(stack)
    return link(stack, target.path, target.check_untouched)


def device(kind: int, major: int, minor: int) -> Callable[[ExitStack], Thing]:
    def make(stack: ExitStack) -> Thing:
        path = new_path(stack)
        os.mknod(path, 0o666 | kind, os.makedev(major, minor))
        path.chmod(0o666)
        return Thing(path)

    return make


def listening_socket(stack: ExitStack) -> Thing:
    path = new_path(stack)
    listener = stack.enter_context(socket.socket(socket.AF_UNIX))
    listener.bind(str(path))
    path.chmod(0o666)
    listener.listen()
    return Thing(path, lambda: select.select([listener], [], [], 0)[0])


def semaphore(stack: ExitStack) -> Thing:
    name = f"/{new_name()}"
    made = posix_ipc.Semaphore(name, posix_ipc.O_CREX, mode=0o666, initial_value=3)
    stack.callback(made.close)
    stack.callback(made.unlink)
    path = SHM / f"sem.{name[1:]}"
    path.chmod(0o666)
    return Thing(path, lambda: made.value)


DEVICES = {
    "device of zeros": device(stat.S_IFCHR, 1, 5),
    "device of nothing": device(stat.S_IFCHR, 1, 3),
    "block device": device(stat.S_IFBLK, 7, 0),
}
KINDS = {
    "fifo": fifo,
    "full fifo": full_fifo,
    "directory": directory,
    "link to a segment": link_to_a_segment,
    "link to a file": link_to_a_file,
    "link to nothing": link_to_nothing,
    "link to a fifo": link_to_a_fifo,
    "socket": listening_socket,
    "semaphore": semaphore,
    **DEVICES,
}


def devices_can_be_made() -> bool:
    with ExitStack() as stack, contextlib.suppress(PermissionError):
        DEVICES["device of nothing"](stack)
        return True
    return False


class Client:
    """Names things to an agent that are no segments."""

    def __init__(self, agent: Agent, patience: float = AT_ONCE) -> None:
        self.agent = agent
        self._patience = patience
        self._stub = agent.stub()

    def is_refused(self, kind: str, field: str) -> None:
        """Fail unless a thing is refused at once, with a sentence that says why, and is what it was."""
        pixels = None if field == "handle" else PIXELS
        with ExitStack() as stack:
            thing = KINDS[kind](stack)
            asked = request(MODEL, SIDE, SIDE, pixels, **{field: (thing.path.name, SIZE)})
            code, details, _ = outcome(self._stub.DetectAnomalies, asked, self._patience)
            thing.check_untouched()
            assert code == INVALID, f"a {kind} as {field} was answered {code}: {details}"
            assert any(one in details for one in REFUSALS), f"a {kind} as {field} was taken for a segment: {details}"
            assert str(SHM) not in details.replace("host's /dev/shm", "")

    def are_refused(self, kinds: list[str]) -> int:
        """Fail unless all are refused for the image and for the mask; return how many refusals the agent has counted."""
        self.agent.run_model(MODEL)
        workers = self.agent.workers()
        for kind in kinds:
            for field in FIELDS:
                self.is_refused(kind, field)
        self.judges()
        assert self.agent.workers() == workers, "the worker is another process"
        assert self.agent.stop() == 0
        assert self.agent.calls(code="OK") == 1
        assert "Traceback" not in self.agent.log()
        return self.agent.calls() - 1

    def judges(self) -> None:
        """Fail unless an image in a segment is judged."""
        with ExitStack() as stack:
            path = new_path(stack)
            create(path.name, PIXELS)
            asked = request(MODEL, SIDE, SIDE, handle=(path.name, SIZE))
            assert outcome(self._stub.DetectAnomalies, asked)[:2] == (OK, "")


@pytest.fixture(scope="module")
def models(module_folder) -> Path:
    return packages.segmenter(module_folder / "models" / MODEL, (SIDE, SIDE)).parent


def test_not_segments(promises, models):
    if not devices_can_be_made():
        with serving(models) as agent:
            others = [kind for kind in KINDS if kind not in DEVICES]
            refused = Client(agent).are_refused(others)
        pytest.skip(f"{NO_DEVICES}: {refused} of {PROMISE.full} cases ran, and are in order")
    with promises.run(PROMISE) as run, serving(models) as agent:
        run.count(Client(agent).are_refused(list(KINDS)))


# Does what a file says when a segment is named or opened.
DAMAGES = """
import os
from pathlib import Path
from types import SimpleNamespace
from edge_agent import bitmaps
DAMAGE = Path({damage!r})
FLAGS, S_ISREG, opened, segment = bitmaps.OPEN_FLAGS, bitmaps.stat.S_ISREG, bitmaps._open, bitmaps.segment
LEFT_OUT = {{"it waits": os.O_NONBLOCK, "it follows": os.O_NOFOLLOW, "it creates": os.O_NOFOLLOW}}
def damaged(field, name, access):
    damage = DAMAGE.read_text()
    bitmaps.OPEN_FLAGS = FLAGS & ~LEFT_OUT.get(damage, 0) | (os.O_CREAT if damage == "it creates" else 0)
    bitmaps.stat = SimpleNamespace(S_ISREG=lambda mode: damage == "it takes anything" or S_ISREG(mode))
    if damage == "it reads":
        os.read(os.open(bitmaps.SEGMENTS / name, os.O_RDONLY), 1)
    return opened(field, name, access)
def named(field, name, offset, size):
    if DAMAGE.read_text() == "any name":
        return bitmaps.Segment(name.removeprefix("/"), offset, size)
    return segment(field, name, offset, size)
bitmaps._open, bitmaps.segment = damaged, named
"""
# What is done -> kind and field that show it, and what is noticed.
CONTROLS = {
    "it follows": ("link to a file", "handle", "answered 0"),
    "it creates": ("link to nothing", "mask", "it was .*False.*, and is .*True"),
    "it takes anything": ("directory", "handle", "was taken for a segment"),
    "it reads": ("full fifo", "mask", "it was .*12288.*, and is .*12287"),
    "any name": ("semaphore", "mask", "was taken for a segment: .* has 32"),
}


@pytest.fixture(scope="module")
def damaged(models, module_folder):
    """A function that says what is to be done from now on, and returns a client."""
    damage = module_folder / "damage"
    damage.touch()
    with closing(Agent(models)) as agent:
        agent.start(**sabotaged(module_folder, DAMAGES.format(damage=str(damage))))
        agent.run_model(MODEL)

        def do(what: str, patience: float = AT_ONCE) -> Client:
            damage.write_text(what)
            return Client(agent, patience)

        yield do


@pytest.mark.parametrize("damage", CONTROLS)
def test_what_is_done_to_no_segment_is_noticed(damaged, damage):
    kind, field, noticed = CONTROLS[damage]
    with pytest.raises(AssertionError, match=noticed):
        damaged(damage).is_refused(kind, field)


def test_an_agent_that_waits_is_noticed(damaged):
    client = damaged("it waits", patience=1.0)
    with pytest.raises(AssertionError, match="fifo as handle was answered 4"):
        client.is_refused("fifo", "handle")
