"""Importers: what each kind of file gives, and for each that cannot be used the sentence with the way out."""

import functools
import importlib.util
import io
import json
import os
import pickle
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from model_packager import archives, importers, onnx_files, torchscript
from model_packager.errors import PackagingRefused
from model_packager.importers import Options
from model_packager.importers import source as source_module
from model_packager.importers.source import parse
from model_packager.network import ANOMALIB, MOCHI, Conventions, Imported
from support import networks, shared

ONNX = networks.mochi().SerializeToString()
CONTENT = networks.content()
MANIFEST = json.dumps(CONTENT).encode()
RUNTIME = {"runtime": "onnx", "runtime_artifact": "model.onnx"}
COMPILED = dict.fromkeys(("compiled.so", "compiled.params", "compiled.meta", "libdlr.so", "manifest"), b"code")


def zipped(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return made.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return made.getvalue()


# What torch.jit.save writes, as far as it can be told without PyTorch.
TORCHSCRIPT = zipped(
    {
        "mochi/data.pkl": b"",
        "mochi/code/__torch__.py": b"",
        "mochi/constants.pkl": b"",
        "mochi/version": b"3\n",
    }
)


def component(content: dict[str, Any] = CONTENT, **changes: Any) -> dict[str, bytes]:
    return {"manifest.json": json.dumps({**content, **RUNTIME, **changes}).encode(), "mochi/model.onnx": ONNX}


def folder_of(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def file_of(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def load(source: Path, tmp_path: Path, **options: Any) -> Imported:
    work = tmp_path / f"work-{len(list(tmp_path.iterdir()))}"
    work.mkdir()
    return importers.load(source, Options(**options), work)


def refused(words: str) -> Any:
    return pytest.raises(PackagingRefused, match=words)


# The same files as a folder, a zip and a tar, since customers have all three.
Made = Callable[[Path, dict[str, bytes]], Path]
FORMS: dict[str, Made] = {
    "folder": lambda path, files: folder_of(path / "source", files),
    "zip": lambda path, files: file_of(path / "source.zip", zipped(files)),
    "tar": lambda path, files: file_of(path / "source.tar.gz", tarred(files)),
}


@pytest.fixture(params=list(FORMS))
def made(request, tmp_path) -> Callable[[dict[str, bytes]], Path]:
    return functools.partial(FORMS[request.param], tmp_path)


# (a) training outputs

TOP = {
    "mochi.pt": TORCHSCRIPT,
    "mochi.json": b'{"input_shape": [1, 3, 64, 72]}',
    "mochi.pth": b"a pickle",
    "config.yaml": b"",
    "checkpoints/best/manifest.json": MANIFEST,
    "evaluation/manifest.json": MANIFEST,
}
TRAINING_OUTPUT = {
    **TOP,
    "export_artifacts/manifest.json": MANIFEST,
    "export_artifacts/mochi.pt": TORCHSCRIPT + b"\0",
}


def test_a_training_output(tmp_path, made):
    source = made(TRAINING_OUTPUT)
    found = load(source, tmp_path)
    assert (found.kind, found.name, found.torchscript) == ("training output", source.name, True)
    assert found.manifest == CONTENT
    assert found.model.read_bytes() == TORCHSCRIPT + b"\0"
    assert (found.conventions, found.notes) == (Conventions(), ())
    # Of an archive only what may be needed is written.
    unpacked = {str(path.relative_to(one)) for one in tmp_path.glob("work-*/unpacked") for path in one.rglob("*")}
    kept = {
        "config.yaml",
        "export_artifacts",
        *(name for name in TRAINING_OUTPUT if "mochi." in name or "artifacts" in name),
    }
    assert unpacked in (set(), kept - {"mochi.pth"})


def test_a_training_output_that_was_unpacked_inside_a_folder(tmp_path):
    source = folder_of(tmp_path / "source", {f"job-7/{name}": data for name, data in TRAINING_OUTPUT.items()})
    assert load(source, tmp_path).model == source / "job-7/export_artifacts/mochi.pt"


@pytest.mark.parametrize(
    "more",
    [{}, {"export_artifacts/manifest.json": MANIFEST}, {"export_artifacts/mochi.pt": TORCHSCRIPT}],
    ids=["top level only", "without the model", "without the manifest"],
)
def test_a_training_output_without_its_pair(tmp_path, made, more):
    top = {name: data for name, data in TOP.items() if "/" not in name}
    source = made({**top, **more})
    with refused(
        "no threshold, and the one in the checkpoint is in a pickle, which is never opened. Give .* --manifest"
    ):
        load(source, tmp_path)
    other = file_of(tmp_path / "mine.json", json.dumps(networks.content(threshold=0.75)).encode())
    found = load(source, tmp_path, manifest=other)
    assert (found.kind, found.name) == ("training output", f"{source.name} with mine.json")
    assert parse(found.manifest).stage.threshold == 0.75
    assert found.model.read_bytes() == TORCHSCRIPT


def test_a_training_output_with_the_callers_manifest(tmp_path):
    source = folder_of(tmp_path / "source", TRAINING_OUTPUT)
    other = file_of(tmp_path / "mine.json", json.dumps(networks.content(threshold=0.75)).encode())
    found = load(source, tmp_path, manifest=other)
    assert parse(found.manifest).stage.threshold == 0.75
    assert found.model.read_bytes() == TORCHSCRIPT + b"\0"


def test_several_training_outputs(tmp_path, made):
    several = {f"{job}/{name}": data for job in ("job-1", "job-2") for name, data in TRAINING_OUTPUT.items()}
    with refused("holds 2 training outputs; name the folder of one of them"):
        load(made(several), tmp_path)


@shared.needed
def test_the_training_output_of_the_cookies(tmp_path):
    found = load(shared.FOLDER / "models/cookies-segmentation/model.tar.gz", tmp_path)
    parsed = parse(found.manifest)
    assert (found.kind, found.torchscript, found.model.name) == ("training output", True, "mochi.pt")
    assert (parsed.stage.input_size, parsed.classes[1].name) == ((576, 768), "cracked")
    torchscript.check(found.model)


# What is skipped, whatever it is

BESIDE = {"manifest.json": MANIFEST, "mochi.pt": TORCHSCRIPT}
LEFT_BEHIND = {
    "a model of each epoch": {"checkpoints/epoch-1.pt": b"other", "checkpoints/best/mochi.onnx": ONNX},
    "other manifests": {"evaluation/manifest.json": MANIFEST, "checkpoints/manifest.json": b"{"},
    "pickles": {"mochi.pth": b"a pickle", "best.ckpt/manifest.json": MANIFEST, "best.ckpt/weights.pt": b"other"},
    "a pickle where torch.save puts one": {"evaluation/data.pkl": b"a pickle", "checkpoints/data.pkl": b"a pickle"},
    "names that no archive may have": {"checkpoints/epoch\\1.bin": b"", "evaluation/a\nb": b""},
    "what a Mac adds": {
        "__MACOSX/._mochi.pt": b"attributes",
        "__MACOSX/manifest.json": MANIFEST,
        "._mochi.pt": b"attributes",
        "._manifest.json": b"\0\5\26\7",
        "inner/._model.onnx": b"attributes",
        ".DS_Store": b"\0\0\0\1Bud1",
    },
}


@pytest.mark.parametrize("what", LEFT_BEHIND)
@pytest.mark.parametrize("files", [BESIDE, component(), TRAINING_OUTPUT], ids=["pair", "component", "training output"])
@pytest.mark.parametrize("above", ["", "job-7/"])
def test_what_is_skipped_changes_nothing(tmp_path, made, files, what, above):
    source = made({above + name: data for name, data in {**files, **LEFT_BEHIND[what]}.items()})
    found = load(source, tmp_path)
    plain = load(folder_of(tmp_path / "plain", files), tmp_path)
    assert (found.kind, found.manifest, found.torchscript) == (plain.kind, plain.manifest, plain.torchscript)
    assert found.model.read_bytes() == plain.model.read_bytes()
    unpacked = [str(path.relative_to(one)) for one in tmp_path.glob("work-*/unpacked") for path in one.rglob("*")]
    assert not [path for path in unpacked if source_module.is_skipped(path)]


@pytest.mark.parametrize("path", ["checkpoints/last.ckpt", "evaluation/report", "checkpoints", "mochi.pth"])
@pytest.mark.parametrize("form", ["folder", "zip", "tar", "tar of a hard link"])
def test_a_link_that_is_skipped(tmp_path, path, form):
    if form == "folder":
        source = folder_of(tmp_path / "source", BESIDE)
        (source / path).parent.mkdir(exist_ok=True)
        (source / path).symlink_to(tmp_path)
    elif form == "zip":
        with zipfile.ZipFile(source := tmp_path / "source.zip", "w") as archive:
            for name, data in BESIDE.items():
                archive.writestr(name, data)
            entry = zipfile.ZipInfo(path)
            entry.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(entry, str(tmp_path))
    else:
        with tarfile.open(source := tmp_path / "source.tar.gz", "w:gz") as archive:
            entry = tarfile.TarInfo(path)
            entry.type, entry.linkname = (
                (tarfile.LNKTYPE, "mochi.pt") if "hard" in form else (tarfile.SYMTYPE, "/x" * 99)
            )
            archive.addfile(entry)
            for name, data in BESIDE.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    assert load(source, tmp_path).model.read_bytes() == TORCHSCRIPT


@pytest.mark.parametrize("name", ["checkpoints/last.ckpt", "mochi.pth", "evaluation/images.bin"])
def test_what_is_skipped_may_be_of_any_size(tmp_path, made, monkeypatch, name):
    """As if the most for one file was less than 2 GiB."""
    limits = archives.Limits(file=max(map(len, BESIDE.values())))
    monkeypatch.setattr(archives, "unpack", functools.partial(archives.unpack, limits=limits))
    source = made({**BESIDE, name: bytes(limits.file + 1)})
    assert load(source, tmp_path).model.read_bytes() == TORCHSCRIPT
    if source.is_file():
        with refused(f"'large.bin' is a file of {limits.file + 1} bytes; {limits.file} are the most"):
            load(made({**BESIDE, "large.bin": bytes(limits.file + 1)}), tmp_path)


def test_a_source_may_itself_be_called_what_is_skipped(tmp_path):
    source = folder_of(tmp_path / "evaluation", BESIDE)
    assert load(source, tmp_path).model == source / "mochi.pt"


# (b) a manifest and a model


@pytest.mark.parametrize(("name", "data"), [("mochi.pt", TORCHSCRIPT), ("network.onnx", ONNX), ("M.ONNX", ONNX)])
def test_a_manifest_and_a_model(tmp_path, made, name, data):
    source = made({"manifest.json": MANIFEST, name: data, "readme.txt": b""})
    found = load(source, tmp_path)
    assert (found.kind, found.name) == ("model with a manifest", source.name)
    assert (found.torchscript, found.model.read_bytes()) == (name == "mochi.pt", data)
    assert found.manifest == CONTENT


def test_one_torchscript_file_with_the_callers_manifest(tmp_path):
    source = file_of(tmp_path / "mochi.pt", TORCHSCRIPT)
    with refused("mochi.pt has 0 manifests with a model_graph; exactly one is needed: give it with --manifest FILE"):
        load(source, tmp_path)
    manifest = file_of(tmp_path / "mine.json", MANIFEST)
    found = load(source, tmp_path, manifest=manifest)
    assert (found.torchscript, found.model) == (True, source)
    with refused("mochi.pt is a model already; --model does not go with it"):
        load(source, tmp_path, manifest=manifest, model=source)


def test_the_model_that_the_manifest_names_is_the_one(tmp_path, made):
    named = {**CONTENT, "compilable_models": [{"filename": "b.pt"}]}
    files = {"a.pt": b"other", "b.pt": TORCHSCRIPT, "c.onnx": ONNX}
    source = made({"manifest.json": json.dumps(named).encode(), **files})
    assert load(source, tmp_path).model.read_bytes() == TORCHSCRIPT
    for unclear in (CONTENT, {**CONTENT, "compilable_models": "b.pt"}, {**CONTENT, "compilable_models": [{}, 7]}):
        source = folder_of(tmp_path / "unclear", {"manifest.json": json.dumps(unclear).encode(), **files})
        with refused(r"has 3 model files \(.pt, .onnx\); exactly one is needed: give it with --model FILE"):
            load(source, tmp_path)
        assert load(source, tmp_path, model=source / "c.onnx").model == source / "c.onnx"


def test_two_manifests(tmp_path, made):
    source = made({"manifest.json": MANIFEST, "old/manifest.json": MANIFEST, "mochi.pt": TORCHSCRIPT})
    with refused("has 2 manifests with a model_graph; exactly one is needed: give it with --manifest FILE"):
        load(source, tmp_path)


def test_a_manifest_without_a_model(tmp_path, made):
    source = made({"manifest.json": MANIFEST})
    with refused(r"has 0 model files \(.pt, .onnx\); exactly one is needed: give it with --model FILE"):
        load(source, tmp_path)
    with refused("/nowhere.onnx does not exist, or is no file"):
        load(source, tmp_path, model=Path("/nowhere.onnx"))


@pytest.mark.parametrize(
    "other",
    [b'{"name": "an app"}', b'{"package": "an app"}', b'// comments\n{"name": "an app"}', b"x" * ((1 << 20) + 1)],
    ids=["an app's", "with a package", "with comments", "long"],
)
def test_other_manifests_are_other_things(tmp_path, made, other):
    source = made({"manifest.json": MANIFEST, "web/manifest.json": other, "mochi.pt": TORCHSCRIPT})
    assert load(source, tmp_path).manifest == CONTENT


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"{", "manifest.json: manifest.json is not JSON"),
        (b"\xff\xfe", "manifest.json is not JSON"),
        (b'{"model_graph": ' + b"[" * 100_000, "manifest.json is not JSON"),
        (b" " * (1 << 20) + MANIFEST, "manifest.json is larger than 1048576 bytes"),
        (b'{"model_graph": {"a": "\\ud800"}}', "has text that is not Unicode"),
    ],
    ids=["cut off", "no text", "deep", "large", "half a character"],
)
def test_a_broken_manifest(tmp_path, made, data, words):
    with refused(words):
        load(made({"manifest.json": data, "mochi.pt": TORCHSCRIPT}), tmp_path)


