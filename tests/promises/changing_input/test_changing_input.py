"""S7: a client that changes its image during the call gets the verdict on some mix of what it wrote, and never an error.

1. An image is in a segment whose rows are written over and over again, each in one of two colours that differ in red; the
   calls of the other threads have no part in that. Only the red decides about a pixel of the mask.
2. Each call is answered OK, and what it says is the truth about one image: every pixel of the mask is one of the two, the
   areas are those of the mask, and the score is that of the very pixels that the mask shows. So the image was read once.
3. The mask is given inline or in a segment, and rows are packed or padded.
4. Many of the images were torn: else nothing was tried.
"""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from support import packages
from support.agent import PLENTY, Agent, serving
from support.calls import OK, outcome, request
from support.promises import Promise
from support.sabotage import sabotaged
from support.waiting import until

PROMISE = Promise(
    id="S7",
    text="an image that its client changes during the call gets a verdict of torn rows at worst, never an exception",
    case="a call that the agent has counted as OK",
    full=5000,
    fast=120,
)
MODEL = "board"
# An odd width, so that rows can be padded.
WIDTH, HEIGHT = 129, 128
PACKED = 3 * WIDTH
PADDED = (PACKED + 3) // 4 * 4
PIXELS = WIDTH * HEIGHT
# Red of the two colours, below and above one half; green and blue of both.
DARK, BRIGHT, OTHER = 40, 215, 130
MARKED = np.array([0x23, 0xA4, 0x36], np.uint8)
WHITE = 255
TORN = 0.1  # of the calls at least
# Writes rows as long as its parent lives: one colour from the first row to the last, then the other.
WRITER = """
import mmap, os, sys
path, height, stride, *colours = sys.argv[1:]
height, stride = int(height), int(stride)
with open(path, "r+b") as file:
    memory = mmap.mmap(file.fileno(), 0)
rows = [(bytes.fromhex(one) * (stride // 3 + 1))[:stride] for one in colours]
parent = os.getppid()
# Seldom asked for: a process is most often halted when it calls the system, and the image is not torn then.
while os.getppid() == parent:
    for row in 500 * rows:
        for start in range(0, height * stride, stride):
            memory[start : start + stride] = row
    memory[height * stride] = 1
"""


class Verdicts:
    """What a model says of images that change."""

    def __init__(self, agent: Agent) -> None:
        self.seen: Counter[str] = Counter()
        self._stub = agent.stub()

    def call(self, image: str, stride: int, mask: str | None) -> None:
        """Have the image judged; fail unless the verdict is the truth about one mix of the two colours."""
        fields = {"mask": (mask, PACKED * HEIGHT, 0)} if mask else {}
        asked = request(MODEL, WIDTH, HEIGHT, handle=(image, stride * HEIGHT, 0), **fields)
        code, details, response = outcome(self._stub.DetectAnomalies, asked)
        assert code == OK, f"a changing image is answered {code}: {details}"
        result = response.detect_anomaly_result
        pixels = (Path("/dev/shm") / mask).read_bytes() if mask else result.anomaly_mask.byte_data
        marked = self._marked(np.frombuffer(pixels, np.uint8).reshape(HEIGHT, WIDTH, 3))
        share = marked.sum() / PIXELS
        areas = {one.name: one.pixel_anomaly.total_percentage_area for one in result.anomalies}
        told = {"background": 1 - share, "bright": share}
        assert areas == pytest.approx({name: area for name, area in told.items() if area}, abs=1e-6), "areas"
        red = DARK + (BRIGHT - DARK) * share
        expected = (red + 2 * OTHER) / 3 / WHITE
        assert result.anomaly_score == pytest.approx(expected, abs=1e-4), "the score is of another image than the mask"
        assert result.is_anomalous == (round(result.anomaly_score, 4) >= round(result.anomaly_threshold, 4))
        whole = marked.all(axis=1) | ~marked.any(axis=1)
        self.seen["in one colour" if share in (0, 1) else "torn between rows" if whole.all() else "torn in a row"] += 1

    @staticmethod
    def _marked(mask: np.ndarray) -> np.ndarray:
        """Return which pixels are marked, height x width."""
        marked = (mask == MARKED).all(axis=2)
        assert (marked | (mask == WHITE).all(axis=2)).all(), "the mask has a colour of neither class"
        return marked


