"""The end of an agent: told to end as systemd or Greengrass do, and looked at for what it leaves behind."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from edge_agent import segments
from support.agent import Agent, alive

SHM = Path("/dev/shm")
# Those that belong to clients, of tests and of others.
CLIENTS_OWN = ("edge-agent-test-", segments.PREFIX)
# A variable that the agent's processes inherit, by which they are known whoever their parent is by then.
MARK = "MARK_OF_THE_AGENT"
# What is there after an end: the lock, the models to run again, what was counted, and a folder for sockets.
STAYS = {".lock", ".running.json", ".status.json", ".run"}
# Processes end with the agent, some milliseconds after it; a machine may be busy with much else.
LIVENESS = 5.0


class EndingAgent(Agent):
    """An agent whose end is looked at."""

    def __init__(self, *models: Path, **settings: Any) -> None:
        super().__init__(*models, **settings)
        self.mark = os.urandom(8).hex()
        self._segments = set(SHM.iterdir())

    def spawn(self, **env: str) -> "EndingAgent":
        """Start the process, marked."""
        super().spawn(**{MARK: self.mark, **env})
        return self

    def close(self) -> None:
        """End what runs; a worker that was stopped outlives an agent that was killed."""
        super().close()
        for pid in self._processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def terminate(self, *, children_first: bool) -> float:
        """Send SIGTERM to the agent, to its children before where that is asked for; return the instant before."""
        below = self.children() if children_first else []
        begin = time.monotonic()
        for pid in below:
            os.kill(pid, signal.SIGTERM)
        self.process.terminate()
        return begin

    def check_end(self, begin: float, most: float, liveness: float = LIVENESS) -> float:
        """Fail unless the agent ends within `most` seconds, with exit code 0, and leaves nothing; return the seconds."""
        try:
            code = self.process.wait(max(0.0, begin + most - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the agent has not ended within {most:g} s") from None
        seconds = time.monotonic() - begin
        assert code == 0, f"the agent ended with exit code {code}"
        give_up = time.monotonic() + liveness
        while (left := self.left()) and time.monotonic() < give_up:
            time.sleep(0.01)
        assert not left, f"this is left of the agent: {', '.join(left)}"
        return seconds

    def left(self) -> list[str]:
        """Return what is there of the agent, in words."""
        state = self.folder / "state"
        own = [path for path in state.iterdir() if "." + path.name.partition(".")[2] not in STAYS]
        own += list(state.glob("*.run/*"))
        own += [path for path in self.folder.iterdir() if path.is_socket() or path.name.startswith(".")]
        processes = [f"process {pid}" for pid in self._processes()]
        return [*processes, *map(str, (*own, *self._new_segments()))]

    def _processes(self) -> Iterator[int]:
        wanted = f"{MARK}={self.mark}".encode()
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and wanted in (entry / "environ").read_bytes() and alive(int(entry.name)):
                    yield int(entry.name)

    def _new_segments(self) -> Iterator[Path]:
        """Return the segments that the agent's user has made since, but for those of clients."""
        for path in set(SHM.iterdir()) - self._segments:
            with suppress(OSError):
                if path.stat().st_uid == self.user.uid and not path.name.startswith(CLIENTS_OWN):
                    yield path


@contextmanager
def ending(*models: Path, env: dict[str, str] | None = None, **settings: Any) -> Iterator[EndingAgent]:
    """Yield an agent that serves, whose end is looked at, and close it afterwards."""
    agent = EndingAgent(*models, **settings)
    try:
        agent.start(**(env or {}))
        yield agent
    finally:
        agent.close()
