"""Packaging jobs: from each kind of source to a component that judges like it, the same bytes every time, or nothing."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import helper, numpy_helper
from PIL import Image

from edge_agent import backends, graphs
from edge_agent import packages as agent_packages
from edge_agent.jobs import SessionOptions
from edge_agent.manifest import Manifest
from edge_agent.pipeline import Pipeline
from model_packager import destinations, fusing, measuring, optimising, packaging, torchscript
from model_packager import recipe as recipes
from model_packager.errors import PackagingRefused
from model_packager.network import Conventions
from support import networks, packages, shared

WIDTH, HEIGHT = networks.SIZE
# What random networks need that were never trained: half their pixels are of one class by a hair.
WIDE = {"mask_tolerance": 0.1}
MEASURED = {"peak_memory_bytes": 100 << 20, "warm_up_seconds": 0.01}


@pytest.fixture
def unmeasured(monkeypatch) -> None:
    """What most tests can do without."""
    monkeypatch.setattr(measuring, "measure", lambda _: MEASURED)


@pytest.fixture(autouse=True)
def clean(tmp_path, monkeypatch) -> Iterator[None]:
    """Nothing may be left among temporary files, whatever becomes of a job."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    yield
    assert list(temporary.iterdir()) == []


def source_of(folder: Path, model: onnx.ModelProto, **given: Any) -> Path:
    """Write a folder with a manifest and a model."""
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(networks.content(**given)))
    (folder / "network.onnx").write_bytes(model.SerializeToString())
    return folder


def images_of(folder: Path, images: list[np.ndarray]) -> Path:
    folder.mkdir()
    for number, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return folder


def published(output: Path, name: str = "board", version: str = "1.0.0") -> dict[str, Path]:
    """Return the files of a component by their names, the package's folder under its own."""
    return {path.name: path for path in (output / name / version).iterdir()}


def opened(folder: Path, output: Path) -> agent_packages.Package:
    """Return a package as the agent takes it."""
    found = agent_packages.look(folder, output, agent_packages.Rules({os.getuid()}))
    assert (found.refusal, found.name) == ("", "board")
    assert found.package is not None
    return found.package


def judge_of(output: Path) -> tuple[Manifest, Pipeline]:
    """Return the pipeline that a worker would make of the only package below a folder."""
    (folder,) = (path for path in published(output).values() if path.is_dir())
    package = opened(folder, output)
    session = backends.open_session(agent_packages.read_model(package), SessionOptions())
    return package.manifest, Pipeline(package.manifest, graphs.of(package.manifest, session))


def refused(words: str) -> Any:
    return pytest.raises(PackagingRefused, match=words)


