"""Attention over windows: the queries in blocks, each block with the keys that its queries can see.

    window:  block i of C queries meets keys i*C - behind .. i*C + C - 1 + ahead
    chunk:   chunk i meets chunk i

Law: a key that a query may not attend to has no weight and takes no part in the softmax, so attention is the same over
any set of keys that contains the allowed ones. That set is proved (`patterns/bands.py`). What the mask says inside of
it comes from its formula at the windows' positions (`window_mask.py`): no S x S tensor is read. Blocks are a batch of
their own:

    query (B, H, S, E) -> (B * n, H, C, E)       key (B, H, S, E) -> (B * n, H, behind + C + ahead, E)

Where windows are views that share memory, the queries whose window would start in front of the sequence are a call of
their own, and the others share one mask.

Everything is plain tensor operations, so it has gradients, in graphs from Dynamo and in ATen graphs alike. Where the
length is dynamic there is one block more than needed: with a single block, tracing would specialise on that.

Limits: rank 4, Q == K, no dropout (it would draw other random numbers). Of a row without any
allowed key nothing is known but that it is zeros; where the mask's finite values make it a mean, it is proved that
there is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ...patterns import build
from ...patterns.bands import Band
from ...patterns.calls import TermMode
from ...patterns.calls.canonical import canonical_arguments
from ...patterns.expr import Expr, cells, coords, sizes
from ...patterns.masks.template import Alignment
from ...patterns.metadata import tensor_of
from ...patterns.predicate import Predicate
from ...patterns.sizes import int_expr, shape_of
from ..passes.base import PassContext, Site, site_obstacle, take_name
from ..passes.emitting import Emitter, SizeNodes, dtype_of_node, fake_of_shape, shape_of_node, static_size
from ..passes.erasing import erase_if_dead
from ..passes.fold_repeat_kv import fold_heads
from ..passes.nonempty_rows import no_row_is_empty
from ..passes.sharing import Shared
from ..passes.writes import Writes
from ..target import Target
from .compute import NotComputable
from .operands import operands_obstacle
from .size_symbols import Place, size_places
from .window_mask import WindowMask, Windows, mask_on_windows, write_mask
from .window_views import Cut, WindowViews, cut, window_index

_ATEN = torch.ops.aten
_ATTENTION = torch.ops.attnlower.attention.default


class LocalCalls:
    """Rewrites the calls of one graph; equal masks are written once.

    Args:
        context: what the pass works on, as it is when the pass starts.
    """

    def __init__(self, context: PassContext) -> None:
        self._context = context
        self._graph = context.gm.graph
        self._writes = Writes(self._graph)
        self._shared: Shared[Any] = Shared(self._graph)
        self._sizes = SizeNodes(self._graph)
        self._inputs = {
            old.name: new
            for old, new in context.nodes.items()
            if old.op in ("placeholder", "get_attr") and tensor_of(old) is not None
        }
        self._first = next(iter(self._graph.nodes))

    def obstacle(self, site: Site, band: Band) -> str:
        """Why a call cannot be attention over windows; empty if it can."""
        found = site.analysis.classification
        if found is None or not site.canonical:
            return "the call is not canonical"
        return site_obstacle(site) or self._call_obstacle(site, band) or self._mask_obstacle(site, band)

    def _call_obstacle(self, site: Site, band: Band) -> str:
        args = canonical_arguments(site.node)
        query, key, value = (tensor_of(args[name]) for name in ("query", "key", "value"))
        if query is None or key is None or value is None:
            return "an operand records no tensor"
        obstacle = operands_obstacle(query, key, value, grouped=bool(args.get("enable_gqa")))
        if obstacle:
            return obstacle
        length = shape_of(query)[2]
        if length is not shape_of(key)[2] or length is not shape_of(value)[2]:
            return "the numbers of queries and keys are not the same size"
        if isinstance(args.get("dropout_p"), fx.Node) or args.get("dropout_p"):
            return "dropout would draw other random numbers"
        if args.get("alignment", Alignment.NONE.value) != Alignment.NONE.value or args.get("key_lengths") is not None:
            return "something else acts on the scores besides the mask"
        if band.chunk and length.is_const and length.value <= band.chunk:
            return "there is no more than one chunk"
        return ""

    def _mask_obstacle(self, site: Site, band: Band) -> str:
        call, predicate = site.analysis.call, _predicate(site)
        nan_rows = canonical_arguments(site.node).get("empty_rows", "zeros") == "nan"
        if not predicate.zeroes_empty_rows and not no_row_is_empty(predicate, self._context.prover):
            return "a query may have no key at all, which the mask's finite values treat otherwise"
        if call.empty_rows_are_nan and not nan_rows and not no_row_is_empty(predicate, self._context.prover):
            return "a query without any key would give zeros, not NaN"
        if predicate.bias is not None and (len(call.terms) != 1 or call.terms[0].mode is not TermMode.ATTN_MASK):
            return "a bias of several parts"
        missing = [c.payload.label for c in _cells(predicate) if not self._is_known(site, c)]
        if missing:
            return f"'{missing[0]}' is not an input, and was not read"
        if self._writes.may_change(list(self._tensors(predicate).values()), self._first, site.node):
            return "an input that the mask is read from is written to before this call"
        trial = self._shared.get(("trial", *self._key(site, band)), [], site.node, lambda: self._trial(site, band))
        return str(trial)

    def _trial(self, site: Site, band: Band) -> str:
        """Write the mask once, for nothing, in a graph of its own: what is in the way, or nothing."""
        graph, predicate = fx.Graph(), _predicate(site)
        copies: dict[fx.Node, fx.Node] = {}

        def copy(node: fx.Node) -> fx.Node:
            if node not in copies:
                copies[node] = graph.placeholder(node.name)
                copies[node].meta = dict(node.meta)
            return copies[node]

        query = copy(canonical_arguments(site.node)["query"])
        tensors = {name: copy(node) for name, node in self._tensors(predicate).items()}
        holders = {name: (copy(node), axis) for name, (node, axis) in self._holders(site).items()}
        emitter = Emitter(SizeNodes(graph), graph.output(()), query)
        try:
            self._write(site, band, emitter, query, tensors, holders)
        except NotComputable as problem:
            return str(problem)
        return ""

    def rewrite(self, site: Site, band: Band) -> str:
        """Put attention over windows in the place of a call without an obstacle; says what was done.

        Raises:
            NotComputable: if there is an obstacle in the mask's formula.
        """
        folded = fold_heads(self._context, site, self._writes)
        old, args = site.node, canonical_arguments(site.node)
        emitter, query = Emitter(self._sizes, old, old), args["query"]
        tensors = self._tensors(_predicate(site))
        written = self._shared.get(
            self._key(site, band),
            list(tensors.values()),
            old,
            lambda: self._write(site, band, emitter, query, tensors, self._holders(site)),
        )
        views = WindowViews(emitter, written.cut, query, written.heads_hold_batch)
        windows = written.cut.windows
        operands = [views.blocks(query)]
        if windows.keys == windows.block:
            operands += [views.blocks(args[name]) for name in ("key", "value")]
        elif written.cut.overlapping:
            operands += [views.overlapping(args[name]) for name in ("key", "value")]
        else:
            key = ("index", windows, emitter.device)
            index = self._shared.get(key, [], old, lambda: window_index(emitter, query, written.cut))
            operands += [views.windows(args[name], index) for name in ("key", "value")]
        new = _call(old, operands, {**args, **written.blocks.arguments})
        result = views.back(new, args["value"])
        if written.head is not None:
            parts = [views.part(query, 0, windows.start)]
            parts += [views.part(args[name], 0, windows.start + windows.after) for name in ("key", "value")]
            result = views.joined(_call(old, parts, {**args, **written.head.arguments}), result)
        old.replace_all_uses_with(result)
        self._context.nodes[site.analysis.call.node] = result
        site.node = new
        erase_if_dead(self._graph, old)
        take_name(old, result)
        groups = f", {folded}" if isinstance(folded, str) else ""
        return f"blocks of {windows.block} queries with {windows.keys} keys each{written.words}{groups}"

    # --- parts ------------------------------------------------------------------------------------------------

    def _write(
        self,
        site: Site,
        band: Band,
        emitter: Emitter,
        query: fx.Node,
        tensors: Mapping[str, fx.Node],
        holders: Mapping[str, Place],
    ) -> _Written:
        found = cut(emitter, query, band, overlapping=may_overlap(self._context.target, site, band))
        mask = mask_on_windows(_predicate(site), band, found.windows)
        values: dict[str, Any] = {
            n: node if axis is None else emitter.size(node, axis) for n, (node, axis) in holders.items()
        }

        def write(mask: WindowMask, windows: Windows, count: Any, *, together: bool) -> _Masks:
            takes_causal = Alignment.UPPER_LEFT in self._context.target.alignments
            if mask.is_causal and windows.keys == windows.block and takes_causal:
                return _Masks(None, None, Alignment.UPPER_LEFT)
            counted = {**values, "i": count}
            allowed, bias = write_mask(mask, windows, emitter, query, counted, tensors, heads_hold_batch=together)
            if bias is not None and dtype_of_node(bias) is not _mask_dtype(site):
                shape = shape_of_node(bias)
                bias = emitter.call(_ATEN._to_copy.default, bias, shape=shape, dtype=_mask_dtype(site))
            return _Masks(allowed, bias, Alignment.NONE)

        together = not _one_row(query) if found.overlapping else self._heads_hold_batch(mask, query)
        head = None
        if found.head is not None:
            head = write(mask_on_windows(_predicate(site), band, found.head), found.head, 1, together=False)
        return _Written(found, write(mask, found.windows, found.blocks, together=together), together, head)

    def _heads_hold_batch(self, mask: WindowMask, query: fx.Node) -> bool:
        """True if the blocks are the batch, so that a mask that differs from block to block serves the whole batch.

        Backends that take canonical calls as they are want a static number of heads.
        """
        return (
            "i" in mask.depends
            and not mask.depends & {"b", "h"}
            and not _one_row(query)
            and self._context.target.emit is not None
        )

    def _key(self, site: Site, band: Band) -> tuple[Any, ...]:
        """What two calls must have in common to use one window mask."""
        predicate, query = _predicate(site), tensor_of(canonical_arguments(site.node)["query"])
        extents = tuple(predicate.facts.extents.items())
        shape = shape_of(query)[:3] if query is not None else ()
        device = query.device if query is not None else None
        overlapping = may_overlap(self._context.target, site, band)
        return predicate.allowed, predicate.bias, extents, shape, band, _mask_dtype(site), device, overlapping

    def _tensors(self, predicate: Predicate) -> dict[str, fx.Node]:
        """The inputs that a formula reads, by the names of its cells."""
        names = {c.payload.node for c in _cells(predicate)}
        return {name: self._inputs[name] for name in names if name in self._inputs}

    def _holders(self, site: Site) -> dict[str, Place]:
        """Where each size symbol of a formula is found."""
        predicate = _predicate(site)
        wanted = sizes(*_formulas(predicate), predicate.facts.extents["q"])
        return size_places(wanted, (canonical_arguments(site.node)["query"], *self._inputs.values()))

    def _is_known(self, site: Site, cell: Expr) -> bool:
        """True if a cell is an element of an input, and not of a value computed in the graph."""
        name = cell.payload.node
        return name in self._inputs and (cell.payload.is_input or name in site.analysis.by_value)


@dataclass(frozen=True)
class _Masks:
    """What masks one call."""

    mask: fx.Node | None
    bias: fx.Node | None
    alignment: Alignment

    @property
    def arguments(self) -> dict[str, Any]:
        """As arguments of a canonical call."""
        return {"mask": self.mask, "bias": self.bias, "alignment": self.alignment.value}


@dataclass(frozen=True)
class _Written:
    """What serves all calls with one mask."""

    cut: Cut
    blocks: _Masks
    heads_hold_batch: bool
    head: _Masks | None = None

    @property
    def words(self) -> str:
        if self.blocks.alignment is not Alignment.NONE:
            return ", causal"
        return ", no mask" if self.blocks.mask is None and self.blocks.bias is None else ""


def _call(old: fx.Node, operands: list[fx.Node], args: dict[str, Any]) -> fx.Node:
    """A canonical call like another, with other operands."""
    kwargs = {name: value for name, value in args.items() if name not in ("query", "key", "value")}
    with old.graph.inserting_before(old):
        new = old.graph.call_function(_ATTENTION, tuple(operands), kwargs)
    new.meta = dict(old.meta)
    key = "example_value" if "example_value" in old.meta else "val"
    recorded = old.meta[key]
    shape = (*shape_of_node(operands[0])[:3], recorded.shape[-1])
    new.meta[key] = fake_of_shape(recorded, shape, recorded.dtype)
    new.meta.pop("tensor_meta", None)
    return new


def may_overlap(target: Target, site: Site, band: Band) -> bool:
    """True if the windows of keys that a call meets may be views that share memory.

    Such views are (n, B * H, keys, E): a mask that differs from row to row, or by head, has no place there.

    Args:
        target: the backend to be served.
        site: the call.
        band: what a query sees.
    """
    call = site.analysis.call
    if coords(*_formulas(_predicate(site))) & {"b", "h"} and not _one_row(call.query):
        return False
    operands = [tensor_of(n) for n in (call.query, call.key, call.value)]
    return (
        target.overlapping_keys
        and not band.chunk
        and all(
            t is not None
            and t.device.type == "cpu"
            and not t.requires_grad  # the gradient of such views is summed element by element
            and all(static_size(n) is not None for n in t.shape[1:])
            for t in operands
        )
    )


def _one_row(query: fx.Node) -> bool:
    """True for a batch of one."""
    return int_expr(shape_of_node(query)[0]) is build.ONE


def _predicate(site: Site) -> Predicate:
    found = site.analysis.classification
    if found is None:
        raise NotComputable("the mask was not read")
    return found.predicate


def _formulas(predicate: Predicate) -> list[Expr]:
    return [predicate.allowed, *([] if predicate.bias is None else [predicate.bias])]


def _cells(predicate: Predicate) -> list[Expr]:
    return cells(*_formulas(predicate))


def _mask_dtype(site: Site) -> torch.dtype:
    terms = site.analysis.call.terms
    return dtype_of_node(terms[0].node if terms else site.analysis.call.query)
