"""The request of a packaging job: two doors, one validation, and errors that name the setting as the caller wrote it."""

import json
import os
import re
from dataclasses import replace

import pytest

from model_packager import request
from model_packager.errors import PackagingRefused
from model_packager.request import JobRequest, from_document, from_flags, to_document
from model_packager.targets import Target

SEVEN = "\N{ARABIC-INDIC DIGIT SEVEN}"
FLAGS = {
    "project_name": "boards",
    "model_version": "3",
    "job_name": "nightly-7",
    "component_name": "com.example.Boards",
    "output": "s3://factory-models/line-3",
    "target_platform": "os=LINUX,arch=X86_64",
}
AT = "Configuration.Greengrass"


def document(**changes: object) -> dict:
    """Return the document that says what FLAGS say, with keys of Greengrass changed; ... takes one out."""
    greengrass = {
        "TargetPlatform": {"Os": "LINUX", "Arch": "X86_64"},
        "S3OutputLocation": {"Bucket": "factory-models", "Prefix": "line-3"},
        "ComponentName": "com.example.Boards",
        **changes,
    }
    return {
        "ProjectName": "boards",
        "ModelVersion": "3",
        "JobName": "nightly-7",
        "Configuration": {"Greengrass": {key: value for key, value in greengrass.items() if value is not ...}},
    }


def flags(**changes: str) -> JobRequest:
    return from_flags(**{**FLAGS, **changes})


def refused(**changes: str) -> str:
    with pytest.raises(PackagingRefused) as caught:
        flags(**changes)
    return str(caught.value)


def document_refused(content: object, output: str = "") -> str:
    with pytest.raises(PackagingRefused) as caught:
        from_document(content, output)
    return str(caught.value)


def test_both_doors_lead_to_one_request():
    assert flags() == from_document(document())
    assert flags() == JobRequest(
        project_name="boards",
        model_version="3",
        job_name="nightly-7",
        description="",
        component_name="com.example.Boards",
        component_version="3.0.0",
        component_description="",
        tags=(),
        target=Target("LINUX", "X86_64", "", ""),
        compiler_options={"mcpu": "core-avx2"},
        output="s3://factory-models/line-3",
    )


EVERYTHING = {
    "description": "Night's build (3)",
    "component_version": "1.2.3",
    "component_description": "Boards, line 3; good?",
    "target_platform": "os=LINUX,arch=ARM64,accelerator=NVIDIA",
    "compiler_options": '{"gpu-code": "sm_87", "trt-ver": "10.3.0", "cuda-ver": "12.6"}',
    "tags": "line=3,site=Ulm Süd,empty=,equation=a=b",
}


def test_everything_through_both_doors():
    content = document(
        TargetPlatform={"Os": "LINUX", "Arch": "ARM64", "Accelerator": "NVIDIA"},
        CompilerOptions=EVERYTHING["compiler_options"],
        ComponentVersion="1.2.3",
        ComponentDescription="Boards, line 3; good?",
        Tags=[
            {"Key": "line", "Value": "3"},
            {"Key": "site", "Value": "Ulm Süd"},
            {"Key": "empty", "Value": ""},
            {"Key": "equation", "Value": "a=b"},
        ],
    )
    content.update(Description="Night's build (3)", ClientToken="ignored: whatever it is")
    accepted = from_document(content)
    assert accepted == flags(**EVERYTHING)
    assert accepted.tags == (("line", "3"), ("site", "Ulm Süd"), ("empty", ""), ("equation", "a=b"))
    assert accepted.target == Target("LINUX", "ARM64", "NVIDIA")
    del content["ClientToken"]
    assert to_document(accepted) == content


