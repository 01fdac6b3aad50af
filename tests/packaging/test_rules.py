"""The table of rules names tests that there are."""

import re
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
TABLE = (HERE / "RULES.md").read_text()
ROWS = re.findall(r"^\| (?!rule |---)(.+?) \| (.+?) \|$", TABLE, re.MULTILINE)


def test_every_row_has_a_test():
    assert len(ROWS) == TABLE.count("\n| ") - TABLE.count("\n| rule |")
    assert all(re.findall(r"`[\w/]+::\w+`", tests) for _, tests in ROWS)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`([\w/]+::\w+)`", TABLE))))
def test_is_there(name):
    place, _, test = name.partition("::")
    folder, _, file = place.rpartition("/")
    text = ((HERE.parent / folder if folder else HERE) / f"test_{file}.py").read_text()
    assert re.search(rf"^\s*(def|class) {test}\b", text, re.MULTILINE)
