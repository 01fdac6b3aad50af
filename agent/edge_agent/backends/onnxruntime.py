"""ONNX Runtime: the only module that knows it.

Options: https://onnxruntime.ai/docs/performance/tune-performance/threading.html

From 1.29 on, its official Linux builds send telemetry to Microsoft, over the network, as soon as they are imported
(https://github.com/microsoft/onnxruntime/pull/27379). A device on an inspection line must not: it is switched off here,
before the import, which is the only moment at which that is possible.
"""

import copy
import os
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.backends import Tell
from edge_agent.errors import AcceleratorMissing, InferenceFailed, PackageRefused, extra
from edge_agent.jobs import SessionOptions
from edge_agent.packages import ModelFiles

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
try:
    import onnxruntime as ort
except ImportError:  # pragma: no cover  (seen where the extra is not installed)
    ort = None

# What fails is raised, too, and told by us; the runtime would print a model's names to stderr as they are.
FATAL_ONLY = 4
# How the runtime, and the system through it, say that there is no memory left.
OUT_OF_MEMORY = re.compile("Failed to allocate memory|bad_alloc|Cannot allocate memory")
INPUT_TYPES: dict[str, np.dtype[Any]] = {"tensor(float)": np.dtype(np.float32), "tensor(uint8)": np.dtype(np.uint8)}


class OrtSession:
    """An ONNX model on ONNX Runtime's CPU provider."""

    def __init__(self, model: ModelFiles, options: SessionOptions, tell: Tell = lambda _: None) -> None:  # noqa: ARG002
        """Load the model; raise PackageRefused with the runtime's reason when it does not load, or MemoryError."""
        if ort is None:
            raise PackageRefused(f"ONNX Runtime is not installed; {extra('cpu')}.")
        if options.accelerator != "cpu":
            raise AcceleratorMissing("This agent runs models on the CPU only.")
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = options.threads or len(options.cpus)
        settings.inter_op_num_threads = 1
        settings.log_severity_level = FATAL_ONLY
        # Spinning threads win on an idle machine and lose up to half beside a busy neighbour.
        settings.add_session_config_entry("session.intra_op.allow_spinning", str(int(options.spinning)))
        # A model is loaded from the bytes that were checked, its external data too. What it would load besides, from a
        # file, was not checked: in this "folder" there is no file, whatever name the model gives.
        settings.add_session_config_entry("session.model_external_initializers_file_folder_path", "/dev/null")
        if model.external:
            names, contents = zip(*model.external.items(), strict=True)
            settings.add_external_initializers_from_files_in_memory(
                list(names), [bytes(one) for one in contents], [len(one) for one in contents]
            )
        try:
            self._session = ort.InferenceSession(model.graph, settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001  (the runtime raises many classes that share no base)
            _check_memory(error)
            raise PackageRefused(f"ONNX Runtime cannot load the model: {_sentence(error)}") from None
        # The runtime's Python part keeps the bytes that it was given, to make another session of them; there is none.
        if hasattr(self._session, "_model_bytes"):
            self._session._model_bytes = None  # noqa: SLF001
        self.provider = str(self._session.get_providers()[0])
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in INPUT_TYPES:
            listed = ", ".join(f"{one.name} {one.type}" for one in inputs) or "none"
            raise PackageRefused(f"The model must have one float32 input (uint8 when compiled); it has: {listed}.")
        self._input = inputs[0].name
        self._running = ort.RunOptions()
        self._running.log_severity_level = FATAL_ONLY
        self.input_dtype = INPUT_TYPES[inputs[0].type]

    def run(self, tensor: NDArray[Any]) -> list[NDArray[Any]]:
        """Return the model's outputs for one input of its shape.

        Raises:
            InferenceFailed: the runtime failed, with its cause.
            MemoryError: there was no memory left for it.

        """
        # New ones for each run: those of a run that was ended would end the next one, too.
        self._running = ort.RunOptions()
        self._running.log_severity_level = FATAL_ONLY
        try:
            return list(self._session.run(None, {self._input: tensor}, self._running))
        except Exception as error:  # noqa: BLE001
            _check_memory(error)
            text = "The model failed on the image; the agent's log has the cause."
            raise InferenceFailed(text, cause=_sentence(error)) from None

    def another(self) -> "OrtSession":
        """Return the same loaded model for one more thread: it may be run by several at once."""
        return copy.copy(self)

    def terminate(self) -> None:
        """End the run that is under way; the runtime looks between two operators."""
        self._running.terminate = True


def _check_memory(error: Exception) -> None:
    """Raise MemoryError where the runtime says, in whatever class, that there is no memory left."""
    if isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error)):
        raise MemoryError(_sentence(error)) from None


def _sentence(error: Exception) -> str:
    """Return the first line of the runtime's message, without its code and the names of files of its own build."""
    first = str(error).strip().partition("\n")[0]
    if "xternal data" in first or "model_path must not be empty" in first:
        return "it keeps its weights in a second file (external data); export it as one file."
    if unlisted := re.search("External file: (.*) not found from the table", first):
        return f"it keeps weights in {unlisted[1]!a:.120}, which package.files does not list beside the model."
    first = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : |\S*onnxruntime_src/\S+ ?|\w+\.cc:\d+ \w+ ", "", first)
    if not first:  # it cannot tell of names that are no UTF-8
        return f"it gives no reason but {type(error).__name__}."
    return first if len(first) <= 300 else f"{first[:300]}..."
