"""Write an attention call as flex_attention, with the mask's own formula as its `mask_mod`.

The call is the higher-order op that torch.compile makes of `torch.nn.attention.flex_attention.flex_attention`, so all
that follows (AOTAutograd, Inductor's kernels) is PyTorch's own. Its block mask is computed in the graph, once for all
calls with the same mask, from sizes and inputs: it is right for every size and every padding.

Law: scores where the formula is false become -inf before the softmax, and blocks without any allowed pair are skipped;
a query without any key gives zeros. That is attention under a boolean mask.

Facts about torch 2.13, from its sources: on CPUs flex_attention has no backward, needs AVX2 and takes float32, float16
and bfloat16.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from ...patterns.calls.canonical import canonical_arguments
from ...patterns.expr import Expr, Op, cells, sizes, walk
from ...patterns.metadata import tensor_of, value_of
from ...patterns.predicate import Predicate
from ...patterns.sizes import int_expr
from ..passes.base import PassContext, Site
from ..passes.emitting import static_size
from ..passes.nonempty_rows import no_row_is_empty
from ..passes.writes import Writes
from .block_mask import BLOCK, block_lists, blocks_of
from .compute import NotComputable, Scope, compute
from .hoisting import Part, element, parts_of, tensor_of_part
from .operands import operands_obstacle
from .ops import EagerOps, GraphOps
from .size_symbols import Place, size_places

_FEW_BLOCKS = 64
"""Blocks that are written into the graph as numbers, where nothing but positions decides about them."""

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _inputs(context: PassContext, allowed: Expr) -> dict[str, fx.Node]:
    """The graph's inputs among the tensors that a formula reads, by their names before any pass ran."""
    wanted = {c.payload.node for c in cells(allowed)}
    return {old.name: new for old, new in context.nodes.items() if old.op == "placeholder" and old.name in wanted}


def _size_places(context: PassContext, predicate: Predicate, site: Site) -> dict[str, Place]:
    """Where each size symbol of the formula is found: inputs, or the call's own query and key."""
    args = canonical_arguments(site.node)
    inputs = [new for old, new in context.nodes.items() if old.op == "placeholder"]
    return size_places(sizes(predicate.allowed), [*inputs, args["query"], args["key"]])


def _mask_key(predicate: Predicate, device: torch.device) -> tuple[Any, ...]:
    """What two calls must have in common to use one block mask."""
    return predicate.allowed, tuple(predicate.facts.extents.items()), device


def _mask_mod(allowed: Expr, parts: tuple[Part, ...], symbols: Collection[str]) -> tuple[fx.GraphModule, list[str]]:
    """The graph of `mask_mod(b, h, q, k, *parts, *sizes)`, and the names of the sizes it takes."""
    graph = fx.Graph()
    coordinates = {axis: graph.placeholder(axis) for axis in "bhqk"}
    tensors = {part: graph.placeholder(f"part_{i}") for i, part in enumerate(parts)}
    inside = _outside(allowed, {part.expr for part in parts})
    names = sorted({e.payload for e in inside if e.op is Op.SIZE} & set(symbols))
    taken = {name: graph.placeholder(name) for name in names}
    ops = GraphOps(graph, torch.device("cpu"))
    scope = Scope(ops, {**coordinates, **taken}, {}, {})
    scope.known.update({part.expr: element(tensor, part, scope) for part, tensor in tensors.items()})
    graph.output(compute(allowed, scope))
    return fx.GraphModule(torch.nn.Module(), graph, "mask_mod"), names


def _named_sizes(context: PassContext, extents: Sequence[Expr]) -> list[fx.Node]:
    """The graph's inputs that are a size in which one of these is expressed; two of them may be the same size."""
    symbols = {e for e in walk(*extents) if e.op is Op.SIZE}
    found: list[fx.Node] = []
    for old, new in context.nodes.items():
        value = value_of(old) if old.op == "placeholder" else None
        if isinstance(value, torch.SymInt) and int_expr(value) in symbols:
            found.append(new)
    return found


def _first_computed(graph: fx.Graph) -> fx.Node:
    """The first node that is no placeholder."""
    nodes: list[fx.Node] = [n for n in graph.nodes if n.op != "placeholder"]
    return nodes[0]


def _outside(expr: Expr, parts: set[Expr]) -> list[Expr]:
    """The sub-formulas that are not inside one of the parts."""
    found: list[Expr] = []
    stack, seen = [expr], set(parts)
    while stack:
        here = stack.pop()
        if here not in seen:
            seen.add(here)
            found.append(here)
            stack.extend(here.args)
    return found


