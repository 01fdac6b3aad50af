"""TensorRT as its Python package has it, by version: the real names, signatures, results and order, computed by ONNX Runtime.

An engine is the ONNX model itself and what it was built with (`FakeTensorRt.told_of` reads that from its bytes); it runs on
the memory and the streams of a fake_cuda.FakeCuda. Setting or reading a name that the real class does not have fails, as it
does there; what the real one says only in its log, it says there. The names and signatures are looked up in the real wheels
by tests/accelerators/test_sdk_names.py.
"""

# ruff: noqa: A002, N806, F841, G004  (the real names)

import ctypes
import json
import math
import sys
import threading
import weakref
from importlib.machinery import ModuleSpec
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto

from support.fake_cuda import FakeCuda, Misuse

# Version of a wheel -> what is imported.
VERSIONS = ("10.3.0", "10.16.1.11", "11.4.0.106")
# DataType: its numbers, and ONNX's.
TYPES = {
    "FLOAT": (0, TensorProto.FLOAT),
    "HALF": (1, TensorProto.FLOAT16),
    "INT8": (2, TensorProto.INT8),
    "INT32": (3, TensorProto.INT32),
    "BOOL": (4, TensorProto.BOOL),
    "UINT8": (5, TensorProto.UINT8),
    "BF16": (7, TensorProto.BFLOAT16),
    "INT64": (8, TensorProto.INT64),
}
# Operators whose outputs are as large as the numbers have it.
DEPENDENT = {"NonZero"}
IMAGES = {TensorProto.FLOAT, TensorProto.UINT8}
PHASES = (("Building Engine", None, 2), ("Timing graph nodes", "Building Engine", 3))


class Member:
    """A member of one of pybind11's enumerations: it has a name and an int, and no order."""

    def __init__(self, of, name, number):
        self.of, self.name, self.number = of, name, number

    def __int__(self):
        return self.number

    def __repr__(self):
        return f"<{self.of}.{self.name}: {self.number}>"


def enumeration(name, **members):
    return type(name, (), {one: Member(name, one, number) for one, number in members.items()})


class Strict:
    """A class of pybind11's: only what it declares can be set, and a subclass initialises it by name."""

    _properties = ()

    def __setattr__(self, name, value):
        if not name.startswith("_") and name not in self._properties:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        object.__setattr__(self, name, value)


class Base:
    """A class that is made to be subclassed; one that was not initialised is refused with TypeError."""

    def __init__(self):
        self._initialised = True


def ready(one, base):
    if not isinstance(one, base) or not getattr(one, "_initialised", False):
        raise TypeError(f"{base.__name__}.__init__() must be called when overriding __init__")
    return one


class FakeTensorRt:
    """The module of a version, on the GPUs of a FakeCuda, and what tests ask of it and tell it."""

    def __init__(self, cuda: FakeCuda, version=VERSIONS[1]):
        self.cuda, self.version = cuda, version
        self.typed_only = int(version.split(".")[0]) >= 11
        # Operators that the parser refuses; what its log says of a build, a load or a run that fails, by what it is.
        self.refuses, self.fails = set(), {}
        self.builds, self.loads, self.contexts = 0, 0, []
        self.while_building = lambda: None
        self.plugins = False
        self.module = _module(self)

    def install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "tensorrt", self.module)
        return self

    @staticmethod
    def told_of(plan):
        """What an engine was built with."""
        return json.loads(bytes(plan).partition(b"\0")[0])

    def failing(self, what, logger):
        """Whether something is to fail now, which is logged as it is really."""
        if what not in self.fails:
            return False
        for line in self.fails[what]:
            logger.log(self.module.ILogger.Severity.ERROR, line)
        return True


