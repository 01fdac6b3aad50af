"""One flipped bit anywhere in a package: the model never runs, its message names the file, and it never vanishes.

Most flips are judged in this process, by the steps that the agent and its worker take, one after the other; a handful go
through a real agent.
"""

import hashlib
import json
import os
import platform
import random
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest

from edge_agent import backends, block, device, graphs, packages
from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent.errors import PackageRefused
from edge_agent.jobs import SessionOptions
from edge_agent.pipeline import Pipeline
from model_packager import destinations, packaging, writing
from support import packages as made
from support.agent import Agent
from support.waiting import until

MANIFEST, MODEL, WEIGHTS = "manifest.json", "mochi/model.onnx", "mochi/weights.data"
# The numbers of cases that are promised; each test counts what it did.
RANDOM_FLIPS = 200
FLIPS_IN_EACH_FILE = 3
FILES = {"compiled": 2, "plain": 2, "external": 3}
FLIPS_THROUGH_AN_AGENT = 13


def compiled(root: Path) -> None:
    """As a job writes it, in the folder where it writes it: every key of the block, a graph with everything inside."""
    arch = next(arch for arch, machines in device.MACHINES.items() if platform.machine() in machines)
    greengrass = {"ComponentName": "board", "TargetPlatform": {"Os": "LINUX", "Arch": arch}}
    if arch == "X86_64":
        greengrass["CompilerOptions"] = json.dumps({"mcpu": "x86-64"})  # every machine that runs this test has it
    order = {
        "request": {
            "ProjectName": "P",
            "ModelVersion": "1",
            "JobName": "j",
            "Configuration": {"Greengrass": greengrass},
        },
        "output": str(root),
    }
    with tempfile.TemporaryDirectory() as work:
        order["source"] = str(made.segmenter(Path(work, "source")))
        packaging.run(order, Path(work), destinations.of(str(root)), lambda _step, _fraction: None)
    for beside in [one for one in (root / "board" / "1.0.0").iterdir() if one.is_file()]:
        beside.unlink()  # the zip and the recipes, which no agent reads


def plain(root: Path) -> None:
    """With a block, and the network as it was trained: without its block it would be a component of the field."""
    writing.write(root / "board", made.manifest(), made.brightness(mask=False), "board")


def external(root: Path) -> None:
    """In a folder of another name, with its weights in a second file."""
    folder = root / "unpacked"
    (folder / "mochi").mkdir(parents=True)
    model = onnx.load_model_from_string(made.constant(scores=[0.25, 0.75]))
    onnx.save(model, folder / MODEL, save_as_external_data=True, location="weights.data", size_threshold=0)
    listed = {path: (folder / path).read_bytes() for path in (MODEL, WEIGHTS)}
    files = {path: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for path, data in listed.items()}
    content = {**made.manifest(), "package": {**COMPONENT, "files": files}}
    (folder / MANIFEST).write_bytes(made.manifest_bytes(content))


COMPONENT = {"format": 1, "component": {"name": "board", "version": "1.0.0"}}
KINDS: dict[str, Callable[[Path], None]] = {"compiled": compiled, "plain": plain, "external": external}


@pytest.fixture(scope="module")
def templates(module_folder) -> Path:
    for kind, make in KINDS.items():
        make(module_folder / kind)
    for path in module_folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return module_folder


@dataclass(frozen=True)
class State:
    """What an agent that starts now would say of the one package in a models folder."""

    state: str
    name: str = ""
    message: str = ""


