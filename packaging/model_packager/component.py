"""The files of a model component: the package, the same zipped, what registers it, the recipes and the job's record."""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path

from edge_agent.naming import COMPONENT_SUFFIX
from model_packager import recipe, request
from model_packager.destinations import Destination
from model_packager.recipe import Artifact
from model_packager.request import JobRequest

# The same bytes from the same files, whenever they were made: the oldest time that a zip can say.
ZIP_TIME = (1980, 1, 1, 0, 0, 0)


def lay_out(
    package: Path, out: Path, asked: JobRequest, destination: Destination, told: Mapping[str, object]
) -> dict[str, object]:
    """Lay out in the new folder `out` what is published, and move the package there; return the job's result.

    The package's name has the first 12 digits of its manifest's digest, as those of the original have of theirs.
    `told` is what the result says besides.

    Raises:
        PackagingRefused: the recipe is longer than Greengrass takes.

    """
    name = hashlib.sha256((package / "manifest.json").read_bytes()).hexdigest()[:12] + COMPONENT_SUFFIX
    out.mkdir()
    package.rename(out / name)
    archive, script = out / f"{name}.zip", out / recipe.SCRIPT.name
    zip_folder(out / name, archive)
    shutil.copyfile(recipe.SCRIPT, script)
    made = recipe.recipe(asked, *(_artifact(one, asked, destination) for one in (archive, script)))
    (out / "recipe.yaml").write_text(recipe.as_yaml(made), encoding="utf-8")
    (out / "recipe.json").write_text(recipe.as_json(made), encoding="utf-8")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    result = {"Artifact": archive.name, "Sha256": digest, "Size": archive.stat().st_size, **told}
    record = {**request.to_document(asked), "Status": "SUCCEEDED", "Result": result}
    (out / "job.json").write_text(json.dumps(record, indent=1) + "\n")
    return result


def _artifact(path: Path, asked: JobRequest, destination: Destination) -> Artifact:
    uri = destination.artifact_uri(asked.component_name, asked.component_version, path.name)
    return Artifact(uri, hashlib.sha256(path.read_bytes()).digest())


def zip_folder(folder: Path, archive: Path) -> None:
    """Write the files of a folder into a zip whose bytes depend on nothing but their names and contents."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as made:
        for path in sorted(one for one in folder.rglob("*") if one.is_file()):
            entry = zipfile.ZipInfo(str(path.relative_to(folder)), ZIP_TIME)
            entry.external_attr = 0o100644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # Unix, wherever it was made
            made.writestr(entry, path.read_bytes())
