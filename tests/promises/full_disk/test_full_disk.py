"""D1: a full, read-only or unwritable disk costs no verdict, and a start that it prevents is told in one sentence.

1. The agent's state folder and its log file are on a small disk of their own, in a mount namespace: no real one is filled.
2. Where the state folder cannot be made or used, for want of room, of rights or of a disk that can be written, the agent
   ends with an exit code and one line, which names --state-dir and says what to do.
3. An agent with two models serves. Then its disk has no byte left, or no room for another file, or cannot be written any
   more, or its folders may not be. Images are judged as before; a worker that dies is replaced, and models are stopped
   and started, with a warning that this will not be remembered. Of the log file there is one warning, which counts the
   lost lines. The state files that are there can be read.
4. When there is room again, the log file goes on. The agent ends as it always does, and tells there what it has counted.
5. An agent that finds its disk full at its start serves, as far as its small files have room.
"""

import errno
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from edge_agent._proto import edge_agent_pb2 as pb2
from support import packages
from support.agent import PLENTY, Agent
from support.broken import LIGHT, LIGHT_SCORE, SIZE
from support.calls import OK, outcome, request
from support.promises import Promise, Promises
from support.sabotage import sabotaged
from support.users import I_AM_ROOT, MYSELF, OTHER, agent_user
from support.waiting import until

PROMISE = Promise(
    id="D1",
    text="full disk, read-only disk, unwritable state folder: verdicts go on, one counted warning of the log file, and a "
    "start that cannot be is told in one sentence",
    case="an agent that ended: with an exit code and a sentence, or after it had counted its verdicts",
    full=20,
    fast=6,
)
BOARD, PART = "board", "part"
KIB = 256
FILES = 64
CALLS = 8
MODELS = 2
REFUSED = 2
# The group of a line: everything behind time and level.
NOT_WRITTEN = re.compile(r"WARNING (\S+) cannot be written \(([^)]+)\); (\d+) lines were lost so far\.")
NOT_REMEMBERED = "The list of running models cannot be written, so a restart will not restore it: "
# Mounts the disk, prepares it, and runs a command as a user.
CONFINE = """
cd "$0"
mount -t tmpfs -o "size=$1k,nr_inodes=$2,mode=755,uid=$3,gid=$4" tmpfs "$0"
cd "$0"
eval "$5"
cd /
exec setpriv --reuid "$3" --regid "$4" --clear-groups -- env "${@:6}"
"""
STATE = "mkdir -m 700 state; chown {uid} state; "


def confined(disk: Path, uid: int, gid: int, files: int, prepare: str) -> list[str]:
    """Return what comes before a command that is to have a small disk of its own."""
    return [
        *("unshare", "--mount", "--propagation", "private", "bash", "-e", "-c", CONFINE, str(disk)),
        *(str(KIB), str(files), str(uid), str(gid), prepare),
    ]


def can_confine() -> bool:
    command = [*confined(Path("/mnt"), os.geteuid(), os.getegid(), FILES, ":"), "true"]
    try:
        return I_AM_ROOT and subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


pytestmark = pytest.mark.skipif(
    not can_confine(), reason="a disk of its own needs root, who may mount, and unshare and setpriv of util-linux"
)


@pytest.fixture(autouse=True)
def _unprivileged() -> None:
    if agent_user() == MYSELF:
        pytest.skip("the agent runs as root, which may write everything")


