"""TorchScript to packages: converted by PyTorch in a process with limits, compared with PyTorch itself. `make test-torch`."""

import json
import os
import pickle
import resource
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edge_agent.client import EdgeAgentClient
from model_packager import destinations, packaging, torchscript
from model_packager.errors import PackagingRefused
from support import packages, shared
from support.agent import serving

pytestmark = [
    pytest.mark.torch,
    # PyTorch says of what the field's models were made with that it is deprecated.
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]

SIZE = (72, 64)


class Mochi(torch.nn.Module):
    """A network with mochi's outputs, in its order."""

    def __init__(self, classification: bool = True, segmentation: bool = True, wide: int = 8, deep: int = 0):
        super().__init__()
        torch.manual_seed(7)
        self.classification, self.segmentation = classification, segmentation
        layers = [torch.nn.Conv2d(3, wide, 3, stride=4, padding=1)]
        for _ in range(deep):
            layers += [torch.nn.ReLU(), torch.nn.Conv2d(wide, wide, 3, padding=1)]
        self.body = torch.nn.Sequential(*layers)
        self.mask = torch.nn.Conv2d(wide, 2, 1)
        self.head = torch.nn.Linear(wide, 2)

    def forward(self, x):
        features = torch.relu(self.body(x))
        scores = torch.softmax(self.head(features.mean(dim=(2, 3))), dim=1)
        if self.classification and self.segmentation:
            return self.mask(features), scores
        return scores if self.classification else self.mask(features)


def saved(path: Path, module) -> Path:
    width, height = SIZE
    torch.jit.trace(module.eval(), torch.zeros(1, 3, height, width)).save(path)
    return path


def content(classification=True, segmentation=True, **stage) -> dict:
    names = ("background", "dent") if segmentation else ()
    made = packages.manifest(
        size=SIZE, classification=classification, segmentation=segmentation, pixel_names=names, normalize=True, **stage
    )
    del made["runtime"], made["runtime_artifact"]
    return made


def order(source: Path, output: Path, **options) -> dict:
    platform = {"Os": "LINUX", "Arch": "X86_64"}
    greengrass = {"ComponentName": "board", "TargetPlatform": platform, "CompilerOptions": '{"mcpu": "x86-64"}'}
    request = {"ProjectName": "p", "ModelVersion": "1", "JobName": "job", "Configuration": {"Greengrass": greengrass}}
    return {"request": request, "output": str(output), "source": str(source), "options": options}


def run(source: Path, output: Path, **options) -> dict:
    work = output.parent / f"work-{os.urandom(4).hex()}"
    work.mkdir()
    return dict(packaging.run(order(source, output, **options), work, destinations.of(str(output)), lambda *_: None))


def pair(folder: Path, module, made: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    saved(folder / "mochi.pt", module)
    (folder / "manifest.json").write_text(json.dumps(made))
    return folder


def tarball(path: Path, folder: Path) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, arcname=".")
    return path


@pytest.mark.parametrize("heads", [(True, True), (True, False), (False, True)])
def test_each_pair_of_heads_agrees_with_torch(tmp_path, heads):
    source = pair(tmp_path / "source", Mochi(*heads), content(*heads))
    result = run(source, tmp_path / "out")
    assert result["Parity"]["images"] == 8
    assert result["Parity"]["verdict_flips"] == 0
    assert result["Parity"]["largest_score_difference"] < 1e-5
    assert (result["Parity"]["largest_mask_difference"] is None) == (not heads[1])


def test_parity_is_with_torch_and_not_with_the_conversion(tmp_path, monkeypatch):
    """What is wrong in the ONNX model is found, since the other side never was ONNX."""
    source = pair(tmp_path / "source", Mochi(), content())
    convert = torchscript.convert

    def turned(*arguments):
        path, readings = convert(*arguments)
        return path, [type(one)(1 - one.score, one.class_map) for one in readings]

    monkeypatch.setattr(torchscript, "convert", turned)
    with pytest.raises(PackagingRefused, match="a score differs by"):
        run(source, tmp_path / "out")
    assert not (tmp_path / "out" / "board").exists()


def test_training_output_with_the_pair(tmp_path):
    pair(tmp_path / "t" / "export_artifacts", Mochi(), content())
    (tmp_path / "t" / "checkpoints").mkdir()
    (tmp_path / "t" / "checkpoints" / "last.ckpt").write_bytes(b"never looked at")
    (tmp_path / "t" / "mochi.pth").write_bytes(b"never looked at")
    result = run(tarball(tmp_path / "model.tar.gz", tmp_path / "t"), tmp_path / "out")
    assert result["Source"] == "training output model.tar.gz"


