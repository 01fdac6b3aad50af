"""(d) An ONNX component, as the successor of the service writes it: manifest.json and <stage type>/model.onnx."""

from pathlib import Path

from edge_agent import manifest
from edge_agent.errors import PackageRefused, shown
from model_packager.errors import PackagingRefused
from model_packager.importers.pairing import pair
from model_packager.importers.source import Options, Source, read_manifest
from model_packager.network import Imported

KIND = "ONNX component"
TAKES = {"manifest", "model"}
RUNTIME = "onnx"


def claims(source: Source) -> bool:
    """Return whether there is a manifest that names ONNX as its runtime."""
    return bool(_manifests(source))


def load(source: Source, options: Options) -> Imported:
    """Return the component's model and its manifest; raise PackagingRefused when the model is not where it says."""
    found = _manifests(source)
    if len(found) > 1:
        raise PackagingRefused(f"{source.name} holds {len(found)} components; name the folder of one of them.")
    content = read_manifest(options.manifest or found[0])
    return pair(KIND, source.name, content, options.model or _model(source, found[0]))


def _model(source: Source, path: Path) -> Path:
    """Return the model that a component's manifest names, which lies in a folder beside it."""
    artifact = (manifest.parse_json(path.read_bytes()) or {}).get("runtime_artifact")
    if not isinstance(artifact, str) or Path(artifact).name != artifact:
        raise PackagingRefused(f"runtime_artifact is {shown(str(artifact))}; it must be a file name without a folder.")
    models = [one for one in source.files if one.name == artifact and one.parent.parent == path.parent]
    if len(models) != 1:
        raise PackagingRefused(
            f"{source.name} has {len(models)} files {shown(artifact)} in folders beside its manifest, which names one; give "
            "it with --model FILE."
        )
    return models[0]


def _manifests(source: Source) -> list[Path]:
    return [path for path in source.manifests if _names_onnx(path)]


def _names_onnx(path: Path) -> bool:
    try:
        content = manifest.parse_json(path.read_bytes())
    except (OSError, PackageRefused):  # the importer that takes it says what is wrong
        return False
    return content is not None and content.get("runtime") == RUNTIME
