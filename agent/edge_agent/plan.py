"""How one model is run: the options of its worker for each way that is tried, and the memory that it needs."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from edge_agent import packages
from edge_agent.accelerators import WORDS, Choice, Failed
from edge_agent.config import Settings
from edge_agent.errors import NotEnoughMemory, PackageRefused
from edge_agent.jobs import Accelerator, SessionOptions
from edge_agent.memory import MemoryLedger
from edge_agent.packages import Found, Signature
from edge_agent.ways import Ways

# What a process needs before the model: interpreter, NumPy, the runtime and its first buffers.
WORKER_BASE = 96 << 20
# What CUDA, its libraries and the runtime take of a GPU's memory before the model: an estimate.
GPU_BASE = 512 << 20
# What `edge-agent tune` measures.
TUNABLE = ("threads", "slots", "spinning")


@dataclass(frozen=True)
class Plan:
    """The ways to run a model, in order; `failed` is what would have come before them, and cannot be used."""

    ways: tuple[SessionOptions, ...]
    failed: tuple[Failed, ...] = ()


@dataclass(frozen=True)
class Shortage:
    """A package that there was no GPU memory for, by its content, and why, in sentences."""

    content: Signature
    why: str


@dataclass(frozen=True)
class Place:
    """GPU memory that is set aside for a model while it is loaded, none where there is no ledger.

    `short` says that there was none to set aside and the CPU takes over.
    """

    ledger: MemoryLedger | None = None
    name: str = ""
    short: Shortage | None = None

    def settle(self) -> None:
        """Give up what was set aside: the model has taken it by now, or never will."""
        if self.ledger:
            self.ledger.settle(self.name)


class Planner:
    """Plans how a model is run from one start to the next.

    Any thread may ask for a plan and have memory set aside; `begin` and `keep_to` decide for all of them, so whoever calls
    these has made sure that it is their turn.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        ledger: MemoryLedger,
        ways: Ways,
        tuned: Callable[[str], Mapping[str, Any]],
    ) -> None:
        """Plan for a model; `tuned` returns what was measured best for one on this device, by the names of TUNABLE."""
        self._name = name
        self._settings = settings
        self._ledger = ledger
        self._ways = ways
        self._tuned = tuned
        self.chosen = SessionOptions()
        # What there was no GPU memory for when it was last to be loaded.
        self._short: Shortage | None = None
        self._starts = itertools.count()

    def adopt(self, settings: Settings) -> None:
        """Reckon by settings that changed while the agent runs."""
        self._settings = settings

    def begin(self, place: Place | None = None) -> None:
        """Choose how the model is run from now on: by its own settings, by what was tuned, or else by the agent's.

        `place` is what was set aside for this start.
        """
        self.keep_to(place or Place())
        tuned = self._tuned(self._name)
        own, general = self._settings.model_settings.get(self._name), self._settings
        chosen: dict[str, Any] = {}
        for key in (*TUNABLE, "cpus"):
            value = getattr(own, key, None)
            chosen[key] = tuned.get(key, getattr(general, key)) if value is None else value
        self.chosen = SessionOptions(**chosen)

    def keep_to(self, place: Place) -> None:
        """Plan by a place from now on: a package that there was no GPU memory for runs on the CPU until the next one."""
        self._short = place.short

    def plan(self, found: Found) -> Plan:
        """Return the ways to run a package; raise PackageRefused when there is none."""
        choice = self._choice(found)
        return Plan(tuple(self._options(found, way) for way in choice.ways), choice.failed)

    def memory_needed(self, found: Found) -> int:
        """Return the bytes of memory that a package takes when it is loaded."""
        package = found.package
        if package is None:
            return 0  # it will be refused before it takes any
        stated = self._settings.of_model(self._name, "memory") or (
            package.manifest.block and package.manifest.block.peak_memory
        )
        return int(stated or packages.model_size(package) * self._settings.memory_factor + WORKER_BASE)

    def gpu_memory_needed(self, found: Found) -> int:
        """Return the bytes of a GPU's memory that a package takes when it is loaded on one."""
        stated = self._settings.of_model(self._name, "gpu_memory")
        if stated or found.package is None:
            return int(stated or 0)
        return int(packages.model_size(found.package) * self._settings.memory_factor + GPU_BASE)

    def reserve_gpu(self, found: Found) -> Place:
        """Set GPU memory aside for a package that is to be loaded; the driver is asked how much is free.

        Where the CPU may take over, a GPU without the room for it counts as one that cannot be used. Only the place that is
        returned says so: of two starts at once, the one that is refused may find no room just because the other has it.

        Raises:
            NotEnoughMemory: there is no room for it.

        """
        try:
            choice = self._ways.choose(self._name, found) if found.package else Choice(("cpu",))
        except PackageRefused:
            return Place()  # its start will say so
        if choice.first == "cpu":
            return Place()
        # Named for this very start: two of one model may be asked for at once, and the one that comes second gives its up.
        ledger, name = self._ways.gpu_ledger(self._name), f"{self._name} {next(self._starts)}"
        try:
            ledger.admit(name, self.gpu_memory_needed(found))
        except NotEnoughMemory as refusal:
            if "cpu" not in choice.ways:
                raise
            return Place(short=Shortage(found.content, str(refusal)))
        return Place(ledger, name)

    @contextlib.contextmanager
    def beside(self, found: Found) -> Iterator[Place]:
        """Keep memory for a package while it is loaded beside the one that runs; raise PackageRefused where there is none."""
        place, name = Place(), self._beside(found)
        try:
            place = self.reserve_gpu(found)
            self._ledger.admit(name, self.memory_needed(found))
            yield place
        except NotEnoughMemory as refusal:
            raise PackageRefused(str(refusal)) from None
        finally:
            place.settle()
            self._ledger.settle(name)

    def _beside(self, found: Found) -> str:
        """Name the memory of a package that is loaded beside the one that runs."""
        return f"{self._name} {found.version}"

    def _choice(self, found: Found) -> Choice:
        choice = self._ways.choose(self._name, found)
        short = self._short
        if short and short.content == found.content and choice.first != "cpu":
            return Choice(("cpu",), choice.notes, (*choice.failed, Failed(WORDS[choice.first], short.why)))
        return choice

    def _options(self, found: Found, accelerator: Accelerator) -> SessionOptions:
        room = self._ledger.room(self._name, self._beside(found))
        limit = self._settings.of_model(self._name, "memory_limit") or max(self.memory_needed(found), room)
        options = replace(self.chosen, memory_limit=int(limit), accelerator=accelerator)
        return options if accelerator == "cpu" else replace(options, gpu=self._ways.gpu_options(self._name))
