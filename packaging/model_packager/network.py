"""What an importer brings: a network, how it is fed and read, and the manifest that its verdicts depend on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from edge_agent import graphs
from edge_agent.backends import Session
from edge_agent.errors import shown
from edge_agent.manifest import Manifest
from model_packager.errors import PackagingRefused

MOCHI = "mochi"
ANOMALIB = "anomalib"


@dataclass(frozen=True)
class Conventions:
    """How a network is fed and how its outputs are read.

    `kind` is "mochi" (mask logits 1xCxHxW and class scores 1xK, as far as the manifest's heads say) or "anomalib"
    (anomaly map or mask, and one score for the image). `mask` and `score` are names of outputs; empty ones are taken in
    mochi's order. The rest says what is not mochi's way: class scores that are logits, channels in the order BGR, a mean
    and deviation of the sidecar's own (of pixels on the scale that the manifest gives), and the value from which on a
    pixel of an anomaly map is anomalous (None: the output is a mask already).
    """

    kind: str = MOCHI
    mask: str = ""
    score: str = ""
    scores_are_logits: bool = False
    bgr: bool = False
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    pixel_threshold: float | None = None


@dataclass(frozen=True)
class Imported:
    """A model as a customer holds it; `model` is a TorchScript or an ONNX file, `notes` are for the job's report.

    `kind` is what it is, `name` what its files are called.
    """

    kind: str
    name: str
    manifest: Mapping[str, Any]
    model: Path
    torchscript: bool = False
    conventions: Conventions = field(default_factory=Conventions)
    notes: tuple[str, ...] = ()


def normalisation(manifest: Manifest, conventions: Conventions) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return scale and shift of each RGB channel, 3x1x1, such that pixel * scale + shift is what the network takes."""
    if conventions.mean is None or conventions.std is None:
        return graphs.normalisation(manifest.stage)
    unit = 1 / 255 if manifest.stage.image_range_scale else 1.0
    scale = np.array([unit / one for one in conventions.std], np.float32)
    shift = np.array([-one / other for one, other in zip(conventions.mean, conventions.std, strict=True)], np.float32)
    return scale.reshape(3, 1, 1), shift.reshape(3, 1, 1)


class Adapted:
    """A session that shows any network as the plain `mochi` network of its manifest, for the agent's uncompiled path.

    It is what compiled graphs are compared with, so it is written in NumPy, apart from how they are made.
    """

    def __init__(self, session: Session, names: tuple[str, ...], manifest: Manifest, conventions: Conventions) -> None:
        self.provider = session.provider
        self.input_dtype = session.input_dtype
        self._session = session
        self._names = names
        self._chosen = choose(names, manifest, conventions)
        self._conventions = conventions
        # The agent has normalised by the manifest's own rule; this undoes that and does the sidecar's.
        done_scale, done_shift = graphs.normalisation(manifest.stage)
        scale, shift = normalisation(manifest, conventions)
        self._scale, self._shift = scale / done_scale, shift - done_shift * (scale / done_scale)

    def run(self, tensor: NDArray[Any]) -> list[NDArray[Any]]:
        """Return mask logits and class scores, as far as the manifest has these heads."""
        if self._conventions.mean is not None:
            tensor = (tensor * self._scale + self._shift).astype(np.float32)
        if self._conventions.bgr:
            tensor = np.ascontiguousarray(tensor[:, ::-1])
        outputs = dict(zip(self._names, self._session.run(tensor), strict=True))
        mask, score = (outputs[name] if name else None for name in self._chosen)
        if self._conventions.kind == ANOMALIB:
            return self._anomalib(mask, score)
        if score is not None and self._conventions.scores_are_logits:
            powers = np.exp(score - score.max(axis=1, keepdims=True))
            score = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
        return [one for one in (mask, score) if one is not None]

    def _anomalib(self, mask: NDArray[Any] | None, score: NDArray[Any] | None) -> list[NDArray[Any]]:
        assert score is not None  # an anomalib export without a score is refused at import
        found: list[NDArray[Any]] = []
        if mask is not None:
            limit = self._conventions.pixel_threshold
            labels = mask.astype(bool) if limit is None else mask >= np.float32(limit)
            anomalous = labels.reshape(1, 1, *mask.shape[-2:])
            found.append(np.concatenate([~anomalous, anomalous], axis=1).astype(np.float32))
            if limit is not None and np.isnan(mask).any():
                found[0][:] = np.nan
        number = np.float32(score.reshape(-1)[0])
        return [*found, np.array([[number, 1 - number]], np.float32)]


def choose(names: tuple[str, ...], manifest: Manifest, conventions: Conventions) -> tuple[str, str]:
    """Return the names of the outputs for mask and score, empty where the manifest has no such head.

    They are those that the conventions name; the others are taken in mochi's order, "" where there are too few.
    """
    others = iter([one for one in names if one not in {conventions.mask, conventions.score}])
    mask = (conventions.mask or next(others, "")) if manifest.stage.segmentation else ""
    score = (conventions.score or next(others, "")) if manifest.stage.classification else ""
    return mask, score


def inputs_of(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs that have no value of their own; old exporters list the weights among them."""
    weights = {one.name for one in graph.initializer}
    return [one for one in graph.input if one.name not in weights]


def input_of(graph: onnx.GraphProto, manifest: Manifest) -> str:
    """Return the name of the network's one input, whose shape must admit 1x3xHxW."""
    inputs = inputs_of(graph)
    if len(inputs) != 1:
        raise PackagingRefused(
            f"The model has {len(inputs)} inputs ({shown(', '.join(one.name for one in inputs))}); it must have one, the image. "
            "Export it with the others as constants."
        )
    kind = _kind(inputs[0])
    if kind != "float":
        raise PackagingRefused(
            f"The model's input {inputs[0].name!r:.80} is {kind}; it must be float, of 32 bits. Export it so (--precision "
            "makes it smaller afterwards)."
        )
    width, height = manifest.stage.input_size
    wanted = [1, 3, height, width]
    shape = shape_of(inputs[0])
    if shape is None or not _admits(shape, wanted):
        raise PackagingRefused(
            f"The model's input is {_told(shape)}; it must be {_told(wanted)}. {_why_not(shape, wanted)}"
        )
    return str(inputs[0].name)


def _why_not(shape: list[int] | None, wanted: list[int]) -> str:
    if shape is None or len(shape) != len(wanted):
        return "Export it with the image as batch x channels x height x width."
    if shape[0] not in {0, 1}:
        return "Its batch is frozen: export it again with a batch of 1."
    if shape[1] not in {0, 3}:
        return "Export it for colour images, channels first."
    return "The sizes in the manifest are not this model's."


def outputs_of(graph: onnx.GraphProto, manifest: Manifest, conventions: Conventions) -> tuple[str, str]:
    """Return the names of the outputs that are the mask's and the score's, "" where there is no such head."""
    there = {one.name: one for one in graph.output}
    mask, score = choose(tuple(there), manifest, conventions)
    heads = {"segmentation": (conventions.mask, mask), "classification": (conventions.score, score)}
    heads = {head: names for head, names in heads.items() if getattr(manifest.stage, head)}
    if len(there) != len(heads) and not all(named for named, _ in heads.values()):
        raise PackagingRefused(
            f"The model has {len(there)} outputs ({shown(', '.join(there))}); by its manifest it must have one for each head, "
            f"{len(heads)}. Name them in the manifest's `onnx` object (mask_logits, class_scores), or export it again."
        )
    for head, (_, name) in heads.items():
        if name not in there:
            raise PackagingRefused(
                f"The model has no output {name!r:.80} for the {head} head; its outputs are {shown(', '.join(there))}."
            )
    if mask and conventions.kind != ANOMALIB:
        shape, classes = shape_of(there[mask]), len(manifest.classes)
        if _kind(there[mask]) != "float" or (shape is not None and not _admits(shape, [1, classes, 0, 0])):
            raise PackagingRefused(
                f"The model's output {mask!r:.80} is {_kind(there[mask])} {_told(shape)}; for {classes} pixel classes it must be "
                f"mask logits, float 1x{classes}xHxW."
            )
    if score and _kind(there[score]) != "float":
        raise PackagingRefused(
            f"The model's output {score!r:.80} is {_kind(there[score])}; the score must be float, of 32 bits."
        )
    return mask, score


def class_count(graph: onnx.GraphProto, score: str, manifest: Manifest, conventions: Conventions) -> int:
    """Return the number of class scores; 1 for a score that is one already."""
    if conventions.kind == ANOMALIB:
        return 1
    shape = next(shape_of(one) for one in graph.output if one.name == score)
    if shape is None or len(shape) != 2 or shape[0] not in {0, 1} or not shape[1]:
        raise PackagingRefused(
            f"The model's output {score!r:.80} is {_told(shape)}; it must be class scores 1xK, with K written in the model."
        )
    if max(manifest.stage.class_normal_ids) >= shape[1]:
        raise PackagingRefused(
            f"class_normal_ids is {list(manifest.stage.class_normal_ids)}; the model has {shape[1]} class scores."
        )
    return shape[1]


def _kind(value: onnx.ValueInfoProto) -> str:
    """Return the type of a value's numbers as ONNX calls it, or what it is instead of a tensor."""
    if value.type.HasField("tensor_type"):
        return TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
    return (value.type.WhichOneof("value") or "of no type").removesuffix("_type")


def shape_of(value: onnx.ValueInfoProto) -> list[int] | None:
    """Return a tensor's sizes, 0 where any is possible; None where not even their number is known."""
    tensor = value.type.tensor_type
    return [one.dim_value for one in tensor.shape.dim] if tensor.HasField("shape") else None


def _admits(shape: list[int], wanted: list[int]) -> bool:
    """Return whether sizes can be those wanted; 0 is any."""
    return len(shape) == len(wanted) and all(
        one == other or 0 in {one, other} for one, other in zip(shape, wanted, strict=True)
    )


def _told(shape: list[int] | None) -> str:
    return "of unknown shape" if shape is None else "x".join(str(one or "any") for one in shape) or "one number"
