"""The Greengrass recipe of a model component, for the Java nucleus and for nucleus lite, as YAML and as JSON.

The request's tags are no part of a recipe: they go into the `tags` of CreateComponentVersion.
Sources: Greengrass's component recipe reference, and nucleus lite's docs/RECIPE_SUPPORT_CHANGES.md.
"""

import base64
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from edge_agent import address
from model_packager.errors import PackagingRefused
from model_packager.request import AGENT_COMPONENT, JobRequest

FORMAT_VERSION = "2020-01-25"
PUBLISHER = "Edge Agent"
AGENT_VERSIONS = ">=1.3.0 <2.0.0"
ARCHITECTURES = {"X86_64": "amd64", "ARM64": "aarch64"}
# Greengrass takes no longer recipe.
LONGEST = 16_000
# Seconds that a model may wait for the agent, as text: to each nucleus, and each reader of YAML, the same.
TIMEOUT = "900"
# What registers the model with the agent, on the device.
SCRIPT = Path(__file__).with_name("register.sh")


@dataclass(frozen=True)
class Artifact:
    """A file of the component: where it will be, and its SHA-256 (32 bytes)."""

    uri: str
    sha256: bytes

    @property
    def name(self) -> str:
        """The name that the file gets on the device."""
        return self.uri.rpartition("/")[2]


def recipe(request: JobRequest, archive: Artifact, script: Artifact) -> dict[str, Any]:
    """Return the recipe of the component whose model is in a zip, and which `script`, register.sh, registers.

    Raises:
        PackagingRefused: the recipe is longer than Greengrass takes.

    """
    manifest = {
        # Without `runtime` nucleus lite passes over the manifest.
        "Platform": {"os": "linux", "architecture": ARCHITECTURES[request.target.arch], "runtime": "*"},
        "Lifecycle": {"startup": _startup(request, archive, script)},
        "Artifacts": [_artifact(archive, Unarchive="ZIP"), _artifact(script)],
    }
    content = {
        "RecipeFormatVersion": FORMAT_VERSION,
        "ComponentName": request.component_name,
        "ComponentVersion": request.component_version,
        # Without one, nucleus lite writes a unit file whose next line is lost.
        "ComponentDescription": request.component_description
        or f"Version {request.model_version} of the model {request.project_name}",
        "ComponentPublisher": PUBLISHER,
        "ComponentConfiguration": {
            "DefaultConfiguration": {"Socket": address.DEFAULT, "Autostart": "false", "Registry": ""}
        },
        "ComponentDependencies": {AGENT_COMPONENT: {"VersionRequirement": AGENT_VERSIONS, "DependencyType": "SOFT"}},
        "Manifests": [manifest],
    }
    size = max(len(as_yaml(content).encode()), len(as_json(content).encode()))
    if size > LONGEST:
        raise PackagingRefused(
            f"The recipe has {size} bytes and Greengrass takes {LONGEST}; shorten the address of the artifact, which is "
            f"{len(archive.uri)} characters long and begins with --output or S3OutputLocation."
        )
    return content


def _startup(request: JobRequest, archive: Artifact, script: Artifact) -> dict[str, Any]:
    """Return the step after which the component counts as running: once the agent knows the model."""
    paths = "{artifacts:path}", "{artifacts:decompressedPath}", "{kernel:rootPath}"
    arguments = request.component_name, request.component_version, archive.name, *paths
    # Of nucleus lite's own script nothing may follow, since that tells systemd that all is well, come what may.
    called = " ".join(f'"{one}"' for one in (f"{{artifacts:path}}/{script.name}", *arguments))
    return {
        "Timeout": TIMEOUT,
        "Script": f"exec sh {called}",
        # What operators write reaches no shell.
        "Setenv": {
            "EDGE_AGENT_REGISTRY": "{configuration:/Registry}",
            "EDGE_AGENT_AUTOSTART": "{configuration:/Autostart}",
        },
    }


def _artifact(artifact: Artifact, **more: str) -> dict[str, Any]:
    return {
        # Keys are case-sensitive on nucleus lite, which wants `Uri`; the reference's `URI` is for the Java nucleus only.
        "Uri": artifact.uri,
        **more,
        "Digest": base64.b64encode(artifact.sha256).decode(),
        "Algorithm": "SHA-256",
        # The agent reads the model, and may run as another user than this component.
        "Permission": {"Read": "ALL"},
    }


def as_yaml(content: dict[str, Any]) -> str:
    """Return a recipe as YAML in which nothing can be misread: every text that is a value is in quotes."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=sys.maxsize)


def as_json(content: dict[str, Any]) -> str:
    """Return a recipe as JSON."""
    return json.dumps(content, indent=2) + "\n"


class _Dumper(yaml.SafeDumper):
    """Quotes values; PyYAML itself leaves 1e3 bare, which is a number to YAML 1.2."""

    def represent_scalar(self, tag: str, value: Any, style: str | None = None) -> yaml.ScalarNode:
        return super().represent_scalar(tag, value, '"' if tag.endswith(":str") else style)

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        node = super().represent_mapping(tag, mapping, flow_style)
        for key, _ in node.value:
            key.style = None
        return node
