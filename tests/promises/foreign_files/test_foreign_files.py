"""P3: a package that somebody else wrote, may write, or may change from elsewhere, is never loaded.

1. Of each package one thing is foreign. The models folder, a folder below it, the package's own, one in it, the manifest,
   the model or a file that nobody reads is writable by everybody, or belongs to another user; or a file has a second name
   outside; or a link leads to what is outside. All else is in order, also what a link leads to.
2. An agent is to start each of them. It is FAILED, with the sentence that names what is foreign and why; where only a
   link leads to the package, it is unknown. No worker was started for any.
3. Then what was foreign is put in order while the agent serves: the package is loaded. It becomes foreign once more, and
   is refused once more.
"""

import hashlib
import os
import stat
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from edge_agent._proto import edge_agent_pb2 as pb2
from support import packages
from support.agent import Agent
from support.calls import NOT_FOUND, OK, outcome
from support.promises import Promise
from support.sabotage import sabotaged
from support.users import AGENT, OTHER, agent_user
from support.waiting import PATIENCE, until

TWO_UIDS = agent_user() == AGENT
MANIFEST, MODEL, LISTED, NOTES = "manifest.json", "mochi/model.onnx", "labels.txt", "notes.txt"
ROOT, BETWEEN, PACKAGE, STAGE = "../..", "..", ".", "mochi"


class Case(NamedTuple):
    """What is foreign, by its path from the package, in which way, and what is told of it; nothing where it is unknown."""

    path: str
    way: str
    said: str


EVERYBODYS, STICKY, ANOTHERS, HARD_LINK, LINK = "everybody's", "sticky", "another's", "hard-linked", "a link"
LABELS = {ROOT: "Folder 'models'", BETWEEN: "Folder 'boards'", PACKAGE: "Folder '{name}'"}


def _label(path: str) -> str:
    return LABELS.get(path, f"'{path}'")


def _cases() -> Iterable[Case]:
    for path in (ROOT, BETWEEN, PACKAGE, STAGE, MANIFEST, MODEL, NOTES):
        yield Case(path, EVERYBODYS, f"{_label(path)} is writable by everybody; take that away with chmod o-w.")
        if TWO_UIDS:
            told = f"belongs to uid {OTHER.uid}; only root, the agent's user and trusted_uids may own packages."
            yield Case(path, ANOTHERS, f"{_label(path)} {told}")
    yield Case(ROOT, STICKY, f"{_label(ROOT)} is writable by everybody; take that away with chmod o-w.")
    for path in (MANIFEST, MODEL, LISTED):
        told = f"{_label(path)} has a second hard link; copy the file instead of linking it."
        yield Case(path, HARD_LINK, told)
    yield Case(MANIFEST, LINK, "manifest.json cannot be read: Too many levels of symbolic links.")
    yield Case(MODEL, LINK, f"{MODEL} is not a regular file.")
    yield Case(LISTED, LINK, f"'{LISTED}' is a link or no regular file.")
    yield Case(STAGE, LINK, f"{STAGE} is a link or no folder.")
    yield Case(PACKAGE, LINK, "")
    yield Case(BETWEEN, LINK, "")


CASES = tuple(_cases())
FEW = 4
PROMISE = Promise(
    id="P3",
    text="packages with files or folders that others own, may write, or may change from elsewhere are refused",
    case="a start, counted by the agent, of a package of which one thing is foreign",
    full=len(CASES),
    fast=len(CASES),
)


