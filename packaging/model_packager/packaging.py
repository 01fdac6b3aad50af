"""A packaging job's work: import, convert, compile, compare, measure, write, lay out; each step is a module of its own."""

import hashlib
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from edge_agent import backends, block, graphs, packages
from edge_agent.classes import clash
from edge_agent.errors import PackageRefused, shown
from edge_agent.jobs import SessionOptions
from edge_agent.manifest import Manifest
from edge_agent.pipeline import Pipeline
from model_packager import (
    accelerated,
    component,
    fusing,
    importers,
    measuring,
    network,
    onnx_files,
    optimising,
    parity,
    request,
    torchscript,
    writing,
)
from model_packager.destinations import Destination
from model_packager.errors import PackagingRefused
from model_packager.importers.source import parse
from model_packager.network import Imported
from model_packager.optimising import Integers
from model_packager.parity import Images, Report, Tolerance
from model_packager.request import JobRequest
from model_packager.targets import DEVICES, instruction_flags

ARN = "arn:aws:lookoutvision:local:000000000000:model/{project}/{version}"

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Options:
    """How a job compiles and compares; `images` and `calibration` are folders, None makes noise."""

    images: Path | None
    calibration: Path | None
    precision: str
    integers: Integers
    tolerance: Tolerance
    any_image_size: bool
    colours: Mapping[str, str]
    source: importers.Options


def run(order: Mapping[str, Any], work: Path, destination: Destination, progress: Progress) -> Mapping[str, object]:
    """Do a job; return what came of it.

    Args:
        order: `request` (the original's document), `output`, `source` and `options`, as `read_options` takes them.
        work: a folder for temporary files, which the caller removes.
        destination: where the component goes.
        progress: is told each step and the fraction 0..1 that is done.

    Raises:
        PackagingRefused: the job cannot be done; the text says why and what to do.

    """
    try:
        return _run(order, work.absolute(), destination, progress)
    except PackageRefused as refusal:  # what the agent's own code refuses, as where OpenCV is missing
        raise PackagingRefused(str(refusal)) from None


def _run(order: Mapping[str, Any], work: Path, destination: Destination, progress: Progress) -> Mapping[str, object]:
    asked = request.from_document(order["request"], order["output"])
    options = read_options(order.get("options") or {})
    if destination.taken(asked.component_name, asked.component_version):
        raise PackagingRefused(
            f"Component {asked.component_name} version {asked.component_version} exists already in {order['output']}; give "
            "another --component-version."
        )
    progress("Reading the source", 0.02)
    imported = importers.load(Path(order["source"]).absolute(), options.source, work)
    parsed = parse(imported.manifest)
    _check_colours(options.colours, parsed)
    if options.any_image_size and parsed.stage.segmentation:
        raise PackagingRefused(
            "--any-image-size is for classification models; a mask needs images of the training size."
        )
    images, calibration = Images(options.images, parsed), Images(options.calibration, parsed)
    if options.precision == optimising.INT8:
        _check_images(images, calibration)
    if options.precision == optimising.FP16:
        imported = replace(imported, notes=(*imported.notes, optimising.FP16_NOTE))
    path, readings = _as_onnx(imported, options, work, progress)
    model = onnx_files.load(path)
    progress("Compiling the graph", 0.4)
    for_gpu = asked.target.accelerated
    fused = fusing.fuse(model, parsed, imported.conventions, accelerated=for_gpu)
    source = _source(imported, model, readings, parsed)
    optimised = _optimise(fused, calibration, options, work, progress, for_gpu=for_gpu)
    if for_gpu:
        optimised = accelerated.with_sizes(optimised)
        accelerated.check(optimised)
    compiled = bytes(optimised.SerializeToString(deterministic=True))
    progress(f"Comparing it with its source on {len(images)} images", 0.6)
    report = _compare(source, compiled, parsed, images, options)
    progress("Measuring memory and warm-up", 0.85)
    more = _block(asked, imported, options, report)
    measured = measuring.measure(_write(imported, compiled, asked, options, more, work))
    progress("Writing the component", 0.92)
    folder = _write(imported, compiled, asked, options, {**more, **measuring.stated(measured)}, work)
    out = work / "component"
    told = {
        "Source": f"{imported.kind} {imported.name}",
        "Notes": list(imported.notes),
        "Parity": report.as_json(),
        "Measured": dict(measured),
    }
    result = component.lay_out(folder, out, asked, destination, told)
    place = destination.publish(out, asked.component_name, asked.component_version, asked.job_name)
    return {**result, "Output": place}


