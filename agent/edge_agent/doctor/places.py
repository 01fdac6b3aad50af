"""Findings about the places that an agent claims: its socket, and its state folder."""

import grp
import os
import stat
from pathlib import Path
from typing import Any

from edge_agent.config import Settings
from edge_agent.doctor.report import Finding, Mark
from edge_agent.doctor.users import Users, groups, may, named
from edge_agent.errors import printable
from edge_agent.probe.answering import Answering

SECTION = "places"
ANOTHER_SOCKET = "Remove it, or give the agent another --socket."
OTHER_FOLDER = "Name another folder with --state-dir, or mend this one."


def socket_data(answers: Answering) -> dict[str, Any]:
    """Return the socket as JSON has it."""
    return {
        "path": str(answers.path),
        "state": answers.state,
        "detail": answers.detail or None,
        "uid": answers.uid,
        "gid": answers.gid,
        "mode": None if answers.mode is None else f"{answers.mode:04o}",
        "server_pid": answers.server_pid,
        "server_uid": answers.server_uid,
    }


def socket(answers: Answering, settings: Settings, users: Users) -> list[Finding]:
    """Say who answers on the socket, or whether an agent could serve there."""
    path = printable(str(answers.path))
    owner = _owned(answers) if answers.mode is not None else ""
    if answers.state == "serving":
        running = sum(one.status == "RUNNING" for one in answers.models.values())
        who = f"pid {answers.server_pid or 'of another namespace'}, {named(users.agent)}"
        count = len(answers.models)
        text = f"an agent answers on {path} ({who}): {count} model{'s' * (count != 1)}, {running} RUNNING; {owner}"
        return [Finding(SECTION, "socket", "ok", text), *_group(answers, settings, users)]
    found = {
        "absent": lambda: _free(answers, users),
        "dead": lambda: _dead(answers, users),
        "no socket": lambda: _fault(f"{path} is there and is no socket", ANOTHER_SOCKET),
        "unreachable": lambda: _fault(
            f"{path} cannot be looked at: {answers.detail}", "Permit it, or give another --socket."
        ),
        "strange": lambda: _fault(f"what listens on {path} is no agent: {printable(answers.detail)}", ANOTHER_SOCKET),
        "hung": lambda: _fault(
            f"an agent listens on {path} and hangs: {answers.detail}",
            "Look at its log, end it (its worker processes end with it) and start it again.",
        ),
        "forbidden": lambda: Finding(
            SECTION,
            "socket",
            "warn",
            f"{named(os.geteuid())} may not call {path}; {owner}",
            f"usermod -aG {_group_name(answers.gid)} USER, and log in again; or run this as root or the agent's user.",
        ),
    }[answers.state]()
    return [found, *_group(answers, settings, users)]


def _fault(text: str, cure: str) -> Finding:
    return Finding(SECTION, "socket", "problem", text, cure)


def _owned(answers: Answering) -> str:
    return f"the socket belongs to {named(answers.uid or 0)}, group {_group_name(answers.gid)}, mode {answers.mode:04o}"


def _group_name(gid: int | None) -> str:
    try:
        return grp.getgrgid(gid).gr_name if gid is not None else "GROUP"
    except KeyError:
        return str(gid)


def _free(answers: Answering, users: Users) -> Finding:
    """Say whether an agent could make its socket."""
    folder, path = answers.path.parent, printable(str(answers.path))
    shown = printable(str(folder))
    try:
        writable = may(folder, users.agent, os.W_OK | os.X_OK)
    except OSError:
        return _fault(f"the socket's folder {shown} does not exist", "Make it, or give another --socket.")
    if not writable:
        return _fault(
            f"{named(users.agent)} may not write the socket's folder {shown}", "Permit it, or give another --socket."
        )
    return Finding(SECTION, "socket", "none", f"no agent serves on {path}; one can be started there")


