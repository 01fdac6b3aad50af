"""Which providers a model gets, with which options, as a table; and what the runtime's messages mean."""

import pytest

from edge_agent.backends import ort_errors, ort_options
from edge_agent.backends.ort_options import CPU, CUDA, TENSORRT, Engine, open_shape, providers, records_graphs
from edge_agent.errors import AcceleratorFailed, AcceleratorMissing, PackageRefused
from edge_agent.jobs import GpuOptions, SessionOptions
from support.fake_onnxruntime import OPTIONS, EPFail, Fail, InvalidProtobuf

ON_CUDA = {
    "device_id": "0",
    "arena_extend_strategy": "kSameAsRequested",
    "cudnn_conv_algo_search": "EXHAUSTIVE",
    "use_tf32": "0",
    "enable_cuda_graph": "0",
}
ON_TENSORRT = {
    "device_id": "0",
    "trt_fp16_enable": "False",
    "trt_int8_enable": "False",
    "trt_cuda_graph_enable": "False",
    "trt_engine_cache_enable": "False",
    "trt_timing_cache_enable": "False",
}
KEPT = {
    "trt_engine_cache_enable": "True",
    "trt_timing_cache_enable": "True",
    "trt_engine_cache_path": "/e",
    "trt_timing_cache_path": "/e",
}
SHAPE = "input:1x3x64x72"


def options(accelerator, **gpu) -> SessionOptions:
    return SessionOptions(accelerator=accelerator, gpu=GpuOptions(**gpu))


@pytest.mark.parametrize(
    ("gpu", "graphs", "changed"),
    [
        ({}, False, {}),
        ({}, True, {"enable_cuda_graph": "1"}),
        ({"index": 2}, False, {"device_id": "2"}),
        ({"memory_limit": 1 << 30}, False, {"gpu_mem_limit": "1073741824"}),
        ({"precision": "fp16"}, False, {"use_tf32": "1"}),
        ({"precision": "int8"}, False, {"use_tf32": "1"}),
    ],
)
def test_cuda(gpu, graphs, changed):
    assert providers(options("cuda", **gpu), graphs=graphs) == [(CUDA, {**ON_CUDA, **changed}), (CPU, {})]


@pytest.mark.parametrize(
    ("gpu", "engine", "graphs", "changed", "of_cuda"),
    [
        ({}, Engine(), False, {}, {}),
        ({}, Engine(), True, {"trt_cuda_graph_enable": "True"}, {}),
        ({"index": 2}, Engine(), False, {"device_id": "2"}, {"device_id": "2"}),
        ({"memory_limit": 9}, Engine(), False, {"trt_max_workspace_size": "9"}, {"gpu_mem_limit": "9"}),
        ({"precision": "fp16"}, Engine(), False, {"trt_fp16_enable": "True"}, {"use_tf32": "1"}),
        (
            {"precision": "int8"},
            Engine(),
            False,
            {"trt_fp16_enable": "True", "trt_int8_enable": "True"},
            {"use_tf32": "1"},
        ),
        ({}, Engine("/e", keep=True), False, KEPT, {}),
        (
            {},
            Engine("/e", calibration="t"),
            False,
            {
                "trt_engine_cache_path": "/e",
                "trt_timing_cache_path": "/e",
                "trt_int8_calibration_table_name": "t",
                "trt_int8_use_native_calibration_table": "True",
            },
            {},
        ),
        ({}, Engine(shape=SHAPE), False, {f"trt_profile_{one}_shapes": SHAPE for one in ("min", "opt", "max")}, {}),
    ],
)
def test_tensorrt(gpu, engine, graphs, changed, of_cuda):
    assert providers(options("tensorrt", **gpu), engine, graphs=graphs) == [
        (TENSORRT, {**ON_TENSORRT, **changed}),
        (CUDA, {**ON_CUDA, **of_cuda}),
        (CPU, {}),
    ]


def test_cpu():
    assert providers(options("cpu"), graphs=True) == [(CPU, {})]


def test_no_option_but_those_that_the_runtime_knows():
    for accelerator in ("cpu", "cuda", "tensorrt"):
        given = options(accelerator, memory_limit=1, precision="int8")
        for name, chosen in providers(given, Engine("/e", keep=True, calibration="t", shape=SHAPE), graphs=True):
            for option, value in chosen.items():
                assert OPTIONS[name][option].fullmatch(value), option


@pytest.mark.parametrize(
    ("given", "graphs"),
    [
        (SessionOptions(accelerator="cuda"), True),
        (SessionOptions(accelerator="tensorrt"), True),
        (SessionOptions(accelerator="cuda", slots=2), False),
        (SessionOptions(accelerator="cuda", gpu=GpuOptions(graphs=False)), False),
        (SessionOptions(), False),
    ],
)
def test_a_recording_is_of_one_thread(given, graphs):
    assert records_graphs(given) is graphs


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ([1, 3, 64, 72], ""),
        (["batch", 3, 64, 72], SHAPE),
        ([None, 3, 64, 72], SHAPE),
        (["batch", 3, "height", 72], ""),
        ([1, 3, None, 72], ""),
    ],
)
def test_only_the_number_of_images_is_known_where_it_is_left_open(shape, told):
    assert open_shape("input", shape) == told


