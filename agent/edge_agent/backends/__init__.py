"""Inference runtimes behind one small protocol; each SDK is imported in its own module and nowhere else."""

import os
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_agent.errors import AcceleratorMissing, shown
from edge_agent.jobs import Progress, SessionOptions
from edge_agent.packages import ModelFiles

# Told what is being done while a model is loaded: what takes long says so at least every 10 s.
Tell = Callable[[Progress], None]


class Session(Protocol):
    """A loaded model; `provider` is what it really runs on, as its runtime says."""

    provider: str
    input_dtype: np.dtype[Any]

    def run(self, tensor: NDArray[Any]) -> list[NDArray[Any]]:
        """Return the model's outputs, in the model's order, for one C-contiguous input of the model's shape.

        The next run may overwrite them.

        Raises:
            InferenceFailed: the runtime refused the input or failed on it, or the run was ended.
            MemoryError: there was no memory left for it.
            AcceleratorFailed: the GPU failed, and this process must end.

        """


class InterruptibleSession(Session, Protocol):
    """A loaded model whose run another thread can end."""

    def another(self) -> "InterruptibleSession":
        """Return the same loaded model for one more thread, whose runs are ended apart from these."""

    def terminate(self) -> None:
        """End the run that is under way: it raises InferenceFailed as soon as the runtime looks."""


def open_session(model: ModelFiles, options: SessionOptions, tell: Tell = lambda _: None) -> InterruptibleSession:
    """Load an ONNX model with the runtime for the accelerator that the options name; `tell` is told how far it is.

    Raises:
        AcceleratorMissing: it cannot be run on that accelerator, with the reason.
        PackageRefused: it does not load, with the reason.
        AcceleratorFailed: the GPU failed, and this process must end.
        MemoryError: there is no memory for it.

    """
    from edge_agent.backends import onnxruntime

    if options.accelerator != "cpu":
        _count_as_nvidia_smi()
    if options.accelerator == "tensorrt":
        from edge_agent.backends import tensorrt

        if tensorrt.installed():
            return tensorrt.TensorRtSession(model, options, tell)
    return onnxruntime.OrtSession(model, options, tell)


def _count_as_nvidia_smi() -> None:
    """Have CUDA count GPUs as nvidia-smi does, and not from the fastest on; raise AcceleratorMissing where it cannot.

    CUDA C++ Programming Guide, "Environment Variables".
    """
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.split(",") != [str(number) for number in range(visible.count(",") + 1)]:
        raise AcceleratorMissing(
            f"CUDA_VISIBLE_DEVICES is {shown(visible)}, so that CUDA counts GPUs otherwise than nvidia-smi; unset it for "
            "the agent, and choose the GPU by the setting `gpu`."
        )
