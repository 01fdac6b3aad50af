"""A model's startup step, as a process in every shell there is: it ends well once the agent knows the model, never before.

The story of each test: a device with a component's artifacts, the step running as the component's user, and this test as
the agent, which answers or does not.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import stat
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model_packager import recipe as recipes
from model_packager.recipe import Artifact
from model_packager.request import from_flags
from support.agent import place
from support.users import AGENT, I_AM_ROOT, MYSELF
from support.waiting import PATIENCE, until

# How many tests start the step, in each shell: test_every_case_ran fails on any other number.
CASES = 104
USER = AGENT if I_AM_ROOT else MYSELF
STEM = "0123456789ab_greengrass_model_component"
COMPONENT, VERSION, ZIP = "com.example.Boards", "2.0.0", f"{STEM}.zip"
# So that no test has to wait for seconds; it notes what it was asked for.
SLEEP = """#!/bin/sh
[ ! -e "$FRESH" ] || set -- "$FRESH is left"
printf '%s\\n' "$*" >>"$SLEPT"
exec {sleep} 0.02
"""
# Busybox has a sleep of its own in its shell, and is told in the script; how often it looks, time tells (seconds, at most).
UNSEEN_PACE = 0.2
NOTIFY = """#!/bin/sh
printf '%s\\n' "$NOTIFY_SOCKET $*" >>"$NOTIFIED"
exit {code}
"""
POSIX_ACL = struct.Struct("<HHI")

ran: Counter[str] = Counter()


def shells() -> dict[str, str]:
    """Return the shells that are here, by name; what is called sh is one of them where it is another."""
    found = {name: path for name in ("dash", "bash", "busybox") if (path := shutil.which(name))}
    default = shutil.which("sh")
    if os.path.realpath(default) not in map(os.path.realpath, found.values()):
        found["sh"] = default
    return found


SHELLS = shells()


def executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


class Step:
    """The step as a process that runs; what it says goes into files."""

    def __init__(
        self, command: list[str], environment: dict[str, str], place_: Path, umask: int, *, sleeps_as_told: bool
    ) -> None:
        self._sleeps_as_told = sleeps_as_told
        self._begun = time.monotonic()
        self._out, self._err = place_ / "stdout", place_ / "stderr"
        self._slept = place_ / "slept"
        self._slept.write_text("")
        self._slept.chmod(0o666)
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                command,
                env={**environment, "SLEPT": str(self._slept)},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                umask=umask,
                **(USER.popen() if USER != MYSELF else {}),
            )

    def looks(self, number: int = 3) -> None:
        """Wait until it has looked at the folder so many times more; it must go on."""
        enough = self.slept() + number
        until(lambda: self.slept() >= enough or self.process.poll() is not None, "it has looked")
        assert self.process.poll() is None, self.err()

    def slept(self) -> int:
        """Return how often it has slept between two looks: for a second, as it thinks, and with no file half written."""
        asked = self._slept.read_text().splitlines()
        assert set(asked) <= {"1"}
        return len(asked) if self._sleeps_as_told else int((time.monotonic() - self._begun) / UNSEEN_PACE)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop it meanwhile, so that it sees several changes as one."""
        self.process.send_signal(signal.SIGSTOP)
        status = Path(f"/proc/{self.process.pid}/stat")
        until(lambda: status.read_text().rpartition(")")[2].split()[0] == "T", "it is stopped")
        yield
        self.process.send_signal(signal.SIGCONT)

    def out(self) -> list[str]:
        return self._out.read_text().splitlines()

    def err(self) -> list[str]:
        return self._err.read_text().splitlines()

    def end(self) -> int:
        return self.process.wait(PATIENCE)

    def fails(self) -> str:
        """Return the one sentence with which it fails."""
        assert self.end() == 1
        (sentence,) = self.err()
        assert sentence.endswith(".")
        return sentence


