"""The agent's own folder: the lock of its socket, the list of models to run again, room for sockets of its own."""

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path

from edge_agent.errors import AgentRefused
from edge_agent.files import replacing

logger = logging.getLogger(__name__)

LONGEST_LIST = 16 << 20
NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


class StateFolder:
    """The state folder as one agent uses it: what it holds is named by the agent's socket."""

    def __init__(self, folder: Path, socket_path: Path) -> None:
        self._folder = folder
        parent = Path(os.path.realpath(socket_path.parent))
        self._prefix = hashlib.sha256(bytes(parent / socket_path.name)).hexdigest()[:16]
        self._lock: int | None = None

    def lock(self) -> None:
        """Take the lock of this socket, until the process ends; raise AgentRefused when it cannot be had."""
        path = self._path("lock")
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        except OSError as error:
            raise self._unusable(path, error) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if not isinstance(error, BlockingIOError):
                raise self._unusable(path, error) from None
            raise AgentRefused(
                "Another agent serves this socket already (it holds the lock in the state folder). Stop it first, or give "
                "this one another --socket."
            ) from None
        self._lock = fd

    def scratch(self) -> Path:
        """Return an empty folder for this run; the lock must be held. Raises AgentRefused where there can be none.

        What multiprocessing makes in it is a folder with a socket; where there is no room for that, it could not say
        what to do.
        """
        folder = self._emptied("run")
        try:
            with tempfile.TemporaryDirectory(dir=folder) as like:
                Path(like, "socket").touch()
        except OSError as error:
            raise self._unusable(folder, error) from None
        return folder

    def unpacked(self) -> Path:
        """Return an empty folder for the packages of this run that are unpacked; as `scratch`.

        They are unpacked anew in each run: after a power cut nobody knows what of them has reached the disk.
        """
        return self._emptied("unpacked")

    def _emptied(self, name: str) -> Path:
        folder = self._path(name)
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise self._unusable(folder, error) from None
        return folder

    def running_models(self) -> "RunningModels":
        """Return the list of models that are to run."""
        return RunningModels(self._path("running.json"))

    def tuned_file(self) -> Path:
        """Return the file that says how models run best on this device, which all agents of the folder share."""
        return self._folder / "tuned.json"

    def status_file(self) -> Path:
        """Return the file that says what the agent is doing."""
        return self._path("status.json")

    def release(self) -> None:
        """Give the lock back. The scratch folder is emptied by multiprocessing after us, or by the next agent."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _unusable(self, path: Path, error: OSError) -> AgentRefused:
        cure = "Make room" if error.errno in NO_ROOM else "Remove it"
        return AgentRefused(
            f"--state-dir {self._folder}: {path.name} in it cannot be used: {error.strerror}. {cure}, or name another folder."
        )

    def _path(self, suffix: str) -> Path:
        return self._folder / f"{self._prefix}.{suffix}"


class RunningModels:
    """The names of the models that are to run, in a small file that is whole at any instant."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[str]:
        """Return the names; none when there is no file, and a warning when it cannot be understood."""
        try:
            names = json.loads(read_plain(self._path, LONGEST_LIST))
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ValueError("not a list of names")
        except FileNotFoundError:
            return []
        except (OSError, ValueError, RecursionError) as error:
            logger.warning("The list of running models cannot be read, so none is restored: %s", error)
            return []
        return names

    def write(self, names: Iterable[str]) -> None:
        """Replace the file by rename; a folder that cannot be written costs a warning, not the call."""
        try:
            with replacing(self._path, self._path.with_suffix(".new"), sync=True) as file:
                file.write(json.dumps(list(names)).encode())
        except OSError as error:
            logger.warning(
                "The list of running models cannot be written, so a restart will not restore it: %s", error.strerror
            )


def read_plain(path: Path, most: int) -> bytes:
    """Return the content of a plain file of at most `most` bytes, never following a link nor waiting for a FIFO.

    Raises:
        OSError: it cannot be read.
        ValueError: it is something else, or longer.

    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("it is no plain file")
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it is longer than {most} bytes")
    return data


def folder(setting: Path | None) -> Path:
    """Return the state folder, made with mode 0700 where it is missing.

    Raises:
        AgentRefused: there is none that could be written, or it is open to others.

    """
    path = (setting or default_folder()).absolute()
    try:
        for missing in reversed([one for one in path.parents if not one.exists()]):
            missing.mkdir(mode=0o700, exist_ok=True)  # else as the umask has it, which may be open to all
        path.mkdir(mode=0o700, exist_ok=True)
        info = path.stat()
        usable = os.access(path, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids)
    except OSError as error:
        raise AgentRefused(
            f"--state-dir {path} cannot be made: {error.strerror}. "
            f"{'Make room, or name another folder' if error.errno in NO_ROOM else 'Name a folder the agent may write'}."
        ) from None
    if not usable:
        raise AgentRefused(f"--state-dir {path} is not writable. Name a folder the agent may write.")
    if info.st_uid != os.geteuid() or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise AgentRefused(
            f"--state-dir {path} belongs to uid {info.st_uid} with mode {stat.S_IMODE(info.st_mode):04o}; it must belong to the "
            "agent's user and be writable by nobody else."
        )
    return path


def engines(state: Path) -> Path:
    """Return the folder for built engines in a state folder, made with mode 0700 where it is missing; raises OSError."""
    path = state / "engines"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def default_folder() -> Path:
    """Return where the state belongs: systemd's folder, the XDG one (basedir-spec), or the one below home."""
    if systemd := os.environ.get("STATE_DIRECTORY"):
        return Path(systemd.partition(":")[0])
    if xdg := os.environ.get("XDG_STATE_HOME"):
        return Path(xdg) / "edge-agent"
    try:
        return Path.home() / ".local/state/edge-agent"
    except RuntimeError:
        raise AgentRefused("There is no home folder for the agent's state; name a folder with --state-dir.") from None
