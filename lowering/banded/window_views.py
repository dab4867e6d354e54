"""A sequence in blocks and windows, and back: views, and one copy of the keys.

Where a backend reads keys through views that share memory, windows are such views, and the copy only has room at both
ends. Elsewhere each window has a copy of its own.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import fx

from ...patterns import build
from ...patterns.bands import Band
from ...patterns.metadata import value_of
from ...patterns.sizes import int_expr
from ..passes.emitting import Emitter, Size, dtype_of_node, shape_of_node, static_size
from .aten_ops import AtenOps
from .choice import COPIED_BLOCK, OVERLAPPING_BLOCK
from .compute import NotComputable
from .window_mask import Windows

_ATEN = torch.ops.aten
_MULTIPLE = 16
"""Windows start this many keys before the block, or a multiple of it: kernels work on vectors."""


@dataclass(frozen=True)
class Cut:
    """How a sequence is cut, with what holds the sizes.

    Attributes:
        windows: the lengths.
        blocks: the number of blocks.
        padding: how many positions the last block has behind the sequence.
        overlapping: windows are views that share memory.
        head: the queries in front of the first block, as one block of their own; None if there are none.
    """

    windows: Windows
    blocks: int | fx.Node
    padding: int | fx.Node
    overlapping: bool = False
    head: Windows | None = None


def block_length(band: Band, length: Size, *, overlapping: bool = False) -> int:
    """Queries per block for a number of queries."""
    if band.chunk:
        return band.chunk
    copied = next((b for b in (64, 128) if band.width <= b), COPIED_BLOCK)
    block, static = OVERLAPPING_BLOCK if overlapping else copied, static_size(length)
    return block if static is None else max(1, min(block, static))


def cut(emitter: Emitter, query: fx.Node, band: Band, *, overlapping: bool = False) -> Cut:
    """Cut the sequence of a query (B, H, S, E) for a band.

    Args:
        emitter: inserts what computes sizes.
        query: the query.
        band: what a query sees.
        overlapping: windows are to be views that share memory.

    A dynamic number of blocks is at least two, whatever the length: tracing would specialise on one. Views that share
    memory start where the first window is whole: the queries before that are a block of their own, and the mask is the
    same in all windows, unless it reads data or the last one sticks out.
    """
    length = shape_of_node(query)[2]
    block = block_length(band, length, overlapping=overlapping)
    before, after = (0, 0) if band.chunk else (_rounded(band.behind), _rounded(band.ahead))
    static = static_size(length)
    start = _start(before, after, block, static) if overlapping else 0
    size = static - start if static is not None else emitter.size(query, 2)
    more = block - 1 if isinstance(size, int) else 2 * block - 1
    blocks = emitter.integer(operator.floordiv, emitter.integer(operator.add, size, more), block)
    padding = emitter.integer(operator.sub, emitter.integer(operator.mul, blocks, block), size)
    count = value_of(blocks) if isinstance(blocks, fx.Node) else blocks
    windows = Windows(block, before, after, int_expr(count), int_expr(length), whole=padding == 0, start=start)
    head = Windows(start, 0, after, build.ONE, int_expr(length), whole=True) if start else None
    return Cut(windows, blocks, padding, overlapping, head)


def _start(before: int, after: int, block: int, length: int | None) -> int:
    """The first block's first query, whose window is whole; 0 where that would leave less than half of the queries."""
    start = -(-before // block) * block
    fits = length is not None and 2 * start <= length and start + after <= length
    return start if fits else 0


def _rounded(distance: int) -> int:
    return -(-distance // _MULTIPLE) * _MULTIPLE


def window_index(emitter: Emitter, query: fx.Node, found: Cut) -> fx.Node:
    """The positions (blocks, keys) of the keys of every window; those outside the sequence are its first or last."""
    ops, windows = AtenOps(emitter), found.windows
    starts = ops(operator.mul, ops.arange(found.blocks), windows.block)
    places = ops(operator.add, ops.method("unsqueeze", starts, 1), ops.arange(windows.keys))
    places = ops(operator.sub, places, windows.before) if windows.before else places
    last = emitter.integer(operator.sub, emitter.size(query, 2), 1)
    found_places: fx.Node = ops(torch.clamp, places, min=0, max=last)
    return found_places


_BLOCKS_AND_HEADS = (1, 0, 2, 3)
"""The order that brings the blocks of a batch of one in front of its heads, and back."""


@dataclass(frozen=True)
class WindowViews:
    """Tensors (B, H, S, E) in blocks, as a batch of blocks.

    Attributes:
        emitter: inserts the nodes.
        cut: how the sequence is cut.
        query: (B, H, S, E), for the batch.
        heads_hold_batch: blocks are (n, B * H, C, E); else (B * n, H, C, E).
    """

    emitter: Emitter
    cut: Cut
    query: fx.Node
    heads_hold_batch: bool

    def blocks(self, tensor: fx.Node) -> fx.Node:
        """The blocks of a tensor; what is behind the sequence is zero."""
        tensor = self.part(tensor, self.cut.windows.start, None)
        batch, heads, _, width = shape_of_node(tensor)
        length = self._times(self.cut.blocks, self.cut.windows.block)
        if self.cut.padding != 0:
            full = value_of(length) if isinstance(length, fx.Node) else length
            pad = _ATEN.constant_pad_nd.default
            shape, dtype = (batch, heads, full, width), dtype_of_node(tensor)
            tensor = self.emitter.call(pad, tensor, [0, 0, 0, self.cut.padding], 0.0, shape=shape, dtype=dtype)
        ops = AtenOps(self.emitter)
        sizes = [self.emitter.size(tensor, 1), self.cut.blocks, self.cut.windows.block, self.emitter.size(tensor, 3)]
        if self._batch == 1:
            return ops.permuted(ops.reshaped(tensor, sizes), _BLOCKS_AND_HEADS)
        return self._folded(ops.reshaped(tensor, [self._batch, *sizes]))

    def windows(self, tensor: fx.Node, index: fx.Node) -> fx.Node:
        """The window of each block, copied by the positions of its keys."""
        batch, heads, _, width = shape_of_node(tensor)
        shape = (batch, heads, *shape_of_node(index), width)
        dtype = dtype_of_node(tensor)
        # with both axes at once: a flat index that is split again costs compilers of dynamic shapes minutes
        taken = self.emitter.call(_ATEN.index.Tensor, tensor, [None, None, index], shape=shape, dtype=dtype)
        return self._folded(taken)

    def overlapping(self, tensor: fx.Node) -> fx.Node:
        """The window of each block as a view: (n, B * H, keys, E), which is (B * n, H, keys, E) for a batch of one."""
        windows, blocks = self.cut.windows, self.cut.blocks
        front = windows.start - windows.before
        tensor = self.part(tensor, max(front, 0), None)
        batch, heads, length, width = shape_of_node(tensor)
        if not isinstance(blocks, int) or not isinstance(length, int) or not isinstance(width, int):
            raise NotComputable("windows are views of a tensor with static sizes only")
        before = max(-front, 0)
        behind = windows.before + blocks * windows.block + windows.after - before - length
        # at least one row more than there are: Inductor takes a mere copy away, and as_strided of a view that starts
        # inside other memory is then wrong in torch 2.11; so it is with other strides than these
        room = [0, 0, before, max(behind, 0 if before else 1)]
        total = before + length + room[-1]
        shape, dtype = (batch, heads, total, width), dtype_of_node(tensor)
        padded = self.emitter.call(_ATEN.constant_pad_nd.default, tensor, room, 0.0, shape=shape, dtype=dtype)
        memory_format = torch.contiguous_format
        copy = self.emitter.call(_ATEN.clone.default, padded, memory_format=memory_format, shape=shape, dtype=dtype)
        rows = self._times(self._batch, self.emitter.size(tensor, 1))
        sizes, strides = [blocks, rows, windows.keys, width], [windows.block * width, total * width, width, 1]
        shape = (blocks, value_of(rows) if isinstance(rows, fx.Node) else rows, windows.keys, width)
        return self.emitter.call(_ATEN.as_strided.default, copy, sizes, strides, shape=shape, dtype=dtype)

    def back(self, output: fx.Node, like: fx.Node) -> fx.Node:
        """The sequence (B, H, S, Ev) of blocks, H being the query's heads.

        Args:
            output: the blocks.
            like: (.., Ev), for the width.
        """
        ops, block = AtenOps(self.emitter), self.cut.windows.block
        batch, heads, width = self._batch, self.emitter.size(self.query, 1), self.emitter.size(like, 3)
        if batch == 1:
            sequence = ops.permuted(output, _BLOCKS_AND_HEADS)
        else:
            apart = [self.cut.blocks, batch] if self.heads_hold_batch else [batch, self.cut.blocks]
            sequence = ops.reshaped(output, [*apart, heads, block, width])
            sequence = ops.permuted(sequence, (1, 2, 0, 3, 4) if self.heads_hold_batch else (0, 2, 1, 3, 4))
        sequence = ops.reshaped(sequence, [batch, heads, self._times(self.cut.blocks, block), width])
        if self.cut.padding == 0:
            return sequence
        length = shape_of_node(self.query)[2]
        static = static_size(length)
        left = length if static is None else static - self.cut.windows.start
        end = self.emitter.size(self.query, 2) if static is None else left
        shape = (*shape_of_node(sequence)[:2], left, shape_of_node(like)[3])
        return self.emitter.call(_ATEN.slice.Tensor, sequence, 2, 0, end, shape=shape, dtype=dtype_of_node(sequence))

    def part(self, tensor: fx.Node, start: int, stop: int | None) -> fx.Node:
        """The positions of a tensor (B, H, S, E) from `start` to `stop`, to its end for None."""
        if start == 0 and stop is None:
            return tensor
        batch, heads, length, width = shape_of_node(tensor)
        if not isinstance(length, int):
            raise NotComputable("a part of a sequence of dynamic length")
        end = length if stop is None else stop
        shape, dtype = (batch, heads, end - start, width), dtype_of_node(tensor)
        return self.emitter.call(_ATEN.slice.Tensor, tensor, 2, start, end, shape=shape, dtype=dtype)

    def joined(self, head: fx.Node, rest: fx.Node) -> fx.Node:
        """The head's result and that of the blocks, one behind the other."""
        batch, heads, _, width = shape_of_node(rest)
        shape = (batch, heads, shape_of_node(self.query)[2], width)
        return self.emitter.call(_ATEN.cat.default, [head, rest], 2, shape=shape, dtype=dtype_of_node(rest))

    @property
    def _batch(self) -> int | fx.Node:
        return self.emitter.size(self.query, 0)

    def _times(self, left: int | fx.Node, right: int | fx.Node) -> int | fx.Node:
        return self.emitter.integer(operator.mul, left, right)

    def _folded(self, tensor: fx.Node) -> fx.Node:
        """(B, H, n, positions, E) as a batch of n times as many."""
        ops, batch, blocks = AtenOps(self.emitter), self._batch, self.cut.blocks
        heads, positions, width = (self.emitter.size(tensor, axis) for axis in (1, 3, 4))
        if self.heads_hold_batch:
            tensor = ops.permuted(tensor, (2, 0, 1, 3, 4))
            return ops.reshaped(tensor, [blocks, self._times(batch, heads), positions, width])
        tensor = ops.permuted(tensor, (0, 2, 1, 3, 4))
        return ops.reshaped(tensor, [self._times(batch, blocks), heads, positions, width])
