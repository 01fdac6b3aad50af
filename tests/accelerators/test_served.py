"""Models on accelerators over the real socket: what is chosen, told and refused, with no GPU and with one that is made up."""

import json
import os
import platform
import resource
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edge_agent import device, gpus
from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent.accelerators import NO_DRIVER, ON_CPU
from model_packager import writing
from support import fake_gpu, packages
from support.agent import PLENTY, Agent, serving
from support.calls import EXHAUSTED, INTERNAL, OK, PRECONDITION, outcome, request
from support.waiting import until

ARCH = "ARM64" if platform.machine() in device.MACHINES["ARM64"] else "X86_64"
NVIDIA = {"accelerator": "NVIDIA", "compiler_options": {"gpu-code": "sm_89"}}
NO_GPU_NOTE = "The package was compiled for GPU sm_89 (here: none)."
REFUSED = f"The package was compiled for NVIDIA, and there is no GPU for it: {NO_DRIVER} {ON_CPU}"
FELL_BACK = f"Runs on the CPU, since it cannot run on a GPU: {NO_DRIVER}"
NO_ENGINE = "TensorRT cannot take the model: an operator is not known."
NO_MEMORY = "CUDA error 2 (cudaErrorMemoryAllocation)."

GREY, WHITE = b"\x80" * (3 * 64 * 64), b"\xff" * (3 * 64 * 64)

without_driver = pytest.mark.skipif(gpus.driver_there(), reason="there is a driver of NVIDIA's")


def packaged(folder: Path, target: dict[str, Any] | None = None) -> Path:
    """Write a package named as its folder; one with a `target` was compiled for that."""
    more = {} if target is None else {"target": {"os": "LINUX", "arch": ARCH, **target}}
    writing.write(folder, packages.manifest(), packages.brightness(mask=False), folder.name, more=more)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def judge(agent: Agent, name: str, pixels: bytes = GREY) -> int:
    return outcome(agent.stub().DetectAnomalies, request(name, 64, 64, pixels))[0]


def told(agent: Agent, name: str) -> tuple[str, str]:
    model = agent.describe(name)
    return pb2.ModelStatus.Name(model.status), model.status_message


def listed(agent: Agent, name: str) -> str:
    models = agent.stub().ListModels(pb2.ListModelsRequest(), timeout=PLENTY).models
    return next(one.status_message for one in models if one.model_component == name)


def start(agent: Agent, name: str) -> tuple[int, str]:
    return outcome(agent.stub().StartModel, pb2.StartModelRequest(model_component=name))[:2]


def started(agent: Agent, name: str) -> tuple[str, str]:
    """Start a model; return how that came out."""
    assert start(agent, name)[0] == OK
    until(lambda: agent.state(name) != "STARTING", f"{name} has started", PLENTY)
    return told(agent, name)


def in_status(agent: Agent, name: str) -> dict[str, Any]:
    """Return what the status file says of a model, once it says that it runs."""

    def look() -> dict[str, Any] | None:
        found = next(one for one in agent.status()["models"] if one["model"] == name)
        return found if found["state"] == agent.state(name) else None

    return until(look, "the status file follows")


