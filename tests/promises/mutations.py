"""Break a safeguard at a time and show which suites notice: `python tests/promises/mutations.py [--only NAME...]`.

The safeguards are those of safeguards.py. A run that was interrupted goes on where it was, and `--again` begins anew.

Each mutation replaces some text in a copy of the package; agents and tests run that copy. A suite has noticed when a
test of its fails. First of all the copy is run as it is, which every suite must find in order.
"""

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from safeguards import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[2]
# What is copied first of all, so that nobody who goes on working changes what is tested.
TREE = ("agent/edge_agent", "tests", "proto", "pyproject.toml")
LONGEST = 600.0
FAILED = 1
# In the place of an exit code, of a suite that did not come to its end.
ENDLESS = 124
# A suite's controls, whose agents are broken in ways of their own, say nothing of a mutation.
NO_CONTROLS = "not notice"
# Those that were caught in a run that has not come to its end.
DONE = ROOT / ".mutations-done"


def snapshot(folder: Path) -> None:
    """Copy what is tested and what tests it."""
    tree = folder / "tree"
    for name in TREE:
        source, target = ROOT / name, tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, target)


def copied(folder: Path, mutation: Mutation | None) -> Path:
    """Put a copy of the package into a folder, broken if there is a mutation, for every user to read; return the folder."""
    place = folder / (mutation.name if mutation else "as-it-is")
    copy = place / "edge_agent"
    shutil.copytree(folder / "tree" / TREE[0], copy)
    if mutation:
        mutation.apply(copy)
    for path in (folder, place, copy, *copy.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    imported = subprocess.run(
        [
            sys.executable,
            "-c",
            "import edge_agent.cli, edge_agent.server, edge_agent.worker as one; print(one.__file__)",
        ],
        env=environment(place),
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(imported.stdout.strip()) == copy / "worker.py", "another copy of the package would be tested"
    return place


def environment(place: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1"}


def run(place: Path, suite: str) -> tuple[int, str]:
    """Run a suite up to its first failure; return pytest's exit code and the tests that failed."""
    command = [sys.executable, "-m", "pytest", "-v", "-x", "-p", "no:cacheprovider", "-k", NO_CONTROLS, suite]
    # Into a file: whatever a broken agent leaves may hold a pipe open for ever.
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [*command, "-o", f"faulthandler_timeout={LONGEST / 2:g}"],
            cwd=place.parent / "tree",
            env=environment(place),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(LONGEST)
        except subprocess.TimeoutExpired:
            code = ENDLESS
        finally:
            with contextlib.suppress(ProcessLookupError):  # what is left is of its group
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        text = output.read()
    failed = re.findall(r"^(?:FAILED|ERROR) \S*?::(\S+)", text, re.MULTILINE)
    if code != 0 and not failed:
        print(text, flush=True)
    return code, ", ".join(dict.fromkeys(failed)) or ("" if code == 0 else f"exit code {code}")


def all_is_well(folder: Path, suites: Iterable[str]) -> bool:
    """Return whether no suite fails on the copy as it is."""
    place = copied(folder, None)
    well = True
    for suite in suites:
        code, failed = run(place, suite)
        print(f"  {suite}: {failed or 'in order'}", flush=True)
        well &= code == 0
    return well


def is_caught(folder: Path, mutation: Mutation) -> bool:
    """Return whether a suite notices a mutation."""
    place = copied(folder, mutation)
    caught = []
    for suite in mutation.suites:
        code, failed = run(place, suite)
        if code == FAILED:
            caught.append(suite)
        print(f"  {suite}: {failed or 'noticed nothing'}", flush=True)
    outcome = f"caught by {', '.join(caught)}" if caught else "NOT CAUGHT"
    print(f"{mutation.name}: {outcome}", flush=True)
    return bool(caught)


def main() -> int:
    """Try every mutation, or those that were asked for; return 1 when one is not noticed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[one.name for one in MUTATIONS], help="try these")
    parser.add_argument("--again", action="store_true", help="begin anew, whatever an interrupted run has done")
    asked = parser.parse_args()
    if asked.again:
        DONE.unlink(missing_ok=True)
    done = set(DONE.read_text().split()) if DONE.exists() and not asked.only else set()
    mutations = [one for one in MUTATIONS if (one.name in asked.only if asked.only else one.name not in done)]
    if done:
        print(f"{len(done)} mutations were caught in the run that is gone on with.")
    missed = []
    with tempfile.TemporaryDirectory(prefix="edge-agent-mutations-") as name:
        folder = Path(name)
        snapshot(folder)
        print("as it is:", flush=True)
        if not all_is_well(folder, dict.fromkeys(suite for one in mutations for suite in one.suites)):
            print("Suites fail that should not; nothing was broken.")
            return 1
        for one in mutations:
            if not is_caught(folder, one):
                missed.append(one.name)
            elif not asked.only:
                with DONE.open("a") as file:
                    file.write(f"{one.name}\n")
    if missed:
        print(f"NOT CAUGHT: {', '.join(missed)}")
        return 1
    if not asked.only:
        DONE.unlink(missing_ok=True)
    print(f"{len(mutations) + len(done)} mutations, each of them caught.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
