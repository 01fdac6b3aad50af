"""The client components: made, linted, deployed, and run as each nucleus runs them, to a verdict or to a sentence.

1. Recipes and deployments say what a nucleus and the cloud take, and the same of each other.
2. `make_artifacts.py` lays a component out; what it cannot use, it refuses.
3. `install.sh` makes the environment out of the wheels, without a network, whole or not at all.
4. The clients run under an unprivileged user, against a real agent.
"""

import functools
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.parser import Parser
from pathlib import Path
from textwrap import dedent
from types import ModuleType, SimpleNamespace
from typing import Any

import botocore.loaders
import botocore.model
import botocore.validate
import grpc
import numpy as np
import pip
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.tags import sys_tags
from PIL import Image

from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent.client import AgentUnavailable, Detection
from model_packager import linting
from support import packages
from support.agent import PLENTY, Agent, place, serving
from support.users import I_AM_ROOT, MYSELF, ROOT, agent_user
from support.waiting import until

CLIENTS = ROOT / "recipes" / "clients"
FOLDER, MINIMAL = "com.example.EdgeAgentFolder", "com.example.EdgeAgentMinimal"
COMPONENTS = {"folder": FOLDER, "minimal": MINIMAL}
MODEL = "com.example.Boards"
SIZE = (80, 64)
both_clients = pytest.mark.parametrize("client", COMPONENTS)
both_nuclei = pytest.mark.parametrize("kind", ["java", "lite"])


def recipe_of(client: str) -> dict[str, Any]:
    return yaml.safe_load((CLIENTS / client / "recipe.yaml").read_text())


# 1. Recipes and deployments.


@both_clients
@pytest.mark.parametrize("nucleus", ["java", "lite", "both"])
def test_recipes_are_clean(client, nucleus):
    data = (CLIENTS / client / "recipe.yaml").read_bytes()
    assert linting.lint_bytes(data, nucleus=nucleus) == []
    # The control: a shell's own braces are what nucleus lite falls over.
    found = linting.lint_bytes(data.replace(b"$VENV/bin", b"${VENV}/bin"), nucleus=nucleus)
    assert [one.rule for one in found] == (["brace"] if nucleus != "java" else [])


@both_clients
def test_recipe(client):
    recipe = recipe_of(client)
    name, version = recipe["ComponentName"], recipe["ComponentVersion"]
    assert name == COMPONENTS[client]
    assert recipe["ComponentDependencies"] == {MODEL: {"VersionRequirement": ">=1.0.0", "DependencyType": "HARD"}}
    defaults = recipe["ComponentConfiguration"]["DefaultConfiguration"]
    assert defaults["ModelComponent"] == MODEL
    assert all(isinstance(one, str) for one in defaults.values()), "values arrive as texts"
    (manifest,) = recipe["Manifests"]
    assert manifest["Lifecycle"]["Setenv"]["VENV"] == f"{{work:path}}/venv-{version}"
    uris = [one["Uri"] for one in manifest["Artifacts"]]
    assert {uri.rpartition("/")[0] for uri in uris} == {f"s3://BUCKET_NAME/{name}/{version}"}
    configured = re.findall(r"\{configuration:/(\w+)\}", json.dumps(manifest))
    assert sorted(configured) == sorted(defaults), "each key is used, once"


@both_clients
def test_readme_has_every_key(client):
    text = (CLIENTS / "README.md").read_text().partition(f"## `{COMPONENTS[client]}`")[2]
    table = text.partition("\n\n| key")[2].partition("\n\n")[0]
    defaults = recipe_of(client)["ComponentConfiguration"]["DefaultConfiguration"]
    rows = re.findall(r"(?m)^\| `(\w+)` \| (.*?) \|", table)
    assert rows == [(key, f"`{value}`" if value else "") for key, value in defaults.items()]


def service_model() -> Any:
    content = botocore.loaders.Loader().load_service_model("greengrassv2", "service-2")
    return botocore.model.ServiceModel(content).operation_model("CreateDeployment").input_shape


def faults(document: Mapping[str, Any]) -> str:
    """Return what the API would refuse in a document; its patterns and choices are not checked by botocore itself."""
    shape = service_model()
    report = botocore.validate.ParamValidator().validate(document, shape).generate_report()
    if report:
        return report
    policies = shape.members["deploymentPolicies"].members
    choices = (
        (document["deploymentPolicies"]["failureHandlingPolicy"], policies["failureHandlingPolicy"]),
        (
            document["deploymentPolicies"]["componentUpdatePolicy"]["action"],
            policies["componentUpdatePolicy"].members["action"],
        ),
    )
    wrong = [value for value, one in choices if value not in one.enum]
    if not re.fullmatch(shape.members["targetArn"].metadata["pattern"], document["targetArn"]):
        wrong.append(document["targetArn"])
    return ", ".join(wrong)


