"""From a customer's ONNX model to a verdict in a client's log: what the packager writes is deployed as it is.

1. `edge-agent package start` is run as it is typed, and its output folder given to a local deployment on each nucleus.
2. The client of the field's developer guide runs as it is on the Java nucleus; for nucleus lite the linter names each change.
"""

import json
import shutil
from collections.abc import Callable, Mapping

import pytest
from PIL import Image

from model_packager import linting
from support import greengrass_components as components
from support import stubs
from support.greengrass_components import AGENT, BOARDS
from support.greengrass_deployments import SUCCEEDED
from support.greengrass_orders import Orders
from support.greengrass_recipes import JAVA, LITE
from support.greengrass_site import Site, until

ORDERS = Orders()
COUNT = 4
MINIMAL, FOLDER = "com.example.EdgeAgentMinimal", "com.example.EdgeAgentFolder"


# 1. From a model to a verdict.


@ORDERS.on()
def from_a_model_to_a_verdict(site: Site) -> None:
    images = site.device.base / "images"
    images.mkdir()
    Image.new("RGB", (64, 64), (230, 230, 230)).save(images / "bright.png")
    python = components.python_that_makes_venvs(site.device.base / "any-python")
    calls = {"Socket": f"unix://{site.socket}", "Python": str(python)}
    deployment = site.device.deploy(
        {AGENT: "1.3.0", BOARDS: "1.0.0", MINIMAL: "1.0.0", FOLDER: "1.0.0"},
        *(site.outputs / one for one in ("agent-1.3.0", "customer/models", "customer/clients")),
        merge={
            AGENT: components.settings(site.device),
            MINIMAL: {**calls, "Image": str(images / "bright.png")},
            FOLDER: {**calls, "Images": str(images)},
        },
    )
    deployment.succeeds()
    until(lambda: '"verdict": "anomalous"' in site.device.log(FOLDER), "the folder is judged")
    until(lambda: "anomalous 0.90" in site.device.log(MINIMAL), "the image is judged")
    told = json.loads(next(one for one in site.device.log(FOLDER).splitlines() if one.startswith("{")))
    assert told["file"] == str(images / "bright.png")
    assert told["confidence"] == pytest.approx(230 / 255, abs=1e-4)
    assert site.device.log(MINIMAL).startswith(f"{BOARDS} ")


# 2. The client of the field.

CLIENT = "com.example.FieldClient"
# With the keys, the dependency and the install step of the developer guide's, in whose words users have written theirs.
RECIPE = """\
{
  "RecipeFormatVersion": "2020-01-25",
  "ComponentName": "com.example.FieldClient",
  "ComponentVersion": "1.0.0",
  "ComponentType": "aws.greengrass.generic",
  "ComponentDescription": "Judges one image",
  "ComponentPublisher": "Somebody",
  "ComponentDependencies": {
    "com.example.Boards": {
      "VersionRequirement": ">=1.0.0",
      "DependencyType": "HARD"
    }
  },
  "Manifests": [
    {
      "Platform": {
        "os": "linux"
      },
      "Lifecycle": {
        "install": "pip3 install grpcio grpcio-tools protobuf Pillow",
        "run": {
          "script": "python3 {artifacts:path}/client.py"
        }
      },
      "Artifacts": [
        {
          "URI": "s3://factory/client.py"
        },
        {
          "URI": "s3://factory/edge_agent_pb2_grpc.py"
        },
        {
          "URI": "s3://factory/edge_agent_pb2.py"
        }
      ]
    }
  ],
  "Lifecycle": {}
}
"""
PROGRAM = """\
import time
import edge_agent_pb2 as pb2
import edge_agent_pb2_grpc as pb2_grpc
import grpc
from PIL import Image

with grpc.insecure_channel("{socket}") as channel:
    stub = pb2_grpc.EdgeAgentStub(channel)
    describe = pb2.DescribeModelRequest(model_component="com.example.Boards")
    while True:
        status = stub.DescribeModel(describe).model_description.status
        if status == pb2.STOPPED:
            stub.StartModel(pb2.StartModelRequest(model_component="com.example.Boards"))
        elif status == pb2.RUNNING:
            break
        time.sleep(0.1)
    image = Image.new("RGB", (64, 64)).convert("RGB")
    bitmap = pb2.Bitmap(width=64, height=64, byte_data=image.tobytes())
    request = pb2.DetectAnomaliesRequest(model_component="com.example.Boards", bitmap=bitmap)
    print("score", round(stub.DetectAnomalies(request).detect_anomaly_result.anomaly_score, 2))
"""
VENV = (
    "python3 -m venv venv && venv/bin/python -m pip install --no-index --find-links {artifacts:path} "
    "grpcio grpcio-tools protobuf Pillow"
)
# What the linter calls each fault for nucleus lite -> the smallest change that mends it.
CHANGES: Mapping[str, Callable[[str], str]] = {
    "runtime": lambda text: text.replace('"os": "linux"', '"os": "linux",\n        "runtime": "*"'),
    "key-case": lambda text: text.replace('"script"', '"Script"').replace('"URI"', '"Uri"'),
    "pip-network": lambda text: text.replace(
        '"pip3 install grpcio grpcio-tools protobuf Pillow"', json.dumps(VENV)
    ).replace("python3 {artifacts:path}/client.py", "venv/bin/python {artifacts:path}/client.py"),
}


