"""The components that are deployed in tests: the real agent and models as the packager writes them, and a caller.

Each is an output folder with `recipes` and `artifacts`, which is what a local deployment is given.
"""

import base64
import hashlib
import json
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from model_packager import destinations, packaging
from model_packager.request import AGENT_COMPONENT
from support import networks, packages
from support.agent import PLENTY, environment
from support.greengrass import Device
from support.greengrass_recipes import ARCHITECTURE, Component
from support.users import I_AM_ROOT, MYSELF, ROOT, agent_user, code_path

BOARDS, CALLER = "com.example.Boards", "com.example.Caller"
AGENT = AGENT_COMPONENT
AGENT_RECIPE = ROOT / "recipes" / "agent"
PROCESSORS = {"amd64": ("X86_64", "x86-64"), "aarch64": ("ARM64", "generic")}
# Files in the agent's work folder: its next start fails; and as long as the other one is there, its starts hang.
FAILS, HANGS = "fails", "hangs"
WRAPPER = f"""#!/bin/sh
{{before}}
export ORT_DISABLE_TELEMETRY=1{{path}}
exec {sys.executable} {{arguments}}"$@"
"""
# What it prints is what the tests read: one line of a run, with the verdict or with the error.
CALLER_PROGRAM = """
import os, sys, time

import grpc

from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent._proto.edge_agent_pb2_grpc import EdgeAgentStub

name = os.environ["MODEL"]


def describe(stub):
    return stub.DescribeModel(pb2.DescribeModelRequest(model_component=name)).model_description


def main(stub):
    model = describe(stub)
    if model.status == pb2.STOPPED:
        stub.StartModel(pb2.StartModelRequest(model_component=name))
        model = describe(stub)
    while model.status == pb2.STARTING:
        time.sleep(0.05)
        model = describe(stub)
    if model.status != pb2.RUNNING:
        sys.exit(f"failed {pb2.ModelStatus.Name(model.status)} {model.status_message}")
    bitmap = pb2.Bitmap(width=64, height=64, byte_data=bytes(3 * 64 * 64))
    response = stub.DetectAnomalies(pb2.DetectAnomaliesRequest(model_component=name, bitmap=bitmap))
    print(f"verdict {response.detect_anomaly_result.anomaly_score:.2f}", flush=True)


try:
    with grpc.insecure_channel(os.environ["SOCKET"]) as channel:
        main(EdgeAgentStub(channel))
except grpc.RpcError as error:
    sys.exit(f"failed {error.code().name} {error.details()}")
"""


def agent(output: Path, version: str = "1.3.0") -> Path:
    """Write the agent's component as some version, but for its wheels."""
    recipe = (AGENT_RECIPE / "recipe.yaml").read_text()
    own = yaml.safe_load(recipe)["ComponentVersion"]
    recipe = recipe.replace(f'"{own}"', f'"{version}"').replace(f"/{own}/", f"/{version}/")
    artifacts = _artifacts(output, AGENT, version)
    for name in ("install.sh", "run.sh"):
        shutil.copyfile(AGENT_RECIPE / name, artifacts / name)
    with zipfile.ZipFile(artifacts / "lookoutvision_edge_agent.zip", "w") as archive:
        archive.write(ROOT / "proto" / "edge-agent.proto", "edge-agent.proto")
    return write_recipe(output, AGENT, version, recipe)


def install_agent(component: Component, work: Path) -> None:
    """Do instead of install.sh, which takes long, what run.sh needs: an environment with the agent."""
    programs = work / f"venv-{component.version}" / "current" / "bin"
    programs.mkdir(parents=True, exist_ok=True)
    python(programs / "python")
    # Into its place whole: a nucleus does this at each launch, and an agent may be starting from it.
    before = f"""if rm {work / FAILS} 2>&-; then exit 3; fi
while [ -e {work / HANGS} ]; do sleep 0.1; done"""
    program = python(programs / "edge-agent.new", "-m", "edge_agent", before=before)
    program.rename(programs / "edge-agent")


def python(path: Path, *arguments: str, before: str = "") -> Path:
    """Write a program that runs this Python with our code."""
    more = f" PYTHONPATH={code_path()}" if code_path() else ""
    path.write_text(WRAPPER.format(before=before, path=more, arguments="".join(f"{one} " for one in arguments)))
    path.chmod(0o755)
    return path


def python_that_makes_venvs(path: Path) -> Path:
    """Write a Python whose virtual environments see at once what is installed here, so that pip has nothing to fetch."""
    here = [sysconfig.get_path("purelib"), *([code_path()] if code_path() else [ROOT / "agent", ROOT / "packaging"])]
    script = f"""if [ "$1 $2" = "-m venv" ]; then
    {sys.executable} -m venv --without-pip "$3" || exit
    for folder in "$3"/lib/python*/site-packages; do printf '%s\\n' {" ".join(map(str, here))} >"$folder/here.pth"; done
    exit
fi"""
    return python(path, before=script)


def settings(device: Device, **more: str) -> dict[str, str]:
    """Return the agent's configuration on a device of a test: a socket of its own, and looks that follow soon."""
    return {
        "Socket": f"unix://{device.base}/agent.sock",
        "SocketGroup": "",
        "ScanInterval": "0.1",
        "AllowRoot": "true" if I_AM_ROOT and agent_user() == MYSELF else "",
        **more,
    }


