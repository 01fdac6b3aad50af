"""The queue by itself: order, bounds, deadlines, and what happens at its end."""

import contextlib
import threading
import time

import pytest

from edge_agent.calls import CallQueue, Turn
from edge_agent.errors import CannotKeepUp, Expired, InferenceFailed
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
    thread = threading.Thread(target=run, daemon=True)
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


def test_the_most_that_have_waited_are_told_at_once():
    lengths: list[int] = []
    queue = CallQueue("board", 2, grown=lengths.append)
    queue.enter(None, first := Turn())
    threads = [enter_in_thread(queue, []) for _ in range(2)]
    assert lengths == [1, 2]
    queue.pause()
    # Whoever gives the turn up waits, too.
    threads.append(threading.Thread(target=queue.again, args=(None, first), daemon=True))
    threads[-1].start()
    until(lambda: waiting(queue) == 3, "it waits")
    assert lengths == [1, 2, 3]
    queue.resume()
    for _ in threads:
        until(lambda: queue.status()["in_flight"] == 1, "one has its turn")
        queue.leave()
    for thread in threads:
        thread.join(30)
    enter_in_thread(queue, [], deadline=time.monotonic()).join(30)
    assert lengths == [1, 2, 3], "fewer than once are not told"


@pytest.mark.parametrize("passed", ["deadline", "caller"])
def test_at_the_very_moment_of_the_grant(passed):
    """The turn is granted, and nobody waits for the answer by the time that the thread runs."""

    class Late(Turn):
        def wait(self, deadline: float | None) -> None:
            super().wait(None)
            if passed == "caller":
                self.give_up()
            elif deadline:
                time.sleep(max(0.0, deadline - time.monotonic()))

    queue = CallQueue("board", 5)
    turn = Late()
    queue.enter(None, Turn())
    outcome: list = []
    deadline = time.monotonic() + 0.2 if passed == "deadline" else None
    thread = enter_in_thread(queue, outcome, deadline, turn)
    queue.leave()
    thread.join(30)
    assert isinstance(outcome[0], Expired)
    assert not turn.granted
    queue.enter(None, Turn())


class TestDeadOnArrival:
    """Nobody waits for the answer any more when the call comes for its turn."""

    def calls(self) -> list[tuple[float | None, Turn]]:
        gone = Turn()
        gone.give_up()
        return [(None, gone), (time.monotonic() + 60, gone), (time.monotonic(), Turn()), (time.monotonic() - 1, Turn())]

    @pytest.mark.parametrize("slots", [1, 2])
    def test_it_takes_no_free_slot(self, slots):
        queue = CallQueue("board", 5, slots)
        for deadline, turn in self.calls():
            with pytest.raises(Expired, match="deadline passed, or its caller went away"):
                queue.enter(deadline, turn)
            assert not turn.granted
            assert queue.status()["in_flight"] == 0

    def test_it_takes_no_place_in_the_queue_and_is_not_counted_as_rejected(self):
        lengths = []
        queue = CallQueue("board", 0, grown=lengths.append)
        queue.enter(None, Turn())
        for deadline, turn in self.calls():
            with pytest.raises(Expired):
                queue.enter(deadline, turn)
        assert lengths == []

    def test_of_a_queue_that_is_closed_it_is_told_that(self):
        queue = CallQueue("board", 5)
        queue.close(lambda: InferenceFailed("the worker died"))
        for deadline, turn in self.calls():
            with pytest.raises(InferenceFailed):
                queue.enter(deadline, turn)

    def test_one_that_is_in_time_goes_on(self):
        queue = CallQueue("board", 5)
        queue.enter(time.monotonic() + 60, turn := Turn())
        assert turn.granted


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


class TestPause:
    """While a worker is replaced nobody gets the turn; who has it when the worker dies goes before all who wait."""

    def test_holds_everybody_up_and_keeps_the_order(self):
        queue = CallQueue("board", 20)
        queue.pause()
        order: list[int] = []

        def call(index: int) -> None:
            queue.enter(None, Turn())
            order.append(index)
            queue.leave()

        threads = []
        for index in range(20):
            threads.append(threading.Thread(target=call, args=(index,)))
            threads[-1].start()
            until(lambda: waiting(queue) == index + 1, "it waits")
        assert queue.wait_free(0) is True
        assert queue.wait_idle(0) is False
        assert order == []
        queue.resume()
        for thread in threads:
            thread.join(30)
        assert order == list(range(20))

    def test_who_has_the_turn_keeps_it(self):
        queue = CallQueue("board", 5)
        queue.enter(None, Turn())
        queue.pause()
        outcome: list = []
        thread = enter_in_thread(queue, outcome)
        assert queue.wait_free(0.01) is False
        queue.leave()
        assert queue.wait_free(0) is True
        assert (waiting(queue), outcome) == (1, []), "the next has to wait for the end of the pause"
        queue.resume()
        thread.join(30)
        assert outcome == ["entered"]

    def test_a_resume_gives_no_second_turn(self):
        queue = CallQueue("board", 5)
        queue.enter(None, Turn())
        outcome: list = []
        thread = enter_in_thread(queue, outcome)
        queue.pause()
        queue.resume()
        queue.resume()
        assert (waiting(queue), outcome) == (1, [])
        queue.leave()
        thread.join(30)
        assert outcome == ["entered"]

    def test_one_more_may_wait_than_the_limit(self):
        """It would have the turn by now, were the worker there."""
        queue = CallQueue("board", 1)
        queue.pause()
        outcome: list = []
        threads = [enter_in_thread(queue, outcome) for _ in range(2)]
        with pytest.raises(CannotKeepUp, match="1 calls waiting, its queue_limit"):
            queue.enter(None, Turn())
        queue.resume()
        threads[0].join(30)
        assert outcome == ["entered"]
        with pytest.raises(CannotKeepUp, match="1 calls waiting"):
            queue.enter(None, Turn())
        queue.leave()
        threads[1].join(30)
        assert outcome == ["entered"] * 2

    def test_a_deadline_passes_meanwhile(self):
        queue = CallQueue("board", 5)
        queue.pause()
        with pytest.raises(Expired):
            queue.enter(time.monotonic() + 0.02, Turn())
        assert waiting(queue) == 0
        queue.resume()
        queue.enter(None, Turn())


