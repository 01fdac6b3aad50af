"""Destinations: a version is there whole or not at all, in a folder and in a bucket of a real S3 server."""

import contextlib
import dataclasses
import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model_packager import destinations, files, jobs
from model_packager.destinations import LocalFolder, S3Prefix
from model_packager.errors import PackagingRefused
from support.waiting import PATIENCE, until

# moto's server, which refuses or holds back the requests that a file names.
SERVER = """
import json, sys, time
from pathlib import Path
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

moto = DomainDispatcherApplication(create_backend_app)
folder = Path(sys.argv[1])

def application(environ, start_response):
    for fault in json.loads((folder / "faults.json").read_text()):
        asked = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}?{environ['QUERY_STRING']}"
        if fault["method"] == environ["REQUEST_METHOD"] and fault["part"] in asked:
            if fault["code"] == "hold back":
                (folder / "held-back").touch()
                time.sleep(600)
            start_response(fault.get("status", "403 Forbidden"), [("Content-Type", "application/xml")])
            return [f"<Error><Code>{fault['code']}</Code><Message>So it is.</Message></Error>".encode()]
    return moto(environ, start_response)

server = make_server("127.0.0.1", 0, application, threaded=True)
print(server.server_port, flush=True)
server.serve_forever()
"""

PUBLISH = """
import sys
from pathlib import Path
from model_packager import destinations
from model_packager.errors import PackagingRefused

output, folder, limit = sys.argv[1:]
if limit != "0":
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
try:
    print(destinations.of(output).publish(Path(folder), "board", "1.0.0", "job"))
except PackagingRefused as error:
    sys.exit(str(error))
"""


