"""Resizing: within one level of OpenCV and Pillow at every size and layout, with no copy of the image and no thread.

1. Sizes: those that are odd, at the limits, or extreme in their ratio, and others as chance has it (seeded).
2. Both ways to the antialiased result: the SIMD library and, where there is none, Pillow.
3. Negative controls: the comparison notices half a pixel, another filter and two levels.
"""

import os
import subprocess
import sys
import tracemalloc

import cv2
import numpy as np
import pytest
from PIL import Image

from edge_agent import resize

LIMITS = [
    ((64, 64), (224, 224)),
    ((64, 4096), (224, 224)),
    ((4096, 64), (64, 300)),
    ((4095, 4096), (224, 223)),
    ((4096, 4095), (65, 1000)),
    ((4096, 4096), (224, 224)),
    ((4096, 4096), (512, 512)),
    ((65, 64), (64, 65)),
    ((65, 65), (1, 1)),
    ((640, 480), (1, 480)),
    ((640, 480), (640, 1)),
    ((999, 1001), (333, 77)),
    ((1280, 720), (1279, 719)),
    ((1280, 720), (1280, 240)),
    ((1280, 720), (320, 720)),
    ((1280, 720), (160, 90)),
    ((1920, 1080), (512, 512)),
    ((127, 89), (2048, 91)),
    ((300, 200), (300, 200)),
]
CHANCE = 40


def by_chance(count):
    """Return pairs of sizes (width, height): images of 64 to 1500 pixels a side, results of a quarter to three times that."""
    random = np.random.default_rng(8)
    sources = (64 * 2 ** random.uniform(0, 4.55, (count, 2))).astype(int)
    targets = (sources * 2 ** random.uniform(-4, 1.58, (count, 2))).astype(int)
    return [(tuple(source), tuple(target)) for source, target in zip(sources.tolist(), targets.tolist(), strict=True)]


SIZES = [*LIMITS, *by_chance(CHANCE)]
SHRINKING = [(source, target) for source, target in SIZES if source[0] >= target[0] and source[1] >= target[1]]


def picture(width, height):
    """Return noise above, and below it what hides no error of place: blocks of black, white and grey."""
    random = np.random.default_rng(width * 10_007 + height)
    pixels = random.integers(0, 256, (height, width, 3), np.uint8)
    blocks = random.integers(0, 3, (height // 2 // 7 + 1, width // 5 + 1, 3), np.uint8) * 127
    pixels[height - height // 2 :] = blocks.repeat(7, axis=0).repeat(5, axis=1)[: height // 2, :width]
    return pixels


def pillows(pixels, size, **more):
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR, **more))


def padded(pixels, padding=64):
    """Return the same image as a view of rows that are longer."""
    height, width, _ = pixels.shape
    rows = np.full((height, 3 * width + padding), 255, np.uint8)
    rows[:, : 3 * width] = pixels.reshape(height, -1)
    view = rows[:, : 3 * width].reshape(pixels.shape)
    assert view.base is not None
    assert not view.flags.c_contiguous
    return view


def half_a_pixel_off(pixels):
    """Return the image moved by half a pixel to the right."""
    return ((pixels.astype(np.uint16) + np.roll(pixels, 1, axis=1)) // 2).astype(np.uint8)


def levels(resized, expected):
    """Return how many levels the two differ by at most."""
    assert (resized.shape, resized.dtype) == (expected.shape, np.uint8)
    return np.abs(resized.astype(np.int16) - expected).max()


@pytest.fixture(params=["simd", "pillow"])
def antialiased(request, monkeypatch):
    """Return the antialiased resizer, made by one library or the other."""
    if request.param == "simd":
        pytest.importorskip("cykooz_resizer", reason="has no wheels for this processor")
    else:
        monkeypatch.setitem(sys.modules, "cykooz_resizer", None)
    return resize.resizer("bilinear-antialias")


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def area(request):
    """Return the area resizer; with two threads OpenCV's own way is taken more often."""
    before = cv2.getNumThreads()
    yield resize.resizer(3, request.param)
    cv2.setNumThreads(before)


def test_as_many_sizes_as_declared():
    assert (len(set(SIZES)), len(SHRINKING)) == (len(LIMITS) + CHANCE, 33)


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_antialiased_is_pillows(antialiased, source, target):
    pixels = picture(*source)
    assert levels(antialiased(pixels, *target), pillows(pixels, target)) <= 1


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_area_is_opencvs(area, source, target):
    pixels = picture(*source)
    assert levels(area(pixels, *target), cv2.resize(pixels, target, interpolation=cv2.INTER_AREA)) <= 1


@pytest.mark.parametrize("code", [0, 1, 2, 4])
def test_the_others_are_opencvs_own(code):
    pixels = picture(97, 131)
    assert levels(resize.resizer(code)(pixels, 80, 210), cv2.resize(pixels, (80, 210), interpolation=code)) == 0


def test_rows_are_added_up_where_that_pays(area):
    """Or the comparison with OpenCV would be one of OpenCV with itself."""
    paying = [area._pays(a / c, b / d, c * d) for (a, b), (c, d) in SHRINKING]
    assert 10 <= sum(paying) < len(paying)
    area(picture(640, 480), 80, 72)
    assert area._sums.size


@pytest.mark.parametrize("strip", [1, 50_000])
def test_strips_of_any_size(monkeypatch, antialiased, area, strip):
    monkeypatch.setattr(resize, "STRIP", strip)
    monkeypatch.setattr(resize, "SUMS", strip)
    pixels = picture(333, 457)
    for size in ((80, 72), (400, 500)):
        assert levels(antialiased(pixels, *size), pillows(pixels, size)) <= 1
        assert levels(area(pixels, *size), cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)) <= 1


@pytest.mark.parametrize("size", [(80, 72), (333, 100), (500, 600)])
def test_views_that_cannot_be_written(antialiased, area, size):
    """What clients' padded rows and the inbox, which is mapped for reading, come to."""
    pixels = picture(333, 457)
    view = padded(pixels)
    view.flags.writeable = False
    assert levels(antialiased(view, *size), pillows(pixels, size)) <= 1
    assert levels(area(view, *size), cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)) <= 1
    assert np.array_equal(view, pixels)


