"""The process that watches over a packaging job: it starts the runner, records its progress, and settles how it ended.

The foreman is the command itself (attached), or a process of its own (detached: `python -m model_packager.foreman`). It
holds the job's lock, which the runner inherits, so that the job is alive while either of them is; and it holds one end
of a channel, whose EOF ends the runner and all its processes.
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from model_packager.errors import PackagingRefused
from model_packager.jobs import MARK, Job, Status, Store

WORK = "model_packager.packaging:run"
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Seconds between two records of progress; each is flushed to the disk.
RECORD_EVERY = 0.2
LONGEST_MESSAGE = 1 << 16
# A socket path has 107 bytes; below the folder for temporary files, multiprocessing adds two names of its own.
LONGEST_TEMPORARY = 107 - len("/pymp-xxxxxxxx/listener-xxxxxxxx")
FAILED_ITSELF = "The command that watched over it failed; start it again under another name."

Show = Callable[[str, float], None]


class Interrupted(SystemExit):
    """A signal ended the job, which is settled; uncaught, the process exits with 128 and the signal's number."""

    def __init__(self, job: Job, number: int) -> None:
        super().__init__(128 + number)
        self.job = job


def run_attached(store: Store, job: Job, show: Show, *, work: str = WORK) -> Job:
    """Run a new job with this process as its foreman; return it as it ended. To be called in the main thread.

    Args:
        store: the store that made the job, and holds its lock.
        job: the job, CREATED.
        show: is told each step and how far it is (0..1).
        work: what the runner calls, as module:function; never from a user.

    Raises:
        PackagingRefused: the job could not be started.
        Interrupted: SIGINT, SIGTERM or SIGHUP came before the work was done.

    """
    number, cause = None, FAILED_ITSELF
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        # Our end stays open until the job is settled: at its EOF the guard would settle it, too.
        with ours, theirs, _Signals() as signals:
            try:
                job = store.save(job.moved(Status.RUNNING))
                runner = _Runner(_start(store, job, theirs, work))
                theirs.close()
                try:
                    number = _watch(store, job, ours, runner, signals, show)
                finally:
                    code = runner.end()
                cause = _how_it_ended(number, code, store.folder(job.name) / "log")
            finally:
                job = store.settle(job.name, cause)
    finally:
        store.release(job.name)
    if number is not None and job.status is Status.FAILED:
        raise Interrupted(job, number)
    return job


def run_detached(store: Store, job: Job, *, work: str = WORK) -> Job:
    """Start a foreman of its own for a new job; return the job once the foreman has the lock, which is held throughout.

    Raises:
        PackagingRefused: the foreman could not be started.

    """
    try:
        problem = _start_foreman(store, job, work)
        if problem:
            store.settle(job.name, problem)
            raise PackagingRefused(f"The packaging job {job.name} failed. {problem}")
    finally:
        store.release(job.name)
    return store.get(job.name)


class _Signals:
    """The signals that end a job, and SIGCHLD, as something to wait for; those that were ignored stay so (nohup)."""

    def __enter__(self) -> "_Signals":  # noqa: PYI034  (Self came with 3.11)
        self._read, self._write = os.pipe()
        for fd in (self._read, self._write):
            os.set_blocking(fd, False)
        self._previous_fd = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        numbers = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
        self._previous = {number: signal.signal(number, _wake) for number in (*numbers, signal.SIGCHLD)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._previous_fd)
        os.close(self._read)
        os.close(self._write)

    def fileno(self) -> int:
        return self._read

    def caught(self) -> int | None:
        """Return a signal that ends the job, if one came."""
        with contextlib.suppress(BlockingIOError):
            return next((number for number in os.read(self._read, 256) if number in ENDING), None)
        return None


def _wake(_: int, __: FrameType | None) -> None:
    """Do nothing: the number has gone to the wake-up file already."""


