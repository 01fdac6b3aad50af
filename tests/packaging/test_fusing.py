"""The compiled graph says what the agent's own path says of the network: the same classes, the same score, every way."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_agent import backends, graphs
from edge_agent.errors import InferenceFailed
from edge_agent.jobs import SessionOptions
from edge_agent.manifest import Manifest
from edge_agent.packages import ModelFiles
from edge_agent.pipeline import Pipeline
from model_packager import fusing, network, optimising
from model_packager.errors import PackagingRefused
from model_packager.network import ANOMALIB, Conventions
from support import networks, packages
from support.networks import SIZE

PLAIN = Conventions()


def session(model: onnx.ModelProto) -> backends.Session:
    return backends.open_session(ModelFiles(model.SerializeToString()), SessionOptions())


def source(model: onnx.ModelProto, parsed: Manifest, conventions: Conventions = PLAIN) -> graphs.NetworkGraph:
    """Return the network on the agent's uncompiled path; a plain one without anything of the packager's."""
    opened = session(model)
    if conventions != PLAIN:
        names = tuple(one.name for one in model.graph.output)
        opened = network.Adapted(opened, names, parsed, conventions)
    return graphs.NetworkGraph(parsed, opened)


def compiled(
    model: onnx.ModelProto, parsed: Manifest, work: Path, conventions: Conventions = PLAIN
) -> graphs.CompiledGraph:
    fused = optimising.fold(fusing.fuse(model, parsed, conventions), work)
    onnx.checker.check_model(fused, full_check=True)
    return graphs.CompiledGraph(parsed, session(fused))


def compare(
    model: onnx.ModelProto, parsed: Manifest, work: Path, conventions: Conventions = PLAIN, images=None
) -> list[tuple]:
    """Judge images both ways, and return what the compiled graph said: (verdict, class map) of each."""
    one, other = (
        Pipeline(parsed, graph)
        for graph in (source(model, parsed, conventions), compiled(model, parsed, work, conventions))
    )
    said = []
    for pixels in networks.pictures(size=parsed.image_size) if images is None else images:
        (expected, expected_map), (verdict, class_map) = one.judge(pixels), other.judge(pixels)
        assert abs(verdict.score - expected.score) <= 1e-6
        assert (verdict.is_anomalous, verdict.anomalies) == (expected.is_anomalous, expected.anomalies)
        if parsed.stage.segmentation:
            assert class_map.small.dtype == np.uint8
            assert np.array_equal(class_map.small, expected_map.small)
            assert np.array_equal(class_map.spread.rows, expected_map.spread.rows)
        else:
            assert class_map is expected_map is None
        said.append((verdict, class_map))
    return said


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("classes", "pixel_classes"), [(2, 2), (2, 0), (0, 2)])
def test_heads(tmp_path, classes, pixel_classes, seed):
    model = networks.mochi(classes=classes, pixel_classes=pixel_classes, seed=seed)
    said = compare(model, networks.parsed(classes=classes, pixel_classes=pixel_classes, normalize=True), tmp_path)
    assert len({verdict.score for verdict, _ in said}) > 1 or not classes


@pytest.mark.parametrize("normal", ["first", "second", "several", "all"])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_class_scores(tmp_path, classes, normal):
    ids = {"first": [0], "second": [1], "several": [0, classes - 1], "all": list(range(classes))}[normal]
    parsed = networks.parsed(classes=classes, pixel_classes=0, class_normal_ids=ids)
    model = networks.mochi(classes=classes, pixel_classes=0)
    said = compare(model, parsed, tmp_path)
    if len(ids) == classes:
        assert {verdict.score for verdict, _ in said} == {0.0}
    else:
        assert min(verdict.score for verdict, _ in said) > 0


def logits_of(model: onnx.ModelProto, parsed: Manifest, pixels: np.ndarray) -> np.ndarray:
    scale, shift = graphs.normalisation(parsed.stage)
    return session(model).run((pixels.transpose(2, 0, 1) * scale + shift)[None])[0]


@pytest.mark.parametrize("bias", [0.0, 0.75, -0.75])
@pytest.mark.parametrize("normal", [[0], [0, 2], [2], []])
def test_without_class_scores_the_score_is_the_mean_of_the_logits_before_the_bias(tmp_path, normal, bias):
    parsed = networks.parsed(classes=0, pixel_classes=3, seg_recall_bias=bias, seg_normal_ids=normal)
    model = networks.mochi(classes=0, pixel_classes=3, seed=5)
    images = networks.pictures()
    graph = compiled(model, parsed, tmp_path)
    for pixels in images:
        logits = logits_of(model, parsed, pixels)
        reading = graph.read(pixels)
        assert reading.score == pytest.approx(logits.mean(dtype=np.float64), abs=1e-6)
        raised = logits + np.float32(bias) * np.array([one not in normal for one in range(3)]).reshape(1, 3, 1, 1)
        assert np.array_equal(reading.class_map, raised.argmax(axis=1)[0])
    compare(model, parsed, tmp_path, images=images)


@pytest.mark.parametrize("bias", [0.0, -0.5])
@pytest.mark.parametrize("pixel_classes", [1, 2, 3, 30])
def test_pixel_classes(tmp_path, pixel_classes, bias):
    parsed = networks.parsed(pixel_classes=pixel_classes, seg_recall_bias=bias)
    said = compare(networks.mochi(pixel_classes=pixel_classes), parsed, tmp_path)
    found = {one for _, class_map in said for one in np.unique(class_map.small).tolist()}
    assert len(found) > 1 or pixel_classes == 1


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_of_equal_logits_the_first_class_wins(tmp_path, classes):
    logits = np.random.default_rng(4).integers(0, 3, (classes, 16, 18)).astype(np.float32)
    logits[:, 0] = -0.0
    logits[:, 0, ::2] = 0.0
    logits[:, 1] = np.where(np.arange(classes) < 1, -1.0, 3.0)[:, None]
    logits[:, 2] = np.where(np.arange(classes) < classes - 1, 3.0, -1.0)[:, None]
    parsed = networks.parsed(pixel_classes=classes)
    model = onnx.load_model_from_string(packages.constant([0.25, 0.75], logits, SIZE))
    said = compare(model, parsed, tmp_path, images=networks.pictures(1))
    assert np.array_equal(said[0][1].small, logits.argmax(axis=0))
    assert (said[0][1].small[0] == 0).all(), "of all of them"
    assert (said[0][1].small[1] == 1).all(), "of all but the first"
    assert (said[0][1].small[2] == 0).all(), "of all but the last"


@pytest.mark.parametrize("raw", [None, [100, 90], [64, 72]])
@pytest.mark.parametrize("stride", [1, 3, 5, 7])
def test_masks_of_odd_ratios(tmp_path, stride, raw):
    compare(networks.mochi(stride=stride), networks.parsed(raw_image_shape=raw), tmp_path)


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
def test_normalisation(tmp_path, scaled, normalized):
    """Also by hand: of a network whose score is the mean of red."""
    parsed = networks.parsed(pixel_classes=0, image_range_scale=scaled, normalize=normalized)
    compare(networks.mochi(pixel_classes=0), parsed, tmp_path)
    pixels = networks.pictures(1)[0]
    red = pixels[..., 0].mean() / (255 if scaled else 1)
    expected = (red - 0.485) / 0.229 if normalized else red
    reading = compiled(mean_of(0), parsed, tmp_path).read(pixels)
    assert reading.score == pytest.approx(expected, rel=1e-6)


def mean_of(channel: int) -> onnx.ModelProto:
    """Return a network whose first class score is the mean of one channel, and the other 0."""
    constants = {
        "channel": np.array([channel], np.int64),
        "zero": np.zeros((1, 1), np.float32),
        "shape": np.array([1, 1], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["input", "channel"], ["plane"], axis=1),
        helper.make_node("ReduceMean", ["plane"], ["mean"], keepdims=0),
        helper.make_node("Reshape", ["mean", "shape"], ["anomaly"]),
        helper.make_node("Concat", ["anomaly", "zero"], ["scores"], axis=1),
    ]
    return networks.model(nodes, constants, {"scores": [1, 2]})


@pytest.mark.parametrize("interpolation", ["area", "bilinear", "nearest", "bilinear-antialias"])
@pytest.mark.parametrize("image", [(97, 131), (144, 128), (72, 64)])
def test_resizing_stays_outside(tmp_path, image, interpolation):
    parsed = networks.parsed(image_size=image, interpolation=interpolation)
    fused = fusing.fuse(networks.mochi(), parsed, PLAIN)
    assert [dim.dim_value for dim in fused.graph.input[0].type.tensor_type.shape.dim] == [1, SIZE[1], SIZE[0], 3]
    compare(networks.mochi(), parsed, tmp_path)


def test_calibration_stays_outside(tmp_path):
    keys = {"calibrated": True, "calibrator_scaling": -6.0, "calibrator_shift": 3.0, "max_val_score": 1.4}
    parsed, plain = networks.parsed(pixel_classes=0, **keys), networks.parsed(pixel_classes=0)
    model = networks.mochi(pixel_classes=0)
    pixels = networks.pictures(1)[0]
    raw = compiled(model, parsed, tmp_path).read(pixels).score
    assert raw == compiled(model, plain, tmp_path).read(pixels).score
    ((verdict, _),) = compare(model, parsed, tmp_path, images=[pixels])
    assert verdict.score == pytest.approx(1 / (1 + np.exp(-6.0 * raw / 1.4 + 3.0)), abs=1e-6)


@pytest.mark.parametrize(
    ("weight", "classes", "pixel_classes", "words"),
    [
        ("seg.bias", 2, 2, "mask logits that are no numbers"),
        ("seg.bias", 2, 3, "mask logits that are no numbers"),
        ("seg.bias", 0, 2, "mask logits that are no numbers"),
        ("cls.bias", 2, 0, "no number to compare"),
        ("cls.bias", 2, 2, "no number to compare"),
    ],
)
def test_weights_that_are_no_numbers(tmp_path, weight, classes, pixel_classes, words):
    """One NaN is enough, also in a class that no pixel is of."""
    model = networks.mochi(classes=classes, pixel_classes=pixel_classes)
    for one in model.graph.initializer:
        if one.name == weight:
            damaged = numpy_helper.to_array(one).copy()
            damaged[-1] = np.nan
            one.CopyFrom(numpy_helper.from_array(damaged, weight))
    parsed = networks.parsed(classes=classes, pixel_classes=pixel_classes)
    for graph in (source(model, parsed), compiled(model, parsed, tmp_path)):
        with pytest.raises(InferenceFailed, match=words):
            Pipeline(parsed, graph).judge(networks.pictures(1)[0])


def test_class_scores_that_are_logits(tmp_path):
    model = networks.mochi(classes=3, pixel_classes=0, softmax=False)
    parsed = networks.parsed(classes=3, pixel_classes=0, class_normal_ids=[2])
    said = compare(model, parsed, tmp_path, Conventions(scores_are_logits=True))
    for (verdict, _), pixels in zip(said, networks.pictures(), strict=True):
        powers = np.exp(logits_of(model, parsed, pixels)[0].astype(np.float64))
        assert verdict.score == pytest.approx(powers[:2].sum() / powers.sum(), abs=1e-6)


@pytest.mark.parametrize("channel", [0, 1, 2])
@pytest.mark.parametrize("bgr", [False, True])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_order_of_channels_and_a_mean_of_ones_own(tmp_path, channel, bgr, own, scaled):
    """By hand, of a network whose score is the mean of one channel as it gets it."""
    mean, std = ((0.1, 0.2, 0.3), (0.5, 0.25, 2.0)) if own else (None, None)
    conventions = Conventions(bgr=bgr, mean=mean, std=std)
    parsed = networks.parsed(pixel_classes=0, image_range_scale=scaled, normalize=own)
    pixels = networks.pictures(1)[0]
    colour = 2 - channel if bgr else channel
    expected = pixels[..., colour].mean() / (255 if scaled else 1)
    if own:  # what the manifest says of normalize does not count then
        expected = (expected - mean[colour]) / std[colour]
    for graph in (
        source(mean_of(channel), parsed, conventions),
        compiled(mean_of(channel), parsed, tmp_path, conventions),
    ):
        assert graph.read(pixels).score == pytest.approx(expected, rel=1e-5)
    compare(networks.mochi(), networks.parsed(image_range_scale=scaled), tmp_path, conventions)


ANOMALIB_SHAPES = [
    ([1], [1, 1, 64, 72]),
    ([1, 1], [1, 1, 64, 72]),
    ([1, 1, 1, 1], [1, 1, 64, 72]),
    ([1], [1, 64, 72]),
    ([1], [1, 1, 32, 144]),
    ([1, 1], []),
]


@pytest.mark.parametrize(("score", "shape"), ANOMALIB_SHAPES)
@pytest.mark.parametrize("limit", [None, 0.3, 0.5])
def test_anomalib(tmp_path, score, shape, limit):
    model = networks.anomalib(score=score, map_=shape)
    names = [one.name for one in model.graph.output]
    mask = "" if not shape else "pred_mask" if limit is None else "anomaly_map"
    conventions = Conventions(ANOMALIB, mask=mask, score="pred_score", pixel_threshold=limit)
    parsed = networks.parsed(pixel_classes=2 if shape else 0)
    said = compare(model, parsed, tmp_path, conventions)
    for (verdict, class_map), pixels in zip(said, networks.pictures(), strict=True):
        raw = session(model).run((pixels.transpose(2, 0, 1) / np.float32(255))[None])
        outputs = dict(zip(names, raw, strict=True))
        assert verdict.score == pytest.approx(float(outputs["pred_score"].reshape(-1)[0]), abs=1e-6)
        if shape:
            expected = outputs["pred_mask"] if limit is None else outputs["anomaly_map"] >= limit
            assert np.array_equal(class_map.small, expected.reshape(shape[-2:]))
            assert 0 < class_map.small.mean() < 1


@pytest.mark.parametrize("kind", [TensorProto.BOOL, TensorProto.UINT8, TensorProto.FLOAT, TensorProto.INT64])
def test_an_anomalib_mask_of_any_type(tmp_path, kind):
    model = networks.anomalib()
    for node in model.graph.node:
        if node.output[0] == "pred_mask":
            node.output[0] = "labels"
    model.graph.node.append(helper.make_node("Cast", ["labels"], ["ones"], to=TensorProto.FLOAT))
    model.graph.node.append(helper.make_node("Mul", ["ones", "two"], ["twos"]))
    model.graph.node.append(helper.make_node("Cast", ["twos"], ["pred_mask"], to=kind))
    model.graph.initializer.append(numpy_helper.from_array(np.full((1, 1, 1, 1), 2, np.float32), "two"))
    model.graph.output[3].type.tensor_type.elem_type = kind
    said = compare(model, networks.parsed(), tmp_path, Conventions(ANOMALIB, mask="pred_mask", score="pred_score"))
    assert 0 < said[0][1].small.mean() < 1


def test_a_pixel_at_the_limit_is_anomalous(tmp_path):
    model = networks.anomalib()
    kernel = next(one for one in model.graph.initializer if one.name == "kernel")
    kernel.CopyFrom(numpy_helper.from_array(np.zeros((1, 3, 5, 5), np.float32), "kernel"))  # of which the map is 0.5
    conventions = Conventions(ANOMALIB, mask="anomaly_map", score="pred_score", pixel_threshold=0.5)
    ((_, class_map),) = compare(model, networks.parsed(), tmp_path, conventions, networks.pictures(1))
    assert class_map.small.all()


def test_an_anomaly_map_that_is_no_number(tmp_path):
    model = networks.anomalib()
    kernel = next(one for one in model.graph.initializer if one.name == "kernel")
    kernel.CopyFrom(numpy_helper.from_array(np.full((1, 3, 5, 5), np.nan, np.float32), "kernel"))
    model.graph.node.append(helper.make_node("Constant", [], ["half"], value_float=0.5))
    model.graph.node.append(helper.make_node("Reshape", ["half", "score_shape"], ["other_score"]))
    model.graph.output[0].name = "other_score"
    parsed = networks.parsed()
    conventions = Conventions(ANOMALIB, mask="anomaly_map", score="other_score", pixel_threshold=0.5)
    for graph in (source(model, parsed, conventions), compiled(model, parsed, tmp_path, conventions)):
        with pytest.raises(InferenceFailed, match="mask logits that are no numbers"):
            Pipeline(parsed, graph).judge(networks.pictures(1)[0])


@pytest.mark.parametrize("opset", range(13, 22))
def test_opsets(tmp_path, opset):
    stage = {"seg_recall_bias": 0.5}
    for pixel_classes in (2, 3):
        parsed = networks.parsed(pixel_classes=pixel_classes, **stage)
        compare(networks.mochi(pixel_classes=pixel_classes, opset=opset), parsed, tmp_path)
    model = networks.anomalib()
    model.opset_import[0].version = opset
    conventions = Conventions(ANOMALIB, mask="anomaly_map", score="pred_score", pixel_threshold=0.5)
    compare(model, networks.parsed(), tmp_path, conventions)


@pytest.mark.parametrize(
    "shape", [["batch", 3, "height", "width"], [None, 3, 64, 72], [1, None, None, None], [None, None, None, None]]
)
def test_sizes_that_the_network_leaves_open(tmp_path, shape):
    compare(networks.mochi(dynamic=shape), networks.parsed(), tmp_path)


def test_weights_that_are_listed_as_inputs(tmp_path):
    """As exporters did before the file format's version 4."""
    model = networks.mochi()
    for one in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(one.name, one.data_type, one.dims))
    model.graph.input.insert(0, model.graph.input.pop())
    compare(model, networks.parsed(), tmp_path)


