"""P1: whatever a package's manifest or model holds, it costs that package only.

1. One agent serves a sound model and many packages whose manifest or ONNX model has been changed at random: values of other
   types, huge or missing ones, keys there twice, nesting without end, control characters and characters that turn the
   direction of a text, other operators, shapes and versions, flipped bits, bytes that are gone or there twice. Every other
   manifest has a `package` block, and a right digest of itself where the change has left one.
2. Each of them is started. It is FAILED, or its start is refused, with sentences of one line and of a bounded length; or it
   runs and judges an image. Then the verdict has numbers and no name that a terminal would act on, or the call fails with
   a sentence.
3. All along the agent and the sound model's worker are the processes that they were, and the sound model judges rightly. In
   the end no other worker is left, the log has no traceback, and the agent ends as it always does.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest

from edge_agent._proto import edge_agent_pb2 as pb2
from promises.mutated_packages import mutants
from support import packages
from support.agent import PLENTY, Agent
from support.broken import SIZE
from support.calls import EXHAUSTED, INTERNAL, INVALID, OK, outcome, request
from support.neighbour import Neighbour
from support.promises import Promise, Promises
from support.sabotage import sabotaged
from support.waiting import until

PROMISE = Promise(
    id="P1",
    text="mutated model files and manifests: FAILED with a sentence or a verdict, the agent and its other models unharmed",
    case="a package whose model a worker was started for, or whose manifest the agent has refused",
    full=1000,
    fast=60,
)
# One in so many is a model's, the others are manifests.
MODELS = {True: 2, False: 5}

SOUND = "sound"
MEMORY_LIMIT = 256 << 20
LONGEST_TOLD = 800
# How many packages may fail or run before the sound model is looked at again.
ROUND = 20
# In place of each package's own.
NAME = "manifest-xyz"
# Frames of other sizes are asked for by the sentence that refuses the usual one.
WANTED = re.compile(r"training image size, (\d+)x(\d+)\.")
SHORTEST_SIDE, LONGEST_SIDE = 64, 4096
# After these come the runtime's own words, however they end.
RUNTIMES_WORDS = re.compile("(ONNX Runtime cannot load the model|The model failed its warm-up): .")
NO_NAME = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def is_told_well(text: str, folder: Path) -> None:
    """Fail unless a text is what operators are to read: of one line, not long, ended, without paths and tracebacks."""
    assert text, "nothing is told"
    assert text.isprintable(), f"not one line: {text!r}"
    assert len(text) <= LONGEST_TOLD, f"{len(text)} characters: {text!r}"
    assert text.endswith(".") or RUNTIMES_WORDS.match(text), f"no sentence: {text!r}"
    assert str(folder) not in text, f"a path: {text!r}"
    assert "Traceback" not in text
    assert "log has the cause" not in text or "on the image" in text, f"a cause that was not expected: {text!r}"


class Bench:
    """An agent with a sound model that runs, and the mutants."""

    def __init__(self, agent: Agent, names: list[str], folder: Path) -> None:
        self.agent = agent
        self.names = names
        self.seen: Counter[str] = Counter()
        self._folder = folder
        self._stub = agent.stub()
        agent.run_model(SOUND)
        self.sound = Neighbour(agent, SOUND)

    def try_all(self) -> None:
        for number, name in enumerate(self.names):
            self.seen[self.try_one(name)] += 1
            if number % ROUND == 0:
                self.sound.check()
        self.sound.check()
        assert self.sound.other_workers() == []

    def try_one(self, name: str) -> str:
        """Start a mutant, and let it judge an image where it runs; return what came of it."""
        description = self.agent.describe(name)
        assert re.fullmatch(r"[!-~]{1,2048}", description.lookout_vision_model_arn)
        if description.status == pb2.FAILED:
            is_told_well(description.status_message, self._folder)
            return "refused at once"
        code, details, _ = outcome(self._stub.StartModel, pb2.StartModelRequest(model_component=name))
        if code != OK:
            assert code == EXHAUSTED, (name, code, details)
            is_told_well(details, self._folder)
            return "not started"
        until(lambda: self.agent.state(name) != "STARTING", f"{name} has started")
        description = self.agent.describe(name)
        if description.status == pb2.FAILED:
            is_told_well(description.status_message, self._folder)
            return "failed to load"
        assert description.status == pb2.RUNNING, name
        if description.status_message:
            is_told_well(description.status_message, self._folder)
        judged = self._judge(name, SIZE)
        if self.agent.state(name) == "RUNNING":
            self._stub.StopModel(pb2.StopModelRequest(model_component=name), timeout=PLENTY)
        return judged

    def _judge(self, name: str, size: tuple[int, int]) -> str:
        half = size[1] // 2
        image = bytes(3 * size[0] * half) + b"\x99" * (3 * size[0] * (size[1] - half))
        asked = request(name, *size, image)
        code, details, response = outcome(self._stub.DetectAnomalies, asked)
        if code == OK:
            is_a_verdict(response.detect_anomaly_result, size)
            return "judged"
        is_told_well(details, self._folder)
        wanted = WANTED.search(details) if code == INVALID else None
        if wanted and size == SIZE and all(SHORTEST_SIDE <= int(side) <= LONGEST_SIDE for side in wanted.groups()):
            return self._judge(name, (int(wanted[1]), int(wanted[2])))
        assert code == INTERNAL or wanted, (name, code, details)
        return "failed on an image" if code == INTERNAL else "no image fits"

    def ended(self) -> dict[str, Any]:
        """End the agent; return what it has counted."""
        print(f"  {dict(self.seen)}")
        assert "Traceback" not in self.agent.log(), "the log has a traceback"
        assert self.agent.stop() == 0
        status = self.agent.status()
        assert {one["code"] for one in status["calls"] if one["model"] == SOUND} == {"OK"}
        assert self.agent.calls(SOUND) == self.sound.answered
        return status


def is_a_verdict(result: pb2.DetectAnomalyResult, size: tuple[int, int]) -> None:
    assert math.isfinite(result.anomaly_score)
    assert math.isfinite(result.anomaly_threshold)
    assert 0 <= result.confidence <= 1
    for one in result.anomalies:
        assert one.name
        assert not NO_NAME.search(one.name), f"a terminal would act on the name {one.name!a}"
        assert re.fullmatch("#[0-9A-F]{6}", one.pixel_anomaly.hex_color)
    areas = [one.pixel_anomaly.total_percentage_area for one in result.anomalies]
    assert not areas or sum(areas) == pytest.approx(1, abs=1e-3)
    assert len(result.anomaly_mask.byte_data) in (0, 3 * size[0] * size[1])


def whole(name: str, model: bytes, *, block: bool) -> dict[str, Any]:
    """Return a manifest of a model with both heads, with all that a manifest may say."""
    content = packages.manifest(
        segmentation=True,
        pixel_names=("background", "bright"),
        classification_logic="cls_head",
        calibrated=True,
        calibrator_scaling=-6,
        calibrator_shift=3,
        max_val_score=1.0,
        seg_recall_bias=0.0,
        raw_image_shape=[64, 64],
    )
    if block:
        content["package"] = {
            "format": 1,
            "component": {"name": name, "version": "1.0.0"},
            "model_arn": "arn:aws:lookoutvision:eu-west-1:1:model/boards/7",
            "manifest_sha256": "0" * 64,
            "files": {"mochi/model.onnx": {"size": len(model), "sha256": hashlib.sha256(model).hexdigest()}},
            "classes": [{"name": "background"}, {"name": "bright", "hex-color": "#0A0B0C"}],
            "any_image_size": False,
            "peak_memory_bytes": 64 << 20,
            "warm_up_seconds": 0.1,
            "made_from": {"kind": "test"},
        }
    return content


def written(folder: Path, manifest: bytes, model: bytes) -> str:
    (folder / "mochi").mkdir(parents=True)
    (folder / "mochi" / "model.onnx").write_bytes(model)
    (folder / "manifest.json").write_bytes(manifest)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder.name


def mutated_manifests(models: Path, cases: int, chance: Random) -> list[str]:
    model = packages.brightness()
    names = [f"manifest-{number}" for number in range(cases)]
    # A block has the name in it, so what has been made is given another one.
    made = [mutants.manifests(whole(NAME, model, block=block), chance) for block in (False, True)]
    for number, name in enumerate(names):
        written(models / name, mutants.renamed(next(made[number % 2]), NAME, name), model)
    return names


def mutated_models(models: Path, cases: int, chance: Random) -> list[str]:
    manifest = json.dumps(whole("", b"", block=False)).encode()
    made = enumerate(islice(mutants.models(packages.brightness(), chance), cases))
    return [written(models / f"model-{number}", manifest, model) for number, model in made]


@pytest.fixture
def models(folder) -> Iterator[Path]:
    packages.segmenter(folder / "models" / SOUND, SIZE)
    (folder / "models").chmod(0o755)
    return folder / "models"


@contextmanager
def bench(models: Path, names: list[str], **env: str) -> Iterator[Bench]:
    """Yield an agent that has looked at the packages, and is not busy with more looks."""
    with closing(Agent(models, memory_limit=MEMORY_LIMIT, restore=False, scan_interval=3600)) as agent:
        yield Bench(agent.start(**env), names, models)


def test_costs_itself_only(promises: Promises, models):
    with promises.run(PROMISE) as run:
        loaded = mutated_models(models, run.declared // MODELS[run.full], run.random)
        read = mutated_manifests(models, run.declared - len(loaded), run.random)
        with bench(models, [*loaded, *read]) as at:
            at.try_all()
            status = at.ended()
        assert at.seen.keys() >= {"refused at once", "failed to load", "judged"}
        started = {name for name, events in status["workers"].items() if events.get("started")}
        failed = {one["model"] for one in status["models"] if one["state"] == "FAILED"}
        refused = {one["model"] for one in status["calls"] if one["code"] == "RESOURCE_EXHAUSTED"}
        run.count(len(started & set(loaded)) + len((started | failed | refused) & set(read)))


# An agent that takes any name, tells all, and stumbles over what it does not know.
DAMAGES = """
import re
from edge_agent import classes, manifest, packages
from edge_agent.errors import PackageRefused
stage = manifest._stage
classes.UNSAFE = re.compile("(?!)")
def telling(keys, *others):
    if len(keys.values["type"]) > 1000:
        raise PackageRefused(f"The type is {keys.values['type']}.")
    if keys.values["type"] == "stumble":
        raise RecursionError
    return stage(keys, *others)
