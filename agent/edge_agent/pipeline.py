"""An image to a verdict: pre-process, run, read score and class map, all by the rules of the package's manifest.

The rules are those of the `mochi` models of Amazon Lookout for Vision.
"""

import math
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_agent.bitmaps import CHANNELS
from edge_agent.errors import InferenceFailed, PackageRefused
from edge_agent.graphs import Graph
from edge_agent.jobs import AnomalyArea, Verdict
from edge_agent.manifest import Calibration, Manifest
from edge_agent.resize import nearest_indices, resizer

WARM_UPS = 2
# Each channel of the background's colour, which no package can change.
WHITE = 0xFF
# Up to so many, classes are counted one by one; beyond, all in one slower pass.
FEW_CLASSES = 8


class Spread:
    """How a small map h x w is spread over an image H x W by nearest neighbour, worked out once for many images.

    `rows` (H,) and `columns` (W,), intp, say which of the small map's each row and column of the image takes; `heights`
    (h,) and `widths` (w,), float64, how many of the image each of the small map's stands for; `bytes` (3W,), intp, which
    bytes of a row of the small map's colours a row of the image has. `canvas` h x 3W (uint8) are the small map's rows in
    colour, as wide as the image's; white but while a mask is painted.
    """

    def __init__(self, small: tuple[int, int], between: tuple[int, int], image: tuple[int, int]) -> None:
        """Spread `small` over `between`, and that over `image`; sizes are (width, height) in pixels."""
        self.columns, self.rows = (
            nearest_indices(one, middle)[nearest_indices(middle, whole)]
            for one, middle, whole in zip(small, between, image, strict=True)
        )
        self.widths = np.bincount(self.columns, minlength=small[0]).astype(np.float64)
        self.heights = np.bincount(self.rows, minlength=small[1]).astype(np.float64)
        self.bytes = (CHANNELS * self.columns[:, None] + np.arange(CHANNELS)).reshape(-1)
        self.canvas = np.full((small[1], len(self.bytes)), WHITE, np.uint8)


@dataclass(frozen=True)
class ClassMap:
    """The class of every pixel: a small map h x w (uint8), and how it is spread over the image."""

    small: NDArray[np.uint8]
    spread: Spread

    @property
    def only_background(self) -> bool:
        """Whether every pixel is of class 0, as in most images of good parts."""
        return not self.small.any()

    def counts(self, classes: int) -> NDArray[np.float64]:
        """Return the number of pixels of each class, without spreading the small map over the image."""
        heights, widths = self.spread.heights, self.spread.widths
        # Whole numbers of pixels are exact in float64.
        if classes <= FEW_CLASSES:
            counts = np.zeros(classes)
            if not self.only_background:
                counts[1:] = [heights @ (self.small == one) @ widths for one in range(1, classes)]
            counts[0] = heights.sum() * widths.sum() - counts.sum()
            return counts
        weights = np.outer(heights, widths).ravel()
        return np.asarray(np.bincount(self.small.ravel(), weights, classes), np.float64)


