"""Models that components register: acknowledged once they can be called, refused with the cause, dropped with their files."""

import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent.address import LONGEST
from support import packages
from support.agent import Agent, environment, place, serving
from support.calls import OK, outcome, request
from support.sabotage import sabotaged
from support.users import AGENT, I_AM_ROOT, MYSELF, OTHER, User, agent_user
from support.waiting import until

PIXELS = b"\x80" * (3 * 64 * 64)
MEMBER = User(54303, 54303, (54310,))
GROUP = 54310
# An agent whose socket is about to get its path says so in one file, and waits for another.
HELD_UP = """
import os, time

link = os.link

def held_up(*arguments, **options):
    open({held!r}, "w").close()
    while not os.path.exists({go!r}):
        time.sleep(0.01)
    link(*arguments, **options)

os.link = held_up
"""


class Device:
    """A folder as Greengrass lays it out, and the components' side of the registry."""

    def __init__(self) -> None:
        self.root = place()
        self.artifacts = self.root / "packages" / "artifacts-unarchived"
        self.registry = self.root / "work" / "aws.iot.lookoutvision.EdgeAgent" / "models.d"
        self.settings = {"registry": str(self.registry)}
        self.folder(self.artifacts)
        self.folder(self.registry.parent)

    def folder(self, path: Path) -> Path:
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
        for one in (path, *path.parents):
            if one == self.root:
                break
            os.chown(one, agent_user().uid, agent_user().gid)
        return path

    def package(self, name: str, version: str = "1.0.0", score: float = 0.25, folder: str = "abc") -> Path:
        """Write the package of a component as the nucleus unpacks it."""
        above = self.folder(self.artifacts / name / version)
        return packages.write(above / folder, packages.manifest(), packages.constant(scores=[score, 1 - score]))

    def entry(self, name: str, path: Path | str, version: str = "1.0.0", **changes: object) -> bytes:
        content = {"component": name, "version": version, "path": str(path), "autostart": "false", **changes}
        return json.dumps(content).encode() + b"\n"

    def register(self, name: str, data: bytes, owner: User | None = None, mode: int = 0o644) -> bytes:
        """Put an entry into the registry as register.sh does, at once; return it."""
        owner = owner or agent_user()
        beside = self.registry / f".{name}.test"
        beside.write_bytes(data)
        beside.chmod(mode)
        os.chown(beside, owner.uid, owner.gid)
        beside.rename(self.registry / f"{name}.json")
        return data

    def ack(self, name: str) -> bytes:
        try:
            return (self.registry / f"{name}.ack").read_bytes()
        except FileNotFoundError:
            return b""

    def acknowledged(self, name: str, data: bytes) -> None:
        until(lambda: self.ack(name), f"{name} is answered")
        assert self.ack(name) == data


@pytest.fixture
def device():
    made = Device()
    yield made
    shutil.rmtree(made.root, ignore_errors=True)


def listed(agent: Agent) -> dict[str, str]:
    response = agent.stub().ListModels(pb2.ListModelsRequest(), timeout=30)
    return {one.model_component: pb2.ModelStatus.Name(one.status) for one in response.models}


def score(agent: Agent, name: str) -> float:
    code, details, response = outcome(agent.stub().DetectAnomalies, request(name, 64, 64, PIXELS))
    assert code == OK, details
    return response.detect_anomaly_result.anomaly_score


