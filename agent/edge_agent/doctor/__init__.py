"""What a device has and lacks for serving models, and what to do about it. Looks, and never changes or starts anything."""

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edge_agent import bitmaps, gpus, probe
from edge_agent.config import Settings
from edge_agent.doctor import hardware, installed, places, room
from edge_agent.doctor.report import Finding, Report
from edge_agent.doctor.users import Users
from edge_agent.errors import AgentRefused
from edge_agent.probe import answering, limits
from edge_agent.state import StateFolder, default_folder

# Seconds for who answers on the socket, less than for the rest, which goes on beside it.
SOCKET_PATIENCE = 4.0
# For the runtimes where there may be a GPU: a cold CUDA, and an engine that TensorRT builds.
GPU_PATIENCE = 60.0
DISTRIBUTIONS = ("vision-edge-agent", "grpcio", "numpy", "nvidia-ml-py")


def examine(settings: Settings, warnings: Sequence[str] = ()) -> Report:
    """Look at everything, within some seconds, a minute where there may be a GPU; `warnings` are sentences about the settings."""
    look = probe.Look(runtimes=GPU_PATIENCE if gpus.driver_there() else probe.PATIENCE)
    answers = answering.look(settings.socket_path, SOCKET_PATIENCE)
    folder, refused = _state_folder(settings)
    users = Users(answers.server_uid, _owner(folder))
    device = look.finish()
    here = gpus.of_probe(device)
    agents = StateFolder(folder, settings.socket_path) if folder else None
    found = installed.look(settings, answers, agents, users.agent, here)
    shm, shm_data = room.shared_memory(found, settings, bitmaps.SEGMENTS)
    limits_found, limits_data = room.limits(limits.look(Path("/proc"), answers.server_pid), settings, found)
    findings = [
        *hardware.processor(device),
        *hardware.gpu(device),
        *hardware.runtime(device),
        hardware.accelerated(settings, here),
        *installed.judge(found, device.as_target()),
        *places.socket(answers, settings, users),
        places.state_folder(folder, refused, users),
        *places.root(answers, settings, users),
        *shm,
        *limits_found,
        *(Finding("settings", "settings", "warn", one, "Take it out, or correct it.") for one in warnings),
    ]
    data = {
        **hardware.data(device),
        "packages": [one.data() for one in found.models],
        "socket": places.socket_data(answers),
        "state_dir": str(folder) if folder else None,
        "shm": shm_data,
        "limits": limits_data,
        "versions": _versions(device.runtime.distributions),
        "user": {"uid": os.geteuid(), "agent_uid": users.agent},
    }
    return Report(tuple(findings), data)


def _state_folder(settings: Settings) -> tuple[Path | None, str]:
    try:
        return (settings.state_dir or default_folder()).absolute(), ""
    except AgentRefused as refusal:
        return None, str(refusal)


def _owner(folder: Path | None) -> int | None:
    try:
        return folder.stat().st_uid if folder else None
    except OSError:
        return None


def _versions(runtimes: Sequence[str]) -> Mapping[str, Any]:
    found = {"python": platform.python_version(), "linux": platform.release()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | dict(one.split(" ", 1) for one in runtimes)
