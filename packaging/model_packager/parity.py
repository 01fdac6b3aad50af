"""The proof that nothing was lost: the source's verdicts against the compiled package's, on the same images."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.errors import InferenceFailed
from edge_agent.graphs import Reading
from edge_agent.images import NotAnImage, read_image
from edge_agent.manifest import Manifest
from edge_agent.pipeline import ClassMap, Pipeline
from edge_agent.resize import resizer
from model_packager.errors import PackagingRefused

Pixels = NDArray[np.uint8]

IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
NOISE_IMAGES = 8
# A report is part of the package, whose bytes must not depend on the last digits of a sum.
STEP = 1e-6
MOST_NAMES = 20


@dataclass(frozen=True)
class Tolerance:
    """What may differ: the anomaly score by so much, and in the mask of any image the class of so many of its pixels.

    Both are fractions 0..1. A verdict may never differ.
    """

    score: float
    mask: float


# float32 against float32 differs in the order of sums; float16 has 11 bits, and int8 is what the gate is for.
TOLERANCES = {"fp32": Tolerance(1e-3, 1e-3), "fp16": Tolerance(1e-2, 1e-2), "int8": Tolerance(5e-2, 2e-2)}


@dataclass(frozen=True)
class Report:
    """How compiled and source agree on `images` images (made of noise, if `noise`).

    `largest_score_difference` 0..1; `largest_mask_difference` is the fraction of pixels of another class in the worst
    image, None without a mask; `flipped` names images with another verdict, 20 at most.
    """

    images: int
    noise: bool
    largest_score_difference: float
    largest_mask_difference: float | None
    verdict_flips: int
    flipped: tuple[str, ...]
    score_tolerance: float
    mask_tolerance: float

    def as_json(self) -> dict[str, Any]:
        """Return the report as it is written into a package."""
        return {**asdict(self), "flipped": list(self.flipped)}

    @property
    def complaint(self) -> str:
        """Return what is above tolerance, a sentence; empty when nothing is."""
        found = []
        if self.verdict_flips:
            found.append(f"{self.verdict_flips} of {self.images} verdicts differ ({', '.join(self.flipped[:3])})")
        if self.largest_score_difference > self.score_tolerance:
            found.append(f"a score differs by {self.largest_score_difference:.4g} (tolerance {self.score_tolerance:g})")
        if (self.largest_mask_difference or 0) > self.mask_tolerance:
            found.append(
                f"a mask differs in {self.largest_mask_difference:.2%} of its pixels (tolerance {self.mask_tolerance:.2%})"
            )
        return "; ".join(found)


class NoVerdict(Exception):
    """The compiled graph fails on an image; the text says on which and why."""


class Images:
    """The images that a job compares and calibrates with, of the size that the model's requests have."""

    def __init__(self, folder: Path | None, manifest: Manifest) -> None:
        """Find the images of a folder, or make noise when there is none; raise PackagingRefused when it holds none."""
        self._manifest = manifest
        self.folder = folder
        self.noise = folder is None
        if folder is None:
            self.names = [f"noise-{number}" for number in range(NOISE_IMAGES)]
            return
        try:
            self._paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        except OSError as error:
            raise PackagingRefused(f"--images {folder} cannot be read: {error.strerror}.") from None
        if not self._paths:
            raise PackagingRefused(f"--images {folder} has no image in it.")
        self.names = [path.name for path in self._paths]

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Pixels]:
        """Yield each image, height x width x 3 (uint8), one at a time."""
        return (self._noise(number) if self.noise else self._read(self._paths[number]) for number in range(len(self)))

    def of_input_size(self) -> Iterator[Pixels]:
        """Yield each image as the network gets it: resized by the manifest's rule."""
        resize = resizer(self._manifest.stage.interpolation)
        width, height = self._manifest.stage.input_size
        for pixels in self:
            same = pixels.shape[:2] == (height, width)
            yield pixels if same else resize(pixels, width, height)

    def _noise(self, number: int) -> Pixels:
        """Return noise of several grains and contrasts, since white noise looks all the same to a network."""
        random = np.random.default_rng(number)
        width, height = self._manifest.image_size
        grain = 4 ** (number % 4)
        small = random.integers(0, 256, (-(-height // grain), -(-width // grain), 3), np.uint8)
        pixels = small.repeat(grain, axis=0).repeat(grain, axis=1)[:height, :width]
        contrast, level = random.uniform(0.2, 1), random.uniform(0, 255)
        return np.asarray(np.clip(level + contrast * (pixels - 127.5), 0, 255), np.uint8)

    def _read(self, path: Path) -> Pixels:
        try:
            pixels = read_image(path)
        except NotAnImage as refusal:
            raise PackagingRefused(f"{refusal}; mend it, or take it out of its folder.") from None
        width, height = self._manifest.image_size
        if pixels.shape[:2] != (height, width):
            pixels = resizer(self._manifest.stage.interpolation)(pixels, width, height)
        return pixels


class Recorded:
    """A graph whose readings were taken before, elsewhere; they are given out again in the same order."""

    def __init__(self, readings: Sequence[Reading]) -> None:
        self._readings = iter(readings)

    def read(self, pixels: Pixels) -> Reading:  # noqa: ARG002  (the protocol's)
        """Return the next reading."""
        return next(self._readings)


def compare(source: Pipeline, compiled: Pipeline, images: Images, tolerance: Tolerance) -> Report:
    """Return how the two agree on the images.

    Raises:
        PackagingRefused: the source gives no verdict at all on an image.
        NoVerdict: the source does, and the compiled graph does not.

    """
    scores, masks, flipped = [0.0], [], []
    for name, pixels in zip(images.names, images, strict=True):
        try:
            verdict, class_map = source.judge(pixels)
        except InferenceFailed as error:
            raise PackagingRefused(
                f"The source gives no verdict on {name}: {error.cause or error} Nothing can be compared with it."
            ) from None
        try:
            other, other_map = compiled.judge(pixels)
        except InferenceFailed as error:
            raise NoVerdict(f"On {name} it gives no verdict, and its source does. {error.cause or error}") from None
        scores.append(abs(verdict.score - other.score))
        if verdict.is_anomalous != other.is_anomalous:
            flipped.append(name)
        if class_map is not None and other_map is not None:
            masks.append(_difference(class_map, other_map))
    return Report(
        images=len(images),
        noise=images.noise,
        largest_score_difference=_up(max(scores)),
        largest_mask_difference=_up(max(masks)) if masks else None,
        verdict_flips=len(flipped),
        flipped=tuple(flipped[:MOST_NAMES]),
        score_tolerance=tolerance.score,
        mask_tolerance=tolerance.mask,
    )


def _difference(one: ClassMap, other: ClassMap) -> float:
    spread = [each.small[np.ix_(each.spread.rows, each.spread.columns)] for each in (one, other)]
    return float((spread[0] != spread[1]).mean())


def _up(value: float) -> float:
    """Round up to a whole step, so that a report never says less than was seen."""
    return round(math.ceil(round(value / STEP, 3)) * STEP, 6)
