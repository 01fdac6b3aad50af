"""Imports from folders that are no packages, as programs in them have it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def beside(*folders: Path) -> Iterator[None]:
    """Import from these folders first.

    Nothing else of `sys.path` is put back as it was, as pytest's syspath_prepend does: onnxruntime.transformers adds its
    own folder with its first import, and cannot do without.
    """
    added = [str(folder) for folder in folders]
    sys.path[:0] = added
    try:
        yield
    finally:
        for one in added:
            sys.path.remove(one)
