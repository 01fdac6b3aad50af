"""Loaded once into the forkserver, so that every worker is forked with its libraries in place."""

import signal

# Greengrass signals children before their parent: a forkserver that obeyed would take all workers along while calls
# are still being answered. Workers inherit this and end when the agent ends.
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)

# Without a runtime this imports all the same; a model that is started then says what to install.
import edge_agent.backends.onnxruntime  # noqa: E402
import edge_agent.worker  # noqa: E402, F401
