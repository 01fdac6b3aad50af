"""What grows with what, and along which line: `python benchmarks/scaling.py [--quick]`.

Latency against pixels, by one client, through shared memory and inline, where `message_memory` says whether the memory
of large images is kept. Latency and calls a second against clients,
processes of their own that send the next call when the last one is answered. Memory against running models, of all the
agent's processes together, and the latency of one model while the others are idle, by that of the same model alone. Memory of the front process and the
time of ListModels against deployed models that are stopped. All with the settings that nobody has changed.

Latencies are milliseconds. Memory is PSS, in which a page that several processes share is divided among them: proc(5),
smaps_rollup. Lines are those of least squares; the error of a slope is its standard error.

Writes benchmarks/results/scaling.json and scaling.svg and prints tables; `python benchmarks/scaling.py --table` prints
them again.
"""

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import growth
import picture
from callers import Target, Turn, callers, client, copy_model, descendants
from harness import (
    RESULTS,
    TURN,
    agent,
    figures,
    inline_request,
    machine,
    make_models,
    noise,
    request,
    start_model,
    timed,
    workplace,
)
from picture import fit

from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent.bench.bare import Frame

RESULT = RESULTS / "scaling.json"
PICTURE = RESULTS / "scaling.svg"
SIDES = (64, 128, 256, 512, 1024, 2048, 4096)
# How a frame gets to the agent; the last one's agent has the setting `message_memory` `keep`.
WAYS = ("shm", "inline", "inline_kept")
CLIENTS = (1, 2, 4, 8, 12, 16)
RUNNING = 8
STOPPED = (0, 10, 20, 30, 40, 50)
SIZE = (1280, 720)
COOKIES_SIZE = (576, 768)
# Seconds a size is called in one turn, so that the large ones do not take all the time.
TURN_SECONDS = 0.15
MOST_CALLS = 20
# Calls after which a worker's memory has been touched, and an idle one's is measured.
TOUCHING_CALLS = 3
LIST_CALLS = 200
# Seconds after which an agent has looked at its models folders and written its status.
SETTLING = 1.5


@dataclass(frozen=True)
class Plan:
    """How often and how long to measure."""

    size_rounds: int = 12
    client_rounds: int = 5
    client_seconds: float = 1.0
    beside_rounds: int = 10
    stopped_starts: int = 3


QUICK = Plan(2, 1, 0.3, 2, 1)


def pss_of(pid: int) -> float:
    """Return the proportional set size of a process in MB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("Pss:"))) / 1000


def against_pixels(folder: Path, plan: Plan) -> dict[str, Any]:
    """Return the latency by the side of a square frame, in each of WAYS, all in turns."""
    kept = folder / "kept"
    copy_model(folder / "models", "small", "small", kept / "models")
    with contextlib.ExitStack() as stack:
        _, stub, _ = stack.enter_context(agent(folder))
        _, keeping, _ = stack.enter_context(agent(kept, message_memory="keep"))
        for one in (stub, keeping):
            start_model(one, "small")
        calls: dict[tuple[str, int], Callable[[], object]] = {}
        for side in SIDES:
            frame = Frame(noise(side, side), side, side)
            stack.callback(frame.close)
            inline = inline_request("small", (side, side), noise(side, side))
            calls["shm", side] = partial(stub.DetectAnomalies, request("small", frame))
            calls["inline", side] = partial(stub.DetectAnomalies, inline)
            calls["inline_kept", side] = partial(keeping.DetectAnomalies, inline)
        times: dict[tuple[str, int], list[float]] = {key: [] for key in calls}
        often = {key: how_often(timed(call, 2)[1]) for key, call in calls.items()}
        for _ in range(plan.size_rounds):
            for key, call in calls.items():
                times[key] += timed(call, 1 + often[key])[1:]
    return {way: {str(side): figures(times[way, side]) for side in SIDES} for way in WAYS}


def how_often(milliseconds: float) -> int:
    """Return how many calls of this duration are made in one turn."""
    return max(1, min(MOST_CALLS, int(1000 * TURN_SECONDS / milliseconds)))


def against_clients(folder: Path, plan: Plan) -> dict[str, Any]:
    """Return latency and calls a second by the number of clients, all numbers in turns."""
    with agent(folder) as (_, stub, _), contextlib.ExitStack() as stack:
        start_model(stub, "small")
        frames = [Frame(noise(*SIZE), *SIZE) for _ in range(max(CLIENTS))]
        for frame in frames:
            stack.callback(frame.close)
        clients = stack.enter_context(callers([partial(client, {SIZE: frame}) for frame in frames]))
        target = Target(str(folder / "agent.sock"), "small", SIZE)
        turns: dict[int, list[Turn]] = {number: [] for number in CLIENTS}
        clients.turn([target] * max(CLIENTS), plan.client_seconds / 2)
        for _ in range(plan.client_rounds):
            for number, found in turns.items():
                found.append(clients.turn([target] * number, plan.client_seconds))
    return {
        str(number): {
            **figures([time for turn in found for times in turn.times for time in times]),
            "calls_per_s": statistics.median(turn.rate for turn in found),
        }
        for number, found in turns.items()
    }


def against_running(folder: Path, name: str, size: tuple[int, int], plan: Plan) -> list[dict[str, Any]]:
    """Return memory in MB for 0, 1, 2 ... running models, and the first one's latency while the others are idle.

    `alone` is the latency of the same model in an agent that runs no other, in turns with it: machines drift. That agent
    is started after the memory was measured, of which it would share a part.
    """
    names = [f"{name}-{number}" for number in range(1, RUNNING + 1)]
    for place, copies in (("running", names), ("alone", names[:1])):
        for one in copies:
            copy_model(folder / "models", name, one, folder / f"{place}-{name}" / "models")
    with contextlib.ExitStack() as stack:
        frame = Frame(noise(*size), *size)
        stack.callback(frame.close)
        asked = {one: request(one, frame) for one in names}
        pid, stub, _ = stack.enter_context(agent(folder / f"running-{name}"))
        found: list[dict[str, Any]] = [memory(pid, 0)]
        for number, one in enumerate(names, 1):
            start_model(stub, one)
            timed(partial(stub.DetectAnomalies, asked[one]), TOUCHING_CALLS)
            found.append(memory(pid, number))
        _, other, _ = stack.enter_context(agent(folder / f"alone-{name}"))
        start_model(other, names[0])
        for number in range(RUNNING, 0, -1):
            times: dict[str, list[float]] = {"latency": [], "alone": []}
            for _ in range(plan.beside_rounds):
                for key, one in (("latency", stub), ("alone", other)):
                    times[key] += timed(partial(one.DetectAnomalies, asked[names[0]]), 1 + TURN)[1:]
            found[number] |= {key: figures(values) for key, values in times.items()}
            if number > 1:
                stub.StopModel(pb2.StopModelRequest(model_component=names[number - 1]))
    return found


def memory(front: int, running: int) -> dict[str, Any]:
    """Return the MB of the agent's processes: the front, the workers, which are the largest, and all that helps them."""
    below = sorted((pss_of(pid) for pid in descendants(front)), reverse=True)
    return {
        "running": running,
        "front": pss_of(front),
        "workers": below[:running],
        "all": pss_of(front) + sum(below),
    }


