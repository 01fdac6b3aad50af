"""Compiled packages over the socket: the verdicts of their sources, on the devices they are for, from checked bytes alone."""

import dataclasses
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from edge_agent import backends, block, device, graphs, packages
from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent.accelerators import NO_DRIVER, ON_CPU
from edge_agent.jobs import SessionOptions
from edge_agent.pipeline import Pipeline
from model_packager import destinations, packaging, writing
from support import packages as made
from support.agent import Agent, serving
from support.calls import OK, PRECONDITION, outcome, padded, picture, request
from support.waiting import until

HERE, OTHER = ("ARM64", "X86_64") if platform.machine() in device.MACHINES["ARM64"] else ("X86_64", "ARM64")


def compile_package(source: Path, output: Path, name: str, arch: str = HERE, **options: object) -> Path:
    """Package a component as a job does, compared with its source on noise; return the package's folder."""
    greengrass = {"ComponentName": name, "TargetPlatform": {"Os": "LINUX", "Arch": arch}}
    if arch == "X86_64":
        greengrass["CompilerOptions"] = json.dumps({"mcpu": "x86-64"})  # every machine that runs this test has it
    order = {
        "request": {
            "ProjectName": "P",
            "ModelVersion": "1",
            "JobName": "j",
            "Configuration": {"Greengrass": greengrass},
        },
        "output": str(output),
        "source": str(source),
        "options": options,
    }
    with tempfile.TemporaryDirectory() as work:
        packaging.run(order, Path(work), destinations.of(str(output)), lambda _step, _fraction: None)
    (folder,) = (output / name / "1.0.0").glob("*_greengrass_model_component")
    return folder


def bright(folder: Path) -> Path:
    """Every stage key that changes a verdict; rows of 198 bytes."""
    calibration = {"calibrated": True, "calibrator_scaling": -6.0, "calibrator_shift": 3.0}
    return made.segmenter(folder, (66, 70), classification_logic="cls_or_seg", **calibration)


def scaled(folder: Path) -> Path:
    """Another image size than the network's, and a bias that decides pixels."""
    names = ("background", "bright")
    content = made.manifest(image_size=(101, 77), segmentation=True, pixel_names=names, seg_recall_bias=0.3)
    return made.write(folder, content, made.brightness())


def three(folder: Path) -> Path:
    """Three classes in a mask of its own size, and no classification head."""
    logits = np.random.default_rng(5).normal(size=(3, 16, 24))
    names = ("background", "dent", "scratch")
    content = made.manifest(size=(72, 64), classification=False, segmentation=True, pixel_names=names)
    return made.write(folder, content, made.constant(logits=logits, size=(72, 64)))


def sorter(folder: Path) -> Path:
    return made.classifier(folder, normalize=True, threshold=0.1)


SOURCES: dict[str, tuple[Callable[[Path], Path], tuple[int, int]]] = {
    "bright": (bright, (66, 70)),
    "scaled": (scaled, (101, 77)),
    "three": (three, (72, 64)),
    "sorter": (sorter, (64, 64)),
}


