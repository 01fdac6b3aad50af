"""CUDA's runtime through NVIDIA's `cuda-python`: the only module that knows it.

Its functions are those of the runtime (https://docs.nvidia.com/cuda/cuda-runtime-api/, "Device Management", "Memory
Management", "Stream Management", "Graph Management"), named and called as in
https://nvidia.github.io/cuda-python/cuda-bindings/latest/module/runtime.html: each returns a tuple, its cudaError_t first
and None for what it could not make. They stand in `cuda.bindings.runtime` from 12.8 on and in `cuda.cudart` before, with
the same signatures from 12.2 to 13: also cudaGraphInstantiate(graph, flags), which had more arguments in CUDA 11. Where
there is no driver, older ones raise RuntimeError, and newer ones return an error.
"""

import contextlib
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.errors import AcceleratorFailed, AcceleratorMissing, extra, printable

MODULES = ("cuda.bindings.runtime", "cuda.cudart")
# cudaErrorMemoryAllocation
OUT_OF_MEMORY = 2
LONGEST = 200


class CudaError(AcceleratorFailed):
    """A call of CUDA's runtime failed; `code` is its cudaError_t, 0 where the runtime did not get that far."""

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.code = code


def installed() -> bool:
    """Return whether `cuda-python` is there; nothing of it is loaded, but its packages' own modules."""
    return any(_is_there(name) for name in MODULES)


def pinned(shape: tuple[int, ...], dtype: np.dtype[Any], index: int = 0) -> NDArray[Any] | None:
    """Return an array of zeros that GPU `index` copies from and to without a detour; None where that cannot be had.

    The memory is given back with the last array that views it.
    """
    try:
        return Cuda(index).pinned(shape, dtype)
    except (AcceleratorMissing, AcceleratorFailed):
        return None


class Cuda:
    """CUDA's runtime on GPU `index`, counted as CUDA_DEVICE_ORDER says. Addresses are plain numbers.

    Every method raises CudaError when CUDA fails. A thread that has not called `use` is on GPU 0.
    """

    def __init__(self, index: int) -> None:
        """Take the GPU for this thread; raise AcceleratorMissing, with the reason, where that cannot be done."""
        self.index = index
        self._runtime = _load()
        try:
            self.use()
        except CudaError as error:
            raise AcceleratorMissing(f"GPU {index} cannot be used: {error}") from None

    def use(self) -> None:
        """Make this GPU the one that the calling thread works with."""
        self._call(self._runtime.cudaSetDevice, self.index)

    def memory(self) -> tuple[int, int]:
        """Return the free bytes of the GPU's memory, and all."""
        free, total = self._call(self._runtime.cudaMemGetInfo)
        return int(free), int(total)

    def malloc(self, size: int) -> int:
        """Return the address of `size` bytes of the GPU's memory."""
        return int(self._call(self._runtime.cudaMalloc, size))

    def free(self, address: int) -> None:
        """Give memory of the GPU back."""
        self._call(self._runtime.cudaFree, address)

    def pinned(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return an array of zeros in memory of the host that is never paged out, and is given back with its last view."""
        size = max(1, int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        address = int(self._call(self._runtime.cudaHostAlloc, size, self._runtime.cudaHostAllocDefault))
        array = np.asarray(_Pinned(self._runtime, address, shape, dtype))
        array.fill(0)
        return array

    def stream(self) -> Any:
        """Return a new stream, which does not wait for the default one; `int` of it is its handle."""
        return self._call(self._runtime.cudaStreamCreateWithFlags, self._runtime.cudaStreamNonBlocking)

    def destroy_stream(self, stream: Any) -> None:
        """Give a stream back."""
        self._call(self._runtime.cudaStreamDestroy, stream)

    def synchronize(self, stream: Any) -> None:
        """Wait until all that was put into a stream is done; what failed in it fails here."""
        self._call(self._runtime.cudaStreamSynchronize, stream)

    def copy_in(self, address: int, array: NDArray[Any], stream: Any) -> None:
        """Put a copy of an array into the GPU's memory into a stream; a pinned array must stay as it is meanwhile."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call(self._runtime.cudaMemcpyAsync, address, array.ctypes.data, array.nbytes, kind, stream)

    def copy_out(self, array: NDArray[Any], address: int, stream: Any) -> None:
        """Put a copy out of the GPU's memory into a stream; the array is read when the stream has been waited for."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call(self._runtime.cudaMemcpyAsync, array.ctypes.data, address, array.nbytes, kind, stream)

    def record(self, stream: Any, work: Callable[[], None]) -> Any:
        """Return what `work` puts into a stream, recorded and not done, for `launch`.

        When this fails the stream is of no use any more.
        """
        runtime = self._runtime
        # Of this thread alone: another slot may allocate memory meanwhile.
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call(runtime.cudaStreamBeginCapture, stream, mode)
        try:
            work()
        except BaseException:
            with contextlib.suppress(CudaError):
                self._call(runtime.cudaGraphDestroy, self._call(runtime.cudaStreamEndCapture, stream))
            raise
        graph = self._call(runtime.cudaStreamEndCapture, stream)
        try:
            return self._call(runtime.cudaGraphInstantiate, graph, 0)
        finally:
            self._call(runtime.cudaGraphDestroy, graph)

    def launch(self, recorded: Any, stream: Any) -> None:
        """Put what was recorded into a stream."""
        self._call(self._runtime.cudaGraphLaunch, recorded, stream)

    def forget(self, recorded: Any) -> None:
        """Give back what was recorded."""
        self._call(self._runtime.cudaGraphExecDestroy, recorded)

    def _call(self, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
        """Return what a function returns: nothing, one thing or a tuple; raise CudaError when it fails."""
        try:
            error, *results = function(*arguments)
        except RuntimeError as failure:
            raise CudaError(f"{function.__name__} failed: {_line(failure)}.") from None
        if error != self._runtime.cudaError_t.cudaSuccess:
            raise self._failure(error, function.__name__)
        return results[0] if len(results) == 1 else tuple(results) or None

    def _failure(self, error: Any, called: str) -> CudaError:
        code = int(error)
        name, text = (
            bytes(told(error)[1]).decode(errors="replace")
            for told in (self._runtime.cudaGetErrorName, self._runtime.cudaGetErrorString)
        )
        sentence = printable(f"{called} failed with CUDA error {code}, {name}: {text}.")
        if code == OUT_OF_MEMORY:
            sentence = f"GPU {self.index} has no memory left ({sentence[:-1]}); stop another model that uses it."
        return CudaError(sentence, code)


class _Pinned:
    """Memory of cudaHostAlloc as NumPy takes it, given back when no array views it any more."""

    def __init__(self, runtime: Any, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._free = runtime.cudaFreeHost
        self._address = address
        self.__array_interface__ = {"version": 3, "data": (address, False), "shape": shape, "typestr": dtype.str}

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # at the very end there may be no driver left to take it
            self._free(self._address)


def _load() -> Any:
    """Return the module with the runtime's functions; raise AcceleratorMissing where there is none."""
    for name in MODULES:
        if _is_there(name):
            try:
                return import_module(name)
            except Exception as error:  # noqa: BLE001  (a broken installation raises what it likes)
                raise AcceleratorMissing(f"cuda-python cannot be loaded: {_line(error)}.") from None
    raise AcceleratorMissing(f"cuda-python is not installed; {extra('tensorrt')}.")


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):  # its package is not there; or what is there is half loaded
        return False


def _line(error: Exception) -> str:
    return printable(str(error).strip().partition("\n")[0].rstrip("."))[:LONGEST] or type(error).__name__
