"""Waits on states, never for a time."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 30.0


def until(look: Callable[[], T], what: str, patience: float = PATIENCE) -> T:
    """Return the first true result of `look`; fail, saying what was waited for, when none comes."""
    give_up = time.monotonic() + patience
    while True:
        seen = look()
        if seen:
            return seen
        if time.monotonic() > give_up:
            raise AssertionError(f"waited {patience:g} s in vain until {what}; last seen: {seen!r}")
        time.sleep(0.01)
