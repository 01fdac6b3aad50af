"""What a benchmark found: inert data, written as JSON and CSV, told in a table and drawn on a page. Times in seconds."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from edge_agent.bench.figures import Figures

WAYS = {"bare": "bare model", "shm": "shared memory", "inline": "inline"}
EXHAUSTED = "RESOURCE_EXHAUSTED"
# In the order in which a call goes through them; `transport` is what is left: gRPC and its wake-ups.
STAGES = ("transport", "queue", "copy", "preprocess", "run", "postprocess")


@dataclass(frozen=True)
class Usage:
    """Processors in use on average: by the agent's processes, the clients, and everything on the device; of `cores`."""

    agent: float
    clients: float
    device: float
    cores: int

    @property
    def others(self) -> float:
        """Processors that neither agent nor clients used."""
        return max(0.0, self.device - self.agent - self.clients)


@dataclass(frozen=True)
class Memory:
    """Resident and proportional bytes of one of the agent's processes; `pss` is None where this user may not see it."""

    process: str
    pid: int
    rss: int
    pss: int | None


@dataclass(frozen=True)
class Measurement:
    """One load and what came of it.

    Args:
        kind: `turns` (one call at a time, in turns with others), `closed` (each client calls as soon as it has its
            answer) or `open` (calls at a fixed schedule).
        way: bare, shm or inline.
        size: of the images, (width, height).
        clients: how many called at once.
        rate: calls a second of the schedule, for `open`.
        seconds: from the first counted instant to the last answer.
        times: of the good calls, in the order in which they were begun; for `open` from the scheduled instant.
        errors: calls that were not answered with a verdict, by gRPC code.
        stages: mean seconds of a good call in each of STAGES, where the agent could be asked.
        usage: processors in use, where they could be seen.
        late: how late the calls of a schedule were sent at the 99th percentile.

    """

    kind: str
    way: str
    size: tuple[int, int]
    clients: int
    seconds: float
    times: tuple[float, ...]
    errors: Mapping[str, int] = field(default_factory=dict)
    rate: float | None = None
    stages: Mapping[str, float] | None = None
    usage: Usage | None = None
    late: float | None = None

    @property
    def name(self) -> str:
        """What was measured, in words."""
        if self.kind == "turns":
            return WAYS[self.way] if self.way == "bare" else f"one at a time, {WAYS[self.way]}"
        if self.rate is not None:
            return f"{self.rate:g} parts a second, {WAYS[self.way]}"
        return f"{self.clients} client{'s' if self.clients > 1 else ''}, {WAYS[self.way]}"

    @property
    def figures(self) -> Figures | None:
        """The figures of the good calls, None when there were none."""
        return Figures.of(self.times)

    @property
    def calls(self) -> int:
        """All calls, good and bad."""
        return len(self.times) + sum(self.errors.values())

    @property
    def rejected(self) -> int:
        """Calls that the agent refused since it could not keep up."""
        return self.errors.get(EXHAUSTED, 0)

    @property
    def throughput(self) -> float:
        """Good calls a second."""
        return len(self.times) / self.seconds if self.seconds else 0.0

    @property
    def keeps_up(self) -> bool:
        """Whether a schedule was kept: all calls good, and no wait that grows.

        The median of the last quarter of the parts is at most the time between two parts above that of the first.
        """
        quarter = max(1, len(self.times) // 4)
        first, last = Figures.of(self.times[:quarter]), Figures.of(self.times[-quarter:])
        if self.rate is None or any(self.errors.values()) or not first or not last:
            return False
        return last.p50 - first.p50 <= 1 / self.rate


@dataclass(frozen=True)
class Report:
    """A whole benchmark; `notes` are sentences of what could not be told, and why."""

    model: str
    device: Mapping[str, Any]
    options: Mapping[str, Any] | None
    images: str
    measurements: tuple[Measurement, ...] = ()
    memory: tuple[Memory, ...] = ()
    bare_stages: Mapping[str, float] | None = None
    notes: tuple[str, ...] = ()

    def plus(self, *found: Measurement) -> "Report":
        """Return the report with more measurements."""
        return replace(self, measurements=(*self.measurements, *found))

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """The sizes of images that were measured, in their order."""
        return list(dict.fromkeys(one.size for one in self.measurements))

    def of(self, kind: str, *ways: str, size: tuple[int, int] | None = None) -> list[Measurement]:
        """Return the measurements of a kind, of those ways and that size where they are given."""
        return [
            one
            for one in self.measurements
            if one.kind == kind and (not ways or one.way in ways) and size in (None, one.size)
        ]

    def best(self, size: tuple[int, int]) -> Measurement | None:
        """Return the measurement of clients at once with the most good calls a second."""
        return max(self.of("closed", size=size), key=lambda one: one.throughput, default=None)
