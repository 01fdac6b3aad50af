"""The metrics as Prometheus has them, made of the agent's status at each scrape, so that a call only counts."""

import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from edge_agent import processes
from edge_agent.exporter.reasons import OF_A_MODEL, OF_NO_MODEL
from edge_agent.histograms import BOUNDS, Histogram
from edge_agent.lifecycle import State
from edge_agent.metrics import DETECT, PHASES

PREFIX = "edge_agent"
# Three for each power of ten from 100 us to 50 s: of all that are counted by, those that dashboards are used to.
EXPOSED = tuple(float(f"{one}e{power}") for power in range(-4, 2) for one in ("1", "2.5", "5"))
EVENTS = {
    "started": ("worker_starts", "Worker processes that were started, to load a model or in the place of another."),
    "died": ("worker_deaths", "Worker processes that ended unasked, also while they were being started anew."),
    "not_started": (
        "worker_start_failures",
        "Times that no worker came into the place of one that had died, as for want of memory, or its package was refused.",
    ),
    "hung": ("worker_hangs", "Calls that a model did not answer within call_timeout, and that were ended."),
    "swapped": ("worker_swaps", "Times that a new version took over from the one before while the model ran."),
    "fell_back": ("worker_fallbacks", "Loads on something else than what would have come first, as the CPU."),
}
# Returns the agent's status.
Look = Callable[[], Mapping[str, Any]]
NOTHING = Histogram().json()
EMPTY: Mapping[str, Any] = {
    "agent": {"version": ""},
    "models": [],
    "calls": [],
    "workers": {},
    "restarts": {},
    "queue_longest": {},
    "images": {},
    "latency": {},
    "rejections": {},
    "bytes_received": 0,
}


def registry(collector: "AgentCollector") -> CollectorRegistry:
    """Return what is told: of the agent, and of its front process what the library tells of any."""
    made = CollectorRegistry()
    made.register(collector)
    # With a prefix: node_exporter, which may pass them on, has some of its own.
    ProcessCollector(namespace=PREFIX, registry=made)
    return made


class AgentCollector:
    """Makes metrics of the agent's status, those of models that are deployed now; until it serves, that it does not."""

    def __init__(self, look: Look | None = None) -> None:
        self._look = look
        self._up = look is not None

    def begin(self, look: Look) -> None:
        """Tell of what `look` returns: the agent serves."""
        self._look, self._up = look, True

    def end(self) -> None:
        """Tell what was counted, and that the agent serves no more."""
        self._up = False

    def describe(self) -> Iterable[Metric]:
        """Return every metric without its values; the library asks once."""
        return [*_life(up=False), *_counted(EMPTY, []), *_models([]), *_processes([]), _build(EMPTY)]

    def collect(self) -> Iterator[Metric]:
        """Return every metric with its values of this instant."""
        up = self._up
        yield from _life(up=up)
        if self._look is None:
            return
        status = self._look()
        models = status["models"]
        yield from _counted(status, [one["model"] for one in models])
        yield _build(status)
        if up:
            yield from _models(models)
            yield from _processes(models)


def _counter(name: str, text: str, labels: Sequence[str], rows: Iterable[tuple[Sequence[str], float]]) -> Metric:
    made = CounterMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
    for row, value in rows:
        made.add_metric(row, value)
    return made


def _gauge(name: str, text: str, labels: Sequence[str], rows: Iterable[tuple[Sequence[str], float]]) -> Metric:
    made = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
    for row, value in rows:
        made.add_metric(row, value)
    return made


def _histogram(
    name: str, text: str, labels: Sequence[str], rows: Iterable[tuple[Sequence[str], Mapping[str, Any]]]
) -> Metric:
    made = HistogramMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
    for row, found in rows:
        made.add_metric(row, buckets=cumulative(found["buckets"]), sum_value=found["sum"])
    return made


def cumulative(buckets: Iterable[tuple[float | None, int]]) -> list[tuple[str, float]]:
    """Return how many were at most each of EXPOSED, of counts by BOUNDS, of which the last one's is None."""
    counts = {BOUNDS[-1] + 1 if bound is None else bound: count for bound, count in buckets}
    exposed = [(f"{one:.15g}", sum(count for bound, count in counts.items() if bound <= one)) for one in EXPOSED]
    return [*exposed, ("+Inf", sum(counts.values()))]


def _counted(status: Mapping[str, Any], models: Sequence[str]) -> Iterator[Metric]:
    """Yield what was counted since the agent began, from 0 on for each model, so that the first of all is an increase."""
    yield _counter(
        "calls",
        "Calls that were answered, by the model that they named and the reason of those that failed, the watchdog's "
        "ListModels included.",
        ("rpc", "model", "code", "reason"),
        _calls(status["calls"], models).items(),
    )
    images = {model: status["images"].get(model, {}) for model in models}
    for key, text in (
        ("processed", "Images that a model judged."),
        ("anomalous", "Images that a model found anomalous."),
        ("invalid", "Images that were refused because something in their request can never work (INVALID_ARGUMENT)."),
    ):
        yield _counter(
            f"images_{key}", text, ("model",), [((model,), one.get(key, 0)) for model, one in images.items()]
        )
    yield _histogram(
        "stage_seconds",
        "Seconds that judged images took in each stage: waiting for their turn in the queue, and then in the worker.",
        ("model", "stage"),
        [
            ((model, stage), one.get("phases", {}).get(stage, NOTHING))
            for model, one in images.items()
            for stage in PHASES
        ],
    )
    for name, key, text in (
        ("detection_seconds", "latency", "Seconds from a detection's handler being entered to its good answer."),
        ("rejection_seconds", "rejections", "Seconds from a detection's handler being entered to its being rejected."),
    ):
        found = status[key]
        yield _histogram(name, text, ("model",), [((model,), found.get(model, NOTHING)) for model in models])
    yield from _workers(status, models)
    yield _counter("received_bytes", "Bytes of requests received.", (), [((), status["bytes_received"])])


