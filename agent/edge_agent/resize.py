"""Resizing as the packages of the field ask for it: OpenCV's interpolations, Pillow's antialiased one, nearest indices.

What is faster than the reference differs from it by at most 1 of 255 levels, in few pixels.
"""

import math
import os
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent import malloc
from edge_agent.bitmaps import CHANNELS
from edge_agent.errors import PackageRefused, extra

Pixels = NDArray[np.uint8]
Resizer = Callable[[Pixels, int, int], Pixels]

AREA = 3
# Images are resized in strips, so that what is between two steps stays in the processor's cache. Bytes, as measured.
STRIP = 3 << 20
SUMS = 2 << 20
# From this factor on, adding up whole rows is faster than one thread of OpenCV's own INTER_AREA, as measured; where both
# factors are whole numbers, OpenCV's is another and faster one.
PAYS, PAYS_WHOLE = 2.5, 5.0
# The antialiased filter rounds between its two directions, in another order than Pillow. Below this factor too few pixels
# are averaged for the errors to cancel out: they are two levels in one pixel of a thousand million, so 16 bits are used.
AVERAGES = 2.0
# OpenCV gives each of its threads at least so many pixels of the result.
PIXELS_A_THREAD = 1 << 16


def resizer(interpolation: int | str, threads: int = 0) -> Resizer:
    """Return a function (pixels HxWx3, width, height) -> resized pixels for an OpenCV code or "bilinear-antialias".

    Its library is imported at the first image that needs it, since most packages resize nothing. `threads` are those
    that OpenCV may use, one for each core if 0; all else runs in the caller's. It resizes one image at a time.
    """
    if interpolation == "bilinear-antialias":
        return _Antialiased()
    return (_Area if interpolation == AREA else _Opencv)(int(interpolation), threads)


def nearest_indices(source: int, target: int) -> NDArray[np.intp]:
    """Return for each of `target` positions the one of `source` that it takes: floor(position * source / target)."""
    return np.arange(target, dtype=np.intp) * source // target


def _keep_memory() -> None:
    """Let malloc keep what one strip leaves for the next: to find it again page by page takes six times as long as the rest."""
    malloc.keep_messages(all_sizes=False)


class _Opencv:
    """One of OpenCV's interpolations."""

    def __init__(self, code: int, threads: int) -> None:
        self._code = code
        self._threads = threads

    @cached_property
    def _cv2(self) -> Any:
        try:
            import cv2
        except ImportError:
            raise PackageRefused(
                f"The package resizes its images with OpenCV, which is not installed; {extra('cpu')}."
            ) from None
        _keep_memory()
        cv2.setNumThreads(self._threads or -1)  # -1: as many as it may run on
        return cv2

    def __call__(self, pixels: Pixels, width: int, height: int) -> Pixels:
        """Return height x width x 3 pixels."""
        return np.asarray(self._cv2.resize(pixels, (width, height), interpolation=self._code), np.uint8)