class Package:
    """A package below a models folder of its own."""

    def __init__(self, root: Path, kind: str) -> None:
        self.root = root
        self.kind = kind
        (path,) = root.rglob(MANIFEST)
        self.folder = path.parent
        self.files = sorted(str(one.relative_to(self.folder)) for one in self.folder.rglob("*") if one.is_file())

    def bits(self, file: str) -> int:
        return 8 * (self.folder / file).stat().st_size

    def flip(self, file: str, bit: int) -> None:
        """Flip a bit of a file in its place; doing it again undoes it."""
        with (self.folder / file).open("r+b", buffering=0) as opened:
            opened.seek(bit // 8)
            (byte,) = opened.read(1)
            opened.seek(bit // 8)
            opened.write(bytes([byte ^ 1 << bit % 8]))

    def state(self) -> State:
        """Find, look, read, load and warm up, as an agent and its worker do."""
        folders = list(packages.search(self.root, _unreadable))
        if len(folders) != 1:
            return State("VANISHED", message=f"{len(folders)} packages are found")
        found = packages.look(folders[0], self.root, packages.Rules())
        if found.package is None:
            return State("FAILED", found.name, found.refusal)
        try:
            session = backends.open_session(packages.read_model(found.package), SessionOptions(threads=1))
            Pipeline(found.package.manifest, graphs.of(found.package.manifest, session)).warm_up()
        except PackageRefused as refusal:
            return State("FAILED", found.name, str(refusal))
        return State("RUNNING", found.name)

    def judge(self, file: str, bit: int) -> None:
        """Flip a bit, check what is said of it, and undo it."""
        self.flip(file, bit)
        told = self.state()
        self.flip(file, bit)
        where = f"bit {bit % 8} of byte {bit // 8} of {file} ({self.kind})"
        assert told.state == "FAILED", f"{where}: {told}"
        assert file in told.message, f"{where}: {told}"
        assert "log has the cause" not in told.message, f"{where}: {told}"
        if not self.names_itself(file, bit):
            assert told.name == "board", f"{where}: {told}"

    def names_itself(self, file: str, bit: int) -> bool:
        """Return whether a bit is of the words that name a component which its path does not name."""
        if file != MANIFEST or self.kind == "compiled":
            return False
        data = (self.folder / file).read_bytes()
        begin, end = data.index(b'"component"'), data.index(b'"1.0.0"') + len(b'"1.0.0"')
        return begin <= bit // 8 < end


def _unreadable(error: OSError) -> None:
    raise error


@pytest.fixture(params=KINDS)
def package(request, templates, tmp_path) -> Package:
    shutil.copytree(templates / request.param, tmp_path / "models")
    return Package(tmp_path / "models", request.param)


def test_without_damage_it_runs_and_a_flip_is_really_written(package):
    """Negative control."""
    assert package.state() == State("RUNNING", "board")
    assert len(package.files) == FILES[package.kind]
    for file in package.files:
        before = (package.folder / file).read_bytes()
        for bit in (0, package.bits(file) - 1):
            package.flip(file, bit)
            after = (package.folder / file).read_bytes()
            assert len(after) == len(before)
            different = int.from_bytes(before, "big") ^ int.from_bytes(after, "big")
            assert different.bit_count() == 1
            package.flip(file, bit)
            assert (package.folder / file).read_bytes() == before
    assert package.state() == State("RUNNING", "board")


def test_one_flipped_bit_in_each_file(package, caplog):
    done = 0
    for file in package.files:
        for bit in (0, package.bits(file) // 2, package.bits(file) - 1):
            package.judge(file, bit)
            done += 1
    assert done == FLIPS_IN_EACH_FILE * FILES[package.kind]
    assert package.state().state == "RUNNING"
    assert caplog.text == ""


def test_random_flips(package, caplog):
    seed = int(os.environ.get("DAMAGE_SEED") or random.randrange(1 << 32))
    print(f"DAMAGE_SEED={seed}")
    chance = random.Random(seed)
    sizes = [package.bits(file) for file in package.files]
    done = set()
    while len(done) < RANDOM_FLIPS:
        (file,) = chance.choices(package.files, sizes)
        bit = chance.randrange(package.bits(file))
        if (file, bit) not in done:
            package.judge(file, bit)
            done.add((file, bit))
    assert len(done) == RANDOM_FLIPS
    assert package.state().state == "RUNNING"
    assert caplog.text == ""


def test_every_byte_of_the_manifest(package, caplog):
    """Keys, numbers, digests, brackets and spaces: one bit of each, another bit each time."""
    done = 0
    for byte in range(package.bits(MANIFEST) // 8):
        package.judge(MANIFEST, 8 * byte + byte % 8)
        done += 1
    assert done == len((package.folder / MANIFEST).read_bytes()) > 800
    assert caplog.text == ""


WORDS = (b'"package"', b'"model_graph"', b'"manifest_sha256"', b'"threshold"', b'"sha256"', b'"files"')


def test_every_bit_of_the_words_that_a_check_looks_for(package):
    data = (package.folder / MANIFEST).read_bytes()
    bits = [8 * data.index(word) + bit for word in WORDS for bit in range(8 * len(word))]
    for bit in bits:
        package.judge(MANIFEST, bit)
    assert len(bits) == 8 * sum(map(len, WORDS)) == 8 * 65


def place(content: bytes, word: bytes, behind: bool = False) -> int:
    """Return the first bit of a word in a file, or of what stands behind it."""
    return 8 * (content.index(word) + (len(word) if behind else 0))


# What is flipped in the packages of one agent; each is a model of its own.
DAMAGES: dict[str, tuple[str, Callable[[bytes], int]]] = {
    "brace": (MANIFEST, lambda _: 0),
    "last-byte": (MANIFEST, lambda data: 8 * len(data) - 1),
    "space": (MANIFEST, lambda data: place(data, b'": ', behind=True) - 8),
    "package": (MANIFEST, lambda data: place(data, b'"package"') + 8),
    "graph": (MANIFEST, lambda data: place(data, b'"model_graph"') + 8),
    "own-digest": (MANIFEST, lambda data: place(data, b'"manifest_sha256": "', behind=True)),
    "own-digest-key": (MANIFEST, lambda data: place(data, b'"manifest_sha256"') + 8),
    "threshold": (MANIFEST, lambda data: place(data, b'"threshold": 0.', behind=True)),
    "file-digest": (MANIFEST, lambda data: place(data, b'"sha256": "', behind=True)),
    "class-name": (MANIFEST, lambda data: place(data, b'"bright"') + 8),
    "model-first": (MODEL, lambda _: 0),
    "model-middle": (MODEL, lambda data: 4 * len(data)),
    "model-last": (MODEL, lambda data: 8 * len(data) - 1),
}


def named(template: Path, root: Path, name: str, version_folder: bool) -> Package:
    """Copy the compiled package under another component's name."""
    (source,) = template.rglob(MANIFEST)
    folder = root / name / "1.0.0" / "x_greengrass_model_component" if version_folder else root / f"folder-of-{name}"
    shutil.copytree(source.parent, folder)
    content = json.loads(source.read_bytes())
    content["package"]["component"]["name"] = name
    (folder / MANIFEST).write_bytes(block.sign(json.dumps(content, indent=1).encode()))
    return Package(folder, "compiled")


def start(agent: Agent, name: str) -> tuple[str, str]:
    """Start a model and return what it came to."""
    agent.stub().StartModel(pb2.StartModelRequest(model_component=name), timeout=30)
    until(lambda: agent.state(name) != "STARTING", f"{name} has been tried")
    return agent.state(name), agent.describe(name).status_message


def listed(agent: Agent) -> dict[str, str]:
    response = agent.stub().ListModels(pb2.ListModelsRequest(), timeout=30)
    return {one.model_component: pb2.ModelStatus.Name(one.status) for one in response.models}


@pytest.mark.parametrize("version_folder", [True, False], ids=["as a job lays it out", "in folders of other names"])
def test_through_an_agent_and_the_next_one(templates, folder, version_folder):
    made = {
        name: named(templates / "compiled", folder / "models", name, version_folder) for name in (*DAMAGES, "whole")
    }
    agent = Agent(folder / "models", folder=folder)
    done = 0
    try:
        agent.start()
        assert listed(agent) == dict.fromkeys(made, "STOPPED")
        for name, (file, bit) in DAMAGES.items():
            made[name].flip(file, bit((made[name].folder / file).read_bytes()))
        for name, (file, _) in DAMAGES.items():
            state, message = start(agent, name)
            assert (state, file in message) == ("FAILED", True), (name, state, message)
            done += 1
        assert done == FLIPS_THROUGH_AN_AGENT
        agent.run_model("whole")
        expected = {**dict.fromkeys(DAMAGES, "FAILED"), "whole": "RUNNING"}
        assert listed(agent) == expected
        agent.stop()
        agent.start()
        until(lambda: listed(agent) == expected, "what was started is started again")
        for name, (file, _) in DAMAGES.items():
            assert file in agent.describe(name).status_message
        assert "Traceback" not in agent.log()
    finally:
        agent.close()


@pytest.mark.parametrize("file", [MANIFEST, MODEL])
def test_a_model_that_runs_is_not_disturbed_and_recovers(templates, folder, file):
    package = named(templates / "compiled", folder / "models", "board", version_folder=True)
    bit = DAMAGES["package"][1]((package.folder / MANIFEST).read_bytes()) if file == MANIFEST else 0
    agent = Agent(folder / "models", folder=folder)
    try:
        agent.start()
        agent.run_model("board")
        package.flip(file, bit)
        until(lambda: "has changed" in agent.describe("board").status_message, "the change is told")
        assert listed(agent) == {"board": "RUNNING"}
        agent.stub().StopModel(pb2.StopModelRequest(model_component="board"), timeout=30)
        state, message = start(agent, "board")
        assert (state, file in message) == ("FAILED", True), message
        package.flip(file, bit)
        until(lambda: start(agent, "board")[0] == "RUNNING", "it is whole again")
        assert "Traceback" not in agent.log()
    finally:
        agent.close()
