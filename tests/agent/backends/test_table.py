"""Each cell of the README's table of backends, on the whole way of an image: what is said to run gives the CPU's verdicts.

A package is compiled for the processor, or for NVIDIA, in the precision of its column; the columns of the setting
`precision` take the fp32 package, with a calibration beside it.
"""

import gc
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as real
import pytest
from onnx import helper

from backends_table import CELLS, COLUMNS, FAKES, NO, RUN
from edge_agent.backends import onnxruntime, open_session, tensorrt
from edge_agent.errors import AcceleratorMissing
from edge_agent.graphs import CompiledGraph
from edge_agent.jobs import GpuOptions, SessionOptions
from edge_agent.packages import ModelFiles
from edge_agent.pipeline import Pipeline
from model_packager import fusing, optimising
from model_packager.network import Conventions
from support import networks
from support.fake_cuda import FakeCuda
from support.fake_onnxruntime import CUDA, TENSORRT, FakeOrt
from support.fake_tensorrt import VERSIONS, FakeTensorRt

CALIBRATION = b"TRT-100300-EntropyCalibration2\ninput: 3c010a14\n"
# What a backend's session says that it runs on, and by which accelerator it is asked for.
PROVIDERS = {
    "ONNX Runtime, CPU": ("CPUExecutionProvider", "cpu"),
    "ONNX Runtime, CUDA": (CUDA, "cuda"),
    "ONNX Runtime, TensorRT": (TENSORRT, "tensorrt"),
    "TensorRT 10": ("TensorRT 10.", "tensorrt"),
    "TensorRT 11": ("TensorRT 11.", "tensorrt"),
}
ROWS = [
    (backend, column, cell)
    for (backend, _), cells in CELLS.items()
    for column, cell in zip(COLUMNS, cells, strict=True)
]


def network() -> onnx.ModelProto:
    """Return a network with mochi's outputs and convolutions as wide as TensorRT has them in int8."""
    random = np.random.default_rng(7)
    weights = {"stem": (8, 3, 3, 3), "wide": (8, 8, 3, 3), "seg": (2, 8, 1, 1), "cls": (8, 2)}
    nodes = [
        helper.make_node("Conv", ["input", "stem"], ["s"], name="s", strides=[4, 4], pads=[1] * 4),
        helper.make_node("Relu", ["s"], ["features"], name="relu"),
        helper.make_node("Conv", ["features", "wide"], ["wider"], name="w", pads=[1] * 4),
        helper.make_node("Conv", ["wider", "seg"], ["mask"], name="m"),
        helper.make_node("GlobalAveragePool", ["wider"], ["pooled"], name="p"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="f"),
        helper.make_node("MatMul", ["flat", "cls"], ["sums"], name="c"),
        helper.make_node("Softmax", ["sums"], ["scores"], name="softmax", axis=1),
    ]
    constants = {name: random.normal(0, 0.3, shape).astype(np.float32) for name, shape in weights.items()}
    return networks.model(nodes, constants, {"mask": [1, 2, 16, 18], "scores": [1, 2]})


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """(precision, whether for NVIDIA) -> the compiled model."""
    work = tmp_path_factory.mktemp("table")
    parsed = networks.parsed()
    made = {}
    for nvidia in (False, True):
        fused = fusing.fuse(network(), parsed, Conventions(), accelerated=nvidia)
        fp32 = onnx.shape_inference.infer_shapes(optimising.fold(fused, work), data_prop=True)
        bitmaps = networks.pictures(16, parsed.stage.input_size)
        how = replace(optimising.Integers(), symmetric=nvidia)
        for precision, model in {
            "fp32": fp32,
            "fp16": optimising.to_fp16(fp32),
            "int8": optimising.to_int8(fp32, bitmaps, how, work),
        }.items():
            made[precision, nvidia] = ModelFiles(model.SerializeToString(), {})
    return made


@pytest.fixture
def backend(monkeypatch):
    """A function that puts a backend's fakes in place, or none for the one that needs none."""
    gpus = []

    def use(name):
        monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        if name.startswith("TensorRT"):
            gpus.append(FakeCuda().install(monkeypatch))
            newest = [one for one in VERSIONS if one.startswith(name.removeprefix("TensorRT "))][-1]
            FakeTensorRt(gpus[0], newest).install(monkeypatch)
        elif name != "ONNX Runtime, CPU":
            fake = FakeOrt()
            monkeypatch.setattr(onnxruntime, "ort", fake)
            monkeypatch.setitem(sys.modules, "onnxruntime", fake)
            monkeypatch.setattr(tensorrt, "installed", lambda: False)

    yield use
    gc.collect()
    assert all(one.left() == {} for one in gpus)


def verdicts(session):
    parsed = networks.parsed()
    pipeline = Pipeline(parsed, CompiledGraph(parsed, session))
    pipeline.warm_up()
    said = []
    for pixels in networks.pictures(size=parsed.image_size):
        verdict, class_map = pipeline.judge(pixels)
        said.append((verdict, class_map.small.tobytes()))
    return said


def on_the_cpu(model):
    """Return the verdicts of the real runtime, whatever stands in its place."""

    class Plain:
        provider, input_dtype = "CPUExecutionProvider", "uint8"
        _session = real.InferenceSession(model.graph, providers=["CPUExecutionProvider"])

        def run(self, tensor):
            return self._session.run(None, {"bitmap": tensor})

    return verdicts(Plain())


@pytest.mark.parametrize(("name", "column", "cell"), ROWS, ids=[f"{name}, {column}" for name, column, _ in ROWS])
def test_cell(packages, backend, name, column, cell):
    provider, accelerator = PROVIDERS[name]
    set_to = column.strip("`").removeprefix("precision: ") if column.startswith("`") else "package"
    precision = column.split()[0] if set_to == "package" else "fp32"
    model = packages[precision, accelerator != "cpu"]
    if set_to == "int8":
        model = replace(model, external={"calibration.cache": CALIBRATION})
    wanted = on_the_cpu(packages[precision, accelerator != "cpu"])
    backend(name)
    options = SessionOptions(accelerator=accelerator, gpu=GpuOptions(precision=set_to))
    if cell == NO and accelerator == "tensorrt":
        with pytest.raises(AcceleratorMissing, match=f"--precision {set_to}"):
            open_session(model, options)
        return
    session = open_session(model, options)
    assert session.provider.startswith(provider)
    assert verdicts(session.another()) == wanted, "also where the setting is not supported, and so does nothing"


def test_each_cell_says_one_of_three_things():
    assert {cell for _, _, cell in ROWS} == {RUN, FAKES, NO}
    assert len(ROWS) == len(COLUMNS) * len(CELLS)
    # Nothing is said to have run here that has not: whatever needs a GPU has not.
    assert {name for name, _, cell in ROWS if cell == RUN} == {"ONNX Runtime, CPU"}


def test_packages_of_a_precision_are_of_it(packages):
    def types(model):
        return {one.data_type for one in onnx.load_from_string(model.graph).graph.initializer}

    for nvidia in (False, True):
        assert onnx.TensorProto.FLOAT16 in types(packages["fp16", nvidia])
        assert onnx.TensorProto.INT8 in types(packages["int8", nvidia])
        assert not types(packages["fp32", nvidia]) & {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8}
