"""The golden template: the graph computes what the fit measured, and the fit says when it is not to be trusted."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from edge_agent import packages
from edge_agent.client import EdgeAgentClient
from edge_agent.demo.boards import DEFECTS, Line
from model_packager import template, writing
from support import shared
from support.agent import environment, serving
from support.users import agent_user


@pytest.fixture(scope="module")
def line() -> Line:
    return Line(7)


@pytest.fixture(scope="module")
def fitted(line) -> template.Template:
    return template.fit([line.good().pixels for _ in range(16)])


def outputs(fitted: template.Template, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    session = onnxruntime.InferenceSession(template.to_onnx(fitted), providers=["CPUExecutionProvider"])
    tensor = (pixels.astype(np.float32) / 255).transpose(2, 0, 1)[None]
    logits, scores = session.run(None, {"input": tensor})
    return logits, scores


@pytest.mark.parametrize("defect", [None, *DEFECTS])
def test_the_graph_computes_what_the_fit_measured(line, fitted, defect):
    pixels = (line.defective(defect) if defect else line.good()).pixels
    z = template.differences(pixels, fitted.mean, fitted.spread)
    logits, scores = outputs(fitted, pixels)
    height, width, _ = pixels.shape
    assert logits.shape == (1, 2, height, width)
    np.testing.assert_allclose(logits[0, 1], z - fitted.threshold, rtol=1e-3, atol=1e-3)
    assert (logits[0, 0] == 0).all()
    expected = 1 / (1 + np.exp(-template.STEEPNESS * (z.max() / fitted.threshold - 1)))
    np.testing.assert_allclose(scores, [[expected, 1 - expected]], atol=1e-3)


def test_smoothing_is_the_mean_of_the_window():
    z = np.random.default_rng(1).random((20, 30)).astype(np.float32)
    around = np.pad(z, template.WINDOW // 2)
    windows = np.lib.stride_tricks.sliding_window_view(around, (template.WINDOW,) * 2)
    np.testing.assert_allclose(template._smooth(z), windows.mean(axis=(2, 3)), rtol=1e-5)


def test_light_is_taken_out(line, fitted):
    pixels = line.good().pixels
    darker = (pixels * 0.8).astype(np.uint8)
    assert outputs(fitted, darker)[1][0, 0] < 0.5


def test_threshold_of_the_caller(line):
    images = [line.good().pixels for _ in range(8)]
    assert template.fit(images, 9.5).threshold == 9.5


def test_what_cannot_be_fitted():
    image = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(template.CannotFit, match="7 photographs .* at least 8"):
        template.fit([image] * 7)
    with pytest.raises(template.CannotFit, match="2 different sizes"):
        template.fit([image] * 8 + [np.zeros((64, 65, 3), np.uint8)])
    for side in ((40, 64), (64, 4097)):
        with pytest.raises(template.CannotFit, match=f"{side[1]}x{side[0]} pixels; the agent takes 64 to 4096 a side"):
            template.fit([np.zeros((*side, 3), np.uint8)] * 8)


def test_good_parts_that_are_not_alike_are_warned_of():
    noise = [np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8) for seed in range(8)]
    assert "not aligned" in template.fit(noise).warnings[0]


def test_a_bad_part_among_the_good_is_warned_of(line):
    images = [line.good().pixels for _ in range(15)]
    assert template.fit(images).warnings == ()
    assert "look for a defective part" in template.fit([*images, line.defective("missing part").pixels]).warnings[0]


def fit(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "edge_agent", "fit", "template", *arguments]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)


def test_command_writes_a_package_that_the_agent_takes(line, folder, tmp_path):
    (tmp_path / "normal").mkdir()
    for number in range(10):
        Image.fromarray(line.good().pixels).save(tmp_path / "normal" / f"{number}.png")
    done = fit("--normal", str(tmp_path / "normal"), "--out", str(folder / "models" / "my-board"))
    assert done.returncode == 0, done.stderr
    assert "10 images of 384x288" in done.stdout
    (found,) = packages.search(folder / "models", lambda _: None)
    looked = packages.look(found, folder / "models", packages.Rules({agent_user().uid}))
    assert (looked.name, looked.version, looked.refusal) == ("my-board", "1.0.0", "")
    with serving(folder / "models") as agent, EdgeAgentClient(str(agent.socket)) as client:
        assert client.start_and_wait("my-board").status_message == ""
        assert not client.detect("my-board", line.good().pixels).is_anomalous
        assert client.detect("my-board", line.defective("missing part").pixels).is_anomalous
    again = fit("--normal", str(tmp_path / "normal"), "--out", str(folder / "models" / "my-board"))
    assert (again.returncode, "cannot be written" in again.stderr) == (1, True)
    assert [path.name for path in (folder / "models").iterdir()] == ["my-board"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "a b"], "cannot name a component"),
        (["--threshold", "0"], "a number above 0"),
        (["--threshold", "high"], "a number above 0"),
        (["--normal", "/nowhere"], "does not exist"),
    ],
)
def test_bad_arguments(tmp_path, arguments, words):
    given = {"--normal": str(tmp_path), "--out": str(tmp_path / "out")}
    given[arguments[0]] = arguments[1]
    done = fit(*(one for pair in given.items() for one in pair))
    assert (done.returncode, words in done.stderr) == (2, True), done.stderr


def test_a_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    done = fit("--normal", str(tmp_path), "--out", str(tmp_path / "out"))
    assert (done.returncode, f"{tmp_path / 'a.png'} is not an image" in done.stderr) == (1, True)


def test_photographs_that_the_agent_would_not_take_are_refused(tmp_path):
    for number in range(8):
        Image.new("RGB", (40, 40)).save(tmp_path / f"{number}.png")
    done = fit("--normal", str(tmp_path), "--out", str(tmp_path / "out"))
    assert (done.returncode, done.stderr.count("\n"), "40x40 pixels" in done.stderr) == (1, 1, True), done.stderr
    assert not (tmp_path / "out").exists()


@shared.needed
def test_cookies_are_not_aligned_and_it_says_so(tmp_path):
    normal = tmp_path / "normal"
    normal.mkdir()
    for path in sorted(shared.PHOTOGRAPHS.glob("normal-*")):
        (normal / path.name).symlink_to(path)
    done = fit("--normal", str(normal), "--out", str(tmp_path / "cookie-template"))
    assert done.returncode == 0, done.stderr
    assert "the parts are not aligned" in done.stderr


def test_colours_reach_the_mask(tmp_path):
    from edge_agent import manifest

    content = writing.mochi_manifest((64, 64), 0.5, ("background", "defect"), normalize=False)
    writing.write(tmp_path / "board", content, b"model", "board", colours={"defect": "#FF2EDC"})
    parsed = manifest.parse(manifest.parse_json(Path(tmp_path / "board" / "manifest.json").read_bytes()))
    assert [one.hex_color for one in parsed.classes] == ["#FFFFFF", "#FF2EDC"]
