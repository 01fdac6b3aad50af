"""New versions that are announced under load: they take over without a failed call, or change nothing.

1. `board` is a component that is registered, as those of Greengrass; `part` is in a models folder. Both run.
2. Callers never stop to call them, and watchers never stop to ask for their states.
3. A new version is announced, in one of ten ways. The next step is not taken before its answers come, or it is told
   why it cannot take over.
4. In the end: no call failed, but one for each worker that was killed, which had it in hand; no caller had the answer of
   an older version after that of a newer one, nor one of a version that was turned down; every look read RUNNING.

A case is a new version that took over or was turned down: the agent counts the former in its metrics, and says of the
latter in `status_message` why.
"""

import hashlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random

import grpc
import pytest

from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent._proto.edge_agent_pb2_grpc import EdgeAgentStub
from edge_agent.supervisor import EXIT_PATIENCE
from support import packages
from support.agent import Agent, alive, place, serving
from support.calls import INTERNAL, INVALID, OK, expected_mask, outcome, picture, request
from support.processes import hold
from support.promises import Promise
from support.sabotage import sabotaged
from support.users import agent_user
from support.waiting import until

PROMISE = Promise(
    id="L2",
    text="a new version takes over under load without a failed call; one that cannot be loaded changes nothing",
    case="a new version that took over or was turned down, as the agent tells",
    full=50,
    fast=12,
)
BOARD, PART = "board", "part"
CALLERS = 2
SIZES = ((96, 64), (64, 80), (128, 128))
PIXELS = b"\x80" * (3 * 64 * 64)
# Versions are told apart by their score: this for each.
STEP = 1 / 1024
KILLED = "The model's worker process ended: it was ended by signal 9 (SIGKILL); the system kills like this when memory runs out."


