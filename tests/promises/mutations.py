"""Break a safeguard at a time and show which suites notice: `python tests/promises/mutations.py [--only NAME...]`.

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
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What is copied first of all, so that nobody who goes on working changes what is tested.
TREE = ("agent/edge_agent", "tests", "pyproject.toml")
LONGEST = 600.0
FAILED = 1
# In the place of an exit code, of a suite that did not come to its end.
ENDLESS = 124
# A suite's controls, whose agents are broken in ways of their own, say nothing of a mutation.
NO_CONTROLS = "not notice"

C1 = "tests/promises/crashes"
C2 = "tests/promises/hangs"
C3 = "tests/promises/agent_killed"
C4 = "tests/promises/wall_clock"
C5 = "tests/promises/broken_models"
T1 = "tests/promises/sigterm"
T2 = "tests/promises/sigterm_midway"
L1 = "tests/promises/lifecycle_storm"
L2 = "tests/promises/swaps"
BUDGET = "tests/agent/test_budget.py"
CALLS = "tests/agent/test_calls.py"
LIFE = "tests/contract/test_life.py"
ORDER = "tests/contract/test_keeping_up.py::test_first_come_first_served"
SERVING = "tests/agent/test_serving.py"
STATE = "tests/agent/test_parts.py::TestState"
STATUS = "tests/agent/test_status.py"

DROPS_THE_QUEUE = """\
                self._queue.pause()
                self._worker = None
                for turn in list(self._queue._waiting):
                    turn.error = lambda: WorkerCrashed(_ended(cause))
                    turn.wake()
"""


class NotFound(Exception):
    """A text that a mutation replaces is not in its file exactly once."""


@dataclass(frozen=True)
class Mutation:
    """What is broken, the (file, text, other text) that breaks it, and the suites that should notice."""

    name: str
    edits: tuple[tuple[str, str, str], ...]
    suites: tuple[str, ...]

    def apply(self, package: Path) -> None:
        """Change a copy of the package."""
        for file, old, new in self.edits:
            path = package / file
            text = path.read_text()
            if text.count(old) != 1:
                raise NotFound(f"{self.name}: {file} has the text {text.count(old)} times, not once:\n{old}")
            path.write_text(text.replace(old, new))


MUTATIONS = (
    Mutation(
        "no-sentinel-watch",
        (
            (
                "worker.py",
                '    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()\n',
                "",
            ),
        ),
        (C3, LIFE),
    ),
    Mutation(
        "forkserver-obeys-sigterm",
        (("_preload.py", "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n", ""),),
        (T1, LIFE),
    ),
    Mutation(
        "wall-clock-for-deaths",
        (("serving.py", "self._budget.died(time.monotonic())", "self._budget.died(time.time())"),),
        (C4,),
    ),
    Mutation(
        "wall-clock-for-deadlines",
        (
            ("calls.py", "max(0.0, deadline - time.monotonic())", "max(0.0, deadline - time.time())"),
            ("calls.py", "time.monotonic() >= deadline", "time.time() >= deadline"),
            ("service.py", "else time.monotonic() + remaining", "else time.time() + remaining"),
        ),
        (C4,),
    ),
    Mutation(
        "lock-for-queue",
        # The turn goes to any one of those who wait, as a lock gives it.
        (
            ("calls.py", "import logging\n", "import logging\nimport random\n"),
            (
                "calls.py",
                "            following = self._waiting.popleft()\n",
                "            following = random.choice(self._waiting)\n            self._waiting.remove(following)\n",
            ),
        ),
        (ORDER, CALLS, SERVING),
    ),
    Mutation(
        "queue-dropped-on-death",
        (
            (
                "serving.py",
                "                self._queue.pause()\n                self._worker = None\n",
                DROPS_THE_QUEUE,
            ),
        ),
        (C1, SERVING),
    ),
    Mutation(
        "state-file-in-place",
        (
            (
                "state.py",
                '            with open(beside, "w", opener=_private) as file:\n',
                '            with open(self._path, "w", opener=_private) as file:\n',
            ),
            ("state.py", "            beside.replace(self._path)\n", ""),
        ),
        (C3, STATE),
    ),
    Mutation(
        "status-file-in-place",
        (
            ("status.py", '        beside = self._path.with_suffix(".new")\n', "        beside = self._path\n"),
            ("status.py", "            beside.replace(self._path)\n", ""),
        ),
        (STATUS,),
    ),
    Mutation(
        "hangs-are-waited-for",
        (("supervisor.py", "        if not self._answers(TERMINATE_PATIENCE):\n", "        if False:\n"),),
        (C2,),
    ),
    Mutation(
        "no-budget-of-deaths",
        (("budget.py", "        if len(self._deaths) == MOST_DEATHS and ", "        if False and "),),
        (C5, BUDGET),
    ),
    Mutation(
        "memory-is-kept",
        (
            (
                "supervisor.py",
                "        for fd in (self._inbox, self._outbox, self._tell):\n",
                "        for fd in (self._tell,):\n",
            ),
        ),
        (L1,),
    ),
    Mutation(
        "any-move-goes",
        (("lifecycle.py", "    if state not in allowed:\n", "    if False:\n"),),
        (L1,),
    ),
    Mutation(
        "swap-in-the-middle-of-a-call",
        (
            (
                "serving.py",
                "            while not self._queue.wait_free(",
                "            while False and not self._queue.wait_free(",
            ),
        ),
        (L2, SERVING),
    ),
    Mutation(
        "failed-swap-ends-the-old",
        (
            (
                "serving.py",
                "            worker = self._starter.start(found)\n            self._queue.pause()\n",
                "            self._queue.pause()\n            worker = self._starter.start(found)\n",
            ),
        ),
        (L2, SERVING),
    ),
    Mutation(
        "only-the-old-is-started",
        (
            (
                "serving.py",
                "            if following is None or following.package is None:\n",
                "            if following is not self:\n",
            ),
        ),
        (L2, SERVING),
    ),
    Mutation(
        "no-drain",
        (("server.py", "ended.wait(self._settings.drain_timeout)", "ended.wait(0)"),),
        (T1, LIFE),
    ),
    Mutation(
        "end-waits-for-hung-workers",
        (("models.py", "        for model in self.all():\n            model.close()\n", ""),),
        (T2, LIFE),
    ),
)


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
    if code not in (0, FAILED):
        print(text, flush=True)
    failed = re.findall(r"^(?:FAILED|ERROR) \S*?::(\S+)", text, re.MULTILINE)
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
    asked = parser.parse_args().only
    mutations = [one for one in MUTATIONS if not asked or one.name in asked]
    with tempfile.TemporaryDirectory(prefix="edge-agent-mutations-") as name:
        folder = Path(name)
        snapshot(folder)
        print("as it is:", flush=True)
        if not all_is_well(folder, dict.fromkeys(suite for one in mutations for suite in one.suites)):
            print("Suites fail that should not; nothing was broken.")
            return 1
        missed = [one.name for one in mutations if not is_caught(folder, one)]
    if missed:
        print(f"NOT CAUGHT: {', '.join(missed)}")
        return 1
    print(f"{len(mutations)} mutations, each of them caught.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