def test_boto3s_own_spelling_of_the_request():
    """The original's example, as its developer guide calls it, in double quotes."""
    accepted = from_document(
        {
            "ProjectName": "test-project-01",
            "ModelVersion": "1",
            "Description": "Model Packaging Job for G4 Instance using TargetPlatform Option",
            "Configuration": {
                "Greengrass": {
                    "TargetPlatform": {"Os": "LINUX", "Arch": "X86_64", "Accelerator": "NVIDIA"},
                    "CompilerOptions": '{"gpu-code": "sm_75", "trt-ver": "7.1.3", "cuda-ver": "10.2"}',
                    "S3OutputLocation": {"Bucket": "bucket", "Prefix": "test-project-01/folder"},
                    "ComponentName": "SampleComponentNameX86TargetPlatform",
                    "ComponentVersion": "0.1.0",
                    "ComponentDescription": "This is my component",
                    "Tags": [{"Key": "modelKey0", "Value": "modelValue"}, {"Key": "modelKey1", "Value": "modelValue"}],
                }
            },
        }
    )
    assert (accepted.component_version, accepted.output) == ("0.1.0", "s3://bucket/test-project-01/folder")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        EVERYTHING,
        {"target_platform": "os=LINUX,arch=ARM64"},
        {"target_platform": "", "target_device": "jetson_xavier"},
        {"output": "s3://factory-models"},
        {"output": "s3://factory-models/a/b/"},
        {"output": "out"},
        {"job_name": ""},
        {"compiler_options": '{"mcpu": "znver3", "mattr": "+avx512f"}'},
    ],
)
def test_round_trip(changes):
    accepted = flags(**changes)
    folder = "" if accepted.output.startswith("s3://") else accepted.output
    content = to_document(accepted)
    assert from_document(json.loads(json.dumps(content)), folder) == accepted
    assert ("S3OutputLocation" in content["Configuration"]["Greengrass"]) == (not folder)


def test_greengrass_may_stand_at_the_top():
    content = document()
    content.update(content.pop("Configuration"))
    assert from_document(content) == flags()
    content["Greengrass"]["ComponentVersion"] = "1"
    assert document_refused(content).startswith("Greengrass.ComponentVersion is '1'; it must be")
    content["Configuration"] = {"Greengrass": {}}
    assert "The document has 'Configuration'" in document_refused(content)


# setting, key in the document, accepted, refused
TEXTS = [
    (
        "project_name",
        "ProjectName",
        ["a", "0", "9", "a" * 255, "a_-"],
        ["a" * 256, "-a", "_a", "a.b", "a b", "é", "a\n"],
    ),
    ("model_version", "ModelVersion", ["1", "999999"], ["0", "01", "1.0", "-1", "12345678901", SEVEN, "1\n", "v1"]),
    ("job_name", "JobName", ["a", "-", "a" * 64, "A-9"], ["a" * 65, "a_b", "a.b", "é", "a\n", SEVEN]),
    ("description", "Description", ["a", "a" * 256, "-_. ()':,;?"], ["a" * 257, "a\n", "é", "a/b", '"', "a\tb", SEVEN]),
    (
        "component_name",
        f"{AT}.ComponentName",
        ["a", "a" * 128, "-_.", "...", "A9"],
        ["a" * 129, "a b", "a/b", "é", "a\n", SEVEN, ".", "..", "aws.iot.lookoutvision.EdgeAgent"],
    ),
    (
        "component_version",
        f"{AT}.ComponentVersion",
        ["0.0.0", "999999.999999.999999"],
        [
            "1",
            "1.0",
            "1.0.0.0",
            "1000000.0.0",
            "0.1000000.0",
            "0.0.1000000",
            "1.0.0\n",
            f"1.0.{SEVEN}",
            "v1.0.0",
            "1.0.0-a",
        ],
    ),
    (
        "component_description",
        f"{AT}.ComponentDescription",
        ["a", "a" * 256, "-_. ()':,;?"],
        ["a" * 257, "a\n", "é", "a/b", "%n"],
    ),
]


def with_text(key: str, value: object) -> dict:
    content = document()
    if key.startswith(AT):
        content["Configuration"]["Greengrass"][key.rpartition(".")[2]] = value
    else:
        content[key] = value
    return content


@pytest.mark.parametrize(("setting", "key", "good", "bad"), TEXTS, ids=[one[0] for one in TEXTS])
def test_texts(setting, key, good, bad):
    for value in good:
        assert getattr(flags(**{setting: value}), setting) == value
        assert getattr(from_document(with_text(key, value)), setting) == value
    for value in bad:
        shown = ascii(value) if len(value) <= 80 else f"{value[:80]!a}... ({len(value)} characters)"
        assert refused(**{setting: value}).startswith(f"--{setting.replace('_', '-')} is {shown}; it must be ")
        assert document_refused(with_text(key, value)).startswith(f"{key} is {shown}; it must be ")
    for value in (1, None, True, ["a"], {"a": "b"}):
        assert document_refused(with_text(key, value)) == f"{key} is {value!a}; it must be text."
    # In a document an empty text is one, on the command line it is a flag that was not given.
    assert document_refused(with_text(key, "")).startswith(f"{key} is ''; it must be ")


