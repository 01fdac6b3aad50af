"""What a model is run on: every rule of the table, told from targets, devices and settings alone."""

import pytest

from edge_agent import accelerators
from edge_agent.accelerators import NO_CUDA, NO_DRIVER, NO_TENSORRT, ON_CPU, Choice, Failed, Gpu, Here, Wish
from edge_agent.block import Target
from edge_agent.errors import PackageRefused

ONNX = None
FOR_CPU = Target("X86_64", options={"mcpu": "core-avx2"})
FOR_GPU = Target("X86_64", "NVIDIA", options={"gpu-code": "sm_89"})
FOR_NX = Target("ARM64", "NVIDIA", "jetson_orin_nx")
FOR_OTHER = Target("X86_64", "INTEL")

L4 = (Gpu(0, "L4", "sm_89"),)
NOTHING = Here()
BROKEN = Here(no_gpu="NVIDIA's driver library was asked, and it did not answer in time.")
ALL = Here(L4, "550", no_gpu="")
CUDA_ONLY = Here(L4, "550", no_gpu="", no_tensorrt=NO_TENSORRT)
TENSORRT_ONLY = Here(L4, "550", no_gpu="", no_cuda=NO_CUDA)
NO_RUNTIME = Here(L4, "550", no_gpu="", no_cuda=NO_CUDA, no_tensorrt=NO_TENSORRT)
TWO = Here((*L4, Gpu(1, "L4", "sm_89")), "550", no_gpu="")

NO_GPU_1 = "There is no GPU 1; the setting `gpu` is the number of one that there is: 0."


def choice(target: Target | None, here: Here, wanted: str = "auto", fallback: bool = False, gpu: int = 0) -> Choice:
    return accelerators.choose(target, lambda: here, Wish(wanted, fallback, gpu))


def ways(*given: object, **settings: object) -> tuple[str, ...]:
    return choice(*given, **settings).ways


class TestAuto:
    @pytest.mark.parametrize(
        ("target", "here", "never", "allowed"),
        [
            # Made for a GPU: TensorRT, then CUDA, and the CPU where that is allowed.
            (FOR_GPU, ALL, ("tensorrt", "cuda"), ("tensorrt", "cuda", "cpu")),
            (FOR_NX, ALL, ("tensorrt", "cuda"), ("tensorrt", "cuda", "cpu")),
            (FOR_GPU, CUDA_ONLY, ("cuda",), ("cuda", "cpu")),
            (FOR_GPU, TENSORRT_ONLY, ("tensorrt",), ("tensorrt", "cpu")),
            (FOR_GPU, TWO, ("tensorrt", "cuda"), ("tensorrt", "cuda", "cpu")),
            # Made for a processor: that.
            (FOR_CPU, NOTHING, ("cpu",), ("cpu",)),
            (FOR_CPU, BROKEN, ("cpu",), ("cpu",)),
            (FOR_CPU, ALL, ("cpu",), ("cpu",)),
            (FOR_CPU, NO_RUNTIME, ("cpu",), ("cpu",)),
            # Made for nothing in particular: CUDA where it is, and no engine.
            (ONNX, NOTHING, ("cpu",), ("cpu",)),
            (ONNX, BROKEN, ("cpu",), ("cpu",)),
            (ONNX, ALL, ("cuda", "cpu"), ("cuda", "cpu")),
            (ONNX, CUDA_ONLY, ("cuda", "cpu"), ("cuda", "cpu")),
            (ONNX, TENSORRT_ONLY, ("cpu",), ("cpu",)),
            (ONNX, NO_RUNTIME, ("cpu",), ("cpu",)),
        ],
    )
    def test_order(self, target, here, never, allowed):
        assert choice(target, here) == Choice(never)
        assert choice(target, here, fallback=True) == Choice(allowed)

    @pytest.mark.parametrize(
        ("target", "here", "named", "why"),
        [
            (FOR_GPU, NOTHING, "NVIDIA", NO_DRIVER),
            (FOR_NX, NOTHING, "jetson_orin_nx", NO_DRIVER),
            (FOR_GPU, BROKEN, "NVIDIA", BROKEN.no_gpu),
            (FOR_GPU, NO_RUNTIME, "NVIDIA", NO_CUDA),
            (FOR_OTHER, ALL, "INTEL", "This agent knows those of NVIDIA only."),
            (FOR_OTHER, NOTHING, "INTEL", "This agent knows those of NVIDIA only."),
        ],
    )
    def test_a_package_for_a_gpu_that_is_not_there(self, target, here, named, why):
        with pytest.raises(PackageRefused) as refused:
            choice(target, here)
        assert str(refused.value) == f"The package was compiled for {named}, and there is no GPU for it: {why} {ON_CPU}"
        assert choice(target, here, fallback=True) == Choice(("cpu",), failed=(Failed("a GPU", why),))

    @pytest.mark.parametrize(
        ("target", "expected"), [(ONNX, ("cpu",)), (FOR_CPU, ("cpu",)), (FOR_GPU, None)], ids=["ONNX", "CPU", "GPU"]
    )
    def test_a_gpu_of_another_number(self, target, expected):
        if expected:
            assert ways(target, ALL, gpu=1) == expected
        else:
            with pytest.raises(PackageRefused, match="There is no GPU 1"):
                choice(target, ALL, gpu=1)
        assert ways(FOR_GPU, TWO, gpu=1) == ("tensorrt", "cuda")

    def test_a_driver_is_only_asked_where_that_matters(self):
        def hangs() -> Here:
            raise AssertionError("it was asked")

        assert accelerators.choose(FOR_CPU, hangs, Wish()).ways == ("cpu",)
        for target in (ONNX, FOR_CPU, FOR_GPU):
            assert accelerators.choose(target, hangs, Wish("cpu")).ways == ("cpu",)


