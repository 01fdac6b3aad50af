"""`edge-agent package prebuild`: real processes on a device that seems to have a GPU; what it builds, the agent then uses.

NVML, TensorRT and CUDA are stand-ins at their own surfaces, which compute on the CPU.
"""

import json
import os
import platform
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_agent import device
from model_packager import writing
from support import packages
from support.agent import Agent, descendants, environment
from support.fake_gpu import NVML
from support.users import I_AM_ROOT, MYSELF, OTHER
from support.waiting import until

TESTS = Path(__file__).resolve().parents[1]
ARCH = "ARM64" if platform.machine() in device.MACHINES["ARM64"] else "X86_64"
VERSION = "10.16.1"
# There is a driver, and no provider of ONNX Runtime's for GPUs.
SITE = """
import json, os
from edge_agent import gpus
if json.loads(os.environ["FAKE_GPU"]).get("driver", True):
    gpus.DRIVER_FILES = ("proc/self/status",)
gpus._provider = lambda name: name in json.loads(os.environ["FAKE_GPU"]).get("providers", [])
"""
DEVICE = f"""
import json, os, signal, sys, time
FAKE = json.loads(os.environ["FAKE_GPU"])
sys.path.append({str(TESTS)!r})
from support.fake_cuda import FakeCuda
from support.fake_tensorrt import FakeTensorRt
CUDA = FakeCuda()
TENSORRT = FakeTensorRt(CUDA)
TENSORRT.refuses |= set(FAKE.get("refuses", []))
TENSORRT.fails |= FAKE.get("fails", {{}})
def build():
    os.write(1, FAKE.get("prints", "").encode())
    with open(FAKE["builds"], "a") as builds:
        builds.write("built\\n")
    if FAKE.get("crashes"):
        os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(FAKE.get("takes", 0))
TENSORRT.while_building = build
"""
MODULES = {
    "sitecustomize.py": SITE,
    "pynvml.py": NVML,
    "fake_device.py": DEVICE,
    "tensorrt.py": "import sys, fake_device\nsys.modules[__name__] = fake_device.TENSORRT.module\n",
    "cuda/__init__.py": "",
    "cuda/bindings/__init__.py": "",
    "cuda/bindings/runtime.py": "import sys, fake_device\nsys.modules[__name__] = fake_device.CUDA.module()\n",
}


def packaged(folder: Path, accelerator: str = "NVIDIA") -> Path:
    """Write a package with a `package` block that says what it was made for."""
    target = {"os": "LINUX", "arch": ARCH, "accelerator": accelerator}
    writing.write(folder, packages.manifest(), packages.brightness(mask=False), folder.name, more={"target": target})
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


