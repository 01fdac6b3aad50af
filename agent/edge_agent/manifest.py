"""What a model package says of itself: manifest.json, read strictly; nothing a verdict depends on is guessed.

The format is that of the components that Amazon Lookout for Vision wrote, plus one optional block, `package`, of our own.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge_agent import bitmaps
from edge_agent.block import Block, is_one, is_signed, read_block
from edge_agent.classes import UNSAFE, PixelClass, read_classes
from edge_agent.errors import PackageRefused, shown
from edge_agent.keys import Keys, mapping

FILE = "manifest.json"
LONGEST = 1 << 20
GRAPH = b"model_graph"
LONGEST_FILE_NAME = 255
GRAPH_TYPE = "single_stage_model_graph"
STAGE_TYPES = ("mochi", "supervised_multi_head_model")
LOGICS = ("cls_head", "seg_head", "cls_and_seg", "cls_or_seg")
# OpenCV's codes (cv::InterpolationFlags) by the names that newer packages use; the last one is not OpenCV's.
INTERPOLATIONS: dict[str, int | str] = {
    "nearest": 0,
    "bilinear": 1,
    "cubic": 2,
    "area": 3,
    "lanczos4": 4,
    "bilinear-antialias": "bilinear-antialias",
}


@dataclass(frozen=True)
class Calibration:
    """Platt scaling of the score: 1 / (1 + exp(scaling * s + shift)) after s / max_val_score when that exceeds 1."""

    scaling: float
    shift: float
    max_val_score: float = 1.0


@dataclass(frozen=True)
class Stage:
    """The one stage of a `mochi` model: how its input is made and how its outputs are read.

    Sizes are (width, height) in pixels; `interpolation` is an OpenCV code or "bilinear-antialias".
    """

    type: str
    threshold: float
    input_size: tuple[int, int]
    image_range_scale: bool
    normalize: bool
    interpolation: int | str
    mask_size: tuple[int, int] | None
    classification: bool
    segmentation: bool
    class_normal_ids: tuple[int, ...]
    seg_normal_ids: tuple[int, ...]
    seg_recall_bias: float
    classification_logic: str | None
    calibration: Calibration | None


@dataclass(frozen=True)
class Manifest:
    """A manifest that was accepted.

    `image_size` is the training image size (width, height) that requests must have; `model_file` is relative to the
    package; `notes` are sentences for operators.
    """

    stage: Stage
    image_size: tuple[int, int]
    classes: tuple[PixelClass, ...]
    model_file: str
    block: Block | None
    notes: tuple[str, ...]


def parse_json(data: bytes) -> dict[str, Any] | None:
    """Return the manifest in `data`, None when it is some other manifest.json; raise PackageRefused when it is broken.

    What has our `package` block is of one of our packages, even where damage took its model_graph.
    """
    if len(data) > LONGEST:
        raise PackageRefused(f"manifest.json is larger than {LONGEST} bytes.")
    twice: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys: dict[str, Any] = {}
        for key, value in pairs:
            if key in keys:
                twice.append(key)
            keys[key] = value
        return keys

    try:
        content = json.loads(data, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise PackageRefused(f"manifest.json is not JSON: {error}.") from None
    if not isinstance(content, dict):
        return None
    if "model_graph" not in content and not is_one(content.get("package")) and not is_signed(data):
        return None
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):  # half a surrogate pair, which no message could carry
        raise PackageRefused("manifest.json has text that is not Unicode.") from None
    if twice:
        raise PackageRefused(f"manifest.json has the key {shown(twice[0])} twice; which one counts is never guessed.")
    return content


def is_of_a_package(data: bytes) -> bool:
    """Return whether a manifest.json that is broken or too long is a model package's, as far as its first bytes tell.

    One that ends before it says anything is: it is still being copied, or a power failure has taken the rest.
    """
    begun = b'{"' + GRAPH + b'"'
    return GRAPH in data or is_signed(data) or begun.startswith(data.translate(None, b" \t\r\n\0"))


def parse(content: Mapping[str, Any]) -> Manifest:
    """Return what the manifest says; raise PackageRefused, naming the key, when it says too little or the unknown."""
    graph = Keys(mapping(content["model_graph"], "model_graph"), "model_graph")
    graph_type = graph.text("model_graph_type")
    if graph_type != GRAPH_TYPE:
        raise PackageRefused(f"model_graph_type is {graph_type!r:.80}; only {GRAPH_TYPE!r} can be served.")
    stages = graph.take("stages", list)
    if len(stages) != 1:
        raise PackageRefused(f"model_graph has {len(stages)} stages; a {GRAPH_TYPE} has one.")
    notes: list[str] = []
    image_classes = graph.section("image_level_classes")
    pixel_classes = graph.section("pixel_level_classes")
    block = read_block(Keys(mapping(content["package"], "package"), "package")) if "package" in content else None
    stage_keys = Keys(mapping(stages[0], "stages[0]"), "stages[0]")
    stage = _stage(stage_keys, image_classes, pixel_classes, notes)
    if block is None or not block.compiled:
        _note_what_input_lacks(stage_keys, notes)
    _note_a_threshold_beyond_scores(stage.threshold, notes)
    if block is None:
        notes.append("No `package` block: files are not checked against digests.")
    image_size = _image_size(Keys(content, "manifest.json"), stage)
    classes = read_classes(pixel_classes, block, notes) if stage.segmentation else ()
    if stage.segmentation or (block and not block.any_image_size):
        _check_image_size(image_size)
    if stage.segmentation:
        _check_normal_types(stage, classes)
    return Manifest(
        stage=stage,
        image_size=image_size,
        classes=classes,
        model_file=f"{stage.type}/{_artifact(Keys(content, 'manifest.json'))}",
        block=block,
        notes=tuple(notes),
    )


def _stage(keys: Keys, image_classes: Keys, pixel_classes: Keys, notes: list[str]) -> Stage:
    stage_type = keys.text("type")
    if stage_type not in STAGE_TYPES:
        raise PackageRefused(
            f"The stage's type is {stage_type!r:.80}; only {' and '.join(map(repr, STAGE_TYPES))} can be served."
        )
    if keys.values.get("transform_preprocessing"):
        raise PackageRefused("The stage asks for `transform_preprocessing`, which cannot be served.")
    classification = keys.flag("classification_head_enabled")
    segmentation = keys.flag("segmentation_head_enabled")
    if not classification and not segmentation:
        raise PackageRefused("The stage has neither classification_head_enabled nor segmentation_head_enabled.")
    logic = keys.text("classification_logic") if keys.has("classification_logic") else None
    if segmentation and logic is not None and logic not in LOGICS:
        raise PackageRefused(f"classification_logic is {logic!r:.80}; known are {', '.join(LOGICS)}.")
    raw = keys.sizes("raw_image_shape", 2) if keys.has("raw_image_shape") else None
    return Stage(
        type=stage_type,
        threshold=keys.number("threshold"),
        input_size=_input_size(keys),
        image_range_scale=keys.flag("image_range_scale"),
        normalize=keys.flag("normalize"),
        interpolation=_interpolation(keys),
        mask_size=(raw[1], raw[0]) if raw else None,
        classification=classification,
        segmentation=segmentation,
        class_normal_ids=_normal_ids(keys, "class_normal_ids", image_classes, notes, required=True)
        if classification
        else (),
        seg_normal_ids=_normal_ids(keys, "seg_normal_ids", pixel_classes, notes, required=False)
        if segmentation
        else (),
        seg_recall_bias=keys.number("seg_recall_bias") if keys.has("seg_recall_bias") else 0.0,
        classification_logic=logic,
        calibration=_calibration(keys) if classification and keys.flag("calibrated") else None,
    )


def _note_what_input_lacks(keys: Keys, notes: list[str]) -> None:
    """Note what a stage does not say of how pixels become the network's input, which is then not done to them."""
    lacking = [key for key in ("image_range_scale", "normalize") if not keys.has(key)]
    if lacking:
        notes.append(f"The manifest has no {' and no '.join(lacking)}, which counts as false.")


