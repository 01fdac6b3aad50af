"""S4: numbers at their boundaries are taken or refused as the API says, and never end in a code that it does not know.

What is expected is reckoned here from the rules of the API: sides are 64 to 4096 pixels; an image is 3 * width * height
bytes, or its rows are padded to 4 bytes; its range lies within the segment, and no offset is 2^63 or more.

1. Offsets and sizes of an image in a segment: 0, at the segment's end, at the ends of 32, 63 and 64 bits, and one beside
   each. The same for a mask, whose handle may be larger than the mask.
2. Widths and heights, from the least int32 to the largest, with the number of bytes that belongs to them.
3. Row paddings: rows a byte short to seven bytes long, and without padding at the last row, for each remainder of the row
   by 4; inline, and in a segment.
4. What is taken is judged by exactly its bytes: score and mask tell. What is refused names the argument.
5. The agent has counted the codes that were expected.
"""

from collections import Counter
from contextlib import closing
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from support import packages
from support.agent import Agent, serving
from support.calls import INVALID, OK, expected_mask, outcome, picture, request
from support.promises import Promise
from support.sabotage import sabotaged
from support.shm import SHM, create, new_name

PROMISE = Promise(
    id="S4",
    text="boundaries of offset x size, width x height and row padding: OK or INVALID_ARGUMENT by the rules, never UNKNOWN",
    case="a call that the agent has counted",
    full=121 + 64 + 40,
    fast=121 + 64 + 40,
)
# Rows of 192, 195, 198 and 201 bytes: every remainder by 4.
WIDTHS = (64, 65, 66, 67)
HEIGHT = 70
ANY_SIZE = "any-size"
LARGEST = 3 * 4096 * 4096


def aligned(size: int) -> int:
    return (size + 3) // 4 * 4


# What offsets and sizes are tried with: an image with padded rows, in a segment with room for a little more.
WIDTH = 67
PACKED = 3 * WIDTH * HEIGHT
PADDED = aligned(3 * WIDTH) * HEIGHT
THERE = PADDED + 1000
OFFSETS = [
    *[0, 1, THERE - PADDED, THERE - PADDED + 1, THERE - PACKED, THERE - PACKED + 1, THERE],
    *[2**32, 2**63 - PACKED, 2**63, 2**64 - 1],
]
SIZES = [
    *[0, PACKED - 1, PACKED, PACKED + 1, PADDED - 1, PADDED, PADDED + 1, 4 * WIDTH * HEIGHT],
    *[2**32 + PACKED, 2**63, 2**64 - 1],
]
SIDES = [-(2**31), -1, 0, 63, 64, 4096, 4097, 2**31 - 1]
# Bytes that a row has more than its pixels; None: rows padded to 4 bytes, but for the last.
PADDINGS = [-1, 0, 1, 2, 3, 4, 5, 6, 7, None]


def image_code(width: int, height: int, size: int, offset: int, there: int) -> int:
    """Return the code that the API has for an image."""
    sides = 64 <= width <= 4096 and 64 <= height <= 4096
    known = size in {3 * width * height, aligned(3 * width) * height}
    return OK if sides and known and offset < 2**63 and offset + size <= there else INVALID


def mask_code(size: int, offset: int, there: int) -> int:
    """Return the code that the API has for the handle of a mask, whose range, too, ends below 2^63."""
    return OK if size >= PACKED and offset + size < 2**63 and offset + PACKED <= there else INVALID


def model(width: int) -> str:
    return f"board-{width}"


def laid_out(pixels: np.ndarray, padding: int | None) -> bytes:
    """Return an image with so many bytes behind each row, which must not be read."""
    row = pixels.shape[1] * 3
    if padding is None:
        return laid_out(pixels, aligned(row + 1) - row)[: row - aligned(row + 1)]
    rows = [one.tobytes() + b"\xaa" * padding for one in pixels]
    return b"".join(one[: row + padding] for one in rows)