@both_clients
@pytest.mark.parametrize(("file", "target"), [("thing", "thing/"), ("group", "thinggroup/")])
def test_deployments(client, file, target):
    document = json.loads((CLIENTS / client / f"deployment-{file}.json").read_text())
    assert faults(document) == ""
    assert document["targetArn"].split(":")[-1].startswith(target)
    assert document["deploymentPolicies"]["failureHandlingPolicy"] == "ROLLBACK"
    recipe, agents = recipe_of(client), yaml.safe_load((ROOT / "recipes" / "agent" / "recipe.yaml").read_text())
    versions = {name: one["componentVersion"] for name, one in document["components"].items()}
    assert versions == {
        agents["ComponentName"]: agents["ComponentVersion"],
        MODEL: "1.0.0",
        recipe["ComponentName"]: recipe["ComponentVersion"],
    }
    needed = recipe["ComponentDependencies"][MODEL]["VersionRequirement"]
    assert versions[MODEL] in SpecifierSet(needed.replace(" ", ","))
    (merge,) = [one["configurationUpdate"]["merge"] for one in document["components"].values() if len(one) > 1]
    merged = json.loads(merge)
    assert merged.keys() <= recipe["ComponentConfiguration"]["DefaultConfiguration"].keys()
    assert all(isinstance(value, str) for value in merged.values())


@pytest.mark.parametrize(
    ("keys", "value", "told"),
    [
        (("name",), "mine", 'Unknown parameter in input: "name"'),
        (("components", MODEL), "1.0.0", f"Invalid type for parameter components.{MODEL}"),
        (("components", MODEL, "configurationUpdate"), {"merge": {}}, "Invalid type for parameter components"),
        (("deploymentPolicies", "failureHandlingPolicy"), "ROLL_BACK", "ROLL_BACK"),
        (("deploymentPolicies", "componentUpdatePolicy", "action"), "NOTIFY", "NOTIFY"),
        (("targetArn",), "MY_THING", "MY_THING"),
    ],
)
def test_faults_of_a_deployment_are_found(keys, value, told):
    """The control of the test above."""
    document = json.loads((CLIENTS / "folder" / "deployment-thing.json").read_text())
    *above, last = keys
    part = document
    for key in above:
        part = part[key]
    part[last] = value
    assert told in faults(document)


# 2. Laying out.


def write_wheel(folder: Path, name: str, version: str, tag: str, files: Mapping[str, bytes]) -> Path:
    """Write a wheel; what makes it one is added where it is missing."""
    info = f"{name}-{version}.dist-info"
    content = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
        **files,
    }
    record = f"{info}/RECORD"
    content[record] = "".join(f"{path},,\n" for path in [*content, record]).encode()
    path = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, data in content.items():
            archive.writestr(inside, data)
    return path


def repack(name: str, folder: Path) -> None:
    """Make a wheel of what is installed here, so that no test needs a network."""
    installed = importlib.metadata.distribution(name)
    info = next(one.parent.name for one in installed.files if one.name == "METADATA")
    files = {
        str(one): one.locate().read_bytes()
        for one in installed.files
        if ".." not in one.parts
        and one.suffix not in {".pyc", ".pth"}
        and not (one.parent.name == info and one.name in {"INSTALLER", "RECORD", "REQUESTED", "direct_url.json"})
    }
    if name == "vision-edge-agent":  # an editable install holds none of its code
        for source in (ROOT / "agent" / "edge_agent", ROOT / "packaging" / "model_packager"):
            files |= {
                str(path.relative_to(source.parent)): path.read_bytes()
                for path in source.rglob("*")
                if path.is_file() and "__pycache__" not in path.parts
            }
    here = {str(tag) for tag in sys_tags()}
    tag = next(one for one in Parser().parsestr(installed.read_text("WHEEL")).get_all("Tag") if one in here)
    stem, _, version = info.removesuffix(".dist-info").partition("-")
    write_wheel(folder, stem, version, tag, files)


def needed_by(*names: str) -> set[str]:
    """Return distributions and all that they need here."""
    found, queue = set(), [Requirement(name) for name in names]
    while queue:
        one = queue.pop()
        if any((one.name, extra) in found for extra in one.extras or {""}):
            continue
        found |= {(one.name, extra) for extra in one.extras or {""}}
        for text in importlib.metadata.requires(one.name) or []:
            below = Requirement(text)
            if below.marker is None or any(below.marker.evaluate({"extra": extra}) for extra in one.extras or {""}):
                queue.append(below)
    return {name for name, _ in found}


