"""`edge-agent tune`: which ways are measured, which is best, and that the agent then runs the model so."""

import json
import os
import signal
import stat
import subprocess
import sys
import zipfile
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

from edge_agent import config
from edge_agent import packages as package_rules
from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent.accelerators import Gpu, Here
from edge_agent.cli import outcome as output
from edge_agent.cli.deployed import NotDeployed, deployed, living
from edge_agent.state import StateFolder
from edge_agent.trials import Stand
from edge_agent.tuned import Tuned
from edge_agent.tuning import (
    BEATEN,
    ROUNDS,
    SAME,
    SPINNING_GAIN,
    TRIAL_ROUNDS,
    Candidate,
    CannotRun,
    Figures,
    Outcome,
    Turn,
    beaten,
    best,
    compete,
    plan,
)
from edge_agent.ways import Ways
from support import broken, packages
from support.agent import descendants, environment, serving
from support.users import I_AM_ROOT, OTHER
from support.waiting import until

ONE, TWO = Candidate(1, 1), Candidate(2, 1)
SPINNING = Candidate(2, 1, spinning=True)
SLOTS = Candidate(1, 2)
# One processor leaves one way to run a model, two leave six.
PROCESSORS = sorted(os.sched_getaffinity(0))
# The command line, which tells the name of its segment.
TELLING = """
import sys
from edge_agent import trials
from edge_agent.__main__ import main
from edge_agent.bench import bare
class Frame(bare.Frame):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        print("segment", self.name, file=sys.stderr, flush=True)
trials.Frame = Frame
sys.exit(main())
"""


def figures(p50: float = 1.0, rate: float = 1.0) -> Figures:
    return Figures(p50, 2 * p50, rate, p50, 1 << 20, ROUNDS)


def turn(seconds: float = 1.0, rate: float = 1.0) -> Turn:
    return Turn((seconds,), rate, seconds, None)


class Watcher:
    def __init__(self) -> None:
        self.done: list[int] = []
        self.out: list[Candidate] = []
        self.reasons: dict[Candidate, str] = {}

    def turned(self, done):
        self.done.append(done)

    def dropped(self, candidate):
        self.out.append(candidate)

    def failed(self, candidate, reason):
        self.reasons[candidate] = reason


class TestPlan:
    @pytest.mark.parametrize(
        ("cores", "ways"),
        [
            (1, [(1, 1, False)]),
            (2, [(1, 1, False), (1, 2, False), *((2, slots, spins) for slots in (1, 2) for spins in (False, True))]),
            (
                4,
                [
                    *((1, slots, False) for slots in (1, 2, 4)),
                    *((2, slots, spins) for slots in (1, 2, 4) for spins in (False, True)),
                    *((4, slots, spins) for slots in (1, 2) for spins in (False, True)),
                ],
            ),
        ],
    )
    def test_each_way_on_a_small_device(self, cores, ways):
        assert plan(cores) == [Candidate(*one) for one in ways]

    @pytest.mark.parametrize("cores", [1, 2, 3, 4, 6, 8, 12, 64, 128])
    def test_what_holds_on_every_device(self, cores):
        made = plan(cores)
        assert len(set(made)) == len(made)
        assert {Candidate(1, 1), Candidate(cores, 1), Candidate(1, min(cores, 64))} <= set(made)
        for one in made:
            assert 1 <= one.threads <= cores
            assert 1 <= one.slots <= min(cores, 64)
            assert one.threads * one.slots <= 2 * cores
            assert one.threads > 1 or not one.spinning, "one thread has none to wait for"

    def test_eight_processors(self):
        made = plan(8)
        assert {one.threads for one in made} == {one.slots for one in made} == {1, 2, 4, 8}
        assert Candidate(8, 2) in made
        assert Candidate(8, 4) not in made
        assert len(made) == 4 + 2 * (4 + 3 + 2)


