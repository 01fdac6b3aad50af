"""Two unprivileged users for a test run by root, who may do everything and would notice nothing."""

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import edge_agent
import model_packager

ROOT = Path(__file__).resolve().parents[2]
I_AM_ROOT = os.geteuid() == 0


@dataclass(frozen=True)
class User:
    """A user to run a process as; uids without an entry in /etc/passwd, so that nothing else belongs to them."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    def popen(self) -> dict:
        """Return the arguments that make subprocess run as this user."""
        if not I_AM_ROOT:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": list(self.groups)}


AGENT = User(54301, 54301)
OTHER = User(54302, 54302)
MYSELF = User(os.geteuid(), os.getegid())


@functools.cache
def code_path() -> str:
    """Return a PYTHONPATH with the agent's code that every user can read, empty where the installed one will do."""
    if not I_AM_ROOT or _can_import({}):
        return ""
    folder = Path(tempfile.mkdtemp(prefix="edge-agent-code-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    folder.chmod(0o755)
    for package in (edge_agent, model_packager):  # those of the tests, wherever they are
        source = Path(package.__file__).parent
        shutil.copytree(source, folder / source.name)
    subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
    return str(folder)


@functools.cache
def agent_user() -> User:
    """Return the user that agents of the tests run as: an unprivileged one, or we ourselves."""
    if not I_AM_ROOT:
        return MYSELF
    if _can_import({"PYTHONPATH": code_path()} if code_path() else {}):
        return AGENT
    print(
        f"\nuid {AGENT.uid} cannot run {sys.executable}: agents run as root (allow_root), and tests of permissions skip"
    )
    return MYSELF


def _can_import(environment: dict[str, str]) -> bool:
    command = [sys.executable, "-c", "import edge_agent.worker, edge_agent.cli, onnxruntime"]
    clean = {"PATH": "/usr/bin:/bin", "ORT_DISABLE_TELEMETRY": "1", **environment}
    try:
        done = subprocess.run(command, env=clean, cwd="/", capture_output=True, check=False, **AGENT.popen())
    except PermissionError:  # the interpreter itself is out of reach
        return False
    return done.returncode == 0
