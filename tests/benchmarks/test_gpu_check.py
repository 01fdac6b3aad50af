"""What gpu_check.py makes of what it sees, and its steps where they need no GPU."""

import copy
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.accelerators import Gpu, Here
from support.agent import place
from support.importing import beside

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
GOOD = {
    "missing": "",
    "parity": {
        "small": {
            "cuda": {
                "provider": "CUDAExecutionProvider",
                "ok": True,
                "complaint": "",
                "largest_score_difference": 0.0001,
                "largest_mask_difference": 0.001,
                "verdict_flips": 0,
            }
        }
    },
    "builds": {"small": {"built_s": 61.0, "cached_s": 1.0, "engine_bytes": 1}},
    "latency_ms": {"small": {"cuda": {"p50": 1.25, "p99": 2.0}}},
    "cycles": {"cuda": {"ok": True, "worst_left_bytes": 0}},
    "faults": {"cuda": {"error 700": {"ok": True, "seen": "CUDA error 700"}}},
}


@pytest.fixture(autouse=True)
def beside_the_benchmarks():
    """Import benchmarks as they are when they are run, here and in the processes that they start."""
    with beside(BENCHMARKS):
        yield


def of(name):
    return importlib.import_module(name)


def test_what_is_as_promised_is_no_failure():
    assert of("gpu_check").failures(GOOD) == []


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("parity", "small", "cuda"), {"failed": "the process died"}, "parity of small on cuda: the process died"),
        (("parity", "small", "cuda"), {"ok": False, "complaint": "1 of 8"}, "parity of small on cuda: 1 of 8"),
        (("builds", "small", "built_s"), {"failed": "no memory"}, "build of small: no memory"),
        (
            ("cycles", "cuda"),
            {"ok": False, "worst_left_bytes": 99},
            "start and stop on cuda: 99 bytes are left on the GPU",
        ),
        (("latency_ms", "small", "cuda"), {"failed": "no memory"}, "latency of small on cuda: no memory"),
        (("faults", "cuda", "error 700"), {"ok": False, "seen": "an answer"}, "error 700 on cuda: an answer"),
    ],
)
def test_what_is_not_is_told(path, value, told):
    result = copy.deepcopy(GOOD)
    inner = result
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    assert of("gpu_check").failures(result) == [told]


def test_table_has_each_package_on_each_accelerator():
    result = copy.deepcopy(GOOD)
    result["parity"]["small"]["tensorrt"] = {"failed": "TensorRT cannot take the model"}
    assert of("gpu_check").table(result).splitlines() == [
        "| package | on | provider | score differs by | mask | verdicts that differ |",
        "|---|---|---|---|---|---|",
        "| small | cuda | CUDAExecutionProvider | 0.000100 | 0.100% | 0 |",
        "| small | tensorrt | TensorRT cannot take the model | | | |",
        "",
        "| latency p50, ms | cuda |",
        "|---|---|",
        "| small | 1.25 |",
    ]


def test_what_can_be_used_is_what_the_device_has():
    check, gpu = of("gpu_check"), Gpu(0, "L4", "sm_89")
    assert check.usable(Here()) == ()
    assert check.usable(Here((gpu,), no_gpu="", no_tensorrt="TensorRT is not installed.")) == ("cuda",)
    assert check.usable(Here((gpu,), no_gpu="")) == ("cuda", "tensorrt")
    assert (
        check.needs(Here((gpu,), no_gpu="", no_tensorrt="TensorRT is not installed.")) == "TensorRT is not installed."
    )


def test_packages_are_made_for_the_gpu_that_is_here():
    here = Here((Gpu(0, "L4", "sm_89"),), "550.54.15", "12.4", "10.16.1.11", no_gpu="")
    target = of("gpu_models").made_for(here)
    assert target.accelerator == "NVIDIA"
    assert target.options == {"gpu-code": "sm_89", "trt-ver": "10.16.1", "cuda-ver": "12.4"}
    assert of("gpu_models").made_for(Here()) is None


@pytest.mark.skipif(Path("/proc/driver/nvidia/version").exists(), reason="there is a driver: it would run")
def test_without_a_gpu_one_line_says_what_it_needs():
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "gpu_check.py"], check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        "SKIPPED: it needs an NVIDIA GPU with its driver, and the extras `cuda` and `tensorrt`."
    )
    assert done.stdout.count("\n") == 1


@pytest.fixture(scope="module")
def small():
    """(place, models by name): the small classifier alone."""
    with pytest.MonkeyPatch.context() as patch, beside(BENCHMARKS):
        models, steps = of("gpu_models"), of("gpu_steps")
        patch.setattr(models, "COOKIES", Path("/nowhere"))
        folder = place()
        (folder / "models").mkdir()
        made = models.make(folder / "models", Here())
        yield steps.Place(folder, Here()), {one.name: one for one in made}
        shutil.rmtree(folder)


class TestSteps:
    """On the CPU, where nothing of a GPU is left to be seen."""

    @pytest.mark.parametrize("precision", ["fp32", "fp16"])
    def test_agreement(self, small, precision):
        where, models = small
        told = of("gpu_steps").in_process(of("gpu_steps").agreement, where, models[f"small-{precision}"], "cpu")
        assert told["ok"], told
        assert (told["provider"], told["images"], told["verdict_flips"]) == ("CPUExecutionProvider", 8, 0)

    def test_disagreement_is_seen(self, small, monkeypatch):
        where, models = small
        steps = of("gpu_steps")
        monkeypatch.setitem(steps.parity.TOLERANCES, "fp16", steps.parity.Tolerance(0, 0))
        told = steps.agreement(where, models["small-fp16"], "cpu")
        assert not told["ok"]
        assert told["complaint"].startswith("a score differs by ")

    def test_what_cannot_be_run_is_a_sentence(self, small):
        where, models = small
        gpu = of("gpu_steps").Place(where.folder, Here((Gpu(0, "L4", "sm_89"),), no_gpu=""))
        told = of("gpu_steps").in_process(of("gpu_steps").agreement, gpu, models["small-fp32"], "cuda")
        assert set(told) == {"failed"}
        assert "CUDAExecutionProvider" in told["failed"]

    def test_process_that_dies_is_a_sentence(self):
        assert of("gpu_steps").in_process(os._exit, 3) == {"failed": "the process died"}

    def test_cycles_and_a_killed_worker(self, small):
        where, models = small
        told = of("gpu_steps").cycles(where, models["small-fp32"], "cpu", 2)
        assert (told["cycles"], told["ok"]) == (2, True)
        fault = of("gpu_faults").killed(where, models["small-fp32"], "cpu")
        assert fault.ok
        assert fault.seen.startswith("answered again, confidence 0.")
