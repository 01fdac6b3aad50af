"""CUDA's runtime as `cuda-python` has it, on GPUs of ordinary memory: the real names, signatures, results and order.

What a stream is given is done when it is waited for, and not before; memory that is used and was given back, a stream of
another GPU, a graph that was not instantiated: each is an error here as on a GPU, or `Misuse` where a GPU would crash. The
names and signatures are looked up in the real wheels by tests/accelerators/test_sdk_names.py.
"""

# ruff: noqa: N801, N803, N815  (the real names)

import ctypes
import sys
import threading
from collections import defaultdict
from enum import IntEnum
from importlib.machinery import ModuleSpec
from types import ModuleType

NEW, OLD = "cuda.bindings.runtime", "cuda.cudart"
GARBAGE = 0xA5


class Misuse(AssertionError):
    """What would crash, or go wrong without a word, on a GPU."""


class cudaError_t(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorInvalidDevice = 101
    cudaErrorInvalidResourceHandle = 400
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


class cudaMemcpyKind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaStreamCaptureMode(IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


class cudaStream_t:
    """A stream; `waiting` is what it was given and has not done, `capture` what is recorded instead."""

    _handles = iter(range(0x5000, 1 << 30, 16))

    def __init__(self, device):
        self.handle, self.device = next(self._handles), device
        self.waiting, self.capture, self.broken = [], None, False

    def __int__(self):
        return self.handle

    def put(self, work, *addresses):
        """Take something to do, with the memory that it uses."""
        (self.waiting if self.capture is None else self.capture).append((work, addresses))


class cudaGraph_t:
    def __init__(self, work):
        self.work = work


class cudaGraphExec_t(cudaGraph_t):
    pass


class FakeCuda:
    """Some GPUs, and the runtime's functions (the methods whose names begin with `cuda`)."""

    cudaHostAllocDefault = 0
    cudaStreamNonBlocking = 1

    def __init__(self, devices=2, total=1 << 30):
        self.devices, self.total = devices, total
        self.calls, self.launches = [], 0
        self.memory, self.host, self.streams, self.graphs = {}, {}, {}, []
        self.sticky = None
        self._failing = defaultdict(list)
        self._of_thread = threading.local()

    # What tests ask and tell

    def install(self, monkeypatch, name=NEW):
        """Be what is imported as `name`, with the packages above it, and nothing else of cuda-python."""
        monkeypatch.setitem(sys.modules, "cuda", None)
        for other in (NEW, OLD, "cuda.bindings"):
            monkeypatch.delitem(sys.modules, other, raising=False)
        parts = name.split(".")
        for depth in range(1, len(parts)):
            package = ModuleType(".".join(parts[:depth]))
            package.__path__, package.__spec__ = [], ModuleSpec(package.__name__, None, is_package=True)
            monkeypatch.setitem(sys.modules, package.__name__, package)
        monkeypatch.setitem(sys.modules, name, self.module(name))
        return self

    def module(self, name=NEW):
        made = ModuleType(name)
        made.__spec__ = ModuleSpec(name, None)
        for one in (cudaError_t, cudaMemcpyKind, cudaStreamCaptureMode):
            setattr(made, one.__name__, one)
        for one in dir(self):
            if one.startswith("cuda"):
                value = getattr(self, one)
                setattr(made, one, self._called(value) if callable(value) else value)
        return made

    def fail(self, name, error, after=0):
        """Let a function fail with an error's number, or raise an exception, after so many calls that do not."""
        self._failing[name].append([after, error])

    @property
    def device(self):
        return getattr(self._of_thread, "device", 0)

    def used(self, device):
        return sum(len(buffer) for owner, buffer in self.memory.values() if owner == device)

    def left(self):
        """What was not given back, by its kind."""
        kinds = {"memory": self.memory, "host": self.host, "streams": self.streams, "graphs": self.graphs}
        return {kind: len(one) for kind, one in kinds.items() if one}

    def at(self, address, size, *kinds):
        """Check that there are `size` bytes at an address, in the GPU's memory or the host's pinned."""
        for known in kinds or (self.memory,):
            for begin, (_, buffer) in known.items():
                if begin <= address and address + size <= begin + len(buffer):
                    return
        raise Misuse(f"{size} bytes at {address:#x} are not what was allocated")

    def stream_of(self, handle):
        if handle not in self.streams:
            raise Misuse(f"there is no stream {handle:#x}")
        return self.streams[handle]

    # The functions

    def cudaSetDevice(self, device):
        if not 0 <= device < self.devices:
            return (cudaError_t.cudaErrorInvalidDevice,)
        self._of_thread.device = device
        return (cudaError_t.cudaSuccess,)

    def cudaMemGetInfo(self):
        return cudaError_t.cudaSuccess, self.total - self.used(self.device), self.total

    def cudaMalloc(self, size):
        if size <= 0:
            raise Misuse("cudaMalloc of nothing returns no address")
        if self.used(self.device) + size > self.total:
            return cudaError_t.cudaErrorMemoryAllocation, None
        return cudaError_t.cudaSuccess, self._allocate(self.memory, self.device, size)

    def cudaFree(self, devPtr):
        self._given_back(self.memory, devPtr)
        return (cudaError_t.cudaSuccess,)

    def cudaHostAlloc(self, size, flags):
        assert flags == self.cudaHostAllocDefault
        return cudaError_t.cudaSuccess, self._allocate(self.host, None, size)

    def cudaFreeHost(self, ptr):
        self._given_back(self.host, ptr)
        return (cudaError_t.cudaSuccess,)

    def cudaStreamCreateWithFlags(self, flags):
        assert flags == self.cudaStreamNonBlocking
        stream = cudaStream_t(self.device)
        self.streams[int(stream)] = stream
        return cudaError_t.cudaSuccess, stream

    def cudaStreamDestroy(self, stream):
        if self._usable(stream).waiting:
            raise Misuse("a stream is destroyed that was not waited for")
        del self.streams[int(stream)]
        return (cudaError_t.cudaSuccess,)

    def cudaStreamSynchronize(self, stream):
        if self._usable(stream).device != self.device:
            return (cudaError_t.cudaErrorInvalidResourceHandle,)
        if stream.capture is not None:
            stream.broken = True
            return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
        while stream.waiting:
            stream.waiting.pop(0)[0]()
        return (cudaError_t.cudaSuccess,)

    def cudaMemcpyAsync(self, dst, src, count, kind, stream):
        if self._usable(stream).device != self.device:
            return (cudaError_t.cudaErrorInvalidResourceHandle,)
        if stream.broken:
            return (cudaError_t.cudaErrorStreamCaptureInvalidated,)
        inward = kind == cudaMemcpyKind.cudaMemcpyHostToDevice
        self.at(dst, count, self.memory if inward else self.host)
        self.at(src, count, self.host if inward else self.memory)
        stream.put(lambda: ctypes.memmove(dst, src, count), dst, src)
        return (cudaError_t.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream, mode):
        assert mode == cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        if self._usable(stream).waiting or stream.capture is not None:
            raise Misuse("a stream is recorded that has something to do, or is recorded already")
        stream.capture = []
        return (cudaError_t.cudaSuccess,)

    def cudaStreamEndCapture(self, stream):
        if self._usable(stream).capture is None:
            raise Misuse("a stream is not recorded")
        work, stream.capture = stream.capture, None
        if stream.broken:
            return cudaError_t.cudaErrorStreamCaptureInvalidated, None
        graph = cudaGraph_t(work)
        self.graphs.append(graph)
        return cudaError_t.cudaSuccess, graph

    def cudaGraphInstantiate(self, graph, flags):
        assert flags == 0
        if type(graph) is not cudaGraph_t or graph not in self.graphs:
            raise Misuse("that is no graph")
        made = cudaGraphExec_t(graph.work)
        self.graphs.append(made)
        return cudaError_t.cudaSuccess, made

    def cudaGraphDestroy(self, graph):
        assert type(graph) is cudaGraph_t
        self.graphs.remove(graph)
        return (cudaError_t.cudaSuccess,)

    def cudaGraphExecDestroy(self, graphExec):
        assert type(graphExec) is cudaGraphExec_t
        self.graphs.remove(graphExec)
        return (cudaError_t.cudaSuccess,)

    def cudaGraphLaunch(self, graphExec, stream):
        if type(graphExec) is not cudaGraphExec_t or graphExec not in self.graphs:
            raise Misuse("a graph is launched that was not instantiated, or was destroyed")
        if self._usable(stream).device != self.device:
            return (cudaError_t.cudaErrorInvalidResourceHandle,)
        self.launches += 1
        stream.waiting.extend(graphExec.work)
        return (cudaError_t.cudaSuccess,)

    def cudaGetErrorName(self, error):
        return cudaError_t.cudaSuccess, cudaError_t(error).name.encode()

    def cudaGetErrorString(self, error):
        texts = {2: b"out of memory", 101: b"invalid device ordinal", 700: b"an illegal memory access was encountered"}
        return cudaError_t.cudaSuccess, texts.get(int(error), b"something is wrong")

    # How they are called

    def _called(self, function):
        def called(*arguments):
            self.calls.append(name)
            if name not in {"cudaGetErrorName", "cudaGetErrorString"} and (error := self._failure(name)):
                return error
            return function(*arguments)

        name = called.__name__ = function.__name__
        return called

    def _failure(self, name):
        """The result of a function that fails now; a GPU whose memory was violated fails for good."""
        code = self.sticky
        for one in self._failing[name]:
            if one[0] == 0:
                if isinstance(one[1], Exception):
                    raise one[1]
                code = one[1] if code is None else code
            one[0] -= 1
        if code is None:
            return None
        if code == cudaError_t.cudaErrorIllegalAddress:
            self.sticky = code
        return cudaError_t(code), *[None] * RETURNING.get(name, 0)

    def _allocate(self, kind, owner, size):
        buffer = (ctypes.c_ubyte * size).from_buffer(bytearray([GARBAGE]) * size)
        address = ctypes.addressof(buffer)
        kind[address] = owner, buffer
        return address

    def _given_back(self, kind, address):
        if address not in kind:
            raise Misuse(f"{address:#x} was not allocated, or was given back")
        for work in [one.waiting for one in self.streams.values()] + [one.work for one in self.graphs]:
            if any(address in addresses for _, addresses in work):
                raise Misuse("memory is given back that a stream or what was recorded uses")
        del kind[address]

    def _usable(self, stream):
        if not isinstance(stream, cudaStream_t):
            raise Misuse(f"{stream!r} is no stream")
        return self.stream_of(int(stream))


# How much functions return besides their error.
RETURNING = {
    "cudaMemGetInfo": 2,
    "cudaMalloc": 1,
    "cudaHostAlloc": 1,
    "cudaStreamCreateWithFlags": 1,
    "cudaStreamEndCapture": 1,
    "cudaGraphInstantiate": 1,
}
