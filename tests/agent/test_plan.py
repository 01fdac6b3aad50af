"""How a model is run: the options of its worker for each way, and the memory of a GPU that is set aside for it."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from edge_agent import packages as package_files
from edge_agent.accelerators import Failed, Gpu, Here
from edge_agent.block import Target
from edge_agent.config import Settings
from edge_agent.errors import NotEnoughMemory, PackageRefused
from edge_agent.gpus import Gpus
from edge_agent.jobs import GpuOptions
from edge_agent.memory import MemoryLedger
from edge_agent.packages import Found
from edge_agent.plan import GPU_BASE, Place, Planner
from edge_agent.ways import Ways
from support import packages

MIB = 1 << 20
GPU = Here((Gpu(0, "L4", "sm_89"), Gpu(1, "T4", "sm_75")), "550", "12.4", "10.3.0", no_gpu="")


class Told(Gpus):
    """GPUs that are known, with so much free memory."""

    def __init__(self, here: Here, free: int | None) -> None:
        super().__init__(known=here)
        self.bytes = free
        self.indices: list[int] = []

    def free(self, index: int) -> int | None:
        self.indices.append(index)
        return self.bytes


@pytest.fixture
def found(tmp_path) -> Found:
    tmp_path.chmod(0o755)
    packages.classifier(tmp_path / "board")
    return package_files.look(tmp_path / "board", tmp_path, package_files.Rules())


@pytest.fixture
def planner(tmp_path):
    """A function (here, free, **settings) -> Planner; `ledgers` has the account of the host's memory."""

    def make(here: Here = GPU, free: int | None = 20 << 30, **settings: Any) -> Planner:
        made = Settings(state_dir=tmp_path / "state", **settings)
        gpus = Told(here, free)
        planner = Planner("board", made, MemoryLedger(0), Ways(made, gpus), lambda _: {"threads": 3})
        planner.gpus = gpus
        return planner

    return make


class TestOptions:
    def test_of_each_way(self, planner, found, tmp_path):
        made = planner(gpu=1, precision="int8", gpu_memory_limit=5, cuda_graphs=False, engine_cache_size=7, slots=2)
        made.begin()
        cuda, cpu = made.plan(found).ways
        assert (cuda.accelerator, cpu.accelerator) == ("cuda", "cpu")
        assert cpu.gpu == GpuOptions(), "which nobody needs there"
        engines = str(tmp_path / "state" / "engines")
        assert cuda.gpu == GpuOptions(1, "T4", "sm_75", "550", 5, "int8", False, engines, 7)
        assert {(one.threads, one.slots) for one in (cuda, cpu)} == {(3, 2)}
        assert Path(engines).stat().st_mode & 0o777 == 0o700

    def test_a_models_own_settings_win(self, planner, found):
        own = {"gpu": 1, "precision": "fp16", "gpu_memory_limit": 9, "accelerator": "tensorrt", "fallback": "allowed"}
        ways = planner(precision="int8", model_settings={"board": own}).plan(found).ways
        assert [one.accelerator for one in ways] == ["tensorrt", "cpu"]
        assert (ways[0].gpu.index, ways[0].gpu.precision, ways[0].gpu.memory_limit) == (1, "fp16", 9)

    def test_no_folder_for_engines_is_no_reason_not_to_run(self, planner, found, tmp_path, caplog):
        (tmp_path / "state").mkdir(mode=0o700)
        (tmp_path / "state" / "engines").touch()
        assert planner().plan(found).ways[0].gpu.engines == ""
        assert "Engines that are built are not kept: " in caplog.text

    def test_without_a_gpu_no_folder_is_made(self, planner, found, tmp_path):
        assert [one.accelerator for one in planner(Here()).plan(found).ways] == ["cpu"]
        assert not (tmp_path / "state").exists()

    def test_nothing_is_left(self, planner, found):
        with pytest.raises(PackageRefused, match="cannot be used"):
            planner(Here(), accelerator="cuda").plan(found)


