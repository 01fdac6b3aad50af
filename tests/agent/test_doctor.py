"""`edge-agent doctor`: the truth about a device, its packages and its places, with an agent and without one."""

import contextlib
import functools
import json
import math
import os
import platform
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner

from edge_agent import device, doctor, probe
from edge_agent.accelerators import NO_CUDA, NO_DRIVER, NO_TENSORRT, ON_CPU, Here
from edge_agent.accelerators import Gpu as AGpu
from edge_agent.cli import command
from edge_agent.config import Settings
from edge_agent.device import Device
from edge_agent.doctor import hardware, installed, places, room, users
from edge_agent.doctor.installed import Installed, Models
from edge_agent.doctor.report import Finding, Report
from edge_agent.doctor.users import Users
from edge_agent.probe.answering import Answering, Told
from edge_agent.probe.cpu import Cpu
from edge_agent.probe.gpu import Gpu, Gpus
from edge_agent.probe.jetson import Jetson
from edge_agent.probe.libraries import Libraries
from edge_agent.probe.limits import Limit
from edge_agent.probe.runtime import CPU, CUDA, Runtime
from model_packager import writing
from support import packages
from support.agent import Agent, environment, serving
from support.users import I_AM_ROOT, MYSELF, OTHER, agent_user

ARCH, OTHER_ARCH = ("ARM64", "X86_64") if platform.machine() in device.MACHINES["ARM64"] else ("X86_64", "ARM64")
NVIDIA = {
    "arch": ARCH,
    "accelerator": "NVIDIA",
    "compiler_options": {"gpu-code": "sm_87", "trt-ver": "10.3.0", "cuda-ver": "12.6"},
}
SENTENCE = f"The package was compiled for NVIDIA, and there is no GPU for it: {NO_DRIVER} {ON_CPU}"
CHANGED = "'mochi/model.onnx' was changed: its SHA-256 is not the one in package.files."
ME = os.geteuid()


def packaged(folder: Path, target: dict | None = None) -> Path:
    """Write a package with a `package` block, named as its folder."""
    model = packages.brightness(mask=False)
    more = {"target": {"os": "LINUX", **target}} if target else {}
    writing.write(folder, packages.manifest(), model, folder.name, more=more)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def damage(package: Path) -> None:
    """Change a byte of a package's model, and not its size."""
    model = package / "mochi" / "model.onnx"
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function (arguments) that runs the doctor on a free socket; returns its exit code and what it printed."""
    for name in [one for one in os.environ if one.startswith("EDGE_AGENT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("EDGE_AGENT_SOCKET_GROUP", "")
    monkeypatch.setenv("EDGE_AGENT_SOCKET", str(tmp_path / "agent.sock"))
    monkeypatch.setenv("EDGE_AGENT_STATE_DIR", str(tmp_path / "state"))

    def run(*arguments: object) -> tuple[int, str]:
        done = CliRunner().invoke(command, ["doctor", *map(str, arguments)])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
        return done.exit_code, done.output

    return run


@pytest.fixture
def ask(run):
    """The same with --json, parsed."""

    def ask(*arguments: object) -> tuple[int, dict]:
        code, output = run("--json", *arguments)
        return code, json.loads(output)

    return ask


def of_agent(agent: Agent, *arguments: str, user=MYSELF) -> subprocess.CompletedProcess:
    """Run the doctor on an agent's settings, as a user."""
    config = next(agent.folder.glob("config-*.yaml"))
    return subprocess.run(
        [sys.executable, "-m", "edge_agent", "doctor", "--config", str(config), *arguments],
        env=environment(),
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **(user.popen() if user != MYSELF else {}),
    )


KINDS = {
    "ok": bool,
    "cpu": dict,
    "gpu": (dict, type(None)),
    "jetson": (dict, type(None)),
    "libraries": dict,
    "providers": dict,
    "packages": list,
    "socket": dict,
    "state_dir": (str, type(None)),
    "shm": dict,
    "limits": dict,
    "versions": dict,
    "user": dict,
    "problems": list,
}


