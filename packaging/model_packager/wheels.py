"""The wheels that a kind of device needs, by the checkout's own pins: which they are, and fetching them with pip.

pip evaluates the conditions of requirements for the Python that it runs in, whatever `--python-version` and `--platform`
say, so what is needed is worked out here, and pip fetches exactly that.
"""

import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from model_packager.errors import PackagingRefused

# Greengrass's name of a processor -> the one that Python and wheels use.
MACHINES = {"amd64": "x86_64", "aarch64": "aarch64"}
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
# The newest glibc that wheels may ask for: 2.28, of 2018, is older than that of any system with one of these Pythons.
GLIBC = range(28, 4, -1)
OWN = "vision-edge-agent"
PINS = "constraints.txt"
# What zips can say at the earliest, in seconds: what is built is the same bytes whenever it is.
EPOCH = "315532800"

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Kind:
    """A kind of device: its processor, `amd64` or `aarch64`, and its Python, as in "3.11"."""

    platform: str
    python: str

    def __str__(self) -> str:
        return f"Python {self.python} on {self.platform}"

    def markers(self, extra: str = "") -> dict[str, str]:
        """Return what the conditions of requirements are evaluated with.

        The Python counts as the first of its minor version, since what is needed below some patch is harmless above it.
        """
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.0",
            "os_name": "posix",
            "platform_machine": MACHINES[self.platform],
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"{self.python}.0",
            "python_version": self.python,
            "sys_platform": "linux",
            "extra": extra,
        }

    def needs(self, requirement: Requirement, extra: str = "") -> bool:
        """Return whether such a device needs what is required, with an extra of whoever requires it."""
        return requirement.marker is None or requirement.marker.evaluate(self.markers(extra))


@dataclass(frozen=True)
class Wheel:
    """A wheel that was fetched or built."""

    path: Path

    @property
    def name(self) -> str:
        """The distribution's name, normalised."""
        return parse_wheel_filename(self.path.name)[0]

    @property
    def version(self) -> str:
        """The distribution's version."""
        return str(parse_wheel_filename(self.path.name)[1])

    @property
    def sha256(self) -> str:
        """The digest of the file, in hexadecimal."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def requires(self) -> list[Requirement]:
        """Return what its metadata says that it requires."""
        with zipfile.ZipFile(self.path) as archive:
            inside = next(one for one in archive.namelist() if one.endswith(".dist-info/METADATA"))
            metadata = Parser().parsestr(archive.read(inside).decode(errors="replace"), headersonly=True)
        return [Requirement(one) for one in metadata.get_all("Requires-Dist", [])]


def read_pins(path: Path) -> list[Requirement]:
    """Return the pins of a constraints file, a `name==version` on each line, with a condition or without.

    Raises:
        PackagingRefused: it is not there, or has something else in it.

    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise PackagingRefused(f"{path}, which has the versions of all packages, cannot be read; restore it.") from None
    pins = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            pin = Requirement(line)
        except InvalidRequirement:
            pin = None
        if pin is None or [one.operator for one in pin.specifier] != ["=="]:
            raise PackagingRefused(f"Line {number} of {path} is no `name==version`; restore the file.")
        pins.append(pin)
    return pins


def versions(pins: Iterable[Requirement], kind: Kind) -> dict[str, str]:
    """Return the version of each package, by normalised name, for a kind of device."""
    found: dict[str, str] = {}
    for pin in pins:
        [specifier] = pin.specifier
        if kind.needs(pin):
            found[canonicalize_name(pin.name)] = specifier.version
    return found


def build_own(checkout: Path, into: Path) -> Wheel:
    """Build the checkout's own wheel with its build backend into an empty folder; the same files give the same bytes.

    Raises:
        PackagingRefused: pip or the backend cannot.

    """
    pins = str(checkout / PINS)
    # The older pip takes what builds the wheel by the first of these, the newer one by the second.
    environment = {"SOURCE_DATE_EPOCH": EPOCH, "PIP_CONSTRAINT": pins, "PIP_BUILD_CONSTRAINT": pins}
    _pip("wheel", "--no-deps", "--wheel-dir", str(into), str(checkout), wrong="build our own wheel", **environment)
    (path,) = into.glob("*.whl")
    return Wheel(path)


