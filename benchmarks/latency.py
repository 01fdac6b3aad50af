"""What a call costs above the bare model: `python benchmarks/latency.py [--quick]`.

*Bare* is the agent's own copy_in, pipeline and copy_out, called in one process on the same package, with the threads and
the spinning that are best for it; the agent gets the same ones as the model's settings. *Empty call* is the time of a gRPC call over the same kind of socket, to a handler
that spins for the bare time, less that time; a sleeping handler is reported beside it. Bare, empty call and agent take
turns in one run, so that a machine whose speed drifts cannot favour one of them. All times are milliseconds.

Writes benchmarks/results/latency.json and prints a table; `python benchmarks/latency.py --table` prints it again.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
from harness import (
    COMPILED,
    INT8,
    PHOTOGRAPHS,
    RESULTS,
    TURN,
    agent,
    best_options,
    empty_calls,
    figures,
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

from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent._proto.edge_agent_pb2_grpc import EdgeAgentStub
from edge_agent.bench.bare import Bare, Frame
from edge_agent.jobs import SessionOptions

RESULT = RESULTS / "latency.json"


def measure(
    folder: Path, stub: EdgeAgentStub, name: str, size: tuple[int, int], best: SessionOptions, turns: int
) -> dict[str, Any]:
    """Return every figure of one model at one size: bare, empty call and agent in turns, inline and shared memory."""
    frame = Frame(noise(*size), *size)
    try:
        bare = Bare(package(folder / "models", name), frame, best)
        bare_time = statistics.median(timed(bare.call, 3 * TURN)[TURN:]) / 1000
        by_handle, inline = request(name, frame), inline_request(name, size, noise(*size))
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
        frame.close()
    result: dict[str, Any] = {key: figures(values) for key, values in times.items()}
    empty = result["spin"]["p50"] - 1000 * bare_time
    result["empty_call"] = {"spinning": empty, "sleeping": result["sleep"]["p50"] - 1000 * bare_time}
    for way in ("shm", "inline"):
        above = result[f"agent_{way}"]["p50"] - result["bare"]["p50"]
        result[f"ratios_{way}"] = {
            "(agent - bare) / empty call": above / empty,
            "agent / bare": result[f"agent_{way}"]["p50"] / result["bare"]["p50"],
        }
    result["stages_of_bare"] = {stage: 1000 * seconds for stage, seconds in stages.items()}
    result["best_for_bare"] = {"threads": best.threads, "spinning": best.spinning}
    result["calls"] = turns * TURN
    return result


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