def against_stopped(folder: Path, plan: Plan) -> list[dict[str, Any]]:
    """Return the front process's MB and the milliseconds of ListModels by the number of deployed models, none running."""
    models, found, deployed = folder / "models", [], 0
    folder = folder / "stopped"
    (folder / "models").mkdir(parents=True)
    for number in STOPPED:
        for one in range(deployed, number):
            copy_model(models, "small", f"stopped-{one}", folder / "models")
        deployed = number
        starts = [stopped(folder, number) for _ in range(plan.stopped_starts)]
        found.append({"stopped": number, **{key: statistics.median(one[key] for one in starts) for key in starts[0]}})
    return found


def stopped(folder: Path, number: int) -> dict[str, float]:
    """Return the figures of one start of an agent."""
    with agent(folder) as (pid, stub, _):
        asked = pb2.ListModelsRequest()
        if len(stub.ListModels(asked).models) != number:
            raise SystemExit(f"The agent does not list the {number} models that are deployed.")
        time.sleep(SETTLING)
        listing = figures(timed(partial(stub.ListModels, asked), LIST_CALLS))["p50"]
        return {"front": pss_of(pid), "list_models": listing}


def run(plan: Plan) -> dict[str, Any]:
    """Measure everything; return it as it is written."""
    with workplace() as folder:
        make_models(folder / "models")
        print("measuring pixels ...", file=sys.stderr)
        result: dict[str, Any] = {"pixels": against_pixels(folder, plan)}
        print("measuring clients ...", file=sys.stderr)
        result["clients"] = against_clients(folder, plan)
        print("measuring models ...", file=sys.stderr)
        result["running"] = {"small": against_running(folder, "small", SIZE, plan)}
        if (folder / "models" / "cookies-segmentation").is_dir():
            result["running"]["cookies"] = against_running(folder, "cookies-segmentation", COOKIES_SIZE, plan)
        result["stopped"] = against_stopped(folder, plan)
    result["lines"] = {name: asdict(fit(points)) for name, (points, *_) in growth.curves(result).items()}
    result["machine"] = machine()
    return result


def table(result: dict[str, Any]) -> str:
    """Return the figures as Markdown tables."""
    return growth.table(result)


def main() -> int:
    """Run or print; return the exit code."""
    parser = argparse.ArgumentParser(description="What grows with what, and along which line.")
    parser.add_argument("--quick", action="store_true", help="few rounds, nothing written: to see that it runs")
    parser.add_argument(
        "--table", action="store_true", help="print the tables of the kept results, and draw the picture"
    )
    arguments = parser.parse_args()
    result = json.loads(RESULT.read_text()) if arguments.table else run(QUICK if arguments.quick else Plan())
    if not arguments.quick:
        if not arguments.table:
            RESULT.write_text(json.dumps(result, indent=1) + "\n")
        PICTURE.write_text(picture.draw("What grows with what: six plots of scaling.py", growth.plots(result)))
    print(table(result), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
