"""Reading ONNX files that somebody else made: one file or two, checked before anything is believed."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from onnx import external_data_helper, inliner, version_converter

from model_packager.errors import PackagingRefused

# Newest opset that the oldest supported runtime knows (ONNX Runtime 1.23 on JetPack 6), oldest that our own nodes need.
NEWEST_OPSET, OLDEST_OPSET = 21, 13
COMMON_OPSET = 17
# Of the file format: newest that the same runtime knows, oldest in which weights need not be listed as inputs, too.
NEWEST_IR, OLDEST_IR = 10, 4
DOMAINS = {"", "ai.onnx"}
# Protocol buffers end there, and a package's model is one of them.
LARGEST = 2**31 - 1
TOO_LARGE = "A model is packaged as one file, which can have 2 GiB at most; export a smaller network."


def load(path: Path) -> onnx.ModelProto:
    """Return the model in a file as one graph, its external data merged, at an opset between 13 and 21.

    Raises:
        PackagingRefused: it is no valid ONNX model, larger than 2 GiB, its data is missing or outside its folder, or its
            operators are unknown.

    """
    model = _inlined(parse(path), path.name)
    _merge(model, path)
    _keep_domains(model, path.name)
    model.ir_version = min(max(model.ir_version, OLDEST_IR), NEWEST_IR)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise PackagingRefused(f"{path.name} is not valid ONNX: {str(error).partition(chr(10))[0]:.200}") from None
    model = _at_common_opset(model, path.name)
    _forget_maker(model)
    return model


def parse(path: Path) -> onnx.ModelProto:
    """Return the model in a file as it stands there, without external data; raise PackagingRefused."""
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= LARGEST else None
    except OSError as error:
        raise PackagingRefused(f"{path.name} cannot be read: {error.strerror}.") from None
    if data is None:
        raise PackagingRefused(f"{path.name} has {size} bytes. {TOO_LARGE}")
    try:
        model = onnx.load_model_from_string(data)
    except Exception:  # noqa: BLE001  (protobuf's own class of error depends on its implementation)
        raise PackagingRefused(f"{path.name} is not an ONNX model.") from None
    if not model.graph.node or not model.graph.output:
        raise PackagingRefused(f"{path.name} is not an ONNX model: it has no graph.")
    return model


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield a graph and those inside its nodes (branches and bodies of loops), however deep."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from graphs(inner)


def reads(node: onnx.NodeProto) -> set[str]:
    """Return the names of all that a node reads, and the nodes of the graphs inside it."""
    inner = (one for attribute in node.attribute for one in [attribute.g, *attribute.graphs])
    # "" stands for an input that is left out.
    return {*node.input}.union(*(reads(each) for one in inner for each in one.node)) - {""}


def _inlined(model: onnx.ModelProto, label: str) -> onnx.ModelProto:
    """Return the model with the bodies of its own functions in place of their calls; some exporters write such."""
    if not model.functions:
        return model
    try:
        return inliner.inline_local_functions(model)
    except Exception:  # noqa: BLE001  (the inliner raises bare RuntimeError and others)
        raise PackagingRefused(
            f"{label} has functions of its own that cannot be inlined; export it without them."
        ) from None


def _forget_maker(model: onnx.ModelProto) -> None:
    """Take out what a model says of itself beside its graph: names of people and folders, dates, lines of their code."""
    del model.metadata_props[:], model.training_info[:]
    model.producer_name, model.producer_version = "edge-agent", ""
    model.domain = model.doc_string = ""
    model.model_version = 0
    model.graph.name = "network"
    for graph in graphs(model.graph):
        values = (*graph.input, *graph.output, *graph.value_info)
        told: list[Any] = [graph, *graph.node, *graph.initializer, *values]
        for one in told:
            one.doc_string = ""
            del one.metadata_props[:]


def _keep_domains(model: onnx.ModelProto, label: str) -> None:
    """Refuse operators that are not standard ones; forget other sets that are declared and not used, as exporters do."""
    for node in (node for graph in graphs(model.graph) for node in graph.node):
        if node.domain not in DOMAINS:
            raise PackagingRefused(
                f"{label} uses {node.op_type!r:.80} of {node.domain!r:.80}, which not every runtime has; export it with "
                "standard ONNX operators."
            )
    kept = [one for one in model.opset_import if one.domain in DOMAINS]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _at_common_opset(model: onnx.ModelProto, label: str) -> onnx.ModelProto:
    """Return the model with an opset that the packages' runtimes know; refuse it when it has no way there."""
    opset = max((one.version for one in model.opset_import), default=0)
    if OLDEST_OPSET <= opset <= NEWEST_OPSET:
        return model
    try:
        return version_converter.convert_version(model, COMMON_OPSET)
    except Exception:  # noqa: BLE001  (the converter raises bare RuntimeError and others)
        raise PackagingRefused(
            f"{label} has opset {opset}; it must be {OLDEST_OPSET} to {NEWEST_OPSET}. Export it with opset {COMMON_OPSET}."
        ) from None


