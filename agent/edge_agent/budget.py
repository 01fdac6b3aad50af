"""How often a worker may die: back-off between restarts, and a budget of deaths. A pure rule, no I/O and no clock."""

import random
from collections import deque
from collections.abc import Callable

MOST_DEATHS = 5
WINDOW = 60.0
GOOD_ANSWERS = 100
FIRST_DELAY = 0.1
LONGEST_DELAY = 30.0
# So that models that died together are not started together again and again.
JITTER = 0.25


class RestartBudget:
    """Five deaths within 60 s are too many; 100 good answers, or 60 s without a death, begin anew.

    Time without a process does not count: who cannot be replaced has not lived without a death.
    """

    def __init__(self, spread: Callable[[float, float], float] = random.uniform) -> None:
        """`spread` returns a number between two."""
        self._spread = spread
        self._deaths: deque[float] = deque(maxlen=MOST_DEATHS)
        self._delay = FIRST_DELAY
        self._answers = 0

    @property
    def deaths(self) -> int:
        """The deaths that count."""
        return len(self._deaths)

    def answered(self) -> None:
        """Count a good answer."""
        self._answers += 1
        if self._answers == GOOD_ANSWERS:
            self._begin_anew()

    def died(self, now: float, *, ran: bool = True) -> float | None:
        """Count a death at `now` (time.monotonic); return the seconds until the restart, None when it is one too many.

        `ran` is False where no process had come into the place of the one that died before.
        """
        if not ran and self._deaths:
            lost = now - self._deaths[-1]
            self._deaths = deque((death + lost for death in self._deaths), MOST_DEATHS)
        if self._deaths and now - self._deaths[-1] >= WINDOW:
            self._begin_anew()
        self._answers = 0
        self._deaths.append(now)
        delay, self._delay = self._delay, min(2 * self._delay, LONGEST_DELAY)
        if len(self._deaths) == MOST_DEATHS and now - self._deaths[0] < WINDOW:
            return None
        return min(delay * self._spread(1 - JITTER, 1 + JITTER), LONGEST_DELAY)

    def _begin_anew(self) -> None:
        self._deaths.clear()
        self._delay = FIRST_DELAY
