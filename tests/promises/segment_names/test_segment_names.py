r"""S3: whatever a segment is called, nothing is opened but a file of that name in /dev/shm, and that only by a good name.

1. One agent runs two models, one with masks and one without. All that its processes open is traced: by an audit hook in
   each of its Python interpreters, and by strace where it is installed and may trace.
2. Names are drawn: of segments that are there, some of them oddly called; of others; ways out of /dev/shm and back; with
   slashes, NULs, dots, line breaks, semaphores' names, too long ones, bytes that are no UTF-8. They are sent as the
   image's name, or as the mask's in either of its fields, on the wire as they are.
3. Which of them are names is decided here, by the rule of the API: one leading slash is dropped; then 1 to 255 bytes, no
   slash, no NUL, neither `.` nor `..` nor `sem.*`; and text, since the API says string.
4. The workers have opened the good names, each once a call, and nothing else; the other processes have opened nothing but
   the agent's own state. A file outside to which many names lead has never been read.
5. A good name of a segment that is there is answered OK, any other name INVALID_ARGUMENT. A model without masks ignores the
   mask's, whatever text it is.
"""

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import grpc
import pytest

from edge_agent._proto import edge_agent_pb2 as pb2
from promises.segment_names.names import ODD, Names, is_text, plain
from support import packages
from support.agent import Agent
from support.calls import INVALID, OK, outcome, request
from support.promises import Promise
from support.sabotage import sabotaged
from support.shm import SHM, create, new_name
from support.waiting import until

PROMISE = Promise(
    id="S3",
    text="fuzzed segment names: nothing is opened outside the pattern, as tracing of all opens shows",
    case="a call that the agent has counted",
    full=10_000,
    fast=400,
)
BOARD, PART = "board", "part"
SIDE = 64
SIZE = 3 * SIDE * SIDE
PIXELS = b"\x33" * SIZE
# The fields of a request that name a segment, by their numbers.
IMAGE, MASK, LEGACY_MASK = (2, 4), (3, 2), (3, 3)


def field(number: int, payload: bytes) -> bytes:
    """Return a field of a message, as it is on the wire."""
    length, size = bytearray(), len(payload)
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2, *length, size]) + payload


# An audit hook that writes down what is opened by name: process, and path.
HOOK = """
import os, sys
def open_trace():
    kept = os.open({trace!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    def seen(event, arguments):
        if event == "open" and not isinstance(arguments[0], int):
            os.write(kept, f"{{os.getpid()}} {{os.fsencode(arguments[0]).hex()}}\\n".encode())
    sys.addaudithook(seen)
open_trace()
"""
OPENS = "trace=?open,openat,?openat2,?creat"
STRACE = ["strace", "-D", "-f", "-xx", "--seccomp-bpf", "-e", "signal=none", "-e", OPENS, "-o"]
OPENED = re.compile(r'^(\d+) +\w+\([^"]*"((?:\\x[0-9a-f]{2})*)"', re.MULTILINE)


def strace_works() -> bool:
    if not shutil.which("strace"):
        return False
    return subprocess.run([*STRACE[:-1], "true"], capture_output=True, check=False).returncode == 0


