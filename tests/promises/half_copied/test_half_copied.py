"""P2: a package is loaded whole or not at all, whatever becomes of its files meanwhile.

1. Each version of a package is told by its verdicts twice: the score by the model file, the threshold by the manifest.
2. Packages are copied slowly, and started again and again meanwhile; or are half-copied. They never run before they are
   whole, and do then.
3. Packages that run and are called all the time are replaced, piece by piece or at once: each verdict is of one version,
   none is older than the one before, and the new one takes over.
4. Packages are replaced after the agent has checked them and before the worker, which cannot be started for a while, has
   read them.
5. The agent or its worker is halted between two steps, and the package is replaced there, for good or until the next
   step: then the folder has another package's files for a moment. What runs is of one version; else it is FAILED, with a
   sentence, and runs when it is started again.

Packages have a `package` block, with digests, or have none: those are replaced at once, by a rename.
"""

import hashlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from edge_agent._proto import edge_agent_pb2 as pb2
from support import packages
from support.agent import PLENTY, Agent
from support.calls import NOT_FOUND, OK, outcome, request
from support.processes import hold
from support.promises import Promise, Promises
from support.sabotage import sabotaged
from support.waiting import until

SIDE = 64
PIXELS = b"\x80" * (3 * SIDE * SIDE)
MANIFEST, MODEL = "manifest.json", "mochi/model.onnx"
STEP = 1 / 1024
LEAST_THRESHOLD = 0.5
PIECES = 3
# How often each way is tried: in `make promises`, and in `make test`.
FULL = {"slowly": 16, "half": 20, "replaced": 20, "held": 14, "halted": 30}
FAST = {"slowly": 1, "half": 1, "replaced": 2, "held": 1, "halted": 4}
PROMISE = Promise(
    id="P2",
    text="a package copied slowly, half-copied, replaced while it runs or swapped between check and load: never loaded "
    "half-way, never with another file's bytes",
    case="a package that was changed under the agent's hands and, by its count of answered calls, judged an image when whole",
    full=sum(FULL.values()),
    fast=sum(FAST.values()),
)
Files = dict[str, bytes]