class Place:
    """A folder with models and the agent's state, and a device with a GPU."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.models, self.state = folder, folder / "models", folder / "state"
        self.engines = self.state / "engines"
        self._builds = folder / "builds"
        self._builds.touch()
        self._fake: dict[str, Any] = {}
        self._modules = folder / "sdk"
        for name, code in MODULES.items():
            (self._modules / name).parent.mkdir(parents=True, exist_ok=True)
            (self._modules / name).write_text(code)

    def device(self, **fake: Any) -> None:
        """Say how the device fails."""
        self._fake = fake

    def driver(self, version: str) -> None:
        """Update the driver."""
        (self._modules / "pynvml.py").write_text(NVML.replace("550.54.15", version))

    def environment(self) -> dict[str, str]:
        path = os.pathsep.join(filter(None, (str(self._modules), os.environ.get("PYTHONPATH"))))
        fake = {"builds": str(self._builds), **self._fake}
        more = {"EDGE_AGENT_ALLOW_ROOT": "1"} if I_AM_ROOT else {}
        return environment(
            PYTHONPATH=path, FAKE_GPU=json.dumps(fake), EDGE_AGENT_STATE_DIR=str(self.state), COLUMNS="80", **more
        )

    def command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "edge_agent", "package", "prebuild", *map(str, arguments)]

    def run(self, *arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            env={**self.environment(), **env},
            cwd="/",
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def all(self, *arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
        """Build what is in the models folder, whatever it was made for."""
        return self.run(self.models, "--accelerator", "tensorrt", *arguments, **env)

    @property
    def builds(self) -> int:
        return len(self._builds.read_text().splitlines())

    def kept(self) -> list[Path]:
        return sorted(self.engines.glob("*.engine"))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def board(place: Place) -> Place:
    packages.segmenter(place.models / "board")
    return place


def line(model: str, what: str) -> re.Pattern[str]:
    return re.compile(rf"{model} 0\.0\.0: {what}, loaded in \d+\.\d s on TensorRT {re.escape(VERSION)}\n")


def test_an_engine_is_built_once_and_the_agent_uses_it(board: Place) -> None:
    """1. It is built. 2. The next time it is there. 3. The agent starts the model without building."""
    first = board.all()
    assert first.returncode == 0, first.stderr
    assert line("board", "built").fullmatch(first.stdout)
    assert "board: " in first.stderr  # the progress
    (engine,) = board.kept()
    content = engine.read_bytes()
    assert board.engines.stat().st_mode & 0o7777 == 0o700
    assert engine.stat().st_mode & 0o7777 == 0o600

    second = board.all()
    assert second.returncode == 0, second.stderr
    assert line("board", "in the cache already").fullmatch(second.stdout)

    agent = Agent(board.models, folder=board.folder, user=MYSELF, accelerator="tensorrt")
    try:
        agent.start(**board.environment())
        agent.run_model("board")
        until(lambda: agent.status()["models"][0]["provider"] == f"TensorRT {VERSION}", "the status file says so")
    finally:
        agent.close()
    assert board.builds == 1
    assert [one.read_bytes() for one in board.kept()] == [content]


def test_what_the_agent_built_need_not_be_built(board: Place) -> None:
    agent = Agent(board.models, folder=board.folder, user=MYSELF, accelerator="tensorrt")
    try:
        agent.start(**board.environment())
        agent.run_model("board")
        until(lambda: agent.status()["models"][0]["state"] == "RUNNING", "the status file says so")
        beside = board.all("--config", next(board.folder.glob("config-*.yaml")))
    finally:
        agent.close()
    assert line("board", "in the cache already").fullmatch(beside.stdout), beside.stderr
    assert beside.stderr.startswith("warning: the agent has board loaded; building takes the GPU's time and memory")
    assert board.builds == 1


def test_settings_say_where_models_are_and_which_of_them_need_engines(board: Place) -> None:
    packages.classifier(board.models / "part")
    packages.classifier(board.models / "plain")
    file = board.folder / "agent.yaml"
    own = {"board": {"accelerator": "tensorrt"}, "part": {"accelerator": "cpu"}}
    file.write_text(json.dumps({"models": [str(board.models)], "model_settings": own}))
    done = board.run("--config", file)
    assert done.returncode == 0, done.stderr
    first, *rest = done.stdout.splitlines(keepends=True)
    assert line("board", "built").fullmatch(first)
    assert rest == [
        "part 0.0.0: nothing to build. It runs on the CPU, for which no engine is built.\n",
        "plain 0.0.0: nothing to build. It runs on the CPU, for which no engine is built.\n",
    ]
    assert board.builds == 1


def test_the_setting_of_precision_makes_another_engine(board: Place) -> None:
    board.all()
    done = board.all(EDGE_AGENT_PRECISION="fp16")
    assert line("board", "built").fullmatch(done.stdout), done.stderr
    assert len(board.kept()) == 2
    assert board.builds == 2


def test_json(board: Place) -> None:
    packages.write(board.models / "broken", packages.manifest(), b"not ONNX")
    board.device(prints="The SDK prints, whatever stdout is for.\n")
    done = board.all("--json")
    assert done.returncode == 1
    assert "The SDK prints" in done.stderr
    told = json.loads(done.stdout)
    board_told, broken = told["models"]
    assert told["ok"] is False
    assert board_told.pop("seconds") > 0
    assert board_told == {
        "name": "board",
        "version": "0.0.0",
        "package": str(board.models / "board"),
        "outcome": "built",
        "reason": "",
        "provider": f"TensorRT {VERSION}",
    }
    assert (broken["name"], broken["outcome"], broken["seconds"]) == ("broken", "failed", None)
    assert "is no ONNX file" in broken["reason"]
    again = json.loads(board.run(board.models / "board", "--accelerator", "tensorrt", "--json").stdout)
    assert (again["ok"], [one["outcome"] for one in again["models"]]) == (True, ["kept"])


# What is built anew


def test_a_damaged_engine_is_built_anew(board: Place) -> None:
    board.all()
    (engine,) = board.kept()
    content = bytearray(engine.read_bytes())
    content[-1] ^= 1
    engine.write_bytes(content)
    done = board.all()
    assert done.returncode == 0
    assert line("board", "built").fullmatch(done.stdout)
    assert "since it is damaged" in done.stderr
    assert board.builds == 2


def test_after_an_update_of_the_driver_it_is_built_anew_and_the_old_one_goes(board: Place) -> None:
    board.all()
    before = board.kept()
    board.driver("560.1")
    done = board.all()
    assert line("board", "built").fullmatch(done.stdout), done.stderr
    assert len(board.kept()) == 1
    assert board.kept() != before


# What fails


def test_one_that_cannot_be_built_does_not_keep_the_others_from_it(board: Place) -> None:
    packages.classifier(board.models / "part")
    board.device(refuses=["Slice"])  # which the segmenter has
    done = board.all()
    assert done.returncode == 1
    assert line("part", "built").fullmatch(done.stdout)
    assert "board 0.0.0: FAILED: TensorRT cannot take the model" in done.stderr


def test_the_way_after_tensorrt_is_no_reason_to_be_content(place: Place) -> None:
    """The agent would run it with CUDA, or on the CPU where that may take over, and slower than somebody expects."""
    packaged(place.models / "made-for-it")
    place.device(refuses=["ReduceMean"], providers=["cuda"])
    done = place.run(place.models, EDGE_AGENT_FALLBACK="allowed")
    assert done.returncode == 1
    assert "made-for-it 1.0.0: FAILED: TensorRT cannot take the model" in done.stderr


def test_a_crash_of_the_sdk_is_told(board: Place) -> None:
    packages.classifier(board.models / "part")
    board.device(crashes=True)
    done = board.all()
    assert done.returncode == 1
    assert done.stdout == ""
    for name in ("board", "part"):
        assert f"{name} 0.0.0: FAILED: Its process ended: it was ended by signal 11 (SIGSEGV).\n" in done.stderr


def test_it_takes_no_longer_than_build_timeout(board: Place) -> None:
    board.device(takes=60)
    done = board.all(EDGE_AGENT_BUILD_TIMEOUT="1")
    assert done.returncode == 1
    assert "FAILED: Its process ended: it did not load within 1 s (build_timeout)." in done.stderr


def test_an_engine_that_cannot_be_kept_is_a_failure(board: Place) -> None:
    board.engines.mkdir(parents=True)
    board.state.chmod(0o700)
    board.engines.chmod(0o777)
    done = board.all()
    assert done.returncode == 1
    assert re.search(
        r"board 0\.0\.0: FAILED: The engine was built in \d+\.\d s and is not kept; the lines", done.stderr
    )
    assert "is not used, since others may write it" in done.stderr
    assert board.kept() == []


def test_one_of_other_options_that_is_kept_is_no_excuse(board: Place) -> None:
    board.all()
    size = board.kept()[0].stat().st_size
    done = board.all(EDGE_AGENT_PRECISION="fp16", EDGE_AGENT_ENGINE_CACHE_SIZE=str(size - 1))
    assert done.returncode == 1
    assert "is not kept, since the cache may have" in done.stderr
    assert "FAILED: The engine was built in" in done.stderr


def test_where_none_is_kept_none_is_built(board: Place) -> None:
    done = board.all(EDGE_AGENT_ENGINE_CACHE_SIZE="0")
    assert done.returncode == 1
    assert "FAILED: No engine would be kept; correct the setting engine_cache_size or state_dir." in done.stderr
    assert board.builds == 0


def test_a_package_that_was_changed_is_refused(place: Place) -> None:
    package = packaged(place.models / "changed")
    model = package / "mochi" / "model.onnx"
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    done = place.run(place.models)
    assert done.returncode == 1
    assert "was changed: its SHA-256 is not the one in package.files" in done.stderr
    assert place.builds == 0


# Devices without what it takes


def test_a_package_made_for_a_gpu_on_a_device_without_one(place: Place) -> None:
    packaged(place.models / "made-for-it")
    place.device(driver=False)
    done = place.run(place.models)
    assert done.returncode == 1
    assert "made-for-it 1.0.0: FAILED: The package was compiled for NVIDIA, and there is no GPU for it" in done.stderr
    allowed = place.run(place.models, EDGE_AGENT_FALLBACK="allowed")
    assert allowed.returncode == 0
    assert allowed.stdout.startswith("made-for-it 1.0.0: nothing to build. Runs on the CPU, since")


def test_what_runs_with_cuda_needs_no_engine(board: Place) -> None:
    board.device(providers=["cuda"])
    done = board.run(board.models)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "board 0.0.0: nothing to build. It runs on CUDA, for which no engine is built.\n"


def test_a_folder_without_packages(place: Place) -> None:
    place.models.mkdir()
    done = place.run(place.models)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"Error: There is no model package in {place.models}.\n"
    nowhere = place.run()
    assert nowhere.returncode == 1
    assert nowhere.stderr == "Error: There is no model package where the settings look; name their FOLDER.\n"


def test_a_registry_is_looked_at_too(place: Place) -> None:
    registry = place.folder / "work" / "agent" / "registry"
    registry.mkdir(parents=True, mode=0o755)
    done = place.run(EDGE_AGENT_REGISTRY=str(registry))
    assert "There is no model package where the settings look" in done.stderr
    missing = place.run(EDGE_AGENT_REGISTRY=str(registry / "missing"), EDGE_AGENT_REGISTRY_ROOTS="/srv")
    assert "There is no model package where the settings look" in missing.stderr


# Who builds


@pytest.mark.skipif(not I_AM_ROOT, reason="only root can give a folder to another user")
def test_the_state_of_another_user_is_left_alone(board: Place) -> None:
    board.state.mkdir(mode=0o700)
    os.chown(board.state, OTHER.uid, OTHER.gid)
    done = board.all()
    assert done.returncode == 2
    text = " ".join(done.stderr.split())
    assert f"{board.state} belongs to uid {OTHER.uid}, and an engine is loaded only by who built it." in text
    assert f"sudo -u '#{OTHER.uid}' edge-agent package prebuild" in text
    assert list(board.state.iterdir()) == []
    os.chown(board.state, 65534, 65534)
    assert "sudo -u nobody edge-agent package prebuild" in " ".join(board.all().stderr.split())


@pytest.mark.skipif(not I_AM_ROOT, reason="it is about root")
def test_root_builds_nothing_for_an_agent_that_is_another_user(board: Place) -> None:
    done = board.all(EDGE_AGENT_ALLOW_ROOT="0")
    assert done.returncode == 2
    assert "The agent does not run as root" in done.stderr
    assert "sudo -u USER" in done.stderr
    assert not board.state.exists()


def test_settings_that_make_no_sense_are_refused(board: Place) -> None:
    done = board.all(EDGE_AGENT_BUILD_TIMEOUT="never")
    assert done.returncode == 2
    assert "EDGE_AGENT_BUILD_TIMEOUT: Input should be a valid number" in done.stderr


# How it shows, and how it ends


def test_on_a_terminal_the_progress_is_one_line_that_goes(board: Place) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        board.command(board.models, "--accelerator", "tensorrt"),
        env=board.environment(),
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # nobody has the other end any more
                break
            shown += part
        out = process.stdout.read().decode()
    os.close(ours)
    assert process.returncode == 0
    assert "built" in out
    first, *rest = shown.decode().split("\r")
    assert first.startswith("board: ")
    told = [part for part in (first, *rest) if part.startswith("board: ")]
    assert all(len(part) < 80 for part in told)
    assert rest[-2].strip() == ""  # taken away
    assert rest[-1] == ""
    assert "\n" not in shown.decode()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, 1)])
def test_told_to_end_it_leaves_no_process_and_no_half_an_engine(board: Place, number: int, code: int) -> None:
    board.device(takes=60)
    with subprocess.Popen(
        board.command(board.models, "--accelerator", "tensorrt"),
        env=board.environment(),
        cwd="/",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        until(lambda: board.builds, "an engine is being built")
        children = descendants(process.pid)
        assert children
        process.send_signal(number)
        assert process.wait(30) == code
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), "its processes have ended")
    assert list(board.engines.iterdir()) == []
