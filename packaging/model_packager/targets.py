"""What a model is packaged for: target devices and platforms, and the instructions that a compiled model needs.

Nothing heavy is imported: the agent reads these tables too, to refuse a package that its machine cannot run.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge_agent.errors import shown
from model_packager.errors import PackagingRefused

SYSTEMS = ("LINUX",)
ARCHITECTURES = ("X86_64", "ARM64")
ACCELERATORS = ("NVIDIA",)
# StartModelPackagingJob's limit on CompilerOptions.
LONGEST_OPTIONS = 1024
GPU_OPTIONS = {
    "gpu-code": (re.compile("sm_[1-9][0-9]{1,2}"), "sm_NN, as in sm_87"),
    "trt-ver": (re.compile(r"[0-9]{1,4}\.[0-9]{1,4}\.[0-9]{1,4}"), "TensorRT's version x.y.z, as in 10.3.0"),
    "cuda-ver": (re.compile(r"[0-9]{1,4}\.[0-9]{1,4}"), "CUDA's version x.y, as in 12.6"),
}
CPU_OPTIONS = ("mcpu", "mattr")
# The original compiled for this one when nothing was said. On ARM64 nothing is assumed.
DEFAULT_MCPU = {"X86_64": "core-avx2"}


@dataclass(frozen=True)
class Target:
    """A machine to package for: os LINUX, arch X86_64 or ARM64, accelerator NVIDIA or "", and a device's name or ""."""

    os: str
    arch: str
    accelerator: str = ""
    device: str = ""

    @property
    def accelerated(self) -> bool:
        """Return whether models for it run on a GPU, and must be such as TensorRT takes; every named device has one."""
        return bool(self.accelerator or self.device)


@dataclass(frozen=True)
class Device:
    """A target device: its architecture, its GPU's code (the compute capability as sm_NN) and where NVIDIA says so."""

    arch: str
    gpu_code: str
    source: str


_LEGACY = "https://developer.nvidia.com/cuda-legacy-gpus"
_CURRENT = "https://developer.nvidia.com/cuda-gpus"
# The original knew `jetson_xavier` alone. A Jetson Orin Nano Super is an Orin Nano with faster clocks and has no row.
# NVIDIA's page names the A10 for Amazon's A10G, and the module T5000 for Jetson AGX Thor.
DEVICES: Mapping[str, Device] = {
    "jetson_xavier": Device("ARM64", "sm_72", _LEGACY),
    "jetson_agx_orin": Device("ARM64", "sm_87", _CURRENT),
    "jetson_orin_nx": Device("ARM64", "sm_87", _CURRENT),
    "jetson_orin_nano": Device("ARM64", "sm_87", _CURRENT),
    "jetson_agx_thor": Device("ARM64", "sm_110", _CURRENT),
    "t4": Device("X86_64", "sm_75", _CURRENT),
    "a2": Device("X86_64", "sm_86", _CURRENT),
    "a10": Device("X86_64", "sm_86", _CURRENT),
    "a10g": Device("X86_64", "sm_86", _CURRENT),
    "l4": Device("X86_64", "sm_89", _CURRENT),
    "l40s": Device("X86_64", "sm_89", _CURRENT),
    "rtx_a2000": Device("X86_64", "sm_86", _CURRENT),
    "rtx_a4000": Device("X86_64", "sm_86", _CURRENT),
    "rtx_2000_ada": Device("X86_64", "sm_89", _CURRENT),
    "rtx_4000_ada": Device("X86_64", "sm_89", _CURRENT),
}


def _flags(words: str, *more: frozenset[str]) -> frozenset[str]:
    return frozenset(words.split()).union(*more)


def _features(same: str, other: Mapping[str, str]) -> Mapping[str, frozenset[str]]:
    """Return the flags of each feature: those that the kernel calls the same, and the others."""
    return {**{word: _flags(word) for word in same.split()}, **{word: _flags(flags) for word, flags in other.items()}}


# Only what a compiler makes a model's arithmetic of. Cryptography, random numbers and system instructions are left out:
# no model needs them, and machines lack them singly (a Raspberry Pi 4 is a cortex-a72 without aes).
_V1 = _flags("sse sse2")
_V2 = _flags("cx16 lahf_lm pni popcnt sse4_1 sse4_2 ssse3", _V1)
_SANDYBRIDGE = _flags("avx xsave", _V2)
_V3 = _flags("abm avx2 bmi1 bmi2 f16c fma movbe", _SANDYBRIDGE)
_V4 = _flags("avx512bw avx512cd avx512dq avx512f avx512vl", _V3)
_CASCADELAKE = _flags("avx512_vnni", _V4)
_ICELAKE = _flags("avx512_bitalg avx512_vbmi2 avx512_vpopcntdq avx512ifma avx512vbmi", _CASCADELAKE)
_AVX512_BF16 = _flags("avx512_bf16", _ICELAKE)
_AVX_VNNI = _flags("avx_vnni", _V3)
_ARMV8 = _flags("asimd fp")
_ARMV8_CRC = _flags("crc32", _ARMV8)
_ARMV82 = _flags("asimdhp asimdrdm atomics fphp", _ARMV8_CRC)
_CORTEX_A76 = _flags("asimddp lrcpc", _ARMV82)
_NEOVERSE_V1 = _flags("asimdfhm bf16 fcma i8mm ilrcpc jscvt sve", _CORTEX_A76)
_NEOVERSE_V2 = _flags("sve2", _NEOVERSE_V1)

