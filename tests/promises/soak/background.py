"""`make soak`: a million calls in the background, which go on when this command is interrupted, and which it then follows again.

There is one agent from the first call to the last, or the growth of its memory would say nothing; so a run that was itself
ended, with the machine perhaps, is begun anew, and said to be. So is one of other code, of another number of calls or of another
seed than asked for. Results: benchmarks/results/soak.json and soak.svg.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
# Run as a program, too.
sys.path[:0] = [one for one in (str(ROOT / "tests"), str(ROOT / "benchmarks")) if one not in sys.path]

from support.promises import FULL, RESULTS, Promise, merge  # noqa: E402

PLACE = ROOT / ".soak"
PROGRESS, LOCK, LOG, SAMPLES = (PLACE / name for name in ("progress.json", "lock", "log", "samples.jsonl"))
# What the last one found, be it that it broke its promise.
LAST = PLACE / "last.json"
RESULT = ROOT / "benchmarks" / "results" / "soak.json"
PICTURE = RESULT.with_suffix(".svg")
CALLS = 1_000_000
PROMISE = Promise(
    id="G1",
    text="memory grows by less than 1 % after the first tenth of the calls; files, threads, processes and /dev/shm are as they "
    "were, with clients that are killed, malformed calls, and a model that comes and goes",
    case="a call that was answered, or under which its client was killed",
    full=CALLS,
    fast=2_000,
)
SEED = 1
# What is run and what runs it.
CODE = (ROOT / "agent" / "edge_agent", HERE)
# What makes two soaks the same, in words.
SAME = {"digest": "other code", "declared": "another number of calls", "seed": "another seed"}
# Seconds between two looks, and between two lines about it.
LOOK, LINE = 1.0, 60.0


class AnotherRuns(Exception):
    """A soak runs that is not the one that was asked for."""


def digest(folders: Iterable[Path] = CODE) -> str:
    """Return a digest of the names and contents of all Python files in some folders."""
    found = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            content = path.read_bytes()
            found.update(f"{folder.name}/{path.relative_to(folder)} {len(content)}\n".encode() + content)
    return found.hexdigest()


def _write(path: Path, content: Any) -> None:
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(content, indent=1) + "\n")
    beside.replace(path)


def _read() -> dict[str, Any] | None:
    return json.loads(PROGRESS.read_text()) if PROGRESS.exists() else None


@contextlib.contextmanager
def _locked() -> Iterator[bool]:
    """Hold the lock of the one soak that there is; yield whether it could be had. It is free when its process has ended."""
    PLACE.mkdir(exist_ok=True)
    with LOCK.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _runs() -> bool:
    with _locked() as free:
        return not free


def work(calls: int, seed: int) -> None:
    """Be the process in the background: soak, and write how far it is; whatever happens is in the progress at the end."""
    with _locked() as first:
        if not first:
            return
        progress: dict[str, Any] = {"pid": os.getpid(), **_asked(calls, seed), "calls": 0, "ended": False}
        SAMPLES.unlink(missing_ok=True)
        _write(PROGRESS, progress)
        try:
            progress |= {"figures": _soaked(calls, seed, progress), "failed": ""}
        except BaseException:
            progress["failed"] = traceback.format_exc()
        _write(PROGRESS, {**progress, "ended": True})


def _soaked(calls: int, seed: int, progress: dict[str, Any]) -> dict[str, Any]:
    from promises.soak.curve import figures, soak
    from promises.soak.rig import Sample, Soak
    from support.agent import place

    def tell(sample: Sample) -> None:
        with SAMPLES.open("a") as file:
            file.write(json.dumps(asdict(sample)) + "\n")
        progress.update(calls=sample.calls, calls_per_s=round(sample.calls / sample.seconds, 1), last=asdict(sample))
        _write(PROGRESS, progress)

    folder = place()
    try:
        rig = Soak(folder, seed, PYTHONPATH=_copied(folder / "code"))
        try:
            return figures(soak(rig, calls, tell))
        finally:
            shutil.copy(rig.agent.log_path, PLACE / "agent.log")
            rig.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _copied(folder: Path) -> str:
    """Copy the agent, so that nobody who goes on working changes what is run for an hour; return the folder for PYTHONPATH."""
    shutil.copytree(ROOT / "agent" / "edge_agent", folder / "edge_agent", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
    return str(folder)


def _asked(calls: int, seed: int) -> dict[str, Any]:
    return {"digest": digest(), "declared": calls, "seed": seed}


def _differs(progress: dict[str, Any], calls: int, seed: int | None) -> str:
    """Return in words what else than was asked for a soak is of, empty where it is the same; any seed is, where none is given."""
    asked = _asked(calls, progress.get("seed", SEED) if seed is None else seed)
    return " and ".join(words for key, words in SAME.items() if progress.get(key) != asked[key])


def follow(calls: int, seed: int | None = None) -> dict[str, Any]:
    """Begin a soak, or go on following the one that runs or has ended, if it is the same; return its progress at the end.

    Raises AnotherRuns where one runs that is not.
    """
    progress = _read()
    other = _differs(progress, calls, seed) if progress else ""
    if _runs():
        if other:
            raise AnotherRuns(f"A soak of {other} runs: let it end, or end it with `kill {progress['pid']}`.")
        print(f"A soak runs already and is followed; it has made {progress['calls'] if progress else 0:,} calls.")
    elif progress and progress["ended"] and not other:
        print("A soak has come to its end since it was followed last.")
    else:
        if progress and progress["ended"]:
            print(f"A soak of {other} has come to its end, and says nothing of this one: a new one is begun.")
        elif progress:
            print(
                f"The last soak was ended after {progress['calls']:,} calls, and its agent with it: a new one is begun."
            )
        _begin(calls, SEED if seed is None else seed)
    _watch()
    progress = _read()
    assert progress
    assert progress["ended"], f"the soak was ended from outside; see {LOG}"
    PROGRESS.replace(LAST)
    return progress


def _begin(calls: int, seed: int) -> None:
    PLACE.mkdir(exist_ok=True)
    PROGRESS.unlink(missing_ok=True)
    command = [sys.executable, str(HERE / "background.py"), "--work", "--calls", str(calls), "--seed", str(seed)]
    with LOG.open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT, start_new_session=True
        )
    while not _read():
        assert process.poll() is None, LOG.read_text()
        time.sleep(0.05)
    print(f"{calls:,} calls are made in the background: {PROGRESS.relative_to(ROOT)} says how far they are.")


def _watch() -> None:
    told = time.monotonic()
    while _runs():
        time.sleep(LOOK)
        if time.monotonic() - told >= LINE:
            told = time.monotonic()
            _tell(_read() or {})


def _tell(progress: dict[str, Any]) -> None:
    if last := progress.get("last"):
        print(
            f"  {progress['calls']:>9,} of {progress['declared']:,} calls, {progress['calls_per_s']:.0f} calls/s; "
            f"memory {last['memory'] / 1e6:.1f} MB, files {last['files']}, threads {last['threads']}, "
            f"processes {last['processes']}, p99 {last['p99']:.1f} ms",
            flush=True,
        )


def keep(progress: dict[str, Any]) -> None:
    """Write figures and curve of a soak to where results are; fail where it made too few calls or broke its promise."""
    figures = progress["figures"]
    assert progress["declared"] == figures["calls"] == CALLS, f"{figures['calls']:,} calls are kept nowhere"
    assert not figures["broken"], figures["broken"]
    from harness import machine
    from picture import Plot, Series, draw

    curve = figures["curve"]

    def series(name: str, key: str, scale: float = 1.0, of: list[dict[str, Any]] = curve) -> Series:
        return Series(name, [(one["calls"] / 1000, one[key] / scale) for one in of])

    x = "thousand calls"
    grown = f"at rest {_grown(figures['growth_at_rest'])} from call {figures['calls'] // 10:,} on"
    plots = [
        Plot(
            "Memory",
            grown,
            x,
            "MB, all processes, and those and the front one at rest",
            [
                series("PSS", "pss", 1e6),
                series("own", "memory", 1e6),
                series("at rest", "memory", 1e6, figures["at_rest"]),
                series("front", "front", 1e6, figures["at_rest"]),
            ],
        ),
        Plot(
            "Held",
            "all processes",
            x,
            "",
            [series("files", "files"), series("threads", "threads"), series("procs", "processes")],
        ),
        Plot("Latency", "of all sizes together, by client", x, "ms", [series("p50", "p50"), series("p99", "p99")]),
    ]
    PICTURE.write_text(draw("Memory, open files, threads, processes and latency over a million calls", plots))
    _write(RESULT, {"machine": machine(), **figures})


def promised(progress: dict[str, Any]) -> dict[str, Any]:
    """Return what is kept with the other promises of a soak that came to its end."""
    figures = progress["figures"]
    return {
        "id": PROMISE.id,
        "promise": PROMISE.text,
        "case": PROMISE.case,
        "tier": FULL,
        "declared": progress["declared"],
        "ran": figures["calls"],
        "passed": not figures["broken"],
        "seed": progress["seed"],
        "seconds": figures["seconds"],
    }


def table(figures: dict[str, Any]) -> str:
    """Return what a soak found, in words."""
    warm, end = figures["held_when_warm"], figures["held_at_the_end"]
    held = ", ".join(f"{kind} {warm[kind]} then {end[kind]}" for kind in warm)
    return (
        f"{figures['calls']:,} calls in {figures['seconds'] / 60:.0f} minutes: {figures['outcomes']}\n"
        f"memory: at rest {_grown(figures['growth_at_rest'])}, under way {_grown(figures['growth_under_way'])}; held: {held}\n"
        f"p50 {figures['p50_first_tenth_ms']} then {figures['p50_last_tenth_ms']} ms, p99 {figures['p99_first_tenth_ms']} "
        f"then {figures['p99_last_tenth_ms']} ms (medians of the first and of the last tenth)\n"
        f"broken: {figures['broken'] or 'nothing'}"
    )


def _grown(growth: dict[str, Any]) -> str:
    low, high = growth["between"]
    return f"{growth['part']:+.2%} (95 % confidence: {low:+.2%} to {high:+.2%})"


def main() -> int:
    """Soak in the background and follow it, or do what was asked for; return 1 when a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, default=CALLS, help="a multiple of 10,000; fewer are kept nowhere")
    parser.add_argument("--seed", type=int, help=f"default: {SEED}, or that of the soak that is followed")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        work(asked.calls, asked.seed)
        return 0
    try:
        progress = follow(asked.calls, asked.seed)
    except AnotherRuns as error:
        print(error)
        return 1
    if progress["failed"]:
        print(progress["failed"])
        return 1
    broken = progress["figures"]["broken"]
    print(table(progress["figures"]))
    if progress["declared"] == CALLS:
        merge(RESULTS, promised(progress))
        if not broken:
            keep(progress)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