def for_lite(*but: str) -> str:
    """Return the recipe with all changes made that nucleus lite needs, or all but some."""
    text = RECIPE
    for rule, change in CHANGES.items():
        if rule not in but:
            assert change(text) != text
            text = change(text)
    return text


def test_the_linter_names_each_change_for_lite():
    found = linting.lint(RECIPE, nucleus="lite")
    assert {one.rule for one in found} == {*CHANGES}
    told = " ".join(one.sentence for one in found)
    for word in ("`Script`", "`Uri`", 'runtime: "*"', "venv", "--no-index --find-links"):
        assert word in told
    assert linting.lint(for_lite(), nucleus="both") == []
    for rule in CHANGES:
        assert {one.rule for one in linting.lint(for_lite(rule), nucleus="lite")} == {rule}


def test_the_linter_has_no_errors_for_the_java_nucleus():
    assert {one.rule for one in linting.lint(RECIPE, nucleus="java")} <= {"pip-network"}


def deploy_client(site: Site, recipe: str) -> str:
    """Deploy the field's client with a recipe, on a device with a pip3 and without a network; return how it ended."""
    output = site.device.base / "output"
    artifacts = output / "artifacts" / CLIENT / "1.0.0"
    artifacts.mkdir(parents=True, exist_ok=True)
    stubs.generate(artifacts)
    (artifacts / stubs.PROTO.name).unlink()
    (artifacts / "client.py").write_text(PROGRAM.format(socket=f"unix://{site.socket}"))
    (output / "recipes").mkdir(exist_ok=True)
    (output / "recipes" / f"{CLIENT}-1.0.0.json").write_text(recipe)
    components.python_that_makes_venvs(site.device.programs / "python3")
    pip = site.device.programs / "pip3"
    # On nucleus lite it does as one does without a network, or where Python's packages are the system's own.
    pip.write_text(f'#!/bin/sh\necho "pip3 $*"\nexit {0 if site.kind == JAVA else 1}\n')
    pip.chmod(0o755)
    assert site.deploy("agent-1.3.0", "boards-1.0.0").wait() == SUCCEEDED
    return site.device.deploy({CLIENT: "1.0.0"}, output).wait()


@ORDERS.on(JAVA)
def the_client_of_the_field_runs_as_it_is(site: Site) -> None:
    assert deploy_client(site, RECIPE) == SUCCEEDED
    until(lambda: "score" in site.device.log(CLIENT), "it has judged")
    lines = site.device.log(CLIENT).splitlines()
    assert lines == ["pip3 install grpcio grpcio-tools protobuf Pillow", "score 0.25"]


@ORDERS.on(LITE)
def the_client_of_the_field_runs_with_exactly_those_changes(site: Site) -> None:
    for rule in CHANGES:
        status = deploy_client(site, for_lite(rule))
        assert status.startswith("FAILED"), f"without the change for {rule}"
        assert "score" not in site.device.log(CLIENT)
        shutil.rmtree(site.device.base / "output")
    assert deploy_client(site, for_lite()) == SUCCEEDED
    until(lambda: "score" in site.device.log(CLIENT), "it has judged")
    assert site.device.log(CLIENT).splitlines()[-1] == "score 0.25"


@pytest.mark.parametrize("name", ORDERS.all)
def test_it_comes_to_a_verdict(name, ran):
    ran[ORDERS, name].check()


def test_they_are_counted():
    assert len(ORDERS.all) == COUNT