class TestLife:
    def test_registered_called_replaced_and_gone(self, device):
        with serving(**device.settings) as agent:
            assert stat.S_IMODE(device.registry.stat().st_mode) == 0o770
            assert listed(agent) == {}
            first = device.package("com.example.Board")
            data = device.register("com.example.Board", device.entry("com.example.Board", first))
            device.acknowledged("com.example.Board", data)
            assert listed(agent) == {"com.example.Board": "STOPPED"}, "acknowledged is: it can be called"
            assert agent.describe("com.example.Board").lookout_vision_model_arn.endswith("model/com.example.Board/1")
            agent.run_model("com.example.Board")
            assert score(agent, "com.example.Board") == pytest.approx(0.25)

            second = device.package("com.example.Board", "2.0.0", 0.75)
            data = device.register("com.example.Board", device.entry("com.example.Board", second, "2.0.0"))
            until(lambda: device.ack("com.example.Board") == data, "the new version is acknowledged")

            shutil.rmtree(first.parent)
            shutil.rmtree(second.parent)
            until(lambda: listed(agent) == {}, "the model is dropped")
            until(lambda: list(device.registry.iterdir()) == [], "entry and acknowledgement are removed")
            until(lambda: "its registry entry is removed" in agent.log(), "it is said")

    def test_entries_and_acknowledgements_stay_over_restarts(self, device):
        data = None
        for _ in range(2):
            with serving(**device.settings, folder=device.root) as agent:
                if data is None:
                    data = device.register("board", device.entry("board", device.package("board")))
                device.acknowledged("board", data)
                assert listed(agent) == {"board": "STOPPED"}
        assert device.ack("board") == data

    def test_a_missing_or_wrong_acknowledgement_is_written_again(self, device):
        with serving(**device.settings):
            data = device.register("board", device.entry("board", device.package("board")))
            device.acknowledged("board", data)
            (device.registry / "board.ack").unlink()
            until(lambda: device.ack("board") == data, "it is there again")
            (device.registry / "board.ack").write_bytes(b"error: of an earlier time\n")
            until(lambda: device.ack("board") == data, "it is right again")
            assert sorted(one.name for one in device.registry.iterdir()) == ["board.ack", "board.json"]

    def test_a_zip_that_was_not_unpacked(self, device):
        package = device.package("board", score=0.5)
        archive = device.folder(device.root / "packages" / "artifacts" / "board" / "1.0.0") / "abc.zip"
        shutil.make_archive(str(archive.with_suffix("")), "zip", package)
        shutil.rmtree(package)
        with serving(**device.settings) as agent:
            data = device.register("board", device.entry("board", archive))
            device.acknowledged("board", data)
            agent.run_model("board")
            assert score(agent, "board") == pytest.approx(0.5)
            unpacked = next((agent.folder / "state").glob("*.unpacked"))
            assert len(list(unpacked.iterdir())) == 1
            archive.unlink()
            until(lambda: listed(agent) == {}, "the model is dropped")
            until(lambda: list(unpacked.iterdir()) == [], "and what was unpacked is removed")

    def test_autostart(self, device):
        device.folder(device.registry)
        package = device.package("board")
        device.register("board", device.entry("board", package, autostart="true"))
        with serving(**device.settings) as agent:
            until(lambda: listed(agent) == {"board": "RUNNING"}, "it starts with the agent")
            agent.stub().StopModel(pb2.StopModelRequest(model_component="board"))
            device.register("board", device.entry("board", package, autostart="true"))
            data = device.register("other", device.entry("other", device.package("other"), autostart="true"))
            device.acknowledged("other", data)
            until(lambda: listed(agent) == {"board": "STOPPED", "other": "RUNNING"}, "who stopped a model has the word")
            device.register("board", device.entry("board", package, autostart="false"))
            until(lambda: b"false" in device.ack("board"), "that is known")
            device.register("board", device.entry("board", package, autostart="true"))
            until(lambda: listed(agent)["board"] == "RUNNING", "a new registration starts it")

    def test_a_folder_that_is_removed_is_made_again(self, device):
        with serving(**device.settings):
            package = device.package("board")
            data = device.register("board", device.entry("board", package))
            device.acknowledged("board", data)
            # At one instant: the agent writes an acknowledgement again that it misses.
            shutil.rmtree(device.registry.rename(device.registry.with_name("removed")))
            until(device.registry.is_dir, "it is there again")
            device.register("board", data)
            device.acknowledged("board", data)

    def test_a_package_in_a_models_folder_and_registered_is_no_conflict(self, device):
        with serving(device.artifacts, **device.settings) as agent:
            package = device.package("board")
            until(lambda: listed(agent) == {"board": "STOPPED"}, "it is found")
            agent.run_model("board")
            device.acknowledged("board", device.register("board", device.entry("board", package)))
            assert agent.describe("board").status_message.count("ignored") == 0
            assert "has changed" not in agent.describe("board").status_message

    def test_the_scan_finds_what_nobody_registered(self, device):
        device.package("board", "1.0.0", 0.25)
        device.package("board", "1.2.0", 0.75)
        with serving(**device.settings, scan=str(device.artifacts)) as agent:
            assert listed(agent) == {"board": "STOPPED"}
            agent.run_model("board")
            assert score(agent, "board") == pytest.approx(0.75), "the highest version"


