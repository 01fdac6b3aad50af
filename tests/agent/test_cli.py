"""The command line against a real agent: what it prints, where, and with which exit code."""

import fcntl
import json
import os
import pty
import shutil
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from edge_agent import overlay
from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent.cli import boundary, command, detect, places
from edge_agent.client import AnomalyType, Detection, EdgeAgentClient, ModelInfo
from support import packages
from support.agent import environment, serving
from support.calls import expected_mask, picture
from support.waiting import until


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name, pixels in (
        ("dark.png", np.full((64, 64, 3), 10, np.uint8)),
        ("bright.png", np.full((64, 64, 3), 200, np.uint8)),
        ("noise.png", picture(64, 64)),
        ("large.png", picture(80, 64)),
    ):
        Image.fromarray(pixels).save(folder / name)
    (folder / "text.png").write_text("not an image")
    return folder


@pytest.fixture(scope="module")
def agent(module_folder):
    packages.segmenter(module_folder / "models" / "board")
    packages.classifier(module_folder / "models" / "part")
    packages.write(module_folder / "models" / "broken", packages.manifest(), b"not ONNX")
    with serving(module_folder / "models") as running:
        running.run_model("board")
        running.run_model("part")
        yield running


NOWHERE = "/tmp/no-agent-is-here.sock"
# The command line, its segments named so that other clients on this machine are not counted, nor sweep them.
NAMED = """
import signal
import sys
from edge_agent import segments
from edge_agent.__main__ import main
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which it is not where the tests were started with nohup
segments.PREFIX = sys.argv.pop(1)
sys.exit(main())
"""


def segments_of(prefix: str) -> list[Path]:
    return list(Path("/dev/shm").glob(f"{prefix}*"))


