"""Models on TensorRT itself: an engine built of the model on this very GPU, and run with CUDA's runtime.

The modules trt_* know TensorRT, and say where its names come from; cuda.py knows CUDA.
"""

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.backends import Tell, cuda, onnx_graph, trt_engine, trt_run, trt_sdk
from edge_agent.backends.trt_reports import Log
from edge_agent.errors import InferenceFailed
from edge_agent.jobs import SessionOptions
from edge_agent.packages import ModelFiles


def installed() -> bool:
    """Return whether TensorRT's Python package and CUDA's are there."""
    return trt_sdk.installed() and cuda.installed()


class TensorRtSession:
    """A model as a TensorRT engine, whose runs are each thread's own (`another`)."""

    def __init__(self, model: ModelFiles, options: SessionOptions, tell: Tell = lambda _: None) -> None:
        """Load the model's engine, or build it first, which `tell` is told of.

        Raises:
            AcceleratorMissing: it cannot be run with TensorRT, with the reason.
            PackageRefused: it is no ONNX model, or has another input than one image.
            AcceleratorFailed: the GPU failed, and this process must end.

        """
        outputs = onnx_graph.outputs(model.graph)
        sdk = trt_sdk.load()
        self._cuda = cuda.Cuda(options.gpu.index)
        self._log = Log(sdk.trt)
        self._engine = trt_engine.open_engine(sdk, self._log, model, options.gpu, tell)
        self._layout = trt_run.layout(sdk.trt, self._engine, outputs)
        self._graphs = options.gpu.graphs
        self._execution: trt_run.Execution | None = None
        self.provider = f"TensorRT {sdk.version}"
        self.input_dtype: np.dtype[Any] = self._layout.dtype

    def run(self, tensor: NDArray[Any]) -> list[NDArray[Any]]:
        """Return the model's outputs for one input of its shape; the next run overwrites them.

        Raises:
            InferenceFailed: the input is none of the model's.
            AcceleratorFailed: the GPU failed, and this process must end.

        """
        if tensor.shape != self._layout.shape or tensor.dtype != self._layout.dtype:
            wanted, given = ("x".join(map(str, one)) for one in (self._layout.shape, tensor.shape))
            raise InferenceFailed(
                "The model failed on the image; the agent's log has the cause.",
                cause=f"The engine's input is {self._layout.dtype} {wanted}, and {tensor.dtype} {given} was given.",
            )
        if self._execution is None:
            self._execution = self._prepared()
        return self._execution.run(tensor)

    def another(self) -> "TensorRtSession":
        """Return the same engine for one more thread, with buffers and a stream of its own.

        Raises:
            AcceleratorMissing: an output is of a size or type that this agent does not read.
            AcceleratorFailed: there is no memory on the GPU for it, or CUDA failed.

        """
        other = copy.copy(self)
        other._execution = self._prepared()  # noqa: SLF001  (it is ours)
        return other

    def terminate(self) -> None:
        """Do nothing: what a GPU has begun, it does; a run that hangs is ended with its process, by the supervisor."""

    def close(self) -> None:
        """Give back the buffers and the stream of this thread; the engine goes with the last of its sessions."""
        if self._execution is not None:
            self._execution.close()
            self._execution = None

    def _prepared(self) -> trt_run.Execution:
        return trt_run.Execution(self._cuda, self._log, self._engine, self._layout, graphs=self._graphs)