class TestGpuMemory:
    def needed(self, found: Found) -> int:
        return 4 * package_files.model_size(found.package) + GPU_BASE

    def test_by_the_size_of_the_file(self, planner, found):
        assert planner().gpu_memory_needed(found) == self.needed(found)
        assert planner(memory_factor=2).gpu_memory_needed(found) < self.needed(found)
        assert planner(model_settings={"board": {"gpu_memory": 5}}).gpu_memory_needed(found) == 5

    def test_exactly_enough(self, planner, found):
        need = self.needed(found)
        for spare, accelerator in itertools.product((0, -1), ("cuda", "tensorrt")):
            made = planner(free=need + MIB + spare, gpu_memory_reserve=MIB, accelerator=accelerator, gpu=1)
            if spare == 0:
                made.reserve_gpu(found).settle()
                assert made.gpus.indices == [1]
            else:
                with pytest.raises(NotEnoughMemory, match="MiB of GPU memory; .* or lower gpu_memory_reserve"):
                    made.reserve_gpu(found)

    def test_until_it_is_settled_it_counts_for_others(self, planner, found):
        made = planner(free=self.needed(found) + MIB, gpu_memory_reserve=0, accelerator="cuda")
        place = made.reserve_gpu(found)
        with pytest.raises(NotEnoughMemory):
            made.reserve_gpu(found)
        place.settle()
        place = made.reserve_gpu(found)
        place.settle()
        place.settle()

    def test_each_gpu_has_its_own(self, found, tmp_path):
        own = {"second": {"gpu": 1}}
        settings = Settings(state_dir=tmp_path, gpu_memory_reserve=0, accelerator="cuda", model_settings=own)
        ways = Ways(settings, Told(GPU, self.needed(found)))
        first, second, third = (
            Planner(name, settings, MemoryLedger(0), ways, lambda _: {}) for name in ("first", "second", "third")
        )
        first.reserve_gpu(found)
        second.reserve_gpu(found)
        with pytest.raises(NotEnoughMemory):
            third.reserve_gpu(found)

    def test_where_the_cpu_may_take_over_it_does_until_the_next_start(self, planner, found):
        made = planner(free=0)
        made.begin(made.reserve_gpu(found))
        plan = made.plan(found)
        assert [one.accelerator for one in plan.ways] == ["cpu"]
        (failed,) = plan.failed
        assert (failed.what, failed.why.partition(" needs ")[0]) == ("CUDA", "Loading the model")
        made.gpus.bytes = 20 << 30
        assert [one.accelerator for one in made.plan(found).ways] == ["cpu"], "a restart of the same"
        made.begin(made.reserve_gpu(found))
        assert [one.accelerator for one in made.plan(found).ways] == ["cuda", "cpu"]

    def test_who_finds_no_room_decides_nothing_for_who_has_it(self, planner, found):
        made = planner(free=self.needed(found) + MIB, gpu_memory_reserve=0)
        first, second = made.reserve_gpu(found), made.reserve_gpu(found)
        made.begin(first)
        assert [one.accelerator for one in made.plan(found).ways] == ["cuda", "cpu"]
        assert "1 MiB are free" in second.short.why, "which the first has"
        made.keep_to(second)
        assert [one.accelerator for one in made.plan(found).ways] == ["cpu"]
        made.keep_to(Place())
        assert [one.accelerator for one in made.plan(found).ways] == ["cuda", "cpu"]

    def test_the_memory_of_a_gpu_without_any_is_the_machines(self, planner, found, monkeypatch):
        made = planner(free=None, accelerator="cuda")
        free = [20 << 30]
        monkeypatch.setattr("edge_agent.ways.available", lambda: free[0])
        made.reserve_gpu(found).settle()
        free[0] = 512 << 20
        with pytest.raises(NotEnoughMemory, match="GPU memory"):
            made.reserve_gpu(found)

    @pytest.mark.parametrize("settings", [{"accelerator": "cpu"}, {"accelerator": "cuda", "gpu": 7}])
    def test_nothing_is_asked_for_what_runs_on_no_gpu(self, planner, found, settings):
        made = planner(free=0, **settings)
        made.reserve_gpu(found).settle()
        assert made.gpus.indices == []

    def test_a_package_that_was_refused(self, planner):
        refused = Found("board", "1", Path("/"), Path("/"), (), None, "no threshold")
        made = planner(accelerator="cuda", free=0)
        made.reserve_gpu(refused).settle()
        assert (made.memory_needed(refused), made.gpu_memory_needed(refused)) == (0, 0)


