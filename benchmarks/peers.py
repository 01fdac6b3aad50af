"""The inference servers that people would pick instead, beside ours: `python benchmarks/peers.py [--quick] [--only NAME]`.

The same package, frame and pipeline (peers/work.py) behind PyTriton, LitServe, MLServer and BentoML, each as its own
documentation recommends (peers/with_*.py) and in an environment of its own, built from PyPI and kept in `--envs`. Each
has one worker and its own client process, with one call at a time; all take turns in one run, so that a machine whose
speed drifts cannot favour one of them. Times include the client; all are milliseconds. All run the model with the
agent's defaults, a thread for each core that does not spin. A contender that gives another score than ours makes the
comparison void. A server that computes while nobody calls it is held (SIGSTOP) while others are measured.

Writes benchmarks/results/peers.json and prints a table; `python benchmarks/peers.py --table` prints it again.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import HERE, RESULTS, TURN, agent, figures, machine, package, small_network, start_model, timed, workplace

from edge_agent.bench.bare import Bare, Frame
from edge_agent.jobs import SessionOptions
from model_packager import writing

sys.path.append(str(HERE / "peers"))
import environments
import servers
from processes import Client, NotRun, Tree
from servers import PEERS, Peer
from work import Task

RESULT = RESULTS / "peers.json"
OURS, BARE = "edge-agent", "the model alone"
SHARED, INLINE = "gRPC, shared memory", "gRPC, bytes"
SIZE = (1280, 720)
# Two scores that differ by more come of different work.
TOLERANCE = 1e-5
IDLE_SECONDS = 3.0
# Of a core: what an idle server may compute without being held while others are measured.
IDLE_CPU = 0.02


@dataclass
class Contender:
    """One who takes turns: how it is called, in which ways, and what was found. Without processes it is bare."""

    name: str
    call: Callable[[str, int], tuple[list[float], float]]
    ways: list[str]
    tree: Tree | None = None
    ready_seconds: float = 0.0
    held: bool = False
    found: dict[str, Any] = field(default_factory=dict)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Let a held server go on for its turn."""
        if self.held and self.tree:
            self.tree.signal(signal.SIGCONT)
        yield
        if self.held and self.tree:
            self.tree.signal(signal.SIGSTOP)


@contextlib.contextmanager
def ours(folder: Path, task: Task) -> Iterator[Contender]:
    """Serve the agent and start its client."""
    program = [sys.executable, str(HERE / "peers" / "with_agent.py")]
    with (
        agent(folder, SessionOptions(threads=task.threads, spinning=task.spinning)) as (pid, stub, to_ready),
        contextlib.ExitStack() as opened,
    ):
        to_running = start_model(stub, "small")
        client = opened.enter_context(
            contextlib.closing(Client(program, servers.environment(task), folder / "client.log"))
        )
        yield Contender(OURS, client.call, client.ways, Tree(pid), to_ready + to_running)


def bare(folder: Path, frame: Frame, task: Task) -> Contender:
    """Return the agent's own stages in this process, without any way to them."""
    model = Bare(package(folder / "models", "small"), frame, SessionOptions(task.threads, task.spinning))
    return Contender(BARE, lambda _, calls: (timed(model.call, calls), 0.0), ["in one process"])


def warm_up(one: Contender, score: float | None) -> float:
    """Call a contender in each of its ways; return its score, which must be the others'."""
    for way in one.ways:
        found = one.call(way, TURN)[1]
        score = found if score is None else score
        if abs(found - score) > TOLERANCE:
            raise SystemExit(f"{one.name} ({way}) gives the score {found}, edge-agent {score}: they do different work.")
    assert score is not None
    return score


def look_at_idle(contenders: list[Contender]) -> None:
    """Note what each server computes while nobody calls; hold those that compute too much."""
    servers = [(one, one.tree) for one in contenders if one.tree]
    before = [tree.cpu_seconds() for _, tree in servers]
    begin = time.perf_counter()
    time.sleep(IDLE_SECONDS)
    for (one, tree), start in zip(servers, before, strict=True):
        cores = (tree.cpu_seconds() - start) / (time.perf_counter() - begin)
        one.held = cores > IDLE_CPU
        one.found |= {"ready_seconds": one.ready_seconds, "idle_cores": cores, "held": one.held}


def take_turns(contenders: list[Contender], rounds: int) -> None:
    """Measure all, TURN calls at a time, each turn after one call that does not count; each round another begins."""
    times: dict[tuple[str, str], list[float]] = {(one.name, way): [] for one in contenders for way in one.ways}
    with contextlib.ExitStack() as in_the_end:
        for one in contenders:
            if one.held and one.tree:
                one.tree.signal(signal.SIGSTOP)
                in_the_end.callback(one.tree.signal, signal.SIGCONT)
        for number in range(rounds):
            first = number % len(contenders)
            for one in contenders[first:] + contenders[:first]:
                with one.turn():
                    for way in one.ways:
                        times[one.name, way] += one.call(way, 1 + TURN)[0][1:]
    for one in contenders:
        if one.tree:
            one.found["memory_mb"] = one.tree.memory_mb()
        one.found["ways"] = {way: {**figures(times[one.name, way]), "calls": rounds * TURN} for way in one.ways}