class TestBest:
    @pytest.mark.parametrize(("slower", "winner"), [(SAME - 0.001, ONE), (SAME + 0.001, TWO)])
    def test_of_the_same_latency_the_one_that_takes_less(self, slower, winner):
        assert best({TWO: figures(1.0), ONE: figures(1 + slower)}, "latency") == winner

    @pytest.mark.parametrize(("fewer", "winner"), [(SAME - 0.001, SLOTS), (SAME + 0.001, Candidate(2, 2))])
    def test_of_the_same_rate_the_one_that_takes_less(self, fewer, winner):
        measured = {
            Candidate(2, 2): figures(rate=100.0),
            SLOTS: figures(rate=100 / (1 + fewer)),
            ONE: figures(rate=50.0),
        }
        assert best(measured, "throughput") == winner

    def test_as_many_threads_in_all_are_better_apart(self):
        measured = {TWO: figures(rate=100.0), SLOTS: figures(rate=100.0), Candidate(1, 4): figures(rate=100.0)}
        assert best(measured, "throughput") == SLOTS

    @pytest.mark.parametrize("goal", ["latency", "throughput"])
    @pytest.mark.parametrize(("gain", "winner"), [(SPINNING_GAIN - 0.01, TWO), (SPINNING_GAIN + 0.01, SPINNING)])
    def test_spinning_has_to_gain_more_than_a_little(self, goal, gain, winner):
        measured = {TWO: figures(1.0, 1.0), SPINNING: figures(1 / (1 + gain), 1 + gain)}
        assert best(measured, goal) == winner

    def test_spinning_gains_above_the_best_that_does_not_spin_and_not_above_its_like(self):
        measured = {ONE: figures(1.0), TWO: figures(1.5), SPINNING: figures(0.95)}
        assert best(measured, "latency") == ONE

    def test_a_second_slot_is_never_best_for_one_call_at_a_time(self):
        measured = {ONE: figures(1.0, 1.0), SLOTS: figures(0.5, 2.0)}
        assert (best(measured, "latency"), best(measured, "throughput")) == (ONE, SLOTS)

    def test_nobody(self):
        assert best({}, "latency") is None
        assert best({SLOTS: figures()}, "latency") is None


class TestBeaten:
    @pytest.mark.parametrize(("factor", "out"), [(BEATEN + 0.01, [ONE]), (BEATEN - 0.01, [])])
    def test_by_how_much(self, factor, out):
        assert beaten({ONE: figures(factor, 1 / factor), TWO: figures(1.0, 1.0)}) == out

    @pytest.mark.parametrize("slow", [figures(1.0, 0.1), figures(10.0, 1.0)])
    def test_who_is_good_for_one_goal_goes_on(self, slow):
        assert beaten({ONE: slow, TWO: figures(1.0, 1.0)}) == []

    def test_more_slots_are_for_throughput_alone(self):
        assert beaten({SLOTS: figures(1.0, 0.1), ONE: figures(1.0, 1.0)}) == [SLOTS]


class TestCompete:
    def test_turns_go_to_and_fro(self):
        seen: list[Candidate] = []
        watcher = Watcher()
        found = compete([ONE, TWO, SLOTS], lambda one: seen.append(one) or turn(), watcher)
        assert seen[:6] == [ONE, TWO, SLOTS, SLOTS, TWO, ONE]
        assert all(seen.count(one) == own.rounds == ROUNDS for one, own in found.measured.items())
        assert watcher.done[-1] == ROUNDS * 3

    @pytest.mark.parametrize(("slower", "rounds"), [(BEATEN + 0.1, TRIAL_ROUNDS), (BEATEN - 0.1, ROUNDS)])
    def test_who_is_clearly_slower_leaves_early_with_its_figures(self, slower, rounds):
        watcher = Watcher()
        speeds = {ONE: slower, TWO: 1.0}
        found = compete(speeds, lambda one: turn(speeds[one], 1 / speeds[one]), watcher)
        assert found.measured[ONE].rounds == rounds
        assert found.measured[TWO].rounds == ROUNDS
        assert found.dropped == watcher.out == ([ONE] if rounds < ROUNDS else [])
        assert watcher.done[-1] == ROUNDS * 2, "turns that are not needed count as done"

    def test_a_turn_that_was_disturbed_does_not_decide(self):
        numbers = count()
        found = compete([ONE], lambda _: turn(100.0 if next(numbers) == 1 else 1.0), Watcher())
        assert (found.measured[ONE].p50, found.measured[ONE].p99) == (1.0, 100.0)

    @pytest.mark.parametrize("when", range(ROUNDS))
    def test_who_cannot_run_is_left_out_whenever_that_shows(self, when):
        turns = {ONE: 0, TWO: 0}

        def take(one: Candidate) -> Turn:
            turns[one] += 1
            if one == ONE and turns[one] == when + 1:
                raise CannotRun("no")
            return turn()

        watcher = Watcher()
        found = compete([ONE, TWO], take, watcher)
        assert (set(found.measured), found.failed, watcher.reasons) == ({TWO}, {ONE: "no"}, {ONE: "no"})
        assert turns == {ONE: when + 1, TWO: ROUNDS}
        assert watcher.done[-1] == ROUNDS * 2

    def test_nobody_can_run(self):
        def take(_: Candidate) -> Turn:
            raise CannotRun("no")

        found = compete([ONE, TWO], take, Watcher())
        assert (found.measured, set(found.failed)) == ({}, {ONE, TWO})


