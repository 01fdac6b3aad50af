"""A whole benchmark: clients, the bare model and the agent, each in processes of their own, measured one after the other."""

import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edge_agent.bench import frames as framing
from edge_agent.bench import usage
from edge_agent.bench.caller import CALL_TIMEOUT
from edge_agent.bench.crew import Crew, MeasuringFailed, Member
from edge_agent.bench.figures import percentile
from edge_agent.bench.frames import Frames
from edge_agent.bench.plan import Plan
from edge_agent.bench.report import Measurement, Report
from edge_agent.bench.status import stages_between
from edge_agent.bench.subject import Beside, Subject
from edge_agent.bench.usage import Sample
from edge_agent.segments import SegmentPool

# Between an order and the instant at which all begin.
LEAD = 0.1
TURN = 0.15
OTHERS = "Other programs called the model meanwhile: their calls are in the stages and in the agent's processors."
PATIENCE = 2 * CALL_TIMEOUT + 5


@dataclass
class Told:
    """What whoever watches is told: before each measurement, and of what was found."""

    before: Callable[[str], None] = lambda _: None
    found: Callable[[Measurement], None] = lambda _: None
    notes: list[str] = field(default_factory=list)


def run(subject: Subject, plan: Plan, sent: list[Frames], beside: Beside | None, report: Report, told: Told) -> Report:
    """Measure everything; return the report with what was found. Raises MeasuringFailed, SharedMemoryFull."""
    busy: dict[int, float] = {}
    before = Sample.take(subject.agent, ())
    for frames in sent:
        with ExitStack() as stack:
            bench = _Bench(subject, plan, frames, told, stack)
            if beside:
                report = bench.rival(beside, report)
            report = report.plus(*bench.turns())
            report = report.plus(*bench.loads())
        after = Sample.take(subject.agent, ())
        busy = {pid: used - before.agent.get(pid, 0.0) for pid, used in after.agent.items()}
    return replace(report, memory=usage.memory(subject.agent, busy), notes=(*report.notes, *told.notes))