@without_driver
class TestNoGpu:
    def test_a_package_for_nvidia_is_failed_at_once(self, folder):
        packaged(folder / "models" / "jetson", NVIDIA)
        packaged(folder / "models" / "onnx")
        with serving(folder / "models") as agent:
            assert told(agent, "jetson") == ("FAILED", REFUSED)
            assert listed(agent, "jetson") == REFUSED
            assert judge(agent, "jetson") == PRECONDITION
            assert started(agent, "jetson") == ("FAILED", REFUSED)
            # What was made for nothing in particular runs as ever, and needs no word of it.
            assert started(agent, "onnx") == ("RUNNING", "")
            assert (in_status(agent, "onnx")["accelerator"], in_status(agent, "onnx")["fallback"]) == ("cpu", None)
            assert agent.counted("onnx", "fell_back") == 0

    def test_with_fallback_allowed_it_runs_on_the_cpu_and_says_so(self, folder):
        packaged(folder / "models" / "jetson", NVIDIA)
        with serving(folder / "models", fallback="allowed") as agent:
            assert told(agent, "jetson") == ("STOPPED", NO_GPU_NOTE)
            assert started(agent, "jetson") == ("RUNNING", f"{FELL_BACK} {NO_GPU_NOTE}")
            assert listed(agent, "jetson").startswith(FELL_BACK)
            assert judge(agent, "jetson") == OK
            found = in_status(agent, "jetson")
            assert (found["provider"], found["accelerator"]) == ("CPUExecutionProvider", "cpu")
            assert found["fallback"] == FELL_BACK
            until(lambda: agent.counted("jetson", "fell_back") == 1, "it is counted")
            assert f"jetson: {FELL_BACK}" in agent.log()

    def test_settings_of_one_model(self, folder):
        for name in ("slow", "allowed", "never"):
            packaged(folder / "models" / name, NVIDIA)
        own = {"slow": {"accelerator": "cpu"}, "allowed": {"fallback": "allowed"}}
        with serving(folder / "models", model_settings=own) as agent:
            note = "The package was compiled for NVIDIA, and the setting `accelerator` has it run on the CPU."
            assert started(agent, "slow") == ("RUNNING", f"{NO_GPU_NOTE} {note}")
            assert in_status(agent, "slow")["fallback"] is None
            assert started(agent, "allowed")[0] == "RUNNING"
            assert told(agent, "never") == ("FAILED", REFUSED)

    @pytest.mark.parametrize("wanted", ["cuda", "tensorrt"])
    def test_an_accelerator_that_is_set_is_for_every_model(self, folder, wanted):
        packaged(folder / "models" / "onnx")
        packaged(folder / "models" / "mine", {})
        with serving(folder / "models", accelerator=wanted) as agent:
            for name in ("onnx", "mine"):
                sentence = f"The setting `accelerator` is {wanted}, which cannot be used: {NO_DRIVER} {ON_CPU}"
                assert told(agent, name) == ("FAILED", sentence)

    def test_no_driver_costs_no_process(self, folder):
        packaged(folder / "models" / "onnx")
        with serving(folder / "models") as agent:
            # The forkserver, and what tracks its resources: nobody who asks NVML.
            commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in agent.children()]
            assert [one for one in commands if b"probe" in one] == []
            maps = Path(f"/proc/{agent.pid}/maps").read_text()
            assert "nvidia" not in maps


@contextmanager
def on_gpu(folder: Path, fake: dict[str, Any], **settings: Any) -> Iterator[Agent]:
    """Yield an agent on a device with a made-up GPU, and the packages `gpu`, `onnx` and `mine`."""
    for name, target in (("gpu", NVIDIA), ("onnx", None), ("mine", {})):
        packaged(folder / "models" / name, target)
    agent = Agent(folder / "models", **settings)
    try:
        yield agent.start(**fake_gpu.environment(folder, **fake))
    finally:
        agent.close()


def ways(folder: Path) -> list[str]:
    return [one["accelerator"] for one in fake_gpu.asked(folder)]


