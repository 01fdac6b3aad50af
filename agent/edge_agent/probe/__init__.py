"""What this device is: its processor, its GPUs, the libraries for them and what the runtime really runs on.

Nothing here raises: what is not there, or cannot be found out, is a sentence. NVIDIA's library and the runtime are asked
in processes of their own, each of which is ended when it takes too long: a driver that hangs or a runtime that this
processor cannot run costs an answer, not the caller.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from edge_agent import device
from edge_agent.probe import cpu, gpu, jetson, libraries, runtime
from edge_agent.probe.child import Child
from edge_agent.probe.cpu import Cpu
from edge_agent.probe.gpu import Gpus
from edge_agent.probe.jetson import Jetson
from edge_agent.probe.libraries import Libraries
from edge_agent.probe.runtime import Runtime

# Seconds that a driver or a runtime may take to answer.
PATIENCE = 5.0


@dataclass(frozen=True)
class Device:
    """All that could be found out about a device."""

    cpu: Cpu
    gpus: Gpus
    jetson: Jetson | None
    libraries: Libraries
    runtime: Runtime

    @property
    def gpu_code(self) -> str:
        """The first GPU's code, as in sm_87, empty where none answers: NVML does not tell it on every Jetson."""
        first = next((one.code for one in self.gpus.found if one.code), "")
        return first or (self.jetson.gpu_code if self.jetson and (self.jetson.gpu_there or self.gpus.found) else "")

    def as_target(self) -> device.Device:
        """Return what the targets of packages are checked against."""
        return device.Device(
            self.cpu.machine, self.cpu.flags, self.gpu_code, self.libraries.tensorrt, self.gpus.cuda_driver
        )


class Look:
    """A look at the device that has begun; `finish` returns what was seen. Other work fits in between."""

    def __init__(self, patience: float = PATIENCE, runtimes: float = PATIENCE) -> None:
        """Begin to ask; the driver's answer has `patience` seconds from now, the runtime's `runtimes`.

        A runtime on a GPU takes longer: it loads CUDA's libraries, and TensorRT builds an engine.
        """
        now = time.monotonic()
        self._give_up, self._runtime_gives_up = now + patience, now + runtimes
        self._gpu, self._runtime = Child("gpu"), Child("runtime")

    def finish(self, root: Path = Path("/")) -> Device:
        """Return the device; `root` is above /proc, /sys, /etc and /dev, for the sake of recorded ones."""
        proc, sys = root / "proc", root / "sys"
        return Device(
            cpu.look(proc, sys),
            gpu.told(*self._gpu.answers(self._give_up), proc),
            jetson.look(proc, sys, root / "etc", root / "dev"),
            libraries.look(),
            runtime.told(*self._runtime.answers(self._runtime_gives_up)),
        )
