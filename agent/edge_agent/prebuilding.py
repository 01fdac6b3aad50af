"""Building engines ahead of time: each model is loaded as the agent would load it, in a process of its own, and unloaded."""

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edge_agent import packages
from edge_agent.accelerators import WORDS, instead
from edge_agent.backends.engines import EngineCache, digest_of
from edge_agent.config import Settings
from edge_agent.deaths import WorkerDied
from edge_agent.errors import PackageRefused
from edge_agent.jobs import SessionOptions
from edge_agent.log import LogSettings
from edge_agent.memory import MemoryLedger
from edge_agent.packages import Found
from edge_agent.plan import Plan, Planner
from edge_agent.spawner import Spawner
from edge_agent.supervisor import Worker
from edge_agent.ways import Ways

Outcome = Literal["built", "kept", "nothing", "failed"]


@dataclass(frozen=True)
class Prebuilt:
    """What became of one model; `seconds` is how long it took to load, and `reason` is for operators.

    `provider` is what it runs on, in the runtime's words. "kept" says that the engine was there already, "nothing" that
    the agent builds none for it.
    """

    outcome: Outcome
    reason: str = ""
    seconds: float | None = None
    provider: str = ""


class Prebuilder:
    """Builds the engines of models one after the other, so that none takes the memory of another."""

    def __init__(self, settings: Settings, ways: Ways, tuned: Callable[[str], Mapping[str, Any]]) -> None:
        self._settings = settings
        self._ways = ways
        self._tuned = tuned
        self._ledger = MemoryLedger(settings.memory_reserve)
        # In the folder that is the default: it is set for all of this process.
        self._spawner = Spawner(Path(tempfile.gettempdir()), LogSettings("warning", settings.log_format))
        self._started = False

    def build(self, found: Found, tell: Callable[[str], None]) -> Prebuilt:
        """Have the engine of a model built, unless it is there; `tell` is told what is being done."""
        try:
            if found.package is None:
                raise PackageRefused(found.refusal)
            planner = Planner(found.name, self._settings, self._ledger, self._ways, self._tuned)
            planner.begin()
            plan = planner.plan(found)
            if plan.ways[0].accelerator != "tensorrt":
                return Prebuilt("nothing", _why_nothing(plan))
            # Where this one fails the agent may have another, which is no reason to be content here.
            return self._with_engine(found, plan.ways[0], tell)
        except PackageRefused as refusal:
            return Prebuilt("failed", str(refusal))
        except WorkerDied as death:
            return Prebuilt("failed", f"Its process ended: {death}.")

    def _with_engine(self, found: Found, options: SessionOptions, tell: Callable[[str], None]) -> Prebuilt:
        assert found.package is not None  # it was looked at
        gpu = options.gpu
        if not gpu.engines or gpu.engines_size <= 0:
            raise PackageRefused("No engine would be kept; correct the setting engine_cache_size or state_dir.")
        model = digest_of(packages.read_model(found.package))
        cache = EngineCache(Path(gpu.engines), gpu.engines_size)
        before = cache.of_model(model)
        begin = time.monotonic()
        provider = self._load(found, options, tell)
        seconds = time.monotonic() - begin
        after = cache.of_model(model)
        if after.keys() - before.keys():
            return Prebuilt("built", seconds=seconds, provider=provider)
        if any(used != before[serial] for serial, used in after.items()):
            return Prebuilt("kept", seconds=seconds, provider=provider)
        raise PackageRefused(f"The engine was built in {seconds:.1f} s and is not kept; the lines above say why.")

    def _load(self, found: Found, options: SessionOptions, tell: Callable[[str], None]) -> str:
        """Load a model and unload it; return what it ran on. Raises PackageRefused and WorkerDied as Worker.load."""
        self._start()
        worker = Worker(self._spawner, found, options, None)
        try:
            worker.load(self._settings.load_timeout, self._settings.build_timeout, tell)
        except BaseException:
            worker.kill("the building was ended")  # which else would go on until its end
            raise
        finally:
            worker.stop()
            worker.release()
        return worker.provider

    def _start(self) -> None:
        """Start the process that the others come from; all that they print goes to stderr, log lines included."""
        if self._started:
            return
        ours = os.dup(1)
        try:
            os.dup2(2, 1)
            self._spawner.start()
        finally:
            os.dup2(ours, 1)
            os.close(ours)
        self._started = True


def _why_nothing(plan: Plan) -> str:
    used = plan.ways[0].accelerator
    return instead(used, plan.failed) or f"It runs on {WORDS[used]}, for which no engine is built."