class TestSet:
    @pytest.mark.parametrize("here", [NOTHING, BROKEN, ALL, NO_RUNTIME])
    @pytest.mark.parametrize("fallback", [False, True])
    def test_cpu(self, here, fallback):
        for target in (ONNX, FOR_CPU):
            assert choice(target, here, "cpu", fallback) == Choice(("cpu",))
        for target, named in ((FOR_GPU, "NVIDIA"), (FOR_NX, "jetson_orin_nx")):
            note = f"The package was compiled for {named}, and the setting `accelerator` has it run on the CPU."
            assert choice(target, here, "cpu", fallback) == Choice(("cpu",), (note,))

    @pytest.mark.parametrize("target", [ONNX, FOR_CPU, FOR_GPU, FOR_NX])
    @pytest.mark.parametrize(
        ("wanted", "here", "gpu", "why"),
        [
            ("cuda", ALL, 0, ""),
            ("cuda", CUDA_ONLY, 0, ""),
            ("cuda", TWO, 1, ""),
            ("cuda", TENSORRT_ONLY, 0, NO_CUDA),
            ("cuda", NO_RUNTIME, 0, NO_CUDA),
            ("cuda", NOTHING, 0, NO_DRIVER),
            ("cuda", BROKEN, 0, BROKEN.no_gpu),
            ("cuda", ALL, 1, NO_GPU_1),
            ("tensorrt", ALL, 0, ""),
            ("tensorrt", TENSORRT_ONLY, 0, ""),
            ("tensorrt", CUDA_ONLY, 0, NO_TENSORRT),
            ("tensorrt", NOTHING, 0, NO_DRIVER),
            ("tensorrt", ALL, 1, NO_GPU_1),
        ],
    )
    def test_an_accelerator_for_every_model(self, target, wanted, here, gpu, why):
        word = accelerators.WORDS[wanted]
        if not why:
            assert choice(target, here, wanted, gpu=gpu) == Choice((wanted,))
            assert choice(target, here, wanted, fallback=True, gpu=gpu) == Choice((wanted, "cpu"))
            return
        with pytest.raises(PackageRefused) as refused:
            choice(target, here, wanted, gpu=gpu)
        told = str(refused.value)
        assert told == f"The setting `accelerator` is {wanted}, which cannot be used: {why} {ON_CPU}"
        assert choice(target, here, wanted, fallback=True, gpu=gpu) == Choice(("cpu",), failed=(Failed(word, why),))


class TestWords:
    def test_what_it_runs_on_instead(self):
        assert accelerators.instead("cpu", []) == ""
        tensorrt, cuda = Failed("TensorRT", "It has no engine."), Failed("CUDA", "It has no memory.")
        assert accelerators.instead("cuda", [tensorrt]) == (
            "Runs on CUDA, since it cannot run on TensorRT: It has no engine."
        )
        assert accelerators.instead("cpu", [tensorrt, cuda]) == (
            "Runs on the CPU, since it cannot run on TensorRT: It has no engine. Nor on CUDA: It has no memory."
        )

    def test_nothing_left(self):
        told = accelerators.nothing_left([Failed("CUDA", "It has no memory.")])
        assert told == f"The model cannot run on CUDA: It has no memory. {ON_CPU}"
