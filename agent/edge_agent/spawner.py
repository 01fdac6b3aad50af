"""The forkserver that all worker processes come from."""

import contextlib
import multiprocessing
import os
import tempfile
import threading
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from edge_agent.deaths import WorkerDied, not_started
from edge_agent.errors import no_more_files
from edge_agent.jobs import SessionOptions, work
from edge_agent.log import LogSettings
from edge_agent.packages import Found

# More files than it takes to start a process, since connections may take some in the same instant.
SPARE_FILES = 16
# A socket path has 107 bytes; below the folder, multiprocessing adds two names of its own.
LONGEST_FOLDER = 107 - len("/pymp-xxxxxxxx/listener-xxxxxxxx")


class Spawner:
    """The forkserver that all workers come from; it is started before any thread and any gRPC."""

    def __init__(self, folder: Path, log_as: LogSettings) -> None:
        """Keep the forkserver's own socket in `folder`, where it is found and cleared after a crash.

        `log_as` is how the workers' log lines are written.
        """
        self._log_as = log_as
        self._context = multiprocessing.get_context("forkserver")
        self._lock = threading.Lock()
        if len(os.fsencode(folder)) <= LONGEST_FOLDER:
            tempfile.tempdir = str(folder)

    def write_log(self, log_as: LogSettings) -> None:
        """Have the workers that are started from now on write their log lines so."""
        self._log_as = log_as

    def start(self) -> None:
        """Start the forkserver; it imports the runtime while the agent goes on."""
        self._context.set_forkserver_preload(["edge_agent._preload"])
        forkserver.ensure_running()

    def spawn(self, found: Found, options: SessionOptions) -> tuple[BaseProcess, tuple[Connection, ...]]:
        """Start a worker process; return it and our ends of its pipes, one for each slot."""
        with contextlib.ExitStack() as opened:
            ours, theirs = zip(*(self._pipe(opened) for _ in range(options.slots)), strict=True)
            process = self._started(found, options, theirs)
            opened.pop_all()
        for one in theirs:
            one.close()
        return process, ours

    def _pipe(self, opened: contextlib.ExitStack) -> tuple[Connection, Connection]:
        """Return both ends of a pipe that is closed with `opened`."""
        ours, theirs = self._context.Pipe()
        opened.callback(ours.close)
        opened.callback(theirs.close)
        return ours, theirs

    def _started(self, found: Found, options: SessionOptions, pipes: tuple[Connection, ...]) -> BaseProcess:
        process = self._context.Process(
            target=work, args=(pipes, found, options, self._log_as), name=f"worker-{found.name}", daemon=True
        )
        try:
            with self._lock:
                # The forkserver dies, and all workers with it, when it is called and then there are no files to hand over.
                _check_files()
                process.start()
            # multiprocessing looks after its children whenever another one is started, and at exit; from a second
            # thread it would take the exit code that a worker's own watch waits for. Nobody else knows this one.
            multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]  # noqa: SLF001
        except (OSError, EOFError) as error:
            if isinstance(error, OSError) and no_more_files(error):
                raise not_started(error) from None
            raise WorkerDied(
                f"it could not be started ({error or 'the forkserver ended'}); restart the agent"
            ) from None
        return process


def _check_files() -> None:
    """Raise OSError unless as many files can be opened as it takes to start a process."""
    with contextlib.ExitStack() as opened:
        for _ in range(SPARE_FILES):
            opened.callback(os.close, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
