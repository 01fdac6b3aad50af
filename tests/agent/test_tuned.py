"""What was tuned: kept for the model and the device it was measured on, and nothing else is believed."""

import json
import os

import pytest
from pydantic import ValidationError

from edge_agent import tuned
from edge_agent.tuned import Tuned

BEST = {"threads": 2, "slots": 3, "spinning": True}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tuned.json"


def test_what_is_written_is_read(path):
    Tuned(path).write("board", **BEST)
    Tuned(path).write("part", threads=1, slots=1, spinning=False)
    assert Tuned(path).of("board") == BEST
    assert Tuned(path).of("part") == {"threads": 1, "slots": 1, "spinning": False}
    assert Tuned(path).of("other") == {}
    assert [one.name for one in path.parent.iterdir()] == ["tuned.json"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_nothing_is_tuned_where_there_is_no_file(path, caplog):
    assert Tuned(path).of("board") == {}
    assert not caplog.text


def test_another_device_has_other_settings(path, monkeypatch, caplog):
    Tuned(path).write("board", **BEST)
    monkeypatch.setattr(tuned, "cores", lambda: 1000)
    assert Tuned(path).of("board") == {}
    assert "there are 1000; `edge-agent tune` measures again" in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        '{"version": 2, "models": {}}',
        '{"version": 1, "models": {"board": {"threads": -1, "slots": 1, "spinning": false, "cores": 2}}}',
        '{"version": 1, "models": {"board": {"threads": 1, "slots": 0, "spinning": false, "cores": 2}}}',
        '{"version": 1, "models": {"board": {"threads": 1, "slots": 1, "spinning": "no", "cores": 2}}}',
        '{"version": 1, "models": {"board": {"threads": 1, "slots": 1, "spinning": false}}}',
        '{"version": 1, "models": {"board": {"threads": 1, "slots": 1, "spinning": false, "cores": 2, "more": 1}}}',
        "[" * 100_000,
        " " * (tuned.LARGEST_FILE + 1),
    ],
    ids=range(11),
)
def test_a_damaged_file_is_ignored_and_said_so(path, content, caplog):
    path.write_text(content)
    assert Tuned(path).of("board") == {}
    assert "What was tuned is ignored" in caplog.text


@pytest.mark.parametrize("kind", ["fifo", "link", "folder"])
def test_what_is_no_file_is_ignored_and_not_waited_for(path, kind, caplog):
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        Tuned(path.with_name("elsewhere")).write("board", **BEST)
        path.symlink_to("elsewhere")
    else:
        path.mkdir()
    assert Tuned(path).of("board") == {}
    assert "What was tuned is ignored" in caplog.text


def test_nonsense_is_not_written(path):
    with pytest.raises(ValidationError):
        Tuned(path).write("board", threads=-1, slots=1, spinning=False)
    assert not path.exists()


def test_a_write_that_fails_leaves_the_old_file(path, monkeypatch):
    Tuned(path).write("board", **BEST)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        Tuned(path).write("board", threads=1, slots=1, spinning=False)
    assert Tuned(path).of("board") == BEST
    assert [one.name for one in path.parent.iterdir()] == ["tuned.json"]


@pytest.mark.two_uids
def test_root_writes_for_the_agent(path):
    os.chown(path.parent, 54301, 54301)
    Tuned(path).write("board", **BEST)
    assert (path.stat().st_uid, path.stat().st_gid) == (54301, 54301)
    assert json.loads(path.read_text())["models"]["board"]["slots"] == 3
