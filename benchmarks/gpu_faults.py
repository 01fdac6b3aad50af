"""What gpu_check.py breaks on purpose: a poisoned CUDA context, a full GPU, a killed worker, a damaged engine.

The poison is a kernel that writes to an address that is none, which CUDA answers with error 700
(cudaErrorIllegalAddress) from then on, in that process: its PTX is loaded by the driver (CUDA Driver API, "Module
Management", "Execution Control"; PTX ISA, where sm_75 came with 6.3 and is the oldest that CUDA 13 knows).
"""

import contextlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
from gpu_models import Model, found
from gpu_steps import VRAM_TOLERANCE, Place, free_memory, in_process, served, status, stop, taken
from harness import largest_descendant, noise, request, start_model

from edge_agent import backends, graphs, packages
from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent._proto.edge_agent_pb2_grpc import EdgeAgentStub
from edge_agent.bench.bare import Frame
from edge_agent.errors import AcceleratorFailed
from edge_agent.jobs import Accelerator
from edge_agent.pipeline import Pipeline

POISON = b"""
.version 6.3
.target sm_75
.address_size 64
.visible .entry poison()
{
    .reg .u64 %address;
    .reg .u32 %value;
    mov.u64 %address, 16;
    mov.u32 %value, 1;
    st.global.u32 [%address], %value;
    ret;
}
\0"""
# What is left free on a GPU that is filled: too little for any model.
LEFT_FREE = 64 << 20
PATIENCE = 60.0
# What was broken, until its process ends: what takes it down would find an error that it may not survive.
BROKEN: list[Pipeline] = []


@dataclass(frozen=True)
class Fault:
    """What was broken, whether it ended as promised, and what was seen."""

    ok: bool
    seen: str


def all_faults(place: Place, model: Model, accelerator: Accelerator) -> dict[str, Fault]:
    """Break everything in turn, and return what became of it."""
    faults: dict[str, Callable[[Place, Model, Accelerator], Fault]] = {
        "error 700": poisoned,
        "full GPU": full,
        "killed worker": killed,
        "damaged engine": damaged,
    }
    return {name: _tried(fault, place, model, accelerator) for name, fault in faults.items()}


def _tried(fault: Callable[[Place, Model, Accelerator], Fault], *arguments: Any) -> Fault:
    """Return what became of a fault, also where that ends otherwise than it foresees."""
    try:
        return fault(*arguments)
    except (SystemExit, grpc.RpcError) as error:
        return Fault(ok=False, seen=f"{type(error).__name__}: {error}")


def poisoned(place: Place, model: Model, accelerator: Accelerator) -> Fault:
    """See that a run in a context with an error raises what ends the process, and not an answer."""
    told = in_process(_poisoned, place, model, accelerator)
    return told if isinstance(told, Fault) else Fault(ok=False, seen=str(told))


def _poisoned(place: Place, model: Model, accelerator: Accelerator) -> Fault:
    made, _ = found(place.models, model)
    session = backends.open_session(packages.read_model(made), place.options(accelerator))
    pipeline = Pipeline(made.manifest, graphs.of(made.manifest, session))
    pipeline.warm_up()
    BROKEN.append(pipeline)
    launch_poison()
    try:
        pipeline.warm_up()
    except AcceleratorFailed as error:
        return Fault(ok=True, seen=str(error))
    except Exception as error:  # noqa: BLE001  (whatever it is, it is not what was promised)
        return Fault(ok=False, seen=f"{type(error).__name__}: {error}")
    return Fault(ok=False, seen="an answer")


def launch_poison() -> None:
    """Break the CUDA context of this process, in which a model runs."""
    try:
        from cuda.bindings import driver
    except ImportError:  # before 12.8
        from cuda import cuda as driver

    def call(result: tuple[Any, ...]) -> Any:
        code, *rest = result
        if int(code):
            raise SystemExit(f"The poison could not be launched: {code!r}")
        return rest[0] if rest else None

    call(driver.cuInit(0))
    context = call(driver.cuDevicePrimaryCtxRetain(call(driver.cuDeviceGet(0))))
    call(driver.cuCtxSetCurrent(context))
    kernel = call(driver.cuModuleGetFunction(call(driver.cuModuleLoadData(POISON)), b"poison"))
    call(driver.cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0))


