"""TensorRT's operators: what each may read, and the limits that its documentation states for its attributes and inputs.

Source: https://github.com/onnx/onnx-tensorrt/blob/main/docs/operators.md (of TensorRT 10.15), less the operators that came
after 10.3, which is JetPack 6's. What is said of scales and zero points is also what `QuantDequantLinearHelper`, in the
importers there, refuses; biases of int32 are refused by it, too.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_agent.errors import shown
from model_packager import onnx_files

FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})
NUMBERS = FLOATS | {TensorProto.INT32, TensorProto.INT64}
ANY = NUMBERS | {TensorProto.BOOL}
TRUTHS = frozenset({TensorProto.BOOL})
BYTES = frozenset({TensorProto.UINT8})
# Kinds that come out of QuantizeLinear, or are weights, and go into DequantizeLinear, nowhere else.
QUANTISED = frozenset({TensorProto.INT8, TensorProto.FLOAT8E4M3FN, TensorProto.INT4})

# What the first input of each operator may be. Clip takes integers by its importer, though the table has floats alone.
_OPERATORS: Mapping[frozenset[int], str] = {
    FLOATS: "Acos Acosh Asin Asinh Atan Atanh AveragePool BatchNormalization Ceil Celu Conv ConvTranspose Cos Cosh CumSum "
    "Dropout Einsum Elu Erf Exp Floor Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool GridSample GroupNormalization GRU "
    "HardSigmoid HardSwish Hardmax InstanceNormalization IsInf LayerNormalization LeakyRelu Log LogSoftmax LRN LSTM "
    "LpNormalization LpPool MatMul MaxPool MeanVarianceNormalization PRelu QuantizeLinear Reciprocal Resize RNN RoiAlign "
    "Round Selu Sigmoid Sin Sinh Softmax Softplus Softsign Sqrt Tan Tanh ThresholdedRelu Upsample",
    NUMBERS: "Abs Add ArgMax ArgMin Clip DepthToSpace Div Equal Greater GreaterOrEqual IsNaN Less LessOrEqual Max Mean Min Mod "
    "Mul Neg Pad Pow Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
    "ReduceSum ReduceSumSquare Relu Scatter ScatterElements ScatterND Shrink Sign SpaceToDepth Sub Sum TopK",
    ANY | BYTES: "Cast CastLike",
    ANY: "Concat ConstantOfShape Expand EyeLike Flatten Gather GatherElements GatherND Identity OneHot Reshape ReverseSequence "
    "Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze",
    TRUTHS: "And If Not Or Where Xor",
    QUANTISED: "DequantizeLinear",
    # Theirs is no rule of one type, or there is no input.
    frozenset(): "Constant Loop NonMaxSuppression NonZero RandomNormal RandomNormalLike RandomUniform RandomUniformLike Scan",
}
OPERATORS: Mapping[str, frozenset[int]] = {name: kinds for kinds, names in _OPERATORS.items() for name in names.split()}
# These inputs must be known when the engine is built; Squeeze and Unsqueeze before 10.7 alone.
CONSTANT_INPUTS: Mapping[str, int] = {
    **{name: 1 for name in OPERATORS if name.startswith("Reduce")},
    **dict.fromkeys(("CumSum", "OneHot", "Squeeze", "TopK", "Unsqueeze"), 1),
}
DATA_DEPENDENT = {"NonMaxSuppression", "NonZero"}
RESIZE_COORDINATES = {"align_corners", "asymmetric", "half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn"}
MOST_TOP_K = 3840

Attributes = Mapping[str, object]


@dataclass(frozen=True)
class Tensors:
    """What is known of a graph's tensors by their names: types, and the values of those that are constants."""

    types: Mapping[str, int]
    constants: Mapping[str, NDArray[np.generic]]


def tensors_of(graph: onnx.GraphProto, inner: onnx.GraphProto) -> Tensors:
    """Return what is known inside a graph that is, or is in, another one."""
    types: dict[str, int] = {}
    constants: dict[str, NDArray[np.generic]] = {}
    for one in (graph, inner) if inner is not graph else (graph,):
        types |= {value.name: value.type.tensor_type.elem_type for value in (*one.value_info, *one.input, *one.output)}
        types |= {weight.name: weight.data_type for weight in one.initializer}
        constants |= {weight.name: numpy_helper.to_array(weight) for weight in one.initializer}
        for node in one.node:
            value = _attributes(node).get("value") if node.op_type == "Constant" else None
            if isinstance(value, TensorProto):
                constants[node.output[0]] = numpy_helper.to_array(value)
    return Tensors(types, constants)