manifest._stage = telling
packages._sentence = str
"""


def test_names_sentences_and_tracebacks_are_noticed(models, folder):
    model = packages.brightness()
    content = {name: whole(name, model, block=False) for name in ("named", "long", "stumbles")}
    content["named"]["model_graph"]["pixel_level_classes"]["names"][1] = "\x1b[31mdent"
    content["long"]["model_graph"]["stages"][0]["type"] = "x" * 5000
    content["stumbles"]["model_graph"]["stages"][0]["type"] = "stumble"
    for name, manifest in content.items():
        written(models / name, json.dumps(manifest).encode(), model)
    with bench(models, [], **sabotaged(folder, DAMAGES)) as at:
        with pytest.raises(AssertionError, match="a terminal would act on the name"):
            at.try_one("named")
        with pytest.raises(AssertionError, match="2003 characters"):
            at.try_one("long")
        with pytest.raises(AssertionError, match="a cause that was not expected"):
            at.try_one("stumbles")
        with pytest.raises(AssertionError, match="the log has a traceback"):
            at.ended()


def test_notices_what_is_no_sentence_and_no_verdict(folder):
    for text in (
        "",
        "two\nlines.",
        "x" * 5000 + ".",
        "no end",
        f"In {folder}/models it is.",
        "Traceback (most recent).",
    ):
        with pytest.raises(AssertionError):
            is_told_well(text, folder)
    is_told_well("manifest.json is not JSON.", folder)
    for wrong in ({"anomaly_score": math.nan}, {"confidence": 1.1}, {"anomalies": [pb2.Anomaly(name="\u202e")]}):
        with pytest.raises(AssertionError):
            is_a_verdict(pb2.DetectAnomalyResult(**wrong), SIZE)