@pytest.fixture(scope="module")
def sources(module_folder) -> Path:
    for name, (make, _) in SOURCES.items():
        make(module_folder / "sources" / name)
    for path in (module_folder / "sources", *(module_folder / "sources").rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return module_folder / "sources"


@pytest.fixture(scope="module")
def output(sources) -> Path:
    """The folder that jobs write to, which is a models folder as it is."""
    for name in SOURCES:
        compile_package(sources / name, sources.parent / "output", f"{name}-compiled")
    return sources.parent / "output"


@pytest.fixture(scope="module")
def agent(sources, output) -> Iterator[Agent]:
    with serving(sources, output) as agent:
        for name in SOURCES:
            agent.run_model(name)
            agent.run_model(f"{name}-compiled")
        yield agent
        assert "Traceback" not in agent.log()


def test_the_packages_are_compiled(output):
    looked = [
        packages.look(path, output, packages.Rules({path.lstat().st_uid}))
        for path in packages.search(output, lambda _: None)
    ]
    assert [(one.name, one.package.manifest.block.compiled) for one in looked] == [
        (f"{name}-compiled", True) for name in sorted(SOURCES)
    ]


@pytest.mark.parametrize("name", SOURCES)
def test_the_same_verdict_mask_and_areas_however_the_image_comes(agent, segment, name):
    width, height = SOURCES[name][1]
    stub = agent.stub()
    seen = set()
    for seed in range(4):
        # Dark and light ones, so that there are verdicts of both kinds.
        pixels = picture(width, height, seed) // (1 + seed % 2)
        packed, size = pixels.tobytes(), 3 * width * height
        answers = [self_told(stub, f"{name}{which}", width, height, packed) for which in ("", "-compiled")]
        assert answers[0].score == pytest.approx(answers[1].score, abs=1e-6)
        same = [dataclasses.replace(one, score=round(one.score, 4)) for one in answers]
        assert same[0] == same[1]
        others = [self_told(stub, f"{name}-compiled", width, height, padded(pixels))]
        image, mask = segment(size, packed), segment(size)
        others.append(self_told(stub, f"{name}-compiled", width, height, handle=(image, size)))
        others.append(self_told(stub, f"{name}-compiled", width, height, handle=(image, size), mask=(mask, size)))
        if answers[1].mask:
            others[-1] = dataclasses.replace(others[-1], mask=Path("/dev/shm", mask.strip("/")).read_bytes())
        assert others == [answers[1]] * 3
        seen.add(answers[1])
    assert len({one.score for one in seen}) > 1 or name == "three", "the images do not make a difference"
    assert len({one.is_anomalous for one in seen}) == 2 or name == "three"


@dataclasses.dataclass(frozen=True)
class Told:
    """What a response says, whoever gave it."""

    is_anomalous: bool
    score: float
    threshold: float
    areas: tuple[tuple[str, float, str], ...]
    mask: bytes


def self_told(stub, name: str, width: int, height: int, pixels: bytes | None = None, **fields: object) -> Told:
    code, details, response = outcome(stub.DetectAnomalies, request(name, width, height, pixels, **fields))
    assert code == OK, details
    result = response.detect_anomaly_result
    areas = [
        (one.name, one.pixel_anomaly.total_percentage_area, one.pixel_anomaly.hex_color) for one in result.anomalies
    ]
    assert not areas or sum(area for _, area, _ in areas) == pytest.approx(1)
    return Told(
        result.is_anomalous, result.anomaly_score, result.anomaly_threshold, tuple(areas), result.anomaly_mask.byte_data
    )


def test_any_image_size_is_what_the_package_says(sources, folder):
    compile_package(sources / "sorter", folder, "any-size", any_image_size=True)
    with serving(folder) as agent:
        agent.run_model("any-size")
        assert self_told(agent.stub(), "any-size", 97, 65, picture(97, 65).tobytes()).score > 0


MISSING = next(
    one
    for one in ("avx512f", "amx_tile", "sve2", "avx10_2", "of_tomorrow")
    if one not in device.cpu_flags(device.CPUINFO)
)
NVIDIA = {"accelerator": "NVIDIA", "compiler_options": {"gpu-code": "sm_87", "trt-ver": "10.3.0"}}
NO_INSTRUCTION = "this device's processor lacks that. Compile it with an mcpu that this device has."
NO_GPU = f"and there is no GPU for it: {NO_DRIVER} {ON_CPU}"
NOTE = "The package was compiled for GPU sm_87 (here: none) and TensorRT 10.3.0 (here: none)."
# Component -> what its target says, and the sentence that refuses it.
REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "other-arch": (
        {"arch": OTHER},
        f"The package was compiled for {OTHER}; this device is {platform.machine()}. Compile it for this architecture.",
    ),
    "newer-cpu": (
        {"cpu_flags": [MISSING], "compiler_options": {"mcpu": "newer"}},
        f"The package was compiled for newer, which needs {MISSING}; {NO_INSTRUCTION}",
    ),
    "jetson": (
        {**NVIDIA, "device": "jetson_orin_nx"},
        f"The package was compiled for jetson_orin_nx, {NO_GPU}",
    ),
    "nvidia": (NVIDIA, f"The package was compiled for NVIDIA, {NO_GPU}"),
}


