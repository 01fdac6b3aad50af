"""Folders and files that are to be on the disk, and readable for everybody, before anybody is told of them."""

import os
import shutil
from pathlib import Path


def make_folder(folder: Path) -> None:
    """Make a folder with mode 0755 where it is missing, whatever the umask."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        flush(folder.parent)


def copy(source: Path, target: Path) -> None:
    """Copy the content of a folder into an empty one, files 0644 and folders 0755, and flush it to the disk."""
    for entry in sorted(source.iterdir()):
        place = target / entry.name
        if entry.is_dir() and not entry.is_symlink():
            place.mkdir()
            copy(entry, place)
        else:
            copy_file(entry, place)
    target.chmod(0o755)
    flush(target)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, which gets mode 0644, and flush it to the disk."""
    shutil.copyfile(source, target)
    target.chmod(0o644)
    flush(target)


def flush(path: Path) -> None:
    """Wait until a file or the names in a folder are on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
