"""Golden-template inspection: a model fitted to photographs of good parts that lie still under constant light.

Classical automated optical inspection: every pixel is compared with its mean over the good parts, in units of its own
spread (a z-score), the differences are smoothed, and what exceeds the threshold is a defect. It needs no defective parts
and no training, and it is an honest baseline: parts that move or differ from each other are not for it.

The model is one ONNX graph with the two outputs of a `mochi` model: mask logits 1x2xHxW (background, defect) and class
scores 1x2 (anomaly, normal).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_agent.bitmaps import LONGEST_SIDE, SHORTEST_SIDE

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

OPSET = 17
# The window, in pixels, over which differences are averaged: single noisy pixels vanish, a scratch does not.
WINDOW = 5
# A spread below this (in levels of 0..1) is the camera's noise and not the part's.
LEAST_SPREAD = 2 / 255
FOLDS = 4
# The threshold lies this far above the worst part that was held out.
MARGIN = 1.25
# How steeply the score rises around the threshold: 0.05 at half of it, 0.95 at one and a half.
STEEPNESS = 6.0
FEWEST = 8
# Beyond these the good parts are not alike enough for a template: median spread of a pixel in levels of 0..255, and
# the worst held-out part against the median one.
MOST_SPREAD, MOST_SCATTER = 12.0, 5.0


class CannotFit(Exception):
    """The photographs are not enough, not alike enough to be compared, or of no use here; the text says what to do."""


@dataclass(frozen=True)
class Template:
    """A fitted template; images are height x width x 3 on a scale of 0..1.

    `held_out` are the smoothed z-scores of good parts that the template had not seen; `warnings` are for the user.
    """

    mean: Floats
    spread: Floats
    threshold: float
    held_out: tuple[float, ...]
    warnings: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.mean.shape[1], self.mean.shape[0]


def fit(images: Sequence[Pixels], threshold: float | None = None) -> Template:
    """Fit a template to photographs of good parts.

    Args:
        images: at least 8, each height x width x 3 (uint8), all of one size.
        threshold: the smoothed z-score from which on a pixel is a defect; None takes 1.25 times the worst one of good
            parts that were held out in turn.

    Raises:
        CannotFit: too few images, of different sizes, or of one that the agent does not take.

    """
    if len(images) < FEWEST:
        raise CannotFit(f"{len(images)} photographs of good parts are too few; give at least {FEWEST}.")
    sizes = {image.shape for image in images}
    if len(sizes) != 1:
        raise CannotFit(f"The photographs have {len(sizes)} different sizes; crop or scale them to one.")
    height, width = images[0].shape[:2]
    if min(width, height) < SHORTEST_SIDE or max(width, height) > LONGEST_SIDE:
        raise CannotFit(
            f"The photographs are {width}x{height} pixels; the agent takes {SHORTEST_SIDE} to {LONGEST_SIDE} a side. "
            "Crop or scale them."
        )
    stack: Floats = np.stack([image / np.float32(255) for image in images])
    held_out = _hold_out(stack)
    mean, spread = _statistics(stack)
    return Template(
        mean, spread, MARGIN * max(held_out) if threshold is None else threshold, held_out, _warnings(spread, held_out)
    )


def differences(image: Pixels | Floats, mean: Floats, spread: Floats) -> Floats:
    """Return the smoothed z-score of each pixel, height x width: what the graph computes, for fitting and for tests."""
    scaled = image.astype(np.float32) / 255 if image.dtype == np.uint8 else image
    # Sums over so many pixels lose digits in float32, and a spread is a small thing to divide by.
    gain = mean.mean(axis=(0, 1), dtype=np.float64) / scaled.mean(axis=(0, 1), dtype=np.float64)
    z = (np.abs(scaled * gain.astype(np.float32) - mean) / spread).max(axis=2)
    return _smooth(z)


def to_onnx(template: Template) -> bytes:
    """Return the template as an ONNX model with the input `input`, float32 1x3xHxW on a scale of 0..1."""
    height, width, _ = template.mean.shape
    planes = template.mean.transpose(2, 0, 1)[None]
    constants = {
        "mean": planes,
        "inverse_spread": (1 / template.spread).transpose(2, 0, 1)[None],
        "light": planes.mean(axis=(2, 3), keepdims=True, dtype=np.float64),
        "threshold": np.full((1, 1, 1, 1), template.threshold),
        "steepness": np.full((1, 1), STEEPNESS / template.threshold),
        "zero": np.zeros((1, 1, 1, 1)),
        "one": np.ones((1, 1)),
    }
    nodes = [
        # The light of the whole picture is taken out, channel by channel.
        helper.make_node("ReduceMean", ["input"], ["its_light"], axes=[2, 3]),
        helper.make_node("Div", ["light", "its_light"], ["gain"]),
        helper.make_node("Mul", ["input", "gain"], ["even"]),
        helper.make_node("Sub", ["even", "mean"], ["difference"]),
        helper.make_node("Abs", ["difference"], ["distance"]),
        helper.make_node("Mul", ["distance", "inverse_spread"], ["z"]),
        helper.make_node("ReduceMax", ["z"], ["worst"], axes=[1]),
        helper.make_node(
            "AveragePool",
            ["worst"],
            ["smooth"],
            kernel_shape=[WINDOW] * 2,
            pads=[WINDOW // 2] * 4,
            count_include_pad=1,
        ),
        helper.make_node("Sub", ["smooth", "threshold"], ["defect"]),
        helper.make_node("Mul", ["defect", "zero"], ["background"]),
        helper.make_node("Concat", ["background", "defect"], ["logits"], axis=1),
        helper.make_node("GlobalMaxPool", ["defect"], ["peak"]),
        helper.make_node("Flatten", ["peak"], ["flat"]),
        helper.make_node("Mul", ["flat", "steepness"], ["steep"]),
        helper.make_node("Sigmoid", ["steep"], ["anomaly"]),
        helper.make_node("Sub", ["one", "anomaly"], ["normal"]),
        helper.make_node("Concat", ["anomaly", "normal"], ["scores"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "golden_template",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, height, width])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 2, height, width]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 2]),
        ],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _smooth(z: Floats) -> Floats:
    """Return the mean over WINDOW x WINDOW pixels, zeros beyond the border, from sums along each axis."""
    for axis in (0, 1):
        margin = [(0, 0), (0, 0)]
        margin[axis] = (WINDOW // 2 + 1, WINDOW // 2)
        sums = np.cumsum(np.pad(z, margin), axis=axis, dtype=np.float64)
        ends = np.take(sums, range(WINDOW, sums.shape[axis]), axis=axis)
        starts = np.take(sums, range(sums.shape[axis] - WINDOW), axis=axis)
        z = ((ends - starts) / WINDOW).astype(np.float32)
    return z


def _statistics(stack: Floats) -> tuple[Floats, Floats]:
    """Return each pixel's mean and spread over images whose light has been made equal."""
    light = stack.mean(axis=(1, 2), keepdims=True, dtype=np.float64)
    even = stack * (light.mean(axis=0, keepdims=True) / light).astype(np.float32)
    mean: Floats = even.mean(axis=0)
    return mean, np.sqrt(even.var(axis=0) + np.float32(LEAST_SPREAD**2))


def _hold_out(stack: Floats) -> tuple[float, ...]:
    """Return the peak of each image under a template that was fitted without it."""
    peaks = np.empty(len(stack))
    for fold in range(FOLDS):
        mean, spread = _statistics(np.delete(stack, np.s_[fold::FOLDS], axis=0))
        for index in range(fold, len(stack), FOLDS):
            peaks[index] = differences(stack[index], mean, spread).max()
    return tuple(map(float, peaks))


def _warnings(spread: Floats, held_out: Sequence[float]) -> tuple[str, ...]:
    found = []
    levels = float(np.median(spread)) * 255
    if levels > MOST_SPREAD:
        found.append(
            f"A pixel of the good parts spreads by {levels:.0f} of 255 levels (median): the parts are not aligned or not "
            "alike, and only large defects will stand out. Fix the parts in place, or train a model."
        )
    scatter = max(held_out) / float(np.median(held_out))
    if scatter > MOST_SCATTER:
        found.append(
            f"The worst good part that was held out differs {scatter:.1f} times as much as the median one: look for a "
            "defective part among them, or add more good ones."
        )
    return tuple(found)
