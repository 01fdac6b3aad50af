"""Where model packages are: found below a models folder, named, checked for who may write them, and read safely."""

import hashlib
import logging
import os
import stat
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from operator import itemgetter
from pathlib import Path

from edge_agent import block, device, manifest
from edge_agent.block import Target
from edge_agent.errors import SHOWN, PackageRefused, printable, shown
from edge_agent.manifest import Manifest
from edge_agent.naming import name_and_version

logger = logging.getLogger(__name__)

DEEPEST = 4
MOST_FILES = 1000
# Of a sentence about a package, which may quote it: what an operator is told stays readable whatever it holds.
LONGEST_SENTENCE = 600
LISTING_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
READING_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

# (relative path, mode, uid, inode, size, mtime in ns, ctime in ns) of every file and folder of a package, the package
# folder and its parents up to the models folder included: equal signatures, same package. Of folders the last three
# are 0, since a folder above changes with its other packages too.
Signature = tuple[tuple[str, int, int, int, int, int, int], ...]
# What stands of a file in a signature, without its path.
Seen = tuple[int, int, int, int, int, int]


@dataclass(frozen=True)
class Package:
    """A model package that was accepted.

    `model_seen` is what its signature says of the model file; only that very file is loaded.
    """

    arn: str
    folder: Path
    manifest: Manifest
    notes: tuple[str, ...] = ()
    model_seen: Seen | None = None


@dataclass(frozen=True)
class ModelFiles:
    """A model as a runtime gets it: the bytes of the ONNX file, and of each file of external data by its name."""

    graph: bytes
    external: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Rules:
    """What a package must fulfil on this device, besides being what its manifest says.

    `trusted_uids` are users besides root and the agent's own that may own packages; with `strict_target` a package that
    was compiled for another GPU or another TensorRT is refused, else that is only said. `any_target` is for looking at
    packages of other devices. `fit` is asked (name, target, strict_target) whether the model can run on this device; it
    returns what operators should know, and raises PackageRefused.
    """

    trusted_uids: Collection[int] = ()
    strict_target: bool = False
    any_target: bool = False
    fit: Callable[[str, Target | None, bool], tuple[str, ...]] = device.fit


@dataclass(frozen=True)
class Found:
    """A folder that claims to be a package; `refusal` says why it is not one, if it is not.

    `called` is what a registry entry calls it, component and version, where one does.
    """

    name: str
    version: str
    folder: Path
    root: Path
    signature: Signature
    package: Package | None
    refusal: str = ""
    called: tuple[str, str] | None = None

    @property
    def content(self) -> Signature:
        """The part of the signature that is of the package itself, and not of the folders above it."""
        return tuple(entry for entry in self.signature if not entry[0].startswith("/") or entry[0] == str(self.folder))


def search(
    folder: Path, on_error: Callable[[OSError], None], levels: int = DEEPEST, known: Container[Path] = ()
) -> Iterator[Path]:
    """Yield `folder` or those below it that hold a manifest.json with a model graph (or a broken one).

    At most `levels` deep, not inside a package, links not followed; in alphabetical order. `on_error` is told of each
    folder that cannot be listed. Those that are `known` to be packages are ones whatever is broken in them.
    """
    try:
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
        if any(entry.name == manifest.FILE and _claims_to_be_a_package(folder, known) for entry in listed):
            yield folder
        elif levels:
            for entry in listed:
                if entry.is_dir(follow_symlinks=False):
                    yield from search(folder / entry.name, on_error, levels - 1, known)
    except OSError as error:
        on_error(error)


def _claims_to_be_a_package(folder: Path, known: Container[Path]) -> bool:
    try:
        data = read_file(folder, manifest.FILE, most=manifest.LONGEST + 1, head=True)
    except PackageRefused:  # what cannot be read may be one, whose model must not vanish
        return True
    try:
        return manifest.parse_json(data) is not None
    except PackageRefused:
        return folder in known or manifest.is_of_a_package(data)


