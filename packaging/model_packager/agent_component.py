"""Building the agent's Greengrass component out of a checkout: recipe, scripts, proto, and all wheels with their digests.

The same checkout gives the same bytes. A component appears whole or not at all, and takes nobody's place.
"""

import re
import runpy
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from model_packager import agent_recipe, files, recipe, wheel_lock, wheels
from model_packager.errors import PackagingRefused
from model_packager.linting import LONGEST_LITE, Nucleus
from model_packager.wheels import MACHINES, Kind, Tell, Wheel

SOURCE = Path("recipes", "agent")
TEMPLATE, PROTO = "recipe.yaml", "proto_zip.py"
SCRIPTS = ("install.sh", "run.sh")
# What tells the nucleus that the agent runs, and what its metrics need, is in every component.
ALWAYS = ("greengrass", "metrics")
OLDEST = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Order:
    """What is to be built, and where: `output` gets `recipes` and `artifacts`.

    Args:
        output: the folder, which may have other components in it.
        kinds: the devices that the component is for.
        variant: the runtime, `cpu` or `cuda`.
        nucleus: the nuclei that the recipe has to be right for.
        bucket: name of the S3 bucket in the recipe.
        zipped: whether the wheels for a platform are one artifact.
        gdk: whether the recipe is called as `gdk component publish` looks for it.

    """

    output: Path
    kinds: tuple[Kind, ...]
    variant: str = "cpu"
    nucleus: Nucleus = "both"
    bucket: str = agent_recipe.BUCKET
    zipped: bool = False
    gdk: bool = False

    @property
    def extras(self) -> tuple[str, ...]:
        """The extras of our own wheel that the devices get."""
        return self.variant, *ALWAYS


@dataclass(frozen=True)
class Built:
    """A component that was built; sizes in bytes, `cloud_size` that of the recipe as a nucleus gets it from the cloud."""

    recipe: Path
    artifacts: Path
    wheels: int
    size: int
    recipe_size: int
    cloud_size: int

    @property
    def fits_lite(self) -> bool:
        """Whether nucleus lite can read the recipe that it gets from the cloud."""
        return self.cloud_size <= LONGEST_LITE


def find_checkout(*beginnings: Path) -> Path:
    """Return the checkout that one of these paths is in, the first one's before the others'.

    Raises:
        PackagingRefused: none is in one.

    """
    for beginning in beginnings:
        for folder in (beginning, *beginning.parents):
            if (folder / SOURCE / TEMPLATE).is_file() and _is_ours(folder / "pyproject.toml"):
                return folder
    raise PackagingRefused(
        "The component is built from a checkout of Edge Agent, and neither this folder nor the installed agent is in one; get the "
        "repository, and run the command in it."
    )


def build(order: Order, checkout: Path, tell: Tell) -> Built:
    """Build the component, and return where it is.

    Raises:
        PackagingRefused: the order, the checkout or the index do not allow it; nothing is left behind.

    """
    template = agent_recipe.read(checkout / SOURCE / TEMPLATE)
    name, version = template["ComponentName"], template["ComponentVersion"]
    place = order.output / "recipes" / (TEMPLATE if order.gdk else f"{name}-{version}.yaml")
    artifacts = order.output / "artifacts" / name / version
    _refuse_what_is_there(place, artifacts)
    with _workshop(order.output) as workshop:
        made = workshop / version
        made.mkdir()
        own = _own(checkout, workshop, version, tell)
        fetched = _fetched(own, order, checkout, workshop, tell)
        names = _lay_out(order, checkout, own, fetched, made)
        content = agent_recipe.fill(template, names, order.variant, order.bucket)
        text = recipe.as_yaml(content)
        agent_recipe.check(text, order.nucleus)
        (workshop / TEMPLATE).write_text(text, encoding="utf-8")
        _finish(made)
        _make(place.parent)
        _make(artifacts.parent)
        # The recipe comes last: until it is there, nobody takes the rest for a component.
        made.rename(artifacts)
        files.copy_file(workshop / TEMPLATE, place)
    return Built(
        place,
        artifacts,
        1 + len({wheel.path.name for one in fetched.values() for wheel in one}),
        sum(path.stat().st_size for path in artifacts.iterdir()),
        len(text.encode()),
        agent_recipe.size_in_the_cloud(content),
    )