@pytest.mark.parametrize("setting", ["project_name", "model_version", "component_name"])
def test_what_must_be_there(setting):
    key = {one[0]: one[1] for one in TEXTS}[setting]
    assert refused(**{setting: ""}).startswith(f"--{setting.replace('_', '-')} is missing; it must be ")
    content = document()
    del (content["Configuration"]["Greengrass"] if key.startswith(AT) else content)[key.rpartition(".")[2]]
    assert document_refused(content).startswith(f"{key} is missing; it must be ")


def test_a_file_has_no_latest_version():
    assert refused(model_version="latest").startswith("--model-version is 'latest'; a file has no latest version")
    assert document_refused(with_text("ModelVersion", "latest")).startswith("ModelVersion is 'latest'; a file has no ")


def test_default_component_version():
    assert flags(model_version="999999").component_version == "999999.0.0"
    assert flags(model_version="1234567890", component_version="1.2.3").model_version == "1234567890"
    text = refused(model_version="1000000")
    assert text.startswith("--component-version is missing; it must be given")
    assert "1000000.0.0" in text
    assert document_refused(with_text("ModelVersion", "1000000")).startswith(f"{AT}.ComponentVersion is missing")


@pytest.mark.parametrize(
    ("component", "begins"),
    [("com.example.Boards", "com-example-Boards-"), ("a" * 128, "a" * 38 + "-"), ("...", "job-"), ("..a9_b", "a9-b-")],
)
def test_a_job_gets_a_name(component, begins):
    names = {flags(job_name="", component_name=component).job_name for _ in range(50)}
    assert len(names) == 50
    for name in names:
        assert re.fullmatch(f"{begins}[0-9]{{8}}T[0-9]{{6}}Z-[0-9a-f]{{8}}", name)
        assert len(name) <= 64
        assert flags(job_name=name).job_name == name


def test_a_name_is_cut_before_a_hyphen():
    assert "--" not in flags(job_name="", component_name="a" * 37 + ".bcd").job_name


# Target


def test_a_target_device():
    accepted = flags(target_platform="", target_device="jetson_agx_orin")
    assert accepted.target == Target("LINUX", "ARM64", "NVIDIA", "jetson_agx_orin")
    assert accepted.compiler_options == {"gpu-code": "sm_87"}
    assert accepted == from_document(document(TargetPlatform=..., TargetDevice="jetson_agx_orin"))
    greengrass = to_document(accepted)["Configuration"]["Greengrass"]
    assert greengrass["TargetDevice"] == "jetson_agx_orin"
    assert not {"TargetPlatform", "CompilerOptions"} & set(greengrass)


@pytest.mark.parametrize("device", ["jetson_nano", "Jetson_Xavier", "t4\n", " t4"])
def test_an_unknown_target_device(device):
    text = refused(target_platform="", target_device=device)
    assert text.startswith(f"--target-device is {device!a}; it must be one of jetson_xavier, jetson_agx_orin")
    text = document_refused(document(TargetPlatform=..., TargetDevice=device))
    assert text.startswith(f"{AT}.TargetDevice is {device!a}; it must be one of ")


def test_device_or_platform_and_never_both():
    assert (
        refused(target_device="t4") == "--target-device and --target-platform are both given; only one of them can be."
    )
    assert refused(target_platform="").startswith("--target-device and --target-platform are missing; one of them must")
    both = f"{AT}.TargetDevice and {AT}.TargetPlatform"
    assert document_refused(document(TargetDevice="t4")).startswith(f"{both} are both given")
    assert document_refused(document(TargetPlatform=...)).startswith(f"{both} are missing")


def test_options_do_not_go_with_a_device():
    text = refused(target_platform="", target_device="t4", compiler_options='{"mcpu": "haswell"}')
    assert text.startswith('--compiler-options is \'{"mcpu": "haswell"}\'; it must be left out')
    content = document(TargetPlatform=..., TargetDevice="t4", CompilerOptions='{"gpu-code": "sm_75"}')
    assert document_refused(content).startswith(f"{AT}.CompilerOptions is ")


@pytest.mark.parametrize(
    ("key", "bad", "must"),
    [
        ("os", ["WINDOWS", "linux", "LINUX\n"], "LINUX"),
        ("arch", ["x86_64", "ARM_64", "ARM64 ", "amd64"], "one of X86_64, ARM64"),
        ("accelerator", ["nvidia", "CPU", "NVIDIA "], "NVIDIA"),
    ],
)
def test_platforms(key, bad, must):
    for value in bad:
        platform = {"os": "LINUX", "arch": "X86_64", key: value}
        text = refused(target_platform=",".join(f"{one}={two}" for one, two in platform.items()))
        assert text == f"--target-platform: {key} is {value!a}; it must be {must}."
        platform = {"Os": "LINUX", "Arch": "X86_64", key.title(): value}
        text = document_refused(document(TargetPlatform=platform))
        assert text == f"{AT}.TargetPlatform.{key.title()} is {value!a}; it must be {must}."


