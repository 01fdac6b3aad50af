"""Mutated packages: manifests and ONNX models that are nearly in order."""

import copy
import json
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from edge_agent import block
from edge_agent.errors import PackageRefused

Tree = dict[str, Any] | list[Any]

# In the place of these, JSON gets what Python would not write: depths of nesting, a key for the second time.
DEEP, AGAIN = "@deep", "@again"
DEPTHS = (50, 200, 300, 400, 800, 990, 50_000)
CONTROLS = ("\0", "\n", "\x1b[31m", "\x7f", "\x9b", "\u2028")
BIDI = ("\u061c", "\u200e", "\u202e", "\u2066")
LONG = "x" * 5000
# So many models are changed where no verdict comes from.
MILD = 4
# No text of these may be the name of a component.
TEXTS = ("", "0,5", LONG, "x" * 100_000, "é" * 300, "\U000e0001" * 300, "../model.onnx", "%s{0}")
NUMBERS = (0, 1, -1, 2, 65, 128, 0.5, -0.0, 1e-300, 1e300, 2**31, 2**63, 10**400, float("nan"), float("inf"))
LISTS: tuple[Any, ...] = ([], {}, [[]], [None], [1] * 10_000, {"": {}}, [0], [1, 3, 64, 64], [True], ["1"], [-1])
OTHERS = (*NUMBERS, *TEXTS, *LISTS, None, True, False)
# What the file of a whole manifest begins with; without these it would be the manifest of something else.
BEGINNING = len('{"model_graph":')


def manifests(whole: dict[str, Any], chance: Random) -> Iterator[bytes]:
    """Yield mutants of a manifest for ever: some known ones, then others, mostly of its content, some of its bytes."""
    for unsafe in (*CONTROLS, *BIDI):
        content = copy.deepcopy(whole)
        content["model_graph"]["pixel_level_classes"]["names"][1] = f"de{unsafe}nt"
        yield json.dumps(content).encode()
    for depth in DEPTHS:
        yield _written(whole, chance, [lambda content, _, depth=depth: _deep_at(content["dataset"], "more", depth)])
    ways = (_another_value, _another_value, _missing, _deep, _again, _unsafe_text, _another_key)
    while True:
        if chance.random() < 0.2:
            data = json.dumps(whole).encode()
            yield _bytes(data, chance, BEGINNING, data.find(b'"package"') % len(data))
        else:
            yield _written(whole, chance, [chance.choice(ways) for _ in range(chance.choice((1, 1, 1, 2, 3)))])


def _written(whole: dict[str, Any], chance: Random, ways: list[Callable]) -> bytes:
    """Return a manifest with a change by each of the ways."""
    content = json.loads(json.dumps(whole))
    replaced = dict(way(content, chance) for way in ways)
    data = json.dumps(content)
    for marker, text in replaced.items():
        data = data.replace(json.dumps(marker), text) if marker else data
    return data.encode()


def renamed(manifest: bytes, name: str, other: str) -> bytes:
    """Return the manifest of a component of another name; where it has a digest of itself, that is right."""
    return _signed(manifest.replace(b'"name": "%b"' % name.encode(), b'"name": "%b"' % other.encode()))


def _signed(manifest: bytes) -> bytes:
    try:
        return block.sign(manifest)
    except PackageRefused:
        return manifest


