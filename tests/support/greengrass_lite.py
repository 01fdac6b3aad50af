"""Nucleus lite's way of running components: as units of systemd, which orders them by all their dependencies.

Sources: nucleus lite's ggdeploymentd and recipe-runner.
"""

import os
from collections.abc import Callable
from collections.abc import Set as AbstractSet

from model_packager.request import AGENT_COMPONENT
from support import greengrass_notify as notify
from support import nucleus as ipc
from support.greengrass import Device
from support.greengrass_deployments import PATIENCE, Changes
from support.greengrass_processes import Running
from support.greengrass_recipes import LITE, Component, ordered
from support.greengrass_units import (
    ACTIVATING,
    ACTIVE,
    DEFAULT_TIMEOUT,
    FAILED,
    INACTIVE,
    START,
    STOP,
    STOP_PATIENCE,
    Unit,
)

# The runner appends them to each startup script that it could fill in.
TOLD_AT_THE_END = "\nsystemd-notify --ready\nsystemd-notify --stopping\n"


class LiteDevice(Device):
    """A device with nucleus lite under systemd."""

    kind = LITE
    socket_name = "gg-ipc.socket"

    def __init__(self) -> None:
        super().__init__()
        self._units: dict[str, Unit] = {}
        self._failed_install = ""
        # Not the system's own, which need not be there, or may be too old for --stopping.
        notify.install(self.programs)

    def keeps_folders(self) -> bool:
        return True

    def unpacks(self) -> bool:
        return False

    def goes_back(self) -> bool:
        return False

    def begin(self) -> None:
        self._start(set(self.deployed))

    def finish(self) -> None:
        self._end(set(self._units))

    def forget(self) -> None:
        with self.turn:
            units, self._units = self._units, {}
            for unit in units.values():
                unit.abandoned = True
            self.turn.notify_all()

    def change(self, changes: Changes) -> None:
        self._failed_install = ""
        for component in ordered(self.deployed):
            if component.name in changes.reinstall and not self._failed_install:
                self._install(component)
        if self._failed_install:
            return
        changed = changes.reinstall | changes.restart
        # Whoever is bound to what is restarted is restarted with it.
        self._start({*changed, *self._end(changed)} & self.deployed.keys())

    def drop(self, names: AbstractSet[str]) -> None:
        self._end(names)

    def trouble(self) -> str | None:
        if self._failed_install:
            return self._failed_install
        units = {name: one for name, one in self._units.items() if name in self.deployed}
        if failed := [name for name, one in units.items() if one.state == FAILED]:
            return f"{', '.join(failed)} is BROKEN: {units[failed[0]].reason}"
        done = all(one.state in {ACTIVE, INACTIVE} and not one.job for one in units.values())
        return "" if done else None

    def state(self, name: str) -> str:
        unit = self._units.get(name)
        return unit.state if unit else ""

    def reason(self, name: str) -> str:
        """Return how a unit last came to its end, in systemd's words."""
        return self._units[name].reason

    def restart(self, name: str) -> None:
        self._start({name, *self._end({name})})

    def process(self, name: str) -> Running | None:
        return self._units[name].running if name in self._units else None

    def told_running(self, call: ipc.Call) -> None:
        unit = self._units.get(AGENT_COMPONENT)
        if unit and call.request["state"] == "RUNNING":
            unit.told("READY=1")
        call.reply()

    def bound_to(self, name: str) -> list[Unit]:
        """Return the units that depend HARD on another one, which are bound to it."""
        found = []
        for unit in self._units.values():
            dependency = unit.component.dependencies.get(name)
            if dependency and dependency.hard:
                found.append(unit)
        return found

    def before(self, component: Component) -> list[Unit]:
        """Return the units after which a component is started: all that it depends on, HARD or SOFT."""
        return [self._units[name] for name in component.dependencies if name in self._units]

    def lacks(self, component: Component) -> bool:
        """Return whether a component is bound to one that is not active."""
        return any(self.state(name) != ACTIVE for name, one in component.dependencies.items() if one.hard)

    def script(self, component: Component, name: str) -> str:
        """Return the script of a step as the runner writes it, cut where it comes upon what it does not know."""
        variables, step = self.variables(component), component.steps[name]
        text = "#!/bin/sh\n"
        for key, value in step.environment.items():
            if not isinstance(value, str):
                return text
            filled, whole = variables.lite(value, "'")
            text += f"export {key}='{filled}"
            if not whole:
                return text
            text += "'\n"
        filled, whole = variables.lite(step.script, '"')
        return text + filled + (TOLD_AT_THE_END if whole and name == "startup" else "")

    def spawn(self, component: Component, name: str, ended: Callable[[int], None], **environment: str) -> Running:
        """Run a step."""
        self.begins(component, name)
        script = os.memfd_create("script")
        try:
            os.write(script, self.script(component, name).encode())
            return Running(
                [*self.in_front(component.steps[name]), "/bin/sh", f"/dev/fd/{script}"],
                {**self.environment(component), **environment},
                self.work(component.name),
                self.logs / f"{component.name}.log",
                ended,
                until_silent=False,
                keep=(script,),
            )
        finally:
            os.close(script)

    def _install(self, component: Component) -> None:
        """Run the step of a deployment that comes before all units are started."""
        self.installs.append(component.name)
        instead, step = self.instead_of_install.get(component.name), component.steps.get("install")
        if instead:
            instead(component, self.work(component.name))
        elif step:
            running = self.spawn(component, "install", lambda _: None)
            if not running.wait(step.timeout or DEFAULT_TIMEOUT):
                running.end(STOP_PATIENCE, children_first=False)
            if running.code:
                self._failed_install = f"install of {component.name} exited with {running.code}"

    def _start(self, names: set[str]) -> None:
        """Start units in one transaction, so that each knows of the jobs of the others."""
        fresh = []
        with self.turn:
            for name in names:
                if name not in self._units:
                    fresh.append(Unit(self, self.deployed[name]))
                    self._units[name] = fresh[-1]
                self._units[name].job = START
            self.turn.notify_all()
        for unit in fresh:
            self.threads.append(unit.thread)
            unit.thread.start()

    def _end(self, names: AbstractSet[str]) -> set[str]:
        """Stop units and forget them; those that are bound to them come first, and are returned."""
        bound: set[str] = set()
        for name in names & self._units.keys():
            alive = [one for one in self.bound_to(name) if one.state in {ACTIVE, ACTIVATING} or one.job]
            bound |= {one.component.name for one in alive if one.component.name not in names}
        if bound:
            bound |= self._end(bound)
        known = ordered({name: one.component for name, one in self._units.items()})
        for name in [one.name for one in reversed(list(known)) if one.name in names]:
            unit = self._units[name]
            with self.turn:
                unit.job = STOP
                self.turn.notify_all()
                assert self.turn.wait_for(lambda: not unit.job, PATIENCE), f"{name} does not stop"
                unit.abandoned = True
                del self._units[name]
                self.turn.notify_all()
        return bound
