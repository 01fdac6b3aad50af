"""The numbers of images and handles, and the copying, where a real client cannot be timed exactly."""

import errno
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from edge_agent import bitmaps
from edge_agent.bitmaps import Image, MaskTarget, Segment
from edge_agent.errors import InvalidArgument, NotEnoughMemory
from support.open_files import nothing_stays_open


@pytest.mark.parametrize("width", [64, 65, 66, 67, 68, 4095, 4096])
@pytest.mark.parametrize("height", [64, 4096])
def test_packed_and_padded(width, height):
    packed, padded = 3 * width, (3 * width + 3) // 4 * 4
    assert bitmaps.describe(width, height, None, packed * height).stride == packed
    assert bitmaps.describe(width, height, None, padded * height).stride == padded
    wrong = {packed * height - 1, packed * height + 1, padded * height - 1, padded * height + 1, 4 * width * height, 0}
    for size in wrong - {packed * height, padded * height}:
        with pytest.raises(InvalidArgument):
            bitmaps.describe(width, height, None, size)


@pytest.mark.parametrize("side", [-(2**31), -1, 0, 1, 63, 4097, 2**31 - 1])
def test_sides(side):
    for width, height in ((side, 64), (64, side)):
        with pytest.raises(InvalidArgument, match="64 to 4096"):
            bitmaps.describe(width, height, None, 0)


