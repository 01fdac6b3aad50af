"""The processes that measure: started, asked, and ended by whoever benchmarks; none is ever waited for without end."""

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

START = 60.0
LOOK = 0.05
END = 2.0


class MeasuringFailed(Exception):
    """The benchmark cannot go on; the text says why."""


class Member:
    """One process that measures, in a session of its own: a terminal's Ctrl-C reaches whoever ends it, and not itself."""

    def __init__(self, module: str, what: str, order: Mapping[str, Any]) -> None:
        """Start a module that calls `child.serve`, and send it its first order. `what` it is, as in "client 3"."""
        self.what = what
        try:
            # In a folder that is nobody's: Python imports modules from the one that it is started in.
            self._process = subprocess.Popen(  # noqa: S603  (our own module)
                [sys.executable, "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
                cwd="/",
            )
        except OSError as error:
            raise MeasuringFailed(f"The {what} could not be started: {error.strerror}.") from None
        self.pid = self._process.pid
        self._answers: SimpleQueue[bytes] = SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()
        self.ask(order)

    def ask(self, order: Mapping[str, Any]) -> None:
        """Send an order; `answer` must follow. Raises MeasuringFailed when the process has ended."""
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise self._ended() from None

    def answer(self, seconds: float) -> dict[str, Any]:
        """Return the answer to the order; raise MeasuringFailed when it is an error, or does not come in time."""
        try:
            line = self._answers.get(timeout=max(0.0, seconds))
        except Empty:
            raise MeasuringFailed(f"The {self.what} (pid {self.pid}) has hung: it did not answer in time.") from None
        if not line:
            raise self._ended()
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise MeasuringFailed(found["error"])
        return found

    def check(self) -> None:
        """Raise MeasuringFailed when the process has ended."""
        if self._process.poll() is not None:
            raise self._ended()

    def kill(self) -> None:
        """End the process at once; `close` must follow."""
        self._process.kill()

    def close(self) -> None:
        """Reap the process and close its pipes."""
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe
            with contextlib.suppress(OSError):
                pipe.close()

    def _listen(self) -> None:
        assert self._process.stdout
        with contextlib.suppress(ValueError):  # closed meanwhile
            for line in self._process.stdout:
                self._answers.put(line)
        self._answers.put(b"")

    def _ended(self) -> MeasuringFailed:
        try:
            code = self._process.wait(END)
        except subprocess.TimeoutExpired:
            return MeasuringFailed(f"The {self.what} (pid {self.pid}) closed its pipes.")
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return MeasuringFailed(f"The {self.what} (pid {self.pid}) {how} in the middle of the benchmark.")


class Crew:
    """All processes of a benchmark, ended together, however it ends."""

    def __init__(self) -> None:
        self._members: list[Member] = []

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        for member in self._members:
            member.kill()
        for member in self._members:
            member.close()

    def start(self, module: str, orders: Mapping[str, Mapping[str, Any]]) -> list[Member]:
        """Start a process for each first order, named by its key, and wait until all are ready; raise MeasuringFailed."""
        begun = []
        for what, order in orders.items():
            member = Member(module, what, order)
            self._members.append(member)
            begun.append(member)
        give_up = time.monotonic() + START
        for member in begun:
            member.answer(give_up - time.monotonic())
        return begun

    def sleep_until(self, instant: float) -> None:
        """Wait for an instant of time.perf_counter(); raise MeasuringFailed as soon as one of the processes has ended."""
        while (left := instant - time.perf_counter()) > 0:
            for member in self._members:
                member.check()
            time.sleep(min(left, LOOK))

    def discard(self, members: Sequence[Member]) -> None:
        """End some of the processes, which are not needed any more."""
        for member in members:
            member.kill()
            member.close()
            self._members.remove(member)
