"""The agent component: its recipe, its scripts run as each nucleus runs them, and what they leave on the device.

1. The recipe has a key for each setting, and each key reaches the agent.
2. The proto's zip is the same bytes each time.
3. `install.sh` makes an environment whole or not at all, without a network, and removes none that is in use.
4. `run.sh` becomes the agent, with the settings of the configuration.
5. All of it for real: the agent of this checkout out of wheels, serving an unprivileged user's device.
"""

import functools
import importlib.metadata
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.parser import Parser
from pathlib import Path
from typing import Any

import grpc
import pytest
from packaging.requirements import Requirement
from packaging.tags import sys_tags

from edge_agent import readiness
from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent._proto.edge_agent_pb2_grpc import EdgeAgentStub
from edge_agent.config import MAY_BE_EMPTY, PREFIX, Settings
from model_packager import linting
from model_packager.request import AGENT_COMPONENT
from recipes import agent_readme
from recipes.agent_readme import FOLDER, OF_THE_SCRIPTS, RECIPE, key_of
from support import nucleus as nuclei
from support import packages
from support.agent import PLENTY, place
from support.users import I_AM_ROOT, MYSELF, OTHER, ROOT, agent_user
from support.waiting import until
from support.wheels import write_lock, write_wheel

TEXT = (FOLDER / "recipe.yaml").read_text()
VERSION = RECIPE["ComponentVersion"]
DEFAULTS: dict[str, str] = RECIPE["ComponentConfiguration"]["DefaultConfiguration"]
LIFECYCLE = RECIPE["Lifecycle"]["all"]
SETENV: dict[str, str] = LIFECYCLE["Setenv"]
PROTO_ZIP = "lookoutvision_edge_agent.zip"
SCRIPTS = ("install.sh", "run.sh")
# Settings that no key of the configuration is for, and why.
NOT_IN_THE_RECIPE = {
    "state_dir": "run.sh keeps the state in the component's work folder",
    "scan": "ScanArtifacts says whether, and run.sh knows the folder",
}
both_nuclei = pytest.mark.parametrize("kind", ["java", "lite"])


# 1. The recipe.


@pytest.mark.parametrize("nucleus", ["java", "lite", "both"])
def test_the_linter_finds_nothing(nucleus):
    assert linting.lint(TEXT, nucleus=nucleus) == []
    # The control: a pointer that leads nowhere cuts scripts short.
    broken = TEXT.replace("    Threads:", "    Thread:")
    assert {one.rule for one in linting.lint(broken, nucleus=nucleus)} == {"configuration-pointer"}


def test_what_it_is():
    assert RECIPE["ComponentName"] == AGENT_COMPONENT
    assert re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1] == VERSION
    # What the clients in the field ask for.
    assert (1, 3, 0) <= tuple(map(int, VERSION.split("."))) < (2, 0, 0)
    assert [one["Platform"] for one in RECIPE["Manifests"]] == [
        {"os": "linux", "architecture": architecture, "runtime": "*"} for architecture in ("amd64", "aarch64")
    ]


def test_artifacts():
    """Those of every device; the wheels and their lock are added when the component is built."""
    for manifest in RECIPE["Manifests"]:
        uris = [one["Uri"] for one in manifest["Artifacts"]]
        assert uris == [f"s3://BUCKET_NAME/{AGENT_COMPONENT}/{VERSION}/{name}" for name in (*SCRIPTS, PROTO_ZIP)]
        # Developers of clients look for the proto, whoever they are.
        assert manifest["Artifacts"][2] == {"Uri": uris[2], "Unarchive": "ZIP", "Permission": {"Read": "ALL"}}
    assert all((FOLDER / name).is_file() for name in SCRIPTS)


def test_every_key_reaches_the_agent():
    used = [pointer for value in SETENV.values() for pointer in re.findall(r"\{configuration:/(\w+)\}", value)]
    assert sorted(used) == sorted(DEFAULTS)
    for key, value in SETENV.items():
        setting = key.removeprefix(PREFIX).lower()
        if key.startswith(PREFIX):
            assert setting in Settings.model_fields
            assert value == f"{{configuration:/{key_of(setting)}}}"
        else:
            # Not of our own prefix, of which the agent would say that they are no settings.
            assert key.startswith("AGENT_")
            assert any(f"${{{key}:-" in (FOLDER / script).read_text() for script in SCRIPTS)