def test_no_image_that_is_accepted_is_larger_than_the_shared_memory_for_it():
    largest = max(
        bitmaps.describe(width, 4096, None, (3 * width + 3) // 4 * 4 * 4096).stride * 4096 for width in range(64, 4097)
    )
    assert largest == bitmaps.LARGEST_IMAGE


@pytest.mark.parametrize(
    ("name", "plain"), [("a", "a"), ("/a", "a"), ("semaphore", "semaphore"), ("...", "..."), ("é" * 127, "é" * 127)]
)
def test_names(name, plain):
    assert bitmaps.segment("handle", name, 0, 1).name == plain


@pytest.mark.parametrize(("offset", "size"), [(2**63, 0), (2**63 - 1, 1), (0, 2**63), (2**64 - 1, 2**64 - 1)])
def test_a_range_that_no_segment_has_is_refused_with_what_to_do(offset, size):
    with pytest.raises(InvalidArgument, match=r"handle ends at offset \d+ \+ size \d+, .* Correct them: offset counts"):
        bitmaps.check_range("handle", offset, size)
    with pytest.raises(InvalidArgument, match="Correct them"):
        bitmaps.segment("handle", "a", offset, size)


def test_the_last_range_of_all_is_one():
    assert bitmaps.segment("handle", "a", 2**63 - 2, 1) == Segment("a", 2**63 - 2, 1)


def test_overlap_is_of_the_bytes_that_are_written():
    image = Image(64, 64, 192, Segment("a", 1000, 12288))
    for offset in (1000 - 12288, 1000 + 12288):
        bitmaps.check_mask(Segment("a", offset, 99999), image)
    for offset in (1000 - 12287, 1000, 1000 + 12287):
        with pytest.raises(InvalidArgument, match="overlaps"):
            bitmaps.check_mask(Segment("a", offset, 99999), image)
    bitmaps.check_mask(Segment("b", 1000, 12288), image)


@pytest.fixture
def image(segment):
    name = segment(12288, os.urandom(12288)).lstrip("/")
    return Image(64, 64, 192, Segment(name, 0, 12288))


def test_copy_in_survives_a_truncation_after_the_check(image, monkeypatch):
    real = os.preadv

    def truncated(fd, buffers, offset):
        os.truncate(f"/dev/shm/{image.segment.name}", 5000)
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", truncated)
    with pytest.raises(InvalidArgument, match="shortened during the call"):
        bitmaps.copy_in(image, memoryview(bytearray(12288)))


def test_a_reader_that_maps_dies_of_the_same_truncation(image):
    """Negative control: why a client's segment is never mapped."""
    script = f"""
import mmap, os
fd = os.open("/dev/shm/{image.segment.name}", os.O_RDWR)
memory = mmap.mmap(fd, 12288, prot=mmap.PROT_READ)
os.ftruncate(fd, 0)
bytes(memory)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -7  # SIGBUS


def test_descriptors_are_given_back(image):
    with nothing_stays_open():
        for _ in range(50):
            bitmaps.copy_in(image, memoryview(bytearray(12288)))
            MaskTarget(image.segment, 12288).close()
            for size in (12289, 99999):
                larger = Image(64, 64, 192, Segment(image.segment.name, 0, size))
                with pytest.raises(InvalidArgument):
                    bitmaps.copy_in(larger, memoryview(bytearray(12288)))
                with pytest.raises(InvalidArgument):
                    MaskTarget(image.segment, size)


def test_mask_target_that_shrinks_before_the_write_is_not_grown(image):
    target = MaskTarget(image.segment, 12288)
    path = f"/dev/shm/{image.segment.name}"
    os.truncate(path, 100)
    with pytest.raises(InvalidArgument, match="has 100"):
        target.write(memoryview(bytes(12288)))
    target.close()
    assert os.stat(path).st_size == 100


def test_a_segment_that_cannot_be_written_is_refused_with_what_to_do(image, monkeypatch):
    def sealed(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    target = MaskTarget(image.segment, 12288)
    monkeypatch.setattr(os, "pwrite", sealed)
    with pytest.raises(
        InvalidArgument, match=r"Operation not permitted\. Make another one with shm_open, and send its name\."
    ):
        target.write(memoryview(bytes(12288)))
    target.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.ENOMEM])
def test_full_shared_memory_is_named(image, monkeypatch, number):
    def full(*_):
        raise OSError(number, os.strerror(number))

    target = MaskTarget(image.segment, 12288)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(NotEnoughMemory, match="/dev/shm is full"):
        target.write(memoryview(bytes(12288)))
    target.close()


@pytest.fixture
def linked(image):
    """Another name of the image's segment."""
    name = f"{image.segment.name}-linked"
    os.link(f"/dev/shm/{image.segment.name}", f"/dev/shm/{name}")
    yield name
    os.unlink(f"/dev/shm/{name}")


def test_overlap_is_seen_under_another_name_of_the_segment(image, linked):
    os.truncate(f"/dev/shm/{linked}", 3 * 12288)
    image = Image(64, 64, 192, Segment(image.segment.name, 12288, 12288))
    for name in (image.segment.name, linked):
        for offset, apart in ((0, True), (1, False), (12288, False), (24575, False), (24576, True)):
            target = MaskTarget(Segment(name, offset, 12288), 12288)
            try:
                if apart:
                    bitmaps.copy_in(image, memoryview(bytearray(12288)), target)
                else:
                    with pytest.raises(InvalidArgument, match="overlaps"):
                        bitmaps.copy_in(image, memoryview(bytearray(12288)), target)
            finally:
                target.close()


def test_the_same_range_of_another_segment_is_no_overlap(image, segment):
    target = MaskTarget(Segment(segment(12288).lstrip("/"), 0, 12288), 12288)
    bitmaps.copy_in(image, memoryview(bytearray(12288)), target)
    target.close()


def room(free: int, blocks: int = 1 << 20) -> SimpleNamespace:
    """Return what statvfs says of a file system with so many bytes free, in blocks of 4 KiB."""
    return SimpleNamespace(f_bavail=free // 4096, f_frsize=4096, f_blocks=blocks)


def test_a_name_is_utf_8_whatever_the_locale(tmp_path):
    name = f"edge-agent-test-\N{LATIN SMALL LETTER U WITH DIAERESIS}-{os.getpid()}"
    path = os.fsencode(bitmaps.SEGMENTS) + b"/" + name.encode()
    code = (
        "import os, sys; from edge_agent import bitmaps; assert sys.getfilesystemencoding() == 'ascii'\n"
        f"os.read(bitmaps._open('bitmap', {name!a}, os.O_RDONLY), 1)"
    )
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    try:
        # A locale whose names are not in UTF-8, which every system has.
        env = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
        subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, check=True, timeout=60)
    finally:
        os.unlink(path)


@pytest.mark.parametrize(
    ("there", "fit"),
    [
        (room(0), 0),
        (room(bitmaps.LARGEST_IMAGE - 1), 0),
        (room(bitmaps.LARGEST_IMAGE), 1),
        (room(64 << 20), 1),
        (room(1 << 30), 21),
        (room(0, blocks=0), math.inf),
    ],
)
def test_largest_frames_that_fit(monkeypatch, there, fit):
    monkeypatch.setattr(os, "statvfs", lambda _: there)
    assert bitmaps.frames_that_fit() == fit
