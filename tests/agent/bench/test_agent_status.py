"""What a benchmark reads of the agent's status file, and what it makes of its sums."""

import json
import os

import pytest

from edge_agent import state
from edge_agent.bench import status
from edge_agent.bench.status import AgentStatus, stages_between

SUMS = {"calls": 10, "queue": 0.1, "copy": 0.2, "preprocess": 0.3, "run": 4.0, "postprocess": 0.4}


def written(folder, socket, content) -> AgentStatus:
    state.StateFolder(folder, socket).status_file().write_bytes(
        content if isinstance(content, bytes) else json.dumps(content).encode()
    )
    return AgentStatus(socket, folder, "board")


def test_sums_and_model(tmp_path):
    found = written(tmp_path, tmp_path / "a.sock", {"models": [{"model": "board", "stages": SUMS, "package": "/p"}]})
    assert found.why_not == ""
    assert found.model()["package"] == "/p"
    assert found.sums() == SUMS


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"{", "is not what"),
        ({"models": []}, "is not what"),
        ([], "is not what"),
        (b"\xff\xfe", "is not what"),
        ({"models": [{"model": "board", "stages": {"calls": "x"}}]}, ""),
        ({"models": [{"model": "board"}]}, ""),
    ],
)
def test_what_cannot_be_understood_is_no_sum(tmp_path, content, why):
    found = written(tmp_path, tmp_path / "a.sock", content)
    assert why in found.why_not
    assert found.sums() is None


def test_no_file_is_told_with_what_to_do(tmp_path, monkeypatch):
    found = AgentStatus(tmp_path / "a.sock", tmp_path, "board")
    assert "name its --state-dir" in found.why_not
    assert found.model() == {}

    def forbidden(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(state, "read_plain", forbidden)
    assert "as the agent's user or as root" in AgentStatus(tmp_path / "a.sock", tmp_path, "board").why_not


def test_the_file_is_waited_for_only_where_there_is_one(tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(status.time, "sleep", waits.append)
    AgentStatus(tmp_path / "a.sock", tmp_path, "board").settle()
    assert waits == []
    written(tmp_path, tmp_path / "a.sock", {"models": [{"model": "board"}]}).settle()
    assert waits == [pytest.approx(1.2)]


def test_stages_add_up_to_what_the_client_saw():
    after = {key: 3 * value for key, value in SUMS.items()}
    found = stages_between(SUMS, after, 0.6)
    assert found == pytest.approx(
        {"transport": 0.1, "queue": 0.01, "copy": 0.02, "preprocess": 0.03, "run": 0.4, "postprocess": 0.04}
    )
    assert sum(found.values()) == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("before", "after", "mean"), [(None, SUMS, 1.0), (SUMS, None, 1.0), (SUMS, SUMS, 1.0), (SUMS, SUMS, None)]
)
def test_stages_nobody_knows(before, after, mean):
    assert stages_between(before, after, mean) is None


def test_a_fifo_is_not_waited_for(tmp_path):
    place = state.StateFolder(tmp_path, tmp_path / "a.sock").status_file()
    os.mkfifo(place)
    assert AgentStatus(tmp_path / "a.sock", tmp_path, "board").why_not
