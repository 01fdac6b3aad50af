"""GPUs are counted as nvidia-smi does, so that the one that was looked at is the one that a model runs on."""

import os

import pytest

from edge_agent import backends
from edge_agent.errors import AcceleratorMissing
from edge_agent.jobs import SessionOptions
from edge_agent.packages import ModelFiles


@pytest.fixture
def opened(monkeypatch):
    """A function (CUDA_VISIBLE_DEVICES or None, accelerator): opens a session, of which nothing is looked at."""
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    monkeypatch.setattr("edge_agent.backends.onnxruntime.OrtSession", lambda *arguments: arguments)
    monkeypatch.setattr("edge_agent.backends.tensorrt.TensorRtSession", lambda *arguments: arguments)

    def open_with(visible, accelerator):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        return backends.open_session(ModelFiles(b""), SessionOptions(accelerator=accelerator))

    return open_with


@pytest.mark.parametrize("accelerator", ["cuda", "tensorrt"])
@pytest.mark.parametrize("visible", [None, "0", "0,1", "0,1,2"])
def test_same_numbers(opened, visible, accelerator):
    assert opened(visible, accelerator)
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


@pytest.mark.parametrize("visible", ["", "1", "1,0", "0,2", "-1", "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "0,"])
def test_other_numbers_are_refused(opened, visible):
    with pytest.raises(AcceleratorMissing, match=r"^CUDA_VISIBLE_DEVICES is '.*', so that .* unset it for the agent"):
        opened(visible, "cuda")


def test_on_the_cpu_nothing_is_touched(opened):
    assert opened("1,0", "cpu")
    assert os.environ["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"
