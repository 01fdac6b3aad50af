"""A network to a compiled graph: packed uint8 bitmap in; class map, mean of the mask's logits and score out.

What the agent would do to each pixel in Python (layout, normalisation, argmax, sums) becomes part of the graph, so that
the runtime does it with its own kernels and threads. What is left to the agent are copying and colouring.

For a GPU the same graph is written otherwise, since TensorRT takes bytes only at its borders: see accelerated.py.
"""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_agent.manifest import Manifest
from model_packager import network, onnx_files
from model_packager.network import ANOMALIB, Conventions

PREFIX = "edge_agent/"
INPUT = "bitmap"
CLASS_MAP, MASK_MEAN, SCORE = "class_map", "mask_mean", "score"
OURS = {INPUT, CLASS_MAP, MASK_MEAN, SCORE}
ASIDE = "network/"


class _Nodes:
    """Nodes and constants that are being added to a graph, for TensorRT where `accelerated`."""

    def __init__(self, part: str, *, accelerated: bool) -> None:
        self._part = part
        self.accelerated = accelerated
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, operator: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        name = f"{PREFIX}{self._part}/{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output or name], name=name, **attributes))
        return output or name

    def constant(self, value: NDArray[np.generic]) -> str:
        name = f"{PREFIX}{self._part}/constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name


def fuse(
    model: onnx.ModelProto, manifest: Manifest, conventions: Conventions, *, accelerated: bool = False
) -> onnx.ModelProto:
    """Return the compiled graph of a network with one float32 input 1x3xHxW.

    Input: `bitmap`, uint8 1xHxWx3, packed RGB of the network's input size. Outputs: with a segmentation head
    `class_map`, uint8 1xhxw, and `mask_mean`, float32, one number, which is NaN when a logit is; with a classification
    head `score`, float32, one number, before calibration. With `accelerated` it says the same in what TensorRT takes.

    Raises:
        PackagingRefused: the network's input or outputs are not what the manifest says.

    """
    fed = network.input_of(model.graph, manifest)
    mask, score = network.outputs_of(model.graph, manifest, conventions)
    classes = network.class_count(model.graph, score, manifest, conventions) if score else 0
    fused = onnx.ModelProto()
    fused.CopyFrom(model)
    graph = fused.graph
    aside = _make_way(graph)
    before, after = (_Nodes(part, accelerated=accelerated) for part in ("feed", "read"))
    feed = _feed_floats if accelerated else _feed_bytes
    feed(before, aside.get(fed, fed), manifest, conventions)
    made = []
    if mask:
        _read_mask(after, aside.get(mask, mask), manifest, conventions)
        made += [
            helper.make_tensor_value_info(CLASS_MAP, TensorProto.UINT8, [1, None, None]),
            helper.make_tensor_value_info(MASK_MEAN, TensorProto.FLOAT, [1]),
        ]
    if score:
        _read_score(after, aside.get(score, score), classes, manifest, conventions)
        made.append(helper.make_tensor_value_info(SCORE, TensorProto.FLOAT, [1]))
    nodes = _needed([*before.nodes, *graph.node, *after.nodes], {one.name for one in made})
    del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:]
    graph.node.extend(nodes)
    width, height = manifest.stage.input_size
    graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.UINT8, [1, height, width, 3]))
    graph.output.extend(made)
    graph.initializer.extend([*before.constants, *after.constants])
    return fused


