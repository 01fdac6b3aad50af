"""Building the agent's component, from an index of wheels of a few bytes: no network, and every kind of device.

1. Each kind of device gets the wheels that it needs, by the checkout's pins, and no others.
2. The lock has the digest of each wheel, and says which devices it is for.
3. The recipe names each artifact, and is short enough or refused.
4. A component appears whole, readable by all, the same bytes twice, and in nobody's place.
5. The command: what it says, what it refuses, and as gdk calls it.
"""

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from packaging.requirements import Requirement

from edge_agent.cli import component as cli
from model_packager import agent_component, agent_recipe, linting, wheel_lock, wheels
from model_packager.agent_component import Built, Order
from model_packager.errors import PackagingRefused
from model_packager.request import AGENT_COMPONENT
from model_packager.wheels import Kind, Wheel
from support.users import ROOT
from support.wheels import checkout as make_checkout
from support.wheels import index_environment, requiring, write_wheel

X86, ARM = "manylinux_2_28_x86_64", "manylinux2014_aarch64.manylinux_2_17_aarch64"
AMD_310, AMD_311 = Kind("amd64", "3.10"), Kind("amd64", "3.11")
ARM_310, ARM_311 = Kind("aarch64", "3.10"), Kind("aarch64", "3.11")
KINDS = (AMD_310, AMD_311, ARM_310, ARM_311)
VERSION = "1.3.0"
WHEEL = f"vision_edge_agent-{VERSION}-py3-none-any.whl"
NEEDS = (
    "alpha>=1",
    "windows; sys_platform == 'win32'",
    "old; python_version < '3.11'",
    "runtime[fast]>=2; extra == 'cpu'",
    "simd; extra == 'cpu' and platform_machine == 'x86_64'",
    "gpu_runtime; extra == 'cuda'",
    "Cloud.SDK; extra == 'greengrass'",
)
PINS = """\
# Comments and empty lines are no pins.

alpha==1.0 ; python_full_version < '3.11'
alpha==2.0 ; python_full_version >= '3.11'
cloud-sdk==5.0
deep==7.0
gpu-runtime==3.0
old==1.0 ; python_full_version < '3.11'
runtime==2.5
simd==4.0 ; platform_machine == 'x86_64'
"""


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Path:
    """An index with what our wheel needs, and what it must not be given."""
    made = tmp_path_factory.mktemp("index")
    for python, version in (("cp310", "1.0"), ("cp311", "2.0")):
        for tags in (X86, ARM):
            requiring(made, "alpha", version, tag=f"{python}-{python}-{tags}")
    requiring(made, "alpha", "3.0")
    requiring(made, "old", "1.0")
    requiring(made, "runtime", "2.5", "deep; extra == 'fast'", "never; extra == 'slow'", "alpha")
    # It is required by what it requires.
    requiring(made, "deep", "7.0", "runtime")
    requiring(made, "simd", "4.0", tag=f"cp310-abi3-{X86}")
    requiring(made, "gpu_runtime", "3.0")
    requiring(made, "cloud_sdk", "5.0")
    return made


@contextmanager
def only(index: Path) -> Iterator[None]:
    """Let pip know no other index."""
    with pytest.MonkeyPatch.context() as patch:
        environment = index_environment(index)
        for name in os.environ.keys() - environment.keys():
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(autouse=True)
def _no_other_index(index) -> Iterator[None]:
    with only(index):
        yield


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, index) -> Path:
    return make_checkout(tmp_path_factory.mktemp("checkout"), index, NEEDS, PINS)


@pytest.fixture
def own(tmp_path) -> Wheel:
    folder = tmp_path / "own"
    folder.mkdir()
    return Wheel(
        requiring(folder, "vision_edge_agent", VERSION, *NEEDS, extras=("cpu", "cuda", "greengrass", "metrics"))
    )


@pytest.fixture
def pins(checkout) -> list[Requirement]:
    return wheels.read_pins(checkout / "constraints.txt")


def silent(_: str) -> None:
    pass


# 1. Wheels.


