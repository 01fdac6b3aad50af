"""What an agent says of itself: the file in its state folder, and `edge-agent status`, which reads it."""

import fcntl
import functools
import json
import math
import os
import pty
import re
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from edge_agent import heartbeat, processes, state, status
from edge_agent.cli import command
from edge_agent.cli.watching import (
    HIDE_CURSOR,
    HOME,
    NO_WRAP,
    OTHER_SCREEN,
    OWN_SCREEN,
    SHOW_CURSOR,
    TO_LINE_END,
    TO_SCREEN_END,
    WRAP,
)
from edge_agent.heartbeat import Heartbeat
from edge_agent.status import StatusFile
from support import hanging, packages
from support.agent import Agent, environment, serving
from support.calls import INTERNAL, OK, outcome, request
from support.processes import hold
from support.sabotage import sabotaged
from support.users import I_AM_ROOT, MYSELF, OTHER, agent_user
from support.waiting import until

EVENTS = ("RESTARTS", "DIED", "HUNG", "SWAPPED")
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
            "worker_pid": os.getpid(),
            "queue": {"waiting": 2, "limit": 16, "in_flight": 1},
        },
        {"model": "part", "version": "1.0.0", "state": "FAILED", "message": "no", "provider": None, "worker_pid": None},
    ],
    "calls": CALLS,
    "workers": {"board": {"started": 4, "died": 3, "hung": 1, "swapped": 1}},
    "restarts": {"board": 2},
    "queue_longest": {"board": 2},
    "recent": {"board": {"calls": 125, "calls_per_s": 12.5, "p50": 0.0081, "p99": 0.0124}},
    "last_errors": {
        "board": [
            {
                "number": 2,
                "time": "2026-01-02T03:14:05Z",
                "of": "agent",
                "code": "INTERNAL",
                "reason": "hung",
                "text": "It hung.",
            },
            {
                "number": 7,
                "time": "2026-01-02T03:15:05Z",
                "of": "caller",
                "code": "INVALID_ARGUMENT",
                "reason": "argument",
                "text": "Too wide.",
            },
        ],
        "gone": [
            {"number": 9, "time": "2026-01-02T03:14:05Z", "of": "agent", "code": "", "reason": "died", "text": "No."}
        ],
    },
    "bytes_received": 123,
}


def nobody() -> None:
    """Wants to be told of nothing."""


