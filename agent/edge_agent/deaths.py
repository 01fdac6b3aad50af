"""How worker processes end, in words for operators."""

import signal

# What multiprocessing gives when the forkserver could not tell a child's exit code any more.
UNKNOWN_EXIT = 255


class WorkerDied(Exception):
    """The worker process ended; the text says how, for operators.

    `hung` tells that it was ended because it hung, `unasked` that it had ended before the job reached it.
    """

    def __init__(self, text: str, *, hung: bool = False, unasked: bool = False) -> None:
        super().__init__(text)
        self.hung = hung
        self.unasked = unasked


def not_started(error: OSError) -> WorkerDied:
    """Return the error of a process for which the system had no room."""
    return WorkerDied(
        f"it could not be started ({error.strerror}); close connections, or allow the agent more open files"
    )


def how_it_ended(exit_code: int | None) -> str:
    """Return how a process of this exit code ended; a negative one is a signal, as multiprocessing has it."""
    if exit_code is not None and exit_code < 0:
        try:
            name = signal.Signals(-exit_code).name
        except ValueError:
            name = "unknown"
        hint = "; the system kills like this when memory runs out" if -exit_code == signal.SIGKILL else ""
        return f"it was ended by signal {-exit_code} ({name}){hint}"
    if exit_code == UNKNOWN_EXIT:
        return "it was lost together with the process that starts all workers (or exited with code 255)"
    return f"it exited with code {exit_code}"
