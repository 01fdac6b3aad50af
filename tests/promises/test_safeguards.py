"""The safeguards that `make mutations` breaks are there to be broken, and the suites that should notice exist."""

import importlib.util
import shutil
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def _safeguards():
    spec = importlib.util.spec_from_file_location("safeguards", HERE / "safeguards.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SAFEGUARDS = _safeguards()


@pytest.mark.parametrize("mutation", SAFEGUARDS.MUTATIONS, ids=lambda mutation: mutation.name)
def test_can_be_broken(tmp_path, mutation):
    copy = tmp_path / "edge_agent"
    shutil.copytree(ROOT / "agent" / "edge_agent", copy, ignore=shutil.ignore_patterns("__pycache__"))
    mutation.apply(copy)
    for file in {file for file, *_ in mutation.edits}:
        changed = (copy / file).read_text()
        assert changed != (ROOT / "agent" / "edge_agent" / file).read_text()
        compile(changed, file, "exec")
    for suite in mutation.suites:
        assert (ROOT / suite.partition("::")[0]).exists()


def test_each_has_a_name_of_its_own():
    names = [one.name for one in SAFEGUARDS.MUTATIONS]
    assert len(set(names)) == len(names)


def test_what_is_not_there_is_noticed(tmp_path):
    (tmp_path / "calls.py").write_text("twice\ntwice\n")
    for text in ("never", "twice"):
        with pytest.raises(SAFEGUARDS.NotFound, match="not once"):
            SAFEGUARDS.Mutation("x", (("calls.py", text, ""),), ()).apply(tmp_path)
