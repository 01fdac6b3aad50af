"""The tensors of one call on their device: an input that each call overwrites, and outputs at addresses that stay.

https://onnxruntime.ai/docs/performance/tune-performance/iobinding.html. A recording (CUDA graph) is replayed on the very
addresses that it was made with, and the runtime then looks at nothing else: neither are bound tensors copied, nor is an
input's shape checked (https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html, "Using CUDA Graphs").
So all tensors are on the device, and it is checked here.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.errors import InferenceFailed

TYPES: dict[str, np.dtype[Any]] = {
    f"tensor({name})": np.dtype(kind)
    for name, kind in {
        "float": np.float32,
        "float16": np.float16,
        "double": np.float64,
        "bool": np.bool_,
        "uint8": np.uint8,
        "int8": np.int8,
        "uint16": np.uint16,
        "int16": np.int16,
        "uint32": np.uint32,
        "int32": np.int32,
        "uint64": np.uint64,
        "int64": np.int64,
    }.items()
}
# Has the CUDA provider neither record a run nor replay a recording (onnxruntime_run_options_config_keys.h). The TensorRT
# provider does both whatever it says (IsGraphCaptured in tensorrt_execution_provider.cc), so is not told to record then.
UNRECORDED = ("gpu_graph_id", "-1")


class Binding:
    """A session's one input and its outputs, bound for the calls of one thread.

    Where all shapes are fixed every tensor keeps its address: `fixed`.
    """

    def __init__(self, ort: Any, session: Any, device: str, index: int, first: NDArray[Any]) -> None:
        """Take memory on a device, "cuda" or "cpu", for inputs such as `first`.

        Raises:
            InferenceFailed: the model takes no such input, or has outputs of other kinds.

        """
        one, outputs = session.get_inputs()[0], session.get_outputs()
        _check(first, TYPES[one.type], one.shape)
        if odd := next((output for output in outputs if output.type not in TYPES), None):
            # The runtime crashes where it is to copy text out of a binding.
            raise InferenceFailed(f"The model has an output that is no tensor of numbers, but {odd.type}.")
        self._dtype, self._shape = first.dtype, first.shape
        self._session = session
        self._input = ort.OrtValue.ortvalue_from_shape_and_type(list(first.shape), first.dtype, device, index)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(one.name, self._input)
        self.fixed = fixed(session)
        self._outputs = [output.name for output in outputs]
        for output in outputs if self.fixed else ():
            value = ort.OrtValue.ortvalue_from_shape_and_type(output.shape, TYPES[output.type], device, index)
            self._binding.bind_ortvalue_output(output.name, value)
        # What the device fetches by itself, which it cannot do from memory that may be moved.
        self._staged = _pinned(first, index) if device == "cuda" else None

    def run(self, tensor: NDArray[Any], running: Any) -> list[NDArray[Any]]:
        """Return the outputs, in memory of their own, for one input; raise InferenceFailed when it is not like the first."""
        _check(tensor, self._dtype, self._shape)
        if self._staged is not None:
            np.copyto(self._staged, tensor)
            tensor = self._staged
        self._input.update_inplace(tensor)
        if not self.fixed:
            running.add_run_config_entry(*UNRECORDED)
            # Each time, since the runtime would write into the last run's outputs, and refuse those of another size.
            for name in self._outputs:
                self._binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(self._binding, running)
        return list(self._binding.copy_outputs_to_cpu())


def fixed(session: Any) -> bool:
    """Return whether the shapes of all inputs and outputs of a session are fixed."""
    return all(map(_is_fixed, [*session.get_inputs(), *session.get_outputs()]))


def _check(tensor: NDArray[Any], dtype: np.dtype[Any], shape: Any) -> None:
    """Raise InferenceFailed unless a tensor is of that type and shape; what is no number in a shape may be any."""
    fits = len(tensor.shape) == len(shape) and all(
        has == wanted or not isinstance(wanted, int) for has, wanted in zip(tensor.shape, shape, strict=True)
    )
    if tensor.dtype != dtype or not fits:
        given, takes = (
            f"{kind} {'x'.join(map(str, sizes))}" for kind, sizes in ((tensor.dtype, tensor.shape), (dtype, shape))
        )
        raise InferenceFailed(f"The model's input is {takes}; it was given {given}.")


def _is_fixed(one: Any) -> bool:
    """Return whether an input's or output's shape is fixed; where the model gives no shape it reads as that of a scalar."""
    return bool(one.shape) and all(isinstance(size, int) and size > 0 for size in one.shape)


def _pinned(like: NDArray[Any], index: int) -> NDArray[Any] | None:
    """Return host memory that the GPU fetches from by itself, None where there is none to be had."""
    from edge_agent.backends import cuda

    return cuda.pinned(like.shape, like.dtype, index)