@pytest.fixture(scope="module")
def of_each(tmp_path_factory, index, checkout) -> dict[Kind, list[Wheel]]:
    """What each kind of device gets."""
    folder = tmp_path_factory.mktemp("of-each")
    own = Wheel(
        requiring(folder, "vision_edge_agent", VERSION, *NEEDS, extras=("cpu", "cuda", "greengrass", "metrics"))
    )
    with only(index):
        pins = wheels.read_pins(checkout / "constraints.txt")
        return {kind: fetched(own, pins, kind, folder) for kind in KINDS}


def fetched(own: Wheel, pins: list[Requirement], kind: Kind, folder: Path, *extras: str) -> list[Wheel]:
    into = folder / f"{kind.platform}-{kind.python}"
    into.mkdir(exist_ok=True)
    return wheels.fetch(own, extras or ("cpu", "greengrass"), pins, kind, into, silent)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (AMD_310, f"alpha-1.0-cp310-cp310-{X86} old-1.0-py3-none-any simd-4.0-cp310-abi3-{X86}"),
        (AMD_311, f"alpha-2.0-cp311-cp311-{X86} simd-4.0-cp310-abi3-{X86}"),
        (ARM_310, f"alpha-1.0-cp310-cp310-{ARM} old-1.0-py3-none-any"),
        (ARM_311, f"alpha-2.0-cp311-cp311-{ARM}"),
    ],
    ids=str,
)
def test_each_kind_gets_what_it_needs(of_each, kind, names):
    """Whatever Python and processor this runs on."""
    everywhere = ["cloud_sdk-5.0-py3-none-any", "deep-7.0-py3-none-any", "runtime-2.5-py3-none-any"]
    assert [one.path.stem for one in of_each[kind]] == sorted([*everywhere, *names.split()])


def test_each_variant_gets_its_runtime(own, pins, tmp_path):
    names = {one.name for one in fetched(own, pins, AMD_311, tmp_path, "cuda", "greengrass")}
    assert names == {"alpha", "cloud-sdk", "gpu-runtime"}


def test_what_is_fetched_is_told(own, pins, tmp_path):
    told: list[str] = []
    (tmp_path / "wheels").mkdir()
    wheels.fetch(own, ("cpu",), pins, AMD_311, tmp_path / "wheels", told.append)
    assert told == [
        "Python 3.11 on amd64: fetching alpha 2.0, runtime 2.5, simd 4.0",
        "Python 3.11 on amd64: fetching deep 7.0",
    ]


@pytest.mark.parametrize(
    ("line", "instead", "sentence"),
    [
        (
            "deep==7.0",
            "",
            "constraints.txt has no version of deep for Python 3.11 on amd64, which runtime needs; renew the file with `make lock`.",
        ),
        (
            "runtime==2.5",
            "runtime==1.5",
            "constraints.txt has runtime 1.5 for Python 3.11 on amd64, and vision-edge-agent needs >=2; renew the file with `make lock`.",
        ),
        (
            "deep==7.0",
            "deep==7.5",
            "pip cannot fetch the wheels for Python 3.11 on amd64: No matching distribution found for deep==7.5.",
        ),
    ],
)
def test_pins_that_do_not_do(own, tmp_path, line, instead, sentence):
    path = tmp_path / "constraints.txt"
    assert line in PINS
    path.write_text(PINS.replace(line, instead))
    with pytest.raises(PackagingRefused) as refused:
        fetched(own, wheels.read_pins(path), AMD_311, tmp_path)
    assert str(refused.value) == sentence


@pytest.mark.parametrize("name", ["deep-7.5-py3-none-manylinux_2_35_x86_64.whl", "deep-7.5.tar.gz"])
def test_neither_wheels_for_newer_systems_nor_sources(own, tmp_path, index, monkeypatch, name):
    more = tmp_path / "more"
    more.mkdir()
    if name.endswith(".whl"):
        requiring(more, "deep", "7.5", "runtime", tag="py3-none-manylinux_2_35_x86_64")
    else:
        (more / name).touch()
    assert (more / name).exists()
    monkeypatch.setenv("PIP_FIND_LINKS", f"{index} {more}")
    (tmp_path / "constraints.txt").write_text(PINS.replace("deep==7.0", "deep==7.5"))
    with pytest.raises(PackagingRefused, match="No matching distribution found for deep==7.5"):
        fetched(own, wheels.read_pins(tmp_path / "constraints.txt"), AMD_311, tmp_path)


