"""What is done to a compiled graph before it is packaged: constants folded, and arithmetic of fewer bits where asked."""

import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

# For what it does: it switches off ONNX Runtime's telemetry, which is only possible before that is imported.
import edge_agent.backends.onnxruntime  # noqa: F401
from model_packager import fusing, onnx_files
from model_packager.errors import PackagingRefused

FP32, FP16, INT8 = "fp32", "fp16", "int8"
FP16_NOTE = (
    "Source and package were compared on this machine's processor, which may compute in float32 what the device computes in "
    "float16: the report tells what the rounding of the weights costs."
)
PER_CHANNEL = "per-channel"
ERRORS_ONLY = 3
# Convolutions hold nearly all the work of an inspection network; what may stay between two of them in integers without
# a conversion (activations that clip, sums of branches) comes along. Distances and scores are left in float32.
INTEGER_OPERATORS = ("Conv", "Clip", "Relu", "Add")
# TensorRT fuses what clips with the convolution before it only if nothing is rounded in between. Source:
# https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/quantized-types-explicit-quantization.html
SYMMETRIC_OPERATORS = ("Conv", "Add")
# Its int8 kernels take channels by fours; with others in it, as a stem's or depthwise ones, engines were reported not to be
# built at all: https://github.com/NVIDIA/TensorRT/issues/3385 and /4060. They are a small part of the work.
CHANNELS = 4
UNNAMED = "unnamed/"
FEWEST_CALIBRATION_IMAGES = 8


@dataclass(frozen=True)
class Integers:
    """How a model becomes int8: weights with a scale per channel or "per-tensor", which operators, and nodes to leave.

    Without `operators` those that suit. `symmetric` is TensorRT's way: activations int8, too, and no number but 0 is 0.
    """

    weights: str = PER_CHANNEL
    operators: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    symmetric: bool = False


def fold(model: onnx.ModelProto, work: Path) -> onnx.ModelProto:
    """Return the model with constants folded and idle nodes taken out, by ONNX Runtime's own basic optimisations.

    The basic level, since it gives standard operators that every runtime and every processor of the architecture has.
    The extended one was measured no faster, at loading or running: the runtime does the rest when it loads the model.
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    settings.log_severity_level = ERRORS_ONLY
    with tempfile.TemporaryDirectory(dir=work) as folder:
        target = Path(folder) / "folded.onnx"
        settings.optimized_model_filepath = str(target)
        try:
            onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001  (the runtime raises many classes that share no base)
            raise PackagingRefused(f"ONNX Runtime cannot load the model: {_first_line(error)}") from None
        folded = onnx.load(target)
    _forget_unused_domains(folded)
    folded.ir_version = min(folded.ir_version, onnx_files.NEWEST_IR)
    return folded


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the compiled graph with the network's weights and arithmetic in float16; what is ours stays float32.

    Raises:
        PackagingRefused: the converter cannot do it.

    """
    from onnxruntime.transformers import float16

    try:
        inner = _network(model)
        with warnings.catch_warnings():
            # It warns of numbers that float16 has not; what they do to verdicts is found by the comparison.
            warnings.simplefilter("ignore")
            inner = float16.convert_float_to_float16(
                inner, keep_io_types=True, op_block_list=float16.DEFAULT_OP_BLOCK_LIST
            )
    except Exception as error:  # noqa: BLE001  (the converter raises whatever comes)
        raise PackagingRefused(
            f"The model cannot be converted to float16: {type(error).__name__}: {_first_line(error)} Use --precision fp32."
        ) from None
    converted = onnx.ModelProto()
    converted.CopyFrom(model)
    graph = converted.graph
    ours = [node for node in model.graph.node if node.name.startswith(fusing.PREFIX)]
    # The converter adds a conversion once for each node that needs it, with the same output each time.
    once = {tuple(node.output): node for node in inner.graph.node}
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(_sorted([*ours, *once.values()]))
    read = {name for node in ours for name in onnx_files.reads(node)}
    graph.initializer.extend(one for one in model.graph.initializer if one.name in read)
    graph.initializer.extend(inner.graph.initializer)
    return converted


