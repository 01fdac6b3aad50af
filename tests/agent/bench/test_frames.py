"""Which images are sent, and where they lie."""

import os

import numpy as np
import pytest
from PIL import Image

from edge_agent.bench import frames
from edge_agent.bench.frames import Frames
from edge_agent.images import NotAnImage
from edge_agent.segments import SegmentPool


def test_a_long_list_is_spread_over_evenly():
    assert frames.spread(list(range(63)), 8) == [0, 7, 15, 23, 31, 39, 47, 55]
    assert frames.spread([1, 2, 3], 8) == [1, 2, 3]


def test_images_are_kept_by_their_sizes(tmp_path):
    for index in range(12):
        size = (64, 80) if index % 3 else (96, 64)
        Image.fromarray(np.full((size[1], size[0], 3), index, np.uint8)).save(tmp_path / f"{index:02}.png")
    found = frames.read([str(path) for path in sorted(tmp_path.iterdir())])
    assert [(one.size, len(one.pixels)) for one in found] == [((96, 64), 4), ((64, 80), 8)]
    assert [pixels[0] for pixels in found[0].pixels] == [0, 3, 6, 9]
    assert found[0].names[1] == str(tmp_path / "03.png")
    assert {len(pixels) for one in found for pixels in one.pixels} == {3 * 96 * 64, 3 * 64 * 80}


def test_what_is_no_image_is_named(tmp_path):
    (tmp_path / "x.png").write_text("no image")
    with pytest.raises(NotAnImage, match="x.png is not an image"):
        frames.read([str(tmp_path / "x.png")])


def test_as_many_images_as_shared_memory_has_room_for(monkeypatch):
    many = Frames((4096, 4096), (b"",) * 8)
    kept = {}
    for free in (0, 200, 1000, 100_000):
        there = os.statvfs_result((4096, 4096, 1, 1, free << 8, 0, 0, 0, 0, 255))
        monkeypatch.setattr(frames.os, "statvfs", lambda _, there=there: there)
        kept[free] = len(frames.fitting(many, 2).pixels)
    assert kept == {0: 1, 200: 1, 1000: 1, 100_000: 1}, "64 MiB for each client hold one, and room for its mask"
    small = Frames((576, 768), (b"",) * 8)
    there = os.statvfs_result((4096, 4096, 1, 1, 64 << 8, 0, 0, 0, 0, 255))
    monkeypatch.setattr(frames.os, "statvfs", lambda _: there)
    assert len(frames.fitting(small, 8).pixels) == 2, "64 MiB, half of it for 8 clients: 4 MiB each"
    assert len(frames.fitting(small, 2).pixels) == 8


def test_images_lie_one_after_the_other_with_room_behind(tmp_path):
    sent = Frames((64, 64), (bytes([1]) * 12288, bytes([2]) * 12288))
    pool = SegmentPool(tmp_path)
    try:
        segment = frames.place(sent, pool)
        assert segment.size == 3 * 12288
        assert segment.array()[::12288].tolist() == [1, 2, 0]
        frames.put(segment, bytes([9]) * 12288)
        assert segment.array()[::12288].tolist() == [9, 2, 0]
    finally:
        pool.close()
