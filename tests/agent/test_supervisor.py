"""Starting workers where the agent has no files left: a refusal in words, and no worker lost that there is.

And how long one may take that says all the time what it does, one that no signal ends, and answers to other jobs.
"""

import gc
import multiprocessing
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing import reduction
from types import SimpleNamespace
from typing import Any

import pytest

from edge_agent import supervisor
from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent.bitmaps import Image
from edge_agent.calls import CallQueue, Turn
from edge_agent.deaths import WorkerDied
from edge_agent.errors import AcceleratorMissing, EdgeAgentError, InferenceFailed, InferenceHung, PackageRefused
from edge_agent.jobs import Answer, Broken, Failure, Job, Progress, Ready, Refused, SessionOptions, Verdict
from edge_agent.metrics import Metrics
from edge_agent.service import NO_FILES
from edge_agent.serving import Serving
from edge_agent.supervisor import Worker
from edge_agent.threads import NoThread
from support import packages
from support.agent import PLENTY, serving
from support.calls import INTERNAL, OK, outcome, picture, request
from support.open_files import nothing_stays_open, open_files
from support.waiting import PATIENCE, until

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
        made._ending = threading.Event()
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
    process = SimpleNamespace(pid=sleeping.pid, join=sleeping.wait, close=lambda: None)
    spawner = SimpleNamespace(spawn=lambda *_: (process, multiprocessing.Pipe()))
    with nothing_stays_open(), pytest.raises(WorkerDied, match="no thread"):
        Worker(spawner, SimpleNamespace(name="board"), SessionOptions(), None)
    assert sleeping.returncode == -signal.SIGKILL


def test_nor_is_it_waited_for_where_the_kernel_holds_it(monkeypatch):
    def refuse(*_: object) -> None:
        raise NoThread("no thread")

    def close() -> None:
        raise ValueError("it is still running")

    waited: list[float] = []
    monkeypatch.setattr("edge_agent.supervisor.threads.start", refuse)
    monkeypatch.setattr("edge_agent.supervisor.os.kill", lambda *_: None)
    process = SimpleNamespace(pid=PID, join=waited.append, close=close)
    spawner = SimpleNamespace(spawn=lambda *_: (process, multiprocessing.Pipe()))
    with pytest.raises(WorkerDied, match="no thread"):
        Worker(spawner, SimpleNamespace(name="board"), SessionOptions(), None)
    assert waited == [supervisor.KILL_PATIENCE]


# Of a process that there is not.
PID = 2**22 + 1
IMAGE = Image(2, 2, 6, None)
VERDICT = Verdict(False, 1.0, 0.0, 0.5)
LIMIT = "it did not answer within 0.05 s (call_timeout)"
HELD = ", and it could not be ended: the kernel holds it"


class Outcome(threading.Thread):
    """What comes back from something that is done in a thread of its own, the error where it is one."""

    def __init__(self, act: Callable[..., object], *arguments: object) -> None:
        super().__init__(daemon=True)
        self._act, self._arguments = act, arguments
        self._outcome: Any = None
        self.start()

    def run(self) -> None:
        try:
            self._outcome = self._act(*self._arguments)
        except (EdgeAgentError, WorkerDied) as error:
            self._outcome = error

    def get(self) -> Any:
        self.join(PATIENCE)
        assert not self.is_alive(), "it never returned"
        return self._outcome


