"""ONNX files of all makers: read as they are, brought to what runtimes know, and refused by name where they cannot be."""

import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_agent import backends
from edge_agent.jobs import SessionOptions
from edge_agent.packages import ModelFiles
from model_packager import onnx_files
from model_packager.errors import PackagingRefused
from support import networks, packages


def saved(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def in_two_files(path: Path, **changes: str) -> Path:
    """Save a network with its weights in a second file; `changes` are to where each weight is said to be."""
    model = networks.mochi()
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    if changes:
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            told = {one.key: one.value for one in tensor.external_data} | changes
            del tensor.external_data[:]
            for key, value in told.items():
                tensor.external_data.add(key=key, value=value)
        path.write_bytes(model.SerializeToString())
    return path


def run(model: onnx.ModelProto) -> list[np.ndarray]:
    session = backends.open_session(ModelFiles(model.SerializeToString()), SessionOptions())
    width, height = networks.SIZE
    return session.run(np.random.default_rng(1).random((1, 3, height, width)).astype(np.float32))


def same(one: onnx.ModelProto, other: onnx.ModelProto) -> bool:
    return all(np.array_equal(*pair) for pair in zip(run(one), run(other), strict=True))


def test_a_file_as_it_is(tmp_path):
    loaded = onnx_files.load(saved(tmp_path / "model.onnx", networks.mochi()))
    assert same(loaded, networks.mochi())
    assert (loaded.opset_import[0].version, loaded.ir_version) == (networks.OPSET, 8)


def test_two_files_become_one(tmp_path):
    path = in_two_files(tmp_path / "model.onnx")
    assert path.stat().st_size < len(networks.mochi().SerializeToString())
    loaded = onnx_files.load(path)
    assert same(loaded, networks.mochi())
    assert not any(one.external_data or one.data_location for one in loaded.graph.initializer)


def test_constants_of_nodes_and_of_branches_in_a_second_file(tmp_path):
    values = np.arange(2, dtype=np.float32).reshape(1, 2)
    branches = {
        name: helper.make_graph(
            [helper.make_node("Constant", [], [name], value=numpy_helper.from_array(values + number, name))],
            name,
            [],
            [packages._float(name, [1, 2])],
        )
        for number, name in enumerate(("then_branch", "else_branch"))
    }
    nodes = [
        helper.make_node("ReduceMax", ["input"], ["largest"], keepdims=0),
        helper.make_node("Constant", [], ["half"], value=numpy_helper.from_array(np.float32(0.5).reshape(()), "half")),
        helper.make_node("Greater", ["largest", "half"], ["condition"]),
        helper.make_node("If", ["condition"], ["scores"], **branches),
    ]
    model = networks.model(nodes, {}, {"scores": [1, 2]})
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="all", size_threshold=0, convert_attribute=True)
    loaded = onnx_files.load(path)
    assert b"external" not in json.dumps(str(loaded)).encode()
    assert np.array_equal(run(loaded)[0], values)


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("../weights.bin", "keeps its weights in '../weights.bin'; that must be a file beside it"),
        ("/etc/passwd", "that must be a file beside it"),
        ("folder/weights.bin", "that must be a file beside it"),
        ("..\\weights.bin", "that must be a file beside it"),
        ("..", "that must be a file beside it"),
        ("", "that must be a file beside it"),
        ("weights.bin\0", "that must be a file beside it"),
        (
            "nowhere.bin",
            "second file, 'nowhere.bin', which cannot be read: No such file.*Put both files into one folder",
        ),
        ("link.bin", "'link.bin' must be a regular file with one name; copy it instead of linking it"),
        ("hard.bin", "'hard.bin' must be a regular file with one name; copy it instead of linking it"),
        ("folder", "'folder' must be a regular file"),
        ("pipe", "'pipe' must be a regular file"),
        ("short.bin", "'short.bin' is shorter than model.onnx says; it is not the file that belongs to it"),
        ("empty.bin", "'empty.bin' is shorter than model.onnx says"),
    ],
)
def test_a_second_file_that_is_not_read(tmp_path, location, words):
    folder = tmp_path / "inner"
    folder.mkdir()
    path = in_two_files(folder / "model.onnx", location=location)
    weights = (folder / "weights.bin").read_bytes()
    (tmp_path / "weights.bin").write_bytes(weights)
    (folder / "folder").mkdir()
    (folder / "folder" / "weights.bin").write_bytes(weights)
    (folder / "link.bin").symlink_to("weights.bin")
    os.link(tmp_path / "weights.bin", folder / "hard.bin")
    os.mkfifo(folder / "pipe")
    (folder / "short.bin").write_bytes(weights[:-1])
    (folder / "empty.bin").touch()
    with pytest.raises(PackagingRefused, match=words):
        onnx_files.load(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"offset": "-1"}, "is shorter than model.onnx says"),
        ({"length": "-1"}, "is shorter than model.onnx says"),
        ({"offset": "999999999999"}, "is shorter than model.onnx says"),
        ({"offset": "zero"}, "the place of '.*' in 'weights.bin' is no number"),
        ({"length": "9" * 5000}, "the place of '.*' in 'weights.bin' is no number"),
        ({"length": "4"}, "is not valid ONNX"),
    ],
)
def test_a_place_in_the_second_file_that_is_not_there(tmp_path, changes, words):
    with pytest.raises(PackagingRefused, match=words):
        onnx_files.load(in_two_files(tmp_path / "model.onnx", **changes))


