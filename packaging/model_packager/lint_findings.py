"""What the linter says of a recipe, and the values of the recipe with their places, at which it is said."""

import difflib
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from edge_agent.errors import shown
from model_packager import lint_nodes as nodes
from model_packager.lint_rules import RULES, Severity

Nucleus = Literal["both", "java", "lite"]
JAVA, LITE = frozenset({"java"}), frozenset({"lite"})
BOTH = JAVA | LITE
# Beyond this nobody is helped by a guess, which takes time.
MOST = 100
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]{1,128}")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: by which rule, on which nucleus, where, and a sentence that ends in what mends it.

    `place` is as in `Manifests[0].Lifecycle.startup.Timeout`, and empty where the text as a whole is meant.
    """

    rule: str
    severity: Severity
    nucleus: Nucleus
    place: str
    line: int | None
    sentence: str


@dataclass
class Findings:
    """Collects what concerns the nuclei that were asked for."""

    asked: frozenset[str]
    all: list[Finding] = field(default_factory=list)

    def add(self, rule: str, place: str, line: int | None, sentence: str, nuclei: frozenset[str] = BOTH) -> None:
        """Keep a finding, unless it concerns no nucleus that was asked for."""
        if nuclei & self.asked:
            nucleus: Nucleus = "both" if nuclei == BOTH else "java" if nuclei == JAVA else "lite"
            self.all.append(Finding(rule, RULES[rule].severity, nucleus, place, line, sentence))


@dataclass(frozen=True)
class Spot:
    """A value of the recipe, where it stands, and the nuclei that ever read it."""

    node: nodes.Node
    place: str
    line: int
    findings: Findings
    nuclei: frozenset[str] = BOTH

    def report(self, rule: str, sentence: str, nuclei: frozenset[str] = BOTH, line: int | None = None) -> None:
        """Say what is wrong with this value."""
        self.findings.add(rule, self.place, line or self.line, sentence, nuclei & self.nuclei)

    def on(self, nuclei: frozenset[str]) -> "Spot":
        """Return the same value as one that only these nuclei read."""
        return replace(self, nuclei=nuclei)

    def child(self, key: nodes.Scalar, node: nodes.Node) -> "Spot":
        """Return the value of a key; it is said to be where its key is."""
        name = key.text if _PLAIN_KEY.fullmatch(key.text) else None
        place = f"{self.place}.{name}".removeprefix(".") if name else f"{self.place}[{_quoted(key.text)}]"
        return replace(self, node=node, place=place, line=key.line)

    def items(self) -> list["Spot"]:
        """Return the members of a list; say so where the value is none."""
        if isinstance(self.node, nodes.Sequence):
            return [
                replace(self, node=one, place=f"{self.place}[{number}]", line=one.line)
                for number, one in enumerate(self.node.items)
            ]
        self.mistyped("a list")
        return []

    def entries(self) -> list[tuple[str, "Spot"]]:
        """Return the keys and values of an object whose keys are free; say so where the value is none."""
        if isinstance(self.node, nodes.Mapping):
            return [(key.text, self.child(key, node)) for key, node in self.node.entries]
        self.mistyped("an object")
        return []

    def keys(
        self, known: Sequence[str], besides: Collection[str] = (), needed: Sequence[str] = ()
    ) -> dict[str, "Spot"]:
        """Return the values of an object by the keys as they ought to be spelt; say where they are not.

        `besides` are keys of another kind, which are left out; `needed` ones are missed where they are not there.
        """
        found: dict[str, Spot] = {}
        strange: list[tuple[str, Spot]] = []
        spelling = {key.lower(): key for key in known}
        for name, spot in self.entries():
            right = spelling.get(name.lower())
            if name in besides:
                continue
            if right is None:
                strange.append((name, spot))
                continue
            if right != name:
                spot.report(
                    "key-case", f"Nucleus lite knows the key {shown(name)} as `{right}` only; write `{right}`.", LITE
                )
            if right in found and found[right].place != spot.place:
                spot.report(
                    "duplicate-key",
                    f"`{right}` is here a second time, in other case, which is the same key to the Java nucleus; "
                    "remove one of them.",
                    JAVA,
                )
            found.setdefault(right, spot)
        for name, spot in strange:
            near = nearest(name, known)
            told = f"write `{near}`" if near else f"remove it; what can stand here is {', '.join(known)}"
            spot.report("unknown-key", f"{shown(name)} is no key here, and the nuclei ignore it; {told}.")
            # What is taken for the right key is looked at as that one, and is not missed.
            if near and (near in needed or nearest(name, (near,), 0.8)):
                found.setdefault(near, spot)
        if isinstance(self.node, nodes.Mapping):
            for key in needed:
                if key not in found:
                    self.report("missing-key", f"`{key}` is missing here; add it.")
        return found

    def text(self) -> str | None:
        """Return the text that a value is; say so where it is none. What is bare in YAML is a text to both nuclei."""
        if (
            isinstance(self.node, nodes.Scalar)
            and self.node.kind != "null"
            and (self.node.bare or self.node.kind == "text")
        ):
            return self.node.text
        self.mistyped("a text")
        return None

    def mistyped(self, wanted: str) -> None:
        """Say that a value is not what it must be; what an alias is, nobody knows here."""
        if not isinstance(self.node, nodes.Alias):
            self.report("type", f"This is {_kind(self.node)}, and must be {wanted}; write {wanted}, or remove the key.")

    def walk(self) -> Iterator["Spot"]:
        """Yield this value and every one below it."""
        yield self
        below = self.items() if isinstance(self.node, nodes.Sequence) else []
        if isinstance(self.node, nodes.Mapping):
            below = [spot for _, spot in self.entries()]
        for spot in below:
            yield from spot.walk()


def nearest(word: str, known: Collection[str], cutoff: float = 0.6) -> str | None:
    """Return the known word that somebody most probably meant."""
    spelling = {one.lower(): one for one in known}
    near = difflib.get_close_matches(word.lower()[:MOST], list(spelling)[:MOST], 1, cutoff)
    return spelling[near[0]] if near else None


def _kind(node: nodes.Node) -> str:
    if isinstance(node, nodes.Mapping):
        return "an object"
    if isinstance(node, nodes.Sequence):
        return "a list"
    if isinstance(node, nodes.Scalar) and node.kind != "text":
        return "nothing" if node.kind == "null" else f"the {node.kind} {node.text[:80]}"
    return "a text"


def _quoted(text: str) -> str:
    return f'"{shown(text)[1:-1]}"' if text.isprintable() and len(text) <= 128 and '"' not in text else shown(text)
