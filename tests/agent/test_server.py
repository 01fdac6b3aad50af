"""The process's beginning and end: what is told of /dev/shm, a signal that is seen whenever it comes, and calls that hang."""

import math
import subprocess
import sys
from contextlib import closing
from types import SimpleNamespace

import grpc
import pytest

from edge_agent import bitmaps, config, server
from edge_agent._proto import edge_agent_pb2 as pb2
from edge_agent.metrics import Metrics
from support import packages
from support.agent import Agent, alive, serving
from support.sabotage import sabotaged
from support.waiting import until

# Sends SIGTERM at the n-th line that runs after the wait has begun, in whatever function that is; a wait that has not
# begun to block by then gets it from outside.
SCRIPT = """
import faulthandler, os, signal, sys, threading
{definition}
faulthandler.dump_traceback_later(5, exit=True)
left = {line}

def trace(frame, event, _):
    global left
    if event == "line":
        left -= 1
        if left == 0:
            signal.raise_signal(signal.SIGTERM)
    return trace

later = threading.Timer(1, lambda: os.kill(os.getpid(), signal.SIGTERM))
later.start()
sys.settrace(trace)
ending.wait()
sys.settrace(None)
later.cancel()
print("seen", flush=True)
os._exit(0)
"""
OURS = "from edge_agent.server import EndSignal\nending = EndSignal()\nending.listen()"
# What the handler must not be.
AN_EVENT = "ending = threading.Event()\nsignal.signal(signal.SIGTERM, lambda *_: ending.set())"


def seen(definition: str, line: int) -> bool:
    script = SCRIPT.format(definition=definition, line=line)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    return done.stdout == "seen\n"


@pytest.mark.parametrize("line", [1, 10**9], ids=["before it blocks", "while it blocks"])
def test_a_signal_is_seen_whenever_it_comes(line):
    assert seen(OURS, line)


def test_a_signal_is_seen_in_whatever_thread_it_comes():
    """The main thread is not interrupted then, and neither is it by one that comes just before it blocks."""
    script = f"""
import faulthandler, os, signal, threading
{OURS}
faulthandler.dump_traceback_later(5, exit=True)
threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGTERM}})
ending.wait()
print("seen", flush=True)
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "seen\n", done.stderr


def test_an_event_in_the_handler_would_deadlock():
    """Negative control: between two of its lines, an Event's wait holds the lock that its set needs."""
    assert not all(seen(AN_EVENT, line) for line in range(1, 7))


@pytest.mark.parametrize(
    ("fit", "level", "told"),
    [
        (0, "WARNING", "room for 0 of the largest frames (4096x4096 pixels, 48 MiB each). Make it larger if"),
        (1, "INFO", "room for 1 of the largest frames (4096x4096 pixels, 48 MiB each)."),
        (math.inf, "INFO", "room for any number of the largest frames"),
        (OSError(2, "No such file or directory"), "WARNING", "/dev/shm cannot be used (No such file or directory)"),
    ],
)
def test_room_for_frames_is_told(monkeypatch, caplog, fit, level, told):
    def room() -> float:
        if isinstance(fit, OSError):
            raise fit
        return fit

    monkeypatch.setattr(bitmaps, "frames_that_fit", room)
    caplog.set_level("INFO")
    server._tell_room_for_frames()
    (line,) = caplog.records
    assert line.levelname == level
    assert told in line.getMessage()


def test_the_version_is_asked_for_once(monkeypatch):
    """It is read from the disk, and the status is written each second."""
    asked = []
    monkeypatch.setattr(server, "version", lambda name: asked.append(name) or "1.2.3")
    agent = server.Agent(config.load())
    models = SimpleNamespace(status=list)
    for _ in range(3):
        status = agent._status(models, Metrics())
        assert status["agent"]["version"] == "1.2.3"
    assert asked == ["vision-edge-agent"]


# The disk answers no more when a package is looked at once again, as it is when its model is started.
DEAD_DISK = """
import threading
from edge_agent import packages
def hang(*_):
    print("It hangs.", flush=True)
    threading.Event().wait()
packages.look_again = hang
"""


@pytest.mark.parametrize("gone", [False, True], ids=["who waits", "who has gone"])
def test_a_call_that_is_stuck_does_not_keep_the_agent(folder, gone):
    packages.segmenter(folder / "models" / "board")
    with closing(Agent(folder / "models", drain_timeout=0.2, scan_interval=3600)) as agent:
        agent.start(**sabotaged(folder, DEAD_DISK))
        forkserver = agent.forkserver()
        call = agent.stub().StartModel.future(pb2.StartModelRequest(model_component="board"), timeout=1 if gone else 60)
        until(lambda: "It hangs." in agent.log(), "the call is stuck")
        if gone:
            with pytest.raises(grpc.RpcError):
                call.result()
        assert agent.stop() == 0
        told = agent.log()
        assert "Calls are stuck, as on a disk that does not answer; the agent ends without them." in told
        assert told.rstrip().endswith("Ended.")
        assert "Traceback" not in told
        assert not agent.socket.exists()
        until(lambda: not alive(forkserver), "the process that starts all workers has ended")


def test_no_call_is_said_to_be_stuck_when_none_is(folder):
    packages.segmenter(folder / "models" / "board")
    with serving(folder / "models") as agent:
        agent.run_model("board")
        assert agent.stop() == 0
        assert "stuck" not in agent.log()
