"""Where packages are found and what they are called; what is read of them, and how."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
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


APP = b'{"package": "my-app", "version": "1.0.0"}'
OTHERS = {
    "an app": APP,
    "an app's package": b'{"package": {"name": "my-app"}, "files": []}',
    "comments": b"// of an app\n" + APP,
    "too long": json.dumps({"package": "my-app", "files": ["x" * 99] * 12_000}).encode(),
    "too long, and no JSON": b"x" * (2 << 20),
    "cut off": APP[:20],
}


@pytest.mark.parametrize("what", OTHERS)
def test_the_manifest_of_something_else_is_no_failed_model_and_hides_none(tmp_path, what):
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "manifest.json").write_bytes(OTHERS[what])
    made.classifier(tmp_path / "app" / "models" / "board")
    assert found(tmp_path) == ["app/models/board"]


WHOLE = json.dumps({**made.manifest(), "package": {"format": 1}}, indent=1).encode()
DAMAGED = {
    "empty": b"",
    "zeros": bytes(len(WHOLE)),
    "one byte": b"{",
    "cut off": WHOLE[:100],
    "too long": WHOLE + b" " * (1 << 20),
    "too long, and no JSON": WHOLE[:-1] + b"\0" * (1 << 20),
    "another byte": WHOLE.replace(b"{", b"[", 1),
    "without its graph": WHOLE.replace(b'"model_graph"', b'"nodel_graph"'),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_package_does_not_vanish(tmp_path, what):
    folder = made.classifier(tmp_path / "board")
    (folder / "manifest.json").write_bytes(DAMAGED[what])
    assert found(tmp_path) == ["board"]
    assert packages.look(folder, tmp_path, packages.Rules()).refusal.startswith("manifest.json")


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


@shared.needed
def test_the_shared_models_are_called_as_the_format_says():
    root = shared.FOLDER / "models"
    looked = [
        packages.look(path, root, packages.Rules({path.lstat().st_uid}))
        for path in packages.search(root, lambda _: None)
    ]
    assert {one.name for one in looked} == {"cookies-segmentation", "cookies-classification"}
    assert [one.refusal for one in looked] == ["", ""]


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


@pytest.mark.parametrize("path", ["manifest.json", "mochi/model.onnx"])
def test_a_second_hard_link_is_refused(tmp_path, path):
    folder = made.classifier(tmp_path / "models" / "board")
    found = packages.look(folder, tmp_path / "models", packages.Rules())
    os.link(folder / path, tmp_path / "another-name")
    again = packages.look(folder, tmp_path / "models", packages.Rules())
    assert again.refusal == f"'{path}' has a second hard link; copy the file instead of linking it."
    if path != "manifest.json":
        with pytest.raises(PackageRefused, match="second hard link"):
            packages.read_model(found.package)


def test_only_the_very_model_that_was_checked_is_read(tmp_path):
    """Where another package is in the place of this one for a moment."""
    folder = made.classifier(tmp_path / "board")
    found = packages.look(folder, tmp_path, packages.Rules())
    folder.rename(tmp_path / "aside")
    made.classifier(folder)
    with pytest.raises(PackageRefused, match=r"mochi/model\.onnx was replaced after it was checked"):
        packages.read_model(found.package)
    shutil.rmtree(folder)
    (tmp_path / "aside").rename(folder)
    assert packages.read_model(found.package).graph == (folder / "mochi" / "model.onnx").read_bytes()


def test_only_the_manifest_that_the_signature_saw_is_read(tmp_path, monkeypatch):
    folder = made.classifier(tmp_path / "board")
    sign = packages.sign

    def signs_and_replaces(*places):
        signature = sign(*places)
        (folder / "manifest.json").write_bytes((folder / "manifest.json").read_bytes() + b"\n")
        return signature

    monkeypatch.setattr(packages, "sign", signs_and_replaces)
    refusal = packages.look(folder, tmp_path, packages.Rules()).refusal
    assert refusal == "manifest.json was replaced after it was checked; start the model again."


def test_what_is_told_of_a_package_is_one_line_of_a_bounded_length(tmp_path):
    name = "\x1b\u202e" * 2000
    content = {**made.manifest(), "runtime_artifact": "x" * 200}
    folder = made.write(tmp_path / "board", content, b"")
    assert packages.look(folder, tmp_path, packages.Rules()).refusal.startswith("'mochi/xxxxx")
    (folder / "manifest.json").write_text('{"model_graph": ' + name)
    refusal = packages.look(folder, tmp_path, packages.Rules()).refusal
    assert refusal.isprintable()
    assert len(refusal) <= packages.LONGEST_SENTENCE + 3


def test_the_head_of_a_file(tmp_path):
    (tmp_path / "manifest.json").write_bytes(b"0123456789")
    assert packages.read_file(tmp_path, "manifest.json", most=4, head=True) == b"0123"
    assert packages.read_file(tmp_path, "manifest.json", most=40, head=True) == b"0123456789"
    with pytest.raises(PackageRefused, match="larger than 4 bytes"):
        packages.read_file(tmp_path, "manifest.json", most=4)


def with_a_block(folder: Path, *listed: str) -> Path:
    """Write a package whose block lists these files, which have their own path for content, and its model."""
    content, model = made.manifest(), made.brightness(mask=False)
    files = {"mochi/model.onnx": model, **{path: path.encode() for path in listed}}
    content["package"] = {
        "format": 1,
        "component": {"name": "board", "version": "1.0.0"},
        "files": {
            path: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for path, data in files.items()
        },
    }
    made.write(folder, content, model)
    for path in listed:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(path)
    return folder


@pytest.mark.parametrize("more", ["empty", "mochi/empty", "labels/deep/empty", ".git"])
def test_a_folder_that_no_listed_file_needs(tmp_path, more):
    folder = with_a_block(tmp_path / "board", "labels/deep/names.txt", "mochi/weights.data")
    assert packages.look(folder, tmp_path, packages.Rules()).refusal == ""
    (folder / more).mkdir()
    refusal = packages.look(folder, tmp_path, packages.Rules()).refusal
    assert refusal == f"'{more}' is a folder that no file of package.files is in."


def test_without_a_block_other_folders_may_be_there(tmp_path):
    folder = made.classifier(tmp_path / "board")
    (folder / "empty").mkdir()
    assert packages.look(folder, tmp_path, packages.Rules()).refusal == ""


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


def test_a_file_of_any_size_is_not_read(tmp_path):
    """Sparse files take no room on disk; what they say they hold would take all memory."""
    folder = made.classifier(tmp_path / "board")
    os.truncate(folder / "mochi" / "model.onnx", 1 << 43)
    found = packages.look(folder, tmp_path, packages.Rules())
    with pytest.raises(PackageRefused, match=r"^mochi/model\.onnx does not fit into memory\.$"):
        packages.read_model(found.package)
    os.truncate(folder / "manifest.json", 1 << 43)
    assert list(packages.search(tmp_path, packages.raise_error)) == [folder]
    found = packages.look(folder, tmp_path, packages.Rules())
    assert found.refusal == "manifest.json is larger than 1048576 bytes."


def test_a_file_that_grows_without_end_is_not_read_to_its_end(tmp_path, monkeypatch):
    """It becomes one that would take all memory when it has been looked at already."""
    (tmp_path / "manifest.json").write_bytes(b"{}")
    opened = open

    def grow(*arguments, **more):
        os.truncate(tmp_path / "manifest.json", 1 << 43)
        return opened(*arguments, **more)

    monkeypatch.setattr(packages, "open", grow, raising=False)
    with pytest.raises(PackageRefused, match="changed while it was read"):
        packages.read_file(tmp_path, "manifest.json")


def test_folders_in_folders_without_end_are_refused(tmp_path):
    """Deeper than Python's calls may go."""
    folder = made.classifier(tmp_path / "board")
    deepest = os.open(folder, os.O_RDONLY)
    for _ in range(sys.getrecursionlimit() + 100):
        os.mkdir("x", dir_fd=deepest)
        inner = os.open("x", os.O_RDONLY, dir_fd=deepest)
        os.close(deepest)
        deepest = inner
    os.close(deepest)
    try:
        assert packages.look(folder, tmp_path, packages.Rules()).refusal == "The package has more than 1000 files."
    finally:
        subprocess.run(["rm", "-r", folder / "x"], check=True)  # as shutil.rmtree, and so pytest, cannot everywhere


