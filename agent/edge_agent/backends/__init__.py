"""Inference runtimes behind one small protocol; each SDK is imported in its own module and nowhere else."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_agent.jobs import SessionOptions
from edge_agent.packages import ModelFiles


class Session(Protocol):
    """A loaded model."""

    provider: str
    input_dtype: np.dtype[Any]

    def run(self, tensor: NDArray[Any]) -> list[NDArray[Any]]:
        """Return the model's outputs, in the model's order, for one C-contiguous input of the model's shape.

        Raises:
            InferenceFailed: the runtime refused the input or failed on it, or the run was ended.
            MemoryError: there was no memory left for it.

        """


class InterruptibleSession(Session, Protocol):
    """A loaded model whose run another thread can end."""

    def another(self) -> "InterruptibleSession":
        """Return the same loaded model for one more thread, whose runs are ended apart from these."""

    def terminate(self) -> None:
        """End the run that is under way: it raises InferenceFailed as soon as the runtime looks."""


def open_session(model: ModelFiles, options: SessionOptions) -> InterruptibleSession:
    """Load an ONNX model with the runtime of this device.

    Raises:
        PackageRefused: it does not load, with the reason.
        MemoryError: there is no memory for it.

    """
    from edge_agent.backends import onnxruntime

    return onnxruntime.OrtSession(model, options)
