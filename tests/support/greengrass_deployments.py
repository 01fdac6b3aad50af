"""Local deployments: what is given is taken, resolved and prepared, then run; what fails is taken back where a nucleus does."""

import threading
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support import greengrass_recipes as recipes
from support.greengrass_recipes import Component, Refused

if TYPE_CHECKING:
    from support.greengrass import Device

SUCCEEDED = "SUCCEEDED"
# Of a deployment, and of whatever else is waited for on a device; most of it is for machines that are busy.
PATIENCE = 120.0


class Deployment:
    """A local deployment that is on its way, or has come to its end."""

    def __init__(self, work: Callable[[], str]) -> None:
        self.status = ""
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], str]) -> None:
        try:
            self.status = work()
        except Exception as error:
            self.status = f"FAILED: {error!r}"

    def wait(self) -> str:
        """Return how it ended: SUCCEEDED, or FAILED and why."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the deployment has no end"
        return self.status

    def succeeds(self) -> None:
        status = self.wait()
        assert status == SUCCEEDED, status


@dataclass(frozen=True)
class Changes:
    """What a deployment changes: components that are new or another version, and those that are restarted only."""

    reinstall: AbstractSet[str]
    restart: AbstractSet[str]


class Deployments:
    """The deployments of a device, one after the other."""

    def __init__(self, device: "Device") -> None:
        self._device = device
        self._one = threading.Lock()

    def begin(
        self,
        components: Mapping[str, str],
        outputs: tuple[Path, ...],
        remove: tuple[str, ...],
        merge: Mapping[str, Mapping[str, Any]],
    ) -> Deployment:
        """Begin to deploy components with their versions, as Device.deploy says."""

        def work() -> str:
            with self._one:
                status = self._deploy(components, outputs, remove, merge)
            self._device.note(status)
            return status

        return Deployment(work)

    def _deploy(
        self,
        components: Mapping[str, str],
        outputs: tuple[Path, ...],
        remove: tuple[str, ...],
        merge: Mapping[str, Mapping[str, Any]],
    ) -> str:
        device = self._device
        device.note(f"deploying {dict(components)}, removing {remove}")
        old, before = device.deployed, dict(device.configuration)
        try:
            for output in outputs:
                device.packages.take(output)
            new = self._resolved({**{name: one.version for name, one in old.items()}, **components}, remove)
            for name, one in new.items():
                if one != old.get(name):
                    device.packages.prepare(one, unpack=device.unpacks())
        except Refused as refusal:
            return f"FAILED: {refusal}"
        for name, one in new.items():
            known = recipes.merged(one.defaults, device.configuration.get(name, {}))
            device.configuration[name] = recipes.merged(known, merge.get(name, {}))
        reason = self._run(old, before, new)
        if reason and device.goes_back() and device.on:
            after, device.configuration = device.configuration, {**device.configuration, **before}
            self._run(new, after, old)
        if reason:
            return f"FAILED: {reason}"
        device.packages.remove_all_but(new.values())
        return SUCCEEDED

    def _run(self, old: Mapping[str, Component], before: Mapping[str, Any], new: Mapping[str, Component]) -> str:
        """Change from one set of components to another; return why it failed."""
        device = self._device
        kept = new.keys() & old.keys()
        reinstall = {name for name in new if new[name] != old.get(name)}
        restart = {name for name in kept - reinstall if device.configuration[name] != before.get(name)}
        device.deployed = dict(new)
        device.change(Changes(reinstall, restart))
        # A nucleus that is switched off meanwhile goes on with it afterwards.
        with device.turn:
            device.turn.wait_for(lambda: device.closed or (device.on and device.trouble() is not None), PATIENCE)
            reason = device.trouble() if device.on else None
        if reason == "":
            device.drop(old.keys() - new.keys())
        return "it has no end" if reason is None else reason

    def _resolved(self, versions: Mapping[str, str], remove: tuple[str, ...]) -> dict[str, Component]:
        found = {
            name: recipes.read(self._device.packages.recipe(name, version), self._device.kind)
            for name, version in versions.items()
            if name not in remove
        }
        for one in found.values():
            for name, dependency in one.dependencies.items():
                if name not in found:
                    raise Refused(f"{one.name} needs {name}, which is not there")
                if not recipes.fits(found[name].version, dependency.requirement):
                    raise Refused(f"{one.name} needs {name} {dependency.requirement}")
        return found
