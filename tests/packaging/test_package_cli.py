"""`edge-agent package` as it is typed: from a model to a component that an agent serves, and every way it says no."""

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_agent import device
from edge_agent.client import EdgeAgentClient
from edge_agent.errors import extra
from support import packages as made
from support.agent import alive, descendants, environment, parent, serving
from support.calls import picture
from support.waiting import PATIENCE, until

HERE, OTHER = ("ARM64", "X86_64") if platform.machine() in device.MACHINES["ARM64"] else ("X86_64", "ARM64")
# Every machine that runs these tests has the first instruction set of its architecture.
MCPU = {"X86_64": "x86-64", "ARM64": "generic"}
FLAGS = {
    "--project-name": "boards",
    "--model-version": "7",
    "--component-name": "board",
    "--target-platform": f"os=LINUX,arch={HERE}",
    "--compiler-options": json.dumps({"mcpu": MCPU[HERE]}),
    "--output": "out",
}


class Shell:
    """A folder to work in, and the jobs of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = environment(XDG_STATE_HOME=str(folder / "state"))

    def command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "edge_agent", "package", *map(str, arguments)]

    def run(self, *arguments: object, **env: str) -> subprocess.CompletedProcess:
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env={**self.environment, **env},
            capture_output=True,
            text=True,
            check=False,
            timeout=2 * PATIENCE,
        )
        assert "Traceback" not in done.stderr
        return done

    def start(self, source: Path, *more: str, **changed: str | None) -> subprocess.CompletedProcess:
        return self.run("start", source, *flags(**changed), *more)

    def json(self, *arguments: object) -> Any:
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def jobs(self) -> list[dict[str, Any]]:
        return self.json("list")


def flags(**changed: str | None) -> list[str]:
    """Return the flags of a job, some of them changed; None leaves one out."""
    given = {**FLAGS, **{f"--{key.replace('_', '-')}": value for key, value in changed.items()}}
    return [one for flag, value in given.items() if value is not None for one in (flag, value)]


@pytest.fixture
def shell(tmp_path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture(scope="module")
def field(tmp_path_factory) -> Path:
    """A component of the field."""
    return made.segmenter(tmp_path_factory.mktemp("field") / "component")


@pytest.fixture(scope="module")
def first(field, module_folder) -> tuple[Shell, subprocess.CompletedProcess]:
    """A job that was done before; its output is a folder that the agent's user can enter."""
    shell = Shell(module_folder)
    return shell, shell.start(field, "--job-name", "first", "--color", "bright=#FF2EDC")


def package_of(shell: Shell) -> Path:
    (folder,) = shell.folder.glob("out/board/7.0.0/*_greengrass_model_component")
    return folder


