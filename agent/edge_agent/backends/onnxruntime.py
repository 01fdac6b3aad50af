"""ONNX Runtime: the CPU, and NVIDIA's GPUs through its CUDA and TensorRT providers. What it is told stands in `ort_options`.

Only this module, and what it passes the runtime to, knows it. Options: https://onnxruntime.ai/docs/performance/
tune-performance/threading.html; the keys of sessions: its onnxruntime_session_options_config_keys.h.

From 1.29 on, its official Linux builds send telemetry to Microsoft, over the network, as soon as they are imported
(https://github.com/microsoft/onnxruntime/pull/27379). A device on an inspection line must not: it is switched off here,
before the import, which is the only moment at which that is possible. That import makes no CUDA context and loads none of
CUDA's libraries, so that it may be done before processes are forked.
"""

import contextlib
import copy
import io
import logging
import os
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.backends import Tell, ort_binding, ort_engine, ort_errors, ort_options
from edge_agent.backends.ort_binding import Binding
from edge_agent.backends.ort_options import Engine
from edge_agent.errors import AcceleratorMissing, InferenceFailed, PackageRefused, extra
from edge_agent.jobs import Accelerator, SessionOptions
from edge_agent.packages import ModelFiles

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
try:
    import onnxruntime as ort
except ImportError:  # pragma: no cover  (seen where the extra is not installed)
    ort = None

logger = logging.getLogger(__name__)

# What fails is raised, too, and told by us; the runtime would print a model's names to stderr as they are.
FATAL_ONLY = 4
ERRORS = 3
INPUT_TYPES: dict[str, np.dtype[Any]] = {"tensor(float)": np.dtype(np.float32), "tensor(uint8)": np.dtype(np.uint8)}
# Where the tensors of a call are, as the runtime calls it; of the CPU they are wherever they come from.
DEVICES: dict[Accelerator, str] = {"cuda": "cuda", "tensorrt": "cuda"}


class OrtSession:
    """An ONNX model on one of ONNX Runtime's providers."""

    def __init__(self, model: ModelFiles, options: SessionOptions, tell: Tell = lambda _: None) -> None:
        """Load the model; `tell` is told while TensorRT builds.

        Raises:
            AcceleratorMissing: it cannot be run on the accelerator of the options, with the runtime's cause.
            PackageRefused: it does not load, with the runtime's reason.
            AcceleratorFailed: the GPU failed.
            MemoryError: there is no memory for it.

        """
        _check_installed(options)
        self._device, self._index = DEVICES.get(options.accelerator, ""), options.gpu.index
        self._session = _open(model, options) if options.accelerator == "cpu" else _open_on_gpu(model, options, tell)
        # The runtime's Python part keeps the bytes that it was given, to make another session of them; there is none.
        if hasattr(self._session, "_model_bytes"):
            self._session._model_bytes = None  # noqa: SLF001
        self.provider = str(self._session.get_providers()[0])
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in INPUT_TYPES:
            listed = ", ".join(f"{one.name} {one.type}" for one in inputs) or "none"
            raise PackageRefused(f"The model must have one float32 input (uint8 when compiled); it has: {listed}.")
        self._input = inputs[0].name
        self._binding: Binding | None = None
        self._running = _run_options()
        self.input_dtype = INPUT_TYPES[inputs[0].type]

    def run(self, tensor: NDArray[Any]) -> list[NDArray[Any]]:
        """Return the model's outputs for one input of its shape.

        Raises:
            InferenceFailed: the runtime failed, with its cause.
            MemoryError: there was no memory left for it.
            AcceleratorFailed: the GPU failed, and this process must end.

        """
        # New ones for each run: those of a run that was ended would end the next one, too.
        self._running = _run_options()
        try:
            if self._device:
                return self._run_bound(tensor)
            return list(self._session.run(None, {self._input: tensor}, self._running))
        except InferenceFailed:
            raise
        except Exception as error:  # noqa: BLE001  (the runtime raises many classes that share no base)
            self._check_known(error)
            text = "The model failed on the image; the agent's log has the cause."
            raise InferenceFailed(text, cause=ort_errors.sentence(error)) from None

    def another(self) -> "OrtSession":
        """Return the same loaded model for one more thread: it may be run by several at once."""
        other = copy.copy(self)
        other._binding = None  # noqa: SLF001  (one of our own)
        return other

    def terminate(self) -> None:
        """End the run that is under way; the runtime looks between two operators."""
        self._running.terminate = True

    def _run_bound(self, tensor: NDArray[Any]) -> list[NDArray[Any]]:
        # Made by the thread that runs it, and kept if it is one that the model takes.
        binding = self._binding or Binding(ort, self._session, self._device, self._index, tensor)
        outputs = binding.run(tensor, self._running)
        self._binding = binding
        return outputs

    def _check_known(self, error: Exception) -> None:
        ort_errors.check_memory(error)
        if self._device == "cuda":
            ort_errors.check_gpu(error)
        ort_errors.check_arena(error)


