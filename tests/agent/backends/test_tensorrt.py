"""Models on TensorRT, through fakes at TensorRT's and CUDA's own surface that compute, and that check the order of calls.

1. The package: of which versions, and what is said where it is missing.
2. Engines: built, kept, found again, rebuilt; each way in which that fails.
3. Runs: right numbers, recorded and replayed, in several threads; each way in which they fail.
"""

import gc
import logging
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_agent import backends, graphs, manifest
from edge_agent.backends import onnxruntime, tensorrt, trt_reports, trt_sdk
from edge_agent.backends.engine_files import TEMPORARY
from edge_agent.errors import AcceleratorFailed, AcceleratorMissing, InferenceFailed, PackageRefused
from edge_agent.jobs import GpuOptions, Progress, SessionOptions
from edge_agent.packages import ModelFiles
from edge_agent.pipeline import Pipeline
from model_packager import fusing, optimising
from model_packager.network import Conventions
from support import networks, packages, shared
from support.calls import picture
from support.fake_cuda import NEW, OLD, FakeCuda
from support.fake_tensorrt import VERSIONS, FakeTensorRt
from support.waiting import until

MODEL = ModelFiles(packages.brightness())
SHAPE = (1, 3, 64, 64)
CALIBRATION = b"TRT-100300-EntropyCalibration2\ninput: 3c010a14\n"
# How the real one says that there is no memory left.
NO_MEMORY = (
    "[virtualMemoryBuffer.cpp::resizePhysical::140] Error Code 2: OutOfMemory (Requested size was 1073741824 bytes.)"
)


@pytest.fixture(params=VERSIONS)
def version(request):
    return request.param


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    fake = FakeCuda().install(monkeypatch)
    yield fake
    gc.collect()
    assert fake.left() == {}, "all of the GPU was given back"


@pytest.fixture
def trt(gpu, monkeypatch):
    return FakeTensorRt(gpu).install(monkeypatch)


def session(model=MODEL, tell=lambda _: None, **options):
    given = {"index": 1, "name": "Imaginary Orin", "code": "sm_87", "driver": "540.4.0", **options}
    return backends.open_session(model, SessionOptions(accelerator="tensorrt", gpu=GpuOptions(**given)), tell)


def noise(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).random(shape, np.float32)


def on_the_cpu(tensor, model=MODEL):
    return onnxruntime.OrtSession(model, SessionOptions()).run(tensor)


def same(outputs, wanted):
    assert len(outputs) == len(wanted)
    for one, other in zip(outputs, wanted, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def a_model(nodes, inputs, outputs, constants=()):
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, [numpy_helper.from_array(v, n) for n, v in constants])
    return ModelFiles(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )


