"""All 63 cookie photographs against the expected results, both packages, inline and in shared memory."""

import json

import numpy as np
import pytest

from edge_agent._proto import edge_agent_pb2 as pb2
from support import shared
from support.agent import serving
from support.calls import OK, outcome, request

pytestmark = shared.needed
PHOTOGRAPHS = 63
CRACKED = (0x23, 0xA4, 0x36)


@pytest.fixture(scope="module")
def agent(shared_models):
    with serving(shared_models) as running:
        for name in ("cookies-segmentation", "cookies-classification"):
            running.run_model(name)
        yield running


@pytest.fixture(scope="module")
def photographs() -> dict[str, np.ndarray]:
    from PIL import Image

    return {path.name: np.asarray(Image.open(path).convert("RGB")) for path in sorted(shared.PHOTOGRAPHS.iterdir())}


def judge(agent, photographs, model: str, segment, *, shm: bool) -> dict[str, pb2.DetectAnomalyResult]:
    """Return the answers by photograph."""
    stub = agent.stub()
    results = {}
    for name, pixels in photographs.items():
        height, width, _ = pixels.shape
        if shm:
            source, mask = segment(pixels.nbytes, pixels.tobytes()), segment(pixels.nbytes)
            made = request(model, width, height, handle=(source, pixels.nbytes), mask=(mask, pixels.nbytes))
        else:
            made = request(model, width, height, pixels.tobytes())
        code, details, response = outcome(stub.DetectAnomalies, made)
        assert code == OK, (name, details)
        results[name] = response.detect_anomaly_result
        if shm and model.endswith("segmentation"):
            with open(f"/dev/shm{mask}", "rb") as memory:
                results[name].anomaly_mask.byte_data = memory.read()
    return results


@pytest.mark.parametrize("shm", [False, True], ids=["inline", "shm"])
def test_segmentation(agent, photographs, segment, shm):
    expected = json.loads((shared.FOLDER / "models/cookies-segmentation/expected.json").read_text())
    results = judge(agent, photographs, "cookies-segmentation", segment, shm=shm)
    assert len(results) == len(expected["images"]) == PHOTOGRAPHS
    for name, wanted in expected["images"].items():
        result = results[name]
        assert result.is_anomalous is wanted["is_anomalous"], name
        assert result.anomaly_score == pytest.approx(wanted["score"], abs=1e-4), name
        assert result.confidence == pytest.approx(wanted["confidence"], abs=1e-4), name
        assert result.anomaly_threshold == np.float32(expected["threshold"])
        by_type = {one.name: one.pixel_anomaly.total_percentage_area for one in result.anomalies}
        assert by_type.get("cracked", 0.0) == pytest.approx(wanted["cracked_area"], abs=1e-3), name
        assert sum(by_type.values()) == pytest.approx(1, abs=1e-6)
        # The mask says the same as the areas, and is as large as the photograph.
        mask = np.frombuffer(result.anomaly_mask.byte_data, np.uint8).reshape(photographs[name].shape)
        assert (mask == CRACKED).all(axis=2).mean() == pytest.approx(by_type.get("cracked", 0.0), abs=1e-7)


@pytest.mark.parametrize("shm", [False, True], ids=["inline", "shm"])
def test_classification(agent, photographs, segment, shm):
    """There are no expected figures for this package; the photographs' names tell the truth."""
    results = judge(agent, photographs, "cookies-classification", segment, shm=shm)
    assert len(results) == PHOTOGRAPHS
    for name, result in results.items():
        assert result.is_anomalous is name.startswith("anomaly"), name
        assert not result.anomalies
        assert not result.HasField("anomaly_mask")


def test_the_mask_marks_the_cracks(agent, photographs, segment):
    """Most of what the annotators marked as cracked lies in the mask; seen on all images with a mask."""
    from PIL import Image

    results = judge(agent, photographs, "cookies-segmentation", segment, shm=False)
    found = []
    for path in sorted((shared.FOLDER / "data/cookies/mask-images").iterdir()):
        name = path.with_suffix(".jpg").name
        truth = np.asarray(Image.open(path).convert("RGBA"))[:, :, 3] > 127
        mask = np.frombuffer(results[name].anomaly_mask.byte_data, np.uint8).reshape(photographs[name].shape)
        ours = (mask == CRACKED).all(axis=2)
        assert truth.shape == ours.shape
        if truth.any():
            found.append((truth & ours).sum() / truth.sum())
    print(f"part of the annotated cracks that the masks hold, median: {np.median(found):.2f}")
    assert len(found) >= 30
    assert np.median(found) > 0.5