class TestStart:
    def test_from_a_component_to_a_component(self, first):
        shell, done = first
        assert done.returncode == 0, done.stderr
        told = done.stdout.splitlines()
        assert told[0] == "job        first (project boards, model version 7)"
        assert told[1] == "component  board 7.0.0"
        assert told[2] == "status     SUCCEEDED"
        assert "on 8 images of noise (give --images for real ones): 0 verdicts differ from the source's" in done.stdout
        assert f"output     {shell.folder}/out/board/7.0.0" in told
        # Not on a terminal, each step is a line.
        assert done.stderr.splitlines()[0] == "Reading the source"
        assert len(set(done.stderr.splitlines())) == len(done.stderr.splitlines()) >= 4
        stem = package_of(shell).name
        names = {str(path.relative_to(shell.folder / "out")) for path in (shell.folder / "out").rglob("*.*")}
        assert names == {
            "board/7.0.0",
            f"board/7.0.0/{stem}/manifest.json",
            f"board/7.0.0/{stem}/mochi/model.onnx",
            f"board/7.0.0/{stem}.zip",
            "board/7.0.0/register.sh",
            "board/7.0.0/job.json",
            "board/7.0.0/recipe.json",
            "board/7.0.0/recipe.yaml",
            "artifacts/board/7.0.0",
            f"artifacts/board/7.0.0/{stem}.zip",
            "artifacts/board/7.0.0/register.sh",
            "recipes/board-7.0.0.yaml",
        }

    def test_the_output_is_a_models_folder_as_it_is(self, first, field):
        shell, _ = first
        with serving(shell.folder / "out") as agent, EdgeAgentClient(str(agent.socket)) as client:
            # What is there for local deployments holds the model a second time, as a zip, which is no package.
            assert [one.name for one in client.list_models()] == ["board"]
            assert client.start_and_wait("board").status_message == ""
            pixels = picture(64, 64)
            result = client.detect("board", pixels)
            assert result.anomaly_score == pytest.approx(pixels.mean() / 255, abs=1e-5)
            assert [one.hex_color for one in result.anomalies] == ["#FFFFFF", "#FF2EDC"]

    def test_json_is_all_that_is_on_stdout(self, shell, field):
        done = shell.start(field, "--json")
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert (told["Status"], told["Result"]["Parity"]["verdict_flips"]) == ("SUCCEEDED", 0)
        assert done.stderr == ""
        assert told == shell.json("describe", told["JobName"])

    def test_a_document_with_the_original_field_names(self, shell, field):
        platform_ = {"Os": "LINUX", "Arch": HERE}
        document = {
            "ProjectName": "boards",
            "ModelVersion": "7",
            "JobName": "from-a-document",
            "Description": "Boards (line 3)",
            "ClientToken": "0123",
            "Configuration": {
                "Greengrass": {
                    "CompilerOptions": json.dumps({"mcpu": MCPU[HERE]}),
                    "TargetPlatform": platform_,
                    "S3OutputLocation": {"Bucket": "bucket", "Prefix": "prefix"},
                    "ComponentName": "board",
                    "ComponentVersion": "1.2.3",
                    "ComponentDescription": "Finds defects",
                    "Tags": [{"Key": "line", "Value": "3"}],
                }
            },
        }
        (shell.folder / "job.json").write_text(json.dumps(document))
        # A folder on the command line wins over the bucket in the document.
        done = shell.run("start", field, "--request", "job.json", "--output", "out", "--json")
        assert done.returncode == 0, done.stderr
        told = shell.json("describe", "from-a-document")
        assert told["ModelPackagingJobDescription"] == "Boards (line 3)"
        assert told["ModelPackagingConfiguration"]["Greengrass"]["TargetPlatform"] == platform_
        assert told["ModelPackagingOutputDetails"]["Greengrass"] == {
            "ComponentName": "board",
            "ComponentVersion": "1.2.3",
            "Output": f"{shell.folder}/out/board/1.2.3",
        }
        assert (shell.folder / "out" / "board" / "1.2.3" / "recipe.yaml").is_file()

    def test_detached(self, shell, field):
        done = shell.start(field, "--detach", "--job-name", "in-the-background")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout in {"in-the-background CREATED\n", "in-the-background RUNNING\n"}
        until(
            lambda: shell.json("describe", "in-the-background")["Status"] not in {"CREATED", "RUNNING"},
            "the job has ended",
        )
        told = shell.run("describe", "in-the-background")
        assert "status     SUCCEEDED" in told.stdout
        assert package_of(shell).is_dir()

    def test_a_job_that_fails(self, shell, field):
        done = shell.start(field, "--any-image-size", "--job-name", "fails")
        assert (done.returncode, done.stdout) == (1, "")
        sentence = "--any-image-size is for classification models; a mask needs images of the training size."
        assert f"message    {sentence}" in done.stderr.splitlines()
        as_json = shell.start(field, "--any-image-size", "--json")
        assert as_json.returncode == 1
        told = json.loads(as_json.stdout)
        assert (told["Status"], told["StatusMessage"]) == ("FAILED", sentence)
        assert shell.json("describe", "fails")["StatusMessage"] == sentence
        assert not (shell.folder / "out").exists()

    def test_a_job_of_a_component_with_the_longest_name(self, shell, field):
        done = shell.start(field, component_name="n" * 128)
        assert done.returncode == 0, done.stderr
        assert (shell.folder / "out" / ("n" * 128) / "7.0.0").is_dir()


