"""What a local deployment takes from an output folder: `recipes/` and `artifacts/`, with all versions of all components.

The nuclei's command lines are given the two as --recipe-dir and --artifacts-dir, and copy whatever is in them. So there
is one recipe for each version, since of two spellings of it nobody knows which one counts, and nothing but artifacts.
"""

import contextlib
import shutil
from pathlib import Path

from model_packager import files

RECIPE = "recipe.yaml"
RECIPES, ARTIFACTS = "recipes", "artifacts"
# What stands beside the artifacts of a version.
_RECORDS = {RECIPE, "recipe.json", "job.json"}


def prepare(made: Path, into: Path) -> None:
    """Copy what a local deployment takes of a version's files into the new folder `into`, flushed to the disk.

    Where there is no recipe, there is nothing to deploy.
    """
    into.mkdir()
    if (made / RECIPE).is_file():
        files.make_folder(into / ARTIFACTS)
        for path in sorted(made.iterdir()):
            if path.is_file() and path.name not in _RECORDS:
                files.copy_file(path, into / ARTIFACTS / path.name)
        files.flush(into / ARTIFACTS)
        files.copy_file(made / RECIPE, into / RECIPE)


def place(prepared: Path, output: Path, component: str, version: str) -> None:
    """Move what was prepared to its places below `output`, over what a job that died has left there."""
    recipe, artifacts = _places(output, component, version)
    if (prepared / RECIPE).is_file():
        for folder in (artifacts.parent.parent, artifacts.parent, recipe.parent):
            files.make_folder(folder)
        _remove(artifacts)
        # The recipe is what deploys a version: where there is one, the rest is there too.
        (prepared / ARTIFACTS).rename(artifacts)
        files.flush(artifacts.parent)
        (prepared / RECIPE).replace(recipe)
        files.flush(recipe.parent)
    prepared.rmdir()


def withdraw(output: Path, component: str, version: str) -> None:
    """Remove what is in the places of a version below `output`, and the folders that then are empty."""
    recipe, artifacts = _places(output, component, version)
    recipe.unlink(missing_ok=True)
    _remove(artifacts)
    for folder in (artifacts.parent, artifacts.parent.parent, recipe.parent):
        with contextlib.suppress(OSError):
            folder.rmdir()


def _places(output: Path, component: str, version: str) -> tuple[Path, Path]:
    return output / RECIPES / f"{component}-{version}.yaml", output / ARTIFACTS / component / version


def _remove(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)