class _Runner:
    """The runner's process, leader of a group of its own."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    def over(self) -> bool:
        """Return whether it has ended; it is not reaped, so that its number stays its group's."""
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def end(self) -> int:
        """Kill what lives of its group; return its exit code, negative for a signal."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.wait()


def _start(store: Store, job: Job, channel: socket.socket, work: str) -> "subprocess.Popen[bytes]":
    folder, lock = store.folder(job.name), store.held(job.name)
    environment = {**os.environ, MARK: str(folder)}
    if len(os.fsencode(folder / "work")) <= LONGEST_TEMPORARY:
        environment["TMPDIR"] = str(folder / "work")
    arguments = [str(store.path), job.name, str(lock), str(channel.fileno()), work]
    try:
        with (folder / "log").open("ab") as log:
            return subprocess.Popen(  # noqa: S603  (our own module)
                [sys.executable, "-m", "model_packager.runner", *arguments],
                pass_fds=(lock, channel.fileno()),
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd="/",
            )
    except OSError as error:
        raise PackagingRefused(f"The packaging process could not be started: {error.strerror}.") from None


def _watch(
    store: Store, job: Job, channel: socket.socket, runner: _Runner, signals: _Signals, show: Show
) -> int | None:
    """Show and record progress until the runner is over; return the signal if one came first."""
    channel.setblocking(False)
    recorded, due = time.monotonic(), False
    with selectors.DefaultSelector() as selector:
        selector.register(channel, selectors.EVENT_READ)
        selector.register(signals, selectors.EVENT_READ)
        while True:
            selector.select(max(0.0, recorded + RECORD_EVERY - time.monotonic()) if due else None)
            over, number = runner.over(), signals.caught()
            for step, fraction in _messages(channel, selector):
                show(step, fraction)
                job, due = job.at(step, fraction), True
            if due and (over or time.monotonic() >= recorded + RECORD_EVERY):
                with contextlib.suppress(PackagingRefused):  # a full disk costs the progress, not the job
                    store.save(job)
                recorded, due = time.monotonic(), False
            if over or number is not None:
                return number


def _messages(channel: socket.socket, selector: selectors.BaseSelector) -> Iterator[tuple[str, float]]:
    """Yield what the runner has said; when it will say no more, the channel is waited for no more."""
    while True:
        try:
            message = channel.recv(LONGEST_MESSAGE)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            with contextlib.suppress(KeyError):
                selector.unregister(channel)
            return
        step, fraction = json.loads(message)
        yield step, fraction


def _how_it_ended(number: int | None, code: int, log: Path) -> str:
    """Return why a job failed whose work left no word."""
    if number is not None:
        return f"Interrupted ({_signal(number)}); start it again under another name."
    if code < 0:
        hint = "; the system kills like this when memory runs out" if -code == signal.SIGKILL else ""
        return f"Its process was ended by signal {-code} ({_signal(-code)}){hint}. Start it again under another name."
    return f"Its process exited with code {code}; the log {log} has the cause."


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _start_foreman(store: Store, job: Job, work: str) -> str:
    """Start a foreman that nobody waits for; return why that failed, if it did."""
    lock, log = store.held(job.name), store.folder(job.name) / "log"
    ours, theirs = os.pipe()
    command = [sys.executable, "-m", "model_packager.foreman", str(store.path), job.name, str(lock), str(theirs), work]
    try:
        with log.open("ab") as file:
            # It forks and its first process ends: the foreman is not our child, and leads no session that gets a terminal.
            subprocess.run(  # noqa: S603  (our own module)
                command,
                pass_fds=(lock, theirs),
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd="/",
                check=False,
            )
    except OSError as error:
        return f"Its process could not be started: {error.strerror}."
    finally:
        os.close(theirs)
        started = os.read(ours, 1)  # or its end, since nobody else has the other one
        os.close(ours)
    return "" if started else f"Its process could not be started; the log {log} has the cause."


def main() -> None:
    """Be the foreman of a detached job: `python -m model_packager.foreman STORE JOB LOCK READY WORK`."""
    folder, name, lock, ready, work = sys.argv[1:]
    if os.fork():
        os._exit(0)
    store = Store(Path(folder))
    store.adopt(name, int(lock))
    with contextlib.suppress(BrokenPipeError):  # the command that started us was killed
        os.write(int(ready), b".")
    os.close(int(ready))
    try:
        job = run_attached(store, store.get(name), lambda _, __: None, work=work)
    except PackagingRefused as error:
        sys.exit(str(error))
    sys.exit(job.status is not Status.SUCCEEDED)


if __name__ == "__main__":
    main()
