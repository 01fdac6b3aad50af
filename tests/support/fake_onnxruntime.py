"""ONNX Runtime with GPUs that are none: its real CPU provider, in the place of CUDA's and TensorRT's, as strict as they.

Names of options: the strings in libonnxruntime_providers_cuda.so and libonnxruntime_providers_tensorrt.so of
onnxruntime-gpu 1.31.1, which tests/accelerators looks up in the wheel, and has the runtime itself parse. How it refuses:
messages of that very build.
"""

import os
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as real

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
NUMBER, FLAG, WORD = re.compile(r"\d+"), re.compile("[01]"), re.compile("True|False")
TEXT = re.compile(".+")
SHAPE = re.compile(r"[^:,]+:\d+(x\d+)*(,[^:,]+:\d+(x\d+)*)*")
# What each option of each provider takes.
OPTIONS: dict[str, dict[str, re.Pattern[str]]] = {
    CUDA: {
        "device_id": NUMBER,
        "gpu_mem_limit": NUMBER,
        "arena_extend_strategy": re.compile("kNextPowerOfTwo|kSameAsRequested"),
        "cudnn_conv_algo_search": re.compile("EXHAUSTIVE|HEURISTIC|DEFAULT"),
        "use_tf32": FLAG,
        "enable_cuda_graph": FLAG,
    },
    TENSORRT: {
        "device_id": NUMBER,
        "trt_max_workspace_size": NUMBER,
        "trt_fp16_enable": WORD,
        "trt_int8_enable": WORD,
        "trt_int8_calibration_table_name": TEXT,
        "trt_int8_use_native_calibration_table": WORD,
        "trt_engine_cache_enable": WORD,
        "trt_engine_cache_path": TEXT,
        "trt_timing_cache_enable": WORD,
        "trt_timing_cache_path": TEXT,
        "trt_cuda_graph_enable": WORD,
        "trt_profile_min_shapes": SHAPE,
        "trt_profile_opt_shapes": SHAPE,
        "trt_profile_max_shapes": SHAPE,
    },
    CPU: {},
}
RECORDS = {(CUDA, "enable_cuda_graph", "1"), (TENSORRT, "trt_cuda_graph_enable", "True")}


class Fail(Exception):
    """What the runtime raises of most that goes wrong."""


class EPFail(Exception):
    """What it raises when a provider fails on its device."""


class InvalidProtobuf(Exception):
    """What it raises of bytes that are no model."""


class FakeOrt:
    """The module `onnxruntime`, as far as the backend may use it: any other name of it raises AttributeError.

    `used` are the providers that a session really gets, of the others stderr has the `cause`; `refusing` is raised by the
    next sessions on a GPU, and `failing` by the next runs, one each, None is none.
    """

    __version__ = "9.9.9"
    GraphOptimizationLevel = real.GraphOptimizationLevel

    def __init__(self, listed=(TENSORRT, CUDA, CPU), used=None, cause="libcublasLt.so.13: cannot open"):
        self.cause = cause
        self.strict = True
        self.listed = list(listed)
        self.used = list(listed) if used is None else list(used)
        self.opened: list[dict[str, dict[str, str]]] = []
        self.settings: list[Any] = []
        self.refusing: list[Exception] = []
        self.failing: list[Exception | None] = []
        self.said: list[int] = []
        self.preloaded = 0
        self.elsewhere: list[tuple[str, list[str]]] = []
        self.on_open = lambda: None
        self.sessions: list[Any] = []
        fake = self

        class Session(_Session):
            def __init__(self, graph, settings, providers, enable_fallback):
                assert enable_fallback == 0
                super().__init__(fake, graph, settings, providers)

        self.InferenceSession = Session
        self.OrtValue = SimpleNamespace(ortvalue_from_shape_and_type=self._value)
        self.RunOptions = _RunOptions
        self.SessionOptions = _SessionOptions

    def get_available_providers(self):
        return list(self.listed)

    def set_default_logger_severity(self, level):
        self.said.append(level)

    def preload_dlls(self):
        print("Failed to load libcublasLt.so.13")
        self.preloaded += 1

    def _value(self, shape, kind, device, index):
        assert self.preloaded, "CUDA's libraries are looked for before anything is put on the GPU"
        return _Value(shape, kind, device, index)


class _SessionOptions:
    """Real options, whose entries can be looked at."""

    def __init__(self):
        self.__dict__["real"] = real.SessionOptions()
        self.__dict__["entries"] = {}

    def __setattr__(self, name, value):
        setattr(self.real, name, value)

    def add_session_config_entry(self, key, value):
        self.entries[key] = value
        self.real.add_session_config_entry(key, value)

    def add_external_initializers_from_files_in_memory(self, names, contents, sizes):
        self.entries["external"] = names
        self.real.add_external_initializers_from_files_in_memory(names, contents, sizes)


