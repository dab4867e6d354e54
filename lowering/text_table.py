"""A table in plain text, which needs nothing but Python: the core prints its reports wherever it is installed."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

_GAP = 2
"""Spaces between columns."""


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """The lines of a table of at most `width` characters, as far as every column keeps one.

    Columns are as wide as their longest cell. Where that is too wide, the widest ones give way, and their cells go on
    in further lines, between words where they can.
    """
    cells = [list(headings), *(list(row) for row in rows)]
    natural = [max(len(line) for row in cells for line in (row[i].splitlines() or [""])) for i in range(len(headings))]
    widths = _fitted(natural, width - _GAP * (len(headings) - 1))
    lines: list[str] = []
    for row in cells:
        columns = [_wrapped(cell, room) for cell, room in zip(row, widths, strict=True)]
        for i in range(max(map(len, columns))):
            parts = [(c[i] if i < len(c) else "").ljust(room) for c, room in zip(columns, widths, strict=True)]
            lines.append((" " * _GAP).join(parts).rstrip())
    return lines


def _fitted(widths: Sequence[int], room: int) -> list[int]:
    """Column widths whose sum is at most `room`: the widest are cut to the next widest, and again, until it fits."""
    found = list(widths)
    while (excess := sum(found) - room) > 0 and max(found) > 1:
        widest = max(found)
        these = [i for i, w in enumerate(found) if w == widest]
        floor = max((w for w in found if w < widest), default=1)
        share = min(widest - max(floor, 1), -(-excess // len(these)))
        for i in these:
            found[i] -= share
    return [max(w, 1) for w in found]


def _wrapped(cell: str, width: int) -> list[str]:
    lines: list[str] = []
    for line in cell.splitlines():
        lines += textwrap.wrap(line, width, break_on_hyphens=False, drop_whitespace=True) or [""]
    return lines or [""]
