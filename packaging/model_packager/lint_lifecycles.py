"""The steps of a lifecycle: their names, their settings, and their scripts."""

import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from edge_agent.errors import shown
from model_packager import lint_nodes as nodes
from model_packager import lint_scripts as scripts
from model_packager import lint_shell as shell
from model_packager.lint_findings import BOTH, JAVA, LITE, Spot
from model_packager.lint_scripts import Context

STEPS = ("install", "run", "startup", "shutdown", "recover", "bootstrap")
# Nucleus lite makes units of these.
UNITS = frozenset({"install", "run", "startup", "bootstrap"})
_STEP_KEYS = ("Script", "RequiresPrivilege", "Skipif", "Timeout", "Setenv")
_ON_LITE = {
    "shutdown": "Nucleus lite never runs `shutdown`; let the process end in order at SIGTERM.",
    "recover": "Nucleus lite never runs `recover`; let the script of the step itself clear up at its beginning.",
    "bootstrap": "Nucleus lite supports `bootstrap` in parts only; write `install` where nothing has to be restarted.",
}
_SECONDS = re.compile("[0-9]{1,9}")
_SKIPIF = re.compile(r"!?\s*(?:onpath|exists) +\S.*")
_NAME = re.compile("[A-Za-z_][A-Za-z0-9_]*")
# What a component tells systemd once it is ready.
_READY = "systemd-notify --ready"
_VARIABLE = re.compile(r"\{(?:[\w.-]+:)?configuration:[^{}:]*\}")


@dataclass
class Lifecycle:
    """What was found in a lifecycle: the names of its steps, and its texts."""

    steps: set[str] = field(default_factory=set)
    texts: list[str] = field(default_factory=list)

    def add(self, other: "Lifecycle") -> None:
        """Take what was found elsewhere, too."""
        self.steps |= other.steps
        self.texts += other.texts


def check(spot: Spot, context: Context, selections: Collection[str] = ()) -> Lifecycle:
    """Check a lifecycle; `selections` are the keys by which the global one is divided."""
    found = Lifecycle()
    for name, part in spot.entries() if selections and isinstance(spot.node, nodes.Mapping) else ():
        if name in selections:
            reader = part if name in {"all", "linux"} else part.on(part.nuclei & JAVA)
            found.add(check(reader, context, selections))
    keys = spot.keys((*STEPS, "Setenv"), besides=selections)
    if "Setenv" in keys:
        found.texts += _setenv(keys.pop("Setenv"), context)
    for name, step in keys.items():
        found.steps.add(name)
        if name in _ON_LITE:
            step.report("step-lite", _ON_LITE[name], LITE)
        for part in _selected(step, selections):
            found.texts += _step(name, part, context, selections)
    if "startup" in keys and "run" in keys:
        keys["run"].report(
            "startup-and-run",
            "A lifecycle has `startup` or `run`, and both nuclei ignore `run` beside `startup`; remove one of them.",
        )
    return found


def _selected(spot: Spot, selections: Collection[str]) -> list[Spot]:
    """Return the parts of a value that is divided by selection keys; the value itself where it is not."""
    if isinstance(spot.node, nodes.Mapping) and spot.node.entries and selections:
        parts = spot.entries()
        if all(name in selections for name, _ in parts):
            spot.report(
                "selection-keys",
                "Nucleus lite takes selection keys at the top of the global Lifecycle only; move them there.",
                LITE,
            )
            return [replace(part, nuclei=part.nuclei & JAVA) for _, part in parts]
    return [spot]


def _step(name: str, step: Spot, context: Context, selections: Collection[str]) -> list[str]:
    if isinstance(step.node, nodes.Scalar):
        script = _script(name, step, context)
        _check_waiting(name, step, script)
        return [script]
    if not isinstance(step.node, nodes.Mapping):
        step.mistyped("a script, or an object with Script")
        return []
    keys = step.keys(_STEP_KEYS, needed=("Script",))
    texts = [
        _script(name, part, context) for part in (_selected(keys["Script"], selections) if "Script" in keys else ())
    ]
    if "Timeout" not in keys:
        _check_waiting(name, step, "\n".join(texts))
    else:
        _check_timeout(keys["Timeout"], name, context)
    if "RequiresPrivilege" in keys:
        _check_privilege(keys["RequiresPrivilege"])
    if "Skipif" in keys:
        _check_skipif(keys["Skipif"])
    if "Setenv" in keys:
        texts += _setenv(keys["Setenv"], context)
    return texts