class TestAgain:
    """The call whose job did not reach a worker that had died."""

    def test_goes_on_at_once_where_nothing_is_paused(self):
        queue = CallQueue("board", 5)
        turn = Turn()
        queue.enter(None, turn)
        queue.again(None, turn)
        assert turn.granted
        assert queue.wait_free(0) is False

    @pytest.mark.parametrize("passed", ["deadline", "caller"])
    def test_is_not_judged_once_more_where_nobody_waits_for_it(self, passed):
        queue = CallQueue("board", 5)
        turn = Turn()
        queue.enter(None, turn)
        if passed == "caller":
            turn.give_up()
        with pytest.raises(Expired):
            queue.again(time.monotonic() if passed == "deadline" else None, turn)
        assert turn.granted, "whoever called leaves"
        queue.leave(turn.slot)
        assert queue.wait_idle(0)

    def test_waits_for_the_resume_before_all_others(self):
        queue = CallQueue("board", 5)
        turn, order = Turn(), []
        queue.enter(None, turn)
        outcome: list = []
        others = [enter_in_thread(queue, outcome) for _ in range(2)]
        queue.pause()

        def again() -> None:
            queue.again(None, turn)
            order.append(list(outcome))
            queue.leave()

        thread = threading.Thread(target=again)
        thread.start()
        until(lambda: queue.wait_free(0), "the turn is given up")
        assert waiting(queue) == 3
        queue.resume()
        thread.join(30)
        others[0].join(30)
        queue.leave()
        others[1].join(30)
        assert order == [[]], "nobody was before it"
        assert outcome == ["entered"] * 2

    def test_is_told_to_whoever_waits_until_nobody_has_the_turn(self):
        queue = CallQueue("board", 5)
        turn = Turn()
        queue.enter(None, turn)
        queue.pause()
        free: list[bool] = []
        waits = threading.Thread(target=lambda: free.append(queue.wait_free(30)))
        waits.start()
        thread = threading.Thread(target=lambda: queue.again(None, turn))
        thread.start()
        waits.join(30)
        assert free == [True]
        queue.resume()
        thread.join(30)

    @pytest.mark.parametrize("how", ["deadline", "given up before", "given up meanwhile"])
    def test_nobody_waits_for_the_answer_any_more(self, how):
        queue = CallQueue("board", 5)
        turn = Turn()
        queue.enter(None, turn)
        queue.pause()
        deadline = time.monotonic() + 0.02 if how == "deadline" else None
        if how == "given up before":
            turn.give_up()
        outcome: list = []

        def again() -> None:
            try:
                queue.again(deadline, turn)
            except Expired as error:
                outcome.append(error)

        thread = threading.Thread(target=again)
        thread.start()
        if how == "given up meanwhile":
            until(lambda: queue.wait_free(0), "the turn is given up")
            turn.give_up()
        thread.join(30)
        assert len(outcome) == 1
        assert not turn.granted, "so that it does not leave once more"
        assert waiting(queue) == 0
        queue.resume()
        queue.enter(None, Turn())

    @pytest.mark.parametrize("when", ["before", "meanwhile"])
    def test_the_end_sends_it_away_with_its_error(self, when):
        queue = CallQueue("board", 5)
        turn = Turn()
        queue.enter(None, turn)
        queue.pause()
        outcome: list = []

        def again() -> None:
            try:
                queue.again(None, turn)
            except InferenceFailed as error:
                outcome.append(str(error))

        thread = threading.Thread(target=again)
        if when == "before":
            queue.close(lambda: InferenceFailed("the worker died"))
            thread.start()
        else:
            thread.start()
            until(lambda: waiting(queue) == 1, "it waits")
            queue.close(lambda: InferenceFailed("the worker died"))
        thread.join(30)
        assert outcome == ["the worker died"]
        assert not turn.granted
        assert queue.wait_idle(0) is True

    def test_a_queue_that_is_only_sealed_lets_it_go_on(self):
        """It was accepted before the model was stopped."""
        queue = CallQueue("board", 5)
        turn = Turn()
        queue.enter(None, turn)
        queue.pause()
        queue.seal(lambda: InferenceFailed("stopping"))
        outcome: list = []
        thread = threading.Thread(target=lambda: outcome.append(queue.again(None, turn)))
        thread.start()
        until(lambda: waiting(queue) == 1, "it waits")
        queue.resume()
        thread.join(30)
        assert outcome == [None]
        assert turn.granted