def model(output: Path, work: Path, name: str = BOARDS, version: str = "1.0.0", score: float = 0.25) -> Path:
    """Package a model whose score is always the same, as a customer does; return the output folder."""
    source = packages.write(
        work / f"source-{name}-{version}" / "component",
        packages.manifest(),
        packages.constant(scores=[score, 1 - score]),
    )
    arch, mcpu = PROCESSORS[ARCHITECTURE]
    order = networks.order(source, output, name=name)
    greengrass = order["request"]["Configuration"]["Greengrass"]
    greengrass["ComponentVersion"] = version
    greengrass["TargetPlatform"]["Arch"] = arch
    greengrass["CompilerOptions"] = json.dumps({"mcpu": mcpu})
    place = work / f"job-{name}-{version}"
    place.mkdir()
    packaging.run(order, place, destinations.of(str(output)), lambda *_: None)
    return output


def customer(folder: Path) -> Path:
    """Do in a new folder what a customer types: package an ONNX model with a sidecar, and lay the clients out."""
    packages.write(folder / "source", packages.manifest(), packages.brightness(mask=False))
    (folder / "source" / "mochi" / "model.onnx").rename(folder / "model.onnx")
    arch, mcpu = PROCESSORS[ARCHITECTURE]
    _type(
        *("-m", "edge_agent", "package", "start", "model.onnx", "--manifest", "source/manifest.json"),
        *("--project-name", "boards", "--model-version", "1", "--component-name", BOARDS),
        *("--target-platform", f"os=LINUX,arch={arch}", "--compiler-options", json.dumps({"mcpu": mcpu})),
        *("--output", "models"),
        folder=folder,
    )
    # All that the clients need is installed in the Python that makes their environments.
    (folder / "wheels").mkdir()
    (folder / "wheels" / "unused-1.0-py3-none-any.whl").touch()
    for client in ("minimal", "folder"):
        make = ROOT / "recipes" / "clients" / "make_artifacts.py"
        _type(make, client, "--wheels", "wheels", "--output", "clients", folder=folder)
    return folder


def _type(*arguments: object, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=environment(XDG_STATE_HOME=str(folder / "state")),
        capture_output=True,
        text=True,
        timeout=PLENTY,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def caller(output: Path, name: str = CALLER, model: str = BOARDS, version: str = "1.0.0", kind: str = "HARD") -> Path:
    """Write a client that calls once and never again; it prints the verdict or what went wrong."""
    run = {
        "Script": 'exec "{configuration:/Python}" "{artifacts:path}/caller.py"',
        "Setenv": {"SOCKET": "{configuration:/Socket}", "MODEL": model},
    }
    needs = {model: {"VersionRequirement": ">=1.0.0", "DependencyType": kind}}
    files = {"caller.py": CALLER_PROGRAM}
    return component(output, name, {"run": run}, version, needs, files, {"Socket": "", "Python": ""})


def component(
    output: Path,
    name: str,
    lifecycle: Mapping[str, Any],
    version: str = "1.0.0",
    needs: Mapping[str, Mapping[str, str]] | None = None,
    files: Mapping[str, str] | None = None,
    configuration: Mapping[str, Any] | None = None,
    **more: Any,
) -> Path:
    """Write a component for both nuclei; `files` are its artifacts, and `more` is of its manifest."""
    for file_name, content in (files or {}).items():
        (_artifacts(output, name, version) / file_name).write_text(content)
    manifest = {
        "Platform": {"os": "linux", "runtime": "*"},
        "Lifecycle": lifecycle,
        "Artifacts": [{"Uri": f"s3://BUCKET_NAME/{name}/{version}/{one}"} for one in files or ()],
        **more,
    }
    recipe = {
        "RecipeFormatVersion": "2020-01-25",
        "ComponentName": name,
        "ComponentVersion": version,
        "ComponentDescription": "Of a test",
        "ComponentConfiguration": {"DefaultConfiguration": configuration or {}},
        "ComponentDependencies": needs or {},
        "Manifests": [manifest],
    }
    (output / "artifacts").mkdir(parents=True, exist_ok=True)
    return write_recipe(output, name, version, yaml.safe_dump(recipe, sort_keys=False))


def changed(output: Path, source: Path, name: str, version: str, edit: Callable[[dict[str, Any], Path], None]) -> Path:
    """Copy a component into another output folder and change it: `edit` gets its recipe and its artifacts.

    Digests are those of what is there afterwards.
    """
    artifacts = output / "artifacts" / name / version
    shutil.copytree(source / "artifacts" / name / version, artifacts)
    recipe = yaml.safe_load((source / "recipes" / f"{name}-{version}.yaml").read_text())
    edit(recipe, artifacts)
    for one in (one for manifest in recipe["Manifests"] for one in manifest["Artifacts"] if "Digest" in one):
        data = (artifacts / one["Uri"].rpartition("/")[2]).read_bytes()
        one["Digest"] = base64.b64encode(hashlib.sha256(data).digest()).decode()
    return write_recipe(output, name, version, yaml.safe_dump(recipe, sort_keys=False))


def spoil(recipe: Mapping[str, Any], artifacts: Path) -> None:
    """Put a package into the zip that no agent can take."""
    (archive,) = artifacts.glob("*.zip")
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("manifest.json", '{"model_graph": ')


def _artifacts(output: Path, name: str, version: str) -> Path:
    folder = output / "artifacts" / name / version
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_recipe(output: Path, name: str, version: str, text: str) -> Path:
    """Write a recipe where a local deployment looks for it, and return the output folder."""
    path = output / "recipes" / f"{name}-{version}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return output