class TestJobs:
    def test_list_and_describe(self, shell, field):
        assert (shell.run("list").stdout, shell.jobs()) == ("No jobs.\n", [])
        for number, (job, project, more) in enumerate(
            [("one", "boards", []), ("two", "cables", []), ("three", "boards", ["--any-image-size"])]
        ):
            done = shell.start(field, *more, job_name=job, project_name=project, component_version=f"{number}.0.0")
            assert done.returncode == (1 if more else 0), done.stderr
        listed = shell.jobs()
        assert [(one["JobName"], one["Status"]) for one in listed] == [
            ("three", "FAILED"),
            ("two", "SUCCEEDED"),
            ("one", "SUCCEEDED"),
        ]
        assert [one["JobName"] for one in shell.json("list", "--project-name", "boards")] == ["three", "one"]
        assert shell.json("list", "--project-name", "nobody's") == []
        table = shell.run("list").stdout.splitlines()
        assert table[0].split() == ["JOB", "PROJECT", "COMPONENT", "STATUS", "CREATED", "MESSAGE"]
        assert [line.split()[0] for line in table[1:]] == ["three", "two", "one"]
        assert "--any-image-size is for classification models" in table[1]
        assert listed[1] == shell.json("describe", "two")
        assert "component  board 1.0.0" in shell.run("describe", "two").stdout

    def test_a_job_that_there_is_not(self, shell):
        done = shell.run("describe", "nothing")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "Error: There is no packaging job 'nothing'; known: none.\n"

    def test_a_version_that_is_there_already(self, first, field):
        shell, _ = first
        before = shell.jobs()
        done = shell.start(field)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (
            f"Error: Component board version 7.0.0 exists already in {shell.folder}/out; give another --component-version.\n"
        )
        assert shell.jobs() == before, "a job was made all the same"

    def test_a_job_name_that_is_there_already(self, first, field):
        shell, _ = first
        done = shell.start(field, job_name="first", component_version="8.0.0")
        assert (done.returncode, done.stdout) == (2, "")
        assert "There is a packaging job first already; give another --job-name." in done.stderr


@pytest.fixture
def stuck(shell, tmp_path) -> Path:
    """A component whose model needs hours for one image, so that a job is in the middle until it is ended."""
    return made.write(tmp_path / "slow", made.manifest(), made.slow(2_000_000_000))


