"""A benchmark's findings in words: sentences for the head of a page, and rows for tables."""

from collections.abc import Iterator

from edge_agent.bench.report import Measurement, Memory, Report

THROUGH = {"shm": "through shared memory", "inline": "inline", "bare": "in the bare model"}
HEADS = (
    "MEASUREMENT",
    "CALLS",
    "A SECOND",
    "P50",
    "P90",
    "P95",
    "P99",
    "MAX",
    "MEAN",
    "REFUSED",
    "FAILED",
    "AGENT CPU",
)
MB = 1e6


def ms(seconds: float) -> str:
    """Return a time in milliseconds, with the digits that mean something."""
    value = 1000 * seconds
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def per_second(rate: float) -> str:
    """Return a number of calls a second."""
    return f"{rate:.1f}" if rate < 100 else f"{rate:.0f}"


def size_of(size: tuple[int, int]) -> str:
    """Return the size of an image."""
    return f"{size[0]}x{size[1]}"


def verdict(report: Report) -> list[str]:
    """Return what was found, in sentences, the most important ones first."""
    found = []
    for size in report.sizes:
        found += [*_speed(report, size), *_pace(report, size), *_most(report, size)]
    return found


def _speed(report: Report, size: tuple[int, int]) -> Iterator[str]:
    """Say how long one call takes, and how much of it is above the bare model."""
    turns = {one.way: figures for one in report.of("turns", size=size) if (figures := one.figures)}
    bare = turns.pop("bare", None)
    if not turns:
        return
    ways = [f"{ms(one.p50)} ms {THROUGH[way]} (99 % within {ms(one.p99)} ms)" for way, one in turns.items()]
    yield f"{report.model} judges an image of {size_of(size)} in {', and '.join(ways)}."
    if bare:
        above = [f"{ms(one.p50 - bare.p50)} ms {THROUGH[way]}" for way, one in turns.items()]
        yield f"The bare model takes {ms(bare.p50)} ms; what comes on top of it is {', '.join(above)}."


def _pace(report: Report, size: tuple[int, int]) -> Iterator[str]:
    """Say which paces it keeps up with."""
    for one in sorted(report.of("open", size=size), key=lambda one: one.rate or 0.0):
        yield pace(report, one)


def pace(report: Report, one: Measurement) -> str:
    """Say whether the model keeps up with a schedule."""
    assert one.rate is not None
    parts, figures = f"{one.rate:g} parts a second", one.figures
    if one.keeps_up and figures:
        most = max((two.throughput for two in report.of("closed", one.way, size=one.size)), default=0.0)
        share = f", {100 * one.rate / most:.0f} % of what it manages" if most else ""
        return f"It keeps up with {parts}{share}: 99 % are judged within {ms(figures.p99)} ms of their instant."
    if one.rejected:
        return f"It does not keep up with {parts}: {one.rejected} of {one.calls} were refused (RESOURCE_EXHAUSTED)."
    if one.errors:
        return f"At {parts} {sum(one.errors.values())} of {one.calls} calls failed: {errors(one)}."
    late = f", at last {ms(one.times[-1])} ms" if one.times else ""
    return f"It does not keep up with {parts}: each part waits longer than the one before{late}."


def _most(report: Report, size: tuple[int, int]) -> Iterator[str]:
    """Say how many images a second it manages, and what of the device that takes."""
    best = report.best(size)
    if not best or not best.times:
        return
    clients = f"{best.clients} clients" if best.clients > 1 else "one client"
    told = f"It manages {per_second(best.throughput)} images a second for {clients} {THROUGH[best.way]}"
    if used := best.usage:
        told += f", with {used.agent:.2f} of {used.cores} processors in the agent and {used.clients:.2f} in the clients"
    yield f"{told}."


def remembered(memory: tuple[Memory, ...]) -> str:
    """Say what memory the agent takes, empty where nothing is known."""
    told = [f"{one.process} {(one.pss or one.rss) / MB:.0f} MB" for one in memory if one.process != "helper"]
    if not told:
        return ""
    kind = "proportional, PSS" if all(one.pss is not None for one in memory) else "resident"
    return f"Memory of the agent ({kind}): {', '.join(told)}."


def errors(one: Measurement) -> str:
    """Return the calls that failed, by their codes."""
    return ", ".join(f"{count} {code}" for code, count in one.errors.items())


def row(one: Measurement) -> tuple[str, ...]:
    """Return a measurement's cells under HEADS; times in milliseconds."""
    figures = one.figures
    names = ("p50", "p90", "p95", "p99", "max", "mean")
    times = [ms(getattr(figures, name)) if figures else "-" for name in names]
    failed = sum(one.errors.values()) - one.rejected
    cpu = f"{one.usage.agent:.2f}" if one.usage else "-"
    rate = "-" if one.kind == "turns" else per_second(one.throughput)
    return (one.name, str(one.calls), rate, *times, str(one.rejected), str(failed), cpu)