class FlexCalls:
    """Makes flex_attention calls of the calls of one graph, which share what they can.

    Args:
        context: what the pass works on, as it is when the pass starts.
    """

    def __init__(self, context: PassContext) -> None:
        self.context = context
        self._writes = Writes(context.gm.graph)
        self._first = next(iter(context.gm.graph.nodes))
        self._obstacles: dict[Any, str] = {}
        self._masks: dict[Any, Any] = {}
        self._score_mod = ""

    def obstacle(self, site: Site, predicate: Predicate) -> str:
        """Why a call cannot be flex_attention; empty if it can.

        Args:
            site: the call, in the graph as it was when the pass started.
            predicate: what its mask means.
        """
        call = site.analysis.call
        query, key, value = (tensor_of(n) for n in (call.query, call.key, call.value))
        if query is None or key is None or value is None or "example_value" not in call.query.meta:
            return "flex_attention is for graphs of torch.compile"
        if tuple(predicate.facts.extents) != ("b", "h", "q", "k"):
            return "flex_attention takes tensors of rank 4"
        broadcast = operands_obstacle(query, key, value, grouped=call.enable_gqa)
        if broadcast:
            return broadcast
        if query.dtype not in _DTYPES or not (query.dtype == key.dtype == value.dtype):
            return f"flex_attention does not take {query.dtype}"
        if query.device.type not in ("cpu", "cuda"):
            return f"flex_attention is not used on {query.device.type}"
        if query.device.type == "cpu":
            if any(t.requires_grad for t in (query, key, value)):
                return "flex_attention has no backward on CPUs"
            if not torch.cpu._is_avx2_supported():
                return "flex_attention needs AVX2 on CPUs"
        widths = {static_size(t.shape[-1]) for t in (query, key, value)}
        if None in widths or len(widths) != 1:
            return "flex_attention needs one static width of heads"
        if any(static_size(t.shape[1]) is None for t in (query, key)):
            return "the number of heads is dynamic"
        if isinstance(call.dropout_p, fx.Node) or call.dropout_p:
            return "flex_attention has no dropout"
        if isinstance(call.scale, fx.Node):
            return "the scale is computed in the graph"
        if predicate.bias is not None:
            return "an additive bias stands beside the mask"
        if not predicate.zeroes_empty_rows and not no_row_is_empty(predicate, self.context.prover):
            return "a query may have no key at all, which the mask's finite values treat otherwise"
        mask = _mask_key(predicate, query.device)
        if mask not in self._obstacles:
            self._obstacles[mask] = self._formula_obstacle(site, predicate)
        return self._obstacles[mask] or self._write_obstacle(site, predicate)

    def _formula_obstacle(self, site: Site, predicate: Predicate) -> str:
        """What is in the way in a mask's formula, whichever call it serves."""
        inputs = _inputs(self.context, predicate.allowed)
        for cell in cells(predicate.allowed):
            if not cell.payload.is_input or cell.payload.node not in inputs:
                return f"'{cell.payload.label}' is not an input, and was not read"
        try:
            # the whole thing is written down once, for nothing, in a graph of its own
            parts = parts_of(predicate.allowed)
            trial = fx.Graph()
            names = {name: trial.placeholder(name) for name in inputs}
            symbols = {n: trial.placeholder(f"size_{n}") for n in _size_places(self.context, predicate, site)}
            extents = {axis: trial.placeholder(f"extent_{axis}") for axis in "bhqk"}
            scope = Scope(GraphOps(trial, torch.device("cpu")), symbols, extents, names)
            tensor_parts = {part: tensor_of_part(part, scope) for part in parts}
            blocks_of(predicate.allowed, tensor_parts, scope)
            _mask_mod(predicate.allowed, parts, symbols)
        except NotComputable as problem:
            return str(problem)
        return ""

    def _write_obstacle(self, site: Site, predicate: Predicate) -> str:
        tensors = list(_inputs(self.context, predicate.allowed).values())
        if tensors and self._writes.may_change(tensors, self._first, site.node):
            return "an input that the mask is read from is written to before this call"
        return ""

    def emit(self, site: Site, predicate: Predicate) -> fx.Node:
        """Insert the call before a site's canonical call; the result is the node that holds the output.

        Args:
            site: a call for which `obstacle` found nothing.
            predicate: what its mask means.
        """
        graph, node = self.context.gm.graph, site.node
        args = canonical_arguments(node)
        query, key, value = args["query"], args["key"], args["value"]
        recorded = tensor_of(site.analysis.call.query)
        if recorded is None:
            raise NotComputable(f"node '{node.name}' records no tensor")
        mask_name, block_mask, buffers = self._block_mask(site, predicate, recorded.device)
        width = static_size(recorded.shape[-1])
        scale = args.get("scale")
        with graph.inserting_before(node):
            operands = [query, key, value]
            if recorded.device.type == "cpu":
                operands = [_own_rows(operand, GraphOps(graph, recorded.device)) for operand in operands]
            called = graph.call_function(
                torch.ops.higher_order.flex_attention,
                (
                    *operands,
                    graph.get_attr(self._identity()),
                    (*block_mask, graph.get_attr(mask_name)),
                    float(scale) if scale is not None else 1.0 / math.sqrt(width or 1),
                    _kernel_options(recorded.device, training=self._trains(site)),
                    (),
                    buffers,
                ),
            )
            return graph.call_function(operator.getitem, (called, 0))

    def _trains(self, site: Site) -> bool:
        call = site.analysis.call
        return any(t is not None and t.requires_grad for t in map(tensor_of, (call.query, call.key, call.value)))

    def _identity(self) -> str:
        """A `score_mod` that leaves the scores as they are."""
        if not self._score_mod:
            graph = fx.Graph()
            score, *_ = [graph.placeholder(name) for name in ("score", *"bhqk")]
            graph.output(score)
            self._score_mod = self._add("score_mod", fx.GraphModule(torch.nn.Module(), graph, "score_mod"))
        return self._score_mod

    def _add(self, name: str, module: fx.GraphModule) -> str:
        gm, number, free = self.context.gm, 0, f"attnlower_{name}"
        while hasattr(gm, free):
            number += 1
            free = f"attnlower_{name}_{number}"
        gm.add_module(free, module)
        return free

    def _constant(self, tensor: torch.Tensor, device: torch.device) -> fx.Node:
        given: dict[str, Any] = {"dtype": tensor.dtype, "device": device}
        return self.context.gm.graph.call_function(torch.tensor, (tensor.tolist(),), given)

    def _block_mask(self, site: Site, predicate: Predicate, device: torch.device) -> tuple[str, Any, Any]:
        key = _mask_key(predicate, device)
        if key not in self._masks:
            graph = self.context.gm.graph
            # the first call with this mask stands before all others in the graph
            with graph.inserting_before(site.node):
                self._masks[key] = self._make_block_mask(site, predicate, device)
        found: tuple[str, Any, Any] = self._masks[key]
        return found

    def _make_block_mask(self, site: Site, predicate: Predicate, device: torch.device) -> tuple[str, Any, Any]:
        context, graph = self.context, self.context.gm.graph
        args = canonical_arguments(site.node)  # a later pass may have folded the heads of what the call had at first
        query, key = args["query"], args["key"]
        ops = GraphOps(graph, device)
        allowed = predicate.allowed
        extents = {
            axis: _size(owner, position, ops)
            for axis, owner, position in (("b", query, 0), ("h", query, 1), ("q", query, 2), ("k", key, 2))
        }
        symbols = {
            name: node if axis is None else ops.method("size", node, axis)
            for name, (node, axis) in _size_places(context, predicate, site).items()
        }
        scope = Scope(ops, symbols, extents, _inputs(context, allowed))
        parts = parts_of(allowed)
        tensors = {part: tensor_of_part(part, scope) for part in parts}
        module, names = _mask_mod(allowed, parts, symbols)
        if not tensors and not symbols and _are_few(extents):
            known = _lists(allowed, {}, Scope(EagerOps(), {}, extents, {}), device)
            lists = [t if t is None else self._constant(t, device) for t in known]
        else:
            lists = _lists(allowed, tensors, scope, device)
        tuple_ = _block_mask_tuple((extents["q"], extents["k"]), lists)
        if device.type == "cpu":
            stored = {p: [extents[a] for a in p.axes] for p, t in tensors.items() if t.op != "placeholder"}
            tensors |= {p: _stored(tensors[p], sizes_, ops) for p, sizes_ in stored.items()}
        # the kernel finds its way in these tensors with sizes that it must be told, by every name that the graph has
        axes = {a for p in parts for a in p.axes}
        lengths = _named_sizes(context, [e for a, e in predicate.facts.extents.items() if a in axes])
        for number, _ in enumerate(lengths):
            with module.graph.inserting_before(_first_computed(module.graph)):
                module.graph.placeholder(f"length_{number}")
        module.recompile()
        buffers = (*tensors.values(), *(symbols[n] for n in names), *lengths)
        return self._add("mask_mod", module), tuple_, buffers