def look(folder: Path) -> package_rules.Found:
    found = package_rules.look(folder, folder.parent, package_rules.Rules())
    assert found.package, found.refusal
    return found


class TestStand:
    def test_a_worker_that_dies_is_left_out_and_the_others_are_measured(self, tmp_path):
        """One candidate's model ends its process, be it while it loads or at its first call: the black image."""
        sound = packages.segmenter(tmp_path / "sound")
        deadly = broken.package(tmp_path / "deadly", broken.crash, always=True)
        settings = config.load()
        with Stand(look(sound), settings, 0.02) as good, Stand(look(deadly), settings, 0.02) as bad:
            watcher = Watcher()
            found = compete([ONE, SLOTS], lambda one: (bad if one == SLOTS else good).turn(one), watcher)
            others = good.used_by_others()
        assert watcher.reasons[SLOTS] == found.failed[SLOTS]
        assert found.failed[SLOTS].startswith("Its worker process ended: it was ended by signal")
        measured = found.measured[ONE]
        assert 0 < measured.p50 <= measured.p99 < 1
        assert measured.rate > 1
        assert measured.memory > 1 << 20
        assert 0 <= others < os.cpu_count()

    def test_a_model_that_cannot_be_loaded(self, tmp_path):
        damaged = packages.write(tmp_path / "damaged", packages.manifest(), b"not ONNX")
        with Stand(look(damaged), config.load(), 0.02) as stand, pytest.raises(CannotRun, match="[Mm]odel"):
            stand.turn(ONE)

    def test_no_memory_above_the_reserve(self, tmp_path):
        settings = config.load(flags={"memory_reserve": 1 << 60})
        board = look(packages.segmenter(tmp_path / "board"))
        with Stand(board, settings, 0.02) as stand, pytest.raises(CannotRun, match="memory_reserve"):
            stand.turn(ONE)

    def test_it_is_run_on_what_the_agent_would_run_it_on(self, tmp_path):
        board = look(packages.segmenter(tmp_path / "board"))
        here = Here((Gpu(0, "Imaginary L4", "sm_89"),), "550.54.15", no_gpu="")
        settings = config.load(flags={"state_dir": tmp_path / "state"})
        stand = Stand(board, settings, 0.02)
        assert stand._options(SLOTS).accelerator == "cpu"
        stand._ways = Ways(settings, SimpleNamespace(here=lambda: here))
        options = stand._options(SLOTS)
        assert (options.accelerator, options.gpu.code, options.slots) == ("cuda", "sm_89", SLOTS.slots)