class TestAnswers:
    """Who is told that a model is known may call at once: an agent is silent before it serves, and once it ends."""

    def test_an_agent_that_cannot_serve_says_nothing(self, device):
        """It finds out when it has looked at the registry: beside its socket there is no room for a longer name."""
        data = self.registered(device)
        device.register("other", b"")
        folder = device.folder(device.root / ("x" * (LONGEST - len(f"{device.root}/") - len("/s"))))
        agent = Agent(**device.settings, socket=str(folder / "s")).spawn()
        try:
            assert agent.process.wait(30) == 2
            assert "has too long a path" in agent.log()
            assert "other.json' does not count" in agent.log(), "it has looked"
        finally:
            agent.close()
        assert device.ack("board") == b""
        with serving(**device.settings):
            device.acknowledged("board", data)

    def test_an_agent_whose_socket_is_anothers_says_nothing(self, device):
        with serving() as first:
            self.registered(device)
            second = Agent(**device.settings, socket=str(first.socket)).spawn()
            try:
                assert second.process.wait(30) == 2
                assert "answers on" in second.log()
            finally:
                second.close()
            assert device.ack("board") == b""

    def test_nothing_is_acknowledged_before_the_path_is_there(self, device):
        """The last that an agent does before it serves is to make the path, which is held up."""
        data = self.registered(device)
        agent = Agent(**device.settings)
        held, go = agent.folder / "held", agent.folder / "go"
        try:
            agent.spawn(**sabotaged(agent.folder, HELD_UP.format(held=str(held), go=str(go))))
            until(held.exists, "the path is about to be made")
            assert not agent.socket.exists()
            assert device.ack("board") == b""
            go.touch()
            device.acknowledged("board", data)
            assert listed(agent) == {"board": "STOPPED"}
        finally:
            go.touch()
            agent.close()

    def test_nothing_is_acknowledged_once_calls_are_refused(self, device):
        """The agent waits for a call that is under way, and still looks at the registry."""
        models = device.folder(device.root / "models")
        packages.write(models / "slow", packages.manifest(), packages.constant(scores=[0.5, 0.5]))
        with serving(models, **device.settings, drain_timeout=60) as agent:
            agent.run_model("slow")
            (worker,) = agent.workers()
            os.kill(worker, signal.SIGSTOP)
            try:
                marked = os.urandom(16) + PIXELS[16:]
                call = agent.stub().DetectAnomalies.future(request("slow", 64, 64, marked))
                until(lambda: agent.inbox_holds(marked), "the call is in the worker")
                agent.process.terminate()
                until(lambda: not agent.socket.exists(), "it takes no more calls")
                self.registered(device)
                # Looks follow each other, and each tells of what is new in it: the first of these has been answered.
                for name in ("first", "second"):
                    device.register(name, b"")
                    until(lambda name=name: f"{name}.json' does not count" in agent.log(), f"it has seen the {name}")
                assert device.ack("board") == b""
            finally:
                os.kill(worker, signal.SIGCONT)
            assert call.result(30).detect_anomaly_result.anomaly_score == pytest.approx(0.5)
            assert agent.process.wait(30) == 0
            assert device.ack("board") == b""

    @staticmethod
    def registered(device: Device) -> bytes:
        device.folder(device.registry)
        return device.register("board", device.entry("board", device.package("board")))


