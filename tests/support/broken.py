"""Packages of models that break, each in one way: on every image, or on black ones only, which a warm-up does not show."""

import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from support import packages

SIZE = (64, 64)
BLACK = bytes(3 * SIZE[0] * SIZE[1])
LIGHT = b"\x99" * len(BLACK)
# What the models say of LIGHT, which breaks none that is not broken always: the image's mean.
LIGHT_SCORE = 0x99 / 255
# Bytes that the models of `memory` take at once, or `creeping` in steps: enough to be noticed, and no machine's end.
BOMB = 1536 << 20
STEP = 64 << 20
# The least whole number divided by -1 is none; these processors end the process for it: a crash within the runtime.
TRAPS = platform.machine() in {"x86_64", "AMD64", "i686"}


@dataclass
class Parts:
    """A graph that is being made: `gate` (int64, 1) is 1 where it is to break, else 0; `anomaly` (1x1) is the score."""

    always: bool
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)

    def node(self, op: str, inputs: list[str], output: str, **attributes: object) -> str:
        """Add a node; return its output's name."""
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def constant(self, name: str, value: object, kind: type = np.int64) -> str:
        """Add a constant; return its name."""
        self.constants[name] = np.array(value, kind)
        return name

    def head(self) -> None:
        """Add the gate and the score."""
        self.node("ReduceMean", ["input"], "mean", axes=[1, 2, 3], keepdims=0)
        self.node("Mul", ["mean", self.constant("white", [255], np.float32)], "level")
        self.node("Cast", ["level"], "steps", to=TensorProto.INT64)
        self.node("Clip", ["steps", self.constant("least", 0), self.constant("most", 1)], "lit")
        if self.always:
            self.node("Max", ["lit", self.constant("true", [1])], "gate")
        else:
            self.node("Sub", [self.constant("true", [1]), "lit"], "gate")
        self.node("Unsqueeze", ["mean", self.constant("axis", [1])], "anomaly")

    def scaled_gate(self, without: int, more: int, name: str) -> str:
        """Add `without`, and `more` besides where the model is to break (int64, 1)."""
        self.node("Mul", ["gate", self.constant(f"{name}_more", [more])], f"{name}_part")
        return self.node("Add", [f"{name}_part", self.constant(f"{name}_without", [without])], name)

    def add_nothing(self, number: str) -> None:
        """Let a number (float, 1) take part in the score, times zero."""
        self.node("Mul", [number, self.constant("nil", [0], np.float32)], "nothing")
        self.node("Add", ["anomaly", "nothing"], "anomaly_of_all")

    def scores(self, anomaly: str, name: str = "scores") -> str:
        """Add the scores: the anomaly's, and what is left of one."""
        self.node("Sub", [self.constant("one", [[1]], np.float32), anomaly], "normal")
        return self.node("Concat", [anomaly, "normal"], name, axis=1)

    def logits(self, name: str = "logits") -> str:
        """Add mask logits 1x2xHxW: a pixel is of class 1 where its red is above one half."""
        bounds = [self.constant(name, value) for name, value in (("from", [0]), ("to", [1]), ("along", [1]))]
        self.node("Slice", ["input", *bounds], "red")
        self.node("Sub", ["red", self.constant("half", [[[[0.5]]]], np.float32)], "over")
        self.node("Neg", ["over"], "under")
        return self.node("Concat", ["under", "over"], name, axis=1)

    def not_a_number(self) -> str:
        """Add one, and 0 / 0 where the model is to break (float, 1)."""
        self.node("Cast", [self.scaled_gate(1, -1, "whole")], "sound", to=TensorProto.FLOAT)
        return self.node("Div", ["sound", "sound"], "factor")


