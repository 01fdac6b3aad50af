"""What counts of one look after the other: what is new, what is gone, and what a look has seen in the middle of a change."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_agent import packages
from edge_agent.catalog import Catalog
from edge_agent.config import Settings
from edge_agent.metrics import Metrics
from edge_agent.models import Models
from edge_agent.packages import Found, Rules
from edge_agent.registry import Registry
from support import packages as made

PART = "part"


@pytest.fixture
def models(tmp_path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def midway(monkeypatch) -> Callable[[Callable[[], object]], None]:
    """Let something happen in the middle of the next look: the part's folder was listed, and nothing in it looked at yet."""
    search, waiting = packages.search, []

    def interrupted(folder: Path, *args, **kwargs) -> Iterator[Path]:
        while waiting and folder.parent.name == PART:
            waiting.pop()()
        yield from search(folder, *args, **kwargs)

    monkeypatch.setattr(packages, "search", interrupted)  # which calls itself for each folder, by this name
    return waiting.append


def put(root: Path, version: int) -> Path:
    """Write a package, whole at once; return the folder."""
    return made.write(root / PART / f"{version}.0.0" / "abc", made.manifest(), b"%d" % version)


def remove(root: Path, version: int) -> None:
    shutil.rmtree(root / PART / f"{version}.0.0")


def replace(root: Path, old: int, new: int) -> None:
    """Do what an update does: the new version is there before the old one goes."""
    put(root, new)
    remove(root, old)


def looks(catalog: Catalog, count: int = 1) -> list[str]:
    """Look so many times; return what was used of the part each time: the versions, one a source."""
    seen: list[list[Found]] = [catalog.look().get(PART, []) for _ in range(count)]
    return [" ".join(one.version.removesuffix(".0.0") for one in found) for found in seen]


def test_the_first_look_counts_at_once_and_later_ones_in_twos(models):
    put(models, 43)
    catalog = Catalog([models], Rules())
    assert looks(catalog) == ["43"]
    put(models, 45)
    assert looks(catalog, 3) == ["43", "45", "45"]


def test_a_version_that_is_taken_back(models):
    for version in (39, 43, 45):
        put(models, version)
    catalog = Catalog([models], Rules())
    assert looks(catalog) == ["45"]
    remove(models, 45)
    assert looks(catalog, 3) == ["45", "43", "43"]
    shutil.rmtree(models / PART)
    assert looks(catalog, 3) == ["43", "", ""]


# What a power failure leaves of a manifest whose keys are sorted, and another program's.
REMAINS = b'{"compilable_models": [], "dataset": {"image_height": 64, "ima'


def test_a_package_that_is_known_and_broken_is_refused_and_does_not_vanish(models):
    folder = put(models, 43)
    catalog = Catalog([models], Rules())
    assert looks(catalog) == ["43"]
    (folder / "manifest.json").write_bytes(REMAINS)
    assert looks(catalog, 3) == ["43", "43", "43"]
    (found,) = catalog.look()[PART]
    assert found.package is None
    assert "manifest.json" in found.refusal


def test_what_never_was_one_is_none(models):
    folder = models / PART / "1.0.0" / "abc"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_bytes(REMAINS)
    assert looks(Catalog([models], Rules()), 3) == ["", "", ""]