class TestGpu:
    def test_each_runs_on_what_it_was_made_for(self, folder):
        settings = {
            "precision": "fp16",
            "cuda_graphs": False,
            "gpu_memory_limit": 3 << 30,
            "engine_cache_size": 5 << 20,
        }
        with on_gpu(folder, {"count": 2}, gpu=1, **settings) as agent:
            for name, way in (("gpu", "tensorrt"), ("onnx", "cuda"), ("mine", "cpu")):
                assert started(agent, name) == ("RUNNING", "")
                assert judge(agent, name) == OK
                found = in_status(agent, name)
                assert (found["accelerator"], found["fallback"]) == (way, None)
            assert in_status(agent, "gpu")["provider"] == "Imaginary tensorrt"
            engines = Path(agent.settings["state_dir"]) / "engines"
            assert fake_gpu.asked(folder)[0] == {
                "accelerator": "tensorrt",
                "limited": resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY,
                "index": 1,
                "name": fake_gpu.NAME,
                "code": fake_gpu.CODE,
                "driver": fake_gpu.DRIVER,
                "memory_limit": 3 << 30,
                "precision": "fp16",
                "graphs": False,
                "engines": str(engines),
                "engines_size": 5 << 20,
            }
            assert stat.S_IMODE(engines.stat().st_mode) == 0o700
            assert ways(folder) == ["tensorrt", "cuda"]
            assert engines.stat().st_uid == agent.user.uid

    def test_the_next_way_is_told(self, folder):
        with on_gpu(folder, {"tensorrt": {"missing": NO_ENGINE}}) as agent:
            sentence = f"Runs on CUDA, since it cannot run on TensorRT: {NO_ENGINE}"
            assert started(agent, "gpu") == ("RUNNING", sentence)
            assert in_status(agent, "gpu")["fallback"] == sentence
            (worker,) = agent.workers()
            os.kill(worker, 9)
            until(lambda: agent.workers() not in ([], [worker]) and told(agent, "gpu")[1] == sentence, "it is replaced")
            assert ways(folder) == ["tensorrt", "cuda", "cuda"], "a restart knows what worked"

    @pytest.mark.parametrize("how", ["missing", "failed"])
    def test_nothing_is_left(self, folder, how):
        fake = {"tensorrt": {how: NO_ENGINE}, "cuda": {how: NO_MEMORY}}
        with on_gpu(folder, fake) as agent:
            sentence = f"The model cannot run on TensorRT: {NO_ENGINE} Nor on CUDA: {NO_MEMORY} {ON_CPU}"
            assert started(agent, "gpu") == ("FAILED", sentence)
            assert "Traceback" not in agent.log()
            # Made for nothing in particular: the CPU is no fault, but it is said.
            told_ = ("RUNNING", f"Runs on the CPU, since it cannot run on CUDA: {NO_MEMORY}")
            assert started(agent, "onnx") == told_

    def test_fallback_to_the_cpu(self, folder):
        fake = {"tensorrt": {"failed": NO_ENGINE}, "cuda": {"failed": NO_MEMORY}}
        with on_gpu(folder, fake, fallback="allowed") as agent:
            reasons = f"TensorRT: {NO_ENGINE} Nor on CUDA: {NO_MEMORY}"
            assert started(agent, "gpu") == ("RUNNING", f"Runs on the CPU, since it cannot run on {reasons}")
            assert judge(agent, "gpu") == OK

    def test_what_is_done_is_told_while_it_starts(self, folder):
        texts = [f"Building the TensorRT engine: layer {number} of 3." for number in (1, 2, 3)]
        # An engine may take longer than a model may take to load.
        with on_gpu(folder, {"tensorrt": {"building": texts}}, load_timeout=3, build_timeout=120) as agent:
            begin = time.monotonic()
            assert start(agent, "gpu")[0] == OK
            for number, text in enumerate(texts):
                until(lambda text=text: told(agent, "gpu") == ("STARTING", text), "it is told")
                if number == 2:
                    time.sleep(max(0.0, begin + 3.2 - time.monotonic()))
                fake_gpu.go_on(folder, number)
            until(lambda: agent.state("gpu") != "STARTING", "it has started")
            assert told(agent, "gpu") == ("RUNNING", "")

    def test_a_build_that_takes_too_long(self, folder):
        fake = {"tensorrt": {"building": ["Building."]}}
        with on_gpu(folder, fake, load_timeout=30, build_timeout=1) as agent:
            state, message = started(agent, "gpu")
            assert state == "FAILED"
            assert "it did not load within 1 s (build_timeout)" in message
            assert agent.workers() == []

    def test_a_gpu_that_fails_in_a_call_costs_the_process(self, folder):
        with on_gpu(folder, {"tensorrt": {"broken_by_white": True}}) as agent:
            assert started(agent, "gpu")[0] == "RUNNING"
            (worker,) = agent.workers()
            assert judge(agent, "gpu") == OK
            code, details, _ = outcome(agent.stub().DetectAnomalies, request("gpu", 64, 64, WHITE))
            assert code == INTERNAL
            assert "its GPU failed: CUDA error 700 (cudaErrorIllegalAddress)." in details
            assert judge(agent, "gpu") == OK, "another one is started, with a context of its own"
            assert worker not in agent.workers()
            assert ways(folder) == ["tensorrt"] * 2
            until(lambda: agent.counted("gpu", "died") == 1, "it is counted")
            assert "Traceback" not in agent.log()

    def test_all_slots_end_with_it(self, folder):
        with on_gpu(folder, {"tensorrt": {"broken_by_white": True}}, slots=2, restart="never") as agent:
            assert started(agent, "gpu")[0] == "RUNNING"
            codes: list[int] = []
            ended = threading.Event()

            def call() -> None:
                while not ended.is_set():
                    codes.append(judge(agent, "gpu"))

            calls = [threading.Thread(target=call) for _ in range(3)]
            for one in calls:
                one.start()
            until(lambda: len(codes) > 9, "they are answered")
            assert judge(agent, "gpu", WHITE) == INTERNAL
            ended.set()
            for one in calls:
                one.join(PLENTY)
            state, message = told(agent, "gpu")
            assert state == "FAILED"
            assert "its GPU failed: CUDA error 700" in message
            assert set(codes) <= {OK, INTERNAL, PRECONDITION}
            assert agent.workers() == []


