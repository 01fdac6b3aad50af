"""Q3: large inline images take memory while they are in hand, and little of it stays.

1. Sixteen clients, each a process of its own, send inline images of 4096x4096 pixels at the same time, again and again; each is
   judged, and rightly.
2. The most that the front process ever had in memory, by the system, is what it may have for itself and for sixteen messages.
3. Afterwards it has little more than before, without the setting that keeps the memory of large messages.
4. So it has while another client sends images of 1280x720 pixels without an end, soon after the large ones. These calls are no
   cases.
"""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent.trimming import STEADY
from support import packages
from support.agent import PLENTY, Agent, environment
from support.calls import request
from support.promises import FULL, Promise
from support.sabotage import sabotaged
from support.waiting import until

PROMISE = Promise(
    id="Q3",
    text="16 clients send inline images of 4096x4096 at once: the front process takes 90 MB and 64 MiB for each in hand at "
    "most, and afterwards 250 MB at most",
    case="a call that the agent has counted",
    full=160,
    fast=16,
)
CLIENTS = 16
SIDE, LEVEL = 4096, 153
# Of the largest images whose memory is not given back as they come; they leave twice as much as those of 4096x4096.
UNNOTICED = 3344
MIB = 1 << 20
ITSELF, EACH, AFTERWARDS = 90_000_000, 64 * MIB, 250_000_000
MOST = ITSELF + CLIENTS * EACH
SENDERS = Path(__file__).with_name("senders.py")
MODEL = "board"
# Far longer than the second or two that it takes.
PATIENCE = 30.0


def figure(pid: int, name: str) -> int:
    """Return a figure of a process's memory (proc(5), status) in bytes."""
    (line,) = re.findall(rf"^{name}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(line) * 1024


class Front:
    """An agent's own process, and the clients that send to it."""

    def __init__(self, agent: Agent, folder: Path, side: int = SIDE) -> None:
        self.agent = agent
        self._request = folder / "request"
        self._request.write_bytes(request(MODEL, side, side, bytes([LEVEL]) * (3 * side * side)).SerializeToString())
        agent.run_model(MODEL)

    def receive(self, calls: int) -> None:
        """Let each client make so many calls; fail unless every one is judged, and rightly."""
        command = [sys.executable, str(SENDERS), str(self.agent.socket), str(self._request), str(CLIENTS), str(calls)]
        done = subprocess.run(
            command, input="begin\n", stdout=subprocess.PIPE, text=True, check=True, env=environment(), timeout=400
        )
        answers = json.loads(done.stdout)
        assert sum(answers.values()) == CLIENTS * calls
        for answer in answers:
            code, _, rest = answer.partition(" ")
            assert code == "OK", answer
            result = pb2.DetectAnomaliesResponse.FromString(bytes.fromhex(rest)).detect_anomaly_result
            assert abs(result.anomaly_score - LEVEL / 255) < 1e-3

    def check_most(self) -> int:
        """Fail if the process has ever had more than it may; return the most."""
        most = figure(self.agent.pid, "VmHWM")
        assert most <= MOST, f"the front process had {most / 1e6:.0f} MB, of {MOST / 1e6:.0f} that it may have"
        return most

    def check_afterwards(self, patience: float = PATIENCE) -> int:
        """Fail unless little stays with the process; return how much."""

        def little() -> bool:
            return figure(self.agent.pid, "VmRSS") <= AFTERWARDS

        until(little, f"the front process has {AFTERWARDS / 1e6:.0f} MB at most", patience)
        return figure(self.agent.pid, "VmRSS")


class Stream:
    """A client that sends images of 1280x720 pixels from now on; to be closed."""

    # Seconds between two calls: it is never quiet, and the processors have time for others.
    PAUSE = 0.05

    def __init__(self, agent: Agent) -> None:
        self.judged = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._send, args=(agent.stub(),))
        self._thread.start()

    def _send(self, stub) -> None:
        image = request(MODEL, 1280, 720, bytes(3 * 1280 * 720))
        while not self._ended.wait(self.PAUSE):
            stub.DetectAnomalies(image, timeout=PLENTY)
            self.judged += 1

    def close(self) -> None:
        self._ended.set()
        self._thread.join()


@pytest.fixture
def models(folder) -> Path:
    packages.classifier(folder / "models" / MODEL)
    return folder / "models"


@contextmanager
def front(models: Path, side: int = SIDE, **env: str) -> Iterator[Front]:
    with closing(Agent(models, any_image_size=True)) as agent:
        yield Front(agent.start(**env), models.parent, side)


def test_large_messages(promises, models):
    with promises.run(PROMISE) as run, front(models) as made:
        before = figure(made.agent.pid, "VmRSS")
        made.receive(run.declared // CLIENTS)
        most, after = made.check_most(), made.check_afterwards()
        print(f"  front process: {before / 1e6:.0f} MB, at most {most / 1e6:.0f}, and then {after / 1e6:.0f}")
        assert made.agent.stop(patience=PLENTY) == 0
        run.count(made.agent.calls(MODEL, "OK"))


# While messages come, memory is given back so often, in seconds.
GIVES_BACK = """
from functools import partial
from edge_agent import trimming
trimming.Trimmer = partial(trimming.Trimmer, steady={steady})
"""


def test_a_steady_stream_keeps_nothing_from_being_given_back(pytestconfig, models):
    """The full tier waits as long as it takes; the fast one has it done sooner."""
    full = pytestconfig.getoption("--promises") == FULL
    env = {} if full else sabotaged(models.parent, GIVES_BACK.format(steady=0.25))
    with front(models, UNNOTICED, **env) as made:
        with closing(Stream(made.agent)) as stream:
            made.receive(1)
            made.check_afterwards(patience=2 * STEADY)
        assert made.agent.stop(patience=PLENTY) == 0
        assert made.agent.calls(MODEL, "OK") == CLIENTS + stream.judged


def test_a_trimmer_that_waits_until_it_is_quiet_is_noticed(models):
    with front(models, UNNOTICED, **sabotaged(models.parent, GIVES_BACK.format(steady=1e9))) as made:
        with closing(Stream(made.agent)) as stream:
            made.receive(1)
            with pytest.raises(AssertionError, match="the front process has 250 MB at most"):
                made.check_afterwards(patience=1.0)
        assert stream.judged > 0


# Every message stays, and so does a copy of it.
KEEPS = """
from edge_agent import wire
parse, kept = wire.parse, []
def keeping(data):
    kept.extend((data, bytearray(data)))
    return parse(data)
wire.parse = keeping
"""


def test_what_stays_is_noticed(models):
    with front(models, **sabotaged(models.parent, KEEPS)) as made:
        made.receive(1)
        with pytest.raises(AssertionError, match="the front process has 250 MB at most"):
            made.check_afterwards(patience=3.0)
        with pytest.raises(AssertionError, match=r"the front process had \d+ MB"):
            made.check_most()
