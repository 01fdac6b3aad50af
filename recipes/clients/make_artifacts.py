"""Lay a client component out for a deployment: python make_artifacts.py CLIENT --wheels FOLDER --output FOLDER.

CLIENT is the name of a folder beside this script. OUTPUT gets `recipes/<component>-<version>.yaml` and
`artifacts/<component>/<version>/`, which is what a local deployment takes, and what goes to S3 for one from the cloud.
"""

import argparse
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
# What an artifact is copied from where it is not in the client's own folder.
ELSEWHERE = {"install.sh": HERE / "install.sh", "edge-agent.proto": HERE.parents[1] / "proto" / "edge-agent.proto"}
# The model component and the bucket that stand in the recipes.
MODEL, BUCKET = "com.example.Boards", "BUCKET_NAME"
URI = re.compile(r'(?m)^( *- Uri: "s3://.*/)(.+)"\n')


class Refused(Exception):
    """The component cannot be made so; the text says why and what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the component that the arguments name; return the exit code."""
    parser = argparse.ArgumentParser(description="Lay a client component out for a deployment.")
    parser.add_argument("client", choices=sorted(path.parent.name for path in HERE.glob("*/recipe.yaml")))
    parser.add_argument("--wheels", type=Path, required=True, help="folder with the wheels for the devices")
    parser.add_argument("--output", type=Path, required=True, help="folder that gets recipes/ and artifacts/")
    parser.add_argument("--model", default=MODEL, help="the model component (default: %(default)s)")
    parser.add_argument("--bucket", default=BUCKET, help="the S3 bucket, for a deployment from the cloud")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another default in the recipe")
    given = parser.parse_args(arguments)
    try:
        recipe = (HERE / given.client / "recipe.yaml").read_text()
        recipe = recipe.replace(MODEL, given.model).replace(BUCKET, given.bucket)
        for setting in given.set:
            recipe = with_default(recipe, setting)
        print(make(HERE / given.client, recipe, wheels_in(given.wheels), given.output))
    except (Refused, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def with_default(recipe: str, setting: str) -> str:
    """Return the recipe with another default for a key of its configuration; raise Refused where it has none such."""
    key, _, value = setting.partition("=")
    text = json.dumps(value, ensure_ascii=False)  # which is YAML, too
    changed, count = re.subn(rf'(?m)^(    {re.escape(key)}: )".*"$', lambda line: line[1] + text, recipe)
    if count != 1:
        raise Refused(f"The recipe's configuration has no key {key!a}; write KEY=VALUE with one of its keys.")
    return changed


def wheels_in(folder: Path) -> list[Path]:
    """Return the wheels of a folder; raise Refused when there is none, or something else."""
    paths = sorted(folder.iterdir())
    for path in paths:
        if path.suffix != ".whl":
            raise Refused(f"{path} is no wheel, and a device builds none; make it one with `pip wheel`, or remove it.")
    if not paths:
        raise Refused(f"There is no wheel in {folder}; README.md has the commands that make them.")
    return paths


def make(client: Path, recipe: str, wheels: Sequence[Path], output: Path) -> Path:
    """Write a client's recipe and artifacts, in the place of what was there; return the recipe's path."""
    name, version = (_value(recipe, key) for key in ("ComponentName", "ComponentVersion"))
    artifacts = output / "artifacts" / name / version
    shutil.rmtree(artifacts, ignore_errors=True)
    artifacts.mkdir(parents=True)
    *_, last = named = list(URI.finditer(recipe))
    for source in [*(ELSEWHERE.get(one[2], client / one[2]) for one in named), *wheels]:
        shutil.copyfile(source, artifacts / source.name)
    lines = "".join(f'{last[1]}{wheel.name}"\n' for wheel in wheels)
    path = output / "recipes" / f"{name}-{version}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(recipe[: last.end()] + lines + recipe[last.end() :])
    return path


def _value(recipe: str, key: str) -> str:
    found = re.search(rf'(?m)^{key}: "(.+)"$', recipe)
    assert found, key
    return found[1]


if __name__ == "__main__":
    sys.exit(main())
