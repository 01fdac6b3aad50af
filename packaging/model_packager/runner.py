"""The process that does the work of a packaging job, and a guard beside it that clears up when the foreman is killed.

The work may be anywhere, in a library that holds the interpreter, too; so the guard is a process of its own. It is forked
before anything is loaded, waits in a session of its own, and takes next to no memory.
"""

import contextlib
import json
import math
import os
import signal
import socket
import sys
import threading
import traceback
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from model_packager import destinations
from model_packager.errors import PackagingRefused
from model_packager.jobs import Status, Store

NICENESS = 10
LONGEST_STEP = 500
FOREMAN_KILLED = "The process that watched over it was killed; start it again under another name."


def main() -> NoReturn:
    """Be the runner of a job: `python -m model_packager.runner STORE JOB LOCK CHANNEL WORK`."""
    folder, name, lock, channel, work = sys.argv[1:]
    store = Store(Path(folder))
    store.adopt(name, int(lock))
    foreman = socket.socket(fileno=int(channel))
    foreman.set_inheritable(False)
    runner = os.getpid()
    if os.fork() == 0:
        _guard(store, name, foreman, runner)
    threading.Thread(target=_end_with, args=(foreman,), daemon=True).start()
    os.nice(NICENESS)
    os.chdir(store.folder(name) / "work")
    _run(store, name, foreman, work)
    sys.stdout.flush()
    # Threads and processes that the work has left must not keep a job that is done.
    os._exit(0)


def _run(store: Store, name: str, foreman: socket.socket, work: str) -> None:
    """Do the work and leave word of how it ended."""
    order, folder = store.get(name).order, store.folder(name)
    try:
        module, _, function = work.partition(":")
        run = getattr(import_module(module), function)
        result = run(order, folder / "work", destinations.of(order["output"]), _Progress(foreman).report)
        store.conclude(name, Status.SUCCEEDED, result=dict(result))
    except PackagingRefused as error:
        store.conclude(name, Status.FAILED, str(error))
    except BaseException:  # noqa: BLE001  (libraries raise whatever they stumble over; SystemExit is no success)
        traceback.print_exc()
        store.conclude(name, Status.FAILED, f"Unexpected failure; the log {folder / 'log'} has the cause.")


class _Progress:
    """What the foreman is told; the log gets the steps, too."""

    def __init__(self, foreman: socket.socket) -> None:
        self._foreman = foreman
        self._step = ""

    def report(self, step: str, fraction: float) -> None:
        """Tell the step, a sentence, and how much of the job is done, 0..1."""
        step = step[:LONGEST_STEP]
        if step != self._step:
            print(step, file=sys.stderr, flush=True)
            self._step = step
        share = min(max(float(fraction), 0.0), 1.0) if math.isfinite(fraction) else 0.0
        with contextlib.suppress(OSError):  # the foreman is gone, and so are we in a moment
            self._foreman.send(json.dumps([step, share]).encode())


def _guard(store: Store, name: str, foreman: socket.socket, runner: int) -> NoReturn:
    """Wait for the end of the foreman; then end the runner and settle the job."""
    try:
        os.setsid()
        _wait_for_end(foreman)
        if os.getppid() == runner:  # it lives, so its number is its own
            os.killpg(runner, signal.SIGKILL)
        store.settle(name, FOREMAN_KILLED)
    except BaseException:  # noqa: BLE001  (the fork must not go on as a runner)
        traceback.print_exc()
    finally:
        os._exit(0)


def _end_with(foreman: socket.socket) -> None:
    """End the runner's group with the foreman, also where there is no guard any more."""
    _wait_for_end(foreman)
    os.killpg(0, signal.SIGKILL)


def _wait_for_end(foreman: socket.socket) -> None:
    with contextlib.suppress(OSError):  # reset: it ended with something unread
        foreman.recv(1)


if __name__ == "__main__":
    main()