@pytest.mark.parametrize("key", ["os", "arch"])
def test_platforms_are_complete(key):
    there = {"os": "LINUX", "arch": "ARM64"}
    del there[key]
    text = refused(target_platform=",".join(f"{one}={two}" for one, two in there.items()))
    assert text.startswith(f"--target-platform: {key} is missing; it must be ")
    text = document_refused(document(TargetPlatform={one.title(): two for one, two in there.items()}))
    assert text.startswith(f"{AT}.TargetPlatform.{key.title()} is missing; it must be ")


@pytest.mark.parametrize(
    ("platform", "words"),
    [
        ("os=LINUX,arch=X86_64,cpu=3", "has 'cpu', which is not known; it can have os, arch, accelerator"),
        ("Os=LINUX,Arch=X86_64", "has 'Os'"),
        ("os=LINUX,arch=X86_64,os=LINUX", "each key once"),
        ("os=LINUX,arch=X86_64,", "must be pairs key=value"),
        ("os=LINUX,arch", "must be pairs key=value"),
        ("=LINUX", "must be pairs key=value"),
        ("LINUX", "must be pairs key=value"),
        ("os=LINUX, arch=X86_64", "has ' arch'"),
        ("os=LINUX,arch=X86_64,accelerator=", "accelerator is ''; it must be NVIDIA"),
    ],
)
def test_bad_lists_of_the_platform(platform, words):
    text = refused(target_platform=platform)
    assert text.startswith("--target-platform")
    assert words in text


def test_compiler_options_are_named_as_the_caller_wrote_them():
    assert refused(compiler_options='{"mcpu": "carmel"}').startswith("--compiler-options: mcpu is 'carmel'; on X86_64")
    content = document(CompilerOptions='{"mcpu": "carmel"}')
    assert document_refused(content).startswith(f"{AT}.CompilerOptions: mcpu is 'carmel'")
    text = refused(target_platform="os=LINUX,arch=X86_64,accelerator=NVIDIA")
    assert text.startswith("--compiler-options lacks gpu-code")
    assert document_refused(document(CompilerOptions="")).startswith(f"{AT}.CompilerOptions is ''; it must be a JSON")
    assert document_refused(document(CompilerOptions={"mcpu": "haswell"})).endswith("it must be text.")


def test_no_options_are_assumed_on_arm():
    accepted = flags(target_platform="os=LINUX,arch=ARM64")
    assert accepted.compiler_options == {}
    assert "CompilerOptions" not in to_document(accepted)["Configuration"]["Greengrass"]


# Tags


def tag(key: str, value: str = "") -> dict[str, str]:
    return {"Key": key, "Value": value}


def test_tags():
    good = [
        ("k" * 128, "v" * 256),
        ("é", "ß\u00a0Ⅷ"),
        ("a b", ""),
        ("_.:/=+-@", "_.:/=+-@"),
        ("A", "1"),
        ("a", "aws:x"),
    ]
    assert from_document(document(Tags=[tag(*one) for one in good])).tags == tuple(good)
    assert flags(tags="").tags == from_document(document(Tags=[])).tags == ()


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("k" * 129, "", "Key"),
        ("", "", "Key"),
        ("a,b", "", "Key"),
        ("a\n", "", "Key"),
        ("a#", "", "Key"),
        ("\ud800", "", "Key"),
        ("aws:name", "", "Key"),
        ("AWS:name", "", "Key"),
        ("a", "v" * 257, "Value"),
        ("a", "b\n", "Value"),
        ("a", "b,c", "Value"),
        ("a", "b\0", "Value"),
    ],
)
def test_bad_tags(key, value, part):
    text = document_refused(document(Tags=[tag("first"), tag(key, value)]))
    assert text.startswith(f"{AT}.Tags[1].{part} is ")
    assert "; it must be " in text


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ("a=1,b#=2", "--tags: the key of tag 2 is 'b#'; it must be 1 to 128"),
        ("a=1,b=#", "--tags: the value of tag 2 is '#'; it must be at most 256"),
        ("a=1,a=2", "--tags: the key of tag 2 is 'a', which another tag has"),
        ("a=1,,b=2", "--tags is 'a=1,,b=2'; it must be pairs key=value"),
        ("a", "--tags is 'a'; it must be pairs key=value"),
        ("a=1,b", "neither key nor value can have a comma"),
        ("=1", "--tags is '=1'; it must be pairs"),
    ],
)
def test_bad_tags_on_the_command_line(tags, words):
    assert words in refused(tags=tags)


