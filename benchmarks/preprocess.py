"""What bringing a frame to the network's size takes: `python benchmarks/preprocess.py [--quick]`.

*Ours* are the resizers that the pipeline calls; beside them stand the references that they must equal within one of 255
levels, Pillow and OpenCV, and a copy of the frame, which is what its memory allows. All take turns in one run. OpenCV has
one thread unless it says otherwise, as ours has. All times are milliseconds.

Writes benchmarks/results/preprocess.json and prints a table; `python benchmarks/preprocess.py --table` prints it again.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import cv2
import numpy as np
from harness import RESULTS, command, figures, machine, noise, timed
from numpy.typing import NDArray
from PIL import Image

from edge_agent.resize import resizer

RESULT = RESULTS / "preprocess.json"
Size = tuple[int, int]
# (width, height) of frame and network.
CASES: list[tuple[Size, Size]] = [((1280, 720), (224, 224)), ((1920, 1080), (512, 512)), ((4096, 4096), (224, 224))]
LIBRARIES = ("numpy", "opencv-python-headless", "pillow", "cykooz-resizer")
CORES = len(os.sched_getaffinity(0))
# What must equal what.
REFERENCES = {"antialiased": "Pillow", "area": "OpenCV area"}


@dataclass(frozen=True)
class Contender:
    """A way to resize a frame, and how many threads OpenCV has meanwhile."""

    resize: Callable[[], NDArray[np.uint8]]
    threads: int = 1


def contenders(frame: NDArray[np.uint8], size: Size) -> dict[str, Contender]:
    """Return what takes turns on a frame, height x width x 3 (uint8)."""
    width, height = size
    copy = np.empty_like(frame)
    antialiased, area, linear = (resizer(one, 1) for one in ("bilinear-antialias", cv2.INTER_AREA, cv2.INTER_LINEAR))
    area_on_all = resizer(cv2.INTER_AREA, CORES)

    def memcpy() -> NDArray[np.uint8]:
        np.copyto(copy, frame)
        return copy

    def pillow() -> NDArray[np.uint8]:
        return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR))

    def opencv() -> NDArray[np.uint8]:
        return np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)

    return {
        "memcpy": Contender(memcpy),
        "antialiased": Contender(lambda: antialiased(frame, width, height)),
        "Pillow": Contender(pillow),
        "area": Contender(lambda: area(frame, width, height)),
        "OpenCV area": Contender(opencv),
        "area, all cores": Contender(lambda: area_on_all(frame, width, height), CORES),
        "OpenCV area, all cores": Contender(opencv, CORES),
        "OpenCV linear": Contender(lambda: linear(frame, width, height)),
    }


def turn(contender: Contender, calls: int) -> list[float]:
    """Return the times of some calls; the first one, after the others' turns, is not counted."""
    contender.resize()  # ours sets OpenCV's threads when it is first called
    cv2.setNumThreads(contender.threads)
    return timed(contender.resize, calls + 1)[1:]


def measure(frame_size: Size, size: Size, turns: int, calls: int) -> dict[str, Any]:
    """Return the times of all contenders and how far ours are from the references."""
    frame = np.frombuffer(noise(*frame_size), np.uint8).reshape(frame_size[1], frame_size[0], 3)
    all_of_them = contenders(frame, size)
    times: dict[str, list[float]] = {name: [] for name in all_of_them}
    for _ in range(turns):
        for name, contender in all_of_them.items():
            times[name] += turn(contender, calls)
    cv2.setNumThreads(1)
    found: dict[str, Any] = {"ms": {name: figures(values) for name, values in times.items()}, "calls": turns * calls}
    for ours, reference in REFERENCES.items():
        difference = np.abs(all_of_them[ours].resize().astype(np.int16) - all_of_them[reference].resize())
        found[ours] = {
            "most levels off": int(difference.max()),
            "share of values off": float(np.count_nonzero(difference) / difference.size),
            f"{reference} / ours": found["ms"][reference]["p50"] / found["ms"][ours]["p50"],
            "ours / memcpy": found["ms"][ours]["p50"] / found["ms"]["memcpy"]["p50"],
        }
    return found


def versions() -> dict[str, str]:
    """Return the versions of the libraries, "none" for one that is not installed; without SIMD ours is Pillow."""
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = "none"
    return found


def run(*, quick: bool) -> dict[str, Any]:
    """Measure everything; return it as it is written."""
    turns, calls = (3, 2) if quick else (30, 5)
    cases = {}
    for frame, size in CASES:
        name = f"{frame[0]}x{frame[1]} to {size[0]}x{size[1]}"
        print(f"measuring {name} ...", file=sys.stderr)
        cases[name] = measure(frame, size, turns, calls)
    return {"cases": cases, "machine": {**machine(), **versions(), "cores used": CORES, "quick": quick}}


def table(result: dict[str, Any]) -> str:
    """Return the figures as a Markdown table."""
    cores = result["machine"]["cores used"]
    columns = ["ms, p50", "memcpy", "antialiased: ours", "Pillow", "Pillow / ours", "levels off"]
    columns += ["area: ours", "OpenCV", "OpenCV / ours", "levels off", f"on {cores} cores: ours", "OpenCV"]
    columns += ["linear: OpenCV"]
    rows = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for case, found in result["cases"].items():
        p50 = {name: f"{one['p50']:.2f}" for name, one in found["ms"].items()}
        cells = [case, p50["memcpy"]]
        for ours, reference in REFERENCES.items():
            told = found[ours]
            cells += [p50[ours], p50[reference], f"{told[f'{reference} / ours']:.1f}", str(told["most levels off"])]
        cells += [p50["area, all cores"], p50["OpenCV area, all cores"], p50["OpenCV linear"]]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.exit(
        command("What bringing a frame to the network's size takes.", RESULT, lambda quick: run(quick=quick), table)
    )
