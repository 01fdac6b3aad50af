"""S8: where /dev/shm is full or small, masks are refused by name, and all else goes on.

1. An agent has a small /dev/shm of its own, in a mount namespace: the machine's is never filled.
2. Clients have images and masks in segments, some of which were written before: those have their memory. Then /dev/shm is
   filled, to the last page or but for a few.
3. A mask that finds no room is refused, RESOURCE_EXHAUSTED, naming /dev/shm and the segment, which is as long as before.
   Images are read from segments, masks are given inline and written into memory that is there: all this goes on.
4. When there is room again, the masks that were refused are written.
5. An agent whose /dev/shm has 64 MB says at its start that one of the largest frames fits: one does, and two do not. It is
   refused the mask of such a frame beside the frame, and judges the frame. With more or less it says what fits there.
"""

import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random

import pytest

from support import packages
from support.agent import Agent
from support.calls import EXHAUSTED, OK, expected_mask, outcome, picture, request
from support.promises import Promise
from support.sabotage import sabotaged
from support.users import I_AM_ROOT, MYSELF

PROMISE = Promise(
    id="S8",
    text="/dev/shm full or of 64 MB: masks are refused by name, reads go on, and start-up says how many of the largest "
    "frames fit",
    case="a call that the agent has counted",
    full=50,
    fast=16,
)
# Of these, on the largest frames.
LARGE = {True: 10, False: 3}
MIB = 1 << 20
BOARD, PANEL = "board", "panel"
SIDE, LONGEST_SIDE = 128, 4096
MASK, LARGEST = 3 * SIDE * SIDE, 3 * LONGEST_SIDE * LONGEST_SIDE
PAGE = 4096
PIXELS = picture(SIDE, SIDE)
BRIGHT = bytes([0x23, 0xA4, 0x36])
# KiB of /dev/shm, and how many of the largest frames fit.
SMALL, USUAL = 4 << 10, 64 << 10
ROOM = {USUAL: 1, (48 << 10) - 4: 0, 48 << 10: 1, 96 << 10: 2, 16 << 10: 0}
# Runs a command as a user, with a /dev/shm of its own.
CONFINE = """
mount -t tmpfs -o size=$0k,mode=1777 tmpfs /dev/shm
exec setpriv --reuid "$1" --regid "$2" --clear-groups -- env "${@:3}"
"""


def confined(kib: int, uid: int, gid: int) -> list[str]:
    """Return what comes before a command that is to have a /dev/shm of its own of so many KiB."""
    return [
        *("unshare", "--mount", "--propagation", "private"),
        *("bash", "-e", "-c", CONFINE, str(kib), str(uid), str(gid)),
    ]


def can_confine() -> bool:
    command = [*confined(SMALL, os.geteuid(), os.getegid()), "true"]
    try:
        return I_AM_ROOT and subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


pytestmark = pytest.mark.skipif(
    not can_confine(), reason="a /dev/shm of its own needs root, who may mount, and unshare and setpriv of util-linux"
)


