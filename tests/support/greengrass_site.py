"""A site: a device with the agent, a model and a client, and what the orders do with them."""

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import grpc

from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent._proto.edge_agent_pb2_grpc import EdgeAgentStub
from support import greengrass_components as components
from support import waiting
from support.agent import Agent, descendants, parent
from support.calls import request
from support.greengrass import Device
from support.greengrass_components import AGENT, BOARDS, CALLER
from support.greengrass_deployments import PATIENCE, Deployment
from support.greengrass_java import JavaDevice
from support.greengrass_lite import LiteDevice
from support.greengrass_recipes import JAVA, LITE

DEVICES: dict[str, type[Device]] = {JAVA: JavaDevice, LITE: LiteDevice}
PIXELS = bytes(3 * 64 * 64)
VERDICTS = ("verdict ", "failed ")
STARTED = {JAVA: "RUNNING", LITE: "active"}
# What versions of components are called by in orders, as `agent-1.3.0`.
NAMES = {
    "agent": AGENT,
    "boards": BOARDS,
    "caller": CALLER,
    "cans": "com.example.Cans",
    "tins": "com.example.Tins",
}

T = TypeVar("T")


def until(look: Callable[[], T], what: str) -> T:
    """Wait as waiting.until does, with the patience that a machine needs on which many orders run at once."""
    return waiting.until(look, what, PATIENCE)