@pytest.mark.parametrize("line", ["alpha>=1", "alpha", "alpha==1,<2", "==1", "-r other.txt"])
def test_a_line_that_is_no_pin(tmp_path, line):
    path = tmp_path / "constraints.txt"
    path.write_text(f"beta==1\n{line}\n")
    with pytest.raises(
        PackagingRefused, match=r"^Line 2 of .*constraints\.txt is no `name==version`; restore the file\.$"
    ):
        wheels.read_pins(path)


def test_no_pins(tmp_path):
    with pytest.raises(PackagingRefused, match="cannot be read; restore it"):
        wheels.read_pins(tmp_path / "constraints.txt")


def test_a_python_without_pip(own, pins, tmp_path, monkeypatch):
    bare = tmp_path / "python"
    bare.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    with pytest.raises(PackagingRefused, match=f"^{bare} has no pip; install it with `{bare} -m ensurepip`"):
        fetched(own, pins, AMD_311, tmp_path)


def test_our_own_pins_are_read():
    """The real ones, with a version of what every device needs."""
    for kind in (Kind(platform, python) for platform in wheels.MACHINES for python in wheels.PYTHONS):
        found = wheels.versions(wheels.read_pins(ROOT / "constraints.txt"), kind)
        assert {"numpy", "grpcio", "onnxruntime", "awscrt"} <= found.keys()
        assert ("cykooz-resizer" in found) == (kind.platform == "amd64")
    assert cli.PYTHONS == wheels.PYTHONS
    assert {*cli.PLATFORMS.values()} == {*wheels.MACHINES}


# 2. The lock.


def parsed(lock: str) -> list[tuple[Requirement, list[str]]]:
    lines = [line for line in lock.replace("\\\n", "").splitlines() if not line.startswith("#")]
    found = []
    for line in lines:
        requirement, *hashes = line.split(" --hash=sha256:")
        found.append((Requirement(requirement.strip()), [one.strip() for one in hashes]))
    return found


def test_the_lock(own, of_each):
    lock = parsed(wheel_lock.write(own, ("cpu", "greengrass"), of_each))
    assert str(lock[0][0]) == f"vision-edge-agent[cpu,greengrass]=={VERSION}"
    assert lock[0][1] == [hashlib.sha256(own.path.read_bytes()).hexdigest()]
    for kind, got in of_each.items():
        here = [(one, hashes) for one, hashes in lock[1:] if kind.needs(one)]
        assert [(one.name, str(one.specifier)) for one, _ in here] == [(one.name, f"=={one.version}") for one in got]
        for (_, hashes), wheel in zip(here, got, strict=True):
            assert hashlib.sha256(wheel.path.read_bytes()).hexdigest() in hashes
    # What all need has no condition, and one digest for each file.
    alphas = {str(one.specifier): len(hashes) for one, hashes in lock if one.name == "alpha"}
    assert alphas == {"==1.0": 2, "==2.0": 2}
    assert {one.name for one, _ in lock if one.marker is None} == {"vision-edge-agent", "cloud-sdk", "deep", "runtime"}


def test_two_files_of_one_name(own, of_each, tmp_path):
    (tmp_path / "deep-7.0-py3-none-any.whl").write_bytes(b"another")
    another = [Wheel(tmp_path / "deep-7.0-py3-none-any.whl")]
    with pytest.raises(PackagingRefused, match=r"two different files deep-7\.0-py3-none-any\.whl"):
        wheel_lock.write(own, ("cpu",), {AMD_311: of_each[AMD_311], ARM_311: another})


# 3. The recipe.


@pytest.fixture
def template() -> dict[str, Any]:
    return agent_recipe.read(ROOT / "recipes" / "agent" / "recipe.yaml")