class TestFile:
    def test_is_private_and_whole(self, tmp_path):
        path = tmp_path / "x.status.json"
        file = StatusFile(path, lambda: FOUND, nobody)
        file.keep()
        assert json.loads(path.read_bytes()) == FOUND, "it is there as soon as it is kept"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        file.close()
        assert [one.name for one in tmp_path.iterdir()] == [path.name]

    def test_follows_what_changes(self, tmp_path, monkeypatch):
        monkeypatch.setattr(status, "INTERVAL", 0.01)
        path, now = tmp_path / "x.status.json", {"n": 0}
        file = StatusFile(path, lambda: now, nobody)
        file.keep()
        now = {"n": 1}
        until(lambda: json.loads(path.read_bytes()) == {"n": 1}, "it is written")
        file.close()

    def test_is_replaced_by_rename_and_parses_at_any_instant(self, tmp_path, monkeypatch):
        """Longer than any file system writes at once."""
        monkeypatch.setattr(status, "INTERVAL", 0.0)
        path, looks = tmp_path / "x.status.json", iter(range(10**9))
        file = StatusFile(path, lambda: {"n": next(looks), "filling": "x" * 300_000}, nobody)
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
        file = StatusFile(path, lambda: looked.append(1) or FOUND, nobody)
        file._write()
        before = path.stat()
        file._write()
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
        assert len(looked) == 2

    def test_it_is_current_when_it_was_written_and_while_nothing_changes(self, tmp_path, monkeypatch, caplog):
        """But not while it cannot be written, which is logged once, and so is that it can again."""
        caplog.set_level("INFO", "edge_agent")
        now, trouble, current = {"n": 0}, [], []
        replace = Path.replace

        def replaced(self: Path, target: Path) -> Path:
            if trouble:
                raise OSError(*trouble)
            return replace(self, target)

        monkeypatch.setattr(Path, "replace", replaced)
        file = StatusFile(tmp_path / "x.status.json", lambda: now, lambda: current.append(now["n"]))
        full, read_only = (28, "No space left on device"), (30, "Read-only file system")
        for number, what in enumerate(((), full, full, read_only, (), full)):
            now, trouble[:] = {"n": number}, what
            file._write()
            file._write()
        assert current == [0, 0, 4, 4]
        assert [(one.levelname, one.getMessage()) for one in caplog.records] == [
            ("WARNING", "The status file cannot be written: No space left on device. It is tried again each second."),
            ("WARNING", "The status file cannot be written: Read-only file system. It is tried again each second."),
            ("INFO", "The status file is written again."),
            ("WARNING", "The status file cannot be written: No space left on device. It is tried again each second."),
        ]

    def test_the_end_is_written(self, tmp_path):
        path, now = tmp_path / "x.status.json", {"n": 0}
        file = StatusFile(path, lambda: now, nobody)
        file.keep()
        now = {"n": 1}
        file.close()
        assert json.loads(path.read_bytes()) == {"n": 1}
        until(lambda: "status" not in [one.name for one in threading.enumerate()], "its thread has ended")

    def test_one_that_was_never_kept_is_written_all_the_same(self, tmp_path):
        path = tmp_path / "x.status.json"
        StatusFile(path, lambda: FOUND, nobody).close()
        assert json.loads(path.read_bytes()) == FOUND

    def test_a_disk_that_is_full_costs_nothing_but_the_news(self, tmp_path, monkeypatch):
        monkeypatch.setattr(status, "INTERVAL", 0.01)
        path, now = tmp_path / "x.status.json", {"n": 0}
        file = StatusFile(path, lambda: now, nobody)
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
    def test_table(self, tmp_path, kept, monkeypatch):
        # Once, as what a process has is no longer the same when it is looked at again.
        monkeypatch.setattr(processes, "memory", functools.cache(processes.memory))
        kept(FOUND)
        code, output = run("--socket", SOCKET, "--state-dir", str(tmp_path))
        assert code == 0
        lines = click.unstyle(output).splitlines()
        megabytes = re.fullmatch(
            r"Memory \d+ MB: (\d+) MB the front process, \1 MB 1 worker, (-|\d+) MB what starts them", lines.pop(1)
        )[1]
        assert lines[0] == f"Edge Agent 1.3.0, pid {os.getpid()}, since 2026-01-02T03:04:05Z, on {SOCKET}"
        assert lines[1:4] == ["part is FAILED: no", "2026-01-02T03:14:05Z board: hung: It hung.", ""], (
            "what is wrong is first"
        )
        assert [re.split("  +", line) for line in lines[4:7]] == [
            [
                *("MODEL", "VERSION", "STATUS", "RUNS ON", "CALLS", "FAILED"),
                *("OK/S", "OK P50 MS", "OK P99 MS", "QUEUE", "MB", *EVENTS),
            ],
            [
                *("board", "2.0.0", "RUNNING", "cpu (fallback)", "1203", "3", "12.5", "8.1", "12.4", "2/16", megabytes),
                *"2311",
            ],
            [*("part", "1.0.0", "FAILED", "-", "0", "0", "-", "-", "-", "-", "-"), *"0000"],
        ]
        assert {len(line) for line in lines[4:7]} == {len(lines[4])}, "what is a number ends below its head"
        assert lines[7:] == ["", "The last errors of callers", "2026-01-02T03:15:05Z board: argument: Too wide."]

    def test_of_an_agent_that_tells_less(self, tmp_path, kept):
        """One that was started before this version was installed."""
        models = [{key: value for key, value in one.items() if key != "queue"} for one in FOUND["models"]]
        kept({"agent": FOUND["agent"], "models": models, "calls": CALLS, "workers": FOUND["workers"]})
        code, output = run("--socket", SOCKET, "--state-dir", str(tmp_path))
        assert code == 0
        assert click.unstyle(output).splitlines()[5].split()[:10] == [
            *("board", "2.0.0", "RUNNING", "cpu", "(fallback)", "1203", "3", "-", "-", "-")
        ]

    def test_of_an_agent_that_keeps_one_error_of_each_model(self, tmp_path, kept):
        error = {"time": "2026-01-02T03:14:05Z", "code": "", "reason": "died", "text": "It died."}
        kept({**FOUND, "last_errors": {"board": error}})
        code, output = run("--socket", SOCKET, "--state-dir", str(tmp_path))
        assert code == 0
        assert click.unstyle(output).splitlines()[3] == "2026-01-02T03:14:05Z board: died: It died."

    def test_json(self, tmp_path, kept):
        kept(FOUND)
        code, output = run("--socket", SOCKET, "--state-dir", str(tmp_path), "--json")
        found = json.loads(output)
        memory = found.pop("memory")
        assert found.pop("age_s") is None, "it is an older agent"
        assert (code, found) == (0, FOUND)
        assert memory["front"] > 10 << 20
        assert memory["workers"]["board"] == pytest.approx(memory["front"], rel=0.1)

    def test_no_models(self, tmp_path, kept):
        kept({**FOUND, "models": []})
        code, output = run("--socket", SOCKET, "--state-dir", str(tmp_path))
        assert (code, output.splitlines()[2]) == (0, "No models are deployed.")

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

    def test_a_living_process_that_took_the_number_of_an_agent_that_ended(self, tmp_path, kept):
        """As after a reboot, or once the numbers have gone round."""
        of_mine = Heartbeat().told()
        kept({**FOUND, "heartbeat": of_mine})
        assert run("--socket", SOCKET, "--state-dir", str(tmp_path))[0] == 0
        for other in ({"started_ticks": of_mine["started_ticks"] - 1}, {"boot": "another"}):
            kept({**FOUND, "heartbeat": {**of_mine, **other}})
            code, output = run("--socket", SOCKET, "--state-dir", str(tmp_path))
            assert (code, output) == (1, f"Error: The agent on {SOCKET} has ended.\n")

    def test_an_agent_that_ended_where_another_serves_and_has_kept_nothing(self, tmp_path, kept):
        path = str(tmp_path / "a.sock")
        kept({**FOUND, "heartbeat": {**Heartbeat().told(), "boot": "another"}}).rename(
            state.StateFolder(tmp_path, Path(path)).status_file()
        )
        with socket.socket(socket.AF_UNIX) as served:
            served.bind(path)
            served.listen()
            code, output = run("--socket", path, "--state-dir", str(tmp_path))
        assert code == 1
        assert output.startswith(
            f"Error: Something serves on {path}, but the last status there is of an agent that has ended."
        )
        assert "has ended.\n" in run("--socket", path, "--state-dir", str(tmp_path))[1]

    def test_an_agent_in_a_container(self, tmp_path, kept):
        """Whose pids are those of other processes here."""
        kept({**FOUND, "heartbeat": {**Heartbeat().told(), "pid_namespace": 1}})
        code, output = run("--socket", SOCKET, "--state-dir", str(tmp_path))
        assert code == 0
        assert output.startswith("Whether the agent lives cannot be told here")
        found = json.loads(run("--socket", SOCKET, "--state-dir", str(tmp_path), "--json")[1])
        assert (found["age_s"], found["memory"]) == (None, {"front": None, "helpers": None, "workers": {"board": None}})

    @pytest.mark.parametrize("key", ["agent", "models", "calls", "workers", "heartbeat", "last_errors"])
    @pytest.mark.parametrize("value", [None, [], [1], "text", 7, {"a": 1}, [{"model": 1}], {"pid": math.inf}])
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