class Shelf:
    """A models folder, and what is put into it."""

    def __init__(self, folder: Path) -> None:
        self.models = folder / "models"
        self.models.mkdir(mode=0o755)
        self._aside = folder / "aside"
        self._aside.mkdir()
        self.latest = 0

    def version(self, name: str, *, block: bool) -> tuple[int, Files]:
        """Return the files of another version of a package, and its number."""
        self.latest += 1
        score = self.latest * STEP
        model = packages.constant(scores=[score, 1 - score], size=(SIDE, SIDE))
        content: dict[str, Any] = packages.manifest(size=(SIDE, SIDE), threshold=LEAST_THRESHOLD + score)
        if block:
            content["package"] = {
                "format": 1,
                "component": {"name": name, "version": "1.0.0"},
                "files": {MODEL: {"size": len(model), "sha256": hashlib.sha256(model).hexdigest()}},
            }
        return self.latest, {MANIFEST: packages.manifest_bytes(content), MODEL: model}

    def put(self, name: str, files: Files) -> Path:
        """Put a package into the folder, at once; return where what was there is now."""
        made = self._new()
        for path, data in files.items():
            (made / path).parent.mkdir(exist_ok=True)
            (made / path).write_bytes(data)
        return self.swap(name, made)

    def swap(self, name: str, other: Path) -> Path:
        """Put another folder in the place of a package, by renames; return where that is now."""
        was = self._aside / os.urandom(6).hex()
        if (self.models / name).exists():
            (self.models / name).rename(was)
        other.rename(self.models / name)
        return was

    def begin(self, name: str) -> None:
        """Make the folder of a package whose files follow."""
        made = self._new()
        (made / MODEL).parent.mkdir()
        made.rename(self.models / name)

    def pieces(self, name: str, files: Files, random: Random) -> Iterator[bool]:
        """Write a package's files piece by piece, in any order; yield between two pieces whether that is between files."""
        pieces = []
        for path in random.sample(sorted(files), len(files)):
            size = -(-len(files[path]) // PIECES)
            pieces += [(path, at, files[path][at : at + size]) for at in range(0, len(files[path]), size)]
        for nth, (path, at, data) in enumerate(pieces):
            with (self.models / name / path).open("r+b" if at else "wb") as file:
                file.seek(at)
                file.write(data)
            if nth + 1 < len(pieces):
                yield path != pieces[nth + 1][0]

    def _new(self) -> Path:
        made = self._aside / os.urandom(6).hex()
        made.mkdir(mode=0o755)
        return made


class Bench:
    """An agent, the packages that it finds, and what is done to them."""

    def __init__(self, agent: Agent, shelf: Shelf, random: Random) -> None:
        self.agent = agent
        self.shelf = shelf
        self.random = random
        self._stub = agent.stub()

    def listed(self, name: str) -> bool:
        asked = pb2.DescribeModelRequest(model_component=name)
        return outcome(self._stub.DescribeModel, asked)[0] != NOT_FOUND

    def start(self, name: str) -> str:
        """Start a model; return the state that it comes to. One that failed says why, in a sentence."""
        self._stub.StartModel(pb2.StartModelRequest(model_component=name), timeout=PLENTY)
        return self.started(name)

    def started(self, name: str) -> str:
        until(lambda: self.agent.state(name) != "STARTING", f"{name} has been started")
        description = self.agent.describe(name)
        if description.status == pb2.FAILED:
            message = description.status_message
            assert message.endswith("."), message
            assert "log has the cause" not in message, message
            assert str(self.shelf.models) not in message
        return pb2.ModelStatus.Name(description.status)

    def judged(self, name: str) -> int:
        """Return the version that judges an image; fail if that is two."""
        code, details, response = outcome(self._stub.DetectAnomalies, request(name, SIDE, SIDE, PIXELS))
        assert code == OK, f"{name} answers {code}: {details}"
        result = response.detect_anomaly_result
        model = result.anomaly_score / STEP
        manifest = (result.anomaly_threshold - LEAST_THRESHOLD) / STEP
        assert abs(model - manifest) < 0.01, (
            f"{name} judges with the model of {model:g} and the manifest of {manifest:g}"
        )
        return round(model)

    def ends_as(self, name: str, version: int) -> None:
        """Fail unless the version that is on disk runs, or does when it is started; stop it."""
        if self.agent.state(name) != "RUNNING":
            assert self.start(name) == "RUNNING", self.agent.describe(name).status_message
        until(lambda: self.judged(name) == version, f"{name} is what is on disk")
        self._stub.StopModel(pb2.StopModelRequest(model_component=name), timeout=PLENTY)

    def known(self, name: str, *, block: bool) -> int:
        """Put a package into the folder, and wait until it is known; return its version."""
        version, files = self.shelf.version(name, block=block)
        self.shelf.put(name, files)
        until(lambda: self.listed(name), f"{name} is known")
        return version

    def any_block(self) -> bool:
        return self.random.random() < 0.5

    def slowly(self, name: str) -> None:
        version, files = self.shelf.version(name, block=self.any_block())
        self.shelf.begin(name)
        for _ in self.shelf.pieces(name, files, self.random):
            if (self.shelf.models / name / MANIFEST).exists():
                until(lambda: self.listed(name), f"{name} is seen")
                self.does_not_run(name)
        until(lambda: self.listed(name), f"{name} is seen")
        self.ends_as(name, version)

    def half(self, name: str) -> None:
        version, files = self.shelf.version(name, block=self.any_block())
        path = self.random.choice(sorted(files))
        self.shelf.put(name, {**files, path: files[path][: self.random.randrange(len(files[path]))]})
        until(lambda: self.listed(name), f"{name} is seen")
        self.does_not_run(name)
        self.shelf.put(name, files)
        self.ends_as(name, version)

    def does_not_run(self, name: str) -> None:
        state = self.start(name)
        assert state == "FAILED", f"{name} is half-copied and {state}"

    def replaced(self, name: str, *, in_pieces: bool) -> None:
        self.known(name, block=in_pieces)
        assert self.start(name) == "RUNNING"
        version, files = self.shelf.version(name, block=in_pieces)
        with self._called(name) as seen:
            if in_pieces:
                for one_is_whole in self.shelf.pieces(name, files, self.random):
                    if one_is_whole:  # and the other is that of the version before, as large as this one's
                        until(
                            lambda: "SHA-256" in self.agent.describe(name).status_message, "that is tried, and refused"
                        )
                    before = len(seen)
                    until(lambda: len(seen) > before + 2, "calls are answered meanwhile")
            else:
                self.shelf.put(name, files)
            until(lambda: seen[-1:] == [version], "the new one takes over")
        assert seen == sorted(seen), "an older version judged after a newer one"
        assert set(seen) <= {version - 1, version}
        self.ends_as(name, version)

    @contextmanager
    def _called(self, name: str) -> Iterator[list[int]]:
        """Call a model all the time; yield the versions that have judged."""
        seen: list[int] = []
        failed: list[AssertionError] = []
        ended = threading.Event()

        def call() -> None:
            try:
                while not ended.is_set():
                    seen.append(self.judged(name))
            except AssertionError as error:
                failed.append(error)

        caller = threading.Thread(target=call)
        caller.start()
        try:
            yield seen
        finally:
            ended.set()
            caller.join(PLENTY)
            for error in failed:
                raise error

    def held(self, name: str, *, in_pieces: bool) -> None:
        before = self.known(name, block=in_pieces)
        version, files = self.shelf.version(name, block=in_pieces)
        forkserver = self.agent.forkserver()
        hold(forkserver)
        try:
            # The package has been checked when this returns.
            self._stub.StartModel(pb2.StartModelRequest(model_component=name), timeout=PLENTY)
            times = [(path, (self.shelf.models / name / path).stat().st_mtime_ns) for path in files]
            if in_pieces:
                for _ in self.shelf.pieces(name, files, self.random):
                    pass
                for path, time in times:
                    os.utime(self.shelf.models / name / path, ns=(time, time))
            else:
                self.shelf.put(name, files)
        finally:
            os.kill(forkserver, signal.SIGCONT)
        if self.started(name) == "RUNNING":
            assert self.judged(name) in (before, version)
        self.ends_as(name, version)


# Halts a process at a step, as long as a file is there that names it.
HALTS = """
import time
from pathlib import Path
from edge_agent import packages
HOLDS = Path({holds!r})
def halt(step):
    if (HOLDS / step).exists():
        (HOLDS / (step + ".here")).touch()
        while (HOLDS / step).exists():
            time.sleep(0.002)
sign, read_file, read_model, read = packages.sign, packages.read_file, packages.read_model, packages._read_unchanging
def signs(folder, root):
    done = sign(folder, root)
    halt("signed")
    return done
def reads_file(folder, relative, **more):
    try:
        return read_file(folder, relative, **more)
    finally:
        halt("manifest read" if relative == "manifest.json" else "bytes read")
def reads_model(package):
    halt("checked")
    try:
        return read_model(package)
    finally:
        halt("model read")
def reads(fd, label, *more):
    if label.endswith(".onnx"):
        halt("model opened")
    return read(fd, label, *more)
packages.sign, packages.read_file = signs, reads_file
packages.read_model, packages._read_unchanging = reads_model, reads
"""
# At which step the package is replaced, at which that is undone, and whether it has a block; None where that is all the same.
HALTED: tuple[tuple[str, str, bool | None], ...] = (
    ("signed", "manifest read", False),
    ("checked", "bytes read", False),
    ("checked", "bytes read", True),
    ("model read", "", None),
    ("signed", "", None),
    ("manifest read", "", None),
    ("checked", "model read", None),
    ("checked", "", None),
    ("model opened", "", None),
    ("bytes read", "", None),
)


class Halting(Bench):
    """An agent that can be halted; it looks at a package only when that is started."""

    def __init__(self, agent: Agent, shelf: Shelf, random: Random, holds: Path) -> None:
        super().__init__(agent, shelf, random)
        self._holds = holds

    def halted(self, name: str, before: int, swapped: str, undone: str, *, block: bool) -> None:
        """Start a package, and replace it at a step, for good or until another one."""
        version, files = self.shelf.version(name, block=block)
        for step in filter(None, (swapped, undone)):
            (self._holds / step).touch()
        call = self._stub.StartModel.future(pb2.StartModelRequest(model_component=name))
        self._reaches(swapped)
        was = self.shelf.put(name, files)
        self._goes_on(swapped)
        if undone:
            self._reaches(undone)
            self.shelf.swap(name, was)
            self._goes_on(undone)
        call.result(PLENTY)
        if self.started(name) == "RUNNING":
            assert self.judged(name) in (before, version)
        self.ends_as(name, before if undone else version)

    def _reaches(self, step: str) -> None:
        until((self._holds / f"{step}.here").exists, f"it is at the step: {step}")

    def _goes_on(self, step: str) -> None:
        (self._holds / f"{step}.here").unlink()
        (self._holds / step).unlink()


@contextmanager
def halting(
    folder: Path, random: Random, names: dict[str, bool], more: str = ""
) -> Iterator[tuple[Halting, dict[str, int]]]:
    """Yield an agent that can be halted and knows these packages, with a block or without, and their versions."""
    shelf = Shelf(folder)
    versions = {}
    for name, block in names.items():
        versions[name], files = shelf.version(name, block=block)
        shelf.put(name, files)
    holds = folder / "holds"
    holds.mkdir()
    holds.chmod(0o777)
    with closing(Agent(shelf.models, scan_interval=3600)) as agent:
        agent.start(**sabotaged(folder, HALTS.format(holds=str(holds)) + more))
        yield Halting(agent, shelf, random, holds), versions


def counted(agent: Agent) -> int:
    """End an agent; return how many packages have judged an image, by its count."""
    assert agent.stop() == 0
    assert "Traceback" not in agent.log()
    calls = [one for one in agent.status()["calls"] if one["rpc"] == "DetectAnomalies"]
    assert {one["code"] for one in calls} == {"OK"}
    return len({one["model"] for one in calls})


def test_half_copied(promises: Promises, folder):
    with promises.run(PROMISE) as run:
        often = FULL if run.full else FAST
        (folder / "watched").mkdir()
        shelf = Shelf(folder / "watched")
        with closing(Agent(shelf.models, scan_interval=0.1 if run.full else 0.05)) as agent:
            bench = Bench(agent.start(), shelf, run.random)
            for nth in range(often["slowly"]):
                bench.slowly(f"slowly-{nth}")
            for nth in range(often["half"]):
                bench.half(f"half-{nth}")
            for nth in range(often["replaced"]):
                bench.replaced(f"replaced-{nth}", in_pieces=nth % 2 == 0)
            for nth in range(often["held"]):
                bench.held(f"held-{nth}", in_pieces=nth % 2 == 1)
            run.count(counted(agent))
        (folder / "halted").mkdir()
        cases = {f"halted-{nth}": HALTED[nth % len(HALTED)] for nth in range(often["halted"])}
        blocks = {name: run.random.random() < 0.5 if block is None else block for name, (_, _, block) in cases.items()}
        with halting(folder / "halted", run.random, blocks) as (bench, versions):
            for name, (swapped, undone, _) in cases.items():
                bench.halted(name, versions[name], swapped, undone, block=blocks[name])
            run.count(counted(bench.agent))


# Takes whatever is there when it comes to that.
TAKES_ANYTHING = """
seen = packages._seen
packages._seen = lambda info: Anything(seen(info))
class Anything(tuple):
    def __ne__(self, _):
        return False
"""


def test_another_files_bytes_are_noticed(folder):
    """Those of a model or a manifest that is there for a moment only."""
    with halting(folder, Random(0), {"board": False, "part": False}, TAKES_ANYTHING) as (bench, versions):
        for name, steps in (("part", HALTED[0]), ("board", HALTED[1])):
            with pytest.raises(AssertionError, match=f"{name} judges with the model of .* and the manifest of"):
                bench.halted(name, versions[name], *steps[:2], block=False)


def test_a_package_that_runs_too_early_is_noticed(folder):
    """Here because it is whole."""
    shelf = Shelf(folder)
    with closing(Agent(shelf.models)) as agent:
        bench = Bench(agent.start(), shelf, Random(0))
        bench.known("whole", block=False)
        with pytest.raises(AssertionError, match="whole is half-copied and RUNNING"):
            bench.does_not_run("whole")
