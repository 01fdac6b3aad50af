"""What the agent and a worker say to each other: small messages, never a pixel. Imports no numerical library."""

import struct
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Literal

from edge_agent.bitmaps import Image, Segment
from edge_agent.errors import EdgeAgentError
from edge_agent.log import LogSettings
from edge_agent.packages import Found

# How the agent tells a worker which job to end: its slot, and its number there, counted from 1.
NUMBER = struct.Struct("<QQ")
# What a worker does with an image, in this order; the mask is painted and written in the last.
STAGES = ("copy", "preprocess", "run", "postprocess")


Accelerator = Literal["cpu", "cuda", "tensorrt"]
Precision = Literal["package", "fp16", "int8"]


@dataclass(frozen=True)
class GpuOptions:
    """The GPU that a model is run on, and how.

    `index` is the GPU's number, counted as NVML and nvidia-smi do; `name`, `code` (as sm_87) and `driver` (its version)
    are what the agent found out about it. `memory_limit` is how many bytes of its memory the runtime may take, 0 any.
    `precision` is what is computed with where that can be chosen, "package" being what the model says. With `graphs`
    what is launched for a call is recorded once and replayed (CUDA graphs). `engines` is the folder that built engines
    are kept in, at most `engines_size` bytes, or "" to keep none.
    """

    index: int = 0
    name: str = ""
    code: str = ""
    driver: str = ""
    memory_limit: int = 0
    precision: Precision = "package"
    graphs: bool = True
    engines: str = ""
    engines_size: int = 4 << 30


@dataclass(frozen=True)
class SessionOptions:
    """How a model is run: CPU threads (0: one for each core), and whether they spin while they wait.

    `memory_limit` is how many bytes its process may take, 0 any; `slots` how many calls it does at once; `cpus` the
    processors that it keeps to, all if there are none; `gpu` counts with an accelerator that is no CPU.
    """

    threads: int = 0
    spinning: bool = False
    memory_limit: int = 0
    slots: int = 1
    cpus: tuple[int, ...] = ()
    accelerator: Accelerator = "cpu"
    gpu: GpuOptions = GpuOptions()


@dataclass(frozen=True)
class AnomalyArea:
    """An anomaly type present in the mask, the fraction 0..1 of the image it covers, and its colour "#RRGGBB"."""

    name: str
    area: float
    hex_color: str


@dataclass(frozen=True)
class Verdict:
    """What the model says of an image; score and confidence 0..1."""

    is_anomalous: bool
    confidence: float
    score: float
    threshold: float
    anomalies: tuple[AnomalyArea, ...] = ()


@dataclass(frozen=True)
class Job:
    """One image to judge: in its segment, or in the inbox. A mask goes to its segment, or into the outbox.

    `number` is its place among those of its slot, counted from 1; who hands it to the slot sets it.
    """

    image: Image
    mask: Segment | None
    number: int = 0


@dataclass(frozen=True)
class Ready:
    """The model is loaded and warmed up; `warm_up` in seconds."""

    provider: str
    warm_up: float


@dataclass(frozen=True)
class Progress:
    """The model is still being loaded, and this is what is being done, for operators.

    With `building` an engine is being built, which may take longer than a model may take to load.
    """

    text: str
    building: bool = False


@dataclass(frozen=True)
class Refused:
    """The model cannot be loaded; the reason is for operators. With `accelerator` it might be on another one."""

    reason: str
    accelerator: bool = False


@dataclass(frozen=True)
class Broken:
    """The GPU failed in the middle of a job: the worker ends, and the job with it; the reason is for operators."""

    number: int
    reason: str


@dataclass(frozen=True)
class Answer:
    """The verdict on the job of that number.

    `inline_mask` is how many bytes of the mask are in the outbox, `stages` the seconds of each of STAGES.
    """

    number: int
    verdict: Verdict
    inline_mask: int
    stages: tuple[float, ...] = (0.0,) * len(STAGES)


@dataclass(frozen=True)
class Failure:
    """The job of that number failed with an error that is meant for the caller."""

    number: int
    error: type[EdgeAgentError]
    text: str


def work(pipes: tuple[Connection, ...], found: Found, options: SessionOptions, log_as: LogSettings) -> None:
    """Be the worker process: the entry point that the agent names without importing what it runs.

    There is a pipe for each slot; `log_as` is how its log lines are written.
    """
    from edge_agent import log, worker

    log.set_up(log_as, own=False)
    worker.main(pipes, found, options)