class MadeUpProcess:
    """What a worker takes for its process: `pipe` is that one's end, and it ends when it is killed, unless it is held."""

    def __init__(self, call_timeout: float = 60.0, *, held: bool = False) -> None:
        self.held = held
        self.signals: list[int] = []
        self.closed = 0
        self._sentinel, self._alive = os.pipe()
        ours, self.pipe = multiprocessing.Pipe()
        process = SimpleNamespace(
            pid=PID, sentinel=self._sentinel, exitcode=-signal.SIGKILL, join=lambda: None, close=self._close
        )
        spawner = SimpleNamespace(spawn=lambda *_: (process, (ours,)))
        self.worker = Worker(spawner, SimpleNamespace(name="board"), SessionOptions(), call_timeout)
        for _ in range(3):  # what it is told by, and its memory
            os.close(reduction.recv_handle(self.pipe))

    def signal(self, pid: int, number: int) -> None:
        assert pid == PID
        self.signals.append(number)
        if number == signal.SIGKILL and not self.held:
            self.end()

    def end(self) -> None:
        """End, at last."""
        if self._alive >= 0:
            os.close(self._alive)
            self._alive = -1

    def answer(self, answer: Callable[[int], object]) -> Job:
        """Take a job and answer it by its number; return it."""
        job = self.pipe.recv()
        self.pipe.send(answer(job.number))
        return job

    def close(self) -> None:
        self.end()
        until(lambda: self.closed, "its end is seen")
        if not self.worker._released:
            self.worker.release()
        self.pipe.close()
        os.close(self._sentinel)

    def _close(self) -> None:
        self.closed += 1


@pytest.fixture
def made_up(monkeypatch):
    """Make processes; what the worker that is asked for goes by is short."""
    for name in ("TERMINATE", "ABORT", "EXIT"):
        monkeypatch.setattr(supervisor, f"{name}_PATIENCE", 0.01)

    def make(*arguments: float, held: bool = False) -> MadeUpProcess:
        if held:
            monkeypatch.setattr(supervisor, "KILL_PATIENCE", 0.2)
        made = MadeUpProcess(*arguments, held=held)
        monkeypatch.setattr("edge_agent.supervisor.os.kill", made.signal)
        return made

    return make


class TestHeldByTheKernel:
    """A process that SIGKILL does not end; nobody waits for it for ever."""

    def test_a_call_that_hangs_comes_back(self, made_up, caplog):
        with closing(made_up(0.05, held=True)) as process:
            died = Outcome(process.worker.call, Job(IMAGE, None), None).get()
            assert (type(died), str(died), died.hung) == (WorkerDied, LIMIT + HELD, True)
            assert process.signals == [signal.SIGABRT, signal.SIGKILL]
        assert f"board: process {PID} was killed, but the kernel holds it; it is given up." in caplog.text

    def test_a_call_in_hand_comes_back_when_it_is_killed(self, made_up):
        with closing(made_up(held=True)) as process:
            call = Outcome(process.worker.call, Job(IMAGE, None), None)
            process.pipe.recv()
            process.worker.kill("it was stopped")
            assert Outcome(process.worker.wait).get() == "it was stopped" + HELD
            died = call.get()
            assert (type(died), str(died), died.hung) == (WorkerDied, "it was stopped" + HELD, False)

    def test_a_load_comes_back_when_it_is_killed(self, made_up):
        with closing(made_up(held=True)) as process:
            process.worker.kill("it was stopped")
            died = Outcome(process.worker.load, 3600.0).get()
            assert (type(died), str(died)) == (WorkerDied, "it was stopped" + HELD)

    def test_a_stop_comes_back(self, made_up):
        with closing(made_up(held=True)) as process:
            Outcome(process.worker.stop).get()
            assert process.signals == [signal.SIGKILL]
            assert Outcome(process.worker.wait).get() == "it was stopped" + HELD

    def test_whatever_comes_next_finds_it_dead(self, made_up):
        with closing(made_up(held=True)) as process:
            process.worker.kill("it was stopped")
            Outcome(process.worker.wait).get()
            died = Outcome(process.worker.call, Job(IMAGE, None), None).get()
            assert died.unasked
            process.worker.kill("once more")
            assert process.signals == [signal.SIGKILL]

    def test_its_pipe_may_be_closed(self, made_up):
        """As that of one that has ended, and whose end nobody reports."""
        with closing(made_up(held=True)) as process:
            process.pipe.close()
            process.worker.kill("it was stopped")
            assert Outcome(process.worker.wait).get() == "it was stopped" + HELD

    def test_its_files_are_kept_until_it_ends(self, made_up, caplog):
        gc.collect()
        before = open_files()
        process = made_up(held=True)
        process.worker.kill("it was stopped")
        Outcome(process.worker.wait).get()
        there = open_files() - before
        assert there
        process.worker.release()
        assert there <= open_files()
        assert process.closed == 0
        process.end()
        process.pipe.close()
        os.close(process._sentinel)
        until(lambda: open_files() <= before, "all is closed")
        assert process.closed == 1
        assert f"board: process {PID}, which was given up, has ended." in caplog.text

    def test_one_that_ends_is_not_given_up(self, made_up, caplog):
        with closing(made_up()) as process:
            process.worker.kill("it was stopped")
            assert process.worker.wait() == "it was stopped"
        assert "given up" not in caplog.text

    @pytest.fixture
    def served(self, made_up):
        """A model whose worker is held: the process, what serves its calls, and what is told of its end."""
        package = SimpleNamespace(manifest=object())
        told: list[str] = []
        with closing(made_up(0.05, held=True)) as process:
            serves = Serving(
                "board",
                SimpleNamespace(end=lambda cause: None),
                (SimpleNamespace(package=package), process.worker),
                CallQueue("board", 16),
                None,
                Metrics(),
                lambda _, reason: told.append(reason),
                lambda *_: None,
            )
            serves.watch()
            yield process, serves, told

    def test_a_model_fails_by_it_as_by_any_death(self, served):
        process, serves, told = served
        failed = Outcome(serves.call, lambda _: Job(IMAGE, None), None, None, Turn()).get()
        ended = f"The model's worker process ended: {LIMIT}{HELD}."
        assert (type(failed), str(failed)) == (InferenceHung, ended)
        until(lambda: told == [ended], "the model fails")
        assert serves.queue["in_flight"] == 0, "the call has left its slot"
        until(lambda: process.worker._released, "its files are to be closed when it ends")

    @pytest.mark.parametrize("way", ["stop", "kill"])
    def test_a_model_ends_all_the_same(self, served, way):
        process, serves, told = served
        process.worker._call_timeout = 60.0
        call = Outcome(serves.call, lambda _: Job(IMAGE, None), None, None, Turn())
        process.pipe.recv()
        act = {"stop": (serves.stop, 0.01, lambda: InferenceFailed("no")), "kill": (serves.kill, "the agent ends")}[way]
        Outcome(*act).get()
        assert str(call.get()).endswith(f"{HELD}.")
        assert told == []