class TestCommand:
    def test_json_is_one_object_of_promised_keys(self, ask, tmp_path):
        packages.segmenter(tmp_path / "models" / "board", (72, 64))
        code, found = ask("--models", tmp_path / "models")
        assert code == 0
        assert found.keys() == KINDS.keys()
        assert {key for key, kind in KINDS.items() if not isinstance(found[key], kind)} == set()
        (board,) = found["packages"]
        assert {key: board[key] for key in ("name", "version", "will_run", "reason", "accelerator")} == {
            "name": "board",
            "version": "0.0.0",
            "will_run": True,
            "reason": None,
            "accelerator": "cpu",
        }
        assert set(found["cpu"]["features"]) == device.cpu_flags(device.CPUINFO)
        assert found["providers"]["used"][-1] == CPU
        assert found["socket"]["state"] == "absent"
        assert found["shm"]["needed"] == 2 * 3 * 72 * 64
        assert found["limits"]["open files"].keys() == {"soft", "hard"}
        assert found["versions"]["python"] == platform.python_version()

    def test_changes_nothing(self, run, tmp_path):
        packaged(tmp_path / "models" / "board")
        before = sorted(tmp_path.rglob("*"))
        assert run("--models", tmp_path / "models")[0] == 0
        assert sorted(tmp_path.rglob("*")) == before

    def test_table(self, run, tmp_path):
        packaged(tmp_path / "models" / "board")
        packaged(tmp_path / "models" / "jetson", NVIDIA)
        code, output = run("--models", tmp_path / "models")
        assert code == 0
        lines = output.splitlines()
        assert output == click.unstyle(output), "colours are for terminals alone"
        assert [one for one in lines if one.isupper()] == ["DEVICE", "PACKAGES", "PLACES", "ROOM"]
        assert "  ok      board       1.0.0 will run on the CPU" in lines
        assert f"  -       accelerator An accelerated package will not run: {NO_DRIVER.rstrip('.')}" in lines
        (told,) = [one for one in lines if one.startswith("  warn    jetson      1.0.0 will not run: ")]
        assert SENTENCE in told
        assert told.endswith(" It was made for GPU sm_87 (here: none) and TensorRT 10.3.0 (here: none).")
        assert lines[lines.index(told) + 1].strip() == "-> Deploy a package that this device can run."
        assert lines[-1].startswith("Models can be served on the CPU; ")

    def test_no_packages_are_no_problem(self, run):
        code, output = run()
        assert code == 0
        assert "none is known; name their folders with --models or --config" in output

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("--socket", "dns:///x:1"), "--socket"),
            (("--config", "/nowhere.yaml"), "/nowhere.yaml"),
            (("--models", ""), "--models"),
            (("--bad",), "--bad"),
            (("extra",), "extra"),
        ],
    )
    def test_bad_arguments(self, run, arguments, words):
        code, output = run(*arguments)
        assert code == 2
        assert words in output

    def test_bad_settings(self, run, tmp_path):
        (tmp_path / "config.yaml").write_text("sockets: x\n")
        code, output = run("--config", tmp_path / "config.yaml")
        assert code == 2
        assert f"sockets in {tmp_path}/config.yaml: no such setting" in output

    def test_variables_that_are_no_settings(self, ask, monkeypatch):
        monkeypatch.setenv("EDGE_AGENT_MODLES", "/x")
        code, found = ask()
        assert code == 0
        assert [one["text"] for one in found["problems"]] == [
            "EDGE_AGENT_MODLES is no setting and is ignored; EDGE_AGENT_MODELS is one."
        ]

    def test_a_runtime_that_does_not_run_is_what_prevents_serving(self, ask, run, monkeypatch):
        found = probe.Look().finish()
        broken = SimpleNamespace(
            finish=lambda: probe.Device(found.cpu, found.gpus, None, found.libraries, Runtime(absent="Gone."))
        )
        monkeypatch.setattr(probe, "Look", lambda **_: broken)
        code, told = ask()
        assert (code, told["ok"]) == (1, False)
        assert (told["problems"][0]["text"], told["problems"][0]["prevents_serving"]) == ("Gone.", True)
        code, output = run()
        assert code == 1
        assert output.splitlines()[-1].startswith("1 problem prevents serving")

    def test_what_a_terminal_would_act_on_is_escaped(self, run, tmp_path):
        hostile = tmp_path / "models\x1b[31m" / "board"
        hostile.mkdir(parents=True)
        (hostile / "manifest.json").write_text('{"model_graph": "\\u001b]0;t\\u0007"}')
        code, output = run("--models", hostile.parent, "--models", tmp_path / "gone\x1b[31m")
        assert code == 1
        assert output.replace("\n", "").isprintable()