# Names as LLVM's `-mcpu` and TVM's `mcpu` spell them, flags as /proc/cpuinfo does (x86 `flags`, arm64 `Features`).
# What each CPU has is LLVM's table (X86TargetParser.cpp, AArch64Processors.td), the kernel's names are those of
# arch/x86/include/asm/cpufeatures.h and Documentation/arch/arm64/elf_hwcaps.rst.
INSTRUCTION_SETS: Mapping[str, Mapping[str, frozenset[str]]] = {
    "X86_64": {
        "x86-64": _V1,
        "x86-64-v2": _V2,
        "x86-64-v3": _V3,
        "x86-64-v4": _V4,
        "nehalem": _V2,
        "goldmont": _flags("movbe xsave", _V2),
        "tremont": _flags("movbe xsave", _V2),
        "sandybridge": _SANDYBRIDGE,
        "ivybridge": _flags("f16c", _SANDYBRIDGE),
        "core-avx2": _V3,
        "haswell": _V3,
        "broadwell": _V3,
        "skylake": _V3,
        "gracemont": _AVX_VNNI,
        "alderlake": _AVX_VNNI,
        "skylake-avx512": _V4,
        "cascadelake": _CASCADELAKE,
        "cooperlake": _flags("avx512_bf16", _CASCADELAKE),
        "icelake-client": _ICELAKE,
        "icelake-server": _ICELAKE,
        "tigerlake": _ICELAKE,
        "sapphirerapids": _flags("amx_bf16 amx_int8 amx_tile avx512_fp16 avx_vnni", _AVX512_BF16),
        "znver1": _V3,
        "znver2": _V3,
        "znver3": _V3,
        "znver4": _AVX512_BF16,
    },
    "ARM64": {
        "generic": _ARMV8,
        "cortex-a53": _ARMV8_CRC,
        "cortex-a55": _CORTEX_A76,
        "cortex-a57": _ARMV8_CRC,
        "cortex-a72": _ARMV8_CRC,
        "cortex-a73": _ARMV8_CRC,
        "cortex-a75": _CORTEX_A76,
        "cortex-a76": _CORTEX_A76,
        "cortex-a77": _CORTEX_A76,
        "cortex-a78": _CORTEX_A76,
        "cortex-a78ae": _CORTEX_A76,
        "carmel": _ARMV82,
        "neoverse-n1": _CORTEX_A76,
        "neoverse-n2": _NEOVERSE_V2,
        "neoverse-v1": _NEOVERSE_V1,
        "neoverse-v2": _NEOVERSE_V2,
    },
}
# LLVM's names of single features, which `mattr` adds and takes away, and the kernel's where they differ.
FEATURES: Mapping[str, Mapping[str, frozenset[str]]] = {
    "X86_64": _features(
        "aes avx avx2 avx512bw avx512cd avx512dq avx512f avx512ifma avx512vbmi avx512vl bmi2 cx16 f16c fma gfni movbe "
        "popcnt sse sse2 sse4a ssse3 vaes vpclmulqdq xsave",
        {
            "amx-bf16": "amx_bf16",
            "amx-int8": "amx_int8",
            "amx-tile": "amx_tile",
            "avx512bf16": "avx512_bf16",
            "avx512bitalg": "avx512_bitalg",
            "avx512fp16": "avx512_fp16",
            "avx512vbmi2": "avx512_vbmi2",
            "avx512vnni": "avx512_vnni",
            "avx512vpopcntdq": "avx512_vpopcntdq",
            "avxvnni": "avx_vnni",
            "bmi": "bmi1",
            "lzcnt": "abm",
            "pclmul": "pclmulqdq",
            "sahf": "lahf_lm",
            "sha": "sha_ni",
            "sse3": "pni",
            "sse4.1": "sse4_1",
            "sse4.2": "sse4_2",
        },
    ),
    "ARM64": _features(
        "bf16 flagm i8mm sve sve2",
        {
            "aes": "aes pmull",
            "complxnum": "fcma",
            "crc": "crc32",
            "dotprod": "asimddp",
            "fp-armv8": "fp",
            "fp16fml": "asimdfhm",
            "fullfp16": "asimdhp fphp",
            "jsconv": "jscvt",
            "lse": "atomics",
            "lse2": "uscat",
            "neon": "asimd",
            "rcpc": "lrcpc",
            "rcpc-immo": "ilrcpc",
            "rdm": "asimdrdm",
            "sha2": "sha1 sha2",
            "sha3": "sha3 sha512",
        },
    ),
}


