"""The plots of a benchmark: how times are spread, how they grow with the load, and where the time goes."""

from collections.abc import Sequence

from edge_agent.bench.figures import histogram
from edge_agent.bench.report import STAGES, WAYS, Measurement, Report
from edge_agent.bench.svg import Drawing, Scale, left_axis, number, spread, ticks
from edge_agent.bench.words import errors, ms, per_second

WIDE = 1120.0
NARROW = 360.0
TALL = 300.0
LABELS = 262.0
ROW = 66.0
# Room at the right for the names of lines.
LONG, SHORT, SHORTEST = 142.0, 112.0, 60.0
BAR = 26.0
BINS = 90
# Seconds of a stage that can be seen.
LEAST = 1e-5
STAGE_NAMES = {
    "transport": "gRPC and wake-ups",
    "queue": "waiting for its turn",
    "copy": "copying the image",
    "preprocess": "pre-processing",
    "run": "the model",
    "postprocess": "verdict and mask",
}
Size = tuple[int, int]


def distribution(report: Report, size: Size) -> str:
    """Return how the times of single calls, and of parts at a pace that is kept, are spread; empty without any."""
    shown = [*report.of("turns", size=size), *(one for one in report.of("open", size=size) if one.keeps_up)]
    rows = [(one, figures) for one in shown if (figures := one.figures)]
    if not rows:
        return ""
    marks = ticks(1.04e3 * max(figures.p99 for _, figures in rows), 10)
    bottom = ROW * len(rows) + 8
    drawing = Drawing(WIDE, bottom + 48, "Histograms of the times of calls")
    scale = Scale(marks[-1], LABELS, WIDE - 120)
    for mark in marks:
        drawing.line((scale(mark), 8), (scale(mark), bottom), "grid" if mark else "axis")
        drawing.text((scale(mark), bottom + 18), number(mark), "tick", "middle")
    drawing.text(((scale.start + scale.end) / 2, bottom + 40), "milliseconds from call to answer", "label", "middle")
    for index, (one, figures) in enumerate(rows):
        base = 8 + ROW * (index + 1)
        drawing.line((LABELS, base), (scale.end, base), "axis")
        drawing.text((0, base - 24), one.name, "name")
        drawing.text((0, base - 8), f"{len(one.times)} calls, slowest {ms(figures.max)} ms", "tick")
        counts = histogram([1000 * time for time in one.times], 0, marks[-1], BINS)
        width, most = (scale.end - scale.start) / BINS, max(1, *counts)
        for place, count in enumerate(counts):
            tall = (ROW - 30) * count / most
            drawing.rect((scale.start + place * width, base - tall), width - 0.6, tall, f"fill {one.way}")
        _mark(drawing, scale(1000 * figures.p50), base, f"half within {ms(figures.p50)}", scale(1000 * figures.p99))
        _mark(drawing, scale(1000 * figures.p99), base, f"99 % within {ms(figures.p99)}", WIDE)
        beyond = len(one.times) - sum(counts)
        if beyond:
            drawing.text((scale.end + 10, base - 8), f"{beyond} beyond", "small")
    return drawing.render()


def _mark(drawing: Drawing, x: float, base: float, text: str, right: float) -> None:
    """Draw a percentile's line, its text beside it: at the left where there is no room up to `right`."""
    drawing.line((x, base - ROW + 10), (x, base), "mark")
    fits = right - x > 130
    drawing.text((x + 4 if fits else x - 4, base - ROW + 20), text, "small", "start" if fits else "end")


