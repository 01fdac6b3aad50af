"""Packages for NVIDIA: the same verdicts, to the bit, by a graph in which TensorRT's documentation finds nothing to refuse.

1. the graph for processors is the one it was, byte for byte; 2. that for GPUs says the same; 3. each rule of TensorRT's
finds what is planted against it, and nothing else; 4. int8 is symmetric; 5. a job for NVIDIA packages such a graph, or fails.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from edge_agent import backends
from edge_agent.jobs import SessionOptions
from edge_agent.packages import ModelFiles
from model_packager import accelerated, destinations, fusing, importers, measuring, onnx_files, optimising, packaging
from model_packager.errors import PackagingRefused
from model_packager.importers.source import parse
from model_packager.network import ANOMALIB, Conventions
from model_packager.optimising import Integers
from model_packager.parity import Images
from model_packager.targets import Target
from support import networks, shared

MAP = Conventions(ANOMALIB, mask="anomaly_map", score="pred_score", pixel_threshold=0.5)
MASK = Conventions(ANOMALIB, mask="pred_mask", score="pred_score")
OTHER = Conventions(scores_are_logits=True, bgr=True, mean=(0.1, 0.2, 0.3), std=(0.2, 0.3, 0.4))
OPTIONS = {"gpu-code": "sm_87", "trt-ver": "10.3.0", "cuda-ver": "12.6"}

NETWORKS: dict[str, tuple[onnx.ModelProto, Conventions, dict[str, Any]]] = {
    "both heads": (networks.mochi(), Conventions(), {}),
    "five classes": (networks.mochi(pixel_classes=5), Conventions(), {"pixel_classes": 5, "seg_recall_bias": 0.5}),
    "scores": (networks.mochi(pixel_classes=0), Conventions(), {"pixel_classes": 0, "normalize": True}),
    "mask": (networks.mochi(classes=0), Conventions(), {"classes": 0, "normalize": True}),
    "other ways": (networks.mochi(softmax=False), OTHER, {}),
    "any batch": (networks.mochi(dynamic=["batch", 3, "height", "width"]), Conventions(), {}),
    "anomaly map": (networks.anomalib(), MAP, {}),
    "anomaly map of any batch": (networks.anomalib(shape=["batch", 3, 64, 72]), MAP, {}),
    "anomaly map of a resized image": (networks.anomalib(resize=(96, 80)), MAP, {}),
    "anomaly map of one channel": (networks.anomalib(map_=[1, 64, 72]), MAP, {}),
    "anomaly mask": (networks.anomalib(), MASK, {}),
}


def fused(name: str, work: Path, *, gpu: bool) -> onnx.ModelProto:
    model, conventions, given = NETWORKS[name]
    made = optimising.fold(fusing.fuse(model, networks.parsed(**given), conventions, accelerated=gpu), work)
    return accelerated.with_sizes(made) if gpu else made


def outputs(model: onnx.ModelProto, images: Any) -> list[list[bytes]]:
    session = backends.open_session(ModelFiles(model.SerializeToString()), SessionOptions())
    return [[np.array(one).tobytes() for one in session.run(np.ascontiguousarray(pixels)[None])] for pixels in images]


# 1. For processors


# Of the graphs as they were before there was another form for GPUs, without the network's weights.
BEFORE = {
    "both heads": "d733055144c4f8eba28fd31b4ff5cc80c7b50bf70007aa4166ae11973a59cf4c",
    "five classes": "b2dabccf270d2a0044009767a434d8b0d2a98c86c44bc3692305a78d554b4f8e",
    "scores": "b4ee6cabb09db957f3f911031430a4cf31fbdbe1a821a9d69122514949147b94",
    "mask": "64610bfc4f8bf6ec6e06240fcdf0ddb8a361367510cfa2f0a542219970dfa108",
    "other ways": "5005e45148b6657c744145fa8776535a642d7196c9b501705d81d156c13b9e62",
    "any batch": "d733055144c4f8eba28fd31b4ff5cc80c7b50bf70007aa4166ae11973a59cf4c",
    "anomaly map": "bf857070d2a0769b266360dafa9e8ba3e38232447ed98007d6339b95c57d495a",
    "anomaly map of any batch": "bf857070d2a0769b266360dafa9e8ba3e38232447ed98007d6339b95c57d495a",
    "anomaly map of a resized image": "b4a91ee6baf2a63d246a69c0c86e0a553ca2860b28c48b1b6793621d68e746c3",
    "anomaly map of one channel": "a0e699879ac563c4c0bc3190213fe4758c18e9bbbc5b4535a3b117e2b4265386",
    "anomaly mask": "a27bf3db1862a92ab2203b3e4cf3de8ce28dbc2c4791b64b4bc9f5c935512ec8",
}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_graphs_for_processors_are_what_they_were(name):
    model, conventions, given = NETWORKS[name]
    made = fusing.fuse(model, networks.parsed(**given), conventions)
    for one in made.graph.initializer:
        if not one.name.startswith(fusing.PREFIX):
            one.ClearField("raw_data")
    assert hashlib.sha256(made.SerializeToString(deterministic=True)).hexdigest() == BEFORE[name]


def test_a_device_has_a_gpu_and_an_architecture_has_none():
    targets = [Target("LINUX", "X86_64"), Target("LINUX", "X86_64", "NVIDIA"), Target("LINUX", "ARM64", "", "t4")]
    assert [one.accelerated for one in targets] == [False, True, True]


# 2. The same verdicts


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_the_same_bits(tmp_path, name, precision):
    """On this machine, from the same network: the class map, the mean and the score are the processor's own."""
    graphs = [fused(name, tmp_path, gpu=gpu) for gpu in (False, True)]
    if precision == "fp16":
        graphs = [optimising.to_fp16(one) for one in graphs]
    for one in graphs:
        onnx.checker.check_model(one, full_check=True)
    said, expected = (outputs(one, networks.pictures(6)) for one in reversed(graphs))
    assert said == expected
    assert len({b"".join(one) for one in said}) == 6
    assert accelerated.complaints(graphs[1]) == []
    # What finds nothing there finds something here: this graph is none for TensorRT.
    assert any("reads the bytes of 'bitmap'" in words for words in accelerated.complaints(graphs[0]))


