"""Tiny model packages made in the test: real ONNX graphs whose outputs the test decides, pixel by pixel."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_agent import block

OPSET = 17


def _float(name: str, shape: list[int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def model(
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    shape: tuple[int, ...],
    outputs: list[onnx.ValueInfoProto],
) -> bytes:
    """Return an ONNX model with the input `input` of `shape`."""
    graph = helper.make_graph(
        nodes,
        "tiny",
        [_float("input", list(shape))],
        outputs,
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return made.SerializeToString()


def constant(scores: Any = None, logits: Any = None, size: tuple[int, int] = (64, 64)) -> bytes:
    """Return a model whose outputs are always `logits` (CxHxW) and `scores` (K), as far as they are given.

    The input takes part, times zero, so that nothing is folded away and a wrong input shape is noticed.
    """
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
    ]
    constants = {"zero": np.float32(0).reshape(())}
    outputs = []
    for name, value in (("logits", logits), ("scores", scores)):
        if value is not None:
            array = np.asarray(value, np.float32)[None]
            constants[f"{name}_constant"] = array
            nodes.append(helper.make_node("Add", [f"{name}_constant", "nothing"], [name]))
            outputs.append(_float(name, list(array.shape)))
    width, height = size
    return model(nodes, constants, (1, 3, height, width), outputs)


def brightness(size: tuple[int, int] = (64, 64), mask: bool = True) -> bytes:
    """Return a model whose anomaly score is the input's mean (channel 0; normal is channel 1), and whose mask marks
    pixels with a red above one half, at the input's own size.
    """
    width, height = size
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "axis"], ["anomaly"]),
        helper.make_node("Sub", ["one", "anomaly"], ["normal"]),
        helper.make_node("Concat", ["anomaly", "normal"], ["scores"], axis=1),
    ]
    constants = {"one": np.ones((1, 1), np.float32), "axis": np.array([1], np.int64)}
    outputs = [_float("scores", [1, 2])]
    if mask:
        constants |= {
            "starts": np.array([0], np.int64),
            "ends": np.array([1], np.int64),
            "channel": np.array([1], np.int64),
            "half": np.full((1, 1, 1, 1), 0.5, np.float32),
        }
        nodes += [
            helper.make_node("Slice", ["input", "starts", "ends", "channel"], ["red"]),
            helper.make_node("Sub", ["red", "half"], ["over"]),
            helper.make_node("Neg", ["over"], ["under"]),
            helper.make_node("Concat", ["under", "over"], ["logits"], axis=1),
        ]
        outputs.insert(0, _float("logits", [1, 2, height, width]))
    return model(nodes, constants, (1, 3, height, width), outputs)


def slow(rounds: int, size: tuple[int, int] = (64, 64)) -> bytes:
    """Return a classifier (normal: channel 1) that spins in an ONNX Loop for `rounds` rounds, about 2 us each."""
    body = helper.make_graph(
        [helper.make_node("Add", ["x_in", "step"], ["x_out"]), helper.make_node("Identity", ["go_in"], ["go_out"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            _float("x_in", [1]),
        ],
        [helper.make_tensor_value_info("go_out", TensorProto.BOOL, []), _float("x_out", [1])],
        [numpy_helper.from_array(np.zeros(1, np.float32), "step")],
    )
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Loop", ["rounds", "go", "mean"], ["spun"], body=body),
        helper.make_node("Unsqueeze", ["spun", "axis"], ["anomaly"]),
        helper.make_node("Sub", ["one", "anomaly"], ["normal"]),
        helper.make_node("Concat", ["anomaly", "normal"], ["scores"], axis=1),
    ]
    constants = {
        "rounds": np.array(rounds, np.int64),
        "go": np.array(True),
        "axis": np.array([1], np.int64),
        "one": np.ones((1, 1), np.float32),
    }
    width, height = size
    return model(nodes, constants, (1, 3, height, width), [_float("scores", [1, 2])])


def manifest(
    *,
    size: tuple[int, int] = (64, 64),
    classification: bool = True,
    segmentation: bool = False,
    pixel_names: tuple[str, ...] = (),
    image_size: tuple[int, int] | None = None,
    **stage: Any,
) -> dict[str, Any]:
    """Return a manifest as the field has it; `stage` keys win, and one that is None is left out."""
    width, height = size
    image_width, image_height = image_size or size
    keys = {
        "type": "mochi",
        "threshold": 0.5,
        "input_shape": [1, 3, height, width],
        "image_width": width,
        "image_height": height,
        "image_range_scale": True,
        "normalize": False,
        "interpolation": 3,
        "classification_head_enabled": classification,
        "segmentation_head_enabled": segmentation,
        "class_normal_ids": [1] if classification else [],
        "seg_normal_ids": [0] if segmentation else [],
        **stage,
    }
    return {
        "model_graph": {
            "model_graph_type": "single_stage_model_graph",
            "stages": [{key: value for key, value in keys.items() if value is not None}],
            "image_level_classes": {"names": ["anomaly", "normal"], "normal_ids": keys["class_normal_ids"] or []},
            "pixel_level_classes": {"names": list(pixel_names), "normal_ids": keys["seg_normal_ids"] or []},
        },
        "dataset": {"image_width": image_width, "image_height": image_height},
        "runtime": "onnx",
        "runtime_artifact": "model.onnx",
    }


def manifest_bytes(content: dict[str, Any]) -> bytes:
    """Return a manifest as it is written: with the digest of itself, where it has a `package` block."""
    if "package" not in content:
        return json.dumps(content).encode()
    return block.sign(json.dumps({**content, "package": {**content["package"], "manifest_sha256": "0" * 64}}).encode())


def write(folder: Path, content: dict[str, Any], onnx_model: bytes) -> Path:
    """Write a package; whole at once, as a rename makes it. Return the folder."""
    beside = folder.parent / f".{folder.name}.new"
    shutil.rmtree(beside, ignore_errors=True)
    stage = beside / content["model_graph"]["stages"][0]["type"]
    stage.mkdir(parents=True)
    (stage / "model.onnx").write_bytes(onnx_model)
    (beside / "manifest.json").write_bytes(manifest_bytes(content))
    for path in (beside, *beside.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)
    return folder


def segmenter(folder: Path, size: tuple[int, int] = (64, 64), **stage: Any) -> Path:
    """Write the package of a `brightness` model with both heads."""
    content = manifest(size=size, segmentation=True, pixel_names=("background", "bright"), **stage)
    return write(folder, content, brightness(size))


def classifier(folder: Path, size: tuple[int, int] = (64, 64), **stage: Any) -> Path:
    """Write the package of a `brightness` model without a mask."""
    return write(folder, manifest(size=size, **stage), brightness(size, mask=False))