def zipped(package: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in package.rglob("*"):
            archive.write(path, path.relative_to(package.parent))
    return target


class TestDeployed:
    def test_a_zip_that_is_registered(self, tmp_path):
        """Unpacked where the agent's own unpacked packages are not."""
        brought, registry = tmp_path / "brought", tmp_path / "registry"
        brought.mkdir()
        registry.mkdir(mode=0o770)
        archive = zipped(packages.segmenter(tmp_path / "board"), brought / "board.zip")
        entry = {"component": "board", "version": "1.2.3", "path": str(archive), "autostart": "false"}
        (registry / "board.json").write_text(json.dumps(entry))
        settings = config.load(flags={"registry": str(registry), "registry_roots": [str(brought)]})
        with deployed("board", None, settings, os.geteuid(), {}) as found:
            assert (found.name, found.version) == ("board", "1.2.3")
            assert found.package
            there = found.folder
            assert there.is_dir()
        assert not there.exists()
        assert [one.name for one in registry.iterdir()] == ["board.json"], "answering is the agent's"

    def test_sources_come_first_and_then_what_a_living_agent_says(self, tmp_path):
        for version in ("1.0.0", "2.0.0"):
            (tmp_path / f"of-{version}" / "board" / version).mkdir(parents=True)
            packages.segmenter(tmp_path / f"of-{version}" / "board" / version / "component")
        old = tmp_path / "of-1.0.0" / "board" / "1.0.0" / "component"
        told = {"board": {"package": str(old), "version": "1.0.0"}}
        for models, version in (((), "1.0.0"), ([str(tmp_path / "of-2.0.0")], "2.0.0")):
            with deployed("board", None, config.load(flags={"models": models}), os.geteuid(), told) as found:
                assert (found.version, found.package is not None) == (version, True)

    def test_a_package_that_the_agent_would_not_trust(self, tmp_path):
        folder = packages.segmenter(tmp_path / "board")
        (folder / "manifest.json").chmod(0o666)
        found = deployed("board", folder, config.load(), os.geteuid(), {})
        with pytest.raises(NotDeployed, match="writable by everybody"), found:
            pass

    @pytest.mark.parametrize(
        "content",
        [b"", b"{}", b"[]", b'{"agent": {"pid": 1}}', b'{"agent": {"pid": "x"}, "models": []}', b"[" * 100_000],
    )
    def test_a_damaged_status_says_nothing(self, tmp_path, content):
        folder = StateFolder(tmp_path, tmp_path / "agent.sock")
        folder.status_file().write_bytes(content)
        assert living(folder) == {}

    def test_a_status_counts_as_long_as_its_agent_lives(self, tmp_path):
        folder = StateFolder(tmp_path, tmp_path / "agent.sock")
        ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
        for pid, names in ((os.getpid(), ["board"]), (int(ended.stdout), [])):
            folder.status_file().write_text(json.dumps({"agent": {"pid": pid}, "models": [{"model": "board"}]}))
            assert list(living(folder)) == names


def tune(*arguments: str, cpus: int = 1, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "edge_agent", "tune", *map(str, arguments)],
        env=environment(EDGE_AGENT_CPUS=",".join(map(str, PROCESSORS[:cpus])), **env),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def board(folder):
    """The package of a small model, and a state folder."""
    state = folder / "state"
    state.mkdir(mode=0o700)
    return packages.segmenter(folder / "models" / "board")


class TestCommand:
    def test_the_agent_runs_the_model_as_it_was_tuned(self, folder):
        packages.segmenter(folder / "models" / "board")
        report = folder / "report.json"
        with serving(folder / "models", folder=folder) as agent:
            agent.run_model("board")
            until(lambda: agent.status()["models"][0]["options"], "the status tells how it runs")
            assert agent.status()["models"][0]["options"] == {"threads": 0, "slots": 1, "spinning": False}
            place = "--socket", agent.socket, "--state-dir", folder / "state"
            goal = "--for", "throughput", "--seconds", "0.2"
            done = tune("board", *place, *goal, "--json", report, cpus=2)
            assert done.returncode == 0, done.stderr
            file = folder / "state" / "tuned.json"
            assert (file.stat().st_uid, stat.S_IMODE(file.stat().st_mode)) == (agent.user.uid, 0o600)
            best_one = json.loads(report.read_text())["best"]["throughput"]
            assert Tuned(file).of("board") == best_one
            agent.stub().StopModel(pb2.StopModelRequest(model_component="board"))
            agent.run_model("board")
            until(lambda: agent.status()["models"][0]["options"] == best_one, "the agent runs it as it was tuned")
        assert "warning: the agent has board loaded" in done.stderr
        assert f"Written to {file}." in done.stdout
        commands = f"edge-agent stop board --socket {agent.socket}; edge-agent start board --socket {agent.socket}\n"
        assert done.stdout.endswith(commands)

    def test_all_that_is_told(self, board, folder):
        report = folder / "report.json"
        done = tune("board", "--package", board, "--state-dir", folder / "state", "--seconds", "0.05", "--json", report)
        assert done.returncode == 0, done.stderr
        assert done.stderr.startswith("board 0.0.0, 64x64 with mask, on 1 processor: 1 way to run it")
        heads, row = done.stdout.splitlines()[1:3]
        assert heads.split()[:4] == ["THREADS", "SLOTS", "SPINNING", "P50"]
        assert row.split()[:3] == ["1", "1", "no"]
        assert row.endswith("best for latency and throughput")
        told = json.loads(report.read_text())
        assert told["candidates"][0].items() >= {"threads": 1, "slots": 1, "spinning": False, "rounds": ROUNDS}.items()
        assert row.split()[3] == f"{1000 * told['candidates'][0]['p50']:.2f}"
        assert told["best"]["latency"] == {"threads": 1, "slots": 1, "spinning": False}
        assert (told["model"], told["image_size"], told["for"], told["seconds"]) == ("board", [64, 64], "latency", 0.05)

    def test_a_dry_run_writes_nothing(self, board, folder):
        before = sorted(folder.rglob("*"))
        done = tune(
            *(
                "board",
                "--models",
                folder / "models",
                "--state-dir",
                folder / "state",
                "--seconds",
                "0.05",
                "--dry-run",
            ),
            TMPDIR=str(folder),
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("Nothing was written (--dry-run).\n")
        assert sorted(folder.rglob("*")) == before

    def test_other_models_keep_what_was_tuned_for_them(self, board, folder):
        file = Tuned(folder / "state" / "tuned.json")
        file.write("part", threads=7, slots=3, spinning=True)
        assert tune("board", "--package", board, "--state-dir", folder / "state", "--seconds", "0.05").returncode == 0
        assert file.of("part") == {"threads": 7, "slots": 3, "spinning": True}
        assert file.of("board") == {"threads": 1, "slots": 1, "spinning": False}

    def test_a_model_that_runs_in_no_way(self, folder):
        (folder / "state").mkdir(mode=0o700)
        model = broken.package(folder / "models" / "deadly", broken.crash, always=True)
        done = tune("deadly", "--package", model, "--state-dir", folder / "state", "--seconds", "0.05")
        assert done.returncode == 1
        assert "1 thread, 1 slot: left out. Its worker process ended: it was ended by signal" in done.stderr
        assert done.stderr.endswith("Error: deadly could be run in no way; the reasons are above.\n")
        assert not (folder / "state" / "tuned.json").exists()

    def test_own_settings_win_and_that_is_told(self, board, folder):
        file = folder / "agent.yaml"
        file.write_text(f"models: ['{folder}/models']\nmodel_settings: {{board: {{threads: 3, slots: 1}}}}\n")
        done = tune("board", "--config", file, "--state-dir", folder / "state", "--seconds", "0.05")
        assert done.returncode == 0, done.stderr
        assert "warning: model_settings has threads of board, which wins" in done.stderr

    @pytest.mark.parametrize(
        ("arguments", "code", "sentence"),
        [
            (("part", "--models", "{}/models"), 1, "There is no model 'part'; there are: board."),
            (
                ("board",),
                1,
                "There is no model 'board'; name it with --package, or its folder with --models or --config.",
            ),
            (("damaged", "--models", "{}/refused"), 1, "damaged cannot be run: mochi/model.onnx is missing."),
            (("board", "--models", "{}/models", "--state-dir", "{}/none"), 2, "No such file or directory"),
            (
                ("board", "--models", "{}/models", "--state-dir", "{}/agent.yaml"),
                2,
                "is not a folder that you may write",
            ),
            (("board", "--models", "{}/models", "--json", "{}/none/x.json"), 2, "cannot be written; name another file"),
            (("board", "--models", "{}/models", "--seconds", "0"), 2, "--seconds"),
            (("board", "--models", "{}/models", "--for", "fun"), 2, "--for"),
            (("board", "--package", "{}/none"), 2, "--package"),
            (("board", "--config", "{}/none"), 2, "--config"),
        ],
    )
    def test_refusals(self, board, folder, arguments, code, sentence):
        (folder / "agent.yaml").write_text("")
        packages.segmenter(folder / "refused" / "damaged")
        (folder / "refused" / "damaged" / "mochi" / "model.onnx").unlink()
        given = [one.format(folder) for one in arguments]
        state = () if "--state-dir" in given else ("--state-dir", str(folder / "state"))
        done = tune(*given, *state)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert sentence in done.stderr
        assert not (folder / "state" / "tuned.json").exists()

    @pytest.mark.two_uids
    @pytest.mark.skipif(not I_AM_ROOT, reason="needs root, to run as another user")
    def test_somebody_elses_state_folder(self, board, folder):
        command = [sys.executable, "-m", "edge_agent", "tune", "board", "--package", board, "--state-dir", folder]
        done = subprocess.run(
            command,
            env=environment(),
            cwd="/",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            **OTHER.popen(),
        )
        assert done.returncode == 2, done.stderr
        assert (
            f"--state-dir {folder} is not a folder that you may write; it belongs to uid {folder.stat().st_uid}"
            in done.stderr
        )

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, 128 + signal.SIGTERM)])
    def test_ended_in_the_middle_it_leaves_nothing(self, board, folder, number, code):
        """As a terminal does with Ctrl-C: the whole group gets the signal."""
        temporary = folder / "tmp"
        temporary.mkdir()
        process = subprocess.Popen(
            [sys.executable, "-c", TELLING, "tune", "board", "--package", board, "--state-dir", folder / "state"],
            env=environment(TMPDIR=str(temporary)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            segment = next(Path("/dev/shm", line.split()[1].strip("/")) for line in process.stderr if "segment" in line)
            # Resource tracker, forkserver and the worker below it, which computes.
            below = until(lambda: (found := descendants(process.pid)) and len(found) >= 3 and found, "a worker runs")
            assert segment.exists()
            os.killpg(process.pid, number)
            rest = process.stderr.read()
            assert process.wait(30) == code, rest
        finally:
            process.kill()
            process.wait()
            process.stderr.close()
        assert "Traceback" not in rest
        assert not segment.exists()
        assert list(temporary.iterdir()) == []
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below), "its processes have ended")
        assert not (folder / "state" / "tuned.json").exists()


