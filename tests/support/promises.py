"""Promise suites: each declares how many cases it runs in each tier, counts those that ran, and fails on any other number.

A case is a call or a process that ran; suites count them by what the agent's metrics or the operating system say.
"""

import json
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FAST, FULL = "fast", "full"
RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "promises.json"


@dataclass(frozen=True)
class Promise:
    """A promise, what one of its cases is, and how many are run in `make promises` and in `make test`."""

    id: str
    text: str
    case: str
    full: int
    fast: int


class Run:
    """One run of a promise: how many cases are declared, and how many have run."""

    def __init__(self, promise: Promise, tier: str, seed: int) -> None:
        self.promise = promise
        self.tier = tier
        self.full = tier == FULL
        self.seed = seed
        self.random = random.Random(seed)
        self.declared = promise.full if self.full else promise.fast
        self.ran = 0

    def count(self, cases: int = 1) -> None:
        """Count cases that ran, as the agent or the system has counted them."""
        self.ran += cases


class Promises:
    """Runs promises in one tier, and keeps their results where a file for them is given."""

    def __init__(self, tier: str, results: Path | None, seed: int | None) -> None:
        self._tier = tier
        self._results = results
        self._seed = seed

    @contextmanager
    def run(self, promise: Promise) -> Iterator[Run]:
        """Run a promise; fail unless exactly the declared cases ran."""
        seed = int.from_bytes(os.urandom(4), "big") if self._seed is None else self._seed
        run = Run(promise, self._tier, seed)
        print(f"\npromise {promise.id}, tier {self._tier}: {run.declared} declared; seed {seed}")
        begin = time.monotonic()
        passed = False
        try:
            yield run
            assert run.ran == run.declared, f"{promise.id} declares {run.declared} cases, and {run.ran} ran"
            passed = True
        finally:
            seconds = time.monotonic() - begin
            print(f"promise {promise.id}: {run.ran} of {run.declared} ran in {seconds:.1f} s; passed: {passed}")
            if self._results:
                merge(self._results, _result(run, passed, seconds))


def _result(run: Run, passed: bool, seconds: float) -> dict[str, Any]:
    return {
        "id": run.promise.id,
        "promise": run.promise.text,
        "case": run.promise.case,
        "tier": run.tier,
        "declared": run.declared,
        "ran": run.ran,
        "passed": passed,
        "seed": run.seed,
        "seconds": round(seconds, 1),
    }


def merge(path: Path, result: dict[str, Any]) -> None:
    """Put a result into the file in the place of an earlier one of the same promise."""
    there = json.loads(path.read_text()) if path.exists() else []
    kept = [one for one in there if one["id"] != result["id"]]
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(sorted([*kept, result], key=lambda one: one["id"]), indent=1) + "\n")
    beside.replace(path)