class TestWaitFree:
    def test_is_of_the_turn_alone(self):
        queue = CallQueue("board", 5)
        assert queue.wait_free(0) is True
        queue.enter(None, Turn())
        assert queue.wait_free(0.01) is False
        queue.leave()
        assert queue.wait_free(0) is True

    def test_wakes_up_when_the_last_one_leaves(self):
        queue = CallQueue("board", 5)
        queue.enter(None, Turn())
        queue.pause()
        free: list[bool] = []
        thread = threading.Thread(target=lambda: free.append(queue.wait_free(30)))
        thread.start()
        queue.leave()
        thread.join(10)
        assert free == [True]


@pytest.mark.parametrize("pauses", [False, True])
def test_storm(pauses):
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
                with contextlib.suppress(CannotKeepUp):
                    queue.again(time.monotonic() + 0.001 * ((seed + index) % 5), turn)
                if turn.granted:
                    queue.leave()
            with lock:
                done += 1

    threads = [threading.Thread(target=storm, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    while pauses and any(thread.is_alive() for thread in threads):
        queue.pause()
        queue.wait_free(30)
        queue.resume()
    for thread in threads:
        thread.join(60)
    assert (done, most) == (16 * 200, 1)
    assert queue.wait_idle(1)
    assert waiting(queue) == 0


class TestSlots:
    def test_as_many_are_let_in_as_there_are_slots_each_in_its_own(self):
        queue = CallQueue("board", 5, slots=3)
        turns = [Turn() for _ in range(3)]
        for turn in turns:
            queue.enter(None, turn)
        assert {turn.slot for turn in turns} == {0, 1, 2}
        outcome: list = []
        following = Turn()
        thread = enter_in_thread(queue, outcome, turn=following)
        assert waiting(queue) == 1
        queue.leave(turns[1].slot)
        thread.join(30)
        assert outcome == ["entered"]
        assert following.slot == turns[1].slot

    def test_the_slot_used_last_is_used_first(self):
        queue = CallQueue("board", 5, slots=3)
        first, second = Turn(), Turn()
        queue.enter(None, first)
        queue.enter(None, second)
        queue.leave(first.slot)
        following = Turn()
        queue.enter(None, following)
        assert following.slot == first.slot

    def test_limit_counts_those_that_wait(self):
        queue = CallQueue("board", 1, slots=2)
        for _ in range(2):
            queue.enter(None, Turn())
        enter_in_thread(queue, [], deadline=time.monotonic() + 1)
        with pytest.raises(CannotKeepUp):
            queue.enter(None, Turn())

    def test_nobody_waits_within_the_limit_for_a_slot_that_is_free_but_for_a_pause(self):
        queue = CallQueue("board", 0, slots=2)
        queue.pause()
        outcome: list = []
        for _ in range(2):
            enter_in_thread(queue, outcome)
        with pytest.raises(CannotKeepUp):
            queue.enter(None, Turn())
        queue.resume()
        until(lambda: outcome == ["entered"] * 2, "both are let in")

    def test_idle_and_free_mean_all_slots(self):
        queue = CallQueue("board", 5, slots=2)
        turns = [Turn(), Turn()]
        for turn in turns:
            queue.enter(None, turn)
        queue.leave(turns[0].slot)
        assert not queue.wait_idle(0)
        assert not queue.wait_free(0)
        queue.leave(turns[1].slot)
        assert queue.wait_idle(0)
        assert queue.wait_free(0)

    @pytest.mark.parametrize("order", [(0, 1), (1, 0)])
    def test_those_who_give_their_turns_up_keep_their_order(self, order):
        """When a process dies, its calls that had not reached it wait again: before all that came later."""
        queue = CallQueue("board", 5, slots=2)
        turns = [Turn(), Turn()]
        for turn in turns:
            queue.enter(None, turn)
        later: list = []
        enter_in_thread(queue, later)
        queue.pause()
        for place in order:
            before = waiting(queue)
            threading.Thread(target=queue.again, args=(None, turns[place])).start()
            until(lambda: waiting(queue) > before, "it waits")
        assert [one.number for one in queue._waiting] == [0, 1, 2]
        queue.resume()
        until(lambda: all(turn.granted for turn in turns), "both go on")
        assert later == []
        queue.leave(turns[0].slot)
        until(lambda: later == ["entered"], "the last one follows")
