"""A loaded model's calls while its worker dies, hangs, is replaced, swapped or stopped; the workers are made up.

Each worker that a model was given must have been released, once and after its end, when the model is stopped.
"""

import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from edge_agent import manifest, serving, threads
from edge_agent import starter as starting
from edge_agent.accelerators import ON_CPU, Failed
from edge_agent.budget import MOST_DEATHS, RestartBudget
from edge_agent.calls import CallQueue, Turn
from edge_agent.deaths import WorkerDied
from edge_agent.errors import (
    AcceleratorMissing,
    CannotKeepUp,
    EdgeAgentError,
    Expired,
    InferenceFailed,
    InferenceHung,
    PackageRefused,
    WorkerCrashed,
    WrongState,
)
from edge_agent.jobs import Answer, SessionOptions, Verdict
from edge_agent.metrics import Metrics
from edge_agent.packages import Found, Package
from edge_agent.plan import Plan
from edge_agent.serving import Serving
from edge_agent.starter import Limits, Starter
from support import packages
from support.waiting import until

SIGNAL = "it was ended by signal 9 (SIGKILL)"
ENDED = f"The model's worker process ended: {SIGNAL}."
STOPPING = "The model is STOPPING; DetectAnomalies needs RUNNING."


def found(version: str) -> Found:
    folder = Path("/models/board", version)
    accepted = Package("arn", folder, manifest.parse(packages.manifest()))
    return Found("board", version, folder, Path("/models"), (), accepted)


class MadeUpWorker:
    """Answers with the version of its package: at once, or when it is told to."""

    def __init__(self, of: Found) -> None:
        self.found = of
        self.held = False
        self.busy = threading.Event()
        self.stopped = False
        self.released = 0
        self._go_on = threading.Semaphore(0)
        self._dead = threading.Event()
        self._cause = ""
        self._fails: Exception | None = None

    def call(self, job: object, inline: object, slot: int) -> tuple[Answer, bytes]:
        assert not self.released, "what was given back is used"
        assert not self.busy.is_set(), "one call at a time"
        assert slot == 0
        if self._dead.is_set():
            raise WorkerDied(self._cause, unasked=True)
        self.busy.set()
        if self.held:
            self._go_on.acquire(timeout=30)
        self.busy.clear()
        fails, self._fails = self._fails, None
        if fails:
            raise fails
        return Answer(1, Verdict(False, 1.0, 0.0, 0.5), 0), self.found.version.encode()

    def answer(self) -> None:
        """Let the call in hand be answered."""
        self._go_on.release()

    def fail(self, error: Exception) -> None:
        """Let the call in hand fail."""
        self._fails = error
        self._go_on.release()

    def die(self, cause: str = SIGNAL, *, hung: bool = False, unasked: bool = False) -> None:
        """End, and the call in hand with it."""
        self._cause = self._cause or cause
        self._fails = WorkerDied(self._cause, hung=hung, unasked=unasked)
        self._dead.set()
        self._go_on.release()

    def stop(self) -> None:
        self.stopped = True
        self.die("it was stopped")

    def kill(self, cause: str) -> None:
        self.die(cause)

    def wait(self) -> str:
        assert self._dead.wait(30)
        return self._cause

    def release(self) -> None:
        assert self._dead.is_set(), "only what has ended is released"
        self.released += 1


