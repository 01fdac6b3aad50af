"""Who answers on the agent's socket: nobody, something that hangs, or an agent, and what that says of its models."""

import errno
import os
import socket
import stat
import struct
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

State = Literal["absent", "unreachable", "no socket", "dead", "forbidden", "hung", "strange", "serving"]

# pid, uid and gid of SO_PEERCRED (unix(7)).
PEER = struct.Struct("3i")
PAUSE = 0.05


@dataclass(frozen=True)
class Told:
    """What an agent says of a model: its status by name, and its message."""

    status: str
    message: str


@dataclass(frozen=True)
class Answering:
    """What is on a socket path: its owner, group and mode, who listens (None: not known), and what it says of its models."""

    path: Path
    state: State
    detail: str = ""
    uid: int | None = None
    gid: int | None = None
    mode: int | None = None
    server_pid: int | None = None
    server_uid: int | None = None
    models: dict[str, Told] = field(default_factory=dict)


def look(path: Path, patience: float) -> Answering:
    """Return what is on the path, within `patience` seconds. Nothing is changed, and no model is called."""
    give_up = time.monotonic() + patience
    try:
        info = path.lstat()
    except FileNotFoundError:
        return Answering(path, "absent")
    except OSError as error:
        return Answering(path, "unreachable", str(error.strerror))
    there = Answering(path, "no socket", uid=info.st_uid, gid=info.st_gid, mode=stat.S_IMODE(info.st_mode))
    if not stat.S_ISSOCK(info.st_mode):
        return there
    state, detail, pid, uid = _connect(path, give_up)
    models: dict[str, Told] = {}
    if state == "serving":
        state, detail, models = _ask(path, give_up)
    return replace(there, state=state, detail=detail, server_pid=pid, server_uid=uid, models=models)


def _connect(path: Path, give_up: float) -> tuple[State, str, int | None, int | None]:
    """Return whether somebody listens, and who: its pid (None where it is in another pid namespace) and uid."""
    while True:
        try:
            pid, uid = _peer(path, give_up)
        except OSError as error:
            if error.errno == errno.ECONNREFUSED:
                return "dead", "", None, None
            if error.errno in {errno.EACCES, errno.EPERM}:
                return "forbidden", str(error.strerror), None, None
            if error.errno != errno.EAGAIN and not isinstance(error, TimeoutError):
                return "unreachable", str(error.strerror), None, None
            # Its backlog is full, which for a moment it may be.
            if time.monotonic() + PAUSE >= give_up:
                return "hung", "it takes no connection", None, None
            time.sleep(PAUSE)
        else:
            return "serving", "", pid or None, uid


def _peer(path: Path, give_up: float) -> tuple[int, int]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(max(0.001, give_up - time.monotonic()))
        probe.connect(os.fspath(path))
        pid, uid, _ = PEER.unpack(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size))
    return pid, uid


def _ask(path: Path, give_up: float) -> tuple[State, str, dict[str, Told]]:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    import grpc

    from edge_agent._proto import edge_agent_pb2 as pb2
    from edge_agent._proto.edge_agent_pb2_grpc import EdgeAgentStub

    with grpc.insecure_channel(f"unix://{path}") as channel:
        stub: Any = EdgeAgentStub(channel)
        try:
            answer = stub.ListModels(pb2.ListModelsRequest(), timeout=max(0.001, give_up - time.monotonic()))
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return "hung", "it did not answer in time", {}
            return "strange", f"{error.code().name}: {error.details()}", {}
    names = pb2.ModelStatus
    models = {
        one.model_component: Told(
            names.Name(one.status) if one.status in names.values() else str(one.status), one.status_message
        )
        for one in answer.models
    }
    return "serving", "", models
