"""The command `edge-agent`."""

import os
import sys


def main() -> int:
    """Run the command line; return its exit code."""
    # Numpy's linear algebra, whose speed nothing here needs, starts a thread for each core with each process: a third of the
    # processor time that a command takes, and a quarter of what an agent takes to start.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Imported here and not above: workers import this module as their main module and need none of it.
    from edge_agent.cli import boundary, command

    return boundary.run(command)


if __name__ == "__main__":
    sys.exit(main())
