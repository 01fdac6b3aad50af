"""A client of a benchmark against a stand-in for the agent: schedules, waits, refusals, and what is counted."""

import itertools
import statistics
import threading
import time

import grpc
import pytest

from edge_agent.bench import caller
from edge_agent.bench.caller import Caller
from edge_agent.bench.child import Refused
from edge_agent.bench.figures import Figures
from edge_agent.bench.report import Measurement
from support.bench_server import serving

STALL = 0.6


def client(folder, address: str, images: int = 1) -> Caller:
    (folder / "frames").write_bytes(b"".join(bytes([index]) * (3 * 64 * 64) for index in range(images)))
    place = {"segment": "", "frames": str(folder / "frames")}
    return Caller({"target": address, "model": "board", "width": 64, "height": 64, "images": images, **place})


def order(kind: str, seconds: float, warm_up: float = 0.0, **more) -> dict:
    begin = time.perf_counter() + 0.02
    instants = {"begin": begin, "counted": begin + warm_up, "until": begin + warm_up + seconds}
    return {"kind": kind, "way": "inline", "first": 0, **instants, **more}


def stalling(after: int):
    """One judge, as a model with one slot, that stands still once."""
    turn = threading.Lock()

    def judge(number: int, _: grpc.ServicerContext) -> None:
        with turn:
            time.sleep(STALL if number == after else 0.001)

    return judge


def test_a_stall_shows_in_a_schedule_and_hides_from_a_client_that_waits(tmp_path):
    """Coordinated omission: the client that waits makes one slow call, the line's parts all have to wait."""
    with serving(tmp_path, stalling(after=20)) as (address, _):
        answer = client(tmp_path, address)(order("open", 1.5, rate=50))
    slow = sum(one > STALL / 6 for one in answer["times"])
    assert len(answer["times"]) == 75
    assert slow >= 20, "those that were due in most of the stall, at 50 a second"
    assert Figures.of(answer["times"]).p90 > STALL / 3
    with serving(tmp_path, stalling(after=20)) as (address, _):
        closed = client(tmp_path, address)(order("closed", 1.5))
    assert sum(one > STALL / 6 for one in closed["times"]) <= 3, "the negative control"
    assert Figures.of(closed["times"]).p90 < STALL / 6


def test_a_call_that_was_sent_late_counts_from_its_instant(tmp_path, monkeypatch):
    """Room for one call on its way: the others wait in the client, which must not be forgotten."""
    monkeypatch.setattr(caller, "MOST_AT_ONCE", 1)
    with serving(tmp_path, stalling(after=20)) as (address, _):
        answer = client(tmp_path, address)(order("open", 1.5, rate=50))
    assert sum(one > STALL / 6 for one in answer["times"]) >= 20
    assert max(answer["late"]) > STALL / 2


def test_the_schedule_is_kept_whatever_becomes_of_the_calls(tmp_path):
    came = []
    with serving(tmp_path, lambda *_: (came.append(time.perf_counter()), time.sleep(0.3))) as (address, _):
        client(tmp_path, address)(order("open", 1.0, rate=40))
    gaps = [after - before for before, after in itertools.pairwise(came)]
    assert len(came) == 40
    assert 0.015 < statistics.median(gaps) < 0.035, "one each 25 ms, though each takes 300"
    assert came[-1] - came[0] < 40 * 0.3 / 2


def test_refusals_are_counted_and_never_sent_again(tmp_path):
    def judge(number: int, context: grpc.ServicerContext) -> None:
        if number % 3 == 0:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "The queue is full.")

    for kind in ("open", "closed"):
        with serving(tmp_path, judge) as (address, sizes):
            answer = client(tmp_path, address)(order(kind, 0.5, rate=100))
        refused = answer["errors"]["RESOURCE_EXHAUSTED"]
        assert refused == len(range(0, len(sizes), 3)), kind
        assert len(answer["times"]) + refused == len(sizes), kind
        assert answer["good"] == len(answer["times"])
        found = Measurement(kind, "shm", (64, 64), 1, 0.5, tuple(answer["times"]), answer["errors"], rate=100)
        assert (found.rejected, found.calls, found.keeps_up) == (refused, len(sizes), False)


def test_the_warm_up_is_not_counted(tmp_path):
    def judge(number: int, context: grpc.ServicerContext) -> None:
        time.sleep(0.2 if number < 5 else 0.002)

    for kind in ("open", "closed"):
        with serving(tmp_path, judge) as (address, sizes):
            answer = client(tmp_path, address)(order(kind, 0.5, warm_up=1.1, rate=4 if kind == "open" else 0))
        assert answer["good"] == len(sizes) > len(answer["times"]) > 0
        assert len(sizes) - len(answer["times"]) >= 5, f"{kind}: the slow ones were the first"


def test_what_no_later_call_can_mend_ends_it(tmp_path):
    def judge(number: int, context: grpc.ServicerContext) -> None:
        if number == 3:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "The model is STOPPED.")

    for kind in ("open", "closed", "turn"):
        with serving(tmp_path, judge) as (address, sizes), pytest.raises(Refused, match="The model is STOPPED"):
            client(tmp_path, address)({**order(kind, 30, rate=50, image=0), "seconds": 30})
        # One that keeps a schedule has sent some more by then; it would send 1,500.
        assert len(sizes) < (150 if kind == "open" else 5), kind


def test_a_turn_has_one_call_more_than_it_counts(tmp_path):
    with serving(tmp_path, lambda *_: time.sleep(0.01)) as (address, sizes):
        answer = client(tmp_path, address)({"kind": "turn", "way": "inline", "image": 0, "seconds": 0.1})
        assert len(answer["times"]) == len(sizes) - 1 == answer["good"] - 1
        slow = client(tmp_path, address)({"kind": "turn", "way": "inline", "image": 0, "seconds": 0.0})
    assert len(slow["times"]) == 1


def test_messages_on_their_way_have_a_limit():
    assert caller.at_once(100) == caller.MOST_AT_ONCE
    assert caller.at_once(48 << 20) == 10
    assert caller.at_once(1 << 40) == 1


def test_requests_lie_one_after_the_other_and_their_masks_behind_them():
    setup = {"model": "board", "width": 64, "height": 80, "images": 3, "segment": "/here"}
    size = 3 * 64 * 80
    requests = caller.by_handle(setup)
    assert [one.bitmap.shared_memory_handle.offset for one in requests] == [0, size, 2 * size]
    for one in requests:
        mask = one.anomaly_mask_params.shared_memory_handle
        assert (mask.name, mask.offset, mask.size) == ("/here", 3 * size, size)
        assert one.bitmap.shared_memory_handle.size == size


def test_inline_requests_hold_their_own_image(tmp_path):
    made = client(tmp_path, "unix:///nowhere", images=3)._requests("inline")
    assert [set(one.bitmap.byte_data) for one in made] == [{0}, {1}, {2}]
    assert {len(one.bitmap.byte_data) for one in made} == {3 * 64 * 64}
