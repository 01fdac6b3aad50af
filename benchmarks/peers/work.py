"""What every server does for a call, and what servers and clients are told: runs in the environment of each peer.

The work is the agent's own pipeline on the agent's own session, imported from its source: all contenders resize,
normalise and run alike, and differ in nothing but the way from the client to the pipeline and back.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_agent import backends, graphs, packages
from edge_agent.jobs import SessionOptions
from edge_agent.pipeline import Pipeline

# The environment variable in which a process is given its task, as JSON.
VARIABLE = "EDGE_AGENT_PEER"


@dataclass(frozen=True)
class Task:
    """What to serve and to call: the package, the frame's size in pixels, how to run the model, and where to listen.

    `workers` is how many worker processes a server has; `folder` is for whatever it writes. The last two are addresses:
    ports of 127.0.0.1 for those who have nothing better, and a Unix socket.
    """

    package: str
    width: int
    height: int
    threads: int
    spinning: bool
    workers: int
    folder: str
    ports: tuple[int, int, int]
    socket: str

    @classmethod
    def given(cls) -> "Task":
        """Return the task of this process."""
        return cls(**json.loads(os.environ[VARIABLE]))

    def as_variable(self) -> dict[str, str]:
        """Return the environment that gives this task to a process."""
        return {VARIABLE: json.dumps(asdict(self))}

    def frame(self) -> bytes:
        """Return random pixels, packed RGB, 3 * width * height bytes: the same in each process."""
        return np.random.default_rng(1).integers(0, 256, 3 * self.width * self.height, np.uint8).tobytes()


class Work:
    """A loaded model, warmed up."""

    def __init__(self, task: Task) -> None:
        folder = Path(task.package)
        found = packages.look(folder, folder.parent, packages.Rules())
        if found.package is None:
            raise SystemExit(found.refusal)
        options = SessionOptions(threads=task.threads, spinning=task.spinning)
        session = backends.open_session(packages.read_model(found.package), options)
        self._pipeline = Pipeline(found.package.manifest, graphs.of(found.package.manifest, session))
        self._shape = task.height, task.width, 3
        self._pipeline.warm_up()

    def score(self, frame: bytes | NDArray[np.uint8]) -> float:
        """Return the anomaly score 0..1 of a frame of the task's size: packed RGB, or height x width x 3 (uint8)."""
        pixels = frame if isinstance(frame, np.ndarray) else np.frombuffer(frame, np.uint8)
        return self._pipeline.judge(pixels.reshape(self._shape))[0].score