class Confined(Agent):
    """An agent whose state folder and log file are on a small disk of its own."""

    def __init__(self, *models: Path, prepare: str = STATE, files: int = FILES, **settings: Any) -> None:
        super().__init__(*models, restore=False, **settings)
        self.place = self.folder / "disk"
        self.place.mkdir(mode=0o755)
        self.settings |= {"state_dir": str(self.place / "state"), "log_file": str(self.place / "agent.log")}
        self.uid = self.user.uid
        prepare = prepare.replace("{uid}", str(self.uid))
        self.prefix = confined(self.place, self.uid, self.user.gid, files, prepare)
        self.user = MYSELF  # who mounts, and then becomes the other
        self._disk: int | None = None

    def keep(self) -> None:
        """Keep the disk when the agent has ended, and its mount namespace with it."""
        self._disk = os.open(f"/proc/{self.pid}/root{self.place}", os.O_PATH | os.O_DIRECTORY)

    @property
    def disk(self) -> Path:
        return Path(f"/proc/self/fd/{self._disk}")

    def status(self) -> dict[str, Any]:
        data = next((self.disk / "state").glob("*.status.json")).read_bytes()
        try:
            return json.loads(data)
        except ValueError:
            raise AssertionError(f"the status file cannot be read: {data[-80:]!r}") from None

    def close(self) -> None:
        super().close()
        if self._disk is not None:
            os.close(self._disk)

    def mount(self, *command: str) -> None:
        """Run a command of root's in the agent's mount namespace."""
        subprocess.run(["nsenter", f"--mount=/proc/{self.pid}/ns/mnt", *command], check=True)


@dataclass(frozen=True)
class Start:
    """A disk that an agent cannot start with: how it is prepared, its number of files, and what is told of it."""

    prepare: str
    told: str
    files: int = FILES


NO_ROOM = "No space left on device. Make room, or name another folder."
NOT_MADE = "cannot be made: {}. Name a folder the agent may write."
NOT_WRITABLE = "is not writable. Name a folder the agent may write."
# A disk's own folder takes one.
STARTS = {
    "no file, no folder": Start(":", f"cannot be made: {NO_ROOM}", files=1),
    "no file for the lock": Start(STATE, f": HASH.lock in it cannot be used: {NO_ROOM}", files=2),
    "no file for the scratch folder": Start(STATE, f": HASH.run in it cannot be used: {NO_ROOM}", files=3),
    "no file within it": Start(STATE, f": HASH.run in it cannot be used: {NO_ROOM}", files=4),
    "no file for the socket within it": Start(STATE, f": HASH.run in it cannot be used: {NO_ROOM}", files=5),
    "read-only, no folder": Start("mount -o remount,ro .", NOT_MADE.format("Read-only file system")),
    "read-only": Start(STATE + "mount -o remount,ro .", NOT_WRITABLE),
    "may not be made": Start("chmod 555 .", NOT_MADE.format("Permission denied")),
    "may not be written": Start(STATE + "chmod 555 state", NOT_WRITABLE),
    "may not be entered": Start(STATE + "chmod 600 state", NOT_WRITABLE),
    "another's": Start(f"{STATE}chmod 755 state; chown {OTHER.uid} state", NOT_WRITABLE),
    "a file": Start("touch state", NOT_MADE.format("File exists")),
}


def refused(agents: dict[str, Confined]) -> None:
    """Fail unless agents that are being started end with their sentences."""
    for what, agent in agents.items():
        code = agent.process.wait(PLENTY)
        assert code == REFUSED, f"{what}: exit code {code}: {agent.log()}"
        told = re.sub(r"[0-9a-f]{16}\.", "HASH.", agent.log())
        between = "" if STARTS[what].told.startswith(":") else " "
        assert told == f"Error: --state-dir {agent.place}/state{between}{STARTS[what].told}\n", what


def no_bytes(agent: Confined) -> Callable[[], None]:
    """Fill the disk; return what makes room again."""
    filler = agent.disk / "filler"
    with filler.open("wb", buffering=0) as file:
        until_full(lambda: file.write(bytes(4096)))
    return filler.unlink


def no_files(agent: Confined) -> Callable[[], None]:
    names = (agent.disk / f"filler-{number}" for number in count())
    made: list[Path] = []
    until_full(lambda: made.append(next(names)) or made[-1].touch())
    while (older := agent.disk / "agent.log.1").exists():  # in whose place the log file would find room
        older.unlink()
        until_full(lambda: made.append(next(names)) or made[-1].touch())
    return lambda: [path.unlink(missing_ok=True) for path in made]


