"""The command line against a real agent: what it prints, where, and with which exit code."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_agent._proto import edge_agent_pb2 as pb2
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
    for command in (["models"], ["start", "board"], ["stop", "board"]):
        done = run(agent, *command, socket="/tmp/no-agent-is-here.sock")
        assert done.returncode == 1
        assert "No agent answers on unix:///tmp/no-agent-is-here.sock" in done.stderr
        assert "Traceback" not in done.stderr
    done = run(
        agent, "detect", str(images / "dark.png"), "--model", "board", "--json", socket="/tmp/no-agent-is-here.sock"
    )
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


def test_no_segment_is_left_behind(agent, images):
    before = {path.name for path in Path("/dev/shm").iterdir()}
    done = run(agent, "detect", str(images / "dark.png"), "--model", "board", "--shm")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in Path("/dev/shm").iterdir() if path.name.startswith("edge-agent")} <= before


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


def test_a_mask_of_a_model_without_one(agent, images, tmp_path):
    done = run(agent, "detect", str(images / "dark.png"), "--model", "part", "--mask", str(tmp_path / "m.png"))
    assert done.returncode == 1
    assert "no segmentation head" in done.stderr


def test_model_must_be_named_when_several_run(agent, images):
    done = run(agent, "detect", str(images / "dark.png"))
    assert done.returncode == 2
    assert "RUNNING are: board, part" in done.stderr


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
