"""The page, JSON and CSV of a benchmark: well formed, escaped, and of the same figures."""

import csv
import io
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

from edge_agent.bench import export, plots, svg, words
from edge_agent.bench.page import as_html
from edge_agent.bench.report import Measurement, Memory, Report, Usage

HOSTILE = "<script>alert(1)</script>&amp;\"'\x1b[2J</title>"
SIZE = (576, 768)
STAGES = {"transport": 1e-3, "queue": 2e-4, "copy": 3e-4, "preprocess": 1e-3, "run": 6e-3, "postprocess": 1e-3}
VOID = {"meta", "link", "br", "img", "input", "hr"}


def times(first: float, count: int = 100, step: float = 2e-5) -> tuple[float, ...]:
    return tuple(first + step * (index % 10) for index in range(count))


def report(model: str = "board", **more) -> Report:
    used = Usage(1.5, 0.2, 1.8, 2)
    measurements = (
        Measurement("turns", "bare", SIZE, 1, 1.0, times(8e-3)),
        Measurement("turns", "shm", SIZE, 1, 1.0, times(9e-3)),
        Measurement("turns", "inline", SIZE, 1, 1.0, times(14e-3)),
        Measurement("closed", "shm", SIZE, 1, 1.0, times(9e-3), stages=STAGES, usage=used),
        Measurement("closed", "shm", SIZE, 8, 1.0, times(70e-3, 120), {"INTERNAL": 2}, usage=used),
        Measurement("closed", "inline", SIZE, 1, 1.0, times(14e-3, 60), usage=used),
        Measurement("closed", "inline", SIZE, 8, 1.0, (), {"INTERNAL": 7}),
        Measurement("open", "shm", SIZE, 1, 5.0, times(9e-3, 60), rate=12.0, stages=STAGES, late=1e-4),
        Measurement("open", "shm", SIZE, 1, 5.0, times(99e-3, 60), {"RESOURCE_EXHAUSTED": 40}, rate=200.0, late=1e-4),
    )
    found = {"measurements": measurements, "bare_stages": {"copy": 2e-4, "run": 8e-3}, "notes": (f"A note {HOSTILE}",)}
    memory = (Memory("front process", 7, 60 << 20, 50 << 20), Memory("helper", 8, 1 << 20, None))
    options = {"threads": 0, "slots": 1, "spinning": False}
    return Report(model, {"processor": HOSTILE}, options, "8 images", memory=memory, **{**found, **more})


class Balanced(HTMLParser):
    """Fails unless each tag is closed in its order; keeps what it met."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.tags, self.links, self.texts = [], set(), [], []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for key, value in attrs if key in {"src", "href"} or key.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def parsed(page: str) -> Balanced:
    parser = Balanced()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


@pytest.mark.parametrize("model", ["board", HOSTILE])
def test_page_is_well_formed_and_of_one_piece(model):
    page = as_html(report(model))
    found = parsed(page)
    assert found.links == []
    assert "script" not in found.tags
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(", page), "nothing from elsewhere"
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) == 5
    for drawing in drawings:
        ET.fromstring(drawing)
        assert not re.search(r"nan|inf\b", drawing)
    if model == HOSTILE:
        assert "\x1b" not in page
        assert "".join(found.texts).count("<script>alert(1)</script>") >= 4, "told, not run"


def test_page_says_what_the_measurements_say():
    text = " ".join(parsed(as_html(report())).texts).replace("\xa0", " ")
    assert "board judges an image of 576x768 in 9.08 ms through shared memory (99 % within 9.18 ms)" in text
    assert "and 14.1 ms inline" in text
    assert "It keeps up with 12 parts a second, 10 % of what it manages" in text
    assert "It does not keep up with 200 parts a second: 40 of 100 were refused" in text
    assert "40 % refused" in text
    assert "8 clients, inline: 7 INTERNAL" in text


def test_what_is_not_there_is_not_drawn():
    """No bare model, no stages, no schedule, a single client: less of a page, but a page."""
    one = Measurement("closed", "shm", SIZE, 1, 1.0, times(9e-3, 3))
    bare = report(
        measurements=(Measurement("turns", "shm", SIZE, 1, 1.0, times(9e-3, 2)), one), bare_stages=None, notes=()
    )
    page = as_html(bare)
    parsed(page)
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ET.fromstring(drawing)
    assert plots.stages(bare, SIZE) == plots.latency_by_pace(bare, SIZE) == ""
    assert len(words.verdict(bare)) == 2


def test_several_sizes_have_plots_each():
    found = report()
    small = tuple(
        Measurement(one.kind, one.way, (64, 64), one.clients, 1.0, one.times, rate=one.rate)
        for one in found.measurements
    )
    page = as_html(report(measurements=(*found.measurements, *small)))
    parsed(page)
    assert "images of 64x64" in page
    assert "images of 576x768" in page


def test_json_and_csv_have_the_same_figures():
    found = report(HOSTILE)
    as_json = json.loads(export.as_json(found))
    rows = list(csv.DictReader(io.StringIO(export.as_csv(found))))
    assert as_json["model"] == rows[0]["model"] == HOSTILE
    assert len(rows) == len(as_json["measurements"]) == 9
    for one, row in zip(as_json["measurements"], rows, strict=True):
        assert one["calls"] == one["ok"] + sum(one["errors"].values()) == int(row["calls"])
        assert row["p99_ms"] == ("" if one["latency_ms"] is None else str(one["latency_ms"]["p99"]))
    assert rows[-1]["errors"] == "RESOURCE_EXHAUSTED=40"
    assert (rows[-1]["rejected"], rows[-1]["keeps_up"], rows[-2]["keeps_up"]) == ("40", "False", "True")
    assert float(rows[3]["stage_run_ms"]) == pytest.approx(6)
    assert as_json["measurements"][0]["latency_ms"]["p50"] == pytest.approx(8.08)


@pytest.mark.parametrize(("high", "most"), [(0.003, 5), (1, 5), (9.99, 10), (12, 10), (100, 5), (12345, 7), (1e-9, 5)])
def test_ticks_are_round_few_and_reach_the_highest(high, most):
    found = svg.ticks(high, most)
    assert found[0] == 0
    assert found[-1] >= high * (1 - 1e-9)
    assert 2 <= len(found) <= most + 1
    assert found[-2] < high, "no more than are needed"


def test_labels_are_kept_apart():
    placed = svg.spread([10, 11, 12, 100, 101], 15, 105)
    assert placed[:3] == [10, 25, 40]
    assert max(placed) <= 105
    assert all(later - before >= 15 for before, later in zip(sorted(placed), sorted(placed)[1:], strict=False))
