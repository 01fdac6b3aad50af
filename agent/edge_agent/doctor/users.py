"""Which user the agent is, and what a user may do with a file, told from its mode: we are perhaps another."""

import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Users:
    """The uid of the agent that answers, and the owner of the state folder; None where there is none."""

    serving: int | None
    state_owner: int | None

    @property
    def agent(self) -> int:
        """The agent's user: of the one that serves, else whose state folder it is, else ours."""
        known = self.serving if self.serving is not None else self.state_owner
        return os.geteuid() if known is None else known


def groups(uid: int) -> set[int]:
    """Return the groups of a user: ours as they are, another's as the system's files say, which may be none."""
    if uid == os.geteuid():
        return {os.getegid(), *os.getgroups()}
    try:
        entry = pwd.getpwuid(uid)
        return set(os.getgrouplist(entry.pw_name, entry.pw_gid))
    except (KeyError, OSError):
        return set()


def named(uid: int) -> str:
    """Return a user as people call it."""
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def may(path: Path, uid: int, rights: int) -> bool:
    """Return whether a user has `rights` (os.R_OK, W_OK, X_OK) on what is there; raise OSError where it is not.

    Of another user than ourselves this is told from the mode alone: a list of further rights (acl(5)) is not looked at.
    """
    info = path.stat()
    if uid == os.geteuid():
        return os.access(path, rights, effective_ids=True)
    if uid == 0:
        return True
    mode = stat.S_IMODE(info.st_mode)
    if info.st_uid == uid:
        mode >>= 6
    elif info.st_gid in groups(uid):
        mode >>= 3
    return mode & rights == rights
