"""A benchmark as one HTML page that needs nothing else: no script, no font, no file; for light, dark and paper."""

from collections.abc import Iterable, Iterator

from edge_agent.bench import plots, words
from edge_agent.bench.report import WAYS, Measurement, Report
from edge_agent.bench.style import STYLE
from edge_agent.bench.svg import escape
from edge_agent.bench.words import ms, per_second

KINDS = {
    "turns": "One call at a time, all in turns",
    "closed": "Clients that call as soon as they have their answer",
    "open": "Parts at a line's pace",
}
HEADS = ("", "Calls", "a second", "p50", "p90", "p95", "p99", "max", "mean", "refused", "failed", "CPU of the agent")
HOW = (
    (
        "Each client is a process of its own with its own connection and, for shared memory, its own segment. All begin "
        "together; a warm-up before each measurement is not counted. Times are milliseconds from before the call to after its "
        "answer, as a client in Python sees them."
    ),
    (
        "The bare model is the agent's own work, from copying the image to writing the mask, done in one process without "
        "gRPC, with the agent's own settings. It takes turns with the calls, so that a device whose speed drifts favours neither."
    ),
    (
        "Parts at a line's pace are sent when they are due, whatever has become of the parts before. Their times count from "
        "the instant at which they were due, and what the agent refuses is counted and not sent again: a wait cannot hide."
    ),
    "p99 is the time within which 99 of 100 calls were answered. CPU: processors in use on average.",
)


def as_html(report: Report) -> str:
    """Return a report as HTML."""
    sentences = words.verdict(report)
    title = f"{report.model}: benchmark"
    body = [
        '<p class="kicker">Edge Agent benchmark</p>',
        f"<h1>{escape(report.model)}</h1>",
        *(f'<p class="{"verdict" if not index else "also"}">{_told(one)}</p>' for index, one in enumerate(sentences)),
        *_tiles(report),
    ]
    for size in report.sizes:
        body += _plots(report, size)
    body += _table(report)
    body += _about(report)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body><main>\n{_lines(body)}</main></body></html>\n'


def _lines(parts: Iterable[str]) -> str:
    return "".join(f"{part}\n" for part in parts if part)


def _told(sentence: str) -> str:
    """Return a sentence whose numbers stay with their units."""
    return escape(sentence).replace(" ms", "&nbsp;ms").replace(" %", "&nbsp;%")


def _tiles(report: Report) -> Iterator[str]:
    """Yield the figures that one looks for first."""
    size = report.sizes[0]
    tiles: list[tuple[str, str, str, str]] = []
    for one in report.of("turns", size=size):
        if figures := one.figures:
            label = "Bare model" if one.way == "bare" else f"One call, {WAYS[one.way]}"
            tiles.append((label, ms(figures.p50), "ms", f"99 % within {ms(figures.p99)} ms"))
    if best := report.best(size):
        clients = f"{best.clients} clients" if best.clients > 1 else "one client"
        tiles.append(("Most a second", per_second(best.throughput), "", f"{clients}, {WAYS[best.way]}"))
    kept = [one for one in report.of("open", size=size) if one.keeps_up]
    if kept:
        one = max(kept, key=lambda one: one.rate or 0)
        tiles.append(
            (
                "Keeps up with",
                f"{one.rate:g}",
                "a second",
                f"99 % within {ms(one.figures.p99)} ms" if one.figures else "",
            )
        )
    yield '<section class="tiles">'
    for label, value, unit, note in tiles:
        yield f'<div class="tile"><b>{escape(label)}</b><span>{escape(value)} <i>{escape(unit)}</i></span><small>{escape(note)}</small></div>'
    yield "</section>"


def _plots(report: Report, size: tuple[int, int]) -> Iterator[str]:
    of = f", images of {words.size_of(size)}" if len(report.sizes) > 1 else ""
    yield from _figure(
        f"How long a call takes{of}",
        plots.distribution(report, size),
        "Each bar is a share of the calls, the highest of a row as high as the row.",
    )
    if any(one.times for one in report.of("closed", size=size)):
        panels = (
            plots.latency_by_clients(report, size),
            plots.throughput_by_clients(report, size),
            plots.latency_by_pace(report, size),
        )
        inside = "".join(f"<div>{one}</div>" for one in panels if one)
        yield f'<section><h2>What more load does{escape(of)}</h2><div class="panels">{inside}</div>'
        yield '<p class="note">Lines: half of the calls take no longer. Thin lines: 99 of 100 take no longer.</p></section>'
    yield from _figure(f"Where the time of a call goes{of}", plots.stages(report, size), _about_stages(report))


def _about_stages(report: Report) -> str:
    if any(one.stages for one in report.measurements):
        return "By the agent's own clock; gRPC and wake-ups are what the client waits beyond that. Bare model: medians."
    return "Of the bare model alone: the agent's own times are not known."


def _figure(title: str, drawing: str, note: str) -> Iterator[str]:
    if drawing:
        yield f'<section><h2>{escape(title)}</h2>{drawing}<p class="note">{escape(note)}</p></section>'


def _table(report: Report) -> Iterator[str]:
    yield "<section><h2>All measurements</h2><table><thead><tr>"
    yield "".join(f"<th>{escape(one)}</th>" for one in HEADS) + "</tr></thead>"
    for size in report.sizes:
        for kind, title in KINDS.items():
            rows = report.of(kind, size=size)
            if rows:
                of = f", {words.size_of(size)}" if len(report.sizes) > 1 else ""
                yield f'<tbody><tr class="kind"><th colspan="{len(HEADS)}">{escape(title + of)}</th></tr>'
                yield from map(_row, rows)
                yield "</tbody>"
    yield "</table>"
    failed = [f"{one.name}: {words.errors(one)}." for one in report.measurements if any(one.errors.values())]
    yield f'<p class="note">Times in milliseconds. {escape(" ".join(failed))}</p></section>'


def _row(one: Measurement) -> str:
    name, *cells = words.row(one)
    bad = {HEADS.index("refused") - 1, HEADS.index("failed") - 1}
    told = "".join(
        f'<td class="bad">{escape(cell)}</td>' if index in bad and cell != "0" else f"<td>{escape(cell)}</td>"
        for index, cell in enumerate(cells)
    )
    return f'<tr><th><i class="key {one.way}"></i>{escape(name)}</th>{told}</tr>'


def _about(report: Report) -> Iterator[str]:
    """Yield what it was measured on and how, and what could not be."""
    facts = {**report.device, "images": report.images}
    if report.options:
        facts["settings of the model"] = ", ".join(f"{key} {value}" for key, value in report.options.items())
    for one in report.memory:
        pss = f", proportional {one.pss / words.MB:.0f} MB" if one.pss is not None else ""
        facts[f"memory, {one.process} {one.pid}"] = f"resident {one.rss / words.MB:.0f} MB{pss}"
    yield '<section class="about"><div><h2>The device</h2><dl>'
    for key, value in facts.items():
        yield f"<dt>{escape(key)}</dt><dd>{escape(str(value))}</dd>"
    yield "</dl></div><div><h2>How it was measured</h2>"
    yield from (f"<p>{escape(one)}</p>" for one in HOW)
    yield from (f'<p class="warn">{escape(one)}</p>' for one in report.notes)
    yield "</div></section>"
