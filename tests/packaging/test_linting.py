"""The linter: each rule finds the one fault that is planted for it, says nothing of its mended counterpart, and never hangs.

What is clean is a client's recipe, the recipes that the packager writes, and one with a global lifecycle.
"""

import base64
import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from edge_agent.cli.component import component
from model_packager import lint_dependencies, linting
from model_packager import recipe as recipes
from model_packager.lint_rules import RULES
from model_packager.linting import Finding, lint, lint_bytes
from model_packager.request import AGENT_COMPONENT, from_flags

DIGEST = base64.b64encode(hashlib.sha256(b"wheel").digest()).decode()
CLIENT = f"""\
RecipeFormatVersion: "2020-01-25"
ComponentName: com.example.Inspector
ComponentVersion: "1.0.0"
ComponentDescription: Inspects boards
ComponentPublisher: Example
ComponentConfiguration:
  DefaultConfiguration:
    Socket: unix:///tmp/agent.sock
    Camera:
      Name: left
    Lines: ["1", "2"]
ComponentDependencies:
  com.example.Boards:
    VersionRequirement: ">=1.0.0 <2.0.0"
    DependencyType: HARD
Manifests:
  - Platform:
      os: linux
      architecture: amd64
      runtime: "*"
    Lifecycle:
      Setenv:
        SOCKET: "{{configuration:/Socket}}"
      install:
        Script: |
          python3 -m venv venv
          venv/bin/pip install --no-index --find-links {{artifacts:path}} client
        Timeout: 300
        RequiresPrivilege: false
      run:
        Script: |
          # Whatever {{configuration:/Socket}} says
          exec venv/bin/client "{{configuration:/Camera/Name}}"
    Artifacts:
      - Uri: s3://factory/client-1.0.0-py3-none-any.whl
        Unarchive: NONE
        Permission:
          Read: OWNER
          Execute: NONE
        Algorithm: SHA-256
        Digest: {DIGEST}
"""
WHOLE = """\
RecipeFormatVersion: "2020-01-25"
ComponentName: com.example.Whole
ComponentVersion: "1.0.0"
ComponentDescription: Has a global lifecycle
Manifests:
  - Platform:
      os: linux
      runtime: "*"
    Selections: [linux]
Lifecycle:
  linux:
    run:
      Script: echo hello
"""


def model_recipe(uri: str = "s3://factory/com.example.Boards-3.0.0.zip", **changes: str) -> dict:
    """Return the recipe of a model's component that registers nothing."""
    made = registering_recipe(uri, **changes)
    manifest = made["Manifests"][0]
    manifest["Lifecycle"] = {"install": "exit 0"}
    manifest["Artifacts"] = manifest["Artifacts"][:1]
    return made


def registering_recipe(uri: str = "s3://factory/com.example.Boards-3.0.0.zip", **changes: str) -> dict:
    """Return the recipe that the packager writes for a model."""
    flags = {
        "project_name": "boards",
        "model_version": "3",
        "component_name": "com.example.Boards",
        "output": "s3://factory",
        "target_platform": "os=LINUX,arch=X86_64",
        **changes,
    }
    digest = hashlib.sha256(b"a file").digest()
    script = recipes.Artifact(f"{uri.rpartition('/')[0]}/{recipes.SCRIPT.name}", digest)
    return recipes.recipe(from_flags(**flags), recipes.Artifact(uri, digest), script)


MODEL, MODEL_JSON = recipes.as_yaml(model_recipe()), recipes.as_json(model_recipe())
REGISTERING = recipes.as_yaml(registering_recipe())
AGENT = CLIENT.replace("com.example.Inspector", AGENT_COMPONENT).replace('"1.0.0"', '"1.3.0"', 1)
# The example of Lookout for Vision's developer guide, with addresses in the place of its "S3 path to ...".
FIELD = """\
{
  "RecipeFormatVersion": "2020-01-25",
  "ComponentName": "com.lookoutvison.EdgeAgentPythonExample",
  "ComponentVersion": "1.0.0",
  "ComponentType": "aws.greengrass.generic",
  "ComponentDescription": "Lookout for Vision Edge Agent Sample Application",
  "ComponentPublisher": "Sample App Publisher",
  "ComponentDependencies": {
    "model_component": {
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
          "script": "python3 {artifacts:path}/lookout_vision_agent_example.py"
        }
      },
      "Artifacts": [
        {
          "Uri": "s3://factory/lookoutvision_edge_agent_example.py"
        },
        {
          "Uri": "s3://factory/edge_agent_pb2_grpc.py"
        },
        {
          "Uri": "s3://factory/edge_agent_pb2.py"
        }
      ]
    }
  ],
  "Lifecycle": {}
}
"""
RUN = "Manifests[0].Lifecycle.run"
PLATFORM = "Manifests[0].Platform"
CONFIGURATION = "ComponentConfiguration.DefaultConfiguration"
BOARDS = 'ComponentDependencies["com.example.Boards"]'
ARTIFACT = "Manifests[0].Artifacts[0]"


@dataclass(frozen=True)
class Fault:
    """A fault: its rule, the nucleus it is one on, and where; made of a clean recipe by replacing `old` with `new`."""

    rule: str
    nucleus: str
    place: str
    old: str
    new: str
    clean: str = CLIENT

    def data(self) -> bytes:
        assert self.old in self.clean
        return self.clean.replace(self.old, self.new, 1).encode(errors="surrogateescape")


def script(rule: str, nucleus: str, line: str) -> Fault:
    """Return a fault in the last line of the run script."""
    return Fault(rule, nucleus, f"{RUN}.Script", 'exec venv/bin/client "{configuration:/Camera/Name}"', line)


def step(rule: str, nucleus: str, key: str, setting: str) -> Fault:
    """Return a fault that is a setting of the run step."""
    return Fault(rule, nucleus, f"{RUN}.{key}", "      run:\n", f"      run:\n        {setting}\n")