class Device:
    """Greengrass's folder as both nuclei lay it out, with a component that has its zip."""

    def __init__(self, folder: Path, shell: str, root: str = "greengrass") -> None:
        self.folder, self.shell = folder, shell
        self.bin = folder / "bin"
        self.bin.mkdir()
        (self.bin / "sh").symlink_to(SHELLS[shell])
        executable(self.bin / "sleep", SLEEP.format(sleep=shutil.which("sleep")))
        self.steps: list[Step] = []
        self.lay_out(root)

    def lay_out(self, root: str) -> None:
        self.root = self.folder / root
        self.artifacts = self.root / "packages" / "artifacts" / COMPONENT / VERSION
        self.unarchived = self.root / "packages" / "artifacts-unarchived" / COMPONENT / VERSION
        self.registry = self.root / "work" / "aws.iot.lookoutvision.EdgeAgent" / "models.d"
        self.artifacts.mkdir(parents=True)
        (self.artifacts / ZIP).write_text("the zip")
        script = recipes.SCRIPT.read_text()
        assert "\n    sleep 1\n" in script
        if self.shell == "busybox":
            script = script.replace("    sleep 1\n", "    sleep 0.02\n")
        (self.artifacts / "register.sh").write_text(script)

    def unpack(self) -> Path:
        """Unpack the zip, as Greengrass does except on local deployments on lite; return the package's folder."""
        (self.unarchived / STEM).mkdir(parents=True)
        (self.unarchived / STEM / "manifest.json").write_text("{}")
        return self.unarchived / STEM

    def make_registry(self, folder: Path | None = None) -> None:
        """Make the registry, as the agent does."""
        self.registry = folder or self.registry
        self.registry.mkdir(parents=True)
        os.chown(self.registry, USER.uid, USER.gid)

    def start(self, *, slash: str = "", umask: int = 0o022, unarchived: str | None = None, **given: str) -> Step:
        """Start the step in Greengrass's way, with arguments; `slash` ends all paths."""
        paths = (self.artifacts, self.unarchived, self.root)
        arguments = [f"{path}{slash}" for path in paths]
        if unarchived is not None:
            arguments[1] = unarchived
        return self.run([str(self.artifacts / "register.sh"), COMPONENT, VERSION, ZIP, *arguments], umask, **given)

    def run(self, arguments: list[str], umask: int = 0o022, **given: str) -> Step:
        """Start the shell with these arguments."""
        path = os.pathsep.join([str(self.bin), *os.environ.get("PATH", "").split(os.pathsep)])
        noted = {"NOTIFIED": str(self.folder / "notified"), "FRESH": str(self.fresh)}
        environment = {"PATH": path, **noted, **given}
        sleeps_as_told = self.shell != "busybox"
        step = Step([str(self.bin / "sh"), *arguments], environment, self.folder, umask, sleeps_as_told=sleeps_as_told)
        self.steps.append(step)
        return step

    @property
    def entry(self) -> Path:
        return self.registry / f"{COMPONENT}.json"

    @property
    def ack(self) -> Path:
        return self.registry / f"{COMPONENT}.ack"

    @property
    def fresh(self) -> Path:
        """The file that becomes the entry."""
        return self.registry / f".{COMPONENT}.json.new"

    def registered(self) -> bytes:
        """Return the entry once it is there."""
        until(self.entry.exists, "the model is registered")
        return self.entry.read_bytes()

    def put(self, path: Path, content: bytes) -> None:
        """Write a file of the registry as its user does, whole at once."""
        beside = self.registry / ".beside"
        beside.write_bytes(content)
        os.chown(beside, USER.uid, USER.gid)
        beside.rename(path)

    def answer(self, content: bytes) -> None:
        """Answer as the agent does."""
        self.put(self.ack, content)

    def acknowledge(self, step: Step) -> None:
        """Answer that the model is known, and see that the step ends well."""
        self.answer(self.registered())
        assert step.end() == 0, step.err()

    def names(self) -> set[str]:
        return {path.name for path in self.registry.iterdir()}

    def notify_with(self, code: int = 0) -> None:
        """Put another systemd-notify in place of the system's; it notes what it is called with."""
        executable(self.bin / "systemd-notify", NOTIFY.format(code=code))
        (self.folder / "notified").write_text("")
        (self.folder / "notified").chmod(0o666)

    def notified(self) -> list[str]:
        return (self.folder / "notified").read_text().splitlines()

    def close(self) -> None:
        for step in self.steps:
            if step.process.poll() is None:
                step.process.kill()
            step.process.wait()


