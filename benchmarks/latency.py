"""What a call costs above the bare model: `python benchmarks/latency.py [--quick]`.

*Bare* is the agent's own copy_in, pipeline and copy_out, called in one process on the same package, with the threads and
the spinning that are best for it; the agent gets the same ones as the model's settings. *Empty call* is the time of a gRPC call over the same kind of socket, to a handler
that spins for the bare time, less that time; a sleeping handler is reported beside it. Bare, empty call and agent take
turns in one run, so that a machine whose speed drifts cannot favour one of them. All times are milliseconds.

Writes benchmarks/results/latency.json and prints a table; `python benchmarks/latency.py --table` prints it again.
"""

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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import onnxruntime
import PIL.Image
import posix_ipc
from onnx import TensorProto, helper, numpy_helper

from edge_agent import backends, bitmaps, graphs, packages
from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent._proto.edge_agent_pb2_grpc import EdgeAgentStub
from edge_agent.bitmaps import Image, MaskTarget, Segment
from edge_agent.jobs import SessionOptions
from edge_agent.pipeline import Pipeline
from model_packager import destinations, packaging, writing

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "latency.json"
SHARED = Path(os.environ.get("EDGE_AGENT_SHARED") or HERE.parents[1] / "shared")
TURN = 10
COMPILED, INT8 = "cookies-compiled", "cookies-int8"
PHOTOGRAPHS = SHARED / "data" / "cookies" / "training-images"
# One thread has none to wait for, so none that spins.
RUNTIME_OPTIONS = [SessionOptions(1), SessionOptions(2), SessionOptions(2, spinning=True)]


def small_network(side: int = 224) -> bytes:
    """Return a generated classifier of a few milliseconds: five convolutions, a pool and a softmax."""
    random = np.random.default_rng(0)
    nodes, weights, previous, channels = [], [], "input", 3
    for layer, width in enumerate((24, 48, 96, 128, 128)):
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
    cookies = SHARED / "models" / "cookies-segmentation" / "component"
    if cookies.is_dir():
        shutil.copytree(cookies, folder / "cookies-segmentation" / "component")
        compile_model(cookies, folder, COMPILED)
        compile_model(cookies, folder, INT8, precision="int8", images=str(PHOTOGRAPHS))
    else:
        print(f"SKIPPED: the cookies model, which is not in {SHARED}")
    for one in (folder, *folder.rglob("*")):
        one.chmod(0o755 if one.is_dir() else 0o644)


def compile_model(component: Path, folder: Path, name: str, **options: str) -> None:
    """Package a component as `edge-agent package start` does."""
    greengrass = {"ComponentName": name, "TargetPlatform": {"Os": "LINUX", "Arch": "X86_64"}}
    order = {
        "request": {"ProjectName": "b", "ModelVersion": "1", "Configuration": {"Greengrass": greengrass}},
        "output": str(folder),
        "source": str(component),
        "options": options,
    }
    with tempfile.TemporaryDirectory() as work:
        packaging.run(order, Path(work), destinations.of(str(folder)), lambda _step, _fraction: None)


class Memory:
    """A client's segment: the frame, and behind it the mask."""

    def __init__(self, frame: bytes) -> None:
        self.name = f"/edge-agent-benchmark-{os.getpid()}"
        self.size = len(frame)
        memory = posix_ipc.SharedMemory(self.name, posix_ipc.O_CREX, mode=0o660, size=2 * self.size)
        os.pwrite(memory.fd, frame, 0)
        memory.close_fd()

    def close(self) -> None:
        """Remove the segment."""
        posix_ipc.unlink_shared_memory(self.name)


