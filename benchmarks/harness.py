"""What the benchmarks share: models, an agent to measure, empty calls, and figures. Times are milliseconds unless said."""

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from edge_agent import packages
from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent._proto.edge_agent_pb2_grpc import EdgeAgentStub
from edge_agent.bench.bare import Bare, Frame
from edge_agent.jobs import SessionOptions
from edge_agent.packages import Package
from model_packager import destinations, packaging, writing

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
SHARED = Path(os.environ.get("EDGE_AGENT_SHARED") or HERE.parents[1] / "shared")
COOKIES = SHARED / "models" / "cookies-segmentation" / "component"
PHOTOGRAPHS = SHARED / "data" / "cookies" / "training-images"
COMPILED, INT8 = "cookies-compiled", "cookies-int8"
# Calls of one contender before it is the next one's turn.
TURN = 10
UNCOUNTED = 2
PAUSE = 0.05
# One thread has none to wait for, so none that spins.
RUNTIME_OPTIONS = [SessionOptions(1), SessionOptions(2), SessionOptions(2, spinning=True)]


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """Yield a folder for models, socket and state, which is removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="ea-bench-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    return {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "grpcio": grpc.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def small_network(side: int = 224) -> bytes:
    """Return a generated classifier of a few milliseconds: five convolutions, a pool and a softmax."""
    random = np.random.default_rng(0)
    nodes, weights, previous, channels = [], [], "input", 3
    for layer, width in enumerate((64, 128, 224, 320, 320)):
        kernel = random.normal(0, (2 / (9 * channels)) ** 0.5, (width, channels, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"w{layer}"))
        stride = [2, 2] if layer < 4 else [1, 1]
        nodes.append(helper.make_node("Conv", [previous, f"w{layer}"], [f"c{layer}"], strides=stride, pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]))
        previous, channels = f"r{layer}", width
    weights.append(numpy_helper.from_array(random.normal(0, 0.1, (channels, 2)).astype(np.float32), "dense"))
    nodes += [
        helper.make_node("GlobalAveragePool", [previous], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "dense"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, side, side])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 2])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def make_models(folder: Path) -> None:
    """Write the packages: a small classifier that takes any size, and the shared cookies model where it is there."""
    manifest = writing.mochi_manifest((224, 224), 0.5, (), normalize=True)
    writing.write(folder / "small", manifest, small_network(), "small", more={"any_image_size": True})
    if COOKIES.is_dir():
        shutil.copytree(COOKIES, folder / "cookies-segmentation" / "component")
        compile_model(COOKIES, folder, COMPILED)
        compile_model(COOKIES, folder, INT8, precision="int8", images=str(PHOTOGRAPHS))
    else:
        print(f"SKIPPED: the cookies model, which is not in {SHARED}")
    for one in (folder, *folder.rglob("*")):
        one.chmod(0o755 if one.is_dir() else 0o644)


def compile_model(
    component: Path, folder: Path, name: str, target: Mapping[str, Any] | None = None, **options: str
) -> None:
    """Package a component as `edge-agent package start` does, for x86-64 or what a job's settings say of the `target`."""
    greengrass = {"ComponentName": name, **(target or {"TargetPlatform": {"Os": "LINUX", "Arch": "X86_64"}})}
    order = {
        "request": {"ProjectName": "b", "ModelVersion": "1", "Configuration": {"Greengrass": greengrass}},
        "output": str(folder),
        "source": str(component),
        "options": options,
    }
    with tempfile.TemporaryDirectory() as work:
        packaging.run(order, Path(work), destinations.of(str(folder)), lambda _step, _fraction: None)


def package(folder: Path, name: str) -> Package:
    """Return the package of a model below `folder`."""
    for path in packages.search(folder, lambda _: None):
        found = packages.look(path, folder, packages.Rules())
        if found.name == name:
            if found.package is None:
                raise SystemExit(found.refusal)
            return found.package
    raise SystemExit(f"There is no model {name} in {folder}.")


def noise(width: int, height: int) -> bytes:
    """Return a frame of random pixels, packed RGB."""
    return np.random.default_rng(1).integers(0, 256, 3 * width * height, np.uint8).tobytes()