def until_full(write: Callable[[], object]) -> None:
    try:
        while True:
            write()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def read_only(agent: Confined) -> Callable[[], None]:
    """Let nothing more be opened for writing; what is open stays so, as no disk can be made read-only else."""
    agent.mount("mount", "--bind", str(agent.place), str(agent.place))
    agent.mount("mount", "-o", "remount,bind,ro", str(agent.place))
    return lambda: agent.mount("umount", str(agent.place))


def not_permitted(agent: Confined) -> Callable[[], None]:
    folders = [agent.disk / "state", agent.disk]
    for one in folders:
        one.chmod(0o555)
    return lambda: [one.chmod(0o755 if one == agent.disk else 0o700) for one in folders]


@dataclass(frozen=True)
class Trouble:
    """What becomes of a disk, and how that is told."""

    make: Callable[[Confined], Callable[[], None]]
    told: str
    settings: dict[str, Any] = field(default_factory=dict)


# A log file that is open takes lines as long as there are bytes, but at its size it has to become another file.
ROTATED = {"log_file_size": 4096}
TROUBLES = {
    "no bytes": Trouble(no_bytes, "No space left on device"),
    "no files": Trouble(no_files, "No space left on device", settings=ROTATED),
    "read-only": Trouble(read_only, "Read-only file system", settings=ROTATED),
    "not permitted": Trouble(not_permitted, "Permission denied", settings=ROTATED),
}


class Bench:
    """An agent with two models that run, one of which is stopped and started meanwhile."""

    def __init__(self, agent: Confined) -> None:
        self.agent = agent
        self.answered = 0
        self.stub = agent.stub()
        agent.run_model(BOARD)
        (self.worker,) = agent.workers()
        agent.run_model(PART)

    def judge(self, name: str) -> None:
        code, details, response = outcome(self.stub.DetectAnomalies, request(name, *SIZE, LIGHT))
        assert code == OK, f"a call fails: {details}"
        assert response.detect_anomaly_result.anomaly_score == pytest.approx(LIGHT_SCORE, abs=1e-3)
        self.answered += 1

    def goes_on(self) -> None:
        """Judge, replace a worker, stop and start a model, and judge again; fail where anything is not as it always is."""
        for _ in range(CALLS):
            self.judge(BOARD)
            self.judge(PART)
        os.kill(self.worker, signal.SIGKILL)
        until(
            lambda: len(left := self.agent.workers()) == MODELS and self.worker not in left, "there is another worker"
        )
        self.judge(BOARD)
        self.stub.StopModel(pb2.StopModelRequest(model_component=PART), timeout=PLENTY)
        self.agent.run_model(PART)
        self.judge(PART)

    def telling(self) -> list[tuple[str, str, int]]:
        """Return the warnings that the log file cannot be written: of which file, why, and how many lines were lost."""
        return [(path, why, int(lost)) for path, why, lost in NOT_WRITTEN.findall(self.agent.log())]

    def is_told_once(self, why: str) -> None:
        until(lambda: self.judge(BOARD) or self.telling(), "the log file is told of")
        for _ in range(CALLS):  # the line of which it is told may be the first that was lost
            self.judge(BOARD)
        once = [(self.agent.settings["log_file"], why, 1)]
        assert self.telling() == once, f"the log file is told of {len(self.telling())} times"

    def ends(self) -> int:
        """End the agent; return how many agents that is, which have told what they counted."""
        assert self.agent.stop() == 0
        assert "Traceback" not in self.agent.log()
        status = self.agent.status()
        assert [one["model"] for one in status["models"]] == [BOARD, PART]
        assert self.agent.calls() == self.answered
        return int(self.agent.calls(code="OK") == self.answered)


@contextmanager
def bench(models: Path, env: dict[str, str] | None = None, **settings: Any) -> Iterator[Bench]:
    with closing(Confined(models, **settings)) as agent:
        agent.start(**(env or {}))
        agent.keep()
        yield Bench(agent)


