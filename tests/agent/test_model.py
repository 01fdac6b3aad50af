"""What a model makes of the looks at its folder, which may be older than what a start has read itself."""

import pytest

from edge_agent import packages as package_files
from edge_agent.config import Settings
from edge_agent.lifecycle import State
from edge_agent.metrics import Metrics
from edge_agent.model import Model
from edge_agent.packages import Found, Rules
from support import packages


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
    starting._waiting = old
    starting._wait_until_settled()
    starting._state = State.RUNNING
    assert starting.found.signature == new.signature
    assert not changed(starting)
