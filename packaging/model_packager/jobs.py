"""Packaging jobs and their records: what was asked for, how far it is, how it ended."""

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Any

from model_packager import destinations, files
from model_packager.errors import PackagingRefused

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,63}")
# All processes of a job carry its folder in this variable of their environment, so that they are found again.
MARK = "MODEL_PACKAGER_JOB"
KILL_PATIENCE = 10.0
NAMES_SHOWN = 10
LOST = "Its process ended without a word (killed, or the machine was switched off); start it again under another name."


class Status(str, Enum):
    """The state of a job."""

    CREATED = "CREATED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


MOVES: dict[Status, frozenset[Status]] = {
    Status.CREATED: frozenset({Status.RUNNING, Status.FAILED}),
    Status.RUNNING: frozenset({Status.SUCCEEDED, Status.FAILED}),
    Status.SUCCEEDED: frozenset(),
    Status.FAILED: frozenset(),
}


class IllegalMove(Exception):
    """A move outside the table was tried: a defect of ours, never of a caller."""


def move(current: Status, target: Status) -> Status:
    """Return `target`; raise IllegalMove unless the table allows the move."""
    if target not in MOVES[current]:
        raise IllegalMove(f"{current.value} -> {target.value}")
    return target


@dataclass(frozen=True)
class Job:
    """A job as its record tells it.

    `order` is what was asked for: "request", "output", "source" and "options". Times are ISO 8601 in UTC. `partial` is
    what is to be removed from the destination if the job dies; `step` and `fraction` (0..1) are its progress.
    """

    order: Mapping[str, Any]
    created: str
    updated: str
    status: Status = Status.CREATED
    message: str = ""
    step: str = ""
    fraction: float = 0.0
    result: Mapping[str, Any] = field(default_factory=dict)
    partial: str | None = None

    @property
    def name(self) -> str:
        """The job's name."""
        return str(self._request["JobName"])

    @property
    def project_name(self) -> str:
        """The project of the model."""
        return str(self._request.get("ProjectName", ""))

    @property
    def ended(self) -> bool:
        """Whether there is no move from its state any more."""
        return not MOVES[self.status]

    def moved(self, status: Status, message: str = "", result: Mapping[str, Any] | None = None) -> "Job":
        """Return the job in another state."""
        return replace(self, status=move(self.status, status), message=message, result=result or {}, updated=_now())

    def at(self, step: str, fraction: float) -> "Job":
        """Return the job with this progress."""
        return replace(self, step=step, fraction=fraction, updated=_now())

    def document(self) -> dict[str, Any]:
        """Return the job under the names of Lookout for Vision's API, with Progress and Result of our own."""
        component, version = _component(self.order)
        output = {"ComponentName": component, "ComponentVersion": version}
        if self.status is Status.SUCCEEDED:
            output["Output"] = f"{self.order.get('output', '')}/{component}/{version}"
        return {
            "JobName": self.name,
            "ProjectName": self.project_name,
            "ModelVersion": str(self._request.get("ModelVersion", "")),
            "ModelPackagingJobDescription": str(self._request.get("Description", "")),
            "ModelPackagingMethod": "greengrass",
            "ModelPackagingConfiguration": self._request.get("Configuration", {}),
            "ModelPackagingOutputDetails": {"Greengrass": output},
            "Status": self.status.value,
            "StatusMessage": self.message,
            "CreationTimestamp": self.created,
            "LastUpdatedTimestamp": self.updated,
            "Progress": {"Step": self.step, "Fraction": self.fraction},
            "Result": dict(self.result),
        }

    @property
    def _request(self) -> Mapping[str, Any]:
        request: Mapping[str, Any] = self.order["request"]
        return request


