"""The vectors of the contract and of the package format, through a real model behind a real socket."""

import json
from pathlib import Path

import numpy as np
import pytest

from edge_agent._proto import edge_agent_pb2 as pb2
from support import packages
from support.agent import PLENTY, serving

THRESHOLD = 0.7021560668945312
RAN: set[str] = set()


def case(name: str, folder: Path, content: dict, onnx_model: bytes) -> None:
    packages.write(folder / name, content, onnx_model)


def detect(agent, name: str, size: tuple[int, int] = (64, 64)) -> pb2.DetectAnomalyResult:
    stub = agent.stub()
    agent.run_model(name)
    width, height = size
    bitmap = pb2.Bitmap(width=width, height=height, byte_data=bytes(3 * width * height))
    response = stub.DetectAnomalies(pb2.DetectAnomaliesRequest(model_component=name, bitmap=bitmap), timeout=PLENTY)
    stub.StopModel(pb2.StopModelRequest(model_component=name), timeout=PLENTY)
    RAN.add(name)
    return response.detect_anomaly_result


# name, threshold, score of the model, expected verdict, expected confidence (api.md)
VERDICTS = [
    ("v-0.65", THRESHOLD, 0.65, False, 0.35),
    ("v-0.7021", THRESHOLD, 0.7021, False, 0.2979),
    ("v-0.70215", THRESHOLD, 0.70215, True, 0.70215),
    ("v-0.9", THRESHOLD, 0.9, True, 0.9),
    ("v-0.49995", 0.5, 0.49995, True, 0.49995),
    ("v-2.0", 0.5, 2.0, True, 1.0),
]
# name, a, b, s, max_val_score, expected score (package-format.md)
CALIBRATIONS = [
    ("c-0.7", -6, 3, 0.7, 1, 0.768525),
    ("c-0.7-of-1.4", -6, 3, 0.7, 1.4, 0.5),
    ("c-0.2", -6, 3, 0.2, 0.5, 0.141851),
    ("c-no-max", -6, 3, 0.7, None, 0.768525),
]
# name, logic, score, mask class, expected verdict; class 0 is normal, threshold 0.5
LOGICS = [
    (f"l-{logic}-{score}-{mask}", logic, score, mask, expected[index])
    for logic, expected in {
        #                 normal/normal, normal/anomaly, anomaly/normal, anomaly/anomaly (classes/mask)
        "cls_head": (False, False, True, True),
        "seg_head": (False, True, False, True),
        "cls_and_seg": (False, False, False, True),
        "cls_or_seg": (False, True, True, True),
    }.items()
    for index, (score, mask) in enumerate([(0.2, 0), (0.2, 1), (0.8, 0), (0.8, 1)])
]


# A mask of both classes is anomalous, although it has normal pixels as well.
MIXED = [
    (f"m-{logic}", logic, expected)
    for logic, expected in (("seg_head", True), ("cls_and_seg", False), ("cls_or_seg", True))
]
# name, threshold, score, expected verdict: both sides of the comparison are rounded to 4 decimals.
ROUNDED = [
    ("r-threshold-down", 0.70214, 0.70208, True),
    ("r-threshold-up", 0.70216, 0.70214, False),
    ("r-equal", 0.25, 0.25, True),
]


def flat_mask(index: int, classes: int = 2, height: int = 8, width: int = 8) -> np.ndarray:
    """Return logits of a mask that is all one class."""
    logits = np.zeros((classes, height, width), np.float32)
    logits[index] = 1
    return logits


