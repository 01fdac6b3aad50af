"""What an importer is given, and what several of them need: finding the manifest and the model, and saying what is wrong."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

from edge_agent import manifest
from edge_agent.errors import PackageRefused, shown
from edge_agent.manifest import Manifest
from model_packager.errors import PackagingRefused

DEEPEST = 4
ONNX = ".onnx"
MODEL_SUFFIXES = {ONNX, ".pt"}
PICKLES = {".ckpt", ".pickle", ".pkl", ".pth"}
# What a training leaves behind, and what a Mac puts beside each file of an archive.
SKIPPED, APPLES = {"checkpoints", "evaluation", "__MACOSX", ".DS_Store"}, "._"
SIDECAR = "Bring a single-stage mochi model, or export the network as ONNX and describe it in a sidecar manifest (--manifest FILE)."


@dataclass(frozen=True)
class Options:
    """What the caller says of a source; None is not said. Sizes are (width, height) in pixels."""

    manifest: Path | None = None
    model: Path | None = None
    image_size: tuple[int, int] | None = None
    interpolation: int | str | None = None
    threshold: float | None = None
    pixel_threshold: float | None = None
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A folder (an archive is unpacked by now) or one model file; `name` is what the caller called it by."""

    name: str
    folder: Path | None = None
    file: Path | None = None
    torchscript: bool = False

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The files of a folder, without those to skip, at most 4 levels deep, links not followed, in alphabetical order."""
        return tuple(_walk(self.folder, DEEPEST)) if self.folder else ()

    @cached_property
    def manifests(self) -> list[Path]:
        """The files called manifest.json that are a model's; other programs, and compiled code, have some of that name.

        Where there is none, one that is too broken to tell may have been it.
        """
        called = [path for path in self.files if path.name == manifest.FILE]
        return [path for path in called if _is_a_models(path)] or [
            path for path in called if _is_a_models(path, doubt=True)
        ]

    @property
    def models(self) -> list[Path]:
        """The model files of a folder."""
        return [path for path in self.files if path.suffix.lower() in MODEL_SUFFIXES]

    @property
    def onnx(self) -> Path | None:
        """The ONNX model, where that is the only model there is."""
        found = [self.file] if self.file else self.models
        return found[0] if len(found) == 1 and found[0].suffix.lower() == ONNX else None


def is_skipped(path: str) -> bool:
    """Return whether what is in a source is passed over as if it was not there, whatever it is: pickles, among others."""
    return any(
        part in SKIPPED or part.startswith(APPLES) or PurePath(part).suffix.lower() in PICKLES
        for part in PurePath(path).parts
    )


def _walk(folder: Path, levels: int) -> Iterator[Path]:
    try:
        with os.scandir(folder) as found:
            entries = sorted((entry for entry in found if not is_skipped(entry.name)), key=lambda entry: entry.name)
        for entry in entries:
            if entry.is_file(follow_symlinks=False):
                yield Path(entry)
            elif entry.is_dir(follow_symlinks=False) and levels:
                yield from _walk(Path(entry), levels - 1)
    except OSError as error:
        raise PackagingRefused(f"{folder.name} cannot be read: {error.strerror}.") from None


def _is_a_models(path: Path, *, doubt: bool = False) -> bool:
    """Return whether a manifest.json is a model's; `doubt` answers for one that is broken and says nothing of a model."""
    try:
        data = path.read_bytes()
    except OSError:  # whoever reads it says what is wrong
        return True
    try:
        content = manifest.parse_json(data)
    except PackageRefused:
        return doubt or manifest.is_of_a_package(data)
    return content is not None and "model_graph" in content


def read_manifest(path: Path) -> dict[str, Any]:
    """Return a manifest's content, without what the original's packaging added; raise PackagingRefused.

    What cannot be served is refused here, by name and with the way out.
    """
    try:
        content = manifest.parse_json(path.read_bytes())
    except OSError as error:
        raise PackagingRefused(f"{path.name} cannot be read: {error.strerror}.") from None
    except PackageRefused as refusal:
        raise PackagingRefused(f"{path.name}: {refusal}") from None
    if content is None or "model_graph" not in content:
        raise PackagingRefused(f"{path.name} is no manifest of a model: it has no model_graph.")
    if "package" in content:
        raise PackagingRefused(
            f"{path.name} belongs to a package that is compiled already. Package the files that it was made from again."
        )
    plain = {key: value for key, value in content.items() if key not in {"runtime", "runtime_artifact"}}
    _refuse_unservable(plain)
    parse(plain, SIDECAR)
    return plain


def parse(content: Mapping[str, Any], way_out: str = "") -> Manifest:
    """Return what a manifest without runtime says; raise PackagingRefused, with the way out where there is one."""
    try:
        return manifest.parse({**content, "runtime": "onnx", "runtime_artifact": "model.onnx"})
    except PackageRefused as refusal:
        raise PackagingRefused(f"The manifest cannot be used: {refusal} {way_out}".rstrip()) from None


def _refuse_unservable(content: Mapping[str, Any]) -> None:
    graph = content["model_graph"]
    if not isinstance(graph, dict) or not isinstance(graph.get("stages"), list):
        raise PackagingRefused("The manifest's model_graph has no list of stages.")
    kind = graph.get("model_graph_type")
    if kind != manifest.GRAPH_TYPE:
        raise PackagingRefused(
            f"model_graph_type is {shown(str(kind))}: graphs of two stages and of bounding boxes cannot be served. {SIDECAR}"
        )
    if len(graph["stages"]) != 1 or not isinstance(graph["stages"][0], dict):
        raise PackagingRefused(f"The manifest has {len(graph['stages'])} stages; one can be served. {SIDECAR}")
    stage = graph["stages"][0]
    if stage.get("type") not in manifest.STAGE_TYPES:
        raise PackagingRefused(
            f"The stage's type is {shown(str(stage.get('type')))}, which cannot be served. {SIDECAR}"
        )
    if stage.get("transform_preprocessing"):
        raise PackagingRefused(
            "The stage asks for transform_preprocessing (a polar transform, for example), which cannot be served. Do the "
            "transform in the client and train on transformed images."
        )
    if stage.get("threshold") is None:
        raise PackagingRefused(
            "The stage has no threshold. It is never guessed: write the trained one into the manifest and give that with "
            "--manifest FILE."
        )
    classes = graph.get("image_level_classes") or {}
    own = stage.get("class_normal_ids") or (classes.get("normal_ids") if isinstance(classes, dict) else None)
    if stage.get("classification_head_enabled") and not own:
        raise PackagingRefused(
            "The manifest says neither class_normal_ids nor image_level_classes.normal_ids. Which class is normal is never "
            "guessed: write it into the manifest and give that with --manifest FILE."
        )