def test_the_recipe_keeps_what_the_template_says(template):
    before = json.dumps(template)
    names = {"amd64": ["install.sh", "lookoutvision_edge_agent.zip", "a.whl"], "aarch64": ["b.whl"]}
    made = agent_recipe.fill(template, names, "cuda", "acme")
    assert json.dumps(template) == before
    place = f"s3://acme/{AGENT_COMPONENT}/{VERSION}"
    assert [one["Platform"]["architecture"] for one in made["Manifests"]] == ["amd64", "aarch64"]
    assert made["Manifests"][0]["Artifacts"] == [
        {"Uri": f"{place}/install.sh"},
        {"Uri": f"{place}/lookoutvision_edge_agent.zip", "Unarchive": "ZIP", "Permission": {"Read": "ALL"}},
        {"Uri": f"{place}/a.whl"},
    ]
    assert made["ComponentConfiguration"]["DefaultConfiguration"].pop("Variant") == "cuda"
    assert template["ComponentConfiguration"]["DefaultConfiguration"].pop("Variant") == "cpu"
    for key in template.keys() - {"Manifests"}:
        assert made[key] == template[key]


def text_of(template: Mapping[str, Any], wheels_of_each: int, *platforms: str) -> str:
    names = {one: [f"some_package_{number:02}-{'x' * 40}.whl" for number in range(wheels_of_each)] for one in platforms}
    return agent_component.recipe.as_yaml(agent_recipe.fill(template, names, "cpu", "BUCKET_NAME"))


def test_a_recipe_that_is_too_long(template):
    text = text_of(template, 26, "amd64", "aarch64")
    assert linting.LONGEST_LITE < len(text) < 16_000
    agent_recipe.check(text, "java")
    for nucleus in ("lite", "both"):
        with pytest.raises(PackagingRefused) as refused:
            agent_recipe.check(text, nucleus)
        assert str(refused.value) == (
            f"The recipe would have {len(text)} bytes, and nucleus lite reads 8196; give --zip, which makes one artifact of all "
            "wheels for a platform, or fewer --platform and --python, or --nucleus java, if no device has nucleus lite."
        )
    text = text_of(template, 80, "amd64", "aarch64")
    with pytest.raises(PackagingRefused, match=rf"{len(text)} bytes, and Greengrass takes 16000; .* and --python\.$"):
        agent_recipe.check(text, "java")


def test_a_recipe_with_an_error(template):
    del template["Lifecycle"]["all"]["install"]["Script"]
    with pytest.raises(PackagingRefused, match=r"^The component's recipe cannot be deployed\. .*Script"):
        agent_recipe.check(text_of(template, 1, "amd64"), "both")


def test_the_size_in_the_cloud(template):
    made = agent_recipe.fill(template, {"amd64": ["a.whl", "b.whl"]}, "cpu", "acme")
    digest = '"Digest":"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=","Algorithm":"SHA-256",'
    without = len(json.dumps(made, separators=(",", ":")))
    assert agent_recipe.size_in_the_cloud(made) == without + 2 * len(digest)


@pytest.mark.parametrize("content", ["a: [", "- a", "\udcff"])
def test_a_template_that_is_none(tmp_path, content):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(PackagingRefused, match="restore it"):
        agent_recipe.read(path)


# 4. Components.


