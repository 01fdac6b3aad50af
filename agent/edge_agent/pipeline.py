"""An image to a verdict: pre-process, run, read score and class map, all by the rules of the package's manifest.

The rules are those of the `mochi` models of Amazon Lookout for Vision.
"""

import math
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_agent.backends import Session
from edge_agent.errors import InferenceFailed, PackageRefused
from edge_agent.jobs import AnomalyArea, Verdict
from edge_agent.manifest import Calibration, Manifest, Stage
from edge_agent.resize import nearest_indices, resizer

# Mean and standard deviation of ImageNet's channels on a 0..1 scale, as torchvision documents them.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
WARM_UPS = 2


@dataclass(frozen=True)
class ClassMap:
    """The class of every pixel: small indices h x w (uint8), and which of its rows and columns each pixel takes."""

    small: NDArray[np.uint8]
    rows: NDArray[np.intp]
    columns: NDArray[np.intp]

    def counts(self, classes: int) -> NDArray[np.float64]:
        """Return the number of pixels of each class, without spreading the small map over the image."""
        heights = np.bincount(self.rows, minlength=self.small.shape[0])
        widths = np.bincount(self.columns, minlength=self.small.shape[1])
        weights = np.outer(heights, widths).ravel()
        # Sums of weights are float64; whole numbers of pixels are exact in it.
        return np.asarray(np.bincount(self.small.ravel(), weights, classes), np.float64)


class Pipeline:
    """A package's model, ready to judge images of width x height pixels."""

    def __init__(self, manifest: Manifest, session: Session) -> None:
        self._manifest = manifest
        self._stage = manifest.stage
        self._session = session
        self._resize = resizer(self._stage.interpolation)
        width, height = self._stage.input_size
        self._planes = np.empty((3, height, width), np.uint8)
        self._tensor = np.empty((1, 3, height, width), np.float32)
        self._scale, self._shift = _normalisation(self._stage)
        self._palette = np.array(
            [tuple(bytes.fromhex(one.hex_color[1:])) for one in manifest.classes], np.uint8
        ).reshape(-1, 3)
        self._spread: dict[tuple[int, int, int, int], tuple[NDArray[np.intp], NDArray[np.intp]]] = {}

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
        logits, scores = self._read(self._session.run(self._preprocess(pixels)))
        score = self._score(logits, scores)
        class_map = None
        if logits is not None:
            class_map = self._class_map(logits, pixels.shape[1], pixels.shape[0])
        return self._decide(score, class_map, pixels.shape[0] * pixels.shape[1])

    def paint(self, class_map: ClassMap, target: NDArray[np.uint8]) -> None:
        """Fill `target`, height x width x 3 (uint8), with each pixel's class colour."""
        coloured = np.take(self._palette[class_map.small], class_map.columns, axis=1)
        rows = coloured.reshape(coloured.shape[0], -1)
        # mode="clip" lets NumPy write into the target itself; the indices are in range anyway.
        np.take(rows, class_map.rows, axis=0, out=target.reshape(target.shape[0], -1), mode="clip")

    def _preprocess(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the network's input, 1x3xHxW (float32), which is overwritten by the next call."""
        width, height = self._stage.input_size
        if pixels.shape[:2] != (height, width):
            pixels = self._resize(pixels, width, height)
        np.copyto(self._planes, pixels.transpose(2, 0, 1))
        tensor = self._tensor[0]
        np.multiply(self._planes, self._scale, out=tensor)
        np.add(tensor, self._shift, out=tensor)
        return self._tensor

    def _read(
        self, outputs: list[NDArray[np.float32]]
    ) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]:
        """Return the mask logits CxHxW and the class scores K, each None where the model has no such head."""
        stage = self._stage
        wanted = (["mask logits 1xCxHxW"] if stage.segmentation else []) + (
            ["class scores 1xK"] if stage.classification else []
        )
        shapes = ", ".join("x".join(map(str, output.shape)) for output in outputs)
        if len(outputs) != len(wanted):
            raise InferenceFailed(f"The model's outputs are {shapes}; the manifest promises {' and '.join(wanted)}.")
        logits = outputs[0] if stage.segmentation else None
        scores = outputs[-1] if stage.classification else None
        if logits is not None and (logits.ndim != 4 or logits.shape[:2] != (1, len(self._manifest.classes))):
            raise InferenceFailed(
                f"The model's outputs are {shapes}; for {len(self._manifest.classes)} pixel classes the mask logits must be "
                f"1x{len(self._manifest.classes)}xHxW."
            )
        if scores is not None and (
            scores.ndim != 2 or scores.shape[0] != 1 or max(stage.class_normal_ids) >= scores.shape[1]
        ):
            raise InferenceFailed(
                f"The model's outputs are {shapes}; with class_normal_ids {list(stage.class_normal_ids)} the class scores "
                "must be 1xK with a channel for each."
            )
        return (None if logits is None else logits[0]), (None if scores is None else scores[0])

    def _score(self, logits: NDArray[np.float32] | None, scores: NDArray[np.float32] | None) -> np.float32:
        """Return the anomaly score: of the anomalous classes, calibrated, or of the mask where there are no classes."""
        if scores is not None:
            anomalous = [one for one in range(len(scores)) if one not in self._stage.class_normal_ids]
            score = float(scores[anomalous].sum())
            if self._stage.calibration:
                score = calibrate(score, self._stage.calibration)
        else:
            assert logits is not None  # a stage has at least one head
            score = float(logits.mean(dtype=np.float64))
        if not math.isfinite(score):
            raise InferenceFailed(
                f"The model gave the score {score}, which is no number to compare; its weights may be damaged."
            )
        return np.float32(score)

    def _class_map(self, logits: NDArray[np.float32], width: int, height: int) -> ClassMap:
        if np.isnan(logits.min()):  # the minimum of anything with a NaN is NaN
            raise InferenceFailed("The model gave mask logits that are no numbers; its weights may be damaged.")
        if self._stage.seg_recall_bias:
            bias = np.full((len(logits), 1, 1), self._stage.seg_recall_bias, np.float32)
            bias[list(self._stage.seg_normal_ids)] = 0
            logits = logits + bias
        small = logits.argmax(axis=0).astype(np.uint8)
        return ClassMap(small, *self._indices(small.shape[1], small.shape[0], width, height))

    def _indices(
        self, small_width: int, small_height: int, width: int, height: int
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return which row and column of the small map each row and column of the image takes; kept for the next call."""
        key = small_width, small_height, width, height
        if key not in self._spread:
            between = self._stage.mask_size or (width, height)
            rows = nearest_indices(small_height, between[1])[nearest_indices(between[1], height)]
            columns = nearest_indices(small_width, between[0])[nearest_indices(between[0], width)]
            self._spread = {key: (rows, columns)}
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


def _normalisation(stage: Stage) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return scale and shift of each channel, 3x1x1, such that pixel * scale + shift is the network's input."""
    unit = 1 / 255 if stage.image_range_scale else 1.0
    mean, std = (MEAN, STD) if stage.normalize else ((0.0,) * 3, (1.0,) * 3)
    scale = np.array([unit / one for one in std], np.float32)
    shift = np.array([-one / other for one, other in zip(mean, std, strict=True)], np.float32)
    return scale.reshape(3, 1, 1), shift.reshape(3, 1, 1)
