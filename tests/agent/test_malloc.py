"""The memory of messages: kept where that makes the next one faster, and bounded."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
from edge_agent import malloc

if sys.argv[1] != "untouched":
    assert malloc.keep_messages(all_sizes=sys.argv[1] == "all")
size = int(sys.argv[2])
for _ in range(3):
    bytes(size).rjust(1)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    b"x" * size
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults) // 10)
"""


def faults(how: str, size: int) -> int:
    """Return how many pages a process finds anew for each message of `size` bytes."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, how, str(size)], capture_output=True, text=True, check=True, timeout=60
    )
    return int(done.stdout)


@pytest.mark.parametrize(
    ("how", "size", "kept"), [("ordinary", 8 << 20, True), ("ordinary", 48 << 20, False), ("all", 48 << 20, True)]
)
def test_messages_are_kept_up_to_a_size(how, size, kept):
    pages = size // 4096
    found = faults(how, size)
    assert found < pages / 10 if kept else found > pages / 2


def test_without_it_nothing_is_kept():
    """Negative control."""
    assert faults("untouched", 48 << 20) > (48 << 20) // 4096 / 2


def test_another_c_library(monkeypatch):
    from edge_agent import malloc

    monkeypatch.setattr(malloc.ctypes, "CDLL", lambda _: object())
    assert not malloc.keep_messages(all_sizes=True)
