"""Registry entries: who may have written one, what it must say, and where its package may be."""

import errno
import json
import os
import shutil
import socket
import zipfile
from pathlib import Path

import pytest

from edge_agent import registration
from edge_agent.registration import EntryRefused, PackageGone, Places
from support import packages

GOOD = {"component": "board", "version": "1.0.0", "path": "/gg/packages/board", "autostart": "false"}
ME = os.geteuid()


def entry(**changes: object) -> bytes:
    content = {**GOOD, **changes}
    return json.dumps({key: value for key, value in content.items() if value is not None}).encode()


class TestReading:
    def read(self, folder: Path, trusted=(ME,)) -> bytes:
        fd = os.open(folder, os.O_RDONLY)
        try:
            return registration.read(fd, "board.json", trusted)
        finally:
            os.close(fd)

    def file(self, folder: Path, mode: int = 0o644, data: bytes = b"{}") -> Path:
        path = folder / "board.json"
        path.write_bytes(data)
        path.chmod(mode)
        return path

    @pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o444, 0o755])
    def test_a_plain_file_that_only_its_owner_writes(self, tmp_path, mode):
        self.file(tmp_path, mode)
        assert self.read(tmp_path) == b"{}"

    @pytest.mark.parametrize("mode", [0o664, 0o646, 0o666, 0o777, 0o620])
    def test_a_file_that_others_may_write(self, tmp_path, mode):
        self.file(tmp_path, mode)
        with pytest.raises(EntryRefused, match=f"mode {mode:04o} lets others write it; chmod go-w"):
            self.read(tmp_path)

    def test_a_file_of_somebody_else(self, tmp_path):
        self.file(tmp_path)
        with pytest.raises(EntryRefused, match=f"belongs to uid {ME}; only root, the agent's user and trusted_uids"):
            self.read(tmp_path, trusted=(ME + 1,))

    def test_a_second_hard_link(self, tmp_path):
        self.file(tmp_path)
        os.link(tmp_path / "board.json", tmp_path / "other")
        with pytest.raises(EntryRefused, match="second hard link"):
            self.read(tmp_path)

    def test_a_link(self, tmp_path):
        self.file(tmp_path).rename(tmp_path / "real")
        (tmp_path / "board.json").symlink_to("real")
        with pytest.raises(EntryRefused, match="it is a link"):
            self.read(tmp_path)

    def test_a_fifo_does_not_make_anybody_wait(self, tmp_path):
        os.mkfifo(tmp_path / "board.json")
        with pytest.raises(EntryRefused, match="no regular file"):
            self.read(tmp_path)

    def test_a_folder(self, tmp_path):
        (tmp_path / "board.json").mkdir()
        with pytest.raises(EntryRefused, match="no regular file"):
            self.read(tmp_path)

    def test_size(self, tmp_path):
        self.file(tmp_path, data=b" " * 4096)
        assert len(self.read(tmp_path)) == 4096
        self.file(tmp_path, data=b" " * 4097)
        with pytest.raises(EntryRefused, match="longer than 4096 bytes"):
            self.read(tmp_path)

    def test_a_socket(self, tmp_path):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "board.json"))
            with pytest.raises(EntryRefused, match="it is no regular file; write a plain file"):
                self.read(tmp_path)

    def test_one_that_is_gone(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            self.read(tmp_path)

    @pytest.mark.parametrize("number", registration.NO_ENTRY, ids=errno.errorcode.get)
    def test_one_that_is_itself_at_fault(self, tmp_path, monkeypatch, number):
        self.fail(monkeypatch, number)
        with pytest.raises(EntryRefused, match=r"^it .*; write a plain file$"):
            self.read(tmp_path)

    @pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE])
    def test_a_fault_of_the_system_is_not_the_entrys(self, tmp_path, monkeypatch, number):
        self.fail(monkeypatch, number)
        with pytest.raises(OSError, match=os.strerror(number)):
            self.read(tmp_path)

    @staticmethod
    def fail(monkeypatch, number: int) -> None:
        """Let the entry be one that cannot be opened."""
        real = os.open

        def opened(path, *more, **options):
            if path == "board.json":
                raise OSError(number, os.strerror(number))
            return real(path, *more, **options)

        monkeypatch.setattr(os, "open", opened)


