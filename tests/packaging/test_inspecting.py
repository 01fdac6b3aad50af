"""What a package is and whether the agent would take it: of folders and zips, ours and the field's, whole and damaged."""

import json
import platform
import shutil
from pathlib import Path

import pytest

from edge_agent import block, device
from model_packager import component, destinations, inspecting, packaging, writing
from model_packager.errors import PackagingRefused
from model_packager.inspecting import inspect, verify
from support import packages as made

HERE, OTHER = ("ARM64", "X86_64") if platform.machine() in device.MACHINES["ARM64"] else ("X86_64", "ARM64")
MODEL = "mochi/model.onnx"


def job(source: Path, output: Path, name: str, **options: object) -> Path:
    """Package a component as a job does; return the folder of its version."""
    greengrass = {"ComponentName": name, "TargetPlatform": {"Os": "LINUX", "Arch": HERE}}
    if HERE == "X86_64":
        greengrass["CompilerOptions"] = json.dumps({"mcpu": "x86-64"})  # every machine that runs this test has it
    order = {
        "request": {
            "ProjectName": "P",
            "ModelVersion": "7",
            "JobName": "j",
            "Configuration": {"Greengrass": greengrass},
        },
        "output": str(output),
        "source": str(source),
        "options": options,
    }
    work = output.parent / f"work-{name}"
    work.mkdir()
    packaging.run(order, work, destinations.of(str(output)), lambda _step, _fraction: None)
    return output / name / "7.0.0"


@pytest.fixture(scope="module")
def field(tmp_path_factory) -> Path:
    """A component of the field: no block, and its name only in its path."""
    return made.segmenter(tmp_path_factory.mktemp("field") / "board" / "component", threshold=0.7021560668945312)


@pytest.fixture(scope="module")
def version(field, tmp_path_factory) -> Path:
    return job(field, tmp_path_factory.mktemp("jobs") / "out", "board", colours={"bright": "#0a0b0c"})


