"""What the system says of processes, this one's own and made-up ones."""

import mmap
import os
import subprocess
import sys

from edge_agent import processes
from support.waiting import until

ROLLUP = """00400000-7fff0000 ---p 00000000 00:00 0                  [rollup]
Rss:                2048 kB
Pss:                1024 kB
Pss_Dirty:           512 kB
"""


def test_memory_of_this_process_grows_with_what_it_takes():
    before = processes.memory(os.getpid())
    with mmap.mmap(-1, 64 << 20) as taken:
        taken.write(b"x" * (64 << 20))
        after = processes.memory(os.getpid())
    assert after.resident - before.resident > 60 << 20
    assert after.proportional - before.proportional > 60 << 20
    assert 0 < before.proportional <= before.resident


def test_made_up(tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "7/smaps_rollup").write_text(ROLLUP)
    assert processes.memory(7, tmp_path) == processes.Memory(2048 * 1024, 1024 * 1024)


def test_none_where_it_is_not_told(tmp_path):
    assert processes.memory(2**22 + 1) is None
    (tmp_path / "7").mkdir()
    for content in ("", "Rss: x kB\n", "Rss: 1 kB\n"):
        (tmp_path / "7/smaps_rollup").write_text(content)
        assert processes.memory(7, tmp_path) is None


def test_children():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert child.pid in processes.children(os.getpid())
    finally:
        child.communicate(b"\n")
    until(lambda: child.pid not in processes.children(os.getpid()), "it has ended")
    assert processes.children(2**22 + 1) == []


def test_when_a_process_was_started():
    """Which stays, whatever it is called, until it has ended."""
    mine = processes.started(os.getpid())
    assert mine == processes.started(os.getpid()) > 0
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert processes.started(child.pid) >= mine
    child.kill()
    until(lambda: processes.started(child.pid) is None, "it has ended, though nobody has asked how")
    child.communicate()
    assert processes.started(child.pid) is None


def test_when_a_made_up_process_was_started(tmp_path):
    (tmp_path / "7").mkdir()
    rest = " ".join(map(str, range(4, 53)))
    for stat, started in (
        (f"7 (a b) S {rest}", 22),
        (f"7 (a) Z 1) S {rest}", 22),
        (f"7 (a) Z {rest}", None),
        (f"7 (a) X {rest}", None),
        ("7 (a) S 1", None),
        ("", None),
    ):
        (tmp_path / "7/stat").write_text(stat)
        assert processes.started(7, tmp_path) == started, stat


def test_boot_and_namespace(tmp_path):
    assert len(processes.boot()) == 36
    assert processes.namespace() > 0
    asked = "from edge_agent import processes; print(processes.boot(), processes.namespace())"
    told = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout.split()
    assert told == [processes.boot(), str(processes.namespace())]
    assert (processes.boot(tmp_path), processes.namespace(tmp_path)) == (None, None)
