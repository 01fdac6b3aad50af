"""A model file and its manifest, put together; the manifest may say what of the network is not mochi's way.

It does so in one more object, `onnx`, which is for networks that are brought as ONNX:

    "onnx": {"class_scores": "probs", "mask_logits": "seg", "class_scores_are": "logits", "channels": "BGR",
             "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}

`class_scores` and `mask_logits` name outputs (default: in mochi's order), `class_scores_are` is "probabilities" (default)
or "logits", `channels` "RGB" (default) or "BGR"; `mean` and `std` are of R, G and B, on the scale that image_range_scale
gives, and win over `normalize`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_agent.errors import shown
from model_packager.errors import PackagingRefused
from model_packager.importers.source import ONNX
from model_packager.network import Conventions, Imported

OBJECT = "onnx"
KEYS = {"class_scores", "mask_logits", "class_scores_are", "channels", "mean", "std"}
# Beyond these no picture is normalised, and float32 could not hold what comes of it.
LARGEST_MEAN, LEAST_STD = 1e6, 1e-6


def pair(kind: str, name: str, content: Mapping[str, Any], model: Path) -> Imported:
    """Return a model file with a manifest's content; raise PackagingRefused.

    Args:
        kind: what the importer calls it.
        name: what its files are called.
        content: the manifest as `read_manifest` returns it.
        model: an ONNX file by its suffix, else TorchScript.

    """
    if not model.is_file():
        raise PackagingRefused(f"{model} does not exist, or is no file.")
    manifest = {key: value for key, value in content.items() if key != OBJECT}
    if model.suffix.lower() == ONNX:
        return Imported(kind, name, manifest, model, conventions=_conventions(content.get(OBJECT, {})))
    if OBJECT in content:
        raise PackagingRefused(
            f"The manifest has an object `{OBJECT}`, which is for networks in ONNX; {model.name} is none. Bring the network as "
            ".onnx, or take the object out."
        )
    return Imported(kind, name, manifest, model, torchscript=True)


def _conventions(told: object) -> Conventions:
    if not isinstance(told, dict):
        raise PackagingRefused(f"The manifest's `{OBJECT}` is not an object.")
    if unknown := sorted(set(told) - KEYS):
        raise PackagingRefused(
            f"The manifest's `{OBJECT}` has {shown(unknown[0])}; known are {', '.join(sorted(KEYS))}."
        )
    mean, std = _three(told, "mean"), _three(told, "std")
    if (mean is None) != (std is None):
        raise PackagingRefused(f"The manifest's `{OBJECT}` must have both mean and std, or neither.")
    if std and min(std) < LEAST_STD:
        raise PackagingRefused(f"The manifest's {OBJECT}.std must be {LEAST_STD:g} or more.")
    return Conventions(
        mask=_text(told, "mask_logits"),
        score=_text(told, "class_scores"),
        scores_are_logits=_choice(told, "class_scores_are", ("probabilities", "logits")) == "logits",
        bgr=_choice(told, "channels", ("RGB", "BGR")) == "BGR",
        mean=mean,
        std=std,
    )


def _text(told: dict[str, Any], key: str) -> str:
    value = told.get(key, "")
    if not isinstance(value, str):
        raise PackagingRefused(
            f"The manifest's {OBJECT}.{key} is {shown(str(value))}; it must be the name of an output."
        )
    return value


def _choice(told: dict[str, Any], key: str, known: tuple[str, ...]) -> str:
    value = told.get(key, known[0])
    if value not in known:
        raise PackagingRefused(
            f"The manifest's {OBJECT}.{key} is {shown(str(value))}; it must be {' or '.join(known)}."
        )
    return str(value)


def _three(told: dict[str, Any], key: str) -> tuple[float, float, float] | None:
    value = told.get(key)
    if value is None:
        return None
    if (
        not isinstance(value, list)
        or len(value) != 3
        or not all(isinstance(one, int | float) and not isinstance(one, bool) for one in value)
        or not all(-LARGEST_MEAN <= one <= LARGEST_MEAN for one in value)
    ):
        raise PackagingRefused(
            f"The manifest's {OBJECT}.{key} is {shown(str(value))}; it must be three numbers, of R, G and B, between "
            f"-{LARGEST_MEAN:g} and {LARGEST_MEAN:g}."
        )
    return float(value[0]), float(value[1]), float(value[2])