class Bare:
    """The agent's own stages in this process."""

    def __init__(self, folder: Path, name: str, size: tuple[int, int], memory: Memory, options: SessionOptions) -> None:
        found = next(
            one
            for one in (
                packages.look(path, folder, packages.Rules()) for path in packages.search(folder, lambda _: None)
            )
            if one.name == name
        )
        assert found.package is not None, found.refusal
        self._session = Timed(backends.open_session(packages.read_model(found.package), options))
        self._pipeline = Pipeline(found.package.manifest, graphs.of(found.package.manifest, self._session))
        self._image = Image(*size, 3 * size[0], Segment(memory.name[1:], 0, memory.size))
        self._mask = Segment(memory.name[1:], memory.size, memory.size) if found.package.manifest.classes else None
        self._frame = np.empty(memory.size, np.uint8)
        self._painted = np.empty((size[1], size[0], 3), np.uint8)
        self._copied = 0.0
        self._pipeline.warm_up()

    def call(self) -> None:
        """Judge the frame in the segment, as a worker would."""
        target = MaskTarget(self._mask, self._image.packed_size) if self._mask else None
        bitmaps.copy_in(self._image, self._frame.data)
        self._copied = time.perf_counter()
        _, class_map = self._pipeline.judge(self._frame.reshape(self._painted.shape))
        if target and class_map is not None:
            self._pipeline.paint(class_map, self._painted)
            target.write(self._painted.reshape(-1).data)
            target.close()

    def stages(self, rounds: int) -> dict[str, float]:
        """Return the median of each stage."""
        found: dict[str, list[float]] = {"copy_in": [], "preprocess": [], "run": [], "postprocess and copy_out": []}
        for _ in range(rounds):
            begin = time.perf_counter()
            self.call()
            marks = (begin, self._copied, self._session.begin, self._session.end, time.perf_counter())
            for stage, start, end in zip(found, marks[:-1], marks[1:], strict=True):
                found[stage].append(end - start)
        return {stage: 1000 * statistics.median(times) for stage, times in found.items()}


class Timed:
    """A session that keeps when it was last run, and until when."""

    def __init__(self, session: backends.Session) -> None:
        self.provider, self.input_dtype = session.provider, session.input_dtype
        self.begin = self.end = 0.0
        self._session = session

    def run(self, tensor: np.ndarray) -> list[np.ndarray]:
        """Run the session."""
        self.begin = time.perf_counter()
        outputs = self._session.run(tensor)
        self.end = time.perf_counter()
        return outputs


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
def agent(folder: Path, options: SessionOptions | None = None) -> Iterator[tuple[int, EdgeAgentStub, float]]:
    """Serve the models; yield the agent's pid, a stub, and the seconds from its start to its first answer."""
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
        "--spinning" if chosen.spinning else "--no-spinning",
        *(["--allow-root"] if os.geteuid() == 0 else []),
    ]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("EDGE_AGENT_")}
    limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, env=environment)
    try:
        while not socket.exists():
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


def best_options(folder: Path, name: str, size: tuple[int, int]) -> SessionOptions:
    """Return the threads and the spinning with which bare is fastest, the contenders taking turns."""
    memory = Memory(bytes(3 * size[0] * size[1]))
    try:
        contenders = {options: Bare(folder / "models", name, size, memory, options) for options in RUNTIME_OPTIONS}
        times: dict[SessionOptions, list[float]] = {options: [] for options in contenders}
        for _ in range(6):
            for options, bare in contenders.items():
                times[options] += timed(bare.call, 2 * TURN)[TURN:]
    finally:
        memory.close()
    return min(times, key=lambda options: statistics.median(times[options]))


def measure(
    folder: Path, stub: EdgeAgentStub, name: str, size: tuple[int, int], best: SessionOptions, turns: int
) -> dict[str, Any]:
    """Return every figure of one model at one size: bare, empty call and agent in turns, inline and shared memory."""
    width, height = size
    frame = np.random.default_rng(1).integers(0, 256, 3 * width * height, np.uint8).tobytes()
    memory = Memory(frame)
    try:
        bare = Bare(folder / "models", name, size, memory, best)
        bare_time = statistics.median(timed(bare.call, 3 * TURN)[TURN:]) / 1000
        by_handle = pb2.DetectAnomaliesRequest(model_component=name, bitmap=pb2.Bitmap(width=width, height=height))
        inline = pb2.DetectAnomaliesRequest(model_component=name, bitmap=by_handle.bitmap)
        source = by_handle.bitmap.shared_memory_handle
        source.name, source.size = memory.name, memory.size
        mask = by_handle.anomaly_mask_params.shared_memory_handle
        mask.name, mask.size, mask.offset = memory.name, memory.size, memory.size
        inline.bitmap.byte_data = frame
        with empty_calls(folder, bare_time, by_handle.ByteSize()) as (spin, sleep):
            contenders: dict[str, Callable[[], object]] = {
                "bare": bare.call,
                "spin": spin,
                "sleep": sleep,
                "agent_shm": lambda: stub.DetectAnomalies(by_handle),
                "agent_inline": lambda: stub.DetectAnomalies(inline),
            }
            times: dict[str, list[float]] = {key: [] for key in contenders}
            for contender in contenders.values():
                timed(contender, TURN)
            for _ in range(turns):
                for key, contender in contenders.items():
                    times[key] += timed(contender, TURN)
        stages = bare.stages(5 * TURN)
    finally:
        memory.close()
    result: dict[str, Any] = {key: figures(values) for key, values in times.items()}
    empty = result["spin"]["p50"] - 1000 * bare_time
    result["empty_call"] = {"spinning": empty, "sleeping": result["sleep"]["p50"] - 1000 * bare_time}
    for way in ("shm", "inline"):
        above = result[f"agent_{way}"]["p50"] - result["bare"]["p50"]
        result[f"ratios_{way}"] = {
            "(agent - bare) / empty call": above / empty,
            "agent / bare": result[f"agent_{way}"]["p50"] / result["bare"]["p50"],
        }
    result["stages_of_bare"] = stages
    result["best_for_bare"] = {"threads": best.threads, "spinning": best.spinning}
    result["calls"] = turns * TURN
    return result


