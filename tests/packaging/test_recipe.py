"""The recipe: valid on both nuclei, the same as YAML and as JSON, and nothing in it can be misread."""

import base64
import hashlib
import json

import pytest
import yaml

from edge_agent import address
from model_packager import linting
from model_packager import recipe as recipes
from model_packager.errors import PackagingRefused
from model_packager.recipe import Artifact
from model_packager.request import JobRequest, from_flags

PREFIX = "s3://factory-models/line-3"
ZIP = "0123456789ab_greengrass_model_component.zip"
DIGESTS = hashlib.sha256(b"the zip").digest(), hashlib.sha256(b"the script").digest()


def request(**changes: str) -> JobRequest:
    return from_flags(
        **{
            "project_name": "boards",
            "model_version": "3",
            "component_name": "com.example.Boards",
            "component_description": "Boards, line 3",
            "output": "s3://factory-models/line-3",
            "target_platform": "os=LINUX,arch=X86_64",
            "tags": "line=3",
            **changes,
        }
    )


def recipe(prefix: str = PREFIX, **changes: str) -> dict:
    places = f"{prefix}/{ZIP}", f"{prefix}/register.sh"
    return recipes.recipe(request(**changes), *map(Artifact, places, DIGESTS))


def test_every_key_and_its_spelling():
    assert recipe() == {
        "RecipeFormatVersion": "2020-01-25",
        "ComponentName": "com.example.Boards",
        "ComponentVersion": "3.0.0",
        "ComponentDescription": "Boards, line 3",
        "ComponentPublisher": "Edge Agent",
        "ComponentConfiguration": {
            "DefaultConfiguration": {
                "Socket": "unix:///tmp/aws.iot.lookoutvision.EdgeAgent.sock",
                "Autostart": "false",
                "Registry": "",
            }
        },
        "ComponentDependencies": {
            "aws.iot.lookoutvision.EdgeAgent": {"VersionRequirement": ">=1.3.0 <2.0.0", "DependencyType": "SOFT"}
        },
        "Manifests": [
            {
                "Platform": {"os": "linux", "architecture": "amd64", "runtime": "*"},
                "Lifecycle": {
                    "startup": {
                        "Timeout": "900",
                        "Script": 'exec sh "{artifacts:path}/register.sh" "com.example.Boards" "3.0.0" '
                        '"0123456789ab_greengrass_model_component.zip" "{artifacts:path}" "{artifacts:decompressedPath}" '
                        '"{kernel:rootPath}"',
                        "Setenv": {
                            "EDGE_AGENT_REGISTRY": "{configuration:/Registry}",
                            "EDGE_AGENT_AUTOSTART": "{configuration:/Autostart}",
                        },
                    }
                },
                "Artifacts": [
                    {
                        "Uri": "s3://factory-models/line-3/0123456789ab_greengrass_model_component.zip",
                        "Unarchive": "ZIP",
                        "Digest": base64.b64encode(DIGESTS[0]).decode(),
                        "Algorithm": "SHA-256",
                        "Permission": {"Read": "ALL"},
                    },
                    {
                        "Uri": "s3://factory-models/line-3/register.sh",
                        "Digest": base64.b64encode(DIGESTS[1]).decode(),
                        "Algorithm": "SHA-256",
                        "Permission": {"Read": "ALL"},
                    },
                ],
            }
        ],
    }
    assert recipe()["ComponentConfiguration"]["DefaultConfiguration"]["Socket"] == address.DEFAULT


@pytest.mark.parametrize(
    ("target", "architecture"),
    [
        ({}, "amd64"),
        ({"target_platform": "os=LINUX,arch=ARM64"}, "aarch64"),
        ({"target_platform": "", "target_device": "jetson_agx_orin"}, "aarch64"),
        ({"target_platform": "", "target_device": "l4"}, "amd64"),
    ],
)
def test_architecture(target, architecture):
    assert recipe(**target)["Manifests"][0]["Platform"]["architecture"] == architecture


def test_a_description_is_always_there():
    assert recipe(component_description="")["ComponentDescription"] == "Version 3 of the model boards"


def test_tags_are_not_in_it():
    assert recipe() == recipe(tags="")


