"""Which packages there are: the models folders and the registry, looked at again and again, until what is seen has settled.

Polled rather than watched with inotify, which says nothing on network and bind mounts; a look costs a few system calls
for each package.
"""

import errno
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from edge_agent import naming, packages
from edge_agent.block import NAME
from edge_agent.errors import shown
from edge_agent.packages import Found, Rules, Signature
from edge_agent.registry import Registry

logger = logging.getLogger(__name__)

GONE = {errno.ENOENT, errno.ENOTDIR}

# For each component, the folder and the signature of what a look would use of it, one a source.
Choices = dict[str, list[tuple[Path, Signature]]]


class Catalog:
    """The packages on the device. Its sources come in this order: models folders as given, the registry, the scan.

    Within one folder the highest version of a component wins. A folder may be a link, which is followed anew at each
    look. What is found is named by where it really is, so that turning the link in the middle of a look or a load
    cannot mix two packages.
    """

    def __init__(
        self, roots: Iterable[Path], rules: Rules, registry: Registry | None = None, scan: Path | None = None
    ) -> None:
        folders = [root.absolute() for root in roots]
        self._registered = len(folders)
        # Which source each folder is, counted from 0.
        self._roots = dict(enumerate(folders))
        if scan:
            self._roots[self._registered + 1] = scan.absolute()
        # Where a folder is or was, all links followed -> which source it is.
        self._sources: dict[Path, int] = {}
        self._rules = rules
        self._registry = registry
        self._settled: dict[Path, Found] = {}
        self._seen: dict[Path, Signature] | None = None
        self._chosen: Choices = {}
        self._unseen: set[Path] = set()
        self._names: dict[Path, tuple[str, str]] = {}
        self._told: set[str] = set()

    def look(self) -> dict[str, list[Found]]:
        """Look at all sources; return for each component what claims to be it, one a source, in the order of sources.

        What is new, changed or gone counts from the second look in a row that sees the same, so that a package that
        is being copied or replaced is left alone. The very first look counts at once.

        What is gone also stays for as long as two looks in a row would use different packages of its component. A look
        is no snapshot: it may miss a new version, which came after its folder was listed, and the old one, which went
        before its turn. Else that would bring back an older one, or none, until the new one counts.
        """
        self._unseen.clear()
        now: dict[Path, Found] = {}
        for source, root in self._roots.items():
            real = _real(root)
            self._sources.setdefault(real, source)
            for found in self._look_below(real):
                now.setdefault(found.folder, found)
        # What is registered is that, also where a folder of another source holds it.
        now |= {found.folder: found for found in self._look_at_registry()}
        if self._seen is None:
            self._settled = dict(now)
        else:
            for folder, found in now.items():
                if self._seen.get(folder) == found.signature:
                    self._settled[folder] = found
        # What could not be looked at counts as seen, as it was.
        seen = {folder: found for folder, found in self._settled.items() if self._unseen & {folder, *folder.parents}}
        there = seen | now
        chosen = self._choices(there)
        for folder in set(self._settled) - set(there) - set(self._seen or ()):
            name = self._settled[folder].name
            if chosen.get(name) == self._chosen.get(name):
                del self._settled[folder]
        self._seen = {folder: found.signature for folder, found in there.items()}
        self._chosen = chosen
        return self._by_name()

    def source(self, found: Found) -> int:
        """Return which of the sources a package is from, counted from 0."""
        return self._registered if found.called else self._sources[found.root]

    def moved(self, found: Found) -> Found:
        """Return a package with the place that its models folder has this instant, if that is a link and was turned."""
        if found.called:
            return found
        source = self.source(found)
        root = _real(self._roots[source])
        if root == found.root:
            return found
        self._sources.setdefault(root, source)
        return replace(found, root=root, folder=root / found.folder.relative_to(found.root))

    def _look_below(self, root: Path) -> list[Found]:
        found = []
        for folder in packages.search(root, self._cannot_look, known=self._names):
            one = self._look_at(folder, root)
            if one is None:
                continue
            if one.package:
                self._names[folder] = one.name, one.version
            elif folder in self._names:
                # Its own block named it, which cannot be read any more: it keeps its name while it is refused.
                name, version = self._names[folder]
                one = replace(one, name=name, version=version)
            if NAME.fullmatch(one.name):
                found.append(one)
            else:
                self._tell(
                    f"Skipped the package in {folder}: its name {shown(one.name)} is not of [a-zA-Z0-9-_.]{{1,128}}."
                )
        return found

    def _look_at_registry(self) -> list[Found]:
        if self._registry is None:
            return []
        found = [
            self._look_at(place.folder, place.root, (entry.component, entry.version))
            for entry, place in self._registry.look()
        ]
        return [one for one in found if one]

    def _look_at(self, folder: Path, root: Path, called: tuple[str, str] | None = None) -> Found | None:
        try:
            return packages.look(folder, root, self._rules, called)
        except OSError as error:
            self._cannot_look(error, folder)
            if folder in self._settled or error.errno in GONE:
                return None
            return _unreadable(folder, root, error, called)

    def _by_name(self) -> dict[str, list[Found]]:
        best, passed_over = self._best(self._settled)
        for winner, loser in passed_over:
            self._tell(
                f"{winner.name}: version {winner.version} in {winner.folder} is used, version {loser.version} in {loser.folder} is not."
            )
        by_name: dict[str, list[Found]] = {}
        for found in best:
            by_name.setdefault(found.name, []).append(found)
        return by_name

    def _choices(self, there: Mapping[Path, Found]) -> Choices:
        """Return what would be used if all that is there had settled."""
        choices: Choices = {}
        for found in self._best(there)[0]:
            choices.setdefault(found.name, []).append((found.folder, found.signature))
        return choices

    def _best(self, there: Mapping[Path, Found]) -> tuple[list[Found], list[tuple[Found, Found]]]:
        """Return the highest version of each component in each source, in the order of sources; and (winner, loser) pairs."""
        best: dict[tuple[str, int], Found] = {}
        passed_over = []
        for folder in sorted(there):
            found = there[folder]
            other = best.setdefault((found.name, self.source(found)), found)
            if other is found:
                continue
            winner, loser = (found, other) if _version(found) > _version(other) else (other, found)
            best[found.name, self.source(found)] = winner
            passed_over.append((winner, loser))
        return [found for _, found in sorted(best.items(), key=lambda item: item[0][1])], passed_over

    def _cannot_look(self, error: OSError, folder: Path | None = None) -> None:
        """Tell of a folder that could not be looked at; unless it is gone, what was in it still counts as there."""
        folder = folder or Path(error.filename)
        if error.errno not in GONE:
            self._unseen.add(folder)
            if folder in self._sources:  # a whole source, of which what was seen where its link led before stays, too
                self._unseen |= {root for root, source in self._sources.items() if source == self._sources[folder]}
        elif folder not in self._sources:
            return  # gone between two system calls: the next look will not find it
        self._tell(f"Folder {folder} cannot be looked at: {error.strerror}; it is tried again all the time.")

    def _tell(self, sentence: str) -> None:
        """Log a warning once, however often it is seen."""
        if sentence not in self._told:
            self._told.add(sentence)
            logger.warning("%s", sentence)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _unreadable(folder: Path, root: Path, error: OSError, called: tuple[str, str] | None) -> Found:
    name, version = called or naming.name_and_version(folder)
    signature = ((str(folder), error.errno or 0, 0, 0, 0, 0, 0),)
    return Found(name, version, folder, root, signature, None, f"The package cannot be read: {error.strerror}.", called)


def _version(found: Found) -> tuple[int, ...]:
    return naming.version_key(found.version)