def make(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(CLIENTS / "make_artifacts.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PLENTY, check=False, cwd="/")


@pytest.fixture
def wheels(tmp_path) -> Path:
    """A folder with one tiny wheel."""
    made = tmp_path / "wheels"
    made.mkdir()
    write_wheel(made, "tiny", "1.0", "py3-none-any", {"tiny.py": b"WORD = 'tiny'\n"})
    return made


@both_clients
def test_layout(client, wheels, tmp_path):
    output = tmp_path / "output"
    done = make(client, "--wheels", wheels, "--output", output)
    name, recipe = COMPONENTS[client], output / "recipes" / f"{COMPONENTS[client]}-1.0.0.yaml"
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{recipe}\n", "")
    artifacts = output / "artifacts" / name / "1.0.0"
    wheel = "tiny-1.0-py3-none-any.whl"
    line = f'      - Uri: "s3://BUCKET_NAME/{name}/1.0.0/{wheel}"\n'
    assert recipe.read_text() == (CLIENTS / client / "recipe.yaml").read_text() + line
    assert linting.lint(recipe.read_text()) == []
    program = {"folder": {"detect_folder.py"}, "minimal": {"minimal_client.py", "edge-agent.proto"}}[client]
    named = {one["Uri"].rpartition("/")[2] for one in yaml.safe_load(recipe.read_text())["Manifests"][0]["Artifacts"]}
    assert named == {"install.sh", wheel, *program}
    assert {path.name for path in artifacts.iterdir()} == named
    assert {path.name for path in output.iterdir()} == {"artifacts", "recipes"}
    assert (artifacts / wheel).read_bytes() == (wheels / wheel).read_bytes()
    (artifacts / "left.whl").touch()
    assert make(client, "--wheels", wheels, "--output", output).returncode == 0
    assert {path.name for path in artifacts.iterdir()} == named


@both_clients
def test_layout_for_another_model_bucket_and_configuration(client, wheels, tmp_path):
    path = '/\N{ROCKET} "b" {c} \\1\n'
    changes = ("--model", "com.acme.Cans", "--bucket", "acme", "--set", f"Python={path}", "--set", "Socket=")
    assert make(client, "--wheels", wheels, "--output", tmp_path, *changes).returncode == 0
    text = (tmp_path / "recipes" / f"{COMPONENTS[client]}-1.0.0.yaml").read_text()
    recipe = yaml.safe_load(text)
    assert list(recipe["ComponentDependencies"]) == ["com.acme.Cans"]
    defaults = recipe["ComponentConfiguration"]["DefaultConfiguration"]
    assert [defaults[key] for key in ("ModelComponent", "Python", "Socket")] == ["com.acme.Cans", path, ""]
    assert recipe["Manifests"][0]["Artifacts"][0]["Uri"].startswith(f"s3://acme/{COMPONENTS[client]}/1.0.0/")
    assert linting.lint(text) == []


@pytest.mark.parametrize(
    ("spoil", "arguments", "told"),
    [
        (lambda folder: (folder / "tiny-1.0.tar.gz").touch(), (), "/tiny-1.0.tar.gz is no wheel, and a device builds"),
        (lambda folder: next(folder.iterdir()).unlink(), (), "There is no wheel in "),
        (lambda folder: shutil.rmtree(folder), (), "No such file or directory"),
        (lambda folder: None, ("--set", "Imagess=/a"), "The recipe's configuration has no key 'Imagess'"),
        (lambda folder: None, ("--set", "ComponentName"), "The recipe's configuration has no key 'ComponentName'"),
    ],
)
def test_what_cannot_be_laid_out(spoil, arguments, told, wheels, tmp_path):
    spoil(wheels)
    done = make("folder", "--wheels", wheels, "--output", tmp_path / "output", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "output").exists()


# 3. Installing.


@functools.cache
def offline() -> list[str]:
    """Return the command that takes a process the network, where we may."""
    alone = ["unshare", "--net", "--"]
    may = I_AM_ROOT and subprocess.run([*alone, "true"], capture_output=True, check=False).returncode == 0
    return alone if may else []


def as_component(*command: object) -> list[str]:
    """Return a command that runs as a component does: as the unprivileged user, and offline."""
    user = agent_user()
    ids = [f"--reuid={user.uid}", f"--regid={user.gid}", "--clear-groups"]
    alone = [*offline(), "setpriv", *ids, "--"] if user != MYSELF else []
    return [*alone, *map(str, command)]


@dataclass
class Nucleus:
    """What a nucleus does with the scripts of a component, as far as the component sees it."""

    root: Path
    kind: str = "java"
    defaults: dict[str, str] = field(default_factory=dict)

    def deploy(self, output: Path, name: str) -> None:
        """Copy a component to its place, and give it an empty work folder."""
        shutil.copytree(output / "artifacts" / name, self.root / "packages" / "artifacts" / name)
        (self.root / "packages" / "recipes").mkdir(exist_ok=True)
        shutil.copy(output / "recipes" / f"{name}-1.0.0.yaml", self.root / "packages" / "recipes")
        self.work(name).mkdir(parents=True)
        os.chown(self.work(name), agent_user().uid, agent_user().gid)

    def popen(self, name: str, step: str, configuration: Mapping[str, str], **streams: Any) -> subprocess.Popen:
        """Begin a step of the lifecycle."""
        recipe = yaml.safe_load((self.root / "packages" / "recipes" / f"{name}-1.0.0.yaml").read_text())
        values = {**recipe["ComponentConfiguration"]["DefaultConfiguration"], **self.defaults, **configuration}
        # One of them ends its paths with a slash.
        slash = "/" if self.kind == "lite" else ""
        variables = {
            "artifacts:path": f"{self.root}/packages/artifacts/{name}/1.0.0{slash}",
            "work:path": f"{self.root}/work/{name}{slash}",
            **{f"configuration:/{key}": value for key, value in values.items()},
        }

        def replaced(text: str) -> str:
            return re.sub(r"\{([^{}]*)\}", lambda found: variables[found[1]], text)

        lifecycle = recipe["Manifests"][0]["Lifecycle"]
        exports = {key: replaced(value) for key, value in lifecycle["Setenv"].items()}
        script = replaced(lifecycle[step]["Script"])
        environment = {"PATH": "/usr/bin:/bin", "SVCUID": "token"}
        if self.kind == "java":
            environment |= exports
        else:
            quoted = {key: value.replace("'", "'\\''") for key, value in exports.items()}
            script = "".join(f"export {key}='{value}'\n" for key, value in quoted.items()) + script
        command = as_component("/bin/sh", "-c", script)
        return subprocess.Popen(command, env=environment, cwd=self.work(name), **streams)

    def work(self, name: str) -> Path:
        return self.root / "work" / name

    def run(self, name: str, step: str, **configuration: str) -> subprocess.CompletedProcess:
        """Run a step to its end."""
        process = self.popen(name, step, configuration, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            out, errors = process.communicate(timeout=PLENTY)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, out, errors)

    def on(self, kind: str) -> "Nucleus":
        return Nucleus(self.root, kind, self.defaults)


@contextmanager
def new_root() -> Iterator[Path]:
    """Yield the root folder of a nucleus, with a space in its path."""
    above = place()
    try:
        root = above / "green grass"
        root.mkdir()
        (root / "packages").mkdir()
        yield root
    finally:
        shutil.rmtree(above, ignore_errors=True)


@pytest.fixture(scope="module")
def device(tmp_path_factory) -> Iterator[Nucleus]:
    """A device on which both clients are installed, for real and offline: one as each nucleus does it."""
    output, wheels = tmp_path_factory.mktemp("output"), tmp_path_factory.mktemp("wheels")
    for name in needed_by("vision-edge-agent", "grpcio-tools"):
        repack(name, wheels)
    with new_root() as root:
        nucleus = Nucleus(root, defaults={"Python": sys.executable})
        for client, kind in (("folder", "lite"), ("minimal", "java")):
            done = make(client, "--wheels", wheels, "--output", output)
            assert done.returncode == 0, done.stderr
            nucleus.deploy(output, COMPONENTS[client])
            begin = time.monotonic()
            done = nucleus.on(kind).run(COMPONENTS[client], "install")
            print(f"{client}: installed in {time.monotonic() - begin:.1f} s")
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        yield nucleus


@both_clients
@both_nuclei
def test_what_is_installed_stays(device, client, kind):
    """An install that runs again, as at each launch of a nucleus, changes nothing."""
    name = COMPONENTS[client]
    before = stamps(device.work(name))
    assert any(path.name == "made-of" for path in before)
    done = device.on(kind).run(name, "install")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert stamps(device.work(name)) == before


def stamps(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in folder.rglob("*")}


class Bench:
    """A tiny component in several versions, and a work folder to install them in."""

    def __init__(self, root: Path, wheels: Path) -> None:
        self.versions, self.work, self.wheels = root / "artifacts", root / "work", wheels
        for folder in (self.versions, self.work):
            folder.mkdir()
        os.chown(self.work, agent_user().uid, agent_user().gid)
        (root / "pip").mkdir()
        (root / "pip" / "pip").symlink_to(Path(pip.__file__).parent)
        self.python = self.script(
            "quick",
            f"""
            case "$1 $2" in
            "-m venv")
                "{sys.executable}" -m venv --without-pip "$3"
                echo "{root}/pip" >"$3/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages/pip.pth"
                ;;
            *) exec "{sys.executable}" "$@" ;;
            esac
        """,
        )

    def script(self, name: str, lines: str) -> Path:
        """Write a script, for a Python; `quick` is one whose environments share a pip, as theirs of their own take long."""
        path = self.versions / name
        path.write_text(f"#!/bin/sh\n{dedent(lines)}")
        path.chmod(0o755)
        return path

    def artifacts(self, version: str = "1.0.0") -> Path:
        """Return the folder of a version's artifacts, which are there now."""
        folder = self.versions / version
        if not folder.exists():
            shutil.copytree(self.wheels, folder)
            shutil.copy(CLIENTS / "install.sh", folder)
        return folder

    def venv(self, version: str = "1.0.0") -> Path:
        return self.work / f"venv-{version}"

    def command(self, *requirements: str, version: str = "1.0.0", venv: str = "") -> list[str]:
        # As nucleus lite writes it, whose paths end with a slash.
        artifacts, venv = f"{self.artifacts(version)}/", f"{self.work}//venv-{venv or version}"
        return as_component("sh", f"{artifacts}install.sh", artifacts, venv, *(requirements or ("tiny",)))

    def install(self, *requirements: str, python: object = "", **named: str) -> tuple[int, str]:
        """Return the exit code and what was said last."""
        done = subprocess.run(
            self.command(*requirements, **named),
            env={"PATH": "/usr/bin:/bin", "PYTHON": str(python or self.python)},
            capture_output=True,
            text=True,
            timeout=PLENTY,
            check=False,
            cwd=self.work,
        )
        assert done.stdout == ""
        return done.returncode, (done.stderr.splitlines() or [""])[-1]

    def word(self, version: str = "1.0.0") -> str:
        """Return the word of the tiny package that is installed."""
        command = [self.venv(version) / "bin" / "python", "-c", "import tiny; print(tiny.WORD)"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def bench(wheels) -> Iterator[Bench]:
    with new_root() as root:
        yield Bench(root, wheels)


def test_an_environment_stays_as_long_as_its_artifacts(bench):
    """While a new version is installed the old one may still run, and a deployment that fails goes back to it."""
    assert bench.install() == (0, "")
    (bench.work / "results").mkdir()
    old, new = "venv-1.0.0", "venv-1.1.0-rc-1"
    for _ in ("installed", "launched again"):
        assert bench.install(version="1.1.0-rc-1") == (0, "")
        assert {path.name for path in bench.work.iterdir()} == {old, new, "results"}
    shutil.rmtree(bench.artifacts())
    assert bench.install(version="1.1.0-rc-1") == (0, "")
    assert {path.name for path in bench.work.iterdir()} == {new, "results"}
    assert bench.word("1.1.0-rc-1") == "tiny"
    assert bench.install(version="1.1.0-rc-1", venv="2.0.0") == (0, "")
    assert bench.word("2.0.0") == "tiny", "its own stays, also where the recipe gives it another version's name"


def test_an_install_that_was_cut_short_begins_anew(bench):
    hangs = bench.script("hangs", f'"{bench.python}" "$@"\n[ "$1" = -c ] || exec sleep 1000\n')
    env = {"PATH": "/usr/bin:/bin", "PYTHON": str(hangs)}
    process = subprocess.Popen(bench.command(), env=env, cwd=bench.work, start_new_session=True)
    until((bench.venv() / "bin" / "python").exists, "the environment is being made")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (bench.venv() / "made-of").exists()
    assert bench.install() == (0, "")
    assert bench.word() == "tiny"


def test_what_makes_an_environment_anew(bench):
    assert bench.install() == (0, "")
    write_wheel(bench.artifacts(), "tiny", "1.0", "py3-none-any", {"tiny.py": b"WORD = 'other'\n"})
    assert bench.install() == (0, "")
    assert bench.word() == "other", "the wheels changed under the same version"
    (bench.venv() / "bin" / "python").unlink()
    assert bench.install() == (0, "")
    assert bench.word() == "other", "its Python went away"


CANNOT = "{python} is no Python that can make a virtual environment; install one"


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda bench: next(bench.artifacts().glob("*.whl")).unlink(), "There is no wheel in "),
        (lambda bench: (bench.artifacts() / "a.proto").touch(), "The stubs of a.proto cannot be made; what is above "),
        (lambda bench: {"requirements": ("absent",)}, "absent cannot be installed from the wheels in "),
        (lambda bench: {"python": "/nowhere/python3"}, CANNOT.format(python="/nowhere/python3")),
        (
            lambda bench: {"python": bench.script("python", "exit 1")},
            "/python is no Python that can make a virtual environment",
        ),
    ],
)
def test_an_install_that_fails_says_why(bench, spoil, told):
    arguments = spoil(bench)
    arguments = arguments if isinstance(arguments, dict) else {}
    code, last = bench.install(*arguments.pop("requirements", ()), **arguments)
    assert code == 1
    assert told in last
    assert last.endswith(".")
    assert not (bench.venv() / "made-of").exists()