class _Area(_Opencv):
    """OpenCV's INTER_AREA: each pixel becomes the mean of the area that it stands for.

    OpenCV weighs every pixel of the image, one after the other. Here whole rows are added up first, many pixels at once.
    A row on the border of two areas is counted in the lower one, and its share is moved when all rows are as narrow as
    the result: sums are linear.
    """

    def __init__(self, code: int, threads: int) -> None:
        super().__init__(code, threads)
        self._sums = np.empty(0, np.float32)
        self._most = threads or len(os.sched_getaffinity(0))

    def _use(self, threads: int) -> None:
        """Let OpenCV use so many threads; when this changes, it starts its threads anew."""
        if self._cv2.getNumThreads() != threads:
            self._cv2.setNumThreads(threads)

    def __call__(self, pixels: Pixels, width: int, height: int) -> Pixels:
        """Return height x width x 3 pixels."""
        if not self._pays(pixels.shape[1] / width, pixels.shape[0] / height, width * height):
            self._use(self._most)
            return super().__call__(pixels, width, height)
        # Rows are added up within the caches: handing them to threads takes longer than that.
        self._use(1)
        row = pixels[0].size
        # The rows of a strip's areas, and those on their borders, one more.
        strip = max(1, (SUMS // self._sums.itemsize // row - 1) // 2)
        if self._sums.size < (2 * strip + 1) * row:
            self._sums = np.empty((2 * strip + 1) * row, np.float32)
        resized = np.empty((height, width, CHANNELS), np.uint8)
        for top in range(0, height, strip):
            bottom = min(height, top + strip)
            resized[top:bottom] = self._strip(pixels, (top, bottom), width, height)
        return resized

    def _pays(self, across: float, down: float, result: int) -> bool:
        """Return whether adding up rows is faster than OpenCV, which shrinks by these factors to so many pixels."""
        if across < 1 or down < 1:  # INTER_AREA enlarges by another rule
            return False
        least = PAYS_WHOLE if across.is_integer() and down.is_integer() else PAYS
        return down > least * max(1, min(self._most, round(result / PIXELS_A_THREAD)))

    def _strip(self, pixels: Pixels, rows: tuple[int, int], width: int, height: int) -> NDArray[np.float32]:
        """Return some rows of the result, whole numbers 0..255."""
        source = pixels.reshape(len(pixels), -1)
        areas = rows[1] - rows[0]
        # The area of row i begins at source row i * len(source) / height, and that is seldom a whole one.
        first, above = np.divmod(np.arange(rows[0], rows[1] + 1) * len(source), height)
        borders = areas + 1 if above.any() else 0
        sums = self._sums[: (areas + borders) * source.shape[1]].reshape(areas + borders, -1)
        for area in range(areas):
            block = source[first[area] : first[area + 1]]
            self._cv2.reduce(block, 0, self._cv2.REDUCE_SUM, sums[area : area + 1], self._cv2.CV_32F)
        if borders:
            # Behind the last row of the image is none, and nothing of it is taken.
            sums[areas:] = source[np.minimum(first, len(source) - 1)]
        narrow = self._cv2.resize(sums.reshape(len(sums), -1, CHANNELS), (width, len(sums)), interpolation=AREA)
        means: NDArray[np.float32] = narrow[:areas]
        if borders:
            shares = narrow[areas:] * (above / height).astype(np.float32)[:, None, None]
            means -= shares[:-1]
            means += shares[1:]
        means *= np.float32(height / len(source))
        return np.rint(means, out=means)


class _Antialiased:
    """Pillow's BILINEAR, by cykooz-resizer's SIMD code; by Pillow where there are no wheels of it, as on aarch64."""

    @cached_property
    def _simd(self) -> Any:
        """The library and what resizes with SIMD, or None."""
        try:
            import cykooz_resizer
        except ImportError:
            return None
        _keep_memory()
        return cykooz_resizer, cykooz_resizer.Resizer()

    def __call__(self, pixels: Pixels, width: int, height: int) -> Pixels:
        """Return height x width x 3 pixels."""
        if self._simd is None:
            return _with_pillow(pixels, width, height)
        fine = min(pixels.shape[1] / width, len(pixels) / height) < AVERAGES
        resized = np.empty((height, width, CHANNELS), np.uint8)
        strip = _rows_of_strip(pixels, width, height, STRIP // (2 if fine else 1))
        for top in range(0, height, strip):
            rows = top, min(height, top + strip)
            resized[slice(*rows)] = self._strip(pixels, rows, width, height, fine=fine)
        return resized

    def _strip(self, pixels: Pixels, rows: tuple[int, int], width: int, height: int, *, fine: bool) -> Pixels:
        """Return some rows of the result, resized from a copy of only those of the image that they see."""
        top, bottom = (row * len(pixels) / height for row in rows)
        reach = _reach(pixels, height)
        first, last = max(0, math.floor(top) - reach), min(len(pixels), math.ceil(bottom) + reach)
        # The filter sees rows beside the crop box, too; behind the image's edge there are none, as in Pillow.
        box = 0, top - first, pixels.shape[1], min(bottom - top, last - top)
        size = width, rows[1] - rows[0]
        if not fine:
            return self._convolve(pixels[first:last], box, size)
        wide = self._convolve(np.left_shift(pixels[first:last], 8, dtype=np.uint16), box, size) + 128
        wide >>= 8
        return wide

    def _convolve(self, image: NDArray[Any], box: tuple[float, ...], size: tuple[int, int]) -> NDArray[Any]:
        """Return a box (left, top, width, height) of an image, resized to a size (width, height); uint8 or uint16."""
        library, resize = self._simd
        kind = library.PixelType.U8x3 if image.dtype == np.uint8 else library.PixelType.U16x3
        bilinear = library.ResizeAlg.convolution(library.FilterType.bilinear)
        source = library.ImageData(image.shape[1], len(image), kind, image.tobytes())
        target = library.ImageData(*size, kind)
        resize.resize(source, target, library.ResizeOptions(bilinear, crop_box=library.CropBox(*box)))
        return np.frombuffer(target.get_buffer(), image.dtype).reshape(size[1], size[0], CHANNELS)


def _reach(pixels: Pixels, height: int) -> int:
    """Return how many rows of the image the antialiased filter sees beyond those that a row of the result stands for."""
    return math.ceil(max(1.0, len(pixels) / height / 2)) + 1


def _rows_of_strip(pixels: Pixels, width: int, height: int, most: int) -> int:
    """Return how many rows of the result are made at once, so that they and the rows they see take `most` bytes each."""
    seen = most / pixels[0].size - 2 * _reach(pixels, height)
    return max(1, int(min(seen * height / len(pixels), most / (CHANNELS * width))))


def _with_pillow(pixels: Pixels, width: int, height: int) -> Pixels:
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