def test_what_a_job_writes(tmp_path):
    source = source_of(tmp_path / "source", networks.mochi())
    colours = {"defect 1": "#FF2EDC"}
    result = networks.package(source, tmp_path / "work", tmp_path / "out", colours=colours, image_size=None)
    files = published(tmp_path / "out")
    (folder,) = (path for path in files.values() if path.is_dir())
    data = (folder / "manifest.json").read_bytes()
    assert folder.name == f"{hashlib.sha256(data).hexdigest()[:12]}_greengrass_model_component"
    names = [folder.name, f"{folder.name}.zip", "register.sh", "job.json", "recipe.json", "recipe.yaml"]
    assert sorted(files) == sorted(names)
    with zipfile.ZipFile(files[f"{folder.name}.zip"]) as archive:
        assert sorted(archive.namelist()) == ["manifest.json", "mochi/model.onnx"]
        assert archive.read("manifest.json") == data
    model = (folder / "mochi/model.onnx").read_bytes()
    archive_digest = hashlib.sha256(files[f"{folder.name}.zip"].read_bytes()).hexdigest()
    assert (result["Artifact"], result["Sha256"]) == (f"{folder.name}.zip", archive_digest)
    assert result["Size"] == files[f"{folder.name}.zip"].stat().st_size
    assert (result["Source"], result["Notes"]) == ("model with a manifest source", [])
    assert result["Output"] == str(tmp_path / "out/board/1.0.0")
    content = json.loads(data)
    block = content["package"]
    assert block["files"]["mochi/model.onnx"]["sha256"] == hashlib.sha256(model).hexdigest()
    source_digest = hashlib.sha256((source / "network.onnx").read_bytes()).hexdigest()
    assert block["made_from"] == {"kind": "model with a manifest", "sha256": source_digest}
    assert (block["precision"], block["any_image_size"]) == ("fp32", False)
    assert block["target"] == {
        "os": "LINUX",
        "arch": "X86_64",
        "cpu_flags": ["sse", "sse2"],
        "compiler_options": {"mcpu": "x86-64"},
    }
    assert block["parity"] == result["Parity"]
    assert block["model_arn"] == "arn:aws:lookoutvision:local:000000000000:model/p/1"
    # What is measured goes into the result, and upper bounds of it into the package.
    measured = result["Measured"]
    assert 0 < measured["peak_memory_bytes"] <= block["peak_memory_bytes"] <= 4 * measured["peak_memory_bytes"]
    assert 0 < measured["warm_up_seconds"] <= block["warm_up_seconds"] == 1
    record = json.loads(files["job.json"].read_text())
    assert (record["Status"], record["Result"]["Sha256"], record["JobName"]) == ("SUCCEEDED", archive_digest, "job")
    recipe = json.loads(files["recipe.json"].read_text())
    # What the recipe asks for is there, under these names and with these digests.
    for artifact, name in zip(recipe["Manifests"][0]["Artifacts"], names[1:3], strict=True):
        assert artifact["Uri"] == f"s3://BUCKET_NAME/board/1.0.0/{name}"
        assert base64.b64decode(artifact["Digest"]) == hashlib.sha256(files[name].read_bytes()).digest()
    assert f' "board" "1.0.0" "{folder.name}.zip" ' in recipe["Manifests"][0]["Lifecycle"]["startup"]["Script"]
    assert files["register.sh"].read_bytes() == recipes.SCRIPT.read_bytes()
    assert yaml.safe_load(files["recipe.yaml"].read_text()) == recipe
    # What a local deployment is given, without a twin of the recipe.
    artifacts = tmp_path / "out/artifacts/board/1.0.0"
    assert sorted(path.name for path in artifacts.iterdir()) == sorted(names[1:3])
    assert all((artifacts / name).read_bytes() == files[name].read_bytes() for name in names[1:3])
    assert [path.name for path in (tmp_path / "out/recipes").iterdir()] == ["board-1.0.0.yaml"]
    assert (tmp_path / "out/recipes/board-1.0.0.yaml").read_bytes() == files["recipe.yaml"].read_bytes()
    manifest, _ = judge_of(tmp_path / "out")
    assert [one.hex_color for one in manifest.classes] == ["#FFFFFF", "#FF2EDC"]
    assert {key: value for key, value in content.items() if key not in {"package", "runtime", "runtime_artifact"}} == (
        networks.content()
    )


def test_progress_is_told(tmp_path, unmeasured):
    told: list[tuple[str, float]] = []
    order = networks.order(source_of(tmp_path / "source", networks.mochi()), tmp_path / "out")
    (tmp_path / "work").mkdir()
    packaging.run(order, tmp_path / "work", destinations.of(order["output"]), lambda *step: told.append(step))
    steps, fractions = zip(*told, strict=True)
    assert steps == (
        "Reading the source",
        "Compiling the graph",
        "Comparing it with its source on 8 images",
        "Measuring memory and warm-up",
        "Writing the component",
    )
    assert list(fractions) == sorted(fractions)
    assert all(0 < one < 1 for one in fractions)


