"""The end of the process: a signal is seen at whatever instant of the wait it comes."""

import subprocess
import sys

import pytest

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
