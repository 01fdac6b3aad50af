"""Which models are deployed: kept in step with their sources, started and stopped by name, remembered over a restart."""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from edge_agent.admission import Admission
from edge_agent.block import NAME
from edge_agent.catalog import Catalog
from edge_agent.config import Settings
from edge_agent.deployment import files_are_there, sources_note
from edge_agent.errors import EdgeAgentError, InvalidName, ModelNotFound, WrongState, shown
from edge_agent.lifecycle import State
from edge_agent.memory import MemoryLedger
from edge_agent.metrics import Metrics
from edge_agent.model import Model
from edge_agent.packages import Found
from edge_agent.registry import Registry
from edge_agent.spawner import Spawner
from edge_agent.state import RunningModels
from edge_agent.tuned import Tuned
from edge_agent.ways import Ways

logger = logging.getLogger(__name__)

SCAN_PATIENCE = 0.2
# A model that is being loaded will be called: by then its place is free.
LOADED = (State.STARTING, State.RUNNING)


class Models:
    """Every deployed model by name."""

    def __init__(
        self,
        settings: Settings,
        spawner: Spawner,
        remembered: RunningModels,
        metrics: Metrics,
        registry: Registry | None = None,
        tuned: Tuned | None = None,
    ) -> None:
        self._settings = settings
        self._spawner = spawner
        self._remembered = remembered
        self._ledger = MemoryLedger(settings.memory_reserve)
        self._metrics = metrics
        self._registry = registry
        self._tuned: Callable[[str], Mapping[str, Any]] = tuned.of if tuned else lambda _: {}
        self._ways = Ways(settings)
        self._catalog = Catalog(settings.models, self._ways.rules(), registry, settings.scan)
        self._lock = threading.Lock()
        self._models: dict[str, Model] = {}
        # What is remembered over a restart, and what starts by itself as soon as it is there: until somebody starts or
        # stops it by name, who then has taken charge of it.
        self._wanted = {*settings.autostart, *(remembered.read() if settings.restore else ())}
        self._automatic = set(self._wanted)
        self._admission = Admission(settings.max_calls, lambda: len(self._models), self._loaded)
        # The loaded models of which it was reckoned what they may have in hand.
        self._reckoned: set[str] = set()
        self._ended = threading.Event()
        self._scanning = threading.Lock()
        # Of its own: a slow disk must not stand between callers and their models.
        self._remembering = threading.Lock()
        self._serving = False
        self._told: set[tuple[str, str]] = set()
        self._verdicts: dict[str, tuple[Path, str]] = {}

    def get(self, name: str) -> Model:
        """Return a deployed model; raise InvalidName for what can be no name, ModelNotFound for any other."""
        if not NAME.fullmatch(name):
            raise InvalidName(
                f"model_component is {shown(name)}; a name has 1 to 128 of the characters a-z A-Z 0-9 - _ . "
                "ListModels names the deployed models."
            )
        with self._lock:
            model = self._models.get(name)
        if model is None:
            raise ModelNotFound(name)
        return model

    def all(self) -> list[Model]:
        """Return every deployed model, by name."""
        with self._lock:
            return [self._models[name] for name in sorted(self._models)]

    def status(self) -> list[dict[str, object]]:
        """Return what each deployed model is and does, as it would be written as JSON."""
        return [model.status() for model in self.all()]

    def start(self, name: str) -> None:
        """Begin to load a model, and remember that it is to run; errors as Model.start."""
        self.get(name).start()
        self._remember(name, wanted=True)

    def stop(self, name: str) -> None:
        """Unload a model, and remember that it is not to run; errors as Model.stop."""
        model = self.get(name)
        model.stop()
        self._remember(name, wanted=False)

    def admit(self, name: str) -> None:
        """Count a model's detection in, `release` must follow; raise CannotKeepUp where the agent has no place for it."""
        self._admission.enter(name)

    def release(self, name: str) -> None:
        """Count a model's detection out."""
        self._admission.leave(name)

    def scan(self) -> None:
        """Bring the deployed models in step with their sources; start what is wanted and newly there."""
        with self._scanning:
            by_name = self._catalog.look()
            fresh = self._registry.fresh_autostarts() if self._registry else set()
            self._automatic |= fresh
            self._verdicts = {}
            for name, candidates in by_name.items():
                self._judge(candidates, self._deploy(name, candidates))
            for model in self.all():
                if model.name not in by_name:
                    self._remove(model)
                elif self._serving and model.name in fresh:
                    self._start_wanted(model)
            self._answer()
            self._metrics.keep([model.name for model in self.all()])
            if self._serving and self._loaded() != self._reckoned:
                self._reckon()

    def adopt(self, settings: Settings) -> None:
        """Go on with settings of which such have changed as can while the agent runs (edge_agent.live)."""
        with self._scanning:  # which makes models, by the settings that it finds
            self._settings = settings
            self._ledger.reserve(int(settings.memory_reserve))
            self._ways.adopt(settings)
            self._spawner.write_log(settings.log_as)
            for model in self.all():
                model.adopt(settings)
            self._reckon(changed=True)

    def watch(self) -> None:
        """Scan again and again, in a thread of its own, until `close`."""
        threading.Thread(target=self._watch, name="scan", daemon=True).start()

    def start_wanted(self) -> None:
        """Start the models that start by themselves and those that were started when the agent last ended.

        The socket is served by now, so that whoever registered a model may be told.
        """
        self._serving = True
        for name in sorted(self._automatic):
            try:
                self._start_wanted(self.get(name))
            except EdgeAgentError as error:
                logger.warning("%s is to be started, but: %s", shown(name), error)
        self._reckon()
        # Who is told may start a model at once, which must not meet one that is just being started.
        self._answer()

    def fall_silent(self) -> None:
        """Acknowledge no registration any more, nor start what is new: calls are about to be refused."""
        self._serving = False
        if self._scanning.acquire(timeout=SCAN_PATIENCE / 2):  # what is being said is said before this returns
            self._scanning.release()

    def close(self) -> None:
        """End every worker at once; what was running is still remembered."""
        if not self._ended.is_set():
            self._ended.set()
            # A look that hangs on a dead disk must not keep the agent alive.
            self._scanning.acquire(timeout=SCAN_PATIENCE)
        models = self.all()
        for model in models:
            model.close()
        for model in models:  # all have been killed by then, so that those which the kernel holds are waited for once
            model.wait()

    def _watch(self) -> None:
        while not self._ended.wait(self._settings.scan_interval):
            try:
                self.scan()
            except Exception:
                logger.exception("Looking at the models folders failed; it is tried again.")

    def _loaded(self) -> set[str]:
        """Return the names of the models that run or are about to."""
        with self._lock:
            return {name for name, model in self._models.items() if model.state in LOADED}

    def _reckon(self, *, changed: bool = False) -> None:
        """See whether the loaded models may have more detections in hand than the agent."""
        loaded = [model for model in self.all() if model.state in LOADED]
        self._reckoned = {model.name for model in loaded}
        self._admission.compare({model.name: model.most_calls for model in loaded}, changed=changed)

    def _judge(self, candidates: list[Found], chosen: Found) -> None:
        """Note what the component that registered one of the candidates is to be told."""
        for one in candidates:
            if one.called:
                lost = f"Version {chosen.version} of this component in {chosen.folder} was there first."
                self._verdicts[one.name] = one.folder, one.refusal if one is chosen else lost

    def _answer(self) -> None:
        """Tell the components that registered models, once they can be called."""
        if self._registry and self._serving:
            self._registry.answer(self._verdicts)
            self._registry.tidy([model.found.folder for model in self.all()])

    def _deploy(self, name: str, candidates: list[Found]) -> Found:
        with self._lock:
            model = self._models.get(name)
        # The source that had the component first keeps it as long as it has it.
        source = self._catalog.source(model.found) if model else None
        found = next((one for one in candidates if self._catalog.source(one) == source), candidates[0])
        notes = sources_note([one for one in candidates if one is not found])
        for note in notes:
            if (name, note) not in self._told:
                self._told.add((name, note))
                logger.warning("%s: %s", name, note)
        if model is None:
            parts = (
                self._settings,
                self._spawner,
                self._ledger,
                self._metrics,
                self._catalog.moved,
                self._tuned,
                self._ways,
            )
            model = Model(found, *parts)
            model.deploy(found, notes)
            with self._lock:
                self._models[name] = model
            fresh = True
        else:
            fresh = model.deploy(found, notes)
        if fresh and self._serving and name in self._automatic:
            self._start_wanted(model)
        return found

    def _start_wanted(self, model: Model) -> None:
        try:
            model.start()
        except WrongState:
            pass  # it is on its way already
        except EdgeAgentError as error:
            logger.warning("%s was not started: %s", model.name, error)

    def _remove(self, model: Model) -> None:
        """Drop a model whose files are gone; a loaded one is unloaded first, one that is on its way at a later look."""
        if model.state is State.RUNNING:
            lost = self._registry and self._registry.lost(model.name)
            if self._settings.orphans == "keep" and files_are_there(model.found) and not lost:
                return
            try:
                model.stop("its files are gone")
            except WrongState:
                return
            self._automatic.add(model.name)  # it ran, so it runs again when its files come back
        if model.retire():  # before it is gone: somebody may be about to start it
            with self._lock:
                self._models.pop(model.name, None)
            logger.info("%s: removed, its files are gone", model.name)

    def _remember(self, name: str, *, wanted: bool) -> None:
        with self._remembering:
            (self._wanted.add if wanted else self._wanted.discard)(name)
            self._automatic.discard(name)
            names: Iterable[str] = sorted(self._wanted)
            self._remembered.write(names)
