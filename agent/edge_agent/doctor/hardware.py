"""Findings about the device itself: processor, GPU, and what the runtime really runs on."""

from typing import Any

from edge_agent.accelerators import NVIDIA, ON_CPU, WORDS, Here
from edge_agent.block import Target
from edge_agent.config import Settings
from edge_agent.device import MACHINES
from edge_agent.doctor.report import Finding
from edge_agent.errors import PackageRefused, extra
from edge_agent.gpus import Gpus
from edge_agent.probe import Device
from edge_agent.probe.gpu import Gpu
from edge_agent.probe.runtime import CPU, TRIED
from edge_agent.ways import Ways

SECTION = "device"
REFLASH = "Flash the board with JetPack 6.1 or later; an older system cannot run today's runtimes on its GPU."


def data(device: Device) -> dict[str, Any]:
    """Return the facts as JSON has them."""
    cpu = device.cpu
    return {
        "cpu": {
            "machine": cpu.machine,
            "vendor": cpu.vendor,
            "model": cpu.model,
            "cores": cpu.cores,
            "usable": cpu.usable,
            "quota": cpu.quota,
            "features": sorted(cpu.flags),
        },
        "gpu": _gpu_data(device),
        "jetson": _jetson_data(device),
        "libraries": {
            "tensorrt": device.libraries.tensorrt or None,
            "cuda": device.libraries.cuda or None,
            "cudnn": device.libraries.cudnn or None,
        },
        "providers": {
            "listed": list(device.runtime.listed),
            "used": [one for one in device.runtime.listed if device.runtime.tried.get(one) == ""],
            "not_used": {name: why for name, why in device.runtime.tried.items() if why},
        },
    }


def _gpu_data(device: Device) -> dict[str, Any] | None:
    gpus = device.gpus
    if not gpus.found and not device.gpu_code:
        return None
    return {
        "driver": gpus.driver or None,
        "cuda_driver": gpus.cuda_driver or None,
        "code": device.gpu_code or None,
        "devices": [
            {
                "index": one.index,
                "name": one.name,
                "code": one.code or None,
                "memory_total": one.memory_total,
                "memory_free": one.memory_free,
            }
            for one in gpus.found
        ],
    }


def _jetson_data(device: Device) -> dict[str, Any] | None:
    jetson = device.jetson
    if jetson is None:
        return None
    return {"board": jetson.board, "soc": jetson.soc or None, "l4t": jetson.l4t or None, "jetpack": jetson.jetpack}


def processor(device: Device) -> list[Finding]:
    """Say what the processor is, and how much of it there is for us."""
    cpu = device.cpu
    cores = f"{cpu.cores} core{'s' * (cpu.cores != 1)}"
    if cpu.usable != cpu.cores:
        cores = f"{cpu.usable} of {cores}"
    if cpu.quota is not None:
        cores += f", the time of {cpu.quota:g} at most"
    # On x86 the model's name has the vendor's in it.
    name = cpu.model if cpu.machine in MACHINES["X86_64"] else f"{cpu.vendor} {cpu.model}".strip()
    features = f"; {' '.join(cpu.notable)}" if cpu.notable else ""
    told = [Finding(SECTION, "processor", "ok", f"{name or 'unnamed'}, {cpu.machine}, {cores}{features}")]
    return told + [Finding(SECTION, "processor", "none", one) for one in cpu.absent]


def gpu(device: Device) -> list[Finding]:
    """Say which GPUs answer, or why none does: a warning only where there is a driver for one."""
    told = [Finding(SECTION, "GPU", "ok", _shown(one, device)) for one in device.gpus.found]
    jetson = device.jetson
    if jetson and not told and device.gpu_code:
        text = f"the integrated GPU of {jetson.soc}, {device.gpu_code}; its memory is the system's"
        told.append(Finding(SECTION, "GPU", "ok", text))
    broken = device.gpus.broken and not told
    cure = f"Mend NVIDIA's driver, or {extra('cuda')}. Models made for a processor run meanwhile." if broken else ""
    told += [Finding(SECTION, "GPU", "warn" if broken else "none", one, cure) for one in device.gpus.absent]
    versions = {"TensorRT": device.libraries.tensorrt, "CUDA": device.libraries.cuda, "cuDNN": device.libraries.cudnn}
    told += [Finding(SECTION, name, "ok", found) for name, found in versions.items() if found]
    if device.gpus.found or device.gpu_code:  # else nobody misses them
        told += [Finding(SECTION, name, "none", "not installed") for name, found in versions.items() if not found]
    return told + _board(device)