def test_results_are_kept_by_later_calls(antialiased, area):
    for one in (antialiased, area):
        first = one(picture(640, 480), 80, 72)
        kept = first.copy()
        one(picture(480, 640), 80, 72)
        assert np.array_equal(first, kept)


def test_without_the_library_it_is_exactly_pillows(monkeypatch):
    monkeypatch.setitem(sys.modules, "cykooz_resizer", None)
    pixels = picture(640, 480)
    resized = resize.resizer("bilinear-antialias")(padded(pixels), 224, 224)
    assert levels(resized, pillows(pixels, (224, 224))) == 0


def test_large_images_are_not_copied_whole():
    pytest.importorskip("cykooz_resizer", reason="has no wheels for this processor")
    pixels = picture(4096, 4096)
    one = resize.resizer("bilinear-antialias")
    one(pixels[:512], 224, 28)
    tracemalloc.start()
    try:
        one(pixels, 224, 224)
        assert 1 << 20 < tracemalloc.get_traced_memory()[1] < 2 * resize.STRIP
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("interpolation", [3, "bilinear-antialias"])
def test_memory_is_not_found_again_page_by_page(interpolation):
    """In a process of its own, whose malloc has kept nothing yet."""
    if interpolation != 3:
        pytest.importorskip("cykooz_resizer", reason="has no wheels for this processor")
    script = f"""
import resource
import numpy as np
from edge_agent import resize
one, pixels = resize.resizer({interpolation!r}, 1), np.zeros((1500, 2000, 3), np.uint8)
for _ in range(3):
    one(pixels, 224, 224)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    one(pixels, 224, 224)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    # A copy of the image is 2,200 pages; without mallopt there are three thousand faults a call.
    assert int(done.stdout) < 500


def test_antialiasing_starts_no_thread(antialiased):
    pixels = picture(1920, 1080)
    before = set(os.listdir("/proc/self/task"))
    antialiased(pixels, 512, 512)
    assert set(os.listdir("/proc/self/task")) <= before


@pytest.mark.parametrize("threads", [1, 2])
def test_opencv_uses_the_threads_that_it_is_told(threads):
    before = cv2.getNumThreads()
    try:
        resize.resizer(3, threads)(picture(64, 64), 80, 80)
        assert cv2.getNumThreads() == threads
    finally:
        cv2.setNumThreads(before)


@pytest.mark.parametrize("target", [(224, 224), (1279, 719), (2000, 800)])
def test_half_a_pixel_is_noticed(antialiased, area, target):
    """Negative control."""
    pixels = picture(1280, 720)
    moved = half_a_pixel_off(pixels)
    assert levels(antialiased(moved, *target), pillows(pixels, target)) > 1
    assert levels(area(moved, *target), cv2.resize(pixels, target, interpolation=cv2.INTER_AREA)) > 1


def test_other_filters_and_two_levels_are_noticed(antialiased, area):
    """Negative control."""
    pixels = picture(1280, 720)
    size = (224, 224)
    assert levels(antialiased(pixels, *size), cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)) > 1
    assert levels(area(pixels, *size), np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))) > 1
    expected = pillows(pixels, size)
    wrong = expected.copy()
    wrong[100, 100, 1] ^= 2
    assert levels(wrong, expected) == 2