class Pipeline:
    """A package's model, ready to judge images of width x height pixels."""

    def __init__(self, manifest: Manifest, graph: Graph, threads: int = 0) -> None:
        """Make ready; `threads` are those that OpenCV may resize with, one for each core if 0."""
        self._manifest = manifest
        self._stage = manifest.stage
        self._graph = graph
        self._resize = resizer(self._stage.interpolation, threads)
        colours = b"".join(bytes.fromhex(one.hex_color[1:]) for one in manifest.classes)
        # One item a colour: NumPy looks up items, and three bytes each by each take it four times as long.
        self._palette = np.frombuffer(colours, f"V{CHANNELS}")
        self._spread: dict[tuple[int, int, int, int], Spread] = {}

    def warm_up(self) -> float:
        """Judge a grey image of the real shape until the runtime has settled; return the slower time in seconds.

        Raises:
            PackageRefused: the model's outputs are not what the manifest promises.

        """
        width, height = self._manifest.image_size
        grey = np.full((height, width, 3), 128, np.uint8)
        slowest = 0.0
        for _ in range(WARM_UPS):
            begin = time.monotonic()
            try:
                self.judge(grey)
            except InferenceFailed as error:
                raise PackageRefused(f"The model failed its warm-up: {error.cause or error}") from None
            slowest = max(slowest, time.monotonic() - begin)
        return slowest

    def judge(self, pixels: NDArray[np.uint8]) -> tuple[Verdict, ClassMap | None]:
        """Return the verdict on an RGB image of height x width x 3 (uint8), and its class map if the model has one.

        Raises:
            InferenceFailed: the model failed, or gave something that is no verdict.

        """
        height, width, _ = pixels.shape
        if (width, height) != self._stage.input_size:
            reading = self._graph.read(self._resize(pixels, *self._stage.input_size))
        else:
            reading = self._graph.read(pixels)
        class_map = None
        if (small := reading.class_map) is not None:
            class_map = ClassMap(small, self._spread_over(small.shape[1], small.shape[0], width, height))
        return self._decide(self._score(reading.score), class_map, width * height)

    def paint(self, class_map: ClassMap, target: NDArray[np.uint8]) -> None:
        """Fill `target`, height x width x 3 (uint8), with each pixel's class colour."""
        if class_map.only_background:
            target.fill(WHITE)
            return
        small, spread = class_map.small, class_map.spread
        marked = np.flatnonzero(small.any(axis=1))
        band = slice(marked[0], marked[-1] + 1)
        # mode="clip" lets NumPy write into the target itself; the indices are in range anyway.
        colours = np.take(self._palette, small[band]).view(np.uint8)
        np.take(colours, spread.bytes, axis=1, out=spread.canvas[band], mode="clip")
        np.take(spread.canvas, spread.rows, axis=0, out=target.reshape(target.shape[0], -1), mode="clip")
        spread.canvas[band].fill(WHITE)

    def _score(self, score: float) -> np.float32:
        """Return the anomaly score, calibrated where the stage says how; a stage without classes is never calibrated."""
        if self._stage.calibration:
            score = calibrate(score, self._stage.calibration)
        if not math.isfinite(score):
            raise InferenceFailed(
                f"The model gave the score {score}, which is no number to compare; its weights may be damaged."
            )
        return np.float32(score)

    def _spread_over(self, small_width: int, small_height: int, width: int, height: int) -> Spread:
        """Return how a small map is spread over an image; kept for the next call."""
        key = small_width, small_height, width, height
        if key not in self._spread:
            between = self._stage.mask_size or (width, height)
            self._spread = {key: Spread((small_width, small_height), between, (width, height))}
        return self._spread[key]

    def _decide(self, score: np.float32, class_map: ClassMap | None, pixels: int) -> tuple[Verdict, ClassMap | None]:
        threshold = self._stage.threshold
        anomalous = is_anomalous(score, threshold)
        anomalies: tuple[AnomalyArea, ...] = ()
        if class_map is not None:
            counts = class_map.counts(len(self._manifest.classes))
            present = np.flatnonzero(counts)
            anomalies = tuple(
                AnomalyArea(
                    self._manifest.classes[one].name, float(counts[one]) / pixels, self._manifest.classes[one].hex_color
                )
                for one in present
            )
            if score <= 1 and self._stage.classification_logic and self._stage.seg_normal_ids:
                mask_anomalous = not set(present.tolist()) <= set(self._stage.seg_normal_ids)
                anomalous = combine(self._stage.classification_logic, anomalous, mask_anomalous)
        return Verdict(
            is_anomalous=anomalous,
            confidence=confidence(score, anomalous),
            score=float(np.clip(score, 0, 1)),
            threshold=threshold,
            anomalies=anomalies,
        ), class_map


def is_anomalous(score: np.float32, threshold: float) -> bool:
    """Return whether a score counts as anomalous: compared in float32, both rounded to 4 decimals."""
    return bool(np.round(np.float32(score), 4) >= np.round(np.float32(threshold), 4))


def confidence(score: np.float32, anomalous: bool) -> float:
    """Return the confidence 0..1 in a verdict: the clipped score, or 1 less it when the image is normal."""
    clipped = np.clip(np.float32(score), np.float32(0), np.float32(1))
    return float(clipped if anomalous else np.float32(1) - clipped)


def calibrate(score: float, by: Calibration) -> float:
    """Return the calibrated score 1 / (1 + exp(scaling * s + shift)), s = score / max_val_score if that exceeds 1."""
    if by.max_val_score > 1:
        score /= by.max_val_score
    # tanh's form of the logistic function cannot overflow.
    return 0.5 * (1 - math.tanh(0.5 * (by.scaling * score + by.shift)))


def combine(logic: str, class_anomalous: bool, mask_anomalous: bool) -> bool:
    """Return the verdict that `classification_logic` makes of the two heads' verdicts."""
    if logic == "seg_head":
        return mask_anomalous
    if logic == "cls_and_seg":
        return class_anomalous and mask_anomalous
    if logic == "cls_or_seg":
        return class_anomalous or mask_anomalous
    return class_anomalous