FAULTS = [
    # The text.
    Fault("not-utf8", "both", "", "Inspects boards", "Inspects \udcff"),
    Fault("size", "both", "", "Inspects boards", "Inspects boards" + 16_000 * "x"),
    Fault("size-lite", "lite", "", "Inspects boards", "Inspects boards" + 9_000 * "x"),
    Fault("empty", "both", "", CLIENT, "\n  \n"),
    Fault("no-recipe", "both", "", CLIENT, "services:\n  web:\n    image: nginx\n"),
    Fault("too-deep", "both", "", CLIENT, "a: " + 40 * "["),
    Fault("syntax", "both", "", "Inspects boards", "'Inspects boards"),
    Fault("tab", "both", "", "  com.example.Boards:", "\tcom.example.Boards:"),
    Fault("json-comment", "both", "", "{\n", "{\n  // the model\n", MODEL_JSON),
    Fault("alias", "both", "", "Name: left", "Name: *left"),
    Fault("documents", "both", "", DIGEST, f"{DIGEST}\n---\nSecond: 2"),
    Fault("duplicate-key", "both", "ComponentPublisher", "ComponentConf", "ComponentPublisher: Other\nComponentConf"),
    Fault("duplicate-key", "java", f"{RUN}.Script", "      run:\n", "      run:\n        script: exit\n"),
    Fault("byte-order-mark", "both", "", "RecipeFormat", "\ufeffRecipeFormat"),
    Fault("yaml-word", "both", f"{CONFIGURATION}.Socket", "unix:///tmp/agent.sock", "off"),
    Fault("yaml-number", "both", "Manifests[0].Lifecycle.Setenv.SOCKET", '"{configuration:/Socket}"', "1.0"),
    Fault("yaml-tag", "both", "", "Name: left", "Name: !Ref left"),
    # Keys and values.
    Fault("unknown-key", "both", "Manifests[0].Lifecycle.instal", "install:", "instal:"),
    Fault("unknown-key", "both", f"{ARTIFACT}.Url", "      - Uri:", "      - Url:"),
    Fault("unknown-key", "both", f"{PLATFORM}.arch", "architecture:", "arch:"),
    Fault("unknown-key", "both", "Nonsense", "Manifests:", "Nonsense: 1\nManifests:"),
    Fault("key-case", "lite", f"{RUN}.script", "        Script: |\n          #", "        script: |\n          #"),
    Fault("key-case", "lite", "Manifests[0].Lifecycle.Run", "      run:", "      Run:"),
    Fault("key-case", "lite", f"{ARTIFACT}.URI", "Uri", "URI"),
    Fault("missing-key", "both", "", 'RecipeFormatVersion: "2020-01-25"\n', ""),
    Fault("missing-key", "both", BOARDS, '    VersionRequirement: ">=1.0.0 <2.0.0"\n', ""),
    Fault("type", "both", "ComponentPublisher", "Publisher: Example", "Publisher: [Example]"),
    Fault("type", "both", f"{RUN}.Setenv", "      run:\n", "      run:\n        Setenv:\n"),
    # What the component is.
    Fault("format-version", "both", "RecipeFormatVersion", "2020-01-25", "2020-01-26"),
    Fault("component-name", "both", "ComponentName", "com.example.Inspector", "com/example"),
    Fault("component-version", "both", "ComponentVersion", '"1.0.0"', "1.0"),
    Fault("component-version", "both", "ComponentVersion", '"1.0.0"', "one"),
    Fault("agent-version", "both", "ComponentVersion", '"1.3.0"', '"1.2.9"', AGENT),
    Fault("agent-version", "both", "ComponentVersion", '"1.3.0"', '"2.0.0"', AGENT),
    Fault("component-type", "lite", "ComponentType", "Manifests", "ComponentType: aws.greengrass.lambda\nManifests"),
    Fault("component-type", "both", "ComponentType", "Manifests", "ComponentType: generic\nManifests"),
    Fault("description-missing", "lite", "", "ComponentDescription: Inspects boards\n", ""),
    Fault("description-lines", "lite", "ComponentDescription", "Inspects boards", "|\n  Inspects\n  boards"),
    # What it depends on.
    Fault("dependency-type", "both", f"{BOARDS}.DependencyType", "HARD", "hard"),
    Fault("dependency-type-missing", "lite", BOARDS, "    DependencyType: HARD\n", ""),
    Fault("version-requirement", "both", f"{BOARDS}.VersionRequirement", ">=1.0.0 <2.0.0", "~~"),
    Fault("version-range-lite", "lite", f"{BOARDS}.VersionRequirement", ">=1.0.0 <2.0.0", "^1.0.0"),
    Fault(
        "agent-hard",
        "lite",
        'ComponentDependencies["aws.iot.lookoutvision.EdgeAgent"].DependencyType',
        "SOFT",
        "HARD",
        MODEL,
    ),
    Fault("soft-order", "java", f"{BOARDS}.DependencyType", "HARD", "SOFT"),
    # Manifests.
    Fault("no-manifest", "both", "Manifests", CLIENT[CLIENT.index("Manifests:") :], "Manifests: []\n"),
    Fault("runtime", "lite", PLATFORM, '      runtime: "*"\n', ""),
    Fault(
        "runtime",
        "lite",
        "Manifests[0]",
        'Platform:\n      os: linux\n      runtime: "*"\n    Selections',
        "Selections",
        WHOLE,
    ),
    Fault("runtime-value", "lite", f"{PLATFORM}.runtime", '"*"', "aws_nucleus_light"),
    Fault("platform-value", "both", f"{PLATFORM}.architecture", "amd64", "x86_64"),
    Fault("platform-value", "both", f"{PLATFORM}.os", "linux", "Linux"),
    Fault("platform-regex", "lite", f"{PLATFORM}.architecture", "amd64", "/amd64|aarch64/"),
    Fault(
        "platform-attribute",
        "lite",
        f'{PLATFORM}["com.example.Camera"]',
        "runtime:",
        "com.example.Camera: two\n      runtime:",
    ),
    Fault(
        "unreachable-manifest",
        "both",
        "Manifests[1].Platform",
        "    Artifacts:",
        '  - Platform: {os: linux, architecture: amd64, runtime: "*"}\n    Lifecycle: {install: exit}\n    Artifacts:',
    ),
    Fault("empty-lifecycle", "lite", "Manifests[0].Lifecycle", 'install: "exit 0"', "Setenv: {}", MODEL),
    Fault(
        "global-lifecycle",
        "lite",
        "Lifecycle",
        "  linux:\n    run:\n      Script: echo hello",
        "  run:\n    Script: echo hello",
        WHOLE,
    ),
    Fault(
        "selection-keys",
        "lite",
        "Lifecycle.linux.run.Script",
        "Script: echo hello",
        "Script: {linux: echo hello}",
        WHOLE,
    ),
    # Steps.
    Fault("startup-and-run", "both", RUN, "      install:", "      startup: exec sh start.sh\n      install:"),
    Fault(
        "step-lite",
        "lite",
        "Manifests[0].Lifecycle.shutdown",
        "      install:",
        "      shutdown: exit 0\n      install:",
    ),
    Fault("startup-exec", "lite", "Manifests[0].Lifecycle.startup.Script", "exec sh", "sh", REGISTERING),
    Fault("startup-exec", "lite", "Manifests[0].Lifecycle.startup", 'install: "exit 0"', "startup: echo hi", MODEL),
    step("timeout", "both", "Timeout", "Timeout: abc"),
    step("timeout", "lite", "Timeout", 'Timeout: "{configuration:/Camera/Name}"'),
    step("run-timeout-text", "java", "Timeout", 'Timeout: "60"'),
    step("requires-privilege", "both", "RequiresPrivilege", "RequiresPrivilege: yes"),
    step("requires-privilege", "lite", "RequiresPrivilege", "RequiresPrivilege: True"),
    step("requires-privilege-text", "both", "RequiresPrivilege", 'RequiresPrivilege: "true"'),
    step("skipif", "java", "Skipif", "Skipif: test -e client"),
    step("skipif-lite", "lite", "Skipif", "Skipif: onpath client"),
    step("setenv-name", "lite", "Setenv.MY-NAME", "Setenv:\n          MY-NAME: x"),
    Fault(
        "setenv-value",
        "lite",
        "Manifests[0].Lifecycle.Setenv.PORT",
        '"install"',
        '"Setenv": {"PORT": 80}, "install"',
        MODEL_JSON,
    ),
    Fault(
        "startup-timeout",
        "both",
        "Manifests[0].Lifecycle.startup",
        'install: "exit 0"',
        "startup: exec sh -c 'until test -e x; do sleep 1; done'",
        MODEL,
    ),
    # Scripts.
    script("brace", "lite", "echo ${HOME}"),
    script("variable-unknown", "both", "cat {artifacts:paths}/x"),
    script("variable-other-component", "lite", "cat {com.example.Boards:artifacts:path}/x"),
    script("variable-other-component", "both", "cat {com.example.Others:artifacts:path}/x"),
    script("configuration-pointer", "both", 'echo "{configuration:/Camera/Nane}"'),
    script("configuration-pointer", "lite", 'echo "{configuration:/Lines/1}"'),
    script("configuration-object", "both", 'echo "{configuration:/Camera}"'),
    script("variable-unquoted", "both", "echo {configuration:/Socket}"),
    script("pip-network", "both", "pip3 install grpcio"),
    # Artifacts.
    Fault("artifact-uri", "both", f"{ARTIFACT}.Uri", "s3://", "https://"),
    Fault("artifact-uri", "lite", f"{ARTIFACT}.Uri", "s3://", "S3://"),
    Fault(
        "artifact-name",
        "both",
        "Manifests[0].Artifacts[1].Uri",
        DIGEST,
        f"{DIGEST}\n      - Uri: s3://other/client-1.0.0-py3-none-any.whl",
    ),
    Fault("unarchive", "both", f"{ARTIFACT}.Unarchive", "Unarchive: NONE", "Unarchive: zip"),
    Fault("permission", "both", f"{ARTIFACT}.Permission.Execute", "Execute: NONE", "Execute: EVERYBODY"),
    Fault("model-permission", "java", ARTIFACT, '    Permission:\n      Read: "ALL"\n', "", MODEL),
    Fault("model-permission", "both", f"{ARTIFACT}.Permission", '"ALL"', '"OWNER"', MODEL),
    Fault("digest", "both", f"{ARTIFACT}.Digest", DIGEST, hashlib.sha256(b"wheel").hexdigest()),
    Fault("algorithm", "both", f"{ARTIFACT}.Algorithm", "SHA-256", "MD5"),
    Fault(
        "zip-local",
        "lite",
        f"{ARTIFACT}.Unarchive",
        'install: "exit 0"',
        "install: ls {artifacts:decompressedPath}",
        MODEL,
    ),
    Fault("configuration-number", "both", f"{CONFIGURATION}.Camera.Name", "left", "8080"),
    Fault(
        "configuration-variable",
        "both",
        f"{CONFIGURATION}.Socket",
        "unix:///tmp/agent.sock",
        '"{work:path}/agent.sock"',
    ),
]

