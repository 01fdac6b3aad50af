"""Where packages are found and what they are called; what is read of them, and how."""

import os
import shutil
import threading
from pathlib import Path

import pytest

from edge_agent import packages
from edge_agent.errors import PackageRefused
from support import packages as made
from support import shared


def found(root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in packages.search(root, lambda _: None)]


def test_search_is_four_levels_deep_and_not_inside_packages(tmp_path):
    made.classifier(tmp_path / "a" / "b" / "c" / "d")
    made.classifier(tmp_path / "a" / "b" / "c" / "x" / "five")
    made.classifier(tmp_path / "p")
    made.classifier(tmp_path / "p" / "inner")
    made.classifier(tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text('{"name": "a browser extension"}')
    made.classifier(tmp_path / "other" / "behind")
    assert found(tmp_path) == ["a/b/c/d", "elsewhere", "other/behind", "p"]


def test_the_models_folder_may_be_a_package_itself(tmp_path):
    made.classifier(tmp_path / "board")
    assert found(tmp_path / "board") == ["."]


def test_a_manifest_that_is_a_link_or_a_pipe_is_a_broken_package_and_never_blocks(tmp_path):
    for name in ("link", "pipe"):
        (tmp_path / name).mkdir()
    (tmp_path / "link" / "manifest.json").symlink_to("/etc/hostname")
    os.mkfifo(tmp_path / "pipe" / "manifest.json")
    assert found(tmp_path) == ["link", "pipe"]
    for name in ("link", "pipe"):
        assert packages.look(tmp_path / name, tmp_path, packages.Rules()).refusal.startswith("manifest.json")


def test_folders_that_cannot_be_listed_are_told(tmp_path):
    told = []
    assert list(packages.search(tmp_path / "nowhere", told.append)) == []
    assert [error.filename for error in told] == [str(tmp_path / "nowhere")]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/g/artifacts-unarchived/board/1.2.3/0123456789ab_greengrass_model_component", ("board", "1.2.3")),
        ("/models/board/10.0.7/anything", ("board", "10.0.7")),
        ("/models/board/component", ("board", "0.0.0")),
        ("/models/board/model", ("board", "0.0.0")),
        ("/models/board/0123456789ab_greengrass_model_component", ("board", "0.0.0")),
        ("/models/board", ("board", "0.0.0")),
        ("/models/board/1.2/component", ("1.2", "0.0.0")),
        ("/models/board/1.2.3.4/x", ("x", "0.0.0")),
    ],
)
def test_names(path, expected):
    assert packages.name_and_version(Path(path)) == expected


@shared.needed
def test_the_shared_models_are_called_as_the_format_says():
    root = shared.FOLDER / "models"
    looked = [
        packages.look(path, root, packages.Rules({path.lstat().st_uid}))
        for path in packages.search(root, lambda _: None)
    ]
    assert {one.name for one in looked} == {"cookies-segmentation", "cookies-classification"}
    assert [one.refusal for one in looked] == ["", ""]


def test_versions_compare_as_numbers():
    ordered = ["0.0.0", "1.2.3", "1.2.10", "1.10.0", "2.0.0", "10.0.0"]
    assert sorted(set(ordered), key=packages.version_key) == ordered


def test_signature_sees_every_change_of_the_package_and_none_beside_it(tmp_path):
    folder = made.classifier(tmp_path / "board")
    seen = packages.sign(folder, tmp_path)
    assert packages.sign(folder, tmp_path) == seen
    (tmp_path / "another").mkdir()
    assert packages.sign(folder, tmp_path) == seen
    signatures = {seen}
    for change in (
        lambda: (folder / "mochi" / "model.onnx").write_bytes(b"x"),
        lambda: (folder / "manifest.json").chmod(0o600),
        lambda: (folder / "mochi" / "new").write_text(""),
        lambda: (folder / "mochi" / "new").unlink(),
        lambda: tmp_path.chmod(0o711),
    ):
        change()
        signatures.add(packages.sign(folder, tmp_path))
    assert len(signatures) == 5, "with the new file gone again it is the same as before"


def test_too_many_files_are_refused(tmp_path):
    folder = made.classifier(tmp_path / "board")
    for index in range(packages.MOST_FILES + 10):
        (folder / f"{index}").touch()
    assert "more than 1000 files" in packages.look(folder, tmp_path, packages.Rules()).refusal


def test_missing_model_file(tmp_path):
    folder = made.classifier(tmp_path / "board")
    (folder / "mochi" / "model.onnx").unlink()
    assert packages.look(folder, tmp_path, packages.Rules()).refusal == "mochi/model.onnx is missing."


@pytest.mark.parametrize("kind", ["file", "stage"])
def test_links_are_not_read_through(tmp_path, kind):
    folder = made.classifier(tmp_path / "board")
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder / "mochi", elsewhere)
    if kind == "file":
        (folder / "mochi" / "model.onnx").unlink()
        (folder / "mochi" / "model.onnx").symlink_to(elsewhere / "model.onnx")
    else:
        shutil.rmtree(folder / "mochi")
        (folder / "mochi").symlink_to(elsewhere)
    with pytest.raises(PackageRefused, match="cannot be read"):
        packages.read_file(folder, "mochi/model.onnx")


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(bytes(1 << 20))
    ended = threading.Event()

    def grow() -> None:
        with path.open("ab") as file:
            while not ended.is_set():
                file.write(b"x")
                file.flush()

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        refusals = 0
        for _ in range(1000):
            try:
                packages.read_file(tmp_path, "model.onnx")
            except PackageRefused as refusal:
                refusals += "still being copied" in str(refusal)
            if refusals:
                break
    finally:
        ended.set()
        writer.join()
    assert refusals
    assert packages.read_file(tmp_path, "model.onnx") == path.read_bytes()