def _note_a_threshold_beyond_scores(threshold: float, notes: list[str]) -> None:
    """Note a threshold that no score 0..1 reaches, or none falls below; it is compared with 4 decimals."""
    if not 0 < round(threshold, 4) <= 1:
        notes.append(
            f"The threshold is {threshold:g}, and scores are reported clipped to 0..1: only is_anomalous is to be compared."
        )


def _input_size(keys: Keys) -> tuple[int, int]:
    """Return the network's input size; `input_shape` and `image_width`, `image_height` must not contradict each other."""
    shape = keys.sizes("input_shape", 4) if keys.has("input_shape") else None
    if shape and shape[:2] != (1, 3):
        raise PackageRefused(f"input_shape is {list(shape)}; only [1, 3, height, width] can be served.")
    if not keys.has("image_width") and not keys.has("image_height") and shape:
        return shape[3], shape[2]
    size = keys.side("image_width"), keys.side("image_height")
    if shape and size != (shape[3], shape[2]):
        raise PackageRefused(f"input_shape {list(shape)} contradicts image_width {size[0]} and image_height {size[1]}.")
    return size


def _interpolation(keys: Keys) -> int | str:
    value = keys.values["interpolation"] if keys.has("interpolation") else "area"
    for name, code in INTERPOLATIONS.items():
        if value == name or (value == code and type(value) is int):
            return code
    known = ", ".join(INTERPOLATIONS)
    raise PackageRefused(f"interpolation is {value!r:.80}; known are OpenCV's codes 0 to 4 and {known}.")


