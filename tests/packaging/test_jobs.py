"""The life of a packaging job: whatever is killed and whenever, its record says so and nothing of it is left."""

import contextlib
import errno
import fcntl
import itertools
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from model_packager import foreman, jobs
from model_packager.errors import PackagingRefused
from model_packager.jobs import Job, Status, Store
from support.agent import alive, parent
from support.waiting import PATIENCE, until

# What runners of these tests do instead of packaging.
WORKS = '''
import os, re, resource, signal, subprocess, sys, tempfile, threading, time
from pathlib import Path
from model_packager.errors import PackagingRefused

def begin(order, work, destination):
    """Leave what a job in the middle of its work has: files, a partial output, a child in its group and one outside."""
    (work / "folder").mkdir()
    (work / "folder" / "file").write_text("temporary")
    partial = Path(destination.partial("board", "1.0.0", order["request"]["JobName"]))
    partial.mkdir(parents=True)
    (partial / "recipe.json").write_text("{")
    subprocess.Popen(["sleep", "600"])
    subprocess.Popen(["sleep", "600"], start_new_session=True)

def stuck(order, work, destination, progress):
    begin(order, work, destination)
    progress("Stuck.", 0.5)
    time.sleep(600)

def strips_its_child(order, work, destination, progress):
    begin(order, work, destination)
    subprocess.Popen(["sh", "-c", "sleep 600; :", str(work)], env={})
    progress("Stuck.", 0.5)
    time.sleep(600)

def holds_the_interpreter(order, work, destination, progress):
    begin(order, work, destination)
    progress("Stuck.", 0.5)
    re.match("(a+)+$", "a" * 64 + "b")

def gated(order, work, destination, progress):
    progress("Waiting.", 0.25)
    while not Path(order["options"]["gate"]).exists():
        time.sleep(0.01)
    progress("Going.", float("nan"))
    progress("Done.", 7)
    return {"Answer": 42}

def publishes(order, work, destination, progress):
    (work / "component").mkdir()
    (work / "component" / "recipe.json").write_text("{}")
    return {"Where": destination.publish(work / "component", "board", "1.0.0", order["request"]["JobName"])}

def tells(order, work, destination, progress):
    subprocess.Popen(["sleep", "600"])
    threading.Thread(target=time.sleep, args=(600,)).start()
    return {"Nice": os.nice(0), "Memory": resource.getrlimit(resource.RLIMIT_AS), "Temporary": tempfile.gettempdir(),
            "Folder": os.getcwd(), "Work": str(work), "Order": order, "Destination": str(destination)}

def refuses(order, work, destination, progress):
    raise PackagingRefused("The model has no input.")

def breaks(order, work, destination, progress):
    begin(order, work, destination)
    raise ZeroDivisionError("the cause")

def exits(order, work, destination, progress):
    sys.exit(0)

def ends(order, work, destination, progress):
    begin(order, work, destination)
    os._exit(3)

def answers_nonsense(order, work, destination, progress):
    return {"Result": object()}

def cannot_record(order, work, destination, progress):
    in_the_way = work.parent / "job.new"
    in_the_way.mkdir()
    progress("One.", 0.1)
    time.sleep(0.5)
    progress("Two.", 0.2)
    time.sleep(0.5)
    in_the_way.rmdir()
    return {}
'''

START = """
import json, sys, time
from pathlib import Path
from model_packager import foreman
from model_packager.errors import PackagingRefused
from model_packager.jobs import Store

folder, order, mode, work = sys.argv[1:]
store = Store(Path(folder))
if mode == "at once":
    sys.stdin.readline()
try:
    job = store.create(json.loads(order))
except PackagingRefused as error:
    sys.exit(str(error))
if mode == "attached":
    job = foreman.run_attached(store, job, lambda *progress: print(*progress, flush=True), work=work)
elif mode == "detached":
    job = foreman.run_detached(store, job, work=work)
else:
    print("created", flush=True)
    sys.stdin.readline()
print(job.status.value, job.message)
"""