def _dead(answers: Answering, users: Users) -> Finding:
    path = printable(str(answers.path))
    if answers.uid == users.agent:
        return Finding(
            SECTION, "socket", "none", f"no agent serves on {path}; the next one removes the dead socket there"
        )
    return _fault(
        f"a dead socket of {named(answers.uid or 0)} lies on {path}, where an agent of {named(users.agent)} cannot remove it",
        ANOTHER_SOCKET,
    )


def _group(answers: Answering, settings: Settings, users: Users) -> list[Finding]:
    """Say whether the socket gets, or has got, the group that is set."""
    group = settings.socket_group
    if not group:
        return []
    gid = _gid(group)
    if gid is None:
        text = f"there is no group {printable(group)}; the socket keeps the agent's own group"
        cure = f"groupadd {printable(group)}, or set socket_group to the clients' group."
        return [Finding(SECTION, "group", "warn", text, cure)]
    if answers.state == "serving" and answers.gid != gid:
        text = f"the socket has the group {_group_name(answers.gid)}, and socket_group is {printable(group)}"
        cure = f"Let the agent's user be in the group (usermod -aG {printable(group)} USER), and start the agent again."
        return [Finding(SECTION, "group", "warn", text, cure)]
    if answers.state != "serving" and users.agent != 0 and gid not in groups(users.agent):
        text = f"{named(users.agent)} is not in the group {printable(group)}; the socket keeps the agent's own group"
        cure = f"usermod -aG {printable(group)} USER, and start the agent again."
        return [Finding(SECTION, "group", "warn", text, cure)]
    return [Finding(SECTION, "group", "ok", f"members of {printable(group)} may call the agent")]


def _gid(group: str) -> int | None:
    try:
        return int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError:
        return None


def root(answers: Answering, settings: Settings, users: Users) -> list[Finding]:
    """Say so where an agent of this user would refuse to start, since the user is root."""
    if answers.state == "serving" or users.agent != 0 or settings.allow_root:
        return []
    text = "an agent does not run as root unless allow_root is set, and root may do what its user may not"
    return [Finding(SECTION, "user", "none", f"{text}; run this as that user, too")]


def state_folder(folder: Path | None, refused: str, users: Users) -> Finding:
    """Say whether the agent can keep its state; it makes the folder itself."""
    if folder is None:
        return Finding(SECTION, "state", "problem", printable(refused), OTHER_FOLDER)
    shown = printable(str(folder))
    try:
        wrong = _wrong_with(folder, users)
    except FileNotFoundError:
        return _missing(folder, shown, users)
    except OSError as error:
        mark: Mark = "problem" if users.agent in {os.geteuid(), 0} else "none"
        return Finding(SECTION, "state", mark, f"{shown} cannot be looked at: {error.strerror}", OTHER_FOLDER)
    if wrong:
        return Finding(SECTION, "state", "problem", f"{shown} {wrong}", OTHER_FOLDER)
    return Finding(SECTION, "state", "ok", f"{shown} belongs to {named(users.agent)}")


def _wrong_with(folder: Path, users: Users) -> str:
    """Return why the agent would refuse a folder, "" where it would not; raise OSError."""
    info = folder.stat()
    if not stat.S_ISDIR(info.st_mode):
        return "is no folder"
    if info.st_uid != users.agent or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return (
            f"belongs to {named(info.st_uid)} with mode {stat.S_IMODE(info.st_mode):04o}; it must belong to "
            f"{named(users.agent)} and be writable by nobody else"
        )
    return "" if may(folder, users.agent, os.W_OK | os.X_OK) else f"may not be written by {named(users.agent)}"


def _missing(folder: Path, shown: str, users: Users) -> Finding:
    parent = next(one for one in folder.parents if one.exists())
    if parent.is_dir() and may(parent, users.agent, os.W_OK | os.X_OK):
        return Finding(SECTION, "state", "none", f"{shown} is not there yet; the agent makes it")
    text = f"{shown} is not there, and {named(users.agent)} may not make it in {printable(str(parent))}"
    return Finding(SECTION, "state", "problem", text, OTHER_FOLDER)
