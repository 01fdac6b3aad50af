"""What a call costs above the bare model: `python benchmarks/latency.py [--quick]`.

*Bare* is the agent's own copy_in, pipeline and copy_out, called in one process on the same package, with the threads and
the spinning that are best for it; the agent gets the same ones as the model's settings. *Empty call* is the time of a gRPC call over the same kind of socket, to a handler
that spins for the bare time, less that time; a sleeping handler is reported beside it. *By pipe* is the least that a
server with a process for its model can be: an empty handler that asks a process with the bare model over a pipe. All of
them take turns in one run, so that a machine whose speed drifts cannot favour one. All times are milliseconds.

Writes benchmarks/results/latency.json and prints a table; `python benchmarks/latency.py --table` prints it again.
"""

import contextlib
import math
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from harness import (
    COMPILED,
    INT8,
    PHOTOGRAPHS,
    RESULTS,
    TURN,
    agent,
    best_options,
    calls_by_pipe,
    command,
    empty_calls,
    figures,
    in_turns,
    inline_request,
    largest_descendant,
    machine,
    make_models,
    memory_of,
    noise,
    package,
    request,
    start_model,
    timed,
    workplace,
)
from inline import Client

from edge_agent import backends, graphs, packages, resize
from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent._proto.edge_agent_pb2_grpc import EdgeAgentStub
from edge_agent.bench.bare import Bare, Frame
from edge_agent.jobs import SessionOptions
from edge_agent.packages import Package

RESULT = RESULTS / "latency.json"


def measure(
    folder: Path, stub: EdgeAgentStub, name: str, size: tuple[int, int], best: SessionOptions, turns: int
) -> dict[str, Any]:
    """Return every figure of one model at one size: bare, empty call and agent in turns, inline and shared memory."""
    frame = Frame(noise(*size), *size)
    try:
        model = package(folder / "models", name)
        bare = Bare(model, frame, best)
        bare_time = statistics.median(timed(bare.call, 3 * TURN)[TURN:]) / 1000
        by_handle, inline = request(name, frame), inline_request(name, size, noise(*size))
        with (
            empty_calls(folder, bare_time, by_handle.ByteSize()) as (spin, sleep),
            calls_by_pipe(folder, by_handle.ByteSize(), model, frame, best) as by_pipe,
        ):
            contenders: dict[str, Callable[[], object]] = {
                "bare": bare.call,
                "spin": spin,
                "sleep": sleep,
                "by_pipe": by_pipe,
                "agent_shm": lambda: stub.DetectAnomalies(by_handle),
                "agent_inline": lambda: stub.DetectAnomalies(inline),
            }
            times = in_turns(contenders, turns)
        stages = bare.stages(5 * TURN)
    finally:
        frame.close()
    result: dict[str, Any] = {key: figures(values) for key, values in times.items()}
    empty = result["spin"]["p50"] - 1000 * bare_time
    result["empty_call"] = {"spinning": empty, "sleeping": result["sleep"]["p50"] - 1000 * bare_time}
    for way in ("shm", "inline"):
        above = result[f"agent_{way}"]["p50"] - result["bare"]["p50"]
        result[f"ratios_{way}"] = {
            "(agent - bare) / empty call": above / empty,
            "(agent - bare) / (by pipe - bare)": above / (result["by_pipe"]["p50"] - result["bare"]["p50"]),
            "agent / bare": result[f"agent_{way}"]["p50"] / result["bare"]["p50"],
        }
    result["stages_of_bare"] = {stage: 1000 * seconds for stage, seconds in stages.items()}
    result["best_for_bare"] = {"threads": best.threads, "spinning": best.spinning}
    result["calls"] = turns * TURN
    return result


def large_inline(folder: Path, turns: int) -> dict[str, Any]:
    """Return the times of an inline 4096x4096 image, from a stock client's process and from one whose malloc is tuned.

    Each to an agent as it is, and to one that keeps the memory of messages; all four in turns.
    """
    size, model = (4096, 4096), "small"
    with contextlib.ExitStack() as stack:
        clients = {}
        for agent_is, setting in (("", "return"), ("kept by the agent, ", "keep")):
            place = folder / setting
            place.mkdir()
            (place / "models").symlink_to(folder / "models")
            _, stub, _ = stack.enter_context(agent(place, message_memory=setting))
            start_model(stub, model)
            for tuned in (False, True):
                client = Client(place / "agent.sock", model, size, tuned=tuned)
                stack.callback(client.close)
                clients[f"{agent_is}{'tuned' if tuned else 'stock'} client"] = client
        times: dict[str, list[float]] = {key: client.timed(3)[3:] for key, client in clients.items()}
        for _ in range(turns):
            for key, client in clients.items():
                times[key] += client.timed(5)
    found: dict[str, Any] = {key: figures(values) for key, values in times.items()}
    found["kept / not, stock client"] = found["kept by the agent, stock client"]["p50"] / found["stock client"]["p50"]
    return found