class MadeUpStarter:
    """Starts made-up workers, but for those versions that fail; can be told to take its time."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.workers: list[MadeUpWorker] = []
        self.fails: dict[str, Exception] = {}
        self.fails_once: list[Exception] = []
        self.ended = ""
        self.go_on = threading.Event()
        self.go_on.set()

    def start(self, of: Found) -> MadeUpWorker:
        if of.package is None:
            raise PackageRefused(of.refusal)
        self.started.append(of.version)
        assert self.go_on.wait(30)
        if self.fails_once:
            raise self.fails_once.pop()
        if error := self.fails.get(of.version):
            raise error
        if self.ended:
            raise WorkerDied(self.ended)
        self.workers.append(MadeUpWorker(of))
        return self.workers[-1]

    def end(self, cause: str) -> None:
        self.ended = cause
        self.go_on.set()


class Call(threading.Thread):
    """A call in a thread of its own: what came of it is `outcome`, the version that answered or the error."""

    def __init__(self, of: "Board", deadline: float | None = None, turn: Turn | None = None) -> None:
        super().__init__(daemon=True)
        self._board = of
        self._deadline = deadline
        self._turn = turn or Turn()
        self.prepared: list[manifest.Manifest] = []
        self._outcome: str | Exception = ""
        self.start()

    def run(self) -> None:
        def prepare(of: manifest.Manifest) -> object:
            self.prepared.append(of)
            return object()

        try:
            judged_by, _, version = self._board.serving.call(prepare, None, self._deadline, self._turn)
            assert judged_by is self.prepared[-1]
            self._outcome = version.decode()
        except EdgeAgentError as error:
            self._outcome = error

    @property
    def outcome(self) -> str | Exception:
        self.join(30)
        assert not self.is_alive(), "the call was never answered"
        return self._outcome


class Board:
    """A model that serves, and what is counted and told of it."""

    def __init__(self, budget: RestartBudget | None, limit: int = 16) -> None:
        self.starter = MadeUpStarter()
        self.metrics = Metrics()
        self.queue = CallQueue("board", limit, grown=partial(self.metrics.queued, "board"))
        self.failed: list[str] = []
        self.took_over: list[Found] = []
        self.first = found("1")
        self.on_disk: Callable[[Found], Found] = lambda of: of
        self.pause = 0.01
        self.serving = Serving(
            "board",
            self.starter,
            (self.first, self.starter.start(self.first)),
            self.queue,
            budget,
            self.metrics,
            lambda _, reason: self.failed.append(reason),
            lambda _, taken: self.took_over.append(taken),
            lambda of: self.on_disk(of),
            lambda: self.pause,
        )
        self.serving.watch()

    @property
    def worker(self) -> MadeUpWorker:
        """The one that was started last."""
        return self.starter.workers[-1]

    def hold(self) -> Call:
        """Make a call that stays with the worker until that is told to answer, fail or die."""
        self.worker.held = True
        call = Call(self)
        assert self.worker.busy.wait(30)
        return call

    def wait(self, deadline: float | None = None, turn: Turn | None = None) -> Call:
        """Make a call that waits; return when it does."""
        turn = turn or Turn()
        call = Call(self, deadline, turn)
        until(lambda: turn in self.queue._waiting, "the call waits")
        return call

    def is_replaced_after(self, deaths: int) -> None:
        """Wait until another worker is there, which after so many deaths is the one after that many."""
        until(
            lambda: len(self.starter.workers) == deaths + 1 and self.serving.worker is self.worker,
            "another one is there",
        )

    def in_thread(self, act: Callable[..., object], *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=act, args=arguments, daemon=True)
        thread.start()
        return thread

    def counted(self, event: str) -> int:
        return self.metrics.snapshot()["workers"].get("board", {}).get(event, 0)

    def stop(self, drain: float = 0.05) -> None:
        self.serving.stop(drain, lambda: WrongState("STOPPING", "DetectAnomalies", "RUNNING"))

    def close(self) -> None:
        self.starter.go_on.set()
        self.stop()
        until(
            lambda: [one.released for one in self.starter.workers] == [1] * len(self.starter.workers), "all is released"
        )


def at_once() -> RestartBudget:
    return RestartBudget(lambda least, most: 0.0)


@pytest.fixture
def board():
    made = Board(at_once())
    yield made
    made.close()


@pytest.fixture
def fragile():
    """A model whose worker is never replaced."""
    made = Board(None)
    yield made
    made.close()


def failure(call: Call) -> tuple[type, str]:
    return type(call.outcome), str(call.outcome)


class TestDeath:
    def test_the_call_in_hand_fails_and_those_that_wait_get_the_next(self, board):
        first = board.hold()
        waiting = [board.wait() for _ in range(5)]
        board.worker.die()
        assert failure(first) == (WorkerCrashed, ENDED)
        assert [call.outcome for call in waiting] == ["1"] * 5
        assert board.starter.started == ["1", "1"]
        assert (board.counted("died"), board.failed) == (1, [])

    def test_who_waits_keeps_the_order_of_arrival(self, board):
        board.hold()
        order: list[int] = []

        def call(number: int) -> None:
            board.serving.call(lambda _: order.append(number), None, None, Turn())

        for number in range(8):
            threading.Thread(target=call, args=(number,), daemon=True).start()
            until(lambda: len(board.queue._waiting) == number + 1, "it waits")
        board.worker.die()
        until(lambda: len(order) == 8, "they are answered")
        assert order == list(range(8))

    def test_of_an_idle_worker_costs_no_call(self, board):
        board.worker.die()
        assert Call(board).outcome == "1"
        assert board.counted("died") == 1

    def test_a_job_that_did_not_reach_the_worker_goes_to_the_next(self, board):
        call = board.hold()
        waits = board.wait()
        board.worker.die(unasked=True)
        assert (call.outcome, waits.outcome) == ("1", "1")
        assert len(call.prepared) == 2
        assert board.starter.started == ["1", "1"]

    def test_a_call_that_comes_meanwhile_waits_within_its_deadline(self, board):
        board.starter.go_on.clear()
        board.worker.die()
        until(lambda: board.serving.worker is None, "the death is seen")
        stays, gone = board.wait(), Turn()
        given_up = board.wait(turn=gone)
        gone.give_up()
        assert failure(given_up)[0] is Expired
        assert failure(Call(board, deadline=0.0))[0] is Expired
        assert board.serving.note == f"{ENDED} Another one is being started; calls wait for it."
        board.starter.go_on.set()
        assert stays.outcome == "1"
        assert board.serving.note == ""

    def test_no_more_wait_than_may(self):
        board = Board(at_once(), limit=2)
        board.starter.go_on.clear()
        board.worker.die()
        until(lambda: board.serving.worker is None, "the death is seen")
        # Who would have the turn, were the worker there, waits for nobody.
        waiting = [board.wait() for _ in range(3)]
        assert failure(Call(board))[0] is CannotKeepUp
        assert board.metrics.snapshot()["queue_longest"] == {"board": 3}, "it is told while they wait"
        board.starter.go_on.set()
        assert [call.outcome for call in waiting] == ["1"] * 3
        board.close()

    def test_is_seen_to_once_by_whoever_comes_first(self, board):
        """The call that it hits and the thread that watches the worker see it at the same time."""
        for number in range(1, 101):
            call = board.hold()
            board.worker.die()
            assert failure(call)[0] is WorkerCrashed
            board.is_replaced_after(number)
            for _ in range(100):  # so that the budget lasts
                assert Call(board).outcome == "1"
        assert board.counted("died") == 100

    def test_while_another_one_loads_counts_too(self, board):
        board.starter.fails["1"] = WorkerDied("it exited with code 1")
        board.worker.die()
        until(lambda: board.failed, "it is given up")
        assert board.starter.started == ["1"] * MOST_DEATHS
        assert board.failed == [
            "The model's worker process ended: it exited with code 1. It was the last of 5 deaths within a minute."
        ]

    def test_good_answers_make_the_earlier_ones_forgotten(self, board):
        for number in range(1, 3 * MOST_DEATHS):
            board.worker.die()
            board.is_replaced_after(number)
            for _ in range(100):
                assert Call(board).outcome == "1"
        assert board.failed == []

    def test_failures_of_the_model_are_no_good_answers_and_no_deaths(self, board):
        for number in range(1, MOST_DEATHS + 1):
            for _ in range(100):
                call = board.hold()
                board.worker.fail(InferenceFailed("The model failed on the image."))
                assert failure(call) == (InferenceFailed, "The model failed on the image.")
            board.worker.die()
            if number < MOST_DEATHS:
                board.is_replaced_after(number)
        until(lambda: board.failed, "it is given up")

    def test_something_unexpected_while_another_one_is_started_is_tried_again(self, board, caplog):
        board.starter.fails_once.append(OSError(24, "Too many open files"))
        board.worker.die()
        board.is_replaced_after(1)
        assert Call(board).outcome == "1"
        assert board.starter.started == ["1", "1", "1"]
        assert "Too many open files" in caplog.text
        assert (board.counted("died"), board.counted("not_started")) == (1, 1)


class TestTheLastDeath:
    def test_never_replaced(self, fragile):
        call = fragile.hold()
        waits = fragile.wait()
        fragile.worker.die()
        assert failure(call) == failure(waits) == (WorkerCrashed, ENDED)
        assert failure(Call(fragile)) == (WorkerCrashed, ENDED)
        assert fragile.failed == [ENDED]
        assert fragile.starter.started == ["1"]

    def test_is_known_before_any_caller_knows(self):
        known: list[bool] = []
        board = Board(None)
        board.serving._failed = lambda _, __: known.append(waits.is_alive())
        call = board.hold()
        waits = board.wait()
        board.worker.die()
        assert failure(call)[0] is failure(waits)[0] is WorkerCrashed
        assert known == [True]
        board.close()

    def test_the_budget_is_spent(self, board):
        for number in range(1, MOST_DEATHS):
            board.worker.die()
            board.is_replaced_after(number)
        call = board.hold()
        waits = board.wait()
        board.worker.die()
        assert failure(call) == failure(waits) == (WorkerCrashed, ENDED)
        assert board.failed == [f"{ENDED} It was the last of 5 deaths within a minute."]
        assert board.counted("died") == len(board.starter.started) == MOST_DEATHS

    def test_the_package_is_refused_each_time(self, board):
        """Why names its files, and so is for operators alone."""
        board.starter.fails["1"] = PackageRefused("mochi/model.onnx cannot be read: No such file or directory.")
        board.starter.go_on.clear()
        board.worker.die()
        waits = board.wait()
        board.starter.go_on.set()
        told = (WorkerCrashed, "The model's worker process ended and could not be replaced; DescribeModel says why.")
        assert failure(waits) == failure(Call(board)) == told
        (told,) = board.failed
        assert told == (
            "The model's worker process ended and could not be replaced: mochi/model.onnx cannot be read: No such file or "
            "directory. It was the last of 5 deaths within a minute."
        )
        assert board.starter.started == ["1"] * MOST_DEATHS
        assert (board.counted("died"), board.counted("not_started")) == (1, MOST_DEATHS - 1)

    @pytest.mark.parametrize("times", range(1, MOST_DEATHS - 1))
    def test_is_not_a_refusal_before_it(self, board, times):
        """Memory may be short for a moment, and what loaded before may load again."""
        board.starter.fails_once = [PackageRefused("The model does not fit into memory.")] * times
        board.worker.die()
        assert Call(board).outcome == "1"
        assert (board.failed, board.serving.note) == ([], "")
        assert board.starter.started == ["1"] * (times + 2)


class TestOnDisk:
    """The package has changed on disk when its worker dies: what is there by then is started."""

    def changed(self, version: str, time: int = 7) -> Found:
        return replace(found(version), signature=(("manifest.json", 1, 2, 3, 4, time, 6),))

    def test_a_good_one_is_started(self, board):
        newer = self.changed("1")
        board.on_disk = lambda _: newer
        board.worker.die()
        assert Call(board).outcome == "1"
        assert board.worker.found is board.serving.found is newer
        until(lambda: board.took_over == [newer], "it is told")
        assert board.failed == []

    def test_one_that_is_being_copied_is_waited_for(self, board):
        last = self.changed("3", 30)
        looks = iter([self.changed("2", 1), self.changed("2", 2), self.changed("2", 3), last, last])
        board.on_disk = lambda _: next(looks)
        board.worker.die()
        assert Call(board).outcome == "3"
        assert board.starter.started == ["1", "3"]

    def test_one_that_changes_all_the_time_is_never_started(self, board, monkeypatch):
        monkeypatch.setattr(serving, "SETTLING_PATIENCE", 0.0)
        board.on_disk = lambda _: self.changed("2")
        board.worker.die()
        until(lambda: board.failed, "it is given up")
        assert board.starter.started == ["1"]
        assert "The package kept changing while the model was to be started. It was the last of 5" in board.failed[0]

    def test_one_that_is_gone_for_a_moment_is_started_when_it_is_back(self, board):
        entry = ("gone", 0, 0, 0, 0, 0, 0)
        gone = replace(found("1"), package=None, signature=(entry,), refusal="The package's files are gone.")
        looks = iter([gone, gone, gone, gone, board.first])
        board.on_disk = lambda _: next(looks, board.first)
        board.worker.die()
        assert Call(board).outcome == "1"
        assert (board.failed, board.took_over) == ([], [])

    def test_the_one_that_is_to_follow_needs_no_second_look(self, board):
        board.pause = 30.0
        second = self.changed("2")
        board.serving.announce(second)
        board.on_disk = lambda of: second
        board.worker.die()
        assert Call(board).outcome == "2"
        assert board.serving.found is second

    def test_a_look_that_fails_unexpectedly_costs_nothing(self, board, caplog):
        def fail(_: Found) -> Found:
            raise ValueError("odd")

        board.on_disk = fail
        board.worker.die()
        assert Call(board).outcome == "1"
        assert "odd" in caplog.text

    def test_a_look_at_a_disk_that_hangs_keeps_nobody_from_a_stop(self, board):
        looks, may = threading.Event(), threading.Event()

        def hang(of: Found) -> Found:
            looks.set()
            assert may.wait(30)
            return of

        board.on_disk = hang
        board.worker.die()
        assert looks.wait(30)
        stop = board.in_thread(board.stop)
        stop.join(5)
        assert not stop.is_alive()
        may.set()
        until(lambda: not any(one.name == "restart-board" for one in threading.enumerate()), "it ends")
        assert len(board.starter.workers) == 1

    def test_what_was_looked_at_before_a_swap_is_not_started_after_it(self, board):
        """The swap's own worker dies, too, and what follows that death is not what followed the one before."""
        looks, may = threading.Event(), threading.Event()

        def hang(of: Found) -> Found:
            if of.version == "1":
                looks.set()
                assert may.wait(30)
            return of

        board.on_disk = hang
        board.worker.die()
        assert looks.wait(30)
        board.serving.swap(found("2"))
        board.starter.go_on.clear()
        board.worker.die()
        until(lambda: board.serving.worker is None, "the death is seen")
        may.set()
        board.starter.go_on.set()
        assert Call(board).outcome == "2"
        until(lambda: not any(one.name == "restart-board" for one in threading.enumerate()), "both have ended")
        assert board.starter.started == ["1", "2", "2"]


