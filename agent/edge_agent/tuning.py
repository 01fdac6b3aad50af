"""Which ways to run a model are measured against each other, and which is best: rules, without I/O or clock."""

import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

from edge_agent.kinds import MOST_SLOTS

Goal = Literal["latency", "throughput"]
GOALS: tuple[Goal, ...] = get_args(Goal)

# Turns of each candidate. A device drifts, by its temperature and its other work: no candidate has all turns at once.
ROUNDS = 5
# From so many turns on, who is slower than the best by more than this factor has no further ones.
TRIAL_ROUNDS = 2
BEATEN = 1.5
# Speeds that differ by less are the same: two runs of one candidate do. Of the same, the one that takes least wins.
SAME = 0.03
# Spinning threads keep a processor busy while they wait. Beside other work they cost more than they bring on an idle
# device, which is the only one that can be measured, so that a small gain is none.
SPINNING_GAIN = 0.10
# More threads than this on a processor only wait for each other.
THREADS_A_CORE = 2


class CannotRun(Exception):
    """A candidate cannot be run on this device; the text says why."""


@dataclass(frozen=True)
class Candidate:
    """One way to run a model: the threads of a call, how many calls at once, and whether threads spin."""

    threads: int
    slots: int
    spinning: bool = False

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
        slots = f"{self.slots} slot{'s' * (self.slots != 1)}"
        return f"{threads}, {slots}{', spinning' * self.spinning}"

    @property
    def effort(self) -> tuple[bool, int, int]:
        """How much of the device it takes, for comparing: spinning most, then all its threads, then those of a call."""
        return self.spinning, self.threads * self.slots, self.threads

    def can_be_best(self, goal: Goal) -> bool:
        """Return whether it can be best for a goal: with one call at a time, what a second slot seems to gain is noise."""
        return goal == "throughput" or self.slots == 1


@dataclass(frozen=True)
class Turn:
    """What one turn of a candidate gave.

    `latencies` are the seconds of each call, one at a time; `rate` the calls a second with all slots busy; `cpu` the
    processor's seconds for a call; `memory` the worker's bytes (PSS), None where the system does not tell.
    """

    latencies: tuple[float, ...]
    rate: float
    cpu: float
    memory: int | None


@dataclass(frozen=True)
class Figures:
    """What all turns of a candidate gave: p50, p99 and cpu in seconds, rate in calls a second, memory in bytes."""

    p50: float
    p99: float
    rate: float
    cpu: float
    memory: int | None
    rounds: int

    @classmethod
    def of(cls, turns: Sequence[Turn]) -> "Figures":
        """Return the medians of the turns, so that one that was disturbed does not count; p99 and memory are of all."""
        every = sorted(one for turn in turns for one in turn.latencies)
        return cls(
            statistics.median(statistics.median(turn.latencies) for turn in turns),
            every[min(len(every) - 1, round(0.99 * len(every)))],
            statistics.median(turn.rate for turn in turns),
            statistics.median(turn.cpu for turn in turns),
            max((turn.memory for turn in turns if turn.memory is not None), default=None),
            len(turns),
        )

    def speed(self, goal: Goal) -> float:
        """Return calls a second: of one caller, or of as many as there are slots."""
        return 1 / self.p50 if goal == "latency" else self.rate


Measured = Mapping[Candidate, Figures]


@dataclass
class Outcome:
    """The figures of each candidate that ran, those that were dropped early, and why others could not run."""

    measured: dict[Candidate, Figures] = field(default_factory=dict)
    dropped: list[Candidate] = field(default_factory=list)
    failed: dict[Candidate, str] = field(default_factory=dict)


class Watcher(Protocol):
    """Who is told how far the measurement is."""

    def turned(self, done: int) -> None:
        """Be told how many turns are over, those included that are not needed any more."""

    def dropped(self, candidate: Candidate) -> None:
        """Be told that a candidate was clearly beaten."""

    def failed(self, candidate: Candidate, reason: str) -> None:
        """Be told that a candidate could not be run."""


def plan(cores: int) -> list[Candidate]:
    """Return the candidates for a device: threads and slots by powers of two up to all processors."""
    counts = sorted({1, cores, *(2**power for power in range(cores.bit_length()) if 2**power <= cores)})
    return [
        Candidate(threads, slots, spinning)
        for threads in counts
        for slots in counts
        for spinning in (False, True)
        # One thread has none to wait for.
        if threads * slots <= THREADS_A_CORE * cores and slots <= MOST_SLOTS and not (spinning and threads == 1)
    ]


def compete(candidates: Iterable[Candidate], turn: Callable[[Candidate], Turn], watcher: Watcher) -> Outcome:
    """Give each candidate its turns, round by round; those that are clearly beaten, or raise CannotRun, leave early."""
    racing = list(candidates)
    outcome, turns = Outcome(), {one: list[Turn]() for one in racing}
    done = 0
    for number in range(ROUNDS):
        left = ROUNDS - number - 1
        # To and fro, so that a drift does not favour the first.
        for candidate in racing if number % 2 == 0 else racing[::-1]:
            done += 1
            try:
                turns[candidate].append(turn(candidate))
            except CannotRun as failure:
                outcome.failed[candidate] = str(failure)
                watcher.failed(candidate, str(failure))
                done += left
            watcher.turned(done)
        racing = [one for one in racing if one not in outcome.failed]
        if left and number + 1 >= TRIAL_ROUNDS:
            slow = beaten({one: Figures.of(turns[one]) for one in racing})
            for candidate in slow:
                watcher.dropped(candidate)
            racing = [one for one in racing if one not in slow]
            outcome.dropped += slow
            done += left * len(slow)
            watcher.turned(done)
    outcome.measured = {one: Figures.of(own) for one, own in turns.items() if one not in outcome.failed}
    return outcome


def beaten(measured: Measured) -> list[Candidate]:
    """Return who is clearly slower than the best for every goal that it could be best for."""
    return [
        candidate
        for candidate, figures in measured.items()
        if all(
            figures.speed(goal) * BEATEN < max(measured[one].speed(goal) for one in _able(measured, goal))
            for goal in GOALS
            if candidate.can_be_best(goal)
        )
    ]


def best(measured: Measured, goal: Goal) -> Candidate | None:
    """Return who is fastest, of the same speed who takes least; None where nobody was measured.

    Who spins has to be faster by SPINNING_GAIN than all who do not.
    """
    able = _able(measured, goal)
    quiet = max((measured[one].speed(goal) for one in able if not one.spinning), default=0.0)
    allowed = [one for one in able if not one.spinning or measured[one].speed(goal) > quiet * (1 + SPINNING_GAIN)]
    top = max((measured[one].speed(goal) for one in allowed), default=0.0)
    same = [one for one in allowed if measured[one].speed(goal) * (1 + SAME) >= top]
    return min(same, key=lambda one: one.effort, default=None)


def _able(measured: Measured, goal: Goal) -> Collection[Candidate]:
    return [one for one in measured if one.can_be_best(goal)]
