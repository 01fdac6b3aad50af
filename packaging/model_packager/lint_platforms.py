"""Which manifests a nucleus can ever take: their platforms, and the first that matches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edge_agent.errors import shown
from model_packager import lint_nodes as nodes
from model_packager.lint_findings import BOTH, LITE, Spot, nearest

ANY = "*"
SYSTEMS = ("linux", "windows", "darwin", ANY)
ARCHITECTURES = ("amd64", "aarch64", "arm", "x86", "riscv64", ANY)
RUNTIMES = (ANY, "aws_nucleus_lite")
_LITE_ONLY = "aws_nucleus_lite"
_OTHER_NAMES = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "x64": "amd64",
    "arm64": "aarch64",
    "armv8": "aarch64",
    "armhf": "arm",
    "armv7": "arm",
    "armv7l": "arm",
    "i386": "x86",
    "i686": "x86",
    "ubuntu": "linux",
    "debian": "linux",
    "macos": "darwin",
    "any": ANY,
    "all": ANY,
}
# Both nuclei take it for any system.
_ALL = "all"
_DETAIL = "architecture.detail"


@dataclass(frozen=True)
class Platform:
    """What a manifest asks of a device; `place` is where a runtime would stand, `runtime` None where there is none."""

    place: Spot
    given: bool
    values: Mapping[str, str]

    @property
    def runtime(self) -> str | None:
        """The runtime that is asked for."""
        return self.values.get("runtime")

    def for_linux(self) -> bool:
        """Return whether a device with Linux could match."""
        system = self.values.get("os", ANY)
        return system in {"linux", ANY, _ALL} or (system.startswith("/") and "linux" in system)

    def taken(self, nucleus: str) -> bool:
        """Return whether any device with this nucleus could take the manifest."""
        if nucleus == "java":
            return self.runtime != _LITE_ONLY
        return self.runtime in RUNTIMES and self.for_linux()

    def conditions(self, nucleus: str) -> frozenset[tuple[str, str]]:
        """Return what the nucleus compares; lite looks at nothing but the architecture on the systems it runs on."""
        ignored = {"runtime"} if nucleus == "java" else set(self.values) - {"architecture"}
        return frozenset(
            (key, value)
            for key, value in self.values.items()
            if key not in ignored and value != ANY and (key, value) != ("os", _ALL)
        )


def check(manifest: Spot, platform: Spot | None) -> Platform:
    """Check a manifest's platform, and return it."""
    if platform is None:
        return Platform(manifest, False, {})
    values = {}
    for name, spot in platform.entries():
        known = ("os", "architecture", "runtime", _DETAIL)
        near = nearest(name, known, 0.5) if "." not in name or name.lower() == _DETAIL else None
        if name not in known and near:
            spot.report("unknown-key", f"No device has the attribute {shown(name)}; write `{near}`.")
        elif name not in known:
            spot.report(
                "platform-attribute", f"Nucleus lite ignores the attribute {shown(name)}; use `architecture`.", LITE
            )
        value = spot.text()
        if value is not None:
            right = name if name in known else near or name
            values[right] = _checked(spot, right, value)
    return Platform(platform, True, values)


def _checked(spot: Spot, name: str, value: str) -> str:
    """Return a value as it ought to be; say so where it is not."""
    if name not in {"os", "architecture", "runtime"} or (name == "os" and value == _ALL):
        return value
    if name != "runtime" and len(value) > 1 and value.startswith("/") and value.endswith("/"):
        spot.report(
            "platform-regex",
            f"Nucleus lite need not know regular expressions, as {shown(value)} is one; write a manifest for each value.",
            LITE,
        )
        return value
    known = {"os": SYSTEMS, "architecture": ARCHITECTURES, "runtime": RUNTIMES}[name]
    if value in known:
        return value
    right = _OTHER_NAMES.get(value.lower()) or nearest(value, known)
    right = right if right in known else None
    told = f"write `{right}`" if right else f"known are {', '.join(known)}"
    if name == "runtime":
        spot.report("runtime-value", f"Nucleus lite passes over the runtime {shown(value)}; {told}.", LITE)
    else:
        spot.report("platform-value", f"No device has the {name} {shown(value)}; {told}.")
    return right or value


def serving(platforms: Sequence[Platform], asked: frozenset[str]) -> list[frozenset[str]]:
    """Check which manifests are ever taken, and return for each the nuclei for which it is, or should be.

    A manifest without a runtime is no fault where it is there for the Java nucleus, beside another for nucleus lite.
    """
    firsts = {nucleus: _firsts(platforms, nucleus) for nucleus in ("java", "lite")}
    served = []
    for number, platform in enumerate(platforms):
        nuclei = {one for one in ("java", "lite") if platform.taken(one)}
        if platform.runtime is None and platform.for_linux():
            # One without a platform must not be reached: nucleus lite refuses the recipe there.
            before = len(platforms) if platform.given else number
            if _cover(firsts["lite"], platform.conditions("lite"), before) is None:
                nuclei.add("lite")
                _report_runtime(platform)
        served.append(frozenset(nuclei))
        covers = {one: _cover(firsts[one], platform.conditions(one), number) for one in BOTH if platform.taken(one)}
        hidden = frozenset(one for one, first in covers.items() if first is not None)
        if hidden & asked and hidden & asked == covers.keys() & asked:
            first = min(covers[one] or 0 for one in hidden)
            platform.place.report(
                "unreachable-manifest",
                f"Manifests[{first}] matches wherever this one does, and the first that matches is taken; move this one "
                "before it.",
                hidden,
            )
    return served


def _firsts(platforms: Sequence[Platform], nucleus: str) -> dict[frozenset[tuple[str, str]], int]:
    """Return the sets of conditions that a nucleus may meet, each with the number of the first manifest that has it."""
    firsts: dict[frozenset[tuple[str, str]], int] = {}
    for number, platform in enumerate(platforms):
        if platform.taken(nucleus):
            firsts.setdefault(platform.conditions(nucleus), number)
    return firsts


def _cover(
    firsts: Mapping[frozenset[tuple[str, str]], int], conditions: frozenset[tuple[str, str]], before: int
) -> int | None:
    """Return the number of a manifest before another that matches wherever the other one would."""
    return next((number for one, number in firsts.items() if number < before and one <= conditions), None)


def _report_runtime(platform: Platform) -> None:
    add = 'add `runtime: "*"`, which matches both nuclei'
    if platform.given:
        told = f"Nucleus lite passes over a platform without `runtime`; {add}."
    else:
        told = f"Nucleus lite refuses a manifest without Platform; add Platform with `os: linux`, and {add}."
    platform.place.report("runtime", told, LITE)


def lifecycle_for_lite(manifest: Mapping[str, Spot], whole: Spot | None) -> Spot | None:
    """Return the lifecycle that nucleus lite takes for a manifest: its own, else what is selected of the whole one."""
    own = manifest.get("Lifecycle")
    if own is not None and not (isinstance(own.node, nodes.Mapping) and not own.node.entries):
        return own
    selections = selected(manifest) or ("all",)
    found = None
    if whole is not None and isinstance(whole.node, nodes.Mapping):
        for selection in selections:
            for key, node in whole.node.entries:
                if key.text == selection and selection in {"all", "linux"}:
                    found = whole.child(key, node)
    return found


def selected(manifest: Mapping[str, Spot]) -> tuple[str, ...]:
    """Return a manifest's selection keys."""
    spot = manifest.get("Selections")
    if spot is None or not isinstance(spot.node, nodes.Sequence):
        return ()
    return tuple(one.text for one in spot.node.items if isinstance(one, nodes.Scalar))
