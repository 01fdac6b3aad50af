"""How much of the bare model's throughput is left through the agent: `python benchmarks/throughput.py [--quick]`.

*Bare* is the agent's own work, from copy in to copy out, done at full speed by several processes beside each other, with
no agent between: as many of them, with as many threads each, spinning or not, as are best for it. The agent gets eight
clients, processes of their own that send the next call when the last one is answered, on the same cores; its threads,
slots and spinning, too, are the best of all that were tried. Bare and agent take turns of two seconds each; the figures
are medians of calls a second. What of the CPU the agent's processes and its clients take of a call tells where a
shortfall comes from.

Writes benchmarks/results/throughput.json and prints tables; `python benchmarks/throughput.py --table` prints them again.
"""

import contextlib
import itertools
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import PIL.Image
from callers import Callers, Size, Turn, bare_model, callers, client, copy_model, folder_of, served
from harness import (
    COMPILED,
    PHOTOGRAPHS,
    RESULTS,
    command,
    figures,
    machine,
    make_models,
    noise,
    package,
    workplace,
)

from edge_agent.bench.bare import Frame
from edge_agent.jobs import SessionOptions
from edge_agent.packages import Package

RESULT = RESULTS / "throughput.json"
CLIENTS = 8
# Models that share the cores, each with two of the clients.
MODELS = 4
# Rounds of the search with all settings; then only those within this part of the best are tried on.
ROUNDS_FOR_ALL, NEAR = 2, 0.85
SMALL, COOKIES = (1280, 720), (576, 768)


@dataclass(frozen=True)
class Plan:
    """Seconds and rounds: of looking for the best settings, and of measuring with them."""

    search_seconds: float = 0.4
    search_rounds: int = 6
    seconds: float = 2.0
    rounds: int = 10
    shared_seconds: float = 1.0
    shared_rounds: int = 6


QUICK = Plan(0.2, 1, 0.3, 2, 0.3, 1)


def candidates(cores: int) -> list[SessionOptions]:
    """Return the settings to try: threads x slots up to twice the cores; one thread has none to wait for, so none spins."""
    powers = {1 << power for power in range(cores.bit_length())}
    return [
        SessionOptions(threads, spinning, slots=slots)
        for threads in sorted(powers | {cores})
        for slots in sorted(powers | {cores, cores + 1, 2 * cores})
        if threads * slots <= 2 * cores
        for spinning in ((False, True) if threads > 1 else (False,))
    ]


def best(rates: dict[SessionOptions, list[float]]) -> SessionOptions:
    """Return the settings with the highest median of calls a second."""
    return max(rates, key=lambda options: statistics.median(rates[options]))


def measure(
    work: Path, models: Path, name: str, frames: Sequence[Frame], clients: Callers, plan: Plan
) -> tuple[dict[str, Any], SessionOptions]:
    """Return the figures of one model, bare and through the agent, each with its best settings, and the agent's."""
    found, size = package(models, name), (frames[0].width, frames[0].height)
    tried = candidates(machine()["cores"])
    with contextlib.ExitStack() as stack:
        bares = {
            kind: stack.enter_context(callers(bare_models(found, frames, kind, tried)))
            for kind in dict.fromkeys((one.threads, one.spinning) for one in tried)
        }
        agents = {
            options: stack.enter_context(
                served(folder_of(work, models, f"{name}-{number}", [name]), [name] * CLIENTS, size, options)
            )
            for number, options in enumerate(tried)
        }

        def bare(options: SessionOptions, seconds: float) -> Turn:
            return bares[options.threads, options.spinning].turn([None] * options.slots, seconds)

        def through_agent(options: SessionOptions, seconds: float) -> Turn:
            one = agents[options]
            return clients.turn(one.targets, seconds, (one.front, one.worker))

        ways = {"bare": bare, "agent": through_agent}
        rates = search(ways, tried, plan)
        chosen = {way: best(rates[way]) for way in ways}
        turns: dict[str, list[Turn]] = {way: [] for way in ways}
        for number in range(plan.rounds):
            for way in sorted(ways, reverse=bool(number % 2)):
                turns[way].append(ways[way](chosen[way], plan.seconds))
    result = {
        "bare": {**told(chosen["bare"]), **rate(turns["bare"]), "cpu_ms": {"bare": cpu(turns["bare"])}},
        "agent": {**told(chosen["agent"]), **rate(turns["agent"]), **of_clients(turns["agent"])},
        "turns": plan.rounds,
        "tried": [
            {**told(options), **{way: statistics.median(rates[way][options]) for way in ways}} for options in tried
        ],
    }
    result["agent / bare"] = result["agent"]["calls_per_s"] / result["bare"]["calls_per_s"]
    return result, chosen["agent"]


