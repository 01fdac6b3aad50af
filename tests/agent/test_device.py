"""Which packages can run on which device: told from their target alone, on devices that are not here."""

import platform

import pytest

from edge_agent import device
from edge_agent.block import Target
from edge_agent.device import Device
from edge_agent.errors import PackageRefused

OLD = frozenset({"fpu", "sse", "sse2", "ssse3", "sse4_1", "sse4_2", "avx"})
NEW = OLD | {"avx2", "fma"}
INTEL = Device("x86_64", NEW)
ATOM = Device("x86_64", OLD)
PI = Device("aarch64", frozenset({"fp", "asimd", "crc32"}))
ORIN = Device("aarch64", frozenset({"fp", "asimd", "asimdhp"}), gpu_code="sm_87", tensorrt="10.3.0")
AVX2 = Target("X86_64", cpu_flags=("avx2", "fma"), options={"mcpu": "core-avx2"})
FOR_ORIN = {"gpu-code": "sm_87", "trt-ver": "10.3.0", "cuda-ver": "12.6"}


def refusal(target: Target, here: Device, *, strict: bool = False) -> str:
    with pytest.raises(PackageRefused) as caught:
        device.check(target, here, strict=strict)
    return str(caught.value)


@pytest.mark.parametrize(
    ("target", "here"),
    [
        (Target("X86_64"), INTEL),
        (Target("X86_64"), Device("AMD64", frozenset())),
        (AVX2, INTEL),
        (Target("X86_64", cpu_flags=("sse4_2",)), ATOM),
        (Target("ARM64"), PI),
        (Target("ARM64"), Device("arm64", frozenset())),
        (Target("ARM64", cpu_flags=("asimd", "fp"), options={"mcpu": "cortex-a72"}), PI),
    ],
)
@pytest.mark.parametrize("strict", [False, True])
def test_runs(target, here, strict):
    assert device.check(target, here, strict=strict) == ()


@pytest.mark.parametrize(
    ("target", "here", "words"),
    [
        (AVX2, ATOM, "compiled for core-avx2, which needs avx2, fma; this device's processor lacks that"),
        (AVX2, Device("x86_64", frozenset()), "needs avx2, fma"),
        (Target("X86_64", cpu_flags=("avx512f", "avx2")), INTEL, "compiled for its target, which needs avx512f; this"),
        (AVX2, PI, "compiled for X86_64; this device is aarch64. Compile it for this architecture."),
        (Target("ARM64"), INTEL, "compiled for ARM64; this device is x86_64"),
        (Target("ARM64", cpu_flags=("sve",), options={"mcpu": "neoverse-v1"}), PI, "neoverse-v1, which needs sve"),
        (Target("X86_64"), Device("i686", NEW), "this device is i686"),
        (Target("RISCV64"), INTEL, "package.target.arch is 'RISCV64'; known are X86_64 and ARM64"),
        (Target(""), INTEL, "package.target.arch is ''"),
    ],
)
@pytest.mark.parametrize("strict", [False, True])
def test_architecture_and_instructions_bind(target, here, words, strict):
    assert words in refusal(target, here, strict=strict)


def test_many_missing_flags_are_one_short_sentence():
    assert len(refusal(Target("X86_64", cpu_flags=tuple(f"flag{number}" for number in range(1000))), INTEL)) < 500


@pytest.mark.parametrize(
    ("options", "here", "note"),
    [
        ({"gpu-code": "sm_87"}, INTEL, "GPU sm_87 (here: none)"),
        ({"trt-ver": "10.3.0"}, INTEL, "TensorRT 10.3.0 (here: none)"),
        (FOR_ORIN, INTEL, "GPU sm_87 (here: none) and TensorRT 10.3.0 (here: none)"),
        ({**FOR_ORIN, "gpu-code": "sm_72"}, ORIN, "GPU sm_72 (here: sm_87)"),
        ({**FOR_ORIN, "trt-ver": "8.5.2"}, ORIN, "TensorRT 8.5.2 (here: 10.3.0)"),
    ],
)
def test_another_gpu_or_tensorrt_is_said_and_refused_only_when_strict(options, here, note):
    arch = "ARM64" if here is ORIN else "X86_64"
    target = Target(arch, options=options)
    assert device.check(target, here, strict=False) == (f"The package was compiled for {note}.",)
    assert refusal(target, here, strict=True) == (
        f"The package was compiled for {note}. The setting `target` is strict, so it is refused."
    )


def test_the_same_gpu_and_tensorrt_are_nothing_to_speak_of():
    assert device.check(Target("ARM64", options=FOR_ORIN), ORIN, strict=True) == ()