def request(model: str, frame: Frame) -> pb2.DetectAnomaliesRequest:
    """Return the request to judge a frame where it is, and to write its mask behind it."""
    found = pb2.DetectAnomaliesRequest(model_component=model, bitmap=pb2.Bitmap(width=frame.width, height=frame.height))
    source, mask = found.bitmap.shared_memory_handle, found.anomaly_mask_params.shared_memory_handle
    source.name, source.size = frame.name, frame.size
    mask.name, mask.size, mask.offset = frame.name, frame.size, frame.size
    return found


def inline_request(model: str, size: tuple[int, int], pixels: bytes) -> pb2.DetectAnomaliesRequest:
    """Return the request to judge the pixels in it, and to answer with the mask."""
    return pb2.DetectAnomaliesRequest(
        model_component=model, bitmap=pb2.Bitmap(width=size[0], height=size[1], byte_data=pixels)
    )


def answer_bare(pipe: Connection, model: Package, frame: Frame, options: SessionOptions) -> None:
    """Judge the frame whenever the pipe asks; runs in a process of its own."""
    bare = Bare(model, frame, options)
    pipe.send_bytes(b"")
    with contextlib.suppress(EOFError):
        while True:
            pipe.recv_bytes()
            bare.call()
            pipe.send_bytes(b"")


def serve_by_pipe(address: str, ready: Any, *bare: Any) -> None:
    """Serve a method whose handler lets another process judge the frame; runs in a process of its own."""
    from concurrent import futures

    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=answer_bare, args=(theirs, *bare))
    process.start()
    theirs.close()
    ours.recv_bytes()

    def judge(_: bytes, __: grpc.ServicerContext) -> bytes:
        ours.send_bytes(b"judge")
        return ours.recv_bytes()

    server = grpc.server(futures.ThreadPoolExecutor(8))
    methods = {"Judge": grpc.unary_unary_rpc_method_handler(judge)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Pipe", methods),))
    server.add_insecure_port(address)
    server.start()
    ready.set()
    server.wait_for_termination()


@contextlib.contextmanager
def calls_by_pipe(
    folder: Path, size: int, model: Package, frame: Frame, options: SessionOptions
) -> Iterator[Callable[[], None]]:
    """Yield a function that calls, with `size` bytes, the least that a server with a process for its model can be."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    address = f"unix:{folder}/pipe.sock"
    process = context.Process(target=serve_by_pipe, args=(address, ready, model, frame, options))
    process.start()
    ready.wait(30)
    with grpc.insecure_channel(address) as channel:
        judge = channel.unary_unary("/Pipe/Judge")
        payload = bytes(size)
        yield lambda: judge(payload) and None
    process.terminate()
    process.join()


def serve_empty(address: str, seconds: float, ready: Any) -> None:
    """Serve two methods whose handlers spin, or sleep, for `seconds`; runs in a process of its own."""
    from concurrent import futures

    def spin(_: bytes, __: grpc.ServicerContext) -> bytes:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass
        return b""

    def sleep(_: bytes, __: grpc.ServicerContext) -> bytes:
        time.sleep(seconds)
        return b""

    server = grpc.server(futures.ThreadPoolExecutor(8))
    methods = {"Spin": grpc.unary_unary_rpc_method_handler(spin), "Sleep": grpc.unary_unary_rpc_method_handler(sleep)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Empty", methods),))
    server.add_insecure_port(address)
    server.start()
    ready.set()
    server.wait_for_termination()


@contextlib.contextmanager
def empty_calls(folder: Path, seconds: float, size: int) -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
    """Yield two functions that call the spinning and the sleeping handler with `size` bytes."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    address = f"unix:{folder}/empty.sock"
    process = context.Process(target=serve_empty, args=(address, seconds, ready), daemon=True)
    process.start()
    ready.wait(30)
    with grpc.insecure_channel(address) as channel:
        spin, sleep = channel.unary_unary("/Empty/Spin"), channel.unary_unary("/Empty/Sleep")
        payload = bytes(size)
        yield (lambda: spin(payload) and None), (lambda: sleep(payload) and None)
    process.terminate()
    process.join()


@contextlib.contextmanager
def agent(
    folder: Path, options: SessionOptions | None = None, **settings: object
) -> Iterator[tuple[int, EdgeAgentStub, float]]:
    """Serve the models in `folder`/models on `folder`/agent.sock, with `settings` given as flags.

    Yields the agent's pid, a stub, and the seconds from its start to its first answer.
    """
    socket = folder / "agent.sock"
    chosen = options or SessionOptions()
    command = [
        sys.executable,
        "-m",
        "edge_agent",
        "serve",
        "--models",
        str(folder / "models"),
        "--socket",
        str(socket),
        "--socket-group",
        "",
        "--state-dir",
        str(folder / "state"),
        "--no-restore",
        "--threads",
        str(chosen.threads),
        "--slots",
        str(chosen.slots),
        "--spinning" if chosen.spinning else "--no-spinning",
        *(["--allow-root"] if os.geteuid() == 0 else []),
        *(part for key, value in settings.items() for part in (f"--{key.replace('_', '-')}", str(value))),
    ]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("EDGE_AGENT_")}
    limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, env=environment)
    try:
        while not socket.exists():
            if process.poll() is not None:
                raise SystemExit("The agent ended at its start.")
            time.sleep(0.001)
        with grpc.insecure_channel(f"unix://{socket}", limits) as channel:
            stub = EdgeAgentStub(channel)
            stub.ListModels(pb2.ListModelsRequest(), wait_for_ready=True)
            yield process.pid, stub, time.perf_counter() - begin
    finally:
        process.terminate()
        process.wait()


