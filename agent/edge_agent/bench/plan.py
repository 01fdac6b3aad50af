"""What is measured in a benchmark, in which order, and for how long."""

from collections.abc import Iterator
from dataclasses import dataclass

# Of the most that clients at once achieved, where no line's rate is given.
LOADS = (0.5, 0.8, 0.95)
# Between two loads, for the agent's status file to catch up with what has happened.
PAUSE = 1.2
FEWEST_PARTS = 8
LONGEST_PACE = 60.0


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Args:
        ways: how images are sent: shm, inline.
        clients: how many call at once, in each measurement of closed loop.
        rates: calls a second, in each measurement of open loop; none: `loads` times what the clients achieved.
        seconds: for which each is measured, after `warm_up` seconds that are not counted.
    """

    ways: tuple[str, ...] = ("shm", "inline")
    clients: tuple[int, ...] = (1, 2, 4, 8)
    rates: tuple[float, ...] = ()
    seconds: float = 4.0
    loads: tuple[float, ...] = LOADS

    @property
    def warm_up(self) -> float:
        """Seconds before each measurement that are not counted."""
        return min(1.0, self.seconds / 4)

    def counted(self, rate: float | None) -> float:
        """Return the seconds that are counted: of a schedule enough for some parts, if that is at all reasonable."""
        return max(self.seconds, min(LONGEST_PACE, FEWEST_PARTS / rate)) if rate else self.seconds

    @property
    def pace_way(self) -> str:
        """The way by which a line's parts are sent."""
        return self.ways[0]

    @property
    def most_clients(self) -> int:
        """How many clients there are."""
        return max(self.clients)

    @property
    def paces(self) -> int:
        """How many rates are measured."""
        return len(self.rates or self.loads)

    def closed(self) -> Iterator[tuple[str, int]]:
        """Yield the way and the number of clients of each measurement of closed loop."""
        for way in self.ways:
            for clients in self.clients:
                yield way, clients

    def steps(self) -> int:
        """Return how many measurements there are of one size; those that take turns are one."""
        return 1 + len(self.ways) * len(self.clients) + self.paces

    def lasts(self, *, settling: bool) -> float:
        """Return the seconds that measuring one size takes, `settling` with the pauses between two loads."""
        loads = self.steps() - 1
        pauses = (loads + 1) * PAUSE if settling else 0.0
        return self.seconds * (1 + len(self.ways)) + loads * (self.seconds + self.warm_up) + pauses
