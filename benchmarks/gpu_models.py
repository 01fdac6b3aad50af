"""What gpu_check.py runs on a GPU: packages for it, of each precision, and the source that each is compared with."""

import json
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from harness import COOKIES, PHOTOGRAPHS, SHARED, compile_model, package, small_network

from edge_agent.accelerators import Here
from edge_agent.block import Target
from edge_agent.packages import Package
from model_packager import writing

ARCHITECTURES = {"x86_64": "X86_64", "aarch64": "ARM64"}
PRECISIONS = ("fp32", "fp16")


@dataclass(frozen=True)
class Model:
    """A package to check: its name and precision, the package that it was made from, and images to judge, if any."""

    name: str
    precision: str
    source: str
    images: str | None = None


def make(folder: Path, here: Here) -> list[Model]:
    """Write the packages into `folder`, each precision compiled for the GPU that is here; return what to check."""
    _write_source(folder / "small")
    sources: dict[str, tuple[Path, str | None]] = {"small": (folder / "small", None)}
    if COOKIES.is_dir():
        shutil.copytree(COOKIES, folder / "cookies-segmentation" / "component")
        images = str(PHOTOGRAPHS) if PHOTOGRAPHS.is_dir() else None
        sources["cookies-segmentation"] = folder / "cookies-segmentation" / "component", images
    else:
        print(f"SKIPPED: the cookies model, which is not in {SHARED}")
    models = []
    for source, (component, images) in sources.items():
        # Quantising needs real images to calibrate on.
        for precision in (*PRECISIONS, *(["int8"] if images else [])):
            name = f"{source}-{precision}"
            options = {"precision": precision, **({"images": images} if images else {})}
            compile_model(component, folder, name, _settings(here), **options)
            models.append(Model(name, precision, source, images))
    for one in (folder, *folder.rglob("*")):
        one.chmod(0o755 if one.is_dir() else 0o644)
    return models


def made_for(here: Here) -> Target | None:
    """Return the target of the packages, None where there is no GPU to compile for."""
    if not here.gpus:
        return None
    options = {
        "gpu-code": here.gpus[0].code,
        "trt-ver": ".".join((here.tensorrt_version or "10.0.0").split(".")[:3]),
        "cuda-ver": here.cuda_driver or "12.0",
    }
    return Target(ARCHITECTURES[platform.machine()], "NVIDIA", options=options)


def found(folder: Path, model: Model) -> tuple[Package, Package]:
    """Return the packages of a model and of its source."""
    return package(folder, model.name), package(folder, model.source)


def _write_source(folder: Path) -> None:
    """Write the small classifier as the packages of the field are, which is what can be packaged."""
    manifest = writing.mochi_manifest((224, 224), 0.5, (), normalize=True)
    (folder / "mochi").mkdir(parents=True)
    (folder / "mochi" / "model.onnx").write_bytes(small_network())
    told = {**manifest, "runtime": "onnx", "runtime_artifact": "model.onnx"}
    (folder / "manifest.json").write_text(json.dumps(told))


def _settings(here: Here) -> dict[str, object]:
    """Return what a packaging job's settings say of the device."""
    platform_wanted = {"Os": "LINUX", "Arch": ARCHITECTURES[platform.machine()]}
    target = made_for(here)
    if target is None:
        return {"TargetPlatform": platform_wanted}
    return {
        "TargetPlatform": {**platform_wanted, "Accelerator": target.accelerator},
        "CompilerOptions": json.dumps(dict(target.options)),
    }