SOURCES = {
    "ONNX component": (lambda path: packages.segmenter(path, networks.SIZE), {}),
    "ONNX component of classes": (lambda path: packages.classifier(path, networks.SIZE), {}),
    "folder": (lambda path: source_of(path, networks.mochi(pixel_classes=4), pixel_classes=4), {}),
    "mask alone": (lambda path: source_of(path, networks.mochi(classes=0), classes=0), {}),
    "other size": (lambda path: source_of(path, networks.mochi(), image_size=(144, 128)), {}),
    "sidecar": (
        lambda path: source_of(path, networks.mochi(softmax=False)),
        {"onnx": {"class_scores_are": "logits", "channels": "BGR", "mean": [0.1] * 3, "std": [0.2, 0.3, 0.4]}},
    ),
}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("kind", list(SOURCES))
def test_a_package_judges_like_its_source(tmp_path, unmeasured, kind, precision):
    make, more = SOURCES[kind]
    source = make(tmp_path / "source")
    if more:
        content = json.loads((source / "manifest.json").read_text())
        (source / "manifest.json").write_text(json.dumps({**content, **more}))
    pictures = networks.pictures(8, (144, 128) if kind == "other size" else networks.SIZE)
    images = images_of(tmp_path / "images", pictures)
    options = {"precision": precision, "images": str(images), **WIDE}
    result = networks.package(source, tmp_path / "work", tmp_path / "out", **options)
    report = result["Parity"]
    assert (report["images"], report["noise"], report["verdict_flips"]) == (8, False, 0)
    assert report["largest_score_difference"] <= {"fp32": 1e-6, "fp16": 1e-2, "int8": 5e-2}[precision]
    assert (report["largest_score_difference"] > 0) or precision == "fp32" or kind.startswith("ONNX component")
    manifest, judge = judge_of(tmp_path / "out")
    assert manifest.block.compiled
    assert len({judge.judge(pixels)[0].score for pixels in pictures}) > 1


@shared.needed
@pytest.mark.parametrize("name", ["cookies-segmentation", "cookies-classification"])
def test_the_components_of_the_cookies(tmp_path, name):
    source = shared.FOLDER / "models" / name / "component"
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for path in sorted(shared.PHOTOGRAPHS.iterdir())[::16]:
        (photographs / path.name).symlink_to(path)
    result = networks.package(source, tmp_path / "work", tmp_path / "out", images=str(photographs))
    assert result["Parity"]["largest_score_difference"] <= 1e-6
    expected = json.loads((shared.FOLDER / "models/cookies-segmentation/expected.json").read_text())["images"]
    _, judge = judge_of(tmp_path / "out")
    for path in photographs.iterdir() if name == "cookies-segmentation" else ():
        verdict, _ = judge.judge(np.asarray(Image.open(path).convert("RGB")))
        assert verdict.score == pytest.approx(expected[path.name]["score"], abs=1e-4)
        assert verdict.is_anomalous == expected[path.name]["is_anomalous"]


@shared.needed
def test_a_real_anomalib_export(tmp_path, unmeasured):
    source = shared.FOLDER / "models/anomalib/patchcore_224x512.onnx"
    result = networks.package(
        source, tmp_path / "work", tmp_path / "out", image_size=[1000, 667], classes=["background", "scratch"]
    )
    assert (result["Source"], result["Parity"]["noise"]) == ("anomalib export patchcore_224x512.onnx", True)
    assert result["Parity"]["largest_score_difference"] <= 1e-5
    manifest, _ = judge_of(tmp_path / "out")
    assert (manifest.image_size, manifest.stage.input_size) == ((1000, 667), (512, 224))


# The gate


def bright_and_dark(folder: Path) -> Path:
    """Write even images of ten levels of grey, half of them anomalous by a threshold at one half."""
    levels = [10, 40, 70, 100, 120, 136, 156, 186, 216, 246]
    return images_of(folder, [np.full((HEIGHT, WIDTH, 3), level, np.uint8) for level in levels])


def brightness(how: str) -> onnx.ModelProto:
    """Return a network whose score is about the image's mean, ruined by int8 in one of two ways, or not.

    "difference": as that of two large numbers, where a step of 8 bits is larger than what is looked for. "outlier": one
    channel's weights are so large (they add up to 0 on even images) that the other's are 0 where both share a scale.
    """
    first, second = np.full((1, 3, 4, 4), 1 / 48, np.float32), np.zeros((1, 3, 4, 4), np.float32)
    large = 0.0
    if how == "difference":
        large = 500.0
    elif how == "outlier":
        second[:, :, ::2], second[:, :, 1::2] = 100.0, -100.0
    constants = {
        "weight": np.concatenate([first, second]),
        "bias": np.array([large, large], np.float32),
        "starts": np.array([0], np.int64),
        "middle": np.array([1], np.int64),
        "ends": np.array([2], np.int64),
        "axis": np.array([1], np.int64),
        "steep": np.float32(20).reshape(()),
        "half": np.float32(0.5).reshape(()),
        "zero": np.float32(0).reshape(()),
        "shape": np.array([1, 1], np.int64),
        "one": np.ones((1, 1), np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["input", "weight", "bias"], ["planes"], name="conv", strides=[4, 4]),
        helper.make_node("Slice", ["planes", "starts", "middle", "axis"], ["signal"], name="signal"),
        helper.make_node("Slice", ["planes", "middle", "ends", "axis"], ["ground"], name="ground"),
        helper.make_node("Mul", ["ground", "zero"], ["nothing"], name="nothing"),
        helper.make_node("Sub", ["signal", "ground" if how == "difference" else "nothing"], ["light"], name="sub"),
        helper.make_node("ReduceMean", ["light"], ["mean"], name="mean", keepdims=0),
        helper.make_node("Sub", ["mean", "half"], ["above"], name="above"),
        helper.make_node("Mul", ["above", "steep"], ["steeper"], name="steeper"),
        helper.make_node("Sigmoid", ["steeper"], ["sure"], name="sure"),
        helper.make_node("Reshape", ["sure", "shape"], ["anomaly"], name="reshape"),
        helper.make_node("Sub", ["one", "anomaly"], ["normal"], name="normal"),
        helper.make_node("Concat", ["anomaly", "normal"], ["scores"], name="concat", axis=1),
    ]
    return networks.model(nodes, constants, {"scores": [1, 2]})