def test_a_manifest_of_the_callers_that_is_none(tmp_path):
    source = file_of(tmp_path / "mochi.pt", TORCHSCRIPT)
    with refused("mine.json is no manifest of a model: it has no model_graph"):
        load(source, tmp_path, manifest=file_of(tmp_path / "mine.json", b'{"a": 1}'))
    with refused("gone.json cannot be read: No such file or directory"):
        load(source, tmp_path, manifest=tmp_path / "gone.json")


def test_an_empty_list_of_the_stage_is_that_of_the_graph(tmp_path, made):
    content = networks.content(class_normal_ids=[])
    content["model_graph"]["image_level_classes"]["normal_ids"] = [1]
    found = load(made({"manifest.json": json.dumps(content).encode(), "mochi.pt": TORCHSCRIPT}), tmp_path)
    assert parse(found.manifest).stage.class_normal_ids == (1,)


def graph(**changes: Any) -> dict[str, Any]:
    made = json.loads(MANIFEST)
    made["model_graph"].update(changes)
    return made


def stage(drop: tuple[str, ...] = (), **changes: Any) -> dict[str, Any]:
    made = graph(image_level_classes={"names": []}, pixel_level_classes={"names": ["background", "dent"]})
    keys = {**made["model_graph"]["stages"][0], **changes}
    made["model_graph"]["stages"] = [{key: value for key, value in keys.items() if key not in drop}]
    return made


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            stage(drop=("threshold",)),
            "no threshold. It is never guessed: write the trained one into the manifest .* --man",
        ),
        (stage(threshold=None), "no threshold. It is never guessed"),
        (
            stage(drop=("class_normal_ids",)),
            "neither class_normal_ids nor .* never guessed: write it .* --manifest FILE",
        ),
        (stage(class_normal_ids=[]), "neither class_normal_ids nor .* never guessed"),
        (
            stage(drop=("seg_normal_ids",)),
            "no seg_normal_ids, .*; which class is normal is never guessed. Bring a single-",
        ),
        (
            stage(transform_preprocessing={"type": "polar"}),
            "a polar transform.* cannot be served. Do the transform in the",
        ),
        (graph(model_graph_type="two_stage_model_graph"), "'two_stage_model_graph': graphs of two stages .* sidecar"),
        (
            graph(model_graph_type="bbox_model_graph"),
            "'bbox_model_graph': graphs of two stages and of bounding boxes can",
        ),
        (graph(model_graph_type=None), "model_graph_type is 'None'"),
        (graph(stages=graph()["model_graph"]["stages"] * 2), "has 2 stages; one can be served. .* sidecar manifest"),
        (graph(stages=[]), "has 0 stages; one can be served"),
        (graph(stages={}), "has no list of stages"),
        (graph(stages=["mochi"]), "has 1 stages; one can be served"),
        ({"model_graph": []}, "has no list of stages"),
        (stage(type="svdd"), "type is 'svdd', which cannot be served. Bring a single-stage mochi model, or .* sidecar"),
        (stage(type="spade"), "type is 'spade', which cannot be served"),
        (stage(drop=("type",)), "type is 'None', which cannot be served"),
        (stage(threshold="high"), "The manifest cannot be used: .*threshold is 'high'.* sidecar manifest"),
        (stage(interpolation=9), "interpolation is 9; known are"),
        (
            {**CONTENT, "package": {}},
            "belongs to a package that is compiled already. Package the files that it was made",
        ),
    ],
)
def test_what_a_manifest_does_not_say_or_cannot_ask(tmp_path, content, words):
    source = folder_of(tmp_path / "source", {"manifest.json": json.dumps(content).encode(), "mochi.pt": TORCHSCRIPT})
    with refused(words):
        load(source, tmp_path)