class TestGpuMemory:
    def test_too_little_is_refused_by_the_start(self, folder):
        with on_gpu(folder, {"free": 600 << 20}) as agent:
            code, details = start(agent, "gpu")
            assert code == EXHAUSTED
            assert details == (
                "Loading the model needs about 513 MiB of GPU memory; 344 MiB are free above the reserve. Stop another model, or "
                "lower gpu_memory_reserve."
            )
            assert agent.state("gpu") == "STOPPED"
            assert ways(folder) == []

    def test_what_a_model_states_counts(self, folder):
        own = {"gpu": {"gpu_memory": 100 << 20}}
        with on_gpu(folder, {"free": 600 << 20}, model_settings=own) as agent:
            assert started(agent, "gpu") == ("RUNNING", "")

    def test_where_the_cpu_may_take_over_it_does(self, folder):
        with on_gpu(folder, {"free": 600 << 20}, fallback="allowed") as agent:
            state, message = started(agent, "gpu")
            assert state == "RUNNING"
            assert message.startswith(
                "Runs on the CPU, since it cannot run on TensorRT: Loading the model needs about 513 MiB of GPU memory; 344 MiB"
            )
            assert ways(folder) == [], "the reserve is left alone"
            assert started(agent, "onnx")[1].startswith(
                "Runs on the CPU, since it cannot run on CUDA: Loading the model"
            )

    def test_two_that_start_at_once_do_not_count_on_the_same(self, folder):
        packaged(folder / "models" / "second", NVIDIA)
        fake = {"free": 1100 << 20, "tensorrt": {"building": ["Building."]}}
        with on_gpu(folder, fake) as agent:
            assert start(agent, "gpu")[0] == OK
            assert start(agent, "second")[0] == EXHAUSTED
            fake_gpu.go_on(folder, 0)
            until(lambda: agent.state("gpu") == "RUNNING", "the first is loaded")
            assert start(agent, "second")[0] == OK, "by now what is free is what the driver says"


def test_a_driver_that_hangs_delays_no_other_model(folder):
    with on_gpu(folder, {"hangs": 600}) as agent:
        assert started(agent, "mine")[0] == "RUNNING"
        state, message = told(agent, "gpu")
        assert state == "FAILED"
        assert "NVIDIA's driver library was asked, and it did not answer in time." in message
        assert json.dumps(agent.status())
