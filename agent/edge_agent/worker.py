"""The worker process of one model: take a job, read the image, infer, write the mask, answer."""

import contextlib
import faulthandler
import itertools
import logging
import mmap
import os
import resource
import threading
import time
from concurrent import futures
from multiprocessing import parent_process, reduction
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_agent import backends, bitmaps, graphs, malloc, packages
from edge_agent.backends import InterruptibleSession, Tell
from edge_agent.backends.timed import Timed
from edge_agent.bitmaps import Image, MaskTarget
from edge_agent.errors import (
    AcceleratorFailed,
    AcceleratorMissing,
    EdgeAgentError,
    InferenceFailed,
    InferenceHung,
    PackageRefused,
)
from edge_agent.jobs import (
    NUMBER,
    Answer,
    Broken,
    Failure,
    Job,
    Progress,
    Ready,
    Refused,
    SessionOptions,
    Verdict,
)
from edge_agent.log import LIMITED
from edge_agent.manifest import Manifest
from edge_agent.packages import Found
from edge_agent.pipeline import Pipeline

logger = logging.getLogger(__name__)

# Where memory runs out, the kernel is to end a model and not the agent, or what else runs on the device: proc(5).
OOM_SCORE = 500
# What a thread reserves of the address space and hardly touches: its stack, and a heap of its own of glibc's malloc.
THREAD_SPACE = 72 << 20
# Those besides the runtime's: one of ours, and one for a heap that is twice as large until it has been aligned.
OTHER_THREADS = 2
# What the agent gets to end a process whose GPU failed, so that it knows the cause before it sees the end.
BROKEN_PATIENCE = 1.0
BROKEN_EXIT = 70

# Memory that is shared with the agent: for an inline image, and for an inline mask.
Frames = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def main(pipes: tuple[Connection, ...], found: Found, options: SessionOptions) -> None:
    """Load the package and answer jobs, those of each pipe in a thread of its own, until the first pipe is closed."""
    faulthandler.enable()
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()
    first = pipes[0]
    try:
        told = reduction.recv_handle(first)
        # Before the limit: they are the agent's memory, and not the model's.
        frames = [_frames(first) for _ in pipes]
        # CUDA reserves far more of the address space than it uses: as much as the GPU and the host have together.
        limit = options.memory_limit if options.accelerator == "cpu" else 0
        limit_memory(limit, (options.threads or os.cpu_count() or 1) + len(pipes) - 1)
        model = _load(found, options, frames, _Teller(first).tell)
        if isinstance(model, Refused):
            first.send(model)
            return
        threading.Thread(target=model.end_jobs, args=(told,), name="end-jobs", daemon=True).start()
        for slot, pipe in list(zip(model.slots, pipes, strict=True))[1:]:
            threading.Thread(target=_serve, args=(slot, pipe), name="slot", daemon=True).start()
        first.send(Ready(model.provider, model.warm_up))
        _serve(model.slots[0], first)
    except (EOFError, OSError):
        return  # the agent is gone


def _serve(slot: "_Slot", pipe: Connection) -> None:
    """Answer a pipe's jobs until it is closed."""
    with contextlib.suppress(EOFError, OSError):  # the agent is gone
        while job := pipe.recv():
            answer = slot.answer(job)
            pipe.send(answer)
            if isinstance(answer, Broken):
                # Nothing more is run in this process, nor taken down in order: both may hang.
                time.sleep(BROKEN_PATIENCE)
                os._exit(BROKEN_EXIT)


class _Teller:
    """Tells the agent how far the loading is, from any thread."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()

    def tell(self, progress: Progress) -> None:
        """Send it; where the agent is gone, another thread ends this process."""
        with self._lock, contextlib.suppress(OSError):
            self._pipe.send(progress)


def limit_memory(limit: int, threads: int) -> None:
    """Let this process take `limit` more bytes than it has, 0 for any; no core file is written.

    A model that takes more fails by itself, and not whatever the kernel would end to make room. What is limited is the
    address space; what the runtime's `threads` reserve of it comes on top, for a runtime that cannot start its threads
    waits for them for ever.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))
    if limit:
        has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        most = has + limit + (threads + OTHER_THREADS) * THREAD_SPACE
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        if hard == resource.RLIM_INFINITY or most < hard:
            resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def _frames(pipe: Connection) -> Frames:
    """Receive the memory that a slot shares with the agent."""
    inbox, outbox = reduction.recv_handle(pipe), reduction.recv_handle(pipe)
    return _map(inbox, mmap.PROT_READ), _map(outbox, mmap.PROT_READ | mmap.PROT_WRITE)


