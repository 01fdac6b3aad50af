"""The counters by themselves: what is counted under what, and that threads do not lose a count."""

import json
import threading
import time

from edge_agent.errors import EdgeAgentError
from edge_agent.jobs import STAGES
from edge_agent.metrics import LONGEST_ERROR, MOST_ERRORS, MOST_GONE, OF_CALLERS, Metrics


def test_nothing_yet():
    found = Metrics().snapshot()
    assert found.pop("calls") == []
    assert found.pop("bytes_received") == 0
    assert set(found) == {"workers", "restarts", "queue_longest", "images", "latency", "rejections", "last_errors"}
    assert not any(found.values())
    assert Metrics().stages("board") == {"calls": 0, "queue": 0, **dict.fromkeys(STAGES, 0)}


def test_calls_by_what_tells_them_apart():
    metrics = Metrics()
    for code, reason, received in (("OK", "", 10), ("OK", "", 20), ("INTERNAL", "hung", 5), ("INTERNAL", "crashed", 5)):
        metrics.called("DetectAnomalies", "board", code, reason, received)
    metrics.called("DetectAnomalies", "part", "OK", "", 1)
    metrics.called("StartModel", "board", "OK", "", 1)
    found = metrics.snapshot()
    assert [tuple(one.values()) for one in found["calls"]] == [
        ("DetectAnomalies", "board", "INTERNAL", "crashed", 1),
        ("DetectAnomalies", "board", "INTERNAL", "hung", 1),
        ("DetectAnomalies", "board", "OK", "", 2),
        ("DetectAnomalies", "part", "OK", "", 1),
        ("StartModel", "board", "OK", "", 1),
    ]
    assert list(found["calls"][0]) == ["rpc", "model", "code", "reason", "count"]
    assert found["bytes_received"] == 42


def test_events_by_model():
    metrics = Metrics()
    for event in ("started", "died", "started", "hung", "swapped"):
        metrics.happened(event, "board")
    metrics.happened("started", "part")
    assert metrics.snapshot()["workers"] == {
        "board": {"died": 1, "hung": 1, "started": 2, "swapped": 1},
        "part": {"started": 1},
    }


def test_restarts_by_model():
    metrics = Metrics()
    for model in ("board", "part", "board"):
        metrics.restarted(model)
    assert metrics.snapshot()["restarts"] == {"board": 2, "part": 1}


def test_images_by_what_became_of_them():
    metrics = Metrics()
    metrics.judged("board", 0.5, (0.001, 0.002, 0.003, 0.004))
    metrics.judged("board", 0.25, (0.001, 0.002, 0.003, 0.004), anomalous=True)
    for model, reason in (("board", "argument"), ("part", "argument"), ("board", "rejected"), ("", "argument")):
        metrics.called("DetectAnomalies", model, "INVALID_ARGUMENT", reason, 1)
    metrics.called("StartModel", "board", "INVALID_ARGUMENT", "argument", 1)
    found = metrics.snapshot()["images"]
    phases = found["board"].pop("phases")
    assert found == {
        "board": {"processed": 2, "anomalous": 1, "invalid": 1},
        "part": {"processed": 0, "anomalous": 0, "invalid": 1, "phases": {}},
    }
    assert list(phases) == ["queue", *STAGES]
    assert phases["queue"] == {"count": 2, "sum": 0.75, "buckets": [[0.25, 1], [0.5, 1]]}
    assert {name: one["buckets"] for name, one in phases.items() if name != "queue"} == {
        "copy": [[0.001, 2]],
        "preprocess": [[0.002, 2]],
        "run": [[0.00315, 2]],
        "postprocess": [[0.004, 2]],
    }
    assert metrics.stages("board") == {
        "calls": 2,
        "queue": 0.75,
        **dict(zip(STAGES, (0.002, 0.004, 0.006, 0.008), strict=True)),
    }


