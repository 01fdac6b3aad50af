"""The processes that measure: what is told when one dies or hangs, and that none outlives the benchmark."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from edge_agent.bench.crew import Crew, MeasuringFailed, Member
from support.agent import alive, descendants, environment
from support.waiting import until

# A child's work: whatever it is asked.
CHILD = """
import os, sys, time
from edge_agent.bench import child

def make(order):
    if "refuse" in order:
        raise child.Refused(order["refuse"])
    print("a library prints")
    return lambda order: eval(order["do"])

child.serve(make)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "measuring_child.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    return "measuring_child"


def test_orders_are_answered(module):
    with Crew() as crew:
        one, two = crew.start(module, {"client 1": {}, "client 2": {}})
        for member in (one, two):
            member.ask({"do": "{'pid': os.getpid(), 'cwd': os.getcwd()}"})
            assert member.answer(20) == {"pid": member.pid, "cwd": "/"}
        assert os.getsid(one.pid) == one.pid != os.getsid(0), "a terminal's Ctrl-C is not for them"
    assert not alive(one.pid)
    assert not alive(two.pid)


def test_one_that_dies_is_told_of(module):
    with Crew() as crew:
        (one,) = crew.start(module, {"client 1": {}})
        os.kill(one.pid, signal.SIGKILL)
        with pytest.raises(MeasuringFailed, match=rf"The client 1 \(pid {one.pid}\) was killed by SIGKILL"):
            crew.sleep_until(time.perf_counter() + 30)
        with pytest.raises(MeasuringFailed, match="was killed by SIGKILL"):
            one.answer(20)
        (two,) = crew.start(module, {"client 2": {}})
        two.ask({"do": "1 / 0"})
        with pytest.raises(MeasuringFailed, match="ended with exit code 1"):
            two.answer(20)


def test_one_that_hangs_is_not_waited_for(module):
    with Crew() as crew:
        (one,) = crew.start(module, {"client 1": {}})
        one.ask({"do": "time.sleep(1000)"})
        with pytest.raises(MeasuringFailed, match="has hung"):
            one.answer(0.2)
        begin = time.monotonic()
    assert time.monotonic() - begin < 2
    assert not alive(one.pid)


def test_a_refusal_is_an_error_with_its_sentence(module):
    with Crew() as crew, pytest.raises(MeasuringFailed, match="^No such model[.]$"):
        crew.start(module, {"bare model": {"refuse": "No such model."}})


def test_one_that_was_discarded_is_not_missed(module):
    with Crew() as crew:
        one, two = crew.start(module, {"client 1": {}, "bare model": {}})
        crew.discard([two])
        assert not alive(two.pid)
        crew.sleep_until(time.perf_counter() + 0.1)
        one.check()


def test_they_end_with_whoever_started_them(module):
    """Killed in the middle of an order, which nobody can tell them of."""
    code = f"""
        import sys, time
        from edge_agent.bench.crew import Member
        for what in "12":
            member = Member({module!r}, what, {{}})
            member.answer(20)
            member.ask({{"do": "time.sleep(1000)"}})
        print("asked", flush=True)
        time.sleep(1000)
    """
    env = environment(PYTHONPATH=os.environ["PYTHONPATH"])
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout.readline() == b"asked\n"
        children = descendants(process.pid)
        assert len(children) == 2
        process.kill()
    until(lambda: not any(map(alive, children)), "they are gone", 10)


def test_a_module_that_cannot_be_started_is_told_of(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(MeasuringFailed, match="The client 1 could not be started: No such file"):
        Member("x", "client 1", {})
