"""The YAML file of settings, read once, with care: whoever writes it may be mistaken, or mean no good."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from edge_agent.errors import AgentRefused, printable, shown
from edge_agent.files import read_regular

LARGEST = 1 << 20
# What a file may hold once its aliases are written out: a few lines of them can stand for more than any memory holds.
MOST_NODES = 100_000


class _Refused(Exception):
    """The file cannot be settings; the text goes on after its name."""


def read(file: Path) -> dict[str, Any]:
    """Return the settings of a file by key; raise AgentRefused, naming it, when it is no file or no mapping of settings."""
    try:
        return _settings(_text(file))
    except _Refused as refusal:
        raise AgentRefused(printable(f"--config {file}{refusal}")) from None


def _text(file: Path) -> str:
    try:
        data = read_regular(file, LARGEST + 1)
    except OSError as error:
        raise _Refused(f": {error.strerror}") from None
    except ValueError:  # a NUL in its name
        raise _Refused(" is a name that no file can have") from None
    if len(data) > LARGEST:
        raise _Refused(f" is larger than {LARGEST >> 20} MiB, and so no file of settings")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise _Refused(f" is not YAML: {error}") from None


def _settings(text: str) -> dict[str, Any]:
    loader: Any = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return {}
        _check(node)
        content = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        raise _Refused(f" is not YAML: {_sentence(error)}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _Refused(f" is not YAML: {' '.join(str(error).split())}") from None
    finally:
        if loader:
            loader.dispose()
    if not isinstance(content, dict):
        raise _Refused(" must be a mapping of settings, as in `max_calls: 64`")
    for key in content:
        if not isinstance(key, str):
            raise _Refused(f" has the key {shown(str(key))}, which is no name of a setting")
    return content


def _sentence(error: yaml.MarkedYAMLError) -> str:
    """Return in one line what the library tells in several."""
    told = ", ".join(filter(None, [error.context, error.problem]))
    mark = error.problem_mark or error.context_mark
    return f"{told} in line {mark.line + 1}" if mark else told


def _check(root: yaml.Node) -> None:
    """Refuse keys that are there twice, what contains itself, and what grows beyond bounds when its aliases are followed."""
    _check_keys(root)
    # By node, once aliases are followed; 0 of what is still looked at.
    sizes = {id(root): 0}
    # With a list of its own, not by recursion: whatever the parser could read can be looked at.
    open_nodes: list[tuple[yaml.Node, Iterator[yaml.Node]]] = [(root, _below(root))]
    while open_nodes:
        node, rest = open_nodes[-1]
        child = next(rest, None)
        if child is None:
            sizes[id(node)] = 1 + sum(sizes[id(one)] for one in _below(node))
            if sizes[id(node)] > MOST_NODES:
                raise _Refused(f" has more than {MOST_NODES} values, written out; it may use fewer aliases")
            open_nodes.pop()
        elif id(child) not in sizes:
            sizes[id(child)] = 0
            _check_keys(child)
            open_nodes.append((child, _below(child)))
        elif not sizes[id(child)]:
            raise _Refused(f" has in line {child.start_mark.line + 1} a value that contains itself")


def _below(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _check_keys(node: yaml.Node) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        line = key.start_mark.line + 1
        if (name := (key.tag, key.value)) in lines:
            raise _Refused(f" sets {shown(key.value)} twice, in lines {lines[name]} and {line}; leave one out")
        lines[name] = line