def renamed(model: onnx.ModelProto, names: dict[str, str]) -> onnx.ModelProto:
    for node in model.graph.node:
        node.input[:] = [names.get(one, one) for one in node.input]
        node.output[:] = [names.get(one, one) for one in node.output]
    for one in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        one.name = names.get(one.name, one.name)
    return model


@pytest.mark.parametrize(
    "names",
    [
        {"scores": "score", "mask": "class_map", "input": "bitmap"},
        {"scores": "class_map", "mask": "score", "input": "mask_mean"},
        {"stem": "bitmap", "features": "mask_mean", "stem.weight": "score", "sums": "class_map"},
        {"input": "score", "stem": "network/score", "features": "network/network/score"},
        {"mask": "edge_agent/read/ReduceMean_0", "stem.bias": "edge_agent/feed/constant_0", "flat": "edge_agent/first"},
    ],
)
def test_names_that_are_ours(tmp_path, names):
    for pixel_classes in (2, 3):
        model = renamed(networks.mochi(pixel_classes=pixel_classes), names)
        compare(model, networks.parsed(pixel_classes=pixel_classes), tmp_path)


def test_names_that_are_ours_inside_a_branch(tmp_path):
    """A branch reads `score` of the graph around it, and has a `class_map` of its own."""
    nodes = [
        helper.make_node("Mul", ["score", "two"], ["class_map"]),
        helper.make_node("Neg", ["class_map"], ["bitmap"]),
    ]
    branches = {
        name: helper.make_graph(nodes[: 1 + (name == "else_branch")], name, [], [packages._float(last, [1, 2])])
        for name, last in (("then_branch", "class_map"), ("else_branch", "bitmap"))
    }
    model = renamed(networks.mochi(pixel_classes=0), {"scores": "score"})
    model.graph.initializer.append(numpy_helper.from_array(np.full((1, 1), 0.5, np.float32), "two"))
    model.graph.node.extend(
        [
            helper.make_node("ReduceMean", ["input"], ["largest"], keepdims=0),
            helper.make_node("Greater", ["largest", "two"], ["condition"]),
            helper.make_node("Squeeze", ["condition"], ["scalar"]),
            helper.make_node("If", ["scalar"], ["scores"], **branches),
        ]
    )
    model.graph.output[0].name = "scores"
    compare(model, networks.parsed(pixel_classes=0), tmp_path)


