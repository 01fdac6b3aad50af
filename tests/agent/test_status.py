"""What an agent says of itself: the file in its state folder, and `edge-agent status`, which reads it."""

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from edge_agent import state, status
from edge_agent.cli import command
from edge_agent.status import StatusFile
from support import hanging, packages
from support.agent import Agent, environment, serving
from support.calls import INTERNAL, OK, outcome, request
from support.users import I_AM_ROOT, MYSELF, OTHER, agent_user
from support.waiting import until

PIXELS = bytes(3 * 64 * 64)
SOCKET = "/tmp/no-agent-is-here.sock"
CALLS = [
    {"rpc": "DetectAnomalies", "model": "board", "code": "OK", "reason": "", "count": 1200},
    {"rpc": "DetectAnomalies", "model": "board", "code": "INTERNAL", "reason": "crashed", "count": 2},
    {"rpc": "DetectAnomalies", "model": "board", "code": "INTERNAL", "reason": "hung", "count": 1},
    {"rpc": "StartModel", "model": "board", "code": "OK", "reason": "", "count": 50},
    {"rpc": "DetectAnomalies", "model": "", "code": "NOT_FOUND", "reason": "name", "count": 70},
]
FOUND = {
    "agent": {"pid": os.getpid(), "version": "1.3.0", "started": "2026-01-02T03:04:05Z", "socket": SOCKET},
    "models": [
        {
            "model": "board",
            "version": "2.0.0",
            "state": "RUNNING",
            "message": "",
            "provider": "CPU",
            "accelerator": "cpu",
            "fallback": "Runs on the CPU, since it cannot run on CUDA.",
            "worker_pid": 7,
        },
        {"model": "part", "version": "1.0.0", "state": "FAILED", "message": "no", "provider": None, "worker_pid": None},
    ],
    "calls": CALLS,
    "workers": {"board": {"started": 4, "died": 3, "hung": 1, "swapped": 1}},
    "queue_longest": {"board": 2},
    "bytes_received": 123,
}


class TestFile:
    def test_is_private_and_whole(self, tmp_path):
        path = tmp_path / "x.status.json"
        file = StatusFile(path, lambda: FOUND)
        file.keep()
        assert json.loads(path.read_bytes()) == FOUND, "it is there as soon as it is kept"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        file.close()
        assert [one.name for one in tmp_path.iterdir()] == [path.name]

    def test_follows_what_changes(self, tmp_path, monkeypatch):
        monkeypatch.setattr(status, "INTERVAL", 0.01)
        path, now = tmp_path / "x.status.json", {"n": 0}
        file = StatusFile(path, lambda: now)
        file.keep()
        now = {"n": 1}
        until(lambda: json.loads(path.read_bytes()) == {"n": 1}, "it is written")
        file.close()

    def test_is_replaced_by_rename_and_parses_at_any_instant(self, tmp_path, monkeypatch):
        """Longer than any file system writes at once."""
        monkeypatch.setattr(status, "INTERVAL", 0.0)
        path, looks = tmp_path / "x.status.json", iter(range(10**9))
        file = StatusFile(path, lambda: {"n": next(looks), "filling": "x" * 300_000})
        file.keep()
        seen: set[int] = set()

        def look() -> bool:
            seen.update(json.loads(path.read_bytes())["n"] for _ in range(20))
            return len(seen) > 100

        until(look, "a hundred of them were read")
        file.close()

    def test_is_left_alone_while_nothing_changes(self, tmp_path):
        path = tmp_path / "x.status.json"
        looked = []
        file = StatusFile(path, lambda: looked.append(1) or FOUND)
        file._write()
        before = path.stat()
        file._write()
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
        assert len(looked) == 2

    def test_the_end_is_written(self, tmp_path):
        path, now = tmp_path / "x.status.json", {"n": 0}
        file = StatusFile(path, lambda: now)
        file.keep()
        now = {"n": 1}
        file.close()
        assert json.loads(path.read_bytes()) == {"n": 1}
        assert "status" not in [one.name for one in threading.enumerate()]

    def test_one_that_was_never_kept_is_written_all_the_same(self, tmp_path):
        path = tmp_path / "x.status.json"
        StatusFile(path, lambda: FOUND).close()
        assert json.loads(path.read_bytes()) == FOUND

    def test_a_disk_that_is_full_costs_nothing_but_the_news(self, tmp_path, monkeypatch):
        monkeypatch.setattr(status, "INTERVAL", 0.01)
        path, now = tmp_path / "x.status.json", {"n": 0}
        file = StatusFile(path, lambda: now)
        file.keep()
        full = threading.Event()
        replace = Path.replace

        def refuse(self: Path, target: Path) -> Path:
            if full.is_set():
                refused.set()
                raise OSError(28, "No space left on device")
            return replace(self, target)

        refused = threading.Event()
        monkeypatch.setattr(Path, "replace", refuse)
        full.set()
        now = {"n": 1}
        assert refused.wait(30)
        assert json.loads(path.read_bytes()) == {"n": 0}
        full.clear()
        until(lambda: json.loads(path.read_bytes()) == {"n": 1}, "it is tried again")
        file.close()
        assert [one.name for one in tmp_path.iterdir()] == [path.name]


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(command, ["status", *arguments])
    return done.exit_code, done.output


