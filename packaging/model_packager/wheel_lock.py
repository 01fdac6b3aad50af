"""The lock of a component's wheels: a requirements file with digests, of which `install.sh` lets pip install nothing else."""

from collections.abc import Iterable, Mapping, Sequence

from model_packager.errors import PackagingRefused
from model_packager.wheels import MACHINES, Kind, Wheel

FILE = "wheels.lock"
HEAD = "# Made by `edge-agent component build`. What pip installs has one of these digests, or is refused.\n"


def write(own: Wheel, extras: Sequence[str], fetched: Mapping[Kind, Sequence[Wheel]]) -> str:
    """Return the lock of our own wheel with some extras, and of what was fetched for each kind of device.

    A package that not every kind needs in that version has the condition for the others.

    Raises:
        PackagingRefused: two kinds were given different files of one name.

    """
    kinds: dict[tuple[str, str], list[Kind]] = {}
    digests: dict[tuple[str, str], dict[str, str]] = {}
    for kind, wheels in fetched.items():
        for wheel in wheels:
            key = wheel.name, wheel.version
            kinds.setdefault(key, []).append(kind)
            before = digests.setdefault(key, {}).setdefault(wheel.path.name, wheel.sha256)
            if before != wheel.sha256:
                raise PackagingRefused(
                    f"The index has two different files {wheel.path.name}; build once more, or for one Python."
                )
    lines = [_line(f"{own.name}[{','.join(extras)}]=={own.version}", "", [own.sha256])]
    for name, version in sorted(kinds):
        condition = "" if len(kinds[name, version]) == len(fetched) else _condition(kinds[name, version])
        lines.append(_line(f"{name}=={version}", condition, digests[name, version].values()))
    return HEAD + "".join(lines)


def _condition(kinds: Sequence[Kind]) -> str:
    """Return the condition that holds on these kinds of devices only."""
    pythons: dict[str, list[str]] = {}
    for kind in kinds:
        pythons.setdefault(kind.platform, []).append(f'python_version == "{kind.python}"')
    return " or ".join(
        f'platform_machine == "{MACHINES[platform]}" and ({" or ".join(wanted)})'
        for platform, wanted in pythons.items()
    )


def _line(requirement: str, condition: str, digests: Iterable[str]) -> str:
    hashes = "".join(f" \\\n    --hash=sha256:{one}" for one in sorted(digests))
    return f"{requirement}{' ; ' if condition else ''}{condition}{hashes}\n"