class Confined(Agent):
    """An agent with a /dev/shm of its own, which is also its clients'."""

    def __init__(self, *models: Path, kib: int) -> None:
        super().__init__(*models)
        self.prefix = confined(kib, self.user.uid, self.user.gid)
        self._group = self.user.gid
        self.user = MYSELF  # who mounts, and then becomes the other

    @property
    def shm(self) -> Path:
        return Path(f"/proc/{self.pid}/root/dev/shm")

    def segment(self, size: int, content: bytes = b"") -> str:
        """Return the name of a new segment; what is not written takes no memory."""
        name = f"edge-agent-full-{os.urandom(6).hex()}"
        fd = os.open(self.shm / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
        try:
            os.fchmod(fd, 0o660)
            os.fchown(fd, -1, self._group)
            os.ftruncate(fd, size)
            assert os.pwrite(fd, content, 0) == len(content)
        finally:
            os.close(fd)
        return name

    def allocated(self, size: int) -> str:
        """Return the name of a new segment that has all its memory; raise OSError where there is none."""
        name = self.segment(0)
        fd = os.open(self.shm / name, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError:
            self.remove(name)
            raise
        finally:
            os.close(fd)
        return name

    def read(self, name: str, size: int) -> bytes:
        with (self.shm / name).open("rb") as file:
            return file.read(size)

    def remove(self, name: str) -> None:
        (self.shm / name).unlink()

    def free(self) -> int:
        """Return how many bytes /dev/shm has room for."""
        there = os.statvfs(self.shm)
        return there.f_bavail * there.f_frsize

    def leave(self, filler: str, pages: int) -> None:
        """Make a segment so large that there is room for so many pages more."""
        room = self.free() - pages * PAGE
        fd = os.open(self.shm / filler, os.O_RDWR | os.O_CLOEXEC)
        try:
            size = os.fstat(fd).st_size + room
            os.ftruncate(fd, size)
            os.posix_fallocate(fd, 0, size)
        finally:
            os.close(fd)
        assert self.free() == pages * PAGE

    def frames_told(self) -> int:
        """Return how many of the largest frames the agent has said at its start that there is room for."""
        (told,) = re.findall(r"(INFO|WARNING) /dev/shm has room for (\d+) of the largest frames", self.log())
        assert (told[0] == "WARNING") == (told[1] == "0")
        return int(told[1])

    def frames(self) -> int:
        """Return how many of the largest frames there is room for, as making them shows."""
        made: list[str] = []
        while self.free() >= LARGEST:
            made.append(self.allocated(LARGEST))
        with pytest.raises(OSError, match="No space left"):
            self.allocated(LARGEST)
        for name in made:
            self.remove(name)
        return len(made)


def full(segment: str) -> str:
    """Return what a caller is told whose mask finds no room."""
    return (
        f"/dev/shm is full: the mask cannot be written into the segment '{segment}' of "
        "anomaly_mask_params.shared_memory_handle. Free shared memory or make /dev/shm larger."
    )


class Clients:
    """Callers of a model, with their segments made while there was room."""

    def __init__(self, agent: Confined, model: str, pixels: bytes, mask: bytes) -> None:
        self.agent = agent
        self.seen: Counter[str] = Counter()
        self._model = model
        self._side = SIDE if model == BOARD else LONGEST_SIDE
        self._pixels = pixels
        self._mask = mask
        self.source = agent.segment(len(pixels), pixels)
        self._stub = agent.stub()

    def _ask(self, *, inline: bool, mask: str | None) -> tuple[tuple[int, str], bytes]:
        image = {"pixels": self._pixels} if inline else {"handle": (self.source, len(self._pixels))}
        into = {"mask": (mask, len(self._mask))} if mask else {}
        asked = request(self._model, self._side, self._side, **image, **into)
        code, details, response = outcome(self._stub.DetectAnomalies, asked)
        told = response.detect_anomaly_result.anomaly_mask.byte_data if response else b""
        return (code, details), told

    def refused(self, mask: str, *, inline: bool = False) -> None:
        """A mask finds no room."""
        before = (self.agent.shm / mask).stat()
        answer, _ = self._ask(inline=inline, mask=mask)
        assert answer == (EXHAUSTED, full(mask)), f"a mask that finds no room is answered {answer}"
        after = (self.agent.shm / mask).stat()
        assert (after.st_ino, after.st_mode, after.st_size) == (before.st_ino, before.st_mode, before.st_size)
        self.seen["refused"] += 1

    def written(self, mask: str, *, inline: bool = False) -> None:
        """A mask finds room."""
        answer, _ = self._ask(inline=inline, mask=mask)
        assert answer == (OK, ""), f"a mask that has room is answered {answer}"
        assert self.agent.read(mask, len(self._mask)) == self._mask
        self.seen["written"] += 1

    def given(self, *, inline: bool = False) -> None:
        """A mask goes inline."""
        answer, mask = self._ask(inline=inline, mask=None)
        assert answer == (OK, ""), f"a read is answered {answer}"
        assert mask == self._mask
        self.seen["inline"] += 1


@contextmanager
def serving(models: Path, kib: int, model: str, **env: str) -> Iterator[Confined]:
    with closing(Confined(models, kib=kib)) as agent:
        agent.start(**env)
        agent.run_model(model)
        yield agent


def counted(agent: Confined, clients: Clients) -> int:
    """End an agent; return how many calls it has counted, which are those that were made."""
    assert agent.stop() == 0
    print(f"  {dict(clients.seen)}")
    assert agent.calls(code="OK") == clients.seen["written"] + clients.seen["inline"]
    assert agent.calls(code="RESOURCE_EXHAUSTED") == clients.seen["refused"]
    (worker,) = agent.status()["workers"].values()
    assert worker == {"started": 1}, "a worker died"
    assert "Traceback" not in agent.log()
    return agent.calls()


def full_and_free_again(agent: Confined, random: Random, calls: int) -> Clients:
    """Call while /dev/shm is full, then while there is room again."""
    clients = Clients(agent, BOARD, PIXELS.tobytes(), expected_mask(PIXELS).tobytes())
    there = agent.segment(MASK, b"x" * MASK)
    sparse = [agent.segment(MASK + PAGE) for _ in range(4)]
    filler = agent.segment(0)
    ways = [lambda: clients.refused(random.choice(sparse)), clients.given, lambda: clients.written(there)]
    ways += [lambda: clients.refused(random.choice(sparse), inline=True), lambda: clients.given(inline=True)]
    for number in range(calls - len(sparse)):
        if number % len(ways) == 0:
            for one in sparse:  # what was written of a mask until there was no room left
                os.truncate(agent.shm / one, 0)
                os.truncate(agent.shm / one, MASK + PAGE)
            agent.leave(filler, random.randrange(1, MASK // PAGE) if number % 2 else 0)
        ways[number % len(ways)]()
    agent.remove(filler)
    for one in sparse:
        clients.written(one)
    return clients


def largest(agent: Confined, calls: int) -> Clients:
    """Call with frames of which /dev/shm has room for one."""
    assert agent.frames_told() == agent.frames() == 1
    clients = Clients(agent, PANEL, b"\xff" * LARGEST, BRIGHT * (LARGEST // 3))
    mask = agent.segment(LARGEST)
    for number in range(calls - 1):
        if number % 2:
            clients.given()
        else:
            clients.refused(mask)
    agent.remove(clients.source)
    clients.written(mask, inline=True)
    return clients


@pytest.fixture(scope="module")
def models(module_folder) -> Path:
    packages.segmenter(module_folder / "models" / BOARD, (SIDE, SIDE))
    small = packages.manifest(
        segmentation=True, pixel_names=("background", "bright"), image_size=(LONGEST_SIDE, LONGEST_SIDE)
    )
    packages.write(module_folder / "models" / PANEL, small, packages.brightness())
    return module_folder / "models"


def test_full_shared_memory(promises, models):
    with promises.run(PROMISE) as run:
        large = LARGE[run.full]
        with serving(models, SMALL, BOARD) as agent:
            run.count(counted(agent, full_and_free_again(agent, run.random, run.declared - large)))
        with serving(models, USUAL, PANEL) as agent:
            run.count(counted(agent, largest(agent, large)))
        for kib in ROOM if run.full else ():
            with closing(Confined(kib=kib)) as agent:
                agent.start()
                assert agent.frames_told() == agent.frames() == ROOM[kib]


# An agent that maps what it writes to, and counts on one frame too many.
DAMAGES = """
import mmap
from edge_agent import bitmaps
fit = bitmaps.frames_that_fit
def mapped(target, pixels):
    size = target._mask.offset + len(pixels)
    mmap.mmap(target._fd, size)[size - len(pixels) :] = bytes(pixels)
bitmaps.MaskTarget.write = mapped
bitmaps.frames_that_fit = lambda: fit() + 1
"""


def test_a_mask_that_is_mapped_and_room_that_is_not_there_are_noticed(models, folder):
    with serving(models, SMALL, BOARD, **sabotaged(folder, DAMAGES)) as agent:
        assert agent.frames_told() != agent.frames()
        with pytest.raises(AssertionError, match="no room is answered .13, .*signal 7 .SIGBUS"):
            full_and_free_again(agent, Random(0), 10)
