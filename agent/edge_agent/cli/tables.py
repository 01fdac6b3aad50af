"""Tables for terminals."""

from collections.abc import Iterable, Sequence

import click


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Return rows in aligned columns under their heads; columns in `right` are aligned to the right.

    Cells may be styled with `click.style`, which takes no room.
    """
    every = [tuple(heads), *map(tuple, rows)]
    widths = [max(len(click.unstyle(row[column])) for row in every) for column in range(len(heads))]
    lines = []
    for number, row in enumerate(every):
        cells = []
        for column, cell in enumerate(row):
            padding = " " * (widths[column] - len(click.unstyle(cell)))
            shown = click.style(cell, bold=True) if number == 0 else cell
            cells.append(padding + shown if column in right else shown + padding)
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
