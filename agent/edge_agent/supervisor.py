"""One worker process as the agent sees it: loaded, called, timed, and its death seen at once."""

import contextlib
import itertools
import logging
import math
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import reduction
from multiprocessing.connection import Connection, wait

from edge_agent import bitmaps, threads
from edge_agent.bitmaps import Pixels
from edge_agent.deaths import WorkerDied, how_it_ended, not_started
from edge_agent.errors import AcceleratorMissing, InferenceFailed, PackageRefused, no_more_files
from edge_agent.jobs import (
    NUMBER,
    Accelerator,
    Answer,
    Broken,
    Failure,
    Job,
    Progress,
    Ready,
    Refused,
    SessionOptions,
)
from edge_agent.packages import Found
from edge_agent.spawner import Spawner
from edge_agent.threads import NoThread

logger = logging.getLogger(__name__)

LEAST_CALL_TIMEOUT = 10.0
WARM_UPS_PER_CALL = 20
EXIT_PATIENCE = 2.0
DEATH_PATIENCE = 5.0
# What a model that hangs gets to end the run at the runtime's own word, and its process to dump its stacks.
TERMINATE_PATIENCE = 1.0
ABORT_PATIENCE = 2.0
# What the kernel gets to end a process that was killed: far more than it takes, but where a driver or a disk that does not
# answer holds the process in it, which may be for ever.
KILL_PATIENCE = 5.0
# The most that poll(2) takes, 24 days.
LONGEST_POLL = (1 << 31) - 1


class _Slot:
    """One of the calls that a worker does at once: its pipe, and the memory for an inline image and an inline mask."""

    def __init__(self, pipe: Connection, inbox: int, outbox: int) -> None:
        self.pipe, self.inbox, self.outbox = pipe, inbox, outbox
        self.jobs = 0
        self.hung = False
        # Made once: `Connection.poll` makes and registers a selector for each call.
        self._poller = select.poll()
        self._poller.register(pipe.fileno(), select.POLLIN)

    def answers(self, timeout: float) -> bool:
        """Return whether there is an answer, or the end of the process, within `timeout` seconds, at most 24 days."""
        return bool(self._poller.poll(math.ceil(min(1000 * timeout, LONGEST_POLL))))

    def hang_up(self) -> None:
        """Let whoever waits for an answer find that none will come."""
        one = socket.socket(fileno=self.pipe.fileno())
        try:
            one.shutdown(socket.SHUT_RDWR)
        finally:
            one.detach()

    def close(self) -> None:
        """Close the pipe and the memory."""
        self.pipe.close()
        os.close(self.inbox)
        os.close(self.outbox)


