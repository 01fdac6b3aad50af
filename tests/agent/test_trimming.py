"""What large messages leave is given back, and what ordinary ones need is kept."""

import subprocess
import sys
import threading
import time

import pytest

from edge_agent import trimming
from edge_agent.trimming import AT_A_TIME, HUGE, IMAGE, KEPT, LARGE, SEVERAL, TOO_MUCH, Trimmer, resident
from support.waiting import until

QUIET = 0.05


class Process:
    """What a process has in memory, of which all above `floor` can be given back."""

    def __init__(self) -> None:
        self.floor = self.has = 100 << 20
        self.given: list[threading.Thread] = []

    def give_back(self) -> None:
        self.given.append(threading.current_thread())
        self.has = self.floor


@pytest.fixture
def process() -> Process:
    return Process()


@pytest.fixture
def trimmer(process):
    made = Trimmer(process.give_back, lambda: process.has, QUIET)
    made.start()
    return made


def test_what_is_left_is_given_back_when_it_is_quiet(process, trimmer):
    process.has += KEPT + 1
    trimmer.received(LARGE)
    until(lambda: process.given, "memory is given back")
    assert process.has == process.floor
    assert process.given != [threading.current_thread()]


def test_not_while_messages_come(process):
    """They come for longer than it is to be quiet, and far more often; what they may need is not too much."""
    trimmer = Trimmer(process.give_back, lambda: process.has, 30 * QUIET, steady=QUIET)
    trimmer.start()
    process.has += TOO_MUCH
    for _ in range(40):
        trimmer.answered(LARGE)
        time.sleep(QUIET)
        assert process.given == []
    until(lambda: process.given, "memory is given back")


def test_what_is_far_too_much_is_given_back_while_they_come_now_and_then(process):
    """A stream without an end, of which each message leaves more than there may be."""
    trimmer = Trimmer(process.give_back, lambda: process.has, 10 * QUIET, steady=3 * QUIET)
    trimmer.start()
    began = time.monotonic()
    while len(process.given) < 3:
        process.has = process.floor + TOO_MUCH + 1
        trimmer.answered(LARGE)
        time.sleep(QUIET / 5)
        assert time.monotonic() - began < 30, "nothing is given back"
    # Each time all calls wait.
    assert time.monotonic() - began >= 3 * 3 * QUIET
    assert threading.current_thread() not in process.given


def test_what_ordinary_messages_need_is_kept(process, trimmer):
    process.has += KEPT
    trimmer.received(LARGE)
    trimmer.answered(LARGE)
    time.sleep(5 * QUIET)
    assert process.given == []


def test_small_messages_are_not_worth_a_thought(process, trimmer):
    process.has += 2 * KEPT
    trimmer.received(LARGE - 1)
    trimmer.answered(LARGE - 1)
    time.sleep(5 * QUIET)
    assert process.given == []


def test_all_is_given_back_when_no_image_comes_any_more(process):
    """However small, and each time anew; nothing while they come, nor for messages without an image."""
    trimmer = Trimmer(process.give_back, lambda: process.has, QUIET, idle=20 * QUIET)
    trimmer.start()
    for number in range(1, 3):
        process.has += 1
        for take_note in (trimmer.received, trimmer.answered) * 13:
            take_note(IMAGE)
            time.sleep(QUIET)
            assert len(process.given) == number - 1
        until(lambda number=number: len(process.given) == number, "memory is given back")
    assert process.has == process.floor
    trimmer.received(IMAGE - 1)
    trimmer.answered(IMAGE - 1)
    time.sleep(30 * QUIET)
    assert len(process.given) == 2


def test_large_messages_are_followed_by_all_being_given_back(process):
    trimmer = Trimmer(process.give_back, lambda: process.has, QUIET, idle=10 * QUIET)
    trimmer.start()
    process.has += KEPT + 1
    process.floor += 1
    trimmer.received(LARGE)
    until(lambda: process.given, "what is more than is kept is given back")
    process.floor -= 1
    until(lambda: process.has == process.floor, "all is given back")


def test_each_time_that_there_is_more_it_is_given_back(process, trimmer):
    for number in range(1, 4):
        process.has += KEPT + 1
        trimmer.answered(LARGE)
        until(lambda number=number: len(process.given) == number, "memory is given back")


def test_what_cannot_be_given_back_is_not_taken_for_what_there_was(process, trimmer):
    process.floor = process.has = process.has + 2 * KEPT  # in use
    trimmer.received(LARGE)
    until(lambda: process.given, "memory is given back")
    process.floor -= 2 * KEPT
    trimmer.answered(LARGE)
    until(lambda: process.has == process.floor, "memory is given back")


def test_several_huge_messages_are_given_back_as_they_come(process, trimmer):
    here = threading.current_thread()
    process.floor = process.has = process.has + SEVERAL + 1  # they are in hand
    trimmer.received(AT_A_TIME - HUGE - 2)
    assert process.given == []
    trimmer.received(HUGE + 1)
    assert process.given == []
    trimmer.received(HUGE + 1)
    assert process.given == [here]
    trimmer.received(AT_A_TIME)
    assert process.given == [here, here]


def test_one_after_the_other_they_are_kept_until_it_is_quiet(process, trimmer):
    process.has += SEVERAL
    for _ in range(5):
        trimmer.received(AT_A_TIME)
    assert threading.current_thread() not in process.given
    until(lambda: process.given, "memory is given back")


def test_ordinary_messages_are_not(process, trimmer):
    process.floor = process.has = process.has + SEVERAL + 1
    for _ in range(2 * AT_A_TIME // HUGE + 1):
        trimmer.received(HUGE)
    assert process.given == []


def test_nothing_is_given_back_before_it_is_started(process):
    made = Trimmer(process.give_back, lambda: process.has, QUIET)
    process.has += 2 * KEPT
    made.received(AT_A_TIME)
    made.answered(AT_A_TIME)
    time.sleep(5 * QUIET)
    assert process.given == []


def test_what_a_process_has():
    """Of a process of its own: what other tests left free in this one might be used again."""
    code = (
        "from edge_agent.trimming import resident\n"
        "before = resident()\n"
        "block = b'x' * (64 << 20)\n"
        "assert 60 << 20 < resident() - before < 80 << 20"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_system_that_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(trimming, "Path", lambda _: tmp_path / "none")
    assert resident() == 0