def test_every_setting_has_a_key():
    keys = {key_of(key) for key in Settings.model_fields if key not in NOT_IN_THE_RECIPE}
    assert {*DEFAULTS} == keys | {*OF_THE_SCRIPTS}
    assert {*NOT_IN_THE_RECIPE} <= {*Settings.model_fields}


def test_defaults_are_texts_and_those_of_the_agent():
    assert all(isinstance(value, str) for value in DEFAULTS.values())
    written = {key: value for key, value in DEFAULTS.items() if value}
    assert written == {
        "Python": "python3",
        "Variant": "cpu",
        "ScanArtifacts": "false",
        # Clients read it from here.
        "Socket": Settings.model_fields["socket"].default,
        # The one that means something else where it is empty.
        key_of(MAY_BE_EMPTY): Settings.model_fields[MAY_BE_EMPTY].default,
    }


def test_the_start_has_longer_than_the_agent_takes_to_tell():
    telling = sum(readiness.PAUSES) + (len(readiness.PAUSES) + 1) * readiness.NUCLEUS_PATIENCE
    assert telling + readiness.NOTIFY_PATIENCE + 60 < int(LIFECYCLE["startup"]["Timeout"])


def test_the_readme_has_every_key():
    text = agent_readme.README.read_text()
    assert agent_readme.render(text) == text, "run: python tests/recipes/agent_readme.py"


# 2. The proto's zip.


def make_zip(*arguments: object, umask: int = 0o022, cwd: str = "/") -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(FOLDER / "proto_zip.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        umask=umask,
        cwd=cwd,
    )


def test_the_zip_holds_the_proto(tmp_path):
    done = make_zip(tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path / PROTO_ZIP}\n", "")
    # As Greengrass does: into a folder of the archive's name.
    with zipfile.ZipFile(tmp_path / PROTO_ZIP) as archive:
        archive.extractall(tmp_path / "artifacts-unarchived" / Path(PROTO_ZIP).stem)
        assert [stat.filemode(one.external_attr >> 16) for one in archive.infolist()] == ["-rw-r--r--"]
    unpacked = tmp_path / "artifacts-unarchived" / "lookoutvision_edge_agent" / "edge-agent.proto"
    assert unpacked.read_bytes() == (ROOT / "proto" / "edge-agent.proto").read_bytes()


def test_the_zip_is_the_same_bytes(tmp_path):
    made = []
    for name, umask in (("a", 0o022), ("b", 0o077)):
        (tmp_path / name).mkdir()
        assert make_zip(".", umask=umask, cwd=str(tmp_path / name)).returncode == 0
        made.append((tmp_path / name / PROTO_ZIP).read_bytes())
    assert made[0] == made[1]
    # An older one is replaced.
    (tmp_path / "a" / PROTO_ZIP).write_bytes(b"x")
    assert make_zip(tmp_path / "a").returncode == 0
    assert (tmp_path / "a" / PROTO_ZIP).read_bytes() == made[0]


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["--help"]])
def test_the_zip_wants_one_folder(arguments):
    done = make_zip(*arguments)
    assert (done.returncode, done.stderr) == (2, "usage: python proto_zip.py FOLDER\n")


def test_the_zip_wants_a_folder_that_is_there(tmp_path):
    done = make_zip(tmp_path / "nowhere")
    assert done.returncode == 1
    assert done.stderr.endswith("No such file or directory\n")
    assert len(done.stderr.splitlines()) == 1


# A device.


@functools.cache
def offline() -> list[str]:
    """Return the command that takes a process the network, where we may."""
    alone = ["unshare", "--net", "--"]
    may = I_AM_ROOT and subprocess.run([*alone, "true"], capture_output=True, check=False).returncode == 0
    return alone if may else []


def as_component(script: str) -> list[str]:
    """Return a command that runs a script as a component is run: by the unprivileged user, and offline."""
    user = agent_user()
    ids = ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--clear-groups", "--"]
    return [*offline(), *(ids if user != MYSELF else []), "/bin/sh", "-c", script]