# Each of the faults above, and none besides.
PLANTED = 92
OTHER = {"java": "lite", "lite": "java"}


def told(findings: list[Finding]) -> list[tuple[str, str, str]]:
    return [(one.rule, one.nucleus, one.place) for one in findings]


def changed(**settings: object) -> dict:
    """Return the client's recipe with other settings at its top."""
    return {**yaml.safe_load(CLIENT), **settings}


def rules(recipe: object, nucleus: str = "both") -> list[str]:
    """Return the rules that a recipe breaks as YAML, which are those that it breaks as JSON."""
    found = sorted(one.rule for one in lint(recipes.as_yaml(recipe), nucleus=nucleus))
    assert sorted(one.rule for one in lint(recipes.as_json(recipe), nucleus=nucleus)) == found
    return found


def in_run(script: str, nucleus: str = "lite") -> list[str]:
    """Return the rules that a script breaks."""
    recipe = changed()
    recipe["Manifests"][0]["Lifecycle"]["run"] = {"Script": script}
    return rules(recipe, nucleus)


class TestRules:
    @pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.rule}-{fault.nucleus}-{fault.place}")
    def test_a_planted_fault_is_found_and_its_counterpart_is_clean(self, fault):
        assert lint(fault.clean) == []
        (found,) = lint_bytes(fault.data(), nucleus=fault.nucleus)
        assert told([found]) == [(fault.rule, fault.nucleus, fault.place)]
        assert found.severity == RULES[fault.rule].severity
        assert found.sentence.endswith(".")
        assert found.sentence.isprintable()
        if fault.nucleus in OTHER:
            assert fault.rule not in {one.rule for one in lint_bytes(fault.data(), nucleus=OTHER[fault.nucleus])}
        else:
            for nucleus in OTHER:
                assert told(lint_bytes(fault.data(), nucleus=nucleus)) == [(fault.rule, "both", fault.place)]

    def test_every_rule_has_a_fault_and_every_fault_is_found(self):
        found = [one for fault in FAULTS for one in lint_bytes(fault.data(), nucleus=fault.nucleus)]
        assert len(FAULTS) == len(found) == PLANTED
        assert {fault.rule for fault in FAULTS} == set(RULES)


