"""A loaded model as it serves calls: its queue, and one worker process at a time, which is replaced when it dies."""

import itertools
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from edge_agent.accelerators import WORDS, Failed, instead, nothing_left
from edge_agent.bitmaps import Pixels
from edge_agent.budget import RestartBudget
from edge_agent.calls import CallQueue, MakeError, Turn
from edge_agent.errors import AcceleratorMissing, EdgeAgentError, InferenceHung, PackageRefused, WorkerCrashed
from edge_agent.jobs import Accelerator, Answer, Job, SessionOptions
from edge_agent.manifest import Manifest
from edge_agent.metrics import Metrics
from edge_agent.packages import Found, Signature
from edge_agent.plan import Plan
from edge_agent.supervisor import DEATH_PATIENCE, Spawner, Worker, WorkerDied

logger = logging.getLogger(__name__)

# Makes a call's job for the manifest that will judge it, which a swap may have changed while the call waited.
Prepare = Callable[[Manifest], Job]


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
            WorkerDied: the process ended, did not load in time, or nothing is to be started any more.

        """
        if found.package is None:
            raise PackageRefused(found.refusal)
        # Before anything can fail: each that is counted ends, too.
        self._metrics.happened("started", self._name)
        ways, failed = self._ways(found)
        for number, options in enumerate(ways):
            if number:
                self._metrics.happened("started", self._name)
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
        worker = Worker(self._spawner, found, options, self._limits.call)
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


class Serving:
    """A loaded model. Every public method may be called from any thread."""

    def __init__(
        self,
        name: str,
        starter: Starter,
        loaded: tuple[Found, Worker],
        queue: CallQueue,
        budget: RestartBudget | None,
        metrics: Metrics,
        failed: Callable[["Serving", str], None],
        took_over: Callable[["Serving", Found], None],
    ) -> None:
        """Serve with a worker that has loaded a package.

        `budget` says how often a dead worker is replaced, None never; `failed` is told when that is over, with what
        operators are told, and `took_over` of each other package that is judged by from then on, in their order.
        """
        self._name = name
        self._starter = starter
        self._queue = queue
        self._budget = budget
        self._metrics = metrics
        self._failed = failed
        self._took_over = took_over
        self._lock = threading.Lock()
        # Held while a worker is put in the place of another.
        self._changing = threading.Lock()
        # Held while a death is seen to, so that the state is right before any caller knows.
        self._dying = threading.Lock()
        self._ended = threading.Event()
        self._found = loaded[0]
        self._next: Found | None = None
        self._longest = 0
        self.note = ""
        self._worker: Worker | None = loaded[1]

    @property
    def found(self) -> Found:
        """The package that calls are judged by."""
        return self._found

    @property
    def queue(self) -> dict[str, int]:
        """How many calls wait, how many may, and how many images are being judged."""
        return self._queue.status()

    @property
    def worker(self) -> Worker | None:
        """The worker, None while it is being replaced."""
        return self._worker

    def call(
        self, prepare: Prepare, inline: Pixels | None, deadline: float | None, turn: Turn
    ) -> tuple[Manifest, Answer, bytes | None]:
        """Wait for the worker and let it judge one image; return the manifest it was judged by, and the inline mask.

        Raises:
            CannotKeepUp: too many calls wait, or the deadline passed.
            EdgeAgentError: the worker refused the image or failed on it, or died under the call.

        """
        arrived = time.monotonic()
        try:
            self._queue.enter(deadline, turn)
            entered = time.monotonic()
            while True:
                with self._lock:
                    worker, found = self._worker, self._found
                if worker is not None:
                    assert found.package is not None  # what runs was accepted
                    manifest = found.package.manifest
                    job = prepare(manifest)
                    try:
                        answer, mask = worker.call(job, inline, turn.slot)
                    except WorkerDied as death:
                        self._died(worker)
                        if not death.unasked:
                            kind = InferenceHung if death.hung else WorkerCrashed
                            raise kind(_ended(str(death))) from None
                    else:
                        self._answered()
                        anomalous = answer.verdict.is_anomalous
                        self._metrics.judged(self._name, entered - arrived, answer.stages, anomalous=anomalous)
                        return manifest, answer, mask
                self._queue.again(deadline, turn)
                entered = time.monotonic()
        except EdgeAgentError as error:
            if error.reason == "hung":
                self._metrics.happened("hung", self._name)
            raise
        finally:
            if turn.granted:
                self._queue.leave(turn.slot)
            if self._queue.longest > self._longest:
                self._longest = self._queue.longest
                self._metrics.queued(self._name, self._longest)

    def watch(self) -> None:
        """Begin to look after the worker."""
        if self._worker:
            self._look_after(self._worker)

    def announce(self, found: Found | None) -> None:
        """Note the package that is to follow this one; it is loaded if the worker dies and this one's files are gone."""
        self._next = found

    def adopt(self, queue_limit: int, budget: RestartBudget | None) -> None:
        """Let so many calls wait from now on, and go by `budget`, but keep one's own count of deaths where there is one."""
        self._queue.limit(queue_limit)
        with self._lock:
            self._budget = (self._budget or budget) if budget else None

    def swap(self, found: Found) -> None:
        """Load another package beside this one, and let it take over between two calls.

        Raises:
            PackageRefused: the package or the runtime refused; this one goes on.
            WorkerDied: the new worker died while it loaded; this one goes on.

        """
        with self._changing:
            if (found.folder, found.signature) == (self._found.folder, self._found.signature):
                return  # it has just been started in the place of a dead one
            worker = self._starter.start(found)
            self._queue.pause()
            # The call in hand ends by itself, or by its own limit.
            while not self._queue.wait_free(DEATH_PATIENCE) and not self._ended.is_set():
                pass
            old = self._install(found, worker)
        if old:
            old.stop()
            old.release()

    def stop(self, drain_timeout: float, error: MakeError) -> None:
        """Let accepted calls finish, within `drain_timeout` seconds, and end; return when everything is released."""
        self._queue.seal(error)
        idle = self._queue.wait_idle(drain_timeout)
        self._ended.set()
        self._starter.end("the model was stopped")
        if not idle:
            self._queue.close(error)
            if worker := self._worker:  # first of all: a swap may be waiting for this very call
                worker.kill("it was stopped in the middle of a call")
        with self._changing, self._lock:
            worker, self._worker = self._worker, None
        if worker:
            worker.stop()
            self._queue.wait_free(DEATH_PATIENCE)
            worker.release()

    def kill(self, cause: str) -> None:
        """End every process at once."""
        self._ended.set()
        self._starter.end(cause)
        self._queue.close(lambda: WorkerCrashed(_ended(cause)))
        worker = self._worker
        if worker:
            worker.kill(cause)
            worker.wait()

    def _install(self, found: Found, worker: Worker) -> Worker | None:
        """Put a worker in its place and go on; return the one that was there. One that comes too late is ended."""
        with self._lock:
            late = self._ended.is_set()
            if not late:
                old, before = self._worker, self._found
                self._worker, self._found = worker, found
                self.note = ""
                self._queue.resume()
        if late:
            worker.kill("the model was stopped")
            worker.wait()
            worker.release()
            return None
        if found is not before:
            self._took_over(self, found)
        self._look_after(worker)
        return old

    def _look_after(self, worker: Worker) -> None:
        def watch() -> None:
            worker.wait()
            self._died(worker)

        threading.Thread(target=watch, name=f"death-{self._name}", daemon=True).start()

    def _answered(self) -> None:
        with self._lock:
            if self._budget:
                self._budget.answered()

    def _died(self, worker: Worker) -> None:
        """Take a dead worker out of its place, and see to another; who comes second finds that done."""
        cause = worker.wait()
        with self._dying:
            with self._lock:
                if self._worker is not worker or self._ended.is_set():
                    return
                self._queue.pause()
                self._worker = None
                delay = self._count(cause)
            threading.Thread(target=self._release, args=(worker,), daemon=True).start()
            self._follow(delay, cause)

    def _count(self, cause: str) -> float | None:
        """Count a death; return the seconds until the restart, None when there is none. The lock must be held."""
        self._metrics.happened("died", self._name, _ended(cause))
        delay = self._budget.died(time.monotonic()) if self._budget else None
        if delay is not None:
            self.note = f"{_ended(cause)} Another one is being started; calls wait for it."
        return delay

    def _follow(self, delay: float | None, cause: str) -> None:
        text = _ended(cause)
        if delay is None:
            budget = self._budget
            deaths = budget.deaths if budget else 0
            self._fail(text, f"{text} It was the last of {deaths} deaths within a minute." if deaths else text)
            return
        logger.warning("%s: %s It is started again in %.2f s.", self._name, text, delay)
        threading.Thread(target=self._replace, args=(delay,), name=f"restart-{self._name}", daemon=True).start()

    def _replace(self, delay: float) -> None:
        if self._ended.wait(delay):
            return
        with self._changing:
            if self._ended.is_set() or self._worker is not None:  # a swap came first
                return
            try:
                self._install(*self._start())
                self._metrics.restarted(self._name)
            except PackageRefused as refusal:
                self._fail(str(refusal), str(refusal))
            except WorkerDied as death:
                self._again(str(death))
            except Exception:  # calls wait for another one, whatever it was
                logger.exception("%s: unexpected failure while a worker was started", self._name)
                self._again("it could not be started; the agent's log has the cause")

    def _again(self, cause: str) -> None:
        """See to another worker after one that could not be started."""
        with self._lock:
            delay = self._count(cause)
        self._follow(delay, cause)

    def _start(self) -> tuple[Found, Worker]:
        """Start a worker for the package, or for the one that is to follow where this one's files are gone."""
        try:
            return self._found, self._starter.start(self._found)
        except PackageRefused:
            following = self._next
            if following is None or following.package is None:
                raise
            logger.info("%s: version %s is started instead", self._name, following.version)
            return following, self._starter.start(following)

    def _fail(self, told: str, detail: str) -> None:
        if self._ended.is_set():
            return
        self._ended.set()
        # The state is there for all to see before any caller knows.
        self._failed(self, detail)
        self._queue.close(lambda: WorkerCrashed(told))

    def _release(self, worker: Worker) -> None:
        """Give a dead worker's pipe and memory back once the last call has let go of them."""
        self._queue.wait_free(DEATH_PATIENCE)
        worker.release()


def _ended(cause: str) -> str:
    return f"The model's worker process ended: {cause}."
