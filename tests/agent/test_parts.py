"""Memory, log lines, the state file, the backend's promises, and what the front process never imports."""

import json
import logging
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from edge_agent import log, memory, resize, state
from edge_agent.errors import AgentRefused, NotEnoughMemory, PackageRefused, extra, shown
from edge_agent.memory import MemoryLedger
from support import users
from support.agent import environment


class TestMemory:
    TAKEN = 512 << 20

    @staticmethod
    def tree(tmp_path, most="max", used=0, cached=0, above=None):
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
        (tmp_path / "proc/self/cgroup").write_text("0::/box/agent\n")
        group = tmp_path / "cgroup/box/agent"
        group.mkdir(parents=True)
        (group / "memory.max").write_text(f"{most}\n")
        (group / "memory.current").write_text(f"{used}\n")
        (group / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\n")
        if above:
            (group.parent / "memory.max").write_text(f"{above}\n")
            (group.parent / "memory.current").write_text("0\n")
            (group.parent / "memory.stat").write_text("anon 5\n")
        return memory.available(tmp_path / "proc", tmp_path / "cgroup")

    def test_machine(self, tmp_path):
        assert self.tree(tmp_path) == 8000 * 1024

    @staticmethod
    def kept_for_cpus(tmp_path, *sizes):
        """Write what Linux tells of CPUs that have so many bytes of free pages each: only `count` is of pages that are free."""
        page = os.sysconf("SC_PAGE_SIZE")
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc/zoneinfo").write_text(
            "Node 0, zone   Normal\n  pages free     2291472\n      nr_free_pages 2291472\n  pagesets\n"
            + "".join(
                f"    cpu: {cpu}\n              count:    {size // page}\n              high:     8883\n              batch:    63\n"
                for cpu, size in enumerate(sizes)
            )
        )

    def test_free_pages_that_are_kept_for_each_cpu(self, tmp_path):
        self.kept_for_cpus(tmp_path, 128 << 10, 512 << 10)
        assert self.tree(tmp_path) == (8000 + 128 + 512) * 1024

    def test_a_container_that_is_shown_the_pages_of_the_machine(self, tmp_path):
        self.kept_for_cpus(tmp_path, 4 << 30)
        assert self.tree(tmp_path) == (8000 + 9000 // 8) * 1024

    def test_cgroup_with_less(self, tmp_path):
        assert self.tree(tmp_path, most=5000, used=4000, cached=1500) == 2500

    def test_cgroup_above_with_less(self, tmp_path):
        assert self.tree(tmp_path, most=5000, used=1000, above=300) == 300

    def test_cgroup_with_more_than_the_machine(self, tmp_path):
        assert self.tree(tmp_path, most=10**12) == 8000 * 1024

    def test_here(self):
        assert 0 < memory.available() < 1 << 50

    @pytest.mark.alone
    def test_what_a_process_has_just_left_is_there_at_once(self):
        before = memory.available()
        took = f"import numpy; numpy.ones({self.TAKEN} // 8)"
        for _ in range(3):
            subprocess.run([sys.executable, "-c", took], check=True)
        assert memory.available() > before - self.TAKEN / 16

    def test_two_models_do_not_count_on_the_same_memory(self):
        ledger = MemoryLedger(reserve=100, free=lambda: 1000)
        ledger.admit("a", 500)
        with pytest.raises(NotEnoughMemory):
            ledger.admit("b", 500)
        ledger.settle("a")
        ledger.admit("b", 500)

    @pytest.mark.parametrize(
        ("what", "words"),
        [
            (
                (),
                "about 1 MiB of memory; 0 MiB are free above the reserve. Stop another model, or lower memory_reserve.",
            ),
            (
                ("GPU memory",),
                "of GPU memory; 0 MiB are free above the reserve. Stop another model, or lower gpu_memory_reserve.",
            ),
        ],
    )
    def test_the_reserve_is_named(self, what, words):
        with pytest.raises(NotEnoughMemory, match=re.escape(words)):
            MemoryLedger(5, lambda: 4, *what).admit("a", 1)

    def test_what_is_set_aside_for_a_model_is_room_for_it(self):
        ledger = MemoryLedger(reserve=100, free=lambda: 1000)
        ledger.admit("a", 300)
        assert ledger.room("a") == 900
        assert ledger.room("b") == 600
        ledger.settle("a")
        assert ledger.room("b") == 900


class TestLog:
    @staticmethod
    def line(formatter, message, *args):
        return formatter.format(logging.LogRecord("name", logging.INFO, "file", 1, message, args, None))

    @pytest.mark.parametrize("formatter", [log.TextFormatter(), log.JsonFormatter()])
    def test_one_event_is_one_line_whatever_is_in_it(self, formatter):
        line = self.line(formatter, "%s", "a\nb\r\x1b[31m\x00\u2028c")
        assert len(line.splitlines()) == 1
        assert "\x1b" not in line

    def test_json(self):
        event = json.loads(self.line(log.JsonFormatter(), "model %s", "board"))
        assert (event["level"], event["message"]) == ("info", "model board")
        assert event["time"].endswith("Z")

    def test_callers_text(self):
        assert shown("a\x1b[0m\n") == r"'a\x1b[0m\n'"
        assert shown("ü") == r"'\xfc'"
        assert len(shown("x" * 10_000)) < 120


class TestState:
    def test_lock_is_of_the_socket_not_of_the_way_it_is_written(self, tmp_path):
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "real")
        first = state.StateFolder(tmp_path, tmp_path / "real" / "s")
        first.lock()
        with pytest.raises(AgentRefused, match="Another agent"):
            state.StateFolder(tmp_path, tmp_path / "link" / "s").lock()
        state.StateFolder(tmp_path, tmp_path / "real" / "t").lock()
        first.release()
        state.StateFolder(tmp_path, tmp_path / "link" / "s").lock()

    @pytest.mark.parametrize(("name", "there"), [("lock", "a folder"), ("lock", "a link"), ("run", "a file")])
    def test_something_else_in_the_place_of_a_file_of_ours(self, tmp_path, name, there):
        folder = state.StateFolder(tmp_path, tmp_path / "s")
        path = folder._path(name)
        if there == "a folder":
            path.mkdir()
        elif there == "a link":
            path.symlink_to(tmp_path / "elsewhere")
        else:
            path.write_text("")
        with pytest.raises(
            AgentRefused, match=f"^--state-dir {tmp_path}: {path.name} in it cannot be used: .* Remove it"
        ):
            (folder.lock if name == "lock" else folder.scratch)()

    def test_a_disk_without_room_for_the_scratch_folder(self, tmp_path, monkeypatch):
        """Where there is room for the folder itself, and none for what multiprocessing makes in it."""
        folder = state.StateFolder(tmp_path, tmp_path / "s")
        assert list(folder.scratch().iterdir()) == []

        def full(*_, **__):
            raise OSError(28, "No space left on device")

        for at in (state.tempfile, "mkdtemp"), (state.Path, "touch"):
            monkeypatch.setattr(*at, full)
            with pytest.raises(AgentRefused) as caught:
                folder.scratch()
            monkeypatch.undo()
            place = folder._path("run").name
            assert str(caught.value) == (
                f"--state-dir {tmp_path}: {place} in it cannot be used: No space left on device. Make room, or name another "
                "folder."
            )

    def test_a_disk_without_room_for_the_state_folder(self, tmp_path, monkeypatch):
        def full(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(state.Path, "mkdir", full)
        with pytest.raises(
            AgentRefused, match=r"x cannot be made: No space left on device\. Make room, or name another"
        ):
            state.folder(tmp_path / "x")

    def test_running_models_are_written_beside_and_renamed(self, tmp_path, monkeypatch):
        file = state.RunningModels(tmp_path / "x.running.json")
        assert file.read() == []
        file.write(["a", "b"])
        assert file.read() == ["a", "b"]
        inode = (tmp_path / "x.running.json").stat().st_ino
        file.write(["c"])
        assert (tmp_path / "x.running.json").stat().st_ino != inode
        assert [path.name for path in tmp_path.iterdir()] == ["x.running.json"]

    def test_a_write_that_fails_leaves_the_old_list(self, tmp_path, monkeypatch, caplog):
        file = state.RunningModels(tmp_path / "x.running.json")
        file.write(["a"])

        def full(_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        file.write(["a", "b"])
        assert file.read() == ["a"]
        assert "No space left on device" in caplog.text

    @pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[1]", b'"a"', b"\xff", b"[" * 100_000])
    def test_damaged(self, tmp_path, content, caplog):
        (tmp_path / "x.running.json").write_bytes(content)
        assert state.RunningModels(tmp_path / "x.running.json").read() == []
        assert "cannot be read" in caplog.text

    @pytest.mark.parametrize("kind", ["fifo", "endless", "link", "folder"])
    def test_what_is_no_plain_file_is_not_read(self, tmp_path, kind, caplog):
        path = tmp_path / "x.running.json"
        (tmp_path / "names").write_text('["board"]')
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to("/dev/zero" if kind == "endless" else "names")
        assert state.RunningModels(path).read() == []
        assert "cannot be read" in caplog.text

    @pytest.mark.parametrize("name", ["run", "unpacked"])
    def test_a_fifo_in_the_place_of_a_folder_is_refused(self, tmp_path, name):
        folder = state.StateFolder(tmp_path, tmp_path / "s")
        os.mkfifo(folder._path(name))
        with pytest.raises(AgentRefused, match="cannot be used: File exists. Remove it"):
            (folder.scratch if name == "run" else folder.unpacked)()


def run(script: str, **env: str) -> subprocess.CompletedProcess:
    clean = environment(**env)
    for key in ("CI", "ORT_DISABLE_TELEMETRY"):
        clean.pop(key, None)
    return subprocess.run([sys.executable, "-c", script], env=clean, capture_output=True, text=True, check=False)


class TestTelemetry:
    LOOK = """
import os, sys, threading, time
{imports}
import onnxruntime as ort
ort.InferenceSession({model!r}, providers=["CPUExecutionProvider"])
files = [name for _, _, names in os.walk(os.environ["HOME"]) for name in names]
print(len(files), os.environ.get("ORT_DISABLE_TELEMETRY"))
"""

    def look(self, tmp_path, imports: str) -> list[str]:
        from support import packages

        script = self.LOOK.format(imports=imports, model=packages.constant(scores=[0.5, 0.5]))
        done = run(script, HOME=str(tmp_path), XDG_CACHE_HOME=str(tmp_path), TMPDIR=str(tmp_path))
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    def test_the_runtime_leaves_no_identifier(self, tmp_path):
        assert self.look(tmp_path, "import edge_agent._preload") == ["0", "1"]

    def test_without_the_backend_it_would(self, tmp_path):
        """Negative control, for the runtimes that have telemetry (1.29 and later)."""
        import onnxruntime

        if tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 29):
            pytest.skip(f"ONNX Runtime {onnxruntime.__version__} has no telemetry on Linux")
        files, variable = self.look(tmp_path, "")
        assert variable == "None"
        assert int(files) > 0


def test_front_process_imports_no_numerical_library():
    script = """
import sys
import edge_agent.server, edge_agent.service
from edge_agent.cli import command
command.get_command(None, "serve")
print([name for name in ("numpy", "onnxruntime", "cv2", "PIL", "onnx") if name in sys.modules])
"""
    assert run(script).stdout == "[]\n"


def test_a_missing_runtime_is_one_sentence():
    script = """
import sys
sys.modules["onnxruntime"] = None
from edge_agent import _preload, backends, packages
from edge_agent.errors import PackageRefused
from edge_agent.jobs import SessionOptions
try:
    backends.open_session(packages.ModelFiles(b""), SessionOptions())
except PackageRefused as refusal:
    print(refusal)
"""
    done = run(script)
    assert done.stdout == f"ONNX Runtime is not installed; {extra('cpu')}.\n", done.stderr


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="with one core it starts none in any case")
@pytest.mark.parametrize(
    ("command", "asked", "alone"),
    [("main()", None, True), ("main()", "2", False), ("pass", None, False)],
    ids=["ours", "as the environment says", "control"],
)
def test_numpy_starts_no_threads_in_what_the_command_starts(command, asked, alone):
    script = f"""
import contextlib, os, sys
sys.argv[1:] = ["--version"]
from edge_agent.__main__ import main
with contextlib.suppress(SystemExit):
    {command}
import numpy
print("threads", len(os.listdir("/proc/self/task")))
"""
    done = run(script, **({"OPENBLAS_NUM_THREADS": asked} if asked else {}))
    told, threads = done.stdout.split()[-2:]
    assert (told, int(threads) == 1) == ("threads", alone)


class TestExtras:
    def test_the_words(self):
        assert extra("packaging") == "install the extra `packaging`, in a checkout with: pip install '.[packaging]'"

    def test_nobody_is_told_to_install_a_name_from_the_index(self):
        """Ours is not registered there, so that anybody may offer what they like under it."""
        for path in (users.ROOT / "agent").rglob("*.py"):
            assert "pip install 'vision" not in path.read_text(), path

    @pytest.mark.parametrize(
        ("command", "missing", "names"),
        [
            (["fit", "template", "--normal", ".", "--out", "x"], "model_packager", "packaging"),
            (["demo"], "onnx", "cpu,demo"),
        ],
    )
    def test_commands_that_need_one(self, command, missing, names):
        script = f"""
import sys
sys.modules[{missing!r}] = None
sys.argv[1:] = {command!r}
from edge_agent.__main__ import main
sys.exit(main())
"""
        done = run(script)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.endswith(f"; {extra(names)}\n")

    def test_a_package_that_resizes_without_opencv(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "cv2", None)
        with pytest.raises(PackageRefused, match=f"not installed; {re.escape(extra('cpu'))}\\.$"):
            resize.resizer(1)(np.zeros((4, 4, 3), np.uint8), 2, 2)


def test_a_worker_whose_agent_is_gone_ends_in_silence():
    script = """
import multiprocessing
from edge_agent import jobs
from edge_agent.log import LogSettings
context = multiprocessing.get_context("fork")
ours, theirs = context.Pipe()
ours.close()
worker = context.Process(target=jobs.work, args=((theirs,), None, jobs.SessionOptions(), LogSettings("info", "text")), name="worker")
worker.start()
theirs.close()
worker.join()
print(worker.exitcode)
"""
    done = run(script)
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_client_imports_no_runtime_and_no_opencv():
    script = """
import sys
import edge_agent.client
print([name for name in ("onnxruntime", "cv2", "pydantic", "onnx") if name in sys.modules])
"""
    assert run(script).stdout == "[]\n"