def _check_colours(colours: Mapping[str, str], parsed: Manifest) -> None:
    named = [one.name for one in parsed.classes][1:]
    for name, colour in colours.items():
        if name not in named:
            raise PackagingRefused(
                f"--color names the class {shown(name)}; this model's are: {', '.join(named) or 'none, it makes no mask'}."
            )
        if not re.fullmatch("#[0-9a-fA-F]{6}", colour):
            raise PackagingRefused(f"--color gives {shown(name)} the colour {shown(colour)}; write it as #RRGGBB.")
    chosen = [replace(one, hex_color=colours.get(one.name, one.hex_color).upper()) for one in parsed.classes[1:]]
    if same := clash([*parsed.classes[:1], *chosen]):
        raise PackagingRefused(
            f"With --color the classes {shown(same[0].name)} and {shown(same[1].name)} would have one colour, "
            f"{same[0].hex_color}, and no mask could tell them apart; give another one."
        )


def read_options(told: Mapping[str, Any]) -> Options:
    """Return the options of a job's order, a JSON object that the command line makes."""
    precision = str(told.get("precision") or optimising.FP32)
    default = parity.TOLERANCES[precision]
    integers = Integers()
    return Options(
        # Each stands in for the other: what there is of real images is better than noise.
        images=_path(told.get("images") or told.get("calibration")),
        calibration=_path(told.get("calibration") or told.get("images")),
        precision=precision,
        integers=Integers(
            told.get("int8_weights") or integers.weights,
            tuple(told.get("int8_operators") or ()),
            tuple(told.get("int8_exclude") or ()),
        ),
        tolerance=Tolerance(
            _fraction(told, "score_tolerance", default.score), _fraction(told, "mask_tolerance", default.mask)
        ),
        any_image_size=bool(told.get("any_image_size")),
        colours=dict(told.get("colours") or {}),
        source=importers.Options(
            manifest=_path(told.get("manifest")),
            model=_path(told.get("model")),
            image_size=_size(told.get("image_size")),
            interpolation=told.get("interpolation"),
            threshold=told.get("threshold"),
            pixel_threshold=told.get("pixel_threshold"),
            classes=tuple(told.get("classes") or ()),
        ),
    )


def _path(value: object) -> Path | None:
    return Path(str(value)).absolute() if value else None


def _fraction(told: Mapping[str, Any], key: str, default: float) -> float:
    value = default if told.get(key) is None else float(told[key])
    if not 0 <= value <= 1:  # nothing is above a tolerance that is no number
        raise PackagingRefused(f"--{key.replace('_', '-')} is {value}; it must be from 0 to 1.")
    return value


def _size(value: Any) -> tuple[int, int] | None:
    return (int(value[0]), int(value[1])) if value else None


def _check_images(images: Images, calibration: Images) -> None:
    """Refuse int8 without real images: too few to measure ranges on, or none to find out on what it costs."""
    for found in (images, calibration):
        if found.noise or len(found) < optimising.FEWEST_CALIBRATION_IMAGES:
            raise PackagingRefused(
                f"--precision int8 needs at least {optimising.FEWEST_CALIBRATION_IMAGES} images to calibrate on, and as many "
                f"to compare on; {found.folder or 'no folder'} has {0 if found.noise else len(found)}. Give one with --images."
            )


def _as_onnx(
    imported: Imported, options: Options, work: Path, progress: Progress
) -> tuple[Path, list[graphs.Reading] | None]:
    """Return the model as an ONNX file; with what the source itself says of the images, where it is TorchScript."""
    if not imported.torchscript:
        return imported.model, None
    progress("Converting TorchScript", 0.05)
    return torchscript.convert(imported.model, imported.manifest, options.images, work)