class Line:
    """A device with two components under load, and what was seen of them."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.root = place()
        self.registry = self.folder("work", "agent") / "models.d"
        self.sources = {BOARD: "packages", PART: "models"}
        self.folder("packages")
        self.agent = Agent(
            self.folder("models"),
            folder=self.root,
            registry=str(self.registry),
            any_image_size=True,
            memory_reserve=0,
            restore=False,
        )
        self.latest = 0
        self.serves: dict[str, int] = {}
        self.places: dict[int, Path] = {}
        self.good: set[int] = set()
        self.turned_down: set[int] = set()
        self.kills = dict.fromkeys(self.sources, 0)
        self.asked = self.looks = 0
        self.failed: list[tuple[str, int, str]] = []
        self.wrong: list[str] = []
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def start(self, **env: str) -> None:
        """Start the agent, run both components, and put them under load."""
        self.agent.start(**env)
        self.stub = self.agent.stub()
        for name in self.sources:
            self.serves[name] = self.write(name)
            self.announce(name, self.latest)
            until(lambda: name in self.listed(), f"{name} is known")
            self.agent.run_model(name)
        calls = [threading.Thread(target=self._call_on, args=(name,)) for name in self.sources for _ in range(CALLERS)]
        self._threads = [*calls, threading.Thread(target=self._watch)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """End the load."""
        self._ended.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a call was never answered"

    def close(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(60)
        self.agent.close()
        shutil.rmtree(self.root, ignore_errors=True)

    def folder(self, *parts: str) -> Path:
        """Make a folder below the root, of the agent's user; return it."""
        path = self.root
        for part in parts:
            path /= part
            path.mkdir(mode=0o755, exist_ok=True)
            os.chown(path, agent_user().uid, agent_user().gid)
        return path

    def either(self) -> str:
        return self.random.choice(list(self.sources))

    def write(
        self,
        name: str,
        *,
        folder: Path | None = None,
        size: tuple[int, int] = (64, 64),
        content: dict | None = None,
        model: bytes | None = None,
        good: bool = True,
        **block: object,
    ) -> int:
        """Write the package of the next version, whole at once; return the version."""
        self.latest += 1
        score = self.latest * STEP
        model = model or packages.constant(scores=[score, 1 - score], size=size)
        content = content or packages.manifest(size=size)
        if block:
            digest = {"size": len(model), "sha256": hashlib.sha256(model).hexdigest()}
            component = {"name": name, "version": f"{self.latest}.0.0"}
            content["package"] = {"format": 1, "component": component, "files": {"mochi/model.onnx": digest}, **block}
        made = packages.write(self.folder("staging") / "abc", content, model)
        folder = folder or self.folder(self.sources[name], name, f"{self.latest}.0.0") / "abc"
        if good:
            self.good.add(self.latest)
        self.places[self.latest] = folder
        if folder.exists():
            shutil.rmtree(folder)
        made.rename(folder)
        return self.latest

    def path(self, name: str) -> Path:
        """Where the files are of the version that serves."""
        return self.places[self.serves[name]]

    def announce(self, name: str, version: int) -> None:
        """Register a version as its component does; one in a models folder is found."""
        if name == PART:
            return
        entry = {
            "component": name,
            "version": f"{version}.0.0",
            "path": str(self.places[version]),
            "autostart": "false",
        }
        beside = self.registry / f".{name}.new"
        beside.write_text(json.dumps(entry))
        beside.chmod(0o644)
        os.chown(beside, agent_user().uid, agent_user().gid)
        beside.rename(self.registry / f"{name}.json")

    def listed(self) -> dict[str, str]:
        response = self.stub.ListModels(pb2.ListModelsRequest(), timeout=30)
        return {one.model_component: pb2.ModelStatus.Name(one.status) for one in response.models}

    def ask(self, stub: EdgeAgentStub, name: str) -> int:
        """Make a call; return the version that answered, 0 when it failed."""
        code, details, response = outcome(stub.DetectAnomalies, request(name, 64, 64, PIXELS))
        with self._lock:
            self.asked += 1
            if code != OK:
                self.failed.append((name, code, details))
                return 0
        return round(response.detect_anomaly_result.anomaly_score / STEP)

    def _call_on(self, name: str) -> None:
        stub, newest = self.agent.stub(), self.serves[name]
        while not self._ended.is_set():
            version = self.ask(stub, name)
            if not version:
                continue
            if version < newest or version not in self.good:
                self.wrong.append(f"{name}: version {version} answered after {newest}")
            newest = version

    def _watch(self) -> None:
        while not self._ended.is_set():
            self.looks += 1
            for name, state in [*self.listed().items(), *((name, self.agent.state(name)) for name in self.sources)]:
                if state != "RUNNING":
                    self.wrong.append(f"{name} was {state}")

    def takes_over(self, name: str, version: int) -> None:
        """Wait until a version's answers come."""
        until(lambda: self.ask(self.stub, name) == version, f"version {version} of {name} answers")
        self.serves[name] = version
        arn = f"model/{name}/{self.path(name).parent.name.removesuffix('.0.0')}"
        until(lambda: self.agent.describe(name).lookout_vision_model_arn.endswith(arn), f"{name} is told to be {arn}")

    def is_turned_down(self, name: str, version: int, reason: str, *, keep: bool = False) -> None:
        """Wait until it is told why a version cannot take over, and see that the one before goes on."""
        self.says(name, f", and version {version}.0.0 cannot take over: {reason}")
        assert self.message(name).startswith("The package on disk has changed since, ")
        assert "The one before goes on." in self.message(name)
        self.turned_down.add(version)
        for _ in range(5):
            assert self.ask(self.stub, name) == self.serves[name]
        if name == PART and not keep:
            shutil.rmtree(self.places[version])
            self.nothing_is_left_to_say(name)

    def is_loaded_beside(self, name: str, version: int) -> None:
        """Wait until a version is being loaded."""
        self.says(name, f"; version {version}.0.0 is loaded beside the one before")

    def says(self, name: str, words: str) -> None:
        try:
            until(lambda: words in self.message(name), f"{name} says {words!r}")
        except AssertionError as error:
            raise AssertionError(f"{error}; it says {self.message(name)!r}") from None

    def nothing_is_left_to_say(self, name: str) -> None:
        until(
            lambda: "has changed" not in self.message(name), f"nothing is said of a package of {name} that is not used"
        )

    def message(self, name: str) -> str:
        return self.agent.describe(name).status_message

    @contextmanager
    def nothing_can_be_loaded(self) -> Iterator[None]:
        """Hold up whatever is to be loaded, by stopping the process that starts all workers."""
        forkserver = self.agent.forkserver()
        os.kill(forkserver, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(forkserver, signal.SIGCONT)

    def kill_worker(self, name: str) -> int:
        """Kill the worker of a component; return its pid."""

        def worker() -> int:
            """The status file may be a second behind: who lives no more is not meant."""
            pids = {one["worker_pid"] for one in self.agent.status()["models"] if one["model"] == name}
            return next(iter(pids & set(self.agent.workers())), 0)

        pid = until(worker, f"{name}'s worker is known")
        self.kills[name] += 1
        os.kill(pid, signal.SIGKILL)
        return pid

    def faults(self) -> list[str]:
        """Return what should not have been."""
        found = list(self.wrong)
        for name, kills in self.kills.items():
            mine = [(code, details) for one, code, details in self.failed if one == name]
            killed = [one for one in mine if one == (INTERNAL, KILLED)]
            if len(killed) > kills or len(mine) > len(killed):
                found.append(f"{name}: {kills} workers were killed, and calls failed: {mine}")
        return found

    def cases(self) -> int:
        """Return how many versions took over or were turned down, once the agent has ended."""
        return sum(self.agent.counted(name, "swapped") for name in self.sources) + len(self.turned_down)


def registered(line: Line) -> None:
    """A component registers its new version."""
    line.announce(BOARD, version := line.write(BOARD))
    line.takes_over(BOARD, version)


def registered_and_the_old_deleted(line: Line) -> None:
    """The old files are deleted as soon as the new version is registered."""
    old, version = line.path(BOARD), line.write(BOARD)
    line.announce(BOARD, version)
    shutil.rmtree(old)
    line.takes_over(BOARD, version)


def found_and_the_old_deleted(line: Line) -> None:
    """A folder with a higher version appears, and the old one is deleted at once."""
    old, version = line.path(PART), line.write(PART)
    line.announce(PART, version)
    shutil.rmtree(old)
    line.takes_over(PART, version)


def replaced_in_place(line: Line) -> None:
    """The files of the version that runs are replaced by others."""
    version = line.write(PART, folder=line.path(PART))
    line.takes_over(PART, version)


def another_image_size(line: Line) -> None:
    """A version that was trained with images of another size."""
    name = line.either()
    line.announce(name, version := line.write(name, size=line.random.choice(SIZES)))
    line.takes_over(name, version)


def broken_package(line: Line) -> None:
    """A version without a threshold."""
    name = line.either()
    line.announce(name, version := line.write(name, content=packages.manifest(threshold=None), good=False))
    line.is_turned_down(name, version, "stages[0] lacks threshold.")


def dies_while_it_loads(line: Line) -> None:
    """A version whose worker is killed before it has loaded, which takes it long."""
    name, before = line.either(), set(line.agent.workers())
    line.announce(name, version := line.write(name, model=packages.slow(3_000_000), good=False))
    new = until(lambda: set(line.agent.workers()) - before, "its worker is there")
    os.kill(new.pop(), line.random.choice((signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT)))
    line.is_turned_down(name, version, "Its worker process ended while it was loading: it was ended by signal ")


def without_memory_and_started_instead(line: Line) -> None:
    """A version that there is no memory for beside the old one; it is what is started when that one's worker dies."""
    name = line.either()
    old, version = line.path(name), line.write(name, good=False, peak_memory_bytes=10**9 << 20)
    line.announce(name, version)
    line.is_turned_down(name, version, "Loading the model needs about 1000000000 MiB of memory", keep=True)
    shutil.rmtree(old)
    line.good.add(version)
    line.kill_worker(name)
    line.takes_over(name, version)
    line.nothing_is_left_to_say(name)


def dies_meanwhile(line: Line) -> None:
    """The old worker is killed, its files gone, before the new one has loaded: that one is what is started."""
    name = line.either()
    old = line.path(name)
    with line.nothing_can_be_loaded():
        line.announce(name, version := line.write(name))
        line.is_loaded_beside(name, version)
        shutil.rmtree(old)
        killed = line.kill_worker(name)
        until(lambda: not alive(killed), "it is dead")
    line.takes_over(name, version)


def one_after_the_other(line: Line) -> None:
    """A version is announced while the one before it is still being loaded."""
    name = line.either()
    with line.nothing_can_be_loaded():
        line.announce(name, first := line.write(name))
        line.is_loaded_beside(name, first)
        line.announce(name, second := line.write(name))
        line.is_loaded_beside(name, second)
    line.takes_over(name, second)


# Each with the number of its cases.
WAYS: dict[Callable[[Line], None], int] = {
    registered: 1,
    registered_and_the_old_deleted: 1,
    found_and_the_old_deleted: 1,
    replaced_in_place: 1,
    another_image_size: 1,
    broken_package: 1,
    dies_while_it_loads: 1,
    without_memory_and_started_instead: 2,
    dies_meanwhile: 1,
    one_after_the_other: 2,
}


def steps(random: Random, cases: int) -> Iterator[Callable[[Line], None]]:
    """Yield ways that have so many cases in all: every one of them in turn, the order left to chance; then the first."""
    for _ in range(cases // sum(WAYS.values())):
        yield from random.sample(list(WAYS), len(WAYS))
    for _ in range(cases % sum(WAYS.values())):
        yield registered


@contextmanager
def under_load(random: Random, **env: str) -> Iterator[Line]:
    line = Line(random)
    with closing(line):
        line.start(**env)
        yield line


def test_swaps(promises):
    with promises.run(PROMISE) as run, under_load(run.random) as line:
        for step in steps(run.random, run.declared):
            print(f"  {step.__name__}")
            step(line)
        line.end()
        assert line.faults() == []
        assert line.agent.stop() == 0
        run.count(line.cases())
        print(f"  {line.asked} calls were answered, {line.looks} times the states were looked at")
        assert line.agent.calls() == line.asked
        for name, kills in line.kills.items():
            assert line.agent.counted(name, "died") <= kills, "no worker died but those that were killed"
        assert line.agent.calls(code="OK") == line.asked - len(line.failed)
        assert "Traceback" not in line.agent.log()


def test_images_of_the_size_before_are_refused_from_then_on(folder):
    """A segmentation model takes one size only: calls that waited during the swap are judged by the new one's rules."""
    sizes = ((64, 64), (96, 64))
    packages.segmenter(folder / "models" / BOARD, sizes[0])
    with serving(folder / "models") as agent:
        agent.run_model(BOARD)
        ended = threading.Event()
        seen: dict[tuple[int, int], list[tuple[int, str]]] = {size: [] for size in sizes}

        def call_on(width: int, height: int) -> None:
            stub, pixels = agent.stub(), picture(width, height)
            asked = request(BOARD, width, height, pixels.tobytes())
            while not ended.is_set():
                code, details, response = outcome(stub.DetectAnomalies, asked)
                if (
                    response
                    and response.detect_anomaly_result.anomaly_mask.byte_data != expected_mask(pixels).tobytes()
                ):
                    code = -1
                seen[width, height].append((code, details))

        callers = [threading.Thread(target=call_on, args=size) for size in sizes for _ in range(2)]
        for caller in callers:
            caller.start()
        until(lambda: all(len(one) > 50 for one in seen.values()), "calls of both sizes are answered")
        packages.segmenter(folder / "models" / BOARD, sizes[1])
        until(lambda: (OK, "") in seen[sizes[1]], "the new one judges")
        before = len(seen[sizes[0]])
        until(lambda: len(seen[sizes[0]]) > before + 50, "calls of both sizes are answered")
        ended.set()
        for caller in callers:
            caller.join(30)
        for size, other in (sizes, sizes[::-1]):
            refused = {details for code, details in seen[size] if code == INVALID}
            assert {code for code, _ in seen[size]} == {OK, INVALID}
            assert len(refused) == 1
            assert all(f"{width}x{height}" in next(iter(refused)) for width, height in (size, other))
        assert agent.counted(BOARD, "died") == 0
        assert agent.state(BOARD) == "RUNNING"


def test_a_call_in_hand_is_answered_by_the_version_that_has_it(folder):
    """Also when it takes longer than a worker gets to end by itself."""
    packages.segmenter(folder / "models" / BOARD)
    with serving(folder / "models", call_timeout=120) as agent:
        agent.run_model(BOARD)
        (old,) = agent.workers()
        hold(old)
        marked = os.urandom(len(PIXELS))
        call = agent.stub().DetectAnomalies.future(request(BOARD, 64, 64, marked))
        until(lambda: agent.inbox_holds(marked), "the call is in the worker")
        packages.classifier(folder / "models" / BOARD)
        until(lambda: agent.log().count("loaded in") == 2, "the new one is loaded")
        with pytest.raises(grpc.FutureTimeoutError):
            call.result(EXIT_PATIENCE + 1)
        os.kill(old, signal.SIGCONT)
        assert call.exception(30) is None
        assert call.result().detect_anomaly_result.anomaly_mask.byte_data, "the old one makes masks"
        code, details, response = outcome(agent.stub().DetectAnomalies, request(BOARD, 64, 64, PIXELS))
        assert code == OK, details
        assert not response.detect_anomaly_result.HasField("anomaly_mask"), "the new one makes none"
        until(lambda: len(agent.workers()) == 1 and old not in agent.workers(), "the old one is gone")


STOP_AND_START = """
from edge_agent.model import Model


def swap(self, serving, found):
    self._swapping = False
    self.stop("there is a new version")
    self.start()


Model._swap = swap
"""


@pytest.mark.parametrize(("model", "what"), [(None, "calls failed"), (b"no ONNX", "was FAILED")])
def test_a_stop_and_a_start_in_the_place_of_a_swap_are_noticed(folder, model, what):
    with under_load(Random(0), **sabotaged(folder, STOP_AND_START)) as line:
        line.announce(BOARD, line.write(BOARD, model=model))
        until(lambda: any(what in one for one in line.faults()), f"it is seen that {what}")
