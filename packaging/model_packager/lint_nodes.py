"""A recipe's text as values that know their lines: YAML and JSON, as literally as the nuclei read them.

Nothing is converted and no alias is followed, so a value stays what was typed and a small text stays small.
"""

import bisect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import yaml

from edge_agent.errors import printable

# No recipe needs more; nucleus lite has room for 15 levels.
DEEPEST = 32
# What YAML 1.1 takes for true and false, and YAML 1.2 and nucleus lite for words.
WORDS = frozenset({"y", "n", "yes", "no", "on", "off"})
NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
Kind = Literal["text", "number", "boolean", "null"]
_KINDS: dict[str, Kind] = {
    "tag:yaml.org,2002:int": "number",
    "tag:yaml.org,2002:float": "number",
    "tag:yaml.org,2002:bool": "boolean",
    "tag:yaml.org,2002:null": "null",
}
_JSON_WORDS: dict[str, Kind] = {"true": "boolean", "false": "boolean", "null": "null"}
_TAB = "'\\t' that cannot start any token"


@dataclass(frozen=True)
class Scalar:
    """A single value as it was typed; `bare` has no quotes, and the text of a `block` begins on the next line."""

    line: int
    text: str
    kind: Kind = "text"
    bare: bool = False
    block: bool = False

    @property
    def word(self) -> bool:
        """Whether some readers of YAML take this text for true or false."""
        return self.bare and self.text.lower() in WORDS


@dataclass(frozen=True)
class Mapping:
    """Keys and values in the order of the text; a key may be there twice."""

    line: int
    entries: list[tuple[Scalar, "Node"]] = field(default_factory=list)


@dataclass(frozen=True)
class Sequence:
    """A list."""

    line: int
    items: list["Node"] = field(default_factory=list)


@dataclass(frozen=True)
class Alias:
    """A value that stands elsewhere; what it is stays unknown."""

    line: int


Node = Scalar | Mapping | Sequence | Alias


@dataclass(frozen=True)
class Fault:
    """What is wrong with the text itself: the rule, the line, and a sentence."""

    rule: str
    line: int | None
    sentence: str


class Unreadable(Exception):
    """The text holds no values that could be looked at."""

    def __init__(self, rule: str, line: int | None, sentence: str) -> None:
        super().__init__(sentence)
        self.fault = Fault(rule, line, sentence)


def read(text: str) -> tuple[Node, list[Fault]]:
    """Return the value that a text holds, and what is wrong with the text besides.

    Raises:
        Unreadable: it is empty, nested too deep, or neither YAML nor JSON.

    """
    if not text.strip():
        raise Unreadable("empty", None, "The file is empty; write a recipe, or name another file.")
    if text.lstrip().startswith("{"):
        return _Json(text).document(), []
    return _Yaml().document(text)


def _too_deep(line: int) -> Unreadable:
    return Unreadable("too-deep", line, f"Values are nested more than {DEEPEST} deep here; no recipe needs that.")


class _Yaml:
    """Builds the value from PyYAML's events, which need no recursion and expand nothing."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self._open: list[tuple[Mapping | Sequence, list[Scalar]]] = []
        self._root: Node | None = None

    def document(self, text: str) -> tuple[Node, list[Fault]]:
        try:
            for event in self._events(text):
                self._take(event)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise _no_yaml(str(error.problem or error.context), mark.line + 1 if mark else None) from None
        except (yaml.YAMLError, ValueError, OverflowError) as error:
            raise _no_yaml(str(getattr(error, "reason", None) or error), None) from None
        if self._root is None:
            raise Unreadable("empty", None, "The file is empty; write a recipe, or name another file.")
        return self._root, self.faults

    def _events(self, text: str) -> Iterator[yaml.Event]:
        """Yield the events of the first document; both nuclei read no further."""
        started = False
        # The reader in C would follow a file of brackets until the stack ends.
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.DocumentStartEvent):
                if started:
                    sentence = "A second document begins here, and both nuclei ignore it; remove it and the line `---`."
                    mark = event.start_mark
                    self.faults.append(Fault("documents", mark.line + 1 if mark else None, sentence))
                    return
                started = True
            yield event

    def _take(self, event: yaml.Event) -> None:
        mark = event.start_mark
        line = mark.line + 1 if mark else 1
        tag = getattr(event, "tag", None)
        if tag is not None and tag != "!":
            sentence = f"The tag {tag[:80]!a} means nothing in a recipe; remove it, and put texts into double quotes."
            self.faults.append(Fault("yaml-tag", line, sentence))
        if isinstance(event, yaml.ScalarEvent):
            self._place(_scalar(event, line))
        elif isinstance(event, yaml.AliasEvent):
            if not any(one.rule == "alias" for one in self.faults):
                sentence = (
                    f"Not every reader of recipes follows aliases, as *{event.anchor} is one; write the value itself."
                )
                self.faults.append(Fault("alias", line, sentence))
            self._place(Alias(line))
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            if len(self._open) == DEEPEST:
                raise _too_deep(line)
            node = Mapping(line) if isinstance(event, yaml.MappingStartEvent) else Sequence(line)
            self._place(node)
            self._open.append((node, []))
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            self._open.pop()

    def _place(self, node: Node) -> None:
        """Put a value where it belongs: at the root, into a list, or as a key or a key's value."""
        if not self._open:
            self._root = node
            return
        parent, keys = self._open[-1]
        if isinstance(parent, Sequence):
            parent.items.append(node)
        elif keys:
            parent.entries.append((keys.pop(), node))
        elif isinstance(node, Scalar):
            keys.append(node)
        else:
            raise Unreadable(
                "syntax", node.line, "A key stands here that is no single word; a recipe's keys are words."
            )