class TestConflicts:
    def test_who_had_it_first_keeps_it(self, device):
        models = device.folder(device.root / "models")
        packages.write(models / "board", packages.manifest(), packages.constant(scores=[0.5, 0.5]))
        with serving(models, **device.settings) as agent:
            package = device.package("board", "2.0.0")
            device.register("board", device.entry("board", package, "2.0.0"))
            until(lambda: device.ack("board"), "it is answered")
            assert device.ack("board") == (
                f"error: Version 0.0.0 of this component in {models}/board was there first.\n".encode()
            )
            message = f"Version 2.0.0 of this component in {package} is ignored: another source had it first."
            assert message in agent.describe("board").status_message
            assert message in agent.log()
            shutil.rmtree(models / "board")
            until(lambda: device.ack("board") == device.entry("board", package, "2.0.0"), "the next one has it")

    def test_what_is_registered_keeps_it_from_a_models_folder(self, device):
        models = device.folder(device.root / "models")
        with serving(models, **device.settings) as agent:
            data = device.register("board", device.entry("board", device.package("board")))
            device.acknowledged("board", data)
            packages.write(models / "board", packages.manifest(), packages.constant(scores=[0.5, 0.5]))
            until(lambda: "is ignored" in agent.describe("board").status_message, "the other is named")
            assert device.ack("board") == data

    def test_at_start_models_folders_come_first(self, device):
        models = device.folder(device.root / "models")
        packages.write(models / "board", packages.manifest(), packages.constant(scores=[0.5, 0.5]))
        device.folder(device.registry)
        device.register("board", device.entry("board", device.package("board")))
        with serving(models, **device.settings):
            until(lambda: device.ack("board").startswith(b"error: Version 0.0.0"), "the entry lost")

    def test_two_components_cannot_register_one_package(self, device):
        with serving(**device.settings) as agent:
            package = device.package("board")
            device.acknowledged("board", device.register("board", device.entry("board", package)))
            device.register("a-thief", device.entry("a-thief", package))
            until(lambda: b"is registered by board already" in device.ack("a-thief"), "the second is refused")
            assert listed(agent) == {"board": "STOPPED"}


NAME = "board"
# What is wrong -> what the log and the acknowledgement say.
WRONG = {
    "owned by another user": "belongs to uid 54302; only root, the agent's user and trusted_uids may register models",
    "writable by a group": "its mode 0664 lets others write it; chmod go-w",
    "writable by everybody": "its mode 0666 lets others write it; chmod go-w",
    "a symbolic link": "it is a link; write a plain file",
    "a second hard link": "it has a second hard link; write a file of its own",
    "a FIFO": "it is no regular file; write a plain one",
    "a folder": "it is no regular file; write a plain one",
    "too long": "it is longer than 4096 bytes",
    "empty": "it is no JSON",
    "a list": "it must be an object of exactly",
    "a key too many": "it must be an object of exactly",
    "a key too few": "it must be an object of exactly",
    "a key twice": "the key 'path' is there twice",
    "a flag that is no text": "`autostart` is 'true'; it must be a text",
    "another component": "`component` is 'other'; the file's name says board",
    "no version": "`version` is 'one'; it must be x.y.z",
    "a relative path": "it must be an absolute path",
    "a path with a line break": "it must be an absolute path of printable characters",
    "a path outside": "which is not below",
    "a path that leaves with dots": "which is not below",
    "a link that leads outside": "which is not below",
    "a folder that everybody writes": "is writable by everybody; take that away with chmod o-w",
    "a parent that everybody writes": "is writable by everybody; take that away with chmod o-w",
    "a package of another user": "belongs to uid 54302; only root, the agent's user and trusted_uids may own packages",
    "no package": "which holds no model package",
    "no zip": "cannot be unpacked",
    "a block that says another version": "It is registered as board 1.0.0, and its package block says board 2.0.0.",
    "a broken manifest": "manifest.json is not JSON",
}
COUNT = 28
AS_ROOT = {"owned by another user", "a package of another user"}


