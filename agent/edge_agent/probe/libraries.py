"""Which of NVIDIA's libraries are installed, as Python's distributions tell and the files of shared libraries.

None is loaded: TensorRT alone would take hundreds of megabytes. Names of distributions: PyPI, where the number after
`cu` is the major of CUDA; JetPack's own Python modules are a distribution `tensorrt`. A shared library's file is named
by its full version, the names that programs look for are links to it.
"""

import os
import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

TENSORRT = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
CUDA = ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu13", "nvidia-cuda-runtime-cu12")
CUDNN = ("nvidia-cudnn-cu13", "nvidia-cudnn-cu12")
FILE_VERSION = re.compile(r"\.so\.(\d+(?:\.\d+)*)$")


@dataclass(frozen=True)
class Libraries:
    """The versions of TensorRT, CUDA's runtime and cuDNN, empty where there is none; `sources` says from where."""

    tensorrt: str = ""
    cuda: str = ""
    cudnn: str = ""
    sources: tuple[str, ...] = ()


def look(folders: Iterable[Path] | None = None) -> Libraries:
    """Return what is installed: a Python distribution first, else the newest shared library in `folders`."""
    places = tuple(default_folders() if folders is None else folders)
    found, sources = {}, []
    for key, names, library in (
        ("tensorrt", TENSORRT, "libnvinfer.so"),
        ("cuda", CUDA, "libcudart.so"),
        ("cudnn", CUDNN, "libcudnn.so"),
    ):
        found[key], source = _distribution(names) or _shared_library(places, library)
        if source:
            sources.append(source)
    return Libraries(**found, sources=tuple(sources))


def default_folders() -> tuple[Path, ...]:
    """Return where the dynamic loader looks, as far as that is known without it (ld.so(8)), and where CUDA installs."""
    given = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    triplet = f"{platform.machine()}-linux-gnu"
    system = (f"/usr/lib/{triplet}", f"/lib/{triplet}", "/usr/lib64", "/usr/local/cuda/lib64", "/usr/local/lib")
    return tuple(Path(one) for one in (*given, *system) if one.startswith("/"))


def _distribution(names: Iterable[str]) -> tuple[str, str] | None:
    for name in names:
        try:
            found = version(name)
        except PackageNotFoundError:
            continue
        if found:  # None where the metadata is damaged
            return found, f"{name} {found} (Python)"
    return None


def _shared_library(folders: Iterable[Path], name: str) -> tuple[str, str]:
    best: tuple[tuple[int, ...], str, Path] | None = None
    for folder in folders:
        try:
            files = [one for one in folder.iterdir() if one.name.startswith(f"{name}.")]
        except OSError:
            continue
        for file in files:
            told = FILE_VERSION.search(Path(os.path.realpath(file)).name)
            if told and (key := tuple(map(int, told[1].split(".")))) and (best is None or key > best[0]):
                best = key, told[1], file
    return (best[1], str(best[2])) if best else ("", "")
