"""One deployed model: its package, its state, and its worker while it runs."""

import logging
import threading
import time
from collections.abc import Callable, Collection

from edge_agent import lifecycle, memory, packages
from edge_agent.calls import CallQueue, Turn
from edge_agent.config import Settings
from edge_agent.errors import InferenceFailed, NotEnoughMemory, PackageRefused, WrongState
from edge_agent.jobs import Answer, Job, SessionOptions
from edge_agent.lifecycle import State
from edge_agent.manifest import Manifest, default_arn
from edge_agent.packages import Found
from edge_agent.supervisor import DEATH_PATIENCE, Spawner, Worker, WorkerDied

logger = logging.getLogger(__name__)

# What a process needs before the model: interpreter, NumPy, the runtime and its first buffers.
WORKER_BASE = 96 << 20


class MemoryLedger:
    """What models that are being loaded will take, so that two started at once do not both count on the same memory."""

    def __init__(self, reserve: int, available: Callable[[], int] = memory.available) -> None:
        self._reserve = reserve
        self._available = available
        self._lock = threading.Lock()
        self._promised: dict[str, int] = {}

    def admit(self, name: str, needed: int) -> None:
        """Set memory aside for a model; raise NotEnoughMemory when it is not there."""
        with self._lock:
            free = self._available() - sum(self._promised.values()) - self._reserve
            if needed > free:
                raise NotEnoughMemory(
                    f"Loading the model needs about {_mib(needed)} MiB of memory; {_mib(max(free, 0))} MiB are free above "
                    "the reserve. Stop another model, or lower memory_reserve."
                )
            self._promised[name] = needed

    def settle(self, name: str) -> None:
        """Forget what was set aside: the model has taken it by now, or never will."""
        with self._lock:
            self._promised.pop(name, None)


class Model:
    """A deployed model. Every public method may be called from any thread."""

    def __init__(self, found: Found, settings: Settings, spawner: Spawner, ledger: MemoryLedger) -> None:
        self.name = found.name
        self._settings = settings
        self._spawner = spawner
        self._ledger = ledger
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
            if self._waiting:
                notes.insert(
                    0, "The package on disk has changed since it was loaded; stop and start the model to load it."
                )
            if self._found.package and self._state is not State.FAILED:
                notes.extend(self._found.package.manifest.notes)
            return self._state, " ".join(filter(None, [self._detail, *notes]))

    def deploy(self, found: Found, notes: tuple[str, ...]) -> bool:
        """Take note of the package that is on disk now; return whether it replaced the deployed one.

        A model that is loaded goes on with the package it was loaded from until it is stopped.
        """
        with self._lock:
            self._notes = notes
            if (found.folder, found.signature) == (self._found.folder, self._found.signature):
                self._waiting = None
                return False
            if self._state not in (State.STOPPED, State.FAILED):
                self._waiting = found
                return False
            self._take(found)
            return True

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

    def detect(self, job: Job, inline: bytes | None, deadline: float | None, turn: Turn) -> tuple[Answer, bytes | None]:
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
        with self._lock:
            lifecycle.require(self._state, "StartModel")
            if self._waiting:
                self._take(self._waiting)
            self._found = self._look_again()
            self._ledger.admit(self.name, self._memory_needed())
            self._move(State.STARTING, "asked to start", detail="Loading the model.")
            thread = threading.Thread(target=self._load, name=f"start-{self.name}", daemon=True)
        thread.start()

    def stop(self, cause: str = "asked to stop") -> None:
        """Let accepted calls finish, within drain_timeout, and unload the model; return when everything is released.

        Raises:
            WrongState: the model is not RUNNING.

        """
        with self._lock:
            lifecycle.require(self._state, "StopModel")
            worker, queue = self._loaded()
            self._move(State.STOPPING, cause)
        stopping = WrongState(State.STOPPING.name, "DetectAnomalies", State.RUNNING.name)
        queue.seal(stopping)
        if not queue.wait_idle(self._settings.drain_timeout):
            queue.close(stopping)
            worker.kill("it was stopped in the middle of a call")
        worker.stop()
        queue.wait_idle(DEATH_PATIENCE)
        worker.release()
        with self._lock:
            self._worker = self._queue = None
            self._move(State.STOPPED, "everything is released")

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

    def _look_again(self) -> Found:
        """Return the package as it is on disk this instant, which may be newer than the last look at the folder."""
        found = self._found
        try:
            again = packages.look(found.folder, found.root, self._settings.trusted_uids)
        except OSError:
            return Found(found.name, found.version, found.folder, found.root, (), None, "The package's files are gone.")
        if again.name != self.name:
            return Found(
                self.name, found.version, found.folder, found.root, (), None, "The package has got another name."
            )
        return again

    def _memory_needed(self) -> int:
        package = self._found.package
        if package is None:
            return 0  # it will be refused before it takes any
        stated = self._settings.of_model(self.name, "memory") or (
            package.manifest.block and package.manifest.block.peak_memory
        )
        return int(stated or packages.model_size(package) * self._settings.memory_factor + WORKER_BASE)

    def _load(self) -> None:
        """Start the worker and wait for it; the thread behind STARTING."""
        try:
            worker = self._start_worker()
        except (PackageRefused, WorkerDied) as error:
            text = (
                str(error)
                if isinstance(error, PackageRefused)
                else f"The worker process ended while the model was loading: {error}."
            )
            with self._lock:
                self._worker = None
                self._move(State.FAILED, text, detail=text)
        except Exception:
            logger.exception("%s: unexpected failure while starting", self.name)
            with self._lock:
                self._worker = None
                self._move(
                    State.FAILED,
                    "internal error",
                    detail="The agent failed to start the worker; its log has the cause.",
                )
        else:
            with self._lock:
                self._queue = CallQueue(self.name, self._settings.of_model(self.name, "queue_limit"))
                self._move(State.RUNNING, f"loaded on {worker.provider}, warm-up {worker.warm_up * 1000:.1f} ms")
            threading.Thread(target=self._watch, args=(worker,), name=f"death-{self.name}", daemon=True).start()
        finally:
            self._ledger.settle(self.name)

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
        queue.close(error)
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


def sources_note(others: Collection[Found]) -> tuple[str, ...]:
    """Return the sentence that names the sources whose package of the same name is not used."""
    return tuple(
        f"Version {other.version} of this component in {other.folder} is ignored: another source had it first."
        for other in others
    )


def _mib(size: int) -> int:
    return -(-size >> 20)
