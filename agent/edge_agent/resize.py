"""Resizing as the packages of the field ask for it: OpenCV's interpolations, Pillow's antialiased one, nearest indices."""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from edge_agent.errors import PackageRefused, extra

Pixels = NDArray[np.uint8]
Resizer = Callable[[Pixels, int, int], Pixels]


def resizer(interpolation: int | str) -> Resizer:
    """Return a function (pixels HxWx3, width, height) -> resized pixels for an OpenCV code or "bilinear-antialias".

    Its library is imported at the first image that needs it, since most packages resize nothing.
    """
    if interpolation == "bilinear-antialias":
        return _with_pillow
    return partial(_with_opencv, code=int(interpolation))


def nearest_indices(source: int, target: int) -> NDArray[np.intp]:
    """Return for each of `target` positions the one of `source` that it takes: floor(position * source / target)."""
    return np.arange(target, dtype=np.intp) * source // target


def _with_opencv(pixels: Pixels, width: int, height: int, *, code: int) -> Pixels:
    try:
        import cv2
    except ImportError:
        raise PackageRefused(
            f"The package resizes its images with OpenCV, which is not installed; {extra('cpu')}."
        ) from None
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=code), np.uint8)


def _with_pillow(pixels: Pixels, width: int, height: int) -> Pixels:
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