class Traced:
    """An agent with two models, all of whose opens are traced; those between two marks count."""

    def __init__(self, models: Path, folder: Path, code: str = "", *, by_strace: bool) -> None:
        self._by_hook, self._by_strace = folder / "by-hook", folder / "by-strace" if by_strace else None
        self._env = sabotaged(folder, HOOK.format(trace=str(self._by_hook)) + code)
        self._marks: list[str] = []
        self.agent = Agent(models, scan_interval=3600)
        if self._by_strace:
            self.agent.prefix = [*STRACE, str(self._by_strace)]
        self.agent.start(**self._env)
        for name in (BOARD, PART):
            self.agent.run_model(name)
            assert outcome(self.agent.stub().DetectAnomalies, request(name, SIDE, SIDE, PIXELS))[0] == OK
        self.workers = set(self.agent.workers())
        # Calls of its own: these, and marks.
        self.calls = 2

    def close(self) -> None:
        self.agent.close()

    def mark(self) -> None:
        """Let a segment be opened that is not there, by which this place is found in a trace."""
        self._marks.append(f"{new_name()}-mark")
        asked = request(BOARD, SIDE, SIDE, handle=(self._marks[-1], SIZE))
        assert outcome(self.agent.stub().DetectAnomalies, asked)[0] == INVALID
        self.calls += 1

    def opened(self) -> dict[str, list[tuple[int, bytes]]]:
        """End the agent; return what was opened between the marks, as (process or thread, path), by each tracer."""
        assert self.agent.stop() == 0
        seen = {"audit hook": re.findall(r"^(\d+) (\w+)$", self._by_hook.read_text(), re.MULTILINE)}
        if self._by_strace:
            end = re.compile(rf"^{self.agent.pid} +\+\+\+ exited", re.MULTILINE)
            until(lambda: end.search(self._by_strace.read_text()), "strace has seen it end")
            seen["strace"] = OPENED.findall(self._by_strace.read_text())
        return {by: self._between_marks(one) for by, one in seen.items()}

    def _between_marks(self, seen: list[tuple[str, str]]) -> list[tuple[int, bytes]]:
        opened = [(int(pid), bytes.fromhex(path.replace("\\x", ""))) for pid, path in seen]
        begin, end = (next(i for i, (_, path) in enumerate(opened) if path == bytes(SHM / one)) for one in self._marks)
        return opened[begin + 1 : end]


class Client:
    """Sends names to a traced agent, and looks at what was opened."""

    def __init__(self, traced: Traced, there: list[bytes]) -> None:
        self.seen: Counter[str] = Counter()
        self._traced = traced
        self._there = set(there)
        # How often a worker is to open what.
        self._to_open: Counter[bytes] = Counter()
        self._wrong: list[str] = []
        self._channel = grpc.insecure_channel(f"unix://{traced.agent.socket}")
        self._detect = self._channel.unary_unary(
            "/AWS.LookoutVision.EdgeAgent/DetectAnomalies",
            response_deserializer=pb2.DetectAnomaliesResponse.FromString,
        )

    def close(self) -> None:
        self._channel.close()

    def send(self, model: str, place: tuple[int, int], name: bytes) -> None:
        """Make a call with a name in one of the fields for it."""
        asked = {IMAGE: {"handle": ("", SIZE)}, MASK: {"mask": ("", SIZE)}, LEGACY_MASK: {"legacy_mask": ("", SIZE)}}[
            place
        ]
        message = request(model, SIDE, SIDE, None if place == IMAGE else PIXELS, **asked).SerializeToString()
        outer, inner = place
        # What follows in the bytes is merged into what was there.
        code, details, _ = outcome(self._detect, message + field(outer, field(inner, field(1, name))))
        good = plain(name)
        ignored = model == PART and place != IMAGE
        opens = good is not None and not ignored
        if opens:
            self._to_open[bytes(SHM) + b"/" + good] += 1
        expected = OK if (is_text(name) if ignored else good in self._there) else INVALID
        if code != expected or not (details or "").isprintable():
            self._wrong.append(f"{name!r} in {place} of {model} was answered {code}: {details!r}")
        self.seen["left" if ignored else "no name" if good is None else "opened" if code == OK else "looked for"] += 1

    def check_opened(self, opened: list[tuple[int, bytes]]) -> None:
        """Fail unless the workers opened what they had to, each as often, and the others nothing but the agent's state."""
        state = bytes(self._traced.agent.folder / "state") + b"/"
        workers = self._traced.workers
        by_agent = {path for pid, path in opened if pid not in workers}
        beyond = {path for path in by_agent if not path.startswith(state) or b".." in path.split(b"/")}
        assert not beyond, f"the agent itself opened {beyond}"
        by_workers = Counter(path for pid, path in opened if pid in workers)
        assert not by_workers - self._to_open, f"opened outside the pattern: {dict(by_workers - self._to_open)}"
        assert not self._to_open - by_workers, f"not seen to be opened: {dict(self._to_open - by_workers)}"

    def check_answers(self) -> None:
        assert not self._wrong, f"{len(self._wrong)} wrong answers, the first: {self._wrong[0]}"