class TestLooksThatSeeHalfOfAnUpdate:
    """They miss the new version, which came after its folder was listed, and the old one, which went before its turn."""

    def test_do_not_bring_back_an_older_version(self, models, midway):
        put(models, 39)
        put(models, 43)
        catalog = Catalog([models], Rules())
        assert looks(catalog) == ["43"]
        midway(lambda: replace(models, 43, 45))
        assert looks(catalog, 4) == ["43", "43", "45", "45"]

    def test_nor_in_two_updates_one_after_the_other(self, models, midway):
        put(models, 39)
        put(models, 43)
        catalog = Catalog([models], Rules())
        seen = looks(catalog)
        midway(lambda: replace(models, 43, 45))
        seen += looks(catalog, 2)
        midway(lambda: replace(models, 45, 46))
        assert [*seen, *looks(catalog, 4)] == ["43", "43", "43", "43", "43", "46", "46"]

    def test_do_not_take_away_the_only_version(self, models, midway):
        put(models, 43)
        catalog = Catalog([models], Rules())
        assert looks(catalog) == ["43"]
        midway(lambda: replace(models, 43, 45))
        assert looks(catalog, 4) == ["43", "43", "45", "45"]

    def test_do_not_pass_a_component_to_another_source(self, models, midway):
        """It had the component first, and keeps it."""
        put(models, 43)
        put(models.parent / "second", 7)
        catalog = Catalog([models, models.parent / "second"], Rules())
        assert looks(catalog) == ["43 7"]
        midway(lambda: replace(models, 43, 45))
        assert looks(catalog, 4) == ["43 7", "43 7", "45 7", "45 7"]

    def test_or_to_none_when_it_moves_to_another_source(self, models, midway):
        put(models, 43)
        catalog = Catalog([models.parent / "second", models], Rules())
        assert looks(catalog) == ["43"]

        def move() -> None:
            put(models.parent / "second", 45)
            remove(models, 43)

        midway(move)
        assert looks(catalog, 4) == ["43", "43", "45", "45"]

    def test_cost_no_registered_component_its_model(self, models, monkeypatch):
        """The entry was read before it was replaced, and its package was gone before it was looked for."""
        old, new = put(models.parent / "packages", 43), put(models.parent / "packages", 45)
        entries = models.parent / "registry"
        registry = Registry(entries, "", (models.parent / "packages",), (), models.parent / "unpacked")
        registry.make()
        register(entries, old)
        catalog = Catalog([models], Rules(), registry)
        assert looks(catalog) == ["43"]
        find, waiting = registry._places.find, [new]

        def updated(entry):
            if waiting:
                register(entries, waiting.pop())
                remove(models.parent / "packages", 43)
            return find(entry)

        monkeypatch.setattr(registry._places, "find", updated)
        assert looks(catalog, 4) == ["43", "43", "45", "45"]

    def test_change_nothing_of_what_is_deployed(self, models, midway):
        put(models, 39)
        put(models, 43)
        deployed = Models(Settings(models=(models,), restore=False), None, None, Metrics())
        deployed.scan()
        midway(lambda: replace(models, 43, 45))
        versions = []
        for _ in range(4):
            deployed.scan()
            versions.append(deployed.get(PART).found.version)
        assert versions == ["43.0.0", "43.0.0", "45.0.0", "45.0.0"]


def register(entries: Path, folder: Path) -> None:
    entry = {"component": PART, "version": folder.parent.name, "path": str(folder), "autostart": "false"}
    beside = entries / ".new"
    beside.write_text(json.dumps(entry))
    beside.chmod(0o644)
    beside.rename(entries / f"{PART}.json")


def test_the_old_version_stays_until_a_slow_copy_of_the_new_one_is_whole(models):
    put(models, 39)
    put(models, 43)
    catalog = Catalog([models], Rules())
    looks(catalog)
    remove(models, 43)
    weights = put(models, 45) / "mochi" / "model.onnx"
    seen = []
    for _ in range(5):
        with weights.open("ab") as file:
            file.write(b"more")
        seen += looks(catalog)
    assert [*seen, *looks(catalog)] == ["43"] * 5 + ["45"]


def test_an_older_version_that_changes_all_the_time_does_not_stop_one_from_being_taken_back(models):
    for version in (12, 43, 45):
        put(models, version)
    catalog = Catalog([models], Rules())
    looks(catalog)
    remove(models, 45)
    seen = []
    for count in range(3):
        os.utime(models / PART / "12.0.0" / "abc" / "manifest.json", (count, count))
        seen += looks(catalog)
    assert seen == ["45", "43", "43"]


def test_a_package_that_is_registered_where_it_lies_is_the_registrys_at_once(models):
    """It has changed its source, and is not told to have been there first."""
    folder, entries = put(models, 43), models.parent / "registry"
    registry = Registry(entries, "", (models,), (), models.parent / "unpacked")
    registry.make()
    catalog = Catalog([models], Rules(), registry)
    assert [one.called for one in catalog.look()[PART]] == [None]
    register(entries, folder)
    assert [one.called for one in catalog.look()[PART]] == [(PART, "43.0.0")]
    (entries / f"{PART}.json").unlink()
    assert [one.called for one in catalog.look()[PART]] == [None]


def test_of_several_versions_it_is_told_once_which_is_used(models, caplog):
    for version in (9, 10, 39):
        put(models, version)
    catalog = Catalog([models], Rules())
    looks(catalog, 3)
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith(PART)]
    assert len(told) == 2
    assert f"part: version 39.0.0 in {models}/part/39.0.0/abc is used, version 10.0.0 in " in told[0]
