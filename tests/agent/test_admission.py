"""The places for detections in hand: no model takes the last one of another, whatever starts, stops and fails meanwhile."""

import logging
import threading

import pytest

from edge_agent.admission import Admission
from edge_agent.errors import CannotKeepUp, Code


class Device:
    """An agent's places, and its models: those that are deployed, and those of them that are loaded."""

    def __init__(self, most: int, *loaded: str, deployed: int | None = None) -> None:
        self.loaded = {*loaded}
        self.deployed = len(loaded) if deployed is None else deployed
        self.asked = 0
        self.admission = Admission(most, lambda: self.deployed, self._names)

    def _names(self) -> set[str]:
        self.asked += 1
        return {*self.loaded}

    def flood(self, name: str) -> int:
        """Send a model's calls until one is refused; return how many were not."""
        for count in range(10_000):
            try:
                self.admission.enter(name)
            except CannotKeepUp as refusal:
                self.refusal = str(refusal)
                return count
        raise AssertionError("nothing is refused")


@pytest.mark.parametrize(("others", "admitted"), [((), 8), (("b",), 7), (("b", "c", "d"), 5)])
def test_a_flood_leaves_each_other_model_a_place(others, admitted):
    device = Device(8, "a", *others)
    assert device.flood("a") == admitted
    for name in others:
        assert device.flood(name) == 1, "the one that was kept, and no other's"
    assert device.flood("a") == 0


def test_several_floods_leave_it_too():
    device = Device(64, "a", "b", "c", "d", "idle")
    taken = [device.flood(name) for name in "abcd"]
    assert taken == [60, 1, 1, 1]
    for _ in range(3):
        device.admission.enter("idle")
        for name in "abcd":
            device.admission.leave(name)
            device.admission.enter(name)
            assert device.flood(name) == 0
        device.admission.leave("idle")


def test_what_is_free_beyond_that_is_for_any():
    device = Device(8, "a", "b")
    for name in ("a", "b", "b", "b"):
        device.admission.enter(name)
    assert device.flood("b") == 4, "none is kept for one that has its place"
    device.admission.leave("a")
    assert device.flood("b") == 0
    device.admission.enter("a")


def test_the_refusal_says_whose_calls_they_are_and_what_to_do():
    device = Device(8, "a", "b", "c")
    for name in ("b", "a", "a"):
        device.admission.enter(name)
    device.flood("a")
    assert device.refusal == (
        "The agent has 7 detections in hand and keeps 1 of its max_calls, 8, for models that have none; 'a' has the most, 6. "
        "Send fewer calls at once, or call again later; if 'a' is called too often, lower its queue_limit or raise max_calls."
    )
    device.admission.enter("c")
    device.flood("c")
    assert device.refusal.startswith(
        "The agent has 8 detections in hand, its max_calls; 'a' has the most, 6. Send fewer "
    )
    with pytest.raises(CannotKeepUp) as refused:
        device.admission.enter("b")
    assert (refused.value.code, refused.value.reason) == (Code.RESOURCE_EXHAUSTED, "rejected")


def test_models_come_and_go_meanwhile():
    device = Device(8, "a", "b", deployed=3)
    assert device.flood("a") == 7
    device.loaded.remove("b")  # stopped, FAILED or removed
    assert device.flood("a") == 1, "nothing is kept for it"
    device.loaded.add("c")
    device.admission.leave("a")
    assert device.flood("a") == 0, "what gets free is kept for one that was started"
    device.loaded.remove("c")
    assert device.flood("c") == 1, "a call that came before its model was stopped takes a place that is free"
    device.loaded.add("b")
    device.admission.leave("c")
    device.loaded.remove("a")
    assert device.flood("a") == device.flood("c") == 0, "and none that is kept"
    device.admission.enter("b")


def test_a_model_that_is_stopped_with_detections_in_hand_gives_their_places_back():
    device = Device(4, "a", "b")
    device.admission.enter("b")
    device.loaded.remove("b")
    assert device.flood("a") == 3
    device.loaded.add("b")
    device.admission.leave("b")
    assert device.flood("a") == 0
    device.admission.enter("b")


def test_more_models_than_places():
    device = Device(2, "a", "b", "c")
    assert [device.flood(name) for name in "abc"] == [1, 1, 0]
    device.admission.leave("a")
    device.admission.enter("c")


def test_a_refusal_while_nothing_is_in_hand():
    device = Device(1, "a", deployed=2)
    assert device.flood("gone") == 0
    assert "0 detections in hand and keeps 1 of its max_calls, 1, for" in device.refusal


def test_models_are_looked_at_only_where_few_places_are_left():
    device = Device(64, *"abcd")
    for _ in range(60):
        device.admission.enter("a")
    assert device.asked == 0
    device.admission.enter("a")
    assert device.asked == 1


def test_storm():
    """Three models are called too often, one is loaded and unloaded, and one has a caller who calls once at a time."""
    device = Device(16, "a", "b", "c", "idle", deployed=5)
    admission, ended, guard = device.admission, threading.Event(), threading.Lock()
    inside = most = refused = 0

    def judge(name: str) -> bool:
        nonlocal inside, most, refused
        try:
            admission.enter(name)
        except CannotKeepUp:
            refused += 1
            return False
        with guard:
            inside += 1
            most = max(most, inside)
        ended.wait(0.001)
        with guard:
            inside -= 1
        admission.leave(name)
        return True

    def flood(name: str) -> None:
        while not ended.is_set():
            judge(name)

    def come_and_go() -> None:
        while not ended.wait(0.002):
            device.loaded = device.loaded ^ {"comes"}

    floods = [threading.Thread(target=flood, args=(name,)) for name in "abc" for _ in range(8)]
    threads = [*floods, threading.Thread(target=come_and_go)]
    for thread in threads:
        thread.start()
    try:
        wrong = [number for number in range(100) if not judge("idle")]
    finally:
        ended.set()
        for thread in threads:
            thread.join(30)
    assert wrong == [], "calls of the idle model were refused"
    assert refused > 0, "there was no storm"
    assert 12 <= most <= 16
    assert (admission._total, admission._in_hand) == (0, {})


def test_it_is_told_once_where_models_may_have_more_in_hand_than_there_are_places(caplog):
    caplog.set_level(logging.INFO)
    admission = Device(64).admission
    most = {"a": 17, "b": 17, "c": 30}
    more, yet_more = {**most, "c": 31}, {**most, "d": 17}
    for wanted, changed, told in (
        (most, False, 0),
        (more, False, 1),
        (more, False, 0),
        (yet_more, False, 0),
        (most, False, 0),
        (yet_more, False, 1),
        (yet_more, True, 0),
        (more, True, 1),
        (most, True, 0),
        (more, True, 1),
    ):
        caplog.clear()
        admission.compare(wanted, changed=changed)
        lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert len(lines) == told, (wanted, changed)
        for line in lines:
            start = f"The {len(wanted)} models that are loaded may have {sum(wanted.values())} detections in hand "
            assert line.startswith(start)
            assert "max_calls is 64" in line