class TestPackages:
    def test_each_is_told_as_the_agent_tells_it(self, folder):
        """The doctor without an agent says what the agent then says, sentence by sentence."""
        models = folder / "models"
        packaged(models / "good", {"arch": ARCH})
        packaged(models / "nvidia", NVIDIA)
        packaged(models / "other-arch", {"arch": OTHER_ARCH})
        packaged(models / "newer-cpu", {"arch": ARCH, "cpu_flags": ["of_tomorrow"]})
        (packaged(models / "extra") / "surprise").touch()
        (packaged(models / "short") / "mochi" / "model.onnx").write_bytes(b"")
        packages.segmenter(models / "bare")
        (models / "broken").mkdir()
        (models / "broken" / "manifest.json").write_text("{")
        settings = Settings(models=(models,), state_dir=folder / "state", socket=str(folder / "x"), socket_group="")
        report = doctor.examine(settings)
        told = {one["name"]: (one["will_run"], one["reason"]) for one in report.data["packages"]}
        assert told["nvidia"] == (False, SENTENCE)
        assert {name for name, (runs, _) in told.items() if runs} == {"good", "bare"}
        with serving(models) as agent:
            from_agent = {}
            for name in told:
                message = agent.describe(name).status_message
                from_agent[name] = (agent.state(name) != "FAILED", message if agent.state(name) == "FAILED" else None)
            with_agent = json.loads(of_agent(agent, "--json").stdout)["packages"]
        assert told == from_agent
        assert told == {one["name"]: (one["will_run"], one["reason"]) for one in with_agent}

    def test_files_are_read_and_their_digests_checked(self, ask, tmp_path):
        damage(packaged(tmp_path / "models" / "board"))
        packaged(tmp_path / "models" / "good")
        code, found = ask("--models", tmp_path / "models")
        assert code == 0
        assert [(one["will_run"], one["reason"]) for one in found["packages"]] == [(False, CHANGED), (True, None)]
        assert [one["prevents_serving"] for one in found["problems"]] == [False]

    def test_what_is_too_large_is_not_read(self, ask, tmp_path, monkeypatch):
        monkeypatch.setattr(installed, "MOST_READ", 0)
        damage(packaged(tmp_path / "models" / "board"))
        _, found = ask("--models", tmp_path / "models")
        assert found["packages"][0]["will_run"]
        assert found["packages"][0]["notes"][-1] == "Too large to check its digests here."

    def test_none_that_runs_prevents_serving(self, ask, tmp_path):
        packaged(tmp_path / "models" / "jetson", NVIDIA)
        code, found = ask("--models", tmp_path / "models")
        assert (code, found["ok"]) == (1, False)
        assert found["problems"][0]["cure"] == "Deploy a package that this device can run: now there is none."

    def test_folders_that_cannot_be_looked_at_are_told(self, ask, tmp_path, capfd):
        code, found = ask("--models", tmp_path / "gone")
        assert code == 0
        (problem,) = found["problems"]
        assert f"Folder {tmp_path}/gone cannot be looked at: No such file or directory" in problem["text"]
        assert capfd.readouterr().err == "", "what is logged is told, and not printed"

    def test_the_lower_of_two_versions_is_told(self, ask, tmp_path):
        for version in ("1.0.0", "2.0.0"):
            (tmp_path / "board" / version).mkdir(parents=True)
            packages.segmenter(tmp_path / "board" / version / "component")
        _, found = ask("--models", tmp_path)
        assert [(one["name"], one["version"]) for one in found["packages"]] == [("board", "2.0.0")]
        assert "version 2.0.0 in" in found["problems"][0]["text"]
        assert found["problems"][0]["cure"] == "Take away what is not wanted, or correct it."

    def test_registered_ones(self, ask, tmp_path):
        root = tmp_path / "root"
        packaged(root / "packages" / "a" / "board")
        registry = root / "work" / "agent" / "models.d"
        registry.mkdir(parents=True)
        for path in (root, *root.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        entry = {"component": "board", "version": "1.0.0", "autostart": "false"}
        (registry / "board.json").write_text(json.dumps({**entry, "path": str(root / "packages" / "a" / "board")}))
        (registry / "board.json").chmod(0o644)
        (tmp_path / "config.yaml").write_text(f"registry: {registry}\n")
        _, found = ask("--config", tmp_path / "config.yaml")
        assert [(one["name"], one["will_run"]) for one in found["packages"]] == [("board", True)]
        assert [one.name for one in registry.iterdir()] == ["board.json"], "nothing is answered"

    def test_the_agent_knows_best(self):
        ours = Installed("board", "1.0.0", will_run=False, reason="It may not be read.")
        word = functools.partial(Answering, Path("/x"), "serving")

        def with_word(**models: Told) -> Installed:
            return installed._with_agents_word(ours, word(models=models))

        assert with_word(board=Told("STOPPED", "")).will_run
        assert with_word(board=Told("RUNNING", "")).state == "RUNNING"
        failed = with_word(board=Told("FAILED", "No memory\x1b."))
        assert (failed.will_run, failed.reason, failed.state) == (False, "No memory\\x1b.", "FAILED")
        assert with_word().notes == ("The agent that serves does not list it.",)
        assert installed._with_agents_word(ours, Answering(Path("/x"), "absent")) == ours

    @pytest.mark.parametrize(
        ("here", "misfits"),
        [
            (Device("aarch64", frozenset()), "GPU sm_87 (here: none) and TensorRT 10.3.0 (here: none)"),
            (Device("aarch64", frozenset(), "sm_87", "10.7.0", "12.6"), "TensorRT 10.3.0 (here: 10.7.0)"),
            (Device("aarch64", frozenset(), "sm_87", "10.3.0", "11.4"), "CUDA 12.6 (here: 11.4)"),
            (Device("aarch64", frozenset(), "sm_87", "10.3.0", "12.6"), ""),
        ],
    )
    def test_what_a_package_for_a_gpu_misses_here(self, tmp_path, here, misfits):
        packaged(tmp_path / "models" / "jetson", NVIDIA)
        settings = Settings(models=(tmp_path / "models",))
        found = installed.look(settings, Answering(Path("/x"), "absent"), None, ME, Here())
        (finding,) = installed.judge(found, here)
        assert finding.text == f"1.0.0 will not run: {SENTENCE}" + (f" It was made for {misfits}." if misfits else "")

    def test_what_each_runs_on(self, tmp_path):
        for name, target in (("gpu", NVIDIA), ("mine", {"arch": ARCH})):
            packaged(tmp_path / "models" / name, target)
        packages.segmenter(tmp_path / "models" / "onnx")

        def seen(here: Here, answers: str = "absent", **settings: str) -> dict[str, tuple[str | None, str]]:
            settings_ = Settings(models=(tmp_path / "models",), **settings)
            found = installed.look(settings_, Answering(Path("/x"), answers), None, ME, here)
            texts = {one.label: one.text for one in installed.judge(found, Device("x86_64", frozenset()))}
            return {one.name: (one.accelerator, texts[one.name].partition(";")[0]) for one in found.models}

        everything = Here((AGpu(0, "L4", "sm_87"),), tensorrt_version="10.3.0", cuda_driver="12.6", no_gpu="")
        assert seen(everything) == {
            "gpu": ("tensorrt", "1.0.0 will run on TensorRT"),
            "mine": ("cpu", "1.0.0 will run on the CPU"),
            "onnx": ("cuda", "0.0.0 will run on CUDA"),
        }
        assert seen(replace(everything, no_tensorrt=NO_TENSORRT))["gpu"] == ("cuda", "1.0.0 will run on CUDA")
        told = seen(Here(), fallback="allowed")
        assert told["gpu"] == ("cpu", "1.0.0 will run on the CPU")
        assert told["onnx"] == ("cpu", "0.0.0 will run on the CPU")
        assert seen(Here())["gpu"][0] is None

    @pytest.mark.usefixtures("two_users")
    @pytest.mark.two_uids
    @pytest.mark.skipif(not I_AM_ROOT, reason="needs root, to act as two users")
    def test_one_that_only_who_looks_would_trust(self, folder):
        """The agent is another user than the one who looks, and does not trust that one's packages."""
        packages.segmenter(folder / "models" / "board")
        agent = Agent(folder / "models", user=agent_user())
        try:
            agent.start()
            for path in (folder / "models", *(folder / "models").rglob("*")):
                os.chown(path, OTHER.uid, OTHER.gid)
            agent.stop()
            found = json.loads(of_agent(agent, "--json", user=OTHER).stdout)
        finally:
            agent.close()
        (board,) = found["packages"]
        assert not board["will_run"]
        assert board["reason"] == (
            f"It belongs to uid {OTHER.uid}; only root, the agent's user and trusted_uids may own packages."
        )


@pytest.fixture
def two_users():
    if agent_user() == MYSELF:
        pytest.skip("no unprivileged user can run this Python")


class TestOfAnAgent:
    def test_serves(self, folder):
        packaged(folder / "models" / "board")
        packaged(folder / "models" / "jetson", NVIDIA)
        with serving(folder / "models") as agent:
            agent.run_model("board")
            done = of_agent(agent, "--json")
            found = json.loads(done.stdout)
            assert (done.returncode, done.stderr) == (0, "")
            where = found["socket"]
            assert (where["state"], where["server_pid"], where["server_uid"]) == ("serving", agent.pid, agent.user.uid)
            assert where["mode"] == "0660"
            assert found["user"]["agent_uid"] == agent.user.uid
            assert [(one["name"], one["state"], one["reason"]) for one in found["packages"]] == [
                ("board", "RUNNING", None),
                ("jetson", "FAILED", SENTENCE),
            ]
            # The agent's own limit, which it raises itself.
            limit = found["limits"]["open files"]
            assert limit["soft"] == limit["hard"]
            damage(folder / "models" / "board")
            found = json.loads(of_agent(agent, "--json").stdout)
            (reason,) = [one["reason"] for one in found["packages"] if one["name"] == "board"]
            assert reason == f"It runs, and its next start will be refused. {CHANGED}"
            assert agent.state("board") == "RUNNING", "it was left alone"

    def test_packages_are_known_from_the_agent_where_no_folder_is_named(self, folder, run):
        packaged(folder / "models" / "board")
        with serving(folder / "models") as agent:
            code, output = run("--json", "--socket", agent.socket, "--state-dir", agent.folder / "state")
        found = json.loads(output)
        assert code == 0
        assert [(one["name"], one["version"], one["state"]) for one in found["packages"]] == [
            ("board", "1.0.0", "STOPPED")
        ]
        assert found["packages"][0]["folder"] == str(folder / "models" / "board")

    def test_one_that_hangs(self, folder):
        packaged(folder / "models" / "board")
        with serving(folder / "models") as agent:
            os.kill(agent.pid, signal.SIGSTOP)
            try:
                begun = time.monotonic()
                done = of_agent(agent, "--json")
                took = time.monotonic() - begun
            finally:
                os.kill(agent.pid, signal.SIGCONT)
            found = json.loads(done.stdout)
            assert (done.returncode, found["socket"]["state"]) == (1, "hung")
            assert took < 10, "five seconds and the start of Python, with room for a busy machine"
            (problem,) = [one for one in found["problems"] if one["prevents_serving"]]
            assert problem["text"].startswith(f"an agent listens on {agent.socket} and hangs: ")
            assert of_agent(agent).returncode == 0, "it serves again"

    def test_that_has_ended(self, folder):
        packaged(folder / "models" / "board")
        with serving(folder / "models") as agent:
            agent.stop(signal.SIGKILL)
            found = json.loads(of_agent(agent, "--json").stdout)
            assert (found["ok"], found["socket"]["state"]) == (True, "dead")
            assert found["user"]["agent_uid"] == agent.user.uid, "whose state folder it is"

    @pytest.mark.two_uids
    @pytest.mark.skipif(not I_AM_ROOT, reason="needs root, to act as two users")
    @pytest.mark.usefixtures("two_users")
    def test_looked_at_by_others(self, folder):
        packaged(folder / "models" / "board")
        with serving(folder / "models") as agent:
            mine = of_agent(agent, user=agent.user)
            assert mine.returncode == 0
            assert "Looked at by" not in mine.stdout
            done = of_agent(agent, user=OTHER)
            assert done.returncode == 0
            assert f"Looked at by uid {OTHER.uid}; the agent is uid {agent.user.uid}." in done.stdout
            told = f"warn socket uid {OTHER.uid} may not call {agent.socket}; the socket belongs to {users.named(agent.user.uid)}"
            assert told in " ".join(done.stdout.split())


class TestSocket:
    def look(self, tmp_path: Path) -> Finding:
        path = tmp_path / "agent.sock"
        answers = doctor.answering.look(path, 1.0)
        found = places.socket(answers, Settings(socket=str(path), socket_group=""), Users(answers.server_uid, None))
        return found[0]

    @contextlib.contextmanager
    def listening(self, tmp_path: Path, answer: bytes | None, backlog: int = 8) -> Iterator[None]:
        """Listen on the path; each connection gets an answer and is closed, or none ever."""
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(tmp_path / "agent.sock"))
        server.listen(backlog)

        def serve() -> None:
            with contextlib.suppress(OSError):  # until it is shut down
                while True:
                    one, _ = server.accept()
                    with one, contextlib.suppress(OSError):  # the caller is gone already
                        one.sendall(answer or b"")

        thread = threading.Thread(target=serve) if answer is not None else None
        if thread:
            thread.start()
        try:
            yield
        finally:
            server.shutdown(socket.SHUT_RDWR)
            server.close()
            if thread:
                thread.join()

    def test_free(self, tmp_path):
        assert (self.look(tmp_path).mark, self.look(tmp_path).text) == (
            "none",
            f"no agent serves on {tmp_path}/agent.sock; one can be started there",
        )

    def test_a_dead_one(self, tmp_path):
        with self.listening(tmp_path, None):
            pass
        assert self.look(tmp_path).text.endswith("the next one removes the dead socket there")

    @pytest.mark.skipif(not I_AM_ROOT, reason="needs root, to make a socket of another user's")
    def test_a_dead_one_of_another_user(self, tmp_path):
        with self.listening(tmp_path, None):
            os.chown(tmp_path / "agent.sock", OTHER.uid, OTHER.gid)
        found = self.look(tmp_path)
        assert (found.mark, found.cure) == ("problem", "Remove it, or give the agent another --socket.")
        assert f"a dead socket of uid {OTHER.uid} lies on" in found.text

    def test_a_file(self, tmp_path):
        (tmp_path / "agent.sock").touch()
        found = self.look(tmp_path)
        assert (found.mark, found.text) == ("problem", f"{tmp_path}/agent.sock is there and is no socket")

    def test_no_folder(self, tmp_path):
        found = self.look(tmp_path / "gone")
        assert (found.mark, found.text) == ("problem", f"the socket's folder {tmp_path}/gone does not exist")

    def test_another_server(self, tmp_path):
        with self.listening(tmp_path, b"HTTP/1.1 400 Bad Request\r\n\r\n"):
            found = self.look(tmp_path)
        assert found.mark == "problem"
        assert found.text.startswith(f"what listens on {tmp_path}/agent.sock is no agent: UNAVAILABLE")

    @pytest.mark.parametrize("backlog", [0, 8])
    def test_a_server_that_never_answers(self, tmp_path, backlog):
        """Nor takes any connection more, where its backlog is full."""
        with self.listening(tmp_path, None, backlog), contextlib.ExitStack() as stack:
            if not backlog:
                first = stack.enter_context(socket.socket(socket.AF_UNIX))
                first.connect(str(tmp_path / "agent.sock"))
            begun = time.monotonic()
            found = self.look(tmp_path)
            assert 0.5 < time.monotonic() - begun < 4
        assert (found.mark, "and hangs: " in found.text) == ("problem", True)

    @pytest.mark.parametrize(
        ("group", "agent", "mark", "words"),
        [
            ("no-such-group", 54301, "warn", "there is no group no-such-group"),
            ("0", 0, "ok", "members of 0 may call the agent"),
            ("1", 54301, "warn", "uid 54301 is not in the group 1"),
        ],
    )
    def test_groups(self, group, agent, mark, words):
        answers = Answering(Path("/x"), "absent")
        (found,) = places._group(answers, Settings(socket_group=group), Users(None, agent))
        assert (found.mark, words in found.text) == (mark, True)

    @pytest.mark.parametrize(("gid", "mark"), [(1, "ok"), (7, "warn")])
    def test_the_group_that_a_socket_has_got(self, gid, mark):
        answers = Answering(Path("/x"), "serving", gid=gid)
        (found,) = places._group(answers, Settings(socket_group="1"), Users(54301, None))
        assert found.mark == mark

    def test_root_is_told_that_agents_do_not_run_as_root(self):
        answers, root = Answering(Path("/x"), "absent"), Users(0, None)
        assert places.root(answers, Settings(), root)[0].mark == "none"
        assert places.root(answers, Settings(allow_root=True), root) == []
        assert places.root(answers, Settings(), Users(54301, None)) == []