class TestOutput:
    @pytest.mark.parametrize(
        ("spinning", "told"),
        [
            (1 / 1.2, "Its threads spin: faster while the device has nothing else to do, slower beside other work."),
            (1 / 1.08, "Spinning gained 8.0%; up to 10% it is not taken, since beside other work it loses more."),
            (1.0, None),
        ],
    )
    def test_what_there_is_to_know_of_spinning(self, spinning, told):
        lines = output.verdict({TWO: figures(1.0), SPINNING: figures(spinning)}, "latency").splitlines()
        assert lines[1:] == ([told] if told else [])

    def test_spinning_is_compared_as_it_is_chosen(self):
        """With the fastest that does not spin, not with the one that takes less, nor with what can be no best."""
        measured = {ONE: figures(1.02), TWO: figures(1.0), SPINNING: figures(1 / 1.09)}
        measured[Candidate(2, 2, spinning=True)] = figures(1 / 1.3)
        assert best(measured, "latency") == ONE
        assert "Spinning gained 9.0%; up to 10%" in output.verdict(measured, "latency")

    def test_gain_above_the_default(self):
        measured = {ONE: figures(0.010, 100), TWO: figures(0.008, 125), SLOTS: figures(0.010, 200)}
        assert "2 threads, 1 slot" in output.verdict(measured, "latency")
        assert "; 8.00 ms a call, which is the default." in output.verdict(measured, "latency")
        throughput = output.verdict(measured, "throughput")
        assert "; 200.0 calls a second, 1.60 times the speed of the default (2 threads, 1 slot)." in throughput

    def test_table_with_slow_ones_and_without_memory(self):
        slow = Figures(0.02, 0.03, 50.0, 0.02, None, TRIAL_ROUNDS)
        text = output.tabled(Outcome({ONE: slow, TWO: figures(0.008, 125)}, [ONE], {SLOTS: "no"}))
        assert text.splitlines()[1].split() == [
            "1",
            "1",
            "no",
            "20.00",
            "30.00",
            "50.0",
            "20.0",
            "-",
            "clearly",
            "slower",
        ]
        assert click.unstyle(text.splitlines()[2]).endswith("best for latency and throughput")
