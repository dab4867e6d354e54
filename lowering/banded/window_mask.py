"""The mask of attention over windows: a mask's formula at the positions that each block of queries and its keys have.

Block i holds the queries start + i * block + r, and its window the keys start + i * block - before + j. At these
positions a distance k - q is j - before - r, the same in every block, so most of a band's formula becomes one small
constant mask. Only what reads data, and the ends of the sequence, differ from block to block.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ...patterns import build
from ...patterns.bands import Band
from ...patterns.expr import CellRef, Expr, Op, coords, walk
from ...patterns.facts import Facts
from ...patterns.masks.template import K, Q
from ...patterns.predicate import Predicate, tidy
from ..passes.emitting import Emitter, Size, shape_of_node, static_size
from ..passes.mask_tensors import bias_where
from .aten_ops import AtenOps
from .compute import NotComputable, Scope, compute
from .hoisting import AXES, LONG_AXES, Part, tensor_of_part

_BLOCK, _ROW, _COLUMN = build.coord("i"), build.coord("r"), build.coord("j")


@dataclass(frozen=True)
class Windows:
    """How a sequence is cut.

    Attributes:
        block: queries per block.
        before: keys in a window before the block's first position. after: keys behind its last.
        blocks: the number of blocks.
        length: the number of queries, which is that of the keys.
        whole: the blocks are known to end where the sequence does.
        start: the position of the first block's first query.
    """

    block: int
    before: int
    after: int
    blocks: Expr
    length: Expr
    whole: bool
    start: int = 0

    @property
    def keys(self) -> int:
        """Keys per window."""
        return self.before + self.block + self.after


@dataclass(frozen=True)
class WindowMask:
    """What windows mask, as formulas over (b, h, i, r, j): batch, head, block, query in it, key in its window.

    Attributes:
        allowed: True where the query may attend to the key.
        bias: what is added there; None for nothing.
        sums: running sums in them, by the cell that stands for each.
        facts: the ranges of the coordinates.
    """

    allowed: Expr
    bias: Expr | None
    sums: Mapping[str, Part]
    facts: Facts

    @property
    def depends(self) -> frozenset[str]:
        """The coordinates on which it depends."""
        return frozenset(coords(self.allowed, *([] if self.bias is None else [self.bias])))

    @property
    def is_causal(self) -> bool:
        """True if it is k <= q in each block, and no more."""
        return self.bias is None and self.allowed is build.le(_COLUMN, _ROW)


def mask_on_windows(predicate: Predicate, band: Band, windows: Windows) -> WindowMask:
    """What is left of a mask in a band.

    Law: for the positions of the sequence it allows what the mask does. Queries behind the sequence's end see some key,
    so that neither they nor their gradients are NaN; keys outside of it are seen by them alone.
    """
    first = build.add(build.scaled(_BLOCK, windows.block), build.const_int(windows.start))
    query = build.add(first, _ROW)
    key = build.add(first, _COLUMN, build.const_int(-windows.before))
    facts = Facts(
        predicate.facts.ranges,
        {
            **{name: predicate.facts.extents[name] for name in ("b", "h")},
            "i": windows.blocks,
            "r": build.const_int(windows.block),
            "j": build.const_int(windows.keys),
        },
    )
    formula = _formula(band) if band.exact else predicate.allowed
    formula, sums = _without_sums(formula)
    bias, more = _without_sums(predicate.bias) if predicate.bias is not None else (None, {})
    replaced = {Q: query, K: key}
    inside = [build.le(build.ZERO, key)]
    if not (band.exact and band.causal):  # a query of the sequence sees no later key, so none behind the end
        inside.append(build.lt(key, windows.length))
    allowed = tidy(build.and_(build.substitute(formula, replaced), *inside), facts)
    if not windows.whole and not (band.exact and band.causal):
        allowed = tidy(build.or_(allowed, build.le(windows.length, query)), facts)
    local_bias = None if bias is None else build.substitute(bias, replaced)
    return WindowMask(allowed, local_bias, {**sums, **more}, facts)


def _formula(band: Band) -> Expr:
    """What a band allows; that a key is in the query's chunk follows from where the windows lie."""
    causal = [build.le(K, Q)] if band.causal else []
    if band.chunk:
        return build.and_(*causal)
    distance = build.sub(K, Q)
    return build.and_(
        build.le(distance, build.const_int(band.ahead)), build.le(build.const_int(-band.behind), distance)
    )