class _Bench:
    """The measurements of one size of images."""

    def __init__(self, subject: Subject, plan: Plan, frames: Frames, told: Told, stack: ExitStack) -> None:
        self._subject, self._plan, self._told = subject, plan, told
        pool = SegmentPool(subject.socket)
        stack.callback(pool.close)
        self._pool = pool
        shared = "shm" in plan.ways
        self._frames = framing.fitting(frames, plan.most_clients) if shared else frames
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-agent-bench-")))
        if "inline" in plan.ways:
            framing.save(self._frames, folder / "frames")
        self._crew = stack.enter_context(Crew())
        setups = {f"client {number}": self._setup(folder, shared) for number in range(1, plan.most_clients + 1)}
        self._clients = self._crew.start("edge_agent.bench.caller", setups)
        self._rival: list[Member] = []
        self._place: Any = None
        self._sums: Mapping[str, float] | None = None

    def _setup(self, folder: Path, shared: bool) -> dict[str, Any]:
        """Return what a client gets, its segment among it."""
        width, height = self._frames.size
        return {
            "target": self._subject.target,
            "model": self._subject.model,
            "width": width,
            "height": height,
            "images": len(self._frames.pixels),
            "segment": framing.place(self._frames, self._pool).name if shared else "",
            "frames": str(folder / "frames"),
        }

    def rival(self, beside: Beside, report: Report) -> Report:
        """Start the bare model, to take turns; return the report with its stages, or a note why there is none."""
        width, height = self._frames.size
        try:
            self._place = framing.place(self._frames.first(1), self._pool)
            order = {
                "package": str(beside.package),
                "uid": beside.uid,
                "segment": self._place.name,
                "width": width,
                "height": height,
                "options": dict(beside.options),
            }
            self._rival = self._crew.start("edge_agent.bench.rival", {"bare model": order})
            self._rival[0].ask({"kind": "stages"})
            stages = self._rival[0].answer(PATIENCE)
        except (MeasuringFailed, OSError) as error:
            self._crew.discard(self._rival)
            self._rival = []
            self._told.notes.append(f"There is no comparison with the bare model: {error}")
            return report
        return replace(report, bare_stages=report.bare_stages or stages)

    def turns(self) -> list[Measurement]:
        """Measure one call at a time, the bare model and each way of sending in turns, so that none has the better time."""
        contenders = {"bare": self._rival[0]} if self._rival else {}
        contenders |= dict.fromkeys(self._plan.ways, self._clients[0])
        self._told.before("one call at a time" + (", in turns with the bare model" if self._rival else ""))
        answers: dict[str, list[dict[str, Any]]] = {way: [] for way in contenders}
        until = time.perf_counter() + self._plan.seconds * len(contenders)
        turn = 0
        while not turn or time.perf_counter() < until:
            image = self._frames.pixels[turn % len(self._frames.pixels)]
            if self._place:
                framing.put(self._place, image)
            for way, member in contenders.items():
                member.ask({"kind": "turn", "way": way, "seconds": min(TURN, self._plan.seconds / 4), "image": turn})
                answers[way].append(member.answer(PATIENCE))
            turn += 1
        self._crew.discard(self._rival)
        found = [self._of_turns(way, given) for way, given in answers.items()]
        for one in found:
            self._told.found(one)
        return found

    def _of_turns(self, way: str, answers: list[dict[str, Any]]) -> Measurement:
        times = tuple(one for answer in answers for one in answer["times"])
        return Measurement("turns", way, self._frames.size, 1, sum(times), times, _errors(answers))

    def loads(self) -> list[Measurement]:
        """Measure clients at once, then parts at a line's pace."""
        self._subject.status.settle()
        self._sums = self._subject.status.sums()
        found = [self._closed(way, clients) for way, clients in self._plan.closed()]
        best = max(one.throughput for one in found if one.way == self._plan.pace_way)
        rates = self._plan.rates or [_rounded(load * best) for load in self._plan.loads]
        return [*found, *map(self._open, rates)]

    def _closed(self, way: str, clients: int) -> Measurement:
        asked = Measurement("closed", way, self._frames.size, clients, 0.0, ())
        share = len(self._frames.pixels) / clients
        orders = [{"kind": "closed", "first": round(number * share)} for number in range(clients)]
        return self._measure(asked, orders)

    def _open(self, rate: float) -> Measurement:
        asked = Measurement("open", self._plan.pace_way, self._frames.size, 1, 0.0, (), rate=rate)
        return self._measure(asked, [{"kind": "open", "rate": rate}])

    def _measure(self, asked: Measurement, orders: list[dict[str, Any]]) -> Measurement:
        """Let as many clients as there are orders do them at once; return the measurement with what came of it."""
        self._told.before(asked.name)
        members = self._clients[: len(orders)]
        begin = time.perf_counter() + LEAD
        counted = begin + self._plan.warm_up
        until = counted + self._plan.counted(asked.rate)
        for member, order in zip(members, orders, strict=True):
            member.ask({**order, "way": asked.way, "begin": begin, "counted": counted, "until": until})
        samples = []
        for instant in (counted, until):
            self._crew.sleep_until(instant)
            samples.append((Sample.take(self._subject.agent, [one.pid for one in members]), time.perf_counter()))
        give_up = time.perf_counter() + PATIENCE
        answers = [member.answer(give_up - time.perf_counter()) for member in members]
        (first, began), (last, ended) = samples
        found = replace(
            asked,
            seconds=max([until, *(answer["last"] for answer in answers)]) - counted,
            times=tuple(one for answer in answers for one in answer["times"]),
            errors=_errors(answers),
            usage=last.since(first, ended - began),
            late=_late(answers),
        )
        found = replace(found, stages=self._stages(found, sum(answer["good"] for answer in answers)))
        self._told.found(found)
        return found

    def _stages(self, found: Measurement, good: int) -> dict[str, float] | None:
        """Return the stages by what the agent has summed up since the last time."""
        status, before, figures = self._subject.status, self._sums, found.figures
        status.settle()
        after = self._sums = status.sums()
        if before and after and after["calls"] - before["calls"] != good and OTHERS not in self._told.notes:
            self._told.notes.append(OTHERS)
        return stages_between(before, after, figures.mean if figures else None)


def _errors(answers: list[dict[str, Any]]) -> dict[str, int]:
    codes = sorted({code for answer in answers for code in answer["errors"]})
    return {code: sum(answer["errors"].get(code, 0) for answer in answers) for code in codes}


def _rounded(rate: float) -> float:
    """Return a rate that can be read: of three digits."""
    return float(f"{rate:.3g}")


def _late(answers: list[dict[str, Any]]) -> float | None:
    late = sorted(one for answer in answers for one in answer.get("late", ()))
    return percentile(late, 99) if late else None
