"""The stand-ins of the nuclei read recipes, fill in scripts and keep artifacts as the nuclei do."""

import shutil

import pytest

from support import greengrass_components as components
from support.greengrass import THING
from support.greengrass_deployments import SUCCEEDED
from support.greengrass_orders import Orders
from support.greengrass_parts import HARD, ONE, STAYS, TWO, deploy, lines, one
from support.greengrass_processes import offline
from support.greengrass_recipes import ARCHITECTURE, JAVA, Refused, fits, merged
from support.greengrass_site import Site, until

ORDERS = Orders()
COUNT = 18


# What a script sees.


@ORDERS.on()
def variables_and_environment(site: Site) -> None:
    script = """echo "[{artifacts:path}]"; echo "[{artifacts:decompressedPath}]"; echo "[{work:path}]"
echo "[{kernel:rootPath}]"; echo "[{iot:thingName}]"; echo "[{configuration:/Word}]"; echo "[{configuration:/Deep/Number}]"
echo "[$COMMON]"; echo "[$OWN]"; echo "[$AWS_IOT_THING_NAME]"; echo "[$(pwd)]"; echo "[$(ls)]"; id -u; umask
grep -c : /proc/net/dev"""
    run = {"Script": script, "Setenv": {"OWN": "it's {configuration:/Word}", "COMMON": "own"}}
    lifecycle = {"Setenv": {"COMMON": "common {work:path}", "OWN": "common"}, "run": run}
    configuration = {"Word": "a word", "Deep": {"Number": 3}}
    assert deploy(site, (ONE, {"lifecycle": lifecycle, "configuration": configuration})) == SUCCEEDED
    until(lambda: len(lines(site)) == 15, "it has told all")
    packages, end = site.device.root / "packages", "" if site.kind == JAVA else "/"
    assert lines(site)[:14] == [
        f"[{packages}/artifacts/{ONE}/1.0.0{end}]",
        f"[{packages}/artifacts-unarchived/{ONE}/1.0.0{end}]",
        f"[{site.device.root}/work/{ONE}{end}]",
        f"[{site.device.root}]",
        *(f"[{one}]" for one in (THING, "a word", "3", "own", "it's a word", THING)),
        f"[{site.device.root}/work/{ONE}]",
        "[]",
        str(site.device.user.uid),
        "0022",
    ]
    assert lines(site)[14] == "1" or not offline()


@ORDERS.on()
def a_brace_that_is_no_variable(site: Site) -> None:
    """Nucleus lite runs what stands before it, and calls that a success."""
    assert deploy(site, one(run="echo before\npath=a/\necho ${path%/}\necho after\n")) == SUCCEEDED
    until(lambda: site.device.state(ONE) in {"FINISHED", "inactive"}, "it has ended")
    assert lines(site) == (["before", "a", "after"] if site.kind == JAVA else ["before", "$"])


@ORDERS.on()
def an_unknown_configuration_key(site: Site) -> None:
    assert deploy(site, one(run="echo before\necho {configuration:/Absent}")) == SUCCEEDED
    until(lambda: site.device.state(ONE) in {"FINISHED", "inactive"}, "it has ended")
    assert lines(site) == ["before", "{configuration:/Absent}" if site.kind == JAVA else ""]


@ORDERS.on()
def configuration_is_merged_and_stays(site: Site) -> None:
    part = one(run='echo "{configuration:/A} {configuration:/B/C} {configuration:/B/D}"')
    part[1]["configuration"] = {"A": "a", "B": {"C": "c", "D": "d"}}
    assert deploy(site, part, merge={ONE: {"B": {"C": "changed"}}}) == SUCCEEDED
    until(lambda: len(lines(site)) == 1, "it has run")
    assert deploy(site, part, version="1.1.0", merge={ONE: {"A": "{}"}}) == SUCCEEDED
    until(lambda: len(lines(site)) == 2, "both versions have run")
    assert lines(site) == ["a changed d", "{} changed d"]


# Recipes, versions and artifacts.


@ORDERS.on()
def the_first_manifest_that_matches(site: Site) -> None:
    other = {"amd64": "aarch64", "aarch64": "amd64"}[ARCHITECTURE]
    output = components.component(site.device.base / "output", ONE, {"run": "echo never"})
    recipe = output / "recipes" / f"{ONE}-1.0.0.yaml"
    text = recipe.read_text()
    begun = text.index("Manifests:")
    first = text[begun:].removeprefix("Manifests:\n")
    manifests = [
        first.replace("runtime: '*'", f"architecture: {other}\n    runtime: '*'"),
        first.replace("    runtime: '*'\n", "").replace("never", "without"),
        first.replace("never", "with"),
    ]
    recipe.write_text(text[:begun] + "Manifests:\n" + "".join(manifests))
    assert site.device.deploy({ONE: "1.0.0"}, output).wait() == SUCCEEDED
    until(lambda: lines(site), "it has run")
    assert lines(site) == (["without"] if site.kind == JAVA else ["with"])


@ORDERS.on()
def keys_in_another_case(site: Site) -> None:
    status = deploy(site, one(run={"script": "echo here"}))
    assert status == (SUCCEEDED if site.kind == JAVA else "FAILED: the step run has no script")