def _calls(counted: Iterable[Mapping[str, Any]], models: Sequence[str]) -> dict[tuple[str, ...], int]:
    """Return the calls by RPC, model, code and reason: all that detections can come to, and of other calls what there was.

    Calls that name no deployed model are counted under an empty name.
    """
    rows: dict[tuple[str, ...], int] = {(DETECT, "", code, reason): 0 for code, reason in OF_NO_MODEL}
    rows |= {(DETECT, model, code, reason): 0 for model in models for code, reason in OF_A_MODEL}
    told = {"", *models}
    rows |= {
        (one["rpc"], one["model"], one["code"], one["reason"]): one["count"] for one in counted if one["model"] in told
    }
    return rows


def _workers(status: Mapping[str, Any], models: Sequence[str]) -> Iterator[Metric]:
    """Yield what has happened to each model's workers and queue."""
    for event, (name, text) in EVENTS.items():
        rows = [((model,), status["workers"].get(model, {}).get(event, 0)) for model in models]
        yield _counter(name, text, ("model",), rows)
    for made, key, name, text in (
        (_counter, "restarts", "worker_restarts", "Worker processes that took the place of one that had died."),
        (_gauge, "queue_longest", "queue_longest_calls", "The most calls that have waited for a model at once."),
    ):
        yield made(name, text, ("model",), [((model,), status[key].get(model, 0)) for model in models])


def _models(models: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    """Yield what each deployed model is and does this instant."""
    yield _gauge(
        "model_state",
        "1 for the state that a model is in, 0 for the others.",
        ("model", "state"),
        [((one["model"], state.name), float(one["state"] == state.name)) for one in models for state in State],
    )
    yield _gauge(
        "model_info",
        "A deployed model, and what it runs on: the accelerator, what the runtime calls it, and whether it fell back to it.",
        ("model", "version", "accelerator", "provider", "fallback"),
        [
            (
                (
                    one["model"],
                    one["version"],
                    one["accelerator"] or "",
                    one["provider"] or "",
                    "true" if one["fallback"] else "false",
                ),
                1,
            )
            for one in models
        ],
    )
    for name, key, text in (
        ("queue_calls", "waiting", "Calls that wait for a model."),
        ("queue_limit_calls", "limit", "Calls of a model that may wait; one more is rejected (queue_limit)."),
        ("in_flight_calls", "in_flight", "Calls that a model's worker is doing."),
    ):
        yield _gauge(name, text, ("model",), [((one["model"],), one["queue"][key]) for one in models if one["queue"]])


def _processes(models: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    """Yield the memory of each process: the front, which answers calls, the workers, and those that start these."""
    found = [(("front", ""), processes.memory(os.getpid()))]
    found += [(("worker", one["model"]), processes.memory(one["worker_pid"])) for one in models if one["worker_pid"]]
    helpers = [one for pid in processes.children(os.getpid()) if (one := processes.memory(pid))]
    if helpers:
        total = processes.Memory(sum(one.resident for one in helpers), sum(one.proportional for one in helpers))
        found.append((("helpers", ""), total))
    labels = ("process", "model")
    there = [(row, one) for row, one in found if one]
    yield _gauge(
        "memory_resident_bytes",
        "Memory of the agent's processes, each with all pages that it shares with others.",
        labels,
        [(row, one.resident) for row, one in there],
    )
    yield _gauge(
        "memory_proportional_bytes",
        "Memory of the agent's processes, shared pages divided among those who share them, so that a sum is right.",
        labels,
        [(row, one.proportional) for row, one in there],
    )


def _build(status: Mapping[str, Any]) -> Metric:
    labels = ("version", "python", "architecture")
    row = (status["agent"]["version"], platform.python_version(), platform.machine())
    return _gauge("build_info", "The agent's version, and what it runs in.", labels, [(row, 1)])


def _life(*, up: bool) -> Iterator[Metric]:
    """Yield whether the agent serves, and when that was so: a file outlives an agent that is killed."""
    yield _gauge(
        "up",
        "1 while the agent serves, 0 in a file before it does and after an orderly end; a file that was left behind "
        "otherwise grows old.",
        (),
        [((), float(up))],
    )
    yield _gauge(
        "metrics_written_timestamp_seconds",
        "Unix time at which these metrics were written, over HTTP or to a file, which is written anew every 15 s.",
        (),
        [((), time.time())],
    )