class Store:
    """The folder of all jobs, one folder each: `job.json`, `lock`, `work/`, `log`.

    A job is alive while somebody holds its lock. Whoever reads a job that is neither alive nor ended, ends it.
    """

    def __init__(self, folder: Path) -> None:
        """Take `folder`, which is made with the first job."""
        self.path = folder.absolute()
        self._locks: dict[str, int] = {}

    def create(self, order: Mapping[str, Any]) -> Job:
        """Record a new job and hold its lock; relative paths in the order are made absolute.

        Raises:
            PackagingRefused: its name is taken or cannot be a name, its destination is none, or it cannot be recorded.

        """
        name = str(order["request"]["JobName"])
        if not NAME.fullmatch(name):
            raise PackagingRefused(
                f"A job name has 1 to 64 of a-z A-Z 0-9 _ - and begins with none of the last two: {name!a}"
            )
        destination = destinations.of(str(order["output"]))
        self.list()  # what a dead job has left would be in the way
        component, version = _component(order)
        now = _now()
        job = Job(
            # The processes of a job run elsewhere.
            {**order, "output": str(destination), "source": os.path.abspath(order["source"])},  # noqa: PTH100
            created=now,
            updated=now,
            partial=destination.partial(component, version, name),
        )
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._locks[name] = self._make(job)
        except OSError as error:
            raise self._unwritable(name, error) from None
        return job

    def get(self, job_name: str) -> Job:
        """Return a job; raise PackagingRefused, naming those there are, when there is none of that name."""
        names = self._names()
        if job_name not in names:
            known = ", ".join(job.name for job in self.list()[:NAMES_SHOWN]) or "none"
            more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
            raise PackagingRefused(f"There is no packaging job {job_name!a}; known: {known}{more}.")
        return self._look(job_name)

    def list(self, project_name: str | None = None) -> list[Job]:
        """Return the jobs, of one project or of all, the newest first."""
        jobs = [self._look(name) for name in self._names()]
        chosen = [job for job in jobs if project_name is None or job.project_name == project_name]
        return sorted(chosen, key=lambda job: (job.created, job.name), reverse=True)

    def folder(self, name: str) -> Path:
        """Return the folder of a job."""
        return self.path / name

    def held(self, name: str) -> int:
        """Return the file descriptor of the lock, which this process must hold."""
        return self._locks[name]

    def adopt(self, name: str, lock: int) -> None:
        """Take over a lock that this process inherited."""
        os.set_inheritable(lock, False)
        self._locks[name] = lock

    def release(self, name: str) -> None:
        """Give a lock back; the job stays alive while another process holds it too."""
        os.close(self._locks.pop(name))

    def save(self, job: Job) -> Job:
        """Replace a job's record; return the job.

        Raises:
            PackagingRefused: it cannot be written.

        """
        try:
            _write(self.folder(job.name) / "job.json", _record(job))
        except OSError as error:
            raise self._unwritable(job.name, error) from None
        return job

    def conclude(self, name: str, status: Status, message: str = "", result: Mapping[str, Any] | None = None) -> None:
        """Leave word of how the work ended; `settle` makes it the job's state, whoever calls it."""
        content = {"Status": status.value, "StatusMessage": message, "Result": result or {}}
        _write(self.folder(name) / "outcome.json", content)

    def settle(self, name: str, cause: str) -> Job:
        """End a job for good: its processes, its temporary files, its partial output. The caller holds its lock.

        The work's own word counts; `cause` is why the job failed if it left none. A record that cannot be written does
        not raise: the job that is returned says so, and the next reader tries again.
        """
        folder = self.folder(name)
        _end_processes(folder)
        job, word = self._load(name), _word(folder)
        shutil.rmtree(folder / "work", ignore_errors=True)
        if job.ended:
            return job
        if (folder / "work").exists():
            cause += f" Its temporary files in {folder / 'work'} could not be removed."
        # Whoever left word has cleared up; and before it runs, a job writes nothing there.
        if word is None and job.partial and job.status is Status.RUNNING:
            try:
                destinations.clear(job.partial)
            except PackagingRefused as error:
                cause += f" {error}"
        job = job.moved(*word) if word else job.moved(Status.FAILED, cause)
        try:
            self.save(job)
        except PackagingRefused as error:
            return replace(job, message=f"{job.message} {error}".strip())
        (folder / "outcome.json").unlink(missing_ok=True)
        return job

    def _make(self, job: Job) -> int:
        """Make a job's folder with everything in it, which appears by rename; return the lock, held."""
        fresh = self.path / ".new"
        with _locked(self.path / ".lock"):
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(mode=0o700)
            lock = os.open(fresh / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                (fresh / "work").mkdir(mode=0o700)
                _write(fresh / "job.json", _record(job))
                fresh.rename(self.folder(job.name))
            except BaseException as error:
                os.close(lock)
                shutil.rmtree(fresh, ignore_errors=True)
                if isinstance(error, OSError) and error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    raise PackagingRefused(
                        f"There is a packaging job {job.name} already; give another --job-name."
                    ) from None
                raise
        with contextlib.suppress(OSError):
            files.flush(self.path)
        return lock

    def _names(self) -> frozenset[str]:
        try:
            return frozenset(entry.name for entry in self.path.iterdir() if NAME.fullmatch(entry.name))
        except FileNotFoundError:
            return frozenset()
        except OSError as error:
            raise PackagingRefused(
                f"The packaging jobs in {self.path} cannot be read: {error.strerror}. Name another --state-dir."
            ) from None

    def _look(self, name: str) -> Job:
        job = self._load(name)
        # The folder, too: a damaged record does not tell whether the job ran.
        if not job.ended or (self.folder(name) / "work").exists():
            with contextlib.suppress(OSError), _locked(self.folder(name) / "lock", fcntl.LOCK_NB):
                return self.settle(name, LOST)
        return job

    def _load(self, name: str) -> Job:
        """Return the job of a record; a damaged one is that of a failed job."""
        path = self.folder(name) / "job.json"
        try:
            return _parse(json.loads(path.read_bytes()), name)
        except OSError as error:
            reason = error.strerror or str(error)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            reason = "it is damaged"
        created = _now()
        with contextlib.suppress(OSError):  # the lock is never written
            created = _text(datetime.fromtimestamp((path.parent / "lock").stat().st_mtime, timezone.utc))
        return Job(
            {"request": {"JobName": name}},
            created=created,
            updated=created,
            status=Status.FAILED,
            message=f"The record {path} cannot be read: {reason}. Start the job again under another name.",
        )

    def _unwritable(self, name: str, error: OSError) -> PackagingRefused:
        return PackagingRefused(
            f"The record of packaging job {name} cannot be written in {self.path}: {error.strerror or error}. "
            "Make room there, or name another --state-dir."
        )


def _component(order: Mapping[str, Any]) -> tuple[str, str]:
    component = order["request"].get("Configuration", {}).get("Greengrass", {})
    return str(component.get("ComponentName", "")), str(component.get("ComponentVersion", ""))


def _now() -> str:
    return _text(datetime.now(timezone.utc))


def _text(time_: datetime) -> str:
    return time_.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _record(job: Job) -> dict[str, Any]:
    return {**job.document(), "Order": dict(job.order), "Partial": job.partial}


def _parse(record: Any, name: str) -> Job:
    """Return the job of a record.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is not a record of that job.

    """
    progress = record["Progress"]
    job = Job(
        order=record["Order"],
        created=record["CreationTimestamp"],
        updated=record["LastUpdatedTimestamp"],
        status=Status(record["Status"]),
        message=record["StatusMessage"],
        step=progress["Step"],
        fraction=float(progress["Fraction"]),
        result=record["Result"],
        partial=record["Partial"],
    )
    texts = (job.created, job.updated, job.message, job.step, job.partial or "")
    if job.name != name or not all(isinstance(one, str) for one in texts) or not isinstance(job.result, dict):
        raise ValueError(name)
    _component(job.order)
    return job


def _word(folder: Path) -> tuple[Status, str, Mapping[str, Any]] | None:
    """Return how the work says it ended, if it says so."""
    try:
        word = json.loads((folder / "outcome.json").read_bytes())
        return Status(word["Status"]), str(word["StatusMessage"]), dict(word["Result"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a file by rename, mode 0600, flushed to the disk."""
    beside = path.with_suffix(".new")
    try:
        with open(beside, "w", opener=_private) as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


@contextlib.contextmanager
def _locked(path: Path, flag: int = 0) -> Iterator[None]:
    """Hold the lock in a file; with LOCK_NB, raise BlockingIOError where another has it."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | flag)
        yield
    finally:
        os.close(lock)


def _end_processes(folder: Path) -> None:
    """Kill all processes of a job but this one, and wait until they are gone."""
    mark = b"\0" + os.fsencode(f"{MARK}={folder}") + b"\0"
    give_up = time.monotonic() + KILL_PATIENCE
    while time.monotonic() < give_up:
        numbers = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
        found = [pid for pid in numbers if pid != os.getpid() and _has(pid, mark)]
        if not found:
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _has(pid: int, mark: bytes) -> bool:
    """Return whether a living process has the mark in its environment."""
    try:
        return mark in b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