class TestRecipesOfOurs:
    @pytest.mark.parametrize("nucleus", ["both", "java", "lite"])
    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"component_description": ""},
            {"component_name": "1e3", "component_version": "0.0.1"},
            {"target_platform": "", "target_device": "jetson_agx_orin"},
            {"target_platform": "os=LINUX,arch=ARM64"},
        ],
    )
    def test_what_the_packager_writes_is_clean(self, changes, nucleus):
        content = model_recipe(**changes)
        assert lint(recipes.as_yaml(content), nucleus=nucleus) == []
        assert lint(recipes.as_json(content), nucleus=nucleus) == []

    def test_the_longest_is_clean(self):
        uri = f"s3://{'b' * 63}/{'p' * 1024}/{'c' * 128}-999999.999999.999999.zip"
        content = model_recipe(uri, component_name="c" * 128, component_description="d" * 256)
        assert lint(recipes.as_json(content)) == []


class TestTheFieldsClient:
    def test_on_the_java_nucleus_it_has_no_error(self):
        assert told(lint(FIELD, nucleus="java")) == [("pip-network", "both", "Manifests[0].Lifecycle.install")]

    @pytest.mark.parametrize("nucleus", ["lite", "both"])
    def test_on_nucleus_lite_each_smallest_change_is_one_finding(self, nucleus):
        found = lint(FIELD, nucleus=nucleus)
        assert told(found) == [
            ("runtime", "lite", PLATFORM),
            ("pip-network", "both", "Manifests[0].Lifecycle.install"),
            ("key-case", "lite", f"{RUN}.script"),
        ]
        assert [one.line for one in found] == [16, 20, 22]
        assert 'add `runtime: "*"`' in found[0].sentence
        assert "wheels" in found[1].sentence
        assert "venv" in found[1].sentence
        assert found[2].sentence.endswith("write `Script`.")

    def test_with_these_changes_it_is_clean(self):
        mended = (
            FIELD.replace('"linux"', '"linux", "runtime": "*"')
            .replace('"script"', '"Script"')
            .replace(
                "pip3 install", "python3 -m venv v && v/bin/pip install --no-index --find-links '{artifacts:path}' --"
            )
        )
        assert lint(mended) == []


class TestLines:
    def test_yaml(self):
        line = CLIENT[: CLIENT.index('client "{configuration:/Camera/Name}')].count("\n") + 1
        (found,) = lint(CLIENT.replace("/Camera/Name}", "/Camera/Nane}"))
        assert found.line == line
        assert "write `{configuration:/Camera/Name}`" in found.sentence

    def test_json(self):
        text = json.dumps(changed(ComponentVersion="one", RecipeFormatVersion="2"), indent=2)
        assert [(one.line, one.place) for one in lint(text)] == [(2, "RecipeFormatVersion"), (4, "ComponentVersion")]

    def test_places_of_strange_keys_are_one_printable_line(self):
        found = lint(json.dumps(changed(**{'a"\n\x1b[31m': 1, "é b": 2, "k" * 200: 3})))
        assert [one.rule for one in found] == 3 * ["unknown-key"]
        for one in found:
            assert one.place.isascii()
            assert one.place.isprintable()
            assert len(one.place) < 150


class TestText:
    @pytest.mark.parametrize(
        ("text", "rule"),
        [
            ("---\n", "no-recipe"),
            ("# nothing\n", "empty"),
            ("[]", "no-recipe"),
            ("just words", "no-recipe"),
            ("{}", "no-recipe"),
            ('{"a": NaN}', "syntax"),
            ('{"a": 01}', "syntax"),
            ('{"a": "x\ny"}', "syntax"),
            ('{"a": 1,}', "syntax"),
            ('{"a": 1} {"b": 2}', "syntax"),
            ("{a: 1}", "syntax"),
            ('{"a": 1, # comment\n"b": 2}', "json-comment"),
            ('{"a": /* comment */ 1}', "json-comment"),
            ("? [a, b]\n: c", "syntax"),
            ('a: "\\UFFFFFFFF"', "syntax"),
            ("a: \x00", "syntax"),
            ("%YAML 9.9\n--- a", "syntax"),
            ("{" * 60_000, "syntax"),
            ('{"a":' * 10_000, "too-deep"),
            ("[" * 60_000, "too-deep"),
            ("- " * 30_000, "too-deep"),
            ("x" * 70_000, "size"),
        ],
    )
    def test_what_is_no_recipe_is_one_sentence(self, text, rule):
        found = lint(text)
        assert [one.rule for one in found if one.rule != "size" or rule == "size"] == [rule]
        assert found[-1].sentence.isprintable()

    @pytest.mark.parametrize("data", [b"\xff\xfe{", b"ComponentName: \xe4", bytes(range(256)), b"\x00" * 10_000_000])
    def test_bytes(self, data):
        (found,) = lint_bytes(data)
        assert found.rule in {"not-utf8", "size"}

    def test_a_bomb_of_aliases_is_one_finding(self):
        bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
            f"{name}: &{name} [{','.join(9 * [f'*{before}'])}]\n"
            for before, name in zip("abcdefgh", "bcdefghi", strict=True)
        )
        found = lint(CLIENT.replace("    Lines:", "    ".join(["", *bomb.splitlines(keepends=True)]) + "    Lines:"))
        assert told(found) == [("alias", "both", "")]

    def test_behind_an_alias_nothing_is_guessed(self):
        for key in ("Timeout", "RequiresPrivilege", "Setenv", "Skipif", "Script"):
            found = lint(
                CLIENT.replace("      run:\n        Script:", f"      run:\n        {key}: *x\n        Script:"),
                nucleus="java",
            )
            assert {one.rule for one in found} <= {"alias", "duplicate-key"}
        found = lint(
            CLIENT.replace("Name: left", "Name: *x").replace("    Socket: unix:///tmp/agent.sock", "    Socket: *y")
        )
        assert told(found) == [("alias", "both", "")]

    @pytest.mark.parametrize("word", ["on", "Off", "YES", "no", "y", "N"])
    def test_words_that_are_booleans_to_some(self, word):
        assert [one.rule for one in lint(CLIENT.replace("Name: left", f"Name: {word}"))] == ["yaml-word"]
        assert lint(CLIENT.replace("Name: left", f'Name: "{word}"')) == []

    @pytest.mark.parametrize("number", ["1", "-1", "1.0", "1e3", "0x1F", "0777", "12:30", "1_000", ".5", ".inf"])
    def test_bare_numbers(self, number):
        assert [one.rule for one in lint(CLIENT.replace("Name: left", f"Name: {number}"))] == ["configuration-number"]
        assert lint(CLIENT.replace("Name: left", f'Name: "{number}"')) == []

    @pytest.mark.parametrize("value", ["true", "false", "2020-01-25", "1.0.0", "~", "left right"])
    def test_what_may_be_bare(self, value):
        assert lint(CLIENT.replace("Name: left", f"Name: {value}")) == []
        assert lint(CLIENT.replace('"2020-01-25"', "2020-01-25").replace('"1.0.0"', "1.0.0")) == []

    def test_hostile_recipes_take_no_time(self):
        start = time.process_time()
        for many in (
            changed(Manifests=[{}] * 8_000),
            changed(Manifests=[{"Platform": {"os": f"a{n}"}} for n in range(1_500)]),
            changed(**{f"k{n}": n for n in range(3_000)}),
        ):
            assert lint(json.dumps(many))
        for long in (
            "pip " * 12_000,
            "{configuration:/Socket}" * 2_000,
            "".join(f"{{configuration:/{n}}}" for n in range(2_000)),
            "{" * 40_000,
            "'" * 40_000,
            "while " * 5_000,
            "1" * 40_000,
            "<<a\n" * 10_000,
            '"\\' * 20_000,
            "fi;" * 13_000,
            "a && " * 8_000,
            "$(" * 20_000,
            "> " * 20_000,
        ):
            in_run(long)
            TestScripts.in_startup(long)
            dependencies = {"a": {"VersionRequirement": long, "DependencyType": "HARD"}}
            assert lint(json.dumps(changed(ComponentDependencies=dependencies, ComponentVersion="1" * 9_000 + long)))
        assert time.process_time() - start < 5