def _normal_ids(keys: Keys, key: str, graph_level: Keys, notes: list[str], *, required: bool) -> tuple[int, ...]:
    """Return the ids of the normal classes: the stage's own, else those of the graph, which apply to every stage."""
    own = keys.ids(key) if keys.has(key) else None
    shared = graph_level.ids("normal_ids") if graph_level.has("normal_ids") else None
    if own is None and shared is None:
        raise PackageRefused(
            f"The stage has no {key}, and {graph_level.place} no normal_ids; which class is normal is never guessed."
        )
    if own and shared and set(own) != set(shared):
        notes.append(
            f"The stage's {key} {list(own)!r:.80} are used, although {graph_level.place} says {list(shared)!r:.80}."
        )
    # Of the mask's types none may be normal, which an empty list of one's own says; of the image's classes one must be.
    if own == () and shared and required:
        notes.append(f"The stage's {key} is empty; the {list(shared)!r:.80} of {graph_level.place} are used.")
        own = None
    ids = (own if own is not None else shared) or ()
    if required and not ids:
        raise PackageRefused(f"{key} is empty; which class is normal is never guessed.")
    return ids


def _calibration(keys: Keys) -> Calibration:
    most = keys.number("max_val_score") if keys.has("max_val_score") else 1.0
    return Calibration(keys.number("calibrator_scaling"), keys.number("calibrator_shift"), most)


def _image_size(content: Keys, stage: Stage) -> tuple[int, int]:
    """Return the size that requests must have: the dataset's, else the raw image's, else the network's."""
    dataset = content.section("dataset")
    if dataset.has("image_width") or dataset.has("image_height"):
        return dataset.side("image_width"), dataset.side("image_height")
    return stage.mask_size or stage.input_size


def _check_image_size(image_size: tuple[int, int]) -> None:
    """Refuse a model that takes images of one size only, if no image can have that."""
    if not all(bitmaps.SHORTEST_SIDE <= side <= bitmaps.LONGEST_SIDE for side in image_size):
        raise PackageRefused(
            f"The training image size is {image_size[0]}x{image_size[1]}; images have {bitmaps.SHORTEST_SIDE} to "
            f"{bitmaps.LONGEST_SIDE} pixels a side, so none could be judged."
        )


def _check_normal_types(stage: Stage, classes: tuple[PixelClass, ...]) -> None:
    """Refuse a segmentation model whose normal classes do not exist."""
    if any(one >= len(classes) for one in stage.seg_normal_ids):
        raise PackageRefused(
            f"seg_normal_ids is {list(stage.seg_normal_ids)!r:.80}; pixel_level_classes.names has {len(classes)} classes."
        )


def _artifact(content: Keys) -> str:
    """Return the model's file name; refuse what is not ONNX with the way out."""
    runtime = content.values.get("runtime")
    if runtime is None:
        raise PackageRefused(
            "The manifest names no runtime: this is a training output or a compiled component. Compiled code cannot be "
            "turned back; convert the .pt or .onnx that it was made from into an ONNX package."
        )
    if runtime != "onnx":
        raise PackageRefused(f"runtime is {runtime!r:.80}; only 'onnx' can be served.")
    name = content.text("runtime_artifact")
    if "/" in name or name in {"", ".", ".."} or len(name.encode(errors="replace")) > LONGEST_FILE_NAME:
        raise PackageRefused(f"runtime_artifact is {name!r:.80}; it must be a file name without a folder.")
    if UNSAFE.search(name):
        raise PackageRefused(f"runtime_artifact is {name!r:.80}; it has control characters.")
    return name