def test_tags_are_unique_and_case_sensitive():
    text = document_refused(document(Tags=[tag("a", "1"), tag("b"), tag("a", "1")]))
    assert text.startswith(f"{AT}.Tags[2].Key is 'a', which another tag has")
    assert from_document(document(Tags=[tag("a"), tag("A")])).tags == (("a", ""), ("A", ""))


def test_number_of_tags():
    many = [tag(f"k{number}") for number in range(201)]
    assert len(from_document(document(Tags=many[:200])).tags) == 200
    assert document_refused(document(Tags=many)) == f"{AT}.Tags has 201 tags; it must have at most 200."
    text = ",".join(f"{one['Key']}=" for one in many)
    assert len(flags(tags=text.rpartition(",")[0]).tags) == 200
    assert refused(tags=text) == "--tags has 201 tags; it must have at most 200."


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"a": "b"}, ".Tags is {'a': 'b'}; it must be a list"),
        (None, ".Tags is None; it must be a list"),
        (["a=b"], ".Tags[0] is 'a=b'; it must be an object"),
        ([{"Key": "a"}], ".Tags[0].Value is None; it must be text"),
        ([{"Value": "a"}], ".Tags[0].Key is None; it must be text"),
        ([{"Key": "a", "Value": "b", "Colour": "c"}], ".Tags[0] has 'Colour'"),
        ([{"Key": "a", "Value": 1}], ".Tags[0].Value is 1; it must be text"),
    ],
)
def test_form_of_tags_in_a_document(tags, words):
    assert f"{AT}{words}" in document_refused(document(Tags=tags))


# Output