class Site:
    """A device with the agent, a model and a client that calls once, and what an order does with them."""

    def __init__(self, kind: str, outputs: Path) -> None:
        self.device = DEVICES[kind]()
        self.kind = kind
        self.outputs = outputs
        self.socket = self.device.base / "agent.sock"
        self.registry = self.device.root / "work" / AGENT / "models.d"
        self.python = components.python(self.device.base / "python")
        self.device.instead_of_install[AGENT] = components.install_agent
        self.device.boot()

    def deploy(self, *versions: str, remove: tuple[str, ...] = (), **merge: dict[str, str]) -> Deployment:
        """Deploy components, given as `agent-1.3.0`; without any, the first version of each.

        `merge` has configuration for `agent` and `boards`.
        """
        chosen = [one.rsplit("-", 1) for one in versions or ("agent-1.3.0", "boards-1.0.0", "caller-1.0.0")]
        calls = {"Socket": f"unix://{self.socket}", "Python": str(self.python)}
        more = {AGENT: components.settings(self.device), CALLER: calls, NAMES["tins"]: calls}
        for name, changes in merge.items():
            more[NAMES[name]] = {**more.get(NAMES[name], {}), **changes}
        return self.device.deploy(
            {NAMES[name]: version for name, version in chosen},
            *(self.outputs / f"{name}-{version}" for name, version in chosen),
            remove=remove,
            merge=more,
        )

    def lines(self, name: str = CALLER) -> list[str]:
        """Return what became of each run of a client."""
        return [one for one in self.device.log(name).splitlines() if one.startswith(VERDICTS)]

    def answered(self, *scores: str | set[str], name: str = CALLER) -> None:
        """Wait until a client has run as often as there are scores; it must have got each at its first try."""
        until(lambda: len(self.lines(name)) >= len(scores), f"{name} has called {len(scores)} times")
        seen = self.lines(name)
        allowed = [{one} if isinstance(one, str) else one for one in scores]
        assert len(seen) == len(allowed), seen
        for line, one in zip(seen, allowed, strict=True):
            assert line in {f"verdict {score}" for score in one}, seen

    def not_called(self) -> None:
        """Fail if the client has been started already."""
        assert self.device.starts[CALLER] == 0, "the client was started early"

    def call_again(self) -> None:
        self.device.restart(CALLER)

    def until_up(self, name: str = BOARDS) -> None:
        self.device.until_state(name, STARTED[self.kind])

    def until_served(self, count: int) -> None:
        """Wait until an agent has begun to serve so many times."""
        self.device.until_log(AGENT, " INFO Serving ", count)

    def waits(self) -> int:
        """Return how often the model's component has said that it waits for the agent."""
        said = ("Waiting for the folder ", "waiting for Edge Agent's answer")
        return sum(self.device.log(BOARDS).count(one) for one in said)

    def until_waits(self, count: int = 1) -> None:
        until(lambda: self.waits() >= count, f"{BOARDS} waits")

    def kill_start(self, number: int) -> None:
        """Kill the agent's start of a number as soon as it begins, and wait until the next one is up.

        The client is to be held until then: no order lets it be answered by an agent that is gone.
        """
        until(lambda: self.device.starts[AGENT] >= number, f"start {number} of the agent")
        self.device.kill(AGENT)
        until(lambda: self.device.starts[AGENT] > number, "another start of the agent")
        self.until_up(AGENT)
        self.device.release(CALLER)

    def late_agent(self) -> None:
        """Let the agent come late: after the model. On lite, where it is the first, it fails once, and hangs then."""
        if self.kind == JAVA:
            self.device.hold(AGENT)
        else:
            for name in (components.FAILS, components.HANGS):
                path = self.device.work(AGENT) / name
                path.touch()
                self.device.own(path)

    def agent_comes(self, waits: int = 1) -> None:
        """Let the agent that was late come, once the model has waited so often in all."""
        self.until_waits(waits)
        (self.device.work(AGENT) / components.HANGS).unlink(missing_ok=True)
        self.device.release(AGENT)

    def make_registry(self) -> Path:
        """Make the registry folder as an agent of an earlier time has left it."""
        self.device.work(AGENT)
        self.registry.mkdir(mode=0o770)
        self.registry.chmod(0o770)
        return self.device.own(self.registry)

    def put(self, name: str, data: bytes) -> None:
        """Write a file into the registry."""
        path = self.registry / name
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        path.chmod(0o644)
        self.device.own(path)

    @contextmanager
    def calling(self) -> Iterator[EdgeAgentStub]:
        """Yield a stub on a channel of its own."""
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 200)]
        with grpc.insecure_channel(f"unix://{self.socket}", options) as channel:
            yield EdgeAgentStub(channel)

    def score(self) -> str:
        """Return the score of the model, or why there is none."""
        with self.calling() as stub:
            try:
                response = stub.DetectAnomalies(request(BOARDS, 64, 64, PIXELS), timeout=PATIENCE)
            except grpc.RpcError as error:
                return error.details()
        return f"{response.detect_anomaly_result.anomaly_score:.2f}"

    def until_score(self, score: str) -> None:
        until(lambda: self.score() == score, f"the model answers {score}")

    def models(self) -> list[str]:
        """Return the names of the models that the agent knows."""
        with self.calling() as stub:
            response = stub.ListModels(pb2.ListModelsRequest(), timeout=PATIENCE)
        return [one.model_component for one in response.models]

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Call the model all the time; each call must be answered."""
        over, failures, calls = threading.Event(), [], Counter()

        def call() -> None:
            with self.calling() as stub:
                while not over.wait(0.02):
                    try:
                        stub.DetectAnomalies(request(BOARDS, 64, 64, PIXELS), timeout=PATIENCE)
                        calls["answered"] += 1
                    except grpc.RpcError as error:
                        failures.append(f"{error.code().name} {error.details()}")

        thread = threading.Thread(target=call, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(PATIENCE)
        assert not failures, failures
        assert calls["answered"] > 1, "the model was hardly called"

    @contextmanager
    def no_worker_starts(self) -> Iterator[None]:
        """Keep the next agent's forkserver stopped."""
        known = self.device.process(AGENT)
        stopped: list[int] = []

        def stop() -> None:
            process = until(
                lambda: self.device.process(AGENT) is not known and self.device.process(AGENT), "a new agent"
            )
            stopped.append(until(lambda: forkserver(process.pid), "its forkserver"))
            os.kill(stopped[0], signal.SIGSTOP)

        thread = threading.Thread(target=stop)
        thread.start()
        try:
            yield
        finally:
            thread.join(PATIENCE)
            os.kill(stopped[0], signal.SIGCONT)

    @contextmanager
    def a_call_in_hand(self) -> Iterator[None]:
        """Keep a call in the agent by a worker that is stopped."""
        process = self.device.process(AGENT)
        assert process is not None, "there is no agent"
        for worker in workers(process.pid):
            os.kill(worker, signal.SIGSTOP)
        image = os.urandom(len(PIXELS))
        with self.calling() as stub:
            call = stub.DetectAnomalies.future(request(BOARDS, 64, 64, image), timeout=PATIENCE)
            until(lambda: Agent.inbox_holds(process, image), "the image has reached the worker")
            yield
            assert call.exception(PATIENCE) is not None, "the call was not in hand"

    def close(self) -> None:
        self.device.close()


def forkserver(agent: int) -> int:
    """Return the process that an agent's workers come from, 0 where there is none yet."""
    for pid in descendants(agent):
        with suppress(OSError):
            if parent(pid) == agent and b"forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    return 0


def workers(agent: int) -> list[int]:
    """Return the processes that judge images: the children of the agent's children."""
    return [pid for pid in descendants(agent) if parent(pid) != agent]
