"""Recipes as each nucleus reads them: the manifest that matches, its lifecycle, and what stands in for variables.

Sources: Greengrass's component recipe reference; of nucleus lite its recipe2unit, its recipe-runner, and its
docs/RECIPE_SUPPORT_CHANGES.md.
"""

import json
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

JAVA, LITE = "java", "lite"
RUNTIMES = {JAVA: "aws_nucleus_java", LITE: "aws_nucleus_lite"}
STEPS = ("install", "startup", "run")
ARCHITECTURE = {"aarch64": "aarch64", "arm64": "aarch64"}.get(platform.machine(), "amd64")
# Of one condition of a version requirement.
CONDITION = re.compile(r"(>=|<=|>|<|=)?([0-9]+\.[0-9]+\.[0-9]+)")
JAVA_VARIABLE = re.compile(r"\{([^{}:\s]+):([^{}]+)\}")
SHELL_SPECIAL = '"\\$`'


class Refused(Exception):
    """A nucleus cannot take a recipe or a deployment; the text says why."""


@dataclass(frozen=True)
class Step:
    """A step of a lifecycle: its script and its environment still have their variables; `timeout` is in seconds."""

    script: str
    environment: Mapping[str, str]
    timeout: float | None = None
    privileged: bool = False


@dataclass(frozen=True)
class Artifact:
    """A file of a component."""

    name: str
    unarchive: bool
    digest: str | None
    read: str
    execute: str


@dataclass(frozen=True)
class Dependency:
    """What a component asks of another one."""

    requirement: str
    hard: bool


@dataclass(frozen=True)
class Component:
    """A version of a component, as a nucleus understood its recipe."""

    name: str
    version: str
    defaults: Mapping[str, Any]
    dependencies: Mapping[str, Dependency]
    steps: Mapping[str, Step]
    artifacts: tuple[Artifact, ...]


def read(path: Path, kind: str) -> Component:
    """Return what a nucleus understands of a recipe; raise Refused where it cannot take it."""
    recipe = _Reader(kind, yaml.safe_load(path.read_bytes()))
    chosen = next((one for one in recipe.get("Manifests", []) if recipe.matches(one)), None)
    if chosen is None:
        raise Refused(f"{path.name}: no manifest matches this device")
    configuration = recipe.below(recipe.content, "ComponentConfiguration")
    return Component(
        recipe.get("ComponentName"),
        str(recipe.get("ComponentVersion")),
        recipe.below(configuration, "DefaultConfiguration"),
        {
            name: Dependency(
                recipe.of(one, "VersionRequirement", ""), recipe.of(one, "DependencyType", "HARD") == "HARD"
            )
            for name, one in recipe.below(recipe.content, "ComponentDependencies").items()
            # Without a type it is none to nucleus lite.
            if kind == JAVA or "DependencyType" in one
        },
        recipe.steps(chosen),
        tuple(recipe.artifact(one) for one in recipe.of(chosen, "Artifacts", [])),
    )


def fits(version: str, requirement: str) -> bool:
    """Return whether a version fulfils a requirement, as `>=1.3.0 <2.0.0`; raise Refused for what no nucleus takes here."""
    for text in requirement.split():
        condition = CONDITION.fullmatch(text)
        if condition is None:
            raise Refused(f"the version requirement {text} cannot be resolved on a local deployment")
        have, bound = (tuple(map(int, one.split("."))) for one in (version, condition[2]))
        if not {">=": have >= bound, "<=": have <= bound, ">": have > bound, "<": have < bound}.get(
            condition[1] or "", have == bound
        ):
            return False
    return True