class TestStateFolder:
    def look(self, path: Path, agent: int = ME) -> Finding:
        return places.state_folder(path, "", Users(agent, None))

    def test_good(self, tmp_path):
        tmp_path.chmod(0o700)
        assert self.look(tmp_path).mark == "ok"

    def test_missing(self, tmp_path):
        found = self.look(tmp_path / "a" / "b")
        assert (found.mark, found.text) == ("none", f"{tmp_path}/a/b is not there yet; the agent makes it")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("mode", [0o770, 0o702])
    def test_open_to_others(self, tmp_path, mode):
        tmp_path.chmod(mode)
        found = self.look(tmp_path)
        assert (found.mark, f"with mode {mode:04o}" in found.text) == ("problem", True)

    def test_of_another_user(self, tmp_path):
        found = self.look(tmp_path, ME + 1)
        assert (found.mark, f"it must belong to {users.named(ME + 1)}" in found.text) == ("problem", True)

    def test_where_the_agent_may_not_make_it(self, tmp_path):
        tmp_path.chmod(0o755)
        found = self.look(tmp_path / "state", 54399)
        assert (found.mark, "uid 54399 may not make it in" in found.text) == ("problem", True)
        tmp_path.chmod(0o777)
        assert self.look(tmp_path / "state", 54399).mark == "none"

    def test_a_file(self, tmp_path):
        (tmp_path / "file").touch()
        assert self.look(tmp_path / "file").text == f"{tmp_path}/file is no folder"
        assert self.look(tmp_path / "file" / "below").mark == "problem"

    def test_none_at_all(self):
        found = places.state_folder(None, "There is no home folder.", Users(ME, None))
        assert (found.mark, found.text) == ("problem", "There is no home folder.")

    @pytest.mark.parametrize(
        ("mode", "uid", "allowed"),
        [(0o700, 54301, True), (0o070, 54301, False), (0o707, 54399, True), (0o770, 54399, False), (0o000, 0, True)],
    )
    def test_what_another_user_may_do(self, monkeypatch, mode, uid, allowed):
        info = SimpleNamespace(st_mode=stat.S_IFDIR | mode, st_uid=54301, st_gid=54301)
        path = SimpleNamespace(stat=lambda: info)
        monkeypatch.setattr(os, "geteuid", lambda: 54555)
        assert users.may(path, uid, os.W_OK | os.X_OK) is allowed


