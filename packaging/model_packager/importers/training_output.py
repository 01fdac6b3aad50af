"""(a) A training output, model.tar.gz: the pair export_artifacts/manifest.json and export_artifacts/mochi.pt."""

from pathlib import Path

from model_packager.errors import PackagingRefused
from model_packager.importers.pairing import pair
from model_packager.importers.source import Options, Source, read_manifest
from model_packager.network import Imported

KIND = "training output"
TAKES = {"manifest"}
ARTIFACTS = "export_artifacts"
MANIFEST, MODEL, SHORT = "manifest.json", "mochi.pt", "mochi.json"


def claims(source: Source) -> bool:
    """Return whether the folder is a training output, with or without the pair that is needed."""
    return bool(_pairs(source) or _tops(source))


def load(source: Source, options: Options) -> Imported:
    """Return the pair, or the top-level model with the caller's manifest.

    Raises:
        PackagingRefused: there is no manifest with the threshold, or more than one training output.

    """
    pairs, tops = _pairs(source), _tops(source)
    found = pairs or tops
    if len(found) > 1:
        raise PackagingRefused(f"{source.name} holds {len(found)} training outputs; name the folder of one of them.")
    if options.manifest:
        name, path = f"{source.name} with {options.manifest.name}", options.manifest
    elif pairs:
        name, path = source.name, found[0] / MANIFEST
    else:
        raise PackagingRefused(
            f"{source.name} has no {ARTIFACTS}/{MANIFEST} beside {ARTIFACTS}/{MODEL}. Its {SHORT} has no threshold, and the "
            "one in the checkpoint is in a pickle, which is never opened. Give the manifest with --manifest FILE."
        )
    return pair(KIND, name, read_manifest(path), found[0] / MODEL)


def _pairs(source: Source) -> list[Path]:
    """Return the folders export_artifacts that hold manifest and model."""
    return [one for one in _folders(source, MANIFEST) if one.name == ARTIFACTS]


def _tops(source: Source) -> list[Path]:
    """Return the folders that hold mochi.json and mochi.pt without a manifest."""
    return [one for one in _folders(source, SHORT) if one / MANIFEST not in source.files]


def _folders(source: Source, name: str) -> list[Path]:
    """Return the folders that hold the model and a file of this name."""
    return [one.parent for one in source.files if one.name == name and one.parent / MODEL in source.files]