def run(agent, *arguments: str, socket: str | None = None) -> subprocess.CompletedProcess:
    env = environment(EDGE_AGENT_SOCKET=socket or str(agent.socket))
    return subprocess.run(
        [sys.executable, "-m", "edge_agent", *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("form", ["unix://{}", "unix:{}", "{}"])
@pytest.mark.parametrize("by", ["flag", "variable"])
def test_models_over_every_form_of_the_address(agent, form, by):
    address = form.format(agent.socket)
    done = (
        run(agent, "models", "--socket", address, socket="/nowhere")
        if by == "flag"
        else run(agent, "models", socket=address)
    )
    assert done.returncode == 0, done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        ["MODEL", "STATUS"],
        ["board", "RUNNING"],
        ["broken", "STOPPED"],
        ["part", "RUNNING"],
    ]


@pytest.mark.parametrize("shm", [[], ["--shm"]])
def test_detect_json(agent, images, shm):
    names = [str(images / name) for name in ("bright.png", "dark.png", "noise.png")]
    done = run(agent, "detect", *names, "--model", "board", "--json", *shm)
    assert (done.returncode, done.stderr) == (0, "")
    results = json.loads(done.stdout)
    assert [one["image"] for one in results] == names
    assert [one["is_anomalous"] for one in results[:2]] == [True, False]
    keys = {"image", "is_anomalous", "confidence", "anomaly_score", "anomaly_threshold", "anomalies"}
    assert all(set(one) == keys for one in results)
    assert results[0]["anomalies"] == [{"name": "bright", "total_percentage_area": 1.0, "hex_color": "#23A436"}]
    assert results[1]["anomalies"] == [{"name": "background", "total_percentage_area": 1.0, "hex_color": "#FFFFFF"}]
    assert results[0]["anomaly_score"] == pytest.approx(200 / 255, abs=1e-4)
    assert results[0]["anomaly_threshold"] == 0.5


def test_classification_has_an_empty_list_of_anomalies(agent, images):
    done = run(agent, "detect", str(images / "dark.png"), "--model", "part", "--json")
    assert json.loads(done.stdout)[0]["anomalies"] == []


def test_a_folder_and_images_that_fail(agent, images):
    done = run(agent, "detect", str(images), str(images / "nowhere.png"), "--model", "board", "--json")
    assert done.returncode == 1
    results = {one["image"]: one for one in json.loads(done.stdout)}
    assert list(results) == [
        *(
            str(images / name)
            for name in ("bright.png", "dark.png", "large.png", "noise.png", "text.png", "nowhere.png")
        )
    ]
    failed = {name.rpartition("/")[2]: one["error"] for name, one in results.items() if "error" in one}
    assert set(failed) == {"large.png", "text.png", "nowhere.png"}
    assert "80x64" in failed["large.png"]
    assert "64x64" in failed["large.png"]
    assert "not an image" in failed["text.png"]
    assert "does not exist" in failed["nowhere.png"]
    assert all("is_anomalous" not in one for one in results.values() if "error" in one)


def test_exit_codes_of_verdicts(agent, images):
    bright, dark = str(images / "bright.png"), str(images / "dark.png")
    assert run(agent, "detect", bright, "--model", "board").returncode == 0
    assert run(agent, "detect", bright, dark, "--model", "board", "--fail-on-anomaly").returncode == 3
    assert run(agent, "detect", dark, "--model", "board", "--fail-on-anomaly").returncode == 0
    assert run(agent, "detect", bright, "nowhere", "--model", "board", "--fail-on-anomaly").returncode == 1


def test_detect_for_people(agent, images):
    done = run(agent, "detect", str(images / "bright.png"), "--model", "board")
    assert done.stdout == f"{images / 'bright.png'}  ANOMALOUS  confidence 0.7843  bright 100.00%\n"


def test_unknown_model(agent, images):
    done = run(agent, "detect", str(images / "dark.png"), "--model", "nobody", "--json")
    assert done.returncode == 1
    assert "'nobody'" in json.loads(done.stdout)[0]["error"]
    done = run(agent, "start", "nobody")
    assert (done.returncode, done.stderr.startswith("Error: nobody: No model component")) == (1, True)


def test_start_and_stop(agent):
    assert run(agent, "stop", "part").stdout == "part STOPPED\n"
    done = run(agent, "stop", "part")
    assert (done.returncode, done.stderr) == (1, "Error: part: The model is STOPPED; StopModel needs RUNNING.\n")
    done = run(agent, "start", "part", "--wait")
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].startswith("part RUNNING")
    assert run(agent, "start", "part", "--wait").returncode == 0, "it ran already"
    done = run(agent, "start", "part")
    assert (done.returncode, done.stderr) == (
        1,
        "Error: part: The model is RUNNING; StartModel needs STOPPED or FAILED.\n",
    )
    agent.stub().StopModel(pb2.StopModelRequest(model_component="part"))
    assert run(agent, "start", "part").stdout == "part STARTING\n"
    assert run(agent, "start", "part", "--wait").returncode == 0, "it was STARTING already"
    until(lambda: agent.state("part") == "RUNNING", "it runs")


def test_start_wait_tells_why_it_failed(agent):
    done = run(agent, "start", "broken", "--wait")
    assert done.returncode == 1
    assert "The model is FAILED: ONNX Runtime cannot load the model" in done.stderr


def test_no_agent(agent, images):
    for arguments in (["models"], ["start", "board"], ["stop", "board"]):
        done = run(agent, *arguments, socket=NOWHERE)
        assert done.returncode == 1
        assert f"No agent answers on unix://{NOWHERE}" in done.stderr
        assert "Traceback" not in done.stderr
    done = run(agent, "detect", str(images / "dark.png"), "--model", "board", "--json", socket=NOWHERE)
    assert "No agent answers" in json.loads(done.stdout)[0]["error"]


