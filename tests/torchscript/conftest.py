"""These tests are those of `make test-torch` alone: elsewhere they are not collected, and there PyTorch must be present."""

import pytest


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Ignore this folder in every run but the one that asks for it."""
    return None if config.getoption("markexpr") == "torch" else True
