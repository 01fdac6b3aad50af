"""What packages are called by their paths, and which version is the higher."""

from pathlib import Path

import pytest

from edge_agent import naming


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
    assert naming.name_and_version(Path(path)) == expected


def test_versions_compare_as_numbers():
    ordered = ["0.0.0", "1.2.3", "1.2.10", "1.10.0", "2.0.0", "10.0.0"]
    assert sorted(set(ordered), key=naming.version_key) == ordered
