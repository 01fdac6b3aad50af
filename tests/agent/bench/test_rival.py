"""The bare model beside the agent: whose packages it loads, and that it does what a worker does."""

import os
import time
from pathlib import Path

import pytest

from edge_agent.bench.child import Refused
from edge_agent.bench.frames import noise
from edge_agent.bench.rival import Rival
from edge_agent.bench.status import AgentStatus
from edge_agent.bench.subject import Subject, look, unknown
from edge_agent.jobs import STAGES
from support import packages
from support.calls import expected_mask, picture
from support.users import I_AM_ROOT, OTHER


def setup(package: Path, name: str, **more) -> dict:
    place = {"segment": name, "width": 64, "height": 64, "package": str(package)}
    return {**place, "uid": None, "options": {"threads": 1, "spinning": False}, **more}


def test_takes_turns_and_writes_masks(folder, segment):
    pixels = picture(64, 64)
    name = segment(2 * pixels.nbytes, pixels.tobytes())
    rival = Rival(setup(packages.segmenter(folder / "board"), name))
    begin = time.perf_counter()
    answer = rival({"kind": "turn", "seconds": 0.05})
    assert answer["good"] == len(answer["times"]) + 1 > 1
    assert sum(answer["times"]) < time.perf_counter() - begin
    mask = (Path("/dev/shm") / name.removeprefix("/")).read_bytes()[pixels.nbytes :]
    assert mask == expected_mask(pixels).tobytes()
    assert len(rival({"kind": "turn", "seconds": 0.0})["times"]) == 1
    stages = rival({"kind": "stages"})
    assert tuple(stages) == STAGES
    assert all(value > 0 for value in stages.values())


def test_a_package_that_is_none_is_refused_in_a_sentence(folder):
    packages.write(folder / "broken", packages.manifest(), b"not ONNX")
    for package in (folder / "broken", folder / "nowhere"):
        with pytest.raises(Refused):
            Rival(setup(package, "none"))


@pytest.mark.skipif(not I_AM_ROOT, reason="needs root, to give a package away")
def test_root_loads_nobody_elses_package_unasked(folder):
    package = packages.segmenter(folder / "board")
    for path in (package, *package.rglob("*")):
        os.chown(path, OTHER.uid, OTHER.gid)
    assert f"belongs to uid {OTHER.uid}" in look(package, None).refusal
    assert look(package, OTHER.uid).package
    subject = Subject("board", folder / "a.sock", 0, AgentStatus(folder / "a.sock", folder, "board"))
    assert subject.beside(package).uid == OTHER.uid, "whoever names it vouches for it"
    assert subject.beside(package).image_size() == (64, 64)
    assert subject.beside(None) is None


def test_there_is_no_bare_model_beside_one_on_a_gpu(folder, monkeypatch):
    package = packages.segmenter(folder / "board")
    subject = Subject("board", folder / "a.sock", 1, AgentStatus(folder / "a.sock", folder, "board"))
    told = {"package": str(package), "accelerator": "cpu"}
    monkeypatch.setattr(AgentStatus, "model", lambda _: told)
    assert subject.beside(package)
    told["accelerator"] = "cuda"
    assert subject.beside(package) is None
    assert "There is no comparison with the bare model, which is made on the CPU only." in unknown(subject, None)


def test_noise_is_the_same_each_time():
    first = noise((64, 80))
    assert first == noise((64, 80))
    assert first.bytes_each == len(first.pixels[0]) == 3 * 64 * 80