class TestVersions:
    @pytest.mark.parametrize(
        "version", ["0.0.0", "1.2.3", "999999.0.1", "1.0.0-alpha.1", "1.0.0+build.5", "1.2.3-rc.1+exp.5114f85"]
    )
    def test_good(self, version):
        assert rules(changed(ComponentVersion=version)) == []

    @pytest.mark.parametrize(
        "version",
        [
            "",
            "1",
            "1.2",
            "1.2.3.4",
            "01.2.3",
            "v1.2.3",
            "1.2.x",
            "1.2.3-",
            "1.2.3-01",
            "1.2.3 ",
            "1000000.0.0",
            "1.0.0-" + 64 * "a",
        ],
    )
    def test_bad(self, version):
        assert rules(changed(ComponentVersion=version)) == ["component-version"]

    @pytest.mark.parametrize(
        "version", ["1.3.0", "1.3.0+build.1-x", "1.3.1-rc.1", "1.4.0", "1.10.0", "1.999999.999999"]
    )
    def test_of_the_agent(self, version):
        assert rules(changed(ComponentName=AGENT_COMPONENT, ComponentVersion=version)) == []

    @pytest.mark.parametrize(
        "version",
        ["0.0.0", "0.1.0", "1.2.999", "1.3.0-rc.1", "1.3.0-1+1.3.0", "2.0.0", "2.0.0-rc.1", "2.3.0", "10.3.0"],
    )
    def test_of_the_agent_that_nobody_asks_for(self, version):
        assert rules(changed(ComponentName=AGENT_COMPONENT, ComponentVersion=version)) == ["agent-version"]
        assert rules(changed(ComponentVersion=version)) == []

    def test_the_agents_is_looked_at_once(self):
        assert rules(changed(ComponentName=AGENT_COMPONENT, ComponentVersion="2")) == ["component-version"]

    @staticmethod
    def requirement(text: str) -> list[Finding]:
        return lint(
            recipes.as_json(
                changed(ComponentDependencies={"a": {"VersionRequirement": text, "DependencyType": "HARD"}})
            )
        )

    @pytest.mark.parametrize("text", ["1.0.0", "=1.0.0", ">=1.3.0 <2.0.0", ">0.0.0", "<=1.0.0-rc.1", ">=1.0.0 <=1.0.0"])
    def test_good_requirements(self, text):
        assert self.requirement(text) == []

    @pytest.mark.parametrize(
        "text", ["~~", "", "one", ">=", ">=1.0.0, <2.0.0", "1.0.0 -", "^^1", "1..0", "||", "1.0.0.0", ">=1.0.0 && <2"]
    )
    def test_malformed_requirements(self, text):
        (found,) = self.requirement(text)
        assert (found.rule, found.nucleus) == ("version-requirement", "both")

    @pytest.mark.parametrize(
        ("text", "mended"),
        [
            ("^1.2.3", ">=1.2.3 <2.0.0"),
            ("^0.2.3", ">=0.2.3 <0.3.0"),
            ("^0.0.3", ">=0.0.3 <0.0.4"),
            ("^1", ">=1.0.0 <2.0.0"),
            ("^0.0", ">=0.0.0 <0.1.0"),
            ("~1.2.3", ">=1.2.3 <1.3.0"),
            ("~1.2", ">=1.2.0 <1.3.0"),
            ("~1", ">=1.0.0 <2.0.0"),
            ("1", ">=1.0.0 <2.0.0"),
            ("1.0", ">=1.0.0 <1.1.0"),
            ("1.x", ">=1.0.0 <2.0.0"),
            ("2.0.*", ">=2.0.0 <2.1.0"),
            ("*", ">=0.0.0"),
            (">= 1.0.0", ">=1.0.0"),
            (">=1.0.0  <2.0.0", ">=1.0.0 <2.0.0"),
            (" >=1.0.0", ">=1.0.0"),
            ("1.0.0 || 2.0.0", lint_dependencies._EXAMPLE),
            ("1.0.0 - 2.0.0", lint_dependencies._EXAMPLE),
        ],
    )
    def test_ranges_that_are_nothing_to_nucleus_lite(self, text, mended):
        (found,) = self.requirement(text)
        assert (found.rule, found.nucleus) == ("version-range-lite", "lite")
        assert found.sentence.endswith(f"write `{mended}`.")
        assert self.requirement(mended) == []

    def test_dependencies_that_need_no_type_and_no_order(self):
        needs = {
            "aws.greengrass.Nucleus": {"VersionRequirement": ">=2.5.0"},
            "aws.greengrass.TokenExchangeService": {"VersionRequirement": ">=2.0.0", "DependencyType": "SOFT"},
            "aws.iot.lookoutvision.EdgeAgent": {"VersionRequirement": ">=1.3.0 <2.0.0", "DependencyType": "SOFT"},
        }
        assert rules(changed(ComponentDependencies=needs)) == []


