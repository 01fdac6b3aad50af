"""Measuring one way to run a model: with a worker as the agent's, and a frame in shared memory, without gRPC."""

import contextlib
import functools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_agent.bench.bare import Frame
from edge_agent.bitmaps import CHANNELS, Image
from edge_agent.config import Settings
from edge_agent.deaths import WorkerDied
from edge_agent.errors import EdgeAgentError, PackageRefused
from edge_agent.jobs import Job, SessionOptions
from edge_agent.log import LogSettings
from edge_agent.memory import MemoryLedger
from edge_agent.packages import Found
from edge_agent.spawner import Spawner
from edge_agent.supervisor import Worker
from edge_agent.tuning import Candidate, CannotRun, Turn
from edge_agent.ways import Ways

if TYPE_CHECKING:
    from typing_extensions import Self

# A worker has warmed up by itself; these calls are for its buffers, and for ours.
WARM_UP_CALLS = 2
# However slow a model is, a median needs some calls.
LEAST_CALLS = 5
LEAST_CALLS_OF_A_SLOT = 2
# The system tells times in hundredths of a second.
TICK = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class _Clock:
    """Seconds: the time, what all processors have computed (for us, or for others on the same host), and this process."""

    time: float
    busy: float
    ours: float

    @classmethod
    def now(cls) -> "_Clock":
        ticks = list(map(int, Path("/proc/stat").read_text().partition("\n")[0].split()[1:]))
        user, nice, system, _idle, _wait, irq, softirq, steal = ticks[:8]
        busy = (user + nice + system + irq + softirq + steal) * TICK
        return cls(time.perf_counter(), busy, time.process_time())


class Stand:
    """Where the candidates have their turns, one worker at a time, so that none takes the memory of another.

    Use it in a `with` statement, which leaves neither segment nor process.
    """

    def __init__(self, found: Found, settings: Settings, seconds: float) -> None:
        """Measure a package that was accepted, for about so many seconds a turn, with the agent's settings."""
        assert found.package is not None  # who found it has looked
        manifest = found.package.manifest
        self._found = found
        self._settings = settings
        self._seconds = seconds
        self._size = manifest.image_size
        self._has_mask = manifest.stage.segmentation
        self._ledger = MemoryLedger(settings.memory_reserve)
        self._ways = Ways(settings)
        self._opened = contextlib.ExitStack()
        # What our workers have computed, and what everybody and we ourselves had, and when, as it began.
        self._by_workers = 0.0
        self._began = _Clock(0.0, 0.0, 0.0)
        # In the folder that is the default: it is set for all of this process.
        self._spawner = Spawner(Path(tempfile.gettempdir()), LogSettings("error", settings.log_format))

    def __enter__(self) -> "Self":
        self._spawner.start()
        width, height = self._size
        noise = np.random.default_rng(0).integers(0, 256, CHANNELS * width * height, np.uint8).tobytes()
        frame = self._opened.enter_context(contextlib.closing(Frame(noise, width, height)))
        image = Image(width, height, CHANNELS * width, frame.source)
        self._job = Job(image, frame.mask if self._has_mask else None)
        self._began = _Clock.now()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def turn(self, candidate: Candidate) -> Turn:
        """Load the model as the candidate says and measure it; raise CannotRun where that does not work."""
        try:
            with self._loaded(candidate) as worker:
                return self._measure(worker, candidate.slots)
        except (PackageRefused, EdgeAgentError) as refusal:
            raise CannotRun(str(refusal)) from None
        except WorkerDied as death:
            raise CannotRun(f"Its worker process ended: {death}.") from None

    def used_by_others(self) -> float:
        """Return how many processors all other work has kept busy on average since it began, that of a host included."""
        now, began = _Clock.now(), self._began
        ours = self._by_workers + now.ours - began.ours
        return max(0.0, now.busy - began.busy - ours) / max(TICK, now.time - began.time)

    @contextlib.contextmanager
    def _loaded(self, candidate: Candidate) -> Iterator[Worker]:
        worker = Worker(self._spawner, self._found, self._options(candidate), self._of_model("call_timeout"))
        try:
            worker.load(self._settings.load_timeout, self._settings.build_timeout)
            yield worker
        except BaseException:
            worker.kill("the measurement was ended")  # else a call in hand would delay the end
            raise
        finally:
            with contextlib.suppress(OSError, ValueError):  # it has ended
                self._by_workers += cpu_seconds(worker.pid)
            worker.stop()
            worker.release()

    def _options(self, candidate: Candidate) -> SessionOptions:
        limit = self._of_model("memory_limit") or self._ledger.room()
        if limit <= 0:
            raise CannotRun("No memory is free above memory_reserve; stop another model.")
        cpus, name = self._of_model("cpus"), self._found.name
        options = SessionOptions(candidate.threads, candidate.spinning, int(limit), candidate.slots, cpus)
        first = self._ways.choose(name, self._found).first
        return options if first == "cpu" else replace(options, accelerator=first, gpu=self._ways.gpu_options(name))

    def _of_model(self, key: str) -> Any:
        return self._settings.of_model(self._found.name, key)

    def _measure(self, worker: Worker, slots: int) -> Turn:
        calls = [functools.partial(worker.call, self._job, None, slot) for slot in range(slots)]
        for call in calls:
            for _ in range(WARM_UP_CALLS):
                call()
        used = cpu_seconds(worker.pid)
        latencies = _timed(calls[0], self._seconds / 2, LEAST_CALLS)
        together = _at_once(calls, self._seconds / 2, worker)
        count = len(latencies) + sum(map(len, together))
        used = cpu_seconds(worker.pid) - used
        rate = sum(len(times) / sum(times) for times in together)
        return Turn(tuple(latencies), rate, used / count, memory_of(worker.pid))


def _timed(call: Callable[[], object], seconds: float, least: int) -> list[float]:
    """Call again and again for so many seconds, `least` times at least; return the seconds of each call."""
    times: list[float] = []
    now = time.perf_counter()
    end = now + seconds
    while len(times) < least or now < end:
        begin = time.perf_counter()
        call()
        now = time.perf_counter()
        times.append(now - begin)
    return times


def _at_once(calls: Sequence[Callable[[], object]], seconds: float, worker: Worker) -> list[list[float]]:
    """Keep every slot busy with a caller of its own; return the seconds of each caller's calls.

    A slot takes the next call only when the one before is answered, so that more callers would only wait in our process.
    """
    with futures.ThreadPoolExecutor(len(calls)) as pool:
        callers = [pool.submit(_timed, call, seconds, LEAST_CALLS_OF_A_SLOT) for call in calls]
        try:
            return [caller.result() for caller in callers]
        except BaseException:
            worker.kill("the measurement was ended")  # else the pool would wait for its other callers
            raise


def cpu_seconds(pid: int) -> float:
    """Return the seconds that a process and its threads have computed (proc(5)), cut to hundredths."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) * TICK


def memory_of(pid: int) -> int | None:
    """Return the bytes that a process takes, its share of shared pages included (PSS); None where that is not told."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), None)
