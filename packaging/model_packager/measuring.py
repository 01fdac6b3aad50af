"""What a package needs to run: loaded and warmed up as a worker does it, in a process of its own."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_agent import backends, graphs, packages
from edge_agent.errors import PackageRefused
from edge_agent.jobs import SessionOptions
from edge_agent.manifest import parse
from edge_agent.pipeline import Pipeline
from model_packager import children
from model_packager.errors import PackagingRefused

PATIENCE = 900.0
# Measured figures differ a little each time, and a package's bytes must not: what it states is an upper bound on a
# coarse scale. Memory: a quarter more, up to the next of 64 MiB times powers of the square root of two.
MEMORY_STEP, LEAST_MEMORY, HEADROOM = 2**0.5, 64 << 20, 1.25
WARM_UP_BOUNDS = (1, 10, 100, 1000)


def measure(folder: Path) -> dict[str, float]:
    """Return `peak_memory_bytes` and `warm_up_seconds` of the package in `folder` on this machine's CPU.

    Raises:
        PackagingRefused: it does not load or does not judge a grey image.

    """
    return children.ask("model_packager.measuring", {"folder": str(folder)}, what="The warm-up", seconds=PATIENCE)


def stated(measured: Mapping[str, float]) -> dict[str, int]:
    """Return the upper bounds that the package states for what was measured."""
    memory = float(LEAST_MEMORY)
    while memory < measured["peak_memory_bytes"] * HEADROOM:
        memory *= MEMORY_STEP
    seconds = next((one for one in WARM_UP_BOUNDS if measured["warm_up_seconds"] <= one), WARM_UP_BOUNDS[-1])
    return {"peak_memory_bytes": round(memory), "warm_up_seconds": seconds}


def _measure(request: Mapping[str, Any]) -> Mapping[str, float]:
    folder = Path(request["folder"])
    content = json.loads((folder / "manifest.json").read_bytes())
    try:
        package = packages.Package("", folder, parse(content))
        session = backends.open_session(packages.read_model(package), SessionOptions())
        warm_up = Pipeline(package.manifest, graphs.of(package.manifest, session)).warm_up()
    except PackageRefused as refusal:
        raise PackagingRefused(f"The compiled package does not run: {refusal}") from None
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return {"peak_memory_bytes": peak * 1024, "warm_up_seconds": warm_up}


if __name__ == "__main__":
    children.serve(_measure)
