"""The agent's socket: what is left of agents that were killed before they had made its path."""

import socket
from contextlib import closing
from pathlib import Path

import pytest

from edge_agent.address import LONGEST
from edge_agent.errors import AgentRefused
from edge_agent.unix_socket import ServedSocket


def bound(path: Path, *, dead: bool) -> tuple[Path, socket.socket]:
    """Return the private name that a server has bound on its way to `path`, and the server, which may have died."""
    server = socket.socket(socket.AF_UNIX)
    before = set(path.parent.iterdir())
    ServedSocket(path, 0o660, "").bind(lambda address: server.bind(address.removeprefix("unix:")))
    (private,) = set(path.parent.iterdir()) - before
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
        file = live.with_name(f"{live.name}x")
        file.write_text("precious")
        with closing(server):
            ServedSocket(path, 0o660, "").claim()
            assert set(tmp_path.iterdir()) == {live, other, file}


def test_a_path_that_leaves_no_room_for_the_private_name_is_refused(tmp_path):
    folder = tmp_path / ("x" * (LONGEST - len(bytes(tmp_path)) - 3))
    folder.mkdir()
    with pytest.raises(AgentRefused, match="has too long a path"):
        ServedSocket(folder / "s", 0o660, "").bind(lambda _: None)
