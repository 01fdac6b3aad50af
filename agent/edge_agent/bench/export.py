"""A benchmark's findings for programs: JSON, and CSV with a row for each measurement. Times in milliseconds."""

import csv
import io
import json
from dataclasses import asdict
from typing import Any

from edge_agent.bench import words
from edge_agent.bench.figures import Figures
from edge_agent.bench.report import STAGES, Measurement, Report

VERSION = 1
FIGURES = tuple(Figures.__annotations__)


def as_json(report: Report) -> str:
    """Return a report as JSON."""
    found = {
        "version": VERSION,
        "model": report.model,
        "verdict": words.verdict(report),
        "images": report.images,
        "options": report.options,
        "device": dict(report.device),
        "measurements": [_measurement(one) for one in report.measurements],
        "bare_stages_ms": _ms(report.bare_stages),
        "memory": [asdict(one) for one in report.memory],
        "notes": list(report.notes),
    }
    return json.dumps(found, indent=1, allow_nan=False) + "\n"


def as_csv(report: Report) -> str:
    """Return the measurements of a report as CSV."""
    rows = [_flat(report.model, one) for one in report.measurements]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _measurement(one: Measurement) -> dict[str, Any]:
    figures = one.figures
    return {
        "name": one.name,
        "kind": one.kind,
        "way": one.way,
        "width": one.size[0],
        "height": one.size[1],
        "clients": one.clients,
        "scheduled_per_second": one.rate,
        "seconds": one.seconds,
        "calls": one.calls,
        "ok": len(one.times),
        "per_second": one.throughput if one.kind != "turns" else None,
        "latency_ms": _ms(asdict(figures)) if figures else None,
        "errors": dict(one.errors),
        "keeps_up": one.keeps_up if one.rate else None,
        "sent_late_p99_ms": 1000 * one.late if one.late is not None else None,
        "stages_ms": _ms(one.stages),
        "processors": asdict(one.usage) if one.usage else None,
    }


def _flat(model: str, one: Measurement) -> dict[str, Any]:
    """Return a measurement as a row: what is a table in JSON becomes columns."""
    found = _measurement(one)
    latency, stages = found.pop("latency_ms") or {}, found.pop("stages_ms") or {}
    used, failed = found.pop("processors") or {}, found.pop("errors")
    return {
        "model": model,
        **found,
        "rejected": one.rejected,
        "errors": " ".join(f"{code}={count}" for code, count in failed.items()),
        **{f"{name}_ms": latency.get(name) for name in FIGURES},
        **{f"stage_{name}_ms": stages.get(name) for name in STAGES},
        **{f"processors_{name}": used.get(name) for name in ("agent", "clients", "device", "cores")},
    }


def _ms(seconds: Any) -> dict[str, float] | None:
    return {key: 1000 * value for key, value in seconds.items()} if seconds else None
