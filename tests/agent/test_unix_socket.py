"""The agent's socket: the private folder in which it is made, and what is left of agents that were killed just then."""

import os
import socket
import stat
from contextlib import closing
from pathlib import Path

import pytest

from edge_agent import unix_socket
from edge_agent.address import LONGEST
from edge_agent.errors import AgentRefused
from edge_agent.unix_socket import ServedSocket


def bound(path: Path, *, dead: bool) -> tuple[Path, socket.socket]:
    """Return the private name that a server has bound on its way to `path`, and the server, which may have died."""
    server = socket.socket(socket.AF_UNIX)
    names = []
    ServedSocket(path, 0o660, "").bind(
        lambda address: names.append(address.removeprefix("unix:")) or server.bind(*names)
    )
    private = Path(*names)
    if dead:
        server.close()
    else:
        server.listen()
    return private, server


class TestRemainders:
    def test_dead_ones_of_this_path_are_removed(self, tmp_path):
        path = tmp_path / "agent.sock"
        left = [bound(path, dead=True)[0] for _ in range(3)]
        assert all(one.is_socket() for one in left)
        left[0].unlink()  # as if it had not been bound yet
        ServedSocket(path, 0o660, "").claim()
        assert list(tmp_path.iterdir()) == []

    def test_so_is_one_of_an_agent_that_was_killed_when_it_had_just_made_the_path(self, tmp_path):
        path = tmp_path / "agent.sock"
        private, _ = bound(path, dead=True)
        path.hardlink_to(private)
        ServedSocket(path, 0o660, "").claim()
        assert list(tmp_path.iterdir()) == []

    def test_all_else_stays(self, tmp_path):
        path = tmp_path / "agent.sock"
        live, server = bound(path, dead=False)
        other, _ = bound(tmp_path / "other.sock", dead=True)
        full = bound(path, dead=True)[0].with_name("precious")
        full.touch()
        mark = live.parent.name[:-2]
        file, link = (tmp_path / f"{mark}{name}" for name in ("--", "__"))
        file.touch()
        link.symlink_to(other.parent)
        with closing(server):
            ServedSocket(path, 0o660, "").claim()
            assert live.is_socket()
            assert other.is_socket()
            assert full.exists()
            assert file.exists()
            assert link.is_symlink()


class TestPrivateFolder:
    @pytest.fixture
    def path(self, tmp_path):
        return tmp_path / "agent.sock"

    def test_nobody_else_can_enter_it_whatever_the_umask(self, path):
        before = os.umask(0)
        try:
            private, server = bound(path, dead=False)
        finally:
            os.umask(before)
        with closing(server):
            assert stat.S_IMODE(private.parent.stat().st_mode) == 0o700
            assert stat.S_IMODE(private.stat().st_mode) == 0o660

    def test_names_that_others_have_are_passed_by(self, path, monkeypatch):
        served = ServedSocket(path, 0o660, "")
        taken = path.with_name(f"{served._mark}aa")
        taken.symlink_to("/nonexistent")
        tokens = iter(["aab", "aac", "bbb"])
        monkeypatch.setattr(unix_socket.secrets, "token_urlsafe", lambda _: next(tokens))
        served.bind(lambda address: Path(address.removeprefix("unix:")).touch())
        assert served._private == path.with_name(f"{served._mark}bb") / "s"
        assert taken.is_symlink()

    def test_a_folder_full_of_them_is_told(self, path, monkeypatch):
        monkeypatch.setattr(unix_socket.secrets, "token_urlsafe", lambda _: "aaa")
        ServedSocket(path, 0o660, "").bind(lambda _: None)
        with pytest.raises(AgentRefused, match=r"which is full of names \..{4}\?\?\. Remove them, or give another"):
            ServedSocket(path, 0o660, "").bind(lambda _: None)

    def test_a_folder_that_cannot_be_made_is_told(self, tmp_path):
        with pytest.raises(AgentRefused, match="cannot be bound in .*nowhere: No such file or directory"):
            ServedSocket(tmp_path / "nowhere" / "agent.sock", 0o660, "").bind(lambda _: None)

    @pytest.mark.parametrize("error", [RuntimeError("no address"), OSError(98, "in use")])
    def test_nothing_is_left_where_nothing_was_bound(self, path, error):
        def fail(_: str) -> None:
            raise error

        with pytest.raises(AgentRefused, match="The socket cannot be bound in"):
            ServedSocket(path, 0o660, "").bind(fail)
        assert list(path.parent.iterdir()) == []

    def test_it_is_gone_when_the_path_is_there(self, path):
        served = ServedSocket(path, 0o660, "")
        with closing(socket.socket(socket.AF_UNIX)) as server:
            served.bind(lambda address: server.bind(address.removeprefix("unix:")))
            served.publish()
            assert list(path.parent.iterdir()) == [path]
            served.release()
        assert list(path.parent.iterdir()) == []


def test_what_took_the_path_meanwhile_is_not_overwritten(tmp_path):
    path = tmp_path / "agent.sock"
    served = ServedSocket(path, 0o660, "")
    with closing(socket.socket(socket.AF_UNIX)) as server:
        served.bind(lambda address: server.bind(address.removeprefix("unix:")))
        path.write_text("precious")
        with pytest.raises(AgentRefused, match="was taken by another process just now. Give another --socket."):
            served.publish()
        served.release()
        assert path.read_text() == "precious"
        assert list(tmp_path.iterdir()) == [path]


def test_a_path_that_leaves_no_room_for_the_private_name_is_refused(tmp_path):
    folder = tmp_path / ("x" * (LONGEST - len(bytes(tmp_path)) - 3))
    folder.mkdir()
    with pytest.raises(AgentRefused, match="has too long a path"):
        ServedSocket(folder / "s", 0o660, "").bind(lambda _: None)
