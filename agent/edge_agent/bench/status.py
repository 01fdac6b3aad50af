"""What the agent tells of itself, from its status file, as far as this user may read it."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_agent import state
from edge_agent.errors import AgentRefused
from edge_agent.jobs import STAGES
from edge_agent.status import INTERVAL

LONGEST = 64 << 20
MARGIN = 0.2
SUMS = ("calls", "queue", *STAGES)


class AgentStatus:
    """The agent's status file, as of one model."""

    def __init__(self, socket: Path, state_dir: Path | None, model: str) -> None:
        """Look for the file; `why_not` says why it cannot be read, and is empty when it can."""
        self._model = model
        self.why_not = ""
        self._path = Path()
        try:
            self._path = state.StateFolder((state_dir or state.default_folder()).absolute(), socket).status_file()
            self._read()
        except FileNotFoundError:
            self.why_not = f"no agent on this socket has kept its status in {self._path.parent}; name its --state-dir"
        except OSError as error:
            self.why_not = f"{self._path} cannot be read: {error.strerror}; run this as the agent's user or as root"
        except AgentRefused as refusal:
            self.why_not = str(refusal)
        except (ValueError, LookupError, TypeError, RecursionError):
            self.why_not = f"{self._path} is not what this version of the agent writes"

    def _read(self) -> dict[str, Any]:
        """Return what is told of the model; raise whatever a file that is none makes us stumble over."""
        found = json.loads(state.read_plain(self._path, LONGEST))
        named: dict[str, dict[str, Any]] = {one["model"]: one for one in found["models"]}
        return named[self._model]

    def model(self) -> Mapping[str, Any]:
        """Return what is told of the model this instant, nothing where that cannot be had."""
        if self.why_not:
            return {}
        try:
            return self._read()
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return {}

    def settle(self) -> None:
        """Wait until all that has happened is in the file, which is at most a second behind."""
        if not self.why_not:
            time.sleep(INTERVAL + MARGIN)

    def sums(self) -> dict[str, float] | None:
        """Return the sums of seconds of each stage over all good calls, and their number as `calls`; None without them."""
        stages = self.model().get("stages")
        try:
            return {key: float(stages[key]) for key in SUMS} if stages else None
        except (KeyError, TypeError, ValueError):
            return None


def stages_between(
    before: Mapping[str, float] | None, after: Mapping[str, float] | None, mean: float | None
) -> dict[str, float] | None:
    """Return the mean seconds of a call in each stage between two sums, None where they do not tell.

    `mean` is that of the calls as their clients saw them; what the stages do not explain of it is `transport`.
    """
    if not before or not after or mean is None or (calls := after["calls"] - before["calls"]) <= 0:
        return None
    found = {key: max(0.0, after[key] - before[key]) / calls for key in SUMS[1:]}
    return {"transport": max(0.0, mean - sum(found.values())), **found}