def tree(folder: Path) -> dict[str, bytes | None]:
    """Return the files below a folder with their content, and the folders."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def made(tmp_path) -> Path:
    """What a job has made: a zip, a script, two recipes, a record, and the package unpacked."""
    folder = tmp_path / "made"
    (folder / "board" / "mochi").mkdir(parents=True)
    for name in ("board.zip", "register.sh", "job.json", "board/manifest.json", "board/mochi/model.onnx"):
        (folder / name).write_text(name)
    for name in ("recipe.json", "recipe.yaml"):
        (folder / name).write_text(name)
        (folder / name).chmod(0o400)
    return folder


def deployed(version: str = "1.0.0", says: str = "") -> dict[str, bytes | None]:
    """Return the tree of what local deployments take of a version that was made so."""
    contents = {
        f"artifacts/board/{version}/board.zip": says or "board.zip",
        f"artifacts/board/{version}/register.sh": says or "register.sh",
        f"recipes/board-{version}.yaml": says or "recipe.yaml",
    }
    folders = dict.fromkeys(["artifacts", "artifacts/board", f"artifacts/board/{version}", "recipes"])
    return folders | {name: content.encode() for name, content in contents.items()}


def without_versions(output: Path) -> dict[str, bytes | None]:
    """Return the tree of an output folder but for the versions of the board."""
    return {name: content for name, content in tree(output).items() if name.partition("/")[0] != "board"}


@contextlib.contextmanager
def publishing(output: object, folder: Path, limit: int = 0) -> Iterator[subprocess.Popen]:
    """Publish in a process of its own, which is killed in the end."""
    command = [sys.executable, "-c", PUBLISH, str(output), str(folder), str(limit)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_what_an_output_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert destinations.of("a/../b") == LocalFolder(tmp_path / "b")
    assert destinations.of("s3://bucket") == destinations.of("s3://bucket/") == S3Prefix("bucket", "")
    assert destinations.of("s3://my.bucket/a/b c/") == S3Prefix("my.bucket", "a/b c")
    for text in ("b", "s3://bucket", "s3://my.bucket/a/b c"):
        assert destinations.of(str(destinations.of(text))) == destinations.of(text)


@pytest.mark.parametrize(
    "output",
    [
        "",
        "a\0b",
        "ftp://a/b",
        "s3:/" + "/",
        "s3://B/a",
        "s3://bucket/a//b",
        "s3://bucket/a/../b",
        "s3://bucket/./a",
        "s3://bucket/\n",
    ],
)
def test_what_is_no_output(output):
    with pytest.raises(PackagingRefused, match="--output"):
        destinations.of(output)


@pytest.mark.parametrize(
    ("component", "version"),
    [("..", "1.0.0"), ("a/b", "1.0.0"), ("", "1.0.0"), ("a", ".."), ("a", "1/0"), ("a", ""), ("a", "1\n")],
)
@pytest.mark.parametrize("output", ["/nowhere", "s3://bucket"])
def test_names_that_would_lead_elsewhere(component, version, output):
    with pytest.raises(PackagingRefused, match="cannot name a folder"):
        destinations.of(output).partial(component, version, "job")


def test_the_uri_of_a_file():
    assert destinations.of("/out").artifact_uri("c", "1.0.0", "c.zip") == "s3://BUCKET_NAME/c/1.0.0/c.zip"
    assert destinations.of("s3://bucket").artifact_uri("c", "1.0.0", "c.zip") == "s3://bucket/c/1.0.0/c.zip"
    assert destinations.of("s3://bucket/a/b").artifact_uri("c", "1.0.0", "c.zip") == "s3://bucket/a/b/c/1.0.0/c.zip"


def test_a_version_in_a_folder(tmp_path, made):
    destination = destinations.of(str(tmp_path / "new" / "out"))
    assert not destination.taken("board", "1.0.0")
    umask = os.umask(0o077)
    try:
        where = destination.publish(made, "board", "1.0.0", "job")
    finally:
        os.umask(umask)
    assert where == str(tmp_path / "new" / "out" / "board" / "1.0.0")
    assert tree(Path(where)) == tree(made)
    # One recipe without a twin, and artifacts without anything else: what --recipe-dir and --artifacts-dir take.
    assert without_versions(tmp_path / "new" / "out") == deployed()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new" / "out").rglob("*") if path.is_file()}
    folders = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").rglob("*") if path.is_dir()}
    assert (modes, folders) == ({0o644}, {0o755})
    assert destination.taken("board", "1.0.0")
    assert not destination.taken("board", "1.0")
    with pytest.raises(PackagingRefused, match=r"Component board version 1.0.0 exists already in .*/out; give another"):
        destination.publish(made, "board", "1.0.0", "job")
    destination.publish(made, "board", "1.0.1", "job")
    assert sorted(path.name for path in (tmp_path / "new" / "out" / "board").iterdir()) == ["1.0.0", "1.0.1"]
    assert without_versions(tmp_path / "new" / "out") == deployed() | deployed("1.0.1")


def test_everything_is_on_the_disk_before_it_appears(tmp_path, made, monkeypatch):
    output = tmp_path / "out"
    places = [output / path for path in ("board/1.0.0", "artifacts/board/1.0.0", "recipes/board-1.0.0.yaml")]
    flushed: list[tuple[Path, list[bool]]] = []
    real = files.flush

    def flush(path: Path) -> None:
        flushed.append((path, [place.exists() for place in places]))
        real(path)

    monkeypatch.setattr(files, "flush", flush)
    LocalFolder(output).publish(made, "board", "1.0.0", "job")
    before = [path.name for path, (appeared, *_) in flushed if not appeared]
    assert {*before} >= {*(Path(name).name for name in tree(made)), ".1.0.0.job.new"}
    assert before.count("board.zip") == before.count("recipe.yaml") == 2  # those for local deployments, too
    # The names in each folder, once they are there; the version's at last.
    for seen in ((places[1].parent, [False, True, False]), (places[2].parent, [False, True, True])):
        assert seen in flushed
    assert flushed[-1] == (places[0].parent, [True, True, True])


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_version_that_appears_meanwhile(tmp_path, made, monkeypatch, kind):
    destination, real = LocalFolder(tmp_path / "out"), files.copy
    place = tmp_path / "out" / "board" / "1.0.0"

    def copy(source: Path, target: Path) -> None:
        real(source, target)
        if target.name.startswith(".") and kind == "folder":
            place.mkdir()
            (place / "another").touch()
        elif target.name.startswith("."):
            place.touch()

    monkeypatch.setattr(files, "copy", copy)
    with pytest.raises(PackagingRefused, match="exists already"):
        destination.publish(made, "board", "1.0.0", "job")
    assert set(tree(tmp_path / "out")) == {
        "board",
        "board/1.0.0",
        *(["board/1.0.0/another"] if kind == "folder" else []),
    }


def test_an_interrupted_copy_is_removed(tmp_path, made, monkeypatch):
    def copy(source: Path, target: Path) -> None:
        (target / "begun").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "copy", copy)
    with pytest.raises(KeyboardInterrupt):
        LocalFolder(tmp_path / "out").publish(made, "board", "1.0.0", "job")
    assert tree(tmp_path / "out") == {}


def test_a_disk_that_takes_no_more(tmp_path, made):
    (made / "large").write_bytes(bytes(1 << 20))
    with publishing(tmp_path / "out", made, limit=1 << 19) as command:
        _, said = command.communicate(timeout=PATIENCE)
    assert (command.returncode, said.count("\n")) == (1, 1), said
    assert f"The output folder {tmp_path / 'out'} cannot be written: File too large." in said
    assert tree(tmp_path / "out") == {}


@pytest.mark.parametrize("output", ["file", "file/below", "/proc/not-here"])
def test_an_output_that_cannot_be_written(tmp_path, made, output):
    (tmp_path / "file").touch()
    with pytest.raises(PackagingRefused, match="The output folder .* cannot be written: .* give another --output"):
        LocalFolder(tmp_path / output).publish(made, "board", "1.0.0", "job")


def test_what_another_job_of_the_name_is_writing_is_left_to_it(tmp_path, made):
    destination = LocalFolder(tmp_path / "out")
    partial = Path(destination.partial("board", "1.0.0", "job"))
    partial.mkdir(parents=True)
    (partial / "file").touch()
    with pytest.raises(PackagingRefused, match="cannot be written: File exists"):
        destination.publish(made, "board", "1.0.0", "job")
    assert (partial / "file").exists()


def test_clearing_a_folder(tmp_path, made):
    destination = LocalFolder(tmp_path / "out")
    partial = destination.partial("board", "1.0.0", "job")
    destinations.clear(partial)  # nothing had been begun
    Path(partial, "mochi").mkdir(parents=True)
    Path(partial, "mochi", "model.onnx").touch()
    destinations.clear(partial)
    assert tree(tmp_path / "out") == {}
    destination.publish(made, "board", "1.0.1", "job")
    Path(partial).mkdir()
    destinations.clear(partial)
    assert {*tree(tmp_path / "out")} >= {"board", "board/1.0.1"}
    assert not Path(partial).exists()
    for path in (made, tmp_path / "out" / "board" / "1.0.1"):
        with pytest.raises(PackagingRefused, match="not what a packaging job leaves"):
            destinations.clear(str(path))
        assert path.exists()


@pytest.mark.parametrize("name", ["recipes", "artifacts"])
def test_a_component_that_is_called_like_our_own_folders(tmp_path, made, name):
    destination = LocalFolder(tmp_path / "out")
    for call in (destination.taken, lambda *asked: destination.publish(made, *asked, "job")):
        with pytest.raises(PackagingRefused, match=f"Component '{name}' cannot .* for local deployments; give another"):
            call(name, "1.0.0")
    assert tree(tmp_path) == {"made": None, **{f"made/{one}": content for one, content in tree(made).items()}}


def test_without_a_recipe_there_is_nothing_to_deploy(tmp_path, made):
    (made / "recipe.yaml").unlink()
    LocalFolder(tmp_path / "out").publish(made, "board", "1.0.0", "job")
    assert without_versions(tmp_path / "out") == {}
    assert tree(tmp_path / "out" / "board" / "1.0.0") == tree(made)


# A job that dies when so many of the things have come to their places: artifacts, recipe.
DIES = """
import os, sys
from pathlib import Path
from model_packager import destinations