def full(place: Place, model: Model, accelerator: Accelerator) -> Fault:
    """See that a GPU without memory refuses a start, the agent goes on, and the start succeeds once there is some."""
    if free_memory() is None:
        return Fault(ok=True, seen="not tried: what is free is not told, and on a Jetson it is the machine's memory")
    with served(place, accelerator, "full") as (_, stub, _), _filled():
        try:
            stub.StartModel(pb2.StartModelRequest(model_component=model.name))
            refused = ""
        except grpc.RpcError as error:
            refused = f"{error.code().name}: {error.details()}"
    # What is not seen before it is loaded must fail by itself.
    config = place.folder / "full.yaml"
    config.write_text(json.dumps({"model_settings": {model.name: {"gpu_memory": 1}}}))
    config.chmod(0o644)
    with served(place, accelerator, "full-late", gpu_memory_reserve=0, config=config) as (_, stub, _):
        with _filled():
            late = _start(stub, model.name)
        start_model(stub, model.name)
        well = status(stub, model.name)[0]
    seen = f"{refused or 'started'}; without admission {late}; with memory again {well}"
    return Fault(ok="RESOURCE_EXHAUSTED" in refused and late.startswith("FAILED") and well == "RUNNING", seen=seen)


def _start(stub: EdgeAgentStub, name: str) -> str:
    """Start a model; return how that ends, with its message."""
    try:
        stub.StartModel(pb2.StartModelRequest(model_component=name))
    except grpc.RpcError as error:
        return f"{error.code().name}: {error.details()}"
    give_up = time.monotonic() + PATIENCE
    while (told := status(stub, name))[0] == "STARTING" and time.monotonic() < give_up:
        time.sleep(0.05)
    return ": ".join(told)


@contextlib.contextmanager
def _filled() -> Iterator[None]:
    """Take the GPU's memory, all but a little, in another process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_take_all, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    try:
        ours.recv()
        yield
    finally:
        process.kill()
        process.join()


def _take_all(pipe: Connection) -> None:
    from edge_agent.backends.cuda import Cuda

    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # so that it is the one that NVML is asked about
    cuda = Cuda(0)
    free, _ = cuda.memory()
    cuda.malloc(free - LEFT_FREE)
    pipe.send("taken")
    signal.pause()


def killed(place: Place, model: Model, accelerator: Accelerator) -> Fault:
    """See that a worker that is killed is replaced on the GPU, answers, and leaves no memory behind."""
    made, _ = found(place.models, model)
    width, height = made.manifest.image_size
    frame = Frame(noise(width, height), width, height)
    try:
        with served(place, accelerator, "killed") as (pid, stub, _):
            before = free_memory()
            start_model(stub, model.name)
            stub.DetectAnomalies(request(model.name, frame))
            os.kill(largest_descendant(pid), signal.SIGKILL)
            with contextlib.suppress(grpc.RpcError):  # it may have reached the dying worker
                stub.DetectAnomalies(request(model.name, frame), timeout=PATIENCE)
            answer = stub.DetectAnomalies(request(model.name, frame), timeout=PATIENCE).detect_anomaly_result
            stop(stub, model.name)
            left = taken(before)
    except grpc.RpcError as error:
        return Fault(ok=False, seen=f"{error.code().name}: {error.details()}")
    finally:
        frame.close()
    seen = f"answered again, confidence {answer.confidence:.3f}; bytes left on the GPU: {left}"
    return Fault(ok=left is None or left <= VRAM_TOLERANCE, seen=seen)


def damaged(place: Place, model: Model, accelerator: Accelerator) -> Fault:
    """See that a damaged engine is built again, and not loaded."""
    if accelerator != "tensorrt":
        return Fault(ok=True, seen="no engine is built")
    with served(place, accelerator, "damaged") as (_, stub, folder):
        start_model(stub, model.name)
        stop(stub, model.name)
        files = [one for one in (folder / "state" / "engines").rglob("*") if one.is_file()]
        for one in files:
            _damage(one)
        start_model(stub, model.name)
        return Fault(ok=bool(files), seen=f"{len(files)} files damaged, RUNNING again")


def _damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
