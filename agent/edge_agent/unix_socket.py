"""The agent's socket: claimed so that no other server loses it, permitted before anybody sees it, released as ours."""

import errno
import fcntl
import grp
import hashlib
import logging
import os
import secrets
import socket
import stat
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from edge_agent.address import LONGEST
from edge_agent.errors import AgentRefused

logger = logging.getLogger(__name__)

PROBE_PATIENCE = 5.0
READING_PAUSE = 0.002
# The name of the socket in its private folder, and how many names of that folder are tried.
PRIVATE = "s"
TRIES = 100
INT = 4


class ServedSocket:
    """The path that clients connect to.

    The server binds a private name, in a folder beside it that nobody else may enter, where the socket gets its mode and
    group; only then the path itself is made, as a second link to the finished socket. So nobody can call it before it
    has its rights, nothing that appeared on the path meanwhile is overwritten, and gRPC, which unlinks the name that it
    bound when it ends, unlinks a name that is gone by then and not a path that may belong to another server. The
    folder's name tells of which path it is, so that the next agent can remove what one left that was killed just then.
    """

    def __init__(self, path: Path, mode: int, group: str) -> None:
        self._path = path
        self._mode = mode
        self._group = group
        self._mark = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:4]}"
        self._ours: tuple[int, int] | None = None

    def claim(self) -> None:
        """Make the path free; raise AgentRefused when something is there that is not a dead socket of our own."""
        if not self._path.parent.is_dir():
            raise AgentRefused(
                f"The folder of the socket, {self._path.parent}, does not exist. Make it, or give another --socket."
            )
        if not os.access(self._path.parent, os.W_OK | os.X_OK):
            raise AgentRefused(
                f"The folder of the socket, {self._path.parent}, may not be written by the agent's user. Permit it, or give "
                "another --socket."
            )
        self._make_free()
        self._remove_left()

    def _make_free(self) -> None:
        try:
            info = self._path.lstat()
        except FileNotFoundError:
            return
        except OSError as error:
            raise AgentRefused(f"The socket path {self._path} cannot be looked at: {error.strerror}.") from None
        if not stat.S_ISSOCK(info.st_mode):
            raise AgentRefused(f"{self._path} exists and is no socket. Remove it, or give another --socket.")
        if info.st_uid != os.geteuid():
            raise AgentRefused(
                f"The socket {self._path} belongs to uid {info.st_uid}, not to the agent's user. Let its owner remove it, or "
                "give another --socket."
            )
        if _answers(self._path):
            raise AgentRefused(
                f"A server answers on {self._path} already (another agent, or the original one). Stop it first, or give "
                "another --socket."
            )
        self._path.unlink(missing_ok=True)
        logger.info("Removed the dead socket that an earlier agent left at %s.", self._path)

    def _remove_left(self) -> None:
        """Remove the private folders of agents of this path that were killed before they had made it."""
        for folder in self._path.parent.glob(f"{self._mark}??"):
            with suppress(OSError):  # it is another's, or there is more in it
                info = folder.lstat()
                if stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid():
                    left = folder / PRIVATE
                    if left.is_socket() and not _answers(left):
                        left.unlink()
                    folder.rmdir()

    def bind(self, bind: Callable[[str], object]) -> None:
        """Let `bind` bind a private name, given as gRPC address, and give the socket its rights; raise AgentRefused."""
        self._private = self._make_folder() / PRIVATE
        before = os.umask(0o777 & ~self._mode)
        try:
            bind(f"unix:{self._private}")
        except (RuntimeError, OSError) as error:
            self._remove_private()
            raise AgentRefused(f"The socket cannot be bound in {self._path.parent}: {error}") from None
        finally:
            os.umask(before)
        give_to_group(self._private, self._group, "the socket")

    def publish(self) -> None:
        """Make the path, now that the server answers on it; raise AgentRefused when something took it meanwhile."""
        try:
            os.link(self._private, self._path, follow_symlinks=False)
            info = self._path.lstat()
            self._ours = info.st_dev, info.st_ino
        except FileExistsError:
            raise AgentRefused(f"{self._path} was taken by another process just now. Give another --socket.") from None
        except OSError as error:
            raise AgentRefused(f"The socket {self._path} cannot be made: {error.strerror}.") from None
        finally:
            self._remove_private()

    def _make_folder(self) -> Path:
        """Make the private folder, under a name that nobody has; raise AgentRefused."""
        if len(os.fsencode(self._path.with_name(f"{self._mark}??") / PRIVATE)) > LONGEST:
            raise AgentRefused(
                f"The folder of the socket, {self._path.parent}, has too long a path. Give another --socket."
            )
        for _ in range(TRIES):
            folder = self._path.with_name(f"{self._mark}{secrets.token_urlsafe(2)[:2]}")
            try:
                folder.mkdir(mode=stat.S_IRWXU)
            except FileExistsError:
                continue
            except OSError as error:
                raise AgentRefused(f"The socket cannot be bound in {self._path.parent}: {error.strerror}.") from None
            return folder
        raise AgentRefused(
            f"The socket cannot be bound in {self._path.parent}, which is full of names {self._mark}??. Remove them, or give "
            "another --socket."
        )

    def _remove_private(self) -> None:
        with suppress(OSError):
            self._private.unlink(missing_ok=True)
            self._private.parent.rmdir()

    def wait_until_read(self, give_up: float) -> None:
        """Wait until the clients have read all that was written to them, or until `give_up` (time.monotonic)."""
        while _unread(self._private) and time.monotonic() < give_up:
            time.sleep(READING_PAUSE)

    def release(self) -> None:
        """Remove the path if it is still our socket."""
        with suppress(OSError):
            info = self._path.lstat()
            if (info.st_dev, info.st_ino) == self._ours:
                self._path.unlink()


def give_to_group(path: Path, group: str, what: str) -> None:
    """Give a file of the agent's to a group, by name or number, "" for none; a warning where that cannot be done."""
    if not group:
        return
    gid = _gid(group)
    if gid is None:
        logger.warning(
            "There is no group %s, so %s has the agent's own group. Create it with `groupadd %s` or set socket_group.",
            group,
            what,
            group,
        )
        return
    try:
        os.chown(path, -1, gid)
    except PermissionError:
        logger.warning(
            "The agent's user is not a member of group %s, so %s keeps the agent's own group. Mend it with "
            "`usermod -aG %s USER` and start the agent again.",
            group,
            what,
            group,
        )


def _unread(bound: Path) -> bool:
    """Return whether a connection of this process to a socket that was bound to `bound` has bytes that wait to be read."""
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # it is closed by now, or the socket itself
            fd = int(entry.name)
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                with socket.socket(fileno=os.dup(fd)) as one:
                    if one.family == socket.AF_UNIX and one.getsockname() == os.fspath(bound) and _waiting(one):
                        return True
    return False


def _waiting(one: socket.socket) -> bool:
    """Return whether the other side has not read all that was written: SIOCOUTQ, which has the number of TIOCOUTQ."""
    return any(fcntl.ioctl(one, termios.TIOCOUTQ, bytes(INT)))


def _answers(path: Path) -> bool:
    """Return whether a server accepts connections on the path."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_PATIENCE)
        try:
            probe.connect(os.fspath(path))
        except OSError as error:
            # A full backlog (EAGAIN) or a slow answer is a live server, too.
            return error.errno not in {errno.ECONNREFUSED, errno.ENOENT}
    return True


def _gid(group: str) -> int | None:
    if group.isdecimal():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        return None