class Client:
    """Makes calls with numbers at their boundaries."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.expected: Counter[int] = Counter()
        self._stub = agent.stub()
        self._segment = new_name()
        self._pictures = {width: picture(width, HEIGHT) for width in WIDTHS}

    def _write(self, content: bytes, offset: int = 0, there: int | None = None) -> str:
        """Make the segment anew, of `there` bytes, with a content as far as it has room; return its name."""
        (SHM / self._segment).unlink(missing_ok=True)
        size = len(content) if there is None else there
        create(self._segment, (bytes(min(offset, size)) + content)[:size], size)
        return self._segment

    def close(self) -> None:
        (SHM / self._segment).unlink(missing_ok=True)

    def offset_and_size(self, offset: int, size: int) -> None:
        pixels = self._pictures[WIDTH]
        content = laid_out(pixels, 0 if size == PACKED else PADDED // HEIGHT - 3 * WIDTH)
        handle = (self._write(content, offset, THERE), size, offset)
        expected = image_code(WIDTH, HEIGHT, size, offset, THERE)
        self._judges(WIDTH, request(model(WIDTH), WIDTH, HEIGHT, handle=handle), expected)

    def mask_of_offset_and_size(self, offset: int, size: int) -> None:
        pixels = self._pictures[WIDTH]
        handle = (self._write(b"", 0, THERE), size, offset)
        asked = request(model(WIDTH), WIDTH, HEIGHT, pixels.tobytes(), mask=handle)
        expected = mask_code(size, offset, THERE)
        self._answers(asked, expected, "anomaly_mask_params")
        mask = bytes(offset) + expected_mask(pixels).tobytes() if expected == OK else b""
        assert (SHM / self._segment).read_bytes() == mask.ljust(THERE, b"\0"), (
            "it is not the mask that is in the segment"
        )

    def sides(self, width: int, height: int) -> None:
        size = 3 * width * height
        handle = (self._write(b"", 0, LARGEST), size if 0 <= size < 2**64 else LARGEST, 0)
        expected = image_code(width, height, size, 0, LARGEST)
        result = self._answers(request(ANY_SIZE, width, height, handle=handle), expected, "bitmap.")
        assert result is None or result.anomaly_score == 0

    def padding(self, width: int, padding: int | None, *, inline: bool) -> None:
        content = laid_out(self._pictures[width], padding)
        image = {"pixels": content} if inline else {"handle": (self._write(content), len(content))}
        expected = image_code(width, HEIGHT, len(content), 0, len(content))
        self._judges(width, request(model(width), width, HEIGHT, **image), expected)

    def _judges(self, width: int, asked: object, expected: int) -> None:
        """Fail unless an image is answered as it is to be, and judged by its own bytes."""
        result = self._answers(asked, expected, "bitmap.")
        if result:
            pixels = self._pictures[width]
            mask = np.frombuffer(result.anomaly_mask.byte_data, np.uint8).reshape(pixels.shape)
            assert (mask == expected_mask(pixels)).all(), "other bytes than the image's were judged"
            assert abs(result.anomaly_score - (pixels / 255).mean()) < 1e-5

    def _answers(self, asked: object, expected: int, argument: str) -> object:
        self.expected[expected] += 1
        code, details, response = outcome(self._stub.DetectAnomalies, asked)
        assert code == expected, f"answered {code} instead of {expected}: {details}"
        assert code == OK or argument in details, f"{argument} is not named: {details}"
        return response and response.detect_anomaly_result


@pytest.fixture(scope="module")
def models(module_folder) -> Path:
    folder = module_folder / "models"
    for width in WIDTHS:
        packages.segmenter(folder / model(width), (width, HEIGHT))
    packages.classifier(folder / ANY_SIZE)
    return folder


def run_models(agent: Agent) -> None:
    for name in (*map(model, WIDTHS), ANY_SIZE):
        agent.run_model(name)


def counted(client: Client) -> int:
    """End an agent; return how many calls it has counted, which are those of the codes that were expected."""
    agent = client.agent
    assert agent.stop() == 0
    assert not any(agent.counted(name, "died") for name in (*map(model, WIDTHS), ANY_SIZE))
    assert agent.calls(code="OK") == client.expected[OK]
    assert agent.calls(code="INVALID_ARGUMENT") == client.expected[INVALID]
    assert "Traceback" not in agent.log()
    return agent.calls()


def test_boundaries(promises, models):
    with promises.run(PROMISE) as run, serving(models, any_image_size=True) as agent, closing(Client(agent)) as client:
        run_models(agent)
        for offset, size in product(OFFSETS, SIZES):
            client.offset_and_size(offset, size)
        for width, height in product(SIDES, SIDES):
            client.sides(width, height)
        for width, padding in product(WIDTHS, PADDINGS):
            client.padding(width, padding, inline=run.random.random() < 0.5)
        run.count(counted(client))
        print(f"  codes: {dict(client.expected)}")


def test_boundaries_of_masks(models):
    with serving(models, any_image_size=True) as agent, closing(Client(agent)) as client:
        run_models(agent)
        for offset, size in product(OFFSETS, SIZES):
            client.mask_of_offset_and_size(offset, size)
        assert counted(client) == len(OFFSETS) * len(SIZES)


def test_some_at_each_boundary_are_taken():
    """What is reckoned here is not simply that all is refused."""
    taken = [one for one in product(OFFSETS, SIZES) if image_code(WIDTH, HEIGHT, one[1], one[0], THERE) == OK]
    assert taken == [
        *[(0, PACKED), (0, PADDED), (1, PACKED), (1, PADDED), (1000, PACKED), (1000, PADDED)],
        *[(1001, PACKED), (THERE - PACKED, PACKED)],
    ]
    sides = [one for one in product(SIDES, SIDES) if image_code(*one, 3 * one[0] * one[1], 0, LARGEST) == OK]
    assert sides == list(product([64, 4096], [64, 4096]))


# Does what a file says with the numbers of a call.
DAMAGES = """
import dataclasses
from pathlib import Path
from edge_agent import bitmaps, service
DAMAGE = Path({damage!r})
describe, segment, check_bounds, boundary = (
    bitmaps.describe, bitmaps.segment, bitmaps._check_bounds, service._boundary
)
def is_done(what):
    return DAMAGE.read_text() == what