def _merge(model: onnx.ModelProto, path: Path) -> None:
    """Read external data into the model: of regular files beside it with one link and a plain name, nothing else."""
    contents: dict[str, bytes] = {}
    total = model.ByteSize()
    for tensor in _tensors(model.graph):
        if not external_data_helper.uses_external_data(tensor):
            continue
        told = {one.key: one.value for one in tensor.external_data}
        location = told.get("location", "")
        if location not in contents:
            contents[location] = _beside(path, location)
        data = contents[location]
        try:
            offset = int(told.get("offset", 0))
            length = int(told.get("length", len(data) - offset))
        except ValueError:
            raise PackagingRefused(
                f"{path.name}: the place of {tensor.name!r:.80} in {location!r:.80} is no number."
            ) from None
        if offset < 0 or length < 0 or offset + length > len(data):
            raise PackagingRefused(
                f"{location!r:.80} is shorter than {path.name} says; it is not the file that belongs to it."
            )
        total += length
        if total > LARGEST:
            raise PackagingRefused(f"{path.name} has more than {LARGEST} bytes with its weights. {TOO_LARGE}")
        tensor.raw_data = data[offset : offset + length]
        tensor.ClearField("data_location")
        del tensor.external_data[:]


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of a graph: its weights, and the constants of its nodes, those of inner graphs included."""
    for one in graphs(graph):
        attributes = [attribute for node in one.node for attribute in node.attribute]
        sparse = [*one.sparse_initializer, *(each for attribute in attributes for each in attribute.sparse_tensors)]
        sparse += [attribute.sparse_tensor for attribute in attributes if attribute.HasField("sparse_tensor")]
        yield from one.initializer
        yield from (attribute.t for attribute in attributes if attribute.HasField("t"))
        yield from (tensor for attribute in attributes for tensor in attribute.tensors)
        yield from (part for each in sparse for part in (each.values, each.indices))


def _beside(path: Path, name: str) -> bytes:
    if not name or name in {".", ".."} or "/" in name or "\\" in name or "\0" in name:
        raise PackagingRefused(f"{path.name} keeps its weights in {name!r:.80}; that must be a file beside it.")
    linked = PackagingRefused(f"{name!r:.80} must be a regular file with one name; copy it instead of linking it.")
    try:
        fd = os.open(path.parent / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise linked from None
        raise PackagingRefused(
            f"{path.name} keeps its weights in a second file, {name!r:.80}, which cannot be read: {error.strerror}. "
            "Put both files into one folder."
        ) from None
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_nlink != 1:
            raise linked
        if info.st_size > LARGEST:
            raise PackagingRefused(f"{name!r:.80} has {info.st_size} bytes. {TOO_LARGE}")
        with open(fd, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(fd)
