"""Files that somebody else names: regular ones are read up to a bound, all others are refused at once."""

import os

import pytest

from edge_agent.files import read_regular


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
    before = os.listdir("/proc/self/fd")
    told = {"folder": "Is a directory", "missing": "No such file or directory"}.get(kind, "Not a regular file")
    with pytest.raises(OSError, match=told) as caught:
        read_regular(path, 100)
    assert caught.value.strerror == told
    assert os.listdir("/proc/self/fd") == before
