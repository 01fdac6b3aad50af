"""What metrics cost: `python benchmarks/metrics_cost.py [--quick]`.

Calls of an agent that serves metrics and is scraped every second, by a process of its own, against calls of one that
does not, in turns, so that a machine whose speed drifts cannot favour one. Counting itself is never off, since
`edge-agent status` tells of it, too; it is timed by itself, as so many counts of a call in a row. Times are milliseconds
unless said; memory is the front process's PSS in MB.

Writes benchmarks/results/metrics_cost.json and prints a table; `python benchmarks/metrics_cost.py --table` prints it again.
"""

import contextlib
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from typing import Any

from harness import (
    RESULTS,
    agent,
    command,
    figures,
    in_turns,
    machine,
    noise,
    request,
    small_network,
    start_model,
    timed,
    workplace,
)

from edge_agent import processes
from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent.bench.bare import Frame
from edge_agent.exporter.served import PACE
from edge_agent.metrics import Metrics
from model_packager import writing

RESULT = RESULTS / "metrics_cost.json"
SIZE = (224, 224)
COUNTS = 20_000
SCRAPER = """
import sys, time, urllib.request
while True:
    urllib.request.urlopen(sys.argv[1]).read()
    time.sleep(1)
"""


def free_port() -> int:
    """Return a TCP port of this machine that nobody uses."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@contextlib.contextmanager
def scraped(url: str) -> Iterator[None]:
    """Let a process of its own scrape every second for so long."""
    scraper = subprocess.Popen([sys.executable, "-c", SCRAPER, url])
    try:
        yield
    finally:
        scraper.kill()
        scraper.wait()


def counting() -> float:
    """Return the microseconds that it takes to count one good call: its answer, and its image's stages."""
    metrics = Metrics()
    begin = time.perf_counter()
    for _ in range(COUNTS):
        metrics.judged("board", 1e-6, (1e-4, 1e-3, 5e-3, 1e-4), anomalous=False)
        metrics.called("DetectAnomalies", "board", "OK", "", 200, 7e-3)
    return (time.perf_counter() - begin) / COUNTS * 1e6


def front_memory(pid: int) -> float:
    """Return the PSS of a process in MB."""
    found = processes.memory(pid)
    return found.proportional / 1e6 if found else 0.0


def scrape(url: str) -> int:
    """Scrape once; return how many bytes it was."""
    with urllib.request.urlopen(url) as answer:
        return len(answer.read())


def scrapes(url: str, count: int) -> list[float]:
    """Return the milliseconds of scrapes with pauses between them: without, the agent lets the next one wait."""
    times = []
    for _ in range(count):
        time.sleep(2 * PACE)
        times += timed(partial(scrape, url), 1)
    return times


def run(quick: bool) -> dict[str, Any]:
    """Measure everything; return it as it is written."""
    address = f"127.0.0.1:{free_port()}"
    url = f"http://{address}/metrics"
    with workplace() as folder, contextlib.ExitStack() as stack:
        manifest = writing.mochi_manifest((224, 224), 0.5, (), normalize=True)
        writing.write(folder / "models" / "small", manifest, small_network(), "small", more={"any_image_size": True})
        for name in ("off", "on"):
            (folder / name).mkdir()
            (folder / name / "models").symlink_to(folder / "models")
        frame = Frame(noise(*SIZE), *SIZE)
        stack.callback(frame.close)
        asked = request("small", frame)
        off_pid, off, _ = stack.enter_context(agent(folder / "off"))
        on_pid, on, _ = stack.enter_context(agent(folder / "on", metrics_address=address))
        contenders = {"off": partial(off.DetectAnomalies, asked), "on": partial(on.DetectAnomalies, asked)}
        for stub in (off, on):
            start_model(stub, "small")
        with scraped(url):
            times = in_turns(contenders, 10 if quick else 300)
        took = scrapes(url, 10 if quick else 100)
        latency = {name: figures(one) for name, one in times.items()}
        return {
            "calls": len(times["on"]),
            "latency": latency,
            "on / off, p50": latency["on"]["p50"] / latency["off"]["p50"],
            "on / off, p99": latency["on"]["p99"] / latency["off"]["p99"],
            "counting_us": statistics.median(counting() for _ in range(3 if quick else 9)),
            "scrape": {
                **figures(took),
                "bytes": scrape(url),
                "models": len(on.ListModels(pb2.ListModelsRequest()).models),
            },
            "front_mb": {"off": front_memory(off_pid), "on": front_memory(on_pid)},
            "machine": {**machine(), "quick": quick},
        }


def table(result: dict[str, Any]) -> str:
    """Return the figures as a Markdown table."""
    latency, memory = result["latency"], result["front_mb"]
    rows = ["| | metrics off | on, scraped every second | on / off |", "|---|---|---|---|"]
    for key in ("p50", "p99"):
        off, on = latency["off"][key], latency["on"][key]
        rows.append(f"| call, {key} | {off:.3f} ms | {on:.3f} ms | {result[f'on / off, {key}']:.3f} |")
    rows.append(
        f"| front process | {memory['off']:.1f} MB | {memory['on']:.1f} MB | {memory['on'] / memory['off']:.2f} |"
    )
    one = result["scrape"]
    told = f"Counting a call, which is never off, takes {result['counting_us']:.1f} µs; a scrape with {one['models']} model "
    told += f"{one['p50']:.1f} ms ({one['bytes'] / 1000:.0f} kB). {result['calls']} calls each."
    return "\n".join([*rows, "", told]) + "\n"


if __name__ == "__main__":
    sys.exit(command("What metrics cost.", RESULT, run, table))
