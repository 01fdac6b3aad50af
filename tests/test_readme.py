"""What the README says of settings, commands and limits is what the code does."""

import json
import re

from click.testing import CliRunner

import readme_tables
from edge_agent import address, bitmaps, config
from edge_agent.cli import COMMANDS, command
from model_packager.importers import pairing, source

TEXT = readme_tables.README.read_text()


def test_tables_are_current():
    assert readme_tables.render(TEXT) == TEXT, "run: python tests/readme_tables.py"


def test_commands_exist():
    named = set(re.findall(r"^edge-agent (\w+)", TEXT, re.MULTILINE))
    assert named == set(COMMANDS) - {"config", "demo"}
    for name in COMMANDS:
        assert CliRunner().invoke(command, [name, "--help"]).exit_code == 0


def test_the_settings_file_is_read(tmp_path):
    (text,) = re.findall(r"(?ms)^```yaml\n(models:.*?)^```", TEXT)
    file = tmp_path / "config.yaml"
    file.write_text(text)
    settings = config.load(file)
    assert (settings.autostart, settings.of_model("board", "slots")) == (("board",), 2)


def test_the_sidecar_is_read(tmp_path):
    (text,) = re.findall(r'(?ms)^```json\n(\{"model_graph".*?)^```', TEXT)
    (more,) = re.findall(r'(?m)^`("onnx": \{.+\})`', TEXT)
    sidecar, model = tmp_path / "sidecar.json", tmp_path / "model.onnx"
    sidecar.write_text(json.dumps({**json.loads(text), **json.loads(f"{{{more}}}")}))
    model.touch()
    found = pairing.pair("sidecar", "board", source.read_manifest(sidecar), model)
    manifest = source.parse(found.manifest)
    assert (manifest.stage.input_size, manifest.image_size) == ((512, 512), (1920, 1080))
    assert [one.name for one in manifest.classes] == ["background", "scratch"]
    assert found.conventions.mean == (0.5, 0.5, 0.5)


def test_facts():
    assert address.DEFAULT in TEXT
    assert f"{bitmaps.SHORTEST_SIDE} to {bitmaps.LONGEST_SIDE} pixels" in TEXT