# (c) compiled components


def test_a_compiled_component(tmp_path, made):
    code = {f"mochi/{name}": data for name, data in COMPILED.items()} | {"mochi/manifest.json": b'{"a": 1}'}
    source = made({"manifest.json": MANIFEST, **code})
    with refused(
        "compiled code, which cannot be turned back into a model. Its manifest can be used: .* --model FILE .*mochi.pt"
    ):
        load(source, tmp_path)
    for name, data in (("mochi.pt", TORCHSCRIPT), ("mochi.onnx", ONNX)):
        model = file_of(tmp_path / name, data)
        found = load(source, tmp_path, model=model)
        assert (found.kind, found.name) == ("compiled component", f"{source.name} with {name}")
        assert (found.model, found.torchscript, found.manifest) == (model, name == "mochi.pt", CONTENT)
    with refused("/nowhere.pt does not exist, or is no file"):
        load(source, tmp_path, model=Path("/nowhere.pt"))


def test_a_compiled_component_without_its_manifest(tmp_path, made):
    source = made({"mochi/compiled.so": b"code"})
    model = file_of(tmp_path / "mochi.pt", TORCHSCRIPT)
    with refused("has 0 manifests with a model_graph; give one with --manifest FILE"):
        load(source, tmp_path, model=model)
    manifest = file_of(tmp_path / "mine.json", MANIFEST)
    assert load(source, tmp_path, model=model, manifest=manifest).manifest == CONTENT


