"""What TensorRT has to be told of an ONNX file: the names of its outputs, in order, and its weights in one piece.

Only the fields that lead to them are known here (numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto); all
others are kept as they are. So no ONNX library is needed on the device, and no runtime opens a file that a model names.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from edge_agent.errors import AcceleratorMissing, PackageRefused, shown
from edge_agent.packages import ModelFiles

EXTERNAL = 1
# Of a message in one piece: https://protobuf.dev/programming-guides/proto-limits/.
LARGEST = (1 << 31) - 1
PACKAGE = "edge_agent_onnx"
BYTES, NUMBER = "bytes", "int32"
# Message -> field -> number and type; * means many. Texts are bytes: they need not be UTF-8.
MESSAGES: Mapping[str, Mapping[str, tuple[int, str]]] = {
    "Model": {"graph": (7, "Graph"), "functions": (25, "Function*")},
    "Function": {"node": (7, "Node*"), "attribute_proto": (11, "Attribute*")},
    "Graph": {
        "node": (1, "Node*"),
        "initializer": (5, "Tensor*"),
        "output": (12, "Value*"),
        "sparse_initializer": (15, "Sparse*"),
    },
    "Node": {"attribute": (5, "Attribute*")},
    "Attribute": {
        "t": (5, "Tensor"),
        "g": (6, "Graph"),
        "tensors": (10, "Tensor*"),
        "graphs": (11, "Graph*"),
        "sparse_tensor": (22, "Sparse"),
        "sparse_tensors": (23, "Sparse*"),
    },
    "Sparse": {"values": (1, "Tensor"), "indices": (2, "Tensor")},
    "Tensor": {"raw_data": (9, BYTES), "external_data": (13, "Entry*"), "data_location": (14, NUMBER)},
    "Entry": {"key": (1, BYTES), "value": (2, BYTES)},
    "Value": {"name": (1, BYTES)},
}


def outputs(graph: bytes) -> list[str]:
    """Return the names of an ONNX file's outputs, in the model's order; raise PackageRefused where it is none."""
    return [one.name.decode(errors="replace") for one in _parsed(graph).graph.output]


def in_one_piece(model: ModelFiles) -> bytes:
    """Return an ONNX file with the weights in it that lie in other files.

    Raises:
        PackageRefused: it is none, or keeps weights in a file that does not belong to the package.
        AcceleratorMissing: it is too large for one file.

    """
    parsed = _parsed(model.graph)
    elsewhere = [one for one in _tensors(parsed) if one.data_location == EXTERNAL]
    if not elsewhere:
        return model.graph
    pieces = [_content(one, model.external) for one in elsewhere]
    if len(model.graph) + sum(map(len, pieces)) > LARGEST:
        raise AcceleratorMissing(
            "TensorRT takes models of less than 2 GiB, weights included; package it with --precision fp16."
        )
    for tensor, piece in zip(elsewhere, pieces, strict=True):
        tensor.raw_data = bytes(piece)
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    return bytes(parsed.SerializeToString())


def _parsed(graph: bytes) -> Any:
    try:
        parsed = _messages()["Model"].FromString(graph)
    except message.DecodeError:
        raise PackageRefused("The model is no ONNX file, or is damaged.") from None
    return parsed


def _tensors(of: Any) -> Iterator[Any]:
    """Yield every tensor below a message, in whatever subgraph or attribute."""
    for field, value in of.ListFields():
        if field.message_type is None:
            continue
        for one in value if MESSAGES[of.DESCRIPTOR.name][field.name][1].endswith("*") else [value]:
            if field.message_type.name == "Tensor":
                yield one
            else:
                yield from _tensors(one)


def _content(tensor: Any, files: Mapping[str, bytes]) -> memoryview:
    """Return a tensor's bytes in the file that it names; raise PackageRefused where they are not there."""
    told = {one.key.decode(errors="replace"): one.value.decode(errors="replace") for one in tensor.external_data}
    name = told.get("location", "")
    if name not in files:
        raise PackageRefused(
            f"The model keeps weights in {shown(name)}, which package.files does not list beside the model."
        )
    file = memoryview(files[name])
    try:
        begin = int(told.get("offset", 0))
        length = int(told.get("length", len(file) - begin))
    except ValueError:
        begin = length = -1
    if begin < 0 or length < 0 or begin + length > len(file):
        raise PackageRefused(f"The model's weights in {shown(name)} are not where it says; export it once more.")
    return file[begin : begin + length]


@cache
def _messages() -> Mapping[str, Any]:
    """Return the classes of MESSAGES, in a pool of their own: the process may hold ONNX's own ones, too."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{PACKAGE}.proto", package=PACKAGE, syntax="proto2")
    for name, fields in MESSAGES.items():
        made = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            one = made.field.add(name=field, number=number)
            one.label = one.LABEL_REPEATED if kind.endswith("*") else one.LABEL_OPTIONAL
            plain = kind.rstrip("*")
            if plain in {BYTES, NUMBER}:
                one.type = one.TYPE_BYTES if plain == BYTES else one.TYPE_INT32
            else:
                one.type, one.type_name = one.TYPE_MESSAGE, f".{PACKAGE}.{plain}"
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in MESSAGES}
