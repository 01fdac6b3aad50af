"""Fixtures of all tests, and the line that says what was skipped for want of the shared data."""

import contextlib
import gc
import os
import random
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

# Before any test imports the runtime, which else sends telemetry and leaves a file of its own in the temporary folder.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# Agents are started under another uid, for which subprocess forks: gRPC's handlers of forks then halt all of its threads
# while other threads are in the middle of calls. Nothing here uses gRPC in a forked process.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
# A shell that starts this in the background has it ignored, which every program that is started here would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import posix_ipc
import pytest

from edge_agent import segments
from support import shared, shm
from support.agent import Agent, place
from support.alone import turn
from support.promises import FAST, FULL, Promises
from support.users import I_AM_ROOT, agent_user

HERE = Path(__file__).resolve().parent
# The folders of tests that have a command of their own, and the mark by which it takes them.
MARKS = {
    "greengrass": "components",
    "recipes": "components",
    "gpu": "gpu",
    "accelerators": "accelerators",
    "prometheus": "prometheus",
}
# The folders whose files take longest, some of them for a test or two.
LONG = {"contract", "demo", "promises"}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let promise suites be run with their full counts, and their results be kept."""
    parser.addoption("--promises", choices=[FAST, FULL], default=FAST, help="how many cases promise suites run")
    parser.addoption("--promise-results", type=Path, help="file in which the results of promise suites are kept")
    parser.addoption("--seed", type=int, help="seed of promise suites, to run one again as it was")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that have a command of their own; let files that take long come first, or all wait for the last.

    A command of their own have those that take minutes, or need what is not everywhere.
    """
    for item in items:
        if mark := MARKS.get(item.path.relative_to(HERE).parts[0]):
            item.add_marker(mark)
    items.sort(key=lambda item: item.path.relative_to(HERE).parts[0] not in LONG)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Where pytest-xdist runs several tests at a time, let those marked `alone` run while no other does."""
    if not hasattr(item.config, "workerinput"):
        return (yield)
    with turn(alone=item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.fixture(scope="session")
def promises(pytestconfig: pytest.Config) -> Promises:
    """Runs promises in the tier that was asked for."""
    option = pytestconfig.getoption
    return Promises(option("--promises"), option("--promise-results"), option("--seed"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many tests did not run for want of the shared data, also when none did."""
    skipped = terminalreporter.stats.get("skipped", [])
    wanting = sum(shared.WHY in str(report.longrepr) for report in skipped)
    terminalreporter.write_line(f"shared data: {shared.FOLDER}; {wanting} tests skipped for want of it")
    if I_AM_ROOT:
        terminalreporter.write_line(f"run by root: agents ran as uid {agent_user().uid}")


@pytest.fixture(scope="session", autouse=True)
def _hangups_reach_what_is_started() -> None:
    """A shell's `nohup` has SIGHUP ignored, which programs inherit; a handler they do not. We ourselves go on all the same."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)


@pytest.fixture(scope="session", autouse=True)
def _every_agent_is_closed() -> Iterator[None]:
    """An agent that is not closed leaves its folder behind."""
    yield
    assert Agent.unclosed == set()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that everybody may enter and the agent's user owns."""
    made = place()
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def module_folder() -> Iterator[Path]:
    """The same for a whole module."""
    made = place()
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def port() -> int:
    """A port of 127.0.0.1 that nobody has, below those of ip(7) that the system gives to whoever asks for any."""
    while True:
        number = random.randrange(10_000, 30_000)
        with contextlib.suppress(OSError), socket.socket() as one:
            one.bind(("127.0.0.1", number))
            return number


@pytest.fixture
def segment() -> Iterator:
    """A function (size, content) -> name of a new shared memory segment that the agent may use; unlinked afterwards."""
    made = []

    def make(size: int, content: bytes = b"", mode: int = 0o660) -> str:
        name = f"/edge-agent-test-{os.urandom(6).hex()}"
        memory = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=mode, size=size)
        os.fchmod(memory.fd, mode)
        os.fchown(memory.fd, -1, agent_user().gid)
        if content:
            os.pwrite(memory.fd, content, 0)
        memory.close_fd()
        made.append(name)
        return name

    yield make
    for name in made:
        with contextlib.suppress(posix_ipc.ExistentialError):
            posix_ipc.unlink_shared_memory(name)


@pytest.fixture
def client_segments(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Clients name their segments so that those of others on this machine are not counted, nor ours swept; none is left."""
    monkeypatch.setattr(segments, "PREFIX", f"edge-agent-test-{os.urandom(6).hex()}-")
    yield
    gc.collect()
    assert shm.of_clients() == set()


@pytest.fixture(scope="session")
def shared_models() -> Iterator[Path]:
    """The shared models in a place that the agent's user can read."""
    made = place()
    for name in ("cookies-segmentation", "cookies-classification"):
        shutil.copytree(shared.FOLDER / "models" / name / "component", made / name / "component")
    for path in made.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    yield made
    shutil.rmtree(made, ignore_errors=True)
