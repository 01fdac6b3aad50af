"""The page recipes/README.md, which takes a device over from the original agent: what it says is so.

1. Its commands are run as they stand, in order, in a new folder; what they print is what the page shows.
2. Those that need a device or an account are marked, and fit the API and the documentation of their tools.
3. Documents, keys, names, links and quoted messages are those of this repository.
"""

import contextlib
import itertools
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import botocore
import botocore.loaders
import botocore.model
import botocore.validate
import pytest
from PIL import Image

from edge_agent import live
from edge_agent.config import Settings
from model_packager import linting, recipe
from model_packager.request import AGENT_COMPONENT
from recipes import agent_readme, moving_page
from recipes.moving_page import ANYTHING, NOT_RUN, PAGE, TEXT, Block, blocks, calls
from support import packages
from support.agent import alive, environment, place
from support.users import I_AM_ROOT, MYSELF, ROOT, agent_user
from support.waiting import until

BLOCKS = blocks()
RUN = [one for one in BLOCKS if one.runs]
# What the component is built from.
SOURCES = ("agent", "packaging", "proto", "recipes", "pyproject.toml", "constraints.txt", "README.md", "LICENSE")
MODEL = "com.example.Boards"
# Fetching 130 MB, on a slow line, among other things.
LONG = 540
# Of the commands that cannot be run here, what their documentation has.
GREENGRASS_CLI = {
    ("deployment", "create"): {"--recipeDir", "--artifactDir", "--merge", "--update-config", "--remove"},
    ("deployment", "list"): set(),
    ("component", "details"): {"--name"},
}
GGL_CLI = {("deploy",): {"--recipe-dir", "--artifacts-dir", "--add-component", "--remove-component"}}
# Options of the AWS CLI that are no parameters of an operation.
AWS_CLI = {"--cli-input-json", "--query", "--output"}


# 1. What is run.


@pytest.fixture(scope="module")
def printed() -> Iterator[dict[int, str]]:
    """What each block of commands printed, by its number, up to the first that failed."""
    if platform.machine() != "x86_64":
        pytest.skip("the page packages a model for x86-64")
    above = place()
    try:
        yield _run(_prepare(above))
    finally:
        shutil.rmtree(above, ignore_errors=True)


def _prepare(above: Path) -> Path:
    """Return a new folder in a checkout, in which is what the page says that its reader has."""
    checkout = above / "checkout"
    folder = checkout / "moving"
    folder.mkdir(parents=True)
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            unwanted = shutil.ignore_patterns("__pycache__", "node_modules", "build", "greengrass-build")
            shutil.copytree(source, checkout / name, ignore=unwanted)
        else:
            shutil.copyfile(source, checkout / name)
    component = packages.segmenter(above / "source" / "component")
    with zipfile.ZipFile(folder / "boards.zip", "w") as archive:
        for path in sorted(one for one in component.rglob("*") if one.is_file()):
            archive.write(path, path.relative_to(component))
    (folder / "photos").mkdir()
    for name, level in (("part-1", 20), ("part-2", 230)):
        Image.new("RGB", (64, 64), (level, level, level)).save(folder / "photos" / f"{name}.png")
    subprocess.run(["chmod", "-R", "u+rwX,go+rX,go-w", above], check=True)
    if I_AM_ROOT:
        user = agent_user()
        subprocess.run(["chown", "-R", f"{user.uid}:{user.gid}", above], check=True)
    return folder


def _run(folder: Path) -> dict[int, str]:
    script = "".join(f"printf '\\n@%s@\\n' {number}\n{one.text}" for number, one in enumerate(RUN))
    private = environment(
        HOME=str(folder.parent),
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        EDGE_AGENT_SOCKET=str(folder.parent.parent / "agent.sock"),
    )
    if I_AM_ROOT and agent_user() == MYSELF:
        private["EDGE_AGENT_ALLOW_ROOT"] = "true"
    process = subprocess.Popen(
        ["sh", "-e", "-c", script],
        cwd=folder,
        env=private,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **(agent_user().popen() if agent_user() != MYSELF else {}),
    )
    try:
        out, _ = process.communicate(timeout=LONG)
        if process.returncode == 0:
            until(lambda: not _alive(process.pid), "the agent that the page starts and ends is gone")
    finally:
        for pid in _alive(process.pid):
            os.kill(pid, signal.SIGKILL)
    print(out)
    told = re.split(r"(?m)^@(\d+)@\n", out)
    told_of = {int(number): text for number, text in zip(told[1::2], told[2::2], strict=True)}
    assert process.returncode == 0, f"block {max(told_of)} failed:\n{RUN[max(told_of)].text}\n{told_of[max(told_of)]}"
    return told_of