def _scalar(event: yaml.ScalarEvent, line: int) -> Scalar:
    block = event.style == "|"
    if event.style or event.tag:
        return Scalar(line, event.value, block=block)
    tag = yaml.resolver.Resolver().resolve(yaml.ScalarNode, event.value, (True, False))  # type: ignore[no-untyped-call]
    kind: Kind = "text" if event.value.lower() in WORDS else _KINDS.get(tag, "text")
    if NUMBER.fullmatch(event.value):  # 1e3 is a number to YAML 1.2 only
        kind = "number"
    return Scalar(line, event.value, kind, bare=True)


def _no_yaml(problem: str, line: int | None) -> Unreadable:
    if _TAB in problem:
        return Unreadable("tab", line, "YAML takes no tab here; write spaces.")
    return Unreadable(
        "syntax", line, f"The text is no YAML: {printable(problem[:200])}; mend this line, or the one before it."
    )


class _Json:
    """Reads JSON strictly and by line, which the standard library's reader does not tell."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._breaks = [found.start() for found in re.finditer("\n", text)]
        self._decoder = json.JSONDecoder()
        self._end = 0

    def document(self) -> Node:
        node, at = self._value(self._skip(0), 0)
        at = self._skip(at)
        if at < len(self._text):
            raise self._refusal(at, "there is more after the end of the recipe")
        return node

    def _line(self, at: int) -> int:
        return bisect.bisect_left(self._breaks, at) + 1

    def _skip(self, at: int) -> int:
        while at < len(self._text) and self._text[at] in " \t\n\r":
            at += 1
        return at

    def _refusal(self, at: int, problem: str) -> Unreadable:
        if self._text.startswith(("//", "/*", "#"), at):
            return Unreadable("json-comment", self._line(at), "JSON has no comments; remove this one.")
        start = "A recipe that begins with { is read as JSON, and this is none"
        return Unreadable("syntax", self._line(at), f"{start}: {problem}; mend this line, or the one before it.")

    def _value(self, at: int, depth: int) -> tuple[Node, int]:
        line, char = self._line(at), self._text[at : at + 1]
        if char in {"{", "["} and depth == DEEPEST:
            raise _too_deep(line)
        if char == "{":
            return self._mapping(at, depth + 1)
        if char == "[":
            items = []
            for start in self._members(at, "]"):
                item, self._end = self._value(start, depth + 1)
                items.append(item)
            return Sequence(line, items), self._end
        if char == '"':
            text, end = self._string(at)
            return Scalar(line, text), end
        for word, kind in _JSON_WORDS.items():
            if self._text.startswith(word, at):
                return Scalar(line, word, kind), at + len(word)
        if found := NUMBER.match(self._text, at):
            return Scalar(line, found[0], "number"), found.end()
        raise self._refusal(at, "a value is missing or is not in quotes")

    def _mapping(self, at: int, depth: int) -> tuple[Mapping, int]:
        mapping = Mapping(self._line(at))
        for start in self._members(at, "}"):
            if self._text[start : start + 1] != '"':
                raise self._refusal(start, "a key must be in double quotes")
            key, end = self._string(start)
            colon = self._skip(end)
            if self._text[colon : colon + 1] != ":":
                raise self._refusal(colon, "a colon is missing")
            value, self._end = self._value(self._skip(colon + 1), depth)
            mapping.entries.append((Scalar(self._line(start), key), value))
        return mapping, self._end

    def _members(self, at: int, closing: str) -> Iterator[int]:
        """Yield where each member of an object or a list begins; the caller sets `_end` behind it."""
        at = self._skip(at + 1)
        if self._text[at : at + 1] == closing:
            self._end = at + 1
            return
        while True:
            yield at
            at = self._skip(self._end)
            char = self._text[at : at + 1]
            if char == closing:
                self._end = at + 1
                return
            if char != ",":
                raise self._refusal(at, f"a comma or {closing} is missing")
            at = self._skip(at + 1)
            if self._text[at : at + 1] == closing:
                raise self._refusal(at, "the comma before this is one too many")

    def _string(self, at: int) -> tuple[str, int]:
        try:
            text, end = self._decoder.raw_decode(self._text, at)
        except json.JSONDecodeError as error:
            raise self._refusal(error.pos, error.msg[:1].lower() + error.msg[1:]) from None
        return text, end
