"""Small plots beside each other in one SVG file, from points and the lines fitted to them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge_agent.bench.svg import Drawing, Scale, left_axis, number, spread, ticks

WIDTH, HEIGHT, COLUMNS = 400, 290, 3
LEFT, RIGHT, TOP, BOTTOM = 56, 20, 78, 48
TICKS = 5
# Pixels of a letter of a series' name, which stands at the right of its line, and between two of them.
LETTER, APART = 7.5, 15
# Okabe and Ito's colours, which the colour-blind tell apart.
STYLE = """<style>
svg { background: white; font: 12px Helvetica, Arial, sans-serif } text { fill: #1f2933 }
.title { font-size: 15px; font-weight: bold } .tick, .label { fill: #52606d }
.grid { stroke: #d8dee4 } .axis { stroke: #1f2933 }
polyline { fill: none; stroke-width: 1.5 } .name { font-weight: bold }
polyline.s0 { stroke: #0072b2 } polyline.s1 { stroke: #d55e00 } polyline.s2 { stroke: #009e73 }
circle.s0, text.s0 { fill: #0072b2 } circle.s1, text.s1 { fill: #d55e00 } circle.s2, text.s2 { fill: #009e73 }
</style>"""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """y = intercept + slope * x, the standard error of the slope, and R², the part of the variance that it explains."""

    slope: float
    intercept: float
    slope_error: float
    r2: float


@dataclass(frozen=True)
class Series:
    """Points with a name; drawn with the line fitted to them, or joined by one where there is none."""

    name: str
    points: Points
    line: Line | None = None


@dataclass(frozen=True)
class Plot:
    """A plot of at most three series; what is told of it stands below its title."""

    title: str
    told: str
    x: str
    y: str
    series: Sequence[Series]


def fit(points: Points) -> Line:
    """Return the line of least squares through three points or more; of points without variance R² is 1."""
    x, y = np.asarray(points, np.float64).T
    if np.ptp(y) <= 1e-12 * np.abs(y).max():  # equal but for their rounding
        return Line(0.0, float(y.mean()), 0.0, 1.0)
    slope, intercept = np.polyfit(x, y, 1)
    residual = float(((y - slope * x - intercept) ** 2).sum())
    total = float(((y - y.mean()) ** 2).sum())
    error = math.sqrt(residual / (len(x) - 2) / float(((x - x.mean()) ** 2).sum()))
    return Line(float(slope), float(intercept), error, 1 - residual / total)


def draw(label: str, plots: Sequence[Plot]) -> str:
    """Return an SVG file of the plots, in rows of three; `label` is what is told to those who cannot see it."""
    width, height = WIDTH * min(COLUMNS, len(plots)), HEIGHT * math.ceil(len(plots) / COLUMNS)
    drawing = Drawing(width, height, label)
    for place, plot in enumerate(plots):
        _draw(drawing, plot, WIDTH * (place % COLUMNS), HEIGHT * (place // COLUMNS))
    head, _, rest = drawing.render().partition(">")
    return f'{head} width="{width}" height="{height}">\n{STYLE}\n{rest}\n'


def _draw(drawing: Drawing, plot: Plot, left: float, top: float) -> None:
    everything = [point for one in plot.series for point in one.points]
    widest, up = max(x for x, _ in everything), ticks(max(y for _, y in everything), TICKS)
    right = left + WIDTH - RIGHT - LETTER * max(len(one.name) for one in plot.series)
    across = Scale(widest, left + LEFT, right)
    upward = Scale(up[-1], top + HEIGHT - BOTTOM, top + TOP)
    drawing.text((left + 16, top + 24), plot.title, "title")
    drawing.text((left + 16, top + 43), plot.told)
    drawing.text((left + 16, top + TOP - 12), plot.y, "label")
    left_axis(drawing, upward, up, left + LEFT, right)
    for mark in ticks(widest, TICKS):
        if mark <= widest:
            drawing.text((across(mark), upward.start + 16), number(mark), "tick", "middle")
    drawing.text(((across.start + right) / 2, upward.start + 34), plot.x, "label", "middle")
    ends = []
    for place, one in enumerate(plot.series):
        path = (
            [(x, max(0.0, one.line.intercept + one.line.slope * x)) for x, _ in one.points] if one.line else one.points
        )
        drawing.path([(across(x), upward(y)) for x, y in path], f"s{place}")
        for x, y in one.points:
            drawing.dot((across(x), upward(y)), f"s{place}", radius=3)
        ends.append(upward(path[-1][1]) + 4)
    for place, (one, end) in enumerate(zip(plot.series, spread(ends, APART, upward.start + 4), strict=True)):
        drawing.text((right + 8, end), one.name, f"name s{place}")
