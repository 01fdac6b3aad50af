"""Starting the worker processes of a model, on the first accelerator that works."""

import itertools
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from edge_agent.accelerators import WORDS, Failed, instead, nothing_left
from edge_agent.deaths import WorkerDied
from edge_agent.errors import AcceleratorMissing, PackageRefused
from edge_agent.jobs import Accelerator, SessionOptions
from edge_agent.metrics import Metrics
from edge_agent.packages import Found, Signature
from edge_agent.plan import Plan
from edge_agent.spawner import Spawner
from edge_agent.supervisor import Worker

logger = logging.getLogger(__name__)


class NotStarted(WorkerDied):
    """There is no process that could have died: it could not be started."""


@dataclass(frozen=True)
class Limits:
    """Seconds that a worker may take: to load, to load while an engine is built, and for a call (None: by its warm-up)."""

    load: float
    build: float
    call: float | None


class Starter:
    """Starts the workers of one model, in the first way that works, and can be told to start no more."""

    def __init__(
        self,
        name: str,
        spawner: Spawner,
        plan: Callable[[Found], Plan],
        limits: Limits,
        metrics: Metrics,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Start as `plan` says for a package; `tell` is told what is being done while it is loaded."""
        self._name = name
        self._spawner = spawner
        self._plan = plan
        self._limits = limits
        self._metrics = metrics
        self._tell = tell
        self._lock = threading.Lock()
        self._loading: Worker | None = None
        self._ended = ""
        # The package that was loaded last, the way that worked, and what came before it.
        self._worked: tuple[Signature, Accelerator, tuple[Failed, ...]] | None = None

    def start(self, found: Found) -> Worker:
        """Return a worker that has loaded the package and is warmed up.

        Raises:
            PackageRefused: the package or the runtime refused, or it runs on nothing that the settings allow.
            NotStarted: there is no process.
            WorkerDied: the process ended, did not load in time, or nothing is to be started any more.

        """
        if found.package is None:
            raise PackageRefused(found.refusal)
        ways, failed = self._ways(found)
        for options in ways:
            try:
                worker = self._started(found, options)
            except AcceleratorMissing as refusal:
                if options.accelerator == "cpu":
                    raise
                failed.append(Failed(WORDS[options.accelerator], f"{str(refusal).rstrip('.')}."))
                logger.warning("%s: it cannot run on %s: %s", self._name, failed[-1].what, failed[-1].why)
            else:
                self._fell_back(worker, failed)
                self._worked = found.content, options.accelerator, tuple(failed)
                return worker
        raise PackageRefused(nothing_left(failed))

    def _ways(self, found: Found) -> tuple[list[SessionOptions], list[Failed]]:
        """Return the ways that are left to try, and what has failed: for a package that ran, from the way that worked on."""
        plan = self._plan(found)
        ways = list(plan.ways)
        if self._worked and self._worked[0] == found.content:
            _, worked, failed = self._worked
            left = [*itertools.dropwhile(lambda one: one.accelerator != worked, ways)]
            if left:
                return left, [*failed]
        return ways, [*plan.failed]

    def _fell_back(self, worker: Worker, failed: list[Failed]) -> None:
        worker.fallback = instead(worker.accelerator, failed)
        if worker.fallback:
            self._metrics.happened("fell_back", self._name)
            logger.warning("%s: %s", self._name, worker.fallback)

    def _started(self, found: Found, options: SessionOptions) -> Worker:
        """Start a worker in one way; errors as `start`, and AcceleratorMissing where that way does not work."""
        begin = time.monotonic()
        try:
            worker = Worker(self._spawner, found, options, self._limits.call)
        except WorkerDied as death:
            raise NotStarted(str(death)) from None
        self._metrics.happened("started", self._name)
        with self._lock:
            self._loading = worker
            ended = self._ended
        if ended:
            worker.kill(ended)
        try:
            worker.load(self._limits.load, self._limits.build, self._tell)
        except BaseException:
            worker.stop()
            worker.release()
            raise
        finally:
            with self._lock:
                self._loading = None
        logger.debug("%s: loaded in %.3f s", self._name, time.monotonic() - begin)
        return worker

    def limit(self, limits: Limits) -> None:
        """Start workers with other limits from now on."""
        self._limits = limits

    def end(self, cause: str) -> None:
        """Start no more, and kill what is being loaded; `cause` is what operators are told."""
        with self._lock:
            self._ended = cause
            loading = self._loading
        if loading:
            loading.kill(cause)
