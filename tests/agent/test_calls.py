"""The queue by itself: order, bounds, deadlines, and what happens at its end."""

import threading
import time

import pytest

from edge_agent.calls import CallQueue, Turn
from edge_agent.errors import CannotKeepUp, InferenceFailed
from support.waiting import until


def waiting(queue: CallQueue) -> int:
    return len(queue._waiting)


def enter_in_thread(
    queue: CallQueue, outcome: list, deadline: float | None = None, turn: Turn | None = None
) -> threading.Thread:
    def run() -> None:
        try:
            queue.enter(deadline, turn or Turn())
        except Exception as error:
            outcome.append(error)
        else:
            outcome.append("entered")

    before = waiting(queue)
    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: waiting(queue) > before or outcome, "it waits")
    return thread


def test_turns_come_in_the_order_of_arrival():
    queue = CallQueue("board", 100)
    queue.enter(None, Turn())
    order: list[int] = []

    def call(index: int) -> None:
        queue.enter(None, Turn())
        order.append(index)
        queue.leave()

    threads = []
    for index in range(50):
        threads.append(threading.Thread(target=call, args=(index,)))
        threads[-1].start()
        until(lambda: waiting(queue) == index + 1, "it waits")
    queue.leave()
    for thread in threads:
        thread.join(30)
    assert order == list(range(50))


def test_limit():
    queue = CallQueue("board", 0)
    queue.enter(None, Turn())
    with pytest.raises(CannotKeepUp, match="0 calls waiting, its queue_limit"):
        queue.enter(None, Turn())
    queue.leave()
    queue.enter(None, Turn())


def test_deadline_gives_the_place_up():
    queue = CallQueue("board", 1)
    queue.enter(None, Turn())
    outcome: list = []
    enter_in_thread(queue, outcome, deadline=time.monotonic() + 0.05).join(30)
    assert isinstance(outcome[0], CannotKeepUp)
    assert waiting(queue) == 0


def test_given_up_turns_are_skipped():
    queue = CallQueue("board", 5)
    queue.enter(None, Turn())
    gone, stays = Turn(), Turn()
    first: list = []
    second: list = []
    threads = [enter_in_thread(queue, first, turn=gone), enter_in_thread(queue, second, turn=stays)]
    gone.give_up()
    threads[0].join(30)
    assert isinstance(first[0], CannotKeepUp)
    queue.leave()
    threads[1].join(30)
    assert second == ["entered"]


def test_given_up_at_the_very_moment_of_the_grant():
    queue = CallQueue("board", 5)
    turn = Turn()
    turn.give_up()
    queue.enter(None, Turn())
    outcome: list = []
    thread = enter_in_thread(queue, outcome, turn=turn)
    thread.join(30)
    assert isinstance(outcome[0], CannotKeepUp)
    queue.leave()
    queue.enter(None, Turn())


def test_close_sends_everybody_away():
    queue = CallQueue("board", 5)
    queue.enter(None, Turn())
    outcome: list = []
    threads = [enter_in_thread(queue, outcome) for _ in range(3)]
    made = []
    queue.close(lambda: made.append(InferenceFailed("the worker died")) or made[-1])
    for thread in threads:
        thread.join(30)
    assert {id(error) for error in outcome} == {id(error) for error in made}
    assert len({id(error) for error in outcome}) == 3, "each caller has an error of its own"
    with pytest.raises(InferenceFailed):
        queue.enter(None, Turn())


def test_seal_keeps_those_who_wait():
    queue = CallQueue("board", 5)
    queue.enter(None, Turn())
    outcome: list = []
    thread = enter_in_thread(queue, outcome)
    queue.seal(lambda: InferenceFailed("stopping"))
    with pytest.raises(InferenceFailed):
        queue.enter(None, Turn())
    assert queue.wait_idle(0.01) is False
    queue.leave()
    thread.join(30)
    assert outcome == ["entered"]
    queue.leave()
    assert queue.wait_idle(1) is True


def test_storm():
    """Threads with deadlines, cancellations and refusals: never two inside, nobody lost, idle at the end."""
    queue = CallQueue("board", 8)
    inside = 0
    most = 0
    done = 0
    lock = threading.Lock()

    def storm(seed: int) -> None:
        nonlocal inside, most, done
        for index in range(200):
            turn = Turn()
            if (seed + index) % 7 == 0:
                turn.give_up()
            try:
                queue.enter(time.monotonic() + 0.001 * ((seed + index) % 5), turn)
            except CannotKeepUp:
                pass
            else:
                with lock:
                    inside += 1
                    most = max(most, inside)
                with lock:
                    inside -= 1
                queue.leave()
            with lock:
                done += 1

    threads = [threading.Thread(target=storm, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (done, most) == (16 * 200, 1)
    assert queue.wait_idle(1)
    assert waiting(queue) == 0
