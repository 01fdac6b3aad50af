"""The comparison: its numbers by hand, its images, and what it complains of."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_agent.graphs import Reading
from edge_agent.pipeline import Pipeline
from model_packager import parity
from model_packager.errors import PackagingRefused
from model_packager.parity import Images, Recorded, Tolerance
from support import networks

STRICT = Tolerance(0.0, 0.0)


def saved(folder: Path, count: int, size: tuple[int, int] = networks.SIZE) -> Path:
    folder.mkdir()
    for number, pixels in enumerate(networks.pictures(count, size)):
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return folder


def compare(tmp_path, source: list[Reading], compiled: list[Reading], tolerance: Tolerance = STRICT, **given):
    """Compare two graphs that are known only by what they said of as many images."""
    parsed = networks.parsed(**given)
    images = Images(saved(tmp_path / "images", len(source)), parsed)
    pipelines = (Pipeline(parsed, Recorded(said)) for said in (source, compiled))
    return parity.compare(*pipelines, images, tolerance)


def scores(*numbers: float) -> list[Reading]:
    return [Reading(one, None) for one in numbers]


def maps(*found: list[list[int]]) -> list[Reading]:
    return [Reading(0.25, np.array(one, np.uint8)) for one in found]


def test_scores(tmp_path):
    report = compare(tmp_path, scores(0.1, 0.4, 0.9), scores(0.125, 0.4, 0.85), pixel_classes=0)
    assert dataclasses.asdict(report) == {
        "images": 3,
        "noise": False,
        "largest_score_difference": pytest.approx(0.05, abs=1.1e-6),
        "largest_mask_difference": None,
        "verdict_flips": 0,
        "flipped": (),
        "score_tolerance": 0.0,
        "mask_tolerance": 0.0,
    }
    assert report.as_json()["flipped"] == []


def test_a_score_above_one_is_one(tmp_path):
    """As clients see it."""
    assert compare(tmp_path, scores(7.0), scores(9.0), pixel_classes=0).largest_score_difference == 0


@pytest.mark.parametrize(("difference", "told"), [(0.0, 0.0), (2e-7, 1e-6), (1e-6, 1e-6), (1.1e-6, 2e-6), (0.25, 0.25)])
def test_a_report_never_says_less_than_was_seen(difference, told):
    assert parity._up(difference) == told


def test_verdicts_that_flip(tmp_path):
    """At the threshold, an image is anomalous; scores are compared with 4 decimals."""
    source = scores(0.5, 0.49994, 0.49994, 0.2, 0.7)
    compiled = scores(0.4999, 0.49995, 0.49993, 0.8, 0.6)
    report = compare(tmp_path, source, compiled, Tolerance(1.0, 1.0), pixel_classes=0)
    assert (report.verdict_flips, report.flipped) == (3, ("00.png", "01.png", "03.png"))
    assert report.complaint == "3 of 5 verdicts differ (00.png, 01.png, 03.png)"


def test_verdicts_that_the_mask_overrules(tmp_path):
    report = compare(
        tmp_path,
        maps([[0, 0], [0, 0]], [[0, 1], [0, 0]]),
        maps([[0, 0], [0, 1]], [[0, 1], [1, 1]]),
        Tolerance(1.0, 1.0),
        classification_logic="seg_head",
    )
    assert (report.verdict_flips, report.flipped, report.largest_score_difference) == (1, ("00.png",), 0.0)


def test_twenty_names_are_enough(tmp_path):
    report = compare(tmp_path, scores(*[0.1] * 30), scores(*[0.9] * 30), pixel_classes=0)
    assert (report.verdict_flips, len(report.flipped), report.flipped[-1]) == (30, 20, "19.png")


def test_masks(tmp_path):
    """The worst image counts, and in it the image's pixels: those of the small map stand for different numbers of them."""
    report = compare(
        tmp_path,
        maps([[0, 0, 1], [1, 1, 1]], [[0, 0, 0], [1, 1, 1]], [[0, 0, 0], [0, 0, 0]]),
        maps([[0, 1, 1], [1, 1, 1]], [[0, 0, 0], [0, 0, 1]], [[0, 0, 0], [0, 0, 0]]),
        raw_image_shape=[4, 4],
    )
    # Of 4 rows two are of each of the map's; of 4 columns two are of the first and one of each other.
    assert report.largest_mask_difference == pytest.approx(6 / 16, abs=1.1e-6)
    assert report.complaint == "a mask differs in 37.50% of its pixels (tolerance 0.00%)"


def test_masks_of_different_grain(tmp_path):
    report = compare(tmp_path, maps([[0, 1], [1, 1]]), maps([[0, 0, 1, 1], [0, 1, 1, 1], [1] * 4, [1] * 4]))
    assert report.largest_mask_difference == pytest.approx(1 / 16, abs=1.1e-6)


def test_complaints(tmp_path):
    report = compare(tmp_path, scores(0.4, 0.2), scores(0.6, 0.2), Tolerance(0.1, 0.0), pixel_classes=0)
    assert report.complaint == "1 of 2 verdicts differ (00.png); a score differs by 0.2 (tolerance 0.1)"
    quiet = dataclasses.replace(report, verdict_flips=0, flipped=(), score_tolerance=0.3)
    assert quiet.complaint == ""
    assert dataclasses.replace(quiet, score_tolerance=quiet.largest_score_difference).complaint == ""


def test_a_verdict_may_not_flip_at_any_tolerance(tmp_path):
    report = compare(tmp_path, scores(0.4), scores(0.6), Tolerance(1.0, 1.0), pixel_classes=0)
    assert report.complaint == "1 of 1 verdicts differ (00.png)"


