"""What is read of an ONNX file without ONNX's library, and weights of other files that are put into it."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_agent.backends import onnx_graph
from edge_agent.errors import AcceleratorMissing, PackageRefused
from edge_agent.packages import ModelFiles
from support import packages

WEIGHTS = np.arange(12, dtype=np.float32)


def elsewhere(tensor, location="weights.bin", **told):
    """Turn a tensor into one whose bytes lie in another file."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **told}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def with_weights(**told):
    """A model that adds 12 numbers, which lie in another file."""
    weights = elsewhere(numpy_helper.from_array(WEIGHTS, "weights"), **told)
    value = helper.make_tensor_value_info("input", TensorProto.FLOAT, [12])
    result = helper.make_tensor_value_info("result", TensorProto.FLOAT, [12])
    node = helper.make_node("Add", ["input", "weights"], ["result"], doc_string="ä")
    return helper.make_model(helper.make_graph([node], "adds", [value], [result], [weights]))


class TestOutputs:
    def test_in_the_models_order(self):
        assert onnx_graph.outputs(packages.brightness()) == ["logits", "scores"]

    def test_with_a_name_that_is_no_text(self):
        model = packages.constant(scores=[1, 0]).replace(b"scores", b"score\xff")
        assert onnx_graph.outputs(model) == ["score\ufffd"]

    @pytest.mark.parametrize("content", [b"no ONNX file", b"\x3a\x05\x0a"])
    def test_of_what_is_no_model(self, content):
        with pytest.raises(PackageRefused, match="The model is no ONNX file, or is damaged"):
            onnx_graph.outputs(content)


class TestInOnePiece:
    def test_as_it_is(self):
        graph = packages.brightness()
        assert onnx_graph.in_one_piece(ModelFiles(graph, {"notes.txt": b"hello"})) is graph

    @pytest.mark.parametrize(
        ("told", "file"),
        [
            ({}, WEIGHTS.tobytes()),
            ({"offset": 8}, bytes(8) + WEIGHTS.tobytes()),
            ({"offset": 8, "length": 48, "checksum": "abc"}, bytes(8) + WEIGHTS.tobytes() + b"more"),
        ],
    )
    def test_with_the_weights_in_it(self, told, file):
        model = with_weights(**told)
        whole = onnx.load_from_string(
            onnx_graph.in_one_piece(ModelFiles(model.SerializeToString(), {"weights.bin": file}))
        )
        onnx.checker.check_model(whole, full_check=True)
        np.testing.assert_array_equal(numpy_helper.to_array(whole.graph.initializer[0]), WEIGHTS)
        assert whole.graph.initializer[0].data_location == TensorProto.DEFAULT
        # All else is as it was.
        for one in (model, whole):
            one.graph.ClearField("initializer")
        assert whole == model

    def test_wherever_they_are_in_the_graph(self):
        def tensor(number):
            return elsewhere(numpy_helper.from_array(WEIGHTS[:1], f"t{number}"), offset=4 * number, length=4)

        inner = helper.make_graph([], "inner", [], [], [tensor(0)])
        sparse = onnx.SparseTensorProto(values=tensor(1), indices=tensor(2), dims=[1])
        node = helper.make_node("Any", [], ["out"])
        for index, attribute in enumerate(
            [
                onnx.AttributeProto(name="g", g=inner),
                onnx.AttributeProto(name="graphs", graphs=[inner]),
                onnx.AttributeProto(name="t", t=tensor(3)),
                onnx.AttributeProto(name="tensors", tensors=[tensor(4)]),
                onnx.AttributeProto(name="sparse", sparse_tensor=sparse, sparse_tensors=[sparse]),
            ]
        ):
            attribute.i = index
            node.attribute.append(attribute)
        graph = helper.make_graph([node], "outer", [], [])
        graph.sparse_initializer.append(sparse)
        function = helper.make_function("here", "f", [], [], [node], [])
        function.attribute_proto.append(onnx.AttributeProto(name="t", t=tensor(5)))
        model = helper.make_model(graph, functions=[function])
        written = onnx_graph.in_one_piece(ModelFiles(model.SerializeToString(), {"weights.bin": WEIGHTS.tobytes()}))
        whole = onnx.load_from_string(written)
        assert b"weights.bin" not in written
        assert whole.graph.node[0].attribute[2].t.raw_data == WEIGHTS[3:4].tobytes()
        assert whole.graph.node[0].attribute[4].sparse_tensors[0].indices.raw_data == WEIGHTS[2:3].tobytes()
        assert whole.functions[0].attribute_proto[0].t.raw_data == WEIGHTS[5:6].tobytes()
        assert written.count(b"t0") == 4, "each of the inner graphs, in the graph and in the function"

    @pytest.mark.parametrize("location", ["/etc/passwd", "../weights.bin", "", "other.bin"])
    def test_never_of_a_file_that_was_not_checked(self, location):
        model = ModelFiles(with_weights(location=location).SerializeToString(), {"weights.bin": WEIGHTS.tobytes()})
        with pytest.raises(PackageRefused, match=r"keeps weights in '.*', which package.files does not list"):
            onnx_graph.in_one_piece(model)

    @pytest.mark.parametrize(
        "told", [{"offset": 4, "length": 48}, {"offset": -4}, {"length": -1}, {"offset": "?"}, {"offset": 99}]
    )
    def test_never_beyond_the_file(self, told):
        model = ModelFiles(with_weights(**told).SerializeToString(), {"weights.bin": WEIGHTS.tobytes()})
        with pytest.raises(PackageRefused, match="weights in 'weights.bin' are not where it says"):
            onnx_graph.in_one_piece(model)

    def test_too_large_for_one_file(self, monkeypatch):
        monkeypatch.setattr(onnx_graph, "LARGEST", 100)
        model = ModelFiles(with_weights().SerializeToString(), {"weights.bin": WEIGHTS.tobytes()})
        with pytest.raises(AcceleratorMissing, match="less than 2 GiB"):
            onnx_graph.in_one_piece(model)
