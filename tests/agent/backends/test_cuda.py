"""CUDA's runtime through a fake at its own surface: names, results and order of calls as on a GPU."""

import gc
import sys
import threading

import numpy as np
import pytest

from edge_agent.backends import cuda
from edge_agent.backends.cuda import Cuda, CudaError
from edge_agent.errors import AcceleratorFailed, AcceleratorMissing
from support.fake_cuda import NEW, OLD, FakeCuda

FLOAT = np.dtype(np.float32)


@pytest.fixture
def fake(monkeypatch):
    return FakeCuda().install(monkeypatch)


@pytest.fixture
def none(monkeypatch):
    """No cuda-python at all, whatever is installed."""
    for name in ("cuda", "cuda.bindings", NEW, OLD):
        monkeypatch.setitem(sys.modules, name, None)


class TestThePackage:
    @pytest.mark.parametrize("name", [NEW, OLD])
    def test_by_its_name_of_before_and_of_now(self, name, monkeypatch):
        fake = FakeCuda().install(monkeypatch, name)
        assert cuda.installed()
        assert Cuda(1).memory() == (fake.total, fake.total)
        assert fake.calls == ["cudaSetDevice", "cudaMemGetInfo"]

    def test_absent(self, none):
        assert not cuda.installed()
        with pytest.raises(AcceleratorMissing, match=r"^cuda-python is not installed; install the extra `tensorrt`, "):
            Cuda(0)
        assert cuda.pinned((2,), FLOAT) is None

    def test_broken(self, fake, monkeypatch):
        def broken(name):
            raise ImportError("libcudart.so: cannot open\nshared object")

        monkeypatch.setattr(cuda, "import_module", broken)
        with pytest.raises(AcceleratorMissing, match=r"^cuda-python cannot be loaded: libcudart\.so: cannot open\.$"):
            Cuda(0)

    def test_broken_without_a_word(self, fake, monkeypatch):
        def broken(name):
            raise ImportError

        monkeypatch.setattr(cuda, "import_module", broken)
        with pytest.raises(AcceleratorMissing, match=r"^cuda-python cannot be loaded: ImportError\.$"):
            Cuda(0)


class TestTheGpu:
    def test_that_is_not_there(self, fake):
        with pytest.raises(AcceleratorMissing) as missing:
            Cuda(7)
        assert str(missing.value) == (
            "GPU 7 cannot be used: cudaSetDevice failed with CUDA error 101, cudaErrorInvalidDevice: invalid device ordinal."
        )

    def test_without_a_driver_as_it_was_said_before(self, fake):
        fake.fail("cudaSetDevice", RuntimeError("Failed to dlopen libcuda.so.1"))
        with pytest.raises(
            AcceleratorMissing, match="GPU 0 cannot be used: cudaSetDevice failed: Failed to dlopen libcuda"
        ):
            Cuda(0)

    def test_without_a_driver_as_it_is_said_now(self, fake):
        fake.fail("cudaSetDevice", 35)
        with pytest.raises(AcceleratorMissing, match="CUDA error 35, cudaErrorInsufficientDriver"):
            Cuda(0)

    def test_is_each_threads_own(self, fake):
        gpu = Cuda(1)
        stream = gpu.stream()
        failed = []

        def elsewhere():
            try:
                gpu.synchronize(stream)
            except CudaError as error:
                failed.append(error.code)
            gpu.use()
            gpu.synchronize(stream)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert failed == [400], "of GPU 0 where nobody said which"


class TestMemory:
    def test_there_and_back(self, fake):
        gpu = Cuda(1)
        address, stream = gpu.malloc(24), gpu.stream()
        given, got = gpu.pinned((2, 3), FLOAT), gpu.pinned((2, 3), FLOAT)
        assert not given.any()
        given[:] = np.arange(6).reshape(2, 3)
        gpu.copy_in(address, given, stream)
        gpu.copy_out(got, address, stream)
        assert not got.any(), "nothing is done yet"
        gpu.synchronize(stream)
        np.testing.assert_array_equal(got, given)
        assert gpu.memory() == (fake.total - 24, fake.total)
        gpu.free(address)
        gpu.destroy_stream(stream)
        assert fake.left() == {"host": 2}

    def test_pinned_goes_with_its_last_view(self, fake):
        array = cuda.pinned((4, 4), np.dtype(np.uint8), 1)
        view = array[1:]
        del array
        gc.collect()
        assert fake.left() == {"host": 1}
        del view
        gc.collect()
        assert fake.left() == {}

    def test_pinned_of_nothing(self, fake):
        assert cuda.pinned((0, 3), FLOAT).shape == (0, 3)

    def test_pinned_where_there_is_no_driver(self, fake):
        fake.fail("cudaSetDevice", 35)
        assert cuda.pinned((2,), FLOAT) is None
        fake.fail("cudaHostAlloc", 2)
        assert cuda.pinned((2,), FLOAT) is None

    def test_pinned_at_the_very_end(self, fake):
        array = cuda.pinned((2,), FLOAT)
        fake.fail("cudaFreeHost", RuntimeError("gone"))
        del array
        gc.collect()
        assert "cudaFreeHost" in fake.calls

    def test_none_left(self, fake):
        gpu = Cuda(1)
        with pytest.raises(AcceleratorFailed) as failed:
            gpu.malloc(fake.total + 1)
        assert failed.value.code == 2
        assert str(failed.value) == (
            "GPU 1 has no memory left (cudaMalloc failed with CUDA error 2, cudaErrorMemoryAllocation: out of memory); "
            "stop another model that uses it."
        )

    def test_violated(self, fake):
        gpu = Cuda(0)
        stream = gpu.stream()
        fake.fail("cudaStreamSynchronize", 700)
        with pytest.raises(
            CudaError, match=r"CUDA error 700, cudaErrorIllegalAddress: an illegal memory access"
        ) as failed:
            gpu.synchronize(stream)
        assert failed.value.code == 700
        with pytest.raises(CudaError, match="cudaMalloc failed with CUDA error 700"):
            gpu.malloc(1)


class TestRecording:
    @pytest.fixture
    def gpu(self, fake):
        return Cuda(0)

    def test_is_replayed(self, gpu, fake):
        stream, address = gpu.stream(), gpu.malloc(4)
        given, got = gpu.pinned((1,), FLOAT), gpu.pinned((1,), FLOAT)

        def work():
            gpu.copy_in(address, given, stream)
            gpu.copy_out(got, address, stream)

        recorded = gpu.record(stream, work)
        for one in (3, 5):
            given[:] = one
            gpu.launch(recorded, stream)
            gpu.synchronize(stream)
            assert got[0] == one
        gpu.forget(recorded)
        assert fake.left() == {"memory": 1, "host": 2, "streams": 1}, "the graph itself went at once"

    def test_of_what_fails(self, gpu, fake):
        def work():
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            gpu.record(gpu.stream(), work)
        assert "cudaStreamEndCapture" in fake.calls
        assert "graphs" not in fake.left()

    def test_of_what_cannot_be_recorded(self, gpu, fake):
        stream = gpu.stream()
        with pytest.raises(CudaError, match="cudaErrorStreamCaptureUnsupported"):
            gpu.record(stream, lambda: gpu.synchronize(stream))
        assert "graphs" not in fake.left()

    @pytest.mark.parametrize("name", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"])
    def test_that_fails(self, name, gpu, fake):
        fake.fail(name, 901)
        with pytest.raises(CudaError, match=f"{name} failed with CUDA error 901, cudaErrorStreamCaptureInvalidated"):
            gpu.record(gpu.stream(), lambda: None)
        assert "graphs" not in fake.left()
