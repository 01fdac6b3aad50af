"""`edge-agent bench` against a real agent: what it writes and says, and that nothing of it is left."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from edge_agent.cli import command
from support import packages
from support.agent import alive, descendants, environment, serving
from support.users import I_AM_ROOT, OTHER
from support.waiting import until

# The command line, its segments named so that other clients on this machine are not counted.
NAMED = """
import sys
from edge_agent import segments
from edge_agent.__main__ import main
segments.PREFIX = sys.argv.pop(1)
sys.exit(main())
"""
LOADS = 6


@pytest.fixture(scope="module")
def agent(module_folder):
    packages.segmenter(module_folder / "models" / "board", (96, 64))
    packages.classifier(module_folder / "models" / "part")
    with serving(module_folder / "models") as running:
        running.run_model("board")
        yield running


@pytest.fixture(scope="module")
def images(module_folder):
    folder = module_folder / "images"
    folder.mkdir()
    for index in range(11):
        pixels = np.random.default_rng(index).integers(0, 256, (64, 96, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


class Bench:
    """The command, its segments and temporary files where they can be counted."""

    def __init__(self, agent, tmp: Path) -> None:
        self.prefix = f"edge-agent-test-{os.urandom(6).hex()}-"
        self.tmp = tmp
        self._socket = ["--socket", str(agent.socket)]
        self.status = ["--state-dir", str(agent.folder / "state")]

    def popen(self, *arguments: str, **more) -> subprocess.Popen:
        env = environment(TMPDIR=str(self.tmp))
        line = [sys.executable, "-c", NAMED, self.prefix, "bench", *arguments, *self._socket]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(line, env=env, **pipes, **more)

    def run(self, *arguments: str, **more) -> subprocess.CompletedProcess:
        with self.popen(*arguments, **more) as process:
            out, err = process.communicate(timeout=90)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def segments(self) -> list[Path]:
        return list(Path("/dev/shm").glob(f"{self.prefix}*"))

    def left(self) -> list[Path]:
        return [*self.segments(), *self.tmp.iterdir()]


@pytest.fixture
def bench(agent, folder):
    (folder / "tmp").mkdir()
    (folder / "tmp").chmod(0o777)
    return Bench(agent, folder / "tmp")


def test_whole(agent, bench, images, folder):
    files = {kind: folder / f"out.{kind}" for kind in ("json", "csv", "html")}
    before = agent.calls("board")
    done = bench.run(
        "board",
        str(images),
        "--quick",
        "--clients=2",
        "--rate=20",
        *bench.status,
        *(f"--{kind}={path}" for kind, path in files.items()),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(files["json"].read_text())
    measured = found["measurements"]
    assert [(one["kind"], one["way"], one["clients"]) for one in measured] == [
        ("turns", "bare", 1),
        ("turns", "shm", 1),
        ("turns", "inline", 1),
        ("closed", "shm", 2),
        ("closed", "inline", 2),
        ("open", "shm", 1),
    ]
    for one in measured:
        assert one["calls"] == one["ok"] + sum(one["errors"].values()) > 0
        assert one["errors"] == {}
        latency = one["latency_ms"]
        assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
        assert (one["width"], one["height"]) == (96, 64)
    for one in measured[3:]:
        assert sum(one["stages_ms"].values()) == pytest.approx(one["latency_ms"]["mean"], rel=0.5)
        assert all(value >= 0 for value in one["stages_ms"].values())
        assert one["stages_ms"]["run"] > 0
        assert one["processors"]["agent"] > 0
    sent = sum(one["ok"] for one in measured if one["way"] != "bare")
    until(lambda: agent.calls("board") - before >= sent, "the agent has counted them, and those of the warm-ups")
    assert found["bare_stages_ms"]["run"] > 0
    assert found["images"] == "8 of 11, 96x64"
    assert found["notes"] == []
    assert {one["process"] for one in found["memory"]} >= {"front process", "worker of the model"}
    rows = list(csv.DictReader(files["csv"].read_text().splitlines()))
    assert [int(row["calls"]) for row in rows] == [one["calls"] for one in measured]
    assert files["html"].read_text().count("<svg") == 5
    assert found["verdict"][0].startswith("board judges an image of 96x64 in ")
    assert all(sentence in done.stdout for sentence in found["verdict"])
    assert (
        len([line for line in done.stdout.splitlines() if "shared memory  " in line or "inline  " in line]) == LOADS - 1
    )
    assert "Measuring board: 4 loads" in done.stderr
    assert bench.left() == []


def test_a_model_that_is_stopped_runs_only_for_it(agent, bench):
    done = bench.run("part", "--quick", "--seconds", "0.2", "--clients", "1", "--way", "shm", "--size", "64x64")
    assert done.returncode == 0, done.stderr
    assert "part does not run: it is started, and stopped afterwards." in done.stderr
    assert agent.state("part") == "STOPPED"


@pytest.mark.skipif(not I_AM_ROOT, reason="needs root, to run as another user")
def test_another_user_is_told_what_it_may_not_know(agent, bench):
    """One in the agent's group: it may call, and read neither status nor package."""
    gid = agent.socket.stat().st_gid
    arguments = ("board", "--quick", "--seconds", "0.2", "--clients", "1", "--way", "inline", "--rate", "5")
    as_other = {"user": OTHER.uid, "group": OTHER.gid, "extra_groups": [gid]}
    done = bench.run(*arguments, "--size", "96x64", *bench.status, **as_other)
    assert done.returncode == 0, done.stderr
    assert "run this as the agent's user or as root" in done.stdout
    assert "no comparison with the bare model, whose package is not known; name it with --package" in done.stdout
    assert "It keeps up with 5 parts a second" in done.stdout
    refused = bench.run("board", "--quick", *bench.status, **as_other)
    assert refused.returncode == 2
    assert "give --size, as in --size 1280x720" in " ".join(refused.stderr.split())


