"""The demo, for real, for 20 seeds; and that it tells when a verdict is wrong."""

import os
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edge_agent.demo import boards
from edge_agent.demo.boards import DEFECTS, Line
from support.agent import alive, descendants, environment, parent
from support.waiting import until

SEEDS = 20


def run(seed: int, keep: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "edge_agent", "demo", "--seed", str(seed), "--keep", str(keep)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[int, tuple[subprocess.CompletedProcess, Path]]:
    """The demo for each seed, two at a time."""
    folders = {seed: tmp_path_factory.mktemp(f"seed-{seed}") for seed in range(SEEDS)}
    with ThreadPoolExecutor(2) as pool:
        done = pool.map(run, folders, folders.values())
        return {seed: (one, folders[seed]) for seed, one in zip(folders, done, strict=True)}


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_verdict_is_right(runs, seed):
    done, folder = runs[seed]
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 boards judged, 0 wrong" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines() if line.endswith(" ms")]
    assert sum("ANOMALOUS" in row for row in rows) == 6
    assert sum("normal" in row for row in rows) == 6
    assert len(list((folder / "overlays").iterdir())) == 12
    assert {path.name for path in folder.iterdir()} == {"overlays", "normal", "inspected", "models"}
    assert f"(seed {seed})" in done.stdout


def test_every_seed_ran(runs):
    assert sum(one.returncode == 0 for one, _ in runs.values()) == SEEDS


def test_the_mask_is_where_the_defect_is(tmp_path):
    """Seen on the model itself: most of each defect is marked, and nothing far from it."""
    from model_packager import template

    line = Line(3)
    fitted = template.fit([line.good().pixels for _ in range(24)])
    for defect in DEFECTS:
        board = line.defective(defect)
        marked = template.differences(board.pixels, fitted.mean, fitted.spread) >= fitted.threshold
        assert (marked & board.where).sum() / board.where.sum() > 0.5, defect
        near = np.zeros_like(marked)
        ys, xs = np.nonzero(board.where)
        near[max(0, ys.min() - 8) : ys.max() + 9, max(0, xs.min() - 8) : xs.max() + 9] = True
        assert not (marked & ~near).any(), defect


def test_a_wrong_verdict_ends_with_1(monkeypatch, folder):
    """Negative control: boards that are called defective and are not."""
    from edge_agent.cli.demo import demo

    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    real = Line.good
    monkeypatch.setattr(
        Line, "defective", lambda self, defect: boards.Board(real(self).pixels, defect, real(self).where)
    )
    done = CliRunner().invoke(demo, ["--seed", "1"])
    assert done.exit_code == 1, done.output
    assert "6 wrong" in done.output
    assert "WRONG" in done.output


# The command line, its segments named so that other clients on this machine are not counted.
NAMED = """
import sys
from edge_agent import segments
from edge_agent.__main__ import main
segments.PREFIX = sys.argv.pop(1)
sys.exit(main())
"""


def test_nothing_is_left_but_the_results(folder):
    env = environment(TMPDIR=str(folder))
    prefix = f"edge-agent-test-{os.urandom(6).hex()}-"
    command = [sys.executable, "-c", NAMED, prefix, "demo", "--seed", "5"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (results,) = folder.iterdir()
    assert [path.name for path in results.iterdir()] == ["overlays"]
    assert f"Overlays: {results / 'overlays'}" in done.stdout
    assert list(Path("/dev/shm").glob(f"{prefix}*")) == []


# A signal that comes as soon as the agent's process is there, before anybody knows that it is.
AT_ONCE = """
import os, signal, subprocess
from pathlib import Path
class Popen(subprocess.Popen):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        (Path(os.environ["TMPDIR"]).parent / "agent").write_text(str(self.pid))
        os.kill(os.getpid(), signal.{name})
subprocess.Popen = Popen
from edge_agent.__main__ import main
raise SystemExit(main())
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 1)])
def test_a_signal_while_its_agent_is_started_leaves_none(folder, name, code):
    (folder / "tmp").mkdir()
    command = [sys.executable, "-c", AT_ONCE.format(name=name), "demo", "--keep", str(folder / "kept")]
    env = environment(TMPDIR=str(folder / "tmp"))
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    left = alive(agent := int((folder / "agent").read_text()))
    if left:
        os.kill(agent, signal.SIGKILL)
    assert not left, "its agent was left"
    assert list((folder / "tmp").iterdir()) == []


def test_sigterm_ends_it_in_order(folder):
    """Its agent and its temporary folder go with it."""
    command = [sys.executable, "-m", "edge_agent", "demo", "--keep", str(folder / "kept")]
    (folder / "tmp").mkdir()
    env = environment(TMPDIR=str(folder / "tmp"))
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        (agent,) = until(lambda: [pid for pid in descendants(process.pid) if parent(pid) == process.pid], "its agent")
        process.terminate()
        _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (143, "")
    assert not alive(agent)
    assert list((folder / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seed", "-1"], "Invalid value for '--seed': -1 is not in the range"),
        (["--keep", "{}/file"], "Invalid value for --keep: {}/file is no folder; name a folder"),
        (["--keep", "{}/file/x"], "Invalid value for --keep: {}/file/x cannot be made: Not a directory"),
        (["--keep", "/proc/x"], "Invalid value for --keep: /proc/x cannot be made: No such file or directory"),
    ],
)
def test_bad_arguments(tmp_path, arguments, words):
    (tmp_path / "file").write_text("precious")
    command = [sys.executable, "-m", "edge_agent", "demo", *(one.format(tmp_path) for one in arguments)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert words.format(tmp_path) in done.stderr
    assert (tmp_path / "file").read_text() == "precious"


def test_a_file_that_cannot_be_written_is_told_in_a_sentence(monkeypatch, folder):
    from edge_agent.cli.demo import demo
    from edge_agent.demo import run as demo_run

    def full(*_):
        raise OSError(28, "No space left on device", "/x/good-1.png")

    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(demo_run.template, "to_onnx", full)
    done = CliRunner().invoke(demo, [])
    assert (done.exit_code, done.stderr) == (
        1,
        "Error: The demo could not be run: /x/good-1.png: No space left on device.\n",
    )
    deep = folder / ("deep" * 30)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    done = CliRunner().invoke(demo, [])
    assert (done.exit_code, "a socket path may have 107 bytes at most" in done.stderr) == (1, True)
    assert done.stderr.endswith(" Name another folder in TMPDIR.\n")
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "nowhere"))
    done = CliRunner().invoke(demo, [])
    assert (done.exit_code, "name another in TMPDIR" in done.stderr) == (1, True)


def test_boards_follow_from_the_seed():
    first, again, other = Line(1).good().pixels, Line(1).good().pixels, Line(2).good().pixels
    assert (first == again).all()
    assert (first != other).any()
