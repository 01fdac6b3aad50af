"""Packages of models that take their time: for ever on black images, or as long as an image's level of grey says."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from support import packages
from support.broken import SCORES, SIZE, Outputs, Parts

PIXELS = SIZE[0] * SIZE[1]
# The level of grey of a warm-up.
GREY = 128
# The matrix product of whole numbers is one kernel, which looks at nothing until it is done: half a minute and more.
KERNEL = 3000


def nearly_black() -> bytes:
    """Return an image that the models take for black, and that no other is equal to."""
    return os.urandom(16) + bytes(3 * PIXELS - 16)


def nearly_white() -> bytes:
    """Return an image whose level of grey is white's, and that no other is equal to."""
    return os.urandom(16) + b"\xff" * (3 * PIXELS - 16)


def grey(level: int) -> bytes:
    """Return an image of one level of grey."""
    return bytes([level]) * (3 * PIXELS)


def _spin(name: str) -> onnx.GraphProto:
    """Return the body of a loop: it adds nothing, and goes on as long as it was told at its beginning."""
    number = helper.make_tensor_value_info
    return helper.make_graph(
        [helper.make_node("Add", ["x_in", "step"], ["x_out"]), helper.make_node("Identity", ["go_in"], ["go_out"])],
        name,
        [
            number("round", TensorProto.INT64, []),
            number("go_in", TensorProto.BOOL, []),
            number("x_in", TensorProto.FLOAT, [1]),
        ],
        [number("go_out", TensorProto.BOOL, []), number("x_out", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(np.zeros(1, np.float32), "step")],
    )


def _spun(parts: Parts, rounds: str, go: str) -> Outputs:
    """Add a loop through which the score goes."""
    parts.constant("start", [0], np.float32)
    parts.node("Loop", [rounds, go, "start"], "number", body=_spin("spin"))
    parts.add_nothing("number")
    parts.scores("anomaly_of_all")
    return [SCORES]


def endless(parts: Parts) -> Outputs:
    """Spin for ever where the image is black: between two rounds the runtime can be told to end."""
    parts.node("Cast", ["gate"], "gates", to=TensorProto.BOOL)
    parts.node("Squeeze", ["gates"], "go")
    return _spun(parts, "", "go")


def kernel(parts: Parts) -> Outputs:
    """Multiply whole matrices where the image is black: within one kernel the runtime cannot be told to end."""
    side = parts.scaled_gate(1, KERNEL - 1, "side")
    parts.node("Concat", [side, side], "shape", axis=0)
    parts.node("Expand", [parts.constant("ones", [[1]]), "shape"], "matrix")
    parts.node("MatMul", ["matrix", "matrix"], "product")
    parts.node("ReduceMax", ["product"], "largest", axes=[0, 1], keepdims=0)
    parts.node("Cast", ["largest"], "largest_float", to=TensorProto.FLOAT)
    parts.node("Unsqueeze", ["largest_float", parts.constant("first", [0])], "number")
    parts.add_nothing("number")
    parts.scores("anomaly_of_all")
    return [SCORES]


def by_level(base: int, step: int) -> Callable[[Parts], Outputs]:
    """Return a way to spin for `base` rounds, about 2 us each, and `step` more for each level of grey above GREY."""

    def spin(parts: Parts) -> Outputs:
        # A mean may be less than the level by the least bit.
        parts.node("Add", ["level", parts.constant("half_a_level", [0.5], np.float32)], "level_or_more")
        parts.node("Cast", ["level_or_more"], "whole_level", to=TensorProto.INT64)
        parts.node("Sub", ["whole_level", parts.constant("grey", [GREY])], "above_or_below")
        parts.node("Max", ["above_or_below", parts.constant("none", [0])], "above")
        parts.node("Mul", ["above", parts.constant("a_level", [step])], "more_rounds")
        parts.node("Add", ["more_rounds", parts.constant("base", [base])], "rounds_of_one")
        parts.node("Squeeze", ["rounds_of_one"], "rounds")
        return _spun(parts, "rounds", parts.constant("go", True, np.bool_))

    return spin


def package(folder: Path, way: Callable[[Parts], Outputs]) -> Path:
    """Write the package of a model that takes its time in a way; its anomaly score is the image's mean."""
    parts = Parts(always=False)
    parts.head()
    outputs = way(parts)
    made = packages.model(parts.nodes, parts.constants, (1, 3, *SIZE), outputs)
    return packages.write(folder, packages.manifest(size=SIZE), made)