@pytest.mark.parametrize(
    "name",
    [
        "1e3",
        "123",
        "1_000",
        "0x1F",
        "0o17",
        "1.5",
        "true",
        "No",
        "null",
        ".inf",
        "-",
        "...",
        "---",
        "2020-01-25",
        "a" * 128,
    ],
)
def test_yaml_and_json_hold_the_same(name):
    content = recipe(component_name=name, component_description="?: 'null', (no)", component_version="1.0.10")
    as_yaml, as_json = recipes.as_yaml(content), recipes.as_json(content)
    assert json.loads(as_json) == content
    assert yaml.safe_load(as_yaml) == content
    # Readers of other YAML versions take a bare 1e3 or 0o17 for a number; in quotes nobody does.
    assert f'\nComponentName: "{name}"\n' in as_yaml
    assert '\nComponentVersion: "1.0.10"\n' in as_yaml
    assert '\n    Autostart: "false"\n' in as_yaml
    assert '\n      Timeout: "900"\n' in as_yaml
    assert '\nRecipeFormatVersion: "2020-01-25"\n' in f"\n{as_yaml}"


def test_the_texts_are_deterministic_and_in_order():
    assert recipes.as_yaml(recipe()) == recipes.as_yaml(recipe())
    assert recipes.as_json(recipe()) == recipes.as_json(recipe())
    for text in (recipes.as_yaml(recipe()), recipes.as_json(recipe())):
        assert text.index("RecipeFormatVersion") < text.index("ComponentName") < text.index("Manifests")
        assert text.endswith("\n")
        assert text.isascii()


def test_long_texts_stay_on_their_line():
    prefix = f"s3://abc/{'a/' * 500}b"
    assert f'  - Uri: "{prefix}/{ZIP}"\n' in recipes.as_yaml(recipe(prefix))


def test_length():
    def longest(prefix: str) -> int:
        content = recipe(prefix)
        return max(len(text) for text in (recipes.as_yaml(content), recipes.as_json(content)))

    # The address is there twice, for the zip and for the script.
    room, odd = divmod(16_000 - longest(""), 2)
    description = "d" * (len("Boards, line 3") + odd)
    assert longest("a" * room) == 16_000 - odd
    recipe("a" * room, component_description=description)
    with pytest.raises(
        PackagingRefused, match=r"has 16001 bytes and Greengrass takes 16000; shorten the address .* --output"
    ):
        recipe("a" * room, component_description=f"{description}d")


# What makes a recipe long, short, or odd.
REQUESTS = {
    "usual": (PREFIX, {}),
    "folder": ("s3://BUCKET_NAME/com.example.Boards/3.0.0", {}),
    "other architecture": (PREFIX, {"target_platform": "os=LINUX,arch=ARM64"}),
    "device": (PREFIX, {"target_platform": "", "target_device": "jetson_agx_orin"}),
    "no description": (PREFIX, {"component_description": ""}),
    "odd description": (PREFIX, {"component_description": "?: 'null', (no);"}),
    "name that is a number": (PREFIX, {"component_name": "1e3", "component_version": "1.0.10"}),
    "name that is a word": (PREFIX, {"component_name": "null"}),
    "name of signs": (PREFIX, {"component_name": "-._"}),
    "prefix of signs": ("s3://abc/x!_.*'()-/y", {}),
    "longest": (
        f"s3://{'b' * 63}/{'p' * 1024}/{'c' * 128}/999999.999999.999999",
        {"component_name": "c" * 128, "component_description": "d" * 256, "component_version": "999999.999999.999999"},
    ),
}


@pytest.mark.parametrize("what", REQUESTS)
def test_every_request_that_is_accepted_fits_and_has_no_finding(what):
    prefix, changes = REQUESTS[what]
    content = recipe(prefix, **changes)
    texts = recipes.as_yaml(content), recipes.as_json(content)
    for text in texts:
        assert linting.lint(text) == []
    # What nucleus lite reads a recipe into is smaller than what Greengrass takes.
    assert max(map(len, texts)) < linting.LONGEST_LITE


def test_the_linter_would_find_something():
    content = recipe()
    content["Manifests"][0]["Lifecycle"]["startup"]["Script"] += " {artifacts:pat}"
    for text in (recipes.as_yaml(content), recipes.as_json(content)):
        assert [one.rule for one in linting.lint(text)] == ["variable-unknown"]
