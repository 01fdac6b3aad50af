"""What models are run on, on this device and with these settings: the rules for packages, and what a worker is told."""

import functools
import logging
import threading
from dataclasses import replace

from edge_agent import accelerators, device, state
from edge_agent.accelerators import Choice, Gpu, Wish
from edge_agent.block import Target
from edge_agent.config import Settings
from edge_agent.errors import AgentRefused
from edge_agent.gpus import Gpus
from edge_agent.jobs import GpuOptions
from edge_agent.memory import MemoryLedger, available
from edge_agent.packages import Found, Rules

logger = logging.getLogger(__name__)


class Ways:
    """The ways to run models. Any thread may ask."""

    def __init__(self, settings: Settings, gpus: Gpus | None = None) -> None:
        self._settings = settings
        self._gpus = gpus or Gpus()
        self._lock = threading.Lock()
        self._ledgers: dict[int, MemoryLedger] = {}

    def rules(self) -> Rules:
        """Return what packages must fulfil to be run here."""
        return replace(self._settings.package_rules, fit=self.fit)

    def fit(self, name: str, target: Target | None, strict: bool) -> tuple[str, ...]:
        """Return what operators should know of a model here; raise PackageRefused when it cannot be run (Rules.fit)."""
        notes = device.check(target, self._device(name, target), strict=strict) if target else ()
        return notes + self.of_target(name, target).notes

    def choose(self, name: str, found: Found) -> Choice:
        """Return what a package is run on, in which order; raise PackageRefused when nothing is left."""
        return self.of_target(name, target_of(found))

    def of_target(self, name: str, target: Target | None) -> Choice:
        """Return what a model is run on whose package was made for a target; errors as `choose`."""
        of_model = self._settings.of_model
        wish = Wish(of_model(name, "accelerator"), of_model(name, "fallback") == "allowed", of_model(name, "gpu"))
        return accelerators.choose(target, self._gpus.here, wish)

    def adopt(self, settings: Settings) -> None:
        """Go by settings that changed while the agent runs; GPU memory that was set aside already stays so."""
        with self._lock:
            self._settings = settings
            for ledger in self._ledgers.values():
                ledger.reserve(int(settings.gpu_memory_reserve))

    def look_again(self) -> None:
        """Ask anew what GPUs there are, when that is next needed, unless there was one."""
        self._gpus.forget_absence()

    def gpu_options(self, name: str) -> GpuOptions:
        """Return the GPU of a model, and how it is used."""
        of_model, here = self._settings.of_model, self._gpus.here()
        index = of_model(name, "gpu")
        gpu = here.gpu(index) or Gpu(index)
        return GpuOptions(
            index=index,
            name=gpu.name,
            code=gpu.code,
            driver=here.driver,
            memory_limit=int(of_model(name, "gpu_memory_limit") or 0),
            precision=of_model(name, "precision"),
            graphs=self._settings.cuda_graphs,
            engines=self._engines,
            engines_size=int(self._settings.engine_cache_size),
        )

    def gpu_ledger(self, name: str) -> MemoryLedger:
        """Return the account of the memory of a model's GPU, which is the machine's where the GPU has none (a Jetson's)."""
        index = self._settings.of_model(name, "gpu")

        def free() -> int:
            told = self._gpus.free(index)
            return available() if told is None else told

        with self._lock:
            made = MemoryLedger(int(self._settings.gpu_memory_reserve), free, "GPU memory")
            return self._ledgers.setdefault(index, made)

    def _device(self, name: str, target: Target) -> device.Device:
        """Return the device as a target is compared with it; its GPU is only asked where the target speaks of one."""
        this = device.this_one()
        if not target.accelerator and not target.options.keys() & device.OF_GPUS:
            return this
        here = self._gpus.here()
        gpu = here.gpu(self._settings.of_model(name, "gpu"))
        if gpu is None:
            return this
        return replace(this, gpu_code=gpu.code, tensorrt=here.tensorrt_version, cuda=here.cuda_driver)

    @functools.cached_property
    def _engines(self) -> str:
        """The folder for built engines, made when the first model needs it; empty where there can be none."""
        try:
            return str(state.engines(state.folder(self._settings.state_dir)))
        except (AgentRefused, OSError) as error:
            logger.warning("Engines that are built are not kept: %s", error)
            return ""


def target_of(found: Found) -> Target | None:
    """Return what a package was made for, None where it does not say."""
    block = found.package.manifest.block if found.package else None
    return block.target if block else None
