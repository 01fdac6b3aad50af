"""Which execution providers ONNX Runtime is given for a model, and with which options: tables, and nothing of the runtime.

Names and meanings: https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html and
https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html. What the runtime takes from Python is
stricter than these pages: a truth value is "1" or "0" for CUDA (provider_options_utils.h), and "True" or "False" for
TensorRT (onnxruntime_pybind_state.cc), whose provider refuses the others; numbers are decimal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edge_agent.jobs import Accelerator, SessionOptions

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
# What a session for an accelerator runs on, or else is none for it.
WANTED: Mapping[Accelerator, str] = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}

Provider = tuple[str, dict[str, str]]


@dataclass(frozen=True)
class Engine:
    """What TensorRT builds an engine with, and where it is kept; "" is none each.

    `folder` is for the engine and what was measured for it, if `keep`; `calibration` a table of TensorRT's own in it, for
    INT8; `shape` the input's, as in "input:1x3x64x72", where the model leaves it open.
    """

    folder: str = ""
    keep: bool = False
    calibration: str = ""
    shape: str = ""


def records_graphs(options: SessionOptions) -> bool:
    """Return whether what a call launches is recorded once and replayed: a recording belongs to one thread."""
    return options.accelerator != "cpu" and options.gpu.graphs and options.slots == 1


def providers(options: SessionOptions, engine: Engine = Engine(), *, graphs: bool = False) -> list[Provider]:
    """Return the providers in their order; each takes the nodes that those before it cannot run.

    `graphs` says whether launches are recorded, by the first of them.
    """
    chosen: list[Provider] = [(CPU, {})]
    if options.accelerator == "tensorrt":
        # The nodes that TensorRT cannot run are no part of a recording, so the runtime has TensorRT record, or nobody.
        return [(TENSORRT, _tensorrt(options, engine, graphs)), (CUDA, _cuda(options, graphs=False)), *chosen]
    if options.accelerator == "cuda":
        return [(CUDA, _cuda(options, graphs)), *chosen]
    return chosen


def _cuda(options: SessionOptions, graphs: bool) -> dict[str, str]:
    gpu = options.gpu
    chosen = {
        "device_id": str(gpu.index),
        # Takes what it needs, and no power of two: other models share the GPU's memory.
        "arena_extend_strategy": "kSameAsRequested",
        # Measures each convolution's algorithms in the warm-up, for an input that never changes its shape.
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        # TensorFloat-32 has the 10 bits of half precision: only where that is allowed, else results are the CPU's.
        "use_tf32": "0" if gpu.precision == "package" else "1",
        "enable_cuda_graph": "1" if graphs else "0",
    }
    if gpu.memory_limit:
        chosen["gpu_mem_limit"] = str(gpu.memory_limit)
    return chosen


def _tensorrt(options: SessionOptions, engine: Engine, graphs: bool) -> dict[str, str]:
    gpu = options.gpu
    chosen = {
        "device_id": str(gpu.index),
        # What has no INT8 kernel is computed in half precision, and not in full.
        "trt_fp16_enable": str(gpu.precision != "package"),
        "trt_int8_enable": str(gpu.precision == "int8"),
        "trt_cuda_graph_enable": str(graphs),
        "trt_engine_cache_enable": str(engine.keep),
        "trt_timing_cache_enable": str(engine.keep),
    }
    if gpu.memory_limit:
        chosen["trt_max_workspace_size"] = str(gpu.memory_limit)
    if engine.folder:
        # Calibration tables are looked for in the engines' folder, be engines kept or not.
        chosen |= {"trt_engine_cache_path": engine.folder, "trt_timing_cache_path": engine.folder}
    if engine.calibration:
        chosen |= {
            "trt_int8_calibration_table_name": engine.calibration,
            "trt_int8_use_native_calibration_table": "True",
        }
    if engine.shape:
        chosen |= {f"trt_profile_{one}_shapes": engine.shape for one in ("min", "opt", "max")}
    return chosen


def environment(options: SessionOptions) -> dict[str, str]:
    """Return what has to stand in a process's environment before its first session with the TensorRT provider.

    That has no option for TensorFloat-32, which it uses (https://github.com/microsoft/onnxruntime/issues/26029).
    """
    return {"NVIDIA_TF32_OVERRIDE": "0"} if options.gpu.precision == "package" else {}


def open_shape(name: str, shape: Sequence[object]) -> str:
    """Return the shape of an input as profiles have it, with a batch of one; "" where it is fixed, or cannot be known."""
    if all(isinstance(one, int) for one in shape) or not all(isinstance(one, int) for one in shape[1:]):
        return ""
    return f"{name}:{'x'.join(map(str, (1, *shape[1:])))}"
