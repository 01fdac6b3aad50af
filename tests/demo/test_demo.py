"""The demo, for real, for 20 seeds; and that it tells when a verdict is wrong."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edge_agent.demo import boards
from edge_agent.demo.boards import DEFECTS, Line
from support.agent import environment

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


def test_a_wrong_verdict_ends_with_1(monkeypatch):
    """Negative control: boards that are called defective and are not."""
    from edge_agent.cli.demo import demo

    real = Line.good
    monkeypatch.setattr(
        Line, "defective", lambda self, defect: boards.Board(real(self).pixels, defect, real(self).where)
    )
    done = CliRunner().invoke(demo, ["--seed", "1"])
    assert done.exit_code == 1, done.output
    assert "6 wrong" in done.output
    assert "WRONG" in done.output


def test_nothing_is_left_but_the_results(tmp_path):
    env = environment(TMPDIR=str(tmp_path))
    before = set(Path("/dev/shm").glob("edge-agent-client-*"))
    command = [sys.executable, "-m", "edge_agent", "demo", "--seed", "5"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (results,) = tmp_path.iterdir()
    assert [path.name for path in results.iterdir()] == ["overlays"]
    assert f"Overlays: {results / 'overlays'}" in done.stdout
    assert set(Path("/dev/shm").glob("edge-agent-client-*")) <= before


def test_boards_follow_from_the_seed():
    first, again, other = Line(1).good().pixels, Line(1).good().pixels, Line(2).good().pixels
    assert (first == again).all()
    assert (first != other).any()