def test_who_gives_no_verdict(tmp_path):
    with pytest.raises(
        PackagingRefused, match="The source gives no verdict on 01.png: .* score nan, which is no number"
    ):
        compare(tmp_path, scores(0.5, float("nan")), scores(0.5, 0.5), pixel_classes=0)
    (tmp_path / "again").mkdir()
    with pytest.raises(parity.NoVerdict, match="On 00.png it gives no verdict, and its source does. .* score nan"):
        compare(tmp_path / "again", scores(0.5), scores(float("nan")), pixel_classes=0)


def test_a_cause_is_told_where_there_is_one(tmp_path):
    """What the runtime says of a failure is for operators; who packages a model is one."""
    from edge_agent.errors import InferenceFailed

    class Fails:
        def read(self, pixels):
            raise InferenceFailed("The log has the cause.", cause="Shapes differ.")

    parsed = networks.parsed(pixel_classes=0)
    images = Images(None, parsed)
    with pytest.raises(PackagingRefused, match="no verdict on noise-0: Shapes differ"):
        parity.compare(Pipeline(parsed, Fails()), Pipeline(parsed, Fails()), images, STRICT)


# Images


def test_images_of_a_folder(tmp_path):
    pixels = networks.pictures(1)[0]
    for name in ("b.png", "A.PNG", "c.bmp", "d.tiff"):
        Image.fromarray(pixels).save(tmp_path / name)
    for name in ("notes.txt", "z.png.part", "no-suffix"):
        (tmp_path / name).write_text("no image")
    images = Images(tmp_path, networks.parsed())
    assert (images.names, len(images), images.noise) == (["A.PNG", "b.png", "c.bmp", "d.tiff"], 4, False)
    for _ in range(2):  # as often as one likes: once for calibration, once for comparison
        assert all(np.array_equal(one, pixels) for one in images)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_images_of_other_modes_become_rgb(tmp_path, mode):
    image = Image.fromarray(networks.pictures(1)[0]).convert(mode)
    image.save(tmp_path / ("a.tiff" if mode == "CMYK" else "a.png"))
    (pixels,) = Images(tmp_path, networks.parsed())
    assert (pixels.shape, pixels.dtype) == ((64, 72, 3), np.uint8)
    assert np.array_equal(pixels, np.asarray(image.convert("RGB")))


def test_images_are_brought_to_the_sizes_of_requests_and_of_the_network(tmp_path):
    parsed = networks.parsed(image_size=(144, 128))
    images = Images(saved(tmp_path / "images", 2, (300, 200)), parsed)
    assert [one.shape for one in images] == [(128, 144, 3)] * 2
    assert [one.shape for one in images.of_input_size()] == [(64, 72, 3)] * 2
    small = [one.reshape(64, 2, 72, 2, 3).mean(axis=(1, 3)) for one in images]  # by area, as the manifest says
    for one, other in zip(small, images.of_input_size(), strict=True):
        np.testing.assert_allclose(one, other, atol=0.51)


def broken(path: Path, kind: str) -> None:
    Image.fromarray(networks.pictures(1)[0]).save(path)
    data = path.read_bytes()
    if kind == "text":
        path.write_text("no image")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "damaged":
        path.write_bytes(data[:33] + b"\xff" * 200 + data[233:])
    elif kind == "folder":
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        (suffix, kind)
        for suffix in (".png", ".jpg", ".tif", ".bmp", ".webp")
        for kind in ("text", "empty", "truncated", "damaged", "folder")
        if (suffix, kind) not in {(".bmp", "damaged"), (".jpg", "damaged")}  # which is another picture
    ],
)
def test_what_is_no_image_is_named(tmp_path, suffix, kind):
    broken(tmp_path / f"a{suffix}", kind)
    with pytest.raises(
        PackagingRefused, match=f"/a{suffix} (is not|cannot be read: ).*; mend it, or take it out of its folder"
    ):
        list(Images(tmp_path, networks.parsed()))


def test_folders_that_cannot_serve(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(PackagingRefused, match="has no image in it"):
        Images(tmp_path, networks.parsed())
    with pytest.raises(PackagingRefused, match="/gone cannot be read: No such file or directory"):
        Images(tmp_path / "gone", networks.parsed())


def test_noise():
    """The same at every job, of the size of requests, and not all alike."""
    parsed = networks.parsed(image_size=(97, 131))
    images = Images(None, parsed)
    assert (images.noise, images.names) == (True, [f"noise-{number}" for number in range(8)])
    first, again = list(images), list(Images(None, parsed))
    assert all(np.array_equal(*pair) for pair in zip(first, again, strict=True))
    assert {(one.shape, str(one.dtype)) for one in first} == {((131, 97, 3), "uint8")}
    assert len({one.tobytes() for one in first}) == 8
    assert np.ptp([one.mean() for one in first]) > 50
    assert np.ptp([np.abs(np.diff(one.astype(int), axis=1)).mean() for one in first]) > 20
    assert [one.shape for one in images.of_input_size()] == [(64, 72, 3)] * 8


def test_tolerances():
    """None for int8 that would be wider than a reader believes, and the narrower the more bits."""
    one, half, byte = (parity.TOLERANCES[name] for name in ("fp32", "fp16", "int8"))
    assert (one.score, one.mask) < (half.score, half.mask) < (byte.score, byte.mask)
    assert byte == Tolerance(0.05, 0.02)