def _map(fd: int, protection: int) -> NDArray[np.uint8]:
    """Return the memory that is shared with the agent, as large as the largest image."""
    memory = mmap.mmap(fd, bitmaps.LARGEST_IMAGE, prot=protection)
    os.close(fd)  # the mapping has one of its own
    return np.frombuffer(memory, np.uint8)


def _load(found: Found, options: SessionOptions, frames: list[Frames], tell: Tell) -> "_Model | Refused":
    """Return the model, loaded and warmed up, or why there is none."""
    try:
        _keep_to(options.cpus)
        return _Model(found, options, frames, tell)
    except (AcceleratorMissing, AcceleratorFailed) as refusal:
        return Refused(str(refusal), accelerator=True)
    except PackageRefused as refusal:
        return Refused(str(refusal))
    except MemoryError:
        return Refused("The model does not fit into memory; stop another model, or raise memory_limit if it is set.")
    except Exception:
        logger.exception("%s: the model could not be loaded", found.name)
        return Refused("The model could not be loaded; the agent's log has the cause.")


def _keep_to(cpus: tuple[int, ...]) -> None:
    """Run on these processors only, and so all threads that are started from now on; none means all."""
    if cpus:
        try:
            os.sched_setaffinity(0, cpus)
        except OSError:
            listed = ", ".join(map(str, cpus))
            raise PackageRefused(
                f"The agent may use none of the processors {listed}; correct the setting cpus."
            ) from None


