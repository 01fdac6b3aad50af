"""The command `edge-agent`."""

import sys


def main() -> int:
    """Run the command line; return its exit code."""
    # Imported here and not above: workers import this module as their main module and need none of it.
    from edge_agent.cli import boundary, command

    return boundary.run(command)


if __name__ == "__main__":
    sys.exit(main())
