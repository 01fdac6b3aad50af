"""What the system says of the agent's processes: whose socket it is, what is below, what they use."""

import os
import socket
import subprocess
import sys

import pytest

from edge_agent.bench import device, usage
from edge_agent.bench.usage import Sample
from support.processes import TICK, cpu_ticks
from support.waiting import until

CHILD = """
import subprocess, sys, time
if len(sys.argv) > 1:
    below = subprocess.Popen([sys.executable, "-c", "x = bytearray(40 << 20); print(1, flush=True)\\nwhile True: pass"])
    time.sleep(1000)
"""


@pytest.fixture
def tree():
    """A process that sleeps, and one below it that computes and holds 40 MiB."""
    command = [sys.executable, "-c", CHILD, "parent"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        (below,) = until(lambda: usage.below(process.pid), "there is one below")
        yield process.pid, below
        os.kill(below, 9)
        process.kill()


def test_who_listens_is_found(tmp_path):
    path = tmp_path / "x.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        assert usage.served_by(path) == os.getpid()
    with pytest.raises(ConnectionRefusedError):
        usage.served_by(path)
    with pytest.raises(FileNotFoundError):
        usage.served_by(tmp_path / "nowhere")


def test_processors_in_use(tree):
    """Seen from around the two samples and from between them; what is told of a second is what was used in all."""
    parent, below = tree
    first, device = cpu_ticks(below), usage._device()
    before = Sample.take(parent, [os.getpid()])
    second, device_then = cpu_ticks(below), usage._device()
    until(lambda: cpu_ticks(below) > second + 40, "it computes")
    third, device_now = cpu_ticks(below), usage._device()
    found = Sample.take(parent, [os.getpid()]).since(before, 1.0)
    fourth, device_after = cpu_ticks(below), usage._device()
    assert third - second <= round(found.agent / TICK) <= fourth - first + 1, (
        "the parent may have begun to sleep by now"
    )
    assert device_now - device_then - TICK <= found.device <= device_after - device + TICK
    assert found.agent + found.clients <= device_after - device + 3 * TICK
    assert found.cores == os.cpu_count()
    assert found.others >= 0


def test_an_agent_that_cannot_be_seen_uses_nobody_knows_what():
    assert Sample.take(0, []).since(Sample.take(0, []), 1.0) is None
    assert usage.memory(0, {}) == ()


def test_memory_tells_the_busiest_worker_from_the_others(tree):
    parent, below = tree
    named = {one.process: one for one in usage.memory(os.getpid(), {below: 9.0})}
    assert named["front process"].pid == os.getpid()
    assert named["worker of the model"].pid == below
    assert named["worker of the model"].rss > 40 << 20
    assert named["worker of the model"].pss > 40 << 20
    assert parent in [one.pid for one in usage.memory(os.getpid(), {}) if one.process == "helper"]


def test_a_process_that_is_gone_is_no_error():
    assert usage.seconds_of(2**22 + 1) == 0
    assert usage.below(2**22 + 1) == []


def test_processor_names(tmp_path):
    for text, name in (
        ("processor\t: 0\nmodel name\t: AMD EPYC\nflags\t: a b\n", "AMD EPYC"),
        ("processor\t: 0\nBogoMIPS\t: 62.50\n\nHardware\t: BCM2835\nModel\t\t: Raspberry Pi 4\n", "BCM2835"),
        ("processor\t: 0\n", ""),
    ):
        (tmp_path / "cpuinfo").write_text(text)
        assert device.processor(tmp_path / "cpuinfo") == name
    assert device.processor(tmp_path / "nowhere") == ""


def test_a_device_says_what_matters():
    found = device.describe()
    assert {"processor", "cores", "memory", "system", "python", "grpcio", "onnxruntime", "measured"} <= set(found)
    assert int(found["cores"].split()[0]) <= os.cpu_count()