def fetch(
    own: Wheel, extras: Sequence[str], pins: Iterable[Requirement], kind: Kind, into: Path, tell: Tell
) -> list[Wheel]:
    """Fetch into a folder all that our own wheel with some extras needs on a kind of device; return all but itself.

    Raises:
        PackagingRefused: a package has no pin, or one that does not fit what requires it, or no wheel for the device.

    """
    pinned = versions(pins, kind)
    fetched: dict[str, Wheel] = {own.name: own}
    seen: set[tuple[str, str]] = set()
    queue = [(own.name, extra) for extra in ("", *extras)]
    while queue:
        missing: dict[str, str] = {}
        asked = [one for one in dict.fromkeys(queue) if one not in seen]
        seen.update(asked)
        queue = []
        for name, extra in asked:
            for requirement in fetched[name].requires():
                # What no extra asks for is asked for without one.
                if not kind.needs(requirement, extra) or (extra and kind.needs(requirement)):
                    continue
                needed = canonicalize_name(requirement.name)
                version = _pin(requirement, pinned, fetched[name], kind)
                if needed not in fetched:
                    missing[needed] = version
                queue += [(needed, one) for one in ("", *sorted(requirement.extras))]
        if missing:
            fetched |= _download(missing, kind, into, tell)
    return [wheel for name, wheel in sorted(fetched.items()) if name != own.name]


def _pin(requirement: Requirement, pinned: Mapping[str, str], by: Wheel, kind: Kind) -> str:
    version = pinned.get(canonicalize_name(requirement.name))
    if version is None:
        raise PackagingRefused(
            f"{PINS} has no version of {requirement.name} for {kind}, which {by.name} needs; renew the file with `make lock`."
        )
    if not requirement.specifier.contains(version, prereleases=True):
        raise PackagingRefused(
            f"{PINS} has {requirement.name} {version} for {kind}, and {by.name} needs {requirement.specifier}; renew the file "
            "with `make lock`."
        )
    return version


def _download(missing: Mapping[str, str], kind: Kind, into: Path, tell: Tell) -> dict[str, Wheel]:
    tell(f"{kind}: fetching {', '.join(f'{name} {version}' for name, version in sorted(missing.items()))}")
    machine = MACHINES[kind.platform]
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in GLIBC]
    old = [f"manylinux{year}_{machine}" for year in ("2014", "2010", "1")]
    before = set(into.iterdir())
    _pip(
        *("download", "--no-deps", "--only-binary", ":all:", "--implementation", "cp", "--python-version", kind.python),
        *(part for platform in (*platforms, *old) for part in ("--platform", platform)),
        *("--dest", str(into), *(f"{name}=={version}" for name, version in sorted(missing.items()))),
        wrong=f"fetch the wheels for {kind}",
    )
    wheels = [Wheel(path) for path in sorted(set(into.iterdir()) - before)]
    return {wheel.name: wheel for wheel in wheels}


def _pip(command: str, *arguments: str, wrong: str, **environment: str) -> None:
    """Run pip, with the person's own settings for it, such as where their index is."""
    done = subprocess.run(  # noqa: S603  (no shell, and our own arguments)
        [sys.executable, "-m", "pip", command, "--quiet", "--disable-pip-version-check", *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode == 0:
        return
    if "No module named pip" in done.stderr:
        raise PackagingRefused(f"{sys.executable} has no pip; install it with `{sys.executable} -m ensurepip`.")
    errors = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
    why = errors[-1] if errors else (done.stderr.strip().splitlines() or ["it does not say why"])[-1]
    raise PackagingRefused(f"pip cannot {wrong}: {why}.")