def tree(folder: Path) -> dict[str, str]:
    """Return the digest of each file in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def modes(folder: Path) -> set[str]:
    return {stat.filemode(path.stat().st_mode) for path in (folder, *folder.rglob("*"))}


@pytest.fixture(scope="module")
def plain(tmp_path_factory, index, checkout) -> Path:
    """A component for one kind of device, in a folder of its own, made by someone whose files nobody else may read."""
    output = tmp_path_factory.mktemp("plain") / "new" / "deploy"
    before = os.umask(0o077)
    try:
        with only(index):
            agent_component.build(Order(output, (AMD_311,)), checkout, silent)
    finally:
        os.umask(before)
    return output


@pytest.fixture(scope="module")
def zips(tmp_path_factory, index, checkout) -> Built:
    """A component for two processors, each with a Python of its own, and a zip for each."""
    order = Order(tmp_path_factory.mktemp("zips"), (ARM_311, AMD_310), zipped=True)
    with only(index):
        return agent_component.build(order, checkout, silent)


ARTIFACTS = f"artifacts/{AGENT_COMPONENT}/{VERSION}"
COMMON = ["install.sh", "lookoutvision_edge_agent.zip", "run.sh", "wheels.lock"]
FETCHED = [
    f"alpha-2.0-cp311-cp311-{X86}.whl",
    "cloud_sdk-5.0-py3-none-any.whl",
    "deep-7.0-py3-none-any.whl",
    "runtime-2.5-py3-none-any.whl",
    f"simd-4.0-cp310-abi3-{X86}.whl",
]


def test_what_a_component_is(plain, checkout):
    names = sorted([*COMMON, WHEEL, *FETCHED])
    assert sorted(tree(plain)) == [
        *(f"{ARTIFACTS}/{one}" for one in names),
        f"recipes/{AGENT_COMPONENT}-{VERSION}.yaml",
    ]
    assert modes(plain) == {"drwxr-xr-x", "-rw-r--r--"}
    for script in ("install.sh", "run.sh"):
        assert (plain / ARTIFACTS / script).read_bytes() == (checkout / "recipes" / "agent" / script).read_bytes()
    with zipfile.ZipFile(plain / ARTIFACTS / "lookoutvision_edge_agent.zip") as archive:
        assert archive.read("edge-agent.proto") == (checkout / "proto" / "edge-agent.proto").read_bytes()
    text = (plain / "recipes" / f"{AGENT_COMPONENT}-{VERSION}.yaml").read_text()
    assert linting.lint(text) == []
    [manifest] = yaml.safe_load(text)["Manifests"]
    assert manifest["Platform"] == {"os": "linux", "architecture": "amd64", "runtime": "*"}
    assert sorted(one["Uri"].rpartition("/")[2] for one in manifest["Artifacts"]) == names
    locked = parsed((plain / ARTIFACTS / "wheels.lock").read_text())
    digests = {one.removeprefix(f"{ARTIFACTS}/"): digest for one, digest in tree(plain).items()}
    assert [hashes for _, hashes in locked] == [[digests[one]] for one in (WHEEL, *FETCHED)]


def test_the_same_bytes_twice(plain, checkout, tmp_path, monkeypatch):
    """From another place of the same checkout, at another time, by someone else."""
    copy = shutil.copytree(checkout, tmp_path / "copy")
    monkeypatch.chdir("/")
    output = tmp_path / "deploy"
    agent_component.build(Order(output, (AMD_311,)), copy, silent)
    assert tree(output) == tree(plain)
    # The controls: a byte of the source, and a script.
    (copy / "wheel" / "new.py").write_text("x = 1\n")
    (copy / "recipes" / "agent" / "run.sh").write_text("exit 3\n")
    agent_component.build(Order(tmp_path / "changed", (AMD_311,)), copy, silent)
    changed = {one for one, digest in tree(tmp_path / "changed").items() if digest != tree(plain)[one]}
    assert changed == {f"{ARTIFACTS}/{one}" for one in (WHEEL, "run.sh", "wheels.lock")}


def test_several_kinds_and_zips(zips):
    archives = {"aarch64": "wheels-aarch64.zip", "amd64": "wheels-x86_64.zip"}
    assert sorted(path.name for path in zips.artifacts.iterdir()) == sorted([*COMMON, *archives.values()])
    everywhere = {WHEEL, *(one for one in FETCHED if X86 not in one)}
    of_one = {
        "aarch64": {f"alpha-2.0-cp311-cp311-{ARM}.whl"},
        "amd64": {f"alpha-1.0-cp310-cp310-{X86}.whl", "old-1.0-py3-none-any.whl", f"simd-4.0-cp310-abi3-{X86}.whl"},
    }
    for platform, name in archives.items():
        with zipfile.ZipFile(zips.artifacts / name) as archive:
            assert {one.filename for one in archive.infolist()} == everywhere | of_one[platform]
            assert archive.testzip() is None
    recipe = yaml.safe_load(zips.recipe.read_text())
    found = {
        one["Platform"]["architecture"]: sorted(artifact["Uri"].rpartition("/")[2] for artifact in one["Artifacts"])
        for one in recipe["Manifests"]
    }
    assert found == {platform: sorted([*COMMON, name]) for platform, name in archives.items()}
    assert linting.lint(zips.recipe.read_text()) == []
    assert zips.fits_lite
    assert zips.wheels == len(everywhere) + 4


def test_the_variant(checkout, tmp_path):
    made = agent_component.build(Order(tmp_path / "deploy", (AMD_311,), "cuda", bucket="acme"), checkout, silent)
    assert (made.artifacts / "gpu_runtime-3.0-py3-none-any.whl").exists()
    assert not list(made.artifacts.glob("runtime-*"))
    recipe = yaml.safe_load(made.recipe.read_text())
    assert recipe["ComponentConfiguration"]["DefaultConfiguration"]["Variant"] == "cuda"
    assert {one["Uri"].split("/")[2] for one in recipe["Manifests"][0]["Artifacts"]} == {"acme"}
    assert parsed((made.artifacts / "wheels.lock").read_text())[0][0].extras == {"cuda", "greengrass", "metrics"}


@pytest.mark.parametrize("there", [f"recipes/{AGENT_COMPONENT}-{VERSION}.yaml", f"{ARTIFACTS}/anything"])
def test_nothing_is_overwritten(checkout, tmp_path, there):
    (tmp_path / there).parent.mkdir(parents=True)
    (tmp_path / there).write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(PackagingRefused) as refused:
        agent_component.build(Order(tmp_path, (AMD_311,)), checkout, silent)
    assert str(refused.value) == (
        f"{tmp_path / there} is there already; name another folder in --output, or remove what is in this one."
    )
    assert tree(tmp_path) == before


def test_other_components_in_the_folder_stay(checkout, tmp_path):
    others = ["recipes/com.example.Boards-1.0.0.yaml", f"artifacts/{AGENT_COMPONENT}/1.2.0/run.sh", "notes.txt"]
    for one in others:
        (tmp_path / one).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / one).write_text("theirs")
    agent_component.build(Order(tmp_path, (AMD_311,)), checkout, silent)
    assert all((tmp_path / one).read_text() == "theirs" for one in others)
    assert (tmp_path / ARTIFACTS / WHEEL).exists()
    assert {path.name for path in tmp_path.iterdir()} == {"recipes", "artifacts", "notes.txt"}


@pytest.mark.parametrize("exists", [True, False])
def test_nothing_is_left_of_a_build_that_fails(index, tmp_path, exists):
    broken = make_checkout(tmp_path / "broken", index, ["nowhere"], "nowhere==1\n")
    output = tmp_path / "new" / "deploy"
    if exists:
        output.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(PackagingRefused, match="No matching distribution found for nowhere==1"):
        agent_component.build(Order(output, (AMD_311,)), broken, silent)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_wheel_of_another_version(index, tmp_path):
    other = make_checkout(tmp_path / "other", index, [], "", version="1.4.0")
    with pytest.raises(
        PackagingRefused, match=r"^The recipe's version is 1\.3\.0 and the wheel's 1\.4\.0; make them the same"
    ):
        agent_component.build(Order(tmp_path / "deploy", (AMD_311,)), other, silent)


def test_a_wheel_that_cannot_be_built(index, tmp_path):
    broken = make_checkout(tmp_path / "broken", index, [], "")
    shutil.rmtree(broken / "wheel")
    with pytest.raises(PackagingRefused, match=r"^pip cannot build our own wheel: .+\.$"):
        agent_component.build(Order(tmp_path / "deploy", (AMD_311,)), broken, silent)


def test_what_builds_the_wheel_is_pinned(index, tmp_path, monkeypatch):
    """A newer one would write other bytes."""
    more = tmp_path / "more"
    more.mkdir()
    write_wheel(
        more, "hatchling", "2.0", {"hatchling/__init__.py": b"", "hatchling/build.py": b"raise SystemExit(1)\n"}
    )
    monkeypatch.setenv("PIP_FIND_LINKS", f"{index} {more}")
    pinned = make_checkout(tmp_path / "pinned", index, [], "hatchling==1.0\n")
    agent_component.build(Order(tmp_path / "deploy", (AMD_311,)), pinned, silent)
    free = make_checkout(tmp_path / "free", index, [], "")
    with pytest.raises(PackagingRefused, match="pip cannot build our own wheel"):
        agent_component.build(Order(tmp_path / "other", (AMD_311,)), free, silent)


# 5. The command.


def typed(folder: Path, *arguments: object) -> subprocess.CompletedProcess:
    """Run the command in a folder; return how it ended."""
    return subprocess.run(
        [str(Path(sys.executable).with_name("edge-agent")), *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_command(checkout, tmp_path):
    arguments = ("--python", "3.10", "--platform", "amd64", "--bucket", "acme")
    done = typed(checkout / "proto", "component", "build", "--output", tmp_path / "deploy", *arguments)
    assert done.returncode == 0, done.stderr
    recipe = tmp_path / "deploy" / "recipes" / f"{AGENT_COMPONENT}-{VERSION}.yaml"
    assert done.stdout.splitlines() == [
        f"{recipe}: {recipe.stat().st_size} bytes",
        f"{tmp_path / 'deploy' / ARTIFACTS}: 7 wheels, 0 MB in all",
    ]
    assert "s3://acme/" in recipe.read_text()
    assert done.stderr.splitlines() == [
        "building our own wheel",
        "Python 3.10 on amd64: fetching alpha 1.0, cloud-sdk 5.0, old 1.0, runtime 2.5, simd 4.0",
        "Python 3.10 on amd64: fetching deep 7.0",
    ]
    again = typed(checkout, "component", "build", "--output", tmp_path / "deploy")
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr.startswith(f"Error: {recipe} is there already; ")


def test_each_processor_with_each_python(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        agent_component, "build", lambda order, *_: asked.append(order) or Built(tmp_path, tmp_path, 1, 1, 1, 1)
    )
    some = ["--python", "3.11", "--platform", "amd64", "--python", "3.10", "--platform", "aarch64", "--python", "3.11"]
    more = ["--variant", "cuda", "--nucleus", "java", "--zip", "--gdk"]
    done = CliRunner().invoke(cli.component, ["build", "--output", "deploy", *some, *more])
    assert done.exit_code == 0
    kinds = (ARM_310, ARM_311, AMD_310, AMD_311)
    assert asked == [Order(Path("deploy"), kinds, "cuda", "java", zipped=True, gdk=True)]


def test_it_says_what_nucleus_lite_cannot_read(capsys):
    path = Path("deploy")
    cli._tell(Built(path, path, 22, 128_000_000, 6656, 8196), "both")
    assert capsys.readouterr() == ("deploy: 6656 bytes\ndeploy: 22 wheels, 128 MB in all\n", "")
    longer = Built(path, path, 22, 128_000_000, 6656, 8197)
    cli._tell(longer, "java")
    assert capsys.readouterr().err == ""
    cli._tell(longer, "lite")
    assert capsys.readouterr().err == (
        "For local deployments only on nucleus lite: from the cloud the recipe comes with digests, as 8197 bytes of the 8196 that "
        "it reads; --zip makes a shorter one.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "--output"),
        (["--output", __file__], "--output"),
        (["--output", "x", "--platform", "x86_64"], "--platform"),
        (["--output", "x", "--python", "3.9"], "--python"),
        (["--output", "x", "--python", "3"], "--python"),
        (["--output", "x", "--variant", "gpu"], "--variant"),
        (["--output", "x", "--nucleus", "classic"], "--nucleus"),
        (["--output", "x", "--bucket", "My_Bucket"], "--bucket"),
        (["--output", "x", "--bucket", "s3://bucket"], "--bucket"),
    ],
)
def test_bad_arguments(tmp_path, monkeypatch, arguments, named):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli.component, ["build", *arguments])
    assert not (tmp_path / "x").exists()
    assert done.exit_code == 2
    assert f"'{named}'" in done.output


def test_a_machine_that_has_no_wheels(monkeypatch):
    monkeypatch.setattr(cli.machine, "machine", lambda: "riscv64")
    done = CliRunner().invoke(cli.component, ["build", "--output", "x"])
    assert done.exit_code == 2
    assert "This machine is a riscv64, which the agent has no wheels for; give --platform." in done.output


def test_defaults_are_this_machine(monkeypatch):
    for name, platform in (("x86_64", "amd64"), ("aarch64", "aarch64")):
        monkeypatch.setattr(cli.machine, "machine", lambda name=name: name)
        assert cli._platforms([]) == [platform]
        assert cli._pythons([]) == [f"3.{sys.version_info[1]}"]
    assert cli._pythons(["3.13", "3.10", "3.13"]) == ["3.10", "3.13"]


def test_without_a_checkout(tmp_path):
    """As where the agent is installed from its wheel, and the folder is anybody's project."""
    (tmp_path / "recipes" / "agent").mkdir(parents=True)
    (tmp_path / "recipes" / "agent" / "recipe.yaml").touch()
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "another"\n')
    with pytest.raises(
        PackagingRefused, match=r"is built from a checkout of Edge Agent, .*; get the repository, and run"
    ):
        agent_component.find_checkout(tmp_path, tmp_path / "lib")