def instruction_flags(options: Mapping[str, str]) -> frozenset[str]:
    """Return the CPU flags, as /proc/cpuinfo prints them, that a package with these compiler options needs.

    `mattr` takes away only what it names: `-avx` leaves avx2 needed.

    Raises:
        PackagingRefused: the options name an instruction set or a feature that is not in the tables.

    """
    if not any(key in options for key in CPU_OPTIONS):
        return frozenset()
    # Where `mcpu` is not written out it is ARM64, and means any of them: see DEFAULT_MCPU.
    mcpu, mattr = options.get("mcpu", "generic"), options.get("mattr")
    arch = next((arch for arch, sets in INSTRUCTION_SETS.items() if mcpu in sets), None)
    if arch is None:
        raise PackagingRefused(f"The compiler option mcpu is {shown(mcpu)}, which is not known.")
    flags = INSTRUCTION_SETS[arch][mcpu]
    for item in _items(mattr, arch, "The compiler options") if mattr is not None else ():
        named = FEATURES[arch][item[1:]]
        flags = flags | named if item[0] == "+" else flags - named
    return flags


def read_options(text: str | None, target: Target, name: str) -> dict[str, str]:
    """Return the compiler options in `text`, a JSON object or None, with every default written out.

    `name` is how the caller wrote this setting.

    Raises:
        PackagingRefused: they are not JSON, name what is not known, or do not go with the target.

    """
    if target.device:
        gpu_code = DEVICES[target.device].gpu_code
        if text is not None:
            raise PackagingRefused(
                f"{name} is {shown(text)}; it must be left out, because {target.device} has its own ({gpu_code})."
            )
        return {"gpu-code": gpu_code}
    options = {} if text is None else _parse(text, name)
    if target.accelerator:
        return _gpu_options(options, name)
    return _cpu_options(options, target.arch, name)


def _parse(text: str, name: str) -> dict[str, str]:
    """Return the JSON object in `text`; every value is text, lists of features are joined by commas."""
    if len(text) > LONGEST_OPTIONS:
        raise PackagingRefused(f"{name} has {len(text)} characters; it must have at most {LONGEST_OPTIONS}.")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) != len(pairs):
            raise PackagingRefused(f"{name} is {shown(text)}; it must give each option once.")
        return values

    try:
        content = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise PackagingRefused(
            f"{name} is {shown(text)}; it must be a JSON object with its texts in double quotes, "
            'as in {"mcpu": "core-avx2"}.'
        )
    for key, value in content.items():
        # The original's own example of `mattr` is a list.
        if key == "mattr" and isinstance(value, list) and all(isinstance(item, str) for item in value):
            content[key] = ",".join(value)
        elif not isinstance(value, str):
            raise PackagingRefused(f"{name}: {shown(key)} is {value!a:.80}; it must be text.")
    return content


def _gpu_options(options: Mapping[str, str], name: str) -> dict[str, str]:
    _refuse_unknown(options, GPU_OPTIONS, "with the accelerator NVIDIA", name)
    for key, (rule, words) in GPU_OPTIONS.items():
        if key not in options:
            raise PackagingRefused(f"{name} lacks {key}, which the accelerator NVIDIA needs: {words}.")
        if not rule.fullmatch(options[key]):
            raise PackagingRefused(f"{name}: {key} is {shown(options[key])}; it must be {words}.")
    return {key: options[key] for key in GPU_OPTIONS}


def _cpu_options(options: Mapping[str, str], arch: str, name: str) -> dict[str, str]:
    _refuse_unknown(options, CPU_OPTIONS, "without an accelerator", name)
    options = {**({"mcpu": DEFAULT_MCPU[arch]} if arch in DEFAULT_MCPU else {}), **options}
    mcpu = options.get("mcpu")
    if mcpu is not None and mcpu not in INSTRUCTION_SETS[arch]:
        known = ", ".join(INSTRUCTION_SETS[arch])
        raise PackagingRefused(f"{name}: mcpu is {shown(mcpu)}; on {arch} it must be one of {known}.")
    if "mattr" in options:
        _items(options["mattr"], arch, name)
    return options


def _refuse_unknown(
    options: Mapping[str, str], known: Mapping[str, object] | tuple[str, ...], when: str, name: str
) -> None:
    for key in options:
        if key not in known:
            raise PackagingRefused(f"{name} has {shown(key)}; the options {when} are {', '.join(known)}.")


def _items(mattr: str, arch: str, name: str) -> tuple[str, ...]:
    """Return the items of `mattr`, each a sign and a known feature, none named twice."""
    items = tuple(mattr.split(","))
    for item in items:
        if item[:1] not in {"+", "-"} or item[1:] not in FEATURES[arch]:
            raise PackagingRefused(
                f"{name}: mattr has {shown(item)}; it must be features joined by commas, each with + or -, "
                f"as in +f16c,-fma; on {arch} there are {', '.join(sorted(FEATURES[arch]))}."
            )
    if len({item[1:] for item in items}) != len(items):
        raise PackagingRefused(f"{name}: mattr is {shown(mattr)}; it must name each feature once.")
    return items