@pytest.fixture
def kept(tmp_path):
    """A function (what) that keeps a status as an agent on SOCKET does."""
    path = state.StateFolder(tmp_path, Path(SOCKET)).status_file()

    def keep(what: object) -> Path:
        path.write_bytes(what if isinstance(what, bytes) else json.dumps(what).encode())
        return path

    return keep


class TestCommand:
    def test_table(self, tmp_path, kept):
        kept(FOUND)
        code, output = run("--socket", SOCKET, "--state-dir", str(tmp_path))
        assert code == 0
        assert click.unstyle(output).splitlines() == [
            f"Edge Agent 1.3.0, pid {os.getpid()}, since 2026-01-02T03:04:05Z, on {SOCKET}",
            "MODEL  VERSION  STATUS   RUNS ON         CALLS  FAILED  STARTED  DIED  HUNG  SWAPPED",
            "board  2.0.0    RUNNING  cpu (fallback)   1203       3        4     3     1        1",
            "part   1.0.0    FAILED   -                   0       0        0     0     0        0",
        ]

    def test_json(self, tmp_path, kept):
        kept(FOUND)
        code, output = run("--socket", SOCKET, "--state-dir", str(tmp_path), "--json")
        assert (code, json.loads(output)) == (0, FOUND)

    def test_no_models(self, tmp_path, kept):
        kept({**FOUND, "models": []})
        code, output = run("--socket", SOCKET, "--state-dir", str(tmp_path))
        assert (code, output.splitlines()[1:]) == (0, ["No models are deployed."])

    @pytest.mark.parametrize("form", ["unix://{}", "unix:{}", "{}"])
    def test_every_form_of_the_address_and_the_variables(self, tmp_path, kept, form, monkeypatch):
        kept(FOUND)
        monkeypatch.setenv("EDGE_AGENT_SOCKET", form.format(SOCKET))
        monkeypatch.setenv("EDGE_AGENT_STATE_DIR", str(tmp_path))
        assert run()[0] == 0

    def test_the_folder_is_found_as_the_agent_finds_it(self, tmp_path, kept, monkeypatch):
        kept(FOUND)
        monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
        assert run("--socket", SOCKET)[0] == 0

    def test_no_agent(self, tmp_path):
        code, output = run("--socket", SOCKET, "--state-dir", str(tmp_path))
        assert code == 1
        assert output == (
            f"Error: No agent on {SOCKET} has kept a status in {tmp_path}; name its folder with --state-dir.\n"
        )

    def test_an_agent_that_has_ended(self, tmp_path, kept):
        ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
        kept({**FOUND, "agent": {**FOUND["agent"], "pid": int(ended.stdout)}})
        code, output = run("--socket", SOCKET, "--state-dir", str(tmp_path))
        assert (code, output) == (1, f"Error: The agent on {SOCKET} has ended.\n")

    @pytest.mark.parametrize("key", ["agent", "models", "calls", "workers"])
    @pytest.mark.parametrize("value", [None, [], [1], "text", 7, {"a": 1}, [{"model": 1}]])
    def test_odd_content_is_damage_and_no_traceback(self, tmp_path, kept, key, value):
        kept({**FOUND, key: value})
        done = CliRunner().invoke(command, ["status", "--socket", SOCKET, "--state-dir", str(tmp_path)])
        assert done.exit_code in (0, 1)
        assert done.exception is None or isinstance(done.exception, SystemExit)
        assert done.exit_code == 0 or "is damaged" in done.output

    def test_what_a_terminal_would_act_on_is_escaped(self, tmp_path, kept):
        models = [{**FOUND["models"][0], "model": "a\x1b]0;t\x07", "version": "\n\u202e", "state": "\r"}]
        kept({**FOUND, "models": models, "agent": {**FOUND["agent"], "version": "\x1b[31m"}})
        code, output = run("--socket", SOCKET, "--state-dir", str(tmp_path))
        assert code == 0
        assert output.replace("\n", "").isprintable()

    @pytest.mark.parametrize("kind", ["fifo", "link", "endless", "folder"])
    def test_what_is_no_plain_file_is_not_read(self, tmp_path, kept, kind):
        path = kept(FOUND)
        path.unlink()
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to("/dev/zero" if kind == "endless" else "/etc/passwd")
        code, output = run("--socket", SOCKET, "--state-dir", str(tmp_path))
        assert code == 1
        assert "is damaged" in output or "cannot be read" in output

    @pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b'"text"', b"\xff", b'{"agent": 1}'])
    def test_a_file_that_is_damaged(self, tmp_path, kept, content):
        path = kept(content)
        code, output = run("--socket", SOCKET, "--state-dir", str(tmp_path))
        assert code == 1
        assert output == (
            f"Error: {path} is damaged; an agent that serves replaces it with the next call that it answers.\n"
        )

    def test_a_file_that_cannot_be_read(self, tmp_path):
        state.StateFolder(tmp_path, Path(SOCKET)).status_file().mkdir()
        code, output = run("--socket", SOCKET, "--state-dir", str(tmp_path))
        assert code == 1
        assert output.endswith("status.json cannot be read: Is a directory.\n")

    def test_an_address_that_is_none(self, tmp_path):
        code, output = run("--socket", "dns:///localhost:1", "--state-dir", str(tmp_path))
        assert code == 1
        assert output.startswith("Error: ")
        assert "Traceback" not in output


