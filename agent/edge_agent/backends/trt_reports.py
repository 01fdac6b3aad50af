"""What TensorRT says while it works: into our log, into the sentence of what failed, and to operators while it builds.

ILogger and IProgressMonitor are subclassed as https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/
has them ("Logger", "ProgressMonitor"): the base is initialised by name, and several threads may call.
"""

import logging
import re
import threading
import time
from collections import deque
from types import TracebackType
from typing import Any

from edge_agent.backends import Tell
from edge_agent.errors import AcceleratorFailed, AcceleratorMissing, printable
from edge_agent.jobs import Progress
from edge_agent.log import LIMITED

logger = logging.getLogger(__name__)

# Seconds between two words on a build.
EVERY = 5.0
LONGEST = 300
# A line's own place in TensorRT: "[optimizer.cpp::computeCosts::4048] ".
PLACE = re.compile(r"^\[[\w./]+::[^\]]*\] ")
# How it says that there is no memory left, and that CUDA failed.
OUT_OF_MEMORY = re.compile(r"out ?of ?memory|could not be allocated|cudaErrorMemoryAllocation", re.IGNORECASE)
CUDA_FAILED = re.compile(r"Cuda (Runtime|Driver)|CUDA (error|failure)", re.IGNORECASE)


class Log:
    """Receives TensorRT's lines; `own` is the ILogger for its objects, all of which it must outlive."""

    def __init__(self, trt: Any) -> None:
        self._errors: deque[str] = deque(maxlen=20)
        self.own = _logger(trt, self._take)

    def begin(self) -> None:
        """Forget what failed before."""
        self._errors.clear()

    def failure(self, doing: str, *, fatal: bool = False) -> AcceleratorFailed | AcceleratorMissing:
        """Return what to raise because `doing` did not work, with TensorRT's first reason since `begin`.

        AcceleratorFailed where CUDA failed, or where it is `fatal` whatever the reason.
        """
        told = list(self._errors)
        reason = (told[0] if told else "it gives no reason").rstrip(".")
        for one in told:
            if OUT_OF_MEMORY.search(one):
                return AcceleratorFailed(f"{doing}: the GPU has no memory left ({one.rstrip('.')}).")
        if fatal or any(CUDA_FAILED.search(one) for one in told):
            return AcceleratorFailed(f"{doing}: {reason}.")
        return AcceleratorMissing(f"{doing}: {reason}.")

    def _take(self, level: int, text: str) -> None:
        said = printable(PLACE.sub("", text.strip()))
        said = said if len(said) <= LONGEST else f"{said[:LONGEST]}..."
        if level >= logging.WARNING:
            self._errors.append(said)
        logger.log(level, "TensorRT: %s", said, extra=LIMITED)


def _logger(trt: Any, take: Any) -> Any:
    severity = trt.ILogger.Severity
    # Its warnings are of no use to operators, and what it tells besides is not even logged.
    levels = {
        severity.INTERNAL_ERROR: logging.WARNING,
        severity.ERROR: logging.WARNING,
        severity.WARNING: logging.INFO,
        severity.INFO: logging.DEBUG,
    }

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if (level := levels.get(severity)) is not None:
                take(level, msg)

    return Logger()


class Building:
    """Says every EVERY seconds, while it is entered, how far the building of `what` is; `monitor` is TensorRT's part in it."""

    def __init__(self, trt: Any, tell: Tell, what: str, every: float = EVERY) -> None:
        self._tell = tell
        self._what = what
        self._every = every
        self._begun = time.monotonic()
        self._told = float("-inf")
        self._gone = False
        # Steps done and all of them, by phase, the innermost last.
        self._phases: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep_on, name="engine-progress", daemon=True)
        self.monitor = _monitor(trt, self)

    def __enter__(self) -> None:
        self._begun = time.monotonic()
        self._say()
        self._thread.start()

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()

    def start(self, phase: str, steps: int) -> None:
        """Note that a phase begins."""
        with self._lock:
            self._phases[phase] = 0, steps
        self._say()

    def step(self, phase: str, number: int) -> bool:
        """Note that a step, counted from 0, is done; return whether to go on, which is of no use without an agent."""
        with self._lock:
            _, steps = self._phases.get(phase, (0, number + 1))
            self._phases[phase] = number + 1, steps
        self._say()
        return not self._gone

    def finish(self, phase: str) -> None:
        """Note that a phase is over."""
        with self._lock:
            self._phases.pop(phase, None)

    def _keep_on(self) -> None:
        while not self._done.wait(self._every / 4):
            self._say()

    def _say(self) -> None:
        """Tell how far it is, if it has not been told within the last seconds: also of TensorRT's threads, which may hold ours up."""
        with self._lock:
            now = time.monotonic()
            if now - self._told < self._every:
                return
            self._told = now
            doing = ""
            if self._phases:
                phase, (done, steps) = list(self._phases.items())[-1]
                doing = f"{printable(phase)[:LONGEST]}, step {done} of {steps}; "
            try:
                self._tell(Progress(f"{self._what}: {doing}{now - self._begun:.0f} s so far.", building=True))
            except OSError:  # the agent is gone
                self._gone = True


def _monitor(trt: Any, building: Building) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
            building.start(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return building.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            building.finish(phase_name)

    return Monitor()