def test_compiled_code_with_the_model_beside_it(tmp_path, made):
    source = made({"manifest.json": MANIFEST, "mochi/compiled.so": b"code", "mochi.pt": TORCHSCRIPT})
    assert load(source, tmp_path).kind == "model with a manifest"


# (d) ONNX components


def test_an_onnx_component(tmp_path, made):
    source = made(component())
    found = load(source, tmp_path)
    assert (found.kind, found.name, found.torchscript) == ("ONNX component", source.name, False)
    assert (found.manifest, found.model.read_bytes()) == (CONTENT, ONNX)
    assert found.model.parent.name == "mochi"


def test_models_elsewhere_are_not_the_components(tmp_path, made):
    files = {**component(), "model.onnx": b"other", "other/deep/model.onnx": b"other", "mochi/old/model.onnx": b"other"}
    assert load(made(files), tmp_path).model.read_bytes() == ONNX


def test_an_onnx_component_with_the_callers_files(tmp_path):
    """The caller's manifest may call the stage by its other name, which is no name of a folder here."""
    source = folder_of(tmp_path / "source", component())
    other = networks.content(threshold=0.75, type="supervised_multi_head_model")
    found = load(source, tmp_path, manifest=file_of(tmp_path / "mine.json", json.dumps(other).encode()))
    assert (found.manifest, found.model) == (other, source / "mochi/model.onnx")
    for name, data in (("mochi.pt", TORCHSCRIPT), ("mochi.onnx", ONNX)):
        found = load(source, tmp_path, model=file_of(tmp_path / name, data))
        assert (found.model.name, found.torchscript) == (name, name == "mochi.pt")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            {"manifest.json": component()["manifest.json"]},
            "has 0 files 'model.onnx' in folders beside its manifest, .* --mo",
        ),
        (
            {**component(), "other/model.onnx": ONNX},
            "has 2 files 'model.onnx' in folders beside its manifest, .* --model",
        ),
        (component(runtime_artifact="../model.onnx"), "runtime_artifact is '../model.onnx'; it must be a file name"),
        (component(runtime_artifact=7), "runtime_artifact is '7'; it must be a file name without a folder"),
        ({f"{n}/{k}": v for n in "ab" for k, v in component().items()}, "holds 2 components; name the folder of one"),
        (component(package={}), "belongs to a package that is compiled already"),
    ],
)
def test_an_onnx_component_that_is_not_whole(tmp_path, made, files, words):
    with refused(words):
        load(made(files), tmp_path)


