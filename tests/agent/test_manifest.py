"""Manifests: what is accepted, and what is refused by which name."""

import json

import pytest

from edge_agent import block, manifest
from edge_agent.classes import PixelClass
from edge_agent.errors import PackageRefused
from support import packages


def both(**stage):
    return packages.manifest(segmentation=True, pixel_names=("anything", "dent"), **stage)


def test_the_example_of_the_format():
    example = json.loads(
        """{"model_graph": {"model_graph_type": "single_stage_model_graph",
        "stages": [{"type": "mochi", "threshold": 0.7021560668945312, "input_shape": [1, 3, 1000, 1000],
          "image_width": 1000, "image_height": 1000, "image_range_scale": true, "normalize": true,
          "classification_head_enabled": true, "segmentation_head_enabled": false, "class_normal_ids": [1], "seg_normal_ids": []}],
        "image_level_classes": {"names": ["anomaly", "normal"], "normal_ids": [1]},
        "pixel_level_classes": {"names": [], "normal_ids": []}},
        "dataset": {"image_width": 1000, "image_height": 1000}, "runtime": "onnx", "runtime_artifact": "model.onnx"}"""
    )
    parsed = manifest.parse(example)
    assert parsed.stage.threshold == 0.7021560668945312
    assert (parsed.stage.class_normal_ids, parsed.stage.interpolation) == ((1,), 3)
    assert (parsed.image_size, parsed.model_file) == ((1000, 1000), "mochi/model.onnx")
    assert parsed.classes == ()


def test_class_0_is_background_whatever_the_manifest_calls_it():
    assert manifest.parse(both()).classes == (PixelClass("background", "#FFFFFF"), PixelClass("dent", "#23A436"))


def test_graph_level_ids_apply_to_the_stage():
    content = both(class_normal_ids=None, seg_normal_ids=None)
    content["model_graph"]["image_level_classes"]["normal_ids"] = [0]
    content["model_graph"]["pixel_level_classes"]["normal_ids"] = [0]
    stage = manifest.parse(content).stage
    assert (stage.class_normal_ids, stage.seg_normal_ids) == ((0,), (0,))


@pytest.mark.parametrize(("own", "told"), [(None, 0), ([], 1)], ids=["none", "an empty list"])
def test_a_stage_without_ids_of_normal_images_has_those_of_the_graph(own, told):
    content = both(class_normal_ids=own)
    content["model_graph"]["image_level_classes"]["normal_ids"] = [1]
    parsed = manifest.parse(content)
    assert parsed.stage.class_normal_ids == (1,)
    said = "The stage's class_normal_ids is empty; the [1] of image_level_classes are used."
    assert parsed.notes.count(said) == told


@pytest.mark.parametrize(("own", "ids"), [(None, (0,)), ([], ())], ids=["none", "an empty list"])
def test_an_empty_list_says_that_no_type_of_the_mask_is_normal(own, ids):
    """Then `classification_logic` overrules no verdict."""
    content = both(seg_normal_ids=own, classification_logic="cls_and_seg")
    content["model_graph"]["pixel_level_classes"]["normal_ids"] = [0]
    assert manifest.parse(content).stage.seg_normal_ids == ids


def test_no_type_of_the_mask_need_be_normal():
    content = both(seg_normal_ids=[])
    assert manifest.parse(content).stage.seg_normal_ids == ()
    content["model_graph"]["pixel_level_classes"].pop("normal_ids")
    parsed = manifest.parse(content)
    assert (parsed.stage.seg_normal_ids, len(parsed.notes)) == ((), 1)


def test_the_stages_own_ids_win_and_the_contradiction_is_told():
    content = packages.manifest(class_normal_ids=[0])
    content["model_graph"]["image_level_classes"]["normal_ids"] = [1]
    parsed = manifest.parse(content)
    assert parsed.stage.class_normal_ids == (0,)
    assert any("class_normal_ids [0] are used" in note for note in parsed.notes)


def test_required_image_size_is_the_training_one():
    content = packages.manifest(size=(64, 96), image_size=(640, 480), raw_image_shape=[48, 65])
    assert manifest.parse(content).image_size == (640, 480)
    del content["dataset"]
    assert manifest.parse(content).image_size == (65, 48)
    del content["model_graph"]["stages"][0]["raw_image_shape"]
    assert manifest.parse(content).image_size == (64, 96)