class _Reader:
    """Reads keys as a nucleus does: any case will do for the Java nucleus, only the right one for nucleus lite."""

    def __init__(self, kind: str, content: Any) -> None:
        self.kind = kind
        self.content = content

    def of(self, mapping: Mapping[str, Any], key: str, default: Any = None) -> Any:
        """Return the value of a key."""
        if self.kind == LITE:
            return mapping.get(key, default)
        found = [value for name, value in mapping.items() if name.lower() == key.lower()]
        return found[-1] if found else default

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of one of the recipe's own keys."""
        return self.of(self.content, key, default)

    def below(self, mapping: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        """Return the mapping that is the value of a key, an empty one where there is none."""
        return self.of(mapping, key) or {}

    def matches(self, manifest: Mapping[str, Any]) -> bool:
        """Return whether a manifest is for this device."""
        wanted = self.below(manifest, "Platform")
        if self.kind == LITE and "runtime" not in wanted:
            return False
        device = {"os": "linux", "architecture": ARCHITECTURE, "runtime": RUNTIMES[self.kind]}
        return all(value in {"*", device.get(key.lower())} for key, value in wanted.items())

    def steps(self, manifest: Mapping[str, Any]) -> dict[str, Step]:
        """Return the steps of the lifecycle that counts for a manifest; raise Refused where one cannot be run."""
        lifecycle = self.below(manifest, "Lifecycle") or self._shared(manifest)
        common = self.below(lifecycle, "Setenv")
        steps = {}
        for name in STEPS:
            step = self.of(lifecycle, name)
            if isinstance(step, str):
                steps[name] = Step(step, common)
            elif step is not None:
                steps[name] = self._step(name, step, common)
        if self.kind == LITE and not lifecycle:
            raise Refused("nucleus lite supports no lifecycle without a step")
        return steps

    def _shared(self, manifest: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what a manifest without a lifecycle of its own takes of the one that manifests share."""
        shared = self.get("Lifecycle") or {}
        selections = self.of(manifest, "Selections", ["all"])
        for selection in selections:
            if selection in shared and (self.kind == JAVA or selection in {"all", "linux"}):
                return shared[selection]
        return {} if self.kind == LITE else shared

    def _step(self, name: str, step: Mapping[str, Any], common: Mapping[str, str]) -> Step:
        script = self.of(step, "Script")
        if script is None:
            raise Refused(f"the step {name} has no script")
        timeout = self.of(step, "Timeout")
        return Step(
            script,
            {**common, **self.below(step, "Setenv")},
            None if timeout is None else float(timeout),
            str(self.of(step, "RequiresPrivilege", "false")).lower() == "true",
        )

    def artifact(self, one: Mapping[str, Any]) -> Artifact:
        """Return what is said of an artifact."""
        uri = self.of(one, "Uri")
        if uri is None:
            raise Refused("an artifact has no Uri")
        permission = self.below(one, "Permission")
        return Artifact(
            uri.rpartition("/")[2],
            self.of(one, "Unarchive", "NONE") == "ZIP",
            self.of(one, "Digest"),
            self.of(permission, "Read", "OWNER"),
            self.of(permission, "Execute", "NONE"),
        )


@dataclass(frozen=True)
class Variables:
    """What stands in for the variables of a component's scripts."""

    values: Mapping[str, str]
    configuration: Mapping[str, Any]

    def java(self, text: str) -> str:
        """Return a text as the Java nucleus fills it in: what it does not know stays."""
        return JAVA_VARIABLE.sub(lambda found: str(self._value(*found.groups(), found[0])), text)

    def lite(self, text: str, quote: str) -> tuple[str, bool]:
        """Return a text as nucleus lite fills it in, and whether it came to its end.

        Each { begins a variable, and one that it does not know ends its work. `quote` is what stands around the text, so
        that no value can end it.
        """
        done = []
        rest = text
        while "{" in rest:
            before, _, rest = rest.partition("{")
            done.append(before.replace("'", "'\\''") if quote == "'" else before)
            name, closed, rest = rest.partition("}")
            value = self._value(*name.split(":", 1), None) if closed and ":" in name else None
            if value is None:
                return "".join(done), False
            done.append(_escaped(value, quote) if name.startswith("configuration:") else value)
        done.append(rest.replace("'", "'\\''") if quote == "'" else rest)
        return "".join(done), True

    def _value(self, namespace: str, key: str, unknown: str | None) -> str | None:
        if namespace != "configuration":
            return self.values.get(f"{namespace}:{key}", unknown)
        value: Any = self.configuration
        for part in filter(None, key.split("/")):
            if not isinstance(value, Mapping) or part not in value:
                return unknown
            value = value[part]
        return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _escaped(value: str, quote: str) -> str:
    if quote == "'":
        return value.replace("'", "'\\''")
    return "".join(f"\\{one}" if one in SHELL_SPECIAL else one for one in value)


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with another one merged into it."""
    both = dict(below)
    for key, value in above.items():
        old = both.get(key)
        both[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return both


def ordered(components: Mapping[str, Component]) -> Iterator[Component]:
    """Yield components, each after all that it depends on."""
    done: set[str] = set()

    def walk(one: Component) -> Iterator[Component]:
        if one.name not in done:
            done.add(one.name)
            for name in one.dependencies:
                if name in components:
                    yield from walk(components[name])
            yield one

    for one in components.values():
        yield from walk(one)
