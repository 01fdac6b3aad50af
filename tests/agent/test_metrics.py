"""The counters by themselves: what is counted under what, and that threads do not lose a count."""

import json
import threading
import time

from edge_agent.jobs import STAGES
from edge_agent.metrics import LONGEST_ERROR, Metrics


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


def test_the_last_error_of_each_model(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1_000_000_000.25)
    metrics = Metrics()
    metrics.called("DetectAnomalies", "board", "INTERNAL", "hung", 1, 0.1, "It hung.")
    metrics.called("DetectAnomalies", "board", "RESOURCE_EXHAUSTED", "rejected", 1, 0.1, "x" * 10_000)
    metrics.called("DetectAnomalies", "board", "OK", "", 1, 0.1)
    metrics.called("DetectAnomalies", "", "NOT_FOUND", "name", 1, 0.1, "Nobody is called like this.")
    metrics.happened("started", "part")
    metrics.happened("died", "part", "It was killed.")
    metrics.happened("started", "part")
    at = "2001-09-09T01:46:40Z"
    assert metrics.snapshot()["last_errors"] == {
        "board": {"time": at, "code": "RESOURCE_EXHAUSTED", "reason": "rejected", "text": "x" * LONGEST_ERROR},
        "part": {"time": at, "code": "", "reason": "died", "text": "It was killed."},
    }


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