def plant(device: Device, wrong: str) -> None:
    """Put a wrong entry into the registry."""
    package = device.package(NAME)
    file = device.registry / f"{NAME}.json"
    good = device.entry(NAME, package)
    entries = {
        "too long": good + b" " * 4096,
        "empty": b"",
        "a list": b"[]",
        "a key too many": device.entry(NAME, package, more="1"),
        "a key too few": good.replace(b', "autostart": "false"', b""),
        "a key twice": good.replace(b'"autostart"', b'"path": "/x", "autostart"'),
        "a flag that is no text": device.entry(NAME, package, autostart=True),
        "another component": device.entry("other", package),
        "no version": device.entry(NAME, package, "one"),
        "a relative path": device.entry(NAME, "packages/board"),
        "a path with a line break": device.entry(NAME, f"{package}\n"),
        "a path outside": device.entry(NAME, device.root / "work"),
        "a path that leaves with dots": device.entry(NAME, f"{device.artifacts}/../../work"),
    }
    if wrong == "owned by another user":
        device.register(NAME, good, owner=OTHER)
    elif wrong == "writable by a group":
        device.register(NAME, good, mode=0o664)
    elif wrong == "writable by everybody":
        device.register(NAME, good, mode=0o666)
    elif wrong == "a symbolic link":
        device.register("elsewhere", device.entry("elsewhere", package))
        file.symlink_to("elsewhere.json")
    elif wrong == "a second hard link":
        device.register(NAME, good)
        os.link(file, device.registry / ".link")
    elif wrong == "a FIFO":
        os.mkfifo(file)
    elif wrong == "a folder":
        file.mkdir()
    elif wrong in entries:
        device.register(NAME, entries[wrong])
    else:
        plant_package(device, wrong, package)


def plant_package(device: Device, wrong: str, package: Path) -> None:
    """Register a package with something wrong about it."""
    path = package
    if wrong == "a link that leads outside":
        path = device.artifacts / "link"
        path.symlink_to(device.root / "work")
    elif wrong == "a folder that everybody writes":
        package.chmod(0o777)
    elif wrong == "a parent that everybody writes":
        package.parent.chmod(0o777)
    elif wrong == "a package of another user":
        os.chown(package, OTHER.uid, OTHER.gid)
    elif wrong == "no package":
        path = device.folder(device.artifacts / "empty")
    elif wrong == "no zip":
        path = device.artifacts / "board.zip"
        path.write_text("no zip")
    elif wrong == "a block that says another version":
        shutil.rmtree(package)
        with_block(package, "2.0.0")
    elif wrong == "a broken manifest":
        (package / "manifest.json").write_text('{"model_graph": ')
    device.register(NAME, device.entry(NAME, path))


def with_block(folder: Path, version: str) -> None:
    """Write a package whose block says what it is."""
    model = packages.constant(scores=[0.5, 0.5])
    files = {"mochi/model.onnx": {"size": len(model), "sha256": hashlib.sha256(model).hexdigest()}}
    block = {"format": 1, "component": {"name": NAME, "version": version}, "files": files}
    packages.write(folder, {**packages.manifest(), "package": block}, model)


def test_the_wrong_ones_are_counted():
    assert len(WRONG) == COUNT


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_entry_is_refused_with_a_line_that_names_the_cause(device, wrong):
    if wrong in AS_ROOT and agent_user() == MYSELF:
        pytest.skip("needs root, to write as two users")
    device.folder(device.registry)
    with serving(**device.settings) as agent:
        plant(device, wrong)
        until(lambda: device.ack(NAME), "it is answered")
        answer = device.ack(NAME).decode()
        assert answer.startswith("error: ")
        assert answer.endswith(".\n")
        assert WRONG[wrong] in answer
        assert WRONG[wrong].rstrip(".") in agent.log()
        assert listed(agent).get(NAME, "FAILED") == "FAILED"
        # A good one is taken afterwards.
        file = device.registry / f"{NAME}.json"
        if file.is_dir():
            file.rmdir()
        shutil.rmtree(device.artifacts / NAME, ignore_errors=True)
        data = device.register(NAME, device.entry(NAME, device.package(NAME, folder="good")))
        until(lambda: device.ack(NAME) == data, "the good one is acknowledged")
        assert listed(agent)[NAME] == "STOPPED"