def bare_models(
    found: Package, frames: Sequence[Frame], kind: tuple[int, bool], tried: Sequence[SessionOptions]
) -> list[partial[Any]]:
    """Return what the processes with one kind of options prepare: as many bare models as any of `tried` has with these threads.

    Like clients, they do not share a frame: they would write their masks over each other's.
    """
    most = max(one.slots for one in tried if (one.threads, one.spinning) == kind)
    return [partial(bare_model, found, frames[one % len(frames)], SessionOptions(*kind)) for one in range(most)]


def search(
    ways: dict[str, Callable[[SessionOptions, float], Turn]], tried: Sequence[SessionOptions], plan: Plan
) -> dict[str, dict[SessionOptions, list[float]]]:
    """Return the calls a second of each way with each of `tried`, in turns; those that fall behind soon have no more."""
    rates: dict[str, dict[SessionOptions, list[float]]] = {way: {one: [] for one in tried} for way in ways}
    for way, options in itertools.product(ways, tried):
        ways[way](options, plan.search_seconds / 3)  # warms up
    left = {way: list(tried) for way in ways}
    for number in range(plan.search_rounds):
        if number == ROUNDS_FOR_ALL:
            left = {way: promising(rates[way]) for way in ways}
        for options, way in itertools.product(tried, ways):
            if options in left[way]:
                rates[way][options].append(ways[way](options, plan.search_seconds).rate)
    return rates


def promising(rates: dict[SessionOptions, list[float]]) -> list[SessionOptions]:
    """Return the settings that come near the best."""
    medians = {options: statistics.median(found) for options, found in rates.items()}
    return [options for options, median in medians.items() if median >= NEAR * max(medians.values())]


def told(options: SessionOptions) -> dict[str, Any]:
    """Return settings as they are written; of bare, `slots` are processes."""
    return {"threads": options.threads, "slots": options.slots, "spinning": options.spinning}


def rate(turns: Sequence[Turn]) -> dict[str, float]:
    """Return the median of calls a second, and how many cores were busy with them."""
    busy = sum(turn.members_cpu + sum(turn.watched_cpu) for turn in turns) / sum(turn.seconds for turn in turns)
    return {"calls_per_s": statistics.median(turn.rate for turn in turns), "cores_busy": busy}


def cpu(turns: Sequence[Turn]) -> float:
    """Return the milliseconds of CPU that the members took for a call."""
    return 1000 * sum(turn.members_cpu for turn in turns) / sum(turn.calls for turn in turns)


def of_clients(turns: Sequence[Turn]) -> dict[str, Any]:
    """Return latency in ms, fairness (calls of the slowest client by those of the fastest), and CPU ms of a call."""
    calls = sum(turn.calls for turn in turns)
    by_client = [sum(len(turn.times[one]) for turn in turns) for one in range(len(turns[0].times))]
    front, worker = (1000 * sum(turn.watched_cpu[one] for turn in turns) / calls for one in (0, 1))
    return {
        **figures([time for turn in turns for times in turn.times for time in times]),
        "fairness": min(by_client) / max(by_client),
        "cpu_ms": {"worker": worker, "front": front, "clients": cpu(turns)},
    }