@pytest.fixture(params=SHELLS)
def shell(request) -> str:
    return request.param


@pytest.fixture
def device(shell) -> Iterator[Device]:
    folder = place(USER)
    made = Device(folder, shell)
    try:
        yield made
    finally:
        made.close()
        ran[shell] += bool(made.steps)
        shutil.rmtree(folder, ignore_errors=True)


def entry_of(path: Path | str, autostart: str = "false", version: str = VERSION) -> bytes:
    """Return an entry as it must be, byte by byte."""
    content = {"component": COMPONENT, "version": version, "path": str(path), "autostart": autostart}
    return json.dumps(content, ensure_ascii=False).encode() + b"\n"


# What is registered


@pytest.mark.parametrize("umask", [0o022, 0o000, 0o077])
def test_it_registers_and_ends_when_the_agent_knows_the_model(device, umask):
    device.make_registry()
    step = device.start(umask=umask)
    assert device.registered() == entry_of(device.artifacts / ZIP)
    info = device.entry.stat()
    assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_nlink) == (0o644, USER.uid, 1)
    assert device.names() == {device.entry.name}
    device.acknowledge(step)
    # Both stay for the next start of the agent, which serves the model then.
    assert device.names() == {device.entry.name, device.ack.name}
    registered, known = step.out()
    assert registered == (
        f"Registered {COMPONENT} {VERSION} at {device.artifacts / ZIP} in {device.entry}; waiting for Edge Agent's answer."
    )
    assert (known, step.err()) == (f"Edge Agent knows {COMPONENT} {VERSION}.", [])


@pytest.mark.parametrize("slash", ["", "/", "//"])
@pytest.mark.parametrize("packed", [True, False])
def test_what_is_announced(device, packed, slash):
    device.make_registry()
    path = device.artifacts / ZIP if packed else device.unpack()
    step = device.start(slash=slash)
    assert device.registered() == entry_of(path)
    device.acknowledge(step)


def test_a_folder_without_a_package_is_not_announced(device):
    device.make_registry()
    (device.unpack() / "manifest.json").unlink()
    step = device.start()
    assert device.registered() == entry_of(device.artifacts / ZIP)
    device.acknowledge(step)


def test_nothing_was_unpacked_and_the_variable_is_empty(device):
    device.make_registry()
    step = device.start(unarchived="")
    assert device.registered() == entry_of(device.artifacts / ZIP)
    device.acknowledge(step)


def test_neither_zip_nor_package(device):
    device.make_registry()
    (device.artifacts / ZIP).unlink()
    sentence = device.start().fails()
    assert f"neither {ZIP} in {device.artifacts} nor" in sentence
    assert "deploy it again" in sentence
    assert device.names() == set()


ODD = {
    "spaces": "green  grass ",
    "quotes": "a \"b\" 'c'",
    "backslashes": "a\\b\\\\c\\n",
    "of the shell": "a$HOME `id` *;&|<>(){}#!~",
    "of sed and printf": "a&b/%s%%d\\&",
    "letters": "Gerät é 漢",
}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("what", ODD)
def test_odd_paths(device, what, packed):
    device.lay_out(ODD[what])
    device.make_registry()
    path = device.artifacts / ZIP if packed else device.unpack()
    step = device.start(slash="/" if packed else "")
    assert device.registered() == entry_of(path)
    device.acknowledge(step)


@pytest.mark.parametrize("root", ["a\nb", "a\tb", "a\n", "a\x01b", "a\x7fb"])
def test_paths_that_cannot_be_written_down(device, root):
    device.lay_out(root)
    device.unpack()
    registry = device.folder / "registry"
    device.make_registry(registry)
    assert "has control characters" in device.start(EDGE_AGENT_REGISTRY=str(registry)).fails()
    assert device.names() == set()


def test_a_package_that_was_unpacked_where_paths_cannot_be_written_down(device):
    device.make_registry()
    device.unarchived = device.folder / "a\x1bb"
    device.unpack()
    assert "The package is '" in device.start().fails()
    assert device.names() == set()