class TestManifests:
    @staticmethod
    def platforms(*given: dict | None) -> dict:
        """Return a recipe with a manifest for each platform."""
        manifests = [
            {**({} if platform is None else {"Platform": platform}), "Lifecycle": {"install": "exit 0"}}
            for platform in given
        ]
        return changed(Manifests=manifests)

    @pytest.mark.parametrize(
        "given",
        [
            [{"runtime": "*"}],
            [{"os": "linux", "runtime": "aws_nucleus_lite"}, {"os": "linux"}],
            [{"os": "linux"}, {"os": "linux", "runtime": "aws_nucleus_lite"}],
            [{"runtime": "aws_nucleus_lite"}, None],
            [{"os": "windows"}, {"os": "linux", "runtime": "*"}],
            [
                {"os": "linux", "architecture": "amd64", "runtime": "*"},
                {"os": "linux", "architecture": "aarch64", "runtime": "*"},
            ],
            [{"architecture": "amd64", "runtime": "*"}, {"runtime": "*"}],
            [{"os": "all", "runtime": "*"}],
        ],
    )
    def test_each_nucleus_finds_its_own(self, given):
        assert rules(self.platforms(*given)) == []

    @pytest.mark.parametrize(
        ("given", "broken"),
        [
            ([None], ["runtime"]),
            ([{"os": "linux"}], ["runtime"]),
            ([{"os": "linux"}, {"runtime": "aws_nucleus_lite", "architecture": "amd64"}], ["runtime"]),
            ([None, {"runtime": "aws_nucleus_lite"}], ["runtime"]),
            (
                [{"os": "linux", "architecture": "amd64", "runtime": "*"}, {"os": "linux", "architecture": "aarch64"}],
                ["runtime"],
            ),
            ([{"runtime": "*"}, {"os": "linux", "runtime": "*"}], ["unreachable-manifest"]),
            ([{"runtime": "*"}, {"os": "linux"}], ["unreachable-manifest"]),
            (
                [{"os": "linux", "runtime": "*"}, {"os": "linux", "architecture": "amd64", "runtime": "*"}],
                ["unreachable-manifest"],
            ),
            ([{"os": "linux", "architecture": "arm64", "runtime": "*"}], ["platform-value"]),
            ([{"os": "linux", "architecture": "X86-64", "runtime": "*"}], ["platform-value"]),
            ([{"os": "ubuntu", "runtime": "*"}], ["platform-value"]),
            ([{"Os": "linux", "runtime": "*"}], ["unknown-key"]),
            ([{"OS": "linux", "Runtime": "*"}], ["unknown-key", "unknown-key"]),
            ([{"os": ["linux"], "runtime": "*"}], ["type"]),
            ([{"os": "/linux|darwin/", "runtime": "*"}], ["platform-regex"]),
        ],
    )
    def test_what_a_nucleus_passes_over(self, given, broken):
        assert rules(self.platforms(*given)) == broken

    def test_what_one_nucleus_never_reads_is_only_looked_at_for_the_other(self):
        recipe = self.platforms({"os": "linux", "runtime": "aws_nucleus_lite"}, {"os": "linux"})
        recipe["Manifests"][1]["Lifecycle"] = {"Run": {"script": "echo ${HOME}", "Skipif": "onpath x"}}
        assert rules(recipe) == []
        recipe["Manifests"][0], recipe["Manifests"][1] = recipe["Manifests"][1], recipe["Manifests"][0]
        assert rules(recipe) == []

    def test_the_java_nucleus_needs_no_step_and_no_runtime(self):
        recipe = changed(Manifests=[{"Artifacts": [{"URI": "greengrass:x.py"}, {"URI": "docker:registry/image:1"}]}])
        assert rules(recipe, "java") == []

    @pytest.mark.parametrize("lifecycle", [{}, {"shutdown": "exit"}, {"Setenv": {"A": "b"}}])
    def test_without_a_step(self, lifecycle):
        recipe = changed(Manifests=[{"Platform": {"runtime": "*"}, "Lifecycle": lifecycle}])
        assert "empty-lifecycle" in rules(recipe, "lite")
        assert rules(recipe, "java") == []

    def test_selection_keys(self):
        recipe = yaml.safe_load(WHOLE)
        recipe["Lifecycle"] = {"all": {"install": "exit 0"}, "edge": {"Run": "echo ${HOME}"}}
        recipe["Manifests"][0]["Selections"] = ["edge", "all"]
        assert rules(recipe) == []
        recipe["Lifecycle"]["edgy"] = {"run": "exit"}
        assert rules(recipe) == ["unknown-key"]

    @pytest.mark.parametrize(
        "uri",
        [
            "s3//bucket/x",
            "s3://bucket",
            "s3://bucket/",
            "s3:/bucket/x",
            "file:///x",
            "http://a/x",
            "x.py",
            "greengrass:",
            "",
        ],
    )
    def test_addresses(self, uri):
        recipe = changed()
        recipe["Manifests"][0]["Artifacts"][0]["Uri"] = uri
        assert rules(recipe) == ["artifact-uri"]

    @pytest.mark.parametrize(
        "digest", ["x", "", DIGEST[:-1], DIGEST + "=", base64.b64encode(b"short").decode(), "é" * 44]
    )
    def test_digests(self, digest):
        recipe = changed()
        recipe["Manifests"][0]["Artifacts"][0]["Digest"] = digest
        assert rules(recipe) == ["digest"]

    @pytest.mark.parametrize("artifact", [0, 1])
    def test_whoever_registers_a_model_lets_the_agent_read_it(self, artifact):
        recipe = registering_recipe()
        assert rules(recipe) == []
        del recipe["Manifests"][0]["Artifacts"][artifact]["Permission"]
        assert rules(recipe) == ["model-permission"]

    def test_zips(self):
        recipe = model_recipe()
        lifecycle = recipe["Manifests"][0]["Lifecycle"]
        lifecycle["install"] = "ls {artifacts:decompressedPath} || unzip {artifacts:path}/x.zip"
        assert rules(recipe) == []
        lifecycle["Setenv"] = {"MODEL": "{artifacts:decompressedPath}"}
        lifecycle["install"] = "exit 0"
        assert rules(recipe) == ["zip-local"]