class Worker:
    """A worker process as the agent sees it. One thread calls a slot at a time; the model's queue sees to that.

    `provider` is what it runs on in the runtime's words; `accelerator` is what it was asked for, and `fallback` says why it
    is not what would have come first, for who started it to fill in.
    """

    def __init__(self, spawner: Spawner, found: Found, options: SessionOptions, call_timeout: float | None) -> None:
        self.provider = ""
        self.accelerator: Accelerator = options.accelerator
        self.fallback = ""
        self.warm_up = 0.0
        self._name = found.name
        self._call_timeout = call_timeout
        self._cause = ""
        # It has been killed, or has ended; it has ended, or was given up.
        self._ending, self._dead = threading.Event(), threading.Event()
        self._give_up_at = 0.0
        self._gone = self._released = False
        self._lock = threading.Lock()
        with contextlib.ExitStack() as opened:
            try:
                files = [
                    (_kept(opened, _memory_file("inbox")), _kept(opened, _memory_file("outbox")))
                    for _ in range(options.slots)
                ]
                told, self._tell = (_kept(opened, fd) for fd in os.pipe2(os.O_CLOEXEC))
                os.set_blocking(self._tell, False)
                self._process, pipes = spawner.spawn(found, options)
            except OSError as error:
                raise not_started(error) from None
            self._pid = self._process.pid or 0
            try:
                threads.start(f"watch-{found.name}", self._watch)
            except NoThread as refusal:
                self._abandon(pipes)
                raise WorkerDied(str(refusal)) from None
            opened.pop_all()
        self._slots = [_Slot(pipe, *memory) for pipe, memory in zip(pipes, files, strict=True)]
        try:
            for fd in (told, *itertools.chain(*files)):
                reduction.send_handle(pipes[0], fd, self._pid)
        except OSError as error:
            # Else it died already; load() says so.
            if no_more_files(error):
                self.kill(str(not_started(error)))
        finally:
            os.close(told)

    def load(
        self, timeout: float, build_timeout: float | None = None, tell: Callable[[str], None] = lambda _: None
    ) -> None:
        """Wait until the model is loaded and warmed up.

        Args:
            timeout: seconds that this may take.
            build_timeout: seconds that it may take instead, from its begin, once an engine is being built.
            tell: told what is being done.

        Raises:
            AcceleratorMissing: it cannot be run on the accelerator of its options.
            PackageRefused: the package or the runtime refused.
            WorkerDied: the process ended or did not finish in time.

        """
        answer = self._loaded(timeout, build_timeout, tell)
        if isinstance(answer, Refused):
            raise (AcceleratorMissing if answer.accelerator else PackageRefused)(answer.reason)
        assert isinstance(answer, Ready)  # the worker's own protocol
        self.provider, self.warm_up = answer.provider, answer.warm_up
        if self._call_timeout is None:
            self._call_timeout = max(LEAST_CALL_TIMEOUT, WARM_UPS_PER_CALL * answer.warm_up)

    def _loaded(self, timeout: float, build_timeout: float | None, tell: Callable[[str], None]) -> object:
        """Return what the worker says at the end of its loading."""
        first, begin = self._slots[0], time.monotonic()
        limit, setting = timeout, "load_timeout"
        while True:
            left = begin + limit - time.monotonic()
            if left <= 0:
                self._abort(first, f"it did not load within {limit:g} s ({setting})")
            if not first.answers(min(left, KILL_PATIENCE)):
                if self._ending.is_set():  # by somebody who may not wait for its end
                    raise self._died(first)
                continue
            answer = self._receive(first)
            if not isinstance(answer, Progress):
                return answer
            tell(answer.text)
            if answer.building and build_timeout is not None:
                limit, setting = build_timeout, "build_timeout"

    def call(self, job: Job, inline: Pixels | None, slot: int = 0) -> tuple[Answer, bytes | None]:
        """Do a job; return the answer and the inline mask, if it has one.

        Args:
            job: the image's and the mask's numbers.
            inline: the image's bytes, unless they are in the client's segment.
            slot: which of the worker's slots is to do it; no other thread may be calling that one.

        Raises:
            EdgeAgentError: the job failed in the worker, or hung and could be ended.
            WorkerDied: the process ended during the call, or was ended because it did not answer in time.

        """
        timeout = self._call_timeout
        assert timeout is not None  # load() came before
        one = self._slots[slot]
        if inline is not None:
            _write_all(one.inbox, inline)
        one.jobs += 1
        one.hung = False
        try:
            one.pipe.send(replace(job, number=one.jobs))
        except OSError:
            raise WorkerDied(str(self._died(one)), unasked=True) from None
        if not one.answers(timeout):
            self._end_hanging_job(slot, f"it did not answer within {timeout:g} s (call_timeout)")
        answer = self._answer(one)
        if isinstance(answer, Failure):
            raise answer.error(answer.text)
        if isinstance(answer, Broken):
            self.kill(f"its GPU failed: {answer.reason.rstrip('.')}")
            raise self._died(one)
        return answer, os.pread(one.outbox, answer.inline_mask, 0) if answer.inline_mask else None

    def stop(self) -> None:
        """End the process; a busy one is killed. `release` must follow when no call is under way any more."""
        with contextlib.suppress(OSError, ValueError):  # it is dead already
            self._slots[0].pipe.send(None)
        if not self._dead.wait(EXIT_PATIENCE):
            self.kill("it was stopped")
        self.wait()

    def kill(self, cause: str) -> None:
        """Kill the process; `cause` is what operators are told. It is given up by whoever `wait`s, and somebody must."""
        self._signal(signal.SIGKILL, cause)

    def wait(self) -> str:
        """Wait until the process has ended, or was killed and the kernel holds it; return how it ended."""
        self._ending.wait()
        if not self._dead.wait(self._give_up_at - time.monotonic()):
            self._give_up()
        return self._cause

    def release(self) -> None:
        """Close the pipes and the shared memory, after the process has ended: if it was given up, when it does end."""
        with self._lock:
            self._released = True
            if not self._gone:
                return
        self._close()

    def _close(self) -> None:
        for one in self._slots:
            one.close()
        os.close(self._tell)

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._pid

    def _abandon(self, pipes: tuple[Connection, ...]) -> None:
        """End a process that nobody looks after."""
        for one in pipes:
            one.close()
        with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(self._pid, signal.SIGKILL)
        self._process.join(KILL_PATIENCE)
        with contextlib.suppress(ValueError):  # the kernel holds it
            self._process.close()

    def _signal(self, number: int, cause: str) -> None:
        with self._lock:
            if not self._dead.is_set():
                self._cause = self._cause or cause
                with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                    os.kill(self._pid, number)
                if number == signal.SIGKILL and not self._ending.is_set():
                    self._give_up_at = time.monotonic() + KILL_PATIENCE
                    self._ending.set()

    def _give_up(self) -> None:
        """Go on as if the process had ended, which was killed and does not."""
        with self._lock:
            if self._dead.is_set():
                return
            self._cause += ", and it could not be ended: the kernel holds it"
            self._dead.set()
            for one in self._slots:
                one.hang_up()
        logger.error("%s: process %d was killed, but the kernel holds it; it is given up.", self._name, self._pid)

    def _end_hanging_job(self, slot: int, cause: str) -> None:
        """Let the runtime end the job, so that there is an answer; end the process where that does not help."""
        one = self._slots[slot]
        one.hung = True
        with contextlib.suppress(OSError):  # it has just died
            os.write(self._tell, NUMBER.pack(slot, one.jobs))
        if not one.answers(TERMINATE_PATIENCE):
            self._abort(one, cause)

    def _abort(self, slot: _Slot, cause: str) -> None:
        """Let the process dump its stacks into the log and end; kill it where it does not. Raises WorkerDied."""
        slot.hung = True
        self._signal(signal.SIGABRT, cause)
        if not self._dead.wait(ABORT_PATIENCE):
            self.kill(cause)
        raise self._died(slot)

    def _receive(self, slot: _Slot) -> object:
        try:
            return slot.pipe.recv()
        except (EOFError, OSError):
            raise self._died(slot) from None

    def _answer(self, slot: _Slot) -> Answer | Failure | Broken:
        """Return what has become of the slot's last job; raise WorkerDied where it is another's, which nobody may have."""
        answer = self._receive(slot)
        if not isinstance(answer, Answer | Failure | Broken) or answer.number != slot.jobs:
            self.kill("it answered another job than the last that it was given")
            raise self._died(slot)
        return answer

    def _died(self, slot: _Slot) -> WorkerDied:
        if not self._ending.wait(DEATH_PATIENCE):
            self.kill("it closed its pipe")
        return WorkerDied(self.wait(), hung=slot.hung)

    def _watch(self) -> None:
        wait([self._process.sentinel])
        self._process.join()
        with self._lock:
            self._cause = self._cause or how_it_ended(self._process.exitcode)
            self._gone = True
            was_released = self._released
            self._dead.set()
            self._ending.set()
            self._process.close()
        if was_released:
            logger.warning("%s: process %d, which was given up, has ended.", self._name, self._pid)
            self._close()


def _kept(opened: contextlib.ExitStack, fd: int) -> int:
    """Return a descriptor that is closed with `opened`."""
    opened.callback(os.close, fd)
    return fd


def _memory_file(name: str) -> int:
    """Return a memfd as large as the largest image; only pages that are written take memory."""
    fd = os.memfd_create(f"edge-agent-{name}", os.MFD_CLOEXEC)
    os.ftruncate(fd, bitmaps.LARGEST_IMAGE)
    return fd


def _write_all(fd: int, data: Pixels) -> None:
    try:
        view, done = memoryview(data), 0
        while done < len(view):
            done += os.pwrite(fd, view[done:], done)
    except OSError as error:  # ENOMEM: no page left for the frame
        raise InferenceFailed(f"There is no memory for the image: {error.strerror}.") from None