def tensor(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def identity(shape=SHAPE, kind=TensorProto.FLOAT):
    node = helper.make_node("Identity", ["input"], ["output"])
    return a_model([node], [tensor("input", shape, kind)], [tensor("output", shape, kind)])


class TestThePackage:
    def test_of_each_version(self, gpu, version, monkeypatch):
        FakeTensorRt(gpu, version).install(monkeypatch)
        assert tensorrt.installed()
        opened = session()
        assert opened.provider == f"TensorRT {'.'.join(version.split('.')[:3])}"
        assert opened.input_dtype == np.float32
        same(opened.run(noise()), on_the_cpu(noise()))

    def test_with_cuda_python_of_before(self, monkeypatch):
        gpu = FakeCuda().install(monkeypatch, OLD)
        FakeTensorRt(gpu).install(monkeypatch)
        same(session().run(noise()), on_the_cpu(noise()))

    @pytest.mark.parametrize("absent", [["tensorrt"], ["cuda", "cuda.bindings", NEW]])
    def test_is_absent(self, absent, trt, monkeypatch):
        for name in absent:
            monkeypatch.setitem(sys.modules, name, None)
        assert not tensorrt.installed()
        with pytest.raises(AcceleratorMissing, match="is not installed; install the extra `tensorrt`"):
            tensorrt.TensorRtSession(MODEL, SessionOptions(accelerator="tensorrt"))

    @pytest.mark.parametrize("other", ["8.6.2", "9.0.1", "12.0.0.30"])
    def test_of_another_version(self, other, trt):
        trt.module.__version__ = other
        with pytest.raises(
            AcceleratorMissing,
            match=rf"^TensorRT {other[:6].rstrip('.')} is installed; this agent works with 10 and 11",
        ):
            session()

    def test_is_broken(self, trt, monkeypatch):
        def broken(name):
            raise ImportError("libnvinfer.so.10: cannot open shared object file\nor so")

        monkeypatch.setattr(trt_sdk, "import_module", broken)
        with pytest.raises(
            AcceleratorMissing, match=r"package cannot be loaded: libnvinfer\.so\.10: cannot open shared object file\.$"
        ):
            session()

    def test_has_no_version(self, trt):
        trt.module.__version__ = "?"
        with pytest.raises(AcceleratorMissing, match="package cannot be loaded: invalid literal"):
            session()

    @pytest.mark.parametrize("builds_begun", [0, 1])
    def test_does_not_start(self, builds_begun, trt, monkeypatch):
        if builds_begun:  # the runtime is made first
            monkeypatch.setattr(trt.module, "Builder", lambda logger: trt.module.Runtime(logger))
            real = trt.module.Runtime
            monkeypatch.setattr(trt.module, "Runtime", lambda logger: (real(logger), trt.fails.update(start=[]))[0])
        else:
            trt.fails["start"] = []
        with pytest.raises(AcceleratorFailed, match="TensorRT cannot be started on the GPU: it gives no reason"):
            session()

    def test_without_the_gpu(self, trt, gpu):
        with pytest.raises(AcceleratorMissing, match="GPU 5 cannot be used: .* 101"):
            session(index=5)


class TestPrecision:
    """What an engine is built with, by version: read from the engine itself."""

    @pytest.fixture
    def told(self, tmp_path):
        def told(model=MODEL, **options):
            session(model, engines=str(tmp_path / "engines"), **options)
            (kept,) = (tmp_path / "engines").glob("*.engine")
            content = kept.read_bytes()
            return FakeTensorRt.told_of(content[content.index(b'{"version"') :])

        return told

    def test_of_the_package(self, gpu, version, monkeypatch, told):
        FakeTensorRt(gpu, version).install(monkeypatch)
        built = told()
        assert (built["typed"], built["flags"], built["pools"]) == (True, [], {}), "and TF32 is off"
        assert built["device"] == 1

    @pytest.mark.parametrize("version", VERSIONS[:2])
    def test_fp16(self, gpu, version, monkeypatch, told):
        FakeTensorRt(gpu, version).install(monkeypatch)
        built = told(precision="fp16")
        assert (built["typed"], built["flags"]) == (False, ["FP16"])

    @pytest.mark.parametrize("version", VERSIONS[:2])
    def test_int8(self, gpu, version, monkeypatch, told):
        FakeTensorRt(gpu, version).install(monkeypatch)
        built = told(ModelFiles(MODEL.graph, {"calibration.cache": CALIBRATION}), precision="int8")
        assert (built["typed"], built["flags"]) == (False, ["FP16", "INT8"])
        assert built["calibration"] == CALIBRATION.decode()

    def test_int8_without_a_calibration(self, trt):
        with pytest.raises(AcceleratorMissing, match=r"a file calibration\.cache beside the model .* --precision int8"):
            session(precision="int8")
        assert not trt.builds

    def test_int8_with_a_calibration_that_does_not_fit(self, trt):
        with pytest.raises(
            AcceleratorMissing, match="cannot build an engine of the model: Error|Calibration failed: no data"
        ):
            session(ModelFiles(MODEL.graph, {"calibration.cache": b"other"}), precision="int8")

    @pytest.mark.parametrize("precision", ["fp16", "int8"])
    def test_that_11_has_no_more(self, precision, gpu, monkeypatch):
        trt = FakeTensorRt(gpu, VERSIONS[2]).install(monkeypatch)
        with pytest.raises(
            AcceleratorMissing,
            match=rf"TensorRT 11\.4\.0 computes in the model's own types only: package the model with --precision {precision}",
        ):
            session(precision=precision)
        assert not trt.builds

    def test_limit_of_memory(self, trt, told):
        assert told(memory_limit=1 << 29)["pools"] == {"WORKSPACE": 1 << 29}


class TestEngines:
    @pytest.fixture
    def kept(self, tmp_path):
        return {"engines": str(tmp_path / "engines")}

    def test_are_kept_and_found_again(self, trt, kept):
        same(session(**kept).run(noise()), on_the_cpu(noise()))
        told = []
        same(session(tell=told.append, **kept).run(noise(1)), on_the_cpu(noise(1)))
        assert (trt.builds, trt.loads) == (1, 2)
        assert told == [], "nothing is built"
        assert Path(kept["engines"]).stat().st_mode & 0o777 == 0o700

    def test_are_not_kept_without_a_folder(self, trt, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        session()
        session()
        assert trt.builds == 2
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        "other",
        [
            {"name": "Imaginary Thor"},
            {"code": "sm_101"},
            {"driver": "550.1"},
            {"precision": "fp16"},
            {"memory_limit": 1 << 28},
        ],
    )
    def test_are_of_one_gpu_and_one_way_to_build(self, other, trt, kept):
        session(**kept)
        session(**{**kept, **other})
        assert trt.builds == 2

    def test_are_of_one_model(self, trt, kept):
        session(**kept)
        session(ModelFiles(packages.brightness(mask=False)), **kept)
        assert trt.builds == 2

    def test_are_of_one_version(self, trt, gpu, kept, monkeypatch):
        session(**kept)
        newer = FakeTensorRt(gpu, VERSIONS[2]).install(monkeypatch)
        session(**kept)
        assert newer.builds == 1

    def test_that_are_damaged_are_never_loaded(self, trt, kept):
        session(**kept)
        (file,) = Path(kept["engines"]).glob("*.engine")
        file.write_bytes(file.read_bytes()[:-1] + b"?")
        loads = trt.loads
        same(session(**kept).run(noise()), on_the_cpu(noise()))
        assert (trt.builds, trt.loads - loads) == (2, 1), "the new one alone"

    def test_that_do_not_load_are_built_once_more(self, trt, kept, caplog, monkeypatch):
        session(**kept)
        real = trt.module.Runtime.deserialize_cuda_engine
        answers = [lambda *_: None, real]
        monkeypatch.setattr(
            trt.module.Runtime, "deserialize_cuda_engine", lambda *given: answers.pop(0)(*given), raising=True
        )
        same(session(**kept).run(noise()), on_the_cpu(noise()))
        assert trt.builds == 2
        assert "TensorRT cannot load the engine that was kept of the model; it is built once more." in caplog.text
        answers.append(real)
        session(**kept)
        assert trt.builds == 2, "the new one is kept in its place"

    def test_that_do_not_load_though_they_were_just_built(self, trt, kept):
        trt.fails["load"] = ["Error Code 1: Serialization (no)"]
        with pytest.raises(
            AcceleratorMissing,
            match=r"^TensorRT cannot load the engine that it built of the model: Error Code 1: Serial",
        ):
            session(**kept)
        assert trt.builds == 1

    @pytest.mark.parametrize(
        "lines", [[NO_MEMORY], ["Error Code 1: Cuda Runtime (an illegal memory access was encountered)"]]
    )
    def test_that_do_not_load_for_want_of_a_working_gpu(self, lines, trt, kept):
        session(**kept)
        trt.fails["load"] = lines
        with pytest.raises(AcceleratorFailed, match="TensorRT cannot load the model's engine: "):
            session(**kept)
        assert trt.builds == 1, "another one would do no better"

    def test_measurements_are_kept_for_the_next_model(self, trt, kept):
        def measured(model):
            session(model, **kept)
            newest = max(Path(kept["engines"]).glob("*.engine"), key=lambda one: one.stat().st_mtime_ns)
            content = newest.read_bytes()
            return FakeTensorRt.told_of(content[content.index(b'{"version"') :])["measured before"]

        assert measured(MODEL) == 0
        assert measured(ModelFiles(packages.brightness(mask=False))) == 1

    @pytest.mark.parametrize("garbage", [b"no measurements", b'timing {"gpu": 7, "layers": ["of another"]}'])
    def test_measurements_that_do_not_fit_are_dropped(self, garbage, trt, kept, monkeypatch):
        monkeypatch.setattr("edge_agent.backends.engines.EngineCache.read_timing", lambda *_: garbage)
        same(session(**kept).run(noise()), on_the_cpu(noise()))
        (file,) = Path(kept["engines"]).glob("*.timing")
        assert file.read_bytes().endswith(b'timing {"gpu": 0, "layers": ["conv"]}')
        assert not [one for one in Path(kept["engines"]).iterdir() if TEMPORARY.fullmatch(one.name)]


class TestBuildFailures:
    def test_an_operator_that_the_parser_does_not_know(self, trt):
        trt.refuses = {"ReduceMean"}
        with pytest.raises(AcceleratorMissing) as refused:
            session()
        assert (
            str(refused.value)
            == "TensorRT cannot take the model: ReduceMean '': No importer registered for op: ReduceMean."
        )

    def test_a_parser_without_a_reason(self, trt):
        trt.fails["parse"] = []
        with pytest.raises(AcceleratorMissing, match="cannot take the model, and its parser gives no reason"):
            session()

    def test_a_parser_that_names_no_node(self, trt, monkeypatch):
        def parse(self, model, path=None):
            self._errors.append(trt.module.ParserError("\x1b[31mstrange\n"))
            return False

        monkeypatch.setattr(trt.module.OnnxParser, "parse", parse)
        with pytest.raises(AcceleratorMissing, match=r"^TensorRT cannot take the model: \\x1b\[31mstrange\.$"):
            session()

    def test_what_is_no_model(self, trt):
        with pytest.raises(PackageRefused, match="no ONNX file"):
            session(ModelFiles(b"no ONNX file"))

    def test_no_engine(self, trt):
        trt.fails["build"] = [
            "[optimizer.cpp::computeCosts::4048] Error Code 10: Internal Error (No implementation for node Conv_1.)"
        ]
        with pytest.raises(AcceleratorMissing) as refused:
            session()
        assert str(refused.value) == (
            "TensorRT cannot build an engine of the model: Error Code 10: Internal Error (No implementation for node Conv_1.)."
        )

    def test_no_engine_and_no_reason(self, trt):
        trt.fails["build"] = []
        with pytest.raises(AcceleratorMissing, match="an engine of the model: it gives no reason"):
            session()

    def test_no_memory(self, trt):
        trt.fails["build"] = ["Error Code 10: something", NO_MEMORY]
        with pytest.raises(
            AcceleratorFailed, match=r"an engine of the model: the GPU has no memory left \(Error Code 2: OutOfMemory"
        ):
            session()

    def test_a_gpu_that_fails(self, trt):
        trt.fails["build"] = ["Error Code 1: Cuda Runtime (unspecified launch failure)"]
        with pytest.raises(AcceleratorFailed, match=r"Cuda Runtime \(unspecified launch failure\)"):
            session()

    def test_weights_beside_the_model(self, trt):
        given = onnx.load_from_string(MODEL.graph)
        one = next(one for one in given.graph.initializer if one.name == "one")
        file, one.raw_data = one.raw_data, b""
        one.data_location = TensorProto.EXTERNAL
        one.external_data.add(key="location", value="weights.bin")
        model = ModelFiles(given.SerializeToString(), {"weights.bin": file})
        same(session(model).run(noise()), on_the_cpu(noise()))
        with pytest.raises(PackageRefused, match=r"package\.files does not list"):
            session(ModelFiles(given.SerializeToString()))

    def test_a_line_of_its_log_is_one_readable_line(self, trt, caplog):
        trt.fails["build"] = ["\x1b[31m" + "x" * 999 + "\nline"]
        with caplog.at_level(logging.DEBUG), pytest.raises(AcceleratorMissing) as refused:
            session()
        (line,) = [one.getMessage() for one in caplog.records if "xxx" in one.getMessage()]
        assert line.startswith("TensorRT: \\x1b[31mxxx")
        assert line.endswith("x...")
        assert len(str(refused.value)) < 400

    def test_what_its_log_tells_besides(self, trt, caplog):
        with caplog.at_level(logging.DEBUG):
            session()
        assert "TensorRT: Engine generation completed." in caplog.messages
        assert "not even this" not in caplog.text


class TestShapes:
    def test_an_open_batch_is_one(self, trt, tmp_path):
        opened = session(identity(["N", 3, 64, 64]), engines=str(tmp_path / "engines"))
        same(opened.run(noise()), [noise()])
        again = session(identity(["N", 3, 64, 64]), engines=str(tmp_path / "engines"))
        same(again.run(noise(1)), [noise(1)])
        assert trt.builds == 1

    def test_a_fixed_number_of_images_is_the_engines(self, trt):
        """It would read that many, and beyond the memory for one."""
        opened = session(identity([2, 3, 64, 64]))
        with pytest.raises(InferenceFailed) as caught:
            opened.run(noise())
        assert caught.value.cause == "The engine's input is float32 2x3x64x64, and float32 1x3x64x64 was given."
        pair = np.concatenate([noise(), noise(1)])
        same(opened.run(pair), [pair])

    @pytest.mark.parametrize("shape", [[1, 3, "H", "W"], ["N", 3, "H", 64]])
    def test_an_open_size_is_refused(self, shape, trt):
        with pytest.raises(
            AcceleratorMissing,
            match=r"for one image size, and the model's input 'input' is (1|\?)x3x\?x(\?|64); export",
        ):
            session(identity(shape))

    def test_a_profile_that_is_not_taken(self, trt):
        trt.fails["profile"] = []
        with pytest.raises(AcceleratorMissing, match="for one image at a time"):
            session(identity(["N", 3, 64, 64]))

    def test_a_shape_that_is_not_taken(self, trt):
        trt.fails["shape"] = []
        with pytest.raises(AcceleratorFailed, match="does not take one image at a time"):
            session(identity(["N", 3, 64, 64])).another()

    def test_an_output_whose_size_depends_on_the_image(self, trt):
        node = helper.make_node("NonZero", ["input"], ["output"])
        model = a_model([node], [tensor("input", SHAPE)], [tensor("output", [4, "n"], TensorProto.INT64)])
        with pytest.raises(AcceleratorMissing, match="size of the model's output 'output' depends on the image"):
            session(model).another()

    def test_an_output_of_a_type_that_numpy_lacks(self, trt, monkeypatch):
        opened = session(identity())
        monkeypatch.setattr(
            trt.module.ICudaEngine, "get_tensor_dtype", lambda self, name: trt.module.DataType.BF16, raising=True
        )
        with pytest.raises(AcceleratorMissing, match="output 'output' is of type BF16"):
            opened.another()

    def test_an_output_without_numbers(self, trt):
        node = helper.make_node("Slice", ["input", "none", "none"], ["output"])
        model = a_model(
            [node], [tensor("input", SHAPE)], [tensor("output", [0, 3, 64, 64])], [("none", np.array([0], np.int64))]
        )
        (output,) = session(model).run(noise())
        assert output.shape == (0, 3, 64, 64)

    @pytest.mark.parametrize(
        ("model", "listed"),
        [
            (identity(kind=TensorProto.FLOAT16), "'input' HALF"),
            (identity(kind=TensorProto.BFLOAT16), "'input' BF16"),
            (
                a_model(
                    [helper.make_node("Add", ["a", "b"], ["c"])],
                    [tensor("a", [1]), tensor("b", [1])],
                    [tensor("c", [1])],
                ),
                "'a' FLOAT, 'b' FLOAT",
            ),
            (
                a_model(
                    [helper.make_node("Identity", ["k"], ["c"])],
                    [],
                    [tensor("c", [1])],
                    [("k", np.ones(1, np.float32))],
                ),
                "none",
            ),
        ],
    )
    def test_an_input_that_is_no_image(self, model, listed, trt):
        with pytest.raises(PackageRefused) as refused:
            session(model)
        assert str(refused.value) == f"The model must have one float32 input (uint8 when compiled); it has: {listed}."

    def test_an_engine_without_an_output_of_the_model(self, trt, monkeypatch):
        monkeypatch.setattr(trt.module.ICudaEngine, "num_io_tensors", property(lambda self: 2))
        with pytest.raises(
            AcceleratorMissing,
            match=r"does not have the model's outputs \('logits', 'scores'\); it has: 'input', 'logits'",
        ):
            session()

    def test_uint8_in_and_out(self, trt):
        opened = session(identity(kind=TensorProto.UINT8))
        assert opened.input_dtype == np.uint8
        given = (255 * noise()).astype(np.uint8)
        same(opened.run(given), [given])

    def test_another_input_than_the_engines(self, trt):
        opened = session()
        for wrong in (noise(shape=(1, 3, 64, 65)), noise().astype(np.float64)):
            with pytest.raises(InferenceFailed) as failed:
                opened.run(wrong)
            assert failed.value.cause.startswith("The engine's input is float32 1x3x64x64, and float")
        same(opened.run(noise()), on_the_cpu(noise()))


class TestProgress:
    def test_is_told_at_once(self, trt):
        told = []
        session(tell=told.append)
        assert told == [
            Progress("TensorRT 10.16.1 is building the model's engine for Imaginary Orin: 0 s so far.", building=True)
        ]

    def test_is_told_again_and_again_though_nothing_happens(self, trt, monkeypatch):
        monkeypatch.setattr(trt_reports.Building.__init__, "__defaults__", (0.05,))
        told = []
        trt.while_building = lambda: until(lambda: len(told) >= 5, "it is told again and again")
        session(tell=told.append)
        assert all(one.building for one in told)
        assert threading.active_count() == 1 or "engine-progress" not in {one.name for one in threading.enumerate()}

    def test_names_the_phase(self, trt):
        told = []
        building = trt_reports.Building(trt.module, told.append, "Building", every=0)
        monitor = building.monitor
        monitor.phase_start("Building Engine", None, 4)
        assert monitor.step_complete("Building Engine", 0) is True
        monitor.phase_start("Timing\nnodes", "Building Engine", 80)
        assert monitor.step_complete("Timing\nnodes", 11) is True
        monitor.phase_finish("Timing\nnodes")
        assert monitor.step_complete("Building Engine", 1) is True
        monitor.phase_finish("Building Engine")
        monitor.phase_finish("Building Engine")
        assert monitor.step_complete("Unheard of", 3) is True
        assert [one.text.removeprefix("Building: ").removesuffix("; 0 s so far.") for one in told] == [
            "Building Engine, step 0 of 4",
            "Building Engine, step 1 of 4",
            "Timing\\nnodes, step 0 of 80",
            "Timing\\nnodes, step 12 of 80",
            "Building Engine, step 2 of 4",
            "Unheard of, step 4 of 4",
        ]

    def test_is_told_of_tensorrts_thread_where_ours_cannot(self, trt, monkeypatch):
        """As long as a build holds the interpreter, only what it calls can say a word."""
        told = []
        monkeypatch.setattr(trt_reports.Building, "_keep_on", lambda self: None)
        monkeypatch.setattr(trt_reports.Building.__init__, "__defaults__", (0.0,))
        session(tell=lambda one: told.append(one.text))
        assert any("Timing graph nodes, step 2 of 3" in one for one in told)

    def test_ends_a_build_that_nobody_waits_for(self, trt, monkeypatch):
        def gone(_):
            raise BrokenPipeError

        with pytest.raises(AcceleratorMissing, match="Cancelled"):
            session(tell=gone)


class TestRuns:
    def test_are_recorded_and_replayed(self, trt, gpu):
        opened = session().another()
        launched = gpu.launches
        for seed in range(3):
            same(opened.run(noise(seed)), on_the_cpu(noise(seed)))
        assert gpu.launches - launched == 3
        assert gpu.calls[-3:] == ["cudaSetDevice", "cudaGraphLaunch", "cudaStreamSynchronize"], "and nothing else"

    def test_are_put_in_one_by_one_where_that_is_set(self, trt, gpu):
        opened = session(graphs=False).another()
        for seed in range(3):
            same(opened.run(noise(seed)), on_the_cpu(noise(seed)))
        assert gpu.launches == 0
        assert gpu.calls[-5:] == [
            "cudaSetDevice",
            "cudaMemcpyAsync",
            "cudaMemcpyAsync",
            "cudaMemcpyAsync",
            "cudaStreamSynchronize",
        ]

    @pytest.mark.parametrize("name", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"])
    def test_go_on_where_they_cannot_be_recorded(self, name, trt, gpu, caplog):
        gpu.fail(name, 900)
        opened = session().another()
        for seed in range(2):
            same(opened.run(noise(seed)), on_the_cpu(noise(seed)))
        assert gpu.launches == 0
        assert f"The model is run without CUDA graphs: {name} failed with CUDA error 900" in caplog.text
        assert gpu.calls.count("cudaStreamCreateWithFlags") == 2, "the one that was recorded is of no use any more"

    def test_go_on_where_tensorrt_cannot_be_recorded(self, trt, gpu, caplog):
        trt.fails["recorded run"] = ["Error Code 1: Cuda Runtime (operation not permitted when stream is capturing)"]
        same(session().run(noise()), on_the_cpu(noise()))
        assert "without CUDA graphs: TensorRT could not run the model: Error Code 1: Cuda Runtime (op" in caplog.text

    def test_have_no_memory_for_what_is_recorded(self, trt, gpu):
        gpu.fail("cudaGraphInstantiate", 2)
        with pytest.raises(AcceleratorFailed, match="GPU 1 has no memory left"):
            session().another()

    def test_of_several_threads(self, trt, gpu):
        opened = session()
        slots = [opened.another() for _ in range(3)]
        assert len(gpu.streams) == 3, "of the first session there is none yet"
        with ThreadPoolExecutor(3) as pool:
            for seed in range(4):
                seeds = [10 * seed + one for one in range(3)]
                outputs = list(pool.map(lambda slot, one: slot.run(noise(one)), slots, seeds))
                for one, output in zip(seeds, outputs, strict=True):
                    same(output, on_the_cpu(noise(one)))
        assert trt.builds == 1

    def test_in_which_the_first_thread_goes_on_with_another_gpu(self, trt, gpu):
        opened = session().another()
        gpu.module().cudaSetDevice(0)
        same(opened.run(noise()), on_the_cpu(noise()))

    def test_cannot_be_ended(self, trt):
        opened = session()
        opened.terminate()
        same(opened.run(noise()), on_the_cpu(noise()))

    def test_give_everything_back(self, trt, gpu):
        opened = session()
        slot = opened.another()
        held = [slot.run(noise())]
        slot.close()
        slot.close()
        assert gpu.left() == {"host": 2}, "what the caller still reads"
        assert not [one for one in trt.contexts if one() is not None]
        held.clear()
        same(slot.run(noise()), on_the_cpu(noise()))


class TestRunFailures:
    def test_no_context(self, trt):
        opened = session()
        trt.fails["context"] = [NO_MEMORY]
        with pytest.raises(AcceleratorFailed, match="cannot make ready to run the model: the GPU has no memory left"):
            opened.another()

    @pytest.mark.parametrize("after", range(3))
    def test_no_memory_for_a_buffer(self, after, trt, gpu):
        opened = session()
        gpu.fail("cudaMalloc", 2, after)
        with pytest.raises(AcceleratorFailed, match="GPU 1 has no memory left"):
            opened.another()
        assert gpu.left() == {}

    def test_no_pinned_memory(self, trt, gpu):
        opened = session()
        gpu.fail("cudaHostAlloc", 2, 1)
        with pytest.raises(AcceleratorFailed, match="cudaHostAlloc failed with CUDA error 2"):
            opened.another()

    def test_an_address_that_is_not_taken(self, trt):
        opened = session()
        trt.fails["address"] = ["API Usage Error (no)"]
        with pytest.raises(AcceleratorFailed, match=r"does not take the memory for 'input': API Usage Error \(no\)"):
            opened.another()

    @pytest.mark.parametrize("graphs", [True, False])
    def test_700(self, graphs, trt, gpu):
        opened = session(graphs=graphs).another()
        same(opened.run(noise()), on_the_cpu(noise()))
        gpu.fail("cudaStreamSynchronize", 700)
        with pytest.raises(
            AcceleratorFailed, match="CUDA error 700, cudaErrorIllegalAddress: an illegal memory access"
        ):
            opened.run(noise())
        with pytest.raises(AcceleratorFailed, match="700"):
            opened.run(noise())
        del opened
        gc.collect()  # which must not raise
        gpu.sticky = None
        for kind in (gpu.memory, gpu.host, gpu.streams, gpu.graphs):
            kind.clear()  # with its process all is given back

    @pytest.mark.parametrize(("lines", "said"), [([NO_MEMORY], "no memory left"), ([], "it gives no reason")])
    def test_a_run_that_tensorrt_refuses(self, lines, said, trt):
        opened = session(graphs=False).another()
        trt.fails["run"] = lines
        with pytest.raises(AcceleratorFailed, match=f"TensorRT could not run the model: .*{said}"):
            opened.run(noise())

    def test_a_first_run_that_fails(self, trt, gpu):
        opened = session()
        gpu.fail("cudaStreamSynchronize", 999)
        gpu.fail("cudaMemcpyAsync", 700, 1)
        with pytest.raises(AcceleratorFailed):
            opened.another()
        gpu.sticky = None
        for kind in (gpu.memory, gpu.host, gpu.streams, gpu.graphs):
            kind.clear()


@shared.needed
class TestRealModels:
    """The whole way of an image, against the CPU's."""

    @pytest.mark.parametrize("name", ["cookies-segmentation", "cookies-classification"])
    def test_the_verdict_of_the_cpu(self, name, trt):
        folder = shared.FOLDER / "models" / name / "component"
        parsed = manifest.parse(manifest.parse_json((folder / "manifest.json").read_bytes()))
        model = ModelFiles((folder / parsed.model_file).read_bytes())
        image = picture(*parsed.image_size)
        verdicts = []
        for opened in (session(model), onnxruntime.OrtSession(model, SessionOptions())):
            pipeline = Pipeline(parsed, graphs.of(parsed, opened))
            pipeline.warm_up()
            verdict, class_map = pipeline.judge(image)
            verdicts.append((verdict, None if class_map is None else class_map.small.tobytes()))
        assert verdicts[0] == verdicts[1]


def test_a_compiled_graph(trt, tmp_path):
    """A bitmap in, and class map, mean and score out, on the whole way of an image."""
    parsed = networks.parsed()
    fused = fusing.fuse(networks.mochi(), parsed, Conventions(), accelerated=True)
    fused = onnx.shape_inference.infer_shapes(optimising.fold(fused, tmp_path), data_prop=True)
    model = ModelFiles(fused.SerializeToString())
    judged = []
    for opened in (session(model), onnxruntime.OrtSession(model, SessionOptions())):
        assert opened.input_dtype == np.uint8
        pipeline = Pipeline(parsed, graphs.CompiledGraph(parsed, opened))
        pipeline.warm_up()
        said = []
        for pixels in networks.pictures(size=parsed.image_size):
            verdict, class_map = pipeline.judge(pixels)
            said.append((verdict, class_map.small.tobytes()))
        judged.append(said)
    assert judged[0] == judged[1]
    assert len(set(judged[0])) == 4
