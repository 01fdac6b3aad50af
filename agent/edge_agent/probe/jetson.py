"""NVIDIA Jetson: which board and which release of its system, from the files by which they tell.

/proc/device-tree/model and compatible: the board and its SoC, NUL-terminated (Devicetree Specification, 2.3). The first
line of /etc/nv_tegra_release: "# R36 (release), REVISION: 4.3, ..." is Jetson Linux (L4T) 36.4.3. Which JetPack that is:
https://developer.nvidia.com/embedded/jetpack-archive. /sys/devices/soc0: Documentation/ABI/testing/sysfs-devices-soc.
"""

import re
from dataclasses import dataclass
from pathlib import Path

RELEASE = re.compile(r"# R(\d{1,4}) \(release\), REVISION: (\d{1,4}(?:\.\d{1,4})*)")
# The major of L4T -> the major of JetPack.
JETPACKS = {32: 4, 34: 5, 35: 5, 36: 6, 38: 7, 39: 7}
# JetPack 6.1, whose TensorRT 10.3 is the oldest that is supported; 36.2 and 36.3 are JetPack 6.0.
OLDEST = (36, 4)
# Of the integrated GPU: nvgpu's, and those of the drivers that Jetson shares with other GPUs.
GPU_FILES = ("nvgpu/igpu0", "nvhost-gpu", "nvidia0")
# The chip's number (include/soc/tegra/fuse.h) -> the SoC as `compatible` names it.
CHIPS = {0x21: "tegra210", 0x18: "tegra186", 0x19: "tegra194", 0x23: "tegra234", 0x26: "tegra264"}
# The SoC -> its GPU's code (https://developer.nvidia.com/cuda-gpus and, for the older, /cuda-legacy-gpus).
GPU_CODES = {"tegra210": "sm_53", "tegra186": "sm_62", "tegra194": "sm_72", "tegra234": "sm_87", "tegra264": "sm_110"}


@dataclass(frozen=True)
class Jetson:
    """A Jetson: the board, its SoC as tegraNNN, its GPU's code, and L4T as x.y.z; empty is what it does not tell.

    `gpu_there` says that a program here reaches the GPU's device file, which a container may lack.
    """

    board: str
    soc: str
    gpu_code: str
    l4t: str
    gpu_there: bool = False
    absent: tuple[str, ...] = ()

    @property
    def jetpack(self) -> int | None:
        """The JetPack, by its first number, None where it is not known."""
        return JETPACKS.get(int(self.l4t.partition(".")[0])) if self.l4t else None

    @property
    def too_old(self) -> bool:
        """Whether its system is known to be older than what is supported."""
        return bool(self.l4t) and tuple(map(int, self.l4t.split("."))) < OLDEST


def look(proc: Path, sys: Path, etc: Path, dev: Path) -> Jetson | None:
    """Return the Jetson that this is, None on any other device."""
    board = _text(proc / "device-tree/model") or _text(sys / "devices/soc0/machine")
    soc = _soc(proc, sys)
    release = _text(etc / "nv_tegra_release")
    if not soc and not release:
        return None
    found = RELEASE.match(release)
    l4t = f"{found[1]}.{found[2]}" if found else ""
    absent = []
    if not l4t:
        why = "is not as Jetson Linux writes it" if release else "is not there (in a container it is the host's)"
        absent.append(f"Which JetPack this is cannot be told: {etc / 'nv_tegra_release'} {why}.")
    if soc and soc not in GPU_CODES:
        absent.append(f"The GPU of the SoC {soc} is not known by its name.")
    there = any((dev / one).exists() for one in GPU_FILES)
    return Jetson(board, soc, GPU_CODES.get(soc, ""), l4t, there, tuple(absent))


def _soc(proc: Path, sys: Path) -> str:
    """Return the SoC as tegraNNN, empty on what is no Tegra."""
    names = _text(proc / "device-tree/compatible").split("\0")
    told = next((one.removeprefix("nvidia,") for one in names if re.fullmatch("nvidia,tegra[0-9]{2,4}", one)), "")
    if told:
        return told
    soc0 = sys / "devices/soc0"
    number = _text(soc0 / "soc_id")
    # In decimal: 35 is 0x23.
    if _text(soc0 / "family") == "Tegra" and number.isdecimal():
        return CHIPS.get(int(number), f"tegra-{number}")
    return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""