@pytest.mark.parametrize("name", list(NETWORKS))
def test_all_sizes_are_known(tmp_path, name):
    """A network of any batch becomes one for single images; what would look sizes up is gone."""
    graph = fused(name, tmp_path, gpu=True).graph
    borders = {
        one.name: [size.dim_value for size in one.type.tensor_type.shape.dim] for one in (*graph.input, *graph.output)
    }
    small = [64, 72] if name.startswith("anomaly") else [16, 18]
    expected = {"bitmap": [1, 64, 72, 3], "class_map": [1, *small], "mask_mean": [1], "score": [1]}
    if name == "anomaly map of a resized image":
        expected["class_map"] = [1, 80, 96]
    assert borders == {one: expected[one] for one in borders}
    assert not {"Shape", "Size", "Slice", "Concat"} & {node.op_type for node in graph.node}


@shared.needed
@pytest.mark.parametrize("name", ["cookies-segmentation", "cookies-classification", "anomalib"])
def test_the_same_bits_of_real_models(tmp_path, name):
    given: dict[str, Any] = dict.fromkeys(
        ("manifest", "model", "image_size", "interpolation", "threshold", "pixel_threshold")
    )
    source, classes = shared.FOLDER / "models" / name / "component", ()
    if name == "anomalib":
        source, classes = shared.FOLDER / "models/anomalib/patchcore_224x512.onnx", ("background", "scratch")
        given["image_size"] = (1000, 667)
    imported = importers.load(source, importers.Options(classes=classes, **given), tmp_path)
    parsed = parse(imported.manifest)
    graphs = [
        optimising.fold(
            fusing.fuse(onnx_files.load(imported.model), parsed, imported.conventions, accelerated=gpu), tmp_path
        )
        for gpu in (False, True)
    ]
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for path in sorted(shared.PHOTOGRAPHS.iterdir())[::8]:
        (photographs / path.name).symlink_to(path)
    expected, said = (outputs(one, Images(photographs, parsed).of_input_size()) for one in graphs)
    assert said == expected
    assert len({b"".join(one) for one in said}) == len(said) == 8
    assert accelerated.complaints(accelerated.with_sizes(graphs[1])) == []