output, folder, job, moves = sys.argv[1:]
left = int(moves)

def counted(move):
    def moving(self, target):
        global left
        if left == 0:
            os._exit(9)
        left -= 1
        return move(self, target)
    return moving

Path.rename, Path.replace = counted(Path.rename), counted(Path.replace)
destinations.of(output).publish(Path(folder), "board", "1.0.0", job)
"""


def died(output: Path, folder: Path, job: str, moves: int) -> None:
    command = [sys.executable, "-c", DIES, str(output), str(folder), job, str(moves)]
    assert subprocess.run(command, check=False, timeout=PATIENCE).returncode == 9


@pytest.fixture
def another(made, tmp_path) -> Path:
    """What another job has made of the same version: other content, and an artifact of another name."""
    folder = tmp_path / "another"
    folder.mkdir()
    for name in ("crate.zip", "register.sh", "recipe.yaml", "recipe.json"):
        (folder / name).write_text("another")
    return folder


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_what_a_dead_job_had_put_into_place_is_replaced(tmp_path, made, another, moves):
    output = tmp_path / "out"
    died(output, another, "dead", moves)
    destination = LocalFolder(output)
    there = {name for name in without_versions(output) if name.endswith((".zip", ".yaml"))}
    assert there == {
        *["artifacts/board/1.0.0/crate.zip"][:moves],
        *["recipes/board-1.0.0.yaml"][: moves - 1 if moves else 0],
    }
    assert not destination.taken("board", "1.0.0")
    destination.publish(made, "board", "1.0.0", "next")
    assert without_versions(output) == deployed()
    # Whoever clears up after the dead one at last finds the version there, and leaves it what is its own.
    destinations.clear(destination.partial("board", "1.0.0", "dead"))
    assert without_versions(output) == deployed()
    assert {path.name for path in (output / "board").iterdir()} == {"1.0.0"}


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_what_a_dead_job_had_put_into_place_is_removed(tmp_path, made, another, moves):
    output = tmp_path / "out"
    destination = LocalFolder(output)
    destination.publish(made, "board", "2.0.0", "job")
    before = tree(output)
    died(output, another, "dead", moves)
    assert tree(output) != before
    destinations.clear(destination.partial("board", "1.0.0", "dead"))
    assert tree(output) == before
    # There nothing had been begun, or everything was done.
    destinations.clear(destination.partial("board", "2.0.0", "job"))
    destinations.clear(destination.partial("board", "2.0.0", "another"))
    assert tree(output) == before


def test_a_job_that_fails_at_the_last_step_leaves_nothing(tmp_path, made, monkeypatch):
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if target.name == "1.0.0" and target.parent == tmp_path / "out" / "board":
            assert without_versions(tmp_path / "out") == deployed()
            raise OSError(28, "No space left on device")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(PackagingRefused, match="cannot be written: No space left on device"):
        LocalFolder(tmp_path / "out").publish(made, "board", "1.0.0", "job")
    assert tree(tmp_path / "out") == {}


AT_ONCE = """
import sys
from pathlib import Path
from model_packager import destinations, deployments
from model_packager.errors import PackagingRefused