def _network(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the part of a compiled graph that is not ours, as a model whose inputs and outputs are the borders."""
    whole = onnx.shape_inference.infer_shapes(model).graph
    types = {one.name: one for one in (*whole.value_info, *whole.input, *whole.output)}
    inside = [node for node in whole.node if not node.name.startswith(fusing.PREFIX)]
    outside = [node for node in whole.node if node.name.startswith(fusing.PREFIX)]
    # A weight that is read on both sides is two, since only one of them is converted.
    shared = {one.name for one in whole.initializer} & {name for node in outside for name in onnx_files.reads(node)}
    for node in inside:
        node.input[:] = [f"{name}#network" if name in shared else name for name in node.input]
    made = {name for node in inside for name in node.output}
    read = {name for node in inside for name in onnx_files.reads(node)}
    wanted = {one.name for one in whole.output} | {name for node in outside for name in onnx_files.reads(node)}
    weights = []
    for one in whole.initializer:
        if one.name in shared:
            one.name = f"{one.name}#network"
        if one.name in read:
            weights.append(one)
    known = made | {one.name for one in weights}
    graph = onnx.helper.make_graph(
        inside,
        whole.name,
        [types[name] for name in sorted(read - known) if name in types],
        [types[name] for name in sorted(made & wanted)],
        weights,
    )
    return onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _sorted(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield each node after those whose outputs it reads."""
    makers = {name: index for index, node in enumerate(nodes) for name in node.output}
    needs = {
        index: [makers[name] for name in sorted(onnx_files.reads(node)) if name in makers]
        for index, node in enumerate(nodes)
    }
    return (nodes[index] for index in TopologicalSorter(needs).static_order())


def to_int8(model: onnx.ModelProto, bitmaps: Iterable[NDArray[np.uint8]], how: Integers, work: Path) -> onnx.ModelProto:
    """Return the model quantised statically: weights int8, activations uint8, ranges measured on calibration images.

    With `how.symmetric` activations are int8, biases stay float32, and so do convolutions that TensorRT has no integer
    kernels for: all other forms its parser refuses.

    Args:
        model: a compiled graph.
        bitmaps: calibration images of the network's input size, height x width x 3 (uint8).
        how: granularity and operators.
        work: a folder for temporary files.

    Raises:
        PackagingRefused: the quantiser cannot do it.

    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    names = {node.name for node in model.graph.node}
    unknown = [one for one in how.excluded if one not in names]
    if unknown:
        raise PackagingRefused(
            f"--int8-exclude names {unknown[0]!r:.80}, which is no node of the compiled graph; `edge-agent package inspect "
            "--nodes` lists them."
        )

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rest = iter(bitmaps)

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            bitmap = next(self._rest, None)
            return None if bitmap is None else {fusing.INPUT: bitmap[None]}

    ours = [name for name in names if name.startswith(fusing.PREFIX)]
    if how.symmetric:
        model = _named(model)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        source, target = Path(folder) / "source.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        try:
            quantize_static(
                source,
                target,
                Images(),
                quant_format=QuantFormat.QDQ,
                per_channel=how.weights == PER_CHANNEL,
                **_arithmetic(model, how, [*ours, *how.excluded]),
            )
        except Exception as error:  # noqa: BLE001  (the quantiser raises whatever comes)
            raise PackagingRefused(
                f"The model cannot be quantised: {type(error).__name__}: {_first_line(error)} Use --precision fp32."
            ) from None
        quantised = onnx.load(target)
    _forget_unused_domains(quantised)
    return quantised


def _arithmetic(model: onnx.ModelProto, how: Integers, excluded: list[str]) -> dict[str, Any]:
    """Return the quantiser's arguments that say which nodes become integers, and which integers."""
    from onnxruntime.quantization import QuantType

    if not how.symmetric:
        return {
            "activation_type": QuantType.QUInt8,
            "weight_type": QuantType.QInt8,
            "op_types_to_quantize": list(how.operators or INTEGER_OPERATORS),
            "nodes_to_exclude": excluded,
        }
    return {
        "activation_type": QuantType.QInt8,
        "weight_type": QuantType.QInt8,
        "op_types_to_quantize": list(how.operators or SYMMETRIC_OPERATORS),
        "nodes_to_exclude": [*excluded, *_unsuited(model)],
        "extra_options": {
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": ["Conv"],
        },
    }


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with a name for every node, since nodes are left out by their names."""
    named = onnx.ModelProto()
    named.CopyFrom(model)
    for number, node in enumerate(named.graph.node):
        node.name = node.name or f"{UNNAMED}{number}"
    return named


def _unsuited(model: onnx.ModelProto) -> list[str]:
    """Return the names of the nodes that TensorRT has no integer kernels for, or takes no integers in.

    They are convolutions whose channels, in a group, are no multiple of four or not known, and sums with a constant,
    whose scale its parser may refuse.
    """
    shapes = {one.name: tuple(one.dims) for one in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type in {"Conv", "ConvTranspose"}:
            groups = next((one.i for one in node.attribute if one.name == "group"), 1)
            # Of a Conv, all outputs and the inputs of a group; of a ConvTranspose, the other way round.
            first, second, *_ = shapes.get(node.input[1], (1, 1))
            if first // groups % CHANNELS or second % CHANNELS:
                found.append(node.name)
        elif node.op_type == "Add" and any(name in shapes for name in node.input):
            found.append(node.name)
    return found


def _forget_unused_domains(model: onnx.ModelProto) -> None:
    """Drop operator sets that no node uses, which the runtime declares all the same, and what it says of itself."""
    used = {node.domain for node in model.graph.node} | {""}
    kept = [one for one in model.opset_import if one.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    del model.metadata_props[:]
    model.producer_name, model.producer_version = "edge-agent", ""


def _first_line(error: Exception) -> str:
    """Return the first line of a library's message as a sentence, without the runtime's code before it."""
    line = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error).strip().partition("\n")[0])
    return f"{line.rstrip('.'):.300}."