def _module(fake):
    made = ModuleType("tensorrt")
    made.__spec__ = ModuleSpec("tensorrt", None)
    made.__version__ = fake.version

    def public(one):
        setattr(made, one.__name__, one)
        return one

    precisions = {} if fake.typed_only else {"FP16": 0, "INT8": 1}
    BuilderFlag = public(enumeration("BuilderFlag", TF32=6, **precisions))
    MemoryPoolType = public(enumeration("MemoryPoolType", WORKSPACE=0))
    TensorIOMode = public(enumeration("TensorIOMode", INPUT=1, OUTPUT=2))
    DataType = public(enumeration("DataType", **{name: number for name, (number, _) in TYPES.items()}))
    creation = {"STRONGLY_TYPED": 0} if fake.typed_only else {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}
    NetworkDefinitionCreationFlag = public(enumeration("NetworkDefinitionCreationFlag", **creation))

    @public
    class ILogger(Base):
        Severity = enumeration("Severity", INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3, VERBOSE=4)

        def log(self, severity, msg):
            raise Misuse("log must be overridden")

    @public
    class IProgressMonitor(Base):
        def phase_start(self, phase_name, parent_phase, num_steps):
            raise Misuse("phase_start must be overridden")

        def step_complete(self, phase_name, step):
            raise Misuse("step_complete must be overridden")

        def phase_finish(self, phase_name):
            raise Misuse("phase_finish must be overridden")

    if not fake.typed_only:

        @public
        class IInt8EntropyCalibrator2(Base):
            def get_batch_size(self):
                raise Misuse("get_batch_size must be overridden")

            def get_batch(self, names):
                raise Misuse("get_batch must be overridden")

            def read_calibration_cache(self):
                raise Misuse("read_calibration_cache must be overridden")

            def write_calibration_cache(self, cache):
                raise Misuse("write_calibration_cache must be overridden")

    @public
    class IHostMemory(Strict):
        def __init__(self, data):
            self._data = data

        def __bytes__(self):
            return self._data

    @public
    class ITimingCache(Strict):
        def __init__(self, entries):
            self._entries = entries

        def serialize(self):
            return IHostMemory(b"timing " + json.dumps(self._entries).encode())

    @public
    class ITensor(Strict):
        def __init__(self, name, shape):
            self._name, self._shape = name, shape

        @property
        def name(self):
            return self._name

        @property
        def shape(self):
            return self._shape

    @public
    class IOptimizationProfile(Strict):
        def __init__(self):
            self._shapes = {}

        def set_shape(self, input, min, opt, max):
            assert len(min) == len(opt) == len(max)
            self._shapes[input] = list(min), list(opt), list(max)

    @public
    class INetworkDefinition(Strict):
        def __init__(self, flags):
            self._typed, self._onnx, self._inputs = fake.typed_only or bool(flags), None, []

        @property
        def num_inputs(self):
            return len(self._inputs)

        def get_input(self, index):
            return self._inputs[index]

    @public
    class IBuilderConfig(Strict):
        _properties = ("progress_monitor",) if fake.typed_only else ("progress_monitor", "int8_calibrator")

        def __init__(self):
            self._flags, self._pools, self._timing, self._profiles = {"TF32"}, {}, None, []
            self.progress_monitor = None
            if not fake.typed_only:
                self.int8_calibrator = None

        def __setattr__(self, name, value):
            if name == "progress_monitor" and value is not None:
                ready(value, IProgressMonitor)
            if name == "int8_calibrator" and value is not None:
                ready(value, IInt8EntropyCalibrator2)
            super().__setattr__(name, value)

        def set_flag(self, flag):
            assert flag.of == "BuilderFlag"
            self._flags.add(flag.name)

        def clear_flag(self, flag):
            assert flag.of == "BuilderFlag"
            self._flags.discard(flag.name)

        def set_memory_pool_limit(self, pool, pool_size):
            assert pool is MemoryPoolType.WORKSPACE
            self._pools[pool.name] = pool_size

        def create_timing_cache(self, serialized_timing_cache):
            kept = bytes(serialized_timing_cache)
            if kept and not kept.startswith(b"timing "):
                return None
            return ITimingCache(json.loads(kept[7:]) if kept else {"gpu": 0, "layers": []})

        def set_timing_cache(self, cache, ignore_mismatch):
            if cache._entries["gpu"] != 0 and not ignore_mismatch:
                return False
            self._timing = cache
            return True

        def add_optimization_profile(self, profile):
            if "profile" in fake.fails:
                return -1
            self._profiles.append(profile._shapes)
            return len(self._profiles) - 1

    @public
    class Builder(Strict):
        def __init__(self, logger):
            if "start" in fake.fails:
                raise TypeError("pybind11::init(): factory function returned nullptr")
            self._logger = ready(logger, ILogger)
            self._device = fake.cuda.device

        def create_network(self, flags=0):
            known = 1 << int(NetworkDefinitionCreationFlag.STRONGLY_TYPED)
            assert flags in {0, known}
            return INetworkDefinition(flags & known)

        def create_builder_config(self):
            return IBuilderConfig()

        def create_optimization_profile(self):
            return IOptimizationProfile()

        def build_serialized_network(self, network, config):
            fake.builds += 1
            assert network._onnx is not None, "nothing was parsed"
            told = {"version": fake.version, "device": self._device, "typed": network._typed}
            told |= {"flags": sorted(config._flags), "pools": config._pools, "profiles": config._profiles}
            error = self._why_not(network, config, told)
            if not self._steps(config.progress_monitor):
                error = "Error Code 1: Cancelled"
            fake.while_building()
            if fake.failing("build", self._logger):
                return None
            if error:
                self._logger.log(ILogger.Severity.ERROR, f"[builder.cpp::build::42] {error}")
                return None
            if config._timing is not None:
                told["measured before"] = len(config._timing._entries["layers"])
                config._timing._entries["layers"].append("conv")
            self._logger.log(ILogger.Severity.INFO, "Engine generation completed.")
            self._logger.log(ILogger.Severity.VERBOSE, "not even this")
            return IHostMemory(json.dumps(told).encode() + b"\0" + network._onnx)

        @staticmethod
        def _why_not(network, config, told):
            """Why the real one would not build that, empty if it would."""
            if network._typed and {"FP16", "INT8"} & config._flags:
                return "API Usage Error (precision flags on a strongly typed network)"
            if any(-1 in one.shape for one in network._inputs) and not config._profiles:
                return "API Usage Error (Network has dynamic inputs but no optimization profile)"
            if "INT8" in config._flags:
                calibrator = config.int8_calibrator
                told["calibration"] = (calibrator.read_calibration_cache() or b"").decode()
                assert calibrator.get_batch_size() == 1
                calibrator.write_calibration_cache(b"")
                if not told["calibration"].startswith("TRT") and calibrator.get_batch(["input"]) is None:
                    return "Calibration failed: no data"
            return ""

        @staticmethod
        def _steps(monitor):
            """Go through the phases of a build, in a thread as the real one does; return whether to go on."""
            if monitor is None:
                return True
            going = [True]

            def work():
                for name, parent, steps in PHASES:
                    monitor.phase_start(name, parent, steps)
                    going.extend(monitor.step_complete(name, step) for step in range(steps))
                for name, _, _ in reversed(PHASES):
                    monitor.phase_finish(name)

            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            assert all(type(one) is bool for one in going)
            return all(going)

    @public
    class ParserError(Strict):
        def __init__(self, desc, node_name="", node_operator=""):
            self._told = desc, node_name, node_operator

        def desc(self):
            return self._told[0]

        def node_name(self):
            return self._told[1]

        def node_operator(self):
            return self._told[2]

    @public
    class OnnxParser(Strict):
        def __init__(self, network, logger):
            self._network, self._errors = network, []
            ready(logger, ILogger)

        @property
        def num_errors(self):
            return len(self._errors)

        def get_error(self, index):
            return self._errors[index]

        def parse(self, model, path=None):
            if path is not None:
                raise Misuse("a file that was not checked is read")
            if "parse" in fake.fails:
                return False
            parsed = onnx.load_from_string(bytes(model))
            if any(one.data_location == TensorProto.EXTERNAL for one in parsed.graph.initializer):
                self._errors.append(ParserError("Failed to open file: weights\n"))
            for node in parsed.graph.node:
                if node.op_type in fake.refuses:
                    self._errors.append(
                        ParserError(f"No importer registered for op: {node.op_type}.", node.name, node.op_type)
                    )
            if self._errors:
                return False
            self._network._onnx = bytes(model)
            self._network._inputs = [ITensor(one.name, shape_of(one)) for one in parsed.graph.input]
            return True

    @public
    class Runtime(Strict):
        def __init__(self, logger):
            if "start" in fake.fails:
                raise TypeError("pybind11::init(): factory function returned nullptr")
            self._logger = ready(logger, ILogger)

        def deserialize_cuda_engine(self, serialized_engine):
            fake.loads += 1
            assert fake.plugins, "an engine may need the plugins"
            head, _, model = bytes(serialized_engine).partition(b"\0")
            if fake.failing("load", self._logger):
                return None
            if not head.startswith(b"{") or json.loads(head)["version"] != fake.version:
                self._logger.log(ILogger.Severity.ERROR, "Error Code 1: Serialization (version tag does not match)")
                return None
            return ICudaEngine(self, json.loads(head), model)

    @public
    class ICudaEngine(Strict):
        def __init__(self, runtime, told, model):
            self._runtime, self._told = runtime, told
            graph = onnx.load_from_string(model).graph
            self._inputs = {one.name: one for one in graph.input}
            self._outputs = {one.name: one for one in graph.output}
            # Not in the model's order, which the real one does not promise.
            self._names = [*sorted(self._inputs), *sorted(self._outputs)]
            self._session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
            self._sizes = {}
            images = [one.type.tensor_type.elem_type in IMAGES for one in graph.input]
            if images == [True] and not {one.op_type for one in graph.node} & DEPENDENT:
                self._sizes = self._found()

        def _found(self):
            """The outputs' sizes, which a file may leave open though they are not."""
            ((name, value),) = self._inputs.items()
            shape = [1 if one == -1 else one for one in shape_of(value)]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            run = self._session.run(list(self._outputs), {name: np.zeros(shape, dtype)})
            sizes = {one: list(array.shape) for one, array in zip(self._outputs, run, strict=True)}
            if shape_of(value)[:1] == (-1,):
                sizes = {one: [-1, *size[1:]] for one, size in sizes.items()}
            return sizes

        def _value(self, name):
            return self._inputs.get(name) or self._outputs[name]

        @property
        def num_io_tensors(self):
            return len(self._names)

        def get_tensor_name(self, index):
            return self._names[index]

        def get_tensor_mode(self, name):
            return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

        def get_tensor_shape(self, name):
            return tuple(self._sizes.get(name, shape_of(self._value(name))))

        def get_tensor_dtype(self, name):
            kind = self._value(name).type.tensor_type.elem_type
            return getattr(DataType, next(one for one, (_, number) in TYPES.items() if number == kind))

        def create_execution_context(self):
            if fake.failing("context", self._runtime._logger):
                return None
            return IExecutionContext(self)

    @public
    class IExecutionContext(Strict):
        def __init__(self, engine):
            self._engine, self._shapes, self._addresses = engine, {}, {}
            self._device, self._ran = fake.cuda.device, False
            fake.contexts.append(weakref.ref(self))

        def set_input_shape(self, name, shape):
            if "shape" in fake.fails:
                return False
            assert name in self._engine._inputs
            lowest, _, highest = self._engine._told["profiles"][0][name]
            if not all(low <= one <= high for low, one, high in zip(lowest, shape, highest, strict=True)):
                return False
            self._shapes[name] = tuple(shape)
            return True

        def get_tensor_shape(self, name):
            if name in self._engine._inputs:
                return self._shapes.get(name, self._engine.get_tensor_shape(name))
            shape = self._engine.get_tensor_shape(name)
            open_batch = {one[0] for one in self._shapes.values()}
            return (next(iter(open_batch)), *shape[1:]) if shape and shape[0] == -1 and open_batch else shape

        def set_tensor_address(self, name, memory):
            if fake.failing("address", self._engine._runtime._logger):
                return False
            shape = self.get_tensor_shape(name)
            if -1 in shape:
                raise Misuse(f"the shape of {name} is not known yet")
            fake.cuda.at(memory, math.prod(shape) * self._type(name).itemsize, fake.cuda.memory)
            self._addresses[name] = memory
            return True

        def execute_async_v3(self, stream_handle):
            if type(stream_handle) is not int:
                raise TypeError("incompatible function arguments")
            stream = fake.cuda.stream_of(stream_handle)
            if set(self._addresses) != set(self._engine._names):
                raise Misuse("a tensor has no address")
            if not fake.cuda.device == stream.device == self._device:
                raise Misuse("the context, the stream and the thread are of different GPUs")
            if stream.capture is not None and not self._ran:
                raise Misuse("the first run sets things up, which cannot be recorded")
            what = "run" if stream.capture is None else "recorded run"
            if fake.failing(what, self._engine._runtime._logger):
                return False
            self._ran = True
            stream.put(self._compute, *self._addresses.values())
            return True

        def _type(self, name):
            return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(TYPES[self._engine.get_tensor_dtype(name).name][1]))

        def _array(self, name):
            shape, dtype, address = self.get_tensor_shape(name), self._type(name), self._addresses[name]
            size = math.prod(shape) * dtype.itemsize
            fake.cuda.at(address, size, fake.cuda.memory)
            return np.frombuffer((ctypes.c_ubyte * size).from_address(address), dtype).reshape(shape)

        def _compute(self):
            names = list(self._engine._outputs)
            given = {name: self._array(name) for name in self._engine._inputs}
            for name, value in zip(names, self._engine._session.run(names, given), strict=True):
                np.copyto(self._array(name), value)

    def init_libnvinfer_plugins(logger, namespace):
        ready(logger, ILogger)
        assert namespace == ""
        fake.plugins = True
        return True

    public(init_libnvinfer_plugins)
    return made


def shape_of(value):
    """A tensor's shape as TensorRT has it: what is open is -1."""
    return tuple(
        one.dim_value if one.WhichOneof("value") == "dim_value" else -1 for one in value.type.tensor_type.shape.dim
    )
