"""The Java nucleus's way of running components: all at once, in no order but that of HARD dependencies."""

from collections.abc import Set as AbstractSet

from model_packager.request import AGENT_COMPONENT
from support import nucleus as ipc
from support.greengrass import Device
from support.greengrass_deployments import PATIENCE, Changes
from support.greengrass_processes import Running
from support.greengrass_recipes import JAVA, Component, ordered
from support.greengrass_services import BROKEN, FINISHED, READY, REINSTALL, RESTART, RUNNING, STARTING, STOP, Service


class JavaDevice(Device):
    """A device with the Java nucleus."""

    kind = JAVA
    socket_name = "ipc.socket"

    def __init__(self) -> None:
        super().__init__()
        self._services: dict[str, Service] = {}
        self.updating = False

    def keeps_folders(self) -> bool:
        return False

    def unpacks(self) -> bool:
        return True

    def goes_back(self) -> bool:
        return True

    def begin(self) -> None:
        for one in self.deployed.values():
            self._services[one.name] = Service(self, one)
        for service in self._services.values():
            service.begin()

    def finish(self) -> None:
        for one in reversed(list(ordered(self.deployed))):
            self._end(one.name)

    def forget(self) -> None:
        with self.turn:
            services, self._services = self._services, {}
            for service in services.values():
                service.abandoned = True
            self.turn.notify_all()

    def change(self, changes: Changes) -> None:
        with self.turn:
            self.updating = True
            for name in changes.reinstall & self._services.keys():
                self._services[name].component = self.deployed[name]
                self._services[name].ask(REINSTALL)
            for name in changes.restart:
                self._services[name].ask(RESTART)
            fresh = {name: Service(self, self.deployed[name]) for name in changes.reinstall - self._services.keys()}
            self._services.update(fresh)
        for service in fresh.values():
            service.begin()
        # Nothing is installed or started before the new configuration is there, and that takes longer than it takes to stop
        # what has no process.
        asked = [self._services[name] for name in changes.reinstall | changes.restart]
        with self.turn:
            self.turn.wait_for(lambda: all(one.has_left() for one in asked), PATIENCE)
            self.updating = False
            self.turn.notify_all()

    def drop(self, names: AbstractSet[str]) -> None:
        for name in names & self._services.keys():
            self._end(name)

    def trouble(self) -> str | None:
        services = {name: one for name, one in self._services.items() if name in self.deployed}
        if broken := [name for name, one in services.items() if one.state == BROKEN]:
            return f"{', '.join(broken)} is BROKEN: {services[broken[0]].reason}"
        done = all(one.state in {RUNNING, FINISHED} and not one.request for one in services.values())
        return "" if done else None

    def state(self, name: str) -> str:
        service = self._services.get(name)
        return service.state if service else ""

    def restart(self, name: str) -> None:
        with self.turn:
            service = self._services[name]
            service.ask(RESTART)
            self.turn.wait_for(lambda: not service.request, PATIENCE)
            assert not service.request

    def process(self, name: str) -> Running | None:
        return self._services[name].running if name in self._services else None

    def told_running(self, call: ipc.Call) -> None:
        with self.turn:
            service = self._services.get(AGENT_COMPONENT)
            if service and service.state == STARTING:
                service.told_running = call.request["state"] == RUNNING
            self.turn.notify_all()
        call.reply()

    def dependents(self, name: str) -> list[Service]:
        """Return the components that depend HARD on another."""
        found = []
        for service in self._services.values():
            dependency = service.component.dependencies.get(name)
            if dependency and dependency.hard:
                found.append(service)
        return found

    def ready(self, component: Component) -> bool:
        """Return whether all that a component depends on HARD runs."""
        return all(self.state(name) in READY for name, dependency in component.dependencies.items() if dependency.hard)

    def _end(self, name: str) -> None:
        service = self._services[name]
        with self.turn:
            service.ask(STOP)
        service.thread.join(PATIENCE)
        assert not service.thread.is_alive(), f"{name} does not stop"
        with self.turn:
            self._services.pop(name, None)
