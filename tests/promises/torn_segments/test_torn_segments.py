"""S1: whatever is done to segments while calls read and write them, each call is answered and no worker dies of it.

1. One agent runs a model; eight clients call it without a pause, each with an image in one of two segments, every other
   time with a third one for the mask.
2. Two threads shorten these segments, lengthen them, unlink them and make them anew, all the time.
3. Each call is OK, or INVALID_ARGUMENT with one of the sentences for a segment that is not there, is too short, or was
   shortened meanwhile. In many calls all of these are seen.
4. A segment holds its own level of grey or zeros, so a verdict can be darker than its image, but never brighter: then it
   would be of bytes that another call has left.
5. In the end each segment is made anew with another level of grey, which is what the next call sees. The worker is the
   process that it was, and the agent has counted what the clients saw.
"""

import contextlib
import itertools
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random

import pytest

from support import packages
from support.agent import Agent, serving
from support.calls import INVALID, OK, outcome, request
from support.promises import Promise
from support.sabotage import sabotaged
from support.shm import SHM, create, new_name

PROMISE = Promise(
    id="S1",
    text="segments are truncated, grown, unlinked and re-created during calls, by 2 threads against 8 clients: only OK or "
    "INVALID_ARGUMENT, and the worker is the same process",
    case="a call that the agent has counted",
    full=100_000,
    fast=800,
)
MODEL = "board"
SIDE = 128
SIZE = 3 * SIDE * SIDE
CLIENTS, MUTATORS = 8, 2
# Levels of grey; what is left of the brighter image would be seen in the verdict of the darker one.
LEVELS = (20, 200)
OTHER_LEVEL = 30
TOLERANCE = 1e-3
IN_BETWEEN = "was shortened during the call"
# What a refusal says -> what had happened.
REFUSALS = {
    "does not exist or the agent may not": "was not there",
    "was shortened during the call": IN_BETWEEN,
    "Make the segment larger": "was too short",
}


class Segment:
    """A segment that others change: of one level of grey, with zeros where it was cut."""

    def __init__(self, level: int) -> None:
        self.level = level
        self.name = new_name()
        self.path = SHM / self.name
        create(self.name, self._content())

    def _content(self) -> bytes:
        return bytes([self.level]) * SIZE

    def shorten(self, random: Random) -> None:
        os.truncate(self.path, random.choice([0, 1, 4096, SIZE - 1, random.randrange(SIZE)]))

    def lengthen(self, random: Random) -> None:
        os.truncate(self.path, SIZE + random.choice([0, 1, 4096, random.randrange(SIZE)]))

    def unlink(self, _: Random) -> None:
        self.path.unlink()

    def create(self, _: Random) -> None:
        create(self.name, self._content())

    def fill(self, _: Random) -> None:
        fd = os.open(self.path, os.O_RDWR)
        try:
            os.pwrite(fd, self._content(), 0)
        finally:
            os.close(fd)

    def replace(self, level: int) -> None:
        """Make the segment anew, another one of another level."""
        self.level = level
        self.path.unlink(missing_ok=True)
        create(self.name, self._content())


# What is done to a segment, and how often; what shortens a whole one is what matters most.
WAYS = {Segment.shorten: 4, Segment.fill: 4, Segment.lengthen: 1, Segment.unlink: 1, Segment.create: 4}


