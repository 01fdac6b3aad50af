"""The classes of a mask: what an answer calls them, in which colours, and what could not be told apart."""

import pytest

from edge_agent import manifest
from edge_agent.classes import PixelClass, clash
from edge_agent.errors import PackageRefused
from support import packages

WHITE = PixelClass("background", "#FFFFFF")


def parsed(*names: str, block: list[dict[str, str]] | None = None) -> manifest.Manifest:
    """Return what a manifest with these names says, and a block with these classes."""
    content = packages.manifest(segmentation=True, pixel_names=names)
    if block is not None:
        content["package"] = {
            "format": 1,
            "component": {"name": "b", "version": "1.0.0"},
            "files": {},
            "classes": block,
        }
    return manifest.parse(content)


def classes(*names: str, block: list[dict[str, str]] | None = None) -> tuple[PixelClass, ...]:
    return parsed(*names, block=block).classes


def coloured(*entries: str) -> list[dict[str, str]]:
    """Return the classes of a block from texts like "dent" and "dent #0A0B0C"."""
    return [dict(zip(("name", "hex-color"), entry.split(), strict=False)) for entry in entries]


def test_colours_of_the_block_win():
    found = classes("anything", "dent", "hole", block=coloured("background", "dent #0a0b0c", "hole"))
    assert found == (WHITE, PixelClass("dent", "#0A0B0C"), PixelClass("hole", "#14A3B3"))


def test_the_background_is_white_whatever_the_block_says():
    assert classes("normal", "dent", block=coloured("normal #0A0B0C", "dent #FF2EDC")) == (
        WHITE,
        PixelClass("dent", "#FF2EDC"),
    )
    assert classes("normal", "dent", block=coloured("normal #23A436", "dent")) == (WHITE, PixelClass("dent", "#23A436"))


@pytest.mark.parametrize("block", [None, [], coloured("background", "dent")])
def test_a_block_need_not_colour_anything(block):
    assert classes("background", "dent", block=block) == (WHITE, PixelClass("dent", "#23A436"))


@pytest.mark.parametrize(
    ("names", "twice"),
    [
        (("background", "dent", "dent"), "dent"),
        (("background", "a", "b", "c", "b"), "b"),
        (("normal", "background", "dent"), "background"),
        (("background", "background"), "background"),
    ],
)
def test_two_classes_of_one_name(names, twice):
    """An answer has one entry for each type, and clients pass over all that is called background."""
    with pytest.raises(PackageRefused, match=f"names has '{twice}' for two classes, .*: give each class its own name"):
        classes(*names)


def test_what_the_manifest_calls_class_0_is_nobodys_name():
    assert [one.name for one in classes("dent", "hole", "dent")] == ["background", "hole", "dent"]


@pytest.mark.parametrize(
    "block",
    [
        coloured("dent", "background #020202"),
        coloured("background", "hole #020202"),
        coloured("background"),
        coloured("background", "dent", "hole"),
    ],
)
def test_a_block_of_other_classes(block):
    with pytest.raises(
        PackageRefused, match=r"do not name the same classes; which colour is whose is never guessed\.$"
    ):
        classes("background", "dent", block=block)


@pytest.mark.parametrize(
    ("block", "one", "other", "colour"),
    [
        (coloured("background", "dent #ffffff", "hole"), "background", "dent", "#FFFFFF"),
        (coloured("background", "dent", "hole #FFFFFF"), "background", "hole", "#FFFFFF"),
        (coloured("background", "dent #14a3b3", "hole"), "dent", "hole", "#14A3B3"),
        (coloured("background", "dent #0A0B0C", "hole #0a0b0c"), "dent", "hole", "#0A0B0C"),
    ],
)
def test_two_classes_of_one_colour(block, one, other, colour):
    """The mask cannot tell them apart, but the answer can."""
    found = parsed("background", "dent", "hole", block=block)
    assert f"The classes '{one}' and '{other}' have one colour, {colour}, in the mask." in found.notes
    assert colour in {one.hex_color for one in found.classes[1:]}


def test_a_clash():
    assert clash([]) is None
    assert clash([WHITE, PixelClass("dent", "#000000")]) is None
    assert clash([WHITE, dent := PixelClass("dent", "#000000"), hole := PixelClass("hole", "#000000")]) == (dent, hole)
