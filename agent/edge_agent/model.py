"""One deployed model: its package, its state, and its worker while it runs."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from edge_agent import lifecycle, packages, threads
from edge_agent.bitmaps import Pixels
from edge_agent.block import default_arn
from edge_agent.budget import RestartBudget
from edge_agent.calls import CallQueue, Turn
from edge_agent.config import Settings
from edge_agent.deaths import WorkerDied
from edge_agent.deployment import AGAIN, Deployment, is_it
from edge_agent.errors import ModelNotFound, PackageRefused, WrongState, printable
from edge_agent.jobs import Answer
from edge_agent.lifecycle import State
from edge_agent.manifest import Manifest
from edge_agent.memory import MemoryLedger
from edge_agent.metrics import Metrics
from edge_agent.packages import Found
from edge_agent.plan import TUNABLE, Place, Planner
from edge_agent.serving import Prepare, Serving
from edge_agent.spawner import Spawner
from edge_agent.starter import Limits, NotStarted, Starter
from edge_agent.supervisor import Worker
from edge_agent.threads import NoThread
from edge_agent.ways import Ways

logger = logging.getLogger(__name__)

LONGEST_SETTLING_PAUSE = 1.0
# Of what is told of a model, which may quote its files: ListModels must stay below the 4 MiB that clients take.
LONGEST_MESSAGE = 2000
AGENT_ENDS = "the agent ends"
# What to do, where a cause does not say so itself.
START_AGAIN = " Start the model again."
# Seconds after which it is told how old the last word of a model is that is being loaded.
SILENT = 8.0


class Model:
    """A deployed model. Every public method may be called from any thread."""

    def __init__(
        self,
        found: Found,
        settings: Settings,
        spawner: Spawner,
        ledger: MemoryLedger,
        metrics: Metrics,
        moved: Callable[[Found], Found] = lambda found: found,
        tuned: Callable[[str], Mapping[str, Any]] = lambda _: {},
        ways: Ways | None = None,
    ) -> None:
        """Take charge of a package.

        `moved` returns it with the place that its models folder has this instant; `tuned` what was measured best for a
        model on this device; `ways` are those to run models here.
        """
        self.name = found.name
        self._settings = settings
        self._spawner = spawner
        self._ledger = ledger
        self._metrics = metrics
        self._moved = moved
        self._ways = ways or Ways(settings)
        # How it is run from one start to the next.
        self._planner = Planner(self.name, settings, ledger, self._ways, tuned)
        self._lock = threading.Lock()
        self._deployment = Deployment(found)
        self._state = State.STOPPED
        self._detail = ""
        # When `_detail` was told by the worker that is being loaded, 0 where it was not.
        self._heard = 0.0
        self._starter: Starter | None = None
        self._serving: Serving | None = None
        self._swapping = False
        self._closing = False
        self._retired = False
        self._take(found)

    @property
    def state(self) -> State:
        """The state right now."""
        return self._state

    @property
    def found(self) -> Found:
        """The package that is deployed: the one that is loaded, while one is."""
        return self._deployment.found

    @property
    def arn(self) -> str:
        """The model ARN of the package."""
        found = self.found
        return found.package.arn if found.package else default_arn(self.name, found.version)

    @property
    def most_calls(self) -> int:
        """How many detections it may have in hand while it is loaded: those that wait, and those that are being judged."""
        return int(self._settings.of_model(self.name, "queue_limit") + self._planner.chosen.slots)

    def describe(self) -> tuple[State, str]:
        """Return the state and the sentences that explain it, of one and the same instant."""
        with self._lock:
            detail, notes = self._detail, self._deployment.told(self._state, self._detail)
            if self._deployment.waiting and self._state is not State.STARTING:
                detail = detail.removesuffix(START_AGAIN)
            worker = self._serving.worker if self._serving else None
            if worker and worker.fallback:
                notes.insert(0, worker.fallback)
            if self._serving and self._serving.note:
                notes.insert(0, self._serving.note)
            told = printable(" ".join(filter(None, [detail, self._silence(), *notes])))
            return self._state, told if len(told) <= LONGEST_MESSAGE else f"{told[:LONGEST_MESSAGE]}..."

    def _silence(self) -> str:
        """Say how long nothing was heard of a model that is being loaded; the lock must be held.

        A runtime that builds an engine may hold Python's lock, so that its process cannot tell how far it is.
        """
        silent = time.monotonic() - self._heard if self._state is State.STARTING and self._heard else 0.0
        return f"That was {silent:.0f} s ago." if silent >= SILENT else ""

    def status(self) -> dict[str, object]:
        """Return what the model is and does, as it would be written as JSON."""
        state, message = self.describe()
        serving = self._serving
        worker = serving.worker if serving else None
        return {
            "model": self.name,
            "version": self.found.version,
            "state": state.name,
            "message": message,
            "package": str(self.found.folder),
            "provider": worker.provider if worker else None,
            "accelerator": worker.accelerator if worker else None,
            "fallback": (worker.fallback if worker else "") or None,
            "worker_pid": worker.pid if worker else None,
            "options": {name: getattr(self._planner.chosen, name) for name in TUNABLE} if worker else None,
            "queue": serving.queue if serving else None,
            "stages": self._metrics.stages(self.name),
        }

    def deploy(self, found: Found, notes: tuple[str, ...]) -> bool:
        """Take note of the package that is on disk now; return whether it replaced the deployed one.

        A model that runs goes on with the package it was loaded from until the new one is loaded beside it and takes
        over, for good if that fails. One that failed while it had a good package keeps its cause until it is started.
        """
        deployed = self.found
        same = is_it(found, deployed, self._moved)
        with self._lock:
            self._deployment.notes = notes
            if self.found is not deployed:
                return False  # a start has just read the package itself; the next look is compared with that
            if self._deployment.rename(found) or same:
                self._wait_with(None)
                return False
            broken = self._state is State.FAILED and self.found.refusal
            if self._state is not State.STOPPED and not broken:
                self._wait_with(found)
                self._begin_swap(found)
                return False
            self._take(found)
            return True

    def _wait_with(self, found: Found | None) -> None:
        """Note the package that is to follow the deployed one; the lock must be held."""
        self._deployment.waiting = found
        if self._serving:
            self._serving.announce(found)

    def _begin_swap(self, found: Found) -> None:
        """Load a new package beside the one that runs, unless that has been tried; the lock must be held."""
        if self._state is not State.RUNNING or self._serving is None or self._swapping:
            return
        if found.package is None or self._deployment.why_not(found):
            return
        try:
            threads.start(f"swap-{self.name}", self._swap, self._serving, found)
        except NoThread as refusal:  # the next look tries again
            logger.warning("%s: version %s cannot take over yet: %s.", self.name, found.version, refusal)
        else:
            self._swapping = True

    def _swap(self, serving: Serving, found: Found) -> None:
        reason = ""
        try:
            with self._planner.beside(found) as place:
                with self._lock:
                    if self._serving is serving:
                        self._planner.keep_to(place)
                serving.swap(found)
        except PackageRefused as refusal:
            reason = str(refusal)
        except NotStarted as failure:  # the next look tries again
            logger.warning("%s: version %s cannot take over yet: %s.", self.name, found.version, failure)
        except WorkerDied as death:
            reason = f"Its worker process ended while it was loading: {death}."
        except Exception:
            logger.exception("%s: unexpected failure while version %s was loaded", self.name, found.version)
            reason = "The agent failed to load it; its log has the cause."
        with self._lock:
            self._swapping = False
            going_on = self._serving is serving and self._state is State.RUNNING and not self._closing
            if reason and going_on:  # else it ended because the model is being stopped
                self._deployment.cannot_take_over(found, reason)
                logger.warning("%s: version %s cannot take over: %s", self.name, found.version, reason)

    def _took_over(self, serving: Serving, found: Found) -> None:
        """Take note that another package judges the calls by now."""
        with self._lock:
            if self._serving is not serving:
                return
            self._deployment.found = found
            self._metrics.happened("swapped", self.name)
            if self._deployment.waits(found):
                self._wait_with(None)
            logger.info("%s: version %s has taken over", self.name, found.version)

    def running_manifest(self) -> Manifest:
        """Return the manifest of the loaded package; raise WrongState unless the model is RUNNING."""
        with self._lock:
            package = self._loaded("DetectAnomalies").found.package
            assert package is not None  # what runs was accepted
            return package.manifest

    def required_size(self, manifest: Manifest) -> tuple[int, int] | None:
        """Return the (width, height) that images must have, None when any size is resized."""
        any_size = manifest.block.any_image_size if manifest.block else self._settings.any_image_size
        return None if any_size and not manifest.stage.segmentation else manifest.image_size

    def detect(
        self, prepare: Prepare, inline: Pixels | None, deadline: float | None, turn: Turn
    ) -> tuple[Manifest, Answer, bytes | None]:
        """Wait for the worker and let it judge one image; return the manifest that it was judged by, and the inline mask.

        The mask is its bytes (height x width x 3, uint8, RGB), None where it is in the client's segment or there is none.

        Args:
            prepare: makes the job for a manifest; called again where another package takes over while the call waits.
            inline: the image's bytes (height x width x 3, uint8, RGB), None where they are in the client's segment.
            deadline: time.monotonic() after which nobody waits for the answer any more, or None.
            turn: the call's place in the queue; its `give_up` ends the wait.

        Raises:
            WrongState: the model is not RUNNING.
            CannotKeepUp: too many calls wait, or the deadline passed.
            EdgeAgentError: the worker refused the image or failed on it, or died under the call.

        """
        with self._lock:
            serving = self._loaded("DetectAnomalies")
        return serving.call(prepare, inline, deadline, turn)

    def start(self) -> None:
        """Begin to load the model: the state reads STARTING when this returns.

        Raises:
            ModelNotFound: it was removed.
            WrongState: the model is neither STOPPED nor FAILED.
            NotEnoughMemory: there is no room for it; the state stays as it was.

        """
        with self._lock:  # before the disk and a driver are asked, and again after that
            self._require_startable()
            latest = self._deployment.waiting or self.found
        self._ways.look_again()
        on_disk = self._on_disk(latest)
        place = self._planner.reserve_gpu(on_disk)
        try:
            with self._lock:
                self._require_startable()
                self._ledger.admit(self.name, self._planner.memory_needed(on_disk))
                settled = on_disk.signature == latest.signature
                self._deployment.begin(on_disk)
                self._planner.begin(place)
                self._starter = self._new_starter()
                self._move(State.STARTING, "asked to start", detail="Loading the model.")
                starter = self._starter
        except BaseException:
            place.settle()
            raise
        try:
            threads.start(f"start-{self.name}", self._load, starter, settled, place)
        except NoThread as refusal:
            place.settle()
            self._not_loaded(f"The model was not loaded: {refusal}. Then {AGAIN}.")

    def retire(self) -> bool:
        """Make the model one that can never be started again, so that it may be removed; return whether its state allows it."""
        with self._lock:
            self._retired = self._state in (State.STOPPED, State.FAILED)
            return self._retired

    def stop(self, cause: str = "asked to stop") -> None:
        """Let accepted calls finish, within drain_timeout, and unload the model; return when everything is released.

        Raises:
            WrongState: the model is not RUNNING.

        """

        def stopping() -> WrongState:
            return WrongState(State.STOPPING.name, "DetectAnomalies", State.RUNNING.name)

        with self._lock:
            serving = self._loaded("StopModel")
            self._move(State.STOPPING, cause)
        try:
            serving.stop(self._settings.drain_timeout, stopping)
        finally:
            with self._lock:
                self._serving = None
                self._move(State.STOPPED, "everything is released")

    def close(self) -> None:
        """End the workers at once, for the end of the agent; `wait` waits until they have ended."""
        with self._lock:
            self._closing = True
            starter, serving = self._starter, self._serving
        if starter:
            starter.end(AGENT_ENDS)
        if serving:
            serving.kill(AGENT_ENDS)

    def wait(self) -> None:
        """Wait for the end of a worker that `close` has ended, or until it is given up."""
        if serving := self._serving:
            serving.wait()

    def adopt(self, settings: Settings) -> None:
        """Go on with settings that changed while the agent runs: a queue at once, all else with the next worker."""
        with self._lock:
            self._settings = settings
            self._planner.adopt(settings)
            if self._starter:
                self._starter.limit(self._limits())
            if self._serving:
                self._adopt(self._serving)

    def _adopt(self, serving: Serving) -> None:
        """Have calls served by the settings as they are now; the lock must be held."""
        serving.adopt(self._settings.of_model(self.name, "queue_limit"), self._budget())

    def _require_startable(self) -> None:
        """Raise ModelNotFound where the model was removed, and WrongState unless it may be started. The lock must be held."""
        if self._retired:
            raise ModelNotFound(self.name)
        lifecycle.require(self._state, "StartModel")

    def _loaded(self, call: str) -> Serving:
        """Return what serves the calls; raise WrongState unless `call` is allowed and there is. The lock must be held."""
        lifecycle.require(self._state, call)
        assert self._serving is not None  # which every RUNNING model has
        return self._serving

    def _new_starter(self) -> Starter:
        return Starter(self.name, self._spawner, self._planner.plan, self._limits(), self._metrics, self._tell)

    def _limits(self) -> Limits:
        settings = self._settings
        return Limits(settings.load_timeout, settings.build_timeout, settings.of_model(self.name, "call_timeout"))

    def _budget(self) -> RestartBudget | None:
        return RestartBudget() if self._settings.restart == "on-failure" else None

    def _tell(self, progress: str) -> None:
        """Take note of what is being done while the model is loaded."""
        logger.debug("%s: %s", self.name, progress)
        with self._lock:
            if self._state is State.STARTING:
                self._detail = progress
                self._heard = time.monotonic()

    def _take(self, found: Found) -> None:
        """Replace the deployed package, which nothing uses; a new deployment begins STOPPED, a broken one FAILED."""
        self._state = self._deployment.take(found)
        self._detail = found.refusal

    def _load(self, starter: Starter, settled: bool, place: Place) -> None:
        """Start the worker and wait for it; the thread behind STARTING."""
        try:
            try:
                if not settled:
                    self._wait_until_settled()
                worker = self._start_worker(starter)
            finally:
                place.settle()
            try:
                self._serve(starter, worker)
            except BaseException as error:
                worker.kill(str(error))
                worker.wait()
                worker.release()
                raise
        except PackageRefused as refusal:
            self._not_loaded(str(refusal))
        except NoThread as refusal:
            self._not_loaded(f"The model was not loaded: {refusal}. Then {AGAIN}.")
        except WorkerDied as death:
            self._not_loaded(f"The worker process ended while the model was loading: {death}.")
        except Exception:
            logger.exception("%s: unexpected failure while starting", self.name)
            self._not_loaded("The agent failed to start the worker; its log has the cause.")

    def _serve(self, starter: Starter, worker: Worker) -> None:
        """Serve with a worker that has loaded the package; raise NoThread where nobody can look after it."""
        self._ledger.settle(self.name)
        limit, slots = self._settings.of_model(self.name, "queue_limit"), self._planner.chosen.slots
        queue = CallQueue(self.name, limit, slots, partial(self._metrics.queued, self.name))
        does = self._failed, self._took_over, self._on_disk, self._settling_pause
        serving = Serving(self.name, starter, (self.found, worker), queue, self._budget(), self._metrics, *does)
        with self._lock:  # so that its death is heard of only when it serves
            serving.watch()
            self._serving = serving
            self._adopt(serving)  # they may have changed since
            self._move(State.RUNNING, f"loaded on {worker.provider}, warm-up {worker.warm_up * 1000:.1f} ms")
            serving.announce(self._deployment.waiting)
            closing = self._closing
        if closing:
            serving.kill(AGENT_ENDS)

    def _settling_pause(self) -> float:
        return min(self._settings.scan_interval, LONGEST_SETTLING_PAUSE)

    def _on_disk(self, found: Found) -> Found:
        """Return a package as it is on disk this instant."""
        return packages.look_again(self._moved(found), self._ways.rules())

    def _start_worker(self, starter: Starter) -> Worker:
        """Start a worker for the package, or for a newer one that became known where this one cannot be loaded.

        In an update the files of the one before may go while it is being loaded.
        """
        while True:
            try:
                return starter.start(self.found)
            except PackageRefused as refusal:
                with self._lock:
                    following = self._deployment.waiting
                    if following is None or following.package is None:
                        raise
                    logger.info("%s: version %s is loaded instead: %s", self.name, following.version, refusal)
                    self._deployment.replace(following)

    def _failed(self, serving: Serving, reason: str) -> None:
        """Make the model FAILED: its workers died too often, or could not be replaced."""
        with self._lock:
            if self._serving is serving and self._state is State.RUNNING and not self._closing:
                self._serving = None
                self._deployment.found = serving.found
                self._move(State.FAILED, reason, detail=reason if AGAIN in reason else f"{reason}{START_AGAIN}")

    def _not_loaded(self, reason: str) -> None:
        self._ledger.settle(self.name)
        with self._lock:
            self._move(State.FAILED, reason, detail=reason)

    def _wait_until_settled(self) -> None:
        """Wait until two looks at the package agree: what is being copied is not loaded half-way."""
        give_up = time.monotonic() + self._settings.load_timeout
        with self._lock:
            self._detail = "Waiting until the package on disk has settled."
        while time.monotonic() < give_up and not self._closing:
            time.sleep(self._settling_pause())
            again = self._on_disk(self.found)
            agreed = again.signature == self.found.signature
            with self._lock:
                self._deployment.replace(again)
            if agreed:
                return
        raise PackageRefused("The package kept changing while the model was being started.")

    def _move(self, target: State, cause: str, detail: str = "") -> None:
        self._heard = 0.0
        logger.info("%s: %s -> %s: %s", self.name, self._state.name, target.name, cause)
        self._state = lifecycle.move(self._state, target)
        self._detail = detail