def latency_by_clients(report: Report, size: Size) -> str:
    """Return how long calls take when more clients call at once."""
    found = [one for one in report.of("closed", size=size) if one.times]
    lines = {way: [one for one in found if one.way == way] for way in dict.fromkeys(one.way for one in found)}
    marks = ticks(max(_p99(one) for one in found), 5)
    drawing, scale = _panel("Milliseconds for a call", "clients that call at once", marks)
    xs = _ordinal(sorted({one.clients for one in found}), drawing, LONG)
    labels: list[tuple[float, str, str]] = []
    for way, line in lines.items():
        middle = [(xs[one.clients], scale(_p50(one))) for one in line]
        top = [(xs[one.clients], scale(_p99(one))) for one in line]
        drawing.area([*middle, *reversed(top)], f"band {way}")
        drawing.path(top, f"thin {way}")
        drawing.path(middle, f"stroke {way}")
        for one, at in zip(line, middle, strict=True):
            drawing.dot(
                at, f"fill {way}", f"{one.name}: half within {_p50(one):.1f} ms, 99 % within {_p99(one):.1f} ms"
            )
        labels += [(middle[-1][1], f"{WAYS[way]}, half", way), (top[-1][1], f"{WAYS[way]}, 99 %", way)]
    _label(drawing, labels, LONG)
    return drawing.render()


def throughput_by_clients(report: Report, size: Size) -> str:
    """Return how many images a second are judged when more clients call at once."""
    found = [one for one in report.of("closed", size=size) if one.times]
    marks = ticks(max(one.throughput for one in found), 5)
    drawing, scale = _panel("Images judged in a second", "clients that call at once", marks)
    xs = _ordinal(sorted({one.clients for one in found}), drawing, SHORT)
    labels = []
    for way in dict.fromkeys(one.way for one in found):
        line = [one for one in found if one.way == way]
        points = [(xs[one.clients], scale(one.throughput)) for one in line]
        drawing.path(points, f"stroke {way}")
        for one, at in zip(line, points, strict=True):
            drawing.dot(at, f"fill {way}", f"{one.name}: {per_second(one.throughput)} a second")
        labels.append((points[-1][1], WAYS[way], way))
    _label(drawing, labels, SHORT)
    return drawing.render()


def latency_by_pace(report: Report, size: Size) -> str:
    """Return how long parts take that come at a line's pace, and where they are refused; empty without any."""
    found = sorted((one for one in report.of("open", size=size) if one.times), key=lambda one: one.rate or 0)
    if not found:
        return ""
    marks = ticks(max(_p99(one) for one in found), 5)
    drawing, scale = _panel("Milliseconds from the due instant", "parts a second", marks)
    paces = ticks(max(one.rate or 0 for one in found), 5)
    across = Scale(paces[-1], 48, NARROW - SHORTEST - 8)
    for pace in paces:
        drawing.text((across(pace), TALL - 32), number(pace), "tick", "middle")
    way = found[0].way
    middle = [(across(one.rate or 0), scale(_p50(one))) for one in found]
    top = [(across(one.rate or 0), scale(_p99(one))) for one in found]
    drawing.area([*middle, *reversed(top)], f"band {way}")
    drawing.path(top, f"thin {way}")
    drawing.path(middle, f"stroke {way}")
    for one, at in zip(found, middle, strict=True):
        kept = one.keeps_up
        title = f"{one.name}: half within {_p50(one):.1f} ms, 99 % within {_p99(one):.1f} ms; {errors(one) or 'none failed'}"
        drawing.dot(at, f"fill {way}" if kept else "fill bad", title, 4 if kept else 5)
    for index, (one, at, above) in enumerate(reversed(list(zip(found, middle, top, strict=True)))):
        if not one.keeps_up:
            refused = f"{100 * one.rejected / one.calls:.0f} % refused" if one.rejected else "not kept"
            place = (above[0], above[1] - 9) if index % 2 == 0 else (at[0], at[1] + 20)
            drawing.text(place, refused, "small bad", "end")
    _label(drawing, [(middle[-1][1], "half", way), (top[-1][1], "99 %", way)], SHORTEST)
    return drawing.render()


