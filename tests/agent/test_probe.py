"""What a device is, told from recorded files, and all of it together."""

import os
import time
from pathlib import Path

import pytest

from edge_agent import device, probe
from edge_agent.device import Device
from edge_agent.probe import child, cpu, jetson, libraries, limits
from edge_agent.probe.gpu import Gpu, Gpus
from edge_agent.probe.jetson import Jetson
from edge_agent.probe.limits import Limit
from edge_agent.probe.runtime import Runtime

PATIENT = 60.0
# Synthetic, in the form of arch/x86/kernel/cpu/proc.c.
X86 = """\
processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Imaginary Xeon(R) 9000 @ 2.00GHz
flags\t\t: fpu sse sse2 avx f16c fma avx2 avx512f avx512_vnni amx_int8
bugs\t\t: none

processor\t: 1
model name\t: Another
flags\t\t: fpu sse
"""
# Synthetic, in the form of arch/arm64/kernel/cpuinfo.c: the cores of a Jetson Orin.
ARM = """\
processor\t: 0
BogoMIPS\t: 62.50
Features\t: fp asimd crc32 fphp asimdhp asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd42
CPU revision\t: 1
"""
RELEASE = "# R36 (release), REVISION: 4.3, GCID: 12345678, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025\n"
ORIN = "NVIDIA Jetson Orin NX Engineering Reference Developer Kit\0"
TEGRA234 = "nvidia,p3768-0000+p3767-0000\0nvidia,p3767-0000\0nvidia,tegra234\0"


def write(root: Path, **files: str) -> Path:
    """Write files, whose paths have __ for slashes; return the root."""
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


class TestProcessor:
    def look(self, root: Path) -> cpu.Cpu:
        return cpu.look(root / "proc", root / "sys")

    def test_x86(self, tmp_path):
        found = self.look(write(tmp_path, proc__cpuinfo=X86))
        assert (found.vendor, found.model) == ("GenuineIntel", "Imaginary Xeon(R) 9000 @ 2.00GHz")
        assert found.notable == ("avx", "f16c", "fma", "avx2", "avx512f", "avx512_vnni", "amx_int8")
        assert found.absent == ()
        assert found.usable == len(os.sched_getaffinity(0))

    @pytest.mark.parametrize(
        ("implementer", "part", "named"),
        [
            ("0x41", "0xd42", ("ARM", "Cortex-A78AE")),
            ("0x41", "0xd08", ("ARM", "Cortex-A72")),
            ("0x4e", "0x004", ("NVIDIA", "Carmel")),
            ("0x41", "0xfff", ("ARM", "part 0xfff")),
            ("0x99", "0x001", ("implementer 0x99", "part 0x001")),
            ("odd", "odd", ("odd", "odd")),
        ],
    )
    def test_arm64_tells_numbers(self, tmp_path, implementer, part, named):
        text = ARM.replace("0x41", implementer).replace("0xd42", part)
        found = self.look(write(tmp_path, proc__cpuinfo=text))
        assert (found.vendor, found.model) == named
        assert found.notable == ("asimd", "asimdhp", "asimddp")

    def test_nothing_is_there(self, tmp_path):
        found = self.look(tmp_path)
        assert (found.vendor, found.model, found.flags, found.quota) == ("", "", frozenset(), None)
        assert found.absent == (f"{tmp_path}/proc/cpuinfo tells no features of the processor, so none is counted on.",)

    @pytest.mark.parametrize(
        ("own", "above", "quota"),
        [
            ("max 100000", "max 100000", None),
            ("150000 100000", "max 100000", 1.5),
            ("max 100000", "50000 100000", 0.5),
            ("150000 100000", "50000 100000", 0.5),
            ("odd", "200000 100000", 2.0),
            ("100000 0", "200000 100000", 2.0),
        ],
    )
    def test_the_least_quota_counts(self, tmp_path, own, above, quota):
        write(tmp_path, proc__self__cgroup="1:cpu:/v1\n0::/a/b\n")
        write(tmp_path / "sys/fs/cgroup", **{"a__b__cpu.max": own, "a__cpu.max": above})
        assert self.look(tmp_path).quota == quota

    def test_this_one(self):
        here = self.look(Path("/"))
        assert here.flags == device.cpu_flags(device.CPUINFO)
        assert 1 <= here.usable <= here.cores


