"""ONNX Runtime's real CPU provider: run plainly, and through the bound tensors that GPUs are served with, to the same bits."""

import threading
import time

import numpy as np
import onnx
import onnxruntime as real
import pytest
from onnx import TensorProto, helper

from edge_agent import graphs, packages
from edge_agent.backends import onnxruntime, open_session
from edge_agent.backends.timed import Timed
from edge_agent.errors import InferenceFailed
from edge_agent.jobs import SessionOptions
from edge_agent.packages import ModelFiles, Rules
from edge_agent.pipeline import Pipeline
from model_packager import fusing, optimising
from model_packager.network import Conventions
from support import networks, shared
from support import packages as made

ONE_THREAD = SessionOptions(threads=1)


@pytest.fixture
def bound(monkeypatch):
    """A function that opens a session on the CPU whose tensors are bound, as a GPU's are."""

    def open_bound(model: ModelFiles):
        monkeypatch.setattr(onnxruntime, "DEVICES", {"cpu": "cpu"})
        session = open_session(model, ONE_THREAD)
        monkeypatch.undo()
        assert session._device == "cpu"
        return session

    return open_bound


def assert_equal_bits(plain, bound, tensors):
    for tensor in tensors:
        wanted, got = plain.run(tensor), bound.run(tensor)
        assert [(one.dtype, one.shape, one.tobytes()) for one in got] == [
            (one.dtype, one.shape, one.tobytes()) for one in wanted
        ]


def floats(shape, count=3):
    random = np.random.default_rng(3)
    return [random.random(shape, np.float32) for _ in range(count)]


@pytest.mark.parametrize(
    "proto",
    [
        networks.mochi(),
        networks.mochi(classes=0),
        networks.mochi(pixel_classes=0),
        networks.mochi(dynamic=["batch", 3, 64, 72]),
        networks.anomalib(),
    ],
    ids=["both heads", "mask", "scores", "open batch", "anomalib"],
)
def test_networks(bound, proto):
    model = ModelFiles(proto.SerializeToString())
    assert_equal_bits(open_session(model, ONE_THREAD), bound(model), floats((1, 3, 64, 72)))


def test_outputs_are_not_written_to_again(bound):
    session = bound(ModelFiles(networks.mochi().SerializeToString()))
    first, second = floats((1, 3, 64, 72), 2)
    outputs = session.run(first)
    before = [one.tobytes() for one in outputs]
    session.run(second)
    assert [one.tobytes() for one in outputs] == before


def test_the_whole_pipeline(bound):
    """From the bitmap to the verdict, for a network and for the graph that the packager makes of it."""
    proto = networks.mochi()
    described = networks.parsed()
    pictures = networks.pictures()

    def verdicts(session):
        pipeline = Pipeline(described, graphs.of(described, session))
        return [(verdict, mask.small.tobytes()) for verdict, mask in map(pipeline.judge, pictures)]

    model = ModelFiles(proto.SerializeToString())
    assert verdicts(bound(model)) == verdicts(open_session(model, ONE_THREAD))


def test_an_input_that_is_not_the_models(bound):
    session = bound(ModelFiles(networks.mochi().SerializeToString()))
    with pytest.raises(InferenceFailed, match="input is float32 1x3x64x72; it was given float32 1x3x72x64"):
        session.run(np.zeros((1, 3, 72, 64), np.float32))


def test_an_output_that_is_text(bound):
    """Which the runtime cannot copy out of a binding: it crashes. Run plainly, it is refused by what reads the outputs."""
    nodes = [helper.make_node("Cast", ["input"], ["text"], to=TensorProto.STRING)]
    proto = networks.model(nodes, {}, {"text": [1, 3]}, kinds={"text": TensorProto.STRING}, shape=[1, 3])
    with pytest.raises(InferenceFailed, match=r"output that is no tensor of numbers, but tensor\(string\)"):
        bound(ModelFiles(proto.SerializeToString())).run(np.ones((1, 3), np.float32))


def test_terminate(bound):
    session = bound(ModelFiles(made.slow(3_000_000))).another()
    timer = threading.Timer(0.2, session.terminate)
    timer.start()
    with pytest.raises(InferenceFailed) as caught:
        session.run(np.zeros((1, 3, 64, 64), np.float32))
    timer.join()
    assert "terminate flag" in caught.value.cause
    assert session._binding is None


def test_how_long_a_run_took_is_kept():
    session = Timed(open_session(ModelFiles(made.slow(10_000)), ONE_THREAD))
    assert (session.provider, session.input_dtype) == ("CPUExecutionProvider", np.float32)
    before = time.perf_counter()
    (scores,) = session.run(np.zeros((1, 3, 64, 64), np.float32))
    assert scores.tolist() == [[0.0, 1.0]]
    assert before <= session.begin < session.end <= time.perf_counter()


def test_plain_runs_bind_nothing(monkeypatch):
    """The CPU's path stays what it was: one call of the runtime's `run`."""
    monkeypatch.setattr(real.InferenceSession, "io_binding", None)
    session = open_session(ModelFiles(networks.mochi().SerializeToString()), ONE_THREAD)
    assert len(session.run(floats((1, 3, 64, 72))[0])) == 2
    assert session._session._model_bytes is None
    assert session._session._enable_fallback is False


@shared.needed
@pytest.mark.shared
@pytest.mark.parametrize("name", ["cookies-segmentation", "cookies-classification"])
@pytest.mark.parametrize(
    ("compiled", "accelerated"),
    [(False, False), (True, False), (True, True)],
    ids=["network", "compiled for a CPU", "compiled for a GPU"],
)
def test_packages_of_the_field(bound, tmp_path, name, compiled, accelerated):
    folder = shared.FOLDER / "models" / name / "component"
    package = packages.look(folder, folder.parent, Rules(trusted_uids={folder.stat().st_uid})).package
    model = packages.read_model(package)
    width, height = package.manifest.stage.input_size
    random = np.random.default_rng(8)
    pictures = [random.integers(0, 256, (height, width, 3), np.uint8, endpoint=False) for _ in range(2)]
    if compiled:
        fused = fusing.fuse(
            onnx.load_from_string(model.graph), package.manifest, Conventions(), accelerated=accelerated
        )
        model = ModelFiles(optimising.fold(fused, tmp_path).SerializeToString())
        tensors = [one[None] for one in pictures]
    else:
        tensors = floats((1, 3, height, width), 2)
    session = bound(model)
    assert_equal_bits(open_session(model, ONE_THREAD), session, tensors)
    assert session._binding.fixed  # so that on a GPU its launches are recorded