class TestAnswers:
    """An answer is handed to the caller of its job, and to nobody else."""

    def test_each_job_has_a_number_of_its_own(self, made_up):
        with closing(made_up()) as process:
            for number in (1, 2, 3):
                call = Outcome(process.worker.call, Job(IMAGE, None), None)
                assert process.answer(lambda number: Answer(number, VERDICT, 0)).number == number
                assert call.get() == (Answer(number, VERDICT, 0), None)

    @pytest.mark.parametrize(
        "left",
        [Answer(1, VERDICT, 0), Failure(1, InferenceFailed, "no"), Broken(1, "no"), Progress("Built.")],
        ids=lambda one: type(one).__name__,
    )
    def test_one_that_was_left_reaches_nobody(self, made_up, monkeypatch, left):
        def fail(_: float) -> bool:
            raise MemoryError

        with closing(made_up()) as process:
            with monkeypatch.context() as patch:
                patch.setattr(process.worker._slots[0], "answers", fail)
                with pytest.raises(MemoryError):
                    process.worker.call(Job(IMAGE, None), None)
            process.pipe.send(left)
            died = Outcome(process.worker.call, Job(IMAGE, None), None).get()
            assert (type(died), str(died)) == (WorkerDied, "it answered another job than the last that it was given")
            assert process.signals == [signal.SIGKILL]
            assert [process.pipe.recv().number for _ in range(2)] == [1, 2]

    @pytest.mark.parametrize("seconds", [1e7, 1e12, float("inf")])
    def test_one_is_waited_for_for_however_long(self, made_up, seconds):
        with closing(made_up(seconds)) as process:
            call = Outcome(process.worker.call, Job(IMAGE, None), None)
            process.answer(lambda number: Answer(number, VERDICT, 0))
            assert call.get() == (Answer(1, VERDICT, 0), None)
