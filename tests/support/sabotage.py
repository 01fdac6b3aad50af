"""Agents that are broken on purpose, so that a test can be seen to notice it."""

import os
from pathlib import Path

from support.users import code_path

# Python runs a module of this name before all else.
MODULE = "sitecustomize.py"


def sabotaged(folder: Path, code: str) -> dict[str, str]:
    """Return an environment in which an agent and its children run `code` before anything else.

    What is wrong with the code is only printed, so a test must not go by the damage alone.
    """
    place = folder / "sabotage"
    place.mkdir(mode=0o755)
    (place / MODULE).write_text(code)
    (place / MODULE).chmod(0o644)
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(place), code_path() or os.environ.get("PYTHONPATH")]))}