def _are_few(extents: Mapping[str, Any]) -> bool:
    known = all(isinstance(extent, int) for extent in extents.values())
    return known and extents["q"] * extents["k"] <= _FEW_BLOCKS * BLOCK**2


def _lists(allowed: Expr, tensors: Mapping[Part, Any], scope: Scope, device: torch.device) -> list[Any]:
    """The block mask's tensors: numbers and indices of partial and of full blocks, by query and then by key."""
    blocks, ops = blocks_of(allowed, tensors, scope), scope.ops
    made: list[Any] = []
    for chosen in (blocks.partial, blocks.full):
        by_query = block_lists(chosen, ops)
        made += [by_query.count, by_query.indices]
    if device.type == "cpu":
        return [*made, None, None, None, None]
    for chosen in (blocks.partial, blocks.full):  # the backward pass goes through the blocks by key
        by_key = block_lists(ops.method("transpose", chosen, -2, -1), ops)
        made += [by_key.count, by_key.indices]
    return made


def _size(owner: fx.Node, position: int, ops: GraphOps) -> Any:
    recorded = tensor_of(owner)
    static = static_size(recorded.shape[position]) if recorded is not None else None
    return static if static is not None else ops.method("size", owner, position)


def _own_rows(tensor: fx.Node, ops: GraphOps) -> Any:
    """Queries, keys or values (B, H, S, E) in memory of their own; where sizes are static, a head's rows side by side.

    The kernel for CPUs takes a tensor to be all of its memory: it gives wrong numbers for `x[1:]`, and does not compile
    for `x[0]` (seen with torch 2.13). Inductor takes a copy with the same strides away again; one row more per head it
    has to compute. Models have the heads of a position side by side, with which the kernel takes up to 1.25 times as
    long (two cores of an AMD EPYC with AVX512).
    """
    recorded = tensor_of(tensor)
    if recorded is None:
        raise NotComputable(f"node '{tensor.name}' records no tensor")
    static = all(static_size(size) is not None for size in recorded.shape)
    if tensor.op == "placeholder" and (not static or recorded.is_contiguous()):
        return tensor
    longer = ops(torch.constant_pad_nd, tensor, (0, 0, 0, 1))
    if not static:
        return ops(torch.narrow, longer, 2, 0, ops.method("size", tensor, 2))
    batch, heads, rows, width = recorded.shape
    head = (rows + 1) * width
    ordered = ops(torch.clone, longer, memory_format=torch.contiguous_format)  # where the heads were innermost
    return ops(torch.as_strided, ordered, (batch, heads, rows, width), (heads * head, head, width, 1))