def complaints(node: onnx.NodeProto, tensors: Tensors) -> Iterator[str]:
    """Yield what TensorRT would refuse of a node, each a predicate."""
    if node.domain not in onnx_files.DOMAINS or node.op_type not in OPERATORS:
        yield "is an operator that it has not"
        return
    allowed, kind = OPERATORS[node.op_type], tensors.types.get(node.input[0], 0) if node.input else 0
    # Bytes are told of where they are looked for, and what is not known is not held against a node.
    if allowed and kind and kind not in allowed | BYTES | QUANTISED:
        yield f"reads {kind_of(kind)}, which it may not"
    place = CONSTANT_INPUTS.get(node.op_type)
    if place is not None and len(node.input) > place and node.input[place] not in {"", *tensors.constants}:
        yield f"reads {shown(node.input[place])}, which must be a constant"
    if node.op_type in DATA_DEPENDENT:
        yield "gives as many numbers as it finds in an image, and sizes must be known"
    if node.op_type in RULES:
        yield from RULES[node.op_type](node, _attributes(node), tensors)


def _pooling(node: onnx.NodeProto, given: Attributes, _: Tensors) -> Iterator[str]:
    dilations = given.get("dilations")
    if isinstance(dilations, list) and set(dilations) != {1}:
        yield f"has dilations {dilations}, which must be 1"
    if len(node.output) > 1 and node.output[1]:
        yield "gives indices, which it cannot"


def _resize(_: onnx.NodeProto, given: Attributes, __: Tensors) -> Iterator[str]:
    mode = given.get("mode", b"nearest")
    if mode not in {b"nearest", b"linear"}:
        yield f"has the mode {_text(mode)}, which must be nearest or linear"
    coordinates = _text(given.get("coordinate_transformation_mode", b"half_pixel"))
    if coordinates not in RESIZE_COORDINATES:
        yield f"has the coordinates {coordinates}, which must be one of {', '.join(sorted(RESIZE_COORDINATES))}"
    if given.get("antialias"):
        yield "smooths what it makes smaller (antialias), which it cannot"
    if given.get("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        yield "keeps the aspect ratio, which it cannot"


def _top_k(node: onnx.NodeProto, given: Attributes, tensors: Tensors) -> Iterator[str]:
    if given.get("sorted", 1) != 1:
        yield "does not sort, which it must"
    count = tensors.constants.get(node.input[1]) if len(node.input) > 1 else None
    if count is not None and int(count.reshape(-1)[0]) >= MOST_TOP_K:
        yield f"looks for the {int(count.reshape(-1)[0])} largest, which must be fewer than {MOST_TOP_K}"


def _scatter(_: onnx.NodeProto, given: Attributes, __: Tensors) -> Iterator[str]:
    if given.get("reduction", b"none") != b"none":
        yield f"reduces by {_text(given['reduction'])}, which it cannot"


def _training(_: onnx.NodeProto, given: Attributes, __: Tensors) -> Iterator[str]:
    if given.get("training_mode"):
        yield "is in training mode"


def _lstm(_: onnx.NodeProto, given: Attributes, __: Tensors) -> Iterator[str]:
    for name in ("input_forget", "layout"):
        if given.get(name):
            yield f"has {name} {given[name]}, which must be 0"


def _one_output(node: onnx.NodeProto, _: Attributes, __: Tensors) -> Iterator[str]:
    if any(node.output[1:]):
        yield "has more outputs than the first"


def _constant(_: onnx.NodeProto, given: Attributes, __: Tensors) -> Iterator[str]:
    for name in ("sparse_value", "value_string", "value_strings"):
        if name in given:
            yield f"has a {name}"


def _quantise(node: onnx.NodeProto, _: Attributes, tensors: Tensors) -> Iterator[str]:
    """Tell what is wrong with the scale, the zero point and the type of either of the two quantising operators."""
    numbers = node.input[0] if node.op_type == "DequantizeLinear" else node.output[0]
    kind = tensors.types.get(numbers, 0)
    if kind not in QUANTISED:
        yield f"is of {kind_of(kind)}, and only int8 and smaller kinds can be"
    scale = tensors.constants.get(node.input[1])
    if scale is None or not (scale.astype(np.float64) > 0).all():
        yield "has a scale that is no constant above 0"
    if len(node.input) > 2 and node.input[2]:
        zero = tensors.constants.get(node.input[2])
        if zero is None or zero.astype(np.float64).any():
            yield "has a zero point that is not 0"


RULES: Mapping[str, Callable[[onnx.NodeProto, Attributes, Tensors], Iterator[str]]] = {
    "AveragePool": _pooling,
    "BatchNormalization": _training,
    "Constant": _constant,
    "DequantizeLinear": _quantise,
    "LayerNormalization": _one_output,
    "LpPool": _pooling,
    "LSTM": _lstm,
    "MaxPool": _pooling,
    "QuantizeLinear": _quantise,
    "Resize": _resize,
    "ScatterElements": _scatter,
    "ScatterND": _scatter,
    "TopK": _top_k,
}


def _attributes(node: onnx.NodeProto) -> Attributes:
    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def kind_of(kind: int) -> str:
    """Return what ONNX calls a type of numbers."""
    return TensorProto.DataType.Name(kind).lower() if kind else "a type that is not known"


def called(node: onnx.NodeProto) -> str:
    """Return a node's operator and name, or that of its output where it has none."""
    return f"{node.op_type} {shown(node.name or next(iter(node.output), ''))}"
