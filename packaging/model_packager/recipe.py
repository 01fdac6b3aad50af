"""The Greengrass recipe of a model component, for the Java nucleus and for nucleus lite, as YAML and as JSON.

The request's tags are no part of a recipe: they go into the `tags` of CreateComponentVersion.
Sources: Greengrass's component recipe reference, and nucleus lite's docs/RECIPE_SUPPORT_CHANGES.md.
"""

import base64
import json
import sys
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


def recipe(request: JobRequest, artifact_uri: str, sha256: bytes) -> dict[str, Any]:
    """Return the recipe of the component whose zip will be at `artifact_uri` and has this SHA-256 (32 bytes).

    Raises:
        PackagingRefused: the recipe is longer than Greengrass takes.

    """
    artifact = {
        # Keys are case-sensitive on nucleus lite, which wants `Uri`; the reference's `URI` is for the Java nucleus only.
        "Uri": artifact_uri,
        "Unarchive": "ZIP",
        "Digest": base64.b64encode(sha256).decode(),
        "Algorithm": "SHA-256",
        # The agent reads the model, and may run as another user than this component.
        "Permission": {"Read": "ALL"},
    }
    manifest = {
        # Without `runtime` nucleus lite passes over the manifest.
        "Platform": {"os": "linux", "architecture": ARCHITECTURES[request.target.arch], "runtime": "*"},
        # Nucleus lite refuses a component without a lifecycle step, and knows the steps by their lower-case names only.
        "Lifecycle": {"install": "exit 0"},
        "Artifacts": [artifact],
    }
    content = {
        "RecipeFormatVersion": FORMAT_VERSION,
        "ComponentName": request.component_name,
        "ComponentVersion": request.component_version,
        # Without one, nucleus lite writes a unit file whose next line is lost.
        "ComponentDescription": request.component_description
        or f"Version {request.model_version} of the model {request.project_name}",
        "ComponentPublisher": PUBLISHER,
        "ComponentConfiguration": {"DefaultConfiguration": {"Autostart": False, "Socket": address.DEFAULT}},
        "ComponentDependencies": {AGENT_COMPONENT: {"VersionRequirement": AGENT_VERSIONS, "DependencyType": "SOFT"}},
        "Manifests": [manifest],
    }
    size = max(len(as_yaml(content).encode()), len(as_json(content).encode()))
    if size > LONGEST:
        raise PackagingRefused(
            f"The recipe has {size} bytes and Greengrass takes {LONGEST}; shorten the address of the artifact, which is "
            f"{len(artifact_uri)} characters long and begins with --output or S3OutputLocation."
        )
    return content


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