class TestNoThread:
    """No thread can be started any more, as where a limit of tasks is reached."""

    TOLD = "The model's worker process ended: no thread."

    @pytest.fixture
    def refuse(self, monkeypatch):
        """Refuse threads by the first word of their names, for so many times."""
        start = threads.start

        def refuse(*words: str, times: int = 10**9) -> None:
            left = [times]

            def refused(name: str, *arguments: object) -> None:
                if name.partition("-")[0] in words and left[0]:
                    left[0] -= 1
                    raise threads.NoThread("no thread")
                start(name, *arguments)

            monkeypatch.setattr(threads, "start", refused)

        return refuse

    @pytest.mark.parametrize("words", [("release",), ("restart",), ("release", "restart")], ids="+".join)
    @pytest.mark.parametrize("called", [True, False], ids=["called", "idle"])
    def test_a_dead_worker_is_replaced_all_the_same(self, board, refuse, words, called):
        refuse(*words)
        for number in range(1, MOST_DEATHS):
            call = board.hold() if called else None
            board.worker.die()
            if call:
                assert failure(call) == (WorkerCrashed, ENDED)
            board.is_replaced_after(number)
            assert Call(board).outcome == "1"
        board.worker.die()
        until(lambda: board.failed, "the budget is as it is")
        until(lambda: all(one.released for one in board.starter.workers), "all is released")

    def test_a_refused_start_is_followed_by_another(self, board, refuse):
        refuse("restart", "release")
        board.starter.fails_once = [PackageRefused("no"), WorkerDied(SIGNAL)]
        board.worker.die()
        assert Call(board).outcome == "1"

    def test_a_worker_that_nobody_can_look_after_is_ended_and_another_one_started(self, board, refuse):
        refuse("death", times=1)
        board.worker.die()
        assert Call(board).outcome == "1"
        assert len(board.starter.workers) == 3
        assert (board.starter.workers[1].released, board.counted("not_started"), board.failed) == (1, 1, [])

    def test_that_stays_so(self, board, refuse):
        refuse("death")
        board.worker.die()
        assert failure(Call(board)) == (WorkerCrashed, self.TOLD)
        assert board.failed == [f"{self.TOLD} It was the last of 5 deaths within a minute."]

    def test_a_swap_changes_nothing(self, board, refuse):
        refuse("death", times=1)
        with pytest.raises(serving.NotStarted, match="no thread"):
            board.serving.swap(found("2"))
        assert (board.serving.found, board.worker.released, board.took_over) == (board.first, 1, [])
        assert Call(board).outcome == "1"
        board.serving.swap(found("2"))
        assert Call(board).outcome == "2"

    def test_the_first_worker_is_refused(self, refuse):
        refuse("death")
        with pytest.raises(threads.NoThread, match="no thread"):
            Board(at_once())

    def test_what_goes_wrong_in_one_thread_keeps_nothing_else_from_being_done(self, board, refuse, monkeypatch, caplog):
        refuse("release", "restart")
        releases = []

        def fail(worker: MadeUpWorker) -> None:
            releases.append(worker)
            raise IndexError("odd")

        monkeypatch.setattr(board.serving, "_release", fail)
        first = board.worker
        first.die()
        assert Call(board).outcome == "1"
        assert releases == [first]
        assert "unexpected failure in the background" in caplog.text
        first.release()