@pytest.mark.parametrize("path", ["boards", "boards/board"])
def test_a_folder_whose_place_a_link_has_taken_is_refused(tmp_path, path):
    """The look before was at the folder itself."""
    root = tmp_path / "models"
    found = packages.look(made.classifier(root / "boards" / "board"), root, packages.Rules())
    assert not found.refusal
    (root / path).rename(tmp_path / "elsewhere")
    (root / path).symlink_to(tmp_path / "elsewhere")
    refusal = packages.look_again(found, packages.Rules()).refusal
    assert refusal == f"Folder '{Path(path).name}' is a link; only the models folder itself may be one."


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_stage_that_is_no_folder_is_refused_at_the_look(tmp_path, kind):
    folder = made.classifier(tmp_path / "models" / "board")
    (folder / "mochi").rename(tmp_path / "elsewhere")
    if kind == "link":
        (folder / "mochi").symlink_to(tmp_path / "elsewhere")
    else:
        (folder / "mochi").touch()
    assert packages.look(folder, tmp_path, packages.Rules()).refusal == "mochi is a link or no folder."


def test_a_file_larger_than_any_memory_is_not_read():
    """Of the largest size there is, which a file on tmpfs may have."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        (Path(folder) / "model.onnx").touch()
        os.truncate(Path(folder) / "model.onnx", sys.maxsize)
        with pytest.raises(PackageRefused, match=r"^model\.onnx does not fit into memory\.$"):
            packages.read_file(Path(folder), "model.onnx")
