"""What a model makes of the looks at its folder, which may be older than what a start has read itself.

And what becomes of it where no thread can be started, where two want to start it, and where it is removed meanwhile.
"""

from collections.abc import Callable
from unittest.mock import create_autospec

import pytest

from edge_agent import packages as package_files
from edge_agent.accelerators import Gpu, Here
from edge_agent.config import ModelSettings, Settings
from edge_agent.deaths import WorkerDied
from edge_agent.errors import ModelNotFound, WrongState
from edge_agent.gpus import Gpus
from edge_agent.lifecycle import State
from edge_agent.memory import MemoryLedger
from edge_agent.metrics import Metrics
from edge_agent.model import Model
from edge_agent.packages import Found, Rules
from edge_agent.plan import GPU_BASE, Place
from edge_agent.starter import NotStarted
from edge_agent.supervisor import Worker
from edge_agent.threads import NoThread
from edge_agent.ways import Ways
from support import packages
from support.waiting import until


@pytest.fixture
def folder(tmp_path):
    tmp_path.chmod(0o755)
    return tmp_path / "board"


def version(folder, score: float) -> Found:
    """Replace the package on disk; return what a look finds."""
    packages.write(folder, packages.manifest(), packages.constant(scores=[score, 1 - score]))
    return package_files.look(folder, folder.parent, Rules())


def model(found: Found, state: State) -> Model:
    made = Model(found, Settings(scan_interval=0.05), None, None, Metrics())
    made._state = state
    return made


def changed(model: Model) -> bool:
    return "changed since" in model.describe()[1]


@pytest.mark.parametrize("state", [State.RUNNING, State.STOPPING])
def test_a_look_that_is_older_than_what_is_loaded_is_no_change(folder, state):
    old, new = version(folder, 0.1), version(folder, 0.2)
    loaded = model(new, state)
    assert loaded.deploy(old, ()) is False
    assert not changed(loaded)
    newest = version(folder, 0.3)
    for found in (new, old, newest):  # nor is it when the disk has moved on, whatever the look has settled on
        loaded.deploy(found, ())
        assert changed(loaded) is (found is not new), "a look that saw the loaded one has not seen a change yet"
    assert loaded.found is new


def test_while_starting_there_is_nothing_to_stop(folder):
    old = version(folder, 0.1)
    version(folder, 0.2)
    starting = model(old, State.STARTING)
    starting.deploy(package_files.look(folder, folder.parent, Rules()), ())
    assert not changed(starting)
    starting._state = State.RUNNING
    assert changed(starting), "then it is told"


def test_a_start_that_has_waited_for_the_disk_has_seen_the_last_of_it(folder):
    old, new = version(folder, 0.1), version(folder, 0.2)
    starting = model(new, State.STARTING)
    starting._deployment.waiting = old
    starting._wait_until_settled()
    starting._state = State.RUNNING
    assert starting.found.signature == new.signature
    assert not changed(starting)


def test_word_of_a_load_that_is_old_says_so(folder, monkeypatch):
    """A runtime may keep its process from telling more, and the clients poll for minutes."""
    now = [100.0]
    monkeypatch.setattr("edge_agent.model.time.monotonic", lambda: now[0])
    starting = model(version(folder, 0.1), State.STARTING)
    starting._tell("TensorRT prepares the model.")
    assert starting.describe()[1].startswith("TensorRT prepares the model. No `package`")
    now[0] += 42
    assert starting.describe()[1].startswith("TensorRT prepares the model. That was 42 s ago. ")
    starting._tell("TensorRT prepares the model: 43 s so far.")
    assert "ago" not in starting.describe()[1]
    now[0] += 42
    starting._move(State.RUNNING, "loaded")
    assert "ago" not in starting.describe()[1]


class Serving:
    """What serves the calls, as far as a swap asks for it."""

    def __init__(self, found: Found, took_over: Callable[["Serving", Found], None]) -> None:
        self.found = found
        self.took_over = took_over
        self.note = ""
        self.worker = None
        self.announced: list[Found | None] = []
        self.takes = True

    def swap(self, found: Found) -> None:
        if self.takes:
            self.found = found
            self.took_over(self, found)

    def announce(self, found: Found | None) -> None:
        self.announced.append(found)