def test_a_model_that_int8_ruins_is_refused(tmp_path, unmeasured):
    source = source_of(tmp_path / "source", brightness("difference"), pixel_classes=0)
    images = str(bright_and_dark(tmp_path / "images"))
    with refused(
        r"The int8 package does not agree .*: 5 of 10 verdicts differ \(05.png, 06.png, 07.png\); a score differs by .* Use"
    ):
        networks.package(source, tmp_path / "work", tmp_path / "out", precision="int8", images=images)
    assert not (tmp_path / "out").exists()
    result = networks.package(source, tmp_path / "again", tmp_path / "out", precision="fp32", images=images)
    assert (result["Parity"]["verdict_flips"], result["Parity"]["largest_score_difference"]) == (0, 0)


def test_weights_that_share_a_scale(tmp_path, unmeasured):
    source = source_of(tmp_path / "source", brightness("outlier"), pixel_classes=0)
    options = {"precision": "int8", "images": str(bright_and_dark(tmp_path / "images"))}
    with refused("int8 package does not agree with its source: 5 of 10 verdicts differ"):
        networks.package(source, tmp_path / "work", tmp_path / "out", int8_weights="per-tensor", **options)
    assert not (tmp_path / "out").exists()
    result = networks.package(source, tmp_path / "again", tmp_path / "out", **options)
    assert result["Parity"]["verdict_flips"] == 0


def test_a_node_that_stays_float(tmp_path, unmeasured):
    source = source_of(tmp_path / "source", brightness("difference"), pixel_classes=0)
    options = {"precision": "int8", "images": str(bright_and_dark(tmp_path / "images"))}
    result = networks.package(source, tmp_path / "work", tmp_path / "out", int8_exclude=["conv"], **options)
    assert result["Parity"]["verdict_flips"] == 0
    with refused("--int8-exclude names 'conv2', which is no node"):
        networks.package(source, tmp_path / "again", tmp_path / "other", int8_exclude=["conv2"], **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "at least 8 images to calibrate on, and as many to compare on; no folder has 0. Give one with --images"),
        ({"images": 7}, "at least 8 images .*/images has 7"),
        ({"calibration": 7}, "at least 8 images .*/calibration has 7"),
        ({"images": 1, "calibration": 8}, "at least 8 images .*/images has 1"),
        ({"images": 8, "calibration": 1}, "at least 8 images .*/calibration has 1"),
    ],
)
def test_int8_needs_images_to_calibrate_and_to_compare_with(tmp_path, unmeasured, options, words):
    folders = {key: str(images_of(tmp_path / key, networks.pictures(count))) for key, count in options.items()}
    source = source_of(tmp_path / "source", networks.mochi())
    with refused(words):
        networks.package(source, tmp_path / "work", tmp_path / "out", precision="int8", **folders)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_images_for_calibration_are_compared_on_where_there_are_no_others(tmp_path, unmeasured, precision):
    """Real images are there: noise would say little of what int8 costs on them."""
    source = source_of(tmp_path / "source", networks.mochi())
    folder = str(images_of(tmp_path / "images", networks.pictures(9)))
    result = networks.package(
        source, tmp_path / "work", tmp_path / "out", precision=precision, calibration=folder, **WIDE
    )
    assert (result["Parity"]["noise"], result["Parity"]["images"]) == (False, 9)


