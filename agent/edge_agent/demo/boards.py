"""Photographs of a printed circuit board that never existed: good ones with jitter, light and noise, and defective ones.

Everything follows from the seed, so a demo can be repeated.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

WIDTH, HEIGHT = 384, 288
DEFECTS = ("missing part", "scratch", "solder bridge")
# Drawn at twice the size and reduced, which gives the soft edges of a lens.
FINE = 2
MASK = "#1F6F46"
COPPER = "#2F8A5B"
GOLD = "#D8B45A"
BODY = "#23262B"
SILVER = "#C9CDD2"
SILK = "#E8EDE9"
# The largest displacement in pixels, change of light, and standard deviation of the noise in levels.
JITTER = 0.5
LIGHT = 0.04
NOISE = 2.0

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Part:
    """A component on the board: its body and its rows of pins, in pixels of the photograph."""

    name: str
    x: int
    y: int
    width: int
    height: int
    pins: int


@dataclass(frozen=True)
class Board:
    """One photograph, height x width x 3 (uint8); `defect` is None on a good board, `where` marks it (bool)."""

    pixels: Pixels
    defect: str | None
    where: NDArray[np.bool_]


class Line:
    """An inspection line for one board design; every photograph differs a little."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._parts = _layout(self._random)
        self._tracks = _tracks(self._random, self._parts)

    def good(self) -> Board:
        """Return a photograph of a board without a defect."""
        return self._photograph(self._draw(), None, np.zeros((HEIGHT, WIDTH), bool))

    def defective(self, defect: str) -> Board:
        """Return a photograph of a board with one of DEFECTS, somewhere."""
        clean = self._draw()
        bad = self._draw(defect)
        where = np.abs(clean.astype(int) - bad).max(axis=2) > 24
        return self._photograph(bad, defect, where)

    def _draw(self, defect: str | None = None) -> Pixels:
        missing = self._random.choice(len(self._parts)) if defect == "missing part" else None
        image = Image.new("RGB", (WIDTH * FINE, HEIGHT * FINE), MASK)
        draw = ImageDraw.Draw(image)
        for points in self._tracks:
            draw.line([(x * FINE, y * FINE) for x, y in points], COPPER, 3 * FINE, joint="curve")
        for index, part in enumerate(self._parts):
            _draw_part(draw, part, placed=index != missing)
        if defect == "scratch":
            self._draw_scratch(draw)
        if defect == "solder bridge":
            self._draw_bridge(draw)
        return np.asarray(
            image.filter(ImageFilter.GaussianBlur(FINE * 0.6)).resize((WIDTH, HEIGHT), Image.Resampling.BOX)
        )

    def _draw_scratch(self, draw: ImageDraw.ImageDraw) -> None:
        x, y = self._random.uniform(50, WIDTH - 150), self._random.uniform(40, HEIGHT - 80)
        angle, length = self._random.uniform(-0.6, 0.6), self._random.uniform(70, 110)
        points = []
        for step in np.linspace(0, 1, 9):
            wobble = self._random.uniform(-1.2, 1.2)
            points.append(
                (
                    (x + step * length * np.cos(angle)) * FINE,
                    (y + step * length * np.sin(angle) + wobble) * FINE,
                )
            )
        draw.line(points, "#D9D2B8", 3 * FINE, joint="curve")

    def _draw_bridge(self, draw: ImageDraw.ImageDraw) -> None:
        part = self._parts[self._random.choice([index for index, one in enumerate(self._parts) if one.pins > 1])]
        pitch = part.width / part.pins
        pin = int(self._random.integers(part.pins - 1))
        left = part.x + (pin + 0.5) * pitch
        row = part.y - 5 if self._random.random() < 0.5 else part.y + part.height + 5
        box = [left - 3, row - 4.5, left + pitch + 3, row + 4.5]
        draw.rounded_rectangle([value * FINE for value in box], 4 * FINE, "#E9ECEF")

    def _photograph(self, pixels: Pixels, defect: str | None, where: NDArray[np.bool_]) -> Board:
        """Shift by a fraction of a pixel, change the light a little, add the sensor's noise."""
        dx, dy = self._random.uniform(-JITTER, JITTER, 2)
        shifted = Image.fromarray(pixels).transform(
            (WIDTH, HEIGHT), Image.Transform.AFFINE, (1, 0, dx, 0, 1, dy), Image.Resampling.BILINEAR
        )
        bright = np.asarray(shifted, np.float32)
        # The outermost rows and columns have no neighbour to be shifted from.
        bright[[0, -1]], bright[:, [0, -1]] = bright[[1, -2]], bright[:, [1, -2]]
        light = 1 + self._random.uniform(-LIGHT, LIGHT)
        noisy = bright * light + self._random.normal(0, NOISE, pixels.shape)
        return Board(np.clip(noisy.round(), 0, 255).astype(np.uint8), defect, where)


def _layout(random: np.random.Generator) -> list[Part]:
    """Place parts on a grid of three by two, each somewhere in its cell."""
    kinds = [("U", 64, 40, 6), ("U", 48, 48, 4), ("R", 28, 14, 1), ("C", 24, 18, 1), ("U", 56, 32, 5), ("R", 30, 14, 1)]
    parts = []
    for index, kind in enumerate(random.permutation(len(kinds))):
        name, width, height, pins = kinds[int(kind)]
        x = 36 + (index % 3) * 112 + int(random.integers(0, 100 - width))
        y = 44 + (index // 3) * 120 + int(random.integers(0, 76 - height))
        parts.append(Part(f"{name}{index + 1}", x, y, width, height, pins))
    return parts


def _tracks(random: np.random.Generator, parts: list[Part]) -> list[list[tuple[float, float]]]:
    """Run copper from part to part, in right angles, as a router would."""
    tracks = []
    for first, second in zip(parts, parts[1:] + parts[:1], strict=True):
        for _ in range(3):
            x1 = first.x + random.uniform(0, first.width)
            y1 = first.y + random.uniform(0, first.height)
            x2 = second.x + random.uniform(0, second.width)
            y2 = second.y + random.uniform(0, second.height)
            tracks.append([(x1, y1), (x2, y1), (x2, y2)])
    return tracks


def _draw_part(draw: ImageDraw.ImageDraw, part: Part, *, placed: bool) -> None:
    """Draw the pads and the silk screen, and on a placed part its pins and its body."""
    pitch = part.width / part.pins
    for pin in range(part.pins):
        centre = part.x + (pin + 0.5) * pitch
        for row in (part.y - 5, part.y + part.height + 5):
            pad = [centre - 4, row - 5, centre + 4, row + 5]
            draw.rectangle([value * FINE for value in pad], GOLD)
            if placed:
                draw.rectangle([value * FINE for value in (centre - 2.5, row - 4, centre + 2.5, row + 4)], SILVER)
    frame = [part.x - 4, part.y - 12, part.x + part.width + 4, part.y + part.height + 12]
    draw.rectangle([value * FINE for value in frame], outline=SILK, width=FINE)
    if placed:
        body = [part.x, part.y, part.x + part.width, part.y + part.height]
        draw.rectangle([value * FINE for value in body], BODY)
        draw.ellipse([value * FINE for value in (part.x + 3, part.y + 3, part.x + 8, part.y + 8)], SILVER)
