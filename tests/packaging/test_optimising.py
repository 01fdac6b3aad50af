"""Fewer bits and fewer nodes: what is converted and what is not, and that the graph stays one that every runtime takes."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_agent import backends
from edge_agent.jobs import SessionOptions
from edge_agent.packages import ModelFiles
from model_packager import fusing, optimising
from model_packager.errors import PackagingRefused
from model_packager.network import ANOMALIB, Conventions
from model_packager.optimising import Integers
from support import networks, packages
from support.agent import environment

MAP = Conventions(ANOMALIB, mask="anomaly_map", score="pred_score", pixel_threshold=0.5)


def fused(model: onnx.ModelProto, conventions: Conventions | None = None, **given) -> onnx.ModelProto:
    return fusing.fuse(model, networks.parsed(**given), conventions or Conventions())


def folded(tmp_path: Path, model: onnx.ModelProto, conventions: Conventions | None = None, **given) -> onnx.ModelProto:
    return optimising.fold(fused(model, conventions, **given), tmp_path)


def run(model: onnx.ModelProto, pixels: np.ndarray) -> dict[str, np.ndarray]:
    session = backends.open_session(ModelFiles(model.SerializeToString()), SessionOptions())
    names = [one.name for one in model.graph.output]
    return dict(zip(names, session.run(pixels[None]), strict=True))


def types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the type of every tensor by its name."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    found = {one.name: one.type.tensor_type.elem_type for one in (*graph.value_info, *graph.input, *graph.output)}
    return found | {one.name: one.data_type for one in graph.initializer}


def is_ours(node: onnx.NodeProto) -> bool:
    return node.name.startswith(fusing.PREFIX)


def test_constants_are_folded(tmp_path):
    model = networks.mochi()
    model.graph.node[0].input[1] = "sum"
    model.graph.node.insert(0, helper.make_node("Add", ["stem.weight", "stem.weight"], ["sum"]))
    model.graph.node.insert(0, helper.make_node("Identity", ["input"], ["same"]))
    model.graph.node[2].input[0] = "same"
    before = fused(model)
    after = optimising.fold(before, tmp_path)
    assert not {"Identity", "Constant"} & {node.op_type for node in after.graph.node}
    assert "sum" not in {name for node in after.graph.node for name in node.output}
    assert len(after.graph.node) < len(before.graph.node)
    for pixels in networks.pictures():
        for one, other in zip(run(before, pixels).values(), run(after, pixels).values(), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_graph_is_one_that_every_runtime_takes(tmp_path, precision):
    """Standard operators, valid ONNX, nothing of who made it, and the inputs and outputs that the agent knows."""
    model = folded(tmp_path, networks.mochi(opset=13))
    if precision == "fp16":
        model = optimising.to_fp16(model)
    elif precision == "int8":
        model = optimising.to_int8(model, networks.pictures(8), Integers(), tmp_path)
    onnx.checker.check_model(model, full_check=True)
    assert [(one.domain, one.version) for one in model.opset_import] == [("", 13)]
    assert model.ir_version <= 10
    assert (model.producer_name, model.producer_version, len(model.metadata_props)) == ("edge-agent", "", 0)
    told = [(one.name, one.type.tensor_type.elem_type) for one in (*model.graph.input, *model.graph.output)]
    assert told == [
        ("bitmap", TensorProto.UINT8),
        ("class_map", TensorProto.UINT8),
        ("mask_mean", TensorProto.FLOAT),
        ("score", TensorProto.FLOAT),
    ]


def test_a_model_that_the_runtime_does_not_take(tmp_path):
    model = networks.mochi()
    model.graph.node[0].attribute[0].ints[:] = [4]
    with pytest.raises(PackagingRefused, match=r"^ONNX Runtime cannot load the model: [A-Z].*[^.]\.$"):
        folded(tmp_path, model)
    assert list(tmp_path.iterdir()) == []


def test_telemetry_is_off_before_the_runtime_is_imported(tmp_path):
    """Its official builds send it from the import on; no module of the packager may be the first to import it."""
    (tmp_path / "onnxruntime.py").write_text("import os; print(os.environ.get('ORT_DISABLE_TELEMETRY'))")
    environ = environment(PYTHONPATH=os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
    environ.pop("ORT_DISABLE_TELEMETRY", None)
    command = [sys.executable, "-c", "import model_packager.packaging, model_packager.measuring"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


# float16


@pytest.mark.parametrize(
    ("model", "conventions", "given"),
    [
        (networks.mochi(), None, {}),
        (networks.mochi(pixel_classes=5), None, {"pixel_classes": 5, "seg_recall_bias": 0.01}),
        (networks.mochi(pixel_classes=0), None, {"pixel_classes": 0, "normalize": True}),
        (networks.mochi(classes=0), None, {"classes": 0}),
        (networks.anomalib(), MAP, {}),
        (networks.anomalib(resize=(96, 80)), MAP, {}),
        (networks.anomalib(), Conventions(ANOMALIB, mask="pred_mask", score="pred_score"), {}),
    ],
    ids=["both heads", "five classes", "scores", "mask", "map", "map of a resized image", "mask of a map"],
)
def test_fp16(tmp_path, model, conventions, given):
    before = folded(tmp_path, model, conventions, **given)
    kept = before.SerializeToString()
    after = optimising.to_fp16(before)
    assert before.SerializeToString() == kept
    onnx.checker.check_model(after, full_check=True)
    known = types(after)
    weights = [known[one.name] for one in after.graph.initializer if "eight" in one.name or one.name == "kernel"]
    assert set(weights) == {TensorProto.FLOAT16}
    for node in after.graph.node:
        if is_ours(node):
            assert TensorProto.FLOAT16 not in {known[name] for name in (*node.input, *node.output)}, node.name
    for pixels in networks.pictures():
        one, other = run(before, pixels), run(after, pixels)
        for name in one:
            if name == "class_map":
                assert (one[name] != other[name]).mean() < 0.01
            else:
                np.testing.assert_allclose(other[name], one[name], atol=5e-3)


def test_inputs_and_outputs_that_are_left_out(tmp_path):
    """They are all called "", which makes nobody depend on anybody."""
    model = networks.anomalib(resize=(96, 80))
    model.graph.node[4].output[0] = "without"
    constants = {
        "cube": np.array([1, 1, 1], np.int64),
        "w": np.ones((1, 3, 1), np.float32),
        "zero": np.zeros(1, np.float32),
    }
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    more = [
        helper.make_node("Reshape", ["mean", "cube"], ["series"]),
        helper.make_node("GRU", ["series", "w", "w"], ["", "last"], hidden_size=1),
        helper.make_node("Reshape", ["last", "score_shape"], ["number"]),
        helper.make_node("Mul", ["number", "zero"], ["nothing"]),
        helper.make_node("Add", ["without", "nothing"], ["pred_score"]),
    ]
    for place, node in enumerate(more, 5):
        model.graph.node.insert(place, node)
    before = folded(tmp_path, model, MAP)
    assert any("" in node.output for node in before.graph.node)
    assert any("" in node.input for node in before.graph.node)
    after = optimising.to_fp16(before)
    onnx.checker.check_model(after, full_check=True)
    np.testing.assert_allclose(*(run(one, networks.pictures(1)[0])["score"] for one in (before, after)), atol=5e-3)


def test_a_sum_of_scores_is_not_rounded_to_float16(tmp_path):
    """Numbers that the network gives are; what is made of them is not, since a threshold may be near."""
    model = folded(
        tmp_path, networks.mochi(classes=5, pixel_classes=0), classes=5, pixel_classes=0, class_normal_ids=[0]
    )
    scores = [run(optimising.to_fp16(model), pixels)["score"] for pixels in networks.pictures(8)]
    assert any(np.float16(score) != score for score in scores)


def test_operators_that_float16_has_not(tmp_path):
    """The converter of some releases adds the same conversion for each of them that reads a number, twice of one name."""
    model = networks.mochi(pixel_classes=0)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.25).reshape(()), "quarter"))
    del model.graph.node[1]
    for number, node in enumerate(
        [
            helper.make_node("Max", ["stem", "quarter"], ["one"], name="max"),
            helper.make_node("Min", ["stem", "quarter"], ["other"], name="min"),
            helper.make_node("Add", ["one", "other"], ["features"], name="add"),
        ],
        1,
    ):
        model.graph.node.insert(number, node)
    before = folded(tmp_path, model, pixel_classes=0)
    after = optimising.to_fp16(before)
    onnx.checker.check_model(after, full_check=True)
    pixels = networks.pictures(1)[0]
    np.testing.assert_allclose(run(after, pixels)["score"], run(before, pixels)["score"], atol=5e-3)


def test_a_number_that_network_and_reading_share(tmp_path):
    """The folding makes one of equal constants; the network's becomes float16, and ours does not."""
    model = networks.anomalib()
    model.graph.node[1].output[0] = "whole"
    model.graph.node.insert(2, helper.make_node("Mul", ["whole", "limit"], ["map"]))
    before = folded(tmp_path, model, MAP)
    (half,) = [one.name for one in before.graph.initializer if one.raw_data == np.float32(0.5).tobytes()]
    assert {is_ours(node) for node in before.graph.node if half in node.input} == {True, False}
    after = optimising.to_fp16(before)
    onnx.checker.check_model(after, full_check=True)
    np.testing.assert_allclose(*(run(one, networks.pictures(1)[0])["score"] for one in (before, after)), atol=5e-3)