def stages(report: Report, size: Size) -> str:
    """Return where the time of a call goes, one bar for each load without a crowd; empty where nobody knows."""
    bars: list[tuple[str, dict[str, float]]] = []
    if report.bare_stages and size == report.sizes[0]:
        bars.append(("bare model", dict(report.bare_stages)))
    calm = [one for one in report.of("closed", size=size) if one.clients == 1]
    calm += [one for one in report.of("open", size=size) if one.keeps_up]
    bars += [(one.name, dict(one.stages)) for one in calm if one.stages]
    if not bars:
        return ""
    totals = [1000 * sum(bar.values()) for _, bar in bars]
    marks = ticks(max(totals), 10)
    top, bottom = 40.0, 40 + (BAR + 14) * len(bars)
    drawing = Drawing(WIDE, bottom + 48, "Mean milliseconds of a call in each of its stages")
    scale = Scale(marks[-1], LABELS, WIDE - 120)
    used = [stage for stage in STAGES if any(bar.get(stage, 0.0) > LEAST for _, bar in bars)]
    x = LABELS
    for stage in used:
        drawing.rect((x, 6), 12, 12, f"fill {stage}")
        drawing.text((x + 18, 16), STAGE_NAMES[stage], "small")
        x += 36 + 7.0 * len(STAGE_NAMES[stage])
    for mark in marks:
        drawing.line((scale(mark), top - 8), (scale(mark), bottom), "grid" if mark else "axis")
        drawing.text((scale(mark), bottom + 18), number(mark), "tick", "middle")
    drawing.text(((scale.start + scale.end) / 2, bottom + 40), "milliseconds of a call, mean", "label", "middle")
    for index, ((name, bar), total) in enumerate(zip(bars, totals, strict=True)):
        _bar(drawing, scale, top + index * (BAR + 14), name, bar, total)
    return drawing.render()


def _bar(drawing: Drawing, scale: Scale, y: float, name: str, bar: dict[str, float], total: float) -> None:
    drawing.text((0, y + 18), name, "name")
    done = 0.0
    for stage in STAGES:
        value = 1000 * bar.get(stage, 0.0)
        width = scale(done + value) - scale(done)
        drawing.rect((scale(done), y), width - 1, BAR, f"fill {stage}", f"{STAGE_NAMES[stage]}: {value:.2f} ms")
        if width > 34:
            drawing.text((scale(done) + width / 2, y + 17), ms(value / 1000), f"inside on-{stage}", "middle")
        done += value
    drawing.text((scale(done) + 8, y + 17), f"{ms(total / 1000)} ms", "small")


def _panel(title: str, below: str, marks: Sequence[float]) -> tuple[Drawing, Scale]:
    """Return an empty plot with a left axis, and its scale."""
    drawing = Drawing(NARROW, TALL, f"{title} by {below}")
    scale = Scale(marks[-1], TALL - 50, 34)
    drawing.text((0, 14), title, "name")
    left_axis(drawing, scale, marks, 48, NARROW - 16)
    drawing.text(((48 + NARROW - 16) / 2, TALL - 10), below, "label", "middle")
    return drawing, scale


def _ordinal(values: Sequence[int], drawing: Drawing, side: float) -> dict[int, float]:
    """Return the places of numbers of clients, evenly spaced, and write them below."""
    left, right = 70.0, NARROW - side - 8
    step = (right - left) / max(1, len(values) - 1)
    xs = {value: left + index * step for index, value in enumerate(values)}
    for value, x in xs.items():
        drawing.text((x, TALL - 32), str(value), "tick", "middle")
    return xs


def _label(drawing: Drawing, labels: Sequence[tuple[float, str, str]], side: float) -> None:
    """Write each line's name at its end, at the right."""
    places = spread([y for y, _, _ in labels], 15, TALL - 54)
    for (_, text, way), y in zip(labels, places, strict=True):
        drawing.text((NARROW - side + 2, y + 4), text, f"small {way}")


def _p50(one: Measurement) -> float:
    return 1000 * one.figures.p50 if one.figures else 0.0


def _p99(one: Measurement) -> float:
    return 1000 * one.figures.p99 if one.figures else 0.0