def look(folder: Path, root: Path, rules: Rules, called: tuple[str, str] | None = None) -> Found:
    """Read the package in `folder`, found below the models folder `root`.

    `called` are the component and version that a registry entry says: a package without a block is called so, and one
    with a block must be.

    Raises:
        OSError: the folder went away while it was read (FileNotFoundError), or the system could not read it.

    """
    name, version = called or name_and_version(folder)
    signature = sign(folder, root)
    seen: dict[str, Seen] = {entry[0]: entry[1:] for entry in signature}
    try:
        check_trust(signature, rules.trusted_uids)
        data = read_file(folder, manifest.FILE, one_link=True, seen=seen.get(manifest.FILE), most=manifest.LONGEST)
        by_path = name, version
        # What is refused below is listed by the path where that tells both, else by what is left of the block: a
        # model must not vanish because its manifest is damaged.
        if not called and not block.VERSION.fullmatch(folder.parent.name):
            name, version = block.claimed(data) or by_path
        content = manifest.parse_json(data)
        if content is None or "model_graph" not in content:
            raise PackageRefused("manifest.json has no model_graph any more.")
        if "package" in content or block.is_signed(data):
            block.check_signed(data)
        parsed = manifest.parse(content)
        if parsed.block and called and called != (parsed.block.name, parsed.block.version):
            raise PackageRefused(
                f"It is registered as {name} {version}, and its package block says {parsed.block.name} {parsed.block.version}."
            )
        name, version = (parsed.block.name, parsed.block.version) if parsed.block else by_path
        arn = parsed.block.arn if parsed.block else block.default_arn(name, version)
        check_files(folder, parsed)
        notes = parsed.notes
        if not rules.any_target:
            notes += rules.fit(name, parsed.block.target if parsed.block else None, rules.strict_target)
    except PackageRefused as refusal:
        return Found(name, version, folder, root, signature, None, _sentence(str(refusal)), called)
    except OSError:
        raise
    except Exception:
        # Whatever a package holds, it must cost that package and not the look at all the others.
        logger.exception("The package in %s could not be read", folder)
        reason = "The package could not be read; the agent's log has the cause."
        return Found(name, version, folder, root, signature, None, reason, called)
    package = Package(arn, folder, parsed, tuple(map(_sentence, notes)), seen.get(parsed.model_file))
    return Found(name, version, folder, root, signature, package, called=called)


def look_again(found: Found, rules: Rules) -> Found:
    """Return the package as it is on disk this instant, which may be newer than the last look at its folder."""
    try:
        again = look(found.folder, found.root, rules, found.called)
    except OSError as error:
        gone = isinstance(error, FileNotFoundError)
        refusal = "The package's files are gone." if gone else f"The package cannot be read: {error.strerror}."
        return replace(found, signature=(), package=None, refusal=refusal)
    if again.package is None:  # what named it may be what cannot be read any more
        return replace(again, name=found.name, version=found.version)
    if again.name != found.name:
        return replace(found, signature=again.signature, package=None, refusal="The package has got another name.")
    return again


def sign(folder: Path, root: Path) -> Signature:
    """Return the signature of a package; raise OSError when it is gone."""
    above = [folder, *folder.parents]
    entries = [(str(root), root.stat()), *((str(path), path.lstat()) for path in above[: above.index(root)])]
    entries += _walk(folder)
    return tuple((path, *_seen(info)) for path, info in sorted(entries, key=itemgetter(0)))