def fuzz(traced: Traced, there: list[bytes], outside: Path, random: Random, calls: int) -> tuple[Client, dict]:
    """Send drawn names; return the client, and what was opened meanwhile, by each tracer."""
    names = Names(random, there, outside)
    with closing(Client(traced, there)) as client:
        traced.mark()
        for _ in range(calls):
            client.send(
                random.choice([BOARD, BOARD, PART]), random.choice([IMAGE, IMAGE, MASK, LEGACY_MASK]), names.draw()
            )
        traced.mark()
    return client, traced.opened()


@pytest.fixture(scope="module")
def models(module_folder) -> Path:
    packages.segmenter(module_folder / "models" / BOARD, (SIDE, SIDE))
    return packages.classifier(module_folder / "models" / PART, (SIDE, SIDE)).parent


@pytest.fixture(scope="module")
def outside(module_folder) -> Path:
    """A file as large as an image, which everybody may read and write."""
    path = module_folder / "outside"
    path.write_bytes(PIXELS)
    path.chmod(0o666)
    return path


@pytest.fixture(scope="module")
def there() -> Iterator[list[bytes]]:
    """The names of segments that are there."""
    names = [f"{before}{new_name()}{behind}" for before, behind in ODD]
    names += [new_name().ljust(255, "x"), new_name().ljust(253, "x") + "é"]
    for name in names:
        create(name, PIXELS)
    yield [os.fsencode(name) for name in names]
    for name in names:
        (SHM / name).unlink()


def test_segment_names(promises, models, folder, there, outside):
    by_strace = strace_works()
    if not by_strace:
        print("\nstrace is not here, or may not trace: opens are seen by the audit hook only")
    with promises.run(PROMISE) as run, closing(Traced(models, folder, by_strace=by_strace)) as traced:
        client, opened = fuzz(traced, there, outside, run.random, run.declared)
        for by, one in opened.items():
            client.check_opened(one)
            print(f"  {by}: {len(one)} opens")
        client.check_answers()
        agent = traced.agent
        assert outside.read_bytes() == PIXELS
        assert agent.calls(code="OK") + agent.calls(code="INVALID_ARGUMENT") == agent.calls()
        assert "Traceback" not in agent.log()
        assert all(line.isprintable() for line in agent.log().split("\n"))
        assert set(client.seen) == {"no name", "opened", "looked for", "left"}
        print(f"  names: {dict(client.seen)}")
        run.count(agent.calls() - traced.calls)


UNCHECKED = """
from edge_agent import bitmaps
bitmaps.segment = lambda field, name, offset, size: bitmaps.Segment(name.removeprefix("/"), offset, size)
"""
LOOKS_FIRST = """
from edge_agent import bitmaps
segment = bitmaps.segment
def looking(field, name, offset, size):
    if name.endswith("outside"):
        open("/" + name.lstrip("./"), "rb").close()
    return segment(field, name, offset, size)
bitmaps.segment = looking
"""
UNSEEN_BY_PYTHON = """
import ctypes, os
from edge_agent import bitmaps
opened = bitmaps._open
def natively(field, name, access):
    ctypes.CDLL(None).open(os.fsencode(f"/dev/shm/../shm/{name}"), os.O_RDONLY)
    return opened(field, name, access)
bitmaps._open = natively
"""
# What is broken -> code that breaks it, the tracers that see it, and what is noticed.
CONTROLS = {
    "names are not checked": (UNCHECKED, {"audit hook", "strace"}, "opened outside the pattern: .*outside"),
    "the agent itself looks": (LOOKS_FIRST, {"audit hook"}, "the agent itself opened .*outside"),
    "unseen by Python": (UNSEEN_BY_PYTHON, {"strace"}, "opened outside the pattern: .*/../shm/"),
}


@pytest.mark.parametrize("broken", CONTROLS)
def test_what_is_opened_is_noticed(models, folder, there, outside, broken):
    code, tracers, noticed = CONTROLS[broken]
    by_strace = "strace" in tracers and strace_works()
    if tracers == {"strace"} and not by_strace:
        pytest.skip("strace is not here, or may not trace")
    with closing(Traced(models, folder, code, by_strace=by_strace)) as traced:
        client, opened = fuzz(traced, there, outside, Random(0), 200)
        for by in tracers & set(opened):
            with pytest.raises(AssertionError, match=noticed):
                client.check_opened(opened[by])
        # So is a tracer that sees nothing.
        with pytest.raises(AssertionError, match="not seen to be opened"):
            client.check_opened([])