class _RunOptions:
    def __init__(self):
        self.__dict__["real"] = real.RunOptions()
        self.__dict__["entries"] = {}

    def __setattr__(self, name, value):
        setattr(self.real, name, value)

    def add_run_config_entry(self, key, value):
        self.entries[key] = value
        self.real.add_run_config_entry(key, value)


class _Value:
    """A tensor on a device: its numbers are in real memory of the CPU."""

    def __init__(self, shape, kind, device, index):
        self.device, self.index, self.kind = device, index, np.dtype(kind)
        self.real = real.OrtValue.ortvalue_from_shape_and_type(shape, kind, "cpu", 0)

    def update_inplace(self, data):
        # The real one takes any bytes of as many elements, be it for numbers of another type.
        assert data.dtype == self.kind
        assert data.flags.c_contiguous
        self.real.update_inplace(data)


class _Session:
    def __init__(self, fake, graph, settings, providers):
        self.fake = fake
        given = {one: {} for one in providers if isinstance(one, str)} or dict(providers)
        fake.opened.append(given)
        fake.settings.append(settings)
        fake.on_open()
        for name, options in given.items():
            _parse(name, options)
            if name not in fake.used and fake.said[-1:] != [4]:
                os.write(2, f"Failed to load library x.so with error: {fake.cause}\n".encode())
            if name == TENSORRT not in fake.used and fake.strict:
                raise RuntimeError(
                    "x.cc:729 Please install TensorRT libraries as mentioned in the GPU requirements page"
                )
        on_gpu = len(providers) > 1
        if on_gpu and fake.refusing:
            raise fake.refusing.pop(0)
        try:
            self.real = real.InferenceSession(graph, settings.real, providers=[CPU], enable_fallback=0)
        except Exception as error:
            raise InvalidProtobuf(str(error)) from None
        self.providers = [name for name in given if name in fake.used]
        self.recording = any((name, *one) in RECORDS for name, options in given.items() for one in options.items())
        self.recorded: Any = None
        self.runs = self.replays = 0
        self._model_bytes = graph
        fake.sessions.append(self)

    def get_providers(self):
        return self.providers

    def get_inputs(self):
        return self.real.get_inputs()

    def get_outputs(self):
        return self.real.get_outputs()

    def get_provider_graph_assignment_info(self):
        return [
            SimpleNamespace(ep_name=name, get_nodes=lambda kinds=kinds: [SimpleNamespace(op_type=one) for one in kinds])
            for name, kinds in self.fake.elsewhere
        ]

    def io_binding(self):
        return _Binding(self)

    def run(self, names, feed, running=None):
        assert self.providers == [CPU] or running is None, "on a GPU tensors are bound, but for the probe's"
        return self.real.run(names, feed, running and running.real)

    def run_with_iobinding(self, binding, running):
        """Run, and where launches are recorded do with the very tensors of the recording what a replay does."""
        self.runs += 1
        if self.fake.failing and (error := self.fake.failing.pop(0)):
            raise error
        recorded = self.recording and (TENSORRT in self.providers or running.entries.get("gpu_graph_id") != "-1")
        if recorded and self.recorded is not None:
            self.replays += 1
            binding = self.recorded
        if recorded:
            assert set(binding.devices) == {"cuda"}, "a replay copies nothing between the CPU and the GPU"
            self.recorded = binding
        self.real.run_with_iobinding(binding.real, running.real)


class _Binding:
    def __init__(self, session):
        self.real = session.real.io_binding()
        self.devices: list[str] = []
        self.values: list[Any] = []

    def bind_ortvalue_input(self, name, value):
        self._bind(value)
        self.real.bind_ortvalue_input(name, value.real)

    def bind_ortvalue_output(self, name, value):
        self._bind(value)
        self.real.bind_ortvalue_output(name, value.real)

    def bind_output(self, name, device):
        self.devices.append(device)
        self.real.bind_output(name, device)

    def copy_outputs_to_cpu(self):
        return self.real.copy_outputs_to_cpu()

    def _bind(self, value):
        self.devices.append(value.device)
        self.values.append(value)


def _parse(provider, options):
    """Refuse what the real providers refuse, in their words."""
    for name, value in options.items():
        assert isinstance(value, str)
        takes = OPTIONS[provider].get(name)
        if takes is None:
            raise RuntimeError(f'provider_options_utils.h:182 Parse Unknown provider option: "{name}".')
        if not takes.fullmatch(value):
            raise RuntimeError(f'provider_options_utils.h:187 Parse Failed to parse provider option "{name}"')
