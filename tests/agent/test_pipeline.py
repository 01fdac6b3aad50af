"""Pre-processing against the rule written the plain way, on the sizes where libraries differ."""

import itertools

import cv2
import numpy as np
import pytest
from PIL import Image

from edge_agent import graphs, manifest, pipeline, resize
from edge_agent.errors import InferenceFailed, PackageRefused
from edge_agent.manifest import Calibration
from edge_agent.pipeline import Pipeline
from support import packages
from support.calls import picture


class Echo:
    """A session that keeps what it was given and answers what it was told."""

    provider = "test"
    input_dtype = np.dtype(np.float32)

    def __init__(self, *outputs):
        self.outputs = [np.asarray(one, np.float32) for one in outputs]

    def run(self, tensor):
        self.tensor = tensor.copy()
        return self.outputs

    def close(self):
        pass


def pipe(parsed: manifest.Manifest, session: Echo) -> Pipeline:
    return Pipeline(parsed, graphs.of(parsed, session))


def tensor_of(pixels: np.ndarray, **stage) -> np.ndarray:
    session = Echo([[0.25, 0.75]])
    pipe(manifest.parse(packages.manifest(**stage)), session).judge(pixels)
    return session.tensor


@pytest.mark.parametrize(("scaled", "normalized"), list(itertools.product([True, False], repeat=2)))
def test_input_is_made_by_the_rule(scaled, normalized):
    pixels = picture(64, 64)
    expected = pixels.astype(np.float64)
    if scaled:
        expected /= 255
    if normalized:
        expected = (expected - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    tensor = tensor_of(pixels, image_range_scale=scaled, normalize=normalized)
    assert tensor.shape == (1, 3, 64, 64)
    assert tensor.dtype == np.float32
    np.testing.assert_allclose(tensor[0], expected.transpose(2, 0, 1), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("source", [(64, 64), (97, 131), (640, 480), (65, 300)])
def test_resize_is_opencvs(code, source):
    pixels = picture(*source)
    expected = cv2.resize(pixels, (80, 72), interpolation=code)
    tensor = tensor_of(pixels, size=(80, 72), interpolation=code)
    # INTER_AREA is added up in another order: a level apart here and there.
    level = 1 / 255 if code == resize.AREA else 0
    np.testing.assert_allclose(tensor[0], expected.transpose(2, 0, 1) / 255, rtol=0, atol=level + 1e-6)
    assert (np.abs(tensor[0] - expected.transpose(2, 0, 1) / 255) > 1e-6).mean() < 0.01


def test_antialiased_bilinear_is_pillows():
    pixels = picture(97, 131)
    expected = np.asarray(Image.fromarray(pixels).resize((80, 72), Image.Resampling.BILINEAR))
    tensor = tensor_of(pixels, size=(80, 72), interpolation="bilinear-antialias")
    np.testing.assert_allclose(tensor[0], expected.transpose(2, 0, 1) / 255, rtol=0, atol=1 / 255 + 1e-6)


def test_equal_size_is_the_identity_and_asks_no_library(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    tensor_of(picture(64, 64))
    with pytest.raises(PackageRefused, match="OpenCV, which is not installed"):
        tensor_of(picture(65, 64))


def test_rows_with_padding_are_read_without_it():
    pixels = picture(66, 64)
    padded = np.zeros((64, 200), np.uint8)
    padded[:, :198] = pixels.reshape(64, 198)
    view = padded[:, :198].reshape(64, 66, 3)
    assert (tensor_of(view, size=(66, 64)) == tensor_of(pixels, size=(66, 64))).all()
    assert (tensor_of(view, size=(33, 64)) == tensor_of(pixels, size=(33, 64))).all()


@pytest.mark.parametrize(
    ("source", "target"), [(1, 64), (7, 64), (75, 480), (100, 640), (192, 768), (768, 192), (333, 500)]
)
def test_nearest_indices(source, target):
    indices = resize.nearest_indices(source, target)
    assert indices.tolist() == [position * source // target for position in range(target)]
    assert indices[0] == 0
    assert indices[-1] <= source - 1


@pytest.mark.parametrize("source", [(4, 4), (75, 100), (37, 53), (300, 300)])
def test_areas_are_counted_as_if_the_map_were_spread(source):
    """The shortcut by multiplicities against counting every pixel of the painted mask."""
    height, width = 131, 97
    logits = np.random.default_rng(3).normal(size=(1, 4, *source))
    names = ("background", "a", "b", "c")
    content = packages.manifest(size=(width, height), segmentation=True, pixel_names=names)
    judge = pipe(manifest.parse(content), Echo(logits, [[0.25, 0.75]]))
    verdict, class_map = judge.judge(picture(width, height))
    painted = np.empty((height, width, 3), np.uint8)
    judge.paint(class_map, painted)
    for area in verdict.anomalies:
        colour = tuple(bytes.fromhex(area.hex_color[1:]))
        assert area.area == (painted == colour).all(axis=2).mean()
    assert sum(area.area for area in verdict.anomalies) == pytest.approx(1)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_no_number_is_no_verdict(score):
    judge = pipe(manifest.parse(packages.manifest()), Echo([[score, 0.0]]))
    with pytest.raises(InferenceFailed, match="no number to compare"):
        judge.judge(picture(64, 64))


def test_a_mask_that_is_no_number_is_no_verdict():
    logits = np.zeros((1, 2, 8, 8))
    logits[0, 1, 3, 3] = np.nan
    content = packages.manifest(segmentation=True, pixel_names=("background", "dent"))
    judge = pipe(manifest.parse(content), Echo(logits, [[0.25, 0.75]]))
    with pytest.raises(InferenceFailed, match="no numbers"):
        judge.judge(picture(64, 64))


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ([], "manifest promises class scores 1xK"),
        ([[[0.5, 0.5]], [[0.5, 0.5]]], "manifest promises class scores 1xK"),
        ([[0.5, 0.5]], "must be 1xK"),
        ([[[0.5]]], "class_normal_ids [1]"),
        ([[[0.5, 0.5], [0.5, 0.5]]], "must be 1xK"),
    ],
)
def test_outputs_of_another_shape(outputs, words):
    judge = pipe(manifest.parse(packages.manifest()), Echo(*outputs))
    with pytest.raises(InferenceFailed) as caught:
        judge.judge(picture(64, 64))
    assert words in str(caught.value)


@pytest.mark.parametrize("score", [-1000.0, 1000.0])
def test_calibration_does_not_overflow(score):
    assert pipeline.calibrate(score, Calibration(-1000.0, 0.0)) in {0.0, 1.0}


def test_confidence_of_scores_out_of_range():
    assert pipeline.confidence(np.float32(2.0), True) == 1.0
    assert pipeline.confidence(np.float32(-1.0), False) == 1.0


@pytest.mark.parametrize(
    ("threshold", "raw", "anomalous", "reported"),
    [(-2.0, -3.0, False, 0.0), (-2.0, -1.5, True, 0.0), (1.4, 1.5, True, 1.0), (1.4, 1.3, False, 1.0)],
)
def test_a_threshold_beyond_0_to_1_is_compared_with_the_score_before_it_is_clipped(threshold, raw, anomalous, reported):
    """As where the score is the mean of a mask's logits; the package notes that the reported one tells less."""
    content = packages.manifest(
        classification=False, segmentation=True, pixel_names=("background", "dent"), threshold=threshold
    )
    parsed = manifest.parse(content)
    verdict, _ = pipe(parsed, Echo(np.full((1, 2, 8, 8), raw))).judge(picture(64, 64))
    assert (verdict.is_anomalous, verdict.score, verdict.threshold) == (anomalous, reported, threshold)
    assert any("only is_anomalous is to be compared" in note for note in parsed.notes)


@pytest.mark.parametrize("marks", [[(3, 5), (40, 44)], [(0, 64), (10, 11)], [(63, 64), (0, 1), (0, 0), (20, 30)]])
def test_a_mask_has_nothing_of_the_one_before(marks):
    """Rows of another image's anomalies, of all rows, of none: each mask as if it were the first."""
    content = packages.manifest(size=(80, 64), segmentation=True, pixel_names=("background", "dent"))
    session = Echo(np.zeros((1, 2, 64, 80)), [[0.25, 0.75]])
    judge = pipe(manifest.parse(content), session)
    for begin, end in marks:
        session.outputs[0] = np.zeros((1, 2, 64, 80), np.float32)
        session.outputs[0][0, 1, begin:end, 7:9] = 1
        expected = np.full((64, 80, 3), 255, np.uint8)
        expected[begin:end, 7:9] = (0x23, 0xA4, 0x36)
        painted = np.empty((64, 80, 3), np.uint8)
        judge.paint(judge.judge(picture(80, 64))[1], painted)
        assert (painted == expected).all()