def meanwhile(at: Bench, trouble: Trouble) -> None:
    """Let there be trouble for a while."""
    before = at.agent.status()["agent"]
    make_good = trouble.make(at.agent)
    at.goes_on()
    tried = f"WARNING The status file cannot be written: {trouble.told}"
    until(lambda: at.agent.status()["agent"] == before and tried in at.agent.log(), "a status was to be written")
    assert f"WARNING {NOT_REMEMBERED}{trouble.told}" in at.agent.log()
    at.is_told_once(trouble.told)
    make_good()
    log = at.agent.disk / "agent.log"
    at.judge(BOARD)
    until(lambda: at.judge(BOARD) or at.agent.log().splitlines()[-3] in log.read_text(), "the log file goes on")
    until(lambda: "INFO The status file is written again." in at.agent.log(), "a status is written again")
    assert len(at.telling()) == 1


def in_trouble(models: Path, trouble: Trouble) -> int:
    """Let an agent have trouble; return how many agents have counted their verdicts."""
    with bench(models, **trouble.settings) as at:
        meanwhile(at, trouble)
        return at.ends()


def full_at_its_start(models: Path) -> int:
    """Let an agent serve whose disk has been full before; return how many agents have counted their verdicts."""
    with bench(models, prepare=f"{STATE}head -c {2 * KIB}k /dev/zero > filler || true") as at:
        at.goes_on()
        assert f"WARNING {NOT_REMEMBERED}No space left on device" in at.agent.log()
        at.is_told_once("No space left on device")
        assert not list((at.agent.disk / "state").glob("*.json"))
        (at.agent.disk / "filler").unlink()
        until(lambda: list((at.agent.disk / "state").glob("*.status.json")), "there is a status file")
        return at.ends()


@pytest.fixture(scope="module")
def models(module_folder) -> Path:
    for name in (BOARD, PART):
        packages.classifier(module_folder / "models" / name, SIZE)
    return module_folder / "models"


def starts(which: list[str], **env: str) -> int:
    """Start agents that cannot be; return how many have ended as they must."""
    with ExitStack() as closed:
        agents = {}
        for what in which:
            agents[what] = Confined(prepare=STARTS[what].prepare, files=STARTS[what].files)
            closed.callback(agents[what].close)
            agents[what].spawn(**env)
        refused(agents)
        return sum(agent.process.returncode == REFUSED for agent in agents.values())


def test_the_disk_costs_no_verdict(promises: Promises, models):
    with promises.run(PROMISE) as run:
        runs = [partial(in_trouble, models, trouble) for trouble in TROUBLES.values()]
        runs.append(partial(full_at_its_start, models))
        for one in run.random.sample(runs, 1) if not run.full else [*runs, *runs[:-1]][: run.declared - len(STARTS)]:
            run.count(one())
        run.count(starts(run.random.sample(list(STARTS), run.declared - run.ran)))


TELLS_EACH_TIME = "from edge_agent import log; log.QUIET = 0"
WRITES_HALF = """
import json
from edge_agent import status
def write(self):
    data = json.dumps(self._look()).encode()
    with open(self._path, "wb") as file:
        file.write(data if len(data) < {most} else data[:{most}])
status.StatusFile._write = write
"""


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (TELLS_EACH_TIME, r"the log file is told of \d+ times"),
        (WRITES_HALF.format(most=1000), "the status file cannot be read"),
    ],
    ids=["each line that is lost", "half a file"],
)
def test_what_a_full_disk_must_not_do_is_noticed(models, folder, damage, told):
    with bench(models, sabotaged(folder, damage)) as at, pytest.raises(AssertionError, match=told):
        meanwhile(at, TROUBLES["no bytes"])


def test_notices_a_start_that_ends_otherwise(folder):
    env = sabotaged(
        folder, "from edge_agent import state; state.StateFolder.scratch = lambda self: self._emptied('run')"
    )
    with pytest.raises(AssertionError, match="no file within it: exit code 1"):
        starts(["no file within it"], **env)
