"""(b) A folder or zip with manifest.json and a .pt or .onnx, or one TorchScript file with the caller's manifest."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_packager.errors import PackagingRefused
from model_packager.importers.pairing import pair
from model_packager.importers.source import Options, Source, read_manifest
from model_packager.network import Imported

KIND = "model with a manifest"
TAKES = {"manifest", "model"}


def claims(source: Source) -> bool:
    """Return whether there is a manifest, or TorchScript, which cannot be anything without one."""
    return source.torchscript or bool(source.manifests) or any(one.suffix.lower() == ".pt" for one in source.models)


def load(source: Source, options: Options) -> Imported:
    """Return the one model beside the one manifest; raise PackagingRefused when it is not clear which they are."""
    if source.file and options.model:
        raise PackagingRefused(f"{source.name} is a model already; --model does not go with it.")
    path = options.manifest or _only(source.manifests, source, "manifests with a model_graph", "--manifest FILE")
    content = read_manifest(path)
    return pair(KIND, source.name, content, options.model or source.file or _model(source, content))


def _model(source: Source, content: Mapping[str, Any]) -> Path:
    """Return the model that the manifest names, or the only one there is."""
    listed = content.get("compilable_models")
    named = [one.get("filename") for one in (listed if isinstance(listed, list) else []) if isinstance(one, dict)]
    models = source.models
    return _only(
        [one for one in models if one.name in named] or models, source, "model files (.pt, .onnx)", "--model FILE"
    )


def _only(paths: list[Path], source: Source, what: str, flag: str) -> Path:
    if len(paths) != 1:
        raise PackagingRefused(f"{source.name} has {len(paths)} {what}; exactly one is needed: give it with {flag}.")
    return paths[0]
