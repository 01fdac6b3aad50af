"""The servers to compare with: which there are, and how one is served and called."""

import contextlib
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import environments
import processes
from processes import Client, Tree
from work import Task

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parents[1] / "agent"


@dataclass(frozen=True)
class Peer:
    """A server to compare with: its program in peers/, its distribution, where it says it is ready, what it lacks."""

    name: str
    program: str
    distribution: str
    ready: str
    lacks: str
    variant: str = ""
    workers: int = 1

    @property
    def label(self) -> str:
        """What is measured: name, version and variant."""
        return f"{self.name} {environments.pins(self.program)[self.distribution]}{self.variant}"


PEERS = (
    Peer(
        name="PyTriton",
        program="pytriton",
        distribution="nvidia-pytriton",
        ready="/v2/models/judge/ready",
        lacks="no Unix socket; shared memory only through Triton's own client, and refused until `restricted_endpoints` "
        "is emptied",
    ),
    Peer(
        name="LitServe",
        program="litserve",
        distribution="litserve",
        ready="/health",
        lacks="no shared memory; a Unix socket only by an option of uvicorn that its documentation does not name; no "
        "client library",
    ),
    Peer(
        name="MLServer",
        program="mlserver",
        distribution="mlserver",
        ready="/v2/models/judge/ready",
        lacks="no shared memory; no Unix socket; a tensor becomes a Python list of its numbers",
    ),
    Peer(
        name="MLServer",
        program="mlserver",
        distribution="mlserver",
        ready="/v2/models/judge/ready",
        lacks="as above; a crash of the model is one of the server",
        variant=" without a worker process",
        workers=0,
    ),
    Peer(
        name="BentoML",
        program="bentoml",
        distribution="bentoml",
        ready="/readyz",
        lacks="no shared memory; no Unix socket; each frame is written to a file by the server, and by its own client "
        "read from one",
    ),
)


def environment(task: Task) -> dict[str, str]:
    """Return the environment of a server and its client: their task, our source, and no settings of ours or theirs."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("EDGE_AGENT_", "MLSERVER_"))}
    path = os.pathsep.join(str(one) for one in (SOURCE, HERE))
    return {**kept, "PYTHONPATH": path, **task.as_variable()}


def free_ports() -> tuple[int, int, int]:
    """Return three ports of 127.0.0.1 that nobody uses."""
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(3)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        first, second, third = (one.getsockname()[1] for one in sockets)
    return first, second, third


def answers(url: str) -> bool:
    """Return whether a URL can be had."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextlib.contextmanager
def serve(peer: Peer, python: Path, task: Task) -> Iterator[tuple[Tree, Client, float]]:
    """Serve a peer; yield its processes, its client and the seconds until it was ready, or raise NotRun."""
    program, variables, folder = str(HERE / f"with_{peer.program}.py"), environment(task), Path(task.folder)
    log = folder / "server.log"
    with processes.server([str(python), program, "serve"], variables, log) as process:
        seconds = processes.wait(process, lambda: answers(f"http://127.0.0.1:{task.ports[0]}{peer.ready}"), log)
        client = Client([str(python), program, "call"], variables, folder / "client.log")
        with contextlib.closing(client):
            yield Tree(process.pid), client, seconds
