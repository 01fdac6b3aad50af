"""TorchScript to ONNX, in a process of its own: `torch.jit.load` only, no pickle of Python's is ever opened.

PyTorch is not needed by anything else and not imported by any other module.
"""

import importlib.util
import json
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_agent import manifest
from edge_agent.errors import InferenceFailed, extra
from edge_agent.graphs import NetworkGraph, Reading
from model_packager import children
from model_packager.errors import PackagingRefused
from model_packager.parity import Images

if TYPE_CHECKING:
    import torch

OPSET = 17
PATIENCE = 3600.0
# PyTorch's own needs, and several copies of the weights.
MEMORY = 3 << 30
COPIES = 12
NEEDS_TORCH = (
    "{name} is TorchScript, and converting it needs PyTorch, which is not installed: bring the model as .onnx, or "
    f"{extra('torch')}."
)


def convert(model: Path, content: Mapping[str, Any], images: Path | None, work: Path) -> tuple[Path, list[Reading]]:
    """Return the model as an ONNX file in `work`, and what TorchScript itself says of the images.

    Args:
        model: a TorchScript file.
        content: the manifest.
        images: the job's folder of images, or None for noise.
        work: a folder for the files that are made.

    Raises:
        PackagingRefused: it is no TorchScript, PyTorch is missing, or it cannot be converted.

    """
    check(model)
    if importlib.util.find_spec("torch") is None:
        raise PackagingRefused(NEEDS_TORCH.format(name=model.name))
    target, readings = work / "converted.onnx", work / "readings.npz"
    request = {
        "model": str(model),
        "manifest": dict(content),
        "images": str(images) if images else None,
        "onnx": str(target),
        "readings": str(readings),
    }
    children.ask("model_packager.torchscript", request, what=f"Converting {model.name}", seconds=PATIENCE)
    with np.load(readings, allow_pickle=False) as kept:
        maps = kept["maps"] if "maps" in kept else [None] * len(kept["scores"])
        return target, [Reading(float(score), one) for score, one in zip(kept["scores"], maps, strict=True)]


def check(model: Path) -> None:
    """Raise PackagingRefused unless the file is TorchScript: a zip with compiled code, and not a pickle of Python's."""
    try:
        with zipfile.ZipFile(model) as archive:
            names = archive.namelist()
    except OSError as error:
        raise PackagingRefused(f"{model.name} cannot be read: {error.strerror or error}.") from None
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        names = []
    top = names[0].partition("/")[0] if names else ""
    if f"{top}/constants.pkl" not in names or not any(name.startswith(f"{top}/code/") for name in names):
        raise PackagingRefused(
            f"{model.name} is not TorchScript; a checkpoint or another pickle of Python's is never opened, since that runs "
            "whatever code is in it. Bring the model as written by torch.jit.save, or as .onnx."
        )


class _TorchSession:
    """TorchScript behind the agent's protocol of a session."""

    provider = "TorchScript"
    input_dtype = np.dtype(np.float32)

    def __init__(self, module: "torch.jit.ScriptModule") -> None:
        self._module = module

    def run(self, tensor: NDArray[Any]) -> list[NDArray[Any]]:
        """Return the module's outputs in its order."""
        import torch

        with torch.no_grad():
            found = self._module(torch.from_numpy(tensor))
        listed = found if isinstance(found, (tuple, list)) else [found]
        if not all(isinstance(one, torch.Tensor) for one in listed):
            raise PackagingRefused("The TorchScript model gives something else than tensors.")
        return [one.numpy() for one in listed]


def _convert(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Export the model and write down what it says of the images; in the child."""
    import torch

    # It warns of what it will do some day; the log is for what went wrong.
    warnings.simplefilter("ignore")
    parsed = manifest.parse({**request["manifest"], "runtime": "onnx", "runtime_artifact": "model.onnx"})
    try:
        module = torch.jit.load(request["model"], map_location="cpu")
    except Exception as error:  # noqa: BLE001  (whatever is in a file that somebody sent)
        raise PackagingRefused(f"PyTorch cannot load the TorchScript model: {_sentence(error)}") from None
    module.eval()
    graph = NetworkGraph(parsed, _TorchSession(module))
    images = Images(Path(request["images"]) if request["images"] else None, parsed)
    try:
        readings = [graph.read(pixels) for pixels in images.of_input_size()]
    except InferenceFailed as error:
        raise PackagingRefused(f"The TorchScript model is not what the manifest says: {error}") from None
    except RuntimeError as error:
        raise PackagingRefused(
            f"The TorchScript model fails on an image of its input size: {_sentence(error)}"
        ) from None
    kept: dict[str, Any] = {"scores": np.array([one.score for one in readings])}
    if parsed.stage.segmentation:
        kept["maps"] = np.stack([one.class_map for one in readings if one.class_map is not None])
    np.savez(request["readings"], **kept)
    width, height = parsed.stage.input_size
    heads = ["mask"] * parsed.stage.segmentation + ["scores"] * parsed.stage.classification
    try:
        torch.onnx.export(
            module,
            (torch.zeros(1, 3, height, width),),
            request["onnx"],
            dynamo=False,  # the newer exporter does not take TorchScript
            opset_version=OPSET,
            input_names=["input"],
            output_names=heads,
        )
    except Exception as error:  # noqa: BLE001
        raise PackagingRefused(f"PyTorch cannot export the model to ONNX: {_sentence(error)}") from None
    return {"torch": torch.__version__}


def _sentence(error: Exception) -> str:
    """Return the line that says what happened: the interpreter of TorchScript puts it last, under its own traceback."""
    text = str(error).strip().splitlines()[-1]
    return json.dumps(text if len(text) <= 200 else f"{text[:200]}...")


if __name__ == "__main__":
    children.serve(_convert, data_limit=lambda request: MEMORY + COPIES * Path(request["model"]).stat().st_size)