def _alive(group: int) -> list[int]:
    """Return the processes of a group that run."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and os.getpgid(int(entry.name)) == group and alive(int(entry.name)):
                found.append(int(entry.name))
    return found


@pytest.mark.parametrize("number", range(len(RUN)))
def test_it_prints_what_is_shown(printed, number):
    block = RUN[number]
    assert moving_page.matches(block.shown or ANYTHING, printed[number]), printed[number]


def test_what_is_not_shown_is_noticed():
    """The control of the test above."""
    assert moving_page.matches("a ...\nc", "a b\n\nc\n")
    assert not moving_page.matches("a ...\nc", "a b\nd\n")
    assert not moving_page.matches("a", "a\nb")


def test_most_is_run_and_the_rest_says_why_not():
    shells = [one for one in BLOCKS if one.language == "sh"]
    assert len(RUN) > len(shells) / 3
    needs = {one.text.partition("\n")[0].removeprefix(NOT_RUN) for one in shells if not one.runs}
    assert all(re.match(r"it (needs|changes) .+\.$", one) for one in needs), needs
    # Whatever could be run here is.
    outside = {"aws", "sudo", "systemctl", "agent", "alias"}
    for one in shells:
        programs = {line.split()[0] for line in one.text.splitlines() if line[:1] not in {" ", "#"}}
        assert bool(programs & outside) != one.runs, one.text


# 2. What is not run.


@pytest.mark.parametrize("block", [one for one in BLOCKS if one.language == "sh"], ids=lambda one: one.text[:60])
def test_the_shell_understands_it(block: Block):
    done = subprocess.run(["sh", "-n", "-c", block.text], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def _service(name: str) -> botocore.model.ServiceModel:
    return botocore.model.ServiceModel(botocore.loaders.Loader().load_service_model(name, "service-2"), name)


def _operations(service: str) -> dict[str, botocore.model.OperationModel]:
    model = _service(service)
    return {botocore.xform_name(one, "-"): model.operation_model(one) for one in model.operation_names}


def _aws() -> list[list[str]]:
    return [words for words in calls("aws") if words[0] != "s3"]


def test_calls_of_aws_are_operations_with_such_parameters():
    assert len(_aws()) > 7
    for service, name, *rest in _aws():
        operation = _operations(service)[name]
        parameters = {f"--{botocore.xform_name(one, '-')}" for one in operation.input_shape.members}
        options = [one for one in rest if one.startswith("--")]
        assert {*options} <= parameters | AWS_CLI, (name, options)
        required = {f"--{botocore.xform_name(one, '-')}" for one in operation.input_shape.required_members}
        assert required <= {*options} or "--cli-input-json" in options, name
        for option, value in itertools.pairwise(rest):
            member = next(
                (m for m in operation.input_shape.members if option == f"--{botocore.xform_name(m, '-')}"), ""
            )
            shape = operation.input_shape.members.get(member)
            if pattern := getattr(shape, "metadata", {}).get("pattern"):
                assert re.fullmatch(pattern, value), (option, value)
            if choices := getattr(shape, "enum", None):
                assert value in choices, (option, value)
    assert {tuple(words[:2]) for words in calls("aws") if words[0] == "s3"} == {("s3", "cp")}


def test_an_unknown_operation_would_be_noticed():
    """The control of the test above."""
    assert "create-deployments" not in _operations("greengrassv2")
    assert "create-deployment" in _operations("greengrassv2")


@pytest.mark.parametrize(("program", "known"), [("greengrass-cli", GREENGRASS_CLI), ("ggl-cli", GGL_CLI)])
def test_calls_of_the_nuclei_are_documented(program, known):
    made = calls(program)
    assert made
    for words in made:
        [command] = [one for one in known if tuple(words[: len(one)]) == one]
        assert {one for one in words if one.startswith("--")} <= known[command]


def test_calls_of_ours_are_commands_with_such_options():
    """Of the blocks that are not run, too."""
    for words in [*calls("edge-agent"), *(one for one in calls("agent") if one)]:
        command = [
            sys.executable,
            "-m",
            "edge_agent",
            *words[: 2 if words[0] in {"component", "package"} else 1],
            "--help",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
        assert done.returncode == 0, words
        assert {one for one in words if one.startswith("--")} <= {*re.findall(r"--[a-z-]+", done.stdout)}


# 3. Documents, keys, messages.


def _deployment() -> Any:
    [text] = re.findall(r"(?ms)^cat >deployment\.json <<'END'\n(.*?)^END$", TEXT)
    return json.loads(text)


def test_the_deployment_is_one_to_aws():
    document = _deployment()
    shape = _operations("greengrassv2")["create-deployment"].input_shape
    assert botocore.validate.ParamValidator().validate(document, shape).generate_report() == ""
    for target in (document["targetArn"], document["targetArn"].replace("thing/line-1", "thinggroup/lines")):
        assert re.fullmatch(shape.members["targetArn"].metadata["pattern"], target)
    policies = shape.members["deploymentPolicies"].members
    chosen = document["deploymentPolicies"]
    assert chosen["failureHandlingPolicy"] in policies["failureHandlingPolicy"].enum
    assert chosen["componentUpdatePolicy"]["action"] in policies["componentUpdatePolicy"].members["action"].enum


def _defaults() -> Mapping[str, Mapping[str, str]]:
    """Return the keys of the components that the page deploys."""
    model = {"Socket": "", "Autostart": "", "Registry": ""}
    return {AGENT_COMPONENT: agent_readme.RECIPE["ComponentConfiguration"]["DefaultConfiguration"], MODEL: model}


def test_the_deployment_fits_the_components():
    document = _deployment()
    defaults = _defaults()
    assert document["components"].keys() == defaults.keys()
    for name, one in document["components"].items():
        merged = json.loads(one["configurationUpdate"]["merge"])
        assert merged.keys() <= defaults[name].keys()
        assert all(isinstance(value, str) for value in merged.values())
    versions = {name: one["componentVersion"] for name, one in document["components"].items()}
    assert versions == {AGENT_COMPONENT: agent_readme.RECIPE["ComponentVersion"], MODEL: "2.0.0"}


def test_permissions_are_actions_and_cover_the_commands():
    [policy] = [json.loads(one.text) for one in BLOCKS if one.language == "json"]
    allowed = {action for one in policy["Statement"] for action in one["Action"]}
    assert {one["Effect"] for one in policy["Statement"]} == {"Allow"}
    known = {f"greengrass:{one}" for one in _service("greengrassv2").operation_names}
    known |= {f"iot:{one}" for name in ("iot", "iot-data") for one in _service(name).operation_names}
    known |= {f"s3:{one}" for one in _service("s3").operation_names}
    assert allowed <= known
    prefixes = {"greengrassv2": "greengrass", "iot": "iot"}
    used = {f"{prefixes[service]}:{_operations(service)[name].name}" for service, name, *_ in _aws()}
    assert used <= allowed


def test_names_and_versions():
    assert AGENT_COMPONENT in TEXT
    version = agent_readme.RECIPE["ComponentVersion"]
    assert {*re.findall(re.escape(AGENT_COMPONENT) + r"[=/](\d[\d.]*\d)", TEXT)} == {version}
    assert f"{linting.LONGEST_LITE:,} bytes" in TEXT
    assert f"{recipe.LONGEST:,} bytes" in TEXT


def test_keys():
    """Each name in code that looks like a key is one, of the agent or of a model."""
    known = {key for one in _defaults().values() for key in one}
    named = {*re.findall(r'`"?([A-Z][a-z]+(?:[A-Z][a-z]+)*)"?(?:`|": ")', TEXT)}
    assert named - known == {"CreateDeployment"}
    assert Settings.model_fields["slots"].default == 1


def test_keys_that_change_live_are_on_the_agents_page():
    sentence = re.search(r"(?m)^(`LogLevel`[^.]+?) change while the agent runs", agent_readme.README.read_text())
    assert sentence
    of_the_agent, of_models = sentence[1].split("`ModelSettings`")
    assert {*re.findall(r"`(\w+)`", of_the_agent)} == {live.key_of(one) for one in live.LIVE} - {"ModelSettings"}
    assert {*re.findall(r"`(\w+)`", of_models)} == {*live.LIVE_OF_A_MODEL}


@pytest.mark.parametrize("message", moving_page.messages())
def test_quoted_messages_are_said(message):
    assert moving_page.said(message, _source())


def test_a_message_that_nobody_says_would_be_noticed():
    """The control of the test above."""
    assert len(moving_page.messages()) > 15
    assert not moving_page.said("A server replies on … already", _source())


def _source() -> list[str]:
    if not SAID:
        SAID.extend(moving_page.texts_of_the_source())
    return SAID


SAID: list[str] = []


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        file, _, anchor = target.partition("#")
        path = PAGE.parent / file if file else PAGE
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"(?m)^#+ (.+)$", path.read_text())
            assert anchor in {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}, target