# 4. Running.


@pytest.fixture(scope="module")
def agent(module_folder) -> Iterator[Agent]:
    models = module_folder / "models"
    packages.segmenter(models / MODEL, SIZE)
    packages.write(models / "com.example.Broken", packages.manifest(), b"not ONNX")
    with serving(models) as running:
        yield running


def stop(agent: Agent) -> None:
    if agent.state(MODEL) != "STOPPED":
        agent.stub().StopModel(pb2.StopModelRequest(model_component=MODEL), timeout=PLENTY)


def save(path: Path, level: int, part: float = 1.0, size: tuple[int, int] = SIZE) -> Path:
    """Write an image whose left `part` has this level, and the rest none; a score is the mean."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[:, : round(part * size[0])] = level
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def images(folder) -> Path:
    """A folder with images: a normal one, an anomalous one, and one of which the model is less sure."""
    made = folder / "images"
    made.mkdir()
    save(made / "bright.PNG", 230)
    save(made / "dark.png", 51)
    save(made / "quarter.bmp", 255, 0.25)
    (made / ".hidden.png").touch()
    (made / "notes.txt").touch()
    return made


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


BRIGHT = {"name": "bright", "total_percentage_area": 1.0, "hex_color": "#23A436"}
BACKGROUND = {"name": "background", "total_percentage_area": 1.0, "hex_color": "#FFFFFF"}


@both_nuclei
def test_folder(device, agent, images, kind):
    stop(agent)
    results = device.work(FOLDER) / "results"
    shutil.rmtree(results, ignore_errors=True)
    done = device.on(kind).run(
        FOLDER, "run", Socket=f"unix://{agent.socket}", Images=str(images), MinimalConfidence="0.78", Results="True"
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == f"{MODEL} is RUNNING. {agent.describe(MODEL).status_message}".rstrip()
    told = lines(done.stdout)
    assert [(Path(one["file"]).name, one["verdict"]) for one in told] == [
        ("bright.PNG", "anomalous"),
        ("dark.png", "normal"),
        ("quarter.bmp", "uncertain"),
    ]
    assert [one["confidence"] for one in told] == pytest.approx([230 / 255, 0.8, 0.75], abs=1e-4)
    quarter = [{**BACKGROUND, "total_percentage_area": 0.75}, {**BRIGHT, "total_percentage_area": 0.25}]
    assert [one["anomalies"] for one in told] == [[BRIGHT], [BACKGROUND], quarter]
    assert all(one.keys() == {"file", "verdict", "confidence", "anomalies"} for one in told)
    assert {path.name for path in results.iterdir()} == {
        f"{name}{suffix}" for name in ("bright.PNG", "dark.png", "quarter.bmp") for suffix in (".png", ".json")
    }
    assert json.loads((results / "dark.png.json").read_text()) == told[1]
    with Image.open(results / "bright.PNG.png") as picture:
        assert picture.width == SIZE[0]
        assert picture.height > SIZE[1], "the legend is below the image"


def test_folder_keeps_nothing_unless_told_to(device, agent, images):
    shutil.rmtree(device.work(FOLDER) / "results", ignore_errors=True)
    before = stamps(device.work(FOLDER))
    done = device.run(FOLDER, "run", Socket=str(agent.socket), Images=f"{images}/", Pattern=" dark.* ,*.BMP,")
    assert done.returncode == 0, done.stderr
    assert [Path(one["file"]).name for one in lines(done.stdout)] == ["dark.png", "quarter.bmp"]
    assert stamps(device.work(FOLDER)) == before


def progress(line: str) -> bool:
    return re.match(r"\S+ is (STARTING|RUNNING|FAILED)\.", line) is not None


@pytest.mark.parametrize(
    ("configuration", "told"),
    [
        ({"Socket": "unix:///tmp/nobody-is-here.sock"}, "No agent answers on unix:///tmp/nobody-is-here.sock. Is it"),
        ({"Socket": "tcp:1"}, "only Unix domain sockets with a path are served"),
        ({"ModelComponent": "com.example.Unknown"}, "No model component 'com.example.Unknown' is deployed"),
        ({"ModelComponent": "com.example.Broken"}, "The model is FAILED: "),
        ({"ModelComponent": ""}, "ModelComponent is empty; name the model"),
        ({"Images": ""}, "Images is empty; name the folder"),
        ({"Images": "/nowhere"}, "Images: /nowhere cannot be read as a folder: No such file or directory."),
        ({"Images": "/nowhere", "Interval": "1"}, "Images: /nowhere cannot be read as a folder: No such file"),
        ({"Pattern": "*.webp"}, "Images: no file in /"),
        ({"Interval": "soon"}, "Interval is 'soon'; write the seconds between two looks, or 0 for one."),
        ({"Interval": "nan"}, "Interval is 'nan'; "),
        ({"Interval": "-1"}, "Interval is '-1'; "),
        ({"MinimalConfidence": "1.5"}, "MinimalConfidence is '1.5'; write 0 to 1."),
        ({"Results": "yes"}, "Results is 'yes'; write true or false."),
    ],
)
def test_folder_fails_in_a_sentence(device, agent, images, configuration, told):
    done = device.run(FOLDER, "run", **{"Socket": str(agent.socket), "Images": str(images), **configuration})
    assert (done.returncode, done.stdout) == (1, "")
    (sentence,) = [line for line in done.stderr.splitlines() if not progress(line)]
    assert sentence.startswith(told)


def test_folder_tells_of_images_that_cannot_be_judged(device, agent, images):
    save(images / "a-small.png", 51, size=(64, 64))
    (images / "b-text.png").write_text("no image")
    done = device.run(FOLDER, "run", Socket=str(agent.socket), Images=str(images))
    assert done.returncode == 1
    small, text, *others = lines(done.stdout)
    assert small["error"].startswith("bitmap is 64x64")
    assert text == {"file": str(images / "b-text.png"), "error": "is not an image that Pillow can read"}
    assert [one["verdict"] for one in others] == ["anomalous", "normal", "normal"]
    assert done.stderr.splitlines()[-1] == "2 of 5 images had an error, which their lines tell."


def test_folder_tells_of_results_that_cannot_be_written(device, agent, images):
    results = device.work(FOLDER) / "results"
    shutil.rmtree(results, ignore_errors=True)
    results.touch()
    done = device.run(FOLDER, "run", Socket=str(agent.socket), Images=str(images), Pattern="dark.png", Results="true")
    results.unlink()
    (line,) = lines(done.stdout)
    assert done.returncode == 1
    assert line["verdict"] == "normal"
    assert line["error"].startswith(f"the results cannot be written into {device.work(FOLDER)}")


@contextmanager
def watching(device: Nucleus, agent: Agent, images: Path, folder: Path) -> Iterator[tuple[subprocess.Popen, Any, Any]]:
    """Yield the client that watches a folder, and functions that return what it has told and said so far."""
    out, errors = folder / "out", folder / "errors"
    configuration = {"Socket": str(agent.socket), "Images": str(images), "Interval": "0.1"}
    with out.open("w") as stdout, errors.open("w") as stderr:
        process = device.popen(FOLDER, "run", configuration, stdout=stdout, stderr=stderr)
    try:
        yield process, lambda: [Path(one["file"]).name for one in lines(out.read_text())], errors.read_text
    finally:
        process.kill()
        process.wait()


def test_folder_watches_and_outlives_the_agent(device, images, folder):
    packages.segmenter(folder / "models" / MODEL, SIZE)
    own = Agent(folder / "models", folder=folder)
    try:
        own.start()
        with watching(device, own, images, folder) as (process, told, said):
            there = ["bright.PNG", "dark.png", "quarter.bmp"]
            until(lambda: told() == there, "what is there is judged")
            assert own.stop() == 0
            save(images / "new.png", 51)
            until(lambda: "Waiting." in said(), "the client has noticed")
            own.start()
            until(lambda: told() == [*there, "new.png"], "the new image is judged, and no other again")
            save(images / "dark.png", 60)
            until(lambda: told() == [*there, "new.png", "dark.png"], "a changed image is judged again")
            assert process.poll() is None
            assert said().count("Waiting.") == 1
    finally:
        own.close()


def test_folder_ends_at_sigterm_and_leaves_nothing(device, agent, images, folder):
    with watching(device, agent, images, folder) as (process, told, said):
        until(lambda: len(told()) == 3, "what is there is judged")
        segments = {
            str(entry.readlink())
            for entry in Path(f"/proc/{process.pid}/fd").iterdir()
            if str(entry.readlink()).startswith("/dev/shm/edge-agent-client-")
        }
        assert segments, "the process is the client itself, and holds shared memory"
        process.terminate()
        assert process.wait(30) == -signal.SIGTERM
        assert not any(Path(one).exists() for one in segments)
        assert "Traceback" not in said()


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


class Over(Exception):
    """The looks of a test are over."""


def watch(monkeypatch, capsys, folder: Path, looks: list[Any], failing: Mapping[int, Exception] = {}) -> list[str]:
    """Return the names judged, calling one of `looks` before each look after the first; `failing` calls fail."""
    module = load(CLIENTS / "folder" / "detect_folder.py")
    calls = 0

    def detect(*_: object) -> Detection:
        nonlocal calls
        calls += 1
        if calls in failing:
            raise failing[calls]
        return Detection(False, 0.9, 0.1, 0.5, (), None)

    def sleep(_: float) -> None:
        if not looks:
            raise Over
        looks.pop(0)()

    started = []
    client = SimpleNamespace(start_and_wait=lambda model, progress: started.append(model), detect=detect)
    monkeypatch.setattr(module.time, "sleep", sleep)
    settings = module.Settings.read({"MODEL_COMPONENT": MODEL, "IMAGES": str(folder), "INTERVAL": "1"})
    with pytest.raises(Over):
        module.watch(client, settings)
    assert started == [MODEL] * (1 + len(failing))
    return [Path(one["file"]).name for one in lines(capsys.readouterr().out)]


def nothing() -> None:
    pass


def test_watch_takes_what_two_looks_agree_on(monkeypatch, capsys, tmp_path):
    """A file that grows from look to look is being written, and is judged once it does not."""
    path = tmp_path / "a.png"
    whole = save(tmp_path / "whole.png", 51).read_bytes()
    (tmp_path / "whole.png").unlink()
    parts = [lambda size=size: path.write_bytes(whole[:size]) for size in (10, 50, 90, len(whole))]
    assert watch(monkeypatch, capsys, tmp_path, parts[:]) == []
    path.unlink()
    assert watch(monkeypatch, capsys, tmp_path, [*parts, nothing, nothing]) == ["a.png"]


def test_watch_judges_again_what_is_replaced_or_comes_back(monkeypatch, capsys, tmp_path):
    path = save(tmp_path / "a.png", 51)
    away = tmp_path / "away"

    def replace() -> None:
        save(tmp_path / "b.png", 52).replace(path)

    changes = [replace, lambda: path.rename(away), lambda: away.rename(path)]
    looks = [nothing, nothing, *(step for change in changes for step in (change, nothing, nothing))]
    assert watch(monkeypatch, capsys, tmp_path, looks) == ["a.png"] * 3


def test_watch_tries_again_what_passed_by(monkeypatch, capsys, tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        save(tmp_path / name, 51)
    away = AgentUnavailable(None, "No agent answers.")
    judged = watch(monkeypatch, capsys, tmp_path, [nothing] * 4, {2: away, 3: away})
    assert judged == ["a.png", "b.png", "c.png"]


def test_minimal_lists(device, agent):
    stop(agent)
    done = device.run(MINIMAL, "run", Socket=f"unix://{agent.socket}")
    assert (done.returncode, done.stderr) == (0, "")
    boards, broken, last = done.stdout.splitlines()
    assert boards.startswith(f"{MODEL} STOPPED")
    assert broken.startswith("com.example.Broken FAILED ")
    assert last == "Image is empty in the configuration: nothing is judged."
    assert agent.state(MODEL) == "STOPPED"


@both_nuclei
def test_minimal_judges(device, agent, images, kind):
    stop(agent)
    image = images / "quarter.bmp"
    done = device.on(kind).run(MINIMAL, "run", Socket=f"unix://{agent.socket}", Image=str(image))
    assert (done.returncode, done.stderr) == (0, "")
    told = done.stdout.splitlines()
    assert told[0].split()[:2] == [MODEL, "STOPPED"]
    assert told[2:4] == ["normal 0.7500", f"mask 80x64, {3 * 80 * 64} bytes"]
    assert '    name: "bright"' in told
    assert "anomaly_mask" not in done.stdout


def test_minimal_clients_that_start_a_model_at_once(device, agent, images):
    """Only one StartModel is taken; nobody may lose for that."""
    stop(agent)
    configuration = {"Socket": f"unix://{agent.socket}", "Image": str(images / "dark.png")}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [device.popen(MINIMAL, "run", configuration, **streams) for _ in range(4)]
    for process in processes:
        out, _ = process.communicate(timeout=PLENTY)
        assert process.returncode == 0, out
        assert "normal 0.8000" in out


class Refusal(grpc.RpcError):
    """A call that was refused."""

    def __init__(self, code: grpc.StatusCode) -> None:
        self.code = lambda: code


@pytest.mark.parametrize(
    ("refused", "outcome"), [("FAILED_PRECONDITION", [pb2.STARTING, pb2.RUNNING]), ("RESOURCE_EXHAUSTED", None)]
)
def test_minimal_lets_another_start_the_model(monkeypatch, refused, outcome):
    """The state was STOPPED when it looked, and is not any more when it calls StartModel."""
    monkeypatch.setitem(sys.modules, "edge_agent_pb2", pb2)
    monkeypatch.setitem(sys.modules, "edge_agent_pb2_grpc", SimpleNamespace(EdgeAgentStub=None))
    module = load(CLIENTS / "minimal" / "minimal_client.py")
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    states = [pb2.STOPPED, *(outcome or [])]

    def describe(_: object) -> pb2.DescribeModelResponse:
        return pb2.DescribeModelResponse(model_description={"status": states.pop(0)})

    def start(_: object) -> None:
        raise Refusal(grpc.StatusCode[refused])

    stub = SimpleNamespace(DescribeModel=describe, StartModel=start)
    if outcome:
        assert module.start(stub) is True
    else:
        with pytest.raises(Refusal):
            module.start(stub)
    assert states == []


@pytest.mark.parametrize(
    ("configuration", "told", "starts"),
    [
        ({"Socket": "unix:///tmp/nobody-is-here.sock"}, "UNAVAILABLE: ", False),
        ({"ModelComponent": "com.example.Unknown"}, "NOT_FOUND: No model component 'com.example.Unknown'", True),
        ({"ModelComponent": "com.example.Broken"}, "com.example.Broken is FAILED: ", True),
        ({"ModelComponent": ""}, "INVALID_ARGUMENT: model_component is ''", True),
        ({"Image": "/nowhere.png"}, "Image: /nowhere.png: No such file or directory.", True),
        ({"Image": "/etc/passwd"}, "Image: /etc/passwd: is not an image that Pillow can read.", True),
        ({"Image": "small"}, "INVALID_ARGUMENT: bitmap is 64x64", True),
    ],
)
def test_minimal_fails_in_a_sentence(device, agent, images, configuration, told, starts):
    small = save(images / "small.png", 51, size=(64, 64))
    if configuration.get("Image") == "small":
        configuration = {"Image": str(small)}
    wanted = {"Socket": f"unix://{agent.socket}", "Image": str(images / "dark.png"), **configuration}
    done = device.run(MINIMAL, "run", **wanted)
    assert done.returncode == 1
    assert done.stderr.startswith(told)
    assert len(done.stderr.splitlines()) == 1
    assert len(done.stdout.splitlines()) == (2 if starts else 0), "the models that were listed before"
