"""Drawing in SVG: a few shapes, escaped texts, and axes whose ticks people can read. Colours are classes of the page."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape as _escape
from xml.sax.saxutils import quoteattr

from edge_agent.errors import printable

STEPS = (1, 2, 2.5, 5, 10)
Point = tuple[float, float]


def escape(text: str) -> str:
    """Return a text as it may stand in HTML and SVG: markup and control characters escaped."""
    return _escape(printable(text), {'"': "&quot;", "'": "&#39;"})


def ticks(high: float, most: int) -> list[float]:
    """Return at most `most` + 1 round numbers from 0 up to at least `high`, evenly spaced."""
    if high <= 0:
        return [0.0, 1.0]
    rough = high / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(one * power for one in STEPS if one * power >= rough * (1 - 1e-9))
    return [index * step for index in range(math.ceil(high / step - 1e-9) + 1)]


def number(value: float) -> str:
    """Return a tick's label."""
    return f"{value:.10g}"


@dataclass(frozen=True)
class Scale:
    """Values 0..`high` to places `start`..`end`."""

    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the place of a value."""
        return self.start + value / self.high * (self.end - self.start)


@dataclass
class Drawing:
    """An SVG of a size in pixels, built shape by shape; `label` says to those who cannot see it what it shows."""

    width: float
    height: float
    label: str
    _parts: list[str] = field(default_factory=list)

    def line(self, start: Point, end: Point, css: str) -> None:
        """Draw a line."""
        self._add("line", css, x1=start[0], y1=start[1], x2=end[0], y2=end[1])

    def rect(self, corner: Point, width: float, height: float, css: str, title: str = "") -> None:
        """Draw a filled rectangle; `title` is shown while the mouse is on it."""
        self._add("rect", css, title, x=corner[0], y=corner[1], width=max(0.0, width), height=max(0.0, height))

    def dot(self, at: Point, css: str, title: str = "", radius: float = 4) -> None:
        """Draw a dot."""
        self._add("circle", css, title, cx=at[0], cy=at[1], r=radius)

    def path(self, points: Iterable[Point], css: str) -> None:
        """Draw a line through points."""
        self._add("polyline", css, points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points))

    def area(self, points: Iterable[Point], css: str) -> None:
        """Draw the filled area within points."""
        self._add("polygon", css, points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points))

    def text(self, at: Point, text: str, css: str = "", anchor: str = "start") -> None:
        """Write a text; `anchor` is start, middle or end."""
        self._parts.append(
            f'<text x="{at[0]:.1f}" y="{at[1]:.1f}" text-anchor="{anchor}" class="{css}">{escape(text)}</text>'
        )

    def render(self) -> str:
        """Return the SVG."""
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width:g} {self.height:g}" role="img"'
        return f"{head} aria-label={quoteattr(printable(self.label))}>{''.join(self._parts)}</svg>"

    def _add(self, shape: str, css: str, title: str = "", **places: float | str) -> None:
        where = " ".join(f'{key}="{one if isinstance(one, str) else f"{one:.1f}"}"' for key, one in places.items())
        inside = f"<title>{escape(title)}</title>" if title else ""
        self._parts.append(f'<{shape} {where} class="{css}">{inside}</{shape}>')


def left_axis(drawing: Drawing, scale: Scale, marks: Sequence[float], left: float, right: float) -> None:
    """Draw a line across for each tick, with its number at the left."""
    for mark in marks:
        drawing.line((left, scale(mark)), (right, scale(mark)), "grid" if mark else "axis")
        drawing.text((left - 8, scale(mark) + 4), number(mark), "tick", "end")


def spread(wanted: Sequence[float], gap: float, lowest: float) -> list[float]:
    """Return places for labels near those wanted, at least `gap` apart and none beyond `lowest`."""
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    placed = list(wanted)
    for before, one in itertools.pairwise(order):
        placed[one] = max(placed[one], placed[before] + gap)
    limit = lowest
    for one in reversed(order):
        placed[one] = min(placed[one], limit)
        limit = placed[one] - gap
    return placed