def test_how_long_detections_took():
    """Good ones and rejected ones, each by themselves; those that failed otherwise tell nothing of either."""
    metrics = Metrics()
    for rpc, code, reason, seconds in (
        ("DetectAnomalies", "OK", "", 0.02),
        ("DetectAnomalies", "OK", "", 0.02),
        ("DetectAnomalies", "RESOURCE_EXHAUSTED", "rejected", 0.0001),
        ("DetectAnomalies", "RESOURCE_EXHAUSTED", "expired", 7.0),
        ("DetectAnomalies", "INTERNAL", "hung", 7.0),
        ("StartModel", "OK", "", 7.0),
        ("StartModel", "RESOURCE_EXHAUSTED", "rejected", 7.0),
    ):
        metrics.called(rpc, "board", code, reason, 1, seconds)
    found = metrics.snapshot()
    assert found["latency"] == {"board": {"count": 2, "sum": 0.04, "buckets": [[0.02, 2]]}}
    assert found["rejections"] == {"board": {"count": 1, "sum": 0.0001, "buckets": [[0.0001, 1]]}}
    assert sum(metrics.answered()["board"]) == 2


def test_the_last_errors_of_each_model(monkeypatch):
    """One for each reason: what a worker died of outlasts what its callers do wrong afterwards."""
    monkeypatch.setattr(time, "time", lambda: 1_000_000_000.25)
    metrics = Metrics()
    metrics.happened("died", "board", "It was killed.")
    metrics.called("DetectAnomalies", "board", "INTERNAL", "hung", 1, 0.1, "It hung.")
    metrics.called("DetectAnomalies", "board", "INTERNAL", "model", 1, 0.1, "It failed.")
    metrics.called("DetectAnomalies", "board", "RESOURCE_EXHAUSTED", "rejected", 1, 0.1, "x" * 10_000)
    for number in range(100):
        metrics.called("DetectAnomalies", "board", "INVALID_ARGUMENT", "argument", 1, 0.1, f"Wrong {number}.")
    metrics.called("DetectAnomalies", "board", "INTERNAL", "hung", 1, 0.1, "It hung again.")
    metrics.called("DetectAnomalies", "board", "OK", "", 1, 0.1)
    metrics.called("DetectAnomalies", "", "NOT_FOUND", "name", 1, 0.1, "Nobody is called like this.")
    metrics.happened("started", "part")
    last = metrics.snapshot()["last_errors"]
    assert [(one["number"], one["of"], one["reason"], one["text"]) for one in last.pop("board")] == [
        (105, "agent", "hung", "It hung again."),
        (3, "agent", "model", "It failed."),
        (1, "agent", "died", "It was killed."),
        (104, "caller", "argument", "Wrong 99."),
        (4, "caller", "rejected", "x" * LONGEST_ERROR),
    ]
    assert last == {}
    metrics.happened("died", "part", "It was killed.")
    assert metrics.snapshot()["last_errors"]["part"] == [
        {
            "number": 106,
            "time": "2001-09-09T01:46:40Z",
            "of": "agent",
            "code": "",
            "reason": "died",
            "text": "It was killed.",
        }
    ]


def test_whose_error_each_kind_is():
    """A new kind belongs to the agent until somebody has thought about it, as what must not be lost."""
    kinds = [EdgeAgentError]
    for kind in kinds:
        kinds += [one for one in kind.__subclasses__() if one.__module__.startswith("edge_agent.")]
    assert {kind.__name__ for kind in kinds if kind.reason in OF_CALLERS} == {
        *("InvalidArgument", "InvalidName", "ModelNotFound", "WrongState", "CannotKeepUp", "Expired")
    }
    assert {kind.reason for kind in kinds} - OF_CALLERS == {"agent", "memory", "model", "crashed", "hung"}


def test_reasons_are_bounded():
    metrics = Metrics()
    for number in range(10 * MOST_ERRORS):
        metrics.called("DetectAnomalies", "board", "INTERNAL", f"reason {number}", 1, 0.1, "x")
    last = metrics.snapshot()["last_errors"]["board"]
    assert [one["reason"] for one in last] == [f"reason {number}" for number in range(159, 143, -1)]


def test_the_longest_queue_is_kept():
    metrics = Metrics()
    for model, length in (("board", 3), ("board", 7), ("board", 2), ("part", 1)):
        metrics.queued(model, length)
    assert metrics.snapshot()["queue_longest"] == {"board": 7, "part": 1}


def test_a_snapshot_is_json_and_does_not_change():
    metrics = Metrics()
    metrics.called("StartModel", "board", "OK", "", 1)
    metrics.happened("started", "board")
    before = metrics.snapshot()
    written = json.dumps(before)
    metrics.called("StartModel", "board", "OK", "", 1)
    metrics.happened("started", "board")
    metrics.queued("board", 1)
    assert json.dumps(before) == written
    assert metrics.snapshot() != before


