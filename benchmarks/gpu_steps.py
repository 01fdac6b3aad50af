"""The steps of gpu_check.py: parity, latency, builds and cycles. Each says what it saw, as JSON has it."""

import multiprocessing
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from gpu_models import Model, found
from harness import agent, figures, in_turns, noise, request, start_model

from edge_agent import backends, graphs, packages, state
from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent._proto.edge_agent_pb2_grpc import EdgeAgentStub
from edge_agent.accelerators import Here
from edge_agent.bench.bare import Bare, Frame
from edge_agent.errors import AcceleratorFailed, PackageRefused
from edge_agent.jobs import Accelerator, GpuOptions, SessionOptions
from edge_agent.pipeline import Pipeline
from edge_agent.probe import gpu
from model_packager import parity

# Of the GPU's memory, by which a stopped model may differ from none: bytes.
VRAM_TOLERANCE = 50_000_000
# Seconds until the driver has taken back what a process had.
SETTLED = 10.0
# Seconds that a look at the device may take: CUDA's libraries are read from the disk for it, and an engine is built.
LOOK = 180.0


@dataclass(frozen=True)
class Place:
    """Where it is checked: a folder with `models`, what the device has, and one for built engines."""

    folder: Path
    here: Here

    @property
    def models(self) -> Path:
        """The folder with the packages."""
        return self.folder / "models"

    def options(self, accelerator: Accelerator, *, engines: bool = True) -> SessionOptions:
        """Return how a session is opened, as the agent would."""
        if accelerator == "cpu":
            return SessionOptions()
        first = self.here.gpus[0]
        kept = str(state.engines(self.folder)) if engines else ""
        told = GpuOptions(first.index, first.name, first.code, self.here.driver, engines=kept)
        return SessionOptions(accelerator=accelerator, gpu=told)