class Device:
    """A Greengrass root folder with the component in it, and what a nucleus does with the component's steps."""

    def __init__(self, root: Path, kind: str = "java", version: str = VERSION, **configuration: str) -> None:
        self.root = root
        self.kind = kind
        self.version = version
        self.configuration = {**DEFAULTS, "Python": sys.executable, **configuration}
        self.artifacts = root / "packages" / "artifacts" / AGENT_COMPONENT / version
        self.work = root / "work" / AGENT_COMPONENT
        self.home = self.work / f"venv-{version}"
        self.current = self.home / "current"

    def deploy(self, wheels: Path) -> "Device":
        """Put the artifacts into their place, and make an empty work folder."""
        self.artifacts.mkdir(parents=True)
        for path in (*wheels.iterdir(), *(FOLDER / script for script in SCRIPTS)):
            shutil.copyfile(path, self.artifacts / path.name)
        if any(wheels.glob("vision_edge_agent-*.whl")):
            write_lock(self.artifacts)
        if not self.work.exists():
            self.work.mkdir(parents=True)
            os.chown(self.work, agent_user().uid, agent_user().gid)
        return self

    def command(self, step: str) -> tuple[list[str], dict[str, str]]:
        """Return how the nucleus runs a step, with its variables filled in, and the environment."""
        slash = "/" if self.kind == "lite" else ""
        variables = {
            "artifacts:path": f"{self.artifacts}{slash}",
            "work:path": f"{self.work}{slash}",
            "kernel:rootPath": str(self.root),
            **{f"configuration:/{key}": value for key, value in self.configuration.items()},
        }

        def filled(text: str) -> str:
            return re.sub(r"\{([^{}]*)\}", lambda found: variables[found[1]], text)

        exports = {key: filled(value) for key, value in SETENV.items()}
        script = filled(LIFECYCLE[step]["Script"])
        environment = {"PATH": "/usr/bin:/bin"}
        if self.kind == "java":
            return as_component(script), {**environment, **exports}
        quoted = {key: value.replace("'", "'\\''") for key, value in exports.items()}
        lines = [*(f"export {key}='{value}'" for key, value in quoted.items()), script, "echo not reached"]
        return as_component("\n".join(lines)), environment

    def popen(self, step: str, environment: Mapping[str, str] | None = None, **streams: Any) -> subprocess.Popen:
        command, its_own = self.command(step)
        return subprocess.Popen(
            command, env={**its_own, **(environment or {})}, cwd=self.work, start_new_session=True, **streams
        )

    def run(self, step: str, **environment: str) -> subprocess.CompletedProcess:
        """Run a step to its end."""
        process = self.popen(step, environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            out, errors = process.communicate(timeout=PLENTY)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, out, errors)

    def install(self) -> None:
        """Install, which must go well and say nothing."""
        done = self.run("install")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done.stderr

    def refused(self, step: str = "install") -> str:
        """Run a step that must be refused in one sentence; return it."""
        done = self.run(step)
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
        return done.stderr.rstrip("\n")

    def builds(self) -> list[str]:
        """Return the names of the environments of this version."""
        return sorted(path.name for path in self.home.iterdir() if not path.is_symlink())

    def stamps(self) -> dict[str, tuple[int, int]]:
        """Return what tells of every file in the work folder whether it was written."""
        found = {}
        for path in self.work.rglob("*"):
            info = path.lstat()
            found[str(path)] = info.st_ino, info.st_mtime_ns
        return found


@contextmanager
def new_root() -> Iterator[Path]:
    """Yield the root folder of a nucleus, with a space and a quote in its path."""
    above = place()
    try:
        root = above / "it's a root"
        (root / "packages").mkdir(parents=True)
        (root / "work").mkdir()
        yield root
    finally:
        shutil.rmtree(above, ignore_errors=True)


@pytest.fixture
def root() -> Iterator[Path]:
    with new_root() as made:
        yield made