def start_model(stub: EdgeAgentStub, name: str) -> float:
    """Start a model; return the seconds until it is RUNNING."""
    begin = time.perf_counter()
    stub.StartModel(pb2.StartModelRequest(model_component=name))
    while True:
        description = stub.DescribeModel(pb2.DescribeModelRequest(model_component=name)).model_description
        if description.status == pb2.RUNNING:
            return time.perf_counter() - begin
        if description.status == pb2.FAILED:
            raise SystemExit(description.status_message)
        time.sleep(0.001)


def in_turns(contenders: Mapping[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """Return how long the calls of each contender took, TURN calls of one and then of the next, so many times.

    Threads of a runtime that spin go on for up to 50 ms after a call. So each turn begins after a pause as long as that,
    and its first calls, which find the caches cold and processors asleep, are not counted.
    """
    times: dict[str, list[float]] = {key: [] for key in contenders}
    for _ in range(turns):
        for key, contender in contenders.items():
            time.sleep(PAUSE)
            timed(contender, UNCOUNTED)
            times[key] += timed(contender, TURN)
    return times


def timed(function: Callable[[], object], rounds: int) -> list[float]:
    """Return how long each call of `function` took."""
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        function()
        times.append(1000 * (time.perf_counter() - begin))
    return times


def figures(times: list[float]) -> dict[str, float]:
    """Return the median and the 99th percentile."""
    ordered = sorted(times)
    return {"p50": statistics.median(ordered), "p99": ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))]}


def best_options(model: Package, size: tuple[int, int]) -> SessionOptions:
    """Return the threads and the spinning with which bare is fastest, the contenders taking turns."""
    frame = Frame(bytes(3 * size[0] * size[1]), *size)
    try:
        contenders = {options: Bare(model, frame, options) for options in RUNTIME_OPTIONS}
        times = in_turns({str(place): one.call for place, one in enumerate(contenders.values())}, 8)
    finally:
        frame.close()
    medians = [statistics.median(one) for one in times.values()]
    return list(contenders)[medians.index(min(medians))]


def memory_of(pid: int) -> float:
    """Return the resident MB of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))) / 1000


def largest_descendant(pid: int) -> int:
    """Return the pid of the worker: the largest process below the agent."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    below, wave = [], [pid]
    while wave:
        wave = [child for one in wave for child in children.get(one, [])]
        below += wave
    return max(below, key=memory_of)


def command(
    what: str, result: Path, run: Callable[[bool], dict[str, Any]], table: Callable[[dict[str, Any]], str]
) -> int:
    """Measure and keep the results, or print those that are kept; return the exit code. `run` is told whether to be quick."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--quick", action="store_true", help="few rounds, nothing written: to see that it runs")
    parser.add_argument("--table", action="store_true", help="print the tables of the kept results")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(json.loads(result.read_text())), end="")
        return 0
    found = run(arguments.quick)
    if not arguments.quick:
        result.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found), end="")
    return 0
