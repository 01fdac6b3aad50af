"""Every model by name: which of them the agent keeps a place for, and what is told where all may have too much in hand."""

import logging
import shutil
from pathlib import Path
from unittest.mock import create_autospec

import pytest

from edge_agent import metrics
from edge_agent.config import ModelSettings, Settings
from edge_agent.errors import CannotKeepUp, ModelNotFound
from edge_agent.lifecycle import State
from edge_agent.memory import MemoryLedger
from edge_agent.metrics import Metrics
from edge_agent.model import Model as Deployed
from edge_agent.models import Models
from edge_agent.packages import Found
from edge_agent.serving import Serving
from edge_agent.state import RunningModels
from support import packages


class Model(Deployed):
    """A model that is in a state, and loads nothing."""

    state = State.STOPPED

    def __init__(self, name: str, state: State, settings: Settings) -> None:
        found = Found(name, "1", Path(), Path(), (), None)
        super().__init__(found, settings, None, MemoryLedger(0), Metrics(), tuned=Tuned().of)
        self.state = state

    def start(self) -> None:
        self._planner.begin()
        self.state = State.STARTING


class Spawner:
    """Starts nothing."""

    def write_log(self, settings: object) -> None:
        pass


class Tuned:
    """What was measured best: 4 slots for the model `tuned`."""

    def of(self, name: str) -> dict[str, object]:
        return {"threads": 1, "slots": 4, "spinning": False} if name == "tuned" else {}


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Make Models of some settings, with models in such states; none is looked for on the disk."""

    def make(states: dict[str, State], **settings) -> Models:
        remembered = RunningModels(tmp_path / "running.json")
        these = Settings(**settings)
        one = Models(these, Spawner(), remembered, Metrics(), tuned=Tuned())
        one._models = {name: Model(name, state, these) for name, state in states.items()}
        found = {name: [] for name in states}
        monkeypatch.setattr(one._catalog, "look", lambda: found)
        monkeypatch.setattr(one, "_deploy", lambda *_: None)
        return one

    return make


def room(models: Models, name: str) -> int:
    """Return how many of a model's detections are admitted, and let go of them."""
    count = 0
    while True:
        try:
            models.admit(name)
        except CannotKeepUp:
            break
        count += 1
    for _ in range(count):
        models.release(name)
    return count


@pytest.mark.parametrize("state", State)
def test_a_place_is_kept_for_a_model_that_runs_or_is_about_to(made, state):
    models = made({"a": State.RUNNING, "b": state}, max_calls=8)
    assert room(models, "a") == (7 if state in (State.RUNNING, State.STARTING) else 8)


def test_it_is_kept_as_long_as_it_does(made):
    models = made({"a": State.RUNNING, "b": State.STOPPED}, max_calls=8)
    for state, most in ((State.STARTING, 7), (State.RUNNING, 7), (State.STOPPING, 8), (State.FAILED, 8)):
        models.get("b").state = state
        assert room(models, "a") == most
    models.get("b").state = State.RUNNING
    del models._models["b"]
    assert room(models, "a") == 8


def warnings(caplog) -> list[str]:
    found = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    caplog.clear()
    return found


FOUR = dict.fromkeys("abcd", State.STOPPED)


def test_too_much_for_the_agent_is_told_once_at_its_start(made, caplog):
    models = made(FOUR, autostart=tuple(FOUR))
    models.scan()
    assert warnings(caplog) == [], "nothing is started yet"
    models.start_wanted()
    [told] = warnings(caplog)
    assert told.startswith("The 4 models that are loaded may have 68 detections in hand ")
    for state in (State.RUNNING, State.RUNNING):
        for model in models.all():
            model.state = state
        models.scan()
    assert warnings(caplog) == []