@pytest.fixture
def swapping(folder):
    """A RUNNING model, the serving of it, its first version, and its second as two looks found it."""
    old, new = version(folder, 0.1), version(folder, 0.2)
    again = package_files.look(folder, folder.parent, Rules())
    made = Model(old, Settings(), None, MemoryLedger(0), Metrics())
    made._state = State.RUNNING
    made._serving = Serving(old, made._took_over)
    return made, made._serving, new, again


def swapped(model: Model) -> int:
    return model._metrics.snapshot()["workers"].get("board", {}).get("swapped", 0)


def test_what_has_taken_over_is_what_is_told(swapping):
    model, serving, new, again = swapping
    model._wait_with(again)  # a look has found it once more while it was loaded
    model._swap(serving, new)
    assert (model.found, swapped(model)) == (new, 1)
    assert not changed(model), "it is nothing that waits"
    assert serving.announced == [again, None]


def test_a_newer_one_that_waits_goes_on_waiting(swapping, folder):
    model, serving, new, _ = swapping
    newest = version(folder, 0.3)
    model._wait_with(newest)
    model._swap(serving, new)
    assert model.found is new
    assert changed(model)
    assert serving.announced == [newest]


def test_what_came_too_late_has_not_taken_over(swapping):
    model, serving, new, _ = swapping
    old, serving.takes = model.found, False
    model._swap(serving, new)
    assert (model.found, swapped(model)) == (old, 0)


@pytest.mark.parametrize("goes", ["on", "stops", "ends", "serves anew"])
def test_a_worker_that_ends_with_its_model_is_no_failure(swapping, monkeypatch, caplog, goes):
    model, serving, new, _ = swapping

    def ended(_: Found) -> None:
        if goes == "stops":
            model._state = State.STOPPING
        elif goes == "ends":
            model._closing = True
        elif goes == "serves anew":
            model._serving = Serving(new, model._took_over)
        raise WorkerDied("the model was stopped")

    monkeypatch.setattr(serving, "swap", ended)
    model._swap(serving, new)
    failed = "cannot take over: Its worker process ended while it was loading: the model was stopped."
    assert (failed in caplog.text) is (goes == "on")
    assert bool(model._deployment.why_not(new)) is (goes == "on")


def test_what_was_started_in_the_place_of_the_old_one_is_what_is_told(swapping):
    model, serving, new, again = swapping
    model._wait_with(again)
    model._deployment.cannot_take_over(new, "There is no memory for both.")
    assert "cannot take over: There is no memory for both." in model.describe()[1]
    model._took_over(serving, new)
    assert (model.found, swapped(model)) == (new, 1)
    assert not changed(model)
    model._took_over(Serving(new, model._took_over), new)
    assert swapped(model) == 1, "of another start nothing is known"


def test_what_operators_read_is_escaped(folder):
    content = packages.manifest()
    content["runtime_artifact"] = "\x1b[31mred\n2026 ERROR fake"
    packages.write(folder, content, packages.constant(scores=[0.1, 0.9]))
    found = package_files.look(folder, folder.parent, Rules())
    told = model(found, State.FAILED).describe()[1]
    assert "red\\n2026 ERROR fake'; it has control characters." in told
    assert told.isprintable()


def test_what_is_told_has_an_end(folder):
    told = model(version(folder, 0.1), State.FAILED)
    told._detail = "The model has these inputs: " + "x" * 1_000_000
    message = told.describe()[1]
    assert len(message) == 2003
    assert message.endswith("...")


def test_what_to_do_is_told_once(folder):
    changed = "The package on disk has changed since"
    for reason, at_first, later in (
        ("It ended.", "It ended. Start the model again.", f"It ended. {changed}; start the model to load it."),
        (
            "It changed; start the model again.",
            "It changed; start the model again.",
            f"It changed; start the model again. {changed}.",
        ),
    ):
        failed = model(version(folder, 0.1), State.RUNNING)
        failed._serving = Serving(failed.found, failed._took_over)
        failed._failed(failed._serving, reason)
        assert failed.describe() == (State.FAILED, at_first)
        failed.deploy(version(folder, 0.2), ())
        assert failed.describe() == (State.FAILED, later)