@pytest.mark.parametrize("which", ["artifacts", "root", "unarchived"])
def test_paths_that_are_not_absolute(device, which):
    device.make_registry()
    package = device.unpack()
    paths = {"artifacts": device.artifacts, "unarchived": device.unarchived, "root": device.root}
    paths[which] = paths[which].relative_to("/")  # where it runs
    arguments = [str(paths[name]) for name in ("artifacts", "unarchived", "root")]
    step = device.run([str(device.artifacts / "register.sh"), COMPONENT, VERSION, ZIP, *arguments])
    named = package.relative_to("/") if which == "unarchived" else paths[which]
    assert f"is '{named}'; it must be an absolute path." in step.fails()
    assert device.names() == set()


# The configuration


@pytest.mark.parametrize("slash", ["", "/", "//"])
def test_another_registry(device, slash):
    device.make_registry(device.folder / "my models")
    step = device.start(EDGE_AGENT_REGISTRY=f"{device.registry}{slash}")
    assert device.registered() == entry_of(device.artifacts / ZIP)
    device.acknowledge(step)
    assert f" in {device.entry};" in step.out()[0]


@pytest.mark.parametrize("registry", ["models.d", "./models.d", "{configuration:/Registry}", "/a\nb"])
def test_what_is_no_registry(device, registry):
    assert "The configuration key Registry is '" in device.start(EDGE_AGENT_REGISTRY=registry).fails()


@pytest.mark.parametrize("spelling", ["true", "True", "TRUE", "tRuE", "false", "False", "FALSE", "", None])
def test_spellings_of_autostart(device, spelling):
    device.make_registry()
    step = device.start(**({} if spelling is None else {"EDGE_AGENT_AUTOSTART": spelling}))
    autostart = (spelling or "false").lower()
    assert device.registered() == entry_of(device.artifacts / ZIP, autostart)
    device.acknowledge(step)


@pytest.mark.parametrize(
    "spelling", ["1", "yes", "truely", "untrue", " true", "true\n", "t*", "{configuration:/Autostart}", '"true"']
)
def test_what_is_no_autostart(device, spelling):
    device.make_registry()
    shown = spelling.rstrip("\n")
    assert device.start(EDGE_AGENT_AUTOSTART=spelling).fails() == (
        f'The configuration key Autostart is \'{shown}\'; it must be "true" or "false".'
    )
    assert device.names() == set()


# The agent's answers


def test_a_late_folder(device):
    step = device.start()
    step.looks()
    waiting = f"Waiting for the folder {device.registry}, which Edge Agent makes when it starts."
    assert (step.out(), step.err()) == ([waiting], [])
    device.make_registry()
    device.acknowledge(step)
    assert [line.split()[0] for line in step.out()] == ["Waiting", "Registered", "Edge"]


def test_a_late_answer(device):
    device.make_registry()
    step = device.start()
    device.registered()
    step.looks(6)
    assert len(step.out()) == 1
    device.acknowledge(step)


@pytest.mark.parametrize("which", ["of an earlier start", "of an earlier version", "error"])
def test_a_stale_answer(device, which):
    """It is removed, and never ends the step; the same, given now, does (or is counted)."""
    device.make_registry()
    earlier = entry_of(device.artifacts / ZIP, version="1.0.0" if "version" in which else VERSION)
    stale = b"error: it was not there.\n" if which == "error" else earlier
    device.put(device.entry, earlier)
    device.answer(stale)
    step = device.start()
    until(lambda: not device.ack.exists(), "the stale answer is removed")
    step.looks()
    assert device.registered() == entry_of(device.artifacts / ZIP)
    device.answer(stale)
    if which == "of an earlier start":
        assert step.end() == 0
    else:
        step.looks()
        device.acknowledge(step)


def test_a_stale_answer_in_a_folder_that_cannot_be_written(device):
    """An answer that cannot be removed counts for nothing, not even where entry and answer are what they would be."""
    device.make_registry()
    device.put(device.entry, entry_of(device.artifacts / ZIP))
    device.answer(entry_of(device.artifacts / ZIP))
    device.registry.chmod(0o500)
    step = device.start()
    step.looks()
    device.registry.chmod(0o700)
    until(lambda: not device.ack.exists(), "the stale answer is removed")
    step.looks()
    device.acknowledge(step)