def test_it_is_told_of_a_model_that_is_started_later(made, caplog):
    models = made(FOUR, autostart=("a", "b", "c"))
    models.start_wanted()
    models.scan()
    assert warnings(caplog) == []
    models.start("d")
    models.scan()
    assert len(warnings(caplog)) == 1
    models.scan()
    assert warnings(caplog) == []


def test_it_is_told_of_settings_that_change(made, caplog):
    models = made(FOUR, autostart=("a", "b"))
    models.start_wanted()
    models.adopt(Settings(queue_limit=31))
    assert warnings(caplog) == []
    models.adopt(Settings(queue_limit=32))
    [told] = warnings(caplog)
    assert "may have 66 detections in hand" in told
    models.adopt(Settings(queue_limit=32, log_level="debug"))
    assert warnings(caplog) == [], "that has been told"
    models.adopt(Settings(queue_limit=8))
    models.adopt(Settings(queue_limit=32))
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize(
    ("own", "slots", "most"),
    [
        ({}, 1, 17 + 17 + 20),
        ({}, 3, 19 + 19 + 20),
        ({"a": ModelSettings(queue_limit=5), "b": ModelSettings(slots=7)}, 3, 8 + 23 + 20),
        ({"tuned": ModelSettings(slots=1)}, 1, 17 + 17 + 17),
    ],
)
def test_each_model_is_reckoned_by_its_own_settings(made, caplog, own, slots, most):
    for places, count in ((most, 0), (most - 1, 1)):
        names = ("a", "b", "tuned")
        stopped = dict.fromkeys(names, State.STOPPED)
        made(stopped, autostart=names, slots=slots, model_settings=own, max_calls=places).start_wanted()
        assert len(warnings(caplog)) == count


def deployed(folder: Path, *names: str, counted: Metrics | None = None) -> Models:
    """Return Models with such models, whose packages are in `models` below a folder."""
    for name in names:
        packages.segmenter(folder / "models" / name)
    settings, remembered = Settings(models=(folder / "models",)), RunningModels(folder / "running.json")
    models = Models(settings, Spawner(), remembered, counted or Metrics())
    models.scan()
    return models


def test_what_is_removed_while_somebody_starts_it_is_not_started(tmp_path, monkeypatch):
    models = deployed(tmp_path, "board")
    board = models.get("board")
    look = board._on_disk

    def slow(found: Found) -> Found:
        latest = look(found)
        shutil.rmtree(tmp_path / "models" / "board")
        for _ in range(3):
            models.scan()
        return latest

    monkeypatch.setattr(board, "_on_disk", slow)
    with pytest.raises(ModelNotFound):
        models.start("board")
    assert (models.all(), board.state) == ([], State.STOPPED)


def test_what_is_started_while_it_is_removed_stays_until_it_has_failed(tmp_path):
    models = deployed(tmp_path, "board")
    board = models.get("board")
    shutil.rmtree(tmp_path / "models" / "board")
    board._state = State.STARTING
    for _ in range(3):
        models.scan()
    assert models.all() == [board]
    board._not_loaded("Its files are gone.")
    models.scan()
    assert models.all() == []


def test_the_counts_of_what_is_no_longer_deployed_are_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "MOST_GONE", 0)
    counted = Metrics()
    models = deployed(tmp_path, "board", "part", counted=counted)
    for name in ("board", "part"):
        counted.called("DetectAnomalies", name, "OK", "", 1)
    shutil.rmtree(tmp_path / "models" / "part")
    for _ in range(3):
        models.scan()
    assert {one["model"] for one in counted.snapshot()["calls"]} == {"board"}


def test_at_the_end_no_process_is_waited_for_before_all_are_killed(made):
    models = made({"board": State.RUNNING, "part": State.RUNNING})
    told: list[str] = []
    for model in models.all():
        model._serving = create_autospec(Serving, instance=True)
        model._serving.kill.side_effect = lambda _: told.append("killed")
        model._serving.wait.side_effect = lambda: told.append("waited")
    models.close()
    assert told == ["killed", "killed", "waited", "waited"]
