"""Starting workers where the agent has no files left: a refusal in words, and no worker lost that there is."""

import os
import subprocess

import pytest

from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent.service import NO_FILES
from support import packages
from support.agent import PLENTY, serving
from support.calls import INTERNAL, OK, outcome, picture, request
from support.waiting import until

FILES = "(Too many open files); close connections, or allow the agent more open files."


def limit(agent, files: int) -> None:
    """Set how many files the agent may have open, as its own user; the number above which it may not go stays."""
    command = ["prlimit", "--pid", str(agent.pid), f"--nofile={files}:"]
    subprocess.run(command, check=True, **agent.user.popen())


def lowest_free(agent) -> int:
    there = {int(name) for name in os.listdir(f"/proc/{agent.pid}/fd")}
    return next(number for number in range(len(there) + 1) if number not in there)


@pytest.fixture(scope="module")
def agent(module_folder):
    for name in ("board", "part"):
        packages.segmenter(module_folder / "models" / name)
    # Its own look at the folder would take files for an instant.
    with serving(module_folder / "models", scan_interval=3600) as running:
        running.run_model("board")
        yield running


@pytest.mark.parametrize("spare", [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20])
def test_a_start_without_files_costs_no_other_worker(agent, spare):
    before = (agent.forkserver(), agent.workers())
    stub = agent.stub()
    assert outcome(stub.ListModels, pb2.ListModelsRequest())[0] == OK  # connected
    limit(agent, lowest_free(agent) + spare)
    try:
        code, details, _ = outcome(stub.StartModel, pb2.StartModelRequest(model_component="part"))
        until(lambda: agent.state("part") != "STARTING", "it has started", PLENTY)
        message = agent.describe("part").status_message
    finally:
        limit(agent, 500)
    if code == OK:
        assert agent.state("part") == "FAILED"
        assert message.endswith(FILES) or "Too many open files" in message
    else:  # its package could not be looked at
        assert (code, details) == (INTERNAL, NO_FILES)
    assert "Traceback" not in agent.log()
    assert (agent.forkserver(), agent.workers()) == before
    pixels = picture(64, 64)
    assert outcome(stub.DetectAnomalies, request("board", 64, 64, pixels.tobytes()))[0] == OK


def test_it_starts_when_there_are_files_again(agent):
    agent.run_model("part")
