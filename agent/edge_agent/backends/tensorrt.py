"""TensorRT: the only module that knows it."""

from edge_agent.backends import InterruptibleSession, Tell
from edge_agent.errors import AcceleratorMissing
from edge_agent.jobs import SessionOptions
from edge_agent.packages import ModelFiles


def installed() -> bool:
    """Return whether TensorRT's Python package and CUDA's are there."""
    return False


def TensorRtSession(model: ModelFiles, options: SessionOptions, tell: Tell) -> InterruptibleSession:  # noqa: ARG001, N802
    """Load a model with TensorRT."""
    raise AcceleratorMissing("TensorRT is not used yet.")