def preload(runtime: Any) -> None:
    """Load CUDA's libraries from NVIDIA's Python wheels, where they are, as the loader does not look there.

    ONNX Runtime from 1.21 on; it prints what it did not find, which says nothing: they may be elsewhere.
    """
    if hasattr(runtime, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            runtime.preload_dlls()


def _check_installed(options: SessionOptions) -> None:
    """Raise PackageRefused without a runtime, and AcceleratorMissing with one that was built without the provider."""
    accelerator = options.accelerator
    if ort is None and accelerator == "cpu":
        raise PackageRefused(f"ONNX Runtime is not installed; {extra('cpu')}.")
    if ort is None:
        raise AcceleratorMissing(f"ONNX Runtime is not installed; {extra(accelerator)}.")
    wanted = ort_options.WANTED[accelerator]
    if accelerator != "cpu" and wanted not in ort.get_available_providers():
        raise AcceleratorMissing(f"ONNX Runtime here has no {wanted}; {extra(accelerator)}.")


def _run_options() -> Any:
    options = ort.RunOptions()
    options.log_severity_level = FATAL_ONLY
    return options


def _settings(model: ModelFiles, options: SessionOptions) -> Any:
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
    return settings


def _open(model: ModelFiles, options: SessionOptions, settings: Any = None) -> Any:
    """Return a session on the CPU; raise PackageRefused with the runtime's reason, or MemoryError."""
    try:
        return _session(model, settings or _settings(model, options), [(ort_options.CPU, {})])
    except Exception as error:  # noqa: BLE001
        ort_errors.check_memory(error)
        ort_errors.check_arena(error)
        raise PackageRefused(f"ONNX Runtime cannot load the model: {ort_errors.sentence(error)}") from None


def _session(model: ModelFiles, settings: Any, providers: list[ort_options.Provider]) -> Any:
    # The runtime's Python part would take another provider when one fails, and be silent of it.
    return ort.InferenceSession(model.graph, settings, providers=providers, enable_fallback=0)


def _open_on_gpu(model: ModelFiles, options: SessionOptions, tell: Tell) -> Any:
    """Return a session that really runs on the GPU."""
    preload(ort)
    # Of a provider that cannot be used the runtime tells on stderr, whatever a session says of its own log.
    ort.set_default_logger_severity(FATAL_ONLY)
    graphs = ort_options.records_graphs(options)
    if options.accelerator == "cuda":
        session = _recording(model, options, Engine(), graphs)
    else:
        os.environ.update(ort_options.environment(options))
        shape, fixed = _shapes(model, options)
        whole = _in_one_piece(model)
        with ort_engine.told(tell), ort_engine.prepared(model, options, str(ort.__version__), shape) as engine:
            session = _recording(whole, options, engine, graphs and fixed)
    wanted = ort_options.WANTED[options.accelerator]
    if session.get_providers()[0] != wanted:
        raise _not_used(wanted)
    _log_elsewhere(session, wanted)
    return session


def _in_one_piece(model: ModelFiles) -> ModelFiles:
    """Return the model for TensorRT's provider.

    It hands the graph on to TensorRT's parser, in some releases without the weights that were given beside it
    (https://github.com/microsoft/onnxruntime/pull/26721).
    """
    from edge_agent.backends import onnx_graph

    return ModelFiles(onnx_graph.in_one_piece(model)) if model.external else model


def _recording(model: ModelFiles, options: SessionOptions, engine: Engine, graphs: bool) -> Any:
    """Return a session whose launches are recorded if `graphs`, or where the runtime cannot do that one without."""
    wanted = ort_options.WANTED[options.accelerator]
    while True:
        settings = _settings(model, options)
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        try:
            return _session(model, settings, ort_options.providers(options, engine, graphs=graphs))
        except Exception as error:  # noqa: BLE001
            if graphs and ort_errors.NO_GRAPH.search(str(error)):
                logger.info("CUDA graphs are not used: %s", ort_errors.cause(error))
                graphs = False
                continue
            if ort_errors.NO_LIBRARIES.search(str(error)):
                raise _not_used(wanted) from None
            raise ort_errors.not_loaded(error, wanted) from None


def _shapes(model: ModelFiles, options: SessionOptions) -> tuple[str, bool]:
    """Return the input's shape as TensorRT is to be told it, "" where it is fixed, and whether all shapes are fixed.

    The model loads on the CPU for that, which takes little beside the building of an engine, and a model that is none is not
    taken for one that TensorRT refuses.

    Raises:
        AcceleratorMissing: the model leaves more open than the number of images.

    """
    settings = _settings(model, options)
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = _open(model, options, settings)
    inputs = session.get_inputs()
    if len(inputs) != 1 or all(isinstance(size, int) for size in inputs[0].shape):
        return "", ort_binding.fixed(session)
    if told := ort_options.open_shape(inputs[0].name, inputs[0].shape):
        return told, False
    raise AcceleratorMissing(
        f"The model leaves the size of its input open ({'x'.join(map(str, inputs[0].shape))}), which TensorRT has to know; "
        "export it with a fixed height and width, or set accelerator: cuda."
    )


def _not_used(wanted: str) -> AcceleratorMissing:
    """Return what is to be raised where a provider is listed and cannot be used."""
    return AcceleratorMissing(
        f"ONNX Runtime cannot run the model on {wanted}: {_why_not(wanted)}. Install NVIDIA's driver and the libraries that "
        "this ONNX Runtime needs (`edge-agent doctor` tells what is missing), set accelerator: cpu, or let it run on the CPU "
        "with fallback: allowed."
    )


def _why_not(wanted: str) -> str:
    """Return the runtime's own words for not using a provider, which it has only in its log: by trying once more."""
    from edge_agent.probe import runtime

    ort.set_default_logger_severity(ERRORS)
    told = {one.get("provider"): str(one.get("reason")) for one in runtime.answers()}
    ort.set_default_logger_severity(FATAL_ONLY)
    return told.get(wanted) or "it does not tell why"


def _log_elsewhere(session: Any, wanted: str) -> None:
    """Log which operators the provider left to others, where the runtime is one that tells."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return
    elsewhere: dict[str, int] = {}
    for part in session.get_provider_graph_assignment_info():
        for node in part.get_nodes() if part.ep_name != wanted else ():
            elsewhere[node.op_type] = elsewhere.get(node.op_type, 0) + 1
    if elsewhere:
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(elsewhere.items()))
        logger.info("%d of the model's nodes do not run on %s: %s", sum(elsewhere.values()), wanted, listed)
