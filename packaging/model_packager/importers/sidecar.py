"""(f) Any ONNX classifier or segmenter, with a sidecar manifest of the caller's that says everything.

The sidecar is a manifest.json as in every package; its object `onnx` says what is not mochi's way, see `pairing`.
"""

from model_packager.errors import PackagingRefused
from model_packager.importers.pairing import pair
from model_packager.importers.source import Options, Source, read_manifest
from model_packager.network import Imported

KIND = "ONNX model"
TAKES = {"manifest"}


def claims(source: Source) -> bool:
    """Return whether there is one ONNX model and nothing that explains it."""
    return source.onnx is not None


def load(source: Source, options: Options) -> Imported:
    """Return the model with the sidecar; raise PackagingRefused when there is none, or it says too little."""
    model = source.onnx
    assert model is not None  # it was claimed
    if options.manifest is None:
        raise PackagingRefused(
            f"{source.name} is an ONNX model without a manifest, and no export of anomalib's (no output pred_score). Which "
            "class is normal, the threshold and the sizes are never guessed: give a sidecar manifest with --manifest FILE."
        )
    return pair(KIND, f"{source.name} with {options.manifest.name}", read_manifest(options.manifest), model)