def _value(name: str, shape: list[int | str], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


SCORES = _value("scores", [1, 2])
Outputs = list[onnx.ValueInfoProto]


def crash(parts: Parts) -> Outputs:
    """End the process by a signal of the processor."""
    smallest = parts.constant("smallest", [np.iinfo(np.int64).min])
    parts.node("Div", [smallest, parts.scaled_gate(1, -2, "divisor")], "quotient")
    parts.node("Cast", ["quotient"], "number", to=TensorProto.FLOAT)
    parts.add_nothing("number")
    parts.scores("anomaly_of_all")
    return [SCORES]


def memory(parts: Parts) -> Outputs:
    """Take BOMB bytes at once."""
    parts.constant("grain", [0], np.float32)
    parts.node("Expand", ["grain", parts.scaled_gate(1, BOMB // 4, "count")], "heap")
    parts.node("ReduceMax", ["heap"], "number", axes=[0], keepdims=1)
    parts.add_nothing("number")
    parts.scores("anomaly_of_all")
    return [SCORES]


def creeping(parts: Parts) -> Outputs:
    """Take BOMB bytes in steps."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_in"], ["go_out"]),
            helper.make_node("Expand", ["grain_inside", "step"], ["heap_of_one"]),
        ],
        "body",
        [_value("i", [], TensorProto.INT64), _value("go_in", [], TensorProto.BOOL)],
        [_value("go_out", [], TensorProto.BOOL), _value("heap_of_one", [STEP // 4])],
        [
            numpy_helper.from_array(np.zeros(1, np.float32), "grain_inside"),
            numpy_helper.from_array(np.array([STEP // 4]), "step"),
        ],
    )
    parts.node(
        "Loop", [parts.scaled_gate(0, BOMB // STEP, "rounds"), parts.constant("go", True, np.bool_)], "heaps", body=body
    )
    parts.node("Shape", ["heaps"], "shape_of_heaps")
    parts.node("Slice", ["shape_of_heaps", parts.constant("first", [0]), "true"], "count")
    parts.node("Cast", ["count"], "number", to=TensorProto.FLOAT)
    parts.add_nothing("number")
    parts.scores("anomaly_of_all")
    return [SCORES]


def score_shape(parts: Parts) -> Outputs:
    """Give one class score too few."""
    parts.scores("anomaly", "both")
    ends = parts.scaled_gate(2, -1, "ends")
    parts.node("Slice", ["both", parts.constant("begin", [0]), ends, "axis"], "scores")
    return [_value("scores", [1, "classes"])]


def mask_shape(parts: Parts) -> Outputs:
    """Give the mask logits of one class too few."""
    parts.scores("anomaly")
    parts.logits("both")
    ends = parts.scaled_gate(2, -1, "ends")
    parts.node("Slice", ["both", parts.constant("begin", [0]), ends, "axis"], "logits")
    return [_value("logits", [1, "classes", SIZE[1], SIZE[0]]), SCORES]


def score_nan(parts: Parts) -> Outputs:
    """Give scores that are no numbers."""
    parts.node("Mul", ["anomaly", parts.not_a_number()], "anomaly_or_none")
    parts.scores("anomaly_or_none")
    return [SCORES]


def mask_nan(parts: Parts) -> Outputs:
    """Give mask logits that are no numbers."""
    parts.scores("anomaly")
    parts.node("Mul", [parts.logits("sound_logits"), parts.not_a_number()], "logits")
    return [_value("logits", [1, 2, SIZE[1], SIZE[0]]), SCORES]


def count(parts: Parts) -> Outputs:
    """Give an output that no manifest promises, on every image."""
    parts.scores("anomaly")
    parts.node("Identity", ["scores"], "scores_again")
    return [SCORES, _value("scores_again", [1, 2])]


def text(parts: Parts) -> Outputs:
    """Give scores in words, on every image."""
    parts.node("Cast", [parts.scores("anomaly", "numbers")], "scores", to=TensorProto.STRING)
    return [_value("scores", [1, 2], TensorProto.STRING)]


def ballast(size: int) -> Callable[[Parts], Outputs]:
    """Return a way not to break: a model of `size` bytes that keeps them all."""

    def keep(parts: Parts) -> Outputs:
        parts.constant("weights", np.zeros(size // 4), np.float32)
        # Which of them is taken the image says, so that the others are not folded away.
        parts.node("Gather", ["weights", "gate"], "number")
        parts.add_nothing("number")
        parts.scores("anomaly_of_all")
        return [SCORES]

    return keep


def crash_at_load(parts: Parts) -> Outputs:
    """End the process while the runtime works out what is constant."""
    smallest, minus = parts.constant("smallest", [np.iinfo(np.int64).min]), parts.constant("minus", [-1])
    parts.node("Div", [smallest, minus], "quotient")
    parts.node("Cast", ["quotient"], "number", to=TensorProto.FLOAT)
    parts.add_nothing("number")
    parts.scores("anomaly_of_all")
    return [SCORES]


def package(folder: Path, way: Callable[[Parts], Outputs], *, always: bool = False) -> Path:
    """Write the package of a model that breaks in a way; return its folder."""
    parts = Parts(always)
    parts.head()
    outputs = way(parts)
    with_mask = any(one.name == "logits" for one in outputs)
    names = ("background", "bright") if with_mask else ()
    content = packages.manifest(size=SIZE, segmentation=with_mask, pixel_names=names)
    made = packages.model(parts.nodes, parts.constants, (1, 3, SIZE[1], SIZE[0]), outputs)
    return packages.write(folder, content, made)