@pytest.fixture(scope="module")
def agent(module_folder):
    models = module_folder / "models"
    models.mkdir()
    for name, threshold, score, *_ in VERDICTS:
        case(name, models, packages.manifest(threshold=threshold), packages.constant(scores=[score, 1 - score]))
    for name, a, b, score, most, _ in CALIBRATIONS:
        keys = {"calibrated": True, "calibrator_scaling": a, "calibrator_shift": b, "max_val_score": most}
        case(name, models, packages.manifest(**keys), packages.constant(scores=[score, 1 - score]))
    for name, logic, score, mask, _ in LOGICS:
        keys = {"segmentation": True, "pixel_names": ("background", "dent"), "classification_logic": logic}
        case(name, models, packages.manifest(**keys), packages.constant([score, 1 - score], flat_mask(mask)))
    for name, logic, _ in MIXED:
        keys = {"segmentation": True, "pixel_names": ("background", "dent"), "classification_logic": logic}
        quarter = np.stack([np.zeros((8, 8)), np.where(np.arange(64).reshape(8, 8) < 16, 1.0, -1.0)])
        case(name, models, packages.manifest(**keys), packages.constant([0.2, 0.8], quarter))
    for name, threshold, score, _ in ROUNDED:
        case(name, models, packages.manifest(threshold=threshold), packages.constant(scores=[score, 1 - score]))
    exactly_one = {"segmentation": True, "pixel_names": ("background", "dent"), "classification_logic": "seg_head"}
    case("exactly-one", models, packages.manifest(**exactly_one), packages.constant([1.0, 0.0], flat_mask(0)))
    calibrated = {"calibrated": True, "calibrator_scaling": -6, "calibrator_shift": 3}
    mask_only = {"classification": False, "segmentation": True, "pixel_names": ("background", "dent")}
    uncalibrated = packages.manifest(**mask_only, **calibrated)
    logits = [np.full((8, 8), 0.2), np.full((8, 8), 0.7)]
    case("mask-only-uncalibrated", models, uncalibrated, packages.constant(logits=logits))
    case("normal-first", models, packages.manifest(class_normal_ids=[0]), packages.constant(scores=[0.9, 0.1]))
    three = packages.manifest(class_normal_ids=[1])
    three["model_graph"]["image_level_classes"]["names"] = ["dent", "normal", "scratch"]
    case("three-classes", models, three, packages.constant(scores=[0.25, 0.35, 0.4]))
    odd = np.random.default_rng(7).normal(size=(3, 75, 100)).astype(np.float32)
    keys = {"segmentation": True, "pixel_names": ("background", "dent", "scratch"), "image_size": (640, 480)}
    case("odd", models, packages.manifest(**keys, raw_image_shape=[480, 640]), packages.constant([0.1, 0.9], odd))
    two_steps = {**keys, "image_size": (500, 333), "raw_image_shape": [97, 131]}
    case("two-steps", models, packages.manifest(**two_steps), packages.constant([0.1, 0.9], odd))
    only = packages.manifest(classification=False, segmentation=True, pixel_names=("background", "dent"), threshold=0.4)
    case("mask-only", models, only, packages.constant(logits=[np.full((8, 8), 0.2), np.full((8, 8), 0.7)]))
    tie = [np.full((8, 8), 0.5), np.full((8, 8), 0.3), np.full((8, 8), 0.35)]
    biased = packages.manifest(
        segmentation=True, pixel_names=("background", "dent", "scratch"), seg_recall_bias=0.16, seg_normal_ids=[0]
    )
    case("recall-bias", models, biased, packages.constant([0.1, 0.9], tie))
    unbiased = packages.manifest(
        classification=False, segmentation=True, pixel_names=("background", "dent"), seg_recall_bias=5
    )
    case("bias-after-score", models, unbiased, packages.constant(logits=[np.full((8, 8), 0.2), np.full((8, 8), 0.1)]))
    over = {"segmentation": True, "pixel_names": ("background", "dent"), "classification_logic": "seg_head"}
    case("over-one", models, packages.manifest(**over), packages.constant([1.5, 0.0], flat_mask(0)))
    case(
        "no-normal-types",
        models,
        packages.manifest(**over, seg_normal_ids=[]),
        packages.constant([0.2, 0.8], flat_mask(1)),
    )
    with serving(models, max_calls=8) as running:
        yield running


@pytest.mark.parametrize(("name", "threshold", "score", "anomalous", "confidence"), VERDICTS)
def test_verdict_and_confidence(agent, name, threshold, score, anomalous, confidence):
    result = detect(agent, name)
    assert result.is_anomalous is anomalous
    assert np.float32(result.confidence) == pytest.approx(np.float32(confidence), abs=1e-6)
    assert result.anomaly_threshold == np.float32(threshold)
    assert result.anomaly_score == pytest.approx(min(score, 1.0), abs=1e-6)
    assert not result.anomalies
    assert not result.HasField("anomaly_mask")


@pytest.mark.parametrize(("name", "a", "b", "score", "most", "expected"), CALIBRATIONS)
def test_calibration(agent, name, a, b, score, most, expected):
    assert detect(agent, name).anomaly_score == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("name", "logic", "score", "mask", "anomalous"), LOGICS)
def test_classification_logic(agent, name, logic, score, mask, anomalous):
    result = detect(agent, name)
    assert result.is_anomalous is anomalous
    assert result.confidence == pytest.approx(score if anomalous else 1 - score, abs=1e-6)
    expected = [("background", 1.0, "#FFFFFF")] if mask == 0 else [("dent", 1.0, "#23A436")]
    assert areas(result) == expected


