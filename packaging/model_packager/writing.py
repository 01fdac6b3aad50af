"""Writing a model package: manifest, model files and the `package` block, whole at once, the same bytes every time."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_agent import block
from edge_agent.manifest import FILE, parse

MODEL = "model.onnx"
UNSIGNED = "0" * 64


def mochi_manifest(
    size: tuple[int, int],
    threshold: float,
    pixel_classes: tuple[str, ...],
    *,
    normalize: bool,
    network_size: tuple[int, int] | None = None,
    interpolation: int | str = 3,
) -> dict[str, Any]:
    """Return the manifest of a `mochi` model whose class scores are (anomaly, normal).

    Args:
        size: width and height in pixels of the images.
        threshold: the score from which on an image is anomalous.
        pixel_classes: names of the mask's channels, the background first; none for a model without a mask.
        normalize: whether the network wants ImageNet's mean and deviation taken out.
        network_size: width and height of the network's input; default: the images'.
        interpolation: how images are brought to it, an OpenCV code or a name.

    """
    width, height = network_size or size
    stage: dict[str, Any] = {
        "type": "mochi",
        "threshold": threshold,
        "input_shape": [1, 3, height, width],
        "image_width": width,
        "image_height": height,
        "image_range_scale": True,
        "normalize": normalize,
        "interpolation": interpolation,
        "classification_head_enabled": True,
        "segmentation_head_enabled": bool(pixel_classes),
        "class_normal_ids": [1],
        "seg_normal_ids": [0] if pixel_classes else [],
    }
    if size == (width, height):
        stage["raw_image_shape"] = [height, width]
    return {
        "model_graph": {
            "model_graph_type": "single_stage_model_graph",
            "stages": [stage],
            "image_level_classes": {"names": ["anomaly", "normal"], "normal_ids": [1]},
            "pixel_level_classes": {"names": list(pixel_classes), "normal_ids": stage["seg_normal_ids"]},
        },
        "dataset": {"image_width": size[0], "image_height": size[1]},
    }


def write(
    folder: Path,
    manifest: Mapping[str, Any],
    model: bytes,
    name: str,
    version: str = "1.0.0",
    *,
    colours: Mapping[str, str] | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write a package into `folder`, which must not exist or be empty; it appears whole, by rename.

    Args:
        folder: the package's folder.
        manifest: the manifest without its `package` block and runtime.
        model: the ONNX model.
        name: the component's name.
        version: the component's version, x.y.z.
        colours: those of pixel classes by name, "#RRGGBB"; the others keep the palette's.
        more: further keys of the `package` block.

    Raises:
        OSError: the folder cannot be written, or has something in it.
        PackageRefused: the manifest is none that the agent takes.

    """
    content = {**manifest, "runtime": "onnx", "runtime_artifact": MODEL}
    parsed = parse(content)
    package = {
        "format": block.FORMAT,
        "component": {"name": name, "version": version},
        "manifest_sha256": UNSIGNED,
        "files": {parsed.model_file: {"size": len(model), "sha256": hashlib.sha256(model).hexdigest()}},
        "classes": [
            {"name": one.name, **({"hex-color": colours[one.name]} if colours and one.name in colours else {})}
            for one in parsed.classes
        ],
        **(more or {}),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The manifest, which makes a folder a package, comes last, and the rename at once after it: an agent that watches
    # sees the package appear whole.
    beside = folder.parent / f".{folder.name}.new"
    shutil.rmtree(beside, ignore_errors=True)
    (beside / parsed.stage.type).mkdir(parents=True)
    try:
        (beside / parsed.model_file).write_bytes(model)
        signed = block.sign(json.dumps({**content, "package": package}, indent=1).encode() + b"\n")
        (beside / FILE).write_bytes(signed)
        beside.rename(folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
