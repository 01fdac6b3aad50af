"""What scaling.py tells of its figures: the lines fitted to them, tables, and plots."""

from collections.abc import Sequence
from typing import Any

from picture import Line, Plot, Series

WAYS = {"shm": "shared memory", "inline": "inline", "inline_kept": "inline, message_memory=keep"}
# What is fitted: points, what is measured, against what, the unit of y, and that of the slope with y's in it.
Curve = tuple[list[tuple[float, float]], str, str, str, float, str]


def curves(result: dict[str, Any]) -> dict[str, Curve]:
    """Return what a line is fitted to, by name: points, words, units, and by what the slope is multiplied for its unit."""
    found: dict[str, Curve] = {}
    for way, words in WAYS.items():
        points = [(int(side) ** 2 / 1e6, one["p50"]) for side, one in result["pixels"][way].items()]
        found[f"pixels, {way}"] = points, f"latency p50, {words}", "pixels, 64² to 4096²", "ms", 1, "ms a megapixel"
    points = [(int(number), one["p50"]) for number, one in result["clients"].items()]
    found["clients"] = points, "latency p50", f"clients, 1 to {list(result['clients'])[-1]}", "ms", 1, "ms a client"
    for name, steps in result["running"].items():
        points = [(step["running"], step["all"]) for step in steps[1:]]
        words = f"memory of all processes, {name} model", f"running models, 1 to {len(steps) - 1}"
        found[f"running, {name}"] = points, *words, "MB", 1, "MB a model"
    for name, steps in result["running"].items():
        points = [(step["running"], step["latency"]["p50"] / step["alone"]["p50"]) for step in steps[1:]]
        words = f"latency p50 by that alone, {name} model", f"running models, 1 to {len(steps) - 1}, one busy"
        found[f"beside, {name}"] = points, *words, "", 100, "% a model"
    words = f"stopped models, 0 to {result['stopped'][-1]['stopped']}"
    points = [(step["stopped"], step["front"]) for step in result["stopped"]]
    found["stopped"] = points, "memory of the front process", words, "MB", 1000, "kB a model"
    points = [(step["stopped"], step["list_models"]) for step in result["stopped"]]
    found["listing"] = points, "ListModels p50", words, "ms", 1000, "µs a model"
    return found


def table(result: dict[str, Any]) -> str:
    """Return the lines, and the points of those that have many, as Markdown tables."""
    rows = ["| what | against | at 0 | slope | R² |", "|---|---|---|---|---|"]
    for name, (_, what, against, unit, factor, slope_unit) in curves(result).items():
        line = Line(**result["lines"][name])
        slope = f"{factor * line.slope:.2f} ± {factor * line.slope_error:.2f} {slope_unit}"
        rows.append(f"| {what} | {against} | {f'{line.intercept:.2f} {unit}'.rstrip()} | {slope} | {line.r2:.4f} |")
    sides = result["pixels"]["shm"]
    rows += ["", *head("latency p50, ms", [f"{side}²" for side in sides])]
    for way, words in WAYS.items():
        rows.append(row(words, [one["p50"] for one in result["pixels"][way].values()], 2))
    clients = result["clients"]
    rows += ["", *head("clients", list(clients))]
    for label, key in (("latency p50, ms", "p50"), ("latency p99, ms", "p99"), ("calls/s", "calls_per_s")):
        rows.append(row(label, [one[key] for one in clients.values()], 1))
    workers = ", ".join(f"{name} {steps[1]['workers'][0]:.0f} MB" for name, steps in result["running"].items())
    front = result["stopped"][0]["front"]
    rows += [
        "",
        f"The front process of an idle agent without models takes {front:.0f} MB; the only worker: {workers} (PSS).",
    ]
    return "\n".join(rows) + "\n"


def head(label: str, columns: Sequence[str]) -> list[str]:
    """Return the first two rows of a table."""
    return [f"| {label} | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]


def row(label: str, values: Sequence[float], digits: int) -> str:
    """Return a row of a table."""
    return f"| {label} | {' | '.join(f'{value:.{digits}f}' for value in values)} |"


def plots(result: dict[str, Any]) -> list[Plot]:
    """Return the plots of the picture."""
    found = curves(result)
    lines = {name: Line(**line) for name, line in result["lines"].items()}

    def fitted(names: dict[str, str]) -> list[Series]:
        return [Series(label, found[name][0], lines[name]) for name, label in names.items()]

    def slopes(names: dict[str, str]) -> str:
        told = ", ".join(f"{label} {found[name][4] * lines[name].slope:+.3g}" for name, label in names.items())
        return f"{told} {found[next(iter(names))][5]}"

    clients = {
        key: [(int(number), one[key]) for number, one in result["clients"].items()]
        for key in ("p50", "p99", "calls_per_s")
    }
    pixels = {f"pixels, {way}": label for way, label in zip(WAYS, ("shared", "inline", "kept"), strict=True)}
    running = {f"running, {name}": name for name in result["running"]}
    beside = {f"beside, {name}": name for name in result["running"]}
    p50, stopped = {"clients": "p50"}, {"stopped": "front"}
    calling, rate = "clients calling at once", [Series("calls/s", clients["calls_per_s"])]
    return [
        Plot("Latency by pixels", slopes(pixels), "megapixels of the frame", "ms, p50", fitted(pixels)),
        Plot("Latency by clients", slopes(p50), calling, "ms", [*fitted(p50), Series("p99", clients["p99"])]),
        Plot("Throughput by clients", "one model, 1280x720, default settings", calling, "calls/s", rate),
        Plot("Memory by running models", slopes(running), "models running", "MB (PSS), all processes", fitted(running)),
        Plot(
            "Latency beside idle models",
            slopes(beside),
            "models running, one busy",
            "p50 by that alone",
            fitted(beside),
        ),
        Plot(
            "Memory by stopped models",
            slopes(stopped),
            "models deployed, none running",
            "MB (PSS), front process",
            fitted(stopped),
        ),
    ]
