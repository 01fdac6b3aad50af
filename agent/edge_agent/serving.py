"""A loaded model as it serves calls: its queue, and one worker process at a time, which is replaced when it dies."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from edge_agent import threads
from edge_agent.bitmaps import Pixels
from edge_agent.budget import RestartBudget
from edge_agent.calls import CallQueue, MakeError, Turn
from edge_agent.deaths import WorkerDied
from edge_agent.errors import EdgeAgentError, InferenceHung, PackageRefused, WorkerCrashed
from edge_agent.jobs import Answer, Job
from edge_agent.manifest import Manifest
from edge_agent.metrics import Metrics
from edge_agent.packages import Found
from edge_agent.starter import NotStarted, Starter
from edge_agent.supervisor import DEATH_PATIENCE, Worker
from edge_agent.threads import NoThread

logger = logging.getLogger(__name__)

# Makes a call's job for the manifest that will judge it, which a swap may have changed while the call waited.
Prepare = Callable[[Manifest], Job]
# Seconds after which it is given up to look at a package that never stops to change.
SETTLING_PATIENCE = 300.0
# What callers are told when a package was refused in the end: why may name its files, and is for operators alone.
NOT_REPLACED = "The model's worker process ended and could not be replaced; DescribeModel says why."


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
        look: Callable[[Found], Found] = lambda found: found,
        pause: Callable[[], float] = lambda: 1.0,
    ) -> None:
        """Serve with a worker that has loaded a package.

        `budget` says how often a dead worker is replaced, None never; `failed` is told when that is over, with what
        operators are told, and `took_over` of each other package that is judged by from then on, in their order. `look`
        returns a package as it is on disk this instant, `pause` the seconds between two looks at one that has changed.
        """
        self._name = name
        self._starter = starter
        self._queue = queue
        self._budget = budget
        self._metrics = metrics
        self._failed = failed
        self._took_over = took_over
        self._look = look
        self._pause = pause
        self._lock = threading.Lock()
        # Held while a worker is put in the place of another.
        self._changing = threading.Lock()
        # Held while a death is seen to, so that the state is right before any caller knows.
        self._dying = threading.Lock()
        self._ended = threading.Event()
        # What no thread could be started for.
        self._left: deque[Callable[[], object]] = deque()
        self._found = loaded[0]
        self._next: Found | None = None
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
        """Wait for the worker and let it judge one image.

        What comes back is the manifest it was judged by, the verdict, and the bytes of the mask (height x width x 3, uint8),
        None where there is none or it went into the client's segment.

        Args:
            prepare: makes the job for the manifest that is to judge it; called again with each worker that the call comes to.
            inline: the image's bytes, unless they are in the client's segment.
            deadline: seconds of time.monotonic() after which nobody waits for the answer any more, or None.
            turn: the caller's place in the queue; its `give_up` ends the wait.

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

    def watch(self) -> None:
        """Begin to look after the worker; raise NoThread where nobody can."""
        if worker := self._worker:
            self._look_after(worker)

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
            WorkerDied: the new worker died while it loaded, or nobody can look after it; this one goes on.

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
        """End every process at once; `wait` waits until they have ended."""
        self._ended.set()
        self._starter.end(cause)
        self._queue.close(lambda: WorkerCrashed(_ended(cause)))
        with self._lock:  # one that is put in its place comes before this, or is late
            worker = self._worker
        if worker:
            worker.kill(cause)

    def wait(self) -> None:
        """Wait for the end of a worker that was killed, or until it is given up."""
        if worker := self._worker:
            worker.wait()

    def _install(self, found: Found, worker: Worker, *, restart: bool = False) -> Worker | None:
        """Put a worker in its place and go on; return the one that was there. One that comes too late is ended.

        `restart` says that it is counted as one in the place of a dead one.

        Raises:
            NotStarted: nobody can look after it, so it was ended; the one that was there goes on.

        """
        try:
            with self._lock:
                late = self._ended.is_set()
                if not late:
                    self._look_after(worker)  # first: one that nobody looks after must not be called
                    old, before = self._worker, self._found
                    self._worker, self._found = worker, found
                    self.note = ""
                    if restart:
                        self._metrics.restarted(self._name)
                    self._queue.resume()
        except NoThread as refusal:
            with self._lock:
                if self._worker:
                    self._queue.resume()
            _end(worker, str(refusal))
            raise NotStarted(str(refusal)) from None
        if late:
            _end(worker, "the model was stopped")
            return None
        if found is not before:
            self._took_over(self, found)
        return old

    def _look_after(self, worker: Worker) -> None:
        """Wait for a worker's end in a thread of its own; raise NoThread where there is none."""

        def watch() -> None:
            worker.wait()
            self._died(worker)

        threads.start(f"death-{self._name}", self._work, watch)

    def _in_background(self, name: str, act: Callable[..., object], *arguments: object) -> None:
        """Do something in a thread of its own, or, where none can be started, in one that is there and has done its work.

        There always is one: who looks after a worker comes here after its death, too.
        """
        does = partial(act, *arguments)
        try:
            threads.start(f"{name}-{self._name}", self._work, does)
        except NoThread as refusal:
            logger.warning("%s: %s; one that is there does the work.", self._name, refusal)
            self._left.append(does)

    def _work(self, act: Callable[[], object]) -> None:
        """Do something, and then what no thread could be started for."""
        while True:
            try:
                act()
            except Exception:  # what is left must be done all the same
                logger.exception("%s: unexpected failure in the background", self._name)
            try:
                act = self._left.popleft()
            except IndexError:
                return

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
                delay = self._count(text := _ended(cause), "died", ran=True)
            self._in_background("release", self._release, worker)
            self._follow(delay, text, text)

    def _count(self, text: str, event: str, *, ran: bool) -> float | None:
        """Count a death, or what comes to the same; return the seconds until the restart, None when there is none.

        `ran` says whether there was a worker in its place. The lock must be held.
        """
        self._metrics.happened(event, self._name, text)
        delay = self._budget.died(time.monotonic(), ran=ran) if self._budget else None
        if delay is not None:
            self.note = f"{text} Another one is being started; calls wait for it."
        return delay

    def _follow(self, delay: float | None, text: str, told: str) -> None:
        """Have another worker started after `delay` seconds; where there is none, tell operators `text` and callers `told`."""
        if delay is None:
            budget = self._budget
            deaths = budget.deaths if budget else 0
            self._fail(told, f"{text} It was the last of {deaths} deaths within a minute." if deaths else text)
            return
        logger.warning("%s: %s It is started again in %.2f s.", self._name, text, delay)
        self._in_background("restart", self._replace, delay)

    def _replace(self, delay: float) -> None:
        if self._ended.wait(delay):
            return
        before = self._found
        # Before the lock is taken: a disk that hangs must not keep a model from being stopped.
        found = self._on_disk(before)
        with self._changing:
            if self._ended.is_set() or self._worker is not None or self._found is not before:  # a swap came first
                return
            try:
                self._install(*self._start(found), restart=True)
            except PackageRefused as refusal:
                text = f"The model's worker process ended and could not be replaced: {refusal}"
                self._again(text, "not_started", NOT_REPLACED)
            except NotStarted as failure:
                self._again(_ended(str(failure)), "not_started")
            except WorkerDied as death:
                self._again(_ended(str(death)), "died")
            except Exception:  # calls wait for another one, whatever it was
                logger.exception("%s: unexpected failure while a worker was started", self._name)
                self._again(_ended("it could not be started; the agent's log has the cause"), "not_started")

    def _again(self, text: str, event: str, told: str = "") -> None:
        """See to another worker after one that could not be started, or died while it was; `told` is for callers."""
        with self._lock:
            if self._ended.is_set():  # it was ended unfinished
                return
            delay = self._count(text, event, ran=False)
        self._follow(delay, text, told or text)

    def _on_disk(self, found: Found) -> Found:
        """Return what is to be started: the package, the one that is to follow, or what is on disk by now instead of them.

        The first of them that is on disk as it was looked at; else what two looks agree on, since what has changed may be
        half-way copied.
        """
        try:
            for known in filter(None, (found, following := self._following())):
                if self._look(known).signature == known.signature:
                    return known
            return self._settled(following or found)
        except Exception:
            logger.exception("%s: unexpected failure while the package was looked at", self._name)
            return found  # its worker looks again

    def _settled(self, found: Found) -> Found:
        latest, give_up = self._look(found), time.monotonic() + SETTLING_PATIENCE
        while time.monotonic() < give_up and not self._ended.wait(self._pause()):
            before, latest = latest, self._look(latest)
            if latest.signature == before.signature:
                return latest
        return replace(latest, package=None, refusal="The package kept changing while the model was to be started.")

    def _following(self) -> Found | None:
        """Return the package that is to follow, unless it was refused."""
        following = self._next
        return following if following and following.package else None

    def _start(self, found: Found) -> tuple[Found, Worker]:
        """Start a worker for a package, or for the one that is to follow where this one is refused."""
        try:
            return found, self._starter.start(found)
        except PackageRefused:
            following = self._following()
            if following is None or following is found:
                raise
            logger.info("%s: version %s is started instead", self._name, following.version)
            return following, self._starter.start(following)

    def _fail(self, told: str, detail: str) -> None:
        with self._lock:
            if self._ended.is_set() or self._worker:  # a swap has just put one in its place
                return
            self._ended.set()
        # The state is there for all to see before any caller knows.
        self._failed(self, detail)
        self._queue.close(lambda: WorkerCrashed(told))

    def _release(self, worker: Worker) -> None:
        """Give a dead worker's pipe and memory back once the last call has let go of them."""
        self._queue.wait_free(DEATH_PATIENCE)
        worker.release()


def _end(worker: Worker, cause: str) -> None:
    """End a worker that is in no place."""
    worker.kill(cause)
    worker.wait()
    worker.release()


def _ended(cause: str) -> str:
    return f"The model's worker process ended: {cause}."