class TestScripts:
    @pytest.mark.parametrize(
        "script",
        [
            "exit 0",
            "python3 {artifacts:path}/x.py --root {kernel:rootPath} --work {work:path}",
            'echo "$HOME" "{iot:thingName}"',
            "tar x {artifacts:decompressedPath}/x.tar",
            'it\\\'s "{configuration:/Socket}"',
            "echo 'a' \"b {configuration:/Socket}\" 'c'",
            "# it's {configuration:/Socket}\nexit",
            'pip install --no-index x; pip3 --no-index install \\\n  y; echo "uninstall pip"',
            "PIP_NO_INDEX=1 pip install x",
        ],
    )
    def test_good(self, script):
        assert in_run(script, "both") == []

    @pytest.mark.parametrize(
        "script",
        [
            "${d%/}",
            "${HOME}",
            "awk '{print}'",
            "f() { true; }",
            "{",
            "{}",
            "{artifacts}",
            "a {artifacts:path",
            "echo {1..3}",
            '{"a": 1}',
            "{ {work:path}",
            "# {",
        ],
    )
    def test_every_other_brace_is_one_on_nucleus_lite(self, script):
        assert in_run(script) == ["brace"]
        assert in_run(script, "java") == []

    def test_each_is_told_once_with_what_mends_it(self):
        recipe = changed()
        recipe["Manifests"][0]["Lifecycle"]["run"] = "echo ${HOME} ${HOME} ${USER}x ${d%/}"
        found = lint(recipes.as_json(recipe))
        assert [one.rule for one in found] == 3 * ["brace"]
        assert found[0].sentence.endswith("write $HOME without braces.")
        assert found[1].sentence.endswith('write "$USER" apart from what follows.')
        assert "into a file among the artifacts" in found[2].sentence

    @pytest.mark.parametrize(
        ("script", "broken"),
        [
            ("'{configuration:/Socket}'", ["variable-unquoted"]),
            ('\\"{configuration:/Socket}\\"', ["variable-unquoted"]),
            ("cat <{iot:thingName}", ["variable-unquoted"]),
            ('"{configuration:Socket}"', ["configuration-pointer"]),
            ('"{configuration:}"', ["configuration-pointer"]),
            ('"{configuration:/Lines}"', ["configuration-object"]),
            ('"{configuration:/socket}"', ["configuration-pointer"]),
            ('"{configuration:/Socket/x}"', ["configuration-pointer"]),
            ("{artifact:path}", ["variable-unknown"]),
            ("{kernel:rootpath}", ["variable-unknown"]),
            ("{com.example.Boards:configuration:/x}", ["variable-other-component"]),
            ("pip install x", ["pip-network"]),
            ("python3 -m pip install -U --user x", ["pip-network"]),
            ("pip install --no-index x && pip3 install y", ["pip-network"]),
        ],
    )
    def test_bad(self, script, broken):
        assert in_run(script) == broken

    def test_values_of_variables_of_the_environment(self):
        recipe = changed()
        run = recipe["Manifests"][0]["Lifecycle"]["run"]
        run["Setenv"] = {"A": "{configuration:/Socket}", "B": "{artifacts:path}/x y"}
        assert rules(recipe) == []
        run["Setenv"] = {"A": "${HOME}", "B": "{configuration:/nothing}", "C": None}
        assert rules(recipe) == ["brace", "configuration-pointer", "type"]

    @pytest.mark.parametrize(
        "script",
        [
            'exec sh "{artifacts:path}/register.sh" x',
            "cd /x\nexec ./prog >log 2>&1 # it stays\n\n",
            "cd /x && exec ./prog || exit 1",
            "exec ./prog \\\n  --name $(hostname) `date` $((1 + 2))",
            "A=1 exec ./prog 'a; b' \"c & d\" e#f",
            "exec >log ./prog",
            '[ -z "$NOTIFY_SOCKET" ] || exec systemd-notify --ready',
            'if [ -n "$NOTIFY_SOCKET" ]; then exec systemd-notify --ready; fi',
            'case "$x" in\n  (a) exec a ;;\n  b) exec b\nesac',
            "while true; do exec ./prog; done",
            "exec python3 - <<'EOF'\nprint(\"it's\")\nEOF",
            "cat >x <<A <<-B\nit's\nA\nb\n\tB\nexec ./prog",
            "touch x\nsystemd-notify --ready\nexit 0",
            "systemd-notify --ready; while true; do ./prog; sleep 1; done",
            'if [ -n "$NOTIFY_SOCKET" ]; then systemd-notify --ready; exit 0; fi',
            "exec -a name ./prog",
        ],
    )
    def test_a_startup_that_says_itself_when_it_is_ready(self, script):
        assert self.in_startup(script) == []

    @pytest.mark.parametrize(
        "script",
        [
            "echo hi",
            'sh "{artifacts:path}/register.sh"',
            "./prog\n# exec ./prog",
            "sh -c 'exec ./prog'",
            "exec >log 2>&1",
            "exec",
            "exec ./prog | tee log",
            "yes | exec ./prog",
            "exec ./prog &",
            "exec ./prog >&2 &\n",
            "(cd /x; exec ./prog)",
            "(cd /x\nif true; then exec ./prog; fi\n)",
            "if true; then exec ./prog; fi &",
            "if true; then exec ./prog; fi | cat",
            "if true; then exec ./prog; else ./other; fi",
            "exec=1; ./prog exec x",
            "./prog || exit 1",
            "until ./prog; do sleep 1; done",
            "systemd-notify --ready; ./prog &\nwait",
            "if true; then exit; fi",
            "systemd-notify --ready; ./prog || exit 1",
            "if true; then systemd-notify --ready; ./prog; fi",
            "cat <<EOF\nexec ./prog\nEOF",
            "exit 0",
            "touch x; exit",
            "fi",
            ";",
            "# nothing",
        ],
    )
    def test_a_startup_that_nucleus_lite_speaks_for(self, script):
        assert self.in_startup(script) == ["startup-exec"]
        assert self.in_startup(script, "java") == []
        assert in_run(script) == []

    def test_what_mends_a_startup(self):
        def sentence(script: str) -> str:
            recipe = model_recipe()
            recipe["Manifests"][0]["Lifecycle"] = {"startup": script}
            (found,) = lint(recipes.as_json(recipe))
            return found.sentence

        assert "write `exec` before that command" in sentence("./prog")
        mend = '[ -z "$NOTIFY_SOCKET" ] || exec systemd-notify --ready'
        assert sentence("./prog; exit 0").endswith(f"end with `{mend}`.")
        assert self.in_startup(f"./prog; {mend}") == []

    def test_a_startup_in_the_global_lifecycle(self):
        assert lint(WHOLE.replace("run:", "startup:").replace("echo hello", "exec sh start.sh")) == []
        found = lint(WHOLE.replace("run:", "startup:"))
        assert told(found) == [("startup-exec", "lite", "Lifecycle.linux.startup.Script")]
        elsewhere = WHOLE.replace("  linux:", "  windows:\n    startup: echo hello\n  linux:")
        assert lint(elsewhere.replace("[linux]", "[linux, windows]")) == []

    @staticmethod
    def in_startup(script: str, nucleus: str = "both") -> list[str]:
        """Return the rules that a startup script breaks, with a timeout that is long enough for it."""
        recipe = changed()
        recipe["Manifests"][0]["Lifecycle"] = {"startup": {"Script": script, "Timeout": 300}}
        return rules(recipe, nucleus)

    @pytest.mark.parametrize("timeout", [0, 300, "300"])
    def test_timeouts(self, timeout):
        recipe = changed()
        recipe["Manifests"][0]["Lifecycle"] = {"startup": {"Script": "exec sleep 1", "Timeout": timeout}}
        assert rules(recipe) == []

    @pytest.mark.parametrize("timeout", [-1, 1.5, "", "5m", " 5", "1e3", True, None, [1], {"a": 1}])
    def test_no_timeouts(self, timeout):
        recipe = changed()
        recipe["Manifests"][0]["Lifecycle"] = {"startup": {"Script": "exec sleep 1", "Timeout": timeout}}
        assert rules(recipe) == ["timeout"]

    @pytest.mark.parametrize("value", ["yes", "1", "True", 1, 0, None, [], {}])
    def test_no_booleans(self, value):
        recipe = changed()
        recipe["Manifests"][0]["Lifecycle"]["run"]["RequiresPrivilege"] = value
        assert rules(recipe) == ["requires-privilege"]

    @pytest.mark.parametrize(
        "step",
        [None, 5, [], ["exit"], {"Timeout": 5}, {"Script": None}, {"Script": ["exit"]}, {"Script": {"linux": "x"}}],
    )
    def test_no_scripts(self, step):
        recipe = changed()
        recipe["Manifests"][0]["Lifecycle"]["install"] = step
        (found,) = lint(recipes.as_json(recipe))
        assert found.rule in {"type", "missing-key"}