class TestOfAnAgent:
    def status_of(self, agent: Agent, *arguments: str, **popen) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "edge_agent", "status", "--state-dir", str(agent.folder / "state"), *arguments],
            env=environment(EDGE_AGENT_SOCKET=str(agent.socket)),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            **popen,
        )

    def test_is_there_when_it_serves_and_counts_what_it_does(self, folder):
        packages.segmenter(folder / "models" / "board")
        packages.write(folder / "models" / "part", packages.manifest(), b"no ONNX")
        with serving(folder / "models") as agent:
            assert json.loads(self.status_of(agent, "--json").stdout)["agent"]["pid"] == agent.pid
            agent.run_model("board")
            stub = agent.stub()
            codes = [outcome(stub.DetectAnomalies, request("board", 64, 64, PIXELS))[0] for _ in range(3)]
            codes.append(outcome(stub.DetectAnomalies, request("board", 65, 64, PIXELS))[0])
            codes += [outcome(stub.DetectAnomalies, request(f"nobody-{number}", 64, 64))[0] for number in range(2)]
            assert codes == [OK, OK, OK, 3, 5, 5]
            (worker,) = agent.workers()
            os.kill(worker, 9)
            until(lambda: agent.counted("board", "started") == 2, "the death and the restart are counted")
            until(lambda: agent.calls("board") == 4, "the calls are counted")
            found = json.loads(self.status_of(agent, "--json").stdout)
            assert found["workers"] == {"board": {"started": 2, "died": 1}}
            assert [one for one in found["calls"] if one["rpc"] == "DetectAnomalies"] == [
                {"rpc": "DetectAnomalies", "model": "", "code": "NOT_FOUND", "reason": "name", "count": 2},
                {
                    "rpc": "DetectAnomalies",
                    "model": "board",
                    "code": "INVALID_ARGUMENT",
                    "reason": "argument",
                    "count": 1,
                },
                {"rpc": "DetectAnomalies", "model": "board", "code": "OK", "reason": "", "count": 3},
            ]
            assert found["bytes_received"] > 4 * len(PIXELS)
            assert [(one["model"], one["state"]) for one in found["models"]] == [
                ("board", "RUNNING"),
                ("part", "STOPPED"),
            ]
            assert found["models"][0]["worker_pid"] in (None, *agent.workers())
            lines = click.unstyle(self.status_of(agent).stdout).splitlines()
            assert lines[0].startswith("Edge Agent ")
            assert lines[2].split() == ["board", "0.0.0", "RUNNING", "cpu", "4", "1", "2", "1", "0", "0"]
            assert agent.stop() == 0
            assert "has ended" in self.status_of(agent).stderr

    def test_a_hang_and_a_crash_are_told_apart(self, folder):
        """Also when the very process dies that a runtime has saved from a hang before."""
        hanging.package(folder / "models" / "board", hanging.endless)
        with serving(folder / "models", model_settings={"board": {"call_timeout": 2.0}}) as agent:
            agent.run_model("board")
            stub = agent.stub()
            assert outcome(stub.DetectAnomalies, request("board", 64, 64, hanging.nearly_black()))[0] == INTERNAL
            (worker,) = agent.workers()
            os.kill(worker, signal.SIGSTOP)
            marked = hanging.grey(hanging.GREY)
            call = stub.DetectAnomalies.future(request("board", 64, 64, marked))
            until(lambda: agent.inbox_holds(marked), "the call is in the worker")
            os.kill(worker, signal.SIGKILL)
            assert call.exception(30).code().value[0] == INTERNAL
            until(lambda: agent.calls("board", "INTERNAL") == 2, "they are counted")
            failed = {one["reason"]: one["count"] for one in agent.status()["calls"] if one["code"] == "INTERNAL"}
            assert failed == {"hung": 1, "crashed": 1}
            assert (agent.counted("board", "hung"), agent.counted("board", "died")) == (1, 1)

    @pytest.mark.two_uids
    @pytest.mark.skipif(not I_AM_ROOT, reason="needs root, to act as two users")
    def test_is_for_the_agents_user_and_root_alone(self, folder):
        if agent_user() == MYSELF:
            pytest.skip("no unprivileged user can run this Python")
        with serving(folder) as agent:
            assert self.status_of(agent, **agent.user.popen()).returncode == 0
            done = self.status_of(agent, **OTHER.popen())
            assert done.returncode == 2
            assert f"Invalid value for '--state-dir': Path '{agent.folder / 'state'}' is not readable." in done.stderr