class TestHang:
    def test_that_the_runtime_could_end_costs_the_call(self, board):
        call = board.hold()
        waits = board.wait()
        board.worker.held = False
        board.worker.fail(InferenceHung("The model did not answer within its call_timeout and was interrupted."))
        assert failure(call)[0] is InferenceHung
        until(lambda: not waits.is_alive(), "the next is answered")
        assert (board.counted("hung"), board.counted("died")) == (1, 0)

    def test_that_it_could_not_costs_the_worker(self, board):
        call = board.hold()
        waits = board.wait()
        board.worker.die("it did not answer within 10 s (call_timeout)", hung=True)
        assert failure(call) == (
            InferenceHung,
            "The model's worker process ended: it did not answer within 10 s (call_timeout).",
        )
        assert waits.outcome == "1"
        assert (board.counted("hung"), board.counted("died")) == (1, 1)


class TestSwap:
    def test_takes_over_between_two_calls(self, board):
        old, second = board.worker, found("2")
        call = board.hold()
        waits = [board.wait() for _ in range(3)]
        swap = board.in_thread(board.serving.swap, second)
        until(lambda: len(board.starter.workers) == 2, "the new one is loaded")
        assert swap.is_alive(), "the old one has a call in hand"
        assert board.serving.found is board.first
        old.answer()
        swap.join(30)
        assert call.outcome == "1"
        assert [one.outcome for one in waits] == ["2"] * 3
        assert all(one.prepared == [second.package.manifest] for one in waits)
        assert (board.serving.found, board.serving.worker) == (second, board.worker)
        assert (old.stopped, old.released, board.counted("died"), board.took_over) == (True, 1, 0, [second])

    def test_calls_go_on_while_it_loads(self, board):
        board.starter.go_on.clear()
        swap = board.in_thread(board.serving.swap, found("2"))
        until(lambda: board.starter.started == ["1", "2"], "it loads")
        assert Call(board).outcome == "1"
        board.starter.go_on.set()
        swap.join(30)
        assert Call(board).outcome == "2"

    @pytest.mark.parametrize("error", [PackageRefused("no"), WorkerDied(SIGNAL), OSError(12, "no memory")])
    def test_that_fails_changes_nothing(self, board, error):
        board.starter.fails["2"] = error
        with pytest.raises(type(error)):
            board.serving.swap(found("2"))
        assert board.serving.found is board.first
        assert Call(board).outcome == "1"
        assert (board.counted("died"), board.failed, board.took_over) == (0, [], [])

    def test_whose_worker_dies_afterwards_is_started_again_as_it_is(self, board):
        board.serving.swap(found("2"))
        board.worker.die()
        assert Call(board).outcome == "2"
        assert board.starter.started == ["1", "2", "2"]
        assert (board.counted("died"), len(board.took_over)) == (1, 1)

    def test_is_told_although_another_follows_at_once(self, board):
        """The new one dies, and the one after it is started in its place, while the old one still ends."""
        old, second, third = board.worker, found("2"), found("3")
        ending, may_end, stop = threading.Event(), threading.Event(), old.stop

        def take_long() -> None:
            ending.set()
            assert may_end.wait(30)
            stop()

        old.stop = take_long
        swap = board.in_thread(board.serving.swap, second)
        assert ending.wait(30)
        board.starter.fails["2"] = PackageRefused("The package's files are gone.")
        board.serving.announce(third)
        board.worker.die()
        until(lambda: board.took_over == [second, third], "both are told, in their order")
        assert swap.is_alive()
        may_end.set()
        swap.join(30)
        assert Call(board).outcome == "3"
        assert (board.took_over, board.serving.found) == ([second, third], third)

    @pytest.mark.parametrize("loads", [True, False])
    def test_the_old_one_dies_meanwhile(self, board, loads):
        if not loads:
            board.starter.fails["2"] = PackageRefused("no")
        board.starter.go_on.clear()

        def swap() -> None:
            try:
                board.serving.swap(found("2"))
            except PackageRefused:
                assert not loads

        swapping = board.in_thread(swap)
        until(lambda: board.starter.started == ["1", "2"], "it loads")
        call = board.hold()
        waits = board.wait()
        board.worker.die()
        assert failure(call) == (WorkerCrashed, ENDED)
        board.starter.go_on.set()
        swapping.join(30)
        assert waits.outcome == ("2" if loads else "1")
        assert board.starter.started == (["1", "2"] if loads else ["1", "2", "1"])

    def test_the_old_one_dies_with_the_call_that_the_new_one_waits_for(self, board):
        old = board.worker
        call = board.hold()
        waits = board.wait()
        swap = board.in_thread(board.serving.swap, found("2"))
        until(lambda: len(board.starter.workers) == 2, "the new one is loaded")
        old.die()
        swap.join(30)
        assert failure(call)[0] is WorkerCrashed
        assert waits.outcome == "2"
        assert board.starter.started == ["1", "2"]

    def test_that_comes_in_after_the_last_death_goes_on(self, fragile):
        fail = fragile.serving._fail

        def too_late(*told: str) -> None:
            fragile.serving.swap(found("2"))
            fail(*told)

        fragile.serving._fail = too_late
        fragile.worker.die()
        until(lambda: fragile.took_over, "it has taken over")
        assert Call(fragile).outcome == "2"
        assert fragile.failed == []