@pytest.mark.parametrize("state", State)
def test_only_what_runs_nothing_is_retired_and_never_started_again(folder, state):
    asked = model(version(folder, 0.1), state)
    asked._ledger = MemoryLedger(0, lambda: 1 << 40)
    assert asked.retire() is (state in (State.STOPPED, State.FAILED))
    with pytest.raises(ModelNotFound if asked.retire() else WrongState):
        asked.start()
    assert asked.state is state


def test_a_start_gives_up_where_the_model_is_removed_while_it_looks_at_the_disk(folder, monkeypatch):
    asked = model(version(folder, 0.1), State.STOPPED)
    asked._ledger, gpu = MemoryLedger(0, lambda: 1 << 40), MemoryLedger(0, lambda: 1 << 40)

    def removed_meanwhile(_: Found) -> Place:
        assert asked.retire()
        gpu.admit("board 0", 1 << 30)
        return Place(gpu, "board 0")

    monkeypatch.setattr(asked._planner, "reserve_gpu", removed_meanwhile)
    with pytest.raises(ModelNotFound, match="No model component 'board' is deployed"):
        asked.start()
    assert asked.state is State.STOPPED
    assert asked._ledger.room() == gpu.room() == 1 << 40


def test_a_start_lets_what_could_not_take_over_try_again(folder, monkeypatch):
    old, new = version(folder, 0.1), version(folder, 0.2)
    asked = model(old, State.STOPPED)
    asked._ledger = MemoryLedger(0, lambda: 1 << 40)
    monkeypatch.setattr(asked, "_load", lambda *_: None)
    asked._deployment.cannot_take_over(new, "There is no memory for both.")
    asked.start()
    assert asked._deployment.why_not(new) == ""


def test_how_many_calls_a_model_may_have_in_hand(folder):
    own = {"board": ModelSettings(slots=3, queue_limit=7)}
    asked = Model(version(folder, 0.1), Settings(model_settings=own), None, None, Metrics())
    asked._planner.begin()
    assert asked.most_calls == 10
    asked.adopt(Settings(model_settings=own | {"board": ModelSettings(slots=3, queue_limit=8)}))
    assert asked.most_calls == 11, "a queue changes at once"


class Free(Gpus):
    """One GPU that has so many bytes free."""

    def __init__(self, free: int) -> None:
        super().__init__(known=Here((Gpu(0, "L4", "sm_89"),), "550", "12.4", "10.3.0", no_gpu=""))
        self.bytes = free

    def free(self, index: int) -> int:
        return self.bytes


class TestGpuWithRoomForOne:
    @pytest.fixture
    def on_gpu(self, folder, monkeypatch):
        """A STOPPED model for a GPU with room for it once; its start loads nothing, and takes no memory."""
        found = version(folder, 0.1)
        settings = Settings(state_dir=folder.parent / "state", gpu_memory_reserve=0)
        needed = 4 * package_files.model_size(found.package) + GPU_BASE
        ledger, ways = MemoryLedger(0, lambda: 1 << 40), Ways(settings, Free(needed + (88 << 20)))
        made = Model(found, settings, None, ledger, Metrics(), ways=ways)
        monkeypatch.setattr(made, "_load", lambda *_: None)
        return made

    def ways(self, model: Model) -> list[str]:
        return [one.accelerator for one in model._planner.plan(model.found).ways]

    def test_a_second_start_that_is_refused_takes_no_gpu_from_the_first(self, on_gpu, monkeypatch):
        reserve, firsts = on_gpu._planner.reserve_gpu, [on_gpu.start]

        def overtaken(found: Found) -> Place:
            if firsts:  # the other one starts while this one still looks at the disk
                firsts.pop()()
                assert self.ways(on_gpu) == ["cuda", "cpu"]
            return reserve(found)

        monkeypatch.setattr(on_gpu._planner, "reserve_gpu", overtaken)
        with pytest.raises(WrongState):
            on_gpu.start()
        assert (on_gpu.state, self.ways(on_gpu)) == (State.STARTING, ["cuda", "cpu"])

    def test_a_start_without_the_room_is_on_the_cpu(self, on_gpu):
        on_gpu._ways._gpus.bytes = 0
        on_gpu.start()
        assert self.ways(on_gpu) == ["cpu"]

    def test_a_version_without_room_beside_the_other_is_on_the_cpu(self, on_gpu, folder):
        on_gpu.start()
        on_gpu._state, on_gpu._serving = State.RUNNING, (serving := Serving(on_gpu.found, on_gpu._took_over))
        on_gpu._swap(serving, new := version(folder, 0.2))
        assert (on_gpu.found, self.ways(on_gpu)) == (new, ["cpu"])

    def test_what_is_stopped_meanwhile_decides_nothing(self, on_gpu, folder):
        on_gpu.start()
        on_gpu._state, on_gpu._serving = State.RUNNING, Serving(on_gpu.found, on_gpu._took_over)
        serving = Serving(on_gpu.found, on_gpu._took_over)
        on_gpu._swap(serving, new := version(folder, 0.2))
        assert [one.accelerator for one in on_gpu._planner.plan(new).ways] == ["cuda", "cpu"]


