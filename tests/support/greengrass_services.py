"""A component as the Java nucleus runs it: its states, what is asked of it, and its errors, three of which are the end.

Sources: the nucleus's Lifecycle, GreengrassService, GenericExternalService, ShellRunner and Exec.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING

from support.greengrass_processes import Running
from support.greengrass_recipes import Component, Step

if TYPE_CHECKING:
    from support.greengrass_java import JavaDevice

NEW, INSTALLED, STARTING, RUNNING = "NEW", "INSTALLED", "STARTING", "RUNNING"
STOPPING, ERRORED, BROKEN, FINISHED = "STOPPING", "ERRORED", "BROKEN", "FINISHED"
# In which a component lets those that depend on it begin, and in which it does not make them begin anew. The nucleus lets
# them begin for the instant of STOPPING, too, after which it stops them.
READY = {RUNNING, FINISHED}
STILL_READY = {*READY, STOPPING}
DEFAULT_TIMEOUT = 120.0
MOST_ERRORS = 3
ERRORS_FORGOTTEN = 3600.0
STOP_PATIENCE = 5.0
STOP, RESTART, REINSTALL = "stop", "restart", "reinstall"


class Service:
    """A component and its lifecycle, in a thread of its own."""

    def __init__(self, device: "JavaDevice", component: Component) -> None:
        self.device = device
        self.component = component
        self.state = NEW
        self.request = ""
        self.reason = ""
        self.told_running = False
        self.abandoned = False
        self.running: Running | None = None
        self._errors: dict[str, list[float]] = defaultdict(list)
        self._before = NEW
        self.thread = threading.Thread(target=self._live, name=component.name, daemon=True)

    def begin(self) -> None:
        self.device.threads.append(self.thread)
        self.thread.start()

    def ask(self, request: str) -> None:
        """Ask for a change; one that goes further is not taken back. The device's lock must be held."""
        asked = [REINSTALL, STOP, RESTART, ""]
        if asked.index(request) < asked.index(self.request):
            self.request = request
        self.device.turn.notify_all()

    def has_left(self) -> bool:
        """Return whether it has come out of the states of its old configuration, or has a process that keeps it there."""
        alive = self.running is not None and self.running.code is None
        return alive or (self.state in {NEW, INSTALLED} and not self.request)

    def _live(self) -> None:
        steps: dict[str, Callable[[], str]] = {
            NEW: self._install,
            INSTALLED: self._await_dependencies,
            STARTING: self._start,
            RUNNING: self._run,
            STOPPING: self._stop,
            ERRORED: lambda: NEW if self._before == NEW else STOPPING,
            BROKEN: self._broken,
            FINISHED: self._rest,
        }
        while not self.abandoned and (following := steps[self.state]()):
            if not self.abandoned:
                self._move(following)

    def _move(self, following: str) -> None:
        with self.device.turn:
            now = time.monotonic()
            if following == ERRORED:
                errors = [one for one in self._errors[self.state] if now - one < ERRORS_FORGOTTEN]
                self._errors[self.state] = [*errors, now]
                if len(errors) + 1 >= MOST_ERRORS:
                    following = BROKEN
            else:
                self._errors[self.state] = []
            self._before, self.state = self.state, following
            self.device.note(f"{self.component.name} is {following}{f': {self.reason}' if self.reason else ''}")
            for service in self.device.dependents(self.component.name):
                if service.state in {STARTING, RUNNING} and following not in STILL_READY:
                    service.ask(RESTART)
            self.device.turn.notify_all()

    def _wait(self, happened: Callable[[], object], timeout: float | None = None) -> bool:
        """Wait until something has happened, or a change is asked for; return whether either came in time."""
        with self.device.turn:
            return bool(self.device.turn.wait_for(lambda: self.abandoned or self.request or happened(), timeout))

    def _install(self) -> str:
        with self.device.turn:
            self.request = "" if self.request in {REINSTALL, RESTART} else self.request
        self._wait(lambda: not self.device.updating)
        if self.request:
            return FINISHED
        component = self.component
        self.device.installs.append(component.name)
        instead = self.device.instead_of_install.get(component.name)
        step = component.steps.get("install")
        if instead:
            instead(component, self.device.work(component.name))
        elif step:
            self._spawn("install", step)
            in_time = self._wait(self._ended, step.timeout or DEFAULT_TIMEOUT)
            code = self._end_processes()
            if self.request:
                return self._leave()
            if not in_time or code:
                return self._error("install timed out" if not in_time else f"install exited with {code}")
        return INSTALLED

    def _await_dependencies(self) -> str:
        name = self.component.name
        device = self.device
        self._wait(lambda: not device.updating and name not in device.held and device.ready(self.component))
        return self._leave() if self.request else STARTING

    def _start(self) -> str:
        startup, run = self.component.steps.get("startup"), self.component.steps.get("run")
        self.told_running = False
        self.reason = ""
        if startup:
            self._spawn("startup", startup)
            in_time = self._wait(lambda: self._ended() or self.told_running, startup.timeout or DEFAULT_TIMEOUT)
            if self.request:
                return STOPPING
            if not in_time:
                return self._error("startup timed out")
            return self._error(f"startup exited with {self._code()}") if self._code() else RUNNING
        if run:
            self._spawn("run", run)
            return RUNNING
        return FINISHED

    def _run(self) -> str:
        startup = "startup" in self.component.steps
        # A startup step that has ended well is no end of the component.
        self._wait(lambda: self._code() if startup else self._ended())
        if self._code():
            return self._error(f"it exited with {self._code()}")
        if self.request:
            return STOPPING
        return FINISHED

    def _stop(self) -> str:
        self._end_processes()
        return self._leave()

    def _broken(self) -> str:
        self._end_processes()
        self._wait(lambda: False)
        if self.request == STOP:
            return ""
        with self.device.turn:
            again, self.request = self.request == REINSTALL, ""
            if again:
                self._errors.clear()
        return NEW if again else BROKEN

    def _rest(self) -> str:
        self._end_processes()
        self._wait(lambda: False)
        return "" if self.request == STOP else self._leave()

    def _leave(self) -> str:
        """Return where a component goes that has no process any more, by what is asked of it."""
        with self.device.turn:
            request = self.request
            if request in {RESTART, REINSTALL}:
                self.request = ""
            self.device.turn.notify_all()
        return {STOP: FINISHED, REINSTALL: NEW}.get(request, INSTALLED)

    def _error(self, reason: str) -> str:
        self.reason = reason
        return ERRORED

    def _ended(self) -> bool:
        return self.running is not None and self.running.code is not None

    def _code(self) -> int | None:
        return self.running.code if self.running else None

    def _end_processes(self) -> int | None:
        running = self.running
        if running:
            running.end(STOP_PATIENCE, children_first=True)
        return running.code if running else None

    def _spawn(self, name: str, step: Step) -> None:
        device, component = self.device, self.component
        self._end_processes()
        variables = device.variables(component)
        own = {key: variables.java(str(value)) for key, value in step.environment.items()}
        command = [*device.in_front(step), "sh", "-c", variables.java(step.script)]
        with device.turn:
            if self.abandoned:
                return
            device.begins(component, name)
            self.running = Running(
                command,
                {**device.environment(component), **own},
                device.work(component.name),
                device.logs / f"{component.name}.log",
                self._noticed,
                until_silent=True,
            )

    def _noticed(self, code: int) -> None:
        with self.device.turn:
            self.device.turn.notify_all()
