"""Targets: devices, instruction sets with the flags they need, and compiler options that go with the target."""

import itertools
import json
import re
import subprocess
import sys

import pytest

from model_packager import targets
from model_packager.errors import PackagingRefused
from model_packager.targets import Target, instruction_flags
from support.agent import environment

X86 = Target("LINUX", "X86_64")
ARM = Target("LINUX", "ARM64")
GPU = Target("LINUX", "ARM64", "NVIDIA")
GPU_OPTIONS = {"gpu-code": "sm_87", "trt-ver": "10.3.0", "cuda-ver": "12.6"}


def read(options: object, target: Target = X86) -> dict[str, str]:
    return targets.read_options(options if isinstance(options, str) else json.dumps(options), target, "--name")


def refused(options: object, target: Target = X86) -> str:
    with pytest.raises(PackagingRefused) as caught:
        read(options, target)
    assert str(caught.value).startswith("--name")
    return str(caught.value)


def test_tables_come_without_heavy_imports():
    code = (
        "import sys, model_packager.targets;"
        "print(sorted({'onnx', 'numpy', 'pydantic', 'yaml', 'onnxruntime', 'grpc'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_devices():
    codes = {name: (one.arch, one.gpu_code) for name, one in targets.DEVICES.items()}
    assert codes["jetson_xavier"] == ("ARM64", "sm_72")
    assert codes["jetson_agx_orin"] == codes["jetson_orin_nx"] == codes["jetson_orin_nano"] == ("ARM64", "sm_87")
    assert codes["t4"] == ("X86_64", "sm_75")
    assert codes["a10g"] == ("X86_64", "sm_86")
    assert codes["l4"] == ("X86_64", "sm_89")
    for name, one in targets.DEVICES.items():
        assert re.fullmatch("[a-z0-9]+(_[a-z0-9]+)*", name)
        assert targets.GPU_OPTIONS["gpu-code"][0].fullmatch(one.gpu_code)
        assert one.arch in targets.ARCHITECTURES
        assert one.source.startswith("https://developer.nvidia.com/")
        assert read_device(name) == {"gpu-code": one.gpu_code}


def read_device(name: str) -> dict[str, str]:
    return targets.read_options(None, Target("LINUX", targets.DEVICES[name].arch, "NVIDIA", name), "--name")


@pytest.mark.parametrize("text", ["{}", "", json.dumps(GPU_OPTIONS)])
def test_a_device_has_its_own_options(text):
    assert "left out, because l4 has its own (sm_89)" in refused(text, Target("LINUX", "X86_64", "NVIDIA", "l4"))


def test_flags_of_well_known_instruction_sets():
    avx2 = instruction_flags({"mcpu": "core-avx2"})
    assert avx2 == instruction_flags({"mcpu": "haswell"}) == instruction_flags({"mcpu": "x86-64-v3"})
    assert avx2 >= {"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe", "abm", "popcnt", "sse4_2"}
    assert not any(flag.startswith("avx512") for flag in avx2)
    skylake = instruction_flags({"mcpu": "skylake-avx512"})
    assert skylake - avx2 == {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
    assert instruction_flags({"mcpu": "cascadelake"}) - skylake == {"avx512_vnni"}
    assert instruction_flags({"mcpu": "sapphirerapids"}) >= {"amx_tile", "avx512_bf16", "avx512_fp16", "avx_vnni"}
    assert "avx" not in instruction_flags({"mcpu": "tremont"})
    assert "sse3" not in avx2, "the kernel calls it pni"
    # What a Raspberry Pi 4, a Raspberry Pi 5, a Jetson Xavier and a Jetson Orin print.
    assert instruction_flags({"mcpu": "cortex-a72"}) <= {"fp", "asimd", "evtstrm", "crc32", "cpuid"}
    features = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm dcpop"
    assert instruction_flags({"mcpu": "carmel"}) <= set(features.split())
    assert instruction_flags({"mcpu": "cortex-a76"}) <= set(features.split()) | {"lrcpc", "asimddp"}
    assert instruction_flags({"mcpu": "cortex-a78ae"}) >= {"asimddp", "asimdhp", "asimd"}
    assert instruction_flags({"mcpu": "neoverse-n1"}) >= {"asimddp", "atomics"}
    assert instruction_flags({"mcpu": "generic"}) == {"fp", "asimd"}


def test_wanted_names_are_there():
    x86 = "core-avx2 haswell skylake skylake-avx512 cascadelake icelake-server sapphirerapids znver2 znver3 znver4"
    levels = "x86-64 x86-64-v2 x86-64-v3 x86-64-v4"
    arm = "generic cortex-a57 cortex-a72 cortex-a76 cortex-a78 cortex-a78ae carmel neoverse-n1"
    assert set(targets.INSTRUCTION_SETS["X86_64"]) >= {*x86.split(), *levels.split()}
    assert set(targets.INSTRUCTION_SETS["ARM64"]) >= set(arm.split())
    assert not set(targets.INSTRUCTION_SETS["X86_64"]) & set(targets.INSTRUCTION_SETS["ARM64"])


def test_levels_contain_each_other():
    levels = [instruction_flags({"mcpu": f"x86-64{level}"}) for level in ("", "-v2", "-v3", "-v4")]
    assert all(less < more for less, more in itertools.pairwise(levels))


def test_features_add_and_take_away():
    base = instruction_flags({"mcpu": "core-avx2"})
    changed = instruction_flags({"mcpu": "core-avx2", "mattr": "+avx512f,+sse4a,-bmi"})
    assert changed == (base | {"avx512f", "sse4a"}) - {"bmi1"}
    assert instruction_flags({"mcpu": "core-avx2", "mattr": "-avx"}) == base - {"avx"}
    assert instruction_flags({"mcpu": "carmel", "mattr": "-fullfp16"}) == instruction_flags({"mcpu": "carmel"}) - {
        "fphp",
        "asimdhp",
    }
    assert instruction_flags({"mattr": "+dotprod"}) == {"fp", "asimd", "asimddp"}
    assert instruction_flags({"mattr": "+aes"}) == {"fp", "asimd", "aes", "pmull"}
    assert instruction_flags({"mcpu": "haswell", "mattr": "+aes"}) == base | {"aes"}


def test_no_flags_without_cpu_options():
    assert instruction_flags({}) == instruction_flags(GPU_OPTIONS) == frozenset()


@pytest.mark.parametrize("options", [{"mcpu": "core-avx3"}, {"mcpu": "haswell", "mattr": "+neon"}, {"mattr": "+avx"}])
def test_flags_of_what_is_not_known(options):
    with pytest.raises(PackagingRefused):
        instruction_flags(options)


def test_defaults_are_written_out():
    assert targets.read_options(None, X86, "--name") == read({}) == {"mcpu": "core-avx2"}
    assert targets.read_options(None, ARM, "--name") == read({}, ARM) == {}
    assert read({"mattr": "+avx512f"}) == {"mcpu": "core-avx2", "mattr": "+avx512f"}


def test_options_of_a_cpu():
    assert read({"mcpu": "skylake-avx512", "mattr": "+avx512vnni,-avx512cd"}) == {
        "mcpu": "skylake-avx512",
        "mattr": "+avx512vnni,-avx512cd",
    }
    assert read({"mcpu": "carmel"}, ARM) == {"mcpu": "carmel"}
    assert read({"mattr": ["+neon", "-crc"]}, ARM) == {"mattr": "+neon,-crc"}


@pytest.mark.parametrize(
    ("mcpu", "target", "known"),
    [("carmel", X86, "sapphirerapids"), ("haswell", ARM, "cortex-a78ae"), ("", X86, "znver4")],
)
def test_mcpu_of_another_architecture(mcpu, target, known):
    text = refused({"mcpu": mcpu}, target)
    assert f"mcpu is {mcpu!r}; on {target.arch} it must be one of" in text
    assert known in text


@pytest.mark.parametrize(
    "mattr",
    [
        "",
        "avx512f",
        "+avx512f,",
        ",+avx512f",
        "+avx512f, -fma",
        "+avx512f\n",
        "+AVX512F",
        "+neon",
        "++fma",
        "+",
        "+fma;-bmi",
    ],
)
def test_mattr_that_is_none(mattr):
    text = refused({"mattr": mattr})
    assert "--name: mattr has" in text
    assert "avx512vnni" in text


@pytest.mark.parametrize("mattr", ["+fma,+fma", "+fma,-fma", ["+fma", "+fma"]])
def test_mattr_names_each_feature_once(mattr):
    assert "each feature once" in refused({"mattr": mattr})


def test_options_of_a_gpu():
    assert read(GPU_OPTIONS, GPU) == GPU_OPTIONS
    for key in GPU_OPTIONS:
        assert f"lacks {key}" in refused(without(key), GPU)
    assert "lacks gpu-code" in refused("{}", GPU)
    with pytest.raises(PackagingRefused, match="lacks gpu-code"):
        targets.read_options(None, GPU, "--name")


def without(key: str) -> dict[str, str]:
    return {other: value for other, value in GPU_OPTIONS.items() if other != key}


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        (
            "gpu-code",
            ["sm_72", "sm_110"],
            ["sm_", "sm_7", "sm_07", "87", "SM_87", "sm_87\n", "sm_8\N{ARABIC-INDIC DIGIT SEVEN}", "sm_1000", "sm_90a"],
        ),
        (
            "trt-ver",
            ["7.1.3", "10.13.2", "0.0.0"],
            [
                "10.3",
                "10.3.0.1",
                "v10.3.0",
                "10.3.x",
                "10.3.0\n",
                "10.3.\N{ARABIC-INDIC DIGIT SEVEN}",
                "",
                "12345.0.0",
                "0.12345.0",
                "0.0.12345",
            ],
        ),
        (
            "cuda-ver",
            ["9.2", "13.0", "1234.1234"],
            ["12345.0", "0.12345", "12", "12.6.1", "12.6\n", "12.\N{ARABIC-INDIC DIGIT SEVEN}", ".6", "12."],
        ),
    ],
)
def test_form_of_gpu_options(key, good, bad):
    for value in good:
        assert read({**GPU_OPTIONS, key: value}, GPU)[key] == value
    for value in bad:
        text = refused({**GPU_OPTIONS, key: value}, GPU)
        assert f"{key} is {value!a}; it must be" in text


