"""Inference runtimes behind one small protocol; each SDK is imported in its own module and nowhere else."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_agent.jobs import SessionOptions


class Session(Protocol):
    """A loaded model."""

    provider: str

    def run(self, tensor: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Return the model's outputs, in the model's order, for one input of 1x3xHxW.

        Raises:
            InferenceFailed: the runtime refused the input or failed on it.

        """


def open_session(model: bytes, options: SessionOptions) -> Session:
    """Load an ONNX model with the runtime of this device; raise PackageRefused with the reason when it does not load."""
    from edge_agent.backends import onnxruntime

    return onnxruntime.OrtSession(model, options)
