"""ONNX Runtime's providers for GPUs, against a runtime that is as strict as they: what is loaded, bound, told, and refused."""

import hashlib
import logging
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as real
import pytest
from onnx import TensorProto, helper

from edge_agent.backends import cuda, onnxruntime, open_session, ort_engine, tensorrt
from edge_agent.errors import AcceleratorFailed, AcceleratorMissing, InferenceFailed, PackageRefused, extra
from edge_agent.jobs import GpuOptions, Progress, SessionOptions
from edge_agent.packages import ModelFiles
from support import networks, packages
from support.fake_onnxruntime import CPU, CUDA, TENSORRT, EPFail, Fail, FakeOrt
from support.waiting import until

GPU = SessionOptions(threads=1, accelerator="cuda", gpu=GpuOptions(name="Orin", code="sm_87", driver="540.3"))
BUILT = replace(GPU, accelerator="tensorrt")
ILLEGAL = "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=line-7 ; expr=x; "
NO_GRAPH = (
    "[ONNXRuntimeError] : 1 : FAIL : This session cannot use the graph capture feature as requested by the user  as all "
    "compute graph nodes have not been partitioned to the CUDAExecutionProvider"
)
MODEL = ModelFiles(networks.mochi().SerializeToString())


@pytest.fixture
def ort(monkeypatch) -> FakeOrt:
    return use(monkeypatch, FakeOrt())


def use(monkeypatch, fake: FakeOrt) -> FakeOrt:
    monkeypatch.setattr(onnxruntime, "ort", fake)
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    monkeypatch.setattr(tensorrt, "installed", lambda: False)
    return fake


def pictures(count=4, seed=5) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.random((1, 3, *networks.SIZE[::-1]), np.float32) for _ in range(count)]


def on_the_cpu(picture) -> list[np.ndarray]:
    return real.InferenceSession(MODEL.graph, providers=[CPU]).run(None, {"input": picture})


def assert_same(outputs, wanted):
    assert [(one.dtype, one.shape, one.tobytes()) for one in outputs] == [
        (one.dtype, one.shape, one.tobytes()) for one in wanted
    ]


def open_model(proto, options=GPU):
    return open_session(ModelFiles(proto.SerializeToString()), options)


