"""A virtual environment for each peer, built once and kept."""

import hashlib
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from processes import NotRun

HERE = Path(__file__).resolve().parent
# What does the work. Each peer gets the versions that run here, and without their dependencies: PyTriton keeps to NumPy
# below 2, of which OpenCV's metadata wants to know nothing, and works with it.
WORK = ("onnxruntime", "opencv-python-headless", "pillow", "cykooz-resizer")


def pins(name: str) -> dict[str, str]:
    """Return the version of each distribution in a peer's list."""
    lines = (HERE / f"{name}.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def work_pins() -> list[str]:
    """Return what does the work, in the versions of this environment."""
    found = []
    for name in WORK:
        try:
            found.append(f"{name}=={metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return found


def build(name: str, cache: Path) -> Path:
    """Return the Python of a peer's environment, built now if it is not there yet; raise NotRun with pip's reason."""
    made_of = [platform.python_version(), (HERE / f"{name}.txt").read_text(), *work_pins()]
    folder = cache / f"{name}-{hashlib.sha256(chr(0).join(made_of).encode()).hexdigest()[:12]}"
    python, complete = folder / "bin" / "python", folder / "complete"
    if complete.exists():
        return python
    print(f"building {folder} ...", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _do([sys.executable, "-m", "venv", str(folder)])
    _do([*pip, "-r", str(HERE / f"{name}.txt")])
    _do([*pip, "--no-deps", *work_pins()])
    complete.touch()
    return python


def _do(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as failure:
        told = [line for line in failure.stderr.splitlines() if line.startswith("ERROR")] or [failure.stderr.strip()]
        raise NotRun(f"its environment cannot be built: {told[-1]:.300}") from None