class Place:
    """A store and an output of their own, and the processes that belong to them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gate = folder / "gate"
        self.output = folder / "output"
        self.store = Store(folder / "packaging")
        (folder / "works.py").write_text(WORKS)
        (folder / "start.py").write_text(START)

    def order(self, name: str = "job", project: str = "boards") -> dict:
        configuration = {"Greengrass": {"ComponentName": "board", "ComponentVersion": "1.0.0"}}
        request = {"ProjectName": project, "ModelVersion": "7", "JobName": name, "Configuration": configuration}
        return {
            "request": {**request, "Description": "of boards"},
            "output": str(self.output),
            "source": "/models/board",
            "options": {"gate": str(self.gate)},
        }

    def create(self, name: str = "job", **order: str) -> Job:
        return self.store.create(self.order(name, **order))

    def run(self, work: str, name: str = "job") -> Job:
        return foreman.run_attached(self.store, self.create(name), lambda _, __: None, work=f"works:{work}")

    def start(self, work: str, mode: str = "attached", name: str = "job", **popen: object) -> subprocess.Popen:
        """Start a job with a command of its own."""
        arguments = [str(self.store.path), json.dumps(self.order(name)), mode, f"works:{work}"]
        return subprocess.Popen(
            [sys.executable, str(self.folder / "start.py"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **popen,
        )

    def recorded(self, name: str = "job") -> dict:
        """Return the record without the sweep that comes with reading by the store."""
        try:
            return json.loads((self.store.folder(name) / "job.json").read_bytes())
        except FileNotFoundError:
            return {"Status": "", "Progress": {"Step": ""}}

    def wait_for(self, status: str, name: str = "job") -> dict:
        until(lambda: self.recorded(name)["Status"] == status, f"job {name} is {status}")
        return self.recorded(name)

    def wait_for_step(self, step: str, name: str = "job") -> None:
        until(lambda: self.recorded(name)["Progress"]["Step"] == step, f"job {name} is at {step}")

    def processes(self) -> dict[int, list[str]]:
        """Return the command lines of all processes that name this place, in their command or environment."""
        found = {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and int(entry.name) != os.getpid() and alive(int(entry.name)):
                    command = (entry / "cmdline").read_bytes()
                    if bytes(self.folder) in command + (entry / "environ").read_bytes():
                        found[int(entry.name)] = command.decode().split("\0")
        return found

    def foreman(self) -> int:
        (pid,) = (
            pid for pid, command in self.processes().items() if {*command} & {"model_packager.foreman", "attached"}
        )
        return pid

    def runner_and_guard(self) -> tuple[int, int]:
        pids = [pid for pid, command in self.processes().items() if "model_packager.runner" in command]
        (runner,) = (pid for pid in pids if parent(pid) not in pids)
        (guard,) = (pid for pid in pids if parent(pid) == runner)
        return runner, guard

    def nobody_holds_the_lock(self) -> bool:
        with (self.store.folder("job") / "lock").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    def left_behind(self, patience: float = PATIENCE) -> list[str]:
        """Return whatever a job that has ended must not leave: processes (who settled it may need a moment) and files."""
        with contextlib.suppress(AssertionError):
            until(lambda: not self.processes(), "the processes have ended", patience)
        kept = {"job.json", "lock", "log"}
        left = [str(one) for job in self.store.path.glob("*") for one in job.glob("*") if one.name not in kept]
        left += [str(one) for one in self.store.path.glob(".*") if one.name != ".lock"]
        left += [str(one) for one in self.output.glob("*/.*")]
        left += [str(one) for one in self.output.glob("*") if not any(one.iterdir())]
        return left + [" ".join(command) for command in self.processes().values()]


@pytest.fixture
def place(folder, monkeypatch) -> Iterator[Place]:
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    made = Place(folder)
    yield made
    for pid in made.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def finish(command: subprocess.Popen) -> tuple[int, str]:
    """Wait for a command; return its exit code and what it printed."""
    printed, _ = command.communicate(timeout=PATIENCE)
    return command.returncode, printed


ALLOWED = {("CREATED", "RUNNING"), ("CREATED", "FAILED"), ("RUNNING", "SUCCEEDED"), ("RUNNING", "FAILED")}


@pytest.mark.parametrize(("current", "target"), [*itertools.product(Status, Status)])
def test_moves(current, target):
    if (current.value, target.value) in ALLOWED:
        assert jobs.move(current, target) is target
    else:
        with pytest.raises(jobs.IllegalMove):
            jobs.move(current, target)


def test_a_record_has_the_names_of_the_original(place):
    job = place.create()
    document = job.document()
    assert document.pop("CreationTimestamp") == document.pop("LastUpdatedTimestamp") == job.created
    assert job.created.endswith("Z")
    assert document == {
        "JobName": "job",
        "ProjectName": "boards",
        "ModelVersion": "7",
        "ModelPackagingJobDescription": "of boards",
        "ModelPackagingMethod": "greengrass",
        "ModelPackagingConfiguration": {"Greengrass": {"ComponentName": "board", "ComponentVersion": "1.0.0"}},
        "ModelPackagingOutputDetails": {"Greengrass": {"ComponentName": "board", "ComponentVersion": "1.0.0"}},
        "Status": "CREATED",
        "StatusMessage": "",
        "Progress": {"Step": "", "Fraction": 0.0},
        "Result": {},
    }
    assert place.store.get("job") == Store(place.store.path).get("job") == job
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in place.store.folder("job").iterdir()}
    assert modes == {"job.json": 0o600, "lock": 0o600, "work": 0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (place.store.path, place.store.folder("job"))} == {0o700}


def test_a_name_is_used_once(place):
    place.create()
    with pytest.raises(PackagingRefused, match="There is a packaging job job already; give another --job-name"):
        place.create()
    assert not (place.store.path / ".new").exists()
    assert place.store.get("job").status is Status.CREATED


@pytest.mark.parametrize("name", ["", "../job", "a/b", ".new", "-a", "a b", "a.b", "é", "a" * 65, "a\n"])
def test_what_cannot_be_a_name(place, name):
    with pytest.raises(PackagingRefused, match="1 to 64"):
        place.create(name)
    assert not place.store.path.exists()


def test_paths_are_made_absolute(place, monkeypatch):
    monkeypatch.chdir(place.folder)
    job = place.store.create({**place.order(), "output": "out/../here", "source": "models/a"})
    assert (job.order["output"], job.order["source"]) == (str(place.folder / "here"), str(place.folder / "models/a"))
    with pytest.raises(PackagingRefused, match="neither a folder nor"):
        place.store.create({**place.order("other"), "output": "ftp://here"})


def test_two_starts_at_the_same_instant(place):
    commands = [place.start("", "at once") for _ in range(4)]
    for command in commands:
        command.stdin.write("\n")
        command.stdin.flush()
    said = [command.stdout.readline() for command in commands]
    assert sorted(line.split(";")[0].strip() for line in said) == ["There is a packaging job job already"] * 3 + [
        "created"
    ]
    for command in commands:
        finish(command)


def test_list_is_newest_first_and_of_one_project(place):
    assert place.store.list() == []
    for name, project in (("b", "boards"), ("a", "cookies"), ("c", "boards")):
        place.create(name, project=project)
    assert [job.name for job in place.store.list()] == ["c", "a", "b"]
    assert [job.name for job in place.store.list("boards")] == ["c", "b"]


def test_an_unknown_job_names_those_there_are(place):
    with pytest.raises(PackagingRefused, match="no packaging job 'job'; known: none"):
        place.store.get("job")
    place.create("one")
    place.create("two")
    with pytest.raises(PackagingRefused, match=r"no packaging job '\.\./one'; known: two, one\."):
        place.store.get("../one")


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"[]", b'{"Status": "RUNNING"}', b"[" * 100_000, b'"\xff"', "another", "no order"]
)
def test_a_damaged_record_is_a_failed_job(place, content):
    place.create("other")
    place.create()
    place.store.release("job")
    record = place.store.folder("job") / "job.json"
    if content is None:
        record.unlink()
    elif content == "another":
        record.write_bytes((place.store.folder("other") / "job.json").read_bytes())
    elif content == "no order":
        record.write_text(
            json.dumps({**place.recorded(), "Order": {"request": {"JobName": "job", "Configuration": []}}})
        )
    else:
        record.write_bytes(content)
    job, other = place.store.list()
    assert (job.name, job.status, other.name, other.status) == ("job", Status.FAILED, "other", Status.CREATED)
    assert job.message.startswith(f"The record {record} cannot be read: ")
    assert job == place.store.get("job")
    assert job.document()["Status"] == "FAILED"
    assert not (place.store.folder("job") / "work").exists()


def test_success_and_its_progress(place):
    shown, seen = [], []

    def show(step: str, fraction: float) -> None:
        shown.append((step, fraction))
        if step == "Waiting.":
            seen.append(Store(place.store.path).get("job").status)
            place.gate.touch()

    job = foreman.run_attached(place.store, place.create(), show, work="works:gated")
    assert (job.status, job.message, job.result) == (Status.SUCCEEDED, "", {"Answer": 42})
    assert shown == [("Waiting.", 0.25), ("Going.", 0.0), ("Done.", 1.0)]
    assert seen == [Status.RUNNING]
    document = place.store.get("job").document()
    assert document["Progress"] == {"Step": "Done.", "Fraction": 1.0}
    assert document["ModelPackagingOutputDetails"]["Greengrass"]["Output"] == f"{place.output}/board/1.0.0"
    assert document["LastUpdatedTimestamp"] > document["CreationTimestamp"]
    assert place.left_behind() == []


def test_what_the_work_is_given(place):
    before = os.nice(0)
    job = place.run("tells")
    work = str(place.store.folder("job") / "work")
    assert job.result == {
        "Nice": min(before + 10, 19),
        "Memory": [-1, -1],
        "Temporary": work,
        "Folder": work,
        "Work": work,
        "Order": place.order(),
        "Destination": str(place.output),
    }
    # Its child and its thread, which would have lasted, ended with it.
    assert place.left_behind() == []


def test_sockets_of_multiprocessing_need_a_short_folder(place, monkeypatch):
    monkeypatch.setattr(foreman, "LONGEST_TEMPORARY", len(bytes(place.store.folder("job") / "work")) - 1)
    assert place.run("tells").result["Temporary"] != str(place.store.folder("job") / "work")


def test_what_is_published_stays(place):
    job = place.run("publishes")
    assert job.result == {"Where": str(place.output / "board" / "1.0.0")}
    assert (place.output / "board" / "1.0.0" / "recipe.json").read_text() == "{}"
    again = place.run("publishes", "again")
    assert (again.status, "exists already" in again.message) == (Status.FAILED, True)
    assert place.left_behind() == []


def test_a_refusal_is_the_message(place):
    job = place.run("refuses")
    assert (job.status, job.message) == (Status.FAILED, "The model has no input.")
    assert "Traceback" not in (place.store.folder("job") / "log").read_text()
    assert place.left_behind() == []


@pytest.mark.parametrize("work", ["breaks", "exits", "answers_nonsense", "is_not_there"])
def test_the_traceback_of_the_unexpected_is_in_the_log_only(place, work):
    _, printed = finish(place.start(work))
    log = place.store.folder("job") / "log"
    job = place.store.get("job")
    assert (job.status, job.message) == (Status.FAILED, f"Unexpected failure; the log {log} has the cause.")
    assert printed == f"FAILED {job.message}\n"
    assert "Traceback" in log.read_text()
    assert not (place.store.folder("job") / "work").exists()
    assert not [pid for pid, command in place.processes().items() if "sleep" in command]


def test_a_runner_that_ends_without_a_word(place):
    job = place.run("ends")
    assert job.status is Status.FAILED
    assert job.message == f"Its process exited with code 3; the log {place.store.folder('job') / 'log'} has the cause."
    assert place.left_behind() == []


@pytest.mark.parametrize("mode", ["attached", "detached"])
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, "ended by signal 9 (SIGKILL); the system kills like this when memory runs out."),
        (signal.SIGSEGV, "ended by signal 11 (SIGSEGV)."),
    ],
)
def test_killed_runner(place, mode, number, words):
    command = place.start("strips_its_child", mode)
    place.wait_for_step("Stuck.")
    os.kill(place.runner_and_guard()[0], number)
    finish(command)
    assert words in place.wait_for("FAILED")["StatusMessage"]
    assert place.left_behind() == []


@pytest.mark.parametrize("mode", ["attached", "detached"])
@pytest.mark.parametrize("work", ["strips_its_child", "holds_the_interpreter"])
def test_killed_foreman(place, mode, work):
    command = place.start(work, mode)
    place.wait_for_step("Stuck.")
    os.kill(place.foreman(), signal.SIGKILL)
    assert "watched over it was killed" in place.wait_for("FAILED")["StatusMessage"]
    assert place.left_behind() == []
    finish(command)


@pytest.mark.parametrize("mode", ["attached", "detached"])
def test_killed_foreman_and_runner(place, mode):
    command = place.start("stuck", mode)
    place.wait_for_step("Stuck.")
    victims = (place.foreman(), place.runner_and_guard()[0])
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    place.wait_for("FAILED")
    assert place.left_behind() == []
    finish(command)


@pytest.mark.parametrize("reader", ["list", "get", "create"])
def test_all_killed_at_once_and_the_next_reader_sweeps(place, reader):
    command = place.start("stuck")
    place.wait_for_step("Stuck.")
    victims = (command.pid, *place.runner_and_guard())
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in victims:
            os.kill(pid, number)
    finish(command)
    until(place.nobody_holds_the_lock, "all three are dead")
    assert place.recorded()["Status"] == "RUNNING"
    # One of its children or both: the kernel hangs up a group that loses its last parent while a process in it is stopped.
    assert place.processes()
    if reader == "create":
        place.create("next")
        place.store.settle("next", "")
    elif reader == "list":
        assert [job.message for job in place.store.list()] == [jobs.LOST]
    else:
        assert place.store.get("job").message == jobs.LOST
    assert place.recorded()["Status"] == "FAILED"
    assert place.left_behind() == []


def test_killed_guard_and_foreman(place):
    command = place.start("stuck")
    place.wait_for_step("Stuck.")
    os.kill(place.runner_and_guard()[1], signal.SIGKILL)
    command.kill()
    finish(command)
    until(place.nobody_holds_the_lock, "the runner ended")
    assert place.store.get("job").message == jobs.LOST
    assert place.left_behind() == []


def test_killed_between_created_and_running(place):
    command = place.start("", "created")
    assert command.stdout.readline() == "created\n"
    assert place.store.get("job").status is Status.CREATED
    command.kill()
    finish(command)
    assert place.store.get("job").message == jobs.LOST
    assert place.left_behind() == []


def test_killed_while_it_was_created_is_no_job(place):
    place.create("other")
    fresh = place.store.path / ".new"
    fresh.mkdir()
    (fresh / "lock").touch()
    assert [job.name for job in place.store.list()] == ["other"]
    place.create()
    assert not fresh.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted(place, number):
    command = place.start("stuck")
    place.wait_for_step("Stuck.")
    os.killpg(command.pid, number)  # as a terminal does
    code, printed = finish(command)
    assert code == 128 + number
    assert "Traceback" not in printed
    job = place.store.get("job")
    assert (job.status, job.message.split(";")[0]) == (Status.FAILED, f"Interrupted ({number.name})")
    assert place.left_behind() == []


def test_interrupted_foreman_of_a_detached_job(place):
    finish(place.start("stuck", "detached"))
    place.wait_for_step("Stuck.")
    os.kill(place.foreman(), signal.SIGTERM)
    assert place.wait_for("FAILED")["StatusMessage"].startswith("Interrupted (SIGTERM)")
    assert place.left_behind() == []


def test_nohup_is_respected(place):
    command = place.start("gated", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    place.wait_for_step("Waiting.")
    command.send_signal(signal.SIGHUP)
    place.gate.touch()
    code, printed = finish(command)
    assert (code, printed.splitlines()[-1]) == (0, "SUCCEEDED ")


def test_signals_are_as_before(place):
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)
    with socket.socket() as woken:
        woken.setblocking(False)
        signal.set_wakeup_fd(woken.fileno())
        try:
            before = [signal.getsignal(number) for number in numbers]
            place.run("refuses")
            assert [signal.getsignal(number) for number in numbers] == before
        finally:
            assert signal.set_wakeup_fd(-1) == woken.fileno()


def test_a_foreman_that_fails_itself_leaves_nothing(place):
    def show(step: str, fraction: float) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        foreman.run_attached(place.store, place.create(), show, work="works:stuck")
    assert place.store.get("job").message == foreman.FAILED_ITSELF
    assert place.left_behind() == []


def test_detached_goes_on_without_the_command(place):
    code, printed = finish(place.start("gated", "detached"))
    assert (code, printed.split()[0] in {"CREATED", "RUNNING"}) == (0, True)
    place.wait_for_step("Waiting.")
    assert place.store.get("job").status is Status.RUNNING
    assert os.readlink(f"/proc/{place.foreman()}/cwd") == "/"
    place.gate.touch()
    assert place.wait_for("SUCCEEDED")["Result"] == {"Answer": 42}
    assert place.left_behind() == []


def test_there_is_no_instant_in_which_a_detached_job_looks_dead(place):
    job, seen, stop = place.create(), set(), threading.Event()

    def look() -> None:
        while not stop.is_set():
            seen.add(Store(place.store.path).get("job").status)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        foreman.run_detached(place.store, job, work="works:gated")
        until(lambda: Status.RUNNING in seen, "it runs")
        with pytest.raises(KeyError):
            place.store.held("job")
        place.gate.touch()
        until(lambda: seen & {Status.SUCCEEDED, Status.FAILED}, "it has ended")
    finally:
        stop.set()
        looking.join()
    assert seen == {Status.CREATED, Status.RUNNING, Status.SUCCEEDED}


@pytest.mark.parametrize("run", [foreman.run_attached, foreman.run_detached])
@pytest.mark.parametrize(
    ("python", "words"), [("/nowhere", "could not be started"), ("/bin/false", "the log .* has the cause")]
)
def test_processes_that_cannot_be_started(place, monkeypatch, run, python, words):
    monkeypatch.setattr(sys, "executable", python)
    arguments = [lambda _, __: None] if run is foreman.run_attached else []
    job = place.create()
    if run is foreman.run_attached and python == "/bin/false":
        assert "exited with code 1; the log" in run(place.store, job, *arguments).message
    else:
        with pytest.raises(PackagingRefused, match=words):
            run(place.store, job, *arguments)
    assert place.store.get("job").status is Status.FAILED
    assert place.left_behind() == []


def test_no_room_for_a_new_record(place, monkeypatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(PackagingRefused, match=r"cannot be written in .*: No space left"):
            place.create()
    assert place.store.list() == []
    assert place.left_behind() == []
    place.create()


def fill(place: Place) -> None:
    """Let the next record meet a full disk."""
    (place.store.folder("job") / "job.new").symlink_to("/dev/full")


def test_no_room_for_the_start(place):
    job = place.create()
    fill(place)
    with pytest.raises(PackagingRefused, match="No space left"):
        foreman.run_attached(place.store, job, lambda _, __: None, work="works:gated")
    assert place.store.get("job").status is Status.FAILED
    assert place.left_behind() == []


@pytest.mark.parametrize("status", [Status.SUCCEEDED, Status.FAILED])
def test_no_room_for_the_end(place, status):
    place.store.save(place.create().moved(Status.RUNNING))
    if status is Status.SUCCEEDED:
        place.store.conclude("job", status, result={"Answer": 42})
    fill(place)
    job = place.store.settle("job", "The cause.")
    assert (job.status, "No space left" in job.message) == (status, True)
    assert place.recorded()["Status"] == "RUNNING"
    place.store.release("job")
    assert place.store.get("job").status is status
    assert place.recorded()["Status"] == status.value
    assert place.left_behind() == []


def test_progress_that_cannot_be_recorded_costs_no_job(place):
    shown = []
    job = foreman.run_attached(place.store, place.create(), lambda *one: shown.append(one), work="works:cannot_record")
    assert (job.status, shown) == (Status.SUCCEEDED, [("One.", 0.1), ("Two.", 0.2)])


def test_a_partial_output_that_cannot_be_removed_is_told(place):
    place.store.save(place.create().moved(Status.RUNNING))
    partial = place.output / "board" / ".1.0.0.job.new"
    partial.parent.mkdir(parents=True)
    partial.write_text("no folder")
    message = place.store.settle("job", "The cause.").message
    assert message.startswith(f"The cause. What was left in {partial} could not be removed; do it by hand.")


def test_the_check_for_what_is_left_finds_it(place):
    """The negative control: each kind of thing that a job could leave is seen by `left_behind`."""
    place.run("publishes")
    assert place.left_behind() == []
    work = place.store.folder("job") / "work"
    partial = place.output / "board" / ".1.0.0.job.new"
    empty = place.output / "other"
    for folder in (work, partial, empty):
        folder.mkdir()
        assert place.left_behind() == [str(folder)]
        folder.rmdir()
    with subprocess.Popen(["sleep", "600"], env={**os.environ, jobs.MARK: str(place.store.folder("job"))}) as process:
        until(place.processes, "it is seen")
        (left,) = place.left_behind(0.1)
        assert left.startswith("sleep 600")
        process.kill()
    assert place.left_behind() == []
