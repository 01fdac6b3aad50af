"""Linting a recipe: what the Java nucleus and nucleus lite would refuse in it, ignore, or take otherwise than meant."""

import re
from collections.abc import Mapping

from edge_agent.block import NAME
from edge_agent.errors import shown
from model_packager import lint_artifacts as artifacts
from model_packager import lint_dependencies as dependencies
from model_packager import lint_lifecycles as lifecycles
from model_packager import lint_nodes as nodes
from model_packager import lint_platforms as platforms
from model_packager.lint_findings import BOTH, JAVA, LITE, Finding, Findings, Nucleus, Spot, nearest
from model_packager.lint_lifecycles import Lifecycle
from model_packager.lint_scripts import CONFIGURATION, VARIABLES, Context
from model_packager.recipe import AGENT_VERSIONS, FORMAT_VERSION, LONGEST, SCRIPT
from model_packager.request import AGENT_COMPONENT

__all__ = ["FARTHEST", "Finding", "Nucleus", "lint", "lint_bytes"]

# What nucleus lite reads a recipe into.
LONGEST_LITE = 8196
# A file that is longer than this is not looked at.
FARTHEST = 4 * LONGEST
NUCLEI: Mapping[str, frozenset[str]] = {"both": BOTH, "java": JAVA, "lite": LITE}
GENERIC = "aws.greengrass.generic"
TYPES = (GENERIC, "aws.greengrass.lambda", "aws.greengrass.plugin", "aws.greengrass.nucleus")
_NEEDED = ("RecipeFormatVersion", "ComponentName", "ComponentVersion", "Manifests")
_KEYS = (
    *_NEEDED,
    "ComponentType",
    "ComponentDescription",
    "ComponentPublisher",
    "ComponentSource",
    "ComponentConfiguration",
    "ComponentDependencies",
    "Lifecycle",
)
_MANIFEST_KEYS = ("Name", "Platform", "Lifecycle", "Selections", "Artifacts")
_PART = "(?:0|[1-9][0-9]{0,5})"
_PRE = "(?:0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_VERSION = re.compile(rf"{_PART}\.{_PART}\.{_PART}(?:-{_PRE}(?:\.{_PRE})*)?(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?")
_LONGEST_VERSION = 64
_FIRST, _END = (tuple(map(int, one.split("."))) for one in re.findall("[0-9.]+", AGENT_VERSIONS))
_MARK = "\ufeff"


def lint_bytes(data: bytes, *, nucleus: Nucleus = "both") -> list[Finding]:
    """Return what is wrong with the bytes of a recipe's file, which must be UTF-8."""
    found = Findings(NUCLEI[nucleus])
    if len(data) > FARTHEST:
        _check_size(len(data), found)
        return found.all
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found.add("not-utf8", "", line, "The file is not UTF-8 from here on; save it as UTF-8.")
        return found.all
    return lint(text, nucleus=nucleus)


def lint(text: str, *, nucleus: Nucleus = "both") -> list[Finding]:
    """Return what is wrong with a recipe in YAML or JSON, in the order of its lines.

    Only what concerns the nucleus is told: `java`, `lite`, or either of `both`.
    """
    found = Findings(NUCLEI[nucleus])
    size = len(text.encode(errors="surrogatepass"))
    _check_size(size, found)
    if size > FARTHEST:
        return found.all
    if text.startswith(_MARK):
        found.add("byte-order-mark", "", 1, "The file begins with a byte order mark; save it without one.")
    try:
        node, faults = nodes.read(text.removeprefix(_MARK))
    except nodes.Unreadable as unreadable:
        node, faults = None, [unreadable.fault]
    for fault in faults:
        found.add(fault.rule, "", fault.line, fault.sentence)
    if node is not None:
        _check_recipe(Spot(node, "", node.line, found))
    return sorted(found.all, key=lambda one: (one.line or 0, one.place))


def _check_size(size: int, found: Findings) -> None:
    if size > FARTHEST:
        told = (
            f"The file has more than {FARTHEST} bytes and Greengrass takes {LONGEST}; name a recipe, if this is none."
        )
        found.add("size", "", None, told)
    elif size > LONGEST:
        told = f"The recipe has {size} bytes and Greengrass takes {LONGEST}; move its scripts into artifacts."
        found.add("size", "", None, told)
    elif size > LONGEST_LITE:
        told = f"The recipe has {size} bytes and nucleus lite reads {LONGEST_LITE}; move its scripts into artifacts."
        found.add("size-lite", "", None, told, LITE)


def _check_recipe(recipe: Spot) -> None:
    given = {key.text.lower() for key, _ in recipe.node.entries} if isinstance(recipe.node, nodes.Mapping) else set()
    if not given & {key.lower() for key in _KEYS}:
        recipe.report(
            "no-recipe",
            f"This is no recipe: there is none of its keys, such as {', '.join(_NEEDED)}; name another file.",
        )
        return
    keys = recipe.keys(_KEYS, needed=_NEEDED)
    _check_identity(recipe, keys)
    configuration = _check_configuration(keys.get("ComponentConfiguration"))
    manifests = [(one, one.keys(_MANIFEST_KEYS)) for one in keys["Manifests"].items()] if "Manifests" in keys else []
    needs = keys.get("ComponentDependencies")
    runs = _runs(keys, manifests)
    context = Context(configuration, dependencies.check(needs, runs=runs) if needs else frozenset())
    # A model's component has no process, or one that registers the model and ends.
    brings_model = AGENT_COMPONENT in context.dependencies and (not runs or _registers(recipe))
    _check_manifests(keys, manifests, context, of_model=brings_model)
    _check_everywhere(recipe)


def _check_identity(recipe: Spot, keys: Mapping[str, Spot]) -> None:
    """Check what the component is called, and what it is."""
    version = keys["RecipeFormatVersion"].text() if "RecipeFormatVersion" in keys else None
    if version not in {None, FORMAT_VERSION}:
        told = f"{shown(version or '')} is no version of the format; write `{FORMAT_VERSION}`."
        keys["RecipeFormatVersion"].report("format-version", told)
    name = keys["ComponentName"].text() if "ComponentName" in keys else None
    if name is not None and not NAME.fullmatch(name):
        told = f"{shown(name)} is no name of a component; use 1 to 128 letters, digits and characters of -_."
        keys["ComponentName"].report("component-name", told)
    version = keys["ComponentVersion"].text() if "ComponentVersion" in keys else None
    if version is not None and (len(version) > _LONGEST_VERSION or not _VERSION.fullmatch(version)):
        told = 'write three numbers of at most 6 digits each, as in "1.0.0", in quotes'
        keys["ComponentVersion"].report("component-version", f"{shown(version)} is no semantic version; {told}.")
    elif version is not None and name == AGENT_COMPONENT:
        _check_agent_version(keys["ComponentVersion"], version)
    kind = keys["ComponentType"].text() if "ComponentType" in keys else None
    if kind is not None and kind != GENERIC:
        right = nearest(kind, TYPES, 0.8) if kind not in TYPES else None
        told = f"write `{right}`" if right else "remove the key, which Greengrass fills in"
        known = (
            f"Nucleus lite runs generic components only, and no {kind}"
            if kind in TYPES
            else f"{shown(kind)} is no type"
        )
        keys["ComponentType"].report("component-type", f"{known}; {told}.", LITE if kind in TYPES else BOTH)
    for key in ("ComponentPublisher", "ComponentSource"):
        if key in keys:
            keys[key].text()
    description = keys["ComponentDescription"].text() if "ComponentDescription" in keys else ""
    if description == "":
        keys.get("ComponentDescription", recipe).report(
            "description-missing",
            "Nucleus lite writes a systemd unit whose line after the description is lost where there is none; add "
            "`ComponentDescription`.",
            LITE,
        )
    elif description is not None and "\n" in description.rstrip("\n"):
        told = (
            "Nucleus lite writes the description into a systemd unit, which a line break breaks; write it in one line."
        )
        keys["ComponentDescription"].report("description-lines", told, LITE)


def _check_agent_version(spot: Spot, version: str) -> None:
    """Say so where what depends on the agent would not find it; a pre-release comes before its version."""
    release, early, _ = version.partition("+")[0].partition("-")
    numbers = tuple(map(int, release.split(".")))
    # One of 2.0.0 comes before that, but is nothing to who asks for less.
    if not _FIRST <= numbers < _END or (early and numbers == _FIRST):
        told = f"Models and clients ask for an agent {AGENT_VERSIONS}, and {shown(version)} is none; write one that is."
        spot.report("agent-version", told)


def _check_configuration(spot: Spot | None) -> nodes.Node:
    """Check the configuration, and return its defaults."""
    defaults = spot.keys(("DefaultConfiguration",)).get("DefaultConfiguration") if spot else None
    if defaults is None:
        return nodes.Mapping(0)
    defaults.entries()  # to say so where it is no object
    for value in defaults.walk():
        node = value.node
        if not isinstance(node, nodes.Scalar):
            continue
        if node.kind == "number":
            told = f"{shown(node.text)} may reach the component as another number, as in 1.0 for 1; put it into double quotes."
            value.report("configuration-number", told)
        if any(f"{{{one}" in node.text for one in (*VARIABLES, CONFIGURATION)):
            told = "Recipe variables stay as they are in the configuration; use them in the lifecycle."
            value.report("configuration-variable", told)
    return defaults.node


def _runs(keys: Mapping[str, Spot], manifests: list[tuple[Spot, dict[str, Spot]]]) -> bool:
    """Return whether a component has a process of its own: a startup or run step, however spelt."""
    spots = [one["Lifecycle"] for _, one in manifests if "Lifecycle" in one]
    spots += [keys["Lifecycle"]] if "Lifecycle" in keys else []
    return any(
        key.text.lower() in {"run", "startup"}
        for spot in spots
        for below in spot.walk()
        if isinstance(below.node, nodes.Mapping)
        for key, _ in below.node.entries
    )


def _registers(recipe: Spot) -> bool:
    """Return whether anything in a recipe names the script with which our packager's components register models."""
    return any(isinstance(spot.node, nodes.Scalar) and SCRIPT.name in spot.node.text for spot in recipe.walk())


def _check_manifests(
    keys: Mapping[str, Spot], manifests: list[tuple[Spot, dict[str, Spot]]], context: Context, *, of_model: bool
) -> None:
    if "Manifests" in keys and isinstance(keys["Manifests"].node, nodes.Sequence) and not manifests:
        keys["Manifests"].report("no-manifest", "No device can take a recipe without a manifest; add one.")
    whole = keys.get("Lifecycle")
    served = platforms.serving(
        [platforms.check(one, parts.get("Platform")) for one, parts in manifests],
        keys["Manifests"].findings.asked if "Manifests" in keys else BOTH,
    )
    selections = {"all", *(name for _, parts in manifests for name in platforms.selected(parts))}
    shared = Lifecycle()
    if whole is not None:
        users = [nuclei for (_, parts), nuclei in zip(manifests, served, strict=True) if not _own(parts)]
        shared = lifecycles.check(whole.on(frozenset().union(*users) or BOTH), context, selections)
    for (manifest, parts), nuclei in zip(manifests, served, strict=True):
        reader = manifest.on(nuclei)
        if "Name" in parts:
            parts["Name"].text()
        for selection in parts["Selections"].items() if "Selections" in parts else ():
            selection.text()
        found = lifecycles.check(parts["Lifecycle"].on(nuclei), context) if "Lifecycle" in parts else Lifecycle()
        found = found if _own(parts) else shared
        _check_steps(reader, parts, whole, found)
        zips = artifacts.check(parts["Artifacts"].on(nuclei), of_model=of_model) if "Artifacts" in parts else []
        _check_zips(zips, "\n".join(found.texts))


def _own(manifest: Mapping[str, Spot]) -> bool:
    """Return whether a manifest has a lifecycle of its own; an empty one is none to both nuclei."""
    node = manifest["Lifecycle"].node if "Lifecycle" in manifest else None
    return node is not None and not (isinstance(node, nodes.Mapping) and not node.entries)


def _check_steps(manifest: Spot, parts: Mapping[str, Spot], whole: Spot | None, found: Lifecycle) -> None:
    """Say so where nucleus lite finds no step."""
    if "Lifecycle" in parts and not isinstance(parts["Lifecycle"].node, nodes.Mapping):
        return  # which was said, or is an alias
    if not found.steps & lifecycles.UNITS:
        told = "Nucleus lite refuses a component without a step; add one that does nothing, as `install: exit 0`."
        parts.get("Lifecycle", manifest).on(manifest.nuclei).report("empty-lifecycle", told, LITE)
    elif whole is not None and platforms.lifecycle_for_lite(parts, whole) is None:
        told = (
            "Nucleus lite takes from the global Lifecycle what is below `all` or a selected `linux` only; put it there."
        )
        whole.on(manifest.nuclei).report("global-lifecycle", told, LITE)


def _check_zips(zips: list[Spot], texts: str) -> None:
    if zips and f"{{{VARIABLES[1]}}}" in texts and f"{{{VARIABLES[0]}}}" not in texts:
        zips[0].report(
            "zip-local",
            "Nucleus lite does not unpack zips on a local deployment, so {artifacts:decompressedPath} is empty there; let "
            "the script fall back to the zip in {artifacts:path}.",
            LITE,
        )


def _check_everywhere(recipe: Spot) -> None:
    """Check what is a trap at every place."""
    said = {one.place for one in recipe.findings.all}
    for spot in recipe.walk():
        node = spot.node
        if isinstance(node, nodes.Scalar) and node.word and spot.place not in said:
            told = f"Some readers of YAML take {node.text} for a boolean; put it into double quotes, or write true or false."
            spot.report("yaml-word", told)
        if isinstance(node, nodes.Mapping):
            _check_duplicates(spot, node)


def _check_duplicates(spot: Spot, node: nodes.Mapping) -> None:
    seen: set[str] = set()
    for key, value in node.entries:
        if key.text in seen:
            told = "This key is here a second time: nucleus lite takes the first, and the Java nucleus the last; remove one."
            spot.child(key, value).report("duplicate-key", told)
        seen.add(key.text)
