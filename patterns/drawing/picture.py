"""A mask as a picture: for each query and key allowed, blocked, or up to data that is not given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...errors import DrawingError
from .. import build
from ..evaluate import EvaluationError
from ..expr import Expr, Op, Sort, cells, sizes, walk
from ..facts import Facts
from .examples import example_inputs
from .extents import choose_sizes, extents_at, indexed_axes
from .grid import Cell, Grid, Marked, make_grid
from .kleene import ThreeValued

if TYPE_CHECKING:
    from ..predicate import Predicate

Witness = Mapping[str, "int | bool"]


@dataclass(frozen=True)
class Picture:
    """A drawn mask.

    Attributes:
        cells: `Cell` values, int8 of shape (rows, columns).
        grid: which queries and keys they are.
        notes: what the data was, where it was made up for an example; empty otherwise.
        is_example: True if the data was made up.
        witness: the cell of a counterexample; None if there is none or it is not in the picture.
    """

    cells: torch.Tensor
    grid: Grid
    notes: tuple[str, ...] = ()
    is_example: bool = False
    witness: Marked | None = None

    @property
    def depends_on_data(self) -> bool:
        """True if a cell is up to data that is not given."""
        return bool((self.cells == Cell.DATA).any())

    def count(self, cell: Cell) -> int:
        """How many cells say this."""
        return int((self.cells == cell).sum())


def make_picture(
    predicate: Predicate,
    given: Mapping[str, int] | None = None,
    tensors: Mapping[str, torch.Tensor] | None = None,
    *,
    batch: int = 0,
    head: int = 0,
    example: bool = False,
    witness: Witness | None = None,
    limit: int = 32,
) -> Picture:
    """Draw a mask.

    Args:
        predicate: the mask's meaning.
        given: sizes by symbol (``s53``) or by axis (``q``, ``k``); sensible ones are chosen for the rest.
        tensors: the inputs it depends on, by label. None leaves open what depends on them.
        batch: the row of the batch.
        head: the head.
        example: make up inputs for what depends on data.
        witness: a counterexample to mark; its batch and head are then drawn.
        limit: most cells along an axis; longer ones are sampled.

    Raises:
        DrawingError: if a tensor is missing or does not fit, or a size is unknown, out of range or at odds with others.
    """
    if limit < 1:
        raise DrawingError(f"limit is {limit}; a picture needs at least one cell")
    predicate, tensors = _with_plain_sizes(predicate), on_cpu(tensors)
    lead = _lead(predicate.facts, batch, head, witness)
    point = {n: int(v) for n, v in (witness or {}).items() if n in predicate.facts.extents}
    _check_tensors(predicate.allowed, tensors)
    chosen = choose_sizes((predicate.allowed,), predicate.facts, given or {}, tensors or {}, {**lead, **point})
    extents = extents_at(predicate.facts, chosen)
    _check_shapes(predicate.allowed, tensors or {}, extents)
    grid = make_grid(extents, lead, limit, point)
    if not example or tensors is not None:
        return Picture(_cells(predicate.allowed, grid, chosen, tensors or {}), grid, witness=grid.mark(point or None))
    found = example_inputs(predicate.allowed, predicate.facts, chosen, extents, lead.get("b", 0))
    if found is None:
        raise DrawingError(f"no example inputs are known for {predicate}; give tensors")
    drawn = _cells(predicate.allowed, grid, chosen, found.tensors)
    return Picture(drawn, grid, found.notes, True, grid.mark(point or None))


def sizes_for_witness(predicate: Predicate, witness: Witness | None) -> dict[str, int]:
    """The sizes at which a counterexample holds; none where the formula speaks of no sizes, so that any will do."""
    if witness is None or not sizes(predicate.allowed):
        return {}
    named = sizes(predicate.allowed, *predicate.facts.extents.values())
    return {n: int(v) for n, v in witness.items() if n in named and int(v) >= 1}


def on_cpu(tensors: Mapping[str, torch.Tensor] | None) -> dict[str, torch.Tensor] | None:
    """The given tensors where pictures are computed.

    Raises:
        DrawingError: if one is no tensor.
    """
    for label, tensor in (tensors or {}).items():
        if not isinstance(tensor, torch.Tensor):
            raise DrawingError(f"'{label}' is a {type(tensor).__name__}, not a tensor")
    return None if tensors is None else {label: t.detach().cpu() for label, t in tensors.items()}


def _with_plain_sizes(predicate: Predicate) -> Predicate:
    """Sizes that are known only when the program runs (`u0`) are drawn like any other size."""
    from ..predicate import Predicate as Made

    roots = (predicate.allowed, *predicate.facts.extents.values())
    unbacked = {
        e: build.size(str(e.payload)) for e in walk(*roots) if e.op is Op.APPLY and e.sort is Sort.INT and not e.args
    }
    if not unbacked:
        return predicate
    extents = {n: build.substitute(e, unbacked) for n, e in predicate.facts.extents.items()}
    facts = Facts(predicate.facts.ranges, extents, predicate.facts.assumed)
    return Made(build.substitute(predicate.allowed, unbacked), predicate.bias, predicate.value, facts)


def _lead(facts: Facts, batch: int, head: int, witness: Witness | None) -> dict[str, int]:
    chosen = {"b": batch, "h": head}
    found = {n: int((witness or {}).get(n, chosen.get(n, 0))) for n in facts.extents if n not in ("q", "k")}
    for name, at in found.items():
        if at < 0:
            raise DrawingError(f"there is no position {at} on axis '{name}'")
    if not {"q", "k"} <= set(facts.extents):
        raise DrawingError(f"a picture needs the axes q and k; this mask has {list(facts.extents)}")
    return found


def _check_tensors(allowed: Expr, tensors: Mapping[str, torch.Tensor] | None) -> None:
    if tensors is None:
        return
    needed = {c.payload.label: c for c in cells(allowed) if c.payload.is_input}
    missing = sorted(set(needed) - set(tensors))
    if missing:
        raise DrawingError(f"the mask depends on {' and '.join(missing)}: no such tensor among {sorted(tensors)}")
    for label, cell in needed.items():
        if tensors[label].dim() != len(cell.args):
            raise DrawingError(f"'{label}' has {tensors[label].dim()} axes; the mask reads it as {cell!r}")


def _check_shapes(allowed: Expr, tensors: Mapping[str, torch.Tensor], extents: Mapping[str, int]) -> None:
    for cell, axis, name in indexed_axes(allowed):
        tensor = tensors.get(cell.payload.label)
        if tensor is not None and name in extents and tensor.shape[axis] < extents[name]:
            raise DrawingError(
                f"axis {axis} of '{cell.payload.label}' has size {tensor.shape[axis]}, but axis '{name}' of the mask, "
                f"which indexes it, has {extents[name]}"
            )


def _cells(allowed: Expr, grid: Grid, chosen: Mapping[str, int], data: Mapping[str, torch.Tensor]) -> torch.Tensor:
    try:
        surely, surely_not = ThreeValued({**chosen, **grid.points()}, data).truth(allowed)
    except (EvaluationError, RuntimeError, IndexError) as error:
        # a division by zero, or an index that the given data leads out of a tensor
        raise DrawingError(f"the formula has no value at these sizes: {error}") from error
    drawn = torch.full(grid.shape, int(Cell.DATA), dtype=torch.int8)
    drawn[surely.expand(grid.shape)] = int(Cell.ALLOWED)
    drawn[surely_not.expand(grid.shape)] = int(Cell.BLOCKED)
    return drawn