class TestFollowing:
    """A newer version is known, and the files of the one that runs are gone."""

    GONE = PackageRefused("The package's files are gone.")

    def test_is_what_is_started(self, board):
        second = found("2")
        board.serving.announce(second)
        board.starter.fails["1"] = self.GONE
        board.worker.die()
        assert Call(board).outcome == "2"
        until(lambda: board.took_over == [second], "it is told")
        assert board.serving.found is second
        board.worker.die()
        assert Call(board).outcome == "2"
        assert board.took_over == [second], "that is told once"
        assert board.failed == []

    def test_is_not_started_once_more_by_its_swap(self, board):
        """The old one dies before the swap has begun, which then waits for what is started in its place."""
        second = found("2")
        board.serving.announce(second)
        board.starter.fails["1"] = self.GONE
        board.starter.go_on.clear()
        board.worker.die()
        until(lambda: board.starter.started == ["1", "1"], "another one is being started")
        swap = board.in_thread(board.serving.swap, found("2"))
        board.starter.go_on.set()
        swap.join(30)
        assert Call(board).outcome == "2"
        assert board.starter.started == ["1", "1", "2"]
        assert board.serving.found is second
        assert board.took_over == [second], "that is told once"

    def test_is_not_while_the_files_are_there(self, board):
        board.serving.announce(found("2"))
        board.worker.die()
        assert Call(board).outcome == "1"
        assert board.took_over == []

    def test_is_not_when_it_is_refused(self, board):
        board.serving.announce(Found("board", "2", Path("/"), Path("/"), (), None, "no threshold"))
        board.starter.fails["1"] = self.GONE
        board.worker.die()
        until(lambda: board.failed, "it is given up")
        assert f"could not be replaced: {self.GONE} " in board.failed[0]
        assert board.starter.started == ["1"] * MOST_DEATHS

    def test_is_not_when_it_was_taken_back(self, board):
        board.serving.announce(found("2"))
        board.serving.announce(None)
        board.starter.fails["1"] = self.GONE
        board.worker.die()
        until(lambda: board.failed, "it is given up")
        assert f"could not be replaced: {self.GONE} " in board.failed[0]
        assert board.starter.started == ["1"] * MOST_DEATHS

    def test_is_tried_again_when_it_dies(self, board):
        board.serving.announce(found("2"))
        board.starter.fails |= {"1": self.GONE, "2": WorkerDied(SIGNAL)}
        board.worker.die()
        until(lambda: board.failed, "it is given up")
        assert board.starter.started == ["1", *["1", "2"] * (MOST_DEATHS - 1)]