NO_COPIES = {
    "of another version": entry_of("PATH", version="1.0.0"),
    "of another path": entry_of("PATH/"),
    "started": entry_of("PATH", "true"),
    "without the line's end": entry_of("PATH")[:-1],
    "two line ends": entry_of("PATH") + b"\n",
    "another line's end": entry_of("PATH")[:-1] + b"\r\n",
    "something before": b" " + entry_of("PATH"),
    "something after": entry_of("PATH") + b"x",
    "NUL after": entry_of("PATH") + b"\0",
    "NUL within": entry_of("PATH").replace(b"board", b"bo\0ard").replace(b"Boards", b"Boa\0rds"),
    "NULs alone": bytes(len(entry_of("PATH"))),
    "empty": b"",
    "as JSON the same": json.dumps(json.loads(entry_of("PATH"))).replace(" ", "").encode() + b"\n",
    "no error": b"no error: known.\n",
}


def test_answers_that_are_no_copies(device):
    device.make_registry()
    step = device.start()
    device.registered()
    for content in NO_COPIES.values():
        assert content != entry_of("PATH")
        device.answer(content.replace(b"PATH", str(device.artifacts / ZIP).encode()))
        step.looks(2)
        assert device.ack.exists()
    device.acknowledge(step)
    assert step.err() == []


def test_an_answer_that_is_a_folder_or_a_fifo(device):
    device.make_registry()
    step = device.start()
    device.registered()
    device.ack.mkdir()
    step.looks(2)
    device.ack.rmdir()
    os.mkfifo(device.ack)
    step.looks(2)
    device.acknowledge(step)


@pytest.mark.parametrize("reason", ["The zip is 'damaged' \\n \"at\" 100%s.", "a", "x" * 5000 + "."])
def test_an_error_twice(device, reason):
    device.make_registry()
    step = device.start()
    entry = device.registered()
    device.answer(f"error: {reason}\n".encode())
    until(lambda: not device.ack.exists(), "the answer is removed")
    step.looks()
    assert step.err() == []
    device.answer(f"error: {reason}\n".encode())
    assert (step.end(), step.err()) == (1, [reason])
    assert device.entry.read_bytes() == entry


def test_an_error_of_several_lines_is_one_sentence_in_the_log(device):
    device.make_registry()
    step = device.start()
    device.registered()
    device.answer(b"error: one")
    until(lambda: not device.ack.exists(), "the answer is removed")
    device.answer(b"error: two\n\x1b[31mlines")
    assert (step.end(), step.err()) == (1, ["two[31mlines"])


def test_an_error_then_an_acknowledgement(device):
    device.make_registry()
    step = device.start()
    device.registered()
    device.answer(b"error: it was said of what was there before.\n")
    until(lambda: not device.ack.exists(), "the answer is removed")
    device.acknowledge(step)
    assert step.err() == []


def test_an_error_that_cannot_be_removed_is_not_a_second_one(device):
    device.make_registry()
    step = device.start()
    device.registered()
    with step.stopped():
        device.answer(b"error: stale.\n")
        device.registry.chmod(0o500)
    step.looks()
    (said,) = [line for line in step.out() if "cannot be removed" in line]
    assert "tried again each second" in said
    device.registry.chmod(0o700)
    until(lambda: not device.ack.exists(), "the answer is removed")
    device.acknowledge(step)


# What becomes of the entry


def test_an_entry_that_is_unlinked_is_written_again(device):
    device.make_registry()
    step = device.start()
    entry = device.registered()
    for _ in range(3):
        device.entry.unlink()
        assert device.registered() == entry
    device.acknowledge(step)
    assert [line.split()[0] for line in step.out()] == ["Registered", "Edge"]


def test_an_entry_that_is_replaced_is_written_again(device):
    device.make_registry()
    step = device.start()
    entry = device.registered()
    earlier = entry_of(device.artifacts / ZIP, version="1.0.0")
    for other in (earlier, b"", entry[:-1]):
        with step.stopped():
            device.put(device.entry, other)
            # What is said of that is not said of ours.
            device.answer(other)
        until(lambda: device.entry.read_bytes() == entry, "the entry is ours again")
        until(lambda: not device.ack.exists(), "the answer to the other is removed")
        step.looks()
    device.acknowledge(step)