def _shown(one: Gpu, device: Device) -> str:
    parts = [one.name or "unnamed", one.code or device.gpu_code or "of unknown code"]
    if one.memory_total is not None and one.memory_free is not None:
        parts.append(f"{one.memory_free >> 20} of {one.memory_total >> 20} MiB free")
    driver = device.gpus.driver
    parts.append(
        f"driver {driver or 'unknown'}{f' (CUDA {device.gpus.cuda_driver})' if device.gpus.cuda_driver else ''}"
    )
    return ", ".join(parts)


def _board(device: Device) -> list[Finding]:
    jetson = device.jetson
    if jetson is None:
        return []
    release = f"Jetson Linux {jetson.l4t}" if jetson.l4t else "a Jetson Linux of unknown version"
    jetpack = f" (JetPack {jetson.jetpack})" if jetson.jetpack else ""
    text = f"{jetson.board or jetson.soc}, {release}{jetpack}"
    if jetson.too_old:
        found = [
            Finding(
                SECTION,
                "Jetson",
                "warn",
                f"{text}, which is too old: JetPack 6.1 is the oldest that is supported",
                REFLASH,
            )
        ]
    else:
        found = [Finding(SECTION, "Jetson", "ok", text)]
    return found + [Finding(SECTION, "Jetson", "none", one) for one in jetson.absent]


def runtime(device: Device) -> list[Finding]:
    """Say what ONNX Runtime runs models on: what a session says, and not what it lists."""
    runtime = device.runtime
    if runtime.absent:
        cure = (
            f"{extra('cpu').capitalize()}."
            if not runtime.distributions
            else "Install the runtime again, or one for this processor."
        )
        return [Finding(SECTION, "runtime", "problem", runtime.absent, cure)]
    told = []
    if len(runtime.distributions) > 1:
        text = f"{' and '.join(runtime.distributions)} are installed over each other"
        cure = "Uninstall both, then install the one that you want."
        told.append(Finding(SECTION, "runtime", "warn", text, cure))
    told += [
        _provider(one, runtime.tried.get(one, "it was not tried"), device) for one in TRIED if one in runtime.listed
    ]
    if CPU not in runtime.listed:
        cure = "Install onnxruntime as it is on PyPI."
        text = f"ONNX Runtime {runtime.version} has no {CPU}"
        told.append(Finding(SECTION, "runtime", "problem", text, cure))
    return told


def _provider(provider: str, why: str, device: Device) -> Finding:
    name = f"ONNX Runtime {device.runtime.version}, {provider}"
    if not why:
        return Finding(SECTION, "runtime", "ok", f"{name}: a model runs on it")
    if provider == CPU:
        cure = "Run this again once the device is idle; else install the runtime again, or one for this processor."
        return Finding(SECTION, "runtime", "problem", f"{name}: no model runs on it: {why}", cure)
    if not device.gpus.found and not device.gpu_code:
        return Finding(SECTION, "runtime", "none", f"{name}: listed, but no NVIDIA GPU answers ({why})")
    cure = f"{extra('cuda').capitalize()}, of the CUDA version that this runtime wants. Models made for a processor run meanwhile."
    return Finding(SECTION, "runtime", "warn", f"{name}: listed, but not used: {why}", cure)


def accelerated(settings: Settings, here: Here) -> Finding:
    """Say what a package that was made for a GPU is run on, by the agent's settings."""
    label = "accelerator"
    try:
        choice = Ways(settings, Gpus(known=here)).of_target("", Target("", NVIDIA))
    except PackageRefused:
        text = f"An accelerated package will not run: {here.lacks('cuda', settings.gpu).rstrip('.')}"
        # Where there is no GPU, that is no fault.
        return Finding(SECTION, label, "warn", text, ON_CPU) if here.gpus else Finding(SECTION, label, "none", text)
    where = ", or else on ".join(WORDS[one] for one in choice.ways)
    why = "".join(f", since it cannot run on {one.what}: {one.why.rstrip('.')}" for one in choice.failed)
    return Finding(SECTION, label, "ok", f"An accelerated package will run on {where}{why}")