def _needed(nodes: list[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """Return the nodes that the outputs depend on, in their order; the runtime would compute the others for nothing."""
    wanted, found = set(outputs), []
    for node in reversed(nodes):
        if wanted & set(node.output):
            wanted |= onnx_files.reads(node)
            found.append(node)
    return found[::-1]


def _make_way(graph: onnx.GraphProto) -> dict[str, str]:
    """Rename the network's tensors that are called as ours will be; return the new names by the old ones."""
    inner = list(onnx_files.graphs(graph))
    nodes = [node for one in inner for node in one.node]
    named: list[Any] = [
        value for one in inner for value in (*one.input, *one.output, *one.value_info, *one.initializer)
    ]
    named += [sparse.values for one in inner for sparse in one.sparse_initializer]
    names = {value.name for value in named}.union(*(node.input for node in nodes), *(node.output for node in nodes))
    aside: dict[str, str] = {}
    for name in sorted(names):
        if name in OURS or name.startswith(PREFIX):
            aside[name] = ASIDE + name
            while aside[name] in names:
                aside[name] = ASIDE + aside[name]
    for value in named:
        value.name = aside.get(value.name, value.name)
    for node in nodes:
        node.input[:] = [aside.get(name, name) for name in node.input]
        node.output[:] = [aside.get(name, name) for name in node.output]
    return aside


def _feed_bytes(nodes: _Nodes, fed: str, manifest: Manifest, conventions: Conventions) -> None:
    """Bring the bitmap into the network's layout and scale, as processors do it fastest."""
    scale, shift = network.normalisation(manifest, conventions)
    width, height = manifest.stage.input_size
    flat = nodes.constant(np.array([3, height * width], np.int64))
    # Bytes are transposed, not floats: a quarter of the memory. DequantizeLinear then converts and scales in one pass.
    # All as three long rows: where the runtime prefers channels last, it would move the transposition behind these
    # steps, and numbers by threes are ten times as slow to add as rows.
    rows = nodes.add("Reshape", [nodes.add("Transpose", [INPUT], perm=[0, 3, 1, 2]), flat])
    rows = nodes.add(
        "DequantizeLinear", [rows, nodes.constant(scale.reshape(3)), nodes.constant(np.zeros(3, np.uint8))], axis=0
    )
    if shift.any():
        rows = nodes.add("Add", [rows, nodes.constant(shift.reshape(3, 1))])
    if conventions.bgr:
        rows = nodes.add("Gather", [rows, nodes.constant(np.array([2, 1, 0], np.int64))], axis=0)
    nodes.add("Reshape", [rows, nodes.constant(np.array([1, 3, height, width], np.int64))], fed)


def _feed_floats(nodes: _Nodes, fed: str, manifest: Manifest, conventions: Conventions) -> None:
    """Bring the bitmap into the network's layout and scale, as floats from the first node on; the same bits come out."""
    scale, shift = (one.reshape(1, 3, 1, 1) for one in network.normalisation(manifest, conventions))
    planes = nodes.add("Transpose", [nodes.add("Cast", [INPUT], to=TensorProto.FLOAT)], perm=[0, 3, 1, 2])
    if conventions.bgr:
        order = np.array([2, 1, 0], np.int64)
        planes = nodes.add("Gather", [planes, nodes.constant(order)], axis=1)
        scale, shift = scale[:, order], shift[:, order]
    shifted = bool(shift.any())
    planes = nodes.add("Mul", [planes, nodes.constant(scale)], "" if shifted else fed)
    if shifted:
        nodes.add("Add", [planes, nodes.constant(shift)], fed)


def _read_mask(nodes: _Nodes, mask: str, manifest: Manifest, conventions: Conventions) -> None:
    if conventions.kind == ANOMALIB:
        numbers = nodes.add("Cast", [mask], to=TensorProto.FLOAT)
        if conventions.pixel_threshold is None:
            labels = nodes.add("Cast", [mask], to=TensorProto.BOOL)
        else:
            limit = nodes.constant(np.array(conventions.pixel_threshold, np.float32))
            labels = nodes.add("GreaterOrEqual", [numbers, limit])
        planes = _of_truths(nodes, labels)
        # Height and width are the last two axes, whatever comes before them.
        shape = nodes.add("Shape", [planes])
        ends = [nodes.constant(np.array([one], np.int64)) for one in (-2, 2**31)]
        size = nodes.add("Slice", [shape, *ends])
        one = nodes.constant(np.array([1], np.int64))
        _class_map(nodes, "Reshape", [planes, nodes.add("Concat", [one, size], axis=0)])
        _mean(nodes, numbers)
        return
    _mean(nodes, mask)
    stage, classes = manifest.stage, len(manifest.classes)
    logits = mask
    if stage.seg_recall_bias:
        bias = np.full((1, classes, 1, 1), stage.seg_recall_bias, np.float32)
        bias[:, list(stage.seg_normal_ids)] = 0
        logits = nodes.add("Add", [mask, nodes.constant(bias)])
    if classes == 2:
        # The second class where it is strictly larger: what argmax says of two, without its slow general loop.
        halves = nodes.constant(np.array([1, 1], np.int64))
        first, second = f"{PREFIX}first", f"{PREFIX}second"
        nodes.nodes.append(helper.make_node("Split", [logits, halves], [first, second], name=f"{PREFIX}split", axis=1))
        planes = _of_truths(nodes, nodes.add("Greater", [second, first]))
        _class_map(nodes, "Squeeze", [planes, nodes.constant(np.array([1], np.int64))])
    elif nodes.accelerated:
        largest = nodes.add("Cast", [nodes.add("ArgMax", [logits], axis=1, keepdims=0)], to=TensorProto.FLOAT)
        # The half changes no class, since a float becomes a byte by truncation. It keeps the runtime from making one
        # conversion of two when it folds the graph: from integers to bytes, which TensorRT has not.
        _class_map(nodes, "Add", [largest, nodes.constant(np.array(0.5, np.float32))])
    else:
        largest = nodes.add("ArgMax", [logits], axis=1, keepdims=0)
        nodes.add("Cast", [largest], CLASS_MAP, to=TensorProto.UINT8)


def _of_truths(nodes: _Nodes, truths: str) -> str:
    """Return 1 where a bool tensor is true, else 0: as bytes, or for TensorRT as the floats that become bytes last."""
    if not nodes.accelerated:
        return nodes.add("Cast", [truths], to=TensorProto.UINT8)
    # Chosen, not converted: of two conversions in a row the runtime makes one, from bool to bytes, when it folds a graph,
    # and what is between these two here it may one day take out.
    return nodes.add("Where", [truths, *(nodes.constant(np.array(one, np.float32)) for one in (1, 0))])


def _class_map(nodes: _Nodes, operator: str, inputs: list[str]) -> None:
    """Add the node whose output is the class map, and for TensorRT the conversion from floats after it."""
    if not nodes.accelerated:
        nodes.add(operator, inputs, CLASS_MAP)
    else:
        nodes.add("Cast", [nodes.add(operator, inputs)], CLASS_MAP, to=TensorProto.UINT8)


def _mean(nodes: _Nodes, values: str) -> None:
    mean = nodes.add("ReduceMean", [values], keepdims=0)
    nodes.add("Reshape", [mean, nodes.constant(np.array([1], np.int64))], MASK_MEAN)


def _read_score(nodes: _Nodes, score: str, classes: int, manifest: Manifest, conventions: Conventions) -> None:
    one = nodes.constant(np.array([1], np.int64))
    if conventions.kind == ANOMALIB:
        nodes.add("Reshape", [score, one], SCORE)
        return
    anomalous = [index for index in range(classes) if index not in manifest.stage.class_normal_ids]
    probabilities = nodes.add("Softmax", [score], axis=1) if conventions.scores_are_logits else score
    if anomalous:
        chosen = nodes.add("Gather", [probabilities, nodes.constant(np.array(anomalous, np.int64))], axis=1)
        total = nodes.add("ReduceSum", [chosen], keepdims=0)
    else:
        total = nodes.constant(np.zeros(1, np.float32))
    nodes.add("Reshape", [total, one], SCORE)