def against_floor(models: Path, turns: int) -> dict[str, float]:
    """Return bare on a 4096x4096 image against no more than one read, the resize and the run, in turns."""
    size, model = (4096, 4096), package(models, "small")
    frame = Frame(noise(*size), *size)
    try:
        options = SessionOptions(machine()["cores"])
        bare, floor = Bare(model, frame, options), Floor(model, frame, options)
        times = in_turns({"bare": bare.call, "floor": floor.call}, turns)
    finally:
        frame.close()
    found = {key: statistics.median(values) for key, values in times.items()}
    return {**found, "bare / floor": found["bare"] / found["floor"]}


class Floor:
    """What cannot be left out of a call on a classifier: reading the frame, resizing it, and running the network."""

    def __init__(self, model: Package, frame: Frame, options: SessionOptions) -> None:
        self._size = frame.size
        self._fd = os.open(Path("/dev/shm") / frame.source.name, os.O_RDONLY)
        self._pixels = np.empty((frame.height, frame.width, 3), np.uint8)
        stage = model.manifest.stage
        self._resize = partial(
            resize.resizer(stage.interpolation, options.threads), width=stage.input_size[0], height=stage.input_size[1]
        )
        self._session = backends.open_session(packages.read_model(model), options)
        self._graph = graphs.of(model.manifest, self._session)

    def call(self) -> None:
        """Read, resize, run."""
        os.preadv(self._fd, [self._pixels.reshape(-1).data], 0)
        self._graph.read(self._resize(self._pixels))


def read_bytes(pid: int) -> int:
    """Return what a process has read so far, from files and sockets."""
    return int(Path(f"/proc/{pid}/io").read_text().split()[1])


def many_calls(pid: int, stub: EdgeAgentStub, calls: int) -> dict[str, float]:
    """Return the front process's memory and reads over many shared-memory calls of the small model."""
    frame = Frame(noise(1280, 720), 1280, 720)
    try:
        by_handle = request("small", frame)
        before = read_bytes(pid)
        for _ in range(calls):
            stub.DetectAnomalies(by_handle)
        read = (read_bytes(pid) - before) / calls
    finally:
        frame.close()
    return {"calls": calls, "front_resident_mb": memory_of(pid), "front_reads_bytes_per_call": read}