# What stands in for the agent: it tells what it was started with, and a library of its environment is in its memory.
FAKE = """
import json, mmap, os, sys, time
def main():
    library = open(__file__, "rb")
    mapped = mmap.mmap(library.fileno(), 0, prot=mmap.PROT_READ)
    umask = os.umask(0)
    told = {"arguments": sys.argv[1:], "pid": os.getpid(), "umask": umask, "word": WORD, "environment": dict(os.environ)}
    print(json.dumps(told), flush=True)
    time.sleep(float(os.environ.get("FAKE_STAYS", 0)))
"""


def fake_agent(folder: Path, word: str = "first", version: str = VERSION) -> Path:
    name = "vision_edge_agent"
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: vision-edge-agent\nVersion: {version}\nProvides-Extra: cpu\nProvides-Extra: cuda\nProvides-Extra: greengrass\nProvides-Extra: metrics\n"
    files = {
        "fake_agent.py": f"WORD = {word!r}\n{FAKE}".encode(),
        f"{info}/METADATA": metadata.encode(),
        f"{info}/entry_points.txt": b"[console_scripts]\nedge-agent = fake_agent:main\n",
    }
    return write_wheel(folder, name, version, files)


@pytest.fixture
def fake_wheels(tmp_path) -> Path:
    made = tmp_path / "wheels"
    made.mkdir()
    fake_agent(made)
    return made


@pytest.fixture(scope="module")
def shared_device(tmp_path_factory) -> Iterator[Device]:
    """A device on which the fake agent is installed, for tests that change nothing of it."""
    wheels = tmp_path_factory.mktemp("wheels")
    fake_agent(wheels)
    with new_root() as made:
        device = Device(made, "lite").deploy(wheels)
        device.install()
        yield device


def told_by(device: Device, **environment: str) -> dict[str, Any]:
    """Return what the fake agent was started with."""
    done = device.run("startup", **environment)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return json.loads(done.stdout)