def _end_with_parent() -> None:
    """End this process as soon as the agent ends, however it ends, also in the middle of a job."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
    os._exit(1)


class _Model:
    """A loaded model and its slots."""

    def __init__(self, found: Found, options: SessionOptions, frames: list[Frames], tell: Tell) -> None:
        package = found.package
        if package is None:
            raise PackageRefused(found.refusal)
        model = packages.read_model(package)
        _check_unchanged(found)
        session = backends.open_session(model, options, tell)
        self.provider = session.provider
        threads = options.threads or len(options.cpus)
        self.slots = [_Slot(found.name, package.manifest, session.another(), threads, *one) for one in frames]
        self.warm_up = self.slots[0].pipeline.warm_up()
        if len(self.slots) > 1:
            self._warm_up_together()
        # What loading took and the calls will not need: a fifth of the process.
        del model
        malloc.give_back()

    def _warm_up_together(self) -> None:
        """Let all slots run at once, so that what memory this takes is taken before the model is RUNNING."""
        with futures.ThreadPoolExecutor(len(self.slots)) as pool:
            for warm_up in [pool.submit(slot.pipeline.warm_up) for slot in self.slots]:
                warm_up.result()

    def end_jobs(self, told: int) -> None:
        """End the run of each job whose slot and number are told, if it still runs; a thread of its own."""
        while number := os.read(told, NUMBER.size):
            slot, job = NUMBER.unpack(number)
            self.slots[slot].end(job)


class _Slot:
    """One of the calls that a model does at once, and the memory it works in."""

    def __init__(
        self,
        name: str,
        manifest: Manifest,
        session: InterruptibleSession,
        threads: int,
        inbox: NDArray[np.uint8],
        outbox: NDArray[np.uint8],
    ) -> None:
        self._name = name
        self._session = session
        self._timed = Timed(session)
        self.pipeline = Pipeline(manifest, graphs.of(manifest, self._timed), threads)
        self._inbox, self._outbox = inbox, outbox
        self._frame: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._mask: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._copied = 0.0
        # The number of the job in hand; 0 is none.
        self._job = 0
        self._ended = False
        self._lock = threading.Lock()

    def end(self, job: int) -> None:
        """End the run of a job, if it still runs."""
        with self._lock:  # so that it cannot be the next job's run that is ended
            if self._job == job:
                self._ended = True
                self._session.terminate()

    def answer(self, job: Job) -> Answer | Failure | Broken:
        """Do one job; whatever goes wrong becomes a Failure, so that the next job finds the worker in order.

        Only after a failure of the GPU, which is Broken, there is no next one.
        """
        with self._lock:
            self._job, self._ended = job.number, False
        answer = self._judge(job)
        with self._lock:
            self._job = 0
        return answer

    def _judge(self, job: Job) -> Answer | Failure | Broken:
        try:
            return self._do(job)
        except EdgeAgentError as error:
            if self._ended:
                text = "The model did not answer within its call_timeout and was interrupted."
                return Failure(job.number, InferenceHung, text)
            if isinstance(error, InferenceFailed) and error.cause:
                logger.warning("%s: the model failed on an image: %s", self._name, error.cause, extra=LIMITED)
            return Failure(job.number, type(error), str(error))
        except AcceleratorFailed as failure:
            logger.error("%s: the GPU failed, and the process ends: %s", self._name, failure)  # noqa: TRY400  (no traceback)
            return Broken(job.number, str(failure))
        except MemoryError as error:
            logger.warning("%s: the model ran out of memory on an image: %s", self._name, error)
            return Failure(job.number, InferenceFailed, "The model ran out of memory on the image.")
        except Exception:  # the boundary: the cause belongs into the log, not to the caller
            logger.exception("%s: the model failed on an image", self._name, extra=LIMITED)
            text = "The model failed on the image; the agent's log has the cause."
            return Failure(job.number, InferenceFailed, text)

    def _do(self, job: Job) -> Answer:
        begin = time.perf_counter()
        verdict, inline_mask = self._judged(job)
        marks = (begin, self._copied, self._timed.begin, self._timed.end, time.perf_counter())
        stages = tuple(end - start for start, end in itertools.pairwise(marks))
        return Answer(job.number, verdict, inline_mask, stages)

    def _judged(self, job: Job) -> tuple[Verdict, int]:
        """Return the verdict, and how many bytes of the mask are in the outbox."""
        image = job.image
        target = MaskTarget(job.mask, image.packed_size) if job.mask else None
        try:
            pixels = self._pixels(image, target)
            self._copied = time.perf_counter()
            verdict, class_map = self.pipeline.judge(pixels)
            if class_map is None:
                return verdict, 0
            if target is None:
                self.pipeline.paint(class_map, _rows(self._outbox, image))
                return verdict, image.packed_size
            self._mask = _at_least(self._mask, image.packed_size)
            self.pipeline.paint(class_map, _rows(self._mask, image))
            target.write(self._mask.data[: image.packed_size])
            return verdict, 0
        finally:
            if target:
                target.close()

    def _pixels(self, image: Image, target: MaskTarget | None) -> NDArray[np.uint8]:
        """Return the image as height x width x 3 (uint8), without its padding; a client cannot change it any more."""
        size = image.stride * image.height
        source = self._inbox
        if image.segment:
            self._frame = source = _at_least(self._frame, size)
            bitmaps.copy_in(image, source.data[:size], target)
        rows = source[:size].reshape(image.height, image.stride)
        return rows[:, : image.row].reshape(image.height, image.width, bitmaps.CHANNELS)


def _check_unchanged(found: Found) -> None:
    """Refuse a package that is not the one whose manifest was read: it was changed between the check and the load."""
    try:
        unchanged = packages.sign(found.folder, found.root) == found.signature
    except OSError:
        unchanged = False
    if not unchanged:
        raise PackageRefused(
            "The package changed while it was being loaded; start the model again when it is complete."
        )


def _at_least(buffer: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    return buffer if len(buffer) >= size else np.empty(size, np.uint8)


def _rows(buffer: NDArray[np.uint8], image: Image) -> NDArray[np.uint8]:
    return buffer[: image.packed_size].reshape(image.height, image.width, bitmaps.CHANNELS)