def check_trust(signature: Signature, trusted_uids: Collection[int]) -> None:
    """Raise PackageRefused when someone who is not trusted could have written the package or may still."""
    allowed = {0, os.geteuid(), *trusted_uids}
    if len(signature) > MOST_FILES:
        raise PackageRefused(f"The package has more than {MOST_FILES} files.")
    for path, mode, uid, *_ in signature:
        label = _label(path)
        if stat.S_ISLNK(mode):
            if path.startswith("/"):
                raise PackageRefused(f"{label} is a link; only the models folder itself may be one.")
            continue  # never followed, so it says nothing of who wrote the package
        if mode & stat.S_IWOTH:
            raise PackageRefused(f"{label} is writable by everybody; take that away with chmod o-w.")
        if uid not in allowed:
            raise PackageRefused(
                f"{label} belongs to uid {uid}; only root, the agent's user and trusted_uids may own packages."
            )


def check_files(folder: Path, parsed: Manifest) -> None:
    """Raise PackageRefused unless the model file is there and, with a `package` block, exactly the listed files are."""
    _check_model_file(folder, parsed.model_file)
    if parsed.block is None:
        return
    listed = parsed.block.files
    if parsed.model_file not in listed:
        raise PackageRefused(f"{_name(parsed.model_file)} is not listed in package.files.")
    there = set()
    needed = {str(above) for path in listed for above in Path(path).parents}
    for path, info in _walk(folder):
        if stat.S_ISDIR(info.st_mode):
            if path not in needed:
                raise PackageRefused(f"{shown(path)} is a folder that no file of package.files is in.")
            continue
        if not stat.S_ISREG(info.st_mode):
            raise PackageRefused(f"{shown(path)} is a link or no regular file.")
        there.add(path)
    for path in sorted(there - set(listed) - {manifest.FILE}):
        raise PackageRefused(f"{shown(path)} is not listed in package.files.")
    for path in sorted(set(listed) - there):
        raise PackageRefused(f"{shown(path)} is listed in package.files and missing.")
    for path, digest in listed.items():
        info = (folder / path).lstat()
        _check_one_link(info, path)
        if info.st_size != digest.size:
            raise PackageRefused(f"{shown(path)} has {info.st_size} bytes; package.files says {digest.size}.")


def _check_model_file(folder: Path, model_file: str) -> None:
    stage = str(Path(model_file).parent)
    place = _lstat(folder / stage)
    if place and not stat.S_ISDIR(place.st_mode):
        raise PackageRefused(f"{_name(stage)} is a link or no folder.")
    model = _lstat(folder / model_file)
    if model is None:
        raise PackageRefused(f"{_name(model_file)} is missing.")
    if not stat.S_ISREG(model.st_mode):
        raise PackageRefused(f"{_name(model_file)} is not a regular file.")
    _check_one_link(model, model_file)


def model_size(package: Package) -> int:
    """Return the bytes of the model file, 0 when it is gone."""
    info = _lstat(package.folder / package.manifest.model_file)
    return info.st_size if info else 0


def read_model(package: Package) -> ModelFiles:
    """Return the bytes of the model, the very bytes whose digests were checked; raise PackageRefused.

    Files beside the model that package.files lists are its external data, by file name.
    """
    model_file = package.manifest.model_file
    graph = read_file(package.folder, model_file, one_link=True, seen=package.model_seen)
    external = {}
    for path, digest in (package.manifest.block.files if package.manifest.block else {}).items():
        data = graph if path == model_file else read_file(package.folder, path, one_link=True)
        if hashlib.sha256(data).hexdigest() != digest.sha256:
            raise PackageRefused(f"{shown(path)} was changed: its SHA-256 is not the one in package.files.")
        if path != model_file and Path(path).parent == Path(model_file).parent:
            external[Path(path).name] = data
    return ModelFiles(graph, external)