def everything(metrics: Metrics, model: str) -> None:
    """Count something of each kind."""
    for code, reason in (("OK", ""), ("RESOURCE_EXHAUSTED", "rejected")):
        metrics.called("DetectAnomalies", model, code, reason, 1, 0.1, "text")
    metrics.judged(model, 0.5, (0.001, 0.002, 0.003, 0.004))
    metrics.happened("died", model, "It died.")
    metrics.restarted(model)
    metrics.queued(model, 3)


def told_of(metrics: Metrics) -> dict[str, set[str]]:
    """Return for each part of a snapshot which models it tells of."""
    found = metrics.snapshot()
    del found["bytes_received"]
    return {part: {one["model"] for one in has} if part == "calls" else set(has) for part, has in found.items()}


class TestModelsThatAreGone:
    def test_the_last_of_them_are_kept_and_the_others_forgotten(self):
        metrics = Metrics()
        there = ["board", "part"]
        for name in there:
            everything(metrics, name)
        for number in range(MOST_GONE + 10):
            everything(metrics, f"gone-{number}")
            metrics.keep([*there, f"gone-{number}"])
            metrics.keep(there)
        kept = {*there, *(f"gone-{number}" for number in range(10, MOST_GONE + 10))}
        assert told_of(metrics) == dict.fromkeys(told_of(Metrics()), kept)
        assert set(metrics.answered()) == kept
        assert metrics.snapshot()["bytes_received"] == 2 * (MOST_GONE + 12), "what has no model is counted on"

    def test_one_that_comes_back_goes_on(self):
        metrics = Metrics()
        everything(metrics, "board")
        metrics.keep([])
        metrics.keep(["board"])
        for number in range(MOST_GONE):
            everything(metrics, f"gone-{number}")
        metrics.keep(["board"])
        everything(metrics, "board")
        assert metrics.snapshot()["restarts"]["board"] == 2

    def test_one_that_comes_back_late_begins_anew(self):
        metrics = Metrics()
        for name in ("board", *(f"gone-{number}" for number in range(MOST_GONE))):
            everything(metrics, name)
            metrics.keep([])
        everything(metrics, "board")
        metrics.keep(["board"])
        assert metrics.snapshot()["restarts"]["board"] == 1

    def test_calls_that_name_none_are_no_model(self):
        metrics = Metrics()
        metrics.called("DetectAnomalies", "", "NOT_FOUND", "name", 1)
        metrics.called("ListModels", "", "OK", "", 1)
        for number in range(MOST_GONE + 10):
            everything(metrics, f"gone-{number}")
        metrics.keep([])
        assert [one["rpc"] for one in metrics.snapshot()["calls"] if not one["model"]] == [
            "DetectAnomalies",
            "ListModels",
        ]

    def test_what_they_take_is_bounded(self):
        """Ten thousand names, as somebody may deploy and remove them all the time."""
        metrics = Metrics()
        for number in range(10_000):
            metrics.called("DetectAnomalies", f"gone-{number}", "OK", "", 1)
            if number % 100 == 0:
                metrics.keep([])
        metrics.keep([])
        assert len(metrics.snapshot()["calls"]) == MOST_GONE


def test_no_count_is_lost_while_many_count_and_look():
    metrics = Metrics()
    ended = threading.Event()
    looks: list[int] = []

    def count(model: str) -> None:
        for number in range(2000):
            metrics.called("DetectAnomalies", model, "OK", "", 3, number / 1000)
            metrics.judged(model, 0.25, (0.5, 0.5, 0.5, 0.5), anomalous=number % 2 == 0)
            metrics.happened(f"event {number % 50}", model)
            metrics.queued(model, number)

    def look() -> None:
        while not ended.is_set():
            looks.append(metrics.snapshot()["bytes_received"])

    threads = [threading.Thread(target=count, args=(f"model-{number % 4}",)) for number in range(8)]
    looker = threading.Thread(target=look)
    looker.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    ended.set()
    looker.join(60)
    found = metrics.snapshot()
    assert sum(one["count"] for one in found["calls"]) == 16_000
    assert found["bytes_received"] == 48_000
    for one in found["images"].values():
        assert (one["processed"], one["anomalous"], one["phases"]["queue"]["sum"]) == (4000, 2000, 1000)
    assert {one["count"] for one in found["latency"].values()} == {4000}
    assert {event for events in found["workers"].values() for event in events.values()} == {80}
    assert set(found["queue_longest"].values()) == {1999}
    assert looks == sorted(looks)
