"""Findings about room: for frames in /dev/shm, and in the limits of the agent's process."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_agent.config import Settings
from edge_agent.doctor.installed import Models
from edge_agent.doctor.report import Finding
from edge_agent.doctor.users import named
from edge_agent.probe.limits import Limit
from edge_agent.server import CONTROL_THREADS

SECTION = "room"
# Files that were seen open: 14 by an agent at rest; 8 more for a running model of one slot, 3 for each further slot.
# A connection is one more.
OWN_FILES = 14
MODEL_FILES = 5
SLOT_FILES = 3
UNLIMITED = Limit(None, None)


def shared_memory(found: Models, settings: Settings, folder: Path) -> tuple[list[Finding], dict[str, Any]]:
    """Say whether /dev/shm has room for the frames of the packages: an image, and a mask, for each call in hand."""
    frames = _frames(found, settings)
    needed = sum(frames.values())
    data: dict[str, Any] = {"path": str(folder), "total": None, "free": None, "needed": needed, "frames": frames}
    inline = "Images and masks go inline meanwhile."
    try:
        there = os.statvfs(folder)
    except OSError as error:
        text = f"{folder} cannot be used: {error.strerror}"
        return [Finding(SECTION, "shm", "warn", text, f"Mount a tmpfs there. {inline}")], data
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        text = f"{named(os.geteuid())} may not make segments in {folder}"
        return [Finding(SECTION, "shm", "warn", text, f"chmod 1777 {folder}. {inline}")], data
    if not there.f_blocks:  # a file system without a limit of its own
        return [Finding(SECTION, "shm", "ok", f"{folder} has no limit of its own")], data
    data["total"], data["free"] = there.f_blocks * there.f_frsize, there.f_bavail * there.f_frsize
    text = f"{folder} has {_mib(data['free'])} of {_mib(data['total'])} MiB free"
    if not frames:
        return [Finding(SECTION, "shm", "ok", text)], data
    text += (
        f"; a frame and its mask for each call in hand take {_mib(needed)} MiB (largest: {_mib(max(frames.values()))})"
    )
    if data["free"] < needed:
        cure = f"Make it larger: mount -o remount,size=... {folder}; in a container --shm-size. {inline}"
        return [Finding(SECTION, "shm", "warn", text, cure)], data
    return [Finding(SECTION, "shm", "ok", text)], data


def _frames(found: Models, settings: Settings) -> dict[str, int]:
    """Return the bytes of a model's image and mask, times the calls that it judges at once."""
    frames = {}
    for one in found.models:
        if one.will_run and one.found and one.found.package:
            manifest = one.found.package.manifest
            width, height = manifest.image_size
            images = 2 if manifest.stage.segmentation else 1
            frames[one.name] = images * 3 * width * height * int(settings.of_model(one.name, "slots"))
    return frames


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f}" if size < 100 << 20 else str(size >> 20)


def limits(found: Mapping[str, Limit], settings: Settings, models: Models) -> tuple[list[Finding], dict[str, Any]]:
    """Say whether the limits of the agent's process, or of ours where none serves, let it do its work."""
    data = {name: {"soft": one.soft, "hard": one.hard} for name, one in found.items()}
    if not found:
        return [Finding(SECTION, "limits", "none", "the limits of the process cannot be told")], data
    findings = []
    slots = [int(settings.of_model(one.name, "slots")) for one in models.models]
    files = OWN_FILES + sum(MODEL_FILES + SLOT_FILES * one for one in slots) + settings.max_calls
    threads = settings.max_calls + CONTROL_THREADS
    # The agent raises the soft limit of its files to the hard one.
    for what, limit, needed in (
        ("open files", found.get("open files", UNLIMITED).hard, files),
        ("processes", found.get("processes", UNLIMITED).soft, threads),
    ):
        if limit is not None and limit < needed:
            text = f"at most {limit} {what} are allowed; with max_calls {settings.max_calls} and {len(slots)} models {needed} may be needed"
            cure = f"Raise it (ulimit -{'n' if what == 'open files' else 'u'}; in a systemd unit LimitNOFILE= or LimitNPROC=), or lower max_calls."
            findings.append(Finding(SECTION, "limits", "warn", text, cure))
    space = found.get("address space", UNLIMITED).soft
    if space is not None:
        cure = "Lift it (ulimit -v unlimited); memory_limit limits a model's memory."
        text = f"the address space is limited to {_mib(space)} MiB, of which each slot of a model reserves 96"
        findings.append(Finding(SECTION, "limits", "warn", text, cure))
    if not findings:
        told = found.get("open files", UNLIMITED).hard
        findings.append(
            Finding(
                SECTION, "limits", "ok", f"{'any number of' if told is None else told} open files; {files} are enough"
            )
        )
    return findings, data