def test_an_error_counts_for_the_entry_that_was_there(device):
    device.make_registry()
    step = device.start()
    device.registered()
    for _ in range(3):
        device.answer(b"error: the package is gone.\n")
        until(lambda: not device.ack.exists(), "the answer is removed")
        device.entry.unlink()
        device.registered()
        step.looks()
    device.acknowledge(step)


def test_a_folder_that_is_replaced(device):
    device.make_registry()
    step = device.start()
    entry = device.registered()
    device.registry.rename(device.folder / "away")
    until(lambda: any(line.startswith("Waiting for the folder") for line in step.out()), "it misses the folder")
    # As from a backup: with the very entry and its acknowledgement.
    backup = device.folder / "backup"
    backup.mkdir()
    for name in (device.entry.name, device.ack.name):
        (backup / name).write_bytes(entry)
    os.chown(backup, USER.uid, USER.gid)
    backup.rename(device.registry)
    until(lambda: not device.ack.exists(), "the answer from the backup is removed")
    step.looks()
    device.acknowledge(step)


@pytest.mark.parametrize("kind", ["permission", "folder", "link to a folder"])
def test_an_entry_that_cannot_be_written_yet(device, kind):
    device.make_registry()
    other = device.folder / "other"
    other.mkdir()
    os.chown(other, USER.uid, USER.gid)
    if kind == "permission":
        device.registry.chmod(0o500)
    elif kind == "folder":
        device.entry.mkdir()
    else:
        device.entry.symlink_to(other)
    step = device.start()
    step.looks(5)
    (sentence,) = step.out()
    assert sentence.startswith(f"{device.entry} cannot be written (")
    assert "tried again each second" in sentence
    assert {"permission": "ermission denied", "folder": "is a folder", "link to a folder": "is a folder"}[
        kind
    ] in sentence
    assert device.names() == ({device.entry.name} if kind != "permission" else set())
    if kind == "permission":
        device.registry.chmod(0o700)
    elif kind == "folder":
        device.entry.rmdir()
    else:
        device.entry.unlink()
    until(lambda: len(step.out()) == 2, "it registers")
    assert device.registered() == entry_of(device.artifacts / ZIP)
    assert list(other.iterdir()) == []
    device.acknowledge(step)
    assert step.err() == []


@pytest.mark.skipif(not I_AM_ROOT, reason="needs root, to give a file to somebody else")
@pytest.mark.two_uids
def test_an_entry_of_somebody_else_in_a_sticky_folder(device):
    """It can be written beside, and cannot be put into place: nothing is left beside it."""
    device.make_registry()
    device.entry.write_bytes(b"somebody else's")
    os.chown(device.registry, 0, USER.gid)
    device.registry.chmod(0o1770)
    step = device.start()
    step.looks()  # each time without a file beside it
    assert device.entry.read_bytes() == b"somebody else's"
    assert "cannot be written" in step.out()[0]
    device.entry.unlink()
    device.acknowledge(step)


@pytest.mark.skipif(not I_AM_ROOT, reason="needs root, to give a file to somebody else")
@pytest.mark.two_uids
def test_a_stale_answer_of_somebody_else_in_a_sticky_folder(device):
    """The entry could be written and the answer not be removed: so neither is done, and it counts for nothing."""
    device.make_registry()
    device.ack.write_bytes(entry_of(device.artifacts / ZIP))
    os.chown(device.registry, 0, USER.gid)
    device.registry.chmod(0o1770)
    step = device.start()
    step.looks()
    assert device.names() == {device.ack.name}
    assert "cannot be written" in step.out()[0]
    device.ack.unlink()
    device.acknowledge(step)


def test_what_a_dead_start_left_and_what_was_planted(device):
    """A file of the name that it writes to is neither appended to nor followed."""
    device.make_registry()
    victim = device.folder / "victim"
    victim.write_text("precious")
    os.chown(victim, USER.uid, USER.gid)
    device.fresh.symlink_to(victim)
    step = device.start()
    assert device.registered() == entry_of(device.artifacts / ZIP)
    assert not device.entry.is_symlink()
    assert victim.read_text() == "precious"
    device.acknowledge(step)
    assert device.names() == {device.entry.name, device.ack.name}


