"""S5: a mask is written into exactly its range of the client's segment, and nothing else is done to that segment.

1. One agent runs a model; segments belong to the agent's own user, who could do anything to them.
2. A segment is filled with random bytes; the mask's range is drawn in it: at its beginning, at its end, between guard
   bytes, behind or before the image that is in the same segment, directly beside it or not, under one name or two.
   After the answer the range holds the mask, and every other byte, the size, the mode, the links, the owner and the inode
   are what they were.
3. Segments are shortened at an instant that is drawn. The call is answered OK or INVALID_ARGUMENT; the segment is as long
   as it was made, or ends with the mask, which was then written when it was that long just before; nothing before or behind
   the range has come.
4. In another agent the read of the image is held, when the mask's segment was looked at for the first time. Meanwhile that
   is shortened: the call is refused, and it stays as short. Or the write is held, when the segment was looked at for the
   last time. Meanwhile it is shortened, lengthened, or replaced by another of its name. The segment that was opened ends
   with the mask or as the client left it; the other one is untouched.
5. Masks that would overwrite their image are refused, by however few bytes, whether the segment is named alike, with a
   slash more, or by a hard link, and nothing is written.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import pytest

from support import packages
from support.agent import Agent, serving
from support.calls import INVALID, OK, expected_mask, outcome, padded, request
from support.promises import Promise
from support.sabotage import sabotaged
from support.users import agent_user
from support.waiting import until

PROMISE = Promise(
    id="S5",
    text="a mask is written into exactly its range, bytes around it untouched; the segment is never unlinked, chmod-ed or "
    "grown beyond the size seen just before the write; masks that overlap their image are refused",
    case="a call that the agent has counted",
    full=1000 + 50,
    fast=60 + 10,
)
MODEL = "board"
# An odd width, so that rows can be padded.
WIDTH, HEIGHT = 67, 70
MASK = 3 * WIDTH * HEIGHT
PADDED = (3 * WIDTH + 3) // 4 * 4 * HEIGHT
SHM = Path("/dev/shm")
# What comes before and behind the mask, at most.
GUARD = 9000
# Of the longest delay until a segment is shortened, in seconds: a little more than a call takes, on this machine to begin
# with; by what becomes of the masks it is made longer or shorter.
LONGEST_CALL = 0.003
OVERLAPS = (
    "anomaly_mask_params.shared_memory_handle overlaps bitmap.shared_memory_handle; give the mask a range of its own."
)


@dataclass
class Kept:
    """What must not change of a segment: device, inode, mode, links and owner."""

    facts: tuple[int, ...]
    size: int

    @staticmethod
    def of(there: os.stat_result) -> "Kept":
        facts = there.st_dev, there.st_ino, there.st_mode, there.st_nlink, there.st_uid, there.st_gid
        return Kept(facts, there.st_size)


class Segment:
    """A segment of the agent's own user, kept open by its client; under the names that are given to it."""

    def __init__(self, content: bytes) -> None:
        self._names: list[str] = []
        self.name = self._new_name()
        self.fd = self.create(content)

    def create(self, content: bytes) -> int:
        """Make a new segment of the name."""
        fd = os.open(SHM / self.name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
        os.fchmod(fd, 0o640)
        os.fchown(fd, agent_user().uid, agent_user().gid)
        os.pwrite(fd, content, 0)
        return fd

    def link(self) -> str:
        """Return another name of the segment."""
        name = self._new_name()
        os.link(SHM / self.name, SHM / name)
        return name

    def content(self) -> bytes:
        return os.pread(self.fd, os.fstat(self.fd).st_size, 0)

    def close(self) -> None:
        os.close(self.fd)
        for name in self._names:
            (SHM / name).unlink(missing_ok=True)

    def _new_name(self) -> str:
        name = f"edge-agent-test-masks-{os.urandom(6).hex()}"
        self._names.append(name)
        return name


@contextmanager
def segment(random: Random, size: int) -> Iterator[tuple[Segment, bytes]]:
    """Yield a segment of random bytes, and these."""
    content = random.randbytes(size)
    with closing(Segment(content)) as made:
        yield made, content


def drawn(random: Random, most: int) -> int:
    """Return a number of bytes: often none, one, or what fills a page."""
    return random.choice([0, 1, 4096 - 1, 4096, random.randint(0, most)])


class Client:
    """Calls an agent's model with masks into segments, and looks at what becomes of these."""

    def __init__(self, agent: Agent, random: Random) -> None:
        self.agent = agent
        self.seen: Counter[str] = Counter()
        self._random = random
        self._longest = LONGEST_CALL
        self._stub = agent.stub()
        self._pixels = random.randbytes(MASK)
        image = np.frombuffer(self._pixels, np.uint8).reshape(HEIGHT, WIDTH, 3)
        self._padded = padded(image)
        self._mask = expected_mask(image).tobytes()

    def _ask(self, mask: tuple[str, int, int], **image: object) -> tuple[int, str]:
        asked = request(MODEL, WIDTH, HEIGHT, mask=mask, **(image or {"pixels": self._pixels}))
        code, details, response = outcome(self._stub.DetectAnomalies, asked)
        if code == OK:
            echoed = response.detect_anomaly_result.anomaly_mask
            handle = echoed.shared_memory_handle
            assert (handle.name, handle.size, handle.offset) == mask
            assert (echoed.width, echoed.height, echoed.byte_data) == (WIDTH, HEIGHT, b"")
        return code, details

    def whole(self) -> None:
        """A mask anywhere in a segment; the handle may be larger than the mask."""
        offset, behind = drawn(self._random, GUARD), drawn(self._random, GUARD)
        with segment(self._random, offset + MASK + behind) as (made, content):
            before = Kept.of(os.fstat(made.fd))
            slash = self._random.choice(["", "/"])
            answer = self._ask((slash + made.name, MASK + self._random.randint(0, behind), offset))
            assert answer == (OK, "")
            self._written(made, before, content, offset)
        self.seen["whole"] += 1

    def beside(self) -> None:
        """The image in the same segment, before or behind the mask, perhaps by another name."""
        image = self._random.choice([self._pixels, self._padded])
        lead, gap = drawn(self._random, GUARD), drawn(self._random, GUARD)
        mask_first = self._random.random() < 0.5
        mask = lead if mask_first else lead + len(image) + gap
        source = lead + MASK + gap if mask_first else lead
        with segment(self._random, lead + len(image) + gap + MASK + drawn(self._random, GUARD)) as (made, _):
            os.pwrite(made.fd, image, source)
            content = made.content()
            other = made.link() if self._random.random() < 0.5 else made.name
            before = Kept.of(os.fstat(made.fd))
            assert self._ask((made.name, MASK, mask), handle=(other, len(image), source)) == (OK, "")
            self._written(made, before, content, mask)
        self.seen["beside its image"] += 1

    def shortened(self) -> None:
        """The segment is shortened while the call is under way."""
        offset, behind = drawn(self._random, GUARD), drawn(self._random, GUARD)
        with segment(self._random, offset + MASK + behind) as (made, content):
            length = self._random.randrange(len(content))
            before = Kept.of(os.fstat(made.fd))
            asked = request(MODEL, WIDTH, HEIGHT, self._pixels, mask=(made.name, MASK, offset))
            call = self._stub.DetectAnomalies.future(asked)
            _spin(self._longest * self._random.random() ** 2)
            os.ftruncate(made.fd, length)
            error = call.exception()
            code = error.code().value[0] if error else OK
            assert code in {OK, INVALID}, f"{code}: {error}"
            became = "refused" if code else "written before" if self._ends(made, length) else "undone"
            self.seen[f"shortened: {became}"] += 1
            self._longest *= 0.8 if became == "written before" else 1.25
            if code == INVALID:
                self._left(made, before, content[:length])
            elif self._ends(made, length):
                self._left(made, before, self._with_mask(content, offset)[:length])
            else:
                self._left(made, before, self._undone(content[:length], offset))

    @staticmethod
    def _ends(made: Segment, length: int) -> bool:
        return os.fstat(made.fd).st_size == length

    def held_early(self, hold: "Hold") -> None:
        """The segment is shortened between the first look at its size and the last."""
        offset, behind = drawn(self._random, GUARD), drawn(self._random, GUARD)
        with (
            segment(self._random, MASK) as (image, _),
            segment(self._random, offset + MASK + behind) as (made, content),
        ):
            length = self._random.randrange(offset + MASK)
            before = Kept.of(os.fstat(made.fd))
            asked = request(MODEL, WIDTH, HEIGHT, handle=(image.name, MASK), mask=(made.name, MASK, offset))
            call = self._stub.DetectAnomalies.future(asked)
            hold.wait()
            os.ftruncate(made.fd, length)
            hold.let_go()
            until(lambda: call.done() or hold.holds(), "the call goes on")
            if not call.done():
                hold.let_go()
            error = call.exception()
            assert error, "a mask was written into a segment that was too short"
            assert error.code().value[0] == INVALID
            assert f"has {length}." in error.details()
            self._left(made, before, content[:length])
        self.seen["held early and shortened"] += 1

    def held(self, hold: "Hold") -> None:
        """The segment is changed between the last look at its size and the write."""
        offset, behind = drawn(self._random, GUARD), drawn(self._random, GUARD)
        with segment(self._random, offset + MASK + behind) as (made, content):
            facts = Kept.of(os.fstat(made.fd)).facts
            asked = request(MODEL, WIDTH, HEIGHT, self._pixels, mask=(made.name, MASK, offset))
            call = self._stub.DetectAnomalies.future(asked)
            hold.wait()
            way = self._random.choice(["shortened", "lengthened", "replaced"])
            if way == "replaced":
                (SHM / made.name).unlink()
                other = made.create(other_content := self._random.randbytes(offset + MASK))
                other_kept = Kept.of(os.fstat(other))
            else:
                length = self._random.randrange(len(content)) if way == "shortened" else len(content) + 1 + behind
                os.ftruncate(made.fd, length)
                left = content[:length].ljust(length, b"\0") if way == "lengthened" else content[:length]
            hold.let_go()
            assert call.exception() is None, call.exception()
            after = os.fstat(made.fd)
            if way == "replaced":
                assert after.st_nlink == 0
                assert made.content() == self._with_mask(content, offset), "the mask is not where it belongs"
                assert os.pread(other, other_kept.size + 1, 0) == other_content, "another segment was written to"
                assert Kept.of(os.stat(SHM / made.name)) == other_kept
                os.close(other)
            else:
                self._left(made, Kept(facts, 0), self._undone(left, offset))
        self.seen[f"held and {way}"] += 1

    def overlapping(self) -> None:
        """The mask would overwrite some of its image."""
        image = self._random.choice([self._pixels, self._padded])
        # How far the mask begins behind the image, or before it.
        shift = self._random.choice(
            [0, 1, -1, len(image) - 1, 1 - MASK, self._random.randint(1 - MASK, len(image) - 1)]
        )
        source = MASK
        with segment(self._random, 2 * MASK + 2 * len(image)) as (made, _):
            os.pwrite(made.fd, image, source)
            content = made.content()
            way = self._random.choice(["named alike", "named with a slash", "named by a link", "a link is named"])
            mine = f"/{made.name}" if way == "named with a slash" else made.name
            other = made.link() if "link" in way else made.name
            names = (other, mine) if way == "a link is named" else (mine, other)
            before = Kept.of(os.fstat(made.fd))
            answer = self._ask((names[0], MASK, source + shift), handle=(names[1], len(image), source))
            assert answer == (INVALID, OVERLAPS), f"the mask overlaps its image, {way}, and the answer is {answer}"
            self._left(made, before, content)
        self.seen[f"overlapping, {way}"] += 1

    def _with_mask(self, content: bytes, offset: int) -> bytes:
        return content[:offset] + self._mask + content[offset + MASK :]

    def _undone(self, content: bytes, offset: int) -> bytes:
        """Return what a segment holds that was shortened to `content` just before the mask was written."""
        return self._with_mask(content.ljust(offset, b"\0"), offset)

    def _written(self, made: Segment, before: Kept, content: bytes, offset: int) -> None:
        self._left(made, before, self._with_mask(content, offset))

    @staticmethod
    def _left(made: Segment, before: Kept, content: bytes) -> None:
        """Fail unless the segment, by its name, is the one that it was, and holds `content`."""
        try:
            named = os.stat(SHM / made.name)
        except FileNotFoundError:
            raise AssertionError("the segment was unlinked") from None
        assert named.st_size == len(content), f"the segment has {named.st_size} bytes, not {len(content)}"
        assert Kept.of(named).facts == before.facts, "the segment is not what it was"
        found = made.content()
        wrong = [place for place, (one, other) in enumerate(zip(found, content, strict=True)) if one != other]
        assert not wrong, f"{len(wrong)} bytes are wrong, from {wrong[0]} to {wrong[-1]}"


def _spin(seconds: float) -> None:
    """Let an instant pass that nothing tells."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


# An agent whose workers wait before they read or write a segment, while there is a file that they make themselves.
HOLDS = """
import os, time
from pathlib import Path
MARK = Path({mark!r})
preadv, pwrite = os.preadv, os.pwrite
holds, then = lambda: True, lambda fd, *_: fd
def held(fd):
    path, size = os.readlink(f"/proc/self/fd/{{fd}}"), os.fstat(fd).st_size
    if path.startswith("/dev/shm/") and holds():
        MARK.touch()
        while MARK.exists():
            time.sleep(0.001)
        return then(fd, path, size)
    return fd
os.preadv = lambda fd, *told: preadv(held(fd), *told)
os.pwrite = lambda fd, *told: pwrite(held(fd), *told)
"""


class Hold:
    """The reads and writes of an agent's workers, each of which waits until it is let go."""

    def __init__(self, folder: Path) -> None:
        self._mark = folder / "held"
        self.code = HOLDS.format(mark=str(self._mark))

    def holds(self) -> bool:
        return self._mark.exists()

    def wait(self) -> None:
        until(self.holds, "a read or a write is held")

    def let_go(self) -> None:
        self._mark.unlink()


@pytest.fixture(scope="module")
def models(module_folder) -> Path:
    return packages.segmenter(module_folder / "models" / MODEL, (WIDTH, HEIGHT)).parent


@contextmanager
def broken(models: Path, folder: Path, code: str) -> Iterator[Agent]:
    with closing(Agent(models)) as agent:
        agent.start(**sabotaged(folder, code))
        agent.run_model(MODEL)
        yield agent


def counted(agent: Agent, seen: Counter[str]) -> int:
    """End an agent; return how many calls it has counted, which are those that were seen."""
    assert agent.stop() == 0
    assert agent.calls() == agent.calls(code="OK") + agent.calls(code="INVALID_ARGUMENT") == seen.total()
    assert agent.counted(MODEL, "started") == 1
    assert "Traceback" not in agent.log()
    print(f"  {dict(sorted(seen.items()))}")
    return agent.calls()


def test_masks(promises, models, folder):
    with promises.run(PROMISE) as run:
        overlapping = 50 if run.full else 10
        held = (run.declared - overlapping) // 10
        shortened = 2 * held
        rest = run.declared - overlapping - held - shortened
        with serving(models) as agent:
            agent.run_model(MODEL)
            client = Client(agent, run.random)
            ways = [client.overlapping] * overlapping + [client.shortened] * shortened
            ways += [client.whole] * (rest // 2) + [client.beside] * (rest - rest // 2)
            run.random.shuffle(ways)
            for way in ways:
                way()
            assert client.seen["shortened: written before"], "no segment was shortened too late"
            assert client.seen["shortened: refused"] or not run.full, "no segment was shortened in time"
            run.count(counted(agent, client.seen))
        hold = Hold(folder)
        with broken(models, folder, hold.code) as agent:
            client = Client(agent, run.random)
            for number in range(held):
                (client.held if number % 2 else client.held_early)(hold)
            run.count(counted(agent, client.seen))


# An agent that does what a file says to the segments that it writes masks into.
DAMAGES = """
from edge_agent.bitmaps import MaskTarget
DAMAGE = Path({damage!r})
write, check_apart = MaskTarget.write, MaskTarget.check_apart
def damaged(target, pixels):
    damage, path, offset = DAMAGE.read_text(), Path("/dev/shm", target._mask.name), target._mask.offset
    if damage == "one byte more":
        pixels = memoryview(bytes(pixels) + b"x")
    if damage == "one byte sooner":
        os.pwrite(target._fd, b"x", max(0, offset - 1))
    write(target, pixels)
    if damage == "unlinked":
        path.unlink()
    if damage == "chmod":
        os.fchmod(target._fd, 0o600)
    if damage == "grown":
        os.ftruncate(target._fd, os.fstat(target._fd).st_size + 1)
def then(fd, path, size):
    if DAMAGE.read_text() == "held, and by name":
        return os.open(path, os.O_RDWR)
    if DAMAGE.read_text() == "held, and grown":
        os.ftruncate(fd, size)
    return fd
holds = lambda: DAMAGE.read_text().startswith("held")
MaskTarget.write = damaged
check = MaskTarget._check
MaskTarget._check = lambda target: DAMAGE.read_text() == "held, and not looked at again" or check(target)
MaskTarget.check_apart = lambda *told: DAMAGE.read_text() == "no look at links" or check_apart(*told)
"""
# What is done -> how a client comes upon it, and what it notices.
CONTROLS: dict[str, tuple[Callable[..., None], str]] = {
    "one byte more": (Client.whole, "1 bytes are wrong|the segment has"),
    "one byte sooner": (Client.whole, "1 bytes are wrong"),
    "unlinked": (Client.beside, "the segment was unlinked"),
    "chmod": (Client.whole, "the segment is not what it was"),
    "grown": (Client.whole, "the segment has"),
    "no look at links": (Client.overlapping, "the mask overlaps its image, .*link"),
    "held, and not looked at again": (Client.held_early, "a mask was written into a segment that was too short"),
    "held, and grown": (Client.held, "the segment has"),
    "held, and by name": (Client.held, "the mask is not where it belongs"),
}


def again_and_again(way: Callable[[], None]) -> None:
    """Do what does not come upon the damage each time."""
    for _ in range(30):
        way()


def test_whatever_else_is_done_to_a_segment_is_noticed(models, folder):
    hold, damage = Hold(folder), folder / "damage"
    damage.write_text("")
    damage.chmod(0o644)
    with broken(models, folder, hold.code + DAMAGES.format(damage=str(damage))) as agent:
        client = Client(agent, Random(0))
        client.whole()
        for done, (way, noticed) in CONTROLS.items():
            damage.write_text(done)
            told = (client, hold) if done.startswith("held") else (client,)
            with pytest.raises(AssertionError, match=noticed):
                again_and_again(partial(way, *told))
