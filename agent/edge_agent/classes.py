"""The classes of a mask, by index: names and colours by which whoever reads an answer tells them apart."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from edge_agent import palette
from edge_agent.block import Block
from edge_agent.errors import PackageRefused
from edge_agent.keys import Keys

BACKGROUND = "background"
# What no name may have: control characters, line ends, and those that turn the direction of the text around them.
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class PixelClass:
    """A class of the segmentation head and its colour in the mask, "#RRGGBB"."""

    name: str
    hex_color: str


def read_classes(pixel_classes: Keys, block: Block | None, notes: list[str]) -> tuple[PixelClass, ...]:
    """Return the classes of `pixel_level_classes`, with the colours that the package's block gives them.

    Class 0 is the automatic background, white, whatever manifest and block say of it. Two classes of one colour, which a
    mask cannot tell apart and an answer can, are noted.

    Raises:
        PackageRefused: there are none, or an answer could not tell two of them apart.

    """
    names = _names(pixel_classes)
    if (
        block
        and block.class_names
        and (len(block.class_names), block.class_names[1:]) != (len(names), tuple(names[1:]))
    ):
        raise PackageRefused(
            "package.classes and pixel_level_classes.names do not name the same classes; which colour is whose is never "
            "guessed."
        )
    try:
        colours = palette.colours(len(names))
    except ValueError as error:
        raise PackageRefused(f"pixel_level_classes.names has {error}.") from None
    own = block.hex_colors if block else {}
    rest = (PixelClass(name, own.get(index, colours[index])) for index, name in enumerate(names[1:], 1))
    classes = PixelClass(BACKGROUND, colours[0]), *rest
    if same := clash(classes):
        notes.append(
            f"The classes {same[0].name!r:.80} and {same[1].name!r:.80} have one colour, {same[0].hex_color}, in the mask."
        )
    return classes


def clash(classes: Sequence[PixelClass]) -> tuple[PixelClass, PixelClass] | None:
    """Return the first two classes of one colour, which no mask could tell apart."""
    return next(((one, other) for one, other in combinations(classes, 2) if one.hex_color == other.hex_color), None)


def _names(pixel_classes: Keys) -> list[str]:
    names: list[str] = pixel_classes.take("names", list) if pixel_classes.has("names") else []
    if not names or not all(isinstance(name, str) and name for name in names):
        raise PackageRefused("The segmentation head needs the names of its classes in pixel_level_classes.names.")
    if unsafe := next((name for name in names if UNSAFE.search(name)), None):
        raise PackageRefused(
            f"pixel_level_classes.names has {unsafe!r:.80}; a class is named without control characters."
        )
    # An answer has one entry for each type by its name, and clients pass over the one that is called background.
    known = {BACKGROUND}
    for name in names[1:]:
        if name in known:
            raise PackageRefused(
                f"pixel_level_classes.names has {name!r:.80} for two classes, where the first is always {BACKGROUND!r}; "
                "an answer names each type once: give each class its own name."
            )
        known.add(name)
    return names