@ORDERS.on()
def artifacts_and_zips(site: Site) -> None:
    made = site.device.base / "made"
    (made / "inner").mkdir(parents=True)
    (made / "inner" / "file").write_text("x")
    output = components.component(
        site.device.base / "output",
        ONE,
        {"run": 'ls "{artifacts:path}" "{artifacts:decompressedPath}" 2>&1 | wc -l'},
        Artifacts=[
            {"Uri": f"s3://b/{ONE}/1.0.0/stuff.zip", "Unarchive": "ZIP", "Permission": {"Read": "ALL"}},
            {"Uri": f"s3://b/{ONE}/1.0.0/own", "Permission": {"Execute": "OWNER"}},
        ],
    )
    artifacts = output / "artifacts" / ONE / "1.0.0"
    artifacts.mkdir(parents=True)
    shutil.make_archive(str(artifacts / "stuff"), "zip", made)
    (artifacts / "own").write_text("#!/bin/sh")
    assert site.device.deploy({ONE: "1.0.0"}, output).wait() == SUCCEEDED
    packages = site.device.root / "packages"
    unpacked = packages / "artifacts-unarchived" / ONE / "1.0.0" / "stuff" / "inner" / "file"
    assert unpacked.is_file() == (site.kind == JAVA)
    assert (packages / "artifacts" / ONE / "1.0.0" / "stuff.zip").stat().st_mode & 0o777 == 0o444
    assert (packages / "artifacts" / ONE / "1.0.0" / "own").stat().st_mode & 0o777 == 0o550
    assert unpacked.exists() is False or unpacked.stat().st_mode & 0o777 == 0o444


@ORDERS.on()
def what_cannot_be_deployed(site: Site) -> None:
    part = one(run=STAYS)
    absent = {"Artifacts": [{"Uri": "s3://b/absent"}]}
    assert deploy(site, (ONE, {**part[1], **absent})) == f"FAILED: {ONE} has no artifact absent"
    wrong = {"files": {"file": "x"}, "Artifacts": [{"Uri": "s3://b/file", "Digest": "x"}]}
    assert deploy(site, (ONE, {**part[1], **wrong})) == f"FAILED: the digest of file of {ONE} is another one"
    assert deploy(site, (TWO, {**part[1], "needs": HARD})) == f"FAILED: {TWO} needs {ONE}, which is not there"
    newer = {ONE: {"VersionRequirement": ">=2.0.0", "DependencyType": "HARD"}}
    assert deploy(site, part, (TWO, {**part[1], "needs": newer})) == f"FAILED: {TWO} needs {ONE} >=2.0.0"
    foreign = {"Platform": {"os": "windows", "runtime": "*"}}
    assert deploy(site, (ONE, {**part[1], **foreign})).endswith("no manifest matches this device")
    assert site.device.deployed == {}


@ORDERS.on()
def old_versions_go_after_a_success_only(site: Site) -> None:
    def versions() -> list[str]:
        return sorted(one.name for one in (site.device.root / "packages" / "artifacts" / ONE).iterdir())

    part = (ONE, {"lifecycle": {"run": STAYS}, "files": {"file": "x"}})
    assert deploy(site, part) == SUCCEEDED
    broken = (ONE, {"lifecycle": {"startup": "exit 1"}, "files": {"file": "x"}})
    assert "is BROKEN" in deploy(site, broken, version="1.1.0")
    assert versions() == ["1.0.0", "1.1.0"]
    if site.kind == JAVA:  # it goes back by itself
        assert site.device.deployed[ONE].version == "1.0.0"
        assert site.device.state(ONE) == "RUNNING"
    assert deploy(site, part, version="1.2.0") == SUCCEEDED
    assert versions() == ["1.2.0"]
    assert deploy(site, (TWO, {"lifecycle": {"run": STAYS}}), remove=(ONE,)) == SUCCEEDED
    assert not (site.device.root / "packages" / "artifacts" / ONE).exists()
    assert site.device.state(ONE) == ""


@pytest.mark.parametrize("name", ORDERS.all)
def test_it_does_as_the_nucleus_does(name, ran):
    ran[ORDERS, name].check()


def test_they_are_counted():
    assert len(ORDERS.all) == COUNT


@pytest.mark.parametrize(
    ("version", "requirement", "fitting"),
    [
        ("1.3.0", ">=1.3.0 <2.0.0", True),
        ("1.10.0", ">=1.3.0", True),
        ("2.0.0", ">=1.3.0 <2.0.0", False),
        ("1.2.9", ">=1.3.0 <2.0.0", False),
        ("1.0.0", "1.0.0", True),
        ("1.0.1", "=1.0.0", False),
    ],
)
def test_version_requirements(version, requirement, fitting):
    assert fits(version, requirement) == fitting


def test_a_requirement_that_no_local_deployment_takes():
    with pytest.raises(Refused):
        fits("1.0.0", "^1.0.0")


def test_configurations_are_merged():
    below = {"a": 1, "b": {"c": 2, "d": 3}}
    assert merged(below, {"b": {"c": 4}, "e": {"f": 5}}) == {"a": 1, "b": {"c": 4, "d": 3}, "e": {"f": 5}}
    assert below == {"a": 1, "b": {"c": 2, "d": 3}}