def _stored(tensor: fx.Node, sizes: list[Any], ops: GraphOps) -> Any:
    """A tensor in memory of its own, in the order of its axes.

    Inductor chooses the layout of what it computes, and its kernel for CPUs takes no tensor that it could compute on
    the fly beside the mask; a strided view makes it compute the tensor first, with these strides.
    """
    strides: list[Any] = [1]
    for size in sizes[:0:-1]:
        strides.insert(0, ops(operator.mul, strides[0], size))
    return ops(torch.as_strided, ops.method("contiguous", tensor), tuple(sizes), tuple(strides))


def _block_mask_tuple(lengths: tuple[Any, Any], lists: list[Any]) -> tuple[Any, ...]:
    """The block mask as the op takes it, without the `mask_mod` at its end.

    Releases of torch differ in what the tuple holds besides; a block mask of stand-ins is asked for the order.
    """
    from torch.nn.attention.flex_attention import BlockMask

    stand_ins = [torch.zeros(1, 1, 1, *([1] if i % 2 else []), dtype=torch.int32) for i in range(8)]
    marks: dict[int, Any] = dict(zip(map(id, stand_ins), lists, strict=True))
    make: Any = BlockMask
    mask = make((-1, -2), *stand_ins, BLOCK_SIZE=(BLOCK, BLOCK), mask_mod=None)
    *fields, _ = mask.as_tuple()
    return tuple(
        marks[id(f)] if isinstance(f, torch.Tensor) and id(f) in marks
        else lengths[0] if isinstance(f, int) and f == -1
        else lengths[1] if isinstance(f, int) and f == -2
        else f
        for f in fields
    )  # fmt: skip


def _kernel_options(device: torch.device, *, training: bool) -> dict[str, Any]:
    return {
        "BACKEND": "AUTO",
        "PRESCALE_QK": False,
        "ROWS_GUARANTEED_SAFE": False,
        "BLOCKS_ARE_CONTIGUOUS": False,
        "WRITE_DQ": True,
        "OUTPUT_LOGSUMEXP": training and device.type != "cpu",
        "OUTPUT_MAX": False,
    }