class TestStop:
    def test_waits_for_the_calls_that_were_accepted(self, board):
        call = board.hold()
        waits = board.wait()
        stop = board.in_thread(board.stop, 30)
        until(lambda: board.queue._closed, "nobody comes in any more")
        assert failure(Call(board)) == (WrongState, STOPPING)
        board.worker.held = False
        board.worker.answer()
        assert (call.outcome, waits.outcome) == ("1", "1")
        stop.join(30)
        assert board.worker.released == 1
        assert board.serving.worker is None

    def test_ends_the_rest_when_the_time_is_over(self, board):
        call = board.hold()
        waits = board.wait()
        board.stop(0.05)
        assert failure(call) == (
            WorkerCrashed,
            "The model's worker process ended: it was stopped in the middle of a call.",
        )
        assert failure(waits) == (WrongState, STOPPING)
        assert board.counted("died") == 0

    def test_while_another_one_is_started(self, board):
        board.starter.go_on.clear()
        board.worker.die()
        waits = board.wait()
        until(lambda: len(board.starter.started) == 2, "it loads")
        board.stop(0.05)
        assert board.starter.ended == "the model was stopped"
        assert failure(waits) == (WrongState, STOPPING)
        assert len(board.starter.workers) == 1

    def test_while_a_new_version_is_loaded(self, board):
        board.starter.go_on.clear()
        raised: list[Exception] = []

        def swap() -> None:
            try:
                board.serving.swap(found("2"))
            except WorkerDied as death:
                raised.append(death)

        swapping = board.in_thread(swap)
        until(lambda: board.starter.started == ["1", "2"], "it loads")
        board.stop(0.05)
        swapping.join(30)
        assert [str(one) for one in raised] == ["the model was stopped"]

    def test_a_new_version_that_comes_too_late_is_ended(self, board):
        """It has loaded, and waits for the last call of the old one, when the time to stop is over."""
        call = board.hold()
        swap = board.in_thread(board.serving.swap, found("2"))
        until(lambda: len(board.starter.workers) == 2 and board.queue._paused, "the new one is loaded")
        stop = board.in_thread(board.stop)
        stop.join(2)
        assert not stop.is_alive(), "the call in hand is ended when its time is over, whoever else waits for that"
        swap.join(30)
        assert failure(call)[0] is WorkerCrashed
        assert board.serving.found is board.first
        assert board.serving.worker is None

    def test_after_the_last_death(self, fragile):
        fragile.worker.die()
        until(lambda: fragile.failed, "it is given up")
        fragile.stop(0.05)


class TestKill:
    def test_ends_everything_at_once(self, board):
        call = board.hold()
        waits = board.wait()
        board.serving.kill("the agent ends")
        ended = "The model's worker process ended: the agent ends."
        assert failure(call) == failure(waits) == failure(Call(board)) == (WorkerCrashed, ended)
        assert board.starter.ended == "the agent ends"
        assert board.starter.started == ["1"]
        assert board.failed == []

    def test_while_another_one_is_started(self, board):
        board.starter.go_on.clear()
        board.worker.die()
        waits = board.wait()
        until(lambda: len(board.starter.started) == 2, "it loads")
        board.serving.kill("the agent ends")
        assert failure(waits)[0] is WorkerCrashed
        assert board.failed == []

    def test_reaches_a_worker_that_is_just_being_put_in_its_place(self, board, monkeypatch):
        start, puts, may = threads.start, threading.Event(), threading.Event()

        def take_long(*arguments: object) -> None:
            puts.set()
            assert may.wait(30)
            start(*arguments)

        monkeypatch.setattr(threads, "start", take_long)
        swap = board.in_thread(board.serving.swap, found("2"))
        assert puts.wait(30)
        kill = board.in_thread(board.serving.kill, "the agent ends")
        until(lambda: board.queue._over, "it has begun")
        kill.join(0.2)  # else it might look too late to miss anything
        may.set()
        swap.join(30)
        kill.join(30)
        assert board.serving.worker is board.worker
        assert board.worker._dead.is_set()


