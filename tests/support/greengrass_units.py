"""A component as nucleus lite runs it: a unit of systemd with the settings that recipe2unit writes.

Sources: nucleus lite's recipe2unit; systemd.unit(5), systemd.service(5), sd_notify(3).
"""

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from support import greengrass_notify as notify
from support.greengrass_processes import LOOK_AGAIN, Running
from support.greengrass_recipes import Component

if TYPE_CHECKING:
    from support.greengrass_lite import LiteDevice

INACTIVE, ACTIVATING, ACTIVE = "inactive", "activating", "active"
DEACTIVATING, FAILED, AUTO_RESTART = "deactivating", "failed", "auto-restart"
# What systemd says of how a unit came to its end.
SUCCESS, DEPENDENCY, PROTOCOL = "success", "dependency", "protocol"
EXIT, TIMEOUT, LIMIT = "exit-code", "timeout", "start-limit-hit"
DEFAULT_TIMEOUT = 120.0
RESTART_PAUSE = 1.0
MOST_STARTS, STARTS_FORGOTTEN = 3, 3600.0
# systemd has more; what takes longer than the Java nucleus grants is wrong here, too.
STOP_PATIENCE = 5.0
START, STOP = "start", "stop"


class Unit:
    """A unit of systemd for a component's startup or run step, in a thread of its own."""

    def __init__(self, device: "LiteDevice", component: Component) -> None:
        self.device = device
        self.component = component
        self.state = INACTIVE
        self.reason = SUCCESS
        self.job = ""
        # How many of its jobs have come to their end.
        self.done = 0
        self.abandoned = False
        self.running: Running | None = None
        self._notify: notify.NotifySocket | None = None
        self._ready = self._stopping = self._over = False
        self._code: int | None = None
        self._starts: list[float] = []
        self.thread = threading.Thread(target=self._live, name=component.name, daemon=True)

    def told(self, line: str) -> None:
        """Take note of what a process of the unit says to systemd."""
        with self.device.turn:
            self._ready = self._ready or line == "READY=1"
            self._stopping = self._stopping or line == "STOPPING=1"
            self.device.turn.notify_all()

    def _live(self) -> None:
        try:
            while not self.abandoned:
                if self.job == STOP:
                    self._stop()
                elif self.job == START:
                    self._start()
                elif self.state == ACTIVE:
                    self._watch()
                elif self.state == AUTO_RESTART:
                    self._pause()
                else:
                    self._wait(lambda: False)
        finally:
            if self._notify:
                self._notify.close()

    def _wait(self, happened: Callable[[], object], timeout: float | None = None) -> bool:
        """Wait until something has happened, or there is another job; return whether either came in time."""
        job = self.job
        with self.device.turn:
            return bool(self.device.turn.wait_for(lambda: self.abandoned or self.job != job or happened(), timeout))

    def _become(self, state: str, reason: str = "") -> None:
        with self.device.turn:
            self.state, self.job = state, "" if self.job != STOP else STOP
            self.done += 1
            self.reason = reason or self.reason
            self.device.note(f"{self.component.name} is {state}{f': {reason}' if reason else ''}")
            if state != ACTIVE:
                for unit in self.device.bound_to(self.component.name):
                    unit.lose()
            self.device.turn.notify_all()

    def lose(self) -> None:
        """End, since what this unit is bound to has; the device's lock must be held."""
        if self.state in {ACTIVE, ACTIVATING}:
            self.job = STOP
        elif self.job == START:
            self.job, self.reason = "", DEPENDENCY
            self.device.note(f"{self.component.name} is not started: {DEPENDENCY}")

    def _start(self) -> None:
        name = self.component.name
        with self.device.turn:
            # A unit that failed, and is started again, has done the job that was waited for.
            others = [(one, one.done) for one in self.device.before(self.component) if one.job == START]
        self._wait(lambda: name not in self.device.held and all(one.done > done for one, done in others))
        if self.abandoned or self.job != START:
            return
        if self.device.lacks(self.component):
            with self.device.turn:
                self.lose()
            return
        now = time.monotonic()
        self._starts = [one for one in self._starts if now - one < STARTS_FORGOTTEN]
        if len(self._starts) >= MOST_STARTS:
            self._become(FAILED, f"{LIMIT}, after {self.reason}")
            return
        self._starts.append(now)
        self._run()

    def _run(self) -> None:
        steps = self.component.steps
        name = next((one for one in ("startup", "run") if one in steps), "")
        if not name:
            self._become(INACTIVE, SUCCESS)
            return
        if self._notify is None:
            self._notify = notify.NotifySocket(self.device.next_socket(), self.told)
        with self.device.turn:
            if self.abandoned:
                return
            self._ready = self._stopping = self._over = False
            self._code = None
            variables = {"NOTIFY_SOCKET": str(self._notify.path)} if name == "startup" else {}
            self.running = self.device.spawn(self.component, name, self._noticed, **variables)
            # A run step counts as started with its process.
            self.state = ACTIVATING
        if name == "run":
            self._become(ACTIVE, SUCCESS)
        else:
            self._await_ready(steps[name].timeout or DEFAULT_TIMEOUT)

    def _await_ready(self, timeout: float) -> None:
        give_up = time.monotonic() + timeout
        in_time = self._wait(lambda: self._ready or self._code is not None, timeout)
        # As long as others are left, they may still say that it is ready.
        while self._code == 0 and not self._ready and in_time and self._processes() and self.job == START:
            self._wait(lambda: self._ready, LOOK_AGAIN)
            in_time = time.monotonic() < give_up
        if self.job != START or self.abandoned:
            return
        if self._ready:
            self._become(ACTIVE, SUCCESS)
        elif not in_time:
            self._fail(TIMEOUT)
        else:
            self._fail(PROTOCOL if self._code == 0 else EXIT)

    def _watch(self) -> None:
        """Look after a unit that is active."""
        self._wait(lambda: (self._code is not None and not self._over) or self._stopping)
        if self.job or self.abandoned:
            return
        if self._stopping:
            self._become(DEACTIVATING)
            self._wait(lambda: self._code is not None)
        code = self._code
        if code is None or self.job or self.abandoned:
            return
        self._over = True
        if code:
            self._fail(EXIT)
        elif self._stopping or "startup" not in self.component.steps:
            self._clear()
            self._become(INACTIVE, SUCCESS)

    def _pause(self) -> None:
        """Wait for the restart of what failed."""
        if not self._wait(lambda: False, RESTART_PAUSE) and not self.abandoned:
            with self.device.turn:
                self.job = self.job or START

    def _fail(self, reason: str) -> None:
        self._clear()
        self._become(AUTO_RESTART, reason)

    def _stop(self) -> None:
        self._clear()
        with self.device.turn:
            self.state, self.job = INACTIVE, ""
            self.device.note(f"{self.component.name} is stopped")
            self.device.turn.notify_all()

    def _clear(self) -> None:
        if self.running:
            self.running.end(STOP_PATIENCE, children_first=False)

    def _processes(self) -> list[int]:
        return self.running.pids() if self.running else []

    def _noticed(self, code: int) -> None:
        if self._notify:
            self._notify.flush()
        with self.device.turn:
            self._code = code
            self.device.turn.notify_all()
