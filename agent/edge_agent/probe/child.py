"""Questions that are asked in a process of their own, since what answers them may hang or crash: drivers and runtimes.

    python -m edge_agent.probe.child QUESTION

prints what is known so far, one JSON object a line, so that a part is known of what does not come to an end.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Answer = Mapping[str, Any]
MOST = 1 << 20


class Child:
    """A question on its way."""

    def __init__(self, question: str) -> None:
        """Ask; returns at once."""
        self._out = os.memfd_create("edge-agent-probe", os.MFD_CLOEXEC)
        self._failed = ""
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._process = subprocess.Popen(  # noqa: S603  (this very interpreter and module)
                [sys.executable, "-m", __name__, question],
                stdin=subprocess.DEVNULL,
                stdout=self._out,
                stderr=subprocess.DEVNULL,
                env=_environment(),
                cwd="/",  # and not where a module of somebody else's may lie
            )
        except OSError as error:
            self._failed = f"no process can be started ({error.strerror})"

    def answers(self, give_up: float) -> tuple[list[Answer], str]:
        """Return what was answered until `give_up` (time.monotonic), and why that is not all, empty where it is."""
        failed = self._failed or self._end(give_up)
        data = os.pread(self._out, MOST, 0)
        os.close(self._out)
        lines: list[Answer] = []
        for line in data.split(b"\n")[:-1]:
            try:
                one = json.loads(line)
            except ValueError:
                continue
            if isinstance(one, dict):
                lines.append(one)
        return lines, failed

    def _end(self, give_up: float) -> str:
        assert self._process is not None  # it was started
        begun = time.monotonic()
        try:
            code = self._process.wait(max(0.0, give_up - begun))
        except subprocess.TimeoutExpired:
            self._process.kill()
            try:
                self._process.wait(0.5)
            except subprocess.TimeoutExpired:
                self._process.returncode = 0  # the driver holds it in the kernel; nobody waits for it any more
            return "it did not answer in time"
        if code < 0:
            return f"it died of {signal.Signals(-code).name}"
        return f"it ended with exit code {code}" if code else ""


def _environment() -> dict[str, str]:
    """Return our environment with our own module path, relative folders of which would lead elsewhere."""
    path = os.pathsep.join(os.path.realpath(folder or ".") for folder in sys.path)
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def _questions() -> Mapping[str, Callable[[], Iterator[Answer]]]:
    from edge_agent.probe import gpu, runtime

    return {"gpu": gpu.answers, "runtime": runtime.answers}


def main(question: str) -> None:
    """Answer a question on stdout, to which nothing else goes: runtimes print what they like, and where."""
    ours = os.dup(1)
    os.dup2(2, 1)
    for answer in _questions()[question]():
        os.write(ours, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main(sys.argv[1])
