"""The registry folder: what the system does not let us see is looked at again, and no component is told for good by it."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.registry import FOLDER_FLAGS, Registry
from support import packages


class Device:
    """A registry, the agent's looks at it, and a component's package."""

    def __init__(self, place: Path) -> None:
        self.folder, self.packages = place / "models.d", place / "packages"
        self.registry = Registry(self.folder, "", (self.packages,), (), place / "unpacked")
        self.registry.make()

    def register(self, name: str, data: bytes | None = None, folder: str = "abc") -> bytes:
        """Write a package and its entry, or `data` in its place; return the entry."""
        package = packages.classifier(self._above(name) / folder)
        entry = {"component": name, "version": "1.0.0", "path": str(package), "autostart": "false"}
        data = json.dumps(entry).encode() if data is None else data
        beside = self.folder / ".new"
        beside.write_bytes(data)
        beside.chmod(0o644)
        beside.rename(self.folder / f"{name}.json")
        return data

    def look(self) -> list[str]:
        """Look and answer once, as each scan does; return the components that are registered."""
        found = {entry.component: place.folder for entry, place in self.registry.look()}
        self.registry.answer({name: (folder, "") for name, folder in found.items()})
        self.registry.tidy([])
        return sorted(found)

    def ack(self, name: str) -> bytes | None:
        path = self.folder / f"{name}.ack"
        return path.read_bytes() if path.exists() else None

    def _above(self, name: str) -> Path:
        path = self.packages / name
        path.mkdir(parents=True, exist_ok=True)
        return path


@pytest.fixture
def device(tmp_path) -> Device:
    return Device(tmp_path)


class Faults:
    """What the system refuses to open, by the path that it is opened by, and with which error."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def check(self, path: object) -> None:
        if number := self.numbers.get(str(path)):
            raise OSError(number, os.strerror(number), str(path))


@pytest.fixture
def faults(monkeypatch) -> Iterator[Faults]:
    made, opened, listed, looked = Faults(), os.open, os.listdir, Path.lstat

    def checked_open(path, *more, **options):
        made.check(path)
        return opened(path, *more, **options)

    def checked_list(path="."):
        made.check(path)
        return listed(path)

    def checked_look(path: Path) -> os.stat_result:
        made.check(path)
        return looked(path)

    monkeypatch.setattr(os, "open", checked_open)
    monkeypatch.setattr(os, "listdir", checked_list)
    monkeypatch.setattr(Path, "lstat", checked_look)
    return made


def warned(caplog) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.ENOTDIR, errno.EIO], ids=errno.errorcode.get)
def test_a_folder_that_cannot_be_opened_is_told_and_tried_again(device, faults, caplog, number):
    """With what was there before, and nothing of it is taken back."""
    data = device.register("board")
    assert device.look() == ["board"]
    assert device.ack("board") == data
    faults.numbers[str(device.folder)] = number
    for _ in range(3):
        assert device.look() == ["board"]
    reason = os.strerror(number)
    assert warned(caplog) == [
        f"The registry {device.folder} cannot be looked at: {reason}; it is tried again.",
        f"Nothing can be answered in the registry {device.folder}: {reason}; it is tried again.",
    ]
    del faults.numbers[str(device.folder)]
    other = device.register("part")
    assert device.look() == ["board", "part"]
    assert device.ack("part") == other


def test_a_folder_that_cannot_be_opened_only_to_answer_is_told_once(device, monkeypatch, caplog):
    device.register("board")
    opened, turn = device.registry._opened, iter(range(100))

    def every_other_time() -> int:
        if next(turn) % 2:
            raise OSError(errno.EMFILE, "Too many open files")
        return opened()

    monkeypatch.setattr(device.registry, "_opened", every_other_time)
    for _ in range(3):
        assert device.look() == ["board"]
    assert len(warned(caplog)) == 1
    assert device.ack("board") is None


def test_the_folder_is_opened_once_to_answer_all(device, monkeypatch):
    for number in range(5):
        device.register(f"board-{number}")
    flags = []
    opened = os.open

    def counted(path, *more, **options):
        flags.append(more[0])
        return opened(path, *more, **options)

    found = {entry.component: place.folder for entry, place in device.registry.look()}
    monkeypatch.setattr(os, "open", counted)
    device.registry.answer({name: (folder, "") for name, folder in found.items()})
    assert flags.count(FOLDER_FLAGS) == 1
    assert all(device.ack(name) for name in found)


def test_what_was_unpacked_is_tidied_later_where_it_cannot_be_listed(device, faults, tmp_path):
    unused = tmp_path / "unpacked" / "0123456789abcdef"
    unused.mkdir(parents=True)
    faults.numbers[str(unused.parent)] = errno.EMFILE
    device.look()
    assert unused.exists()
    del faults.numbers[str(unused.parent)]
    device.look()
    assert not unused.exists()


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE], ids=errno.errorcode.get)
class TestAnEntryThatCannotBeRead:
    def test_is_not_refused_however_often(self, device, faults, caplog, number):
        device.register("board")
        faults.numbers["board.json"] = number
        for _ in range(3):
            assert device.look() == []
        assert device.ack("board") is None
        assert warned(caplog) == [
            f"The registry entry 'board.json' cannot be read: {os.strerror(number)}; it is tried again."
        ]
        faults.numbers.clear()
        assert device.look() == ["board"]
        assert device.ack("board") is not None

    def test_counts_as_it_was(self, device, faults, number):
        data = device.register("board")
        device.look()
        faults.numbers["board.json"] = number
        for _ in range(3):
            assert device.look() == ["board"]
        assert device.ack("board") == data

    def test_is_told_again_when_it_was_read_meanwhile(self, device, faults, caplog, number):
        device.register("board")
        for _ in range(2):
            faults.numbers["board.json"] = number
            device.look()
            faults.numbers.clear()
            device.look()
        assert len(warned(caplog)) == 2


class TestTwoLooksInARow:
    """What cannot be looked at is none of them."""

    def test_to_refuse_an_entry(self, device, faults):
        device.register("board", b"{")
        device.look()
        faults.numbers[str(device.folder)] = errno.EMFILE
        device.look()
        faults.numbers.clear()
        assert device.ack("board") is None
        device.registry.answer({})
        assert device.ack("board") is None
        device.look()
        assert device.ack("board").startswith(b"error: it is no JSON")

    def test_to_remove_one_whose_package_is_gone(self, device, faults):
        device.register("board")
        device.look()
        shutil.rmtree(device.packages / "board")
        device.look()
        faults.numbers[str(device.folder)] = errno.EMFILE
        device.look()
        faults.numbers.clear()
        device.registry.answer({})
        assert (device.folder / "board.json").exists()
        device.look()
        assert not (device.folder / "board.json").exists()


def test_an_entry_is_not_acknowledged_for_an_earlier_one_that_still_counts(device, faults):
    first = device.register("board")
    assert device.look() == ["board"]
    faults.numbers[str(device.packages / "board" / "new")] = errno.EIO
    second = device.register("board", folder="new")
    for _ in range(2):
        assert device.look() == ["board"]
        assert device.ack("board") == first
    faults.numbers.clear()
    assert device.look() == ["board"]
    assert device.ack("board") == second