def test_successors_type_is_served():
    assert (
        manifest.parse(packages.manifest(type="supervised_multi_head_model")).model_file
        == "supervised_multi_head_model/model.onnx"
    )


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (0, 0),
        (1, 1),
        (2, 2),
        (3, 3),
        (4, 4),
        ("area", 3),
        ("bilinear", 1),
        ("bilinear-antialias", "bilinear-antialias"),
    ],
)
def test_interpolations(value, code):
    assert manifest.parse(packages.manifest(interpolation=value)).stage.interpolation == code


def edit(*path, value):
    def change(content):
        for key in path[:-1]:
            content = content[key]
        if value is None:
            del content[path[-1]]
        else:
            content[path[-1]] = value

    return change


STAGE = ("model_graph", "stages", 0)
REFUSED = {
    "two stages graph": (
        edit("model_graph", "model_graph_type", value="two_stage_model_graph"),
        "two_stage_model_graph",
    ),
    "no graph type": (edit("model_graph", "model_graph_type", value=None), "model_graph_type"),
    "graph is a list": (edit("model_graph", value=[]), "model_graph is not an object"),
    "no stages": (edit("model_graph", "stages", value=[]), "0 stages"),
    "two stages": (edit("model_graph", "stages", value=[{}, {}]), "2 stages"),
    "svdd": (edit(*STAGE, "type", value="svdd"), "'svdd'"),
    "spade": (edit(*STAGE, "type", value="spade"), "'spade'"),
    "knn": (edit(*STAGE, "type", value="knn"), "'knn'"),
    "no threshold": (edit(*STAGE, "threshold", value=None), "lacks threshold"),
    "threshold a text": (edit(*STAGE, "threshold", value="0.5"), "threshold is '0.5'"),
    "threshold true": (edit(*STAGE, "threshold", value=True), "threshold is True"),
    "threshold infinite": (edit(*STAGE, "threshold", value=float("inf")), "finite"),
    "threshold of 400 digits": (edit(*STAGE, "threshold", value=10**400), "finite"),
    "threshold beyond float32": (edit(*STAGE, "threshold", value=1e308), "finite"),
    "no head": (edit(*STAGE, "classification_head_enabled", value=False), "neither"),
    "head a number": (edit(*STAGE, "classification_head_enabled", value=1), "classification_head_enabled is 1"),
    "negative class ids": (edit(*STAGE, "class_normal_ids", value=[-1]), "class_normal_ids is [-1]"),
    "ids texts": (edit(*STAGE, "class_normal_ids", value=["normal"]), "list of class indices"),
    "polar": (edit(*STAGE, "transform_preprocessing", value={"polar": {}}), "transform_preprocessing"),
    "calibrated, no shift": (edit(*STAGE, "calibrated", value=True), "calibrator_scaling"),
    "interpolation 7": (edit(*STAGE, "interpolation", value=7), "interpolation is 7"),
    "interpolation true": (edit(*STAGE, "interpolation", value=True), "interpolation is True"),
    "contradicting size": (edit(*STAGE, "image_width", value=65), "contradicts"),
    "batch of 2": (edit(*STAGE, "input_shape", value=[2, 3, 64, 64]), "input_shape"),
    "grey": (edit(*STAGE, "input_shape", value=[1, 1, 64, 64]), "input_shape"),
    "width 0": (edit(*STAGE, "image_width", value=0), "image_width has 0"),
    "raw shape of one": (edit(*STAGE, "raw_image_shape", value=[64]), "raw_image_shape"),
    "TorchScript": (edit("runtime", value=None), "Compiled code cannot be turned back"),
    "tflite": (edit("runtime", value="tflite"), "'tflite'"),
    "artifact elsewhere": (edit("runtime_artifact", value="../model.onnx"), "without a folder"),
    "artifact ..": (edit("runtime_artifact", value=".."), "without a folder"),
    "artifact of 86 * 3 bytes": (edit("runtime_artifact", value="\u3042" * 86), "without a folder"),
    "artifact that turns": (edit("runtime_artifact", value="model\u202exnno"), "has control characters"),
    "artifact with a NUL": (edit("runtime_artifact", value="model\0.onnx"), "has control characters"),
    "no artifact": (edit("runtime_artifact", value=None), "lacks runtime_artifact"),
    "newer block": (edit("package", value={"format": 2}), "format 2"),
    "block a text": (edit("package", value="x"), "package is not an object"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_by_name(what):
    change, words = REFUSED[what]
    content = packages.manifest()
    change(content)
    with pytest.raises(PackageRefused) as caught:
        manifest.parse(content)
    assert words in str(caught.value)


PLACES = {
    "graph type": ("model_graph", "model_graph_type"),
    "type": (*STAGE, "type"),
    "logic": (*STAGE, "classification_logic"),
    "interpolation": (*STAGE, "interpolation"),
    "threshold": (*STAGE, "threshold"),
    "normal ids": (*STAGE, "seg_normal_ids"),
    "names": ("model_graph", "pixel_level_classes", "names"),
    "runtime": ("runtime",),
    "artifact": ("runtime_artifact",),
}


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("value", ["x" * 5000, "\x1b" * 5000, [7] * 5000], ids=["long", "escapes", "list"])
def test_what_is_told_has_a_bounded_length(where, value):
    content = both()
    edit(*PLACES[where], value=value)(content)
    with pytest.raises(PackageRefused) as caught:
        manifest.parse(content)
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


def test_a_note_has_a_bounded_length():
    content = both()
    content["model_graph"]["pixel_level_classes"]["normal_ids"] = [7] * 5000
    (contradiction, _) = manifest.parse(content).notes
    assert "seg_normal_ids [0] are used" in contradiction
    assert len(contradiction) < 300


@pytest.mark.parametrize(
    "unsafe", ["\0", "\n", "\x1b", "\x7f", "\x9b", "\u061c", "\u200f", "\u2028", "\u202e", "\u2069"]
)
def test_a_class_is_named_without_control_characters(unsafe):
    """Names are told to callers, who show them."""
    content = both()
    content["model_graph"]["pixel_level_classes"]["names"][1] = f"de{unsafe}nt"
    with pytest.raises(PackageRefused, match="a class is named without control characters") as caught:
        manifest.parse(content)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "name", ["Kratzer, groß", "きず", "\u0634\u06a9\u0633\u062a\u200c\u0647", "\U0001f469\u200d\U0001f527"]
)
def test_a_class_may_be_named_in_any_script(name):
    content = both()
    content["model_graph"]["pixel_level_classes"]["names"][1] = name
    assert manifest.parse(content).classes[1].name == name


def test_empty_lists_of_the_images_classes_are_refused():
    content = packages.manifest(class_normal_ids=[])
    assert content["model_graph"]["image_level_classes"]["normal_ids"] == []
    with pytest.raises(PackageRefused, match="class_normal_ids is empty; which class is normal is never guessed"):
        manifest.parse(content)


@pytest.mark.parametrize("keys", [("image_range_scale",), ("normalize",), ("image_range_scale", "normalize")])
@pytest.mark.parametrize("compiled", [True, False])
def test_what_is_not_said_of_the_input_is_not_done_and_noted_unless_the_graph_does_it(keys, compiled):
    content = packages.manifest(**dict.fromkeys(keys))
    content["package"] = {"format": 1, "component": {"name": "b", "version": "1.0.0"}, "files": {}}
    if compiled:
        content["package"]["graph"] = block.COMPILED
    parsed = manifest.parse(content)
    assert not any(getattr(parsed.stage, key) for key in keys)
    said = f"The manifest has no {' and no '.join(keys)}, which counts as false."
    assert (said in parsed.notes) is not compiled


@pytest.mark.parametrize("threshold", [-2.0, -0.0001, 0, 0.0, 0.00004, 1.0001, 1.4, 3e38])
def test_a_threshold_that_no_score_reaches_or_falls_below_is_noted(threshold):
    said = (
        f"The threshold is {threshold:g}, and scores are reported clipped to 0..1: only is_anomalous is to be compared."
    )
    for content in (packages.manifest(threshold=threshold), both(threshold=threshold)):
        parsed = manifest.parse(content)
        assert parsed.stage.threshold == threshold
        assert parsed.notes.count(said) == 1


@pytest.mark.parametrize("threshold", [0.0001, 0.5, 0.7021560668945312, 1, 1.0, 1.00004])
def test_any_other_threshold_is_not(threshold):
    assert not any("threshold" in note for note in manifest.parse(packages.manifest(threshold=threshold)).notes)


def test_ids_that_are_nowhere_are_never_guessed():
    content = packages.manifest(class_normal_ids=None)
    content["model_graph"]["image_level_classes"] = {}
    with pytest.raises(PackageRefused, match="which class is normal is never guessed"):
        manifest.parse(content)
    content = both(seg_normal_ids=None)
    content["model_graph"]["pixel_level_classes"] = {"names": ["background", "dent"]}
    with pytest.raises(PackageRefused, match="seg_normal_ids"):
        manifest.parse(content)


def test_unknown_logic_is_refused_where_it_could_matter():
    with pytest.raises(PackageRefused, match="classification_logic is 'cls_xor_seg'"):
        manifest.parse(both(classification_logic="cls_xor_seg"))


def test_segmentation_needs_names():
    with pytest.raises(PackageRefused, match=r"pixel_level_classes\.names"):
        manifest.parse(packages.manifest(segmentation=True))
    with pytest.raises(PackageRefused, match="102 classes"):
        manifest.parse(packages.manifest(segmentation=True, pixel_names=tuple(map(str, range(102)))))


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff", b"[" * 100_000, b'{"model_graph": NaN', b" " * (1 << 20) + b"{}"],
    ids=lambda data: repr(data[:9]),
)
def test_broken_json(data):
    with pytest.raises(PackageRefused, match=r"manifest\.json is"):
        manifest.parse_json(data)


def test_text_that_is_not_unicode():
    with pytest.raises(PackageRefused, match="not Unicode"):
        manifest.parse_json(b'{"model_graph": {}, "runtime_artifact": "\\ud800"}')


def test_a_key_that_is_there_twice():
    """Which one counts, others may see otherwise."""
    twice = json.dumps(packages.manifest()).replace('"threshold": 0.5', '"threshold": 0.5, "threshold": 0.9')
    with pytest.raises(PackageRefused, match=r"manifest\.json has the key 'threshold' twice; which one counts"):
        manifest.parse_json(twice.encode())
    assert manifest.parse_json(b'{"name": "an extension", "name": "another"}') is None


def test_normal_types_that_do_not_exist():
    with pytest.raises(PackageRefused, match="seg_normal_ids is .7.; pixel_level_classes.names has 2"):
        manifest.parse(both(seg_normal_ids=[7]))


def test_a_size_that_no_image_can_have():
    with pytest.raises(PackageRefused, match="1x64; images have 64 to 4096"):
        manifest.parse(both(image_size=(1, 64)))


@pytest.mark.parametrize("any_size", [False, True])
def test_a_classifier_that_takes_one_size_only_takes_one_that_images_have(any_size):
    content = packages.manifest(image_size=(64, 4097))
    assert manifest.parse(content).image_size == (64, 4097), "without a block, a setting may let it take any"
    component = {"name": "b", "version": "1.0.0"}
    content["package"] = {"format": 1, "component": component, "files": {}, "any_image_size": any_size}
    if any_size:
        assert manifest.parse(content).image_size == (64, 4097)
    else:
        with pytest.raises(PackageRefused, match="64x4097; images have 64 to 4096"):
            manifest.parse(content)


@pytest.mark.parametrize(
    "data",
    [
        b"{}",
        b"[]",
        b"1",
        b'{"name": "an extension"}',
        b'{"package": "my-app", "version": "1"}',
        b'{"package": {"name": "my-app"}}',
        b'{"package": ["format"]}',
        b'{"package": "my-app", "package": "twice"}',
    ],
)
def test_some_other_manifest(data):
    assert manifest.parse_json(data) is None


@pytest.mark.parametrize(
    "data",
    [
        b'{"package": {"format": 1}}',
        b'{"package": {"format": null}}',
        b'{"qackage": {"manifest_sha256": "%b"}}' % (b"0" * 64),
    ],
)
def test_what_has_the_marks_of_our_block_is_ours_also_without_its_graph(data):
    assert manifest.parse_json(data) == json.loads(data)


WHOLE = json.dumps(packages.manifest(), indent=1).encode()


def test_a_manifest_that_is_cut_off_is_still_known_for_one():
    assert [length for length in range(len(WHOLE)) if not manifest.is_of_a_package(WHOLE[:length])] == []


@pytest.mark.parametrize(
    "data",
    [
        bytes(len(WHOLE)),
        b"\xef\xbb\xbf" + WHOLE[:-1],
        WHOLE.replace(b'"model_graph"', b'"model_graph ', 1),
        b'{"package": {"manifest_sha256": "%b"' % (b"0" * 64),
    ],
    ids=["zeros", "byte order mark", "without a quotation mark", "our digest"],
)
def test_a_damaged_manifest_is_still_known_for_one(data):
    assert manifest.is_of_a_package(data)


@pytest.mark.parametrize(
    "data",
    [b'// an app\n{"name": "my-app"}', b'{"name": "cut', b"[", b"\xff\xfe", b"<html>", b'{"items": [' + b"1," * 99],
    ids=lambda data: repr(data[:9]),
)
def test_what_is_broken_and_somebody_elses(data):
    assert not manifest.is_of_a_package(data)


def test_arn():
    assert block.default_arn("board", "3.1.4") == "arn:aws:lookoutvision:local:000000000000:model/board/3"