def test_calibration_has_images_of_its_own(tmp_path, unmeasured, monkeypatch):
    seen = []
    real = optimising.to_int8

    def to_int8(model, bitmaps, *others):
        seen.extend(bitmaps)
        return real(model, iter(seen), *others)

    monkeypatch.setattr(optimising, "to_int8", to_int8)
    source = source_of(tmp_path / "source", networks.mochi())
    folders = {
        key: str(images_of(tmp_path / key, networks.pictures(count, seed=count)))
        for key, count in {"images": 8, "calibration": 12}.items()
    }
    result = networks.package(source, tmp_path / "work", tmp_path / "out", precision="int8", **folders, **WIDE)
    assert result["Parity"]["images"] == 8
    assert all(np.array_equal(*pair) for pair in zip(seen, networks.pictures(12, seed=12), strict=True))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_tolerances(tmp_path, unmeasured, precision):
    source = source_of(tmp_path / "source", networks.mochi())
    result = networks.package(source, tmp_path / "work", tmp_path / "out", precision=precision)
    report = result["Parity"]
    # A processor that has no float16 computes in float32, and the report cannot tell what float16 would have cost.
    assert [("float16" in one) for one in result["Notes"]] == ([True] if precision == "fp16" else [])
    assert report["score_tolerance"] == report["mask_tolerance"] == {"fp32": 1e-3, "fp16": 1e-2}[precision]


def test_tolerances_of_the_caller(tmp_path, unmeasured):
    source = source_of(tmp_path / "source", networks.mochi())
    options = {"precision": "int8", "images": str(images_of(tmp_path / "images", networks.pictures(8)))}
    report = networks.package(source, tmp_path / "work", tmp_path / "out", **options, **WIDE)["Parity"]
    assert (report["score_tolerance"], report["mask_tolerance"]) == (0.05, 0.1)
    score, mask = report["largest_score_difference"], report["largest_mask_difference"]
    assert min(score, mask) > 0
    for number, (tolerance, words) in enumerate(
        [
            (
                {**WIDE, "score_tolerance": score / 2},
                r"a score differs by .* \(tolerance .*\)\. Use --precision fp32\.",
            ),
            ({**WIDE, "score_tolerance": 0}, r"a score differs by .* \(tolerance 0\)"),
            ({"mask_tolerance": 0}, r"a mask differs in .* of its pixels \(tolerance 0.00%\)"),
        ]
    ):
        with refused(f"int8 package does not agree with its source: {words}"):
            networks.package(source, tmp_path / f"work-{number}", tmp_path / "other", **options, **tolerance)
    exact = {"score_tolerance": score, "mask_tolerance": mask}
    told = networks.package(source, tmp_path / "exact", tmp_path / "other", **options, **exact)["Parity"]
    assert (told["score_tolerance"], told["mask_tolerance"]) == (score, mask)


def test_noise_is_said(tmp_path, unmeasured):
    result = networks.package(source_of(tmp_path / "source", networks.mochi()), tmp_path / "work", tmp_path / "out")
    assert (result["Parity"]["noise"], result["Parity"]["images"]) == (True, 8)
    (folder,) = (path for path in published(tmp_path / "out").values() if path.is_dir())
    assert json.loads((folder / "manifest.json").read_text())["package"]["parity"]["noise"] is True


# The same bytes


SAME = """
import json, sys, time
from pathlib import Path
later = float(sys.argv[1])
real_time, real_localtime = time.time, time.localtime
time.time = lambda: real_time() + later
time.localtime = lambda *given: real_localtime(*(given or [time.time()]))
from model_packager import destinations, packaging
order = json.loads(sys.argv[2])
Path(sys.argv[3]).mkdir()
packaging.run(order, Path(sys.argv[3]), destinations.of(order["output"]), lambda *_: None)
"""