class TestJetson:
    def look(self, root: Path) -> Jetson | None:
        return jetson.look(root / "proc", root / "sys", root / "etc", root / "dev")

    def orin(self, root: Path, release: str = RELEASE) -> Path:
        write(root, **{"proc__device-tree__model": ORIN, "proc__device-tree__compatible": TEGRA234})
        return write(root, etc__nv_tegra_release=release) if release else root

    def test_of_today(self, tmp_path):
        found = self.look(write(self.orin(tmp_path), **{"dev__nvhost-gpu": ""}))
        assert found == Jetson(ORIN.rstrip("\0"), "tegra234", "sm_87", "36.4.3", gpu_there=True)
        assert (found.jetpack, found.too_old) == (6, False)

    @pytest.mark.parametrize(
        ("l4t", "jetpack", "too_old"),
        [
            ("32.7.1", 4, True),
            ("34.1", 5, True),
            ("35.6.2", 5, True),
            ("36.2", 6, True),
            ("36.3.0", 6, True),
            ("36.4", 6, False),
            ("36.4.0", 6, False),
            ("36.5.0", 6, False),
            ("36.10.0", 6, False),
            ("38.2.1", 7, False),
            ("39.0", 7, False),
            ("99.0", None, False),
        ],
    )
    def test_releases(self, tmp_path, l4t, jetpack, too_old):
        major, _, revision = l4t.partition(".")
        found = self.look(self.orin(tmp_path, f"# R{major} (release), REVISION: {revision}, GCID: 1\n"))
        assert (found.l4t, found.jetpack, found.too_old) == (l4t, jetpack, too_old)

    @pytest.mark.parametrize("release", ["", "garbage\n", "# R36\n", "\0"])
    def test_a_release_that_is_not_told(self, tmp_path, release):
        found = self.look(self.orin(tmp_path, release))
        assert (found.l4t, found.jetpack, found.too_old, found.gpu_there) == ("", None, False, False)
        (sentence,) = found.absent
        assert sentence.startswith(f"Which JetPack this is cannot be told: {tmp_path}/etc/nv_tegra_release is not ")

    def test_by_soc0_where_there_is_no_device_tree(self, tmp_path):
        write(tmp_path / "sys/devices/soc0", family="Tegra\n", soc_id="35\n", machine="A board\n")
        found = self.look(tmp_path)
        assert (found.board, found.soc, found.gpu_code) == ("A board", "tegra234", "sm_87")

    def test_a_soc_that_is_not_known(self, tmp_path):
        write(tmp_path, **{"proc__device-tree__compatible": "nvidia,tegra999\0"})
        found = self.look(tmp_path)
        assert (found.soc, found.gpu_code) == ("tegra999", "")
        assert "The GPU of the SoC tegra999 is not known by its name." in found.absent

    @pytest.mark.parametrize(
        "files",
        [
            {},
            {"proc__device-tree__model": "Raspberry Pi 4\0", "proc__device-tree__compatible": "brcm,bcm2711\0"},
            {"sys__devices__soc0__family": "i.MX", "sys__devices__soc0__soc_id": "35"},
        ],
        ids=["PC", "Raspberry Pi", "i.MX"],
    )
    def test_other_devices_are_none(self, tmp_path, files):
        assert self.look(write(tmp_path, **files)) is None