def read_until(terminal: int, enough: Callable[[str], bool]) -> str:
    """Return what is written to a terminal, once it is enough."""
    seen = b""
    give_up = time.monotonic() + 60
    while not enough(seen.decode(errors="replace")):
        ready, _, _ = select.select([terminal], [], [], max(0.0, give_up - time.monotonic()))
        assert ready, f"this is all that was written: {seen!r}"
        seen += os.read(terminal, 1 << 16)
    return seen.decode().replace("\r\n", "\n")


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
            until(lambda: agent.status()["restarts"] == {"board": 1}, "the restart is counted")
            assert found["images"]["board"]["processed"] == found["latency"]["board"]["count"] == 3
            assert (found["images"]["board"]["anomalous"], found["images"]["board"]["invalid"]) == (0, 1)
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
            assert 0 <= found["age_s"] < 60
            assert [(one["of"], one["reason"]) for one in found["last_errors"]["board"]] == [
                ("agent", "died"),
                ("caller", "argument"),
            ]
            lines = click.unstyle(self.status_of(agent).stdout).splitlines()
            assert lines[0].startswith("Edge Agent ")
            died, argument = (one["time"] for one in found["last_errors"]["board"])
            assert lines[2].startswith(f"{died} board: died: The model's worker process ended: ")
            assert lines[-1].startswith(f"{argument} board: argument: ")
            heads = next(number for number, line in enumerate(lines) if line.startswith("MODEL"))
            cells = re.split("  +", lines[heads + 1])
            row = dict(zip(re.split("  +", lines[heads]), cells, strict=True))
            assert row["MB"] == "-" or 5 < int(row["MB"]) < 200
            # Of late, which on a slow machine was long ago.
            late = [row.pop(key) for key in ("OK/S", "OK P50 MS", "OK P99 MS")]
            assert late == ["-"] * 3 or (float(late[0]) > 0 and 0 < float(late[1]) <= float(late[2]))
            del row["MB"]
            assert list(row.values()) == ["board", "0.0.0", "RUNNING", "cpu", "4", "1", "0/16", *"1100"]
            assert agent.stop() == 0
            assert "has ended" in self.status_of(agent).stderr

    def test_a_front_that_stands_still_is_not_taken_for_one_that_works(self, folder, monkeypatch):
        """Nor is one that works, but of which nothing changes, not even its file, taken for one that stands."""
        monkeypatch.setattr(heartbeat, "LATE", 0.5)
        with closing(Agent()) as agent:
            agent.start(**sabotaged(folder, "from edge_agent import status; status.INTERVAL = 0.05"))
            (path,) = (agent.folder / "state").glob("*.status.json")
            place = ("--socket", str(agent.socket), "--state-dir", str(agent.folder / "state"))

            def last_beat() -> float:
                return time.monotonic() - heartbeat.life(json.loads(path.read_bytes())).age

            until(lambda: agent.calls(rpc="ListModels"), "the call that waited for the agent is counted")
            written = path.stat()
            for _ in range(6):
                before = last_beat()
                until(lambda before=before: last_beat() > before + 0.03, "it has told that nothing has changed")
            until(lambda: run(*place)[0] == 0, "it is taken for alive")
            assert (path.stat().st_ino, path.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
            hold(agent.pid)
            time.sleep(2 * heartbeat.LATE)  # in which it would have told something
            code, output = run(*place)
            assert code == 1
            assert re.match(r"The agent has told nothing for \d+ s; what follows is that old\. ", output)
            assert "\nEdge Agent " in output
            code, output = run(*place, "--json")
            assert code == 1
            assert json.loads(output)["age_s"] >= 2 * heartbeat.LATE - 0.05
            os.kill(agent.pid, signal.SIGCONT)
            until(lambda: run(*place)[0] == 0, "it goes on")

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

    def test_watching_draws_in_place_on_a_terminal(self, folder, monkeypatch):
        """On a screen of its own, which is left in order when it is interrupted; a line ends at the edge."""
        packages.segmenter(folder / "models" / "board")
        with serving(folder / "models") as agent:
            master, slave = pty.openpty()
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 6, 60, 0, 0))
            monkeypatch.setenv("LINES", "24")  # what a shell has exported once, before the window was made smaller
            watcher = self.watcher(agent, "--watch", "0.1", stdin=slave, stdout=slave, stderr=slave)
            os.close(slave)
            seen = read_until(master, lambda text: text.count(HOME) >= 3)
            agent.run_model("board")
            seen += read_until(master, lambda text: "RUNNING" in text)
            watcher.send_signal(signal.SIGINT)
            seen += read_until(master, lambda text: OWN_SCREEN in text)
            assert watcher.wait(30) == 0
            os.close(master)
        assert seen.startswith(f"{OTHER_SCREEN}{HIDE_CURSOR}{NO_WRAP}{HOME}Edge Agent ")
        assert seen.endswith(f"{WRAP}{SHOW_CURSOR}{OWN_SCREEN}")
        for frame in seen.removesuffix(f"{WRAP}{SHOW_CURSOR}{OWN_SCREEN}").split(HOME)[1:]:
            assert frame.endswith(f"{TO_LINE_END}{TO_SCREEN_END}")
            assert 0 < frame.count("\n") <= 5, "no more lines than the terminal has"
            assert max(len(line) for line in click.unstyle(frame).replace(TO_LINE_END, "").splitlines()) <= 60
        assert "Traceback" not in seen

    def test_watching_without_a_terminal_prints_one_below_the_other(self, folder):
        with serving(folder) as agent:
            watcher = self.watcher(agent, "--watch", "0.1", stdout=subprocess.PIPE)
            lines = [watcher.stdout.readline().decode() for _ in range(9)]
            watcher.send_signal(signal.SIGINT)
            rest = watcher.communicate(timeout=30)[0].decode()
            assert watcher.returncode == 0
        assert [line.split()[0] for line in lines] == ["Edge", "Memory", "No"] * 3
        assert "\x1b" not in "".join(lines) + rest

    def test_watching_as_json_goes_on_when_the_agent_ends(self, folder):
        """Whoever restarts it may be watching it: each look is a line of JSON."""
        with serving(folder) as agent:
            watcher = self.watcher(agent, "--watch", "0.1", "--json", stdout=subprocess.PIPE)
            assert json.loads(watcher.stdout.readline())["agent"]["pid"] == agent.pid
            agent.stop()
            until(lambda: "has ended" in json.loads(watcher.stdout.readline()).get("error", ""), "its end is told")
            watcher.send_signal(signal.SIGINT)
            watcher.communicate(timeout=30)
            assert watcher.returncode == 0

    def watcher(self, agent: Agent, *arguments: str, **popen) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "edge_agent", "status", "--state-dir", str(agent.folder / "state"), *arguments],
            env=environment(EDGE_AGENT_SOCKET=str(agent.socket), TERM="xterm"),
            **popen,
        )

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