def test_a_default_acl_of_the_folder(device):
    """It goes before the umask, and would let the group write, for which the agent would refuse the entry."""
    device.make_registry()
    everything = [(0x01, 7), (0x04, 7), (0x10, 7), (0x20, 7)]  # owner, group, mask, others
    acl = struct.pack("<I", 2) + b"".join(POSIX_ACL.pack(tag, bits, 0xFFFFFFFF) for tag, bits in everything)
    try:
        os.setxattr(device.registry, "system.posix_acl_default", acl)
    except OSError as error:
        device.run(["-c", ":"]).end()  # it counts
        pytest.skip(f"no ACLs here: {error.strerror}")
    probe = device.registry / "probe"
    probe.touch()
    assert stat.S_IMODE(probe.stat().st_mode) == 0o666, "the ACL does nothing"
    probe.unlink()
    step = device.start()
    device.registered()
    assert stat.S_IMODE(device.entry.stat().st_mode) == 0o644
    device.acknowledge(step)


# The end


@pytest.mark.skipif(not shutil.which("systemd-notify"), reason="there is no systemd-notify here")
def test_systemd_is_told_and_not_before(device):
    device.make_registry()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as systemd:
        systemd.bind(str(device.folder / "notify"))
        (device.folder / "notify").chmod(0o777)
        step = device.start(NOTIFY_SOCKET=str(device.folder / "notify"))
        device.registered()
        device.answer(b"error: no.\n")
        until(lambda: not device.ack.exists(), "the answer is removed")
        step.looks()
        with pytest.raises(BlockingIOError):
            systemd.recv(4096)
        device.answer(device.registered())
        messages: list[str] = []

        def received() -> bool:
            with contextlib.suppress(BlockingIOError):
                # What comes with a message, a file to close when it was seen, is closed by not being taken.
                messages.append(systemd.recv(4096).decode())
            return step.process.poll() is not None

        until(received, "it ends")
        assert step.end() == 0
    assert "READY=1" in messages[0].splitlines()


def test_how_systemd_is_told(device):
    device.make_registry()
    device.notify_with()
    step = device.start(NOTIFY_SOCKET="/run/notify")
    device.registered()
    step.looks()
    assert device.notified() == []
    device.acknowledge(step)
    assert device.notified() == ["/run/notify --ready"]


def test_systemd_that_cannot_be_told(device):
    device.make_registry()
    device.notify_with(code=3)
    step = device.start(NOTIFY_SOCKET="/run/notify")
    device.answer(device.registered())
    assert step.end() == 3


def test_nobody_is_told_where_the_variable_is_empty(device):
    device.make_registry()
    device.notify_with()
    device.acknowledge(device.start(NOTIFY_SOCKET=""))
    assert device.notified() == []


