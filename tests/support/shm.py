"""Segments of POSIX shared memory, made as a client makes them, where the fixture `segment` does not do."""

import os
from pathlib import Path

from edge_agent import segments
from support.users import agent_user

SHM = Path("/dev/shm")


def new_name() -> str:
    """Return a segment's name that nobody else has."""
    return f"edge-agent-test-{os.urandom(6).hex()}"


def of_clients() -> set[str]:
    """Return the names of the segments that the clients of this test have now; see the fixture `client_segments`."""
    return {path.name for path in SHM.glob(f"{segments.PREFIX}*")}


def create(name: str, content: bytes = b"", size: int | None = None) -> None:
    """Make a segment, which the agent may read and write, of `size` bytes (default: those of its content)."""
    fd = os.open(SHM / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.fchown(fd, -1, agent_user().gid)
        os.fchmod(fd, 0o660)
        os.ftruncate(fd, len(content) if size is None else size)
        os.pwrite(fd, content, 0)
    finally:
        os.close(fd)
