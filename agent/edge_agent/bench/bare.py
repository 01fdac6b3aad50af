"""The bare model: the agent's own stages in this process, without gRPC, queue or worker, to measure the agent against."""

import os
import secrets
import statistics
import time

import numpy as np
import posix_ipc

from edge_agent import backends, bitmaps, graphs, packages
from edge_agent.backends.timed import Timed
from edge_agent.bitmaps import Image, MaskTarget, Segment
from edge_agent.jobs import STAGES, SessionOptions
from edge_agent.packages import Package
from edge_agent.pipeline import Pipeline


class Frame:
    """A client's segment: a frame of width x height pixels, and behind it as much room for its mask."""

    def __init__(self, pixels: bytes, width: int, height: int) -> None:
        """Put packed RGB pixels, 3 * width * height bytes, into a new segment; `close` removes it."""
        self.width, self.height = width, height
        self.size = len(pixels)
        name = f"/edge-agent-bench-{secrets.token_hex(8)}"
        memory = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o660, size=2 * self.size)
        self.name = name
        try:
            os.pwrite(memory.fd, pixels, 0)
        finally:
            memory.close_fd()

    @property
    def source(self) -> Segment:
        """Where the frame is."""
        return Segment(self.name.removeprefix("/"), 0, self.size)

    @property
    def mask(self) -> Segment:
        """Where its mask is to go."""
        return Segment(self.name.removeprefix("/"), self.size, self.size)

    def close(self) -> None:
        """Remove the segment."""
        posix_ipc.unlink_shared_memory(self.name)


class Bare:
    """A loaded model whose `call` does with a frame what a worker does, from copy in to copy out."""

    def __init__(self, package: Package, frame: Frame, options: SessionOptions) -> None:
        """Load and warm up; raise PackageRefused or MemoryError as a worker would be told."""
        self._session = Timed(backends.open_session(packages.read_model(package), options))
        self._pipeline = Pipeline(package.manifest, graphs.of(package.manifest, self._session), options.threads)
        self._image = Image(frame.width, frame.height, 3 * frame.width, frame.source)
        self._mask = frame.mask if package.manifest.stage.segmentation else None
        self._frame = np.empty(frame.size, np.uint8)
        self._painted = np.empty((frame.height, frame.width, 3), np.uint8)
        self._copied = 0.0
        self._pipeline.warm_up()

    def call(self) -> None:
        """Judge the frame in the segment, and write its mask there if the model makes one."""
        target = MaskTarget(self._mask, self._image.packed_size) if self._mask else None
        try:
            bitmaps.copy_in(self._image, self._frame.data, target)
            self._copied = time.perf_counter()
            _, class_map = self._pipeline.judge(self._frame.reshape(self._painted.shape))
            if target and class_map is not None:
                self._pipeline.paint(class_map, self._painted)
                target.write(self._painted.reshape(-1).data)
        finally:
            if target:
                target.close()

    def stages(self, rounds: int) -> dict[str, float]:
        """Return the median seconds of each of STAGES over so many calls; copying the mask out belongs to the last."""
        found: dict[str, list[float]] = {stage: [] for stage in STAGES}
        for _ in range(rounds):
            begin = time.perf_counter()
            self.call()
            marks = (begin, self._copied, self._session.begin, self._session.end, time.perf_counter())
            for stage, start, end in zip(STAGES, marks[:-1], marks[1:], strict=True):
                found[stage].append(end - start)
        return {stage: statistics.median(times) for stage, times in found.items()}
