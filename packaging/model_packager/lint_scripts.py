"""What stands in scripts and in variables of the environment: recipe variables, braces, and pip."""

import re
from dataclasses import dataclass

from edge_agent.errors import shown
from model_packager import lint_nodes as nodes
from model_packager.lint_findings import BOTH, LITE, Spot, nearest

VARIABLES = ("artifacts:path", "artifacts:decompressedPath", "work:path", "kernel:rootPath", "iot:thingName")
CONFIGURATION = "configuration:"
NAMESPACES = ("artifacts", "configuration", "work")
# Each { for itself: what follows it up to the next brace, and whether that one closes it.
_BRACE = re.compile(r"\{([^{}]*)(\}?)")
_LOOKS_LIKE_ONE = re.compile(r"[A-Za-z][\w.]*:[\w./~-]+")
_SHELL_NAME = re.compile("[A-Za-z_][A-Za-z0-9_]*")
_PIP = re.compile(r"\bpip[0-9.]*\s(?:[^\n;&|]{0,200}\s)?install\b[^\n;&|]*")
_WAITS = re.compile(r"\b(?:sleep|until|wait|while)\b")


@dataclass(frozen=True)
class Context:
    """What the variables of a recipe can mean."""

    configuration: nodes.Node
    dependencies: frozenset[str]


def check_script(spot: Spot, context: Context) -> str:
    """Check a script, and return its text."""
    script = spot.text()
    if script is None:
        return ""
    _check_braces(spot, script, context, quoted=False)
    joined = script.replace("\\\n", " ")
    if "PIP_NO_INDEX" not in joined and any("--no-index" not in found[0] for found in _PIP.finditer(joined)):
        spot.report(
            "pip-network",
            "pip fetches from the network here, which a device may not have, and installs beside the system's packages; "
            "put the wheels into the artifacts, and install them into a venv with `--no-index --find-links`.",
        )
    return script


def check_value(spot: Spot, context: Context) -> str:
    """Check a text that reaches the process without a shell in between, and return it."""
    value = spot.text()
    if value is None:
        return ""
    _check_braces(spot, value, context, quoted=True)
    return value


def waits(script: str) -> bool:
    """Return whether a script seems to wait for something."""
    return bool(_WAITS.search(script))


def _check_braces(spot: Spot, text: str, context: Context, *, quoted: bool) -> None:
    seen = set()
    safe = None if quoted else _in_double_quotes(text)
    for found in _BRACE.finditer(text):
        bare = safe is not None and not safe[found.start()]
        if (found[0], bare) in seen:
            continue
        seen.add((found[0], bare))
        inside, closed = found[1], bool(found[2])
        # A block of YAML begins on the line after its key.
        block = isinstance(spot.node, nodes.Scalar) and spot.node.block
        line = spot.node.line + 1 + text.count("\n", 0, found.start()) if block else spot.line
        if closed and inside.startswith(CONFIGURATION):
            single = _check_pointer(spot, inside.removeprefix(CONFIGURATION), context, line)
        elif closed and inside in VARIABLES:
            single = inside == "iot:thingName"
        else:
            single = False
            _report_brace(spot, text, found, context, line)
        if single and bare:
            spot.report(
                "variable-unquoted",
                f"A value with a space in it or a quote falls apart at {shown(found[0])} in the script; put the variable "
                "into double quotes, or into Setenv.",
                line=line,
            )


def _report_brace(spot: Spot, text: str, found: re.Match[str], context: Context, line: int) -> None:
    """Say what is wrong with a { that begins no variable of this component."""
    inside, closed = found[1], bool(found[2])
    parts = inside.split(":")
    if closed and len(parts) == 3 and parts[1] in NAMESPACES:
        nuclei = LITE if parts[0] in context.dependencies else BOTH
        on = "Nucleus lite has no variables of other components" if nuclei == LITE else "No nucleus knows this variable"
        mend = (
            "pass the value through the configuration"
            if nuclei == LITE
            else f"name {shown(parts[0])} in ComponentDependencies, which helps on the Java nucleus only"
        )
        spot.report("variable-other-component", f"{on}, as {shown(found[0])} is one; {mend}.", nuclei, line)
        return
    near = nearest(inside, VARIABLES, 0.75) if closed and _LOOKS_LIKE_ONE.fullmatch(inside) else None
    if near:
        spot.report("variable-unknown", f"{shown(found[0])} is no recipe variable; write `{{{near}}}`.", BOTH, line)
        return
    mend = "move these lines into a file among the artifacts, and run that"
    if text[: found.start()].endswith("$") and closed and _SHELL_NAME.fullmatch(inside):
        joins = re.match(r"\w", text[found.end() :])
        mend = f'write "${inside}" apart from what follows' if joins else f"write ${inside} without braces"
    spot.report(
        "brace",
        f"Nucleus lite takes the brace of {shown(found[0])} for a recipe variable and cuts the text there, while the "
        f"deployment succeeds; {mend}.",
        LITE,
        line,
    )


def _check_pointer(spot: Spot, pointer: str, context: Context, line: int) -> bool:
    """Check a JSON pointer into the default configuration; return whether it leads to a single value."""
    node = context.configuration
    nuclei = BOTH
    whole = not pointer.startswith("/")
    for part in [] if whole else pointer[1:].split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, nodes.Alias):
            return False
        below = None
        if isinstance(node, nodes.Mapping):
            below = next((value for name, value in node.entries if name.text == key), None)
        elif isinstance(node, nodes.Sequence) and key.isdecimal() and int(key[:9]) < len(node.items):
            below, nuclei = node.items[int(key[:9])], LITE
        if below is None:
            whole = True
            break
        node = below
    if isinstance(node, nodes.Alias):
        return False
    if whole:
        near = nearest(pointer, _pointers(context.configuration), 0.7)
        mend = f"write `{{configuration:{near}}}`" if near else "add the key there, with its default"
        spot.report(
            "configuration-pointer",
            f"DefaultConfiguration has nothing at {shown(pointer)}: nucleus lite cuts the text there, and the Java nucleus "
            f"leaves the variable in it; {mend}.",
            BOTH,
            line,
        )
        return False
    if isinstance(node, nodes.Mapping | nodes.Sequence):
        spot.report(
            "configuration-object",
            f"{shown(pointer)} is an object or a list, whose JSON breaks the text; name a single value below it.",
            BOTH,
            line,
        )
        return False
    if nuclei == LITE:
        spot.report(
            "configuration-pointer",
            f"Nucleus lite leads no pointer into a list, as {shown(pointer)} does; make the list an object.",
            LITE,
            line,
        )
    return True


def _pointers(node: nodes.Node, above: str = "") -> list[str]:
    """Return the pointers to all single values below a node."""
    if isinstance(node, nodes.Mapping):
        return [
            pointer
            for key, value in node.entries
            for pointer in _pointers(value, f"{above}/{key.text.replace('~', '~0').replace('/', '~1')}")
        ]
    return [above] if isinstance(node, nodes.Scalar) and above else []


def _in_double_quotes(script: str) -> list[bool]:
    """Return for each character of a script whether the shell reads it inside of double quotes, or in a comment."""
    state, escaped, safe = "", False, []
    for at, char in enumerate(script):
        safe.append(state in {'"', "#"})
        if escaped:
            escaped = False
        elif char == "\\" and state in {"", '"'}:
            escaped = True
        elif state in {"'", '"'}:
            state = "" if char == state else state
        elif state == "#":
            state = "" if char == "\n" else state
        elif char in {"'", '"'} or (char == "#" and (at == 0 or script[at - 1] in " \t\n;&|(")):
            state = char
    return safe
