"""Writing a model package: manifest, model and the `package` block, whole at once."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_agent.manifest import BLOCK_FORMAT


def mochi_manifest(
    size: tuple[int, int], threshold: float, pixel_classes: tuple[str, ...], *, normalize: bool
) -> dict[str, Any]:
    """Return the manifest of a `mochi` model with both heads, whose class scores are (anomaly, normal).

    Args:
        size: width and height in pixels, of the network's input and of the images.
        threshold: the score from which on an image is anomalous.
        pixel_classes: names of the mask's channels, the background first.
        normalize: whether the network wants ImageNet's mean and deviation taken out.

    """
    width, height = size
    stage = {
        "type": "mochi",
        "threshold": threshold,
        "input_shape": [1, 3, height, width],
        "image_width": width,
        "image_height": height,
        "image_range_scale": True,
        "normalize": normalize,
        "interpolation": 3,
        "raw_image_shape": [height, width],
        "classification_head_enabled": True,
        "segmentation_head_enabled": True,
        "class_normal_ids": [1],
        "seg_normal_ids": [0],
    }
    return {
        "model_graph": {
            "model_graph_type": "single_stage_model_graph",
            "stages": [stage],
            "image_level_classes": {"names": ["anomaly", "normal"], "normal_ids": [1]},
            "pixel_level_classes": {"names": list(pixel_classes), "normal_ids": [0]},
        },
        "dataset": {"image_width": width, "image_height": height},
        "runtime": "onnx",
        "runtime_artifact": "model.onnx",
    }


def write(
    folder: Path,
    manifest: dict[str, Any],
    model: bytes,
    name: str,
    version: str = "1.0.0",
    colours: Mapping[str, str] | None = None,
) -> None:
    """Write a package into `folder`, which must not exist or be empty; it appears whole, by rename.

    `colours` are those of pixel classes by name, "#RRGGBB"; the others keep the palette's.

    Raises:
        OSError: the folder cannot be written, or has something in it.

    """
    stage = manifest["model_graph"]["stages"][0]["type"]
    digest = {"size": len(model), "sha256": hashlib.sha256(model).hexdigest()}
    block = {
        "format": BLOCK_FORMAT,
        "component": {"name": name, "version": version},
        "files": {f"{stage}/model.onnx": digest},
        "classes": [
            {"name": one, **({"hex-color": colours[one]} if colours and one in colours else {})}
            for one in manifest["model_graph"]["pixel_level_classes"]["names"]
        ],
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The manifest, which makes a folder a package, comes last, and the rename at once after it: an agent that watches
    # sees the package appear whole.
    beside = folder.parent / f".{folder.name}.new"
    shutil.rmtree(beside, ignore_errors=True)
    (beside / stage).mkdir(parents=True)
    try:
        (beside / stage / "model.onnx").write_bytes(model)
        (beside / "manifest.json").write_text(json.dumps({**manifest, "package": block}, indent=1) + "\n")
        beside.rename(folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
