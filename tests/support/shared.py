"""The shared models and photographs: beside the checkout, or where EDGE_AGENT_SHARED points; never committed."""

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("EDGE_AGENT_SHARED") or Path(__file__).resolve().parents[3] / "shared")
WHY = f"the shared models and photographs are not in {FOLDER} (or where EDGE_AGENT_SHARED points)"
PHOTOGRAPHS = FOLDER / "data" / "cookies" / "training-images"

needed = pytest.mark.skipif(not (FOLDER / "models").is_dir(), reason=WHY)