def _places(tree: Tree) -> Iterator[tuple[Tree, Any]]:
    """Yield each object or list, and a key or index of it; not what makes it the manifest of a package."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        if key != "model_graph":
            yield tree, key
        if isinstance(tree[key], dict | list):
            yield from _places(tree[key])


def _place(content: Tree, chance: Random) -> tuple[Tree, Any]:
    return chance.choice(list(_places(content)))


def _another_value(content: Tree, chance: Random) -> tuple[str, str]:
    tree, key = _place(content, chance)
    tree[key] = copy.deepcopy(chance.choice(OTHERS))
    return "", ""


def _missing(content: Tree, chance: Random) -> tuple[str, str]:
    tree, key = _place(content, chance)
    del tree[key]
    return "", ""


def _deep(content: Tree, chance: Random) -> tuple[str, str]:
    return _deep_at(*_place(content, chance), chance.choice(DEPTHS), *chance.choice((("[", "]"), ('{"x":', "}"))))


def _deep_at(tree: Tree, key: Any, depth: int, opening: str = "[", closing: str = "]") -> tuple[str, str]:
    tree[key] = DEEP
    return DEEP, opening * depth + "1" + closing * depth


def _again(content: Tree, chance: Random) -> tuple[str, str]:
    tree, key = chance.choice([place for place in _places(content) if isinstance(place[0], dict)])
    tree[AGAIN] = copy.deepcopy(chance.choice((tree[key], *OTHERS)))
    return AGAIN, json.dumps(key)


def _unsafe_text(content: Tree, chance: Random) -> tuple[str, str]:
    texts = [place for place in _places(content) if isinstance(place[0][place[1]], str)]
    tree, key = chance.choice(texts or list(_places(content)))
    at = chance.choice((0, 1))
    text = str(tree[key])
    tree[key] = text[:at] + chance.choice((*CONTROLS, *BIDI)) * chance.choice((1, 1, 300)) + text[at:]
    return "", ""


def _another_key(content: Tree, chance: Random) -> tuple[str, str]:
    tree, key = chance.choice([place for place in _places(content) if isinstance(place[0], dict)])
    assert isinstance(tree, dict)
    tree[chance.choice((*CONTROLS, *BIDI, *TEXTS))] = tree.pop(key)
    return "", ""


def _bytes(data: bytes, chance: Random, begin: int, end: int) -> bytes:
    """Return bytes that are changed between two places: bits flipped, some left out, or there twice, or others added."""
    at, length = chance.randrange(begin, end), chance.choice((1, 2, 7, 64, 1000))
    way = chance.randrange(7)
    if way == 0:
        return data[:at]
    if way == 1:
        return data[:at] + data[at + length :]
    if way == 2:
        return data[:at] + data[at : at + length] * 2 + data[at + length :]
    if way == 3:
        return data[:at] + chance.randbytes(length) + data[at:]
    flipped = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 4, 16))):
        flipped[chance.randrange(begin, end)] ^= 1 << chance.randrange(8)
    return bytes(flipped)


def models(whole: bytes, chance: Random) -> Iterator[bytes]:
    """Yield mutants of an ONNX model for ever: half of its bytes, half of its graph; the first ones judge as before."""
    for unsafe in (*CONTROLS, *BIDI)[:MILD]:
        model = onnx.load_model_from_string(whole)
        model.graph.name = model.graph.doc_string = model.producer_name = f"ti{unsafe}ny"
        yield model.SerializeToString()
    ways = (_operator, _edge, _no_node, _constant, _shape, _versions, _attribute, _output)
    while True:
        if chance.random() < 0.5:
            yield _bytes(whole, chance, 0, len(whole))
        else:
            model = onnx.load_model_from_string(whole)
            chance.choice(ways)(model, chance)
            yield model.SerializeToString()


OPERATORS = (
    "Relu",
    "Add",
    "Div",
    "Loop",
    "If",
    "Concat",
    "Reshape",
    "Conv",
    "SequenceEmpty",
    "NonZero",
    "",
    LONG,
    "\x1b",
)
NAMES = ("input", "scores", "logits", "nothing", "", "\n\u202e", LONG)


def _operator(model: onnx.ModelProto, chance: Random) -> None:
    node = chance.choice(model.graph.node)
    node.op_type = chance.choice(OPERATORS)
    node.domain = chance.choice(("", "", "com.microsoft", "\u202e"))


def _edge(model: onnx.ModelProto, chance: Random) -> None:
    node = chance.choice(model.graph.node)
    ends = chance.choice((node.input, node.output))
    other = chance.choice(model.graph.node)
    ends[chance.randrange(len(ends))] = chance.choice((*NAMES, other.output[0]))


def _no_node(model: onnx.ModelProto, chance: Random) -> None:
    del model.graph.node[chance.randrange(len(model.graph.node))]


def _constant(model: onnx.ModelProto, chance: Random) -> None:
    tensor = chance.choice(model.graph.initializer)
    values = np.array(numpy_helper.to_array(tensor))
    if chance.random() < 0.5:
        values[...] = (
            chance.choice((0, -1, 7, 100)) if values.dtype.kind == "i" else chance.choice((np.nan, np.inf, 3e38))
        )
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    else:
        tensor.data_type = chance.choice((0, 1, 2, 7, 8, 11, 99))


def _shape(model: onnx.ModelProto, chance: Random) -> None:
    side = chance.choice((0, -1, 1, 2, 65, 2**31, 2**62))
    if chance.random() < 0.5:
        value = chance.choice((*model.graph.input, *model.graph.output))
        dims = value.type.tensor_type.shape.dim
        dims[chance.randrange(len(dims))].dim_value = side
    else:
        chance.choice(model.graph.initializer).dims.append(side)


def _versions(model: onnx.ModelProto, chance: Random) -> None:
    model.ir_version = chance.choice((0, 3, 8, 99, 2**31))
    model.opset_import[0].version = chance.choice((0, 1, 11, 17, 99, 2**62))


def _attribute(model: onnx.ModelProto, chance: Random) -> None:
    node = chance.choice([one for one in model.graph.node if one.attribute])
    attribute = chance.choice(node.attribute)
    if chance.random() < 0.5:
        attribute.name = chance.choice(("axis", "axes", "keepdims", "\x1b", LONG))
    else:
        attribute.i = chance.choice((-9, 7, 2**62))
        attribute.ints.append(2**62)


def _output(model: onnx.ModelProto, chance: Random) -> None:
    output = chance.choice(model.graph.output)
    if chance.random() < 0.5:
        model.graph.output.remove(output)
    else:
        output.name = chance.choice(NAMES)
