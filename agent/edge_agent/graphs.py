"""What goes into a model's graph and what comes out: the network's own tensors, or a compiled graph's bitmap and verdict."""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_agent.backends import Session
from edge_agent.errors import InferenceFailed, PackageRefused
from edge_agent.manifest import Manifest, Stage

Pixels = NDArray[np.uint8]

# Mean and standard deviation of ImageNet's channels on a 0..1 scale, as torchvision documents them.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Reading:
    """What a graph says of an image: the score as it is before calibration, and the small class map h x w (uint8).

    `class_map` is None for a model without a segmentation head.
    """

    score: float
    class_map: NDArray[np.uint8] | None


class Graph(Protocol):
    """A model that reads images of the network's input size."""

    def read(self, pixels: Pixels) -> Reading:
        """Return what the model says of an RGB image, height x width x 3 (uint8), of the input size.

        Raises:
            InferenceFailed: the model failed, or gave something that is no verdict.

        """


def of(manifest: Manifest, session: Session) -> Graph:
    """Return the graph that a package's model is; raise PackageRefused when manifest and model contradict each other."""
    compiled = bool(manifest.block and manifest.block.compiled)
    wanted = np.dtype(np.uint8 if compiled else np.float32)
    if session.input_dtype != wanted:
        hint = (
            "" if compiled else "; a compiled model needs the package block in manifest.json that it was written with"
        )
        raise PackageRefused(f"The model's input is {session.input_dtype}; by manifest.json it is {wanted}{hint}.")
    return CompiledGraph(manifest, session) if compiled else NetworkGraph(manifest, session)


class CompiledGraph:
    """A graph with everything inside: packed bitmap 1xHxWx3 (uint8) in; class map, mean of the mask's logits, score out.

    Outputs in order: with a segmentation head `class_map` 1xhxw (uint8) and `mask_mean` (float32, one number); with a
    classification head `score` (float32, one number). Without a classification head the mean is the score.
    """

    def __init__(self, manifest: Manifest, session: Session) -> None:
        stage = manifest.stage
        self._maps = ["class_map uint8 1xHxW"] if stage.segmentation else []
        self._numbers = ["mask_mean float32 1"] if stage.segmentation else []
        self._numbers += ["score float32 1"] if stage.classification else []
        self._classes = len(manifest.classes)
        self._session = session

    def read(self, pixels: Pixels) -> Reading:
        """Return what the graph says of an image of the input size."""
        outputs = _of_numbers(self._session.run(np.ascontiguousarray(pixels)[None]))
        if not self._fit(outputs):
            told = ", ".join(f"{one.dtype} {'x'.join(map(str, one.shape))}" for one in outputs)
            promised = ", ".join([*self._maps, *self._numbers])
            raise InferenceFailed(f"The compiled model's outputs are {told}; by manifest.json they are {promised}.")
        score = float(outputs[-1].reshape(-1)[0])
        if not self._maps:
            return Reading(score, None)
        class_map = outputs[0][0]
        if math.isnan(outputs[1].reshape(-1)[0]):  # the mean of anything with a NaN is NaN
            raise InferenceFailed("The model gave mask logits that are no numbers; its weights may be damaged.")
        if class_map.max() >= self._classes:
            raise InferenceFailed(
                f"The model gave class {class_map.max()}; the manifest names {self._classes} classes."
            )
        return Reading(score, class_map)

    def _fit(self, outputs: list[NDArray[Any]]) -> bool:
        maps, numbers = outputs[: len(self._maps)], outputs[len(self._maps) :]
        return (
            (len(maps), len(numbers)) == (len(self._maps), len(self._numbers))
            and all(one.dtype == np.uint8 and one.ndim == 3 and len(one) == 1 and one.size for one in maps)
            and all(one.dtype == np.float32 and one.size == 1 for one in numbers)
        )


class NetworkGraph:
    """The network as it was trained: normalised tensor 1x3xHxW (float32) in; mask logits and class scores out."""

    def __init__(self, manifest: Manifest, session: Session) -> None:
        self._manifest = manifest
        self._stage = manifest.stage
        self._session = session
        width, height = self._stage.input_size
        self._tensor = np.empty((1, 3, height, width), np.float32)
        self._scale, self._shift = normalisation(self._stage)

    def read(self, pixels: Pixels) -> Reading:
        """Return what the network says of an image of the input size."""
        logits, scores = self._heads(_of_numbers(self._session.run(self._preprocess(pixels))))
        if scores is not None:
            anomalous = [one for one in range(len(scores)) if one not in self._stage.class_normal_ids]
            score = float(scores[anomalous].sum())
        else:
            assert logits is not None  # a stage has at least one head
            score = float(logits.mean(dtype=np.float64))
        return Reading(score, None if logits is None else self._class_map(logits))

    def _preprocess(self, pixels: Pixels) -> NDArray[np.float32]:
        """Return the network's input, 1x3xHxW (float32), which is overwritten by the next call."""
        tensor = self._tensor[0]
        np.copyto(tensor, pixels.transpose(2, 0, 1))
        np.multiply(tensor, self._scale, out=tensor)
        np.add(tensor, self._shift, out=tensor)
        return self._tensor

    def _heads(
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
        if logits is not None and (
            logits.ndim != 4 or logits.shape[:2] != (1, len(self._manifest.classes)) or not logits.size
        ):
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

    def _class_map(self, logits: NDArray[np.float32]) -> NDArray[np.uint8]:
        if np.isnan(logits.min()):  # the minimum of anything with a NaN is NaN
            raise InferenceFailed("The model gave mask logits that are no numbers; its weights may be damaged.")
        if self._stage.seg_recall_bias:
            bias = np.full((len(logits), 1, 1), self._stage.seg_recall_bias, np.float32)
            bias[list(self._stage.seg_normal_ids)] = 0
            logits = logits + bias
        small: NDArray[np.uint8] = logits.argmax(axis=0).astype(np.uint8)
        return small


def _of_numbers(outputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """Return a model's outputs; raise InferenceFailed when one is text, or a list, which ONNX knows, too."""
    for one in outputs:
        if not isinstance(one, np.ndarray) or one.dtype.kind not in "biuf":
            raise InferenceFailed("The model has an output that is no tensor of numbers.")
    return outputs


def normalisation(stage: Stage) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return scale and shift of each channel, 3x1x1, such that pixel * scale + shift is the network's input."""
    unit = 1 / 255 if stage.image_range_scale else 1.0
    mean, std = (MEAN, STD) if stage.normalize else ((0.0,) * 3, (1.0,) * 3)
    scale = np.array([unit / one for one in std], np.float32)
    shift = np.array([-one / other for one, other in zip(mean, std, strict=True)], np.float32)
    return scale.reshape(3, 1, 1), shift.reshape(3, 1, 1)