@pytest.mark.parametrize(
    "conventions",
    [Conventions(mask="mask"), Conventions(score="scores"), Conventions(mask="mask", score="scores")],
    ids=["mask", "score", "both"],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_outputs_that_are_named(tmp_path, conventions, swapped):
    """An output that is named for one head is not taken for the other."""
    model = networks.mochi(seed=7)
    if swapped:
        outputs = [*reversed(model.graph.output)]
        del model.graph.output[:]
        model.graph.output.extend(outputs)
    said = compare(model, networks.parsed(), tmp_path, conventions)
    plain = compare(networks.mochi(seed=7), networks.parsed(), tmp_path)
    assert [verdict.score for verdict, _ in said] == [verdict.score for verdict, _ in plain]


def test_an_output_besides_those_that_are_named(tmp_path):
    model = networks.mochi()
    model.graph.output.insert(0, packages._float("features", [1, 6, 16, 18]))
    compare(model, networks.parsed(), tmp_path, Conventions(mask="mask", score="scores"))


def test_what_no_output_needs_is_left_out():
    """A head that is not used, or a mask and a label that the map and the score tell as well, cost time at every image."""
    conventions = Conventions(ANOMALIB, mask="anomaly_map", score="pred_score", pixel_threshold=0.5)
    fused = fusing.fuse(networks.anomalib(), networks.parsed(), conventions)
    made = {name for node in fused.graph.node for name in node.output}
    assert ("pred_score" in made, "anomaly_map" in made) == (True, True)
    assert not {"pred_label", "pred_mask"} & made
    fused = fusing.fuse(networks.mochi(), networks.parsed(pixel_classes=0), Conventions(score="scores"))
    assert "mask" not in {name for node in fused.graph.node for name in node.output}


def retyped(model: onnx.ModelProto, name: str, kind: int) -> onnx.ModelProto:
    for one in (*model.graph.input, *model.graph.output):
        if one.name == name:
            one.type.tensor_type.elem_type = kind
    return model


def resized(model: onnx.ModelProto, name: str, shape: list[int | None] | None) -> onnx.ModelProto:
    for one in (*model.graph.input, *model.graph.output):
        if one.name == name:
            kind = one.type.tensor_type.elem_type
            one.CopyFrom(helper.make_tensor_value_info(name, kind, shape))
    return model


def with_output(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    model.graph.output.append(packages._float(name, [1]))
    return model


def with_inputs(model: onnx.ModelProto, *names: str) -> onnx.ModelProto:
    if not names:
        del model.graph.input[:]
    model.graph.input.extend(packages._float(name, [1]) for name in names)
    return model


def sequence(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    for one in (*model.graph.input, *model.graph.output):
        if one.name == name:
            one.CopyFrom(helper.make_tensor_sequence_value_info(name, TensorProto.FLOAT, [1, 2]))
    return model


BOTH = {"classes": 2, "pixel_classes": 2}


@pytest.mark.parametrize(
    ("model", "given", "words"),
    [
        (
            resized(networks.mochi(), "input", [2, 3, 64, 72]),
            BOTH,
            "2x3x64x72; .* batch is frozen: export it again with a",
        ),
        (networks.mochi(size=(80, 64)), BOTH, "is 1x3x64x80; it must be 1x3x64x72. The sizes in the manifest are not"),
        (resized(networks.mochi(), "input", [1, 64, 72, 3]), BOTH, "1x64x72x3; .* for colour images, channels first"),
        (resized(networks.mochi(), "input", [1, 1, 64, 72]), BOTH, "1x1x64x72; .* for colour images, channels first"),
        (resized(networks.mochi(), "input", [3, 64, 72]), BOTH, "3x64x72; .* as batch x channels x height x width"),
        (resized(networks.mochi(), "input", None), BOTH, "of unknown shape; it must be 1x3x64x72"),
        (retyped(networks.mochi(), "input", TensorProto.FLOAT16), BOTH, "'input' is float16; it must be float, of 32"),
        (retyped(networks.mochi(), "input", TensorProto.DOUBLE), BOTH, "'input' is double; it must be float"),
        (retyped(networks.mochi(), "input", TensorProto.UINT8), BOTH, "'input' is uint8; it must be float"),
        (sequence(networks.mochi(), "input"), BOTH, "'input' is sequence; it must be float"),
        (
            with_inputs(networks.mochi(), "mean", "noise"),
            BOTH,
            "has 3 inputs .'input, mean, noise'.; it must have one, the image. Export it with the",
        ),
        (with_inputs(networks.mochi()), BOTH, "has 0 inputs .*; it must have one"),
        (networks.mochi(pixel_classes=3), BOTH, "'mask' is float 1x3x16x18; for 2 pixel classes .* float 1x2xHxW"),
        (resized(networks.mochi(), "mask", [1, 16, 18]), BOTH, "'mask' is float 1x16x18; for 2 pixel classes"),
        (resized(networks.mochi(), "mask", [2, 2, 16, 18]), BOTH, "'mask' is float 2x2x16x18; for 2 pixel classes"),
        (retyped(networks.mochi(), "mask", TensorProto.INT64), BOTH, "'mask' is int64 1x2x16x18; for 2 pixel classes"),
        (sequence(networks.mochi(), "mask"), BOTH, "'mask' is sequence"),
        (sequence(networks.mochi(), "scores"), BOTH, "'scores' is sequence; the score must be float"),
        (retyped(networks.mochi(), "scores", TensorProto.DOUBLE), BOTH, "'scores' is double; the score must be float"),
        (
            resized(networks.mochi(), "scores", [1, None]),
            BOTH,
            "'scores' is 1xany; it must be class scores 1xK, with K",
        ),
        (resized(networks.mochi(), "scores", [2]), BOTH, "'scores' is 2; it must be class scores 1xK"),
        (resized(networks.mochi(), "scores", []), BOTH, "'scores' is one number; it must be class scores 1xK"),
        (resized(networks.mochi(), "scores", [4, 2]), BOTH, "'scores' is 4x2; it must be class scores 1xK"),
        (
            networks.mochi(),
            BOTH | {"class_normal_ids": [2]},
            r"class_normal_ids is \[2\]; the model has 2 class scores",
        ),
        (
            networks.mochi(pixel_classes=0),
            BOTH,
            r"has 1 outputs \('scores'\); .* one for each head, 2. Name them in the",
        ),
        (
            with_output(networks.mochi(), "sums"),
            BOTH,
            r"has 3 outputs \('mask, scores, sums'\); .* one for each head, 2",
        ),
        (networks.mochi(), BOTH | {"pixel_classes": 0}, "has 2 outputs .* one for each head, 1"),
    ],
)
def test_what_is_not_as_the_manifest_says(model, given, words):
    with pytest.raises(PackagingRefused, match=words):
        fusing.fuse(model, networks.parsed(**given), PLAIN)


@pytest.mark.parametrize("conventions", [Conventions(mask="nowhere"), Conventions(mask="mask", score="nowhere")])
def test_an_output_that_is_not_there(conventions):
    with pytest.raises(PackagingRefused, match="no output 'nowhere' for the .* head; its outputs are 'mask, scores'"):
        fusing.fuse(networks.mochi(), networks.parsed(), conventions)


def test_the_network_is_left_as_it_was():
    model = renamed(networks.mochi(), {"scores": "score"})
    before = model.SerializeToString(deterministic=True)
    fusing.fuse(model, networks.parsed(), PLAIN)
    assert model.SerializeToString(deterministic=True) == before