def test_which_checkout(checkout, tmp_path):
    assert agent_component.find_checkout(checkout / "recipes" / "agent", ROOT) == checkout
    assert agent_component.find_checkout(tmp_path, ROOT / "agent" / "edge_agent") == ROOT


# As gdk calls it. Source: the custom build and the publish step of the GDK CLI, which is not in PyPI.

GDK_CONFIG = json.loads((ROOT / "recipes" / "agent" / "gdk-config.json").read_text())


def test_gdk_config():
    [(name, component)] = GDK_CONFIG["component"].items()
    template = agent_recipe.read(ROOT / "recipes" / "agent" / "recipe.yaml")
    assert (name, component["version"]) == (template["ComponentName"], template["ComponentVersion"])
    assert component["author"] == template["ComponentPublisher"]
    assert component["build"]["build_system"] == "custom"
    assert {"bucket", "region"} == component["publish"].keys()


def gdk_build(project: Path) -> subprocess.CompletedProcess:
    """Do what `gdk component build` does: empty folders, and the command in the folder of the configuration."""
    [(name, component)] = GDK_CONFIG["component"].items()
    output = project / "greengrass-build"
    shutil.rmtree(output, ignore_errors=True)
    (output / "recipes").mkdir(parents=True)
    (output / "artifacts" / name / component["version"]).mkdir(parents=True)
    program, *arguments = component["build"]["custom_build_command"]
    assert program == "edge-agent"
    return typed(project, *arguments)


