"""What goes into a model's graph and what comes out, compiled or not: read strictly, or the model is refused."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_agent import backends, block, graphs, manifest
from edge_agent.errors import InferenceFailed, PackageRefused
from edge_agent.graphs import CompiledGraph, NetworkGraph
from edge_agent.jobs import SessionOptions
from edge_agent.packages import ModelFiles
from edge_agent.pipeline import Pipeline
from support import packages
from support.calls import picture

SIZE = (64, 64)
BLOCK = {"format": 1, "component": {"name": "board", "version": "1.0.0"}, "files": {}}


class Fake:
    """A session that keeps what it was given and answers what it was told."""

    provider = "test"

    def __init__(self, dtype: type, *outputs: object) -> None:
        self.input_dtype = np.dtype(dtype)
        self.outputs = list(outputs)

    def run(self, tensor: np.ndarray) -> list:
        self.tensor = tensor
        return self.outputs


def parsed(heads: str = "both", *, compiled: bool = True) -> manifest.Manifest:
    content = packages.manifest(
        classification=heads != "segmentation",
        segmentation=heads != "classification",
        pixel_names=() if heads == "classification" else ("background", "dent", "scratch"),
        class_normal_ids=[] if heads == "segmentation" else [1],
    )
    return manifest.parse({**content, "package": {**BLOCK, **({"graph": block.COMPILED} if compiled else {})}})


def number(value: float, shape: tuple[int, ...] = (1,), dtype: type = np.float32) -> np.ndarray:
    return np.full(shape, value, dtype)


CLASS_MAP = np.array([[[0, 1], [2, 0]]], np.uint8)


BAD = {
    "no outputs": ("both", []),
    "one too few": ("both", [CLASS_MAP, number(0)]),
    "one too many": ("classification", [number(0.5), number(0.5)]),
    "a map where there is none": ("classification", [CLASS_MAP]),
    "in another order": ("both", [number(0), CLASS_MAP, number(0.5)]),
    "map of int64": ("both", [CLASS_MAP.astype(np.int64), number(0), number(0.5)]),
    "map of float32": ("both", [CLASS_MAP.astype(np.float32), number(0), number(0.5)]),
    "map without batch": ("both", [CLASS_MAP[0], number(0), number(0.5)]),
    "map of one dimension": ("both", [CLASS_MAP.reshape(-1), number(0), number(0.5)]),
    "map with channels": ("both", [CLASS_MAP[None], number(0), number(0.5)]),
    "two maps": ("both", [CLASS_MAP.repeat(2, axis=0), number(0), number(0.5)]),
    "map of no pixels": ("both", [CLASS_MAP[:, :0], number(0), number(0.5)]),
    "two means": ("both", [CLASS_MAP, number(0, (2,)), number(0.5)]),
    "no mean": ("both", [CLASS_MAP, number(0, (0,)), number(0.5)]),
    "mean of float64": ("both", [CLASS_MAP, number(0, dtype=np.float64), number(0.5)]),
    "two scores": ("classification", [number(0.5, (1, 2))]),
    "no score": ("classification", [number(0.5, (0,))]),
    "score of float16": ("classification", [number(0.5, dtype=np.float16)]),
    "score of uint8": ("classification", [number(1, dtype=np.uint8)]),
    "score of bool": ("classification", [number(True, dtype=np.bool_)]),
}


class TestCompiled:
    @staticmethod
    def read(heads: str, *outputs: object) -> graphs.Reading:
        return graphs.of(parsed(heads), Fake(np.uint8, *outputs)).read(picture(*SIZE))

    def test_both_heads(self):
        reading = self.read("both", CLASS_MAP, number(-2), number(0.75))
        assert reading.score == 0.75
        np.testing.assert_array_equal(reading.class_map, CLASS_MAP[0])

    def test_without_a_classification_head_the_mean_of_the_mask_is_the_score(self):
        reading = self.read("segmentation", CLASS_MAP, number(-2))
        assert reading.score == -2
        np.testing.assert_array_equal(reading.class_map, CLASS_MAP[0])

    def test_without_a_segmentation_head(self):
        reading = self.read("classification", number(0.75))
        assert (reading.score, reading.class_map) == (0.75, None)

    def test_a_number_may_have_any_shape_of_one(self):
        assert self.read("classification", number(0.75, ())).score == 0.75
        assert self.read("classification", number(0.75, (1, 1))).score == 0.75

    def test_it_gets_the_packed_bitmap(self):
        """Also where the image is a part of a wider one, as padded rows make it."""
        wide = picture(80, 64)
        session = Fake(np.uint8, number(0.5))
        graphs.of(parsed("classification"), session).read(wide[:, :64])
        assert (session.tensor.shape, session.tensor.dtype) == ((1, 64, 64, 3), np.uint8)
        assert session.tensor.flags.c_contiguous
        np.testing.assert_array_equal(session.tensor[0], wide[:, :64])

    @pytest.mark.parametrize("what", BAD)
    def test_outputs_that_are_not_what_the_manifest_says(self, what):
        heads, outputs = BAD[what]
        with pytest.raises(InferenceFailed, match=r"outputs are .*; by manifest\.json they are .*float32 1"):
            self.read(heads, *outputs)

    @pytest.mark.parametrize("odd", [np.array(["text"]), np.array([None]), [number(0.5)], {1: 0.5}], ids=type)
    @pytest.mark.parametrize("heads", ["both", "segmentation", "classification"])
    def test_outputs_that_are_no_numbers(self, heads, odd):
        outputs = {"both": [CLASS_MAP, number(0)], "segmentation": [CLASS_MAP], "classification": []}[heads]
        with pytest.raises(InferenceFailed, match="no tensor of numbers"):
            self.read(heads, *outputs, odd)

    @pytest.mark.parametrize("largest", [3, 255])
    def test_a_class_that_the_manifest_does_not_name(self, largest):
        with pytest.raises(InferenceFailed, match=f"gave class {largest}; the manifest names 3 classes"):
            self.read("both", np.where(CLASS_MAP == 2, largest, CLASS_MAP).astype(np.uint8), number(0), number(0.5))

    def test_logits_that_are_no_numbers(self):
        with pytest.raises(InferenceFailed, match="mask logits that are no numbers"):
            self.read("both", CLASS_MAP, number(np.nan), number(0.5))

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_a_score_that_is_no_number(self, value):
        described = parsed("classification")
        pipeline = Pipeline(described, graphs.of(described, Fake(np.uint8, number(value))))
        with pytest.raises(InferenceFailed, match="no number to compare"):
            pipeline.judge(picture(*SIZE))


class TestNetwork:
    @pytest.mark.parametrize(
        "odd", [np.array([["yes", "no"]]), [number(0.5, (1, 2))], np.empty((1, 3, 0, 64), np.float32)], ids=type
    )
    def test_outputs_that_are_no_numbers(self, odd):
        with pytest.raises(InferenceFailed, match="no tensor of numbers|mask logits must be"):
            graphs.of(parsed(compiled=False), Fake(np.float32, odd, number(0.5, (1, 2)))).read(picture(*SIZE))


def session(model: bytes) -> backends.Session:
    return backends.open_session(ModelFiles(model), SessionOptions(threads=1))


def compiled(size: tuple[int, int] = SIZE) -> bytes:
    """Return what `packages.brightness` without a mask is when it is compiled: the mean of the bitmap, 0..1."""
    width, height = size
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["bitmap"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["numbers"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["mean", "unit"], ["score"]),
        ],
        "compiled",
        [helper.make_tensor_value_info("bitmap", TensorProto.UINT8, [1, height, width, 3])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(np.full(1, 1 / 255, np.float32), "unit")],
    )
    opsets = [helper.make_opsetid("", packages.OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


class TestModelAndManifestMustAgree:
    """What a block says is inside the graph must be inside it."""

    MODEL = packages.brightness(SIZE, mask=False)

    def test_they_do(self):
        plain = graphs.of(parsed("classification", compiled=False), session(self.MODEL))
        fused = graphs.of(parsed("classification"), session(compiled()))
        assert (type(plain), type(fused)) == (NetworkGraph, CompiledGraph)
        for seed in range(8):
            pixels = picture(*SIZE, seed)
            assert fused.read(pixels).score == pytest.approx(plain.read(pixels).score, abs=1e-6)

    def test_a_compiled_model_without_its_block(self):
        with pytest.raises(PackageRefused) as caught:
            graphs.of(parsed("classification", compiled=False), session(compiled()))
        assert str(caught.value) == (
            "The model's input is uint8; by manifest.json it is float32; a compiled model needs the package block in "
            "manifest.json that it was written with."
        )

    def test_a_block_without_its_compiled_model(self):
        with pytest.raises(PackageRefused) as caught:
            graphs.of(parsed("classification"), session(self.MODEL))
        assert str(caught.value) == "The model's input is float32; by manifest.json it is uint8."

    @pytest.mark.parametrize("heads", ["both", "segmentation"])
    def test_a_compiled_model_with_other_heads(self, heads):
        described = parsed(heads)
        graph = graphs.of(described, session(compiled()))
        with pytest.raises(PackageRefused, match=r"warm-up: The compiled model's outputs are float32 1; by manifest"):
            Pipeline(described, graph).warm_up()

    def test_a_compiled_model_of_another_size(self):
        described = parsed("classification")
        with pytest.raises(PackageRefused, match="The model failed its warm-up: .*dimensions"):
            Pipeline(described, graphs.of(described, session(compiled((32, 48))))).warm_up()


@pytest.mark.parametrize("kind", ["text", "list"])
def test_a_real_model_that_answers_with_no_tensor_of_numbers_is_refused(kind):
    outputs = {
        "text": (
            helper.make_node("Cast", ["mean"], ["out"], to=TensorProto.STRING),
            helper.make_tensor_value_info("out", TensorProto.STRING, [1]),
        ),
        "list": (
            helper.make_node("SequenceConstruct", ["mean"], ["out"]),
            helper.make_tensor_sequence_value_info("out", TensorProto.FLOAT, [1]),
        ),
    }
    node, output = outputs[kind]
    mean = helper.make_node("ReduceMean", ["input"], ["mean"], axes=[1, 2, 3], keepdims=0)
    model = packages.model([mean, node], {}, (1, 3, *SIZE), [output])
    described = parsed("classification", compiled=False)
    with pytest.raises(PackageRefused, match=r"warm-up: The model has an output that is no tensor of numbers"):
        Pipeline(described, graphs.of(described, session(model))).warm_up()