def _without_sums(formula: Expr) -> tuple[Expr, dict[str, Part]]:
    """A formula in which running sums are cells of a tensor of their own, and these by the cells' names."""
    found: dict[str, Part] = {}
    replaced: dict[Expr, Expr] = {}
    for part in walk(formula):
        if part.op is not Op.SUM:
            continue
        own = coords(part)
        if not own <= set(AXES) or len(own & LONG_AXES) != 1:
            raise NotComputable("a sum depends on query and key together")
        name = f"~sum {part.serial}"
        axes = tuple(a for a in AXES if a in own)
        found[name] = Part(part, axes)
        replaced[part] = build.cell(CellRef(name, name, torch.int64, True), [build.coord(a) for a in axes])
    return build.substitute(formula, replaced), found


def write_mask(
    mask: WindowMask,
    windows: Windows,
    emitter: Emitter,
    query: fx.Node,
    values: Mapping[str, Any],
    tensors: Mapping[str, fx.Node],
    *,
    heads_hold_batch: bool,
) -> tuple[fx.Node | None, fx.Node | None]:
    """Write a window mask into the graph: (mask, None), or (None, bias); (None, None) if all is allowed.

    Args:
        mask: the mask.
        windows: how the sequence is cut.
        emitter: inserts the nodes.
        query: (B, H, S, E), for the sizes.
        values: what size symbols and "i", the number of blocks, stand for.
        tensors: the tensors that the formula reads, by the names of its cells.
        heads_hold_batch: the windows' batch is that of blocks, and batch and heads are one axis; else batch and blocks.

    Returns:
        Tensors of rank 4 that broadcast to (B * blocks, H, block, keys), or to (blocks, B * H, block, keys).

    Raises:
        NotComputable: if the formula has something without a counterpart in ATen.
    """
    ops = AtenOps(emitter)
    batch, heads, length = (emitter.size(query, axis) for axis in (0, 1, 2))
    extents = {"b": batch, "h": heads, "q": length, "k": length}
    outer = Scope(ops, {n: v for n, v in values.items() if n != "i"}, extents, tensors)
    known = {**tensors, **{name: tensor_of_part(part, outer) for name, part in mask.sums.items()}}
    axes = {"b": (batch, 4), "i": (values["i"], 3), "h": (heads, 2), "r": (windows.block, 1), "j": (windows.keys, 0)}
    grids = {name: _grid(ops, *axes[name]) for name in axes if name in mask.depends}
    scope = Scope(ops, {**outer.values, **grids}, extents, known)
    shaped = _Shaped(ops, batch, values["i"], heads, heads_hold_batch)
    if mask.bias is None:
        if mask.allowed is build.TRUE:
            return None, None
        return shaped(_tensor(compute(mask.allowed, scope), emitter, torch.bool)), None
    bias = _tensor(compute(mask.bias, scope), emitter, torch.float32)
    if mask.allowed is not build.TRUE:
        bias = bias_where(emitter, _tensor(compute(mask.allowed, scope), emitter, torch.bool), bias)
    return None, shaped(bias)


def _tensor(value: Any, emitter: Emitter, dtype: torch.dtype) -> fx.Node:
    return value if isinstance(value, fx.Node) else emitter.scalar(value, dtype)


def _grid(ops: AtenOps, size: Any, behind: int) -> Any:
    """The positions along an axis with some axes behind it; 0 for an axis of size 1."""
    if isinstance(size, int) and size == 1:
        return 0
    grid = ops.arange(size)
    for _ in range(behind):
        grid = ops.method("unsqueeze", grid, -1)
    return grid


@dataclass(frozen=True)
class _Shaped:
    """Brings a mask over (b, i, h, r, j) to rank 4."""

    ops: AtenOps
    batch: int | fx.Node
    blocks: int | fx.Node
    heads: int | fx.Node
    heads_hold_batch: bool

    def __call__(self, mask: fx.Node) -> fx.Node:
        shape: tuple[Size, ...] = shape_of_node(mask)
        shape = (*(1,) * (5 - len(shape)), *shape)
        rest = [self.heads if static_size(shape[2]) != 1 else 1, *(static_size(s) or 1 for s in shape[3:])]
        differs = [static_size(s) != 1 for s in shape[:2]]
        if self.heads_hold_batch:
            lead: Any = self.blocks if differs[1] else 1
            return self.ops.reshaped(mask, [lead, *rest])
        if not any(differs):
            return self.ops.reshaped(mask, [1, *rest])
        if not (isinstance(self.batch, int) and self.batch == 1):
            mask = self.ops.expanded(mask, [self.batch, self.blocks, *rest])
        return self.ops.reshaped(mask, [self.ops(operator.mul, self.batch, self.blocks), *rest])
