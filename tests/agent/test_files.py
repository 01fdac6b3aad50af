"""Files that somebody else names are read up to a bound or refused at once; those of our own are whole or as before."""

import os
import stat

import pytest

from edge_agent.files import read_regular, replacing
from support.open_files import nothing_stays_open


def test_a_file_is_read_up_to_the_bound(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"0123456789")
    assert read_regular(file, 100) == b"0123456789"
    assert read_regular(file, 4) == b"0123"


@pytest.mark.parametrize("kind", ["FIFO", "device", "folder", "missing"])
def test_what_is_no_file_is_refused_and_nothing_stays_open(tmp_path, kind):
    path = tmp_path / kind
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    told = {"folder": "Is a directory", "missing": "No such file or directory"}.get(kind, "Not a regular file")
    with nothing_stays_open(), pytest.raises(OSError, match=told) as caught:
        read_regular(path, 100)
    assert caught.value.strerror == told


@pytest.fixture
def places(tmp_path):
    """A file with something in it, and the place beside it."""
    path = tmp_path / "file"
    path.write_text("old")
    return path, tmp_path / "file.new"


class TestReplacing:
    def test_nothing_is_seen_of_it_before_it_is_whole(self, places):
        path, beside = places
        with replacing(path, beside) as file:
            file.write(b"ne")
            file.flush()
            assert (path.read_text(), beside.read_text()) == ("old", "ne")
            file.write(b"w")
        assert path.read_text() == "new"
        assert os.listdir(path.parent) == ["file"]

    def test_nothing_need_be_there(self, tmp_path):
        with replacing(tmp_path / "file", tmp_path / "new") as file:
            file.write(b"new")
        assert (tmp_path / "file").read_text() == "new"

    @pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
    @pytest.mark.parametrize(("mode", "told"), [((), 0o600), ((0o600,), 0o600), ((0o644,), 0o644)])
    def test_it_has_its_mode_whatever_the_umask_is(self, places, umask, mode, told):
        path, beside = places
        before = os.umask(umask)
        try:
            with replacing(path, beside, *mode):
                assert stat.S_IMODE(beside.stat().st_mode) == told
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == told

    @pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("no"), KeyboardInterrupt()])
    def test_one_that_fails_leaves_what_was_there_and_nothing_else(self, places, error):
        path, beside = places

        def write() -> None:
            with replacing(path, beside) as file:
                file.write(b"new")
                raise error

        with pytest.raises(type(error)) as caught:
            write()
        assert caught.value is error
        assert path.read_text() == "old"
        assert os.listdir(path.parent) == ["file"]

    def test_so_does_one_that_cannot_take_its_place(self, tmp_path):
        (tmp_path / "folder" / "in it").mkdir(parents=True)
        with pytest.raises(IsADirectoryError), replacing(tmp_path / "folder", tmp_path / "new") as file:
            file.write(b"new")
        assert os.listdir(tmp_path) == ["folder"]

    @pytest.mark.parametrize("kind", ["link", "FIFO", "file of a killed process"])
    def test_what_lies_beside_it_goes_and_is_not_followed(self, tmp_path, places, kind):
        path, beside = places
        other = tmp_path / "other"
        other.write_text("not ours")
        if kind == "link":
            beside.symlink_to(other)
        elif kind == "FIFO":
            os.mkfifo(beside)
        else:
            beside.write_text("half of something long")
            beside.chmod(0o666)
        with replacing(path, beside) as file:
            file.write(b"new")
        assert (path.read_text(), other.read_text()) == ("new", "not ours")
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
        assert not beside.exists()

    @pytest.mark.parametrize("sync", [True, False])
    def test_it_is_on_the_disk_first_where_that_is_wanted(self, places, monkeypatch, sync):
        path, beside = places
        seen = []
        monkeypatch.setattr(os, "fsync", lambda _: seen.append((path.read_text(), beside.read_text())))
        with replacing(path, beside, sync=sync) as file:
            file.write(b"new")
        assert seen == [("old", "new")] * sync