class Storm:
    """Threads that change segments all the time."""

    def __init__(self, segments: list[Segment], seed: int) -> None:
        self.done: Counter[str] = Counter()
        self._segments = segments
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(Random(seed + one),)) for one in range(MUTATORS)]

    def _run(self, random: Random) -> None:
        ways = [way for way, often in WAYS.items() for _ in range(often)]
        while not self._ended.is_set():
            way = random.choice(ways)
            # The other thread may just have unlinked or made it.
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                way(random.choice(self._segments), random)
                self.done[way.__name__] += 1

    @contextmanager
    def rages(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._ended.set()
            for thread in self._threads:
                thread.join()


class Clients:
    """Eight clients, and what became of their calls."""

    def __init__(self, agent: Agent, images: list[Segment], mask: Segment) -> None:
        self.agent = agent
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._images = images
        self._mask = mask
        self._lock = threading.Lock()
        self._stubs = [agent.stub() for _ in range(CLIENTS)]

    def call(self, calls: int) -> None:
        """Make so many calls, all clients at once; fail at the first answer that is wrong."""
        numbers = iter(range(calls))
        threads = [threading.Thread(target=self._run, args=(one, numbers)) for one in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not self.wrong, self.wrong[0]

    def _run(self, client: int, numbers: Iterator[int]) -> None:
        image = self._images[client % len(self._images)]
        asked = request(MODEL, SIDE, SIDE, handle=(image.name, SIZE))
        with_mask = request(MODEL, SIDE, SIDE, handle=(image.name, SIZE), mask=(self._mask.name, SIZE))
        for one in itertools.cycle((asked, with_mask)):
            if self.wrong or next(numbers, None) is None:
                return
            self._judge(image, *outcome(self._stubs[client].DetectAnomalies, one))

    def _judge(self, image: Segment, code: int, details: str, response: object) -> None:
        what = "OK" if code == OK else next((REFUSALS[one] for one in REFUSALS if one in details), "")
        with self._lock:
            self.seen[what] += 1
            if code not in {OK, INVALID} or not what:
                self.wrong.append(f"a call was answered {code}: {details}")
            elif code == OK and (score := response.detect_anomaly_result.anomaly_score) > image.level / 255 + TOLERANCE:
                self.wrong.append(f"an image of {image.level} was judged by bytes that are not its own: {score * 255}")

    def see_new_segments(self) -> None:
        """Make each image's segment anew; fail unless a call sees the new one."""
        for image in self._images:
            image.replace(OTHER_LEVEL + image.level)
            asked = request(MODEL, SIDE, SIDE, handle=(image.name, SIZE))
            code, details, response = outcome(self._stubs[0].DetectAnomalies, asked)
            assert code == OK, f"the segment is a new one, and is answered {code}: {details}"
            score = response.detect_anomaly_result.anomaly_score
            assert abs(score - image.level / 255) < TOLERANCE, (
                "the segment is a new one, and the verdict is not its own"
            )
            self.seen["OK"] += 1


@contextmanager
def segments() -> Iterator[tuple[list[Segment], Segment]]:
    """Yield segments for images, and one for masks."""
    images, mask = [Segment(level) for level in LEVELS], Segment(0)
    try:
        yield images, mask
    finally:
        for one in (*images, mask):
            one.path.unlink(missing_ok=True)


def tear(agent: Agent, calls: int, seed: int) -> Counter[str]:
    """Make calls during a storm, and then a few when it is over; return what became of them."""
    agent.run_model(MODEL)
    workers = agent.workers()
    with segments() as (images, mask):
        clients = Clients(agent, images, mask)
        storm = Storm([*images, mask], seed)
        with storm.rages():
            clients.call(calls - len(images))
        clients.see_new_segments()
    assert agent.workers() == workers, "the worker is another process"
    print(f"  {dict(clients.seen)}; segments: {dict(storm.done)}")
    return clients.seen


@pytest.fixture(scope="module")
def models(module_folder) -> Path:
    return packages.segmenter(module_folder / "models" / MODEL, (SIDE, SIDE)).parent


def test_torn_segments(promises, models):
    with promises.run(PROMISE) as run, serving(models, log_level="info") as agent:
        seen = tear(agent, run.declared, run.seed)
        assert agent.stop() == 0
        assert agent.calls(code="OK") == seen["OK"]
        assert agent.calls(code="INVALID_ARGUMENT") == seen.total() - seen["OK"]
        assert (agent.counted(MODEL, "started"), agent.counted(MODEL, "died")) == (1, 0)
        happened = {"OK", *REFUSALS.values()}
        if not run.full:  # it takes an instant between two steps of the worker, which a busy machine may seldom give
            happened.discard(IN_BETWEEN)
        assert happened <= set(seen), "not everything that can happen has happened"
        assert "Traceback" not in agent.log()
        run.count(agent.calls())


# Readers as they must not be: they open and look at a segment as ours does.
READERS = """
import mmap, os
from edge_agent import bitmaps
from edge_agent.errors import InvalidArgument
kept = {{}}
def opened(source):
    return bitmaps._open("bitmap.shared_memory_handle", source.name, os.O_RDONLY)
def by_mapping(source, target):
    fd = opened(source)
    try:
        bitmaps._check_bounds("bitmap.shared_memory_handle", source, source.size, os.fstat(fd).st_size)
        with mmap.mmap(fd, source.size, prot=mmap.PROT_READ) as memory:
            target[:] = memory[:]
    except ValueError:
        raise InvalidArgument("The segment was shortened during the call.") from None
    finally:
        os.close(fd)
def by_one_read(source, target):
    fd = opened(source)
    os.preadv(fd, [target], source.offset)
    os.close(fd)
def by_name(source, target):
    fd = kept.get(source.name) or kept.setdefault(source.name, opened(source))
    if os.preadv(fd, [target], source.offset) < len(target):
        raise InvalidArgument("The segment was shortened during the call.")
bitmaps.copy_in = lambda image, target, mask=None: {reader}(image.segment, target)
"""
# How segments are read -> calls, and what is noticed.
CONTROLS = {
    "by_mapping": (20_000, r"answered 13: .* ended by signal \d+ \(SIGBUS\)"),
    "by_one_read": (2000, "an image of .* was judged by bytes that are not its own"),
    "by_name": (100, "the segment is a new one, and"),
}


@pytest.mark.parametrize("reader", CONTROLS)
def test_how_segments_must_not_be_read_is_noticed(models, folder, reader):
    calls, noticed = CONTROLS[reader]
    with closing(Agent(models, log_level="info")) as agent:
        agent.start(**sabotaged(folder, READERS.format(reader=reader)))
        with pytest.raises(AssertionError, match=noticed):
            tear(agent, calls, seed=0)