def gdk_publish(project: Path, bucket: str) -> Path:
    """Do what `gdk component publish` does to the recipe; return what it gives to CreateComponentVersion."""
    [(name, component)] = GDK_CONFIG["component"].items()
    output, version = project / "greengrass-build", component["version"]
    recipe = yaml.safe_load((output / "recipes" / "recipe.yaml").read_text())
    assert recipe["ComponentName"] == name
    recipe["ComponentVersion"] = version
    for artifact in (one for manifest in recipe["Manifests"] for one in manifest["Artifacts"]):
        file = Path(artifact["Uri"]).name
        assert (output / "artifacts" / name / version / file).is_file()
        artifact["Uri"] = f"s3://{bucket}/{name}/{version}/{file}"
    path = output / "recipes" / f"{name}-{version}.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def test_as_gdk_calls_it(checkout):
    project = checkout / "recipes" / "agent"
    try:
        done = gdk_build(project)
        assert done.returncode == 0, done.stderr
        output = project / "greengrass-build"
        assert [path.name for path in (output / "recipes").iterdir()] == ["recipe.yaml"]
        published = gdk_publish(project, "b" * 63)
        assert linting.lint(published.read_text()) == []
        recipe = yaml.safe_load(published.read_text())
        assert agent_recipe.size_in_the_cloud(recipe) <= linting.LONGEST_LITE
        # Nothing that is uploaded goes unnamed.
        named = {Path(one["Uri"]).name for manifest in recipe["Manifests"] for one in manifest["Artifacts"]}
        assert named == {path.name for path in (output / ARTIFACTS).iterdir()}
    finally:
        shutil.rmtree(project / "greengrass-build", ignore_errors=True)
