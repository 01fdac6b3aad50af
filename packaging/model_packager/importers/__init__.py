"""From what customers hold to a network with a manifest: one importer for each kind of file."""

import zipfile
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path, PurePath
from typing import Protocol

from model_packager import archives
from model_packager.errors import PackagingRefused
from model_packager.importers import anomalib, compiled, component, folder, sidecar, training_output
from model_packager.importers.source import PICKLES, Options, Source, is_skipped
from model_packager.network import Imported

__all__ = ["Importer", "Options", "Source", "load"]


class Importer(Protocol):
    """One kind of file; the module of each kind is one. TAKES are the options that go with it."""

    KIND: str
    TAKES: set[str]

    def claims(self, source: Source) -> bool:
        """Return whether the source is of this kind."""

    def load(self, source: Source, options: Options) -> Imported:
        """Return the network and its manifest; raise PackagingRefused with the way out."""


# In this order: the first that claims a source has it.
IMPORTERS: tuple[Importer, ...] = (training_output, compiled, component, folder, anomalib, sidecar)


def load(path: Path, options: Options, work: Path) -> Imported:
    """Return what a file, an archive or a folder holds; archives are unpacked into `work`.

    Raises:
        PackagingRefused: it is of no known kind, or cannot be used; the text says what to bring.

    """
    source = _opened(path, work)
    for importer in IMPORTERS:
        if importer.claims(source):
            _refuse_idle(options, importer, path.name)
            return importer.load(source, options)
    raise PackagingRefused(
        f"{path.name} holds neither a manifest.json with a model_graph nor an ONNX model. Bring a training output "
        "(model.tar.gz), a model component (.zip or folder), or an .onnx file."
    )


def _refuse_idle(options: Options, importer: Importer, name: str) -> None:
    """Refuse an option that would change nothing, since its giver believes that it does."""
    for option in fields(options):
        if option.name not in importer.TAKES and getattr(options, option.name) not in {None, ()}:
            flag = f"--{option.name.replace('_', '-')}"
            instead = " What its manifest says counts; change it there." if "manifest" in importer.TAKES else ""
            raise PackagingRefused(f"{flag} does not go with {name} ({importer.KIND}).{instead}")


def _opened(path: Path, work: Path) -> Source:
    if path.is_dir():
        return Source(path.name, folder=path)
    if not path.is_file():
        raise PackagingRefused(f"{path} does not exist, or is no file and no folder.")
    if path.suffix.lower() == ".onnx":
        return Source(path.name, file=path)
    inside = _zip_names(path)
    if any(PurePath(name).parts[1:] == ("constants.pkl",) for name in inside):
        return Source(path.name, file=path, torchscript=True)
    if path.suffix.lower() in {*PICKLES, ".pt"} or any(map(_makes_a_checkpoint, inside)):
        raise PackagingRefused(
            f"{path.name} is a checkpoint, a pickle of Python's, which is never opened: that would run whatever code is in "
            "it. Bring the model as TorchScript (export_artifacts/mochi.pt of the training output) or as .onnx."
        )
    target = work / "unpacked"
    archives.unpack(path, target, lambda name: not is_skipped(name))
    return Source(path.name, folder=target)


def _zip_names(path: Path) -> Iterable[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist() if len(archive.filelist) < 100_000 else []
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return []


def _makes_a_checkpoint(name: str) -> bool:
    """Return whether a file of a zip is where torch.save puts its pickle, and not in a folder that is skipped."""
    folder, *rest = PurePath(name).parts or ("",)
    return rest == ["data.pkl"] and not is_skipped(folder)
