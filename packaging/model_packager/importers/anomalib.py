"""(e) An ONNX export of anomalib 2.x: one file or two, with or without post-processing, with or without a map.

Outputs: https://anomalib.readthedocs.io/en/latest/markdown/guides/reference/data/dataclasses/generic.html (InferenceBatch)
"""

import math
from pathlib import Path

import onnx
from onnx import numpy_helper

from edge_agent.errors import shown
from model_packager import network, onnx_files, writing
from model_packager.errors import PackagingRefused
from model_packager.importers.source import Options, Source
from model_packager.network import ANOMALIB, Conventions, Imported

KIND = "anomalib export"
TAKES = {"image_size", "interpolation", "threshold", "pixel_threshold", "classes"}
SCORE, LABEL, MAP, MASK = "pred_score", "pred_label", "anomaly_map", "pred_mask"
# Scores and maps are normalised so that the threshold is here, when post-processing is part of the graph.
NORMALISED_THRESHOLD = 0.5
INTERPOLATION = "bilinear-antialias"
CLASSES = ("background", "anomaly")


def claims(source: Source) -> bool:
    """Return whether the one ONNX model has an output pred_score."""
    model = source.onnx
    return model is not None and SCORE in _outputs(model)


def load(source: Source, options: Options) -> Imported:
    """Return the export with a manifest made of what the caller says.

    Raises:
        PackagingRefused: the batch is frozen, or image size or threshold are missing.

    """
    model = source.onnx
    assert model is not None  # it was claimed
    loaded = onnx_files.load(model)
    names = [one.name for one in loaded.graph.output]
    network_size = _network_size(loaded, source.name)
    image_size = options.image_size or (None if network_size else _inner_size(loaded))
    if image_size is None:
        told = (
            f"takes images of {network_size[0]}x{network_size[1]} only" if network_size else "takes images of any size"
        )
        raise PackagingRefused(
            f"{source.name} {told}, and does not say which size the camera's images have. Give it with "
            "--image-size WIDTHxHEIGHT."
        )
    normalised = LABEL in names or MASK in names
    threshold = NORMALISED_THRESHOLD if normalised and options.threshold is None else options.threshold
    if threshold is None:
        raise PackagingRefused(
            f"{source.name} was exported without post-processing: its scores are not normalised and its threshold is not in "
            "it. Export it with post-processing, or give the threshold with --threshold NUMBER."
        )
    if options.pixel_threshold is not None and (MAP not in names or not math.isfinite(options.pixel_threshold)):
        raise PackagingRefused(
            f"--pixel-threshold must be a finite number, and the export must have an output {MAP}; {source.name} has "
            f"{shown(', '.join(names))}."
        )
    mask, limit = _mask(names, threshold, options, normalised=normalised)
    if options.classes and not mask:
        raise PackagingRefused(f"--classes names classes of pixels, and {source.name} has no map or mask of them.")
    classes = options.classes or CLASSES
    if len(classes) != len(CLASSES):
        raise PackagingRefused("--classes must name two classes for an export of anomalib's: background and anomaly.")
    content = writing.mochi_manifest(
        image_size,
        threshold,
        classes if mask else (),
        normalize=False,
        network_size=network_size or image_size,
        interpolation=options.interpolation or INTERPOLATION,
    )
    notes: tuple[str, ...] = () if normalised else ("Scores are not normalised: those above 1 are reported as 1.",)
    if options.image_size is None:
        notes += (f"No --image-size was given: {image_size[0]}x{image_size[1]} is the size that the graph resizes to.",)
    conventions = Conventions(ANOMALIB, mask=mask, score=SCORE, pixel_threshold=limit)
    return Imported(KIND, source.name, content, model, conventions=conventions, notes=notes)


def _mask(names: list[str], threshold: float, options: Options, *, normalised: bool) -> tuple[str, float | None]:
    """Return the output that the class map comes from, and the value from which on its pixels are anomalous."""
    if options.pixel_threshold is not None:
        return MAP, options.pixel_threshold
    if MASK in names:
        return MASK, None
    if MAP in names:
        return MAP, NORMALISED_THRESHOLD if normalised else threshold
    return "", None


def _outputs(path: Path) -> set[str]:
    try:
        return {one.name for one in onnx_files.parse(path).graph.output}
    except PackagingRefused:  # the importer that takes it says what is wrong
        return set()


def _network_size(model: onnx.ModelProto, name: str) -> tuple[int, int] | None:
    """Return the fixed width and height of the input, None when the graph takes any."""
    inputs = network.inputs_of(model.graph)
    shape = network.shape_of(inputs[0]) if len(inputs) == 1 else None
    if shape is None or len(shape) != 4 or shape[1] not in {0, 3}:
        raise PackagingRefused(f"{name} must have one input, batch x 3 x height x width.")
    if shape[0] not in {0, 1}:
        raise PackagingRefused(
            f"{name} takes batches of exactly {shape[0]} images: it was exported from a model that had seen a batch of that "
            "size. Export it again from a freshly loaded model, with a batch of 1."
        )
    return (shape[3], shape[2]) if shape[2] and shape[3] else None


def _inner_size(model: onnx.ModelProto) -> tuple[int, int] | None:
    """Return the width and height to which a graph of any input size resizes its images first, if that is written in it."""
    constants = {one.name: one for one in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            constants[node.output[0]] = node.attribute[0].t
    for node in model.graph.node:
        # Only that of the images: maps inside the network are resized, too.
        if node.op_type == "Resize" and node.input[0] == network.inputs_of(model.graph)[0].name:
            sizes = constants.get(node.input[3]) if len(node.input) == 4 else None
            if sizes is not None and list(sizes.dims) in ([2], [4]):
                height, width = numpy_helper.to_array(sizes)[-2:]
                return int(width), int(height)
    return None
