"""(c) A component with compiled code: its manifest can be used, its code cannot be turned back into a model."""

from pathlib import Path

from model_packager.errors import PackagingRefused
from model_packager.importers.pairing import pair
from model_packager.importers.source import Options, Source, read_manifest
from model_packager.network import Imported

KIND = "compiled component"
TAKES = {"manifest", "model"}
CODE = {"compiled.so", "compiled.params", "compiled.meta", "libdlr.so"}


def claims(source: Source) -> bool:
    """Return whether there is compiled code, and no model beside it."""
    return any(path.name in CODE for path in source.files) and not source.models


def load(source: Source, options: Options) -> Imported:
    """Return the component's manifest with the caller's model.

    Raises:
        PackagingRefused: no model was given.

    """
    if options.model is None:
        raise PackagingRefused(
            f"{source.name} holds compiled code, which cannot be turned back into a model. Its manifest can be used: give the "
            "model that it was compiled from with --model FILE (export_artifacts/mochi.pt of the training output, or an .onnx)."
        )
    manifests: list[Path] = [options.manifest] if options.manifest else source.manifests
    if len(manifests) != 1:
        raise PackagingRefused(
            f"{source.name} has {len(manifests)} manifests with a model_graph; give one with --manifest FILE."
        )
    return pair(KIND, f"{source.name} with {options.model.name}", read_manifest(manifests[0]), options.model)
