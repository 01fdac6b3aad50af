"""The counters by themselves: what is counted under what, and that threads do not lose a count."""

import json
import threading

from edge_agent.metrics import Metrics


def test_nothing_yet():
    assert Metrics().snapshot() == {"calls": [], "workers": {}, "queue_longest": {}, "bytes_received": 0}


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
            metrics.called("DetectAnomalies", model, "OK", "", 3)
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
    assert {event for events in found["workers"].values() for event in events.values()} == {80}
    assert set(found["queue_longest"].values()) == {1999}
    assert looks == sorted(looks)
