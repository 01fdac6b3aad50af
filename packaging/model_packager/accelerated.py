"""What TensorRT takes of ONNX, by its documentation: what it would refuse is refused when it is packaged, in a sentence.

An engine is built on the device, minutes after the package was sent there; this says beforehand what would stop it.

Sources, of TensorRT 10 and 11: for operators and 8-bit integers see tensorrt_operators.py; for bytes
https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/infer/FoundationalTypes/DataType.html, and
https://github.com/NVIDIA/TensorRT/issues/3985: between an input and its conversion nothing may be, not even a transposition.
Integers of 64 bits are TensorRT's own since 10.0 and no reason to refuse. That all sizes are known is the agent's rule:
its engines have one size, and what is launched for an image is recorded once.
"""

from collections.abc import Iterator

import onnx
from onnx import TensorProto

from edge_agent.errors import shown
from model_packager import network, onnx_files, tensorrt_operators
from model_packager.errors import PackagingRefused
from model_packager.tensorrt_operators import BYTES, QUANTISED, called, kind_of, tensors_of

MOST_COMPLAINTS = 3
# These may bytes be turned into, and made of.
CONVERTIBLE = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16})


def with_sizes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with the sizes of its outputs written down, as far as they follow from that of its input."""
    sized = onnx.ModelProto()
    sized.CopyFrom(model)
    known = {one.name: one for one in onnx.shape_inference.infer_shapes(model, data_prop=True).graph.output}
    for one in sized.graph.output:
        one.CopyFrom(known[one.name])
    return sized


def check(model: onnx.ModelProto) -> None:
    """Raise PackagingRefused when TensorRT would refuse a compiled graph; the text says what of it, and the way out."""
    found = complaints(model)
    if found:
        more = f" (and {len(found) - MOST_COMPLAINTS} more)" if len(found) > MOST_COMPLAINTS else ""
        raise PackagingRefused(
            f"TensorRT does not take the compiled graph: {'; '.join(found[:MOST_COMPLAINTS])}{more}. Export the model without "
            "that, or package it without an accelerator."
        )


def complaints(model: onnx.ModelProto) -> list[str]:
    """Return what TensorRT would refuse of a model, each a clause that names the node or the tensor."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    found = [*_versions(model), *_sizes(graph), *_bytes(graph), *_quantised(graph)]
    for inner in onnx_files.graphs(graph):
        tensors = tensors_of(graph, inner)
        found += [
            f"{called(node)} {words}" for node in inner.node for words in tensorrt_operators.complaints(node, tensors)
        ]
    return found


def _versions(model: onnx.ModelProto) -> Iterator[str]:
    for one in model.opset_import:
        if one.domain in onnx_files.DOMAINS and one.version > onnx_files.NEWEST_OPSET:
            yield f"its opset is {one.version}, and {onnx_files.NEWEST_OPSET} is the newest"


def _sizes(graph: onnx.GraphProto) -> Iterator[str]:
    for one in (*graph.input, *graph.output):
        shape = network.shape_of(one)
        if shape is None or 0 in shape:
            yield f"the size of {shown(one.name)} is not known before an image is there"


def _bytes(graph: onnx.GraphProto) -> Iterator[str]:
    """Tell of bytes that are not just behind an input or just before an output, and of what else touches them there."""
    types, readers = tensors_of(graph, graph).types, _readers(graph)
    makers = {name: node for node in graph.node for name in node.output}
    inputs, outputs = {one.name for one in graph.input}, {one.name for one in graph.output}
    for name in (name for name, kind in types.items() if kind in BYTES):
        if name in inputs:
            for node in readers.get(name, ()):
                if node.op_type != "Cast" or types.get(node.output[0]) not in CONVERTIBLE:
                    yield f"{called(node)} reads the bytes of {shown(name)}, which only a Cast to float may"
        elif name in outputs and name in makers:
            node = makers[name]
            if node.op_type != "Cast" or types.get(node.input[0]) not in CONVERTIBLE:
                yield f"{called(node)} makes the bytes of {shown(name)}, which only a Cast from float may"
            for node in readers.get(name, ()):
                yield f"{called(node)} reads the bytes of {shown(name)}, which is an output"
        else:
            yield f"{shown(name)} is of bytes (uint8), and neither an input nor made for an output"


def _quantised(graph: onnx.GraphProto) -> Iterator[str]:
    """Tell of 8-bit integers that are read by anything but their conversion to floats."""
    borders, readers = {one.name for one in (*graph.input, *graph.output)}, _readers(graph)
    for name, kind in tensors_of(graph, graph).types.items():
        if kind in QUANTISED and name in borders:
            yield f"{shown(name)} is {kind_of(kind)}, which an input or output may not be"
        elif kind in QUANTISED:
            for node in readers.get(name, ()):
                if not _dequantises(node, name):
                    yield f"{called(node)} reads {shown(name)}, which is {kind_of(kind)} and only for DequantizeLinear"


def _readers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """Return the nodes that read each tensor, themselves or in a graph inside them."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in sorted(onnx_files.reads(node)):
            readers.setdefault(name, []).append(node)
    return readers


def _dequantises(node: onnx.NodeProto, name: str) -> bool:
    """Return whether a node reads a tensor as the numbers to dequantise, or as a zero point."""
    places = [place for place, one in enumerate(node.input) if one == name]
    return (node.op_type == "DequantizeLinear" and places == [0]) or (
        node.op_type in {"DequantizeLinear", "QuantizeLinear"} and places == [2]
    )