def bytes_of(output: Path) -> dict[str, bytes]:
    """Return what is published, but for the job's own record."""
    files = {path.relative_to(output): path for path in output.rglob("*") if path.is_file()}
    return {str(name): path.read_bytes() for name, path in files.items() if name.name != "job.json"}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_same_input_gives_the_same_bytes(tmp_path, precision):
    """In other folders, a year later, by another process that hashes otherwise, from files that were touched."""
    source = source_of(tmp_path / "a" / "source", networks.mochi(pixel_classes=3), pixel_classes=3)
    images = images_of(tmp_path / "a" / "images", networks.pictures(8))
    options = {"precision": precision, "images": str(images), **WIDE}
    networks.package(source, tmp_path / "work", tmp_path / "out", **options)
    expected = bytes_of(tmp_path / "out")
    assert len(expected) == 9
    (tmp_path / "a").rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/source").rename(tmp_path / "elsewhere/model of line 7")
    for path in (tmp_path / "elsewhere").rglob("*"):
        os.utime(path, (1e9, 1e9))
        path.chmod(0o700 if path.is_dir() else 0o600)
    order = networks.order(
        tmp_path / "elsewhere/model of line 7",
        tmp_path / "other output",
        precision=precision,
        images=str(tmp_path / "elsewhere/images"),
        **WIDE,
    )
    command = [
        sys.executable,
        "-W",
        "error",
        "-c",
        SAME,
        str(365 * 86400),
        json.dumps(order),
        str(tmp_path / "other work"),
    ]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"},
        cwd="/",
        umask=0o077,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert bytes_of(tmp_path / "other output") == expected


def test_other_input_gives_other_bytes(tmp_path, unmeasured):
    names = set()
    for seed in (1, 2):
        source = source_of(tmp_path / f"source-{seed}", networks.mochi(seed=seed))
        names.add(networks.package(source, tmp_path / f"work-{seed}", tmp_path / f"out-{seed}")["Artifact"])
    assert len(names) == 2


@pytest.mark.parametrize(
    ("megabytes", "told"), [(1, 64), (51, 64), (52, 91), (72, 91), (73, 128), (102, 128), (103, 181), (700, 1024)]
)
def test_memory_is_stated_on_a_coarse_scale(megabytes, told):
    """A quarter more than measured, and up to the next step: measured twice, it is hardly ever another."""
    found = measuring.stated({"peak_memory_bytes": megabytes * 2**20, "warm_up_seconds": 0.1})
    assert round(found["peak_memory_bytes"] / 2**20) == told


@pytest.mark.parametrize(("seconds", "told"), [(0.001, 1), (1.0, 1), (1.1, 10), (99, 100), (5000, 1000)])
def test_warm_up_is_stated_on_a_coarse_scale(seconds, told):
    assert measuring.stated({"peak_memory_bytes": 1, "warm_up_seconds": seconds})["warm_up_seconds"] == told


# What is left, and what cannot be done


def test_nothing_is_left_beside_the_work(tmp_path):
    source = source_of(tmp_path / "source", networks.mochi())
    images = str(images_of(tmp_path / "images", networks.pictures(8)))
    before = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    networks.package(source, tmp_path / "work", tmp_path / "out", precision="int8", images=images, **WIDE)
    after = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert {name.partition("/")[0] for name in after - before} == {"work", "out"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"board", "recipes", "artifacts"}
    assert [path.name for path in (tmp_path / "out/board").iterdir()] == ["1.0.0"]


@pytest.mark.parametrize("step", ["fold", "to_int8", "compare", "measure", "publish"])
def test_a_job_that_fails_writes_nothing(tmp_path, monkeypatch, step):
    source = source_of(tmp_path / "source", networks.mochi())
    images = str(images_of(tmp_path / "images", networks.pictures(8)))
    holder = {
        "fold": "model_packager.optimising",
        "to_int8": "model_packager.optimising",
        "compare": "model_packager.parity",
        "measure": "model_packager.measuring",
        "publish": "model_packager.destinations.LocalFolder",
    }[step]

    def fail(*_: object) -> None:
        raise PackagingRefused("No.")

    monkeypatch.setattr(f"{holder}.{step}", fail)
    before = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    with refused(r"^No\.$"):
        networks.package(source, tmp_path / "work", tmp_path / "out", precision="int8", images=images, **WIDE)
    after = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert {name.partition("/")[0] for name in after - before} == {"work"}