class TestFit:
    """What a package is told at its deployment."""

    def fit(self, target: Target | None, here: Here = GPU, strict: bool = False, **settings: Any) -> tuple[str, ...]:
        return Ways(Settings(**settings), Gpus(known=here)).fit("board", target, strict)

    @pytest.fixture(autouse=True)
    def _x86(self, monkeypatch):
        from edge_agent import device

        monkeypatch.setattr(device, "this_one", lambda: device.Device("x86_64", frozenset({"avx2"})))

    def target(self, **options: str) -> Target:
        return Target("X86_64", "NVIDIA", options={key.replace("_", "-"): value for key, value in options.items()})

    def test_what_fits_is_nothing_to_speak_of(self):
        assert self.fit(self.target(gpu_code="sm_89", trt_ver="10.3.0", cuda_ver="12.6"), strict=True) == ()
        assert self.fit(None) == self.fit(Target("X86_64")) == ()

    def test_the_gpu_of_the_model_counts(self):
        note = ("The package was compiled for GPU sm_89 (here: sm_75).",)
        assert self.fit(self.target(gpu_code="sm_89"), gpu=1) == note
        assert self.fit(self.target(gpu_code="sm_89"), model_settings={"board": {"gpu": 1}}) == note
        with pytest.raises(PackageRefused, match="`target` is strict"):
            self.fit(self.target(gpu_code="sm_89"), strict=True, gpu=1)

    def test_no_gpu(self):
        with pytest.raises(PackageRefused, match="there is no GPU for it"):
            self.fit(self.target(gpu_code="sm_89"), Here())
        notes = self.fit(self.target(gpu_code="sm_89"), Here(), accelerator="cpu")
        assert [one.partition(",")[0] for one in notes] == [
            "The package was compiled for GPU sm_89 (here: none).",
            "The package was compiled for NVIDIA",
        ]

    def test_the_driver_is_not_asked_for_a_package_for_a_processor(self):
        class Hangs(Gpus):
            def here(self) -> Here:
                raise AssertionError("it was asked")

        ways = Ways(Settings(), Hangs())
        assert ways.fit("board", Target("X86_64", cpu_flags=("avx2",)), strict=True) == ()

    def test_failed_is_of_the_words_of_the_rules(self, found):
        settings = Settings(fallback="allowed", accelerator="tensorrt")
        choice = Ways(settings, Gpus(known=Here())).choose("board", found)
        assert choice.failed == (Failed("TensorRT", Here().no_gpu),)


class TestAdopting:
    """Settings that change while the agent runs."""

    def test_the_memory_that_a_package_is_reckoned_to_take(self, planner, found):
        before = planner(memory_factor=1).memory_needed(found)
        changed = planner(memory_factor=1)
        changed.adopt(Settings(memory_factor=1000))
        size = package_files.model_size(found.package)
        assert changed.memory_needed(found) - before == 999 * size
        assert changed.gpu_memory_needed(found) == 1000 * size + GPU_BASE

    def test_the_gpu_memory_that_stays_free(self):
        ways = Ways(Settings(gpu_memory_reserve=0), Told(GPU, 1 << 30))
        ledger = ways.gpu_ledger("board")
        ledger.admit("first", 600 << 20)
        ways.adopt(Settings(gpu_memory_reserve=300 << 20))
        assert ways.gpu_ledger("board") is ledger, "what is set aside is not forgotten"
        with pytest.raises(NotEnoughMemory, match="GPU memory; 124 MiB are free"):
            ledger.admit("second", 200 << 20)
        assert ways.gpu_ledger("other").room() == 124 << 20
