"""The recipe of the agent's component, made of the checkout's: with the artifacts of each processor, and their places."""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from model_packager import linting
from model_packager.errors import PackagingRefused
from model_packager.linting import Finding, Nucleus
from model_packager.recipe import LONGEST

# What stands where the name of the S3 bucket belongs, until somebody publishes the component.
BUCKET = "BUCKET_NAME"
# Greengrass adds these to each artifact of a component that is deployed from the cloud.
DIGEST = {"Digest": "=" * 44, "Algorithm": "SHA-256"}
TOO_LONG = ("size", "size-lite")


def read(path: Path) -> dict[str, Any]:
    """Return the recipe in a file.

    Raises:
        PackagingRefused: it cannot be read.

    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        raise PackagingRefused(
            f"{path}, the recipe that the component is made from, cannot be read; restore it."
        ) from None
    if not isinstance(content, dict):
        raise PackagingRefused(f"{path} is no recipe; restore it.")
    return content


def fill(template: Mapping[str, Any], names: Mapping[str, Sequence[str]], variant: str, bucket: str) -> dict[str, Any]:
    """Return the recipe with the runtime's variant, and a manifest for each platform with the names of its artifacts.

    What an artifact of the template has besides its place, one of the same name keeps.
    """
    content = deepcopy(dict(template))
    content["ComponentConfiguration"]["DefaultConfiguration"]["Variant"] = variant
    given = {_name(one): one for manifest in content["Manifests"] for one in manifest["Artifacts"]}
    place = f"s3://{bucket}/{content['ComponentName']}/{content['ComponentVersion']}"
    content["Manifests"] = [
        {
            "Platform": {"os": "linux", "architecture": platform, "runtime": "*"},
            "Artifacts": [{**deepcopy(given.get(name, {})), "Uri": f"{place}/{name}"} for name in wanted],
        }
        for platform, wanted in names.items()
    ]
    return content


def size_in_the_cloud(content: Mapping[str, Any]) -> int:
    """Return how many bytes a recipe has when a nucleus gets it from the cloud: as JSON, with a digest for each artifact."""
    copy = deepcopy(dict(content))
    for manifest in copy["Manifests"]:
        for artifact in manifest["Artifacts"]:
            artifact.update(DIGEST)
    return len(json.dumps(copy, separators=(",", ":")).encode())


def check(text: str, nucleus: Nucleus) -> None:
    """Refuse a recipe in which the linter finds an error.

    Raises:
        PackagingRefused: there is one.

    """
    errors = [one for one in linting.lint(text, nucleus=nucleus) if one.severity == "error"]
    if not errors:
        return
    if any(one.rule in TOO_LONG for one in errors):
        raise PackagingRefused(_too_long(len(text.encode()), errors))
    raise PackagingRefused(" ".join(["The component's recipe cannot be deployed.", *(one.sentence for one in errors)]))


def _too_long(size: int, errors: Sequence[Finding]) -> str:
    everywhere = any(one.rule == "size" for one in errors)
    most = f"Greengrass takes {LONGEST}" if everywhere else f"nucleus lite reads {linting.LONGEST_LITE}"
    java = "" if everywhere else ", or --nucleus java, if no device has nucleus lite"
    return (
        f"The recipe would have {size} bytes, and {most}; give --zip, which makes one artifact of all wheels for a platform, "
        f"or fewer --platform and --python{java}."
    )


def _name(artifact: Mapping[str, Any]) -> str:
    return str(artifact["Uri"]).rpartition("/")[2]