class TestRoom:
    def models(self, *sizes: tuple[int, int], mask: bool = True) -> Models:
        made = []
        for number, size in enumerate(sizes):
            manifest = SimpleNamespace(image_size=size, stage=SimpleNamespace(segmentation=mask))
            found = SimpleNamespace(package=SimpleNamespace(manifest=manifest))
            made.append(Installed(f"m{number}", "1.0.0", will_run=True, found=found))
        return Models(tuple(made))

    def shm(self, monkeypatch, models: Models, free: int, **settings) -> tuple[Finding, dict]:
        there = SimpleNamespace(f_blocks=free and 1 << 20, f_bavail=free, f_frsize=1)
        monkeypatch.setattr(os, "statvfs", lambda _: there)
        (found,), data = room.shared_memory(models, Settings(**settings), Path("/dev/shm"))
        return found, data

    def test_frames_and_masks_of_all_calls_in_hand(self, monkeypatch):
        models = self.models((1000, 1000), (100, 64))
        needed = 6 * 1000 * 1000 + 3 * (6 * 100 * 64)
        settings = {"model_settings": {"m1": {"slots": 3}}}
        found, data = self.shm(monkeypatch, models, needed, **settings)
        assert (found.mark, data["needed"]) == ("ok", needed)
        assert data["frames"] == {"m0": 6_000_000, "m1": 115_200}
        found, _ = self.shm(monkeypatch, models, needed - 1, **settings)
        assert (found.mark, "--shm-size" in found.cure) == ("warn", True)

    def test_models_without_masks_need_less(self, monkeypatch):
        _, data = self.shm(monkeypatch, self.models((1000, 1000), mask=False), 1 << 30)
        assert data["needed"] == 3_000_000

    def test_without_a_limit(self, monkeypatch):
        found, data = self.shm(monkeypatch, self.models((1000, 1000)), 0)
        assert (found.mark, data["free"]) == ("ok", None)

    def test_without_a_folder(self, tmp_path):
        (found,), data = room.shared_memory(Models(()), Settings(), tmp_path / "shm")
        assert (found.mark, data["total"]) == ("warn", None)
        assert found.text == f"{tmp_path}/shm cannot be used: No such file or directory"

    def test_without_rights(self, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "access", lambda *_, **__: False)
        (found,), _ = room.shared_memory(Models(()), Settings(), tmp_path)
        assert (found.mark, found.cure.startswith(f"chmod 1777 {tmp_path}.")) == ("warn", True)

    @pytest.mark.parametrize(
        ("found", "marks"),
        [
            ({"open files": Limit(4, 94), "processes": Limit(80, 80)}, ["ok"]),
            ({"open files": Limit(4, 85)}, ["warn"]),
            ({"processes": Limit(79, 100)}, ["warn"]),
            ({"open files": Limit(1, 1), "processes": Limit(1, 1), "address space": Limit(1, 1)}, ["warn"] * 3),
            ({"open files": Limit(None, None)}, ["ok"]),
            ({}, ["none"]),
        ],
    )
    def test_limits(self, found, marks):
        """14 files of its own, 8 of a model with one slot and a connection for each of 64 calls; 64 + 16 threads."""
        told, data = room.limits(found, Settings(), self.models((64, 64)))
        assert [one.mark for one in told] == marks
        assert data.keys() == found.keys()


