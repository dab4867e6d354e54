"""The points of a picture: which queries and keys it shows."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch


class Cell(enum.IntEnum):
    """What a picture says of one query and one key."""

    BLOCKED = 0
    ALLOWED = 1
    DATA = 2
    """Depends on data that is not given."""


class Marked(NamedTuple):
    """A cell of a picture, counted from its upper left corner."""

    row: int
    column: int


@dataclass(frozen=True)
class Grid:
    """The points of a picture.

    Attributes:
        lead: the other coordinates (batch, head), by name.
        queries: the position of each row.
        keys: the position of each column.
        stride: distance between shown positions; 1 if all are shown.
        extents: the size of every axis, by coordinate.
    """

    lead: Mapping[str, int]
    queries: tuple[int, ...]
    keys: tuple[int, ...]
    stride: int
    extents: Mapping[str, int]

    def points(self) -> dict[str, torch.Tensor | int]:
        """The coordinates as index tensors: queries of shape (rows, 1), keys of shape (1, columns)."""
        queries, keys = torch.tensor(self.queries).view(-1, 1), torch.tensor(self.keys).view(1, -1)
        return {**{n: torch.tensor(v) for n, v in self.lead.items()}, "q": queries, "k": keys}

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.queries), len(self.keys)

    @property
    def caption(self) -> str:
        """What is shown, in words."""
        extents, lead = self.extents, self.lead
        names = {"b": "batch", "h": "head"}
        where = [f"{names.get(n, n)} {at} of {extents[n]}" for n, at in lead.items() if extents[n] > 1]
        size = f"{extents['q']} {_plural('query', extents['q'])} by {extents['k']} {_plural('key', extents['k'])}"
        words = [size, *where]
        if self.stride > 1:
            words.append(f"every {_ordinal(self.stride)} position")
        return ", ".join(words)

    def mark(self, point: Mapping[str, int] | None) -> Marked | None:
        """The cell of a query and a key; None if the picture does not show it."""
        if point is None or any(n in point and point[n] != at for n, at in self.lead.items()):
            return None
        query, key = point.get("q"), point.get("k")
        if query not in self.queries or key not in self.keys:
            return None
        return Marked(self.queries.index(query), self.keys.index(key))


def make_grid(
    extents: Mapping[str, int], lead: Mapping[str, int], limit: int, point: Mapping[str, int] | None = None
) -> Grid:
    """Rows and columns for a picture of at most `limit` cells a side.

    Long axes are sampled, both with one stride, so that a diagonal stays a diagonal. A point of interest takes the
    place of the sample nearest before it.
    """
    stride = max(1, -(-max(extents["q"], extents["k"]) // limit))
    sides = []
    for name in ("q", "k"):
        positions = list(range(0, extents[name], stride))
        at = None if point is None else point.get(name)
        if at is not None and 0 <= at < extents[name]:
            positions[at // stride] = at
        sides.append(tuple(positions))
    return Grid(dict(lead), sides[0], sides[1], stride, dict(extents))


def _plural(word: str, count: int) -> str:
    return word if count == 1 else "queries" if word == "query" else f"{word}s"


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
