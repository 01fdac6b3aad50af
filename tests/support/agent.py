"""A real agent in a process of its own, on a socket of its own, as an unprivileged user where we are root."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import grpc
import yaml

from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent._proto.edge_agent_pb2_grpc import EdgeAgentStub
from support.users import MYSELF, User, agent_user, code_path
from support.waiting import PATIENCE, until

PLENTY = 120.0


def place(owner: User | None = None) -> Path:
    """Return a new folder with a short path that everybody may enter and `owner` (default: the agent's user) may write."""
    owner = owner or agent_user()
    folder = Path(tempfile.mkdtemp(prefix="ea-", dir="/tmp"))
    folder.chmod(0o755)
    os.chown(folder, owner.uid, owner.gid)
    return folder


def environment(**extra: str) -> dict[str, str]:
    """Return an environment without settings of the agent in it."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("EDGE_AGENT_")}
    for name in ("STATE_DIRECTORY", "XDG_STATE_HOME", "GRPC_ENABLE_FORK_SUPPORT"):
        clean.pop(name, None)
    if code_path():
        clean["PYTHONPATH"] = code_path()
    return {**clean, "HOME": "/nonexistent", **extra}


class Agent:
    """One agent process, to be closed. Settings are those of the settings file."""

    unclosed: ClassVar[set[Path]] = set()

    def __init__(self, *models: Path, folder: Path | None = None, user: User | None = None, **settings: Any) -> None:
        self.user = user or agent_user()
        self.folder = folder or place(self.user)
        self._own_folder = folder is None
        if self._own_folder:
            self.unclosed.add(self.folder)
        self.socket = self.folder / "agent.sock"
        self.settings = {
            "socket": str(self.socket),
            "socket_group": "",
            "state_dir": str(self.folder / "state"),
            "models": [str(one) for one in models],
            "allow_root": self.user == MYSELF and os.geteuid() == 0,
            "scan_interval": 0.1,
            "log_level": "debug",
            **settings,
        }
        self.socket = Path(self.settings["socket"].removeprefix("unix://"))
        self.process: subprocess.Popen | None = None
        self.cwd = Path("/")
        self.prefix: list[str] = []
        self._channels: list[grpc.Channel] = []

    def spawn(self, **env: str) -> "Agent":
        """Start the process and do not wait."""
        config = self.folder / f"config-{os.urandom(4).hex()}.yaml"
        config.write_text(yaml.safe_dump(self.settings))
        config.chmod(0o644)
        self.log_path = self.folder / "agent.log"
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, sys.executable, "-m", "edge_agent", "serve", "--config", str(config)],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=self.cwd,
                env=environment(**env),
                **(self.user.popen() if self.user != MYSELF else {}),
            )
        return self

    def start(self, **env: str) -> "Agent":
        """Start the process and wait until it serves."""
        self.spawn(**env)
        until(lambda: self._serves() or self.process.poll() is not None, "the agent serves")
        assert self.process.poll() is None, self.log()
        return self

    def _serves(self) -> bool:
        if not self.socket.exists():
            return False
        try:
            self.stub().ListModels(pb2.ListModelsRequest(), timeout=5)
        except grpc.RpcError:
            return False
        return True

    @property
    def pid(self) -> int:
        return self.process.pid

    def stub(self, *options: tuple[str, Any]) -> EdgeAgentStub:
        """Return a stub on a new channel."""
        options = (
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_reconnect_backoff_ms", 200),
            ("grpc.initial_reconnect_backoff_ms", 50),
            *options,
        )
        channel = grpc.insecure_channel(f"unix://{self.socket}", options=options)
        self._channels.append(channel)
        return EdgeAgentStub(channel)

    def describe(self, name: str) -> pb2.ModelDescription:
        if not hasattr(self, "_stub"):
            self._stub = self.stub()
        return self._stub.DescribeModel(
            pb2.DescribeModelRequest(model_component=name), timeout=PLENTY
        ).model_description

    def state(self, name: str) -> str:
        return pb2.ModelStatus.Name(self.describe(name).status)

    def run_model(self, name: str) -> None:
        """Start a model and wait until it is RUNNING."""
        self.stub().StartModel(pb2.StartModelRequest(model_component=name), timeout=PLENTY)
        until(lambda: self.state(name) != "STARTING", f"{name} has started")
        assert self.state(name) == "RUNNING", self.describe(name).status_message

    def status(self) -> dict[str, Any]:
        """Return the newest that the agent has written of itself; at most a second behind, and final once it has ended."""
        path = next((self.folder / "state").glob("*.status.json"))
        return json.loads(path.read_bytes())

    def counted(self, model: str, event: str) -> int:
        """Return how often something happened to a model's worker: started, died, hung, swapped."""
        return self.status()["workers"].get(model, {}).get(event, 0)

    def calls(self, model: str | None = None, code: str | None = None, rpc: str = "DetectAnomalies") -> int:
        """Return how many calls the agent has answered."""
        return sum(
            one["count"]
            for one in self.status()["calls"]
            if one["rpc"] == rpc and model in (None, one["model"]) and code in (None, one["code"])
        )

    def log(self) -> str:
        return self.log_path.read_text()

    def children(self) -> list[int]:
        """Return the pids of all processes below the agent."""
        return descendants(self.pid)

    def workers(self) -> list[int]:
        """Return the pids of the worker processes: the children of the forkserver."""
        return [pid for pid in self.children() if parent(pid) != self.pid]

    def forkserver(self) -> int:
        return next(
            pid
            for pid in self.children()
            if parent(pid) == self.pid and b"forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes()
        )

    def inbox_holds(self, image: bytes) -> bool:
        """Return whether an inline image has reached the memory that the agent shares with a worker."""
        for entry in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if str(entry.readlink()).startswith("/memfd:edge-agent-inbox"):
                    with entry.open("rb") as inbox:
                        if inbox.read(len(image)) == image:
                            return True
        return False

    def stop(self, number: int = signal.SIGTERM, patience: float = PATIENCE) -> int:
        """Signal the agent; return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(patience)

    def close(self) -> None:
        for channel in self._channels:
            channel.close()
        if self.process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.stop()
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.unclosed.discard(self.folder)


@contextlib.contextmanager
def serving(*models: Path, **settings: Any) -> Iterator[Agent]:
    """Yield an agent that serves, and end it afterwards."""
    agent = Agent(*models, **settings)
    try:
        yield agent.start()
    finally:
        agent.close()


def alive(pid: int) -> bool:
    """Return whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def descendants(pid: int) -> list[int]:
    """Return the pids of all living processes below `pid`."""
    parents = {int(entry.name): parent(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    found: list[int] = []
    wave = [pid]
    while wave:
        wave = [child for child, its_parent in parents.items() if its_parent in wave and alive(child)]
        found += wave
    return found