class TestNoThread:
    """As where a limit of tasks, which counts threads, is reached: nothing may wait for what never comes."""

    @pytest.fixture
    def no_threads(self, monkeypatch):
        """Refuse threads until it is told to stop that."""
        with monkeypatch.context() as patch:

            def refuse(_: object) -> None:
                raise RuntimeError("can't start new thread")

            patch.setattr("threading.Thread.start", refuse)
            yield patch.undo

    def test_a_start_fails_and_what_was_promised_is_given_up(self, folder, no_threads, monkeypatch):
        asked = model(version(folder, 0.1), State.STOPPED)
        asked._ledger, gpu = MemoryLedger(0, lambda: 1 << 40), MemoryLedger(0, lambda: 1 << 40)
        gpu.admit("board 0", 1 << 30)
        monkeypatch.setattr(asked._planner, "reserve_gpu", lambda _: Place(gpu, "board 0"))
        asked.start()
        state, told = asked.describe()
        assert state is State.FAILED
        assert told == (
            "The model was not loaded: no further thread can be started; let the agent have more tasks (systemd's TasksMax, "
            "a container's pids limit), or stop another model. Then start the model again."
        )
        assert asked._ledger.room() == gpu.room() == 1 << 40
        no_threads()
        monkeypatch.setattr(asked, "_load", lambda *_: None)
        asked.start()
        assert asked.state is State.STARTING

    def test_a_swap_is_tried_again(self, swapping, no_threads, caplog):
        model, serving, new, _ = swapping
        model.deploy(new, ())
        assert "cannot take over yet: no further thread can be started" in caplog.text
        assert (model.found, changed(model)) == (serving.found, True)
        no_threads()
        model.deploy(new, ())
        until(lambda: model.found is new, "it takes over")

    def test_a_worker_that_nobody_looks_after_is_no_running_model(self, folder, monkeypatch):
        asked = model(version(folder, 0.1), State.STARTING)
        asked._ledger = MemoryLedger(0, lambda: 1 << 40)
        worker = create_autospec(Worker, instance=True)

        class Unattended:
            def __init__(self, *_: object) -> None:
                pass

            def watch(self) -> None:
                raise NoThread("no further thread can be started")

        monkeypatch.setattr("edge_agent.model.Serving", Unattended)
        monkeypatch.setattr(asked, "_start_worker", lambda _: worker)
        asked._load(None, True, Place())
        assert [name for name, *_ in worker.method_calls] == ["kill", "wait", "release"]
        assert asked.describe() == (
            State.FAILED,
            "The model was not loaded: no further thread can be started. Then start the model again.",
        )

    def test_a_swap_whose_worker_finds_no_thread_is_tried_again(self, swapping, monkeypatch, caplog):
        model, serving, new, _ = swapping
        swap, refusals = serving.swap, [NotStarted("no further thread can be started")]

        def refused(found: Found) -> None:
            if refusals:
                raise refusals.pop()
            swap(found)

        monkeypatch.setattr(serving, "swap", refused)
        model.deploy(new, ())
        until(lambda: "cannot take over yet: no further thread can be started" in caplog.text, "it was refused")
        until(lambda: not model._swapping, "it is over")
        assert (model.found, changed(model)) == (serving.found, True)
        model.deploy(new, ())
        until(lambda: model.found is new, "it takes over")