def test_two_gibibytes_are_too_large(tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate(2**31)
    with pytest.raises(PackagingRefused, match="model.onnx has 2147483648 bytes. .* 2 GiB at most; export a smaller"):
        onnx_files.load(path)
    path = in_two_files(tmp_path / "model.onnx")
    size = (tmp_path / "weights.bin").stat().st_size
    with (tmp_path / "weights.bin").open("r+b") as file:
        file.truncate(2**31)
    with pytest.raises(PackagingRefused, match="'weights.bin' has 2147483648 bytes"):
        onnx_files.load(path)
    # Both below the limit, and above it together: each weight could be the whole second file.
    os.truncate(tmp_path / "weights.bin", size)
    monkeypatch.setattr(onnx_files, "LARGEST", path.stat().st_size + size // 2)
    with pytest.raises(PackagingRefused, match="has more than .* bytes with its weights. .* export a smaller"):
        onnx_files.load(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not an ONNX model: it has no graph"),
        (b"no model", "is not an ONNX model"),
        (networks.mochi().SerializeToString()[:-500], "is not an ONNX model"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "not an ONNX model: it has no graph"),
    ],
    ids=["empty", "text", "truncated", "without a graph"],
)
def test_what_is_no_model(tmp_path, content, words):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(PackagingRefused, match=words):
        onnx_files.load(path)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(PackagingRefused, match="model.onnx cannot be read: No such file or directory"):
        onnx_files.load(tmp_path / "model.onnx")
    with pytest.raises(PackagingRefused, match="cannot be read: Is a directory"):
        onnx_files.load(tmp_path)


def test_a_model_that_contradicts_itself(tmp_path):
    model = networks.mochi()
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(PackagingRefused, match="model.onnx is not valid ONNX: .*nowhere"):
        onnx_files.load(saved(tmp_path / "model.onnx", model))


def test_an_old_opset_is_converted(tmp_path):
    model = networks.mochi(classes=0, opset=11)
    loaded = onnx_files.load(saved(tmp_path / "model.onnx", model))
    assert loaded.opset_import[0].version == 17
    assert same(loaded, networks.mochi(classes=0))


def test_a_new_opset_is_converted(tmp_path):
    loaded = onnx_files.load(saved(tmp_path / "model.onnx", networks.mochi(opset=22)))
    assert (loaded.opset_import[0].version, loaded.ir_version) == (17, 8)
    assert same(loaded, networks.mochi())


def test_an_opset_from_which_there_is_no_way(tmp_path):
    nodes = [helper.make_node("RMSNormalization", ["input", "weight"], ["scores"], axis=1)]
    weight = np.ones((3, 64, 72), np.float32)
    model = networks.model(nodes, {"weight": weight}, {"scores": [1, 3, 64, 72]}, opset=23)
    with pytest.raises(PackagingRefused, match="has opset 23; it must be 13 to 21. Export it with opset 17"):
        onnx_files.load(saved(tmp_path / "model.onnx", model))


@pytest.mark.parametrize(("written", "read"), [(3, 4), (8, 8), (13, 10)])
def test_versions_of_the_file_format(tmp_path, written, read):
    model = networks.mochi()
    model.ir_version = written
    assert onnx_files.load(saved(tmp_path / "model.onnx", model)).ir_version == read


def test_operators_of_one_runtime_only(tmp_path):
    model = networks.mochi()
    model.graph.node[1].domain, model.graph.node[1].op_type = "com.microsoft", "QuickGelu"
    model.opset_import.add(domain="com.microsoft", version=1)
    with pytest.raises(
        PackagingRefused, match="'QuickGelu' of 'com.microsoft', which not every runtime has; export it"
    ):
        onnx_files.load(saved(tmp_path / "model.onnx", model))


def test_such_operators_inside_a_loop(tmp_path):
    model = onnx.load_model_from_string(packages.slow(3))
    loop = next(one for one in model.graph.node if one.op_type == "Loop")
    loop.attribute[0].g.node[0].domain = "my.own"
    model.opset_import.add(domain="my.own", version=1)
    with pytest.raises(PackagingRefused, match="'Add' of 'my.own'"):
        onnx_files.load(saved(tmp_path / "model.onnx", model))


def test_sets_of_operators_that_are_declared_and_not_used(tmp_path):
    """Runtimes and exporters declare all those that they know."""
    model = networks.mochi()
    for domain in ("com.microsoft", "ai.onnx.ml", "pkg.onnxscript.torch_lib"):
        model.opset_import.add(domain=domain, version=1)
    loaded = onnx_files.load(saved(tmp_path / "model.onnx", model))
    assert [one.domain for one in loaded.opset_import] == [""]
    assert same(loaded, networks.mochi())


def test_functions_are_inlined(tmp_path):
    """The newer exporter of PyTorch writes functions of its own; their constants may lie in the second file, too."""
    model = networks.mochi()
    opset = helper.make_opsetid("", networks.OPSET)
    body = [
        helper.make_node("Constant", [], ["zero"], value=numpy_helper.from_array(np.float32(0).reshape(()), "zero")),
        helper.make_node("Max", ["x", "zero"], ["y"]),
    ]
    model.functions.append(helper.make_function("pkg.torch", "relu", ["x"], ["y"], body, [opset]))
    model.graph.node[1].op_type, model.graph.node[1].domain = "relu", "pkg.torch"
    model.opset_import.add(domain="pkg.torch", version=1)
    zero = model.functions[0].node[0].attribute[0].t
    (tmp_path / "weights.bin").write_bytes(zero.raw_data)
    zero.ClearField("raw_data")
    zero.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "weights.bin", "offset": "0", "length": "4"}.items():
        zero.external_data.add(key=key, value=value)
    loaded = onnx_files.load(saved(tmp_path / "model.onnx", model))
    assert len(loaded.functions) == 0
    assert same(loaded, networks.mochi())


def test_what_a_model_says_of_its_maker_is_forgotten(tmp_path):
    """Exporters write lines of code, and with them names of people and folders, wherever the format has a place for it."""
    secret = "/home/alice/secret"
    model = onnx.load_model_from_string(packages.slow(3))
    model.doc_string = model.producer_name = model.producer_version = model.domain = secret
    model.metadata_props.add(key="folder", value=secret)
    model.graph.name = secret
    body = next(one for one in model.graph.node if one.op_type == "Loop").attribute[0].g
    for graph in (model.graph, body):
        graph.value_info.append(packages._float("spun" if graph is model.graph else "x_out", [1]))
        for one in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
            one.doc_string = secret
            one.metadata_props.add(key="stack", value=secret)
    assert model.SerializeToString().count(secret.encode()) > 30
    assert secret.encode() not in onnx_files.load(saved(tmp_path / "model.onnx", model)).SerializeToString()
