"""Children: one question, one answer, within limits; whatever becomes of them is a sentence, and none is left."""

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest

from model_packager import children
from model_packager.errors import PackagingRefused
from support.agent import alive
from support.waiting import PATIENCE, until

# What children of these tests do; the first line of a request says which of it.
WORK = """
import os, resource, subprocess, sys, time
from pathlib import Path
from model_packager import children
from model_packager.errors import PackagingRefused

def work(request):
    return globals()[request["do"]](request)

def answer(request):
    print("not the answer")
    os.write(1, b"nor this")
    subprocess.run(["echo", "nor this"])
    return {"asked": request, "folder": os.getcwd(), "path": sys.path[:1]}

def limits(request):
    return {name: resource.getrlimit(getattr(resource, "RLIMIT_" + name)) for name in ("CORE", "FSIZE", "DATA")}

def refuse(request):
    raise PackagingRefused("It is no model.")

def fail(request):
    raise ValueError("unexpected")

def end(request):
    os._exit(request["code"])

def die(request):
    os.kill(os.getpid(), request["signal"])

def take(request):
    return {"bytes": len(bytearray(request["bytes"]))}

def hang(request):
    Path(request["pid"]).write_text(f"{os.getpid()}\\n")
    time.sleep(600)

if __name__ == "__main__":
    children.serve(work, data_limit=(lambda request: request["limit"]) if os.environ.get("LIMITED") else None)
"""


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "child_of_tests.py").write_text(WORK)
    (folder / "deaf_child_of_tests.py").write_text("import os; os._exit(0)")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]))
    return folder


def ask(do: str, *, seconds: float = PATIENCE, **request: Any) -> dict[str, Any]:
    return children.ask("child_of_tests", {"do": do, **request}, what="The test", seconds=seconds)


def test_an_answer(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    answer = ask("answer", more=["ü", 1.5, None])
    assert answer["asked"] == {"do": "answer", "more": ["ü", 1.5, None]}
    # What libraries print is for the log.
    out, err = capfd.readouterr()
    assert (out, "not the answer" in err, err.count("nor this")) == ("", True, 2)


def test_nothing_is_imported_from_the_folder_that_one_is_in(tmp_path, monkeypatch):
    """Python begins to look for modules there: `package verify` in a folder of downloads would run what is in it."""
    (tmp_path / "downloads").mkdir()
    for name in ("json", "numpy", "resource"):
        (tmp_path / "downloads" / f"{name}.py").write_text("open('canary', 'w'); raise SystemExit(9)")
    monkeypatch.chdir(tmp_path / "downloads")
    assert ask("answer")["folder"] == "/"
    assert not list(tmp_path.rglob("canary"))


def test_a_refusal():
    with pytest.raises(PackagingRefused, match=r"^It is no model\.$"):
        ask("refuse")


def test_an_unexpected_failure(capfd):
    with pytest.raises(PackagingRefused, match=r"^The test ended with code 1; the job's log has what it said\.$"):
        ask("fail")
    assert "ValueError: unexpected" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, "ended by signal 9; it may have run out of memory; the job's log"),
        (signal.SIGABRT, "ended by signal 6; it may have run out of memory; the job's log"),
        (signal.SIGSEGV, "ended by signal 11; the job's log has what it said"),
    ],
)
def test_a_child_that_is_killed(number, words):
    with pytest.raises(PackagingRefused, match=words):
        ask("die", signal=number)


@pytest.mark.parametrize("code", [0, 3])
def test_a_child_that_ends_without_an_answer(code):
    with pytest.raises(PackagingRefused, match=f"The test ended with code {code}; the job's log"):
        ask("end", code=code)


@pytest.mark.parametrize("size", [1, (1 << 16) + 2000, 1 << 20])
def test_a_child_that_does_not_listen(size):
    """The request may be larger than a pipe, and be written to nobody; what is left of it is tried again at the end."""
    with pytest.raises(PackagingRefused, match="The test ended with code 0"):
        children.ask("deaf_child_of_tests", {"much": "x" * size}, what="The test", seconds=PATIENCE)


def test_a_child_that_takes_too_long(tmp_path):
    before = threading.active_count()
    with pytest.raises(PackagingRefused, match=r"^The test took longer than 2 s and was ended\.$"):
        ask("hang", pid=str(tmp_path / "pid"), seconds=2)
    assert not alive(int((tmp_path / "pid").read_text()))
    until(lambda: threading.active_count() <= before, "the timer is gone")


def test_a_child_that_cannot_be_started(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(PackagingRefused, match="The test could not be started: No such file or directory"):
        ask("answer")


def test_memory_has_a_limit(monkeypatch):
    assert ask("take", bytes=256 << 20)["bytes"] == 256 << 20
    monkeypatch.setenv("LIMITED", "yes")
    assert ask("take", bytes=64 << 20, limit=192 << 20)["bytes"] == 64 << 20
    with pytest.raises(PackagingRefused, match=r"^There is not enough memory for the model\.$"):
        ask("take", bytes=256 << 20, limit=192 << 20)


def test_limits(monkeypatch):
    monkeypatch.setenv("LIMITED", "yes")
    told = ask("limits", limit=1 << 30)
    assert told == {"CORE": [0, 0], "FSIZE": [children.LARGEST_FILE] * 2, "DATA": [1 << 30] * 2}


def asker(do: str, **request: Any) -> list[str]:
    """Return the command of a process that asks a child and prints the answer."""
    script = f"""
        import json
        from model_packager import children
        request = json.loads({json.dumps({"do": do, **request})!r})
        print(json.dumps(children.ask("child_of_tests", request, what="The test", seconds=600)))
    """
    return [sys.executable, "-c", textwrap.dedent(script)]


def test_limits_that_are_lower_already_stay(monkeypatch):
    """Who is not root may not raise them, and must not fail for trying."""
    monkeypatch.setenv("LIMITED", "yes")

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    done = subprocess.run(asker("limits", limit=1 << 30), preexec_fn=lower, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["FSIZE"] == [1 << 20, 1 << 20]


def test_a_child_ends_with_its_asker(tmp_path):
    pid = tmp_path / "pid"
    process = subprocess.Popen(asker("hang", pid=str(pid)))
    try:
        until(lambda: pid.is_file() and pid.read_text().endswith("\n"), "the child works")
        child = int(pid.read_text())
        assert alive(child)
    finally:
        process.kill()
        process.wait()
    until(lambda: not alive(child), "the child has ended")
