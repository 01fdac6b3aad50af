"""A recipe's dependencies: their types, and ranges that both nuclei understand."""

import re
from collections.abc import Sequence

from edge_agent.errors import shown
from model_packager import lint_nodes as nodes
from model_packager.lint_findings import BOTH, JAVA, LITE, Spot
from model_packager.request import AGENT_COMPONENT

TYPES = ("HARD", "SOFT")
# Nucleus lite makes no unit of these, so their type is nothing to it.
NUCLEI = ("aws.greengrass.Nucleus", "aws.greengrass.NucleusLite")
_AWS = "aws.greengrass."

_NUMBER = "[0-9]{1,9}"
_END = r"(?:-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?"
_FULL = rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}{_END}"
_PART = rf"(?:{_NUMBER}|[xX*])"
_PARTIAL = rf"v?{_PART}(?:\.{_PART}(?:\.{_PART}{_END})?)?"
_COMPARATOR = rf"(?:[<>]=?|=|\^|~)? ?{_PARTIAL}"
_RANGE = re.compile(rf"{_COMPARATOR}(?: {_COMPARATOR})*|{_PARTIAL} - {_PARTIAL}")
_LITE_COMPARATOR = re.compile(rf"(?:[<>]=?|=)?{_FULL}")
_SHORT = re.compile(rf"([\^~]?) ?v?({_NUMBER})(?:\.({_NUMBER}|[xX*]))?(?:\.({_NUMBER}|[xX*]))?")
_EXAMPLE = ">=1.3.0 <2.0.0"


def check(dependencies: Spot, *, runs: bool) -> frozenset[str]:
    """Check what a component depends on, and return the names; `runs` says whether it has a startup or run step."""
    names = set()
    for name, dependency in dependencies.entries():
        names.add(name)
        keys = dependency.keys(("VersionRequirement", "DependencyType"), needed=("VersionRequirement",))
        if "VersionRequirement" in keys:
            _check_requirement(keys["VersionRequirement"])
        if "DependencyType" in keys:
            _check_type(keys["DependencyType"], name, runs)
        elif isinstance(dependency.node, nodes.Mapping) and name not in NUCLEI:
            kind = "SOFT" if name == AGENT_COMPONENT else "HARD"
            dependency.report(
                "dependency-type-missing",
                "Nucleus lite takes a dependency without DependencyType for none, and the Java nucleus for HARD; add "
                f"`DependencyType: {kind}`.",
                LITE,
            )
    return frozenset(names)


def _check_type(spot: Spot, name: str, runs: bool) -> None:
    kind = spot.text()
    if kind is None:
        return
    if kind not in TYPES:
        right = kind.upper() if kind.upper() in TYPES else "HARD or SOFT"
        spot.report("dependency-type", f"{shown(kind)} is no type of dependency; write {right}.")
    elif name == AGENT_COMPONENT and kind == "HARD":
        spot.report(
            "agent-hard",
            "When the agent's process is killed or fails to start at first, nucleus lite stops what depends HARD on it "
            "for good; write SOFT.",
            LITE,
        )
    elif kind == "SOFT" and runs and name != AGENT_COMPONENT and not name.startswith(_AWS):
        spot.report(
            "soft-order",
            "The Java nucleus may start this component before a SOFT dependency; write HARD if it needs it at its "
            "start, as a client needs its model.",
            JAVA,
        )


def _check_requirement(spot: Spot) -> None:
    requirement = spot.text()
    if requirement is None:
        return
    # Runs of spaces are one, so that no expression has to try them all.
    ranges = [" ".join(one.split()) for one in requirement.split("||")]
    if not all(_RANGE.fullmatch(one) for one in ranges):
        hint = "separate the parts by a space" if "," in requirement else "write a range"
        spot.report(
            "version-requirement",
            f"{shown(requirement)} is no version requirement to any nucleus; {hint}, as in `{_EXAMPLE}`.",
            BOTH,
        )
    elif not all(_LITE_COMPARATOR.fullmatch(one) for one in requirement.split(" ")):
        spot.report(
            "version-range-lite",
            f"On a local deployment no version meets {shown(requirement)} to nucleus lite, which knows >=, >, <=, < and "
            f"= before x.y.z, with one space between two of them; write `{_plain(ranges) or _EXAMPLE}`.",
            LITE,
        )


def _plain(ranges: Sequence[str]) -> str | None:
    """Return what one of npm's short ranges means in comparisons, where that is simple."""
    if len(ranges) != 1:
        return None
    if ranges[0] in {"*", "x", "X"}:
        return ">=0.0.0"
    spaced = re.sub(r"([<>=]) (?=[0-9v])", r"\1", ranges[0])
    if all(_LITE_COMPARATOR.fullmatch(one) for one in spaced.split(" ")):
        return spaced
    found = _SHORT.fullmatch(ranges[0])
    if not found:
        return None
    given = [int(one) for one in found.groups()[1:] if one and one.isdecimal()]
    low = [*given, 0, 0][:3]
    # A caret keeps the first number that is not 0, a tilde the minor, and what was left out is free.
    if found[1] == "^":
        kept = next((place for place, number in enumerate(given) if number), len(given) - 1)
    else:
        kept = min(len(given) - 1, 1)
    high = [*low[:kept], low[kept] + 1, 0, 0][:3]
    return f">={'.'.join(map(str, low))} <{'.'.join(map(str, high))}"