class TestCounts:
    """What is counted of a worker's restarts: processes, and those alone."""

    def counted(self, board: Board) -> tuple[int, dict[str, int]]:
        found = board.metrics.snapshot()
        return found["restarts"].get("board", 0), found["workers"].get("board", {})

    def test_a_restart(self, board):
        board.worker.die()
        board.is_replaced_after(1)
        assert self.counted(board) == (1, {"died": 1})

    def test_a_restart_that_comes_too_late_is_none(self, board, monkeypatch):
        """The process is there at the very moment at which all of them are ended."""
        monkeypatch.setattr(board.starter, "end", lambda _: None)
        board.starter.go_on.clear()
        board.worker.die()
        until(lambda: len(board.starter.started) == 2, "it loads")
        board.serving.kill("the agent ends")
        board.starter.go_on.set()
        until(lambda: len(board.starter.workers) == 2 and board.worker.released, "it is ended")
        threads = [one for one in threading.enumerate() if one.name == "restart-board"]
        for one in threads:
            one.join(30)
        assert self.counted(board) == (0, {"died": 1})

    @pytest.mark.parametrize("error", [serving.NotStarted("it could not be started"), RuntimeError("odd")])
    def test_a_process_that_could_not_be_started_did_not_die(self, board, error):
        board.starter.fails_once = [error]
        board.worker.die()
        board.is_replaced_after(1)
        assert self.counted(board) == (1, {"died": 1, "not_started": 1})

    def test_one_that_dies_while_it_loads_did(self, board):
        board.starter.fails_once = [WorkerDied(SIGNAL)]
        board.worker.die()
        board.is_replaced_after(1)
        assert self.counted(board) == (1, {"died": 2})


class Loading:
    """A worker that loads for as long as the test wants."""

    def __init__(self) -> None:
        self.accelerator = "cpu"
        self.fallback = ""
        self.seen: list[str] = []
        self.loads = threading.Event()
        self._end = threading.Event()
        self._error: Exception | None = None

    def load(self, timeout: float, build_timeout: float, tell: Callable[[str], None]) -> None:
        self.seen.append(f"load within {timeout:g} s, or {build_timeout:g} s")
        self.tell = tell
        self.loads.set()
        assert self._end.wait(30)
        if self._error:
            raise self._error

    def end(self, error: Exception | None = None) -> None:
        self._error = error
        self._end.set()

    def kill(self, cause: str) -> None:
        self.seen.append(f"kill: {cause}")
        self.end(WorkerDied(cause))

    def stop(self) -> None:
        self.seen.append("stop")

    def release(self) -> None:
        self.seen.append("release")


class TestStarter:
    @pytest.fixture
    def made(self, monkeypatch):
        made: list[Loading] = []

        def make(*_: object) -> Loading:
            made.append(Loading())
            return made[-1]

        monkeypatch.setattr(starting, "Worker", make)
        return made

    @pytest.fixture
    def starter(self):
        self.metrics = Metrics()
        self.plan = Plan((SessionOptions(),))
        return Starter("board", None, lambda _: self.plan, Limits(300, 1800, None), self.metrics)

    def in_thread(self, starter: Starter) -> tuple[threading.Thread, list]:
        came: list = []

        def run() -> None:
            try:
                came.append(starter.start(found("1")))
            except WorkerDied as death:
                came.append(str(death))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread, came

    def started(self) -> int:
        return self.metrics.snapshot()["workers"].get("board", {}).get("started", 0)

    def test_loads(self, starter, made):
        thread, came = self.in_thread(starter)
        until(lambda: made, "a worker is made")
        made[0].end()
        thread.join(30)
        assert came == made
        assert made[0].seen == ["load within 300 s, or 1800 s"]
        assert self.started() == 1

    def test_a_package_that_was_refused_starts_nothing(self, starter, made):
        with pytest.raises(PackageRefused, match="no threshold"):
            starter.start(Found("board", "2", Path("/"), Path("/"), (), None, "no threshold"))
        assert (made, self.started()) == ([], 0)

    def test_neither_does_one_that_there_is_no_way_for(self, starter, made, monkeypatch):
        def none(_: Found) -> Plan:
            raise PackageRefused("There is no GPU.")

        monkeypatch.setattr(starter, "_plan", none)
        with pytest.raises(PackageRefused, match="no GPU"):
            starter.start(found("1"))
        assert (made, self.started()) == ([], 0)

    def test_nor_what_finds_no_room_for_a_process(self, starter, monkeypatch):
        def none(*_: object) -> Loading:
            raise WorkerDied("it could not be started (Too many open files)")

        monkeypatch.setattr(starting, "Worker", none)
        with pytest.raises(serving.NotStarted, match=r"Too many open files"):
            starter.start(found("1"))
        assert self.started() == 0

    def test_what_does_not_load_is_given_back(self, starter, made):
        thread, came = self.in_thread(starter)
        until(lambda: made, "a worker is made")
        made[0].end(WorkerDied(SIGNAL))
        thread.join(30)
        assert came == [SIGNAL]
        assert made[0].seen == ["load within 300 s, or 1800 s", "stop", "release"]

    def test_the_end_kills_what_is_being_loaded(self, starter, made):
        thread, came = self.in_thread(starter)
        until(lambda: made and made[0].loads.is_set(), "it loads")
        starter.end("the agent ends")
        thread.join(30)
        assert came == ["the agent ends"]
        assert made[0].seen == ["load within 300 s, or 1800 s", "kill: the agent ends", "stop", "release"]

    def test_after_the_end_nothing_stays(self, starter, made):
        starter.end("the agent ends")
        thread, came = self.in_thread(starter)
        thread.join(30)
        assert came == ["the agent ends"]
        assert made[0].seen[0] == "kill: the agent ends"
        assert made[0].seen[-1] == "release"

    def test_what_is_done_is_told(self, made):
        said: list[str] = []
        starter = Starter(
            "board", None, lambda _: Plan((SessionOptions(),)), Limits(300, 1800, 5.0), Metrics(), said.append
        )
        thread, _ = self.in_thread(starter)
        until(lambda: made and made[0].loads.is_set(), "it loads")
        made[0].tell("Building the engine.")
        made[0].end()
        thread.join(30)
        assert said == ["Building the engine."]


