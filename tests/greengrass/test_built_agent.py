"""The agent's component as `edge-agent component build` makes it, with the real wheels: fetched by pip, then no network.

1. The same checkout gives the same bytes.
2. The linter finds nothing.
3. A device installs it offline, into an environment of its own, as its own user; it serves, and a client gets a verdict.
"""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from model_packager import linting
from support import greengrass_components as components
from support.agent import environment, place
from support.greengrass_components import AGENT, BOARDS
from support.greengrass_processes import offline
from support.greengrass_recipes import JAVA, LITE
from support.greengrass_site import Site, until
from support.users import I_AM_ROOT, MYSELF, ROOT, agent_user

CLIENT = "com.example.EdgeAgentFolder"
VERSION = "1.3.0"
# What a wheel is built from, and what a component is.
SOURCES = (
    "agent",
    "packaging",
    "proto",
    "recipes",
    "pyproject.toml",
    "constraints.txt",
    "README.md",
    "LICENSE",
    ".gitignore",
)
# Fetching 130 MB, on a slow line.
LONG = 540


@pytest.fixture(scope="module")
def built() -> Iterator[Path]:
    """A folder with three builds of one checkout: `first`, `second`, and `zipped` for both processors."""
    above = place()
    try:
        checkout = above / "checkout"
        checkout.mkdir()
        unwanted = shutil.ignore_patterns("__pycache__", "node_modules", "build", "greengrass-build")
        for name in SOURCES:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, checkout / name, ignore=unwanted)
            else:
                shutil.copyfile(source, checkout / name)
        _build(checkout, above / "first")
        _build(checkout, above / "second", umask=0o077)
        _build(checkout, above / "zipped", "--zip", "--platform", "amd64", "--platform", "aarch64")
        yield above
    finally:
        shutil.rmtree(above, ignore_errors=True)


def _build(checkout: Path, output: Path, *arguments: str, umask: int = 0o022) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edge_agent", "component", "build", "--output", str(output), *arguments],
        cwd=checkout,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
        umask=umask,
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout, done.stderr)


def tree(folder: Path) -> dict[str, str]:
    """Return the digest of each file in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# 1. The same bytes.


def test_the_same_bytes_twice(built):
    first = tree(built / "first")
    assert first == tree(built / "second")
    assert len([one for one in first if one.endswith(".whl")]) > 15


# 2. Recipes.


@pytest.mark.parametrize("name", ["first", "zipped"])
def test_the_linter_finds_nothing(built, name):
    text = (built / name / "recipes" / f"{AGENT}-{VERSION}.yaml").read_text()
    assert linting.lint(text) == []
    print(f"{name}: {len(text.encode())} bytes")


# 3. Devices.


@contextmanager
def site(kind: str, outputs: Path) -> Iterator[Site]:
    """Yield a device on which the agent's component is installed for real."""
    made = Site(kind, outputs)
    del made.device.instead_of_install[AGENT]
    try:
        yield made
    except BaseException:
        print(made.device.story())
        raise
    finally:
        made.close()


@pytest.mark.parametrize(("kind", "name"), [(LITE, "first"), (JAVA, "zipped")])
def test_a_verdict_through_the_client_component(built, outputs, kind, name):
    assert not I_AM_ROOT or offline(), "the install step must have no network"
    with site(kind, outputs) as one:
        images = one.device.base / "images"
        images.mkdir()
        Image.new("RGB", (64, 64), (230, 230, 230)).save(images / "bright.png")
        python = components.python_that_makes_venvs(one.device.base / "any-python")
        deployment = one.device.deploy(
            {AGENT: VERSION, BOARDS: "1.0.0", CLIENT: "1.0.0"},
            *(built / name, one.outputs / "customer" / "models", one.outputs / "customer" / "clients"),
            merge={
                AGENT: components.settings(one.device, Python=sys.executable),
                CLIENT: {"Socket": f"unix://{one.socket}", "Python": str(python), "Images": str(images)},
            },
        )
        deployment.succeeds()
        until(lambda: '"verdict": "anomalous"' in one.device.log(CLIENT), "the image is judged")
        [environment_of_agent] = (one.device.root / "work" / AGENT).glob("venv-*/current")
        process = one.device.process(AGENT)
        _is_its_own(environment_of_agent, process.pid)
        _is_what_is_locked(environment_of_agent, built / name / "artifacts" / AGENT / VERSION / "wheels.lock")


def _is_its_own(folder: Path, pid: int) -> None:
    """Check that the agent has nothing but its environment, and is its own user's."""
    proc = Path("/proc", str(pid))
    # Whatever it has mapped of Python's packages is of its environment.
    mapped = {
        line.split(maxsplit=5)[5] for line in (proc / "maps").read_text().splitlines() if "/site-packages/" in line
    }
    assert mapped
    assert all(one.startswith(f"{folder.resolve()}/") for one in mapped)
    assert proc.stat().st_uid == agent_user().uid
    assert agent_user() != MYSELF or not I_AM_ROOT or pytest.skip("no second user can run this Python")


def _is_what_is_locked(folder: Path, lock: Path) -> None:
    """Check that what is installed is what the lock names for this machine, beside what venv puts into each environment."""
    list_all = "import importlib.metadata as m; [print(one.name, one.version) for one in m.distributions()]"
    done = subprocess.run(
        [str(folder / "bin" / "python"), "-I", "-c", list_all], capture_output=True, text=True, check=True
    )
    installed = {canonicalize_name(name): version for name, version in map(str.split, done.stdout.splitlines())}
    lines = [one.rstrip(" \\") for one in lock.read_text().splitlines() if "==" in one and not one.startswith(" ")]
    locked = [one for one in map(Requirement, lines) if one.marker is None or one.marker.evaluate()]
    assert {f"{name}=={version}" for name, version in installed.items() if name not in {"pip", "setuptools"}} == {
        f"{one.name}{one.specifier}" for one in locked
    }