def _is_ours(project: Path) -> bool:
    with suppress(OSError, UnicodeDecodeError):
        return bool(re.search(rf'(?m)^name = "{wheels.OWN}"$', project.read_text(encoding="utf-8")))
    return False


def _refuse_what_is_there(place: Path, artifacts: Path) -> None:
    """Refuse to overwrite anything; folders without a file in them, as gdk makes them, are no obstacle."""
    for path in (place, *(sorted(artifacts.iterdir())[:1] if artifacts.is_dir() else ())):
        if path.exists() or path.is_symlink():
            raise PackagingRefused(
                f"{path} is there already; name another folder in --output, or remove what is in this one."
            )


@contextmanager
def _workshop(output: Path) -> Iterator[Path]:
    """Yield a folder on the output's disk to build in, which is removed; of an output that was not there, nothing stays."""
    missing = _make(output)
    try:
        with tempfile.TemporaryDirectory(prefix=".build-", dir=output) as folder:
            yield Path(folder)
    except BaseException:
        for one in reversed(missing):
            with suppress(OSError):
                one.rmdir()
        raise


def _make(folder: Path) -> list[Path]:
    """Make a folder that everybody may read; return it and those above it that were not there, the outermost first."""
    missing = [one for one in (*reversed(folder.parents), folder) if not one.exists()]
    for one in missing:
        files.make_folder(one)
    return missing


def _own(checkout: Path, workshop: Path, version: str, tell: Tell) -> Wheel:
    """Build our own wheel, which must have the version of the recipe."""
    tell("building our own wheel")
    folder = workshop / "own"
    folder.mkdir()
    own = wheels.build_own(checkout, folder)
    if own.version != version:
        raise PackagingRefused(f"The recipe's version is {version} and the wheel's {own.version}; make them the same.")
    return own


def _fetched(own: Wheel, order: Order, checkout: Path, workshop: Path, tell: Tell) -> dict[Kind, list[Wheel]]:
    """Fetch what each kind of device needs besides our own wheel."""
    pins = wheels.read_pins(checkout / wheels.PINS)
    fetched = {}
    for kind in order.kinds:
        folder = workshop / f"{kind.platform}-{kind.python}"
        folder.mkdir()
        fetched[kind] = wheels.fetch(own, order.extras, pins, kind, folder, tell)
    return fetched


def _lay_out(
    order: Order, checkout: Path, own: Wheel, fetched: Mapping[Kind, Sequence[Wheel]], made: Path
) -> dict[str, list[str]]:
    """Put the artifacts into the new folder `made`; return the names of those that each platform needs."""
    for script in SCRIPTS:
        files.copy_file(checkout / SOURCE / script, made / script)
    proto = runpy.run_path(str(checkout / SOURCE / PROTO))["make"](made)
    (made / wheel_lock.FILE).write_text(wheel_lock.write(own, order.extras, fetched), encoding="utf-8")
    common = [*SCRIPTS, wheel_lock.FILE, proto.name]
    names = {}
    for platform in dict.fromkeys(kind.platform for kind in fetched):
        needed = {own.path.name: own.path}
        needed |= {
            one.path.name: one.path for kind, some in fetched.items() if kind.platform == platform for one in some
        }
        if order.zipped:
            archive = made / f"wheels-{MACHINES[platform]}.zip"
            _store(archive, needed)
            names[platform] = [*common, archive.name]
        else:
            for name, path in needed.items():
                files.copy_file(path, made / name)
            names[platform] = [*common, *sorted(needed)]
    return names


def _store(archive: Path, content: Mapping[str, Path]) -> None:
    """Write files into a zip whose bytes depend on nothing but their names and contents; wheels are compressed already."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as made:
        for name, path in sorted(content.items()):
            entry = zipfile.ZipInfo(name, OLDEST)
            entry.create_system = 3  # Unix, wherever it was made
            entry.external_attr = 0o100644 << 16
            made.writestr(entry, path.read_bytes())


def _finish(folder: Path) -> None:
    """Give what was made the modes that everybody may read with, whatever the umask is, and flush it to the disk."""
    for path in folder.iterdir():
        path.chmod(0o644)
        files.flush(path)
    folder.chmod(0o755)
    files.flush(folder)