def test_a_package_that_is_named_is_compared_with(agent, bench, module_folder):
    package = str(module_folder / "models" / "board")
    done = bench.run("board", "--quick", "--seconds", "0.2", "--clients=1", "--way=shm", "--package", package)
    assert done.returncode == 0, done.stderr
    assert "The bare model takes" in done.stdout
    (module_folder / "nothing").mkdir(exist_ok=True)
    other = ("--package", str(module_folder / "nothing"), "--size", "96x64")
    without = bench.run("board", "--quick", "--seconds=0.2", "--clients=1", "--way=shm", *other)
    assert without.returncode == 0, without.stderr
    assert "Note: There is no comparison with the bare model: manifest.json cannot be read" in without.stdout


def test_more_than_a_queue_holds_is_refused_and_told(agent, bench):
    arguments = ("--quick", "--seconds", "0.2", "--clients", "1", "--way", "shm", "--rate", "5000", "--size", "96x64")
    done = bench.run("board", *arguments, "--json", str(bench.tmp / "x.json"))
    assert done.returncode == 0, done.stderr
    last = json.loads((bench.tmp / "x.json").read_text())["measurements"][-1]
    assert last["errors"]["RESOURCE_EXHAUSTED"] > 0
    assert last["keeps_up"] is False
    assert "It does not keep up with 5000 parts a second" in done.stdout