class TestHardware:
    def device(self, *, gpus=None, board=None, runtime=None, processor=None) -> probe.Device:
        return probe.Device(
            processor or Cpu("x86_64", "GenuineIntel", "Xeon", frozenset({"avx2"}), 4, 4, None),
            gpus or Gpus(absent=("No NVIDIA driver is loaded.",)),
            board,
            Libraries(),
            runtime or Runtime("9.9", (CPU,), {CPU: ""}, ("onnxruntime 9.9",)),
        )

    def test_no_gpu_is_no_fault(self):
        (found,) = hardware.gpu(self.device())
        assert (found.mark, found.text) == ("none", "No NVIDIA driver is loaded.")
        assert hardware.data(self.device())["gpu"] is None

    def test_a_driver_that_does_not_answer_is_one(self):
        (found,) = hardware.gpu(self.device(gpus=Gpus(absent=("It hangs.",), broken=True)))
        assert (found.mark, found.text) == ("warn", "It hangs.")
        assert "Models made for a processor run meanwhile" in found.cure

    @pytest.mark.parametrize(
        ("here", "fallback", "mark", "text"),
        [
            (Here(), "never", "none", f"will not run: {NO_DRIVER.rstrip('.')}"),
            (Here(), "allowed", "ok", f"will run on the CPU, since it cannot run on a GPU: {NO_DRIVER.rstrip('.')}"),
            (Here((AGpu(0),), no_gpu=""), "never", "ok", "will run on TensorRT, or else on CUDA"),
            (Here((AGpu(0),), no_gpu=""), "allowed", "ok", "will run on TensorRT, or else on CUDA, or else on the CPU"),
            (
                Here((AGpu(0),), no_gpu="", no_cuda=NO_CUDA, no_tensorrt=NO_TENSORRT),
                "never",
                "warn",
                f"will not run: {NO_CUDA.rstrip('.')}",
            ),
        ],
    )
    def test_what_an_accelerated_package_runs_on(self, here, fallback, mark, text):
        found = hardware.accelerated(Settings(fallback=fallback), here)
        assert (found.mark, found.text) == (mark, f"An accelerated package {text}")
        assert found.cure == (ON_CPU if mark == "warn" else "")

    def test_a_gpu(self):
        gpus = Gpus((Gpu(0, "L4", (8, 9), 24 << 30, 20 << 30),), "550.54.15", "12.4")
        found = hardware.gpu(self.device(gpus=gpus))
        assert found[0].text == "L4, sm_89, 20480 of 24576 MiB free, driver 550.54.15 (CUDA 12.4)"
        assert [one.label for one in found[1:]] == ["TensorRT", "CUDA", "cuDNN"]
        data = hardware.data(self.device(gpus=gpus))["gpu"]
        assert (data["code"], data["devices"][0]["memory_free"]) == ("sm_89", 20 << 30)

    def test_a_gpu_that_does_not_tell_all(self):
        gpus = Gpus((Gpu(0, "Orin"),), absent=("The memory of GPU 0 cannot be told: Not Supported.",))
        found = hardware.gpu(self.device(gpus=gpus))
        assert found[0].text == "Orin, of unknown code, driver unknown"
        assert found[1].mark == "none"

    @pytest.mark.parametrize(
        ("l4t", "mark", "words"),
        [
            ("36.4.3", "ok", "Orin NX, Jetson Linux 36.4.3 (JetPack 6)"),
            ("35.4.1", "warn", "Jetson Linux 35.4.1 (JetPack 5), which is too old: JetPack 6.1 is the oldest"),
            ("36.3.0", "warn", "Jetson Linux 36.3.0 (JetPack 6), which is too old: JetPack 6.1 is the oldest"),
            ("", "ok", "Orin NX, a Jetson Linux of unknown version"),
        ],
    )
    def test_a_jetson(self, l4t, mark, words):
        board = Jetson("Orin NX", "tegra234", "sm_87", l4t, gpu_there=True)
        found = {one.label: one for one in hardware.gpu(self.device(board=board))}
        assert (found["Jetson"].mark, words in found["Jetson"].text) == (mark, True)
        assert (found["Jetson"].cure != "") == (mark == "warn")
        assert hardware.data(self.device(board=board))["gpu"]["code"] == "sm_87"

    @pytest.mark.parametrize(
        ("runtime", "marks", "words"),
        [
            (Runtime("9.9", (CPU,), {CPU: ""}), ["ok"], "CPUExecutionProvider: a model runs on it"),
            (
                Runtime("9.9", (CUDA, CPU), {CPU: "", CUDA: "libcublas.so: gone"}),
                ["ok", "none"],
                "CUDAExecutionProvider: listed, but no NVIDIA GPU answers (libcublas.so: gone)",
            ),
            (Runtime("9.9", (CPU,), {CPU: "it crashed"}), ["problem"], "no model runs on it: it crashed"),
            (Runtime("9.9", (CUDA,), {}), ["none", "problem"], "has no CPUExecutionProvider"),
            (Runtime(absent="ONNX Runtime is not installed."), ["problem"], "is not installed"),
            (
                Runtime("9.9", (CPU,), {CPU: ""}, ("onnxruntime 9.9", "onnxruntime-gpu 9.8")),
                ["warn", "ok"],
                "onnxruntime 9.9 and onnxruntime-gpu 9.8 are installed over each other",
            ),
        ],
    )
    def test_providers_on_a_device_without_a_gpu(self, runtime, marks, words):
        found = hardware.runtime(self.device(runtime=runtime))
        assert [one.mark for one in found] == marks
        assert any(words in one.text for one in found)

    def test_providers_on_a_device_with_one(self):
        gpus = Gpus((Gpu(0, "L4", (8, 9)),))
        runtime = Runtime("9.9", (CUDA, CPU), {CPU: "", CUDA: "libcublas.so: gone"})
        found = hardware.runtime(self.device(gpus=gpus, runtime=runtime))
        assert [one.mark for one in found] == ["ok", "warn"]
        assert found[1].text.endswith("CUDAExecutionProvider: listed, but not used: libcublas.so: gone")
        assert hardware.data(self.device(gpus=gpus, runtime=runtime))["providers"] == {
            "listed": [CUDA, CPU],
            "used": [CPU],
            "not_used": {CUDA: "libcublas.so: gone"},
        }

    @pytest.mark.parametrize(
        ("usable", "quota", "cores"),
        [(4, None, "4 cores"), (2, None, "2 of 4 cores"), (4, 1.5, "the time of 1.5 at most")],
    )
    def test_the_processor(self, usable, quota, cores):
        processor = Cpu("x86_64", "GenuineIntel", "Xeon", frozenset({"avx2"}), 4, usable, quota, ("No features.",))
        found = hardware.processor(self.device(processor=processor))
        assert found[0].text.startswith("Xeon, x86_64, ")
        assert cores in found[0].text
        assert found[0].text.endswith("; avx2")
        assert (found[1].mark, found[1].text) == ("none", "No features.")

    def test_a_processor_that_is_named_by_numbers(self):
        processor = Cpu("aarch64", "ARM", "Cortex-A78AE", frozenset(), 8, 8, None)
        (found,) = hardware.processor(self.device(processor=processor))
        assert found.text == "ARM Cortex-A78AE, aarch64, 8 cores"