@pytest.fixture(scope="module")
def targets(module_folder, output) -> Path:
    (package,) = (output / "sorter-compiled" / "1.0.0").glob("*_component")
    model = (package / "mochi" / "model.onnx").read_bytes()
    made_for = {"mine": {}, "other-gpu": {"compiler_options": NVIDIA["compiler_options"]}}
    made_for |= {name: target for name, (target, _) in REFUSED.items()}
    root = module_folder / "targets"
    for name, target in made_for.items():
        more = {"graph": block.COMPILED, "target": {"os": "LINUX", "arch": HERE, **target}}
        writing.write(root / name, made.manifest(normalize=True), model, name, more=more)
    for path in (root, *root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return root


class TestTarget:
    """Who may run it is decided before it is started, and said."""

    def test_advisory(self, targets):
        with serving(targets) as agent:
            for name, (_, sentence) in REFUSED.items():
                assert (agent.state(name), agent.describe(name).status_message) == ("FAILED", sentence)
                agent.stub().StartModel(pb2.StartModelRequest(model_component=name))
                until(lambda name=name: agent.state(name) != "STARTING", "it has been tried")
                assert (agent.state(name), agent.describe(name).status_message) == ("FAILED", sentence)
            for name, message in {"mine": "", "other-gpu": NOTE}.items():
                assert (agent.state(name), agent.describe(name).status_message) == ("STOPPED", message)
                agent.run_model(name)
                assert agent.describe(name).status_message == message
                assert self_told(agent.stub(), name, 64, 64, picture(64, 64).tobytes()).score > 0
            assert "Traceback" not in agent.log()

    def test_strict(self, targets):
        with serving(targets, target="strict") as agent:
            sentence = f"{NOTE} The setting `target` is strict, so it is refused."
            assert (agent.state("other-gpu"), agent.describe("other-gpu").status_message) == ("FAILED", sentence)
            code, _, _ = outcome(agent.stub().DetectAnomalies, request("other-gpu", 64, 64, bytes(3 * 64 * 64)))
            assert code == PRECONDITION
            for name in REFUSED:
                assert agent.state(name) == "FAILED"
            agent.run_model("mine")


WEIGHTS = "mochi/weights.data"


class Split:
    """A package whose one weight, the anomaly score 0.25, is external data; it is good as long as nothing is changed."""

    def __init__(self, root: Path, name: str) -> None:
        self.name = name
        self.folder = root / name
        (self.folder / "mochi").mkdir(parents=True)
        model = onnx.load_model_from_string(made.constant(scores=[0.25, 0.75]))
        path = self.folder / "mochi" / "model.onnx"
        onnx.save(model, path, save_as_external_data=True, location="weights.data", size_threshold=0)
        self.model = onnx.load(path, load_external_data=False)
        self.listed = {}
        self.list("mochi/model.onnx", WEIGHTS)

    def list(self, *paths: str) -> None:
        for path in paths:
            data = (self.folder / path).read_bytes()
            self.listed[path] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def locate(self, location: str, **more: int) -> None:
        """Let the model find its weights elsewhere."""
        for tensor in self.model.graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                told = {**{one.key: one.value for one in tensor.external_data}, "location": location, **more}
                del tensor.external_data[:]
                for key, value in told.items():
                    tensor.external_data.add(key=key, value=str(value))
        (self.folder / "mochi" / "model.onnx").write_bytes(self.model.SerializeToString())
        self.list("mochi/model.onnx")

    def move(self, target: str) -> None:
        (self.folder / target).parent.mkdir(exist_ok=True)
        (self.folder / WEIGHTS).rename(self.folder / target)
        del self.listed[WEIGHTS]
        self.list(target)

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS

    def finish(self) -> None:
        component = {"name": self.name, "version": "1.0.0"}
        content = {**made.manifest(), "package": {"format": 1, "component": component, "files": self.listed}}
        (self.folder / "manifest.json").write_bytes(made.manifest_bytes(content))
        for path in (self.folder, *self.folder.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() else 0o644)


def unlisted(split: Split) -> None:
    del split.listed[WEIGHTS]


def missing(split: Split) -> None:
    split.weights.unlink()


def hard_linked(split: Split) -> None:
    os.link(split.weights, split.folder.parent / "another-name")


def symlinked(split: Split) -> None:
    split.weights.rename(split.folder.parent / "pointed-at")
    split.weights.symlink_to(split.folder.parent / "pointed-at")


def a_pipe(split: Split) -> None:
    split.weights.unlink()
    os.mkfifo(split.weights)


def changed(split: Split) -> None:
    data = bytearray(split.weights.read_bytes())
    data[0] ^= 1
    split.weights.write_bytes(data)


def longer(split: Split) -> None:
    split.weights.write_bytes(split.weights.read_bytes() + b"\0")


def in_the_folder_above(split: Split) -> None:
    split.move("weights.data")
    split.locate("../weights.data")


def in_a_folder_below(split: Split) -> None:
    split.move("mochi/inner/weights.data")
    split.locate("inner/weights.data")


def at_an_absolute_path(split: Split) -> None:
    split.locate(str(split.weights))


def far_outside(split: Split) -> None:
    (split.folder.parent / "outside.data").write_bytes(split.weights.read_bytes())
    split.locate("../../outside.data")


def listed_outside(split: Split) -> None:
    (split.folder.parent / "listed.data").write_bytes(split.weights.read_bytes())
    split.listed["../listed.data"] = split.listed[WEIGHTS]


def under_another_name(split: Split) -> None:
    split.locate("other.data")


def too_short(split: Split) -> None:
    split.locate("weights.data", offset=1 << 20)


def in_the_working_folder(split: Split) -> None:
    """Where a runtime looks that got the model as bytes and is not told where to look."""
    split.move("weights.data")
    (split.folder / "weights.data").rename(split.folder.parents[1] / "weights.data")
    del split.listed["weights.data"]


def no_block(split: Split) -> None:
    """A component of the field, whose files nobody vouches for."""
    split.finish()
    split.finish = lambda: (split.folder / "manifest.json").write_bytes(made.manifest_bytes(made.manifest()))


SECOND_FILE = "it keeps its weights in a second file (external data); export it as one file."
EXTERNAL = {
    unlisted: "'mochi/weights.data' is not listed in package.files.",
    missing: "'mochi/weights.data' is listed in package.files and missing.",
    hard_linked: "'mochi/weights.data' has a second hard link; copy the file instead of linking it.",
    symlinked: "'mochi/weights.data' is a link or no regular file.",
    a_pipe: "'mochi/weights.data' is a link or no regular file.",
    changed: "'mochi/weights.data' was changed: its SHA-256 is not the one in package.files.",
    longer: "bytes; package.files says",
    in_the_folder_above: SECOND_FILE,
    in_a_folder_below: SECOND_FILE,
    at_an_absolute_path: "weights",
    far_outside: "weights",
    listed_outside: "'../listed.data' is listed in package.files and missing.",
    under_another_name: "it keeps weights in 'other.data', which package.files does not list beside the model.",
    too_short: "out of bounds",
    in_the_working_folder: SECOND_FILE,
    no_block: SECOND_FILE,
}
DECLARED_CASES = 16


class TestExternalData:
    def test_listed_and_digested_it_works_and_anything_else_is_refused(self, folder):
        root = folder / "models"
        names = {case: case.__name__.replace("_", "-") for case in EXTERNAL}
        for name, case in [("good", lambda _: None), *((name, case) for case, name in names.items())]:
            split = Split(root, name)
            case(split)
            split.finish()
        root.chmod(0o755)
        done = 0
        agent = Agent(root)
        agent.cwd = folder
        try:
            agent.start()
            agent.run_model("good")
            told = self_told(agent.stub(), "good", 64, 64, bytes(3 * 64 * 64))
            assert (told.score, agent.describe("good").status_message) == (0.25, "")
            for case, words in EXTERNAL.items():
                name = names[case]
                agent.stub().StartModel(pb2.StartModelRequest(model_component=name))
                until(lambda name=name: agent.state(name) != "STARTING", "it has been tried")
                assert agent.state(name) == "FAILED", name
                assert words in agent.describe(name).status_message, name
                done += 1
            assert "Traceback" not in agent.log()
        finally:
            agent.close()
        assert done == DECLARED_CASES

    def test_the_bytes_that_were_checked_are_the_bytes_that_run(self, tmp_path):
        """Whatever is put into the files' places afterwards."""
        split = Split(tmp_path, "board")
        split.finish()
        found = packages.look(split.folder, tmp_path, packages.Rules())
        model = packages.read_model(found.package)
        split.weights.write_bytes(bytes(8))
        (split.folder / "mochi" / "model.onnx").write_bytes(made.constant(scores=[0.9, 0.1]))
        assert self.score(found, model) == 0.25
        shutil.rmtree(split.folder)
        assert self.score(found, model) == 0.25

    @staticmethod
    def score(found: packages.Found, model: packages.ModelFiles) -> float:
        described = found.package.manifest
        graph = graphs.of(described, backends.open_session(model, SessionOptions(threads=1)))
        return Pipeline(described, graph).judge(picture(64, 64))[0].score


def test_a_compiled_model_without_its_block_is_refused_by_the_agent(folder, output):
    """Somebody edits the manifest and takes the block away: its files are good, and it cannot be read."""
    (package,) = (output / "sorter-compiled" / "1.0.0").glob("*_component")
    shutil.copytree(package, folder / "models" / "board")
    content = json.loads((package / "manifest.json").read_bytes())
    del content["package"]
    (folder / "models" / "board" / "manifest.json").write_text(json.dumps(content))
    with serving(folder / "models") as agent:
        assert agent.state("board") == "STOPPED"
        agent.stub().StartModel(pb2.StartModelRequest(model_component="board"))
        until(lambda: agent.state("board") == "FAILED", "it is refused")
        assert "a compiled model needs the package block" in agent.describe("board").status_message