@pytest.fixture(scope="module")
def sorter(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("sorter")
    source = made.write(
        place / "source",
        made.manifest(size=(64, 96), image_size=(640, 480), interpolation="bilinear"),
        made.brightness((64, 96), mask=False),
    )
    return job(source, place / "out", "sorter", any_image_size=True)


def package_of(version: Path) -> Path:
    (folder,) = version.glob("*_greengrass_model_component")
    return folder


def zip_of(version: Path) -> Path:
    (path,) = version.glob("*.zip")
    return path


class TestInspect:
    def test_a_segmenter(self, version):
        told = inspect(package_of(version))
        assert told == {
            "component": "board",
            "version": "7.0.0",
            "model_arn": "arn:aws:lookoutvision:local:000000000000:model/P/7",
            "made_from": told["made_from"],
            "heads": ["classification", "segmentation"],
            "threshold": 0.7021560668945312,
            "image_size": [64, 64],
            "any_image_size": False,
            "network_size": [64, 64],
            "interpolation": "area",
            "classes": [
                {"name": "background", "hex_color": "#FFFFFF"},
                {"name": "bright", "hex_color": "#0A0B0C"},
            ],
            "target": told["target"],
            "precision": "fp32",
            "compiled": True,
            "peak_memory_bytes": told["peak_memory_bytes"],
            "warm_up_seconds": told["warm_up_seconds"],
            "files": told["files"],
            "parity": told["parity"],
            "notes": [],
        }
        assert (told["target"]["os"], told["target"]["arch"]) == ("LINUX", HERE)
        assert told["files"].keys() == {MODEL}
        assert (told["parity"]["images"], told["parity"]["noise"], told["parity"]["verdict_flips"]) == (8, True, 0)
        assert told["peak_memory_bytes"] > 1 << 20
        json.dumps(told)

    def test_a_classifier_of_any_size(self, sorter):
        told = inspect(package_of(sorter))
        assert told["heads"] == ["classification"]
        assert (told["classes"], told["any_image_size"]) == ([], True)
        assert (told["image_size"], told["network_size"], told["interpolation"]) == ([640, 480], [64, 96], "bilinear")

    def test_folder_version_output_and_zip_tell_the_same(self, version):
        told = inspect(package_of(version))
        for path in (version, version.parent, version.parent.parent, zip_of(version)):
            assert inspect(path) == told

    def test_a_component_of_the_field(self, field):
        told = inspect(field)
        assert (told["component"], told["version"], told["threshold"]) == ("board", "0.0.0", 0.7021560668945312)
        assert (told["compiled"], told["files"], told["parity"], told["target"]) == (False, None, None, None)
        assert told["notes"] == ["No `package` block: files are not checked against digests."]

    def test_a_zip_of_the_field_is_called_as_it_would_be_unpacked(self, field, tmp_path):
        """Greengrass unpacks into <component>/<version>/<name of the zip>; elsewhere the folder that it lies in counts."""
        for path, name in (
            ("crate/1.2.3/0123456789ab_greengrass_model_component.zip", ("crate", "1.2.3")),
            ("crate/0123456789ab_greengrass_model_component.zip", ("crate", "0.0.0")),
            ("downloads/crate.zip", ("crate", "0.0.0")),
        ):
            archive = tmp_path / path
            archive.parent.mkdir(parents=True, exist_ok=True)
            component.zip_folder(field, archive)
            told = inspect(archive)
            assert (told["component"], told["version"]) == name
            archive.unlink()

    def test_nodes_are_named_as_int8_exclude_takes_them(self, version, sorter):
        nodes = inspect(version, nodes=True)["nodes"]
        assert [set(one) for one in nodes] == [{"name", "operator", "weights"}] * len(nodes)
        assert nodes
        assert "nodes" not in inspect(version)

    def test_a_damaged_manifest_is_said(self, version, tmp_path):
        folder = damaged(version, tmp_path, "manifest.json")
        with pytest.raises(PackagingRefused, match=r"manifest\.json was changed|manifest\.json is not JSON"):
            inspect(folder)

    def test_nodes_of_a_damaged_model(self, version, field, tmp_path):
        with pytest.raises(PackagingRefused, match=r"^'mochi/model\.onnx' was changed"):
            inspect(damaged(version, tmp_path, MODEL), nodes=True)
        shutil.copytree(field, tmp_path / "field")
        (tmp_path / "field" / MODEL).write_bytes(b"\xff" * 100)
        with pytest.raises(PackagingRefused, match=r"^mochi/model\.onnx is not an ONNX model"):
            inspect(tmp_path / "field", nodes=True)


def damaged(version: Path, tmp_path: Path, file: str) -> Path:
    folder = tmp_path / "board"
    shutil.copytree(package_of(version), folder)
    data = bytearray((folder / file).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / file).write_bytes(data)
    return folder


class TestVerify:
    def test_a_package_loads_and_runs(self, version):
        found = verify(version, any_target=False, load=True)
        assert found.bad == found.notes == ()
        assert found.good[0] == "board 7.0.0: manifest.json and 1 file are as they were written."
        assert found.good[1].startswith("It loads and runs: ")

    def test_a_component_of_the_field(self, field):
        found = verify(field, any_target=False, load=True)
        assert found.bad == ()
        assert found.good[0] == "board 0.0.0: manifest.json can be read."
        assert found.good[1].startswith("It loads and runs: ")
        assert found.notes == ("No `package` block: files are not checked against digests.",)

    def test_a_zip(self, version):
        assert verify(zip_of(version), any_target=False, load=False).bad == ()

    def test_recipes_are_linted_where_a_job_put_them(self, version, tmp_path):
        place = tmp_path / "7.0.0"
        shutil.copytree(version, place)
        for name in ("recipe.yaml", "recipe.json"):
            (place / name).write_text((place / name).read_text().replace("SOFT", "HARD"))
        (place / package_of(version).name / MODEL).unlink()
        for path in (place, place / package_of(version).name):
            found = verify(path, any_target=False, load=False)
            # A package that is refused is no reason to keep silent on its recipes.
            assert (found.good, len(found.bad)) == ((), 3)
            assert found.bad[0] == "mochi/model.onnx is missing."
            assert [one.partition(",")[0] for one in found.bad[1:]] == ["recipe.yaml", "recipe.json"]
        found = verify(place / zip_of(version).name, any_target=False, load=False)
        assert (len(found.good), len(found.bad)) == (1, 2)
        (place / "recipe.yaml").unlink()
        assert len(verify(place / zip_of(version).name, any_target=False, load=False).bad) == 1

    def test_what_else_is_called_a_recipe_is_not_linted(self, field, tmp_path):
        place = tmp_path / "board"
        shutil.copytree(field, place / "component")
        (place / "recipe.yaml").write_text("Flour: 500 g\n")
        component.zip_folder(field, place / "board.zip")
        for path in (place, place / "component", place / "board.zip"):
            assert verify(path, any_target=False, load=False).bad == ()

    def test_a_recipe_that_cannot_be_read(self, version, tmp_path, monkeypatch):
        real = Path.open

        def no_recipe(self: Path, *how):
            if self.name == "recipe.json":
                raise PermissionError(13, "Permission denied")
            return real(self, *how)

        monkeypatch.setattr(Path, "open", no_recipe)
        found = verify(version, any_target=False, load=False)
        assert found.bad == ("recipe.json cannot be read: Permission denied.",)

    @pytest.mark.parametrize("file", ["manifest.json", MODEL])
    @pytest.mark.parametrize("packed", [False, True])
    def test_damage_is_found_and_the_file_named(self, version, tmp_path, file, packed):
        path = damaged(version, tmp_path, file)
        if packed:
            component.zip_folder(path, tmp_path / "board.zip")
            path = tmp_path / "board.zip"
        for any_target in (False, True):
            found = verify(path, any_target=any_target, load=not any_target)
            assert found.good == ()
            assert len(found.bad) == 1
            assert file in found.bad[0]

    def test_a_file_too_many(self, version, tmp_path):
        folder = tmp_path / "board"
        shutil.copytree(package_of(version), folder)
        (folder / "readme.txt").write_text("")
        assert verify(folder, any_target=False, load=True).bad == ("'readme.txt' is not listed in package.files.",)

    def test_everybody_may_write_it(self, version, tmp_path):
        folder = tmp_path / "board"
        shutil.copytree(package_of(version), folder)
        (folder / MODEL).chmod(0o666)
        assert "writable by everybody" in verify(folder, any_target=False, load=True).bad[0]

    def test_of_another_architecture(self, version, tmp_path):
        model = (package_of(version) / MODEL).read_bytes()
        content = made.manifest(segmentation=True, pixel_names=("background", "bright"))
        more = {"graph": block.COMPILED, "target": {"os": "LINUX", "arch": OTHER}}
        writing.write(tmp_path / "board", content, model, "board", more=more)
        found = verify(tmp_path / "board", any_target=False, load=True)
        assert len(found.good) == len(found.bad) == 1
        assert found.bad[0].startswith(f"The package was compiled for {OTHER}; this device is {platform.machine()}")
        assert verify(tmp_path / "board", any_target=True, load=False).bad == ()
        assert inspect(tmp_path / "board")["target"]["arch"] == OTHER

    def test_what_the_agent_would_say_of_its_target_is_said(self, version, tmp_path):
        model = (package_of(version) / MODEL).read_bytes()
        content = made.manifest(segmentation=True, pixel_names=("background", "bright"))
        target = {"os": "LINUX", "arch": HERE, "compiler_options": {"gpu-code": "sm_87"}}
        more = {"graph": block.COMPILED, "target": target}
        writing.write(tmp_path / "board", content, model, "board", more=more)
        found = verify(tmp_path / "board", any_target=False, load=False)
        assert (found.bad, found.notes) == ((), ("The package was compiled for GPU sm_87 (here: none).",))

    def test_it_passes_its_digests_and_does_not_load(self, tmp_path):
        writing.write(tmp_path / "board", made.manifest(), b"no model", "board")
        found = verify(tmp_path / "board", any_target=False, load=True)
        assert len(found.good) == 1
        assert "cannot load the model" in found.bad[0]


class TestOpened:
    def test_nothing_there(self, tmp_path):
        with pytest.raises(PackagingRefused, match="does not exist"), inspecting.opened(tmp_path / "nowhere"):
            pass

    def test_no_package(self, tmp_path):
        (tmp_path / "manifest.json").write_text('{"name": "a browser extension"}')
        with (
            pytest.raises(
                PackagingRefused, match="holds no model package, which is a manifest.json with a model_graph"
            ),
            inspecting.opened(tmp_path),
        ):
            pass

    def test_several_packages_are_named(self, tmp_path):
        for name in ("board", "cable"):
            made.classifier(tmp_path / name)
        with pytest.raises(PackagingRefused) as caught, inspecting.opened(tmp_path):
            pass
        assert str(caught.value) == f"{tmp_path} holds 2 model packages (board, cable); name one of them."

    def test_a_file_that_is_no_archive(self, tmp_path):
        (tmp_path / "model.onnx").write_bytes(made.brightness())
        with (
            pytest.raises(PackagingRefused, match="'model.onnx' cannot be unpacked"),
            inspecting.opened(tmp_path / "model.onnx"),
        ):
            pass

    def test_what_was_unpacked_is_gone_afterwards(self, version, monkeypatch, tmp_path):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        with inspecting.opened(zip_of(version)) as folder:
            assert tmp_path in folder.parents
            assert (folder / "manifest.json").is_file()
        assert list(tmp_path.iterdir()) == []
