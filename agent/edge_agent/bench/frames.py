"""What is sent in a benchmark: the pixels of images or of noise, where clients and the bare model find them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from edge_agent.images import read_image
from edge_agent.segments import FOLDER, Segment, SegmentPool

T = TypeVar("T")

# Enough that no cache holds them all, few enough to be loaded at once.
MOST_READ = 32
MOST_IMAGES = 8
MOST_BYTES = 64 << 20


@dataclass(frozen=True)
class Frames:
    """Images of one size (width, height), packed RGB; `names` are those of their files, none for noise."""

    size: tuple[int, int]
    pixels: tuple[bytes, ...]
    names: tuple[str, ...] = ()

    @property
    def bytes_each(self) -> int:
        """Bytes of one image."""
        return 3 * self.size[0] * self.size[1]

    def first(self, most: int) -> "Frames":
        """Return these frames with `most` images at most."""
        return replace(self, pixels=self.pixels[:most], names=self.names[:most])


def noise(size: tuple[int, int]) -> Frames:
    """Return one image of random pixels, the same each time."""
    width, height = size
    return Frames(size, (np.random.default_rng(1).integers(0, 256, 3 * width * height, np.uint8).tobytes(),))


def read(paths: Sequence[str]) -> list[Frames]:
    """Return images by their sizes, those of a long list spread over it evenly; raise NotAnImage."""
    by_size: dict[tuple[int, int], list[tuple[str, bytes]]] = {}
    for path in spread(paths, MOST_READ):
        pixels = read_image(path)
        by_size.setdefault((pixels.shape[1], pixels.shape[0]), []).append((path, pixels.tobytes()))
    return [
        Frames(size, tuple(pixels for _, pixels in chosen), tuple(name for name, _ in chosen))
        for size, found in by_size.items()
        for chosen in [spread(found, MOST_IMAGES)]
    ]


def spread(items: Sequence[T], most: int) -> list[T]:
    """Return at most so many of the items, spread over them evenly."""
    return [items[index * len(items) // most] for index in range(most)] if len(items) > most else list(items)


def fitting(frames: Frames, clients: int) -> Frames:
    """Return as many of the images as clients can each have in a segment: within half of what /dev/shm has free."""
    there = os.statvfs(FOLDER)
    free = there.f_bavail * there.f_frsize // 2 if there.f_blocks else MOST_BYTES * clients
    each = min(MOST_BYTES, free // clients) // frames.bytes_each - 1  # one place is for the mask
    return frames.first(max(1, each))


def place(frames: Frames, pool: SegmentPool) -> Segment:
    """Return a segment with the images one after the other, and room for a mask behind them; raise SharedMemoryFull."""
    whole = b"".join(frames.pixels)
    segment = pool.lend(len(whole) + frames.bytes_each)
    put(segment, whole)
    return segment


def put(segment: Segment, pixels: bytes) -> None:
    """Write pixels at the beginning of a segment."""
    segment.array()[: len(pixels)] = np.frombuffer(pixels, np.uint8)


def save(frames: Frames, path: Path) -> None:
    """Write the images into a file, one after the other."""
    path.write_bytes(b"".join(frames.pixels))
