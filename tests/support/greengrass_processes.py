"""A component's scripts as processes: unprivileged, in their work folder, without a network, and never lost sight of."""

import functools
import os
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from support.users import I_AM_ROOT, MYSELF, User

# In the environment of every process of a device, and of every process of a step.
DEVICE_MARK, STEP_MARK = "GREENGRASS_DEVICE", "GREENGRASS_STEP"
LOOK_AGAIN = 0.02


@functools.cache
def offline() -> list[str]:
    """Return the command in front that takes the network away, where we may do that."""
    alone = ["unshare", "--net", "--"]
    may = I_AM_ROOT and subprocess.run([*alone, "true"], capture_output=True, check=False).returncode == 0
    return alone if may else []


def as_user(user: User, privileged: bool = False) -> list[str]:
    """Return the command in front that makes a process another user's."""
    if user == MYSELF or privileged:
        return []
    groups = f"--groups={','.join(map(str, user.groups))}" if user.groups else "--clear-groups"
    return ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", groups, "--"]


class Running:
    """A step that runs. Its processes are known by a mark, as systemd knows them by their cgroup."""

    def __init__(
        self,
        command: list[str],
        environment: Mapping[str, str],
        folder: Path,
        log: Path,
        ended: Callable[[int], None],
        *,
        until_silent: bool,
        keep: tuple[int, ...] = (),
    ) -> None:
        """Start it; `ended` is told the exit code, with `until_silent` once nobody holds its output any more."""
        self._mark = secrets.token_hex(8)
        self._ended = ended
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                env={**environment, STEP_MARK: self._mark},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if until_silent else output,
                stderr=subprocess.STDOUT,
                pass_fds=keep,
                umask=0o022,
            )
        self.code: int | None = None
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """The process that was started."""
        return self._process.pid

    def pids(self) -> list[int]:
        """Return all living processes of the step."""
        return marked(STEP_MARK, self._mark)

    def send(self, number: int, pids: list[int] | None = None) -> None:
        """Send a signal to processes of the step, to all when nothing is said."""
        for pid in self.pids() if pids is None else pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def wait(self, timeout: float) -> bool:
        """Return whether it ended in time."""
        self._thread.join(timeout)
        return self.code is not None

    def end(self, patience: float, *, children_first: bool) -> None:
        """End all processes: SIGTERM, some patience in seconds, SIGKILL."""
        pids = self.pids()
        self.send(signal.SIGTERM, [one for one in pids if one != self.pid] if children_first else pids)
        if children_first:
            self.send(signal.SIGTERM, [self.pid] if self.code is None else [])
        give_up = time.monotonic() + patience
        while self.pids() and time.monotonic() < give_up:
            time.sleep(LOOK_AGAIN)
        while left := self.pids():
            self.send(signal.SIGKILL, left)
            time.sleep(LOOK_AGAIN)
        self._thread.join()

    def _watch(self) -> None:
        if self._process.stdout:
            with self._process.stdout as stream, self._log.open("ab", buffering=0) as output:
                while data := os.read(stream.fileno(), 1 << 16):
                    output.write(data)
        code = self._process.wait()
        self.code = code
        self._ended(code)


def marked(mark: str, value: str) -> list[int]:
    """Return the living processes that have a mark in their environment."""
    wanted = f"{mark}={value}".encode()
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with suppress(OSError):
                if wanted in Path(entry.path, "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def kill_all(mark: str) -> None:
    """End all processes of a device, also those that come while we look."""
    silent = 0
    while silent < 2:
        pids = marked(DEVICE_MARK, mark)
        silent = 0 if pids else silent + 1
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if pids:
            time.sleep(LOOK_AGAIN)