CALL = "bool onnxruntime::CudaCall(ERRTYPE, const char*) [with ERRTYPE = cudaError; bool THRW = true]"
PLACE = "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:154"
WHERE = " ; GPU=0 ; hostname=line-7 ; file=/onnxruntime_src/x.cc ; line=70 ; expr=cudaMemcpy(a, b, c); "
ILLEGAL = "CUDA failure 700: an illegal memory access was encountered"
ARENA = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node. Name:'c' Status "
    "Message: /onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:376 void* onnxruntime::BFCArena::AllocateRawInternal("
    "size_t, bool, onnxruntime::Stream*, std::function<void(int)>) Failed to allocate memory for requested buffer of size 939"
)
NO_ROOM = (
    "The GPU has no memory left: Non-zero status code returned while running Conv node. Name:'c' Status Message: Failed to "
    "allocate memory for requested buffer of size 939."
)
UNPARSED = (
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_execution_provider_info.cc:63 static onnxruntime::Info "
    "onnxruntime::Info::FromProviderOptions(const onnxruntime::ProviderOptions&) [ONNXRuntimeError] : 1 : FAIL : "
    'provider_options_utils.h:187 Parse Failed to parse provider option "device_id": '
)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RuntimeError(f"{PLACE} {CALL} {ILLEGAL}{WHERE}"), f"The GPU failed: {ILLEGAL}."),
        (Fail("CUDNN failure 4000: CUDNN_STATUS_INTERNAL_ERROR" + WHERE), None),
        (Fail("CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED" + WHERE), None),
        (Fail("CUDA failure 2: out of memory" + WHERE), "The GPU failed: CUDA failure 2: out of memory."),
        (Fail("CUDNN_FE failure 11: CUDNN_BACKEND_API_FAILED" + WHERE), None),
        (
            RuntimeError(ARENA),
            NO_ROOM,
        ),
        (
            EPFail("[ONNXRuntimeError] : 11 : EP_FAIL : TensorRT EP execution context enqueue failed."),
            "The GPU failed: TensorRT EP execution context enqueue failed.",
        ),
        (Fail("[ONNXRuntimeError] : 1 : FAIL : TensorRT EP failed to create context."), None),
        (EPFail("\x1b[1m\n"), r"The GPU failed: \x1b[1m."),
    ],
)
def test_what_is_a_failure_of_the_gpu(error, text):
    with pytest.raises(AcceleratorFailed) as caught:
        ort_errors.check_gpu(error)
    told = str(caught.value)
    assert "hostname" not in told
    assert "onnxruntime_src" not in told
    assert told == (text or told)
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize(
    "error",
    [
        Fail("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions for input: input"),
        RuntimeError("Error in execution: Exiting due to terminate flag being set to true."),
        ValueError("failure"),
    ],
)
def test_what_is_none(error):
    ort_errors.check_gpu(error)
    ort_errors.check_arena(error)
    ort_errors.check_memory(error)


@pytest.mark.parametrize("error", [MemoryError("x"), RuntimeError("std::bad_alloc"), Fail("Cannot allocate memory")])
def test_the_machine_has_no_memory_left(error):
    with pytest.raises(MemoryError):
        ort_errors.check_memory(error)


def test_the_cpu_has_no_memory_left():
    with pytest.raises(MemoryError, match="Failed to allocate memory"):
        ort_errors.check_arena(RuntimeError(ARENA))


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            Fail("[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Protobuf parsing failed.\nmore"),
            "Protobuf parsing failed.",
        ),
        (
            Fail("model_path must not be empty"),
            "it keeps its weights in a second file (external data); export it as one file.",
        ),
        (
            Fail("External file: w.bin not found from the table"),
            "it keeps weights in 'w.bin', which package.files does not list beside the model.",
        ),
        (Fail(""), "it gives no reason but Fail."),
        (Fail("x" * 400), "x" * 300 + "..."),
    ],
)
def test_what_is_told_of_a_model_that_does_not_load(error, text):
    assert ort_errors.sentence(error) == text


PLUGINS = (
    "/onnxruntime_src/onnxruntime/python/onnxruntime_pybind_state.cc:729 void onnxruntime::python::Register("
    "PySessionOptions&, const onnxruntime::ProviderOptions&) Please install TensorRT libraries as mentioned.\n"
)
CANNOT = f"ONNX Runtime cannot run the model on {CUDA}:"
INSUFFICIENT = "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version"


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (RuntimeError(UNPARSED + INSUFFICIENT + WHERE), AcceleratorMissing, f"{CANNOT} {INSUFFICIENT}."),
        (
            RuntimeError(UNPARSED + "x.cc:75 operator() Invalid device ID: 3, must be between 0 and 1."),
            AcceleratorMissing,
            f'{CANNOT} Failed to parse provider option "device_id": Invalid device ID: 3, must be between 0 and 1.',
        ),
        (RuntimeError(PLUGINS), AcceleratorMissing, f"{CANNOT} Please install TensorRT libraries as mentioned."),
        (
            EPFail("[ONNXRuntimeError] : 11 : EP_FAIL : TensorRT EP failed to create engine from network."),
            AcceleratorMissing,
            f"{CANNOT} TensorRT EP failed to create engine from network.",
        ),
        (RuntimeError(ILLEGAL + WHERE), AcceleratorFailed, f"The GPU failed: {ILLEGAL}."),
        (RuntimeError(ARENA), AcceleratorFailed, None),
        (MemoryError("x"), MemoryError, "x"),
        (InvalidProtobuf("[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : no"), PackageRefused, None),
        (Fail(""), AcceleratorMissing, f"{CANNOT} Fail."),
    ],
)
def test_what_does_not_load_on_a_gpu(error, kind, text):
    told = ort_errors.not_loaded(error, CUDA)
    assert type(told) is kind
    assert str(told) == (text or str(told))


def test_what_is_wanted_of_each_accelerator():
    assert dict(ort_options.WANTED) == {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}
