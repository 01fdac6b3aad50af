"""What this process has open, where other things go on in it: a connection of earlier tests may close at any instant."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress


def open_files() -> set[tuple[str, str]]:
    """Return the descriptors and what they are open on."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the folder's own, or one that was just closed
            found.add((fd, os.readlink(f"/proc/self/fd/{fd}")))
    return found


@contextmanager
def nothing_stays_open() -> Iterator[None]:
    """Fail if something was opened in between that is open still."""
    gc.collect()
    before = open_files()
    yield
    left = open_files() - before
    assert not left, f"open still: {sorted(left)}"
