"""Where a nucleus keeps recipes and artifacts: taken from a local deployment's folders, checked, unpacked, and removed."""

import base64
import hashlib
import shutil
import zipfile
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from support.greengrass_recipes import Artifact, Component, Refused

# A file's mode by who may read or execute it; the owner and its group always may read.
READ = {"OWNER": 0o440, "ALL": 0o444, "NONE": 0o440}
EXECUTE = {"OWNER": 0o550, "ALL": 0o555, "NONE": 0}


class Packages:
    """The folder `packages` of a Greengrass root. What is in its folders belongs to the components' user."""

    def __init__(self, folder: Path, own: Callable[[Path], Path]) -> None:
        """Make the folder; `own` gives a path to the components' user."""
        self._folder = folder
        self._own = own
        for name in ("artifacts", "artifacts-unarchived", "recipes"):
            (folder / name).mkdir(parents=True)

    def artifacts(self, component: Component) -> Path:
        return self._folder / "artifacts" / component.name / component.version

    def unarchived(self, component: Component) -> Path:
        return self._folder / "artifacts-unarchived" / component.name / component.version

    def recipe(self, name: str, version: str) -> Path:
        """Return a component's recipe; raise Refused where there is none."""
        for ending in ("yaml", "json"):
            path = self._folder / "recipes" / f"{name}-{version}.{ending}"
            if path.is_file():
                return path
        raise Refused(f"there is no recipe of {name} {version}")

    def take(self, output: Path) -> None:
        """Copy the folders `recipes` and `artifacts` of a local deployment, whatever is in them."""
        for recipe in (output / "recipes").iterdir():
            self._own(Path(shutil.copyfile(recipe, self._folder / "recipes" / recipe.name)))
        for path in sorted((output / "artifacts").rglob("*")):
            copy = self._folder / "artifacts" / path.relative_to(output / "artifacts")
            if path.is_dir():
                copy.mkdir(exist_ok=True)
                copy.chmod(0o755)
            else:
                if copy.exists():  # as when a version is deployed again: it is written over, and never away
                    copy.chmod(0o644)
                shutil.copyfile(path, copy)
                copy.chmod(0o644)
            self._own(copy)

    def prepare(self, component: Component, *, unpack: bool) -> None:
        """Check the artifacts of a component, set who may read them, and unpack zips; raise Refused."""
        for artifact in component.artifacts:
            path = self.artifacts(component) / artifact.name
            if not path.is_file():
                raise Refused(f"{component.name} has no artifact {artifact.name}")
            digest = base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode()
            if artifact.digest not in {None, digest}:
                raise Refused(f"the digest of {artifact.name} of {component.name} is another one")
            path.chmod(_mode(artifact))
            if artifact.unarchive and unpack:
                self._unpack(path, self.unarchived(component) / path.stem, _mode(artifact))

    def remove_all_but(self, deployed: Collection[Component]) -> None:
        """Remove what belongs to versions that are not deployed any more."""
        versions = {(one.name, one.version) for one in deployed}
        for folder in (self._folder / "artifacts", self._folder / "artifacts-unarchived"):
            for path in folder.glob("*/*"):
                if (path.parent.name, path.name) not in versions:
                    shutil.rmtree(path)
            for component in folder.iterdir():
                with suppress(OSError):
                    component.rmdir()
        for recipe in (self._folder / "recipes").iterdir():
            if recipe.stem not in {f"{name}-{version}" for name, version in versions}:
                recipe.unlink()

    def _unpack(self, archive: Path, folder: Path, mode: int) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(folder)
        for path in (folder.parent.parent, folder.parent, folder, *folder.rglob("*")):
            path.chmod((0o755 if path.is_dir() else 0) | mode)
            self._own(path)


def _mode(artifact: Artifact) -> int:
    return READ[artifact.read] | EXECUTE[artifact.execute]