def described(*numbers):
    bitmaps.LONGEST_SIDE = 4097 if is_done("one pixel more") else 4096
    image = describe(*numbers)
    return dataclasses.replace(image, stride=image.row) if is_done("padding kept") else image
def named(field, name, offset, size):
    return bitmaps.Segment(name, offset, size) if is_done("any range") else segment(field, name, offset, size)
def checked(*numbers):
    if not is_done("any range"):
        check_bounds(*numbers)
def bounded(rpc, call, request_class, *others):
    guarded = boundary(rpc, call, request_class, *others)
    def unguarded(received, context):
        return call(request_class.FromString(received[0]), context)
    return lambda received, context: (unguarded if is_done("no boundary") else guarded)(received, context)
bitmaps.describe, bitmaps.segment, bitmaps._check_bounds, service._boundary = described, named, checked, bounded
"""
# What is done -> a call that shows it, and what is noticed.
CONTROLS = {
    "one pixel more": (lambda client: client.sides(4097, 64), "answered 0 instead of 3"),
    "padding kept": (lambda client: client.padding(65, 1, inline=True), "other bytes than the image's"),
    "any range": (lambda client: client.offset_and_size(2**63, PACKED), "answered 13 instead of 3"),
    "no boundary": (lambda client: client.offset_and_size(2**63, PACKED), "answered 2 instead of 3"),
}


@pytest.fixture(scope="module")
def damaged(models, module_folder):
    """A client of an agent, and the file that says what is wrong with the agent."""
    damage = module_folder / "damage"
    damage.touch()
    with closing(Agent(models, any_image_size=True)) as agent:
        agent.start(**sabotaged(module_folder, DAMAGES.format(damage=str(damage))))
        run_models(agent)
        with closing(Client(agent)) as client:
            yield client, damage


@pytest.mark.parametrize("what", CONTROLS)
def test_wrong_numbers_are_noticed(damaged, what):
    client, damage = damaged
    call, noticed = CONTROLS[what]
    damage.write_text("")
    client.offset_and_size(1, PADDED)
    damage.write_text(what)
    with pytest.raises(AssertionError, match=noticed):
        call(client)