@shared.needed
@pytest.mark.parametrize(
    ("name", "heads"), [("cookies-segmentation", (True, True)), ("cookies-classification", (True, False))]
)
def test_the_components_of_the_cookies(tmp_path, name, heads):
    found = load(shared.FOLDER / "models" / name / "component", tmp_path)
    stage = parse(found.manifest).stage
    assert (found.kind, (stage.classification, stage.segmentation)) == ("ONNX component", heads)


# (e) exports of anomalib


def export(path: Path, **given: Any) -> Path:
    return file_of(path, networks.anomalib(**given).SerializeToString())


def test_an_anomalib_export(tmp_path):
    source = export(tmp_path / "model.onnx")
    with refused(
        "model.onnx takes images of 72x64 only, and does not say which size the camera's images .* --image-size W"
    ):
        load(source, tmp_path)
    found = load(source, tmp_path, image_size=(1000, 667))
    assert (found.kind, found.name, found.torchscript) == ("anomalib export", "model.onnx", False)
    assert found.conventions == Conventions(ANOMALIB, mask="pred_mask", score="pred_score")
    parsed = parse(found.manifest)
    assert (parsed.image_size, parsed.stage.input_size, parsed.stage.mask_size) == ((1000, 667), (72, 64), None)
    assert (parsed.stage.threshold, parsed.stage.interpolation) == (0.5, "bilinear-antialias")
    assert (parsed.stage.image_range_scale, parsed.stage.normalize) == (True, False)
    assert [one.name for one in parsed.classes] == ["background", "anomaly"]
    assert (parsed.stage.class_normal_ids, parsed.stage.seg_normal_ids, found.notes) == ((1,), (0,), ())


def test_what_the_caller_says_of_an_anomalib_export(tmp_path):
    given = {"interpolation": "area", "threshold": 0.25, "classes": ("background", "scratch"), "pixel_threshold": 0.4}
    found = load(export(tmp_path / "model.onnx"), tmp_path, image_size=(144, 128), **given)
    parsed = parse(found.manifest)
    assert (parsed.stage.threshold, parsed.stage.interpolation, parsed.classes[1].name) == (0.25, 3, "scratch")
    assert found.conventions == Conventions(ANOMALIB, "anomaly_map", "pred_score", pixel_threshold=0.4)


def test_an_anomalib_export_without_a_mask(tmp_path):
    found = load(export(tmp_path / "model.onnx", mask=False), tmp_path, image_size=(72, 64))
    assert found.conventions == Conventions(ANOMALIB, "anomaly_map", "pred_score", pixel_threshold=0.5)


def test_an_anomalib_export_without_a_map(tmp_path):
    source = export(tmp_path / "model.onnx", map_=[])
    found = load(source, tmp_path, image_size=(72, 64))
    assert found.conventions == Conventions(ANOMALIB, mask="", score="pred_score")
    assert not parse(found.manifest).stage.segmentation
    with refused("--pixel-threshold must be .* an output anomaly_map; model.onnx has 'pred_score, pred_label'"):
        load(source, tmp_path, image_size=(72, 64), pixel_threshold=0.5)
    with refused("--classes names classes of pixels, and model.onnx has no map"):
        load(source, tmp_path, image_size=(72, 64), classes=("background", "scratch"))


def test_an_anomalib_export_without_post_processing(tmp_path):
    source = export(tmp_path / "model.onnx", label=False, mask=False)
    with refused(
        "without post-processing: .* Export it with post-processing, or give the threshold with --threshold NUM"
    ):
        load(source, tmp_path, image_size=(72, 64))
    found = load(source, tmp_path, image_size=(72, 64), threshold=17.5)
    assert found.notes == ("Scores are not normalised: those above 1 are reported as 1.",)
    assert parse(found.manifest).stage.threshold == 17.5
    assert found.conventions.pixel_threshold == 17.5
    found = load(source, tmp_path, image_size=(72, 64), threshold=17.5, pixel_threshold=12.0)
    assert found.conventions.pixel_threshold == 12.0


def test_an_anomalib_export_that_resizes_inside(tmp_path):
    source = export(tmp_path / "model.onnx", shape=["batch", 3, "height", "width"], resize=(96, 80))
    found = load(source, tmp_path)
    assert parse(found.manifest).image_size == parse(found.manifest).stage.input_size == (96, 80)
    assert found.notes == ("No --image-size was given: 96x80 is the size that the graph resizes to.",)
    found = load(source, tmp_path, image_size=(200, 100))
    assert parse(found.manifest).image_size == parse(found.manifest).stage.input_size == (200, 100)
    assert found.notes == ()