def sharing(work: Path, models: Path, chosen: SessionOptions, clients: Callers, plan: Plan) -> dict[str, Any]:
    """Return the calls a second of one model with all clients, and of several that share them and the cores."""
    names = [f"small-{number}" for number in range(1, MODELS + 1)]
    for name in names:
        copy_model(models, "small", name, models)
    cases = {
        "one model, default settings": (SessionOptions(), names[:1]),
        "one model, its best settings": (chosen, names[:1]),
        f"{MODELS} models, default settings": (SessionOptions(), names),
        f"{MODELS} models, threads=1": (SessionOptions(1), names),
    }
    with contextlib.ExitStack() as stack:
        agents = {
            label: stack.enter_context(
                served(folder_of(work, models, f"shared-{number}", used), used * (CLIENTS // len(used)), SMALL, options)
            )
            for number, (label, (options, used)) in enumerate(cases.items())
        }
        turns: dict[str, list[Turn]] = {label: [] for label in cases}
        for number in range(-1, plan.shared_rounds):
            for label, one in agents.items():
                turn = clients.turn(one.targets, plan.shared_seconds)
                if number >= 0:
                    turns[label].append(turn)
    first = statistics.median(turn.rate for turn in turns["one model, default settings"])
    result = {}
    for label, found in turns.items():
        median = statistics.median(turn.rate for turn in found)
        result[label] = {
            "calls_per_s": median,
            "of one model, default settings": median / first,
            **figures([time for turn in found for times in turn.times for time in times]),
        }
    return result


@contextlib.contextmanager
def pictures(*, cookies: bool) -> Iterator[dict[Size, Frame]]:
    """Yield the frames to judge, in segments of their own: noise, and a photograph of a cracked cookie."""
    frames = {SMALL: Frame(noise(*SMALL), *SMALL)}
    try:
        if cookies:
            with PIL.Image.open(PHOTOGRAPHS / "anomaly-1.jpg") as photograph:
                frames[COOKIES] = Frame(photograph.convert("RGB").tobytes(), *COOKIES)
        yield frames
    finally:
        for frame in frames.values():
            frame.close()


def run(plan: Plan) -> dict[str, Any]:
    """Measure everything; return it as it is written."""
    with workplace() as work, contextlib.ExitStack() as stack:
        models = work / "models"
        make_models(models)
        cookies = (models / "cookies-segmentation").is_dir()
        frames = [stack.enter_context(pictures(cookies=cookies)) for _ in range(CLIENTS)]
        clients = stack.enter_context(callers([partial(client, one) for one in frames]))
        cases = {"small 1280x720": ("small", SMALL)}
        if cookies:
            cases["cookies 576x768 with mask"] = ("cookies-segmentation", COOKIES)
            cases["compiled cookies 576x768 with mask"] = (COMPILED, COOKIES)
        result: dict[str, Any] = {"cases": {}}
        for case, (name, size) in cases.items():
            print(f"measuring {case} ...", file=sys.stderr)
            result["cases"][case], chosen = measure(work, models, name, [one[size] for one in frames], clients, plan)
            if name == "small":
                print("measuring models that share the cores ...", file=sys.stderr)
                result["sharing"] = sharing(work, models, chosen, clients, plan)
    result["clients"] = CLIENTS
    result["machine"] = machine()
    return result


def settings(of: dict[str, Any], unit: str) -> str:
    """Return settings in words, as in `2 slots x 1 thread`."""
    words = [f"{of['slots']} {unit}{'' if of['slots'] == 1 else 'es' if unit.endswith('s') else 's'}"]
    words.append(f"{of['threads']} thread{'' if of['threads'] == 1 else 's'}")
    return " x ".join(words) + (", spinning" if of["spinning"] else "")


def table(result: dict[str, Any]) -> str:
    """Return the figures as Markdown tables."""
    clients, cores = result["clients"], result["machine"]["cores"]
    rows = [
        f"| {clients} clients | bare's best | calls/s | agent's best | calls/s | agent / bare | p50 ms | p99 ms | slowest / fastest client |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    spent = [
        f"| CPU ms a call | bare | worker | front | clients | of {cores} cores busy: bare | agent and clients |",
        "|---|---|---|---|---|---|---|",
    ]
    for case, found in result["cases"].items():
        bare, through = found["bare"], found["agent"]
        used = through["cpu_ms"]
        rows.append(
            f"| {case} | {settings(bare, 'process')} | {bare['calls_per_s']:.1f} | {settings(through, 'slot')} "
            f"| {through['calls_per_s']:.1f} | {found['agent / bare']:.2f} | {through['p50']:.1f} | {through['p99']:.1f} "
            f"| {through['fairness']:.2f} |"
        )
        spent.append(
            f"| {case} | {bare['cpu_ms']['bare']:.2f} | {used['worker']:.2f} | {used['front']:.2f} | {used['clients']:.2f} "
            f"| {bare['cores_busy']:.2f} | {through['cores_busy']:.2f} |"
        )
    shared = [
        f"| {clients} clients on the small model | calls/s | of one model | p50 ms | p99 ms |",
        "|---|---|---|---|---|",
    ]
    for label, found in result["sharing"].items():
        shared.append(
            f"| {label} | {found['calls_per_s']:.1f} | {found['of one model, default settings']:.2f} "
            f"| {found['p50']:.1f} | {found['p99']:.1f} |"
        )
    return "\n".join([*rows, "", *spent, "", *shared]) + "\n"


if __name__ == "__main__":
    sys.exit(
        command(
            "How much of the bare model's throughput is left through the agent.",
            RESULT,
            lambda quick: run(QUICK if quick else Plan()),
            table,
        )
    )
