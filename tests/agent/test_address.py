"""Socket addresses as gRPC and people write them."""

from pathlib import Path

import pytest

from edge_agent import address


@pytest.mark.parametrize("text", ["unix:///tmp/a.sock", "unix:/tmp/a.sock", "/tmp/a.sock"])
def test_every_form_names_the_same_path(text):
    assert address.socket_path(text) == Path("/tmp/a.sock")
    assert address.target(text) == "unix:///tmp/a.sock"


def test_relative_paths_are_taken_from_here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert address.socket_path("a.sock") == address.socket_path("unix:a.sock") == tmp_path / "a.sock"


@pytest.mark.parametrize(
    "text", ["", "unix:", "unix://", "unix://a", "tcp:1", "ipv4:127.0.0.1:1", "unix-abstract:a", "a\0b", "/tmp/"]
)
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError, match="socket|path"):
        address.socket_path(text)


def test_length_is_the_kernels():
    import socket

    longest = "/tmp/" + "x" * 102
    assert len(str(address.socket_path(longest))) == 107
    with pytest.raises(ValueError, match="107"):
        address.socket_path(longest + "x")
    with socket.socket(socket.AF_UNIX) as probe, pytest.raises(OSError, match="too long"):
        probe.connect(longest + "xx")
