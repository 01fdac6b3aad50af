"""A TensorRT engine at work: an execution context with a stream, buffers on the GPU, and pinned ones on the host.

The rules of IExecutionContext: shapes before addresses, addresses before execute_async_v3, on a stream that is not the
default one (its page in https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/). What is put into the
stream is recorded as a CUDA graph after it has been run once, since the first run still sets things up
(https://docs.nvidia.com/deeplearning/tensorrt/latest/performance/best-practices.html, "CUDA Graphs").
"""

import contextlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.backends.cuda import OUT_OF_MEMORY, Cuda, CudaError
from edge_agent.backends.trt_reports import Log
from edge_agent.errors import AcceleratorFailed, AcceleratorMissing, PackageRefused, shown

logger = logging.getLogger(__name__)

INPUTS = {"float32", "uint8"}
# DataType's names whose numbers NumPy has, too.
NUMBERS: dict[str, np.dtype[Any]] = {
    "FLOAT": np.dtype(np.float32),
    "HALF": np.dtype(np.float16),
    "INT8": np.dtype(np.int8),
    "UINT8": np.dtype(np.uint8),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "BOOL": np.dtype(np.bool_),
}


@dataclass(frozen=True)
class Layout:
    """What goes into an engine and comes out of it: the input, one image where that is open, and the model's outputs."""

    input: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    outputs: tuple[str, ...]
    # Whether the engine leaves the batch size open.
    open_batch: bool


def layout(trt: Any, engine: Any, outputs: Sequence[str]) -> Layout:
    """Return an engine's layout, the model's `outputs` given in order.

    Raises:
        PackageRefused: it has another input than one image.
        AcceleratorMissing: it has other outputs than the model.

    """
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [one for one in names if engine.get_tensor_mode(one) == trt.TensorIOMode.INPUT]
    types = [engine.get_tensor_dtype(one).name for one in inputs]
    if len(inputs) != 1 or str(NUMBERS.get(types[0])) not in INPUTS:
        listed = ", ".join(f"{shown(name)} {kind}" for name, kind in zip(inputs, types, strict=True)) or "none"
        raise PackageRefused(f"The model must have one float32 input (uint8 when compiled); it has: {listed}.")
    if sorted(outputs) != sorted(set(names) - set(inputs)):
        raise AcceleratorMissing(
            f"TensorRT's engine does not have the model's outputs ({', '.join(map(shown, outputs))}); it has: "
            f"{', '.join(map(shown, names))}."
        )
    shape = tuple(engine.get_tensor_shape(inputs[0]))
    # A number that is fixed stays: the engine reads so many images from the GPU's memory, whatever was put there.
    taken = (1, *shape[1:]) if -1 in shape else shape
    return Layout(inputs[0], taken, NUMBERS[types[0]], tuple(outputs), -1 in shape)


class Execution:
    """One of the calls that an engine does at once; from one thread at a time.

    Raises:
        AcceleratorFailed: there is no memory on the GPU for it, or CUDA failed.
        AcceleratorMissing: an output's size or type is not known beforehand, or none of NumPy's.

    """

    def __init__(self, cuda: Cuda, log: Log, engine: Any, of: Layout, *, graphs: bool) -> None:
        self._cuda = cuda
        self._log = log
        self._of = of
        # The engine must outlive its contexts.
        self._engine = engine
        self._context: Any = None
        self._stream: Any = None
        self._recorded: Any = None
        self._addresses: list[int] = []
        cuda.use()
        try:
            self._set_up()
            self._run_once()  # also what the first call would have to wait for
            if graphs:
                self._record()
        except BaseException:
            self.close()
            raise

    def run(self, tensor: NDArray[Any]) -> list[NDArray[Any]]:
        """Return the outputs for a tensor of the layout's shape and type; the next run overwrites them."""
        self._cuda.use()
        np.copyto(self._input, tensor)
        self._run_once()
        return list(self._outputs)

    def close(self) -> None:
        """Give back what it has of the GPU, as far as that still works."""
        with contextlib.suppress(CudaError):
            self._cuda.use()
        stream, self._stream = self._stream, None
        if stream is not None:
            with contextlib.suppress(CudaError):
                self._cuda.synchronize(stream)
        if self._recorded is not None:
            with contextlib.suppress(CudaError):
                self._cuda.forget(self._recorded)
        self._recorded = self._context = self._engine = None
        while self._addresses:
            with contextlib.suppress(CudaError):
                self._cuda.free(self._addresses.pop())
        if stream is not None:
            with contextlib.suppress(CudaError):
                self._cuda.destroy_stream(stream)

    def __del__(self) -> None:
        self.close()

    def _set_up(self) -> None:
        """Make the context and its buffers: shapes, then addresses."""
        self._log.begin()
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise self._failed("TensorRT cannot make ready to run the model")
        self._stream = self._cuda.stream()
        of = self._of
        if of.open_batch and not self._context.set_input_shape(of.input, of.shape):
            raise self._failed("TensorRT does not take one image at a time")
        self._input = self._buffer(of.input, of.shape, of.dtype)
        self._outputs = [self._buffer(one, *self._output(one)) for one in of.outputs]

    def _output(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Return the shape and type of an output."""
        shape = tuple(self._context.get_tensor_shape(name))
        kind = self._engine.get_tensor_dtype(name).name
        if -1 in shape:
            raise AcceleratorMissing(
                f"The size of the model's output {shown(name)} depends on the image, which TensorRT is not used for; "
                "export the model with outputs of one size."
            )
        if kind not in NUMBERS:
            raise AcceleratorMissing(
                f"The model's output {shown(name)} is of type {kind}, which is none of this agent's."
            )
        return shape, NUMBERS[kind]

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return a pinned array for a tensor, which has memory on the GPU from now on."""
        # Not one byte less, and never nothing: a tensor without numbers has an address, too.
        self._addresses.append(self._cuda.malloc(max(1, math.prod(shape) * dtype.itemsize)))
        if not self._context.set_tensor_address(name, self._addresses[-1]):
            raise self._failed(f"TensorRT does not take the memory for {shown(name)}")
        return self._cuda.pinned(shape, dtype)

    def _run_once(self) -> None:
        """Do what is in the pinned input, and wait for it."""
        if self._recorded is not None:
            self._cuda.launch(self._recorded, self._stream)
        else:
            self._enqueue()
        self._cuda.synchronize(self._stream)

    def _enqueue(self) -> None:
        """Put a run into the stream: the input to the GPU, the model, the outputs to the host."""
        self._cuda.copy_in(self._addresses[0], self._input, self._stream)
        self._log.begin()
        if not self._context.execute_async_v3(int(self._stream)):
            raise self._failed("TensorRT could not run the model")
        for address, output in zip(self._addresses[1:], self._outputs, strict=True):
            self._cuda.copy_out(output, address, self._stream)

    def _record(self) -> None:
        """Record the run, for replaying it; where that does not work, runs are put into a new stream one by one."""
        try:
            self._recorded = self._cuda.record(self._stream, self._enqueue)
        except AcceleratorFailed as error:
            if isinstance(error, CudaError) and error.code == OUT_OF_MEMORY:
                raise
            logger.warning("The model is run without CUDA graphs: %s", str(error))
            self._cuda.destroy_stream(self._stream)
            self._stream = None
            self._stream = self._cuda.stream()
        self._run_once()

    def _failed(self, doing: str) -> Exception:
        return self._log.failure(doing, fatal=True)
