"""What a package is called by its path, where it does not say so itself, and how versions compare."""

import re
from pathlib import Path

from edge_agent import block

PLAIN_NAMES = {"component", "model"}
COMPONENT_SUFFIX = "_greengrass_model_component"


def name_and_version(folder: Path) -> tuple[str, str]:
    """Return what a package is called by its path, where it has no `package` block."""
    parent, grandparent = folder.parent.name, folder.parent.parent.name
    if block.VERSION.fullmatch(parent) and grandparent:
        return grandparent, parent
    if folder.name in PLAIN_NAMES or folder.name.endswith(COMPONENT_SUFFIX):
        return parent, "0.0.0"
    return folder.name, "0.0.0"


def version_key(version: str) -> tuple[int, ...]:
    """Return a version as numbers, for comparing."""
    return tuple(int(part) for part in re.findall(r"\d+", version))