def read_file(
    folder: Path,
    relative: str,
    *,
    one_link: bool = False,
    seen: Seen | None = None,
    most: int | None = None,
    head: bool = False,
) -> bytes:
    """Return a package file's bytes, opened without following a link; raise PackageRefused when that cannot be had.

    With `one_link` a file that has a second name, which could be changed from elsewhere, is refused, and with `seen`
    any other file than that: paths may lead elsewhere for a moment, and back again. One of more than `most` bytes is not
    read, since a sparse file may have any size; with `head` its first `most` bytes are.
    """
    opened = []
    try:
        *inner, name = Path(relative).parts
        opened.append(os.open(folder, LISTING_FLAGS))
        for part in inner:
            opened.append(os.open(part, LISTING_FLAGS, dir_fd=opened[-1]))
        opened.append(os.open(name, READING_FLAGS, dir_fd=opened[-1]))
        info = os.fstat(opened[-1])
        if one_link:
            _check_one_link(info, relative)
        if seen and _seen(info) != seen:
            raise PackageRefused(f"{_name(relative)} was replaced after it was checked; start the model again.")
        if most is not None and info.st_size > most and not head:
            raise PackageRefused(f"{_name(relative)} is larger than {most} bytes.")
        return _read_unchanging(opened[-1], _name(relative), most)
    except (MemoryError, OverflowError):
        raise PackageRefused(f"{_name(relative)} does not fit into memory.") from None
    except OSError as error:
        raise PackageRefused(f"{_name(relative)} cannot be read: {error.strerror}.") from None
    finally:
        for fd in opened:
            os.close(fd)


def _read_unchanging(fd: int, label: str, most: int | None) -> bytes:
    """Read a regular file, or its first `most` bytes; refuse it when it changes meanwhile (it is still being copied)."""
    before = os.fstat(fd)
    if not stat.S_ISREG(before.st_mode):
        raise PackageRefused(f"{label} is not a regular file.")
    size = before.st_size if most is None else min(before.st_size, most)
    with open(fd, "rb", closefd=False) as file:
        data = file.read(size)  # and no more, should it grow without end
    if len(data) != size or _changes(os.fstat(fd)) != _changes(before):
        raise PackageRefused(f"{label} changed while it was read; it is perhaps still being copied.")
    return data


def _walk(folder: Path) -> list[tuple[str, os.stat_result]]:
    """Return the path in `folder` of what is in it at any depth, and what lstat says of it, for MOST_FILES at most.

    Not os.walk, which calls itself for each level before Python 3.12: whoever can write a package must not end the agent.
    """
    walked: list[tuple[str, os.stat_result]] = []
    waiting = [folder]
    while waiting and len(walked) < MOST_FILES:
        with os.scandir(waiting.pop()) as entries:
            for entry in islice(entries, MOST_FILES - len(walked)):
                info = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(info.st_mode):
                    waiting.append(Path(entry.path))
                walked.append((str(Path(entry.path).relative_to(folder)), info))
    return walked


def _check_one_link(info: os.stat_result, relative: str) -> None:
    """Refuse a file that has a second name: whoever writes to that one changes the package from elsewhere."""
    if stat.S_ISREG(info.st_mode) and info.st_nlink != 1:
        raise PackageRefused(f"{shown(relative)} has a second hard link; copy the file instead of linking it.")


def _seen(info: os.stat_result) -> Seen:
    changes = (0, 0, 0) if stat.S_ISDIR(info.st_mode) else _changes(info)
    return info.st_mode, info.st_uid, info.st_ino, *changes


def _changes(info: os.stat_result) -> tuple[int, int, int]:
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns


def _label(path: str) -> str:
    """Name a file of the package as it stands in it, a folder above by its name alone."""
    return f"Folder {shown(Path(path).name)}" if path.startswith("/") else shown(path)


def _name(relative: str) -> str:
    """Return a path as it is where it can be read in a sentence, else quoted and cut."""
    return relative if relative.isprintable() and len(relative) <= SHOWN else shown(relative)


def _sentence(text: str) -> str:
    line = printable(text)
    return line if len(line) <= LONGEST_SENTENCE else f"{line[:LONGEST_SENTENCE]}..."


def _lstat(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except OSError:
        return None


def raise_error(error: OSError) -> None:
    """Raise what `search` is told of."""
    raise error