class TestInTheMiddle:
    @staticmethod
    def running(shell: Shell, source: Path) -> tuple[subprocess.Popen, list[int]]:
        """Start a job and wait until it compares; return its command and all processes below that."""
        command = subprocess.Popen(
            shell.command("start", source, *flags(), "--job-name", "stuck"),
            cwd=shell.folder,
            env=shell.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

        def comparing() -> bool:
            assert command.poll() is None, command.communicate()
            told = next((one for one in shell.jobs() if one["JobName"] == "stuck"), None)
            return told is not None and told["Progress"]["Step"].startswith("Comparing")

        until(comparing, "the job compares")
        assert "progress   60% Comparing it with its source on 8 images" in shell.run("describe", "stuck").stdout
        return command, descendants(command.pid)

    @staticmethod
    def nothing_is_left(shell: Shell, processes: list[int]) -> None:
        until(lambda: not [pid for pid in processes if alive(pid)], "all its processes have ended")
        assert not (shell.folder / "out").exists()
        left = {path.name for path in (shell.folder / "state" / "edge-agent" / "packaging" / "stuck").iterdir()}
        assert left == {"job.json", "lock", "log"}

    @pytest.mark.parametrize(
        ("whom", "words"),
        [
            # Whether the guard or the next reader ends the job, it is told what became of it.
            ("command", r"The process that watched over it was killed|Its process ended without a word"),
            ("runner", r"Its process was ended by signal 9 \(SIGKILL\)"),
        ],
    )
    def test_killed(self, shell, field, stuck, whom, words):
        command, processes = self.running(shell, stuck)
        (runner,) = [pid for pid in processes if parent(pid) == command.pid]
        os.kill(command.pid if whom == "command" else runner, signal.SIGKILL)
        _, err = command.communicate(timeout=PATIENCE)
        assert command.returncode == (-signal.SIGKILL if whom == "command" else 1)
        assert "Traceback" not in err
        until(lambda: shell.json("describe", "stuck")["Status"] == "FAILED", "its end is recorded")
        told = shell.json("describe", "stuck")
        assert re.match(words, told["StatusMessage"]), told["StatusMessage"]
        assert "tart it again under another name" in told["StatusMessage"]
        self.nothing_is_left(shell, processes)
        # The version is not taken, nothing is in the way.
        assert shell.start(field, "--job-name", "again").returncode == 0

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_interrupted(self, shell, stuck, number):
        command, processes = self.running(shell, stuck)
        command.send_signal(number)
        _, err = command.communicate(timeout=PATIENCE)
        assert command.returncode == 128 + number
        sentence = f"Interrupted ({number.name}); start it again under another name."
        assert err.splitlines()[-1] == f"Error: {sentence}"
        assert "Traceback" not in err
        told = shell.json("describe", "stuck")
        assert (told["Status"], told["StatusMessage"]) == ("FAILED", sentence)
        self.nothing_is_left(shell, processes)


# What is wrong with a command, and the words that say so. None leaves a flag out; "." is a folder, "file" a file that is
# no JSON, "list.json" JSON that is no object.
BAD: dict[str, tuple[dict[str, str | None], list[str], str]] = {
    "no project": ({"project_name": None}, [], "--project-name is missing; it must be 1 to 255 letters"),
    "project": ({"project_name": "my boards"}, [], "--project-name is 'my boards'"),
    "no model version": ({"model_version": None}, [], "--model-version is missing"),
    "latest": ({"model_version": "latest"}, [], "a file has no latest version, so give the model's number"),
    "model version": ({"model_version": "0"}, [], "--model-version is '0'; it must be a number from 1 on"),
    "no component": ({"component_name": None}, [], "--component-name is missing"),
    "component": ({"component_name": "a/b"}, [], "--component-name is 'a/b'"),
    "a folder of the output": (
        {"component_name": "recipes"},
        [],
        "Component 'recipes' cannot have a folder of its own in",
    ),
    "the agent's own": ({"component_name": "aws.iot.lookoutvision.EdgeAgent"}, [], "that one is the agent's own"),
    "component version": ({"component_version": "1.0"}, [], "--component-version is '1.0'; it must be three numbers"),
    "component description": ({"component_description": "<b>"}, [], "--component-description is '<b>'"),
    "description": ({"description": "<b>"}, [], "--description is '<b>'"),
    "job name": ({"job_name": "a b"}, [], "--job-name is 'a b'; it must be 1 to 64 letters, digits and hyphens"),
    "no target": ({"target_platform": None}, [], "--target-device and --target-platform are missing; one of them"),
    "two targets": ({"target_device": "t4"}, [], "--target-device and --target-platform are both given"),
    "device": (
        {"target_platform": None, "target_device": "toaster"},
        [],
        "--target-device is 'toaster'; it must be one",
    ),
    "options of a device": ({"target_platform": None, "target_device": "t4"}, [], "t4 has its own (sm_75)"),
    "no architecture": ({"target_platform": "os=LINUX"}, [], "arch is missing; it must be X86_64 or ARM64"),
    "architecture": ({"target_platform": "os=LINUX,arch=MIPS"}, [], "arch is 'MIPS'"),
    "system": ({"target_platform": f"os=QNX,arch={HERE}"}, [], "os is 'QNX'; it must be LINUX"),
    "platform twice": ({"target_platform": "os=LINUX,os=LINUX"}, [], "it must give each key once"),
    "platform": ({"target_platform": "linux"}, [], "it must be pairs key=value joined by commas"),
    "options not JSON": (
        {"compiler_options": "-mcpu=x"},
        [],
        "it must be a JSON object with its texts in double quotes",
    ),
    "option": (
        {"compiler_options": '{"O": "3"}'},
        [],
        "--compiler-options has 'O'; the options without an accelerator",
    ),
    "mcpu": ({"compiler_options": '{"mcpu": "z80"}'}, [], "mcpu is 'z80'"),
    "NVIDIA's options": (
        {"target_platform": f"os=LINUX,arch={HERE},accelerator=NVIDIA", "compiler_options": "{}"},
        [],
        "--compiler-options lacks gpu-code, which the accelerator NVIDIA needs",
    ),
    "tags": ({"tags": "line 3"}, [], "--tags is 'line 3'; it must be pairs"),
    "no output": ({"output": None}, [], "--output is missing; it must say where the component goes"),
    "another store": ({"output": "gs://bucket/x"}, [], "--output is 'gs://bucket/x'; it must be a folder or s3://"),
    "bucket": ({"output": "s3://My_Bucket"}, [], "The bucket in --output is 'My_Bucket'"),
    "precision": ({}, ["--precision", "int4"], "'--precision': 'int4' is not one of"),
    "weights": ({}, ["--int8-weights", "per-row"], "'--int8-weights': 'per-row' is not one of"),
    "operators": ({}, ["--int8-operators", "Conv,,Add"], "'--int8-operators': write names with commas between them"),
    "score tolerance": ({}, ["--score-tolerance", "2"], "'--score-tolerance': 2.0 is not in the range"),
    "tolerance of nan": ({}, ["--score-tolerance", "nan"], "'--score-tolerance': write a finite number"),
    "mask tolerance": ({}, ["--mask-tolerance", "-1"], "'--mask-tolerance': -1.0 is not in the range"),
    "mask tolerance of nan": ({}, ["--mask-tolerance", "nan"], "'--mask-tolerance': write a finite number"),
    "image size": ({}, ["--image-size", "64"], "'--image-size': write width and height in pixels"),
    "interpolation": ({}, ["--interpolation", "smooth"], "'--interpolation': known are nearest, bilinear, cubic"),
    "interpolation's code": ({}, ["--interpolation", "7"], "and OpenCV's codes 0 to 4"),
    "threshold": ({}, ["--threshold", "inf"], "'--threshold': write a finite number"),
    "pixel threshold": ({}, ["--pixel-threshold", "nan"], "'--pixel-threshold': write a finite number"),
    "classes": ({}, ["--classes", "a,,b"], "'--classes': write names with commas between them"),
    "colour": ({}, ["--color", "bright=red"], "'--color': write the class and its colour, as in scratch=#FF2EDC"),
    "colour of nothing": ({}, ["--color", "#FF2EDC"], "'--color': write the class and its colour"),
    "images": ({}, ["--images", "nowhere"], "'--images': Directory 'nowhere' does not exist"),
    "calibration": ({}, ["--calibration", "file"], "'--calibration': Directory 'file' is a file"),
    "manifest": ({}, ["--manifest", "nowhere"], "'--manifest': File 'nowhere' does not exist"),
    "model": ({}, ["--model", "."], "'--model': File '.' is a directory"),
    "state folder": ({}, ["--state-dir", "file"], "--state-dir"),
    "unknown flag": ({}, ["--fast"], "No such option"),
    "both": ({}, ["--request", "list.json"], "--project-name and --request are both given; write the setting into the"),
    "no document": (
        dict.fromkeys(key[2:].replace("-", "_") for key in FLAGS),
        ["--request", "no"],
        "'no' does not exist",
    ),
    "document not JSON": (
        dict.fromkeys(key[2:].replace("-", "_") for key in FLAGS),
        ["--request", "file"],
        "--request file cannot be read as JSON",
    ),
    "document no object": (
        dict.fromkeys(key[2:].replace("-", "_") for key in FLAGS),
        ["--request", "list.json"],
        "--request list.json must be an object, as StartModelPackagingJob takes it",
    ),
    "document's field": (
        dict.fromkeys(key[2:].replace("-", "_") for key in FLAGS),
        ["--request", "unknown.json"],
        "The document has 'Project', which is not known; it can have ProjectName",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_refused_before_there_is_a_job(shell, field, what):
    changed, more, words = BAD[what]
    (shell.folder / "file").write_text("no JSON")
    (shell.folder / "list.json").write_text("[]")
    (shell.folder / "unknown.json").write_text('{"Project": "boards"}')
    done = shell.start(field, *more, **changed)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert words in done.stderr
    assert not list(shell.folder.rglob("job.json"))
    assert not (shell.folder / "out").exists()


def test_every_flag_that_can_be_bad_is_in_the_table(shell):
    """A flag that is new belongs there, too."""
    told = set(re.findall(r"^  (--[a-z0-9-]+)", shell.run("start", "--help").stdout, re.MULTILINE))
    cannot = {"--int8-exclude", "--any-image-size", "--detach", "--json", "--help"}
    changed = {f"--{key.replace('_', '-')}" for changed, _, _ in BAD.values() for key in changed}
    assert told - cannot == changed | {one for _, more, _ in BAD.values() for one in more if one in told}


def test_a_source_that_is_not_there(shell):
    done = shell.start(shell.folder / "nowhere")
    assert (done.returncode, "does not exist" in done.stderr) == (2, True)


def test_a_source_that_is_nothing_we_know(shell):
    """What a source is, the job finds out."""
    (shell.folder / "empty").mkdir()
    done = shell.start(shell.folder / "empty")
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        "empty holds neither a manifest.json with a model_graph nor an ONNX model. Bring a training output"
        in done.stderr
    )


class TestVerifyAndInspect:
    @pytest.mark.parametrize("what", ["folder", "version folder", "output", "zip"])
    def test_a_whole_package(self, first, what):
        shell, _ = first
        package = package_of(shell)
        path = {
            "folder": package,
            "version folder": package.parent,
            "output": shell.folder / "out",
            "zip": Path(f"{package}.zip"),
        }[what]
        done = shell.run("verify", path)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[0] == "ok   board 7.0.0: manifest.json and 1 file are as they were written."
        assert done.stdout.splitlines()[1].startswith("ok   It loads and runs: ")
        assert done.stdout.splitlines()[2:] == [
            "ok   recipe.yaml has nothing that a nucleus would refuse or ignore.",
            "ok   recipe.json has nothing that a nucleus would refuse or ignore.",
        ]
        assert shell.json("inspect", path)["component"] == "board"

    @pytest.mark.parametrize("what", ["folder", "version folder", "zip"])
    def test_a_fault_in_a_recipe(self, first, shell, what):
        package = package_of(first[0])
        version = shell.folder / "7.0.0"
        shutil.copytree(package.parent, version)
        path = {"folder": version / package.name, "version folder": version, "zip": version / f"{package.name}.zip"}[
            what
        ]
        recipe = version / "recipe.yaml"
        recipe.write_text(recipe.read_text().replace("Timeout:", "timeout:").replace("SOFT", "HARD"))
        done = shell.run("verify", path)
        assert done.returncode == 1
        assert [line.partition(" ")[0] for line in done.stdout.splitlines()] == ["ok", "ok", "ok"]
        hard, lower = done.stderr.splitlines()
        assert re.match(r"FAIL recipe.yaml, line \d+, .*DependencyType: .* write SOFT\.$", hard), hard
        assert re.match(r"FAIL recipe.yaml, line \d+, .*startup.* write `Timeout`\.$", lower), lower
        told = json.loads(shell.run("verify", path, "--json").stdout)
        assert (told["ok"], [f"FAIL {one}" for one in told["bad"]]) == (False, [hard, lower])
        # What only works by luck is no reason to fail.
        recipe.write_text(f"\ufeff{(version / 'recipe.json').read_text()}")
        done = shell.run("verify", path)
        assert (done.returncode, done.stderr) == (0, "")
        assert "note recipe.yaml, line 1: The file begins with a byte order mark; save it without one." in done.stdout

    def test_what_inspect_tells(self, first):
        shell, _ = first
        done = shell.run("inspect", package_of(shell), "--nodes")
        assert (done.returncode, done.stderr) == (0, "")
        lines = [line.rstrip() for line in done.stdout.splitlines()]
        for line in (
            "component          board",
            "version            7.0.0",
            "heads              classification, segmentation",
            "threshold          0.5",
            "image size         64x64",
            "any image size     no",
            '  {"name": "bright", "hex_color": "#FF2EDC"}',
            f"  arch                     {HERE}",
            "compiled           yes",
            "  verdict_flips            0",
            "notes              -",
        ):
            assert line in lines
        sha = shell.json("inspect", package_of(shell))["files"]["mochi/model.onnx"]["sha256"]
        assert sha in done.stdout
        assert '"operator": ' in done.stdout

    def test_of_the_field(self, shell, field):
        done = shell.run("verify", field)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[-1] == "note No `package` block: files are not checked against digests."
        assert shell.json("verify", field)["ok"] is True
        assert shell.json("inspect", field)["compiled"] is False

    @pytest.mark.parametrize("file", ["manifest.json", "mochi/model.onnx"])
    def test_damaged(self, first, shell, file):
        package = shell.folder / "package"
        shutil.copytree(package_of(first[0]), package)
        data = bytearray((package / file).read_bytes())
        data[100] ^= 1
        (package / file).write_bytes(data)
        done = shell.run("verify", package)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("FAIL ")
        assert file in done.stderr
        as_json = shell.run("verify", package, "--json")
        told = json.loads(as_json.stdout)
        assert (as_json.returncode, told["ok"], len(told["bad"]), as_json.stderr) == (1, False, 1, "")
        inspected = shell.run("inspect", package)
        assert (inspected.returncode, inspected.stdout == "") == ((1, True) if file == "manifest.json" else (0, False))

    def test_made_here_for_another_architecture(self, shell, field):
        """It is checked and served there; here it is refused, unless only its files are asked about."""
        options = json.dumps({"mcpu": MCPU[OTHER]})
        made_ = shell.start(field, target_platform=f"os=LINUX,arch={OTHER}", compiler_options=options)
        assert made_.returncode == 0, made_.stderr
        done = shell.run("verify", "out")
        assert done.returncode == 1
        assert done.stderr == (
            f"FAIL The package was compiled for {OTHER}; this device is {platform.machine()}. "
            "Compile it for this architecture.\n"
        )
        assert "manifest.json and 1 file are as they were written" in done.stdout
        assert shell.run("verify", "out", "--any-target").returncode == 0
        assert shell.json("inspect", "out")["target"]["arch"] == OTHER

    @pytest.mark.parametrize("command", ["verify", "inspect"])
    def test_no_package(self, shell, command):
        (shell.folder / "empty").mkdir()
        done = shell.run(command, "empty")
        assert (done.returncode, done.stdout) == (1, "")
        assert "Error: empty holds no model package" in done.stderr
        assert shell.run(command, "nowhere").returncode == 2


class TestMissingPackage:
    @pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
    def test_one_sentence_and_no_job(self, first, shell, field, missing):
        away = self.without(shell, missing)
        words = f"Error: Packaging needs the package `onnx` and ONNX Runtime; {extra('cpu,packaging')}.\n"
        commands = [("start", field, *flags())]
        if missing == "onnx":
            commands += [("verify", package_of(first[0])), ("inspect", package_of(first[0]))]
        for command in commands:
            done = shell.run(*command, PYTHONPATH=away)
            assert (done.returncode, done.stdout, done.stderr) == (1, "", words)
        assert shell.jobs() == []

    def test_jobs_can_be_looked_at_all_the_same(self, first, shell):
        done_before, _ = first
        for command in (["list"], ["describe", "first"]):
            done = done_before.run(*command, PYTHONPATH=self.without(shell, "onnx"))
            assert (done.returncode, "first" in done.stdout) == (0, True), done.stderr

    @staticmethod
    def without(shell: Shell, name: str) -> str:
        """Return a PYTHONPATH with which a package cannot be imported."""
        (shell.folder / "away").mkdir(exist_ok=True)
        (shell.folder / "away" / "sitecustomize.py").write_text(f"import sys\nsys.modules[{name!r}] = None\n")
        return os.pathsep.join(filter(None, [str(shell.folder / "away"), shell.environment.get("PYTHONPATH", "")]))