class TestLibraries:
    def test_shared_libraries_are_found_by_their_files(self, tmp_path, monkeypatch):
        monkeypatch.setattr(libraries, "version", self.no_distribution)
        for name in ("libnvinfer.so.10.3.0", "libnvinfer.so.8.6.1", "libnvinfer_plugin.so.99.0.0", "libcudnn.so.9"):
            (tmp_path / name).touch()
        (tmp_path / "libnvinfer.so.10").symlink_to("libnvinfer.so.10.3.0")
        (tmp_path / "libcudart.so.12").symlink_to("nowhere.so.12.6.68")
        found = libraries.look([tmp_path / "missing", tmp_path])
        assert (found.tensorrt, found.cudnn) == ("10.3.0", "9")
        assert str(tmp_path / "libcudnn.so.9") in found.sources

    def test_distributions_come_first(self, tmp_path, monkeypatch):
        (tmp_path / "libnvinfer.so.10.3.0").touch()
        there = {"tensorrt": "10.13.2.6", "nvidia-cuda-runtime-cu12": "12.9.79"}

        def version(name):
            return there[name] if name in there else self.no_distribution(name)

        monkeypatch.setattr(libraries, "version", version)
        found = libraries.look([tmp_path])
        assert (found.tensorrt, found.cuda, found.cudnn) == ("10.13.2.6", "12.9.79", "")
        assert found.sources == ("tensorrt 10.13.2.6 (Python)", "nvidia-cuda-runtime-cu12 12.9.79 (Python)")

    def no_distribution(self, name):
        raise libraries.PackageNotFoundError(name)

    def test_only_absolute_folders_are_looked_into(self, monkeypatch):
        monkeypatch.setenv("LD_LIBRARY_PATH", "relative::/given")
        folders = libraries.default_folders()
        assert folders[0] == Path("/given")
        assert all(one.is_absolute() for one in folders)


class TestLimits:
    def test_recorded(self, tmp_path):
        text = (
            "Limit                     Soft Limit           Hard Limit           Units     \n"
            "Max cpu time              unlimited            unlimited            seconds   \n"
            "Max open files            1024                 524288               files     \n"
            "Max realtime timeout      unlimited            unlimited            us        \n"
        )
        write(tmp_path, **{"7__limits": text})
        found = limits.look(tmp_path, 7)
        assert found["open files"] == Limit(1024, 524288)
        assert found["cpu time"] == Limit(None, None)
        assert len(found) == 3

    def test_none(self, tmp_path):
        assert limits.look(tmp_path) == {}

    def test_ours(self):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert limits.look(Path("/proc"))["open files"] == Limit(soft, hard)


class TestDevice:
    def seen(self, gpus: Gpus, board: Jetson | None) -> probe.Device:
        processor = cpu.Cpu("aarch64", "ARM", "Cortex-A78AE", frozenset({"asimd"}), 8, 8, None)
        return probe.Device(processor, gpus, board, libraries.Libraries("10.3.0"), Runtime())

    @pytest.mark.parametrize(
        ("gpus", "board", "code"),
        [
            (Gpus((Gpu(0, "L4", (8, 9)),)), None, "sm_89"),
            (Gpus((Gpu(0, "?"), Gpu(1, "L4", (8, 9)))), None, "sm_89"),
            (Gpus((Gpu(0, "Orin"),)), Jetson("b", "tegra234", "sm_87", "36.4.3"), "sm_87"),
            (Gpus(), Jetson("b", "tegra234", "sm_87", "36.4.3", gpu_there=True), "sm_87"),
            (Gpus(), Jetson("b", "tegra234", "sm_87", "36.4.3"), ""),
            (Gpus(), None, ""),
        ],
    )
    def test_the_code_of_the_gpu(self, gpus, board, code):
        assert self.seen(gpus, board).as_target() == Device("aarch64", frozenset({"asimd"}), code, "10.3.0")

    def test_a_look_at_recorded_files(self, tmp_path):
        write(tmp_path, proc__cpuinfo=ARM, etc__nv_tegra_release=RELEASE, dev__nvgpu__igpu0="")
        write(tmp_path, **{"proc__device-tree__compatible": TEGRA234})
        found = probe.Look(PATIENT, PATIENT).finish(tmp_path)
        assert (found.cpu.model, found.jetson.soc) == ("Cortex-A78AE", "tegra234")
        assert found.runtime.serves

    def test_has_an_end_whatever_hangs(self, monkeypatch, tmp_path):
        """A driver and a runtime that hang cost their answers, and not more time than they are given."""
        (tmp_path / "hangs.py").write_text("import time; time.sleep(60)")
        monkeypatch.setattr(child, "__name__", "hangs")
        monkeypatch.syspath_prepend(tmp_path)
        begun = time.monotonic()
        found = probe.Look(1.0, 1.0).finish()
        assert time.monotonic() - begun < 5
        assert found.gpus.broken
        assert "it did not answer in time" in found.runtime.absent