def test_a_map_that_is_resized_inside_says_nothing_of_the_images(tmp_path):
    model = networks.anomalib(shape=["batch", 3, "height", "width"])
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 1, 64, 72], np.int64), "sizes"))
    model.graph.node[1].output[0] = "small map"
    model.graph.node.insert(2, helper.make_node("Resize", ["small map", "", "", "sizes"], ["map"], mode="linear"))
    source = file_of(tmp_path / "model.onnx", model.SerializeToString())
    with refused(
        "takes images of any size, and does not say which size the camera's images have. Give it with --image"
    ):
        load(source, tmp_path)
    assert parse(load(source, tmp_path, image_size=(72, 64)).manifest).stage.input_size == (72, 64)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (
            [2, 3, 64, 72],
            "batches of exactly 2 images: .* Export it again from a freshly loaded model, with a batch of 1",
        ),
        ([1, 1, 64, 72], "must have one input, batch x 3 x height x width"),
        ([3, 64, 72], "must have one input, batch x 3 x height x width"),
    ],
)
def test_an_anomalib_export_of_another_input(tmp_path, shape, words):
    model = networks.anomalib()
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("input", TensorProto.FLOAT, shape))
    with refused(words):
        load(file_of(tmp_path / "model.onnx", model.SerializeToString()), tmp_path, image_size=(72, 64))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"classes": ("scratch",)}, "--classes must name two classes"),
        ({"classes": ("background", "a", "b")}, "--classes must name two classes"),
        ({"pixel_threshold": float("nan")}, "--pixel-threshold must be a finite number"),
        ({"pixel_threshold": float("inf")}, "--pixel-threshold must be a finite number"),
        ({"manifest": Path("mine.json")}, r"^--manifest does not go with model.onnx \(anomalib export\)\.$"),
        ({"model": Path("other.onnx")}, r"^--model does not go with model.onnx \(anomalib export\)\.$"),
    ],
)
def test_what_does_not_go_with_an_anomalib_export(tmp_path, given, words):
    with refused(words):
        load(export(tmp_path / "model.onnx"), tmp_path, image_size=(72, 64), **given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"interpolation": "fuzzy"}, "interpolation is 'fuzzy'; known are"),
    ],
)
def test_what_no_manifest_can_say(tmp_path, given, words):
    found = load(export(tmp_path / "model.onnx"), tmp_path, image_size=(72, 64), **given)
    with refused(f"^The manifest cannot be used: .*{words}(?!.*mochi)"):
        parse(found.manifest)


def test_an_anomalib_export_in_two_files(tmp_path, made):
    """The default of anomalib, which writes both into one folder."""
    folder = tmp_path / "export"
    folder.mkdir()
    onnx.save(
        networks.anomalib(),
        folder / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=0,
    )
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(files) == ["model.onnx", "model.onnx.data"]
    for source in (made(files), folder, folder / "model.onnx"):
        assert load(source, tmp_path, image_size=(72, 64)).kind == "anomalib export"
    with refused(
        "weights in a second file, 'model.onnx.data', which cannot be read: .* Put both files into one folder"
    ):
        load(file_of(tmp_path / "model.onnx", files["model.onnx"]), tmp_path, image_size=(72, 64))


@shared.needed
def test_a_real_anomalib_export(tmp_path):
    found = load(shared.FOLDER / "models/anomalib/patchcore_224x512.onnx", tmp_path, image_size=(1000, 667))
    parsed = parse(found.manifest)
    assert (parsed.stage.input_size, parsed.image_size) == ((512, 224), (1000, 667))
    assert found.conventions.mask == "pred_mask"


# (f) any ONNX with a sidecar


def sidecar(path: Path, told: object = None, **given: Any) -> Path:
    content = networks.content(**given)
    return file_of(path, json.dumps(content if told is None else {**content, "onnx": told}).encode())


def test_any_onnx_with_a_sidecar(tmp_path):
    source = file_of(tmp_path / "network.onnx", ONNX)
    with refused("ONNX model without a manifest, .* are never guessed: give a sidecar manifest with --manifest FILE"):
        load(source, tmp_path)
    found = load(source, tmp_path, manifest=sidecar(tmp_path / "side.json"))
    assert (found.kind, found.name, found.model) == ("ONNX model", "network.onnx with side.json", source)
    assert (found.manifest, found.conventions) == (CONTENT, Conventions())
    folder = folder_of(tmp_path / "folder", {"network.onnx": ONNX, "labels.txt": b""})
    assert load(folder, tmp_path, manifest=sidecar(tmp_path / "side.json")).model == folder / "network.onnx"


TOLD = {
    "class_scores": "probs",
    "mask_logits": "seg",
    "class_scores_are": "logits",
    "channels": "BGR",
    "mean": [0.5, 0, 0.25],
    "std": [1, 0.5, 2],
}


def test_what_a_sidecar_says_of_the_network(tmp_path):
    expected = Conventions(MOCHI, "seg", "probs", True, True, (0.5, 0.0, 0.25), (1.0, 0.5, 2.0))
    source = file_of(tmp_path / "network.onnx", ONNX)
    found = load(source, tmp_path, manifest=sidecar(tmp_path / "side.json", TOLD))
    assert (found.conventions, found.manifest) == (expected, CONTENT)


@pytest.mark.parametrize("kind", ["folder", "component", "compiled component"])
def test_every_manifest_beside_an_onnx_may_say_that(tmp_path, made, kind):
    """What it says must not be passed over anywhere: the compiled graph would be wrong, and agree with its source."""
    content = {**CONTENT, "onnx": TOLD}
    model = file_of(tmp_path / "mine.onnx", ONNX)
    files, options = {
        "folder": ({"manifest.json": json.dumps(content).encode(), "network.onnx": ONNX}, {}),
        "component": (component(content), {}),
        "compiled component": (
            {"manifest.json": json.dumps(content).encode(), "mochi/compiled.so": b""},
            {"model": model},
        ),
    }[kind]
    found = load(made(files), tmp_path, **options)
    assert (found.conventions.bgr, found.conventions.mask, found.manifest) == (True, "seg", CONTENT)