def run(rounds: int, chosen: list[Peer], envs: Path) -> dict[str, Any]:
    """Build, serve and measure; return it as it is written."""
    failures: dict[str, str] = {}
    with workplace() as folder, contextlib.ExitStack() as opened:
        manifest = writing.mochi_manifest((224, 224), 0.5, (), normalize=True)
        writing.write(folder / "models" / "small", manifest, small_network(), "small", more={"any_image_size": True})
        task = Task(
            package=str(folder / "models" / "small"),
            width=SIZE[0],
            height=SIZE[1],
            threads=os.cpu_count() or 1,
            spinning=False,
            workers=1,
            folder=str(folder),
            ports=(0, 0, 0),
            socket=str(folder / "agent.sock"),
        )
        frame = Frame(task.frame(), *SIZE)
        opened.callback(frame.close)
        contenders = [bare(folder, frame, task), opened.enter_context(ours(folder, task))]
        score = warm_up(contenders[1], None)
        for peer in chosen:
            print(f"starting {peer.label} ...", file=sys.stderr)
            place = tempfile.mkdtemp(dir=folder)
            its = dataclasses.replace(task, workers=peer.workers, folder=place, ports=servers.free_ports())
            try:
                python = environments.build(peer.program, envs)
                tree, client, seconds = opened.enter_context(servers.serve(peer, python, its))
                contenders.append(Contender(peer.label, client.call, client.ways, tree, seconds))
                warm_up(contenders[-1], score)
            except NotRun as reason:
                failures[peer.label] = str(reason)
        look_at_idle(contenders)
        print("measuring ...", file=sys.stderr)
        take_turns(contenders, rounds)
    return report(contenders, chosen, failures) | {"score": score, "options": options(task), "machine": machine()}


def options(task: Task) -> dict[str, Any]:
    """Return how all ran the model, and on what."""
    work = dict(one.split("==") for one in environments.work_pins())
    return {"threads": task.threads, "spinning": task.spinning, "size": list(SIZE), "work": work}


def report(contenders: list[Contender], chosen: list[Peer], failures: dict[str, str]) -> dict[str, Any]:
    """Return what was found of each contender, and the ratios that count."""
    found = {one.name: one.found for one in contenders}
    peers = {
        peer.label: {"lacks": peer.lacks}
        | ({"error": failures[peer.label]} if peer.label in failures else found[peer.label])
        for peer in chosen
    }
    result = {"bare": found[BARE], "ours": found[OURS], "peers": peers}
    return result | {"ratios": ratios(result)}


def ratios(result: dict[str, Any]) -> dict[str, Any]:
    """Return the best peers' medians / ours through shared memory: with and without shared memory of their own."""
    by_way = {
        (name, way): figure["p50"] / result["ours"]["ways"][SHARED]["p50"]
        for name, peer in result["peers"].items()
        for way, figure in peer.get("ways", {}).items()
    }
    best: dict[str, Any] = {}
    for key, shares in (("best without shared memory / ours", False), ("best with shared memory / ours", True)):
        those = {one: ratio for one, ratio in by_way.items() if ("shared memory" in one[1]) == shares}
        if those:
            name, way = min(those, key=lambda one: those[one])
            best[key] = {"peer": name, "way": way, "ratio": those[name, way]}
    return best


def table(result: dict[str, Any]) -> str:
    """Return the figures as a Markdown table: fastest first, then who could not be run, then what each lacks."""
    base = result["ours"]["ways"][SHARED]["p50"]
    named = {BARE: result["bare"], f"**{OURS}**": result["ours"]}
    named |= result["peers"]
    rows = sorted(
        (figure["p50"], name, way, figure["p99"], one)
        for name, one in named.items()
        for way, figure in one.get("ways", {}).items()
    )
    lines = [
        "| server | way of the frame | p50 | p99 | p50 / ours | memory MB | ready after s | idle CPU |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for p50, name, way, p99, one in rows:
        rest = "| - | - | -"
        if "memory_mb" in one:
            idle = f"{one['idle_cores']:.1%}" + (", held" if one["held"] else "")
            rest = f"| {one['memory_mb']:.0f} | {one['ready_seconds']:.1f} | {idle}"
        lines.append(f"| {name} | {way} | {p50:.2f} | {p99:.2f} | {p50 / base:.2f} {rest} |")
    lines.append("")
    for name, peer in result["peers"].items():
        could_not = f"could not be run: {peer['error']}. It has: " if "error" in peer else ""
        lines.append(f"- {name}: {could_not}{peer['lacks']}.")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run or print; return the exit code."""
    parser = argparse.ArgumentParser(description="The inference servers that people would pick instead, beside ours.")
    parser.add_argument("--quick", action="store_true", help="few rounds, nothing written: to see that it runs")
    parser.add_argument("--table", action="store_true", help="print the table of the kept results")
    parser.add_argument("--only", action="append", choices=[one.program for one in PEERS], help="nothing written")
    parser.add_argument("--envs", type=Path, default=Path.home() / ".cache" / "edge-agent-peers", help="environments")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(json.loads(RESULT.read_text())), end="")
        return 0
    # A run that is ended must end its servers, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    chosen = [one for one in PEERS if not arguments.only or one.program in arguments.only]
    result = run(3 if arguments.quick else 30, chosen, arguments.envs)
    if not arguments.quick and not arguments.only:
        RESULT.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    print(table(result), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