def test_options_go_with_the_accelerator():
    for key, value in GPU_OPTIONS.items():
        assert f"has '{key}'; the options without an accelerator are mcpu, mattr" in refused({key: value})
    for key in ("mcpu", "mattr", "gpu_code", "dtype"):
        text = refused({**GPU_OPTIONS, key: "+neon"}, GPU)
        assert f"has '{key}'; the options with the accelerator NVIDIA are gpu-code, trt-ver, cuda-ver" in text
    assert "has 'MCPU'" in refused({"MCPU": "haswell"})


@pytest.mark.parametrize(
    "text", ["", " ", "mcpu", "{'mcpu': 'core-avx2'}", "[]", '"mcpu"', "null", '{"mcpu": "haswell"', "[" * 1024]
)
def test_what_is_no_json_object(text):
    said = refused(text)
    assert 'it must be a JSON object with its texts in double quotes, as in {"mcpu": "core-avx2"}' in said
    assert len(said) < 300


def test_each_option_once():
    assert "each option once" in refused('{"mcpu": "haswell", "mcpu": "skylake"}')


@pytest.mark.parametrize("value", ["1", "null", "true", '["haswell"]', "{}"])
def test_options_are_text(value):
    assert "--name: 'mcpu' is " in refused(f'{{"mcpu": {value}}}')
    assert refused('{"mattr": ["+neon", 1]}', ARM).endswith("it must be text.")


def test_length():
    def padded(length: int) -> str:
        text = '{"mcpu": "haswell"}'
        return text + " " * (length - len(text))

    assert read(padded(1024)) == {"mcpu": "haswell"}
    assert "has 1025 characters; it must have at most 1024" in refused(padded(1025))


@pytest.mark.parametrize("arch", targets.ARCHITECTURES)
def test_options_written_out_are_never_too_long_to_be_read_again(arch):
    longest = {
        "mcpu": max(targets.INSTRUCTION_SETS[arch], key=len),
        "mattr": ",".join(f"+{feature}" for feature in targets.FEATURES[arch]),
    }
    assert read(read(longest, Target("LINUX", arch)), Target("LINUX", arch)) == longest