@pytest.mark.parametrize("files", [TRAINING_OUTPUT, {"manifest.json": MANIFEST, "mochi.pt": TORCHSCRIPT}])
def test_torchscript_has_mochis_way(tmp_path, files):
    source = folder_of(tmp_path / "source", files)
    with refused(
        "has an object `onnx`, which is for networks in ONNX; mochi.pt is none. Bring the network as .onnx, or"
    ):
        load(source, tmp_path, manifest=sidecar(tmp_path / "side.json", TOLD))


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ([], "`onnx` is not an object"),
        (
            {"chanels": "BGR"},
            "has 'chanels'; known are channels, class_scores, class_scores_are, mask_logits, mean, std",
        ),
        ({"channels": "GRB"}, "onnx.channels is 'GRB'; it must be RGB or BGR"),
        ({"channels": ["BGR"]}, "onnx.channels is .*; it must be RGB or BGR"),
        ({"class_scores_are": "odds"}, "onnx.class_scores_are is 'odds'; it must be probabilities or logits"),
        ({"class_scores": 1}, "onnx.class_scores is '1'; it must be the name of an output"),
        ({"mask_logits": ["a"]}, "onnx.mask_logits is .*; it must be the name of an output"),
        ({"mean": [0, 0, 0]}, "both mean and std, or neither"),
        ({"std": [1, 1, 1]}, "both mean and std, or neither"),
        ({"mean": [0, 0], "std": [1, 1, 1]}, "onnx.mean is .*; it must be three numbers, of R, G and B"),
        ({"mean": [0, 0, "0"], "std": [1, 1, 1]}, "onnx.mean is .*; it must be three numbers"),
        ({"mean": [0, 0, True], "std": [1, 1, 1]}, "onnx.mean is .*; it must be three numbers"),
        ({"mean": 0, "std": [1, 1, 1]}, "onnx.mean is '0'; it must be three numbers"),
        ({"mean": [0, 0, float("nan")], "std": [1, 1, 1]}, "onnx.mean is .*; it must be three numbers"),
        ({"mean": [0, 0, 10**400], "std": [1, 1, 1]}, "onnx.mean is .*; it must be three numbers, .* between -1e"),
        ({"mean": [0, 0, 0], "std": [1, 1, 0]}, "onnx.std must be 1e-06 or more"),
        ({"mean": [0, 0, 0], "std": [1, 1, -1]}, "onnx.std must be 1e-06 or more"),
    ],
)
def test_a_sidecar_that_says_something_else(tmp_path, told, words):
    source = file_of(tmp_path / "network.onnx", ONNX)
    with refused(words):
        load(source, tmp_path, manifest=sidecar(tmp_path / "side.json", told))


# Options that would change nothing


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("image_size", (72, 64)),
        ("interpolation", "area"),
        ("threshold", 0.0),
        ("pixel_threshold", 0.5),
        ("classes", ("background", "dent")),
    ],
)
@pytest.mark.parametrize("kind", ["training output", "model with a manifest", "ONNX component", "compiled component"])
def test_an_option_that_the_manifest_decides(tmp_path, kind, option, value):
    files = {
        "training output": TRAINING_OUTPUT,
        "model with a manifest": {"manifest.json": MANIFEST, "mochi.pt": TORCHSCRIPT},
        "ONNX component": component(),
        "compiled component": {"manifest.json": MANIFEST, "mochi/compiled.so": b""},
    }[kind]
    flag = f"--{option.replace('_', '-')}"
    with refused(rf"^{flag} does not go with source \({kind}\). What its manifest says counts; change it there"):
        load(folder_of(tmp_path / "source", files), tmp_path, **{option: value})


def test_a_second_model_for_what_has_one(tmp_path):
    model = file_of(tmp_path / "other.onnx", ONNX)
    with refused(r"^--model does not go with source \(training output\)"):
        load(folder_of(tmp_path / "source", TRAINING_OUTPUT), tmp_path, model=model)
    with refused(r"^--model does not go with other.onnx \(ONNX model\)"):
        load(model, tmp_path, model=model, manifest=sidecar(tmp_path / "side.json"))


# Files that are none of these, links, and pickles


def test_what_is_nothing_that_can_be_packaged(tmp_path, made):
    with refused("holds neither a manifest.json with a model_graph nor an ONNX model. Bring a training output"):
        load(made({"readme.txt": b"hello", "pictures/a.png": b""}), tmp_path)


def test_several_onnx_models(tmp_path, made):
    with refused("holds neither a manifest.json with a model_graph nor an ONNX model"):
        load(made({"a.onnx": ONNX, "b.onnx": ONNX}), tmp_path)


