"""A worker's jobs, each of which is answered and ended by its number, and what its memory takes of the agent's files."""

import mmap
import os
import threading
from types import SimpleNamespace

import pytest

from edge_agent import bitmaps, worker
from edge_agent.bitmaps import Image
from edge_agent.errors import AcceleratorFailed, InferenceFailed, InferenceHung, InvalidArgument
from edge_agent.jobs import Answer, Broken, Failure, Job, Verdict
from support.open_files import open_files

JOB = Job(Image(2, 2, 6, None), None, 7)


@pytest.fixture
def slot():
    """A slot without a model; what is done for a job is `does`."""
    made = object.__new__(worker._Slot)
    made._name = "board"
    made._lock = threading.Lock()
    made._job, made._ended = 0, False
    made.told = []
    made._session = SimpleNamespace(terminate=lambda: made.told.append(made._job))
    return made


def test_a_verdict_names_its_job(slot):
    verdict = Verdict(False, 1.0, 0.0, 0.5)
    slot._judged = lambda _: (verdict, 12)
    slot._timed = SimpleNamespace(begin=0.0, end=0.0)
    slot._copied = 0.0
    answer = slot.answer(JOB)
    assert isinstance(answer, Answer)
    assert (answer.number, answer.verdict, answer.inline_mask) == (7, verdict, 12)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidArgument("no"), Failure),
        (InferenceFailed("no"), Failure),
        (MemoryError(), Failure),
        (ZeroDivisionError(), Failure),
        (AcceleratorFailed("no"), Broken),
    ],
    ids=lambda one: type(one).__name__,
)
def test_so_does_whatever_goes_wrong(slot, error, kind):
    def fail(_: Job) -> None:
        raise error

    slot._do = fail
    answer = slot.answer(JOB)
    assert (type(answer), answer.number) == (kind, 7)


def test_a_job_is_ended_by_its_number_and_no_other(slot):
    def hang(_: Job) -> None:
        for number in (6, 8, 0, 7):
            slot.end(number)
        raise InferenceFailed("it was told to end")

    slot._do = hang
    answer = slot.answer(JOB)
    assert slot.told == [7]
    assert (answer.number, answer.error) == (7, InferenceHung)
    slot.end(7)
    assert slot.told == [7], "it does not run any more"


def test_memory_takes_one_file():
    fd = os.memfd_create(name := f"inbox-{os.urandom(4).hex()}")
    os.ftruncate(fd, bitmaps.LARGEST_IMAGE)
    os.pwrite(fd, b"\x07", 5)
    memory = worker._map(fd, mmap.PROT_READ)
    assert [target for _, target in open_files() if name in target] == [f"/memfd:{name} (deleted)"], "the mapping's own"
    assert (memory[5], len(memory)) == (7, bitmaps.LARGEST_IMAGE)