def run(quick: bool) -> dict[str, Any]:
    """Measure everything; return it as it is written."""
    turns, calls, starts = (3, 500, 2) if quick else (30, 10_000, 5)
    with workplace() as folder:
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
            best = best_options(package(folder / "models", name), size)
            with agent(folder, best) as (pid, stub, _):
                start_model(stub, name)
                found = measure(folder, stub, name, size, best, max(3, turns // 5) if size[0] > 4000 else turns)
                found["worker_resident_mb"] = memory_of(largest_descendant(pid))
            result["cases"][case] = found
        print("measuring large inline images ...", file=sys.stderr)
        result["large_inline"] = large_inline(folder, max(2, turns // 3))
        result["large_bare"] = against_floor(folder / "models", max(2, turns // 5))
        if cookies:
            print("measuring what compiling saves ...", file=sys.stderr)
            result["compiled"] = compare_compiled(folder / "models", turns)
    result["machine"] = {**machine(), "quick": quick}
    return result


def compare_compiled(models: Path, turns: int) -> dict[str, Any]:
    """Return the stages of the cookies model as it is, compiled, and compiled to int8, on a cracked cookie, in turns."""
    size = (576, 768)
    with PIL.Image.open(PHOTOGRAPHS / "anomaly-1.jpg") as photograph:
        frame = Frame(photograph.convert("RGB").tobytes(), *size)
    try:
        names = ("cookies-segmentation", COMPILED, INT8)
        options = SessionOptions(machine()["cores"])
        contenders = {name: Bare(package(models, name), frame, options) for name in names}
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
        for _ in range(turns):
            for name, bare in contenders.items():
                rounds[name].append({stage: 1000 * seconds for stage, seconds in bare.stages(TURN).items()})
    finally:
        frame.close()
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
        "| case | way | bare p50 | agent p50 | agent p99 | empty call | (agent - bare) / empty call | by pipe p50 | (agent - bare) / (by pipe - bare) | agent / bare |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case, found in result["cases"].items():
        for way in ("shm", "inline"):
            ratios = found[f"ratios_{way}"]
            rows.append(
                f"| {case} | {way} | {found['bare']['p50']:.2f} | {found[f'agent_{way}']['p50']:.2f} "
                f"| {found[f'agent_{way}']['p99']:.2f} | {found['empty_call']['spinning']:.2f} "
                f"| {ratios['(agent - bare) / empty call']:.2f} | {found['by_pipe']['p50']:.2f} "
                f"| {ratios['(agent - bare) / (by pipe - bare)']:.2f} | {ratios['agent / bare']:.2f} |"
            )
    rows += ["", _above_bare([*result["cases"].values()])]
    many, seconds = result["many_calls"], result["seconds"]
    workers = ", ".join(
        f"{case.rpartition(' with')[0] or case} {found['worker_resident_mb']:.0f} MB"
        for case, found in result["cases"].items()
    )
    told = f"Front process after {many['calls']} shared-memory calls: {many['front_resident_mb']:.0f} MB resident, "
    told += f"{many['front_reads_bytes_per_call']:.0f} bytes read a call. Workers, resident: {workers}. "
    told += f"`serve` to ready {seconds['serve_to_ready']:.2f} s, StartModel to RUNNING {seconds['start_to_running']:.2f} s."
    rows += ["", told]
    inline = result["large_inline"]
    listed = ", ".join(f"{key} {one['p50']:.0f} ms" for key, one in inline.items() if isinstance(one, dict))
    told = f"Inline 4096x4096, medians: {listed}; for the stock client `message_memory: keep` takes "
    told += f"{inline['kept / not, stock client']:.2f} of the time. Bare on such an image takes "
    told += f"{result['large_bare']['bare / floor']:.2f} times what one read, the resize and the run take."
    rows += ["", told]
    if compiled := result.get("compiled"):
        outside = compiled["outside_the_model_ms"]
        saved = f"Time outside the model, cookies 576x768 with mask, in one process: {outside['cookies-segmentation']:.2f} ms "
        saved += f"as the component is, {outside[COMPILED]:.2f} ms compiled by `edge-agent package` "
        saved += f"({compiled['outside compiled / as it is']:.2f} of it); the whole call takes "
        saved += f"{compiled['whole compiled / as it is']:.2f} of the time. In int8 it takes {compiled['whole int8 / compiled']:.2f} of "
        rows += ["", f"{saved}the compiled one's time and {compiled['bytes int8 / compiled']:.2f} of its bytes."]
    return "\n".join(rows) + "\n"


def _above_bare(cases: Sequence[dict[str, Any]]) -> str:
    """Return in sentences what a call through shared memory costs above the bare model."""
    costs = [(one["agent_shm"]["p50"] - one["bare"]["p50"], one["empty_call"]["spinning"]) for one in cases]
    pipes = [(one["by_pipe"]["p50"] - one["bare"]["p50"], one["empty_call"]["spinning"]) for one in cases]
    told = f"Above bare, a call through shared memory costs {_ranges(costs)}, of which {_ranges(pipes)}, are gRPC and a pipe to a "
    fewest, most = (choose(one["calls"] for one in cases) for choose in (min, max))
    return f"{told}process in any case. Each figure is of {fewest} to {most} calls, so a p99 rests on {math.ceil(most / 100)} of them or fewer."


def _ranges(costs: Sequence[tuple[float, float]]) -> str:
    """Return the range of costs in milliseconds and in empty calls."""
    times = [cost / empty for cost, empty in costs]
    in_ms = f"{min(cost for cost, _ in costs):.1f} to {max(cost for cost, _ in costs):.1f} ms"
    return f"{in_ms}, {min(times):.1f} to {max(times):.1f} times an empty call"


if __name__ == "__main__":
    sys.exit(command("What a call costs above the bare model.", RESULT, run, table))