def test_training_output_without_the_pair_needs_a_manifest(tmp_path):
    top = tmp_path / "t"
    top.mkdir()
    saved(top / "mochi.pt", Mochi())
    (top / "mochi.json").write_text('{"stages": [{"type": "mochi", "input_shape": [1, 3, 64, 72]}]}')
    archive = tarball(tmp_path / "model.tar.gz", top)
    with pytest.raises(PackagingRefused, match="in a pickle, which is never opened. Give the manifest with --manifest"):
        run(archive, tmp_path / "out")
    (tmp_path / "mine.json").write_text(json.dumps(content()))
    assert run(archive, tmp_path / "out", manifest=str(tmp_path / "mine.json"))["Parity"]["verdict_flips"] == 0


def test_zip_and_single_file(tmp_path):
    folder = pair(tmp_path / "source", Mochi(), content())
    with zipfile.ZipFile(tmp_path / "component.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
    run(tmp_path / "component.zip", tmp_path / "a")
    run(folder / "mochi.pt", tmp_path / "b", manifest=str(folder / "manifest.json"))
    with pytest.raises(PackagingRefused, match="--manifest FILE"):
        run(folder / "mochi.pt", tmp_path / "c")
    saved(folder / "second.pt", Mochi())
    with pytest.raises(PackagingRefused, match="exactly one is needed"):
        run(folder, tmp_path / "d")


def test_compiled_component_with_the_model_that_it_was_made_from(tmp_path):
    made = tmp_path / "component"
    (made / "mochi").mkdir(parents=True)
    for name in ("compiled.so", "compiled.params", "compiled.meta", "libdlr.so", "manifest"):
        (made / "mochi" / name).write_bytes(b"\x7fELF")
    (made / "manifest.json").write_text(json.dumps(content()))
    with pytest.raises(PackagingRefused, match="cannot be turned back into a model.*--model FILE"):
        run(made, tmp_path / "out")
    model = saved(tmp_path / "mochi.pt", Mochi())
    result = run(made, tmp_path / "out", model=str(model))
    assert result["Source"] == "compiled component component with mochi.pt"


def test_same_input_same_bytes(tmp_path):
    source = pair(tmp_path / "source", Mochi(), content())
    results = [run(source, tmp_path / name) for name in ("a", "b")]
    assert results[0]["Sha256"] == results[1]["Sha256"]


class Canary:
    """A pickle of this makes a file when it is opened."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_is_refused_and_not_opened(tmp_path):
    canary = tmp_path / "canary"
    (tmp_path / "mochi.pt").write_bytes(pickle.dumps(Canary(canary)))
    folder = pair(tmp_path / "source", Mochi(), content())
    (folder / "mochi.pt").write_bytes((tmp_path / "mochi.pt").read_bytes())
    for source in (tmp_path / "mochi.pt", folder):
        with pytest.raises(PackagingRefused, match="never opened"):
            run(source, tmp_path / "out", manifest=str(folder / "manifest.json"))
    torch.save({"state": torch.zeros(3)}, folder / "mochi.pt")  # a zip, and a checkpoint all the same
    with pytest.raises(PackagingRefused, match="never opened"):
        run(folder, tmp_path / "out")
    assert not canary.exists()
    pickle.loads(pickle.dumps(Canary(canary)))  # the control: opened, it does
    assert canary.exists()


def test_a_pickle_within_torchscript_does_nothing(tmp_path):
    canary = tmp_path / "canary"
    folder = pair(tmp_path / "source", Mochi(), content())
    good = folder / "mochi.pt"
    for inner in ("data.pkl", "constants.pkl"):
        bad = tmp_path / f"bad-{inner}.pt"
        with zipfile.ZipFile(good) as source, zipfile.ZipFile(bad, "w") as target:
            for name in source.namelist():
                data = pickle.dumps(Canary(canary)) if name.endswith(inner) else source.read(name)
                target.writestr(name, data)
        with pytest.raises(PackagingRefused, match="PyTorch cannot load"):
            run(bad, tmp_path / "out", manifest=str(folder / "manifest.json"))
    assert not canary.exists()


def test_outputs_that_are_no_tensors(tmp_path):
    class Named(Mochi):
        def forward(self, x):
            return {"mask": self.body(x)}

    folder = tmp_path / "source"
    folder.mkdir()
    width, height = SIZE
    torch.jit.trace(Named().eval(), torch.zeros(1, 3, height, width), strict=False).save(folder / "mochi.pt")
    (folder / "manifest.json").write_text(json.dumps(content()))
    with pytest.raises(PackagingRefused, match="something else than tensors"):
        run(folder, tmp_path / "out")


def test_other_outputs_than_the_manifest_says(tmp_path):
    source = pair(tmp_path / "source", Mochi(True, True), content(True, False))
    with pytest.raises(PackagingRefused, match="not what the manifest says: .* promises class scores 1xK"):
        run(source, tmp_path / "out")


def test_a_model_of_another_size_is_said_to_be_so(tmp_path):
    class Fixed(Mochi):
        def forward(self, x):
            return super().forward(x.reshape(1, 3, 32, 32))

    folder = tmp_path / "source"
    folder.mkdir()
    torch.jit.trace(Fixed().eval(), torch.zeros(1, 3, 32, 32)).save(folder / "mochi.pt")
    (folder / "manifest.json").write_text(json.dumps(content()))
    with pytest.raises(PackagingRefused, match="fails on an image of its input size"):
        run(folder, tmp_path / "out")


def hungry(path: Path) -> Path:
    """Save a model that takes all the memory it can get."""

    class Hungry(torch.nn.Module):
        def forward(self, x):
            held = [x]
            for _ in range(100_000):
                held += [torch.ones(1 << 28) + x.sum()]
            return torch.stack(held).sum().reshape(1, 1)

    torch.jit.script(Hungry()).save(path)
    return path


def test_a_memory_bomb_costs_its_job_alone(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps(content(True, False)))
    model = hungry(tmp_path / "mochi.pt")
    with pytest.raises(PackagingRefused, match="memory|cannot allocate|allocat"):
        run(model, tmp_path / "out", manifest=str(tmp_path / "manifest.json"))


def test_a_model_that_never_ends_is_ended(tmp_path, monkeypatch):
    class Endless(torch.nn.Module):
        def forward(self, x):
            while bool(x.sum() < 1e30):
                x = x * 0
            return x

    torch.jit.script(Endless()).save(tmp_path / "mochi.pt")
    (tmp_path / "manifest.json").write_text(json.dumps(content(True, False)))
    monkeypatch.setattr(torchscript, "PATIENCE", 15.0)
    with pytest.raises(PackagingRefused, match="took longer than 15 s and was ended"):
        run(tmp_path / "mochi.pt", tmp_path / "out", manifest=str(tmp_path / "manifest.json"))


@pytest.mark.parametrize("megabytes", [50])
def test_peak_memory(tmp_path, megabytes):
    """Every process of the job together stays below 2 GB, seen by the system's own count of each one's peak."""
    wide = 512
    folder = pair(tmp_path / "source", Mochi(wide=wide, deep=round(megabytes * 250_000 / (9 * wide * wide))), content())
    assert abs((folder / "mochi.pt").stat().st_size - megabytes * 1e6) < 0.1 * megabytes * 1e6
    script = (
        "import json, resource, sys; from pathlib import Path; from model_packager import destinations, packaging;"
        "order = json.loads(sys.argv[1]); work = Path(sys.argv[2]); work.mkdir();"
        "packaging.run(order, work, destinations.of(order['output']), lambda *_: None);"
        "print(sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(order(folder, tmp_path / "out")), str(tmp_path / "work")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout) * 1024
    print(f"peak of the two largest processes together, {megabytes} MB model: {peak / 1e6:.0f} MB")
    assert peak <= 2e9
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0


@shared.needed
def test_the_training_output_of_the_cookies(folder):
    """From the file that a customer holds to the verdicts over the socket: all 63 photographs as expected."""
    source = shared.FOLDER / "models" / "cookies-segmentation" / "model.tar.gz"
    output = folder / "out"
    asked = order(source, output, images=str(shared.PHOTOGRAPHS))
    asked["request"]["Configuration"]["Greengrass"]["ComponentName"] = "cookies"
    work = folder / "work"
    work.mkdir()
    result = packaging.run(asked, work, destinations.of(str(output)), lambda *_: None)
    assert (result["Parity"]["images"], result["Parity"]["noise"]) == (63, False)
    assert result["Parity"]["verdict_flips"] == 0
    assert result["Parity"]["largest_score_difference"] < 1e-4
    expected = json.loads((shared.FOLDER / "models/cookies-segmentation/expected.json").read_text())["images"]
    judged = 0
    with serving(output) as agent, EdgeAgentClient(str(agent.socket)) as client:
        client.start_and_wait("cookies")
        for name, wanted in expected.items():
            pixels = np.asarray(Image.open(shared.PHOTOGRAPHS / name).convert("RGB"))
            found = client.detect("cookies", pixels)
            area = sum(one.total_percentage_area for one in found.anomalies if one.name == "cracked")
            assert found.is_anomalous == wanted["is_anomalous"], name
            assert found.anomaly_score == pytest.approx(wanted["score"], abs=1e-4), name
            assert area == pytest.approx(wanted["cracked_area"], abs=1e-3), name
            judged += 1
    assert judged == 63
