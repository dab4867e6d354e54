"""A picture as text: two characters a cell, so that it comes out about square."""

from __future__ import annotations

from .grid import Cell
from .picture import Picture

SIGNS = {Cell.ALLOWED: "██", Cell.BLOCKED: "· ", Cell.DATA: "▒▒"}
WITNESS = "><"
_WORDS = {Cell.ALLOWED: "allowed", Cell.BLOCKED: "blocked", Cell.DATA: "depends on data"}
_TICKS = 4
"""Every so many columns one is numbered."""


def picture_text(picture: Picture, title: str = "", witness: str = "") -> str:
    """The picture with axes (queries down, keys across), a caption and a legend; no line ends in a space.

    Args:
        picture: what to show.
        title: written above; the formula, say.
        witness: what the marked cell is, in words.
    """
    grid = picture.grid
    width = max(len(str(grid.queries[-1])), len("q"))
    lines = [title] if title else []
    lines.append(grid.caption)
    lines += [f"example: {note}" for note in picture.notes]
    lines.append(f"{'q':>{width}}\\k {_column_numbers(grid.keys)}")
    for row, query in enumerate(grid.queries):
        signs = (
            WITNESS if picture.witness == (row, column) else SIGNS[Cell(int(cell))]
            for column, cell in enumerate(picture.cells[row])
        )
        lines.append(f"{query:>{width}}   {''.join(signs)}")
    lines.append(_legend(picture, witness))
    return "\n".join(line.rstrip() for line in lines)


def _column_numbers(keys: tuple[int, ...]) -> str:
    text = ""
    for column in range(0, len(keys), _TICKS):
        text = text.ljust(2 * column)
        if len(text) == 2 * column:  # a long number before may still be in the way
            text += f"{keys[column]} "
    return text


def _legend(picture: Picture, witness: str) -> str:
    shown = [c for c in (Cell.ALLOWED, Cell.BLOCKED, Cell.DATA) if picture.count(c)]
    words = [f"{SIGNS[c].strip()} {_WORDS[c]}" for c in shown]
    if picture.witness is not None:
        words.append(f"{WITNESS} {witness or 'the counterexample'}")
    return "   ".join(words)