def _source(
    imported: Imported, model: onnx.ModelProto, readings: list[graphs.Reading] | None, parsed: Manifest
) -> Pipeline:
    """Return the source as it judges by itself."""
    if readings is not None:
        return Pipeline(parsed, parity.Recorded(readings))
    names = tuple(one.name for one in model.graph.output)
    try:
        session = backends.open_session(packages.ModelFiles(model.SerializeToString()), SessionOptions())
    except PackageRefused as refusal:
        raise PackagingRefused(f"{imported.model.name}: {refusal}") from None
    adapted = network.Adapted(session, names, parsed, imported.conventions)
    return Pipeline(parsed, graphs.NetworkGraph(parsed, adapted))


def _optimise(
    fused: onnx.ModelProto, calibration: Images, options: Options, work: Path, progress: Progress, *, for_gpu: bool
) -> onnx.ModelProto:
    compiled = optimising.fold(fused, work)
    if options.precision == optimising.FP16:
        compiled = optimising.to_fp16(compiled)
    elif options.precision == optimising.INT8:
        progress(f"Calibrating on {len(calibration)} images", 0.45)
        integers = replace(options.integers, symmetric=for_gpu)
        compiled = optimising.to_int8(compiled, calibration.of_input_size(), integers, work)
    return compiled


def _compare(source: Pipeline, compiled: bytes, parsed: Manifest, images: Images, options: Options) -> Report:
    """Return how the source and the compiled graph agree; refuse a graph that does not, or that does not run."""
    way_out = "Check the source; nothing was written."
    if options.precision != optimising.FP32:
        way_out = "Use --precision fp32."
    # The digests of the package itself are checked at the end; here the graph is run as it will be in the worker.
    try:
        session = backends.open_session(packages.ModelFiles(compiled), SessionOptions())
    except PackageRefused as refusal:
        raise PackagingRefused(f"The {options.precision} package does not load: {refusal} {way_out}") from None
    try:
        report = parity.compare(
            source, Pipeline(parsed, graphs.CompiledGraph(parsed, session)), images, options.tolerance
        )
    except parity.NoVerdict as failure:
        raise PackagingRefused(f"The {options.precision} package does not run: {failure} {way_out}") from None
    if report.complaint:
        raise PackagingRefused(
            f"The {options.precision} package does not agree with its source: {report.complaint}. {way_out}"
        )
    return report


def _block(asked: JobRequest, imported: Imported, options: Options, report: Report) -> dict[str, Any]:
    """Return what the package block says besides names, files and classes."""
    target = asked.target
    row = DEVICES.get(target.device)
    flags = instruction_flags(asked.compiler_options)
    compiler = dict(asked.compiler_options) or ({"gpu-code": row.gpu_code} if row else {})
    return {
        "model_arn": ARN.format(project=asked.project_name, version=asked.model_version),
        "any_image_size": options.any_image_size,
        "target": {
            "os": target.os,
            "arch": target.arch,
            **({"accelerator": target.accelerator} if target.accelerator else {}),
            **({"device": target.device} if target.device else {}),
            **({"cpu_flags": sorted(flags)} if flags else {}),
            **({"compiler_options": compiler} if compiler else {}),
        },
        "graph": block.COMPILED,
        "precision": options.precision,
        "parity": report.as_json(),
        "made_from": {"kind": imported.kind, "sha256": hashlib.sha256(imported.model.read_bytes()).hexdigest()},
    }


def _write(
    imported: Imported, compiled: bytes, asked: JobRequest, options: Options, more: Mapping[str, Any], work: Path
) -> Path:
    """Write the package into the folder for temporary files, in place of one that is there; return its folder."""
    folder = work / "package"
    shutil.rmtree(folder, ignore_errors=True)
    writing.write(
        folder,
        imported.manifest,
        compiled,
        asked.component_name,
        asked.component_version,
        colours=options.colours,
        more=more,
    )
    return folder