@contextmanager
def staying(device: Device) -> Iterator[subprocess.Popen]:
    """Yield the process of a fake agent that goes on running."""
    process = device.popen("startup", {"FAKE_STAYS": "600"}, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


# 3. install.sh


def script(path: Path, lines: str) -> str:
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("name", ["python3.99", "/nonexistent/python3"])
def test_a_python_that_is_not_there(root, fake_wheels, name):
    device = Device(root, Python=name).deploy(fake_wheels)
    assert device.refused() == (
        f"There is no program {name}, which the configuration key Python names; install Python 3.10 to 3.13, or name one "
        "that is there."
    )
    assert list(device.work.iterdir()) == []


def test_a_python_that_is_too_old(root, fake_wheels):
    old = script(root / "python3", 'case "$1" in -V) echo Python 3.9.2;; *) exit 1;; esac')
    device = Device(root, Python=old).deploy(fake_wheels)
    assert device.refused() == (
        f"{old} is Python 3.9.2, and the agent needs Python 3.10 to 3.13; install one, and name it in the configuration key "
        "Python."
    )


@pytest.mark.parametrize(("version", "taken"), [("3, 9", 0), ("3, 10", 1), ("3, 13", 1), ("3, 14", 0), ("2, 7", 0)])
def test_versions_of_python(version, taken):
    check = re.search(r"-c '(import sys; sys.exit\(not .*?)'", (FOLDER / "install.sh").read_text())[1]
    script = f"import sys; sys.version_info = ({version}, 0, 'final', 0)\n{check}"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 1 - taken


def test_a_python_without_venv(root, fake_wheels):
    """As on Debian, where `python3-venv` is a package of its own."""
    bare = script(root / "python3", f'case "$2" in *ensurepip*) exit 1;; *) exec {sys.executable} "$@";; esac')
    device = Device(root, Python=bare).deploy(fake_wheels)
    assert device.refused() == (
        f"{bare} cannot make virtual environments, since it has no modules venv and ensurepip; install them, on Debian with "
        "apt install python3-venv."
    )
    assert list(device.work.iterdir()) == []


def test_a_variant_that_is_none(root, fake_wheels):
    device = Device(root, Variant="gpu").deploy(fake_wheels)
    assert device.refused() == "The configuration key Variant is 'gpu'; it must be cpu or cuda."


def test_no_lock(root, fake_wheels):
    """As where somebody has put wheels together by hand."""
    device = Device(root).deploy(fake_wheels)
    (device.artifacts / "wheels.lock").unlink()
    assert device.refused() == (
        f"There is no wheels.lock in {device.artifacts}; make the component with edge-agent component build, and deploy it."
    )
    assert list(device.work.iterdir()) == []


def test_a_variant_that_the_component_was_not_made_with(root, fake_wheels):
    device = Device(root, Variant="cuda").deploy(fake_wheels)
    assert device.refused() == (
        "The configuration key Variant is 'cuda', and the component was made for another; make it with --variant cuda."
    )
    write_lock(device.artifacts, "cuda")
    device.install()
    assert (device.current / "made-of").read_text().splitlines()[1] == "cuda"


def test_a_wheel_that_is_not_the_one_of_the_lock(root, fake_wheels):
    """As where somebody has changed what lies in the bucket."""
    device = Device(root).deploy(fake_wheels)
    fake_agent(device.artifacts, "other")
    done = device.run("install")
    assert (done.returncode, done.stdout) == (1, "")
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in done.stderr
    assert f"cannot be installed from the wheels in {device.artifacts}; what is above says why." in done.stderr
    assert not device.current.exists()
    shutil.copyfile(next(fake_wheels.iterdir()), next(device.artifacts.glob("*.whl")))
    device.install()
    assert told_by(device)["word"] == "first"


def test_what_the_lock_lacks_is_not_installed(root, fake_wheels):
    device = Device(root).deploy(fake_wheels)
    write_wheel(device.artifacts, "more", "1.0", {"more.py": b""})
    device.install()
    assert not list(device.current.glob("lib/python*/site-packages/more*"))


def test_wheels_in_a_zip(root, fake_wheels):
    """Of the zips for several processors, the one for this is taken; nothing of it is left."""
    device = Device(root).deploy(fake_wheels)
    wheel = next(device.artifacts.glob("*.whl"))
    with zipfile.ZipFile(device.artifacts / f"wheels-{os.uname().machine}.zip", "w") as archive:
        archive.write(wheel, wheel.name)
    (device.artifacts / "wheels-other.zip").write_bytes(b"no zip")
    wheel.unlink()
    device.install()
    assert told_by(device)["word"] == "first"
    assert not list(device.work.rglob("*.whl"))


def test_a_zip_that_is_cut_short(root, fake_wheels):
    device = Device(root).deploy(fake_wheels)
    archive = device.artifacts / f"wheels-{os.uname().machine}.zip"
    archive.write_bytes(b"PK")
    done = device.run("install")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"{archive} cannot be unpacked; what is above says why."
    assert not device.current.exists()


def test_wheels_that_do_not_fit_and_then_do(root, tmp_path):
    write_wheel(tmp_path, "vision_edge_agent", VERSION, {}, "cp39-cp39-any")
    device = Device(root, "lite").deploy(tmp_path)
    done = device.run("install")
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        f"cannot be installed from the wheels in {device.artifacts}; what is above says why. They must be for Python 3"
        in (done.stderr.splitlines()[-1])
    )
    assert not device.current.exists()
    assert device.refused("startup") == (
        f"There is no whole environment {device.current}, or its Python is gone; restart the nucleus, or deploy the component "
        "again."
    )
    (device.artifacts / f"vision_edge_agent-{VERSION}-cp39-cp39-any.whl").unlink()
    fake_agent(device.artifacts)
    write_lock(device.artifacts)
    device.install()
    assert told_by(device)["word"] == "first"
    assert len(device.builds()) == 1


@both_nuclei
def test_what_is_installed_stays(shared_device, kind):
    """An install that runs again, as at each launch of a nucleus, is quick and changes nothing."""
    device = Device(shared_device.root, kind)
    before = device.stamps()
    assert any(path.endswith("/made-of") for path in before)
    began = time.monotonic()
    device.install()
    assert time.monotonic() - began < 3
    assert device.stamps() == before
    assert device.builds() == [device.current.readlink().name]