def _script(name: str, spot: Spot, context: Context) -> str:
    """Check a step's script, and return its text."""
    script = scripts.check_script(spot, context)
    if name == "startup" and script:
        _check_end(spot, script)
    return script


def _check_end(spot: Spot, script: str) -> None:
    """Say so where nucleus lite takes a startup for ready too early, or not at all.

    Its recipe-runner appends `systemd-notify --ready` and `systemd-notify --stopping` to the script.
    """
    end = shell.end(script)
    # A script that speaks for itself, and goes no further, knows what it does.
    if end == "exec" or (end in {"exit", "perhaps"} and _READY in script):
        return
    if end == "exit":
        told = (
            "Nucleus lite waits until a startup says that it is ready, which this one does not before it exits; let it end "
            f'with `[ -z "$NOTIFY_SOCKET" ] || exec {_READY}`.'
        )
    else:
        told = (
            "After the last command nucleus lite takes the component for ready, even where that failed, and then stops it "
            f"with all that depends HARD on it; write `exec` before that command, and let what it runs call `{_READY}`."
        )
    spot.report("startup-exec", told, LITE)


def _check_waiting(name: str, step: Spot, script: str) -> None:
    if name == "startup" and scripts.waits(script):
        step.report(
            "startup-timeout",
            "Both nuclei give a startup 120 seconds where it says nothing else, and this one waits; add `Timeout`.",
        )


def _check_timeout(spot: Spot, name: str, context: Context) -> None:
    node = spot.node
    text = node.text if isinstance(node, nodes.Scalar) and node.kind in {"text", "number"} else None
    told = "write a number of whole seconds"
    if isinstance(node, nodes.Alias):
        return
    if text is None:
        spot.report("timeout", f"A timeout is a number; {told}.")
    elif _VARIABLE.fullmatch(text):
        scripts.check_value(spot, context)
        spot.report("timeout", f"Nucleus lite refuses the variable {shown(text)} as a timeout; {told}.", LITE)
    elif not _SECONDS.fullmatch(text):
        spot.report("timeout", f"{shown(text)} is no timeout; {told}.")
    if name == "run" and isinstance(node, nodes.Scalar) and node.kind == "text" and _SECONDS.fullmatch(node.text):
        spot.report(
            "run-timeout-text", "The Java nucleus needs the timeout of `run` as a number; remove the quotes.", JAVA
        )


def _check_privilege(spot: Spot) -> None:
    node = spot.node
    if isinstance(node, nodes.Alias):
        return
    text = node.text if isinstance(node, nodes.Scalar) else ""
    if isinstance(node, nodes.Scalar) and node.kind == "boolean":
        if text.lower() not in {"true", "false"}:
            spot.report("requires-privilege", f"{shown(text)} is no boolean to a nucleus; write true or false.")
        elif text != text.lower():
            spot.report(
                "requires-privilege",
                f"Nucleus lite knows true and false in lower case only; write `{text.lower()}`.",
                LITE,
            )
    elif text in {"true", "false"}:
        spot.report("requires-privilege-text", "This is a text, and ought to be a boolean; remove the quotes.")
    else:
        spot.report("requires-privilege", "RequiresPrivilege is a boolean; write true or false.")


def _check_skipif(spot: Spot) -> None:
    spot.report(
        "skipif-lite", "Nucleus lite ignores Skipif and always runs the script; test for it in the script itself.", LITE
    )
    condition = spot.text()
    if condition is not None and not _SKIPIF.fullmatch(condition.strip()):
        spot.report(
            "skipif",
            f"The Java nucleus fails on the Skipif {shown(condition)}; write `onpath <program>` or `exists <file>`.",
            JAVA,
        )


def _setenv(spot: Spot, context: Context) -> list[str]:
    texts = []
    for name, value in spot.entries():
        if not _NAME.fullmatch(name):
            value.report(
                "setenv-name",
                f"{shown(name)} is no name of a variable to nucleus lite, and ends the script; use letters, digits and _.",
                LITE,
            )
        node = value.node
        if isinstance(node, nodes.Scalar) and node.kind in {"number", "boolean"}:
            if node.bare:
                value.report(
                    "yaml-number",
                    f"Readers of YAML may make another text of {shown(node.text)}; put it into double quotes.",
                    BOTH,
                )
            else:
                value.report(
                    "setenv-value",
                    f"Nucleus lite takes texts only, and {shown(node.text)} is none; put it into double quotes.",
                    LITE,
                )
        else:
            texts.append(scripts.check_value(value, context))
    return texts
