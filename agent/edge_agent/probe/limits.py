"""The limits of a process, as the kernel tells of them: /proc/PID/limits (proc_pid_limits(5))."""

import re
from dataclasses import dataclass
from pathlib import Path

ROW = re.compile(r"(?P<name>Max [a-z ]+?) {2,}(?P<soft>\d+|unlimited) +(?P<hard>\d+|unlimited)")


@dataclass(frozen=True)
class Limit:
    """A limit, soft and hard; None is none."""

    soft: int | None
    hard: int | None


def look(proc: Path, pid: int | None = None) -> dict[str, Limit]:
    """Return the limits of a process, or ours, by the kernel's names without `Max`; nothing where it does not tell."""
    try:
        text = (proc / (str(pid) if pid else "self") / "limits").read_text(errors="replace")
    except OSError:
        return {}
    found = {}
    for line in text.splitlines():
        if row := ROW.match(line):
            found[row["name"].removeprefix("Max ")] = Limit(_number(row["soft"]), _number(row["hard"]))
    return found


def _number(text: str) -> int | None:
    return None if text == "unlimited" else int(text)