def test_a_network_is_not_needed_and_not_there(shared_device):
    if not offline():
        pytest.skip("only root may take a process its network away")
    command, _ = shared_device.command("install")
    assert command[: len(offline())] == offline()
    look = [*offline(), sys.executable, "-c", "import socket; print([name for _, name in socket.if_nameindex()])"]
    assert subprocess.run(look, capture_output=True, text=True, check=True).stdout == "['lo']\n"


@pytest.mark.parametrize("when", ["in the middle", "before the mark"])
def test_an_install_that_is_killed_is_begun_anew(root, fake_wheels, when):
    device = Device(root).deploy(fake_wheels)
    (root / "bin").mkdir()
    script(root / "bin" / "sync", "sleep 600")
    path = {"PATH": f"{root / 'bin'}:/usr/bin:/bin"} if when == "before the mark" else {}
    process = device.popen("install", path)
    seen = "lib/python*/site-packages/pip" if not path else "bin/edge-agent"
    until(lambda: list(device.home.glob(f"*/{seen}")), f"{seen} is there")
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    assert not device.current.exists()
    [build] = device.home.iterdir()
    # What is left is not kept.
    (build / "left over").touch()
    device.install()
    assert told_by(device)["word"] == "first"
    assert not (device.current / "left over").exists()
    assert len(device.builds()) == 1


def test_an_environment_without_a_whole_mark_is_made_anew(root, fake_wheels):
    """As after a power cut."""
    device = Device(root).deploy(fake_wheels)
    device.install()
    mark = device.current / "made-of"
    for left in (mark.read_text()[:20], ""):
        mark.write_text(left)
        next(device.current.glob("lib/python*/site-packages/fake_agent.py")).write_text("")
        device.install()
        assert told_by(device)["word"] == "first"


def test_other_wheels_of_the_same_size_and_name(root, fake_wheels):
    device = Device(root).deploy(fake_wheels)
    device.install()
    size = (device.artifacts / fake_agent(device.artifacts, "other").name).stat().st_size
    assert size == next(fake_wheels.iterdir()).stat().st_size
    write_lock(device.artifacts)
    with staying(device) as old:
        # The agent that runs keeps what it runs from.
        device.install()
        assert len(device.builds()) == 2
        assert told_by(device)["word"] == "other"
        assert old.poll() is None
    device.install()
    assert device.builds() == [device.current.readlink().name]
    assert told_by(device)["word"] == "other"


def test_another_variant_and_another_python_are_other_environments(shared_device):
    made_of = (shared_device.current / "made-of").read_text().splitlines()
    assert made_of[0].startswith(f"{sys.executable} 3.")
    assert made_of[1] == "cpu"
    [lock] = made_of[2:]
    size = (shared_device.artifacts / "wheels.lock").stat().st_size
    assert re.fullmatch(rf"\d+ {size}", lock)


def test_other_versions_stay_as_long_as_their_artifacts(root, fake_wheels):
    """The old version serves while the new one is installed, and a deployment that fails goes back to it."""
    old = Device(root).deploy(fake_wheels)
    old.install()
    new = Device(root, version="1.4.0").deploy(fake_wheels)
    with staying(old) as serving:
        new.install()
        assert old.current.exists()
        # The deployment has succeeded, and the nucleus removes what was of the old version; only that still runs.
        shutil.rmtree(old.artifacts)
        new.install()
        assert serving.poll() is None
        assert old.current.exists()
    new.install()
    assert [path.name for path in new.work.glob("venv-*")] == ["venv-1.4.0"]
    assert told_by(new)["word"] == "first"


# 4. run.sh


def test_it_becomes_the_agent(shared_device):
    """No shell stays between the nucleus and the agent, so that its SIGTERM reaches the agent."""
    process = shared_device.popen("startup", stdout=subprocess.PIPE, text=True)
    told = json.loads(process.communicate(timeout=PLENTY)[0])
    assert told["arguments"] == ["serve"]
    assert told["umask"] == 0o027
    # `unshare` and `setpriv` become what they start, too.
    assert told["pid"] == process.pid