@pytest.mark.parametrize("strict", [False, True])
def test_accelerators_are_chosen_elsewhere(strict):
    assert device.check(Target("ARM64", "NVIDIA", options=FOR_ORIN), ORIN, strict=strict) == ()
    assert device.check(Target("ARM64", "NVIDIA", "jetson_orin_nx"), PI, strict=strict) == ()


def test_tools_compare_with_the_processor_alone():
    arch = "X86_64" if platform.machine() in device.MACHINES["X86_64"] else "ARM64"
    other = {"X86_64": "ARM64", "ARM64": "X86_64"}[arch]
    assert device.fit("board", None, True) == ()
    assert device.fit("board", Target(arch, "NVIDIA"), True) == ()
    with pytest.raises(PackageRefused, match=f"compiled for {other}"):
        device.fit("board", Target(other), False)


X86 = """\
processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Atom(TM) Processor with flags: none
flags\t\t: fpu sse sse2 avx avx2
vmx flags\t: vnmi preemption_timer
bugs\t\t: spectre_v1

processor\t: 1
flags\t\t: fpu sse sse2 avx avx2
"""
ARM = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41

processor\t: 1
Features\t: fp asimd evtstrm crc32 cpuid
"""


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        (X86.encode(), {"fpu", "sse", "sse2", "avx", "avx2"}),
        (ARM.encode(), {"fp", "asimd", "evtstrm", "crc32", "cpuid"}),
        (b"flags\t\t:\n", set()),
        (b"model name\t: \xff\xfe\nflags\t\t: sse\n", {"sse"}),
        (b"", set()),
    ],
    ids=["x86", "ARM", "empty line", "not UTF-8", "empty"],
)
def test_cpuinfo(tmp_path, text, flags):
    (tmp_path / "cpuinfo").write_bytes(text)
    assert device.cpu_flags(tmp_path / "cpuinfo") == flags


def test_a_system_without_cpuinfo_has_no_flags(tmp_path):
    assert device.cpu_flags(tmp_path / "cpuinfo") == frozenset()


def test_this_device():
    here = device.this_one()
    assert here.machine == platform.machine()
    assert (here.gpu_code, here.tensorrt) == ("", "")
    known = {"x86_64": "sse2", "aarch64": "asimd"}
    assert known.get(here.machine, "") in here.cpu_flags | {""}


class TestAccelerator:
    """Whether what a package was compiled for fits the GPU, TensorRT and CUDA of a device."""

    @pytest.mark.parametrize(
        ("wanted", "here", "fits"),
        [
            ("sm_86", "sm_86", True),
            ("sm_86", "sm_89", True),
            ("sm_80", "sm_89", True),
            ("sm_89", "sm_86", False),
            ("sm_75", "sm_86", False),
            ("sm_86", "sm_75", False),
            ("sm_90", "sm_120", False),
            ("sm_120", "sm_121", True),
            ("sm_100", "sm_110", False),
            ("sm_87", "sm_87", True),
            ("sm_86", "sm_87", False),
            ("sm_87", "sm_89", False),
            ("sm_72", "sm_75", False),
            ("sm_86", "", False),
            ("odd", "sm_86", False),
        ],
    )
    def test_gpu_code(self, wanted, here, fits):
        misfits = list(device.accelerator_misfits(Target("ARM64", options={"gpu-code": wanted}), self.device(here)))
        assert misfits == ([] if fits else [("GPU", wanted, here)])

    @pytest.mark.parametrize(
        ("wanted", "here", "fits"),
        [
            ("10.3.0", "10.3.0", True),
            ("10.3.0", "10.3.0.30", True),
            ("10.3.0", "10.3.1", False),
            ("10.3.0", "10.13.0", False),
            ("10.3.0", "10", False),
            ("10.3.0", "", False),
        ],
    )
    def test_tensorrt(self, wanted, here, fits):
        target = Target("ARM64", options={"trt-ver": wanted})
        misfits = list(device.accelerator_misfits(target, Device("aarch64", frozenset(), "sm_87", here)))
        assert misfits == ([] if fits else [("TensorRT", wanted, here)])

    @pytest.mark.parametrize(
        ("wanted", "here", "fits"),
        [
            ("12.6", "12.6", True),
            ("12.6", "12.2", True),
            ("12.6", "13.0", True),
            ("11.8", "12.2", True),
            ("13.0", "12.9", False),
            ("12.6", "11.8", False),
            ("12.6", "", True),
        ],
    )
    def test_cuda(self, wanted, here, fits):
        target = Target("ARM64", options={"cuda-ver": wanted})
        there = Device("aarch64", frozenset(), "sm_87", "10.3.0", here)
        assert list(device.accelerator_misfits(target, there)) == ([] if fits else [("CUDA", wanted, here)])

    def device(self, code: str) -> Device:
        return Device("aarch64", frozenset(), code)
