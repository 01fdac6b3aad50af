"""What the README says of settings, commands and limits is what the code does."""

import re

from click.testing import CliRunner

import readme_tables
from edge_agent import address, bitmaps
from edge_agent.cli import COMMANDS, command

TEXT = readme_tables.README.read_text()


def test_tables_are_current():
    assert readme_tables.render(TEXT) == TEXT, "run: python tests/readme_tables.py"


def test_commands_exist():
    named = set(re.findall(r"^edge-agent (\w+)", TEXT, re.MULTILINE))
    assert named == set(COMMANDS) - {"config", "demo"}
    for name in COMMANDS:
        assert CliRunner().invoke(command, [name, "--help"]).exit_code == 0


def test_facts():
    assert address.DEFAULT in TEXT
    assert f"{bitmaps.SHORTEST_SIDE} to {bitmaps.LONGEST_SIDE} pixels" in TEXT