def test_fp16_of_a_loop_works_or_is_refused(tmp_path):
    model = onnx.load_model_from_string(packages.slow(3, networks.SIZE))
    before = folded(tmp_path, model, pixel_classes=0)
    after = optimising.to_fp16(before)
    pixels = networks.pictures(1)[0]
    np.testing.assert_allclose(run(after, pixels)["score"], run(before, pixels)["score"], atol=5e-3)


def test_a_converter_that_fails(tmp_path, monkeypatch):
    from onnxruntime.transformers import float16

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("It cannot.\nNo.")

    monkeypatch.setattr(float16, "convert_float_to_float16", fail)
    with pytest.raises(PackagingRefused, match="to float16: RuntimeError: It cannot. Use --precision fp32"):
        optimising.to_fp16(folded(tmp_path, networks.mochi()))


# int8


def quantised(tmp_path: Path, how: Integers, **given) -> onnx.ModelProto:
    made = optimising.to_int8(folded(tmp_path, networks.mochi(), **given), networks.pictures(8), how, tmp_path)
    assert list(tmp_path.iterdir()) == []
    return made


def weights(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {one.name: one for one in model.graph.initializer}


@pytest.mark.parametrize(("how", "scales"), [("per-channel", [6]), ("per-tensor", [])])
def test_int8(tmp_path, how, scales):
    given = {"normalize": True, "seg_recall_bias": 0.5}  # which are additions, as the network's own
    after = quantised(tmp_path, Integers(how), **given)
    made = weights(after)
    assert made["stem.weight_quantized"].data_type == TensorProto.INT8
    assert list(made["stem.weight_scale"].dims) == scales
    makers = {name: node for node in after.graph.node for name in node.output}
    rounded = [node.input[0] for node in after.graph.node if node.op_type == "QuantizeLinear"]
    assert "Add" in {node.op_type for node in after.graph.node if is_ours(node)}
    assert [name for name in rounded if is_ours(makers[name])] == ["input"]
    before = folded(tmp_path, networks.mochi(), **given)
    for pixels in networks.pictures(8):
        np.testing.assert_allclose(run(after, pixels)["score"], run(before, pixels)["score"], atol=2e-2)


def test_operators_and_nodes_that_stay_float(tmp_path):
    assert "cls.weight_quantized" not in weights(quantised(tmp_path, Integers()))
    assert "cls.weight_quantized" in weights(quantised(tmp_path, Integers(operators=("Gemm",))))
    assert "stem.weight_quantized" not in weights(quantised(tmp_path, Integers(operators=("Gemm",))))
    made = weights(quantised(tmp_path, Integers(excluded=("seg",))))
    assert ("seg.weight" in made, "seg.weight_quantized" in made, "stem.weight_quantized" in made) == (
        True,
        False,
        True,
    )


def test_a_node_to_exclude_that_is_not_there(tmp_path):
    with pytest.raises(
        PackagingRefused, match="--int8-exclude names 'segg', which is no node .* inspect --nodes` lists"
    ):
        quantised(tmp_path, Integers(excluded=("seg", "segg")))


@pytest.mark.parametrize("bitmaps", [[], [np.zeros((8, 8, 3), np.uint8)]], ids=["no image", "another size"])
def test_what_the_quantiser_cannot_do(tmp_path, monkeypatch, bitmaps):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(PackagingRefused, match=r"^The model cannot be quantised: .*\. Use --precision fp32\.$"):
        optimising.to_int8(folded(tmp_path, networks.mochi()), bitmaps, Integers(), tmp_path)
    assert list(tmp_path.iterdir()) == []
