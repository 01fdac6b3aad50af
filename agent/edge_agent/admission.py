"""The agent's places for detections in hand, which one model cannot take from the others: each always finds one."""

import logging
import threading
from collections.abc import Callable, Collection, Mapping

from edge_agent.errors import CannotKeepUp, shown

logger = logging.getLogger(__name__)


class Admission:
    """Counts detections in and out by model. Any thread may call.

    A place is kept for each loaded model that has no detection in hand, so that its first is never refused because of
    what others are sent. What is free beyond that is for whoever comes first.
    """

    def __init__(self, most: int, deployed: Callable[[], int], loaded: Callable[[], Collection[str]]) -> None:
        """Admit at most so many at a time; `deployed` counts the models that may be loaded, `loaded` names those that are.

        `loaded` is asked only where so few places are left that it matters, and then anew each time: nothing is noted here
        of models that start, stop, fail or go.
        """
        self._most = most
        self._deployed = deployed
        self._loaded = loaded
        self._lock = threading.Lock()
        self._total = 0
        # By model; who has none is not in it.
        self._in_hand: dict[str, int] = {}
        self._told = 0

    def enter(self, name: str) -> None:
        """Count a detection of a model in, `leave` must follow; raise CannotKeepUp where there is no place for it."""
        with self._lock:
            if self._total + self._deployed() >= self._most:
                self._check(name)
            self._total += 1
            self._in_hand[name] = self._in_hand.get(name, 0) + 1

    def leave(self, name: str) -> None:
        """Count a detection of a model out."""
        with self._lock:
            self._total -= 1
            self._in_hand[name] -= 1
            if not self._in_hand[name]:
                del self._in_hand[name]

    def compare(self, wanted: Mapping[str, int], *, changed: bool = False) -> None:
        """Warn where models that may have so many detections in hand may have more than there are places.

        It is told once until that is over, and once more where what they may have was `changed` by settings.
        """
        needed = sum(wanted.values())
        if needed <= self._most:
            self._told = 0
        elif not self._told or (changed and needed != self._told):
            self._told = needed
            logger.warning(
                "The %d models that are loaded may have %d detections in hand (queue_limit and slots of each), and max_calls is %d: "
                "when many are called too often, the calls of one are refused because of another's, all but one at a time. "
                "Raise max_calls, or lower queue_limit.",
                len(wanted),
                needed,
                self._most,
            )

    def _check(self, name: str) -> None:
        """Raise CannotKeepUp unless there is a place for one more detection of a model; the lock must be held."""
        loaded = self._loaded()
        kept = sum(one not in self._in_hand for one in loaded)
        if name in loaded and name not in self._in_hand:
            kept = 0  # one of them is its own
        if self._total + kept >= self._most:
            raise CannotKeepUp(self._full(name, kept))

    def _full(self, name: str, kept: int) -> str:
        """Return whose calls take the places, and what to do; the lock must be held."""
        busiest, count = max(self._in_hand.items(), key=lambda one: one[1], default=(name, 0))
        places = (
            f" and keeps {kept} of its max_calls, {self._most}, for models that have none"
            if kept
            else ", its max_calls"
        )
        return (
            f"The agent has {self._total} detections in hand{places}; {shown(busiest)} has the most, {count}. Send fewer calls at "
            f"once, or call again later; if {shown(busiest)} is called too often, lower its queue_limit or raise max_calls."
        )
