"""Run promise suites with their full counts and keep the results: `python tests/promises/run.py [ID...]`.

Without an ID all are run, one after the other; a run that was interrupted goes on where it was, and `--again` begins
anew. Results go to benchmarks/results/promises.json.
"""

import argparse
import importlib.util
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "promises.json"
# Those that have passed in a run that has not come to its end.
DONE = ROOT / ".promises-done"
# Seconds that a promise may take; one that takes longer shows where it is.
LONGEST = 480


def suites() -> dict[str, Path]:
    """Return the test file of each promise."""
    sys.path.insert(0, str(HERE.parent))
    found: dict[str, Path] = {}
    for path in sorted(HERE.glob("*/test_*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for one in getattr(module, "PROMISES", None) or [module.PROMISE]:
            assert one.id not in found, f"two suites are called {one.id}"
            found[one.id] = path
    return found


def run(identity: str, path: Path) -> bool:
    """Run one promise; return whether it was kept."""
    print(f"== {identity}: {path.relative_to(ROOT)}", flush=True)
    begin = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-o", f"faulthandler_timeout={LONGEST}", str(path)]
    done = subprocess.run([*command, "--promises", "full", "--promise-results", str(RESULTS)], cwd=ROOT, check=False)
    print(
        f"== {identity}: {'kept' if done.returncode == 0 else 'BROKEN'} in {time.monotonic() - begin:.0f} s", flush=True
    )
    return done.returncode == 0


def main() -> int:
    """Run what was asked for; return 1 when a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("ids", nargs="*", metavar="ID", help="promises to run; default: all")
    parser.add_argument("--again", action="store_true", help="begin anew, whatever an interrupted run has done")
    parser.add_argument("--list", action="store_true", help="print the promises and where they are")
    asked = parser.parse_args()
    known = suites()
    if asked.list:
        for identity, path in known.items():
            print(identity, path.relative_to(ROOT))
        return 0
    if unknown := set(asked.ids) - set(known):
        parser.error(f"no such promise: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if asked.ids:
        kept = [run(one, known[one]) for one in asked.ids]
        return 0 if all(kept) else 1
    if asked.again:
        DONE.unlink(missing_ok=True)
    done = set(DONE.read_text().split()) if DONE.exists() else set()
    broken = []
    for identity, path in known.items():
        if identity in done:
            print(f"== {identity}: kept in the run that is gone on with", flush=True)
        elif run(identity, path):
            with DONE.open("a") as file:
                file.write(f"{identity}\n")
        else:
            broken.append(identity)
    if broken:
        print(f"Broken: {', '.join(broken)}")
        return 1
    DONE.unlink(missing_ok=True)
    print(f"{len(known)} promises kept.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
