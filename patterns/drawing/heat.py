"""What is added to the scores (`bias`) as a heat map, as far as it follows from positions alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...errors import DrawingError
from ..expr import Expr, Op, cells, coords
from .examples import example_inputs
from .extents import choose_sizes, extents_at
from .grid import Grid, make_grid
from .kleene import ThreeValued
from .picture import on_cpu

if TYPE_CHECKING:
    from ..predicate import Predicate


@dataclass(frozen=True)
class HeatMap:
    """Numbers by query and key.

    Attributes:
        values: float64 of shape (rows, columns); NaN where the mask surely blocks, or the number is not known.
        grid: which queries and keys they are.
        what: what the numbers are, in words.
        notes: what the data was, where it was made up for an example; empty otherwise.
    """

    values: torch.Tensor
    grid: Grid
    what: str
    notes: tuple[str, ...] = ()

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest number."""
        known = self.values[~self.values.isnan()]
        return float(known.min()), float(known.max())


def heat_map(
    predicate: Predicate,
    given: Mapping[str, int] | None = None,
    tensors: Mapping[str, torch.Tensor] | None = None,
    *,
    batch: int = 0,
    head: int = 0,
    example: bool = False,
    limit: int = 32,
) -> HeatMap | None:
    """The bias as a heat map: its value, or for a table that is looked up by position (T5) the index into the table.

    Args:
        predicate: the mask's meaning.
        given: sizes by symbol or by axis.
        tensors: known tensors by label.
        batch: the row of the batch.
        head: the head.
        example: make up the inputs that both the mask and its bias depend on, as for the mask's own picture.
        limit: most cells along an axis; longer ones are sampled.

    Returns:
        None if there is no bias, or nothing of it follows from positions (and from the data that are known).

    Raises:
        DrawingError: for sizes that are unknown, out of range or at odds with others.
    """
    facts = predicate.facts
    if predicate.bias is None or not {"q", "k"} <= set(facts.extents):
        return None
    lead = {n: {"b": batch, "h": head}.get(n, 0) for n in facts.extents if n not in ("q", "k")}
    known, notes = on_cpu(tensors) or {}, tuple[str, ...]()
    chosen = choose_sizes((predicate.bias,), facts, given or {}, known, lead)
    extents = extents_at(facts, chosen)
    grid = make_grid(extents, lead, limit)
    made_up = example_inputs(predicate.allowed, facts, chosen, extents, batch) if example else None
    if made_up is not None:
        known, notes = dict(made_up.tensors), made_up.notes
    logic = ThreeValued({**chosen, **grid.points()}, known)
    try:
        found = _bias(logic, predicate.bias) or _looked_up(logic, predicate.bias)
        blocked = logic.truth(predicate.allowed).surely_not
    except (RuntimeError, IndexError) as error:
        raise DrawingError(f"the bias has no value at these sizes: {error}") from error
    if found is None:
        return None
    values, what = found
    shown = values.double().expand(grid.shape).masked_fill(blocked.expand(grid.shape), float("nan"))
    return None if bool(shown.isnan().all()) else HeatMap(shown, grid, what, notes)


def _bias(logic: ThreeValued, bias: Expr) -> tuple[torch.Tensor, str] | None:
    value, known = logic.number(bias)
    if not known.any():
        return None
    return torch.where(known, value.double(), float("nan")), "added to the scores"


def _looked_up(logic: ThreeValued, bias: Expr) -> tuple[torch.Tensor, str] | None:
    """For a bias that is an element of one table: the index that depends on query and key."""
    tables = [c for c in cells(bias) if coords(c) & {"q", "k"}]
    if len(tables) != 1:
        return None
    table = tables[0]
    varying = [(axis, index) for axis, index in enumerate(table.args) if coords(index) & {"q", "k"}]
    if len(varying) != 1 or varying[0][1].op is Op.COORD:
        return None
    axis, index = varying[0]
    value = logic.exact(index)
    if value is None:
        return None
    return value, f"index into axis {axis} of {table.payload.label}, whose element is added to the scores"