def in_process(function: Callable[..., Any], *arguments: object) -> Any:
    """Return what a function returns in a process of its own, whose GPU errors are its own; a death is a sentence."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            return {"failed": "the process died"}
        except (AcceleratorFailed, PackageRefused) as error:
            return {"failed": str(error)}
        except (Exception, SystemExit) as error:  # noqa: BLE001  (the other steps are not to be lost with this one)
            return {"failed": f"{type(error).__name__}: {error}"}


def agreement(place: Place, model: Model, accelerator: Accelerator) -> dict[str, Any]:
    """Return how a package on an accelerator agrees with its source on the CPU, and within which tolerances."""
    made, source = found(place.models, model)

    def pipeline(package: packages.Package, options: SessionOptions) -> tuple[Pipeline, str]:
        session = backends.open_session(packages.read_model(package), options)
        return Pipeline(package.manifest, graphs.of(package.manifest, session)), session.provider

    other, provider = pipeline(made, place.options(accelerator))
    images = parity.Images(Path(model.images) if model.images else None, source.manifest)
    report = parity.compare(pipeline(source, SessionOptions())[0], other, images, parity.TOLERANCES[model.precision])
    return {"provider": provider, "ok": not report.complaint, "complaint": report.complaint, **report.as_json()}


def opened(place: Place, model: Model, accelerator: Accelerator, *, engines: bool) -> float:
    """Return the seconds until a session is open and warm."""
    begin = time.perf_counter()
    made, _ = found(place.models, model)
    session = backends.open_session(packages.read_model(made), place.options(accelerator, engines=engines))
    Pipeline(made.manifest, graphs.of(made.manifest, session)).warm_up()
    return time.perf_counter() - begin


def builds(place: Place, model: Model, accelerator: Accelerator) -> dict[str, Any]:
    """Return the seconds of a load that builds an engine and of one that finds it, each in a process of its own."""
    folder = Path(place.options(accelerator).gpu.engines)
    shutil.rmtree(folder, ignore_errors=True)
    first, second = (in_process(partial(opened, engines=True), place, model, accelerator) for _ in range(2))
    size = sum(one.stat().st_size for one in folder.rglob("*") if one.is_file()) if folder.is_dir() else 0
    return {"built_s": first, "cached_s": second, "engine_bytes": size}


@contextmanager
def served(
    place: Place, accelerator: Accelerator, label: str, **settings: object
) -> Iterator[tuple[int, EdgeAgentStub, Path]]:
    """Serve the models on an accelerator, from a folder of its own; yields pid, stub and folder."""
    folder = place.folder / label
    folder.mkdir(mode=0o755)
    shutil.copytree(place.models, folder / "models")
    with agent(folder, accelerator=accelerator, fallback="never", **settings) as (pid, stub, _):
        yield pid, stub, folder
    shutil.rmtree(folder)


def latency(place: Place, models: Sequence[Model], accelerators: Sequence[Accelerator], turns: int) -> dict[str, Any]:
    """Return the milliseconds of a call through the agent on each accelerator, and bare there, taking turns.

    What does not run is `failed` with a sentence, and the others are measured without it.
    """
    result: dict[str, Any] = {}
    for model in models:
        made, _ = found(place.models, model)
        width, height = made.manifest.image_size
        frame = Frame(noise(width, height), width, height)
        failed: dict[str, Any] = {}
        try:
            with ExitStack() as stack:
                contenders: dict[str, Callable[[], object]] = {}
                for one in accelerators:
                    _, stub, _ = stack.enter_context(served(place, one, f"latency-{one}"))
                    try:
                        start_model(stub, model.name)
                        bare = Bare(made, frame, replace(place.options(one), threads=0))
                    except (SystemExit, AcceleratorFailed, PackageRefused) as error:
                        failed[one] = {"failed": str(error)}
                        continue
                    contenders[one] = partial(stub.DetectAnomalies, request(model.name, frame))
                    contenders[f"{one}, bare"] = bare.call
                times = in_turns(contenders, turns)
        finally:
            frame.close()
        result[model.name] = {key: figures(one) for key, one in times.items()} | failed
    return result


def cycles(place: Place, model: Model, accelerator: Accelerator, count: int) -> dict[str, Any]:
    """Start and stop a model so many times; return the bytes of GPU memory that each stop left taken, and how long it took."""
    left, took = [], []
    with served(place, accelerator, f"cycles-{accelerator}") as (_, stub, _):
        before = free_memory()
        for _ in range(count):
            try:
                took.append(start_model(stub, model.name))
            except SystemExit as failure:
                return {"cycles": len(took), "ok": False, "failed": str(failure)}
            stop(stub, model.name)
            left.append(taken(before))
    worst = max((one for one in left if one is not None), default=None)
    return {
        "cycles": count,
        "start_s": statistics.median(took),
        "worst_left_bytes": worst,
        "tolerance_bytes": VRAM_TOLERANCE,
        "ok": worst is None or worst <= VRAM_TOLERANCE,
    }


def taken(before: int | None) -> int | None:
    """Return the bytes of GPU memory that are still taken, once the driver has had the time to give them back."""
    give_up = time.monotonic() + SETTLED
    while True:
        now = free_memory()
        if before is None or now is None:
            return None
        if before - now <= VRAM_TOLERANCE or time.monotonic() > give_up:
            return before - now
        time.sleep(0.1)


def free_memory() -> int | None:
    """Return the bytes of the first GPU's memory that are free, None where it does not tell (as on a Jetson)."""
    return next((one.memory_free for one in gpu.look().found), None)


def stop(stub: EdgeAgentStub, name: str) -> None:
    """Stop a model, and wait until it is STOPPED."""
    stub.StopModel(pb2.StopModelRequest(model_component=name))
    while status(stub, name)[0] != "STOPPED":
        time.sleep(0.01)


def status(stub: EdgeAgentStub, name: str) -> tuple[str, str]:
    """Return a model's status by name, and its message."""
    told = stub.DescribeModel(pb2.DescribeModelRequest(model_component=name)).model_description
    return pb2.ModelStatus.Name(told.status), told.status_message


def as_json(here: Here) -> dict[str, Any]:
    """Return the device as JSON has it."""
    return asdict(here)