def test_output_is_a_folder_or_s3(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert flags(output="out").output == str(tmp_path / "out")
    assert flags(output="/data/out/").output == "/data/out"
    assert flags(output="süß out").output == str(tmp_path / "süß out")
    assert flags(output="s3://abc").output == flags(output="s3://abc/").output == "s3://abc"
    assert flags(output="s3://abc/a/b/").output == "s3://abc/a/b"


@pytest.mark.parametrize(
    "output", ["gs://abc", "S3://abc/x", "s3:abc", "s3:/abc", "http://a/b", "a\0", "a\n", "a\udc80"]
)
def test_what_is_neither(output):
    assert refused(output=output) == f"--output is {output!a}; it must be a folder or s3://bucket/prefix."


def test_output_is_required():
    assert refused(output="").startswith("--output is missing; it must say where")
    text = document_refused(document(S3OutputLocation=...))
    assert text.startswith(f"--output or {AT}.S3OutputLocation is missing")
    assert document_refused(document(S3OutputLocation={})).startswith(f"--output or {AT}.S3OutputLocation is missing")
    assert document_refused(document(S3OutputLocation={"Prefix": "a"})).startswith(
        f"{AT}.S3OutputLocation.Bucket is missing"
    )


def test_the_flag_wins_over_the_document(tmp_path):
    content = document(S3OutputLocation={"Bucket": "YOUR_BUCKET", "Prefix": "/x"})
    assert from_document(content, str(tmp_path)).output == str(tmp_path)
    assert from_document(document(), "s3://other-bucket/x").output == "s3://other-bucket/x"
    assert from_document(document(S3OutputLocation=...), os.sep).output == os.sep
    text = document_refused(document(S3OutputLocation={"Bucket": "abc", "Region": "x"}), str(tmp_path))
    assert text.startswith(f"{AT}.S3OutputLocation has 'Region'")


@pytest.mark.parametrize(
    "bucket", ["abc", "a" * 63, "1.2.3", "a.b-c", "1.2.3.4.5", "my-s3alias-x", "amzn-s3", "0ab", "9b9", "10.0.0.1a"]
)
def test_buckets(bucket):
    assert flags(output=f"s3://{bucket}/x").output == f"s3://{bucket}/x"
    assert from_document(document(S3OutputLocation={"Bucket": bucket})).output == f"s3://{bucket}"


@pytest.mark.parametrize(
    "bucket",
    [
        "",
        "ab",
        "a" * 64,
        "Abc",
        "a_b",
        "-abc",
        "abc-",
        ".abc",
        "abc.",
        "a..b",
        "192.168.5.4",
        "0.0.0.0",
        "xn--abc",
        "sthree-abc",
        "amzn-s3-demo-bucket",
        "abc-s3alias",
        "abc--ol-s3",
        "abc.mrap",
        "abc--x-s3",
        "abc--table-s3",
        "abc\n",
        f"ab{SEVEN}",
        "ab c",
    ],
)
def test_bad_buckets(bucket):
    assert refused(output=f"s3://{bucket}/x").startswith(f"The bucket in --output is {bucket!a}; it must be ")
    text = document_refused(document(S3OutputLocation={"Bucket": bucket}))
    assert text.startswith(f"{AT}.S3OutputLocation.Bucket is {bucket!a}; it must be ")


@pytest.mark.parametrize(
    "prefix", ["a", "a/b/c", "a..b", "..a/b..", "a/...", "!_.*'()-", "a" * 1024, "", "9", ".hidden"]
)
def test_prefixes(prefix):
    assert flags(output=f"s3://abc/{prefix}").output == f"s3://abc/{prefix}".rstrip("/")
    accepted = from_document(document(S3OutputLocation={"Bucket": "abc", "Prefix": prefix}))
    assert accepted.output == f"s3://abc/{prefix}".rstrip("/")


@pytest.mark.parametrize(
    "prefix", ["/a", "..", "../a", "a/..", "a/../b", "a b", "é", "a\n", "a\\b", "a?b", "a#b", "a" * 1025, SEVEN]
)
def test_bad_prefixes(prefix):
    assert refused(output=f"s3://abc/{prefix}").startswith("The prefix in --output is ")
    text = document_refused(document(S3OutputLocation={"Bucket": "abc", "Prefix": prefix}))
    assert text.startswith(f"{AT}.S3OutputLocation.Prefix is ")
    assert "without a slash at the beginning" in text


# Documents


@pytest.mark.parametrize("content", [None, [], "text", 1])
def test_a_document_is_an_object(content):
    assert document_refused(content).startswith("The document is")
    assert document_refused(content).endswith("it must be an object.")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"projectName": "a"}, "The document has 'projectName', which is not known; it can have ProjectName, "),
        ({"Configuration": None}, "Configuration is missing; it must be an object."),
        ({"Configuration": []}, "Configuration is []; it must be an object."),
        ({"Configuration": {}}, "Configuration.Greengrass is missing; it must be an object."),
        ({"Configuration": {"Greengrass": "a"}}, "Configuration.Greengrass is 'a'; it must be an object."),
        ({"Configuration": {"Greengrass": {}, "Lambda": {}}}, "Configuration has 'Lambda'"),
        ({1: "a"}, "The document has '1'"),
    ],
)
def test_form_of_a_document(change, words):
    assert document_refused({**document(), **change}).startswith(words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"Componentname": "a"}, f"{AT} has 'Componentname'"),
        ({"TargetPlatform": {"Os": "LINUX", "Arch": "ARM64", "os": "LINUX"}}, f"{AT}.TargetPlatform has 'os'"),
        ({"TargetPlatform": "LINUX"}, f"{AT}.TargetPlatform is 'LINUX'; it must be an object."),
        ({"TargetPlatform": {"Os": 1, "Arch": "ARM64"}}, f"{AT}.TargetPlatform.Os is 1; it must be text."),
        ({"S3OutputLocation": "s3://abc"}, f"{AT}.S3OutputLocation is 's3://abc'; it must be an object."),
        ({"S3OutputLocation": {"Bucket": 1}}, f"{AT}.S3OutputLocation.Bucket is 1; it must be text."),
    ],
)
def test_form_of_greengrass(changes, words):
    assert document_refused(document(**changes)).startswith(words)


def test_a_document_without_configuration():
    content = document()
    del content["Configuration"]
    assert document_refused(content) == "Configuration is missing; it must be an object."


def test_long_values_do_not_flood_a_message():
    assert len(document_refused(document(Tags=["a" * 10_000]))) < 300
    assert len(document_refused({**document(), "x" * 10_000: "a"})) < 400


def test_a_request_cannot_be_changed():
    with pytest.raises(AttributeError):
        flags().output = "elsewhere"
    assert replace(flags(), output="/x").output == "/x"
    assert request.AGENT_COMPONENT == "aws.iot.lookoutvision.EdgeAgent"
