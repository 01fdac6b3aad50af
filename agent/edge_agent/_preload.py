"""Loaded once into the forkserver, so that every worker is forked with its libraries in place."""

import contextlib
import signal

# Greengrass signals children before their parent: a forkserver that obeyed would take all workers along while calls
# are still being answered. Workers inherit this and end when the agent ends.
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)

with contextlib.suppress(
    ImportError
):  # without a runtime the agent starts all the same and says so when a model is started
    import onnxruntime  # noqa: F401

import edge_agent.worker  # noqa: E402, F401