class TestReport:
    def test_problems_come_before_warnings_and_alone_prevent_serving(self):
        warn = Finding("a", "a", "warn", "small", "mend")
        problem = Finding("a", "b", "problem", "large", "mend it")
        none = Finding("a", "c", "none", "nothing")
        assert Report((warn, none), {}).ok
        report = Report((none, warn, problem), {"x": 1}).as_json()
        assert report == {
            "ok": False,
            "x": 1,
            "problems": [
                {"text": "large", "cure": "mend it", "prevents_serving": True},
                {"text": "small", "cure": "mend", "prevents_serving": False},
            ],
        }

    def test_every_fault_has_a_cure(self, ask, tmp_path, monkeypatch):
        """On a device on which nearly all is wrong."""
        monkeypatch.setenv("EDGE_AGENT_SOCKET_GROUP", "no-such-group")
        monkeypatch.setenv("EDGE_AGENT_STRANGE", "1")
        monkeypatch.setattr(room, "OWN_FILES", math.inf)
        (tmp_path / "agent.sock").touch()
        (tmp_path / "state").touch()
        damage(packaged(tmp_path / "models" / "board"))
        code, found = ask("--models", tmp_path / "models", "--models", tmp_path / "gone")
        assert code == 1
        assert len(found["problems"]) == 7
        assert all(one["cure"] for one in found["problems"])
        serious = [one["prevents_serving"] for one in found["problems"]]
        assert serious == sorted(serious, reverse=True)
        assert sum(serious) == 3
