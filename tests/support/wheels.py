"""Wheels of a few bytes, an index of them for pip, and a checkout that is built from it: no test needs a network."""

import hashlib
import os
import shutil
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from support.users import ROOT

# A build backend of the name of ours. The time that it gives the wheel's files is the one that it is told, or now.
BACKEND = """\
import os, pathlib, time, zipfile


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    moment = time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time())))[:6]
    source = pathlib.Path("wheel")
    (info,) = source.glob("*.dist-info")
    name = f"{info.name.removesuffix('.dist-info')}-py3-none-any.whl"
    files = sorted(path for path in source.rglob("*") if path.is_file())
    with zipfile.ZipFile(pathlib.Path(wheel_directory, name), "w") as archive:
        for path in files:
            entry = zipfile.ZipInfo(str(path.relative_to(source)), moment)
            archive.writestr(entry, path.read_bytes())
        record = "".join(f"{path.relative_to(source)},,\\n" for path in files)
        archive.writestr(zipfile.ZipInfo(f"{info.name}/RECORD", moment), f"{record}{info.name}/RECORD,,\\n")
    return name
"""


def write_wheel(folder: Path, name: str, version: str, files: Mapping[str, bytes], tag: str = "py3-none-any") -> Path:
    """Write a wheel; what makes it one is added where it is missing."""
    info = f"{name}-{version}.dist-info"
    content = {
        f"{info}/METADATA": metadata(name, version),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
        **files,
    }
    record = f"{info}/RECORD"
    content[record] = "".join(f"{path},,\n" for path in [*content, record]).encode()
    path = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, data in content.items():
            archive.writestr(zipfile.ZipInfo(inside), data)
    return path


def metadata(name: str, version: str, requires: Iterable[str] = (), extras: Iterable[str] = ()) -> bytes:
    """Return a wheel's METADATA."""
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Provides-Extra: {one}" for one in extras] + [f"Requires-Dist: {one}" for one in requires]
    return ("\n".join(lines) + "\n").encode()


def requiring(
    folder: Path, name: str, version: str, *requires: str, extras: Iterable[str] = (), tag: str = "py3-none-any"
) -> Path:
    """Write a wheel that is nothing but what it requires."""
    content = {f"{name}-{version}.dist-info/METADATA": metadata(name, version, requires, extras)}
    return write_wheel(folder, name, version, content, tag)


def write_lock(folder: Path, variant: str = "cpu") -> Path:
    """Write the lock of the wheels in a folder, of which vision_edge_agent's is one."""
    lines = []
    for path in sorted(folder.glob("*.whl")):
        name, version = path.name.split("-")[:2]
        extras = f"[{variant},greengrass,metrics]" if name == "vision_edge_agent" else ""
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines.append(f"{name.replace('_', '-')}{extras}=={version} --hash=sha256:{digest}\n")
    lock = folder / "wheels.lock"
    lock.write_text("".join(lines))
    return lock


def checkout(folder: Path, index: Path, requires: Iterable[str], pins: str, version: str = "1.3.0") -> Path:
    """Make a checkout that has our recipe and scripts, but a wheel of its own, and put what builds it into the index."""
    for part in ("recipes/agent", "proto"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("greengrass-build"))
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        f'[project]\nname = "vision-edge-agent"\nversion = "{version}"\n'
    )
    (folder / "constraints.txt").write_text(pins)
    info = folder / "wheel" / f"vision_edge_agent-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_bytes(
        metadata("vision-edge-agent", version, requires, ("cpu", "cuda", "greengrass", "metrics"))
    )
    (info / "WHEEL").write_text("Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    write_wheel(index, "hatchling", "1.0", {"hatchling/__init__.py": b"", "hatchling/build.py": BACKEND.encode()})
    return folder


def index_environment(index: Path) -> dict[str, str]:
    """Return the environment in which pip knows no other index."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "EDGE_AGENT_"))}
    return {**clean, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index)}