def test_a_version_that_is_there_already(tmp_path, unmeasured):
    source = source_of(tmp_path / "source", networks.mochi())
    networks.package(source, tmp_path / "work", tmp_path / "out")
    before = bytes_of(tmp_path / "out")
    with refused("Component board version 1.0.0 exists already in .*; give another --component-version"):
        networks.package(source, tmp_path / "again", tmp_path / "out")
    assert list((tmp_path / "again").iterdir()) == []
    assert bytes_of(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"any_image_size": True},
            "--any-image-size is for classification models; a mask needs images of the training",
        ),
        ({"colours": {"dent": "#FF2EDC"}}, "--color names the class 'dent'; this model's are: defect 1"),
        ({"colours": {"background": "#FF2EDC"}}, "--color names the class 'background'; this model's are: defect 1"),
        ({"colours": {"defect 1": "red"}}, "--color gives 'defect 1' the colour 'red'; write it as #RRGGBB"),
        (
            {"colours": {"defect 1": "#ffffff"}},
            "With --color the classes 'background' and 'defect 1' would have one colour, #FFFFFF, .*; give another one",
        ),
        ({"images": "/nowhere"}, "/nowhere cannot be read"),
        ({"threshold": 0.7}, "--threshold does not go with source"),
        ({"score_tolerance": float("nan")}, "--score-tolerance is nan; it must be from 0 to 1"),
        ({"mask_tolerance": 1.5}, "--mask-tolerance is 1.5; it must be from 0 to 1"),
        ({"score_tolerance": -0.1}, "--score-tolerance is -0.1; it must be from 0 to 1"),
    ],
)
def test_options_that_do_not_go_with_the_model(tmp_path, unmeasured, options, words):
    with refused(words):
        networks.package(
            source_of(tmp_path / "source", networks.mochi()), tmp_path / "work", tmp_path / "out", **options
        )


@pytest.mark.parametrize(
    ("colours", "shared"),
    [
        ({"defect 1": "#14a3b3"}, "#14A3B3"),  # that of class 2, which keeps the palette's
        ({"defect 2": "#23A436"}, "#23A436"),
        ({"defect 1": "#0a0b0c", "defect 2": "#0A0B0C"}, "#0A0B0C"),
    ],
)
def test_two_classes_of_one_colour(tmp_path, unmeasured, colours, shared):
    source = source_of(tmp_path / "source", networks.mochi(pixel_classes=3), pixel_classes=3)
    with refused(f"With --color the classes 'defect 1' and 'defect 2' would have one colour, {shared}, "):
        networks.package(source, tmp_path / "work", tmp_path / "out", colours=colours)
    assert not (tmp_path / "out").exists()


def test_a_classification_model_may_take_any_size(tmp_path, unmeasured):
    source = source_of(tmp_path / "source", networks.mochi(pixel_classes=0), pixel_classes=0)
    networks.package(source, tmp_path / "work", tmp_path / "out", any_image_size=True)
    manifest, judge = judge_of(tmp_path / "out")
    assert manifest.block.any_image_size
    judge.judge(networks.pictures(1, (97, 131))[0])
    with refused("--color names the class 'dent'; this model's are: none, it makes no mask"):
        networks.package(source, tmp_path / "again", tmp_path / "other", colours={"dent": "#FF2EDC"})


@pytest.mark.parametrize("said", ["nothing", None, {}, {"names": None}], ids=str)
def test_a_classification_model_need_not_say_which_types_a_mask_has(tmp_path, unmeasured, said):
    folder = source_of(tmp_path / "source", networks.mochi(pixel_classes=0), pixel_classes=0)
    content = networks.content(pixel_classes=0)
    del content["model_graph"]["pixel_level_classes"]
    if said != "nothing":
        content["model_graph"]["pixel_level_classes"] = said
    (folder / "manifest.json").write_text(json.dumps(content))
    networks.package(folder, tmp_path / "work", tmp_path / "out")
    manifest, judge = judge_of(tmp_path / "out")
    assert (manifest.classes, manifest.block.class_names) == ((), ())
    assert judge.judge(networks.pictures(1)[0])[1] is None


def damaged(weight: str, value: float) -> onnx.ModelProto:
    model = networks.mochi()
    for one in model.graph.initializer:
        if one.name == weight:
            one.CopyFrom(numpy_helper.from_array(np.full([*one.dims], value, np.float32), weight))
    return model


def test_a_source_that_gives_no_verdict(tmp_path, unmeasured):
    source = source_of(tmp_path / "source", damaged("seg.bias", float("nan")))
    with refused("The source gives no verdict on noise-0: .*logits that are no numbers; .* Nothing can be compared"):
        networks.package(source, tmp_path / "work", tmp_path / "out")


