"""What is deployed of a model, what follows it, and what operators are told of that."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from edge_agent import packages as package_files
from edge_agent.deployment import Deployment, files_are_there, is_it, sources_note
from edge_agent.lifecycle import State
from edge_agent.packages import Found, Rules
from support import packages

CHANGED = "The package on disk has changed since"


def as_it_is(found: Found) -> Found:
    return found


@pytest.fixture
def folder(tmp_path):
    tmp_path.chmod(0o755)
    return tmp_path / "board"


def version(folder: Path, score: float) -> Found:
    """Replace the package on disk; return what a look finds."""
    packages.write(folder, packages.manifest(), packages.constant(scores=[score, 1 - score]))
    return package_files.look(folder, folder.parent, Rules())


@pytest.fixture
def old_and_new(folder):
    return version(folder, 0.1), version(folder, 0.2)


def broken(folder: Path) -> Found:
    return Found("board", "2", folder, folder.parent, (), None, "It has no model.")


class TestBegin:
    def test_a_package_begins_stopped_and_a_broken_one_failed(self, folder, caplog):
        caplog.set_level(logging.INFO)
        good = version(folder, 0.1)
        made = Deployment(good)
        assert made.take(good) is State.STOPPED
        assert made.take(broken(folder)) is State.FAILED
        assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
            (logging.INFO, f"board: version {good.version} deployed, STOPPED, from {folder}"),
            (logging.WARNING, f"board: version 2 deployed, FAILED, from {folder}: It has no model."),
        ]

    def test_nothing_waits_when_another_has_been_taken(self, old_and_new):
        old, new = old_and_new
        for goes_on in (Deployment.take, Deployment.replace, Deployment.begin):
            made = Deployment(old)
            made.waiting = new
            goes_on(made, new)
            assert (made.found, made.waiting) == (new, None)

    def test_a_start_lets_what_could_not_take_over_try_again(self, old_and_new):
        old, new = old_and_new
        made = Deployment(old)
        made.cannot_take_over(new, "There is no memory for both.")
        made.replace(old)
        assert made.why_not(new) == "There is no memory for both."
        made.begin(old)
        assert made.why_not(new) == ""


class TestFollowing:
    def test_why_a_package_cannot_follow_is_of_that_very_one(self, old_and_new, folder):
        old, new = old_and_new
        made = Deployment(old)
        assert made.why_not(new) == ""
        made.cannot_take_over(new, "It hangs.")
        assert made.why_not(new) == "It hangs."
        assert made.why_not(version(folder, 0.3)) == ""
        assert made.why_not(broken(folder)) == "It has no model."

    def test_what_waits_is_known_by_its_place_and_its_signature(self, old_and_new, folder):
        old, new = old_and_new
        made = Deployment(old)
        assert not made.waits(new)
        made.waiting = new
        assert made.waits(package_files.look(folder, folder.parent, Rules()))
        assert not made.waits(old)
        assert not made.waits(replace(new, folder=folder.parent / "elsewhere"))


class TestTold:
    @pytest.mark.parametrize(
        ("state", "detail", "told"),
        [
            (State.STOPPED, "", f"{CHANGED}; it is loaded with the next start."),
            (State.STOPPING, "", f"{CHANGED}; it is loaded with the next start."),
            (State.RUNNING, "", f"{CHANGED}; version 2 is loaded beside the one before, and then takes over."),
            (State.FAILED, "It ended.", f"{CHANGED}; start the model to load it."),
            (State.FAILED, "It changed; start the model again.", f"{CHANGED}."),
        ],
    )
    def test_what_becomes_of_the_one_that_waits(self, old_and_new, state, detail, told):
        old, new = (replace(one, package=None) for one in old_and_new)
        made = Deployment(old)
        assert made.told(state, detail) == []
        made.waiting = replace(new, version="2")
        assert made.told(state, detail) == [told]

    def test_while_it_is_starting_nothing_is_told_of_it(self, old_and_new):
        made = Deployment(old_and_new[0])
        made.waiting = old_and_new[1]
        assert CHANGED not in " ".join(made.told(State.STARTING, ""))

    def test_why_it_cannot_take_over(self, old_and_new, folder):
        old, new = old_and_new
        made = Deployment(old)
        made.waiting = broken(folder)
        refused = f"{CHANGED}, and version 2 cannot take over: It has no model. The one before goes on."
        assert made.told(State.RUNNING, "")[0] == refused
        made.waiting = replace(new, version="3")
        made.cannot_take_over(new, "It hangs.")
        assert made.told(State.RUNNING, "")[0] == refused.replace("2", "3").replace("It has no model.", "It hangs.")

    def test_it_comes_before_what_else_is_to_be_known(self, old_and_new):
        old, new = old_and_new
        made = Deployment(old)
        made.waiting, made.notes = new, ("Another source had it first.",)
        waits, *others = made.told(State.RUNNING, "")
        assert waits.startswith(CHANGED)
        assert others == ["Another source had it first.", *old.package.notes]
        assert old.package.notes, "as the test needs it"
        assert made.told(State.FAILED, "")[1:] == ["Another source had it first."]


class TestLooks:
    """What a look found, compared with what is deployed."""

    def test_what_is_deployed_is_it(self, old_and_new, folder):
        old, new = old_and_new
        assert is_it(package_files.look(folder, folder.parent, Rules()), new, as_it_is)
        assert is_it(old, new, as_it_is), "a look that is older than the start, while the disk has what was started"
        assert not is_it(new, old, as_it_is)
        version(folder, 0.3)
        assert not is_it(old, new, as_it_is)

    def test_of_another_source_it_is_another(self, old_and_new):
        _, new = old_and_new
        assert not is_it(replace(new, called=("board", "1")), new, as_it_is)

    def test_what_is_gone_is_not_it(self, old_and_new, folder):
        old, new = old_and_new
        assert files_are_there(new)
        shutil.rmtree(folder)
        assert not is_it(old, new, as_it_is)
        assert not files_are_there(new)

    def test_where_its_folder_leads_elsewhere_by_now_it_is_another(self, old_and_new, folder):
        old, new = old_and_new
        assert not is_it(old, new, lambda found: replace(found, folder=folder.parent / "elsewhere"))

    def test_only_the_source_is_another(self, old_and_new, folder):
        old, new = old_and_new
        made = Deployment(new)
        registered = replace(new, called=("board", new.version))
        for other in (new, replace(old, called=registered.called), replace(registered, version="2"), broken(folder)):
            assert not made.rename(other)
            assert made.found is new
        assert made.rename(registered)
        assert made.found is registered

    def test_sources_that_are_not_used(self, old_and_new):
        other = replace(old_and_new[0], version="7", folder=Path("/els\newhere"))
        assert sources_note([other]) == (
            "Version 7 of this component in /els\\newhere is ignored: another source had it first.",
        )
