"""Python programs of a few lines, which tests run in processes of their own."""

import os
import subprocess
import sys
import textwrap


def run(begin: str, script: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a script that begins with some lines; `env` comes on top of our environment. Fail where it takes a minute."""
    return subprocess.run(
        [sys.executable, "-c", begin + textwrap.dedent(script)],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