@pytest.mark.parametrize("waits_for", ["the folder", "the answer", "the agent's next word"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_it_waits(device, waits_for, number):
    """As when the nucleus stops or its time is over: that is no success."""
    device.notify_with()
    if waits_for != "the folder":
        device.make_registry()
    step = device.start(NOTIFY_SOCKET="/run/notify")
    if waits_for == "the folder":
        until(step.out, "it waits")
    else:
        device.registered()
    if waits_for == "the agent's next word":
        device.answer(b"error: no.\n")
        until(lambda: not device.ack.exists(), "the answer is removed")
    step.process.send_signal(number)
    assert step.end() == -number
    assert device.notified() == []


# As a nucleus runs it


def script_of(device: Device) -> dict[str, Any]:
    """Return the step of the recipe that a job makes."""
    request = from_flags(
        project_name="boards",
        model_version="2",
        component_name=COMPONENT,
        output="out",
        target_platform="os=LINUX,arch=X86_64",
    )
    uris = (f"s3://BUCKET_NAME/{COMPONENT}/{VERSION}/{name}" for name in (ZIP, "register.sh"))
    made = recipes.recipe(request, *(Artifact(uri, bytes(32)) for uri in uris))
    return made["Manifests"][0]["Lifecycle"]["startup"]


def substituted(text: str, device: Device, configuration: dict[str, str], slash: str) -> str:
    """Return a text of the recipe with its variables replaced; fail on one that is not known."""
    values = {
        "{artifacts:path}": f"{device.artifacts}{slash}",
        "{artifacts:decompressedPath}": f"{device.unarchived}{slash}",
        "{kernel:rootPath}": str(device.root),
        **{f"{{configuration:/{key}}}": value for key, value in configuration.items()},
    }
    return re.sub(r"\{[^}]*\}", lambda found: values[found[0]], text)


def run_as(nucleus: str, device: Device, configuration: dict[str, str], **given: str) -> Step:
    """Run the recipe's step as a nucleus does.

    The Java nucleus gives the script to a shell and the variables to its environment. Nucleus lite writes one script of
    both, the values in single quotes, and tells systemd at its end that all is well, whatever was before.
    """
    step = script_of(device)
    slash = "/" if nucleus == "lite" else ""
    script = substituted(step["Script"], device, configuration, slash)
    variables = {key: substituted(value, device, configuration, slash) for key, value in step["Setenv"].items()}
    if nucleus == "java":
        return device.run(["-c", script], **variables, **given)
    exports = "".join(f"export {key}={shlex.quote(value)}\n" for key, value in variables.items())
    path = device.folder / "script"
    path.write_text(f"#!/bin/sh\n{exports}{script}\nsystemd-notify --ready\nsystemd-notify --stopping\n")
    path.chmod(0o644)
    return device.run([str(path)], **given)


DEFAULTS = {"Registry": "", "Autostart": "false"}


@pytest.mark.parametrize("configured", [False, True])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("nucleus", ["java", "lite"])
def test_the_recipes_script(device, nucleus, packed, configured):
    device.notify_with()
    registry = device.folder / "it's $HOME's \"models\"" if configured else device.registry
    device.make_registry(registry)
    path = device.artifacts / ZIP if packed else device.unpack()
    configuration = {"Registry": str(registry), "Autostart": "True"} if configured else DEFAULTS
    environment = {"NOTIFY_SOCKET": "/run/notify"} if nucleus == "lite" else {}
    step = run_as(nucleus, device, configuration, **environment)
    assert device.registered() == entry_of(path, "true" if configured else "false")
    step.looks()
    assert device.notified() == []
    device.acknowledge(step)
    assert device.notified() == (["/run/notify --ready"] if nucleus == "lite" else [])


@pytest.mark.parametrize("nucleus", ["java", "lite"])
def test_the_recipes_script_fails_as_a_whole(device, nucleus):
    """What nucleus lite writes after the script, that all is well, is never reached."""
    device.notify_with()
    device.make_registry()
    step = run_as(nucleus, device, {**DEFAULTS, "Autostart": "perhaps"}, NOTIFY_SOCKET="/run/notify")
    assert "Autostart is 'perhaps'" in step.fails()
    assert device.notified() == []


def test_nothing_else_is_needed_than_it_says(device):
    """In a PATH with the programs that its head names, and no others."""
    text = recipes.SCRIPT.read_text()
    named = re.search(r"smallest systems have, too: ([a-z, ]+?) and ([a-z]+); and", text)
    programs = [*named[1].split(", "), named[2]]
    assert programs == ["chmod", "mv", "rm", "sed", "sleep", "tr"]
    for name in programs:
        if not (device.bin / name).exists():
            (device.bin / name).symlink_to(shutil.which(name))
    device.make_registry()
    step = device.start(PATH=str(device.bin))
    device.registered()
    device.answer(b"error: no.\n")
    until(lambda: not device.ack.exists(), "the answer is removed")
    device.acknowledge(step)
    assert step.err() == []


def test_signals_are_not_handled():
    """A handler, that of a library's cleaning up, too, would make an end by a signal look well."""
    code = [line for line in recipes.SCRIPT.read_text().splitlines() if not line.lstrip().startswith("#")]
    assert not [line for line in code if re.search(r"\btrap\b", line)]


def test_every_case_ran(request):
    if request.config.option.keyword or any("::" in one for one in request.config.args):
        pytest.skip("only some cases were asked for")
    expected = CASES - 2 * (not I_AM_ROOT) - (not shutil.which("systemd-notify"))
    assert ran == dict.fromkeys(SHELLS, expected)