NO_ENGINE = "TensorRT cannot take the model."


class TestWays:
    """A package that has several ways to run, of which some do not work."""

    def starter(self, monkeypatch, *ways: str, failed: tuple[Failed, ...] = (), **fails: Exception) -> Starter:
        """Return a starter with ways to run a package; a way that `fails` does so with each worker."""
        self.fails = dict(fails)
        self.tried: list[str] = []
        self.metrics = Metrics()
        self.plan = Plan(tuple(SessionOptions(accelerator=one) for one in ways), failed)

        def make(_: object, _found: Found, options: SessionOptions, call_timeout: float | None) -> Loading:
            self.tried.append(options.accelerator)
            worker = Loading()
            worker.accelerator = options.accelerator
            worker.end(self.fails.get(options.accelerator))
            return worker

        monkeypatch.setattr(starting, "Worker", make)
        return Starter("board", None, lambda _: self.plan, Limits(300, 1800, None), self.metrics)

    def fell_back(self) -> int:
        return self.metrics.snapshot()["workers"].get("board", {}).get("fell_back", 0)

    def test_the_first_that_works(self, monkeypatch):
        worker = self.starter(monkeypatch, "tensorrt", "cuda").start(found("1"))
        assert (self.tried, worker.fallback, self.fell_back()) == (["tensorrt"], "", 0)

    def test_the_next_where_one_does_not(self, monkeypatch):
        worker = self.starter(monkeypatch, "tensorrt", "cuda", tensorrt=AcceleratorMissing(NO_ENGINE)).start(found("1"))
        assert self.tried == ["tensorrt", "cuda"]
        assert self.metrics.snapshot()["workers"]["board"]["started"] == 2
        assert worker.fallback == f"Runs on CUDA, since it cannot run on TensorRT: {NO_ENGINE}"
        assert self.fell_back() == 1

    def test_what_was_known_before_is_told_too(self, monkeypatch):
        starter = self.starter(monkeypatch, "cpu", failed=(Failed("a GPU", "There is none."),))
        assert starter.start(found("1")).fallback == "Runs on the CPU, since it cannot run on a GPU: There is none."
        assert self.fell_back() == 1

    def test_none_works(self, monkeypatch):
        fails = {"tensorrt": AcceleratorMissing(NO_ENGINE), "cuda": AcceleratorMissing("No memory")}
        with pytest.raises(PackageRefused) as refused:
            self.starter(monkeypatch, "tensorrt", "cuda", **fails).start(found("1"))
        assert str(refused.value) == (f"The model cannot run on TensorRT: {NO_ENGINE} Nor on CUDA: No memory. {ON_CPU}")
        assert self.fell_back() == 0

    @pytest.mark.parametrize("error", [PackageRefused("It is no ONNX."), WorkerDied(SIGNAL)])
    def test_what_is_no_matter_of_the_accelerator_ends_it(self, monkeypatch, error):
        with pytest.raises(type(error)):
            self.starter(monkeypatch, "tensorrt", "cpu", tensorrt=error).start(found("1"))
        assert self.tried == ["tensorrt"]

    def test_the_cpu_is_the_last(self, monkeypatch):
        with pytest.raises(AcceleratorMissing, match="odd"):
            self.starter(monkeypatch, "cpu", cpu=AcceleratorMissing("odd")).start(found("1"))

    def test_a_restart_begins_with_what_worked(self, monkeypatch):
        starter = self.starter(monkeypatch, "tensorrt", "cuda", "cpu", tensorrt=AcceleratorMissing(NO_ENGINE))
        starter.start(found("1"))
        self.fails = {"cuda": AcceleratorMissing("No memory.")}
        worker = starter.start(found("1"))
        assert self.tried == ["tensorrt", "cuda", "cuda", "cpu"]
        assert worker.fallback == (
            f"Runs on the CPU, since it cannot run on TensorRT: {NO_ENGINE} Nor on CUDA: No memory."
        )

    def test_another_package_has_all_its_ways(self, monkeypatch):
        starter = self.starter(monkeypatch, "tensorrt", "cuda", tensorrt=AcceleratorMissing(NO_ENGINE))
        starter.start(found("1"))
        self.fails = {}
        other = replace(found("2"), signature=(("manifest.json", 1, 2, 3, 4, 5, 6),))
        assert starter.start(other).fallback == ""
        assert self.tried == ["tensorrt", "cuda", "tensorrt"]

    def test_what_worked_may_be_no_way_any_more(self, monkeypatch):
        starter = self.starter(monkeypatch, "cuda")
        starter.start(found("1"))
        self.plan = Plan((SessionOptions(),))
        starter.start(found("1"))
        assert self.tried == ["cuda", "cpu"]
