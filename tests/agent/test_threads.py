"""Threads that may be refused."""

import threading

import pytest

from edge_agent import threads
from edge_agent.threads import NoThread, Pool
from support.waiting import until


def test_a_thread_that_starts_is_a_daemon_of_that_name():
    seen: list[tuple[str, bool, object]] = []

    def look(argument: object) -> None:
        seen.append((threading.current_thread().name, threading.current_thread().daemon, argument))

    threads.start("some-name", look, 7)
    until(lambda: seen == [("some-name", True, 7)], "it ran")


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
def test_one_that_does_not_start_is_refused_in_words(monkeypatch, error):
    def refuse(_: object) -> None:
        raise error

    monkeypatch.setattr("threading.Thread.start", refuse)
    with pytest.raises(NoThread, match="no further thread can be started; .*TasksMax.* or stop another model$"):
        threads.start("some-name", print)


class TestPool:
    @pytest.fixture
    def pool(self):
        made = Pool(3, "call")
        yield made
        made.shutdown()

    def test_has_as_many_threads_as_there_is_work(self, pool):
        together = threading.Barrier(3)
        for done in [pool.submit(together.wait, 30) for _ in range(3)]:
            done.result(30)

    def test_its_work_waits_where_no_further_one_can_be_started(self, pool, monkeypatch, caplog):
        may, began = threading.Event(), threading.Event()

        def hold() -> None:
            began.set()
            assert may.wait(30)

        held = pool.submit(hold)
        assert began.wait(30)

        def refuse(_: object) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr("threading.Thread.start", refuse)
        later = [pool.submit(int, number) for number in range(5)]
        assert not any(one.done() for one in later)
        assert "Calls wait for each other: no further thread can be started" in caplog.text
        may.set()
        assert [one.result(30) for one in later] == list(range(5))
        held.result(30)

    def test_it_has_its_threads_again_when_they_can_be_started(self, pool, monkeypatch):
        """However many were refused before: none of those was there, and none is idle."""
        with monkeypatch.context() as patch:

            def refuse(_: object) -> None:
                raise RuntimeError("can't start new thread")

            patch.setattr("threading.Thread.start", refuse)
            for done in [pool.submit(int, number) for number in range(50)]:
                done.result(30)
        together = threading.Barrier(3)
        for done in [pool.submit(together.wait, 30) for _ in range(3)]:
            done.result(30)

    def test_it_ends_with_what_was_begun(self, pool):
        together = threading.Barrier(3)
        begun = [pool.submit(together.wait, 30) for _ in range(2)]
        last = pool.submit(together.wait, 30)
        assert pool.end(30)
        assert all(one.done() for one in (*begun, last))
        with pytest.raises(RuntimeError):
            pool.submit(int)

    def test_it_says_that_something_is_stuck(self, pool):
        may = threading.Event()
        stuck = pool.submit(may.wait, 30)
        assert not pool.end(0.1)
        may.set()
        assert stuck.result(30)
        assert pool.end(30)

    def test_without_a_single_thread_there_is_no_pool(self, monkeypatch):
        def refuse(_: object) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr("threading.Thread.start", refuse)
        with pytest.raises(RuntimeError):
            Pool(3, "call")