class TestCommand:
    @pytest.fixture
    def write(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)

        def write(name: str, content: str | bytes) -> str:
            Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
            return name

        return write

    @staticmethod
    def run(*arguments: str):
        return CliRunner().invoke(component, ["lint", *arguments])

    def test_clean(self, write):
        done = self.run(write("recipe.yaml", CLIENT), write("recipe.json", MODEL_JSON))
        assert (done.exit_code, done.output) == (0, "No findings in 2 recipes.\n")

    def test_errors_come_as_compilers_tell_them(self, write):
        done = self.run(write("field.json", FIELD))
        assert done.exit_code == 1
        told = done.output.splitlines()
        assert told[0] == (
            "field.json:16: error: Manifests[0].Platform: Nucleus lite passes over a platform without `runtime`; "
            'add `runtime: "*"`, which matches both nuclei. [lite, runtime]'
        )
        assert told[1].startswith("field.json:20: warning: Manifests[0].Lifecycle.install: pip fetches")
        assert told[1].endswith(" [pip-network]")
        assert told[3:] == ["2 errors and 1 warning in 1 recipe."]

    def test_warnings_are_no_failure(self, write):
        done = self.run("--nucleus", "java", write("field.json", FIELD))
        assert done.exit_code == 0
        assert done.output.endswith("1 warning in 1 recipe.\n")

    def test_json(self, write):
        done = self.run("--json", "--nucleus", "lite", write("a.yaml", CLIENT), write("b.json", FIELD))
        assert done.exit_code == 1
        first, second = json.loads(done.output)
        assert first == {"recipe": "a.yaml", "findings": []}
        assert second["recipe"] == "b.json"
        assert second["findings"][2] == {
            "rule": "key-case",
            "severity": "error",
            "nucleus": "lite",
            "place": f"{RUN}.script",
            "line": 22,
            "sentence": "Nucleus lite knows the key 'script' as `Script` only; write `Script`.",
        }

    @pytest.mark.parametrize(
        "content",
        [b"", b"\xff\xfe", b"\x00" * 100_000, b"[" * 20_000, b"a: [", b'{"a": 1,}', b"\x89PNG\r\n\x1a\n", b"name: x"],
    )
    def test_files_that_are_no_recipes(self, write, content):
        done = self.run(write("recipe.yaml", content))
        assert done.exit_code == 1
        assert len(done.output.splitlines()) <= 3
        assert done.output.startswith("recipe.yaml")
        assert isinstance(done.exception, SystemExit)

    @pytest.mark.parametrize(
        "arguments", [(), ("missing.yaml",), (".",), ("--nucleus", "classic", "recipe.yaml"), ("--bad", "recipe.yaml")]
    )
    def test_bad_arguments(self, write, arguments):
        write("recipe.yaml", CLIENT)
        assert self.run(*arguments).exit_code == 2

    def test_a_file_that_cannot_be_read(self, write, monkeypatch):
        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        name = write("recipe.yaml", CLIENT)
        monkeypatch.setattr("edge_agent.cli.component.read_regular", refuse)
        done = self.run(name)
        assert done.exit_code == 2
        assert "recipe.yaml cannot be read: Permission denied." in done.output

    def test_a_fifo_is_not_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / "recipe.yaml")
        done = self.run(str(tmp_path / "recipe.yaml"))
        assert done.exit_code == 2
        assert done.output == f"Error: {tmp_path}/recipe.yaml cannot be read: Not a regular file.\n"


def test_the_limits_are_those_of_greengrass_and_of_nucleus_lite():
    def of(size: int) -> list[str]:
        text = CLIENT.replace("Inspects boards", "Inspects boards" + (size - len(CLIENT)) * "x")
        assert len(text) == size
        return [one.rule for one in lint(text)]

    assert [of(size) for size in (8_196, 8_197, 16_000, 16_001)] == [[], ["size-lite"], ["size-lite"], ["size"]]
    assert linting.FARTHEST > recipes.LONGEST