class Package:
    """A package in a models folder of its own, of which one thing can be made foreign and be put in order again."""

    def __init__(self, place: Path, nth: int, case: Case) -> None:
        self.name = f"board-{nth}"
        self.case = case
        self.root = place / str(nth) / "models"
        self.said = case.said.format(name=self.name)
        self._outside = place / str(nth) / "outside"
        folder = self.root / "boards" / self.name
        self._path = Path(os.path.normpath(folder / case.path))
        folder.parent.mkdir(parents=True)
        self._outside.mkdir()
        packages.classifier(folder)
        if case.path == LISTED:
            _list_files(folder, self.name)
        else:
            (folder / NOTES).touch()
        for path in (self._outside, *(place / str(nth)).rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        self._before = self._path.stat()

    def spoil(self) -> None:
        """Make one thing foreign."""
        path, mode = self._path, stat.S_IMODE(self._before.st_mode)
        if self.case.way == EVERYBODYS:
            path.chmod(mode | 0o002)
        elif self.case.way == STICKY:
            path.chmod(mode | 0o1002)
        elif self.case.way == ANOTHERS:
            os.chown(path, OTHER.uid, OTHER.gid)
        elif self.case.way == HARD_LINK:
            (self._outside / path.name).hardlink_to(path)
        else:
            path.rename(self._outside / path.name)
            path.symlink_to(self._outside / path.name)

    def mend(self) -> None:
        """Put it in order again."""
        path = self._path
        if self.case.way in {EVERYBODYS, STICKY}:
            path.chmod(stat.S_IMODE(self._before.st_mode))
        elif self.case.way == ANOTHERS:
            os.chown(path, self._before.st_uid, self._before.st_gid)
        elif self.case.way == HARD_LINK:
            (self._outside / path.name).unlink()
        else:
            path.unlink()
            (self._outside / path.name).rename(path)


def _list_files(folder: Path, name: str) -> None:
    """Give a package the block that lists its files, of which one is beside the model's."""
    (folder / LISTED).write_text("background\n")
    files = {path: (folder / path).read_bytes() for path in (MODEL, LISTED)}
    content = packages.manifest()
    content["package"] = {
        "format": 1,
        "component": {"name": name, "version": "1.0.0"},
        "files": {
            path: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for path, data in files.items()
        },
    }
    (folder / MANIFEST).write_bytes(packages.manifest_bytes(content))


class Device:
    """An agent that was given packages, and what becomes of them."""

    def __init__(self, place: Path, cases: Iterable[Case]) -> None:
        self.packages = [Package(place, nth, case) for nth, case in enumerate(cases)]
        for one in self.packages:
            one.spoil()
        self.agent = Agent(*(one.root for one in self.packages), log_level="info")
        self.starts = 0

    def start(self, one: Package) -> int:
        """Ask for a package to be started; return the code of the answer."""
        self.starts += 1
        code, details, _ = outcome(self.agent.stub().StartModel, pb2.StartModelRequest(model_component=one.name))
        assert code in {OK, NOT_FOUND}, details
        return code

    def refuses(self, one: Package) -> None:
        """Fail unless a package that is foreign is not loaded, and it is said why."""
        if not one.said:
            assert self.start(one) == NOT_FOUND, f"{one.case} was found"
            return
        assert self.start(one) == OK
        until(lambda: self.agent.state(one.name) != "STARTING", f"{one.case} is decided on")
        described = self.agent.describe(one.name)
        assert described.status == pb2.FAILED, f"{one.case} was loaded"
        assert described.status_message == one.said

    def loads(self, one: Package, patience: float = PATIENCE) -> None:
        """Fail unless a package is loaded now that it is in order; stop it."""
        until(lambda: self._state(one) == "STOPPED", f"{one.case} is in order", patience)
        assert self.start(one) == OK
        until(lambda: self.agent.state(one.name) != "STARTING", f"{one.case} has started")
        described = self.agent.describe(one.name)
        assert described.status == pb2.RUNNING, f"{one.case} is not loaded: {described.status_message}"
        self.agent.stub().StopModel(pb2.StopModelRequest(model_component=one.name))
        until(lambda: self.agent.state(one.name) == "STOPPED", f"{one.case} has stopped")

    def loses(self, one: Package) -> None:
        """Wait until a package that only a link leads to is unknown."""
        until(lambda: self._state(one) == "", f"{one.case} is unknown")

    def _state(self, one: Package) -> str:
        """Return a package's state, and nothing where it is unknown."""
        listed = self.agent.stub().ListModels(pb2.ListModelsRequest()).models
        return next((pb2.ModelStatus.Name(model.status) for model in listed if model.model_component == one.name), "")


def test_foreign_files(promises, folder):
    with promises.run(PROMISE) as run:
        device = Device(folder, CASES)
        with closing(device.agent) as agent:
            agent.start()
            for one in device.packages:
                device.refuses(one)
            mended = device.packages if run.full else run.random.sample(device.packages, FEW)
            for one in mended:
                one.mend()
                device.loads(one)
                one.spoil()
                if not one.said:
                    device.loses(one)
                device.refuses(one)
            assert agent.stop() == 0
            assert "Traceback" not in agent.log()
            started = {one.name: agent.counted(one.name, "started") for one in device.packages}
            assert started == {one.name: int(one in mended) for one in device.packages}
            assert agent.calls(rpc="StartModel") == device.starts
            run.count(agent.calls(rpc="StartModel") - 2 * len(mended))


TRUSTS_ALL = """
from edge_agent import packages
packages.check_trust = lambda *_: None
"""
ANY_NUMBER_OF_NAMES = """
from edge_agent import packages
packages._check_one_link = lambda *_: None
"""
FOLLOWS = """
import os
from pathlib import Path
from edge_agent import packages
packages.READING_FLAGS &= ~os.O_NOFOLLOW
packages.LISTING_FLAGS &= ~os.O_NOFOLLOW
Path.lstat = Path.stat
packages._walk = lambda folder: [(str(path.relative_to(folder)), path.stat()) for path in folder.rglob("*")]
packages.search = lambda root, *_, **__: [path.parent for path in root.glob("*/*/manifest.json")]
"""
# What is broken -> code that breaks it, and the ways in which a package that is loaded then is foreign.
CONTROLS = {
    "everybody is trusted": (TRUSTS_ALL, {EVERYBODYS, STICKY, ANOTHERS}),
    "hard links are taken": (ANY_NUMBER_OF_NAMES, {HARD_LINK}),
    "links are followed": (FOLLOWS, {LINK}),
}


@pytest.mark.parametrize("broken", CONTROLS)
def test_what_is_loaded_is_noticed(folder, broken):
    code, ways = CONTROLS[broken]
    device = Device(folder, [case for case in CASES if case.way in ways])
    with closing(device.agent) as agent:
        agent.start(**sabotaged(folder, code))
        for one in device.packages:
            with pytest.raises(AssertionError, match="was (loaded|found)"):
                device.refuses(one)


def test_what_is_not_in_order_is_noticed(folder):
    device = Device(folder, CASES[:1])
    with closing(device.agent) as agent:
        agent.start()
        with pytest.raises(AssertionError, match="in vain until .* is in order"):
            device.loads(device.packages[0], patience=0.1)
