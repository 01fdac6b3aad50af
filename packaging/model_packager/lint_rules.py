"""The linter's rules: what each is about, and whether breaking it is an error.

An error is what a nucleus refuses, or ignores without a word; a warning is what works only here, or only by luck.
Sources: Greengrass's component recipe reference; for nucleus lite its docs/RECIPE_SUPPORT_CHANGES.md and the code of
ggl-recipe, recipe-runner, recipe2unit, ggl-semver and ggdeploymentd; for the Java nucleus its component-common and
GenericExternalService, KernelConfigResolver and ArtifactDownloaderFactory.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Rule:
    """A rule: how bad it is to break it, and what it is about."""

    severity: Severity
    about: str


_ERRORS = {
    # The text.
    "not-utf8": "The file is UTF-8.",
    "size": "Greengrass takes 16,000 bytes of recipe.",
    "size-lite": "Nucleus lite has room for 8,196 bytes of recipe.",
    "empty": "There is a recipe.",
    "no-recipe": "What is in the file is a recipe.",
    "too-deep": "Values are not nested without end.",
    "syntax": "The text is YAML or JSON.",
    "tab": "YAML is indented with spaces.",
    "json-comment": "JSON has no comments.",
    "alias": "Values are written out: to the Java nucleus an alias is the text that is its name.",
    "documents": "There is one document.",
    "duplicate-key": "A key is there once: nucleus lite takes the first, the Java nucleus the last.",
    # Keys and values.
    "unknown-key": "Keys are known; both nuclei ignore the others.",
    "key-case": "Nucleus lite minds the case of keys.",
    "missing-key": "What a nucleus cannot do without is there.",
    "type": "Values are of the type that their key needs.",
    # What the component is.
    "format-version": "The format is 2020-01-25, the only one.",
    "component-name": "A name is 1 to 128 letters, digits and characters of -_.",
    "component-version": "A version is semantic: x.y.z.",
    "agent-version": "The agent's versions are those that models and clients ask for.",
    "component-type": "Nucleus lite runs generic components only.",
    "description-lines": "A line break in the description breaks nucleus lite's unit file.",
    # What it depends on.
    "dependency-type": "A dependency is HARD or SOFT.",
    "dependency-type-missing": "Without a type, nucleus lite makes no dependency; to the Java nucleus it is HARD.",
    "version-requirement": "A requirement is one of npm's ranges.",
    "version-range-lite": "Nucleus lite itself compares with >=, >, <=, < and = only.",
    "agent-hard": "On nucleus lite what depends HARD on the agent is stopped with it, and stays so.",
    # Manifests.
    "no-manifest": "There is a manifest.",
    "runtime": "Nucleus lite passes over a manifest whose platform has no runtime.",
    "runtime-value": "The runtime is * or aws_nucleus_lite.",
    "platform-value": "Platforms have Greengrass's names, in its case.",
    "unreachable-manifest": "Both nuclei take the first manifest that matches.",
    "empty-lifecycle": "Nucleus lite refuses a component without a step.",
    "global-lifecycle": "Nucleus lite takes steps from `all` in the global lifecycle.",
    "selection-keys": "Nucleus lite takes selection keys at the top of the global lifecycle only.",
    # Steps.
    "startup-and-run": "A lifecycle has startup or run.",
    "startup-exec": "A startup ends with `exec`: after any other command nucleus lite says that it is ready, and that it stops.",
    "timeout": "A timeout is a number of seconds.",
    "requires-privilege": "RequiresPrivilege is true or false.",
    "skipif": "Skipif is `onpath <program>` or `exists <file>`.",
    "setenv-name": "Names of variables are names to the shell.",
    "setenv-value": "Values of variables are texts to nucleus lite.",
    # Scripts.
    "brace": "Nucleus lite takes every { for a recipe variable, and cuts the script there.",
    "variable-unknown": "Recipe variables are known.",
    "variable-other-component": "Nucleus lite has no variables of other components; the Java nucleus those of dependencies.",
    "configuration-pointer": "A pointer leads to a key of DefaultConfiguration.",
    "configuration-object": "A pointer leads to a single value.",
    # Artifacts.
    "artifact-uri": "Artifacts are at s3://, greengrass: or docker:.",
    "artifact-name": "File names are unique in a manifest.",
    "unarchive": "Unarchive is NONE or ZIP.",
    "permission": "A permission is NONE, OWNER or ALL.",
    "model-permission": "The agent reads a model as another user.",
    "digest": "A digest is the base64 of 32 bytes.",
    "algorithm": "Digests are SHA-256.",
}
_WARNINGS = {
    "byte-order-mark": "Not every reader of recipes passes over a byte order mark.",
    "yaml-word": "Some readers of YAML take yes, no, on and off for true and false.",
    "yaml-number": "Some readers of YAML make 1 of 1.0.",
    "yaml-tag": "The nuclei ignore tags.",
    "description-missing": "Without a description, nucleus lite's unit file loses its next line.",
    "soft-order": "On the Java nucleus SOFT gives no order.",
    "platform-regex": "Not every nucleus lite knows regular expressions.",
    "platform-attribute": "Nucleus lite ignores attributes of one's own.",
    "step-lite": "Nucleus lite does not run these steps as the Java nucleus does.",
    "skipif-lite": "Nucleus lite ignores Skipif.",
    "requires-privilege-text": "RequiresPrivilege is no text.",
    "run-timeout-text": "The Java nucleus needs the timeout of run as a number.",
    "startup-timeout": "A startup that waits has 120 seconds unless it says otherwise.",
    "configuration-number": "Numbers may arrive as others.",
    "configuration-variable": "Recipe variables in the configuration stay as they are.",
    "variable-unquoted": "A value that an operator can set is in double quotes.",
    "pip-network": "A device may have no way to an index.",
    "zip-local": "Nucleus lite does not unpack on a local deployment.",
}
RULES: Mapping[str, Rule] = MappingProxyType(
    {
        **{name: Rule("error", about) for name, about in _ERRORS.items()},
        **{name: Rule("warning", about) for name, about in _WARNINGS.items()},
    }
)