@pytest.fixture(scope="module")
def models(module_folder) -> Path:
    return packages.segmenter(module_folder / "models" / MODEL, (WIDTH, HEIGHT)).parent


@contextmanager
def changing(segment, stride: int) -> Iterator[str]:
    """Yield the name of a segment whose rows are written over and over again."""
    size = stride * HEIGHT
    name = segment(size + 1).lstrip("/")
    path = Path("/dev/shm") / name
    colours = [bytes([red, OTHER, OTHER]).hex() for red in (DARK, BRIGHT)]
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(HEIGHT), str(stride), *colours])
    try:
        until(lambda: path.read_bytes()[size], "the image has been written again and again", PLENTY)
        yield name
        assert writer.poll() is None
    finally:
        writer.kill()
        writer.wait()


def judge(verdicts: Verdicts, segment, calls: int) -> None:
    """Have images judged that change: packed or padded, the mask inline or in a segment."""
    mask = segment(PACKED * HEIGHT).lstrip("/")
    for stride in (PACKED, PADDED):
        with changing(segment, stride) as image:
            for number in range(calls // 2):
                verdicts.call(image, stride, mask if number % 2 else None)


def test_changing_images(promises, models, segment):
    with promises.run(PROMISE) as run, serving(models) as agent:
        agent.run_model(MODEL)
        verdicts = Verdicts(agent)
        judge(verdicts, segment, run.declared)
        print(f"  {dict(verdicts.seen)}")
        torn = verdicts.seen.total() - verdicts.seen["in one colour"]
        assert torn >= TORN * run.declared, "hardly any image changed while it was read"
        assert agent.stop() == 0
        run.count(agent.calls(MODEL, "OK"))
        assert agent.calls() == agent.calls(MODEL, "OK")
        assert agent.counted(MODEL, "started") == 1
        assert "Traceback" not in agent.log()


# An agent that reads the image twice, or does not like one that is torn, as a file says.
DAMAGES = """
from dataclasses import replace
from pathlib import Path
from edge_agent.pipeline import Pipeline
from edge_agent.worker import _Slot
DAMAGE = Path({damage!r})
judge, pixels = Pipeline.judge, _Slot._pixels
def read(worker, *told):
    worker.pipeline.again = lambda: pixels(worker, *told)
    return pixels(worker, *told)
def judged(pipeline, image):
    damage, (verdict, class_map) = DAMAGE.read_text(), judge(pipeline, image)
    if damage == "exception" and len(verdict.anomalies) == 2:
        raise ValueError("torn")
    if damage.startswith("read twice"):
        second, class_map = judge(pipeline, pipeline.again())
        verdict = verdict if damage == "read twice" else replace(second, score=verdict.score)
    return verdict, class_map
Pipeline.judge, _Slot._pixels = judged, read
"""
CONTROLS = {
    "exception": "a changing image is answered 13: The model failed on the image",
    "read twice": "^areas",
    "read twice but for the score": "the score is of another image than the mask",
}


def test_an_image_that_is_read_twice_or_disliked_is_noticed(models, segment, folder):
    damage = folder / "damage"
    damage.write_text("")
    damage.chmod(0o644)
    with closing(Agent(models)) as agent:
        agent.start(**sabotaged(folder, DAMAGES.format(damage=str(damage))))
        agent.run_model(MODEL)
        judge(Verdicts(agent), segment, 4)
        for done, noticed in CONTROLS.items():
            damage.write_text(done)
            with pytest.raises(AssertionError, match=noticed):
                judge(Verdicts(agent), segment, 200)
