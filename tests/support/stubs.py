"""The stubs of a customer: made by the stock protoc command, used in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

PROTO = Path(__file__).resolve().parents[2] / "proto" / "edge-agent.proto"


def generate(folder: Path) -> None:
    """Run the command that every customer of the field ran, in a folder with the proto."""
    (folder / PROTO.name).write_bytes(PROTO.read_bytes())
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            "--proto_path=.",
            "--python_out=.",
            "--grpc_python_out=.",
            PROTO.name,
        ],
        cwd=folder,
        check=True,
    )


def run(script: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run a customer's program beside its stubs; return what it printed."""
    program = folder / "program.py"
    program.write_text(script)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("EDGE_AGENT_")}
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning", str(program), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