def clients_of(process: subprocess.Popen) -> list[int]:
    return [pid for pid in descendants(process.pid) if b"bench.caller" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def measures(process: subprocess.Popen, line: str) -> list[int]:
    """Wait until the command has told a finding that begins so; return the pids of its clients."""
    while not process.stderr.readline().startswith(line):
        assert process.poll() is None
    return clients_of(process)


def test_a_client_that_is_killed_ends_it(bench):
    with bench.popen("board", "--seconds", "30", "--clients", "2", "--way", "shm", "--size", "96x64") as process:
        first, _ = until(lambda: len(found := clients_of(process)) == 2 and found, "its clients")
        until(bench.segments, "their segments")
        os.kill(first, signal.SIGKILL)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert f"(pid {first}) was killed by SIGKILL" in err
    assert bench.left() == []


def test_a_client_that_is_killed_while_all_wait_for_the_end_is_missed_at_once(bench):
    arguments = ("--seconds", "1", "--clients", "2", "--way", "shm", "--size", "96x64", "--rate", "0.2")
    with bench.popen("board", *arguments) as process:
        first, second = measures(process, "  2 clients")
        begin = time.monotonic()
        os.kill(second, signal.SIGKILL)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, time.monotonic() - begin < 5) == (1, True), "the schedule would take 40 s"
    assert f"(pid {second}) was killed by SIGKILL" in err
    assert not alive(first)
    assert bench.left() == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, 143)])
def test_ctrl_c_ends_all_of_it_at_once(bench, number, code):
    with bench.popen("board", "--seconds", "30", "--clients", "3", "--size", "96x64") as process:
        until(lambda: len(clients_of(process)) == 3 and bench.segments(), "its clients")
        below = descendants(process.pid)
        begin = time.monotonic()
        process.send_signal(number)
        process.communicate(timeout=20)
    assert time.monotonic() - begin < 5, "they would measure for 30 s"
    assert process.returncode == code
    assert [pid for pid in below if alive(pid)] == []
    assert bench.left() == []


def test_a_client_that_hangs_ends_it(bench, monkeypatch):
    """With patience for a moment only, where half a minute is usual."""
    impatient = NAMED.replace(
        "segments.PREFIX", "from edge_agent.bench import run; run.PATIENCE = 1.0\nsegments.PREFIX"
    )
    monkeypatch.setitem(globals(), "NAMED", impatient)
    with bench.popen("board", "--seconds", "0.5", "--clients", "1", "--way", "shm", "--size", "96x64") as process:
        (client,) = measures(process, "  one at a time")
        os.kill(client, signal.SIGSTOP)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert f"The client 1 (pid {client}) has hung" in err
    assert not alive(client)
    assert bench.left() == []


def test_an_agent_that_is_away(tmp_path):
    done = CliRunner().invoke(command, ["bench", "board", "--socket", str(tmp_path / "x.sock")])
    assert done.exit_code == 1
    assert "No agent answers on unix://" in done.stderr


def test_a_model_that_is_not_there(bench):
    done = bench.run("nothing")
    assert done.returncode == 1
    assert "No model component 'nothing' is deployed" in done.stderr


def test_an_image_of_another_size_is_named(bench, images, folder):
    Image.fromarray(np.zeros((80, 80, 3), np.uint8)).save(folder / "odd.png")
    done = bench.run("board", str(images), str(folder / "odd.png"))
    assert done.returncode == 2
    told = " ".join(done.stderr.split())
    assert f"{folder}/odd.png: " in told
    assert "80x80" in told
    assert "96x64" in told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--clients", "0"], "write numbers of clients from 1 to 64"),
        (["--clients", "1,x"], "write numbers of clients from 1 to 64"),
        (["--rate", "0"], "is not in the range"),
        (["--size", "12x64"], "12x64 is no size"),
        (["--size", "64"], "64 is no size"),
        (["--size", "64x64", "x.png"], "Give images or --size, not both"),
        (["--html", "/nowhere/x.html"], "/nowhere/x.html cannot be written"),
        (["--way", "both ways"], "is not one of"),
        (["nowhere.png"], "nowhere.png does not exist"),
    ],
)
def test_bad_arguments(arguments, words):
    done = CliRunner().invoke(command, ["bench", "board", "--socket", "/tmp/nowhere.sock", *arguments])
    assert done.exit_code == 2
    assert words in " ".join(done.stderr.split())


def test_the_command_line_stays_small():
    """What only a measurement needs is not imported to say how the command is used."""
    code = "import sys; from edge_agent.cli import bench; print([one for one in ('onnxruntime', 'cv2', 'onnx') if one in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert done.stdout == "[]\n"