class TestParsing:
    def test_a_good_one(self):
        read = registration.parse("board", entry(autostart="true"))
        assert (read.component, read.version, read.path, read.autostart) == (
            "board",
            "1.0.0",
            "/gg/packages/board",
            True,
        )
        assert read.raw == entry(autostart="true")

    @pytest.mark.parametrize(
        ("data", "told"),
        [
            (b"", "it is no JSON"),
            (b"\xff", "it is no JSON"),
            (b"[" * 3000, "it is no JSON"),
            (b"[]", "an object of exactly `component`, `version`, `path`, `autostart`"),
            (b'"board"', "an object of exactly"),
            (entry(autostart=None), "an object of exactly"),
            (entry(more="1"), "an object of exactly"),
            (b'{"component": "board", "component": "x"}', "the key 'component' is there twice"),
            (entry(component=1), "`component` is '1'; it must be a text"),
            (entry(autostart=True), "`autostart` is 'true'; it must be a text"),
            (entry(path=["/"]), "`path` is .*it must be a text"),
            (entry(component="other"), "`component` is 'other'; the file's name says board"),
            (entry(version="1.0"), "`version` is '1.0'; it must be x.y.z"),
            (entry(version="1.0.0\n"), "it must be x.y.z"),
            (entry(autostart="yes"), '`autostart` is \'yes\'; it must be "true" or "false"'),
            (entry(path="packages/board"), "it must be an absolute path of printable characters"),
            (entry(path=""), "it must be an absolute path"),
            (entry(path="/a\0b"), r"'/a\\x00b'; it must be an absolute path"),
            (entry(path="/a\nb"), "printable characters"),
            (b'{"component": "board", "version": "1.0.0", "path": "/\\ud800", "autostart": "true"}', "it is no JSON"),
        ],
    )
    def test_what_is_refused(self, data, told):
        with pytest.raises(EntryRefused, match=told):
            registration.parse("board", data)

    @pytest.mark.parametrize(
        ("name", "component"),
        [
            ("board.json", "board"),
            ("com.example.Board-1_x.json", "com.example.Board-1_x"),
            ("x.json.json", "x.json"),
            ("board.ack", None),
            ("board", None),
            (".board.json", None),
            (".json", None),
            ("a b.json", None),
            ("\udcff.json", None),
            (f"{'a' * 129}.json", None),
        ],
    )
    def test_names_of_files(self, name, component):
        assert registration.component_of(name) == component


