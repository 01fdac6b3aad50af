"""Starting workers where the agent has no files left: a refusal in words, and no worker lost that there is.

And how long one may take that says all the time what it does.
"""

import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent.errors import AcceleratorMissing, PackageRefused
from edge_agent.jobs import Progress, Ready, Refused, SessionOptions
from edge_agent.service import NO_FILES
from edge_agent.supervisor import Worker, WorkerDied
from edge_agent.threads import NoThread
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


class TestLoading:
    """What a worker says while it loads; the process is made up."""

    def worker(self, says: Iterator[object], pause: float = 0.0) -> Worker:
        def answers(left: float) -> bool:
            time.sleep(min(pause, left))
            return pause <= left

        def abort(_: object, cause: str) -> None:
            raise WorkerDied(cause)

        made = object.__new__(Worker)
        made._slots = [SimpleNamespace(answers=answers, pipe=SimpleNamespace(recv=lambda: next(says)))]
        made._abort = abort
        made._call_timeout = None
        return made

    def test_is_told(self):
        said: list[str] = []
        worker = self.worker(iter([Progress("One."), Progress("Two.", building=True), Ready("A GPU", 0.5)]))
        worker.load(5, 10, said.append)
        assert (said, worker.provider, worker.warm_up) == (["One.", "Two."], "A GPU", 0.5)

    @pytest.mark.parametrize(
        ("building", "limits", "seconds"),
        [
            (False, (0.3, 60.0), "0.3 s (load_timeout)"),
            (True, (0.1, 0.4), "0.4 s (build_timeout)"),
            (True, (0.3, None), "0.3 s (load_timeout)"),
        ],
    )
    def test_has_an_end(self, building, limits, seconds):
        begin = time.monotonic()
        says = iter(lambda: Progress("Busy.", building=building), None)
        with pytest.raises(WorkerDied) as died:
            self.worker(says, pause=0.01).load(*limits)
        assert str(died.value) == f"it did not load within {seconds}"
        assert time.monotonic() - begin >= float(seconds.partition(" ")[0])

    def test_a_build_may_take_longer_than_a_load(self):
        says = iter([Progress("Busy.", building=True)] * 20 + [Ready("A GPU", 0.1)])
        self.worker(says, pause=0.01).load(0.05, 60)

    @pytest.mark.parametrize(("accelerator", "kind"), [(True, AcceleratorMissing), (False, PackageRefused)])
    def test_a_refusal_says_whether_it_is_the_accelerators(self, accelerator, kind):
        with pytest.raises(PackageRefused, match="no engine") as refused:
            self.worker(iter([Refused("no engine", accelerator)])).load(5)
        assert type(refused.value) is kind


def test_a_process_that_nobody_can_look_after_is_ended_and_leaves_nothing(monkeypatch):
    """No thread can be started for it, as where a limit of tasks is reached."""

    def refuse(name: str, *_: object) -> None:
        assert name == "watch-board"
        raise NoThread("no thread")

    monkeypatch.setattr("edge_agent.supervisor.threads.start", refuse)
    sleeping = subprocess.Popen(["sleep", "60"])
    process = SimpleNamespace(pid=sleeping.pid, join=lambda: sleeping.wait(30), close=lambda: None)
    before = os.listdir("/proc/self/fd")
    spawner = SimpleNamespace(spawn=lambda *_: (process, multiprocessing.Pipe()))
    with pytest.raises(WorkerDied, match="no thread"):
        Worker(spawner, SimpleNamespace(name="board"), SessionOptions(), None)
    assert sleeping.returncode == -signal.SIGKILL
    assert os.listdir("/proc/self/fd") == before