def test_one_damaged_image_does_not_cost_the_others(agent, images, tmp_path):
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(bomb)
    whole = (images / "dark.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "flipped.png").write_bytes(whole[:20] + bytes([whole[20] ^ 255]) + whole[21:])
    (tmp_path / "good.png").write_bytes(whole)
    done = run(agent, "detect", str(tmp_path), "--model", "board", "--json")
    assert done.returncode == 1
    results = {one["image"].rpartition("/")[2]: one for one in json.loads(done.stdout)}
    assert {name for name, one in results.items() if "error" in one} == {"bomb.png", "cut.png", "flipped.png"}


def test_bad_address(agent):
    done = run(agent, "models", "--socket", "tcp:1")
    assert done.returncode == 2
    assert "only Unix domain sockets" in done.stderr


@pytest.mark.parametrize("number", [None, signal.SIGTERM, signal.SIGHUP])
def test_no_segment_is_left_behind(agent, images, number):
    """Neither when all goes well, nor when a signal comes in the middle of a call."""
    prefix = f"edge-agent-test-{os.urandom(6).hex()}-"
    workers = agent.workers() if number else []
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    process = subprocess.Popen(
        [sys.executable, "-c", NAMED, prefix, "detect", str(images / "dark.png"), "--model", "board", "--shm"],
        env=environment(EDGE_AGENT_SOCKET=str(agent.socket)),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        if number:
            until(lambda: len(segments_of(prefix)) == 2, "it has its segments")
            process.send_signal(number)
        _, told = process.communicate(timeout=60)
    finally:
        for worker in workers:
            os.kill(worker, signal.SIGCONT)
    assert (process.returncode, told) == (128 + number if number else 0, "")
    assert segments_of(prefix) == []


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with boundary.ending_in_order():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("closed", ["<&- >&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("command", ["models", "status", "doctor", "detect"])
def test_streams_that_are_closed(agent, images, command, closed):
    """What is opened next would have their numbers, and be written to."""
    arguments = {
        "status": ["--state-dir", str(agent.folder / "state")],
        "doctor": ["--models", str(agent.folder)],
        "detect": [str(images / "dark.png"), str(images / "bright.png"), "--model", "board"],
    }.get(command, [])
    program = [sys.executable, "-m", "edge_agent", command, *arguments]
    env = environment(EDGE_AGENT_SOCKET=str(agent.socket))
    shown = subprocess.run(program, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert shown.stdout
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *program]
    done = subprocess.run(shell, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (shown.returncode, "")
    assert done.stderr == ("" if "2>" in closed else shown.stderr)


def test_describe(agent):
    done = run(agent, "describe", "board")
    assert done.returncode == 0
    assert done.stdout.splitlines()[:3] == [
        "model    board",
        "arn      arn:aws:lookoutvision:local:000000000000:model/board/0",
        "status   RUNNING",
    ]
    assert run(agent, "describe", "nobody").returncode == 1


def test_overlay_and_mask_of_one_image(agent, images, tmp_path):
    mask, overlay = tmp_path / "mask.png", tmp_path / "overlay.png"
    noise = str(images / "noise.png")
    done = run(agent, "detect", noise, "--model", "board", "--mask", str(mask), "--overlay", str(overlay))
    assert done.returncode == 0, done.stderr
    pixels = np.asarray(Image.open(noise))
    assert (np.asarray(Image.open(mask)) == expected_mask(pixels)).all()
    drawn = np.asarray(Image.open(overlay))
    assert drawn.shape[0] > 64, "the legend is below the image"
    marked = (expected_mask(pixels) != 255).any(axis=2)
    assert (drawn[:64][~marked] == pixels[~marked]).all(), "what is no anomaly is left as it is"
    assert (drawn[:64][marked] != pixels[marked]).any(axis=1).mean() > 0.9


def test_overlays_of_several_images_go_into_a_folder(agent, images, tmp_path):
    folder = tmp_path / "new" / "folder"
    done = run(
        agent,
        "detect",
        str(images / "dark.png"),
        str(images / "bright.png"),
        "--overlay",
        str(folder),
        "--model",
        "board",
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["bright.png", "dark.png"]
    assert done.stdout.splitlines()[-1].startswith("2 images: 1 anomalous, 1 normal; ")
    one_file = run(agent, "detect", str(images), "--overlay", str(tmp_path / "one.png"), "--model", "board")
    assert (one_file.returncode, "need a folder" in one_file.stderr) == (2, True)
    masks = run(agent, "detect", str(images), "--mask", str(tmp_path / "one.png"), "--model", "board")
    assert (masks.returncode, "is for one image" in masks.stderr) == (2, True)


class TestPlaces:
    """Where pictures go is decided before the first image is judged; no agent is there in these tests."""

    @staticmethod
    def refused(*arguments: str) -> str:
        done = run(None, "detect", *arguments, "--model", "board", "--json", socket=NOWHERE)
        assert (done.returncode, done.stdout) == (2, ""), done
        return done.stderr

    @pytest.mark.parametrize("way", ["folder", "file", "mask", "symlink", "hard link"])
    def test_an_image_is_never_overwritten(self, images, tmp_path, way):
        photos, out = tmp_path / "photos", tmp_path / "out"
        shutil.copytree(images, photos)
        before = {path: path.read_bytes() for path in photos.iterdir()}
        image = photos / "dark.png"
        out.mkdir()
        if way == "symlink":
            (out / "dark.png").symlink_to(image)
        elif way == "hard link":
            (out / "dark.png").hardlink_to(image)
        arguments, named = {
            "folder": ([photos, "--overlay", photos], photos / "bright.png"),
            "file": ([image, "--overlay", photos / ".." / "photos" / "dark.png"], image),
            "mask": ([image, "--mask", image], image),
        }.get(way, ([image, "--overlay", out], out / "dark.png"))
        told = self.refused(*map(str, arguments))
        assert f"{named.name} is one of the images, which are never overwritten; name another" in told
        assert ("--mask" if way == "mask" else "--overlay") in told
        assert {path: path.read_bytes() for path in photos.iterdir()} == before

    def test_each_overlay_has_a_name_of_its_own(self):
        for images, expected in (
            (["p/x.bmp", "p/y.png"], ["x.png", "y.png"]),
            (["p/x.bmp", "p/x.png", "p/y.png"], ["x.bmp.png", "x.png.png", "y.png"]),
            (["p/x.bmp", "p/x.png", "q/x.png"], ["x.bmp.png", "p-x.png.png", "q-x.png.png"]),
            (["p/x.png", "r/p/x.png", "q/x.bmp"], ["1-x.png.png", "2-x.png.png", "x.bmp.png"]),
            (["x.png", "x.png"], ["1-x.png.png", "2-x.png.png"]),
            (["x.bmp", "x.png", "x.bmp.tif"], ["here-x.bmp.png", "x.png.png", "x.bmp.tif.png"]),
            (["a.png", "A.png"], ["a.png.png", "A.png.png"]),
            ([], []),
        ):
            made = places.names(images)
            assert len({name.lower() for name in made}) == len(images)
            here = Path.cwd().name
            if images != ["a.png", "A.png"]:
                assert made == [name.replace("here", here) for name in expected]

    def test_names_are_distinct_whatever_the_images_are_called(self):
        random = np.random.default_rng(0)
        parts = ["x", "x.png", "1-x", "2-x.png", "p-x", "p-x.png"]
        for _ in range(300):
            images = [f"{'pq'[random.integers(2)]}/{parts[one]}.png" for one in random.integers(len(parts), size=6)]
            assert len(set(places.names(images))) == 6

    def test_a_file_where_a_folder_or_nothing_should_be(self, images, tmp_path):
        (tmp_path / "file").write_text("precious")
        (tmp_path / "folder.png").mkdir()
        os.mkfifo(tmp_path / "fifo.png")
        image = str(images / "dark.png")
        for flag, target, words in (
            ("--overlay", "file", "is no folder; name a folder"),
            ("--overlay", "file/x", "cannot be made: Not a directory"),
            ("--overlay", "file/x.png", "cannot be written: Not a directory"),
            ("--overlay", "/proc/x/y", "cannot be made: No such file or directory"),
            ("--overlay", "nowhere/x.png", "its folder does not exist"),
            ("--overlay", "fifo.png", "it is there and no file"),
            ("--mask", "folder.png", "it is there and no file"),
            ("--mask", "nowhere/x.png", "its folder does not exist"),
            ("--mask", "x.txt", "has no picture's suffix"),
            ("--mask", "x" * 300 + ".png", "File name too long"),
        ):
            told = self.refused(image, flag, str(tmp_path / target))
            assert f"Invalid value for {flag}: " in told
            assert words in told
        assert (tmp_path / "file").read_text() == "precious"

    def test_mask_and_overlay_in_one_file(self, images, tmp_path):
        target = str(tmp_path / "x.png")
        assert "written twice" in self.refused(str(images / "dark.png"), "--mask", target, "--overlay", target)

    def test_a_folder_that_cannot_be_read(self, monkeypatch, tmp_path):
        def closed(_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "iterdir", closed)
        done = CliRunner().invoke(command, ["detect", str(tmp_path), "--socket", NOWHERE])
        assert (done.exit_code, "cannot be read: Permission denied" in done.output) == (2, True)


def test_overlays_of_images_of_one_name(agent, images, tmp_path):
    shown = []
    for name, source in (("p/x.bmp", "dark"), ("p/x.png", "bright"), ("q/x.png", "noise")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.open(images / f"{source}.png").save(tmp_path / name)
    folders = [str(tmp_path / "p"), str(tmp_path / "q")]
    done = run(agent, "detect", *folders, "--overlay", str(tmp_path / "out"), "--model", "board", "--json")
    assert done.returncode == 0, done.stderr
    for result, source in zip(json.loads(done.stdout), ("dark", "bright", "noise"), strict=True):
        shown.append(Path(result["overlay"]))
        upper = np.asarray(Image.open(shown[-1]))[:64]
        pixels = np.asarray(Image.open(images / f"{source}.png"))
        unmarked = (expected_mask(pixels) == 255).all(axis=2)
        assert (upper[unmarked] == pixels[unmarked]).all()
    assert [one.name for one in shown] == ["x.bmp.png", "p-x.png.png", "q-x.png.png"]
    assert sorted(shown) == sorted((tmp_path / "out").iterdir())


def test_a_picture_that_cannot_be_written_costs_that_picture(agent, images, tmp_path):
    """Here: no file may grow, as on a full disk. What was judged is told all the same."""
    names = [str(images / name) for name in ("dark.png", "bright.png")]
    for form in (["--json"], []):
        arguments = ["detect", *names, "--model", "board", "--overlay", str(tmp_path), *form]
        done = subprocess.run(
            ["/bin/sh", "-c", 'ulimit -f 0; exec "$0" "$@"', sys.executable, "-m", "edge_agent", *arguments],
            env=environment(EDGE_AGENT_SOCKET=str(agent.socket)),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        if form:
            results = json.loads(done.stdout)
            assert [one["is_anomalous"] for one in results] == [False, True]
            told = f"the overlay cannot be written into {tmp_path / 'dark.png'}: File too large"
            assert results[0]["error"] == told
        else:
            assert "2 images: 1 anomalous, 1 normal, 2 without a picture; " in done.stdout
            assert "dark.png: the overlay cannot be written" in done.stderr


def test_a_mask_of_a_model_without_one(agent, images, tmp_path):
    done = run(agent, "detect", str(images / "dark.png"), "--model", "part", "--mask", str(tmp_path / "m.png"))
    assert done.returncode == 1
    assert "no segmentation head" in done.stderr
    assert "normal" in done.stdout, "it was judged"


def test_a_mask_that_the_agent_leaves_out(folder, images, tmp_path):
    packages.segmenter(folder / "models" / "board")
    with serving(folder / "models", inline_mask_limit=100) as agent:
        agent.run_model("board")
        for flag in ("--mask", "--overlay"):
            target = tmp_path / f"{flag[2:]}.png"
            done = run(agent, "detect", str(images / "noise.png"), "--json", flag, str(target))
            assert done.returncode == 1
            (result,) = json.loads(done.stdout)
            assert result["error"] == detect.LEFT_OUT
            assert len(result["anomalies"]) == 2
            assert not target.exists(), "no picture that lacks the mask"
            assert run(agent, "detect", str(images / "noise.png"), "--shm", flag, str(target)).returncode == 0
            assert target.exists()


def test_a_fifo_is_not_waited_for(agent, images, tmp_path):
    os.mkfifo(tmp_path / "a.png")
    shutil.copy(images / "dark.png", tmp_path / "b.png")
    for arguments in ([str(tmp_path / "a.png"), str(tmp_path / "b.png")], [str(tmp_path)]):
        done = run(agent, "detect", *arguments, "--model", "board", "--json")
        assert done.returncode == 1
        results = json.loads(done.stdout)
        assert [one.get("error") for one in results] == ["is not a regular file", None]


def on_a_terminal(agent, *arguments: str) -> list[str]:
    """Run a command on a terminal; return the lines that are seen there at the end."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 200, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "edge_agent", *arguments],
        env=environment(EDGE_AGENT_SOCKET=str(agent.socket), TERM="dumb", NO_COLOR="1"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    written = b""
    try:
        while piece := os.read(ours, 65536):
            written += piece
    except OSError:
        pass  # the other end is closed
    os.close(ours)
    process.wait(60)
    assert written.count(b"judging [") == 5, "the bar was shown"
    lines = []
    for line in written.decode().removesuffix("\r\n").split("\r\n"):
        seen: list[str] = []
        for piece in line.split("\r"):
            seen[: len(piece)] = piece
        lines.append("".join(seen).rstrip())
    return lines


def test_nothing_of_the_progress_bar_is_left(agent, images):
    lines = on_a_terminal(agent, "detect", str(images), "--model", "board")
    width = len(str(images / "bright.png"))
    plain = [line.replace("\x1b[31m", "").replace("\x1b[32m", "").replace("\x1b[0m", "") for line in lines]
    assert [line[:width].rstrip() for line in plain[:-1]] == [
        str(images / "bright.png"),
        str(images / "dark.png"),
        f"{images / 'large.png'}:"[:width],
        str(images / "noise.png"),
        f"{images / 'text.png'}:"[:width],
    ]
    assert plain[0].endswith("  ANOMALOUS  confidence 0.7843  bright 100.00%")
    assert plain[-1].startswith("5 images: ")
    assert not any("judging" in line or "[" in line for line in plain)


def test_model_and_class_names_cannot_speak_to_the_terminal(monkeypatch):
    evil = "a\x1b[31m\nb\u202e"
    told = r"a\x1b[31m\nb\u202e"
    result = {
        "image": evil,
        "is_anomalous": False,
        "confidence": 1.0,
        "anomalies": [{"name": evil, "total_percentage_area": 1.0}],
    }
    assert detect._line(result, 1).count(told) == 2
    info = ModelInfo("board", evil, "RUNNING", evil)
    monkeypatch.setattr(EdgeAgentClient, "describe_model", lambda *_: info)
    monkeypatch.setattr(EdgeAgentClient, "list_models", lambda *_: [info])
    monkeypatch.setattr(EdgeAgentClient, "start_and_wait", lambda *_, progress: progress(info))
    for arguments, count in ((["describe", "board"], 2), (["models"], 1), (["start", "board", "--wait"], 1)):
        done = CliRunner().invoke(command, [*arguments, "--socket", NOWHERE])
        assert (done.exit_code, done.output.count(told)) == (0, count), done.output


def test_an_overlay_of_names_with_line_breaks():
    detection = Detection(True, 1.0, 1.0, 0.5, (AnomalyType("a\nb\x1b", 1.0, "#23A436"),), None)
    pixels = picture(400, 300)
    assert overlay.draw(pixels, detection, "c\nd").size == overlay.draw(pixels, detection, "c").size


@pytest.mark.parametrize("name", [b"\xff", b"\xff\xfe", b"a\xffb\n"])
def test_names_that_are_no_text(agent, images, name):
    for arguments in (["describe", name], ["start", name], ["stop", name], ["start", name, "--wait"]):
        done = run(agent, *arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("Error: ")
        assert "a name has 1 to 128 of the characters" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    done = run(agent, "detect", bytes(images) + b"/" + name, "--model", name)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("does not exist\n")
    done = run(agent, "models", "--socket", b"/tmp/" + name)
    assert (done.returncode, "must be UTF-8" in done.stderr) == (2, True)


def test_an_image_whose_name_is_no_text(agent, images, tmp_path):
    path = bytes(tmp_path) + b"/\xff.png"
    shutil.copy(images / "dark.png", path)
    done = run(agent, "detect", path, "--model", "board", "--overlay", str(tmp_path / "out"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{tmp_path}/\\udcff.png  normal")
    assert os.listdir(bytes(tmp_path) + b"/out") == [b"\xff.png"]
    done = run(agent, "detect", path, "--model", "board", "--json")
    assert json.loads(done.stdout)[0]["image"] == f"{tmp_path}/\udcff.png"


def test_a_terminal_that_cannot_show_a_name(agent, images, tmp_path):
    shutil.copy(images / "dark.png", tmp_path / "\u65e5.png")
    done = subprocess.run(
        [sys.executable, "-m", "edge_agent", "detect", str(tmp_path / "\u65e5.png"), "--model", "board"],
        env=environment(EDGE_AGENT_SOCKET=str(agent.socket), PYTHONIOENCODING="latin-1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{tmp_path}/\\u65e5.png  normal")


@pytest.mark.parametrize("arguments", [["models"], ["describe", "board"], ["--help"], ["config"]])
def test_output_that_cannot_be_written(agent, arguments):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "edge_agent", *arguments],
            env=environment(EDGE_AGENT_SOCKET=str(agent.socket)),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    told = "Error: The output cannot be written: No space left on device.\n"
    assert (done.returncode, done.stderr) == (1, told)


def test_an_empty_variable_is_none():
    for arguments in (["models"], ["config"]):
        done = run(None, *arguments, socket="unix:relative/")
        assert (done.returncode, "the path of the socket is missing" in done.stderr) == (2, True)
    env = {"EDGE_AGENT_SOCKET": "", "EDGE_AGENT_SOCKET_GROUP": "", "EDGE_AGENT_MAX_CALLS": ""}
    done = CliRunner().invoke(command, ["config"], env=env)
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0] == "socket: unix:///tmp/aws.iot.lookoutvision.EdgeAgent.sock"
    assert {"socket_group: ''", "max_calls: 64"} <= set(lines)


def test_model_must_be_named_when_several_run(agent, images):
    done = run(agent, "detect", str(images / "dark.png"))
    assert done.returncode == 2
    assert "RUNNING are: board, part" in done.stderr


def test_an_empty_name_is_one_that_was_given(agent, images):
    done = run(agent, "detect", str(images / "dark.png"), "--model=")
    assert done.returncode == 1
    assert "model_component is ''" in done.stderr


def test_numbers_that_json_has_no_word_for(images, monkeypatch):
    nan, inf = float("nan"), float("inf")
    found = Detection(False, nan, inf, -inf, (AnomalyType("background", nan, "#FFFFFF"),), None)
    monkeypatch.setattr(EdgeAgentClient, "detect", lambda *_, **__: found)
    arguments = ["detect", str(images / "dark.png"), "--model", "board", "--json", "--socket", NOWHERE]
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 0, done.output

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    (result,) = json.loads(done.output, parse_constant=refuse)
    assert [result[key] for key in ("confidence", "anomaly_score", "anomaly_threshold")] == [None] * 3
    assert result["anomalies"][0]["total_percentage_area"] is None


def test_the_only_running_model_judges(agent, images):
    agent.stub().StopModel(pb2.StopModelRequest(model_component="part"))
    done = run(agent, "detect", str(images / "dark.png"), "--json")
    agent.run_model("part")
    assert (done.returncode, json.loads(done.stdout)[0]["is_anomalous"]) == (0, False)


def test_json_is_alone_on_stdout_with_everything_else_asked_for(agent, images, tmp_path):
    done = run(agent, "detect", str(images), "--json", "--overlay", str(tmp_path), "--model", "board", "--shm")
    assert len(json.loads(done.stdout)) == 5
    assert done.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion(shell):
    env = environment(_EDGE_AGENT_COMPLETE=f"{shell}_source")
    command = Path(sys.executable).with_name("edge-agent")
    done = subprocess.run([command], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, "edge-agent" in done.stdout) == (0, True), done.stderr