def test_a_package_that_gives_no_verdict(tmp_path, unmeasured, monkeypatch):
    """As where numbers are larger than float16 has any."""

    def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
        return optimising.fold(fusing.fuse(damaged("seg.bias", np.nan), networks.parsed(), Conventions()), tmp_path)

    monkeypatch.setattr(optimising, "to_fp16", to_fp16)
    source = source_of(tmp_path / "source", networks.mochi())
    with refused(
        "fp16 package does not run: On noise-0 it gives no verdict, and its source does. .* Use --precision fp32"
    ):
        networks.package(source, tmp_path / "work", tmp_path / "out", precision="fp16")


def test_a_package_that_does_not_load(tmp_path, unmeasured, monkeypatch):
    monkeypatch.setattr(optimising, "to_fp16", lambda model: onnx.ModelProto())
    source = source_of(tmp_path / "source", networks.mochi())
    with refused("The fp16 package does not load: ONNX Runtime cannot load .* Use --precision fp32"):
        networks.package(source, tmp_path / "work", tmp_path / "out", precision="fp16")


def test_a_source_that_the_runtime_does_not_take(tmp_path, unmeasured):
    model = networks.mochi()
    model.graph.node[0].attribute[0].ints[:] = [4]
    with refused("network.onnx: ONNX Runtime cannot load the model"):
        networks.package(source_of(tmp_path / "source", model), tmp_path / "work", tmp_path / "out")


def test_a_package_that_does_not_run(tmp_path, monkeypatch):
    """Loaded and warmed up in a process of its own, from the very files."""
    real = packaging.writing.write

    def write(folder: Path, manifest: Any, model: bytes, *others: Any, **more: Any) -> None:
        real(folder, manifest, b"no model", *others, **more)

    monkeypatch.setattr(packaging.writing, "write", write)
    source = source_of(tmp_path / "source", networks.mochi())
    with refused("The compiled package does not run: ONNX Runtime cannot load the model"):
        networks.package(source, tmp_path / "work", tmp_path / "out")


def test_what_the_agents_code_refuses_is_a_refusal(tmp_path, unmeasured, monkeypatch):
    """As where OpenCV is missing, which only images that are resized need."""
    source = source_of(tmp_path / "source", networks.mochi(), image_size=(144, 128))
    monkeypatch.setitem(sys.modules, "cv2", None)
    with refused("^The package resizes its images with OpenCV, which is not installed; .*cpu"):
        networks.package(source, tmp_path / "work", tmp_path / "out")


def test_relative_paths(tmp_path, monkeypatch):
    """The steps that are processes of their own run in another folder."""
    source_of(tmp_path / "source", networks.mochi())
    images_of(tmp_path / "images", networks.pictures(2))
    monkeypatch.chdir(tmp_path)
    networks.package(Path("source"), Path("work"), Path("out"), images="images")
    assert len(published(tmp_path / "out")) == 6


def test_relative_paths_to_the_process_that_converts(tmp_path, monkeypatch):
    asked = []

    def convert(*given: Any) -> None:
        asked.extend(given)
        raise PackagingRefused("No.")

    monkeypatch.setattr(torchscript, "convert", convert)
    folder = source_of(tmp_path / "source", networks.mochi())
    (folder / "network.onnx").rename(folder / "mochi.pt")
    images_of(tmp_path / "images", networks.pictures(2))
    monkeypatch.chdir(tmp_path)
    with refused("No"):
        networks.package(Path("source"), Path("work"), Path("out"), images="images")
    model, content, *others = asked
    assert (model, content) == (folder / "mochi.pt", networks.content())
    assert others == [tmp_path / "images", tmp_path / "work"]


def test_a_source_in_two_files(tmp_path, unmeasured):
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps(networks.content()))
    onnx.save(networks.mochi(), folder / "n.onnx", save_as_external_data=True, location="n.onnx.data", size_threshold=0)
    networks.package(folder, tmp_path / "work", tmp_path / "out")
    one = networks.package(source_of(tmp_path / "whole", networks.mochi()), tmp_path / "again", tmp_path / "other")
    assert one["Parity"]["verdict_flips"] == 0
    models = [path.read_bytes() for path in sorted(tmp_path.glob("o*/board/1.0.0/*/mochi/model.onnx"))]
    assert models[0] == models[1]