class TestPlaces:
    """Packages are looked for below the allowed roots, by whom nobody else can have put anything there."""

    @pytest.fixture
    def root(self, folder) -> Path:
        """Short, so that errors show it whole."""
        os.chown(folder, ME, -1)
        root = folder / "packages"
        root.mkdir(mode=0o755)
        (folder / "unpacked").mkdir(mode=0o700)
        return root

    def find(self, root: Path, path: Path | str, trusted=(0, ME)):
        places = Places([root], frozenset(trusted), root.parent / "unpacked")
        return places.find(registration.parse("board", entry(path=str(path))))

    def package(self, root: Path, name: str = "board") -> Path:
        return packages.classifier(root / name)

    def zip(self, root: Path) -> Path:
        folder = self.package(root.parent, "zipped")
        shutil.make_archive(str(root / "board"), "zip", folder)
        return root / "board.zip"

    def test_the_folder_of_a_package(self, root):
        folder = self.package(root)
        assert self.find(root, folder) == registration.Place(folder, root)

    def test_a_folder_above_it(self, root):
        (root / "above").mkdir(mode=0o755)
        folder = self.package(root / "above")
        assert self.find(root, root / "above").folder == folder

    def test_a_zip_is_unpacked_once_for_as_long_as_it_stays_as_it_is(self, root):
        archive = self.zip(root)
        place = self.find(root, archive)
        assert place.root == root.parent / "unpacked"
        assert sorted(one.name for one in place.folder.rglob("*")) == ["manifest.json", "mochi", "model.onnx"]
        before = (place.folder / "manifest.json").stat()
        assert self.find(root, archive) == place
        assert (place.folder / "manifest.json").stat() == before
        os.utime(archive, ns=(1, 1))
        assert self.find(root, archive).folder != place.folder

    def test_links_are_followed_before_anything_is_compared(self, root):
        self.package(root)
        (root / "link").symlink_to("board")
        assert self.find(root, root / "link").folder == root / "board"
        outside = self.package(root.parent, "outside")
        (root / "out").symlink_to(outside)
        for path in (root / "out", root / ".." / "outside", outside, root):
            with pytest.raises(EntryRefused, match=r"which is not below .*packages' \(registry_roots\)"):
                self.find(root, path)

    def test_a_root_may_be_a_link_itself(self, root):
        folder = self.package(root)
        (root.parent / "current").symlink_to("packages")
        assert self.find(root.parent / "current", root.parent / "current" / "board").folder == folder

    def test_the_name_of_a_root_is_not_enough(self, root):
        beside = root.parent / "packages-of-others"
        beside.mkdir()
        self.package(beside)
        with pytest.raises(EntryRefused, match="not below"):
            self.find(root, beside / "board")

    def test_gone(self, root):
        for path in (root / "board", root / "board" / "below"):
            with pytest.raises(PackageGone):
                self.find(root, path)
        (root / "file").write_text("x")
        with pytest.raises(PackageGone):
            self.find(root, root / "file" / "below")

    def test_as_long_as_the_root_is_not_there_nothing_is_gone(self, root):
        root.rmdir()
        with pytest.raises(FileNotFoundError):
            self.find(root, root / "board")

    @pytest.mark.parametrize("which", ["root", "above", "folder", "zip"])
    def test_what_everybody_may_write(self, root, which):
        (root / "above").mkdir(mode=0o755)
        folder = self.package(root / "above")
        archive = self.zip(root)
        {"root": root, "above": root / "above", "folder": folder, "zip": archive}[which].chmod(0o777)
        with pytest.raises(EntryRefused, match="is writable by everybody; take that away with chmod o-w"):
            self.find(root, archive if which == "zip" else folder)

    def test_what_belongs_to_somebody_else(self, root):
        self.package(root)
        with pytest.raises(EntryRefused, match=f"belongs to uid {ME}; only root, the agent's user and trusted_uids"):
            self.find(root, root / "board", trusted=(ME + 1,))

    def test_no_package_and_too_many(self, root):
        (root / "empty").mkdir()
        with pytest.raises(EntryRefused, match="which holds no model package"):
            self.find(root, root / "empty")
        (root / "two").mkdir()
        self.package(root / "two", "a")
        self.package(root / "two", "b")
        with pytest.raises(EntryRefused, match="which holds 2 model packages; register one"):
            self.find(root, root / "two")

    def test_a_path_that_is_too_long(self, root):
        with pytest.raises(EntryRefused, match="which is longer than a path can be"):
            self.find(root, root / ("x" * 300))

    def test_neither_folder_nor_file(self, root):
        os.mkfifo(root / "fifo")
        with pytest.raises(EntryRefused, match="neither a folder nor a zip"):
            self.find(root, root / "fifo")

    def test_what_is_no_zip(self, root):
        (root / "board.zip").write_text("no zip")
        with pytest.raises(EntryRefused, match=r"'board.zip' cannot be unpacked"):
            self.find(root, root / "board.zip")
        assert list((root.parent / "unpacked").iterdir()) == []

    def test_a_zip_that_would_write_elsewhere(self, root):
        with zipfile.ZipFile(root / "board.zip", "w") as made:
            made.writestr("../outside", "x")
        with pytest.raises(EntryRefused, match="cannot be unpacked: its entry"):
            self.find(root, root / "board.zip")
        assert sorted(one.name for one in root.parent.iterdir()) == ["packages", "unpacked"]
