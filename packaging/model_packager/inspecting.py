"""Looking at a finished package: what it is, and whether the agent would take it."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from edge_agent import manifest, packages
from edge_agent.errors import PackageRefused
from edge_agent.naming import COMPONENT_SUFFIX
from edge_agent.packages import Found, Package, Rules
from model_packager import archives, linting, measuring
from model_packager.errors import PackagingRefused

DEEPEST = 3
RECIPES = ("recipe.yaml", "recipe.json")
MOST_NAMES = 10
NAMES = {code: name for name, code in manifest.INTERPOLATIONS.items()}


@dataclass(frozen=True)
class Verified:
    """What was checked, each a sentence: what is in order, what is not, and what is to be said besides."""

    good: tuple[str, ...]
    bad: tuple[str, ...]
    notes: tuple[str, ...] = ()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Path]:
    """Yield the folder of the package at `path`: the folder itself, one below it, or that of a zip, unpacked meanwhile.

    Raises:
        PackagingRefused: there is no package, or more than one.

    """
    with tempfile.TemporaryDirectory(prefix="edge-agent-inspect-") as work:
        if path.is_file():
            # A component without a block has its name from its path: that of the folder that it would unpack to beside.
            folder = Path(work, *path.resolve().with_suffix("").parts[1:][-3:])
            folder.parent.mkdir(parents=True, exist_ok=True)
            archives.unpack(path, folder)
        elif path.is_dir():
            folder = path.resolve()
        else:
            raise PackagingRefused(f"{path} does not exist, or is no file and no folder.")
        found = list(packages.search(folder, _cannot_look, DEEPEST))
        if not found:
            raise PackagingRefused(f"{path} holds no model package, which is a manifest.json with a model_graph.")
        if len(found) > 1:
            listed = ", ".join(str(one.relative_to(folder)) for one in found[:MOST_NAMES])
            raise PackagingRefused(f"{path} holds {len(found)} model packages ({listed}); name one of them.")
        yield found[0]


def _cannot_look(error: OSError) -> None:
    raise PackagingRefused(f"{error.filename} cannot be read: {error.strerror}.")


def _look(folder: Path, rules: Rules) -> Found:
    """Look at a package as the agent does; what matters of its owner is that it is trusted there, not here."""
    uids = {path.lstat().st_uid for path in (folder, *folder.rglob("*"))}
    return packages.look(folder, folder, Rules({*uids, *rules.trusted_uids}, rules.strict_target, rules.any_target))


def verify(path: Path, *, any_target: bool, load: bool) -> Verified:
    """Check a package as the agent would on this device, and the recipes beside it as the nuclei would.

    Args:
        path: the package's folder, a folder above it, or its zip.
        any_target: whether packages for other devices pass.
        load: whether the model is loaded and run, too.

    Raises:
        PackagingRefused: there is no package to check.

    """
    with opened(path) as folder:
        checked = _check(folder, any_target=any_target, load=load)
        # A zip is unpacked elsewhere.
        linted = _lint_beside(path.resolve() if path.is_file() else folder)
    for one in linted:
        checked = Verified(checked.good + one.good, checked.bad + one.bad, checked.notes + one.notes)
    return checked


def _check(folder: Path, *, any_target: bool, load: bool) -> Verified:
    good, bad = [], []
    found = _look(folder, Rules(any_target=True))
    if found.package is None:
        return Verified((), (found.refusal,))
    try:
        packages.read_model(found.package)
    except PackageRefused as refusal:
        return Verified((), (str(refusal),))
    block = found.package.manifest.block
    files = "manifest.json can be read"
    if block:
        count = len(block.files)
        files = f"manifest.json and {'1 file' if count == 1 else f'{count} files'} are as they were written"
    good.append(f"{found.name} {found.version}: {files}.")
    here = found if any_target else _look(folder, Rules())
    notes = here.package.notes if here.package else ()
    if here.package is None:
        bad.append(here.refusal)
    elif load:
        try:
            measured = measuring.measure(folder)
        except PackagingRefused as refusal:
            bad.append(str(refusal))
        else:
            good.append(
                f"It loads and runs: {measured['peak_memory_bytes'] / 2**20:.0f} MiB of memory at most, warm-up "
                f"{measured['warm_up_seconds'] * 1000:.0f} ms."
            )
    return Verified(tuple(good), tuple(bad), notes)


def _lint_beside(package: Path) -> list[Verified]:
    """Lint the recipes beside a package, a folder or a zip, that has the name that packaging jobs give it."""
    if not package.name.removesuffix(".zip").endswith(COMPONENT_SUFFIX):
        return []
    return [_lint(path) for path in (package.with_name(name) for name in RECIPES) if path.is_file()]


def _lint(recipe: Path) -> Verified:
    try:
        with recipe.open("rb") as file:
            findings = linting.lint_bytes(file.read(linting.FARTHEST + 1))
    except OSError as error:
        return Verified((), (f"{recipe.name} cannot be read: {error.strerror}.",))
    told: dict[str, list[str]] = {"error": [], "warning": []}
    for one in findings:
        where = (recipe.name, f"line {one.line}" if one.line else "", one.place)
        told[one.severity].append(f"{', '.join(filter(None, where))}: {one.sentence}")
    good = (f"{recipe.name} has nothing that a nucleus would refuse or ignore.",)
    return Verified(() if told["error"] else good, tuple(told["error"]), tuple(told["warning"]))


def inspect(path: Path, *, nodes: bool = False) -> dict[str, Any]:
    """Return what a package says of itself, as one JSON object; with `nodes` also its operators that hold weights.

    Raises:
        PackagingRefused: there is no package, or it is not what it says.

    """
    with opened(path) as folder:
        found = _look(folder, Rules(any_target=True))
        if found.package is None:
            raise PackagingRefused(f"{path}: {found.refusal}")
        content = manifest.parse_json(packages.read_file(folder, manifest.FILE, most=manifest.LONGEST)) or {}
        told = _told(found, found.package, content.get("package") or {})
        if nodes:
            told["nodes"] = _nodes(found.package)
    return told


def _told(found: Found, package: Package, block: Mapping[str, Any]) -> dict[str, Any]:
    parsed = package.manifest
    stage = parsed.stage
    return {
        "component": found.name,
        "version": found.version,
        "model_arn": package.arn,
        "made_from": block.get("made_from"),
        "heads": [name for name in ("classification", "segmentation") if getattr(stage, name)],
        "threshold": stage.threshold,
        "image_size": list(parsed.image_size),
        "any_image_size": bool(block.get("any_image_size")),
        "network_size": list(stage.input_size),
        "interpolation": NAMES[stage.interpolation],
        "classes": [{"name": one.name, "hex_color": one.hex_color} for one in parsed.classes],
        "target": block.get("target"),
        "precision": block.get("precision"),
        "compiled": bool(parsed.block and parsed.block.compiled),
        "peak_memory_bytes": block.get("peak_memory_bytes"),
        "warm_up_seconds": block.get("warm_up_seconds"),
        "files": block.get("files"),
        "parity": block.get("parity"),
        "notes": list(package.notes),
    }


def _nodes(package: Package) -> list[dict[str, Any]]:
    try:
        graph = onnx.load_model_from_string(packages.read_model(package).graph).graph
    except PackageRefused as refusal:
        raise PackagingRefused(str(refusal)) from None
    except Exception:  # noqa: BLE001  (protobuf's own class of error depends on its implementation)
        raise PackagingRefused(f"{package.manifest.model_file} is not an ONNX model.") from None
    sizes = {one.name: tuple(one.dims) for one in graph.initializer}
    return [
        {
            "name": node.name,
            "operator": node.op_type,
            "weights": [list(sizes[one]) for one in node.input if one in sizes],
        }
        for node in graph.node
        if any(len(sizes.get(one, ())) > 1 for one in node.input)
    ]
