"""Where a command writes its pictures: decided and checked before the work begins, and never over an image it reads."""

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from edge_agent.errors import printable

# What is taken for an image in a folder, and what a picture can be written as.
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class Places:
    """Where the pictures of one image go; None for one that is not wanted."""

    mask: Path | None
    overlay: Path | None


def plan(images: Sequence[str], mask: Path | None, overlay: Path | None) -> list[Places]:
    """Return the places of each image's pictures, and make the folder they go into; raise click.BadParameter.

    A mask is of one image. Overlays go into a folder when there are several images, or when the name is no picture's.
    """
    if mask and len(images) != 1:
        raise click.BadParameter("is for one image", param_hint="--mask")
    overlays: list[Path] = []
    if overlay and _is_folder(overlay, len(images)):
        make_folder(overlay, "--overlay")
        overlays = [overlay / name for name in names(images)]
    elif overlay:
        overlays = [overlay]
    targets = [("--overlay", one) for one in overlays]
    _check([("--mask", mask), *targets] if mask else targets, images)
    return [Places(mask, one) for one in overlays] or [Places(mask, None)] * len(images)


def names(images: Sequence[str]) -> list[str]:
    """Return a file name for the overlay of each image, no two the same.

    It is `x.png` for the image q/x.bmp; where another has that name, too, it is `x.bmp.png` for both, else `q-x.bmp.png`,
    else, with the image's number in the list, `2-x.bmp.png`.
    """
    level = [0] * len(images)
    while True:
        made = [_name(Path(image), level[index], index + 1) for index, image in enumerate(images)]
        count = Counter(name.lower() for name in made)  # some file systems make no difference
        if len(count) == len(made):
            return made
        # Those of the last level differ by their numbers, so in each clash there is one that can still give way.
        level = [old + (count[name.lower()] > 1) for old, name in zip(level, made, strict=True)]


def make_folder(folder: Path, flag: str) -> None:
    """Make a folder unless it is there; raise click.BadParameter, naming the flag, when it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise _refused(flag, folder, "is no folder; name a folder") from None
    except OSError as error:
        raise _refused(flag, folder, f"cannot be made: {error.strerror}; name another folder") from None


def _name(image: Path, level: int, number: int) -> str:
    last = f"{number}-{image.name}"
    return f"{(image.stem, image.name, f'{image.absolute().parent.name}-{image.name}', last)[min(level, 3)]}.png"


def _is_folder(overlay: Path, images: int) -> bool:
    a_picture = overlay.suffix.lower() in SUFFIXES
    there = os.path.isdir(overlay)  # noqa: PTH112  (which raises for no path whatever)
    if images > 1 and a_picture and not there:
        raise click.BadParameter("several images need a folder", param_hint="--overlay")
    return there or not a_picture


def _check(targets: Iterable[tuple[str, Path]], images: Sequence[str]) -> None:
    """Raise click.BadParameter for a picture that cannot be written, or would be written over something else of ours."""
    inputs = {_identity(image) for image in images}
    written: set[object] = set()
    for flag, target in targets:
        if target.suffix.lower() not in SUFFIXES:
            raise _refused(flag, target, "has no picture's suffix; name it as in OUT.png")
        try:
            identity = _writable(target)
        except OSError as error:
            raise _refused(flag, target, f"cannot be written: {error.strerror}; name another") from None
        if identity in inputs:
            raise _refused(flag, target, "is one of the images, which are never overwritten; name another")
        if identity in written:
            raise _refused(flag, target, "would be written twice; name another")
        written.add(identity)


def _writable(target: Path) -> object:
    """Return what identifies a file that is to be written, there already or not; raise OSError when it cannot be."""
    try:
        info = target.stat()
    except FileNotFoundError:
        if not os.access(target.parent, os.F_OK):
            raise FileNotFoundError(errno.ENOENT, "its folder does not exist") from None
        if not os.access(target.parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "you may not write its folder") from None
        return os.path.realpath(target)
    if not stat.S_ISREG(info.st_mode):
        raise OSError(errno.EINVAL, "it is there and no file")
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, "you may not write it")
    return info.st_dev, info.st_ino


def _refused(flag: str, target: Path, why: str) -> click.BadParameter:
    return click.BadParameter(f"{printable(str(target))} {why}", param_hint=flag)


def _identity(image: str) -> object:
    try:
        info = Path(image).stat()
    except (OSError, ValueError):
        return None  # which judging will tell of
    return info.st_dev, info.st_ino
