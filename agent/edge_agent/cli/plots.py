"""Plots for terminals."""

import codecs
import sys
from collections.abc import Sequence

import click

# From one eighth of a character's width to all of it.
EIGHTHS = "▏▎▍▌▋▊▉█"
PLAIN = "#"


def bars(rows: Sequence[tuple[str, float]], width: int = 40, unit: str = "ms") -> str:
    """Return a horizontal bar for each (label, value >= 0), the longest `width` characters, with its value in `unit`.

    Labels may be styled with `click.style`, which takes no room. Bars are of eighths of a character where stdout can
    show them, else of `#`. Raises ValueError for a value that has no length: negative, infinite or not a number.
    """
    if not rows:
        return ""
    for label, value in rows:
        if not 0 <= value < float("inf"):
            raise ValueError(f"the bar of {label!r} cannot be {value} {unit} long; give a finite number from 0 on")
    most = max(value for _, value in rows)
    labels = max(len(click.unstyle(label)) for label, _ in rows)
    values = [f"{value:.{_decimals(most)}f}" for _, value in rows]
    numbers = max(map(len, values))
    draw = _in_eighths if _shows_eighths() else _plainly
    lines = []
    for (label, value), number in zip(rows, values, strict=True):
        bar = draw(value / most * width) if value else ""
        padding = " " * (labels - len(click.unstyle(label)))
        lines.append(f"{label}{padding}  {bar:<{width}}  {number:>{numbers}} {unit}".rstrip())
    return "\n".join(lines)


def _decimals(most: float) -> int:
    """Return how many decimals all values get: about three digits of the largest."""
    return 2 if most < 10 else 1 if most < 100 else 0


def _in_eighths(length: float) -> str:
    """Return a bar of so many characters; what is there at all is seen."""
    whole, eighths = divmod(max(1, round(8 * length)), 8)
    return EIGHTHS[-1] * whole + (EIGHTHS[eighths - 1] if eighths else "")


def _plainly(length: float) -> str:
    return PLAIN * max(1, round(length))


def _shows_eighths() -> bool:
    try:
        return codecs.lookup(sys.stdout.encoding or "").name.startswith("utf")
    except (LookupError, AttributeError):  # none, or closed by the caller
        return False