@pytest.mark.parametrize("wrong", ["writable by everybody", "a path outside", "no package", "a FIFO", "empty"])
def test_a_wrong_entry_does_not_take_the_good_one_away(device, wrong):
    with serving(**device.settings) as agent:
        data = device.register(NAME, device.entry(NAME, device.package(NAME)))
        device.acknowledged(NAME, data)
        agent.run_model(NAME)
        (device.registry / f"{NAME}.json").unlink()
        plant(device, wrong)
        until(lambda: device.ack(NAME).startswith(b"error: "), "the wrong one is refused")
        assert score(agent, NAME) == pytest.approx(0.25)


class TestStart:
    def test_a_registry_that_is_no_greengrass_one_needs_roots(self, device):
        agent = Agent(registry=str(device.root / "registry")).spawn()
        try:
            assert agent.process.wait(30) == 2
            assert "the registry needs registry_roots" in agent.log()
        finally:
            agent.close()

    def test_roots_of_ones_own(self, device):
        registry = device.root / "registry"
        device.registry = registry
        with serving(registry=str(registry), registry_roots=[str(device.artifacts)]):
            device.acknowledged("board", device.register("board", device.entry("board", device.package("board"))))

    @pytest.mark.parametrize("how", ["everybody", "another", "file"])
    def test_a_registry_that_others_may_write_is_refused(self, device, how):
        if how == "another" and agent_user() == MYSELF:
            pytest.skip("needs root, to write as two users")
        if how == "file":
            device.registry.write_text("x")
        else:
            device.folder(device.registry).chmod(0o777 if how == "everybody" else 0o755)
        if how == "another":
            os.chown(device.registry, OTHER.uid, OTHER.gid)
        agent = Agent(**device.settings).spawn()
        try:
            assert agent.process.wait(30) == 2
            assert f"--registry {device.registry} " in agent.log()
            assert "Traceback" not in agent.log()
        finally:
            agent.close()


@pytest.mark.two_uids
@pytest.mark.skipif(not I_AM_ROOT or agent_user() == MYSELF, reason="needs root, to write as three users")
class TestGroup:
    """The agent's user is a member of a group; so is a component's user, who may register models if it is trusted."""

    @pytest.fixture
    def agent(self, device):
        user = User(AGENT.uid, AGENT.gid, (GROUP,))
        agent = Agent(
            **device.settings, folder=device.root, user=user, socket_group=str(GROUP), trusted_uids=[MEMBER.uid]
        )
        try:
            yield agent.start()
        finally:
            agent.close()

    def write(self, device, user: User, name: str, data: bytes) -> int:
        script = "import os, sys; os.umask(0o22); open(sys.argv[1], 'wb').write(sys.stdin.buffer.read())"
        command = [sys.executable, "-c", script, str(device.registry / f"{name}.json")]
        return subprocess.run(command, input=data, stderr=subprocess.DEVNULL, check=False, **user.popen()).returncode

    def test_socket_and_registry_are_for_the_group(self, device, agent):
        for path, mode in ((agent.socket, 0o660), (device.registry, 0o770)):
            info = path.stat()
            assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid) == (mode, AGENT.uid, GROUP)
        data = device.entry("board", device.package("board"))
        assert self.write(device, OTHER, "board", data) != 0, "somebody else cannot register"
        assert self.write(device, MEMBER, "board", data) == 0
        device.acknowledged("board", data)
        call = [
            *(sys.executable, "-m", "edge_agent", "describe", "board"),
            *("--socket", str(agent.socket)),
        ]
        told = [
            subprocess.run(call, env=environment(), cwd="/", capture_output=True, check=False, **user.popen())
            for user in (MEMBER, OTHER)
        ]
        assert told[0].returncode == 0, told[0].stderr
        assert told[1].returncode == 1, "somebody else cannot call"

    def test_a_member_that_is_not_trusted_cannot_register(self, device, agent):
        untrusted = User(54304, 54304, (GROUP,))
        assert self.write(device, untrusted, "board", device.entry("board", device.package("board"))) == 0
        until(lambda: b"belongs to uid 54304" in device.ack("board"), "the entry is refused")
        assert listed(agent) == {}
