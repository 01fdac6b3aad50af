"""One deployed model: its package, its state, and its worker while it runs."""

import logging
import threading
import time
from collections.abc import Callable, Collection

from edge_agent import lifecycle, packages
from edge_agent.block import default_arn
from edge_agent.calls import CallQueue, Turn
from edge_agent.config import Settings
from edge_agent.errors import InferenceFailed, PackageRefused, WrongState
from edge_agent.jobs import Answer, Job, SessionOptions
from edge_agent.lifecycle import State
from edge_agent.manifest import Manifest
from edge_agent.memory import MemoryLedger
from edge_agent.packages import Found
from edge_agent.supervisor import DEATH_PATIENCE, Spawner, Worker, WorkerDied

logger = logging.getLogger(__name__)

# What a process needs before the model: interpreter, NumPy, the runtime and its first buffers.
WORKER_BASE = 96 << 20
LONGEST_SETTLING_PAUSE = 1.0


class Model:
    """A deployed model. Every public method may be called from any thread."""

    def __init__(
        self,
        found: Found,
        settings: Settings,
        spawner: Spawner,
        ledger: MemoryLedger,
        moved: Callable[[Found], Found] = lambda found: found,
    ) -> None:
        """Take charge of a package; `moved` returns it with the place that its models folder has this instant."""
        self.name = found.name
        self._settings = settings
        self._spawner = spawner
        self._ledger = ledger
        self._moved = moved
        self._lock = threading.Lock()
        self._found = found
        self._waiting: Found | None = None
        self._notes: tuple[str, ...] = ()
        self._state = State.FAILED if found.refusal else State.STOPPED
        self._detail = found.refusal
        self._worker: Worker | None = None
        self._queue: CallQueue | None = None
        self._closing = False
        self._log_deployed()

    @property
    def state(self) -> State:
        """The state right now."""
        return self._state

    @property
    def found(self) -> Found:
        """The package that is deployed: the one that is loaded, while one is."""
        return self._found

    @property
    def arn(self) -> str:
        """The model ARN of the package."""
        package = self._found.package
        return package.arn if package else default_arn(self.name, self._found.version)

    def describe(self) -> tuple[State, str]:
        """Return the state and the sentences that explain it, of one and the same instant."""
        with self._lock:
            notes = list(self._notes)
            # While it is STARTING there is nothing to do about that yet.
            if self._waiting and self._state is not State.STARTING:
                cure = "start" if self._state is State.FAILED else "stop and start"
                notes.insert(0, f"The package on disk has changed since; {cure} the model to load it.")
            if self._found.package and self._state is not State.FAILED:
                notes.extend(self._found.package.notes)
            return self._state, " ".join(filter(None, [self._detail, *notes]))

    def deploy(self, found: Found, notes: tuple[str, ...]) -> bool:
        """Take note of the package that is on disk now; return whether it replaced the deployed one.

        A model that is loaded goes on with the package it was loaded from until it is stopped, and one that failed
        while it had a good package keeps its cause until it is started.
        """
        deployed = self._found
        same = self._is_it(found, deployed)
        with self._lock:
            self._notes = notes
            if self._found is not deployed:
                return False  # a start has just read the package itself; the next look is compared with that
            if _renamed(found, deployed):
                self._found = found
                same = True
            if same:
                self._waiting = None
                return False
            broken = self._state is State.FAILED and self._found.refusal
            if self._state is not State.STOPPED and not broken:
                self._waiting = found
                return False
            self._take(found)
            return True

    def _is_it(self, found: Found, deployed: Found) -> bool:
        """Return whether what a look found is the deployed package, be it only on disk by now.

        Looks settle later than a start reads, so what they have may be older than what is deployed.
        """
        if found.called != deployed.called:
            return False
        if (found.folder, found.signature) == (deployed.folder, deployed.signature):
            return True
        try:
            now = packages.sign(deployed.folder, deployed.root)
        except OSError:
            return False
        return self._moved(found).folder == deployed.folder and now == deployed.signature

    def running_manifest(self) -> Manifest:
        """Return the manifest of the loaded package; raise WrongState unless the model is RUNNING."""
        with self._lock:
            lifecycle.require(self._state, "DetectAnomalies")
            assert self._found.package is not None  # what runs was accepted
            return self._found.package.manifest

    def required_size(self, manifest: Manifest) -> tuple[int, int] | None:
        """Return the (width, height) that images must have, None when any size is resized."""
        any_size = manifest.block.any_image_size if manifest.block else self._settings.any_image_size
        return None if any_size and not manifest.stage.segmentation else manifest.image_size

    def detect(
        self, job: Job, inline: Callable[[], bytes] | None, deadline: float | None, turn: Turn
    ) -> tuple[Answer, bytes | None]:
        """Wait for the worker and let it judge one image; return its answer and the inline mask, if any.

        Raises:
            WrongState: the model is not RUNNING.
            CannotKeepUp: too many calls wait, or the deadline passed.
            EdgeAgentError: the worker refused the image or failed on it.

        """
        with self._lock:
            lifecycle.require(self._state, "DetectAnomalies")
            worker, queue = self._loaded()
        queue.enter(deadline, turn)
        try:
            return worker.call(job, inline)
        except WorkerDied:
            raise self._worker_ended(worker) from None
        finally:
            queue.leave()

    def start(self) -> None:
        """Begin to load the model: the state reads STARTING when this returns.

        Raises:
            WrongState: the model is neither STOPPED nor FAILED.
            NotEnoughMemory: there is no room for it; the state stays as it was.

        """
        latest = self._waiting or self._found
        on_disk = packages.look_again(self._moved(latest), self._settings.package_rules)
        with self._lock:
            lifecycle.require(self._state, "StartModel")
            self._ledger.admit(self.name, self._memory_needed(on_disk))
            settled = on_disk.signature == latest.signature
            self._found, self._waiting = on_disk, None
            self._move(State.STARTING, "asked to start", detail="Loading the model.")
        threading.Thread(target=self._load, args=(settled,), name=f"start-{self.name}", daemon=True).start()

    def stop(self, cause: str = "asked to stop") -> None:
        """Let accepted calls finish, within drain_timeout, and unload the model; return when everything is released.

        Raises:
            WrongState: the model is not RUNNING.

        """
        with self._lock:
            lifecycle.require(self._state, "StopModel")
            worker, queue = self._loaded()
            self._move(State.STOPPING, cause)
        try:
            self._unload(worker, queue)
        finally:
            with self._lock:
                self._worker = self._queue = None
                self._move(State.STOPPED, "everything is released")

    def _unload(self, worker: Worker, queue: CallQueue) -> None:
        def stopping() -> WrongState:
            return WrongState(State.STOPPING.name, "DetectAnomalies", State.RUNNING.name)

        queue.seal(stopping)
        if not queue.wait_idle(self._settings.drain_timeout):
            queue.close(stopping)
            worker.kill("it was stopped in the middle of a call")
        worker.stop()
        queue.wait_idle(DEATH_PATIENCE)
        worker.release()

    def close(self) -> None:
        """End the worker at once, for the end of the agent."""
        with self._lock:
            self._closing = True
            worker = self._worker
        if worker:
            worker.kill("the agent ends")
            worker.wait()

    def _loaded(self) -> tuple[Worker, CallQueue]:
        """Return the worker and the queue, which every RUNNING model has; the lock must be held."""
        assert self._worker is not None
        assert self._queue is not None
        return self._worker, self._queue

    def _take(self, found: Found) -> None:
        """Replace the deployed package, which nothing uses; a new deployment begins STOPPED, a broken one FAILED."""
        self._found, self._waiting = found, None
        self._state = State.FAILED if found.refusal else State.STOPPED
        self._detail = found.refusal
        self._log_deployed()

    def _memory_needed(self, found: Found) -> int:
        package = found.package
        if package is None:
            return 0  # it will be refused before it takes any
        stated = self._settings.of_model(self.name, "memory") or (
            package.manifest.block and package.manifest.block.peak_memory
        )
        return int(stated or packages.model_size(package) * self._settings.memory_factor + WORKER_BASE)

    def _load(self, settled: bool) -> None:
        """Start the worker and wait for it; the thread behind STARTING."""
        try:
            if not settled:
                self._wait_until_settled()
            worker = self._start_worker()
        except PackageRefused as refusal:
            self._not_loaded(str(refusal))
        except WorkerDied as death:
            self._not_loaded(f"The worker process ended while the model was loading: {death}.")
        except Exception:
            logger.exception("%s: unexpected failure while starting", self.name)
            self._not_loaded("The agent failed to start the worker; its log has the cause.")
        else:
            self._ledger.settle(self.name)
            with self._lock:
                self._queue = CallQueue(self.name, self._settings.of_model(self.name, "queue_limit"))
                self._move(State.RUNNING, f"loaded on {worker.provider}, warm-up {worker.warm_up * 1000:.1f} ms")
            threading.Thread(target=self._watch, args=(worker,), name=f"death-{self.name}", daemon=True).start()

    def _not_loaded(self, reason: str) -> None:
        self._ledger.settle(self.name)
        with self._lock:
            self._worker = None
            self._move(State.FAILED, reason, detail=reason)

    def _wait_until_settled(self) -> None:
        """Wait until two looks at the package agree: what is being copied is not loaded half-way."""
        give_up = time.monotonic() + self._settings.load_timeout
        with self._lock:
            self._detail = "Waiting until the package on disk has settled."
        while time.monotonic() < give_up and not self._closing:
            time.sleep(min(self._settings.scan_interval, LONGEST_SETTLING_PAUSE))
            again = packages.look_again(self._moved(self._found), self._settings.package_rules)
            agreed = again.signature == self._found.signature
            with self._lock:
                self._found, self._waiting = again, None
            if agreed:
                return
        raise PackageRefused("The package kept changing while the model was being started.")

    def _start_worker(self) -> Worker:
        if self._found.package is None:
            raise PackageRefused(self._found.refusal)
        of_model = self._settings.of_model
        options = SessionOptions(of_model(self.name, "threads"), of_model(self.name, "spinning"))
        worker = Worker(self._spawner, self._found, options, of_model(self.name, "call_timeout"))
        with self._lock:
            self._worker = worker
            closing = self._closing
        if closing:
            worker.kill("the agent ends")
        begin = time.monotonic()
        try:
            worker.load(self._settings.load_timeout)
        except BaseException:
            worker.stop()
            worker.release()
            raise
        logger.debug("%s: loaded in %.3f s", self.name, time.monotonic() - begin)
        return worker

    def _watch(self, worker: Worker) -> None:
        worker.wait()
        self._worker_ended(worker)

    def _worker_ended(self, worker: Worker) -> InferenceFailed:
        """Make the model FAILED if its worker died on its own; return the error for calls that it leaves behind.

        The seam for restarts: a replacement would be started here, and the queue kept.
        """
        text = f"The model's worker process ended: {worker.wait()}."
        error = InferenceFailed(text)
        with self._lock:
            if self._worker is not worker or self._state is not State.RUNNING or self._closing:
                return error
            queue = self._loaded()[1]
            self._worker = self._queue = None
            self._move(State.FAILED, text, detail=f"{text} Start the model again.")
        queue.close(lambda: InferenceFailed(text))
        threading.Thread(target=_release, args=(queue, worker), daemon=True).start()
        return error

    def _move(self, target: State, cause: str, detail: str = "") -> None:
        logger.info("%s: %s -> %s: %s", self.name, self._state.name, target.name, cause)
        self._state = lifecycle.move(self._state, target)
        self._detail = detail

    def _log_deployed(self) -> None:
        found = self._found
        level = logging.WARNING if found.refusal else logging.INFO
        logger.log(
            level,
            "%s: version %s deployed, %s, from %s%s",
            self.name,
            found.version,
            self._state.name,
            found.folder,
            f": {found.refusal}" if found.refusal else "",
        )


def _release(queue: CallQueue, worker: Worker) -> None:
    """Give a dead worker's pipe and memory back once the last call has let go of them."""
    queue.wait_idle(DEATH_PATIENCE)
    worker.release()


def _renamed(found: Found, deployed: Found) -> bool:
    """Return whether a package that was accepted is the same as before, and only its source is another."""
    return (
        found.package is not None
        and deployed.package is not None
        and found.called != deployed.called
        and (found.folder, found.content, found.version) == (deployed.folder, deployed.content, deployed.version)
    )


def sources_note(others: Collection[Found]) -> tuple[str, ...]:
    """Return the sentence that names the sources whose package of the same name is not used."""
    return tuple(
        f"Version {other.version} of this component in {ascii(str(other.folder))[1:-1]} is ignored: another source had it first."
        for other in others
    )