output, folder, job = sys.argv[1:]
real = deployments.prepare

def prepare(*asked):
    real(*asked)
    print("ready", flush=True)
    sys.stdin.readline()

deployments.prepare = prepare
try:
    destinations.of(output).publish(Path(folder), "board", "1.0.0", job)
except PackagingRefused as error:
    sys.exit(str(error))
"""


@contextlib.contextmanager
def copied(output: Path, folder: Path, job: str) -> Iterator[subprocess.Popen]:
    """Let a job copy everything, and put it into place only when it gets a line; it is killed in the end."""
    command = [sys.executable, "-c", AT_ONCE, str(output), str(folder), job]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, text=True, **pipes) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def test_jobs_that_publish_one_version_at_once(tmp_path):
    """Each has copied everything before one of them puts it into place: what is there is all of one job."""
    with contextlib.ExitStack() as stack:
        processes = []
        for number in range(4):
            folder = tmp_path / f"made-{number}"
            folder.mkdir()
            for name in ("board.zip", "register.sh", "recipe.yaml", "recipe.json"):
                (folder / name).write_text(f"job {number}")
            processes.append(stack.enter_context(copied(tmp_path / "out", folder, f"job-{number}")))
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        ended = [process.communicate(timeout=PATIENCE)[1] for process in processes]
    (winner,) = [number for number, process in enumerate(processes) if process.returncode == 0]
    assert all("exists already" in said for number, said in enumerate(ended) if number != winner), ended
    assert {path.name for path in (tmp_path / "out" / "board").iterdir()} == {"1.0.0"}
    assert (tmp_path / "out" / "board" / "1.0.0" / "board.zip").read_text() == f"job {winner}"
    assert without_versions(tmp_path / "out") == deployed(says=f"job {winner}")


def test_nobody_puts_anything_into_place_while_another_does(tmp_path, made):
    output = tmp_path / "out"
    with copied(output, made, "job") as process:
        with LocalFolder(output)._alone():
            process.stdin.write("\n")
            process.stdin.flush()
            until(lambda: f"-> FLOCK  ADVISORY  WRITE {process.pid} " in Path("/proc/locks").read_text(), "it waits")
            assert without_versions(output) == {}
        assert process.wait(timeout=PATIENCE) == 0
    assert without_versions(output) == deployed()


@dataclasses.dataclass
class Server:
    """An S3 server with the bucket `models`, and its faults."""

    folder: Path
    client: Any

    def fault(self, *faults: dict[str, str]) -> None:
        """Answer requests of a method that contain a part with an error code, or hold them back."""
        (self.folder / "faults.next").write_text(json.dumps(faults))
        (self.folder / "faults.next").rename(self.folder / "faults.json")

    def listed(self) -> list[str]:
        return [one["Key"] for one in self.client.list_objects_v2(Bucket="models").get("Contents", ())]

    def uploads(self) -> list[str]:
        return [one["Key"] for one in self.client.list_multipart_uploads(Bucket="models").get("Uploads", ())]

    def put(self, key: str, body: bytes = b"") -> None:
        self.client.put_object(Bucket="models", Key=key, Body=body)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    import boto3

    folder = tmp_path_factory.mktemp("s3")
    (folder / "faults.json").write_text("[]")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    with pytest.MonkeyPatch.context() as patch:
        for key in os.environ.keys() - environment.keys():
            patch.delenv(key)
        for key, value in {
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": str(folder / "config"),
            "AWS_SHARED_CREDENTIALS_FILE": str(folder / "credentials"),
            "NO_PROXY": "127.0.0.1",
        }.items():
            patch.setenv(key, value)
        with subprocess.Popen(
            [sys.executable, "-c", SERVER, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            try:
                patch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{int(process.stdout.readline())}")
                yield Server(folder, boto3.session.Session().client("s3"))
            finally:
                process.kill()


@pytest.fixture
def s3(server) -> Server:
    """The server with an empty bucket and no faults."""
    server.fault()
    (server.folder / "held-back").unlink(missing_ok=True)
    server.client.create_bucket(Bucket="models")
    for key in server.listed():
        server.client.delete_object(Bucket="models", Key=key)
    for one in server.client.list_multipart_uploads(Bucket="models").get("Uploads", ()):
        server.client.abort_multipart_upload(Bucket="models", Key=one["Key"], UploadId=one["UploadId"])
    return server


JOURNAL = "factory/board/.1.0.0.job.new"
# In the order of uploading.
PUBLISHED = [
    f"factory/board/1.0.0/{name}" for name in ("board.zip", "job.json", "register.sh", "recipe.json", "recipe.yaml")
]


@pytest.fixture
def destination(s3) -> S3Prefix:
    return S3Prefix("models", "factory")


def test_a_version_in_a_bucket(s3, destination, made):
    assert not destination.taken("board", "1.0.0")
    assert destination.publish(made, "board", "1.0.0", "job") == "s3://models/factory/board/1.0.0"
    assert s3.listed() == sorted(PUBLISHED)
    assert s3.client.get_object(Bucket="models", Key=PUBLISHED[0])["Body"].read() == b"board.zip"
    changed = [s3.client.head_object(Bucket="models", Key=key)["LastModified"] for key in PUBLISHED]
    assert changed == sorted(changed)
    assert destination.taken("board", "1.0.0")
    assert not destination.taken("board", "1.0")
    with pytest.raises(PackagingRefused, match="version 1.0.0 exists already in s3://models/factory; give another"):
        destination.publish(made, "board", "1.0.0", "another")
    assert s3.listed() == sorted(PUBLISHED)


def test_a_bucket_without_a_prefix(s3, made):
    destination = S3Prefix("models", "")
    assert destination.partial("board", "1.0.0", "job") == "s3://models/board/.1.0.0.job.new"
    destination.publish(made, "board", "1.0.0", "job")
    assert s3.listed() == sorted(key.removeprefix("factory/") for key in PUBLISHED)


def test_the_recipe_comes_last_and_a_failure_in_the_middle_leaves_nothing(s3, destination, made):
    s3.put("factory/board/0.9.0/recipe.json")
    s3.fault({"method": "PUT", "part": "1.0.0/recipe.yaml", "code": "hold back"})
    with publishing(destination, made):
        until((s3.folder / "held-back").exists, "the last file is being uploaded")
        assert s3.listed() == sorted(["factory/board/0.9.0/recipe.json", JOURNAL, *PUBLISHED[:-1]])
    s3.fault({"method": "PUT", "part": "1.0.0/recipe.yaml", "code": "AccessDenied"})
    with pytest.raises(PackagingRefused, match="The packaging job job is writing"):
        destination.publish(made, "board", "1.0.0", "another")
    destinations.clear(destination.partial("board", "1.0.0", "job"))
    assert s3.listed() == ["factory/board/0.9.0/recipe.json"]
    with pytest.raises(PackagingRefused, match=r"Access to s3://models/factory is denied \(PutObject\).* s3:PutObject"):
        destination.publish(made, "board", "1.0.0", "another")
    assert s3.listed() == ["factory/board/0.9.0/recipe.json"]


def test_a_large_file_is_aborted_after_a_crash(s3, destination, made):
    (made / "board.zip").write_bytes(bytes(9 << 20))
    s3.fault({"method": "PUT", "part": "partNumber=2", "code": "hold back"})
    with publishing(destination, made):
        until((s3.folder / "held-back").exists, "the second part is being uploaded")
    s3.fault()
    assert (s3.listed(), s3.uploads()) == ([JOURNAL], [PUBLISHED[0]])
    destinations.clear(destination.partial("board", "1.0.0", "job"))
    assert (s3.listed(), s3.uploads()) == ([], [])
    destination.publish(made, "board", "1.0.0", "again")
    assert s3.uploads() == []
    assert s3.client.head_object(Bucket="models", Key=PUBLISHED[0])["ContentLength"] == 9 << 20


@pytest.mark.parametrize("reachable", [True, False])
def test_a_dead_job_is_swept_from_the_bucket(s3, destination, made, tmp_path, monkeypatch, reachable):
    component = {"ComponentName": "board", "ComponentVersion": "1.0.0"}
    request = {"JobName": "job", "Configuration": {"Greengrass": component}}
    store = jobs.Store(tmp_path / "packaging")
    job = store.create({"request": request, "output": str(destination), "source": str(made), "options": {}})
    store.save(job.moved(jobs.Status.RUNNING))
    s3.fault({"method": "PUT", "part": "1.0.0/recipe.yaml", "code": "hold back"})
    with publishing(destination, made):
        until((s3.folder / "held-back").exists, "the last file is being uploaded")
    store.release("job")
    s3.fault(*([] if reachable else [{"method": "GET", "part": "", "code": "AccessDenied"}]))
    (job,) = store.list()
    assert (job.status, job.message.startswith(jobs.LOST)) == (jobs.Status.FAILED, True)
    s3.fault()
    if reachable:
        assert (s3.listed(), job.message) == ([], jobs.LOST)
    else:
        assert f"What was left in s3://models/{JOURNAL} could not be removed; do it by hand." in job.message
        assert JOURNAL in s3.listed()


def test_what_cannot_be_removed_is_named(s3, destination, made):
    s3.fault(
        {"method": "PUT", "part": "1.0.0/recipe.yaml", "code": "AccessDenied"},
        {"method": "DELETE", "part": "1.0.0", "code": "AccessDenied"},
    )
    with pytest.raises(PackagingRefused) as refused:
        destination.publish(made, "board", "1.0.0", "job")
    assert f"What was left in s3://models/{JOURNAL} could not be removed; do it by hand." in str(refused.value)
    assert (str(refused.value).count("PutObject)"), str(refused.value).count("DeleteObject)")) == (1, 1)
    assert JOURNAL in s3.listed()


def test_two_jobs_for_one_version(s3, destination, made):
    s3.put("factory/board/.1.0.0.other.new", json.dumps({"keys": []}).encode())
    with pytest.raises(PackagingRefused) as refused:
        destination.publish(made, "board", "1.0.0", "job")
    assert "The packaging job other is writing component board version 1.0.0" in str(refused.value)
    assert "remove s3://models/factory/board/.1.0.0.other.new and what it lists" in str(refused.value)
    assert s3.listed() == ["factory/board/.1.0.0.other.new"]
    destination.publish(made, "board", "1.0", "job")
    assert "factory/board/1.0/recipe.yaml" in s3.listed()


def test_clearing_touches_nothing_outside_the_version(s3, destination):
    for key in (
        "factory/board/1.0.0/board.zip",
        "factory/board/1.0.0/other",
        "factory/board/1.0.1/board.zip",
        "secret",
    ):
        s3.put(key)
    listed = ["factory/board/1.0.0/board.zip", "factory/board/1.0.1/board.zip", "secret"]
    s3.put(JOURNAL, json.dumps({"keys": listed}).encode())
    destinations.clear(destination.partial("board", "1.0.0", "job"))
    assert s3.listed() == ["factory/board/1.0.0/other", "factory/board/1.0.1/board.zip", "secret"]
    destinations.clear(destination.partial("board", "1.0.0", "job"))  # without a journal


def test_no_such_bucket(s3, made):
    destination = S3Prefix("not-there", "")
    for call in (lambda: destination.taken("a", "1"), lambda: destination.publish(made, "a", "1", "job")):
        with pytest.raises(
            PackagingRefused, match=r"^There is no bucket not-there\. Make it, or give another --output\.$"
        ):
            call()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("InvalidAccessKeyId", "AWS credentials for s3://models/factory are not accepted .InvalidAccessKeyId"),
        ("ExpiredToken", "not accepted .ExpiredToken.*Renew them"),
        ("Unheard", r"cannot be used: ListObjectsV2 was answered with Unheard \(So it is\)"),
    ],
)
def test_what_s3_may_answer(s3, destination, code, words):
    s3.fault({"method": "GET", "part": "list-type", "code": code, "status": "400 Bad Request"})
    with pytest.raises(PackagingRefused, match=words):
        destination.taken("board", "1.0.0")


def test_no_credentials(s3, destination, made, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(
        PackagingRefused, match="no usable AWS credentials for s3://models/factory .*Set AWS_PROFILE"
    ) as refused:
        destination.publish(made, "board", "1.0.0", "job")
    assert "could not be removed" not in str(refused.value)  # nothing was uploaded


def test_a_profile_that_is_not_there(s3, destination, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "not-there")
    with pytest.raises(PackagingRefused, match="cannot be used .*not-there.* Check the AWS configuration"):
        destination.taken("board", "1.0.0")


def test_an_endpoint_of_the_profile(s3, destination, monkeypatch):
    endpoint = os.environ["AWS_ENDPOINT_URL_S3"]
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    monkeypatch.setenv("AWS_PROFILE", "factory")
    keys = "aws_access_key_id = a\naws_secret_access_key = b\n"
    (s3.folder / "config").write_text(f"[profile factory]\nendpoint_url = {endpoint}\n{keys}")
    s3.put("factory/board/1.0.0/recipe.json")
    assert destination.taken("board", "1.0.0")


def test_an_endpoint_out_of_reach(s3, destination, monkeypatch):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        with pytest.raises(
            PackagingRefused, match="s3://models/factory cannot be reached .*127.0.0.1.*AWS_ENDPOINT_URL_S3"
        ):
            destination.taken("board", "1.0.0")


def test_an_endpoint_that_does_not_answer(s3, destination, monkeypatch):
    monkeypatch.setattr(destinations, "READ_TIMEOUT", 0.1)
    monkeypatch.setattr(destinations, "ATTEMPTS", 2)
    s3.fault({"method": "GET", "part": "list-type", "code": "hold back"})
    with pytest.raises(PackagingRefused, match="cannot be reached .*[Rr]ead timeout"):
        destination.taken("board", "1.0.0")


def test_boto3_is_not_there(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "boto3", None)
    for call in (destinations.of("s3://bucket").taken, lambda *one: destinations.clear("s3://bucket/a/.1.a.new")):
        with pytest.raises(PackagingRefused, match=r"pip install '\.\[s3\]'"):
            call("board", "1.0.0")