# 3. What TensorRT refuses


def planted(
    nodes: list[onnx.NodeProto],
    constants: dict[str, Any] | None = None,
    *,
    kind: int = TensorProto.FLOAT,
    shape: list[int | None] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    """Return a graph that brings `bitmap` into `planes`, float 1x3x8x8, does what is said and gives `end`."""
    feed = [
        helper.make_node("Cast", ["bitmap"], ["pixels"], name="feed", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["pixels"], ["planes"], name="planes", perm=[0, 3, 1, 2]),
    ]
    graph = helper.make_graph(
        [*feed, *nodes],
        "planted",
        [helper.make_tensor_value_info("bitmap", TensorProto.UINT8, [1, 8, 8, 3])],
        [helper.make_tensor_value_info("end", kind, shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    domains = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=10)


def node(operator: str, inputs: str, outputs: str = "end", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(" "), outputs.split(" "), name="it", **attributes)


def branch(*nodes: onnx.NodeProto) -> onnx.GraphProto:
    ends = [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)]
    return helper.make_graph(list(nodes), "branch", [], ends)


def truth() -> onnx.NodeProto:
    return helper.make_node("Greater", ["planes", "one"], ["truths"], name="truths")


ONE = {"one": np.float32(1)}
HALVES = {"scale": np.float32(0.5), "zero": np.int8(0)}
U8 = TensorProto.UINT8
FAULTS: dict[str, tuple[onnx.ModelProto, str]] = {
    "transposed bytes": (
        planted([node("Transpose", "bitmap", "t"), node("Cast", "t", to=TensorProto.FLOAT)]),
        "Transpose 'it' reads the bytes of 'bitmap', which only a Cast to float may",
    ),
    "bytes to integers": (
        planted([node("Cast", "bitmap", to=TensorProto.INT32)], kind=TensorProto.INT32),
        "Cast 'it' reads the bytes of 'bitmap', which only a Cast to float may",
    ),
    "dequantised bytes": (
        planted([node("DequantizeLinear", "bitmap scale zero")], HALVES | {"zero": np.uint8(0)}),
        "DequantizeLinear 'it' is of uint8, and only int8 and smaller kinds can be",
    ),
    "bytes of truths": (
        planted([truth(), node("Cast", "truths", to=U8)], ONE, kind=U8),
        "Cast 'it' makes the bytes of 'end', which only a Cast from float may",
    ),
    "bytes of integers": (
        planted([node("ArgMax", "planes", "largest", axis=1), node("Cast", "largest", to=U8)], kind=U8),
        "Cast 'it' makes the bytes of 'end', which only a Cast from float may",
    ),
    "reshaped bytes": (
        planted([node("Cast", "planes", "bytes", to=U8), node("Flatten", "bytes")], kind=U8),
        "Flatten 'it' makes the bytes of 'end', which only a Cast from float may",
    ),
    "bytes inside": (
        planted([node("Cast", "planes", "bytes", to=U8), node("Cast", "bytes", to=TensorProto.FLOAT)]),
        "'bytes' is of bytes (uint8), and neither an input nor made for an output",
    ),
    "bytes that are read again": (
        planted([node("Cast", "planes", to=U8), node("Identity", "end", "more")], kind=U8),
        "Identity 'it' reads the bytes of 'end', which is an output",
    ),
    "bytes as weights": (
        planted([node("Cast", "weights", to=TensorProto.FLOAT)], {"weights": np.ones(4, np.uint8)}),
        "'weights' is of bytes (uint8), and neither",
    ),
    "integers of 8 bits that are reshaped": (
        planted(
            [
                node("QuantizeLinear", "planes scale zero", "rounded"),
                node("Flatten", "rounded", "flat"),
                node("DequantizeLinear", "flat scale zero"),
            ],
            HALVES,
        ),
        "Flatten 'it' reads 'rounded', which is int8 and only for DequantizeLinear",
    ),
    "an output of 8 bits": (
        planted([node("QuantizeLinear", "planes scale zero")], HALVES, kind=TensorProto.INT8),
        "'end' is int8, which an input or output may not be",
    ),
    "integers of 16 bits": (
        planted([node("Cast", "planes", "short", to=TensorProto.INT16), node("Cast", "short", to=TensorProto.FLOAT)]),
        "Cast 'it' reads int16, which it may not",
    ),
    "truths as numbers": (
        planted([truth(), node("Equal", "truths truths")], ONE, kind=TensorProto.BOOL),
        "Equal 'it' reads bool, which it may not",
    ),
    "a zero point": (
        planted(
            [node("QuantizeLinear", "planes scale zero", "q"), node("DequantizeLinear", "q scale zero")],
            HALVES | {"zero": np.int8(3)},
        ),
        "QuantizeLinear 'it' has a zero point that is not 0; DequantizeLinear 'it' has a zero point that is not 0",
    ),
    "a zero point of one channel": (
        planted(
            [node("DequantizeLinear", "weights scale zero", axis=0)],
            {
                "weights": np.ones((2, 3), np.int8),
                "scale": np.ones(2, np.float32),
                "zero": np.array([0, 1], np.int8),
            },
        ),
        "DequantizeLinear 'it' has a zero point that is not 0",
    ),
    "a scale of 0": (
        planted(
            [node("QuantizeLinear", "planes scale zero", "q"), node("DequantizeLinear", "q scale zero")],
            HALVES | {"scale": np.float32(0)},
        ),
        "QuantizeLinear 'it' has a scale that is no constant above 0",
    ),
    "a scale that is computed": (
        planted(
            [
                node("ReduceMax", "planes", "scale", keepdims=0),
                node("QuantizeLinear", "planes scale zero", "q"),
                node("DequantizeLinear", "q scale zero"),
            ],
            {"zero": np.int8(0)},
        ),
        "QuantizeLinear 'it' has a scale that is no constant above 0",
    ),
    "a bias of int32": (
        planted([node("DequantizeLinear", "bias scale")], {"bias": np.ones(4, np.int32), "scale": np.float32(1)}),
        "DequantizeLinear 'it' is of int32, and only int8 and smaller kinds can be",
    ),
    "as many as there are": (
        planted([node("NonZero", "planes", "found"), node("ReduceMax", "found", keepdims=0)], kind=TensorProto.INT64),
        "NonZero 'it' gives as many numbers as it finds in an image, and sizes must be known",
    ),
    "a size that the image gives": (
        planted(
            [
                node("ReduceMax", "planes", "largest", keepdims=0),
                node("Cast", "largest", "count", to=TensorProto.INT64),
                node("Range", "zero count one"),
            ],
            {"zero": np.int64(0), "one": np.int64(1)},
            kind=TensorProto.INT64,
            shape=[None],
        ),
        "the size of 'end' is not known before an image is there",
    ),
    "an operator that it has not": (planted([node("Det", "planes")]), "Det 'it' is an operator that it has not"),
    "an operator of another domain": (
        planted([node("FusedConv", "planes", domain="com.microsoft")], shape=[1]),
        "FusedConv 'it' is an operator that it has not",
    ),
    "inside a branch": (
        planted(
            [
                truth(),
                node("ReduceMax", "bits", "most", keepdims=0),
                node("Cast", "most", "condition", to=TensorProto.BOOL),
                node(
                    "If",
                    "condition",
                    then_branch=branch(node("Det", "planes", "a")),
                    else_branch=branch(node("Identity", "one", "b")),
                ),
            ],
            ONE | {"bits": np.float32([0])},
            shape=[1, 3],
        ),
        "Det 'it' is an operator that it has not",
    ),
    "cubic": (
        planted([node("Resize", "planes  scales", mode="cubic")], {"scales": np.float32([1, 1, 2, 2])}),
        "Resize 'it' has the mode cubic, which must be nearest or linear",
    ),
    "coordinates of a crop": (
        planted(
            [node("Resize", "planes roi scales", mode="linear", coordinate_transformation_mode="tf_crop_and_resize")],
            {"roi": np.zeros(8, np.float32), "scales": np.float32([1, 1, 2, 2])},
        ),
        "Resize 'it' has the coordinates tf_crop_and_resize, which must be one of align_corners, asymmetric,",
    ),
    "antialias": (
        planted(
            [node("Resize", "planes  scales", mode="linear", antialias=1)],
            {"scales": np.float32([1, 1, 0.5, 0.5])},
            opset=18,
        ),
        "Resize 'it' smooths what it makes smaller (antialias), which it cannot",
    ),
    "aspect ratio": (
        planted(
            [node("Resize", "planes   sizes", keep_aspect_ratio_policy="not_larger")],
            {"sizes": np.array([1, 3, 4, 6])},
            opset=18,
        ),
        "Resize 'it' keeps the aspect ratio, which it cannot",
    ),
    "dilations": (
        planted([node("MaxPool", "planes", kernel_shape=[2, 2], dilations=[2, 2])]),
        "MaxPool 'it' has dilations [2, 2], which must be 1",
    ),
    "indices": (
        planted([node("MaxPool", "planes", "end indices", kernel_shape=[2, 2])]),
        "MaxPool 'it' gives indices, which it cannot",
    ),
    "unsorted": (
        planted([node("TopK", "planes count", "end places", sorted=0)], {"count": np.array([2])}),
        "TopK 'it' does not sort, which it must",
    ),
    "too many": (
        planted(
            [node("Reshape", "planes row", "flat"), node("TopK", "flat count", "end places")],
            {"row": np.array([-1]), "count": np.array([3840])},
        ),
        "TopK 'it' looks for the 3840 largest, which must be fewer than 3840",
    ),
    "axes that are computed": (
        planted(
            [node("ReduceMin", "places", "axes"), node("ReduceMean", "planes axes", keepdims=1)],
            {"places": np.array([2, 3])},
            opset=18,
            shape=[1, 3, 1, 1],
        ),
        "ReduceMean 'it' reads 'axes', which must be a constant",
    ),
    "an axis that is computed": (
        planted([node("ReduceMin", "places", "axis"), node("CumSum", "planes axis")], {"places": np.array([2])}),
        "CumSum 'it' reads 'axis', which must be a constant",
    ),
    "training": (
        planted(
            [node("BatchNormalization", "planes s s s s", "end mean variance", training_mode=1)],
            {"s": np.ones(3, np.float32)},
        ),
        "BatchNormalization 'it' is in training mode",
    ),
    "layout": (
        planted(
            [node("Squeeze", "planes axis", "rows"), node("LSTM", "rows w r", "end", hidden_size=2, layout=1)],
            {"axis": np.array([0]), "w": np.ones((1, 8, 8), np.float32), "r": np.ones((1, 8, 2), np.float32)},
            shape=[3, 8, 1, 2],
        ),
        "LSTM 'it' has layout 1, which must be 0",
    ),
    "mean and deviation": (
        planted([node("LayerNormalization", "planes s", "end mean")], {"s": np.ones(8, np.float32)}),
        "LayerNormalization 'it' has more outputs than the first",
    ),
    "reduction": (
        planted(
            [node("ScatterND", "planes places values", reduction="add")],
            {"places": np.array([[0]]), "values": np.ones((1, 3, 8, 8), np.float32)},
        ),
        "ScatterND 'it' reduces by add, which it cannot",
    ),
    "text": (
        planted([helper.make_node("Constant", [], ["text"], name="it", value_string="a"), node("Identity", "planes")]),
        "Constant 'it' has a value_string",
    ),
    "too new": (planted([node("Identity", "planes")], opset=22), "its opset is 22, and 21 is the newest"),
}


@pytest.mark.parametrize("name", list(FAULTS))
def test_what_is_planted_is_found(name):
    model, words = FAULTS[name]
    found = accelerated.complaints(model)
    assert words in "; ".join(found)
    with pytest.raises(
        PackagingRefused, match=r"^TensorRT does not take the compiled graph: .* without an accelerator\.$"
    ):
        accelerated.check(model)


SOUND = {
    "bytes at both ends": planted([node("Cast", "planes", to=U8)], kind=U8),
    "bytes of halves": planted(
        [node("Cast", "bitmap", "h", to=TensorProto.FLOAT16), node("Cast", "h", to=U8)], kind=U8
    ),
    "symmetric": planted(
        [node("QuantizeLinear", "planes scale zero", "q"), node("DequantizeLinear", "q scale zero")], HALVES
    ),
    "large integers": planted(
        [node("Slice", "planes starts ends")], {"starts": np.array([0]), "ends": np.array([2**63 - 1])}
    ),
    "linear": planted([node("Resize", "planes  scales", mode="linear")], {"scales": np.float32([1, 1, 2, 2])}),
    "pooling": planted([node("MaxPool", "planes", kernel_shape=[2, 2], dilations=[1, 1])]),
    "sorted": planted([node("TopK", "planes count", "end places")], {"count": np.array([2])}),
    "axes in a constant": planted(
        [
            helper.make_node("Constant", [], ["axes"], value=numpy_helper.from_array(np.array([2]))),
            node("ReduceMean", "planes axes"),
        ],
        opset=18,
    ),
    "truths": planted([truth(), node("Where", "truths planes one")], ONE),
    "newest": planted([node("Identity", "planes")], opset=21),
}


@pytest.mark.parametrize("name", list(SOUND))
def test_what_is_sound_is_left_alone(name):
    model = accelerated.with_sizes(SOUND[name])
    assert accelerated.complaints(model) == []
    accelerated.check(model)


def test_three_complaints_are_enough():
    model = planted([node("Det", "planes", f"end{number}") for number in range(5)], shape=[1])
    with pytest.raises(PackagingRefused, match=r"(Det 'it' [a-z ]*; ){2}Det 'it' [a-z ]* \(and 2 more\)\. Export"):
        accelerated.check(model)


# 4. Integers


def branches(*, unnamed: bool = False) -> onnx.ModelProto:
    """Return a network with what residual ones have: wide, depthwise and narrow convolutions, and a sum of branches."""
    random = np.random.default_rng(4)

    def weights(*sizes: int) -> np.ndarray:
        return random.normal(0, 0.4, sizes).astype(np.float32)

    constants = {
        "stem.w": weights(8, 3, 3, 3),
        "stem.b": weights(8),
        "wide.w": weights(8, 8, 3, 3),
        "wide.b": weights(8),
        "deep.w": weights(8, 1, 3, 3),
        "narrow.w": weights(2, 8, 1, 1),
        "shift": weights(1, 8, 1, 1),
        "six": np.float32(6).reshape(()),
        "none": np.float32(0).reshape(()),
        "halves": np.array([1, 1], np.int64),
    }
    nodes = [
        helper.make_node("Conv", ["input", "stem.w", "stem.b"], ["s"], name="stem", strides=[4, 4], pads=[1] * 4),
        helper.make_node("Clip", ["s", "none", "six"], ["features"], name="clip"),
        helper.make_node("Conv", ["features", "wide.w", "wide.b"], ["w"], name="wide", pads=[1] * 4),
        helper.make_node("Conv", ["w", "deep.w"], ["d"], name="deep", pads=[1] * 4, group=8),
        helper.make_node("Add", ["d", "features"], ["sum"], name="sum"),
        helper.make_node("Add", ["sum", "shift"], ["shifted"], name="shift"),
        helper.make_node("Conv", ["shifted", "wide.w", "wide.b"], ["last"], name="last", pads=[1] * 4),
        helper.make_node("Conv", ["last", "narrow.w"], ["mask"], name="narrow"),
    ]
    for one in nodes if unnamed else ():
        one.name = ""
    return networks.model(nodes, constants, {"mask": [1, 2, 16, 18]})


def quantised(work: Path, how: Integers, model: onnx.ModelProto) -> onnx.ModelProto:
    fine = fusing.fuse(model, networks.parsed(classes=0), Conventions(), accelerated=True)
    made = optimising.to_int8(optimising.fold(fine, work), networks.pictures(8), how, work)
    return accelerated.with_sizes(made)


def integer_nodes(model: onnx.ModelProto) -> set[str]:
    """Return the outputs of the nodes that read dequantised numbers through all their inputs but a bias."""
    dequantised = {one.output[0] for one in model.graph.node if one.op_type == "DequantizeLinear"}
    ours = [one for one in model.graph.node if one.op_type in {"Conv", "Add", "Clip", "Relu"}]
    return {one.output[0] for one in ours if set(one.input[:2]) <= dequantised}


@pytest.mark.parametrize("unnamed", [False, True])
@pytest.mark.parametrize(("granularity", "scales"), [("per-channel", [8]), ("per-tensor", [])])
def test_int8(tmp_path, granularity, scales, unnamed):
    made = quantised(tmp_path, Integers(granularity, symmetric=True), branches(unnamed=unnamed))
    assert accelerated.complaints(made) == []
    onnx.checker.check_model(made, full_check=True)
    constants = {one.name: numpy_helper.to_array(one) for one in made.graph.initializer}
    pairs = [one for one in made.graph.node if one.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    zeros = [constants[one.input[2]] for one in pairs]
    assert {str(one.dtype) for one in zeros} == {"int8"}
    assert not any(one.any() for one in zeros)
    assert list(constants["wide.w_scale"].shape) == scales
    # Neither the stem with its three channels, nor the depthwise one, nor the narrow one; no sum with a constant.
    assert integer_nodes(made) == {"w", "sum", "last"}
    assert constants["wide.b"].dtype == np.float32
    # What clips is between the convolution and the rounding, where TensorRT fuses all three.
    makers = {name: one.op_type for one in made.graph.node for name in one.output}
    rounded = [makers[one.input[0]] for one in pairs if one.op_type == "QuantizeLinear" and one.input[0] in makers]
    assert sorted(rounded) == ["Add", "Add", "Clip", "Conv"]
    fine = fusing.fuse(branches(), networks.parsed(classes=0), Conventions(), accelerated=True)
    both = (optimising.fold(fine, tmp_path), made)
    means = [
        [np.frombuffer(one[1], np.float32)[0] for one in outputs(each, networks.pictures(4, seed=9))] for each in both
    ]
    np.testing.assert_allclose(means[1], means[0], rtol=0.03)
    assert means[1] != means[0]


def test_what_the_caller_says_of_int8_counts(tmp_path):
    made = quantised(tmp_path, Integers(operators=("Conv",), excluded=("last",), symmetric=True), branches())
    assert integer_nodes(made) == {"w"}


def test_int8_for_processors_is_not_symmetric(tmp_path):
    model = optimising.fold(fusing.fuse(branches(), networks.parsed(classes=0), Conventions()), tmp_path)
    made = optimising.to_int8(model, networks.pictures(8), Integers(), tmp_path)
    assert integer_nodes(made) >= {"w", "sum", "last", "mask", "d"}
    assert "has a zero point that is not 0" in "; ".join(accelerated.complaints(made))


# 5. Jobs


@pytest.fixture
def unmeasured(monkeypatch) -> None:
    monkeypatch.setattr(measuring, "measure", lambda _: {"peak_memory_bytes": 100 << 20, "warm_up_seconds": 0.01})


def job(folder: Path, model: onnx.ModelProto, target: dict[str, Any], options: dict[str, Any], **given: Any) -> Path:
    """Package a network for a target; return the package's folder."""
    source = folder / "source"
    source.mkdir(parents=True)
    (source / "manifest.json").write_text(json.dumps(networks.content(**given)))
    (source / "network.onnx").write_bytes(model.SerializeToString())
    order = networks.order(source, folder / "out", **options)
    asked = order["request"]["Configuration"]["Greengrass"]
    del asked["TargetPlatform"], asked["CompilerOptions"]
    asked |= target
    (folder / "work").mkdir()
    packaging.run(order, folder / "work", destinations.of(order["output"]), lambda *_: None)
    (manifest,) = (folder / "out/board/1.0.0").glob("*/manifest.json")
    return manifest.parent


PROCESSOR = {"TargetPlatform": {"Os": "LINUX", "Arch": "X86_64"}, "CompilerOptions": '{"mcpu": "x86-64"}'}
PLATFORM = {
    "TargetPlatform": {"Os": "LINUX", "Arch": "X86_64", "Accelerator": "NVIDIA"},
    "CompilerOptions": json.dumps(OPTIONS),
}
DEVICE = {"TargetDevice": "jetson_orin_nx"}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("target", [PLATFORM, DEVICE], ids=["platform", "device"])
def test_jobs(tmp_path, unmeasured, target, precision):
    images = tmp_path / "images"
    images.mkdir()
    for number, pixels in enumerate(networks.pictures(8)):
        Image.fromarray(pixels).save(images / f"{number}.png")
    options = {"precision": precision, "images": str(images), "mask_tolerance": 0.1}
    folder = job(tmp_path / "gpu", branches(), target, options, classes=0)
    made = onnx.load(folder / "mochi/model.onnx")
    assert accelerated.complaints(made) == []
    block = json.loads((folder / "manifest.json").read_text())["package"]
    assert (block["target"]["accelerator"], block["precision"]) == ("NVIDIA", precision)
    assert block["target"]["compiler_options"] == (OPTIONS if target is PLATFORM else {"gpu-code": "sm_87"})
    assert (block["parity"]["verdict_flips"], block["parity"]["images"]) == (0, 8)
    if precision == "int8":
        assert {"w", "sum", "last"} == integer_nodes(made)
    plain = onnx.load(job(tmp_path / "cpu", branches(), PROCESSOR, options, classes=0) / "mochi/model.onnx")
    assert accelerated.complaints(plain) != []
    if precision != "int8":
        assert outputs(made, networks.pictures()) == outputs(plain, networks.pictures())


def cubic() -> onnx.ModelProto:
    """Return a network that enlarges its mask in a way that TensorRT has not."""
    model = networks.mochi(classes=0)
    model.graph.node[2].output[0] = "small"
    model.graph.node.append(helper.make_node("Resize", ["small", "", "scales"], ["mask"], name="enlarge", mode="cubic"))
    model.graph.initializer.append(numpy_helper.from_array(np.float32([1, 1, 2, 2]), "scales"))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1, 2, 32, 36]))
    return model


def test_what_tensorrt_would_refuse_fails_the_job(tmp_path, unmeasured):
    words = "^TensorRT does not take the compiled graph: Resize 'enlarge' has the mode cubic, which must be nearest or linear. "
    with pytest.raises(PackagingRefused, match=words):
        job(tmp_path / "gpu", cubic(), PLATFORM, {}, classes=0)
    assert not (tmp_path / "gpu/out").exists()
    assert (job(tmp_path / "cpu", cubic(), PROCESSOR, {}, classes=0) / "mochi/model.onnx").exists()