@pytest.mark.parametrize(("name", "logic", "anomalous"), MIXED)
def test_logic_of_a_mask_of_both_classes(agent, name, logic, anomalous):
    result = detect(agent, name)
    assert result.is_anomalous is anomalous
    assert areas(result) == [("background", 0.75, "#FFFFFF"), ("dent", 0.25, "#23A436")]


@pytest.mark.parametrize(("name", "threshold", "score", "anomalous"), ROUNDED)
def test_score_and_threshold_are_rounded(agent, name, threshold, score, anomalous):
    assert detect(agent, name).is_anomalous is anomalous


def test_logic_overrules_a_score_of_exactly_1(agent):
    assert detect(agent, "exactly-one").is_anomalous is False


def test_segmentation_only_is_never_calibrated(agent):
    assert detect(agent, "mask-only-uncalibrated").anomaly_score == pytest.approx(0.45, abs=1e-6)


def areas(result) -> list[tuple[str, float, str]]:
    return [
        (one.name, one.pixel_anomaly.total_percentage_area, one.pixel_anomaly.hex_color) for one in result.anomalies
    ]


def test_normal_at_channel_0(agent):
    assert detect(agent, "normal-first").anomaly_score == pytest.approx(0.1, abs=1e-6)


def test_score_sums_all_anomalous_classes(agent):
    assert detect(agent, "three-classes").anomaly_score == pytest.approx(0.65, abs=1e-6)


def nearest(class_map: np.ndarray, height: int, width: int) -> np.ndarray:
    """The resize as the format states it, written as a loop: source index = floor(dst * in / out)."""
    out = np.empty((height, width), class_map.dtype)
    for y in range(height):
        for x in range(width):
            out[y, x] = class_map[y * class_map.shape[0] // height, x * class_map.shape[1] // width]
    return out


@pytest.mark.parametrize(("name", "size", "between"), [("odd", (640, 480), None), ("two-steps", (500, 333), (131, 97))])
def test_mask_of_an_odd_ratio(agent, name, size, between):
    logits = np.random.default_rng(7).normal(size=(3, 75, 100)).astype(np.float32)
    expected = logits.argmax(axis=0)
    for width, height in filter(None, [between, size]):
        expected = nearest(expected, height, width)
    result = detect(agent, name, size)
    mask = np.frombuffer(result.anomaly_mask.byte_data, np.uint8).reshape(size[1], size[0], 3)
    palette = np.array([[0xFF, 0xFF, 0xFF], [0x23, 0xA4, 0x36], [0x14, 0xA3, 0xB3]], np.uint8)
    assert (mask == palette[expected]).all()
    assert (result.anomaly_mask.width, result.anomaly_mask.height) == size
    names = ["background", "dent", "scratch"]
    assert [one[0] for one in areas(result)] == names
    for index, (_, area, _) in enumerate(areas(result)):
        assert area == pytest.approx((expected == index).mean(), abs=1e-7)
    assert sum(one[1] for one in areas(result)) == pytest.approx(1, abs=1e-6)


def test_segmentation_only_scores_the_mean_of_all_logits(agent):
    result = detect(agent, "mask-only")
    assert result.anomaly_score == pytest.approx(0.45, abs=1e-6)
    assert result.is_anomalous is True
    assert areas(result) == [("dent", 1.0, "#23A436")]


def test_recall_bias_moves_the_class_map(agent):
    assert [one[0] for one in areas(detect(agent, "recall-bias"))] == ["scratch"]


def test_score_is_taken_before_the_bias(agent):
    result = detect(agent, "bias-after-score")
    assert result.anomaly_score == pytest.approx(0.15, abs=1e-6)
    assert [one[0] for one in areas(result)] == ["dent"]


def test_logic_does_not_overrule_a_score_above_1(agent):
    result = detect(agent, "over-one")
    assert result.is_anomalous is True
    assert (result.confidence, result.anomaly_score) == (1.0, 1.0)


def test_logic_needs_normal_types(agent):
    assert detect(agent, "no-normal-types").is_anomalous is False


def test_every_case_ran():
    """Counted by the calls that were answered."""
    declared = 6 + 4 + 16 + 2 + 2 + 1 + 2 + 2 + 3 + 3 + 1 + 1
    assert len(RAN) == declared, json.dumps(sorted(RAN))
