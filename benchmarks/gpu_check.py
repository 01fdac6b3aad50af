"""Proves on a device with an NVIDIA GPU what elsewhere only fakes can: `python benchmarks/gpu_check.py [--quick]`.

Everything is real, and no network is needed: the packages are made here, for this GPU. What is looked at:

- parity: each package on each accelerator against its source on the CPU, with the tolerances of the packager
  (model_packager.parity): verdicts never differ, scores and masks by so much;
- latency of a call through the agent and of the bare model, on the CPU, with CUDA and with TensorRT, taking turns;
- seconds of a load that builds an engine, and of one that finds it;
- 50 times started and stopped: the GPU's memory is back to 50 MB;
- faults: error 700, a full GPU, a killed worker, a damaged engine.

Without a GPU it says what it needs, and writes nothing. `--dry-run` goes through all steps that need none, on the CPU.
Writes benchmarks/results/gpu_check.json; the exit code is 1 where something is not as promised.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gpu_faults
import gpu_models
import gpu_steps
from gpu_steps import Place
from harness import RESULTS, machine, workplace

from edge_agent import gpus, probe
from edge_agent.accelerators import Here
from edge_agent.jobs import Accelerator

RESULT = RESULTS / "gpu_check.json"
GPU: tuple[Accelerator, ...] = ("cuda", "tensorrt")


def usable(here: Here) -> tuple[Accelerator, ...]:
    """Return the accelerators that can be used here."""
    return tuple(one for one in GPU if not here.lacks(one, here.gpus[0].index if here.gpus else 0))


def needs(here: Here) -> str:
    """Return what is needed and not here, one line; empty where everything can be checked."""
    missing = {here.lacks(one, 0) for one in GPU} - {""}
    return " ".join(sorted(missing))


def check(folder: Path, here: Here, accelerators: tuple[Accelerator, ...], *, quick: bool) -> dict[str, Any]:
    """Run all steps and return what was seen."""
    (folder / "models").mkdir()
    place = Place(folder, here)
    models = gpu_models.make(place.models, here)
    on_gpu = [one for one in accelerators if one != "cpu"]
    result: dict[str, Any] = {"machine": machine(), "device": gpu_steps.as_json(here), "missing": needs(here)}
    result["parity"] = {
        one.name: {way: gpu_steps.in_process(gpu_steps.agreement, place, one, way) for way in accelerators}
        for one in models
    }
    if "tensorrt" in on_gpu:
        result["builds"] = {one.name: gpu_steps.builds(place, one, "tensorrt") for one in models}
    result["latency_ms"] = gpu_steps.latency(place, models, accelerators, 1 if quick else 10)
    rounds = 3 if quick else 50
    result["cycles"] = {one: gpu_steps.cycles(place, models[0], one, rounds) for one in on_gpu or accelerators}
    result["faults"] = {
        one: {name: asdict(fault) for name, fault in gpu_faults.all_faults(place, models[0], one).items()}
        for one in on_gpu
    }
    return result


def failures(result: dict[str, Any]) -> list[str]:
    """Return what was not as promised, a line each."""
    found = [
        f"parity of {model} on {way}: {told.get('failed') or told['complaint']}"
        for model, ways in result["parity"].items()
        for way, told in ways.items()
        if not told.get("ok")
    ]
    found += [
        f"build of {model}: {value['failed']}"
        for model, told in result.get("builds", {}).items()
        for value in told.values()
        if isinstance(value, dict)
    ]
    found += [
        f"latency of {model} on {way}: {told['failed']}"
        for model, ways in result["latency_ms"].items()
        for way, told in ways.items()
        if "failed" in told
    ]
    found += [
        f"start and stop on {way}: " + (told.get("failed") or f"{told['worst_left_bytes']} bytes are left on the GPU")
        for way, told in result["cycles"].items()
        if not told["ok"]
    ]
    return found + [
        f"{name} on {way}: {fault['seen']}"
        for way, faults in result["faults"].items()
        for name, fault in faults.items()
        if not fault["ok"]
    ]


def table(result: dict[str, Any]) -> str:
    """Return the figures as Markdown tables."""
    rows = ["| package | on | provider | score differs by | mask | verdicts that differ |", "|---|---|---|---|---|---|"]
    for model, ways in result["parity"].items():
        for way, told in ways.items():
            if "failed" in told:
                rows.append(f"| {model} | {way} | {told['failed']} | | | |")
                continue
            mask = told["largest_mask_difference"]
            shown = "none" if mask is None else f"{mask:.3%}"
            difference = f"{told['largest_score_difference']:.6f}"
            rows.append(f"| {model} | {way} | {told['provider']} | {difference} | {shown} | {told['verdict_flips']} |")
    ways = list(dict.fromkeys(way for told in result["latency_ms"].values() for way in told))
    rows += ["", f"| latency p50, ms | {' | '.join(ways)} |", "|---" * (len(ways) + 1) + "|"]
    for model, told in result["latency_ms"].items():
        medians = [f"{told[way]['p50']:.2f}" if "p50" in told.get(way, {}) else "-" for way in ways]
        rows.append(f"| {model} | {' | '.join(medians)} |")
    return "\n".join(rows) + "\n"


def main() -> int:
    """Check, tell and keep what was seen; return the exit code."""
    parser = argparse.ArgumentParser(description="Prove on a GPU what elsewhere only fakes can.")
    parser.add_argument("--quick", action="store_true", help="few rounds, nothing written")
    parser.add_argument(
        "--dry-run", action="store_true", help="the steps that need no GPU, on the CPU; nothing written"
    )
    arguments = parser.parse_args()
    here = Here() if arguments.dry_run else gpus.of_probe(probe.Look(gpu_steps.LOOK, gpu_steps.LOOK).finish())
    accelerators: tuple[Accelerator, ...] = ("cpu", *usable(here))
    if accelerators == ("cpu",) and not arguments.dry_run:
        print(f"SKIPPED: it needs an NVIDIA GPU with its driver, and the extras `cuda` and `tensorrt`. {needs(here)}")
        return 0
    with workplace() as folder:
        result = check(folder, here, accelerators, quick=arguments.quick or arguments.dry_run)
    if not arguments.quick and not arguments.dry_run:
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result), end="")
    if result["missing"]:
        print(f"\nNot everything was looked at: {result['missing']}")
    wrong = failures(result)
    for one in wrong:
        print(f"NOT AS PROMISED: {one}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