def memory_of(pid: int) -> float:
    """Return the resident MB of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))) / 1000


def read_bytes(pid: int) -> int:
    """Return what a process has read so far, from files and sockets."""
    return int(Path(f"/proc/{pid}/io").read_text().split()[1])


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


def many_calls(pid: int, stub: EdgeAgentStub, calls: int) -> dict[str, float]:
    """Return the front process's memory and reads over many shared-memory calls of the small model."""
    memory = Memory(bytes(3 * 1280 * 720))
    try:
        request = pb2.DetectAnomaliesRequest(model_component="small", bitmap=pb2.Bitmap(width=1280, height=720))
        request.bitmap.shared_memory_handle.name = memory.name
        request.bitmap.shared_memory_handle.size = memory.size
        before = read_bytes(pid)
        for _ in range(calls):
            stub.DetectAnomalies(request)
        read = (read_bytes(pid) - before) / calls
    finally:
        memory.close()
    return {"calls": calls, "front_resident_mb": memory_of(pid), "front_reads_bytes_per_call": read}


def run(quick: bool) -> dict[str, Any]:
    """Measure everything; return it as it is written."""
    turns, calls, starts = (3, 500, 2) if quick else (30, 10_000, 5)
    folder = Path(tempfile.mkdtemp(prefix="ea-bench-"))
    folder.chmod(0o755)
    try:
        make_models(folder / "models")
        cookies = (folder / "models" / "cookies-segmentation").is_dir()
        cases = {"small 1280x720": ("small", (1280, 720)), "small 4096x4096": ("small", (4096, 4096))}
        if cookies:
            cases["cookies 576x768 with mask"] = ("cookies-segmentation", (576, 768))
            cases["compiled cookies 576x768 with mask"] = (COMPILED, (576, 768))
        result: dict[str, Any] = {"cases": {}}
        ready, running = [], []
        for _ in range(starts):
            with agent(folder) as (_, stub, seconds):
                ready.append(seconds)
                running.append(start_model(stub, "cookies-segmentation" if cookies else "small"))
                stub.StopModel(pb2.StopModelRequest(model_component="cookies-segmentation" if cookies else "small"))
        result["seconds"] = {"serve_to_ready": statistics.median(ready), "start_to_running": statistics.median(running)}
        with agent(folder) as (pid, stub, _):
            start_model(stub, "small")
            result["many_calls"] = many_calls(pid, stub, calls)
            if cookies:
                stub.StopModel(pb2.StopModelRequest(model_component="small"))
                start_model(stub, "cookies-segmentation")
        for case, (name, size) in cases.items():
            print(f"measuring {case} ...", file=sys.stderr)
            best = best_options(folder, name, size)
            with agent(folder, best) as (pid, stub, _):
                start_model(stub, name)
                found = measure(folder, stub, name, size, best, max(3, turns // 5) if size[0] > 4000 else turns)
                found["worker_resident_mb"] = memory_of(largest_descendant(pid))
            result["cases"][case] = found
        if cookies:
            print("measuring what compiling saves ...", file=sys.stderr)
            result["compiled"] = compare_compiled(folder / "models", turns)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    result["machine"] = {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "grpcio": grpc.__version__,
        "onnxruntime": onnxruntime.__version__,
        "quick": quick,
    }
    return result


def compare_compiled(models: Path, turns: int) -> dict[str, Any]:
    """Return the stages of the cookies model as it is, compiled, and compiled to int8, on a cracked cookie, in turns."""
    size = (576, 768)
    with PIL.Image.open(PHOTOGRAPHS / "anomaly-1.jpg") as photograph:
        memory = Memory(photograph.convert("RGB").tobytes())
    try:
        names = ("cookies-segmentation", COMPILED, INT8)
        options = SessionOptions(os.cpu_count() or 1)
        contenders = {name: Bare(models, name, size, memory, options) for name in names}
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
        for _ in range(turns):
            for name, bare in contenders.items():
                rounds[name].append(bare.stages(TURN))
    finally:
        memory.close()
    stages = {
        name: {stage: statistics.median(one[stage] for one in found) for stage in found[0]}
        for name, found in rounds.items()
    }
    whole = {name: sum(found.values()) for name, found in stages.items()}
    outside = {name: whole[name] - found["run"] for name, found in stages.items()}
    sizes = {name: max(path.stat().st_size for path in (models / name).rglob("model.onnx")) for name in names}
    return {
        "stages": stages,
        "outside_the_model_ms": outside,
        "model_bytes": sizes,
        "outside compiled / as it is": outside[COMPILED] / outside["cookies-segmentation"],
        "whole compiled / as it is": whole[COMPILED] / whole["cookies-segmentation"],
        "whole int8 / compiled": whole[INT8] / whole[COMPILED],
        "bytes int8 / compiled": sizes[INT8] / sizes[COMPILED],
    }


def table(result: dict[str, Any]) -> str:
    """Return the figures as a Markdown table."""
    rows = [
        "| case | way | bare p50 | agent p50 | agent p99 | empty call | (agent - bare) / empty call | agent / bare |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case, found in result["cases"].items():
        for way in ("shm", "inline"):
            ratios = found[f"ratios_{way}"]
            rows.append(
                f"| {case} | {way} | {found['bare']['p50']:.2f} | {found[f'agent_{way}']['p50']:.2f} "
                f"| {found[f'agent_{way}']['p99']:.2f} | {found['empty_call']['spinning']:.2f} "
                f"| {ratios['(agent - bare) / empty call']:.2f} | {ratios['agent / bare']:.2f} |"
            )
    many, seconds = result["many_calls"], result["seconds"]
    workers = ", ".join(
        f"{case.rpartition(' with')[0] or case} {found['worker_resident_mb']:.0f} MB"
        for case, found in result["cases"].items()
    )
    told = f"Front process after {many['calls']} shared-memory calls: {many['front_resident_mb']:.0f} MB resident, "
    told += f"{many['front_reads_bytes_per_call']:.0f} bytes read a call. Workers: {workers}. "
    told += f"`serve` to ready {seconds['serve_to_ready']:.2f} s, StartModel to RUNNING {seconds['start_to_running']:.2f} s."
    rows += ["", told]
    if compiled := result.get("compiled"):
        outside = compiled["outside_the_model_ms"]
        saved = f"Time outside the model, cookies 576x768 with mask, in one process: {outside['cookies-segmentation']:.2f} ms "
        saved += f"as the component is, {outside[COMPILED]:.2f} ms compiled by `edge-agent package` "
        saved += f"({compiled['outside compiled / as it is']:.2f} of it); the whole call takes "
        saved += f"{compiled['whole compiled / as it is']:.2f} of the time. In int8 it takes {compiled['whole int8 / compiled']:.2f} of "
        rows += ["", f"{saved}the compiled one's time and {compiled['bytes int8 / compiled']:.2f} of its bytes."]
    return "\n".join(rows) + "\n"


def main() -> int:
    """Run or print; return the exit code."""
    parser = argparse.ArgumentParser(description="What a call costs above the bare model.")
    parser.add_argument("--quick", action="store_true", help="few rounds, nothing written: to see that it runs")
    parser.add_argument("--table", action="store_true", help="print the table of the kept results")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(json.loads(RESULT.read_text())), end="")
        return 0
    result = run(arguments.quick)
    if not arguments.quick:
        RESULT.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    print(table(result), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