def settings_of(told: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings that are not empty."""
    return {key: value for key, value in told["environment"].items() if key.startswith(PREFIX) and value}


@both_nuclei
def test_defaults(shared_device, kind):
    device = Device(shared_device.root, kind)
    assert settings_of(told_by(device)) == {
        "EDGE_AGENT_SOCKET": "unix:///tmp/aws.iot.lookoutvision.EdgeAgent.sock",
        "EDGE_AGENT_SOCKET_GROUP": "ggc_group",
        "EDGE_AGENT_STATE_DIR": f"{device.work}/state",
        "EDGE_AGENT_REGISTRY": f"{device.root}/work/aws.iot.lookoutvision.EdgeAgent/models.d",
        "EDGE_AGENT_REGISTRY_ROOTS": f"{device.root}/packages",
        "EDGE_AGENT_TRUSTED_UIDS": str((device.root / "packages").stat().st_uid),
    }


@both_nuclei
def test_values_arrive_as_they_are(shared_device, kind):
    odd = 'it\'s "$HOME" `id` {configuration:/Socket} \\n é'
    values = {key: f"{odd} {key}" for key in DEFAULTS if key not in {*OF_THE_SCRIPTS, "TrustedUids"}}
    told = settings_of(told_by(Device(shared_device.root, kind, **values)))
    for key in Settings.model_fields.keys() - {*NOT_IN_THE_RECIPE, "trusted_uids"}:
        assert told[f"EDGE_AGENT_{key.upper()}"] == values[key_of(key)]


def test_an_empty_group_is_the_agents_own(shared_device):
    told = told_by(Device(shared_device.root, SocketGroup=""))
    assert told["environment"]["EDGE_AGENT_SOCKET_GROUP"] == ""


def test_the_owner_of_artifacts_is_trusted_beside_the_configured_users(shared_device):
    device = Device(shared_device.root, TrustedUids="7,8")
    packages_folder = device.root / "packages"
    owner = packages_folder.stat()
    if I_AM_ROOT:
        os.chown(packages_folder, OTHER.uid, OTHER.gid)
    try:
        told = settings_of(told_by(device))
        assert told["EDGE_AGENT_TRUSTED_UIDS"] == f"7,8,{packages_folder.stat().st_uid}"
    finally:
        os.chown(packages_folder, owner.st_uid, owner.st_gid)


@pytest.mark.parametrize(("value", "scans"), [("true", True), ("True", True), ("false", False), ("", False)])
def test_scan(shared_device, value, scans):
    device = Device(shared_device.root, ScanArtifacts=value)
    folder = settings_of(told_by(device)).get("EDGE_AGENT_SCAN")
    assert folder == (f"{device.root}/packages/artifacts-unarchived" if scans else None)


def test_scan_that_is_neither(shared_device):
    device = Device(shared_device.root, ScanArtifacts="yes")
    assert device.refused("startup") == 'The configuration key ScanArtifacts is \'yes\'; it must be "true" or "false".'


def test_a_python_that_is_gone(shared_device):
    """As after an upgrade of the system: links in the environment lead nowhere."""
    python = shared_device.current / "bin" / "python"
    aside = python.with_name("aside")
    python.rename(aside)
    python.symlink_to("/nonexistent/python3")
    try:
        assert "or its Python is gone; restart the nucleus" in shared_device.refused("startup")
    finally:
        aside.rename(python)


# 5. For real.


def repack(name: str, folder: Path) -> None:
    """Make a wheel of what is installed here, so that no test needs a network."""
    installed = importlib.metadata.distribution(name)
    info = next(one.parent.name for one in installed.files if one.name == "METADATA")
    not_of_a_wheel = {f"{info}/{name}" for name in ("INSTALLER", "RECORD", "REQUESTED", "direct_url.json")}
    files = {
        str(one): one.locate().read_bytes()
        for one in installed.files
        if ".." not in one.parts and one.suffix not in {".pyc", ".pth"} and str(one) not in not_of_a_wheel
    }
    if name == "vision-edge-agent":  # an editable install holds none of its code
        for source in (ROOT / "agent" / "edge_agent", ROOT / "packaging" / "model_packager"):
            for path in source.rglob("*"):
                if path.is_file() and "__pycache__" not in path.parts:
                    files[str(path.relative_to(source.parent))] = path.read_bytes()
    stem, _, version = info.removesuffix(".dist-info").partition("-")
    tags = Parser().parsestr(installed.read_text("WHEEL")).get_all("Tag")
    here = {str(tag) for tag in sys_tags()}
    write_wheel(folder, stem, version, files, next(tag for tag in tags if tag in here))


def needed_by(*names: str) -> set[str]:
    """Return distributions, with extras, and all that they need here."""
    found: set[tuple[str, str]] = set()
    queue = [Requirement(name) for name in names]
    while queue:
        one = queue.pop()
        for extra in {"", *one.extras} - {extra for name, extra in found if name == one.name}:
            found.add((one.name, extra))
            needs = map(Requirement, importlib.metadata.requires(one.name) or [])
            queue += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]
    return {name for name, _ in found}


@pytest.fixture(scope="module")
def real_device(tmp_path_factory) -> Iterator[Device]:
    """A device with the agent of this checkout, installed offline; takes 12 s on two cores."""
    with new_root() as made:
        device = Device(made, "lite", SocketGroup="", LogLevel="debug").deploy(tmp_path_factory.mktemp("none"))
        for name in needed_by("vision-edge-agent[cpu,greengrass,metrics]"):
            repack(name, device.artifacts)
        write_lock(device.artifacts)
        if agent_user() == MYSELF and I_AM_ROOT:
            device.configuration["AllowRoot"] = "true"
        device.configuration["Socket"] = f"unix://{made.parent}/agent.sock"
        began = time.monotonic()
        device.install()
        print(f"installed in {time.monotonic() - began:.1f} s")
        yield device


@contextmanager
def started(device: Device, **environment: str) -> Iterator[tuple[subprocess.Popen, EdgeAgentStub]]:
    """Yield the agent's process, started by run.sh, once it serves, and a stub."""
    path = Path(device.configuration["Socket"].removeprefix("unix://"))
    log = device.root / "agent.log"
    with log.open("wb") as output:
        process = device.popen("startup", environment, stdout=output, stderr=output)
    try:
        until(lambda: path.exists() or process.poll() is not None, "the agent serves")
        assert process.poll() is None, log.read_text()
        with grpc.insecure_channel(f"unix://{path}") as channel:
            yield process, EdgeAgentStub(channel)
        process.terminate()
        assert process.wait(30) == 0, log.read_text()
        assert not path.exists()
    finally:
        process.kill()
        process.wait()


@both_nuclei
def test_a_verdict_of_the_installed_agent(real_device, kind):
    models = real_device.root / "models"
    if not models.exists():
        packages.classifier(models / "board")
    device = Device(real_device.root, kind)
    device.configuration |= {**real_device.configuration, "Models": str(models), "Autostart": "board"}
    with started(device) as (process, stub):
        called = {"timeout": PLENTY, "wait_for_ready": True}

        def status() -> int:
            request = pb2.DescribeModelRequest(model_component="board")
            return stub.DescribeModel(request, **called).model_description.status

        until(lambda: status() == pb2.RUNNING, "the model runs")
        bitmap = pb2.Bitmap(width=64, height=64, byte_data=b"\xff" * 3 * 64 * 64)
        result = stub.DetectAnomalies(pb2.DetectAnomaliesRequest(model_component="board", bitmap=bitmap), **called)
        assert result.detect_anomaly_result.is_anomalous
        assert os.stat(f"/proc/{process.pid}").st_uid == agent_user().uid
        # An install would see it in use.
        assert f"{device.current.resolve()}/" in Path(f"/proc/{process.pid}/maps").read_text()


def test_both_who_wait_are_told(real_device):
    """As on nucleus lite, with the SDK of the wheels."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        above = real_device.root.parent
        systemd.bind(str(above / "notify"))
        (above / "notify").chmod(0o666)
        systemd.settimeout(PLENTY)
        with nuclei.running(above / "ipc.socket") as nucleus:
            environment = {**nucleus.environment(), "NOTIFY_SOCKET": str(above / "notify")}
            with started(real_device, **environment) as (_, stub):
                assert systemd.recv(100) == b"READY=1"
                until(nucleus.states, "the nucleus is told")
                stub.ListModels(pb2.ListModelsRequest(), timeout=PLENTY, wait_for_ready=True)
            assert nucleus.states() == ["RUNNING"]