def test_a_source_that_does_not_exist(tmp_path):
    with refused("/gone does not exist, or is no file and no folder"):
        load(tmp_path / "gone", tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with refused("/pipe does not exist, or is no file and no folder"):
        load(tmp_path / "pipe", tmp_path)


def test_an_archive_that_is_none(tmp_path):
    with refused("'model.tar.gz' cannot be unpacked"):
        load(file_of(tmp_path / "model.tar.gz", b"no archive"), tmp_path)


@pytest.mark.parametrize(
    ("files", "linked", "words"),
    [
        ({"manifest.json": MANIFEST, "a.onnx": ONNX}, "manifest.json", "is an ONNX model without a manifest"),
        ({"manifest.json": MANIFEST, "mochi.pt": TORCHSCRIPT}, "mochi.pt", "has 0 model files"),
        (
            {name: data for name, data in TRAINING_OUTPUT.items() if name.startswith("export")},
            "export_artifacts",
            "holds neither a manifest.json",
        ),
        (
            TRAINING_OUTPUT,
            "export_artifacts/mochi.pt",
            "has no export_artifacts/manifest.json beside export_artifacts/mochi",
        ),
        (TOP, "mochi.pt", "holds neither a manifest.json"),
        (component(), "mochi", "has 0 files 'model.onnx'"),
        (component(), "mochi/model.onnx", "has 0 files 'model.onnx'"),
    ],
)
def test_links_are_not_followed(tmp_path, files, linked, words):
    """Not those of files, and not those of folders; what they lead to is as if it was not there."""
    source, away = folder_of(tmp_path / "source", files), tmp_path / "away"
    (source / linked).rename(away)
    (source / linked).symlink_to(away)
    with refused(words):
        load(source, tmp_path)


def test_folders_are_read_four_levels_deep(tmp_path):
    files = {"manifest.json": MANIFEST, "mochi.pt": TORCHSCRIPT}
    deep = folder_of(tmp_path / "deep", {f"1/2/3/4/{name}": data for name, data in files.items()})
    assert load(deep, tmp_path).model == deep / "1/2/3/4/mochi.pt"
    deeper = folder_of(tmp_path / "deeper", {f"1/2/3/4/5/{name}": data for name, data in files.items()})
    with refused("holds neither a manifest.json"):
        load(deeper, tmp_path)


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    source = folder_of(tmp_path / "source", {"inner/manifest.json": MANIFEST})
    real = os.scandir

    def scandir(path: Path) -> Any:
        if Path(path).name == "inner":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with refused("^inner cannot be read: Permission denied"):
        load(source, tmp_path)


class Canary:
    """What makes a file when its pickle is opened."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


PICKLES = ["m.pth", "m.ckpt", "m.pkl", "m.pickle", "m.pt", "m.PTH", "m.bin", "m.onnx", "m.zip"]


@pytest.fixture(params=["plain", "checkpoint"])
def pickled(request, tmp_path) -> Iterator[bytes]:
    """A pickle that makes a file when it is opened; or a checkpoint, a zip with it inside, as torch.save writes."""
    canary = tmp_path / "canary"
    data = pickle.dumps(Canary(canary))
    pickle.loads(data)  # it does
    canary.unlink()
    yield data if request.param == "plain" else zipped({"archive/data.pkl": data, "archive/version": b"3\n"})
    assert not canary.exists()


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_is_never_opened(tmp_path, name, pickled):
    suffix = Path(name).suffix.lower()
    words = "is a checkpoint, a pickle of Python's, which is never opened: .* Bring the model as TorchScript"
    if suffix == ".onnx":
        words = "is an ONNX model without a manifest"
    elif suffix in {".bin", ".zip"} and not pickled.startswith(b"PK"):
        words = "cannot be unpacked"
    with refused(words):
        load(file_of(tmp_path / name, pickled), tmp_path)


@pytest.mark.parametrize("place", ["folder", "zip", "training output", "--model"])
@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_beside_a_manifest_is_never_opened(tmp_path, name, place, pickled):
    files, options = {"manifest.json": MANIFEST, name: pickled}, {}
    if place == "folder":
        source = folder_of(tmp_path / "source", files)
    elif place == "zip":
        source = file_of(tmp_path / "source.zip", zipped(files))
    elif place == "training output":
        source = file_of(tmp_path / "model.tar.gz", tarred({**TOP, name: pickled}))
        options["manifest"] = file_of(tmp_path / "mine.json", MANIFEST)
    else:
        source = folder_of(tmp_path / "source", {"manifest.json": MANIFEST, "mochi/compiled.so": b""})
        options["model"] = file_of(tmp_path / name, pickled)
    if place == "training output":
        assert load(source, tmp_path, **options).model.read_bytes() == TORCHSCRIPT
    elif place == "--model" or name in {"m.pt", "m.onnx"}:
        # It is taken for what its name says: ONNX, or something for PyTorch, which is only asked for TorchScript.
        found = load(source, tmp_path, **options)
        words = "is not TorchScript; .* is never opened" if found.torchscript else "is not an ONNX model"
        with refused(words):
            (torchscript.check if found.torchscript else onnx_files.load)(found.model)
    else:
        with refused("has 0 model files"):
            load(source, tmp_path, **options)
    assert not any(path.suffix.lower() in importers.PICKLES for path in tmp_path.glob("work-*/**/*"))


def test_torchscript_without_pytorch(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else found(name))
    source = file_of(tmp_path / "mochi.pt", TORCHSCRIPT)
    imported = load(source, tmp_path, manifest=file_of(tmp_path / "mine.json", MANIFEST))
    with refused(r"mochi.pt is TorchScript, .* needs PyTorch, which is not installed: .*pip install '\.\[torch\]'"):
        torchscript.convert(imported.model, imported.manifest, None, tmp_path)


def test_a_component_with_a_file_like_a_pickle(tmp_path):
    """`metadata.pkl` beside a model makes no checkpoint of the zip."""
    source = file_of(tmp_path / "source.zip", zipped({**component(), "mochi/metadata.pkl": b"", "metadata.pkl": b""}))
    assert load(source, tmp_path).kind == "ONNX component"
