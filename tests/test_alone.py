"""Tests that measure the whole machine run while no other does."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from support.alone import turn
from support.waiting import until


class Room:
    """Who is in it, and who was."""

    def __init__(self, folder):
        self._files = {name: folder / name for name in ("door", "room")}
        for file in self._files.values():
            file.touch()
        self.inside: set[str] = set()
        self.entered: list[str] = []
        self._leave: dict[str, threading.Event] = {}
        self._threads: dict[str, threading.Thread] = {}

    def come(self, name: str, *, alone: bool) -> None:
        self._leave[name] = threading.Event()
        self._threads[name] = threading.Thread(target=self._be, args=(name, alone), daemon=True)
        self._threads[name].start()

    def _be(self, name: str, alone: bool) -> None:
        with turn(alone=alone, **self._files):
            self.entered.append(name)
            self.inside.add(name)
            self._leave[name].wait(30)
            self.inside.remove(name)

    def leave(self, *names: str) -> None:
        for name in names:
            self._leave[name].set()
        for name in names:
            self._threads[name].join(30)


@contextmanager
def stays(condition, message: str) -> Iterator[None]:
    """Fail unless a condition holds now and a while later."""
    yield
    with pytest.raises(AssertionError, match="in vain until"):
        until(lambda: not condition(), "it changes", 0.3)
    assert condition(), message


@pytest.fixture
def room(tmp_path):
    return Room(tmp_path)


def test_others_share_it(room):
    room.come("one", alone=False)
    room.come("two", alone=False)
    until(lambda: room.inside == {"one", "two"}, "both are in it")
    room.leave("one", "two")


@pytest.mark.parametrize("alone", [False, True])
def test_alone_waits_for_all_and_all_wait_for_it(room, alone):
    room.come("one", alone=False)
    room.come("two", alone=False)
    until(lambda: room.inside == {"one", "two"}, "both are in it")
    with stays(lambda: room.inside == {"one", "two"}, "it did not wait"):
        room.come("alone", alone=True)
    room.leave("one")
    with stays(lambda: room.inside == {"two"}, "it did not wait for the last"):
        pass
    # Whoever comes later waits behind it, or it would never have its turn.
    with stays(lambda: room.inside == {"two"}, "it was overtaken"):
        room.come("later", alone=alone)
    room.leave("two")
    until(lambda: room.inside == {"alone"}, "it is in it")
    with stays(lambda: room.inside == {"alone"}, "it was not alone"):
        pass
    room.leave("alone")
    until(lambda: room.inside == {"later"}, "the next is in it")
    room.leave("later")
    assert room.entered[2:] == ["alone", "later"]
