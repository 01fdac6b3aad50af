"""Small random networks as exporters write them, and packaging jobs for them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_agent.manifest import Manifest
from model_packager import destinations, packaging
from model_packager.importers.source import parse
from support import packages

SIZE = (72, 64)
OPSET = 17
Shape = list[int | str | None]


def model(
    nodes: list[onnx.NodeProto],
    constants: Mapping[str, np.ndarray],
    outputs: Mapping[str, Shape],
    *,
    shape: Shape | None = None,
    opset: int = OPSET,
    kinds: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """Return a model with the input `input` (1x3x64x72 when nothing is said); `kinds` are types that are not float."""
    kinds = kinds or {}
    graph = helper.make_graph(
        nodes,
        "small",
        [_value("input", shape or [1, 3, SIZE[1], SIZE[0]], kinds)],
        [_value(name, one, kinds) for name, one in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _value(name: str, shape: Shape, kinds: Mapping[str, int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), shape)


def mochi(
    *,
    classes: int = 2,
    pixel_classes: int = 2,
    stride: int = 4,
    seed: int = 1,
    softmax: bool = True,
    dynamic: Shape | None = None,
    size: tuple[int, int] = SIZE,
    opset: int = OPSET,
) -> onnx.ModelProto:
    """Return a convolutional network with mochi's outputs, `mask` and `scores`; 0 classes is no such head."""
    random = np.random.default_rng(seed)
    width, height = size

    def weights(*sizes: int) -> np.ndarray:
        return random.normal(0, 0.5, sizes).astype(np.float32)

    constants = {"stem.weight": weights(6, 3, 3, 3), "stem.bias": weights(6)}
    conv = {"strides": [stride] * 2, "pads": [1] * 4}
    nodes = [
        helper.make_node("Conv", ["input", "stem.weight", "stem.bias"], ["stem"], name="stem", **conv),
        helper.make_node("Relu", ["stem"], ["features"], name="relu"),
    ]
    outputs: dict[str, Shape] = {}
    if pixel_classes:
        constants |= {"seg.weight": weights(pixel_classes, 6, 1, 1), "seg.bias": weights(pixel_classes)}
        nodes.append(helper.make_node("Conv", ["features", "seg.weight", "seg.bias"], ["mask"], name="seg"))
        small = [None, None] if dynamic else [-(-height // stride), -(-width // stride)]
        outputs["mask"] = [(dynamic or [1])[0], pixel_classes, *small]
    if classes:
        constants |= {"cls.weight": weights(6, classes), "cls.bias": weights(classes)}
        nodes += [
            helper.make_node("GlobalAveragePool", ["features"], ["pooled"], name="pool"),
            helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
            helper.make_node("Gemm", ["flat", "cls.weight", "cls.bias"], ["sums" if softmax else "scores"], name="cls"),
        ]
        if softmax:
            nodes.append(helper.make_node("Softmax", ["sums"], ["scores"], name="softmax", axis=1))
        outputs["scores"] = [(dynamic or [1])[0], classes]
    return model(nodes, constants, outputs, shape=dynamic or [1, 3, height, width], opset=opset)


def anomalib(
    *,
    score: Shape | None = None,
    map_: Shape | None = None,
    mask: bool = True,
    label: bool = True,
    shape: Shape | None = None,
    resize: tuple[int, int] | None = None,
    seed: int = 2,
) -> onnx.ModelProto:
    """Return what an anomalib export looks like; `score` and `map_` are the shapes of these outputs, [] is no map."""
    random = np.random.default_rng(seed)
    width, height = resize or SIZE
    map_ = [1, 1, height, width] if map_ is None else map_
    constants = {
        "kernel": random.normal(0, 1, (1, 3, 5, 5)).astype(np.float32),
        "limit": np.float32(0.5).reshape(()),
        "score_shape": np.array(score or [1], np.int64),
        "map_shape": np.array(map_, np.int64),
    }
    nodes = [
        helper.make_node("Conv", ["resized" if resize else "input", "kernel"], ["distance"], pads=[2] * 4),
        helper.make_node("Sigmoid", ["distance"], ["map"]),
        helper.make_node("ReduceMean", ["map"], ["mean"], keepdims=0),
        helper.make_node("Reshape", ["mean", "score_shape"], ["pred_score"]),
        helper.make_node("GreaterOrEqual", ["pred_score", "limit"], ["pred_label"]),
        helper.make_node("Reshape", ["map", "map_shape"], ["anomaly_map"]),
        helper.make_node("GreaterOrEqual", ["anomaly_map", "limit"], ["pred_mask"]),
    ]
    if resize:
        constants["sizes"] = np.array([1, 3, height, width], np.int64)
        nodes.insert(0, helper.make_node("Resize", ["input", "", "", "sizes"], ["resized"], mode="linear"))
    outputs: dict[str, Shape] = {"pred_score": score or [1]}
    if label:
        outputs["pred_label"] = score or [1]
    if map_:
        outputs["anomaly_map"] = map_
    if map_ and mask:
        outputs["pred_mask"] = map_
    nodes = nodes if map_ else [one for one in nodes if one.output[0] not in {"anomaly_map", "pred_mask"}]
    kinds = {"pred_label": TensorProto.BOOL, "pred_mask": TensorProto.BOOL}
    return model(nodes, constants, outputs, shape=shape, kinds=kinds)


def content(*, classes: int = 2, pixel_classes: int = 2, **stage: Any) -> dict[str, Any]:
    """Return the manifest of a `mochi` network without its runtime, as a training output has it."""
    names = ("background", *(f"defect {number}" for number in range(1, pixel_classes)))
    given = {"size": SIZE, "classification": bool(classes), "segmentation": bool(pixel_classes), **stage}
    made = packages.manifest(pixel_names=names if pixel_classes else (), **given)
    return {key: value for key, value in made.items() if key not in {"runtime", "runtime_artifact"}}


def parsed(**given: Any) -> Manifest:
    """Return what that manifest says."""
    return parse(content(**given))


def pictures(count: int = 4, size: tuple[int, int] = SIZE, seed: int = 3) -> list[np.ndarray]:
    """Return images of several brightnesses and grains, height x width x 3 (uint8)."""
    random = np.random.default_rng(seed)
    width, height = size
    found = []
    for number in range(count):
        small = random.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3)).repeat(8, axis=0).repeat(8, axis=1)
        noise = random.integers(0, 256, (height, width, 3))
        mixed = (small[:height, :width] * (count - number) + noise * number) // count
        found.append((mixed * random.uniform(0.4, 1)).astype(np.uint8))
    return found


def order(source: Path, output: Path, *, name: str = "board", **options: Any) -> dict[str, Any]:
    """Return a job's order, as the command line makes it."""
    platform = {"Os": "LINUX", "Arch": "X86_64"}
    greengrass = {
        "ComponentName": name,
        "TargetPlatform": platform,
        "CompilerOptions": json.dumps({"mcpu": "x86-64"}),
    }
    asked = {"ProjectName": "p", "ModelVersion": "1", "JobName": "job", "Configuration": {"Greengrass": greengrass}}
    return {"request": asked, "output": str(output), "source": str(source), "options": options}


def package(source: Path, work: Path, output: Path, **options: Any) -> dict[str, Any]:
    """Do a packaging job in this process, with a new folder for its work; return its result."""
    work.mkdir(parents=True)
    return dict(packaging.run(order(source, output, **options), work, destinations.of(str(output)), lambda *_: None))
