"""A Greengrass device as far as components see it: deployments, boots, and what a power cut leaves.

What the Java nucleus and nucleus lite do each in their own way is in greengrass_java.py and greengrass_lite.py. Real
recipes are read, and their scripts run as processes; only the nucleus is a stand-in.
"""

import os
import secrets
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, ClassVar

from model_packager.request import AGENT_COMPONENT
from support import greengrass_recipes as recipes
from support import nucleus as ipc
from support.agent import place
from support.greengrass_deployments import PATIENCE, Changes, Deployment, Deployments
from support.greengrass_packages import Packages
from support.greengrass_processes import DEVICE_MARK, Running, as_user, kill_all, marked, offline
from support.greengrass_recipes import Component, Step, Variables
from support.users import I_AM_ROOT, agent_user
from support.waiting import until

THING = "line-7"
# Makes what an install step would have made, in the component's work folder.
Prepare = Callable[[Component, Path], None]


class Device:
    """A device with a nucleus; its subclasses say which. Closed, it leaves no process and no folder behind."""

    kind: ClassVar[str]
    socket_name: ClassVar[str]

    def __init__(self) -> None:
        self.user = agent_user()
        self.base = place()
        self.root = self.base / "v2"
        self.logs = self.base / "logs"
        self.mark = secrets.token_hex(8)
        # Whatever changes is told to all who wait for something.
        self.turn = threading.Condition()
        self.on = self.closed = False
        # Components that are not started yet, whatever the nucleus would do.
        self.held: set[str] = set()
        self.instead_of_install: dict[str, Prepare] = {}
        self.installs: list[str] = []
        # How often each component has been started, be it in vain.
        self.starts: Counter[str] = Counter()
        self.deployed: dict[str, Component] = {}
        self.configuration: dict[str, dict[str, Any]] = {}
        # Those of components, which end with them.
        self.threads: list[threading.Thread] = []
        self.programs = self.base / "bin"
        self._sockets = 0
        self._deployments = Deployments(self)
        self._began = time.monotonic()
        self._journal: list[str] = []
        self._ipc: ipc.Nucleus | None = None
        self.token = secrets.token_hex(8)
        (self.root / "work").mkdir(parents=True)
        self.packages = Packages(self.root / "packages", self.own)
        self.logs.mkdir()
        self.programs.mkdir()
        for folder in (self.root, *self.root.rglob("*")):
            folder.chmod(0o755)
            self.own(folder, self.keeps_folders())

    # What each nucleus does in its own way.

    def keeps_folders(self) -> bool:
        """Return whether the nucleus's own folders belong to the components' user."""
        raise NotImplementedError

    def unpacks(self) -> bool:
        """Return whether zips are unpacked on a local deployment."""
        raise NotImplementedError

    def begin(self) -> None:
        """Start whatever is deployed."""
        raise NotImplementedError

    def finish(self) -> None:
        """Stop all components, those that depend on others first."""
        raise NotImplementedError

    def forget(self) -> None:
        """End the nucleus without any component being told."""
        raise NotImplementedError

    def change(self, changes: Changes) -> None:
        """Begin to run what is deployed now, after these changes."""
        raise NotImplementedError

    def drop(self, names: AbstractSet[str]) -> None:
        """Stop components that are deployed no more."""
        raise NotImplementedError

    def trouble(self) -> str | None:
        """Return why what is deployed cannot run, empty where it does, None while that is open."""
        raise NotImplementedError

    def goes_back(self) -> bool:
        """Return whether the nucleus goes back by itself when a deployment failed."""
        raise NotImplementedError

    def state(self, name: str) -> str:
        """Return the state of a component in the nucleus's own words."""
        raise NotImplementedError

    def restart(self, name: str) -> None:
        """Restart a component, as an operator does."""
        raise NotImplementedError

    def process(self, name: str) -> Running | None:
        """Return the step of a component that runs or ran last."""
        raise NotImplementedError

    def told_running(self, call: ipc.Call) -> None:
        """Take note of a component that says over IPC that it is running."""
        raise NotImplementedError

    # What they have in common.

    def boot(self) -> None:
        """Switch the device on."""
        assert not self.on
        self.note("on")
        self._ipc = ipc.Nucleus(self.root / self.socket_name, self.token).start()
        self._ipc.operations[ipc.UPDATE_STATE] = self.told_running
        self.begin()
        with self.turn:
            self.on = True
            self.turn.notify_all()

    def shut_down(self) -> None:
        """Switch the device off in order."""
        self.note("off")
        self.finish()
        self._off()

    def cut_power(self) -> None:
        """End everything at once; nobody gets to do anything about it."""
        self.note("power cut")
        self.forget()
        kill_all(self.mark)
        self._off()

    def _off(self) -> None:
        self.on = False
        if self._ipc:
            self._ipc.stop()
            self._ipc = None
        while self.threads:
            thread = self.threads.pop()
            thread.join(PATIENCE)
            assert not thread.is_alive(), f"the thread of {thread.name} has no end"
        left = marked(DEVICE_MARK, self.mark)
        assert not left, f"processes are left: {left}"

    def deploy(
        self,
        components: Mapping[str, str],
        *outputs: Path,
        remove: tuple[str, ...] = (),
        merge: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Deployment:
        """Begin a local deployment of components with their versions.

        Each output is a folder whose `recipes` and `artifacts` are given as --recipe-dir and --artifacts-dir.
        """
        return self._deployments.begin(components, outputs, remove, merge or {})

    # Where things are, and what is said of them.

    def work(self, name: str) -> Path:
        """Return a component's work folder, which it owns."""
        folder = self.root / "work" / name
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
        return self.own(folder)

    def own(self, path: Path, by_components: bool = True) -> Path:
        """Give a path to the components' user."""
        if I_AM_ROOT and by_components:
            os.chown(path, self.user.uid, self.user.gid)
        return path

    def next_socket(self) -> Path:
        """Return a path for a socket, short enough to be one."""
        self._sockets += 1
        return self.base / f"n{self._sockets}"

    def begins(self, component: Component, step: str) -> None:
        """Take note of a step that begins."""
        self.note(f"{component.name} {component.version}: {step}")
        self.starts[component.name] += step != "install"

    def note(self, text: str) -> None:
        self._journal.append(f"{time.monotonic() - self._began:7.2f} {text}")

    def log(self, name: str) -> str:
        """Return what a component has written."""
        try:
            return (self.logs / f"{name}.log").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def story(self) -> str:
        """Return all that happened, for whoever reads why a test failed."""
        logs = [f"--- {path.stem}\n{path.read_text(errors='replace')}" for path in sorted(self.logs.iterdir())]
        return "\n".join([f"--- {self.kind}", *self._journal, *logs])

    def variables(self, component: Component) -> Variables:
        """Return what a component's variables stand for; the paths end as the nucleus writes them."""
        end = "" if self.kind == recipes.JAVA else "/"
        values = {
            "artifacts:path": f"{self.packages.artifacts(component)}{end}",
            "artifacts:decompressedPath": f"{self.packages.unarchived(component)}{end}",
            "work:path": f"{self.root / 'work' / component.name}{end}",
            "kernel:rootPath": str(self.root),
            "iot:thingName": THING,
        }
        return Variables(values, self.configuration[component.name])

    def environment(self, component: Component) -> dict[str, str]:
        """Return what the nucleus itself puts into a component's environment."""
        token = self.token if component.name == AGENT_COMPONENT else f"of {component.name}"
        return {
            "PATH": f"{self.programs}:{os.environ.get('PATH', os.defpath)}",
            "HOME": "/nonexistent",
            "SVCUID": token,
            "AWS_CONTAINER_AUTHORIZATION_TOKEN": token,
            ipc.SOCKET_VARIABLE: str(self.root / self.socket_name),
            "AWS_IOT_THING_NAME": THING,
            "AWS_REGION": "eu-central-1",
            DEVICE_MARK: self.mark,
        }

    def in_front(self, step: Step) -> list[str]:
        """Return the command that makes the rest of a command a component's."""
        return [*offline(), *as_user(self.user, step.privileged)]

    # What is waited for.

    def until_state(self, name: str, *states: str) -> None:
        with self.turn:
            seen = self.turn.wait_for(lambda: self.state(name) in states, PATIENCE)
        assert seen, f"{name} is {self.state(name)} and never {' or '.join(states)}"

    def until_log(self, name: str, text: str, count: int = 1) -> None:
        until(lambda: self.log(name).count(text) >= count, f"{name} says {text!r}", PATIENCE)

    def hold(self, *names: str) -> None:
        """Keep components from being started."""
        self.held.update(names)

    def release(self, *names: str) -> None:
        """Let held components be started, all at the same moment."""
        with self.turn:
            self.held.difference_update(names)
            self.turn.notify_all()

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Kill a component's process, as the kernel would that runs out of memory."""
        with self.turn:
            process = self.process(name)
        assert process is not None, f"{name} has no process"
        assert process.code is None, f"{name} has ended"
        self.note(f"killed {name}")
        os.kill(process.pid, number)

    def close(self) -> None:
        """End everything, and remove the device; fail where something is left."""
        if self.on:
            self.cut_power()
        with self.turn:
            self.closed = True
            self.turn.notify_all()
        shutil.rmtree(self.base)
        assert not self.base.exists()
