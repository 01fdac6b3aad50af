"""The registry: the folder in which components register the packages that they bring, and the agent's answers to them.

An entry is `<component>.json`. Its acknowledgement, `<component>.ack`, is a copy of it as soon as the agent knows the
model and answers calls about it, or `error: ` and the reason why it never will.
"""

import errno
import logging
import os
import secrets
import shutil
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from edge_agent import registration
from edge_agent.errors import AgentRefused, printable, shown
from edge_agent.registration import Entry, EntryRefused, PackageGone, Place, Places
from edge_agent.unix_socket import give_to_group

logger = logging.getLogger(__name__)

MODE = 0o770
ACK_MODE = 0o644
FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
WRITING_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
ERROR = b"error: "


@dataclass
class Look:
    """What one look at the folder saw, by component: what is registered, refused or gone, and what it could not see."""

    content: dict[str, bytes | None] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    gone: dict[str, Entry] = field(default_factory=dict)
    unseen: set[str] = field(default_factory=set)
    registered: dict[str, tuple[Entry, Place]] = field(default_factory=dict)


class Registry:
    """The registry folder. It is made where it is missing, and belongs to the agent and a group."""

    def __init__(
        self, folder: Path, group: str, roots: Collection[Path], trusted_uids: Collection[int], unpacked: Path
    ) -> None:
        """Take charge of `folder`; entries may name packages below `roots`, zips are unpacked below `unpacked`."""
        self._folder = folder
        self._group = group
        self._trusted = registration.trusted(trusted_uids)
        self._places = Places(roots, self._trusted, unpacked)
        self._unpacked = unpacked
        self._started: dict[str, bytes] = {}
        self._now, self._before = Look(), Look()
        self._lost: set[str] = set()
        self._told: dict[tuple[str, str], str] = {}

    def make(self) -> None:
        """Make the folder if it is missing, for the agent and the group.

        Raises:
            AgentRefused: it cannot be made or used, or others may write it.

        """
        try:
            if not self._folder.exists():
                self._folder.parent.mkdir(parents=True, exist_ok=True)
                self._folder.mkdir(MODE & ~stat.S_IRWXG)
                give_to_group(self._folder, self._group, "the registry")
                self._folder.chmod(MODE)
            info = self._folder.stat()
        except OSError as error:
            raise AgentRefused(f"--registry {self._folder} cannot be made: {error.strerror}.") from None
        if not stat.S_ISDIR(info.st_mode):
            raise AgentRefused(f"--registry {self._folder} is no folder. Remove it, or name another.")
        if info.st_uid not in self._trusted or info.st_mode & stat.S_IWOTH:
            raise AgentRefused(
                f"--registry {self._folder} belongs to uid {info.st_uid} with mode {stat.S_IMODE(info.st_mode):04o}; it must "
                "belong to root, the agent's user or one of trusted_uids, and must not be writable by everybody."
            )
        if not os.access(self._folder, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
            raise AgentRefused(
                f"--registry {self._folder} may not be written by the agent's user, so models cannot be acknowledged. "
                "Permit it, or name another folder."
            )

    def look(self) -> Iterator[tuple[Entry, Place]]:
        """Look at the folder; yield each entry that counts, and where its package is.

        An entry that does not count, as one that is replaced by another user's, does not take away the good one
        that was there before it.
        """
        try:
            self._look()
        except OSError as error:
            self._tell(
                "folder", "", f"The registry {self._folder} cannot be looked at: {error.strerror}; it is tried again."
            )
        else:
            self._told.pop(("folder", ""), None)
        yield from self._now.registered.values()

    def lost(self, name: str) -> bool:
        """Return whether a component's package went away while it was registered."""
        return name in self._now.gone or name in self._lost

    def fresh_autostarts(self) -> set[str]:
        """Return the components that registered since the last call and want to be started."""
        now = {name: entry.raw for name, (entry, _) in self._now.registered.items()}
        fresh = {name for name, raw in now.items() if self._started.get(name) != raw}
        self._started = now
        return {name for name in fresh if self._now.registered[name][0].autostart}

    def answer(self, verdicts: Mapping[str, tuple[Path, str]]) -> None:
        """Write the acknowledgements, and unlink entries whose packages are gone.

        Args:
            verdicts: by component, the folder of the package that was judged and why it is refused, "" where it is not.

        """
        try:
            folder = self._opened()
        except OSError as error:
            told = f"Nothing can be answered in the registry {self._folder}: {error.strerror}; it is tried again."
            self._tell("folder", "answers", told)
            return
        self._told.pop(("folder", "answers"), None)
        try:
            for name, data in self._now.content.items():
                answer = self._answer_to(name, data, verdicts.get(name))
                if answer is not None:
                    self._acknowledge(folder, name, data, answer)
            for name, entry in self._now.gone.items():
                if self._before.gone.get(name) == entry:
                    self._unlink(folder, entry)
        finally:
            os.close(folder)

    def tidy(self, used: Collection[Path]) -> None:
        """Remove what was unpacked of zips that are registered no more and whose folders nobody uses."""
        used = {*used, *(place.folder for _, place in self._now.registered.values())}
        if self._now.unseen:
            return
        with suppress(OSError):  # which the next call may not meet
            for folder in self._unpacked.iterdir():
                if not any(folder in (one, *one.parents) for one in used):
                    shutil.rmtree(folder, ignore_errors=True)

    def _answer_to(self, name: str, data: bytes | None, verdict: tuple[Path, str] | None) -> bytes | None:
        """Return what an entry's acknowledgement is to be; None while that is open."""
        if refused := self._now.refused.get(name):
            # Twice in a row: what is written in place is no entry only as long as it is not whole.
            return _error(refused) if self._before.refused.get(name) == refused else None
        registered = self._now.registered.get(name)
        # What counts may still be an earlier entry, while the package of this one is not seen.
        if not registered or registered[0].raw != data or not verdict or verdict[0] != registered[1].folder:
            return None
        return _error(verdict[1]) if verdict[1] else data

    def _look(self) -> None:
        last, now = self._now, Look()
        read: dict[str, Entry] = {}
        folder = self._opened()
        try:
            with os.scandir(folder) as entries:
                names = sorted(filter(None, (registration.component_of(entry.name) for entry in entries)))
            for name in names:
                self._read(folder, name, now, read)
        finally:
            os.close(folder)
        # Who had a package first keeps it.
        for name in sorted({*now.content, *now.unseen}, key=lambda one: (one not in last.registered, one)):
            good = last.registered.get(name)
            for entry in filter(None, (read.get(name), good and good[0])):
                if name not in now.registered:
                    self._find(name, entry, now)
        # Only a look that came to its end is one of two in a row.
        self._before, self._now = last, now
        self._lost = (self._lost | set(last.gone)) - set(now.registered)
        holds: dict[str, Collection[str]] = {"entry": now.refused, "read": now.unseen, "place": now.unseen}
        for what, name in [*self._told]:
            if what in holds and name not in holds[what]:
                del self._told[what, name]
        for name, reason in now.refused.items():
            self._tell(
                "entry", name, f"The registry entry {shown(f'{name}.json')} does not count: {reason.rstrip('.')}."
            )

    def _opened(self) -> int:
        try:
            return os.open(self._folder, FOLDER_FLAGS)
        except FileNotFoundError:
            with suppress(AgentRefused):
                self.make()
            return os.open(self._folder, FOLDER_FLAGS)

    def _read(self, folder: int, name: str, now: Look, read: dict[str, Entry]) -> None:
        now.content[name] = None
        try:
            now.content[name] = data = registration.read(folder, f"{name}.json", self._trusted)
            read[name] = registration.parse(name, data)
        except EntryRefused as refusal:
            now.refused[name] = str(refusal)
        except FileNotFoundError:
            del now.content[name]
        except OSError as error:
            del now.content[name]
            now.unseen.add(name)
            file = shown(f"{name}.json")
            self._tell("read", name, f"The registry entry {file} cannot be read: {error.strerror}; it is tried again.")

    def _find(self, name: str, entry: Entry, now: Look) -> None:
        try:
            place = self._places.find(entry)
        except PackageGone:
            now.gone.setdefault(name, entry)
            return
        except EntryRefused as refusal:
            now.refused.setdefault(name, str(refusal))
            return
        except OSError as error:
            now.unseen.add(name)
            self._tell("place", name, f"{shown(entry.path)} cannot be looked at: {error.strerror}; it is tried again.")
            if name in self._now.registered:
                now.registered[name] = self._now.registered[name]
            return
        other = next((one for one, (_, had) in now.registered.items() if had.folder == place.folder), None)
        if other:
            now.refused.setdefault(name, f"its package is registered by {other} already")
            return
        now.registered[name] = entry, place

    def _acknowledge(self, folder: int, name: str, data: bytes | None, answer: bytes) -> None:
        """Write the acknowledgement where it is not there, unless the entry has been replaced meanwhile."""
        beside = f".{name}.{secrets.token_hex(4)}"
        try:
            if _content(folder, f"{name}.ack") == answer or (data and _content(folder, f"{name}.json") != data):
                return
            fd = os.open(beside, WRITING_FLAGS, ACK_MODE, dir_fd=folder)
            try:
                os.fchmod(fd, ACK_MODE)
                os.write(fd, answer)
            finally:
                os.close(fd)
            os.rename(beside, f"{name}.ack", src_dir_fd=folder, dst_dir_fd=folder)
            logger.info("%s: registration answered: %s", name, printable(answer.decode().rstrip("\n")))
            self._told.pop(("ack", name), None)
        except OSError as error:
            with suppress(OSError):
                os.unlink(beside, dir_fd=folder)
            self._tell(
                "ack", name, f"{name}.ack cannot be written in the registry: {error.strerror}; it is tried again."
            )

    def _unlink(self, folder: int, entry: Entry) -> None:
        """Remove an entry and its acknowledgement, unless it has been replaced meanwhile."""
        try:
            if _content(folder, f"{entry.component}.json") == entry.raw:
                os.unlink(f"{entry.component}.json", dir_fd=folder)
                with suppress(FileNotFoundError):
                    os.unlink(f"{entry.component}.ack", dir_fd=folder)
                logger.info("%s: its registry entry is removed, since %s is gone", entry.component, entry.path)
        except OSError as error:
            if error.errno != errno.ENOENT:
                self._tell("unlink", entry.component, f"{entry.component}.json cannot be removed: {error.strerror}.")

    def _tell(self, what: str, name: str, sentence: str) -> None:
        """Log a warning once for as long as it holds."""
        if self._told.get((what, name)) != sentence:
            self._told[what, name] = sentence
            logger.warning("%s", sentence)


def _error(reason: str) -> bytes:
    return ERROR + printable(reason.rstrip(".")).encode() + b".\n"


def _content(folder: int, name: str) -> bytes | None:
    """Return what is in a file, as far as it could be an entry or an answer; None where there is none."""
    try:
        fd = os.open(name, registration.READING_FLAGS, dir_fd=folder)
    except OSError:
        return None
    try:
        return os.pread(fd, 2 * registration.LONGEST, 0)
    except OSError:
        return None
    finally:
        os.close(fd)
