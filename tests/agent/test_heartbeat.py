"""Whether an agent lives, and how old is what it tells: of this very process, of its children, and of made-up ones."""

import json
import os
import subprocess
import sys
import time

import pytest

from edge_agent import heartbeat, processes
from edge_agent.heartbeat import LATE, Heartbeat, Life, life
from support.waiting import until

SAYS_WHO_IT_IS = """
import json, os, sys
from edge_agent.heartbeat import Heartbeat
heart = Heartbeat()
heart.beat()
print(json.dumps({"agent": {"pid": os.getpid()}, "heartbeat": heart.told()}), flush=True)
sys.stdin.read()
"""


def status(heart: Heartbeat, **other: object) -> dict:
    return {"agent": {"pid": os.getpid()}, "heartbeat": {**heart.told(), **other}}


def test_the_age_is_that_of_the_last_beat(monkeypatch):
    heart = Heartbeat()
    heart.beat()
    assert 0 <= life(status(heart)).age < LATE
    assert life(status(heart)).lives is True
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 100)
    assert life(status(heart)).age == pytest.approx(100, abs=LATE)
    assert life(status(heart)).silent
    heart.beat()
    assert life(status(heart)) == Life(True, 0.0)
    assert not life(status(heart)).silent


def test_no_step_of_the_wall_clock_changes_it(monkeypatch):
    heart = Heartbeat()
    heart.beat()
    now = time.time()
    for days in (-1, 1):
        monkeypatch.setattr(time, "time", lambda days=days: now + days * 86_400)
        assert 0 <= life(status(heart)).age < LATE


def test_another_process_reads_it_until_it_has_ended():
    """Also while nobody has asked yet how it ended, and its number still exists."""
    child = subprocess.Popen(
        [sys.executable, "-c", SAYS_WHO_IT_IS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        told = json.loads(child.stdout.readline())
        assert 0 <= life(told).age < 30
        child.kill()
        until(lambda: life(told) == Life(False), "it has ended")
        assert os.path.exists(f"/proc/{child.pid}")
    assert life(told) == Life(False)


def test_the_number_of_another_process():
    heart = Heartbeat()
    ticks = processes.started(os.getpid())
    assert life(status(heart, started_ticks=ticks)).lives is True
    assert life(status(heart, started_ticks=ticks + 1)) == Life(False)


def test_another_boot(monkeypatch):
    heart = Heartbeat()
    assert life(status(heart, boot="another")) == Life(False)
    assert life(status(heart, boot=None)).lives is True
    monkeypatch.setattr(processes, "boot", lambda: None)
    assert life(status(heart)).lives is True


def test_another_namespace_says_nothing_either_way():
    assert life(status(Heartbeat(), pid_namespace=1)) == Life(None)


def test_of_an_older_agent_the_number_is_all_there_is():
    assert life({"agent": {"pid": os.getpid()}}) == Life(True)
    assert life({"agent": {"pid": 2**22 + 1}}) == Life(False)


@pytest.mark.parametrize("what", ["nothing", "pipe", "device", "folder", "short"])
def test_what_is_no_heartbeat_has_no_age(tmp_path, what):
    """Nor is it opened, unless it is a plain file."""
    if what == "nothing":
        fd = 1_000_000
    elif what == "pipe":
        fd, _ = os.pipe()
    else:
        path = {"device": "/dev/zero", "folder": tmp_path, "short": tmp_path / "short"}[what]
        (tmp_path / "short").write_bytes(b"1234")
        fd = os.open(path, os.O_RDONLY)
    opened = []
    really = os.open

    def noted(path: str, flags: int) -> int:
        opened.extend([path] if not flags & os.O_PATH else [])
        return really(path, flags)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heartbeat.os, "open", noted)
        assert life(status(Heartbeat(), fd=fd)) == Life(True, None)
    assert bool(opened) == (what == "short")


def test_children_do_not_inherit_it():
    heart = Heartbeat()
    assert not os.get_inheritable(heart.told()["fd"])