class TestCuda:
    def test_runs_there_with_the_results_of_the_cpu(self, ort):
        session = open_session(MODEL, GPU)
        assert (session.provider, session.input_dtype) == (CUDA, np.float32)
        for picture in pictures():
            assert_same(session.run(picture), on_the_cpu(picture))
        assert list(ort.opened[-1]) == [CUDA, CPU]

    def test_a_recording_is_replayed_from_the_second_call_on(self, ort):
        session = open_session(MODEL, GPU)
        first, second, *_ = outputs = [session.run(one) for one in pictures()]
        assert ort.opened[-1][CUDA]["enable_cuda_graph"] == "1"
        assert ort.sessions[-1].replays == len(outputs) - 1
        assert first[0].tobytes() != second[0].tobytes()  # what was answered is not written to again
        assert_same(first, on_the_cpu(pictures()[0]))

    @pytest.mark.parametrize(
        ("options", "recorded"),
        [(GPU, "1"), (replace(GPU, slots=2), "0"), (replace(GPU, gpu=GpuOptions(graphs=False)), "0")],
    )
    def test_when_launches_are_recorded(self, ort, options, recorded):
        open_session(MODEL, options)
        assert ort.opened[-1][CUDA]["enable_cuda_graph"] == recorded

    @pytest.mark.parametrize("dynamic", [["batch", 3, 64, 72], [1, 3, "height", "width"]])
    def test_nothing_is_recorded_of_shapes_that_are_left_open(self, ort, dynamic):
        session = open_model(networks.mochi(dynamic=dynamic))
        for picture in pictures():
            assert_same(session.run(picture), on_the_cpu(picture))
        assert ort.sessions[-1].recorded is None
        assert ort.sessions[-1].runs == len(pictures())

    def test_a_model_that_cannot_be_recorded_runs_without(self, ort, caplog):
        caplog.set_level(logging.INFO)
        ort.refusing = [Fail(NO_GRAPH)]
        session = open_session(MODEL, GPU)
        assert [one[CUDA]["enable_cuda_graph"] for one in ort.opened] == ["1", "0"]
        assert_same(session.run(pictures()[0]), on_the_cpu(pictures()[0]))
        assert "CUDA graphs are not used: This session cannot use the graph capture feature" in caplog.text

    def test_that_is_tried_once(self, ort):
        ort.refusing = [Fail(NO_GRAPH), Fail(NO_GRAPH)]
        with pytest.raises(AcceleratorMissing, match="cannot run the model on CUDAExecutionProvider: This session"):
            open_session(MODEL, GPU)
        assert len(ort.opened) == 2

    def test_each_thread_has_tensors_of_its_own(self, ort):
        loaded = open_session(MODEL, replace(GPU, slots=3))
        slots, given, wrong = [loaded.another() for _ in range(3)], pictures(3), []

        def serve(slot, picture):
            wanted = on_the_cpu(picture)[0].tobytes()
            wrong.extend(picture for _ in range(50) if slot.run(picture)[0].tobytes() != wanted)

        threads = [threading.Thread(target=serve, args=one) for one in zip(slots, given, strict=True)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert wrong == []
        assert loaded._binding is None  # which costs memory of the GPU

    def test_another_shares_no_tensor(self, ort):
        one = open_session(MODEL, GPU)
        one.run(pictures()[0])
        other = one.another()
        other.run(pictures()[1])
        assert not {id(value) for value in one._binding._binding.values} & {
            id(value) for value in other._binding._binding.values
        }

    @pytest.mark.parametrize("wrong", [np.zeros((1, 3, 64, 64), np.float32), np.zeros((1, 3, 64, 72), np.uint8)])
    def test_an_input_that_is_not_the_models(self, ort, wrong):
        """A replay would not look at it, and the runtime copies any bytes."""
        session = open_session(MODEL, GPU)
        for _ in range(2):
            with pytest.raises(
                InferenceFailed, match=r"input is float32 1x3x64x72; it was given (float32|uint8) 1x3x64"
            ):
                session.run(wrong)
            session.run(pictures()[0])
        assert ort.sessions[-1].runs == 2

    def test_what_is_known_of_open_shapes_is_checked(self, ort):
        session = open_model(networks.mochi(dynamic=["batch", 3, "height", "width"]))
        with pytest.raises(
            InferenceFailed, match="input is float32 batchx3xheightxwidth; it was given float32 1x4x64x72"
        ):
            session.run(np.zeros((1, 4, 64, 72), np.float32))

    def test_an_output_whose_size_the_input_decides(self, ort):
        nodes = [helper.make_node("NonZero", ["input"], ["found"])]
        session = open_model(
            networks.model(nodes, {}, {"found": [4, None]}, kinds={"found": TensorProto.INT64}, shape=[1, 3, 2, 2])
        )
        for count in (3, 12, 0, 7):
            picture = (np.arange(12) < count).astype(np.float32).reshape(1, 3, 2, 2)
            (found,) = session.run(picture)
            assert found.tolist() == np.array(np.nonzero(picture)).tolist()
        assert ort.sessions[-1].recorded is None

    def test_terminate_is_of_the_run_that_is_under_way(self, ort, monkeypatch):
        session = open_session(
            ModelFiles(packages.slow(3_000_000)), replace(GPU, gpu=GpuOptions(graphs=False))
        ).another()
        picture = np.zeros((1, 3, 64, 64), np.float32)
        timer = threading.Timer(0.2, session.terminate)
        timer.start()
        with pytest.raises(InferenceFailed) as caught:
            session.run(picture)
        timer.join()
        assert "terminate flag" in caught.value.cause

    def test_the_model_is_not_kept_twice(self, ort):
        open_session(MODEL, GPU)
        assert ort.sessions[-1]._model_bytes is None

    def test_what_stays_elsewhere_is_logged(self, ort, caplog):
        caplog.set_level(logging.INFO)
        ort.elsewhere = [(CUDA, ["Conv"]), (CPU, ["Shape", "Gather", "Shape"])]
        open_session(MODEL, GPU)
        assert "3 of the model's nodes do not run on CUDAExecutionProvider: 1 Gather, 2 Shape" in caplog.text
        assert ort.settings[-1].entries["session.record_ep_graph_assignment_info"] == "1"

    def test_a_runtime_that_does_not_tell(self, ort, monkeypatch, caplog):
        caplog.set_level(logging.INFO)
        monkeypatch.delattr("support.fake_onnxruntime._Session.get_provider_graph_assignment_info")
        open_session(MODEL, GPU)
        assert caplog.text == ""

    def test_is_silent_on_stdout_and_stderr(self, ort, capfd):
        open_session(MODEL, GPU)
        assert capfd.readouterr() == ("", "")
        assert (ort.preloaded, ort.said) == (1, [4])

    def test_a_runtime_that_cannot_look_for_libraries(self, monkeypatch):
        """Those before 1.21."""
        fake = use(monkeypatch, FakeOrt())
        monkeypatch.delattr(FakeOrt, "preload_dlls")
        fake.preloaded = 1
        open_session(MODEL, GPU)

    @pytest.mark.parametrize(("options", "beside"), [(GPU, True), (BUILT, False)])
    def test_external_data_is_given_in_memory(self, ort, options, beside):
        """Beside the model to CUDA's provider, and in it to TensorRT's."""
        import onnx

        proto = networks.mochi()
        weights = proto.graph.initializer[0]
        data = weights.raw_data
        onnx.external_data_helper.set_external_data(weights, "model.onnx.data", 0, len(data))
        weights.ClearField("raw_data")
        weights.data_location = TensorProto.EXTERNAL
        session = open_session(ModelFiles(proto.SerializeToString(), {"model.onnx.data": data}), options)
        assert ("external" in ort.settings[-1].entries) is beside
        assert_same(session.run(pictures()[0]), on_the_cpu(pictures()[0]))

    def test_pinned_memory_is_used_where_there_is_some(self, ort, monkeypatch):
        given, taken = [], []

        def pinned(shape, dtype, index):
            given.append(np.full(shape, np.nan, dtype))
            taken.append((shape, dtype, index))
            return given[-1]

        monkeypatch.setattr(cuda, "pinned", pinned)
        session = open_session(MODEL, replace(GPU, gpu=GpuOptions(index=1)))
        for picture in pictures():
            assert_same(session.run(picture), on_the_cpu(picture))
            assert given[-1].tobytes() == picture.tobytes()
        assert taken == [((1, 3, 64, 72), np.dtype(np.float32), 1)]
        assert {value.index for value in ort.sessions[-1].recorded.values} == {1}


class TestRefused:
    def refusal(self, kind, options=GPU, model=MODEL) -> str:
        with pytest.raises(kind) as caught:
            open_session(model, options)
        assert type(caught.value) is kind
        return str(caught.value)

    def test_a_runtime_without_the_provider(self, monkeypatch):
        use(monkeypatch, FakeOrt(listed=[CPU]))
        assert self.refusal(AcceleratorMissing) == f"ONNX Runtime here has no {CUDA}; {extra('cuda')}."
        told = self.refusal(AcceleratorMissing, BUILT)
        assert told == f"ONNX Runtime here has no {TENSORRT}; {extra('tensorrt')}."

    def test_no_runtime(self, monkeypatch):
        monkeypatch.setattr(onnxruntime, "ort", None)
        assert self.refusal(AcceleratorMissing) == f"ONNX Runtime is not installed; {extra('cuda')}."
        assert self.refusal(PackageRefused, SessionOptions()) == f"ONNX Runtime is not installed; {extra('cpu')}."

    @pytest.mark.parametrize(("options", "wanted"), [(GPU, CUDA), (BUILT, TENSORRT)])
    def test_listed_is_not_used(self, monkeypatch, capfd, options, wanted):
        fake = use(monkeypatch, FakeOrt(used=[CPU]))
        assert self.refusal(AcceleratorMissing, options).startswith(
            f"ONNX Runtime cannot run the model on {wanted}: libcublasLt.so.13: cannot open. Install NVIDIA's "
        )
        assert capfd.readouterr() == ("", "")
        assert fake.said[-1] == 4

    def test_a_provider_that_gives_no_cause(self, monkeypatch):
        use(monkeypatch, FakeOrt(used=[CPU], cause=""))
        assert f": a session that was opened for it runs on {CPU}. Install" in self.refusal(AcceleratorMissing)

    def test_a_provider_that_is_used_only_when_asked_again(self, monkeypatch):
        fake = use(monkeypatch, FakeOrt(used=[CPU]))
        monkeypatch.setattr(fake, "listed", [CPU, CUDA])
        # The session for the model, then the probe's on the CPU, then its own on CUDA.
        fake.on_open = lambda: fake.used.append(CUDA) if len(fake.opened) > 2 else None
        assert ": it does not tell why. Install" in self.refusal(AcceleratorMissing)

    def test_tensorrt_that_falls_back_to_cuda(self, monkeypatch):
        fake = use(monkeypatch, FakeOrt(used=[CUDA, CPU], cause=""))
        fake.strict = False
        told = self.refusal(AcceleratorMissing, BUILT)
        assert f"on {TENSORRT}: a session that was opened for it runs on {CPU}. Install" in told

    def test_the_gpu_fails_while_loading(self, ort):
        ort.refusing = [RuntimeError(ILLEGAL)]
        told = self.refusal(AcceleratorFailed)
        assert told == "The GPU failed: CUDA failure 700: an illegal memory access was encountered."

    @pytest.mark.parametrize("options", [GPU, BUILT])
    def test_what_is_no_model(self, ort, options):
        assert self.refusal(PackageRefused, options, ModelFiles(b"no")).startswith(
            "ONNX Runtime cannot load the model: "
        )

    @pytest.mark.parametrize("options", [GPU, BUILT])
    def test_a_model_with_two_inputs(self, ort, options):
        proto = networks.mochi()
        proto.graph.input.append(networks._value("other", [1], {}))
        told = self.refusal(PackageRefused, options, ModelFiles(proto.SerializeToString()))
        assert told.endswith("it has: input tensor(float), other tensor(float).")

    def test_an_option_that_the_runtime_does_not_know(self, ort, monkeypatch):
        monkeypatch.setitem(onnxruntime.ort_options.__dict__, "_cuda", lambda *_, **__: {"cuda_mem_limit": "1"})
        assert 'Unknown provider option: "cuda_mem_limit"' in self.refusal(AcceleratorMissing)


class TestFailures:
    @pytest.mark.parametrize(
        ("error", "kind"),
        [
            (RuntimeError(ILLEGAL), AcceleratorFailed),
            (Fail("CUDNN failure 4: CUDNN_STATUS_INTERNAL_ERROR ; GPU=0 ; "), AcceleratorFailed),
            (
                Fail("BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 9"),
                AcceleratorFailed,
            ),
            (
                Fail("BFCArena::AllocateRawInternal Available memory of 0 is smaller than requested bytes of 256"),
                AcceleratorFailed,
            ),
            (EPFail("TensorRT EP execution context enqueue failed."), AcceleratorFailed),
            (RuntimeError("std::bad_alloc"), MemoryError),
            (Fail("[ONNXRuntimeError] : 1 : FAIL : odd"), InferenceFailed),
        ],
    )
    def test_in_a_call(self, ort, error, kind):
        session = open_session(MODEL, GPU)
        session.run(pictures()[0])
        ort.failing = [error]
        with pytest.raises(kind) as caught:
            session.run(pictures()[0])
        assert type(caught.value) is kind
        assert "hostname" not in str(caught.value)

    def test_the_cpu_has_no_memory_left(self, ort, monkeypatch):
        session = open_session(MODEL, SessionOptions(threads=1))
        failing = Fail("BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 9")
        monkeypatch.setattr(ort.sessions[-1], "run", lambda *_: (_ for _ in ()).throw(failing))
        with pytest.raises(MemoryError):
            session.run(pictures()[0])
        assert ort.preloaded == 0  # on the CPU nothing is looked for
        assert ort.said == []


class TestTensorRt:
    def told(self, ort, options=BUILT, model=MODEL, heard=None):
        heard = [] if heard is None else heard
        session = open_session(model, options, heard.append)
        return session, heard

    def test_runs_there_and_says_so(self, ort):
        session, heard = self.told(ort)
        assert session.provider == TENSORRT
        for picture in pictures():
            assert_same(session.run(picture), on_the_cpu(picture))
        assert list(ort.opened[-1]) == [TENSORRT, CUDA, CPU]
        assert ort.sessions[-1].replays == len(pictures()) - 1
        assert heard == [
            Progress("TensorRT prepares the model for this GPU, which takes minutes when it was not done before.", True)
        ]

    def test_says_every_few_seconds_how_long_it_has_taken(self, ort, monkeypatch):
        monkeypatch.setattr(ort_engine, "EVERY", 0.05)
        heard = []
        ort.on_open = lambda: len(ort.opened) == 2 and until(lambda: len(heard) >= 4, "it is told again and again")
        self.told(ort, heard=heard)
        assert all(one.building for one in heard)
        assert re.search(r": \d+ s so far\.$", heard[-1].text)
        after = len(heard)
        time.sleep(0.2)
        assert len(heard) == after

    def test_says_nothing_more_when_it_fails(self, ort, monkeypatch):
        monkeypatch.setattr(ort_engine, "EVERY", 0.02)
        ort.refusing = [EPFail("TensorRT EP failed to create engine from network.")]
        heard = []
        with pytest.raises(AcceleratorMissing, match="TensorRT EP failed to create engine from network"):
            open_session(MODEL, BUILT, heard.append)
        assert not [one for one in threading.enumerate() if one.name == "building"]

    def test_an_agent_that_is_gone_ends_nothing_else(self, ort, monkeypatch):
        monkeypatch.setattr(ort_engine, "EVERY", 0.02)
        calls = []
        ort.on_open = lambda: until(lambda: len(calls) > 1, "it is told again") if len(ort.opened) == 2 else None

        def tell(progress):
            calls.append(progress)
            if len(calls) > 1:
                raise BrokenPipeError

        assert open_session(MODEL, BUILT, tell).provider == TENSORRT
        assert len(calls) > 1

    @pytest.mark.parametrize(("batch", "told"), [("batch", "input:1x3x64x72"), (1, None)])
    def test_the_shapes_that_it_builds_for(self, ort, batch, told):
        session, _ = self.told(ort, model=ModelFiles(networks.mochi(dynamic=[batch, 3, 64, 72]).SerializeToString()))
        given = ort.opened[-1][TENSORRT]
        assert {given.get(f"trt_profile_{one}_shapes") for one in ("min", "opt", "max")} == {told}
        assert_same(session.run(pictures()[0]), on_the_cpu(pictures()[0]))

    def test_nothing_is_recorded_where_a_shape_is_open(self, ort):
        """TensorRT's provider replays a recording whatever a run says of it, and into tensors that are gone by then."""
        model = ModelFiles(networks.mochi(dynamic=["batch", 3, 64, 72]).SerializeToString())
        session, _ = self.told(ort, model=model)
        assert ort.opened[-1][TENSORRT]["trt_cuda_graph_enable"] == "False"
        assert session.run(pictures()[0])[0].shape == on_the_cpu(pictures()[0])[0].shape

    def test_nothing_is_recorded_where_an_output_is_a_scalar(self, ort):
        mean = helper.make_node("ReduceMean", ["x"], ["y"], keepdims=0)
        floats = TensorProto.FLOAT
        graph = helper.make_graph(
            [mean],
            "mean",
            [helper.make_tensor_value_info("x", floats, [1, 4])],
            [helper.make_tensor_value_info("y", floats, [])],
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        session, _ = self.told(ort, model=ModelFiles(proto.SerializeToString()))
        assert ort.opened[-1][TENSORRT]["trt_cuda_graph_enable"] == "False"
        assert session.run(np.full((1, 4), 2, np.float32))[0] == 2

    @pytest.mark.parametrize(("precision", "override"), [("package", "0"), ("fp16", None)])
    def test_floats_are_not_shortened_unless_that_is_wanted(self, ort, monkeypatch, precision, override):
        monkeypatch.setattr(os, "environ", {})
        self.told(ort, replace(BUILT, gpu=replace(BUILT.gpu, precision=precision)))
        assert os.environ.get("NVIDIA_TF32_OVERRIDE") == override

    def test_a_size_that_is_left_open(self, ort):
        model = ModelFiles(networks.mochi(dynamic=["batch", 3, "height", "width"]).SerializeToString())
        with pytest.raises(
            AcceleratorMissing, match=r"size of its input open \(batchx3xheightxwidth\), .* fixed height"
        ):
            open_session(model, BUILT)

    def test_the_model_is_looked_at_on_the_cpu_as_it_is(self, ort):
        self.told(ort)
        assert ort.opened[0] == {CPU: {}}
        assert ort.settings[0].real.graph_optimization_level == real.GraphOptimizationLevel.ORT_DISABLE_ALL


class TestEngines:
    """Engines that the provider keeps, in folders of the engine cache."""

    @pytest.fixture
    def runtime(self, ort) -> FakeOrt:
        """Keeps an engine as the provider does, where it finds none."""
        ort.built = 0

        def build():
            given = ort.opened[-1].get(TENSORRT, {})
            if given.get("trt_engine_cache_enable") == "True":
                engine = Path(given["trt_engine_cache_path"]) / "TensorrtExecutionProvider_0_sm87.engine"
                if not engine.exists():
                    ort.built += 1
                    engine.write_bytes(hashlib.sha256(MODEL.graph).digest())

        ort.on_open = build
        return ort

    @pytest.fixture(autouse=True)
    def _process(self, monkeypatch):
        """Counts the caches of this process, which has as many as sessions, and a worker one."""

        class Kept(ort_engine.EngineCache):
            def __init__(self, *args):
                super().__init__(*args)
                caches.append(self)

        caches: list[Kept] = []
        monkeypatch.setattr(ort_engine, "EngineCache", Kept)
        self.caches = caches
        yield
        self.end_process()

    def end_process(self):
        """Let go of the folders in use, as the end of a process does."""
        for cache in self.caches:
            for held in cache._held.values():
                os.close(held)
            cache._held.clear()

    @staticmethod
    def kept(tmp_path, **gpu) -> SessionOptions:
        return replace(BUILT, gpu=replace(BUILT.gpu, engines=str(tmp_path / "engines"), **gpu))

    def test_is_built_once(self, runtime, tmp_path):
        for _ in range(3):
            assert open_session(MODEL, self.kept(tmp_path)).provider == TENSORRT
        assert runtime.built == 1
        given = runtime.opened[-1][TENSORRT]
        assert given["trt_timing_cache_path"] == given["trt_engine_cache_path"]
        assert given["trt_timing_cache_enable"] == "True"
        assert os.stat(given["trt_engine_cache_path"]).st_mode & 0o777 == 0o700

    @pytest.mark.parametrize("part", ["name", "code", "driver", "precision", "memory_limit", "model", "runtime"])
    def test_is_built_again_for_another(self, runtime, tmp_path, monkeypatch, part):
        open_session(MODEL, self.kept(tmp_path))
        model, changed = MODEL, {}
        if part == "model":
            model = ModelFiles(networks.mochi(seed=2).SerializeToString())
        elif part == "runtime":
            monkeypatch.setattr(FakeOrt, "__version__", "10.0.0")
        else:
            changed = {part: {"precision": "fp16", "memory_limit": 1 << 30}.get(part, "another")}
        open_session(model, self.kept(tmp_path, **changed))
        assert runtime.built == 2

    def test_it_is_the_same_on_another_gpu_of_the_kind(self, runtime, tmp_path):
        for index in (0, 1):
            open_session(MODEL, self.kept(tmp_path, index=index))
        assert runtime.built == 1

    def test_a_damaged_one_is_built_again(self, runtime, tmp_path):
        open_session(MODEL, self.kept(tmp_path))
        (engine,) = (tmp_path / "engines").rglob("*_sm87.engine")
        engine.chmod(0o600)
        engine.write_bytes(b"damaged")
        self.end_process()
        open_session(MODEL, self.kept(tmp_path))
        assert runtime.built == 2

    def test_what_a_failed_build_leaves_is_not_kept(self, runtime, tmp_path):
        runtime.refusing = [EPFail("TensorRT EP failed to create engine from network.")]
        with pytest.raises(AcceleratorMissing):
            open_session(MODEL, self.kept(tmp_path))
        self.end_process()
        open_session(MODEL, self.kept(tmp_path))
        assert runtime.built == 2

    def test_while_another_process_builds_the_same_nothing_is_kept(self, runtime, tmp_path):
        runtime.refusing = [EPFail("TensorRT EP failed to create engine from network.")]
        with pytest.raises(AcceleratorMissing):
            open_session(MODEL, self.kept(tmp_path))
        open_session(MODEL, self.kept(tmp_path))
        assert runtime.opened[-1][TENSORRT]["trt_engine_cache_enable"] == "False"

    def test_none_is_kept_without_a_folder(self, runtime):
        open_session(MODEL, BUILT)
        assert runtime.built == 0
        assert "trt_engine_cache_path" not in runtime.opened[-1][TENSORRT]

    def test_int8_takes_the_packages_calibration(self, runtime, tmp_path):
        model = ModelFiles(MODEL.graph, {"calibration.cache": b"TRT-100300-EntropyCalibration2\ninput: 3c010a14\n"})
        open_session(model, self.kept(tmp_path, precision="int8"))
        given = runtime.opened[-1][TENSORRT]
        assert given["trt_int8_use_native_calibration_table"] == "True"
        file = Path(given["trt_engine_cache_path"]) / given["trt_int8_calibration_table_name"]
        assert file.read_bytes() == model.external["calibration.cache"]
        open_session(model, self.kept(tmp_path, precision="int8"))
        assert runtime.built == 1

    def test_calibration_without_a_folder_to_keep_engines_in(self, runtime):
        found = []

        def look():
            given = runtime.opened[-1].get(TENSORRT)
            if given:
                found.append((Path(given["trt_engine_cache_path"]), given["trt_engine_cache_enable"]))
                assert (found[-1][0] / given["trt_int8_calibration_table_name"]).read_bytes() == b"table"

        runtime.on_open = look
        options = replace(BUILT, gpu=GpuOptions(precision="int8"))
        open_session(ModelFiles(MODEL.graph, {"calibration.cache": b"table"}), options)
        ((folder, kept),) = found
        assert kept == "False"
        assert not folder.exists()

    def test_int8_without_calibration_is_for_models_that_are_quantised(self, runtime):
        open_session(MODEL, replace(BUILT, gpu=GpuOptions(precision="int8")))
        assert runtime.opened[-1][TENSORRT]["trt_int8_enable"] == "True"
        assert "trt_int8_calibration_table_name" not in runtime.opened[-1][TENSORRT]

    def test_no_room_for_the_calibration(self, runtime, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(ort_engine.Path, "write_bytes", full)
        model = ModelFiles(MODEL.graph, {"calibration.cache": b"table"})
        with pytest.raises(AcceleratorMissing, match="calibration for INT8 cannot be written: No space left on device"):
            open_session(model, self.kept(tmp_path, precision="int8"))


def test_the_import_makes_no_context_and_loads_nothing_of_cuda():
    """Processes are forked after it; it is tried in a process of its own, since it takes over signals."""
    look = "import edge_agent._preload; print(open('/proc/self/maps').read())"
    told = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout
    assert "onnxruntime" in told
    assert "libcudart" not in told
    assert "libonnxruntime_providers_cuda" not in told
