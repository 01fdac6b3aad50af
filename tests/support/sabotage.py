"""Agents that are broken on purpose, so that a test can be seen to notice it."""

import os
from pathlib import Path

from support.users import code_path

# Python runs a module of this name before all else.
MODULE = "sitecustomize.py"
# The process whose number is in a file answers no ListModels for as long, and all of it but that runs on.
HANGS = """
import os, pathlib, time
from edge_agent import models
every = models.Models.all
def hanging(self):
    flag = pathlib.Path({flag!r})
    while flag.exists() and flag.read_text() == str(os.getpid()):
        time.sleep(0.01)
    return every(self)
models.Models.all = hanging
"""
# systemd is told that the agent lives as often as ever, whether it answers or not.
TELLS_BY_A_TIMER = """
from edge_agent import watchdog
watchdog.Watchdog._call = lambda self: ""
"""


def sabotaged(folder: Path, code: str) -> dict[str, str]:
    """Return an environment in which an agent and its children run `code` before anything else.

    What is wrong with the code is only printed, so a test must not go by the damage alone.
    """
    place = folder / "sabotage"
    place.mkdir(mode=0o755)
    (place / MODULE).write_text(code)
    (place / MODULE).chmod(0o644)
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(place), code_path() or os.environ.get("PYTHONPATH")]))}
