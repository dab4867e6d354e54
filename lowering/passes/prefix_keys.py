"""Attend to the keys that a mask leaves, where the rest of a cache is known to be blocked.

Law: a key that no query may attend to has no weight, so attention to the others is the same. If a mask is proved to say
k <= bound with a bound that follows from data (`q + cache_position[0]` in a static cache, `lengths[b] - 1`), the keys
behind it need not be read: a step costs what the cache holds and not what it has room for. The same for a few queries
whose mask is data as a whole, as `generate` hands it over. How far the mask reaches is computed once for all calls that
share it: from the numbers in the proved bound, where the mask is made, or else by a look at the mask itself, which also
finds what is blocked at the front (left padding, windows).

Where a blocked value is finite (finfo.min), a row without any key is a mean over all keys; such a mask is left whole
whenever it has such a row.

Only in graphs of torch.compile (an exported program would need this package to run), on CPUs (reading the span back
would stop a GPU; nothing of this was run on one), and for inference.

Near misses: `k >= q + p`, which leaves no end to cut off, a bound that every key meets (`k <= q` in a square),
attention that drops weights at random.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ...patterns import build
from ...patterns.analyze import Analysis, SiteAnalysis
from ...patterns.classify import Classification
from ...patterns.expr import Expr, Op, Sort, cells, coords, is_positional
from ...patterns.formula import format_expr
from ...patterns.key_bounds import bounds_below, is_whole_prefix, key_bound, largest
from ...patterns.masks.template import Alignment
from ...patterns.metadata import tensor_of
from ...patterns.predicate import is_blocked
from ...patterns.prover import Prover
from ...patterns.sizes import shape_of, traced_size
from ..result import PassResult, Refusal
from ..span_attention import key_span, prefix_span, span_attention
from ..target import Target
from .base import PassContext, Site, for_each_site, refuse, take_name
from .sharing import Shared

MOST_QUERIES = 8
"""Queries up to which a mask of which nothing is known is searched for its last key: fewer bytes than one key has."""

LEAST_WORK = 2**19
"""Elements of keys that all query heads read, in the trace, from which it is worth asking a mask how many are seen.

Asking costs 30 to 100 us a layer (512 keys, 2 cores of an AMD EPYC); 8 heads of width 64 then save 30 us at best.
"""

LEAST_PREFIX_WORK = 2**16
"""The same where numbers say it (see `targets/prefix_sizes.py`).

With 512 keys a step of one layer takes 0.91 of its time if 64 of them are seen and as long as before if all are; with
128 keys no difference was found.
"""


@dataclass(frozen=True)
class Reach:
    """How far a mask is known to reach.

    Attributes:
        unseen: the keys that can be left out, in words.
        bound: the last key that a query may see, if that is proved.
        whole: what remains is proved to be allowed to every query, so that no mask is needed.
    """

    unseen: str
    bound: Expr | None = None
    whole: bool = False


class PrefixKeys:
    """Cut keys off that no query may attend to."""

    name = "prefix_keys"
    requires = ("canonicalize", "drop_mask", "mask_to_alignment", "guard_padding", "fold_repeat_kv", "share_masks")

    def run(self, context: PassContext) -> PassResult:
        """Rewrite the calls whose mask is proved to end early, or is data for a few queries."""
        if not context.target.span_attention:
            return PassResult(self.name)
        shared: Shared[fx.Node] = Shared(context.gm.graph)
        reaches: dict[int, Reach | None] = {}

        def rewrite(context: PassContext, site: Site) -> str | Refusal | None:
            found = site.analysis.classification
            if found is None or not site.canonical or site.action != "keep" or not _has_mask(site.node):
                return None
            if _is_cheap(site.analysis, LEAST_PREFIX_WORK):
                return None
            if id(found) not in reaches:
                reaches[id(found)] = _reach(found, context.prover)
            reach = reaches[id(found)]
            if reach is None:
                return None
            obstacle = _obstacle(site)
            if obstacle:
                return refuse(site, obstacle)
            return _rewrite(context, site, found, reach, shared)

        return for_each_site(context, self.name, rewrite)


def may_cut_keys(analysis: Analysis, target: Target) -> bool:
    """True if the pass may find something to do; as good as free."""
    if not target.span_attention:
        return False
    found = {id(s.classification): s.classification for s in analysis.sites if not _is_cheap(s, LEAST_PREFIX_WORK)}
    return any(named is not None and _reach(named, analysis.prover) is not None for named in found.values())


def _is_cheap(analysed: SiteAnalysis, least: int) -> bool:
    """True if all keys are read in less time than it takes to ask how many need to be."""
    query, key = tensor_of(analysed.call.query), tensor_of(analysed.call.key)
    if query is None or key is None:
        return False
    sizes = [traced_size(s) for s in (*query.shape[:-2], key.shape[-2], key.shape[-1])]
    return all(s is not None for s in sizes) and math.prod(s for s in sizes if s is not None) < least


def _has_mask(node: fx.Node) -> bool:
    return node.kwargs.get("mask") is not None or node.kwargs.get("bias") is not None


def _reach(found: Classification, prover: Prover) -> Reach | None:
    """Which keys are worth leaving out; None if none."""
    predicate = found.predicate
    bound = key_bound(predicate, prover)
    queries, keys = (predicate.facts.extents[name] for name in ("q", "k"))
    if bound is not None and not (queries is keys and is_positional(bound)):  # in a square that is a few keys at best
        whole = predicate.bias is None and is_whole_prefix(predicate, bound, prover)
        return Reach(f"keys k > {format_expr(bound, 60)}", bound, whole)
    few = queries.is_const and keys.is_const and queries.value <= MOST_QUERIES and queries.value < keys.value
    if few and any("k" in coords(c) for c in _data(predicate.value)):
        return Reach("keys beyond the last one that the mask allows")
    return None


def _data(value: Expr) -> list[Expr]:
    """The elements that decide what is blocked: an additive mask as a whole, or the conditions of one."""
    if value.op is Op.CELL:
        return [value]
    return cells(value) if value.sort is Sort.BOOL else cells(*(c for c in _conditions(value)))


def _conditions(value: Expr) -> list[Expr]:
    if value.op is not Op.ITE:
        return []
    return [value.args[0], *(c for branch in value.args[1:] for c in _conditions(branch))]


def _obstacle(site: Site) -> str:
    """Why the keys cannot be cut off; empty if they can."""
    node = site.node
    tensors = {name: tensor_of(n) for name, n in zip(("query", "key", "value"), node.args, strict=False)}
    query, key, value = (tensors.get(name) for name in ("query", "key", "value"))
    mask = tensor_of(node.kwargs.get("mask") or node.kwargs.get("bias"))
    if "example_value" not in node.meta:
        return "keys are cut off at run time in graphs of torch.compile only"
    if query is None or key is None or value is None or mask is None:
        return "a tensor without recorded shape"
    if any(t.device.type != "cpu" for t in (query, key, value, mask)):
        return "keys are cut off at run time on CPUs only"
    if any(t.requires_grad for t in (query, key, value, mask)):
        return "keys are cut off at run time for inference only"
    if any(len(t.shape) != 4 for t in (query, key, value)):
        return "query, key or value is not of rank 4"
    if len({t.dtype for t in (query, key, value)}) > 1:
        return "query, key and value differ in dtype"
    if len(mask.shape) < 2 or shape_of(mask)[-1] is not shape_of(key)[-2]:
        return "the mask has no axis of keys"
    kwargs = node.kwargs
    plain = kwargs.get("alignment", "none") == Alignment.NONE.value and kwargs.get("empty_rows", "zeros") == "zeros"
    if not plain or kwargs.get("dropout_p", 0.0) != 0.0 or kwargs.get("key_lengths") is not None:
        return "more than a mask acts on the weights"
    scale = kwargs.get("scale")
    return "the scale is no constant" if isinstance(scale, fx.Node) else ""


def _rewrite(
    context: PassContext, site: Site, found: Classification, reach: Reach, shared: Shared[fx.Node]
) -> str | Refusal | None:
    node, graph = site.node, context.gm.graph
    boolean = node.kwargs.get("mask") is not None
    mask = node.kwargs["mask" if boolean else "bias"]
    tensor = tensor_of(mask)
    if not isinstance(mask, fx.Node) or tensor is None:
        return None
    settings = {} if boolean else _additive(found, tensor.dtype)
    # finite blocked values give a row without any key a mean over all of them, which only a look at the mask tells
    bound = reach.bound if boolean or (settings.get("exact") and "blocked" not in settings) else None
    whole = bound is not None and reach.whole
    numbers = _numbers(context, mask, found, bound, shared) if bound is not None else None
    if numbers is None and _is_cheap(site.analysis, LEAST_WORK):
        return None

    def make() -> fx.Node:
        if numbers is not None:
            return _span_of_numbers(mask, *numbers, whole=whole)
        with graph.inserting_before(node):
            return graph.call_function(key_span, (mask,), settings)

    span = shared.get(("span", mask, whole, tuple(settings.items())), [mask], node, make)
    arguments = {"scale": node.kwargs.get("scale"), "enable_gqa": bool(node.kwargs.get("enable_gqa", False))}
    with graph.inserting_before(node):
        new = graph.call_function(span_attention, (*node.args, None if whole else mask, span), arguments)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    graph.erase_node(node)
    take_name(node, new)
    site.node, site.canonical, site.action = new, False, "banded"
    return f"{reach.unseen} are left out at run time"


_Number = tuple[fx.Node, tuple[int, ...], int]
"""An element of an input, by its index, and the factor it counts with."""


def _numbers(
    context: PassContext, mask: fx.Node, found: Classification, bound: Expr, shared: Shared[fx.Node]
) -> tuple[int, list[_Number]] | None:
    """The constant and the few numbers that the last key is the sum of, as read where the mask is; None if it is not.

    Each number is an element of an input that nothing writes to before the mask is made, so that it is the one that the
    mask was made with.
    """
    constant, terms = build.linear_parts(largest(bound, found.predicate.facts))
    inputs = {n.name: n for n in context.gm.graph.nodes if n.op == "placeholder"}
    read: list[_Number] = []
    for atom, factor in terms.items():
        source = inputs.get(atom.payload.node) if atom.op is Op.CELL and atom.payload.is_input else None
        tensor = tensor_of(source)
        if source is None or tensor is None or len(tensor.shape) != len(atom.args):
            return None
        if tensor.dtype not in (torch.int32, torch.int64) or any(not i.is_const for i in atom.args):
            return None
        if mask.op == "placeholder" or shared.may_change([source], source, mask):
            return None
        read.append((source, tuple(int(i.value) for i in atom.args), factor))
    return (constant, read) if read and not bounds_below(found.predicate.allowed) else None


def _span_of_numbers(mask: fx.Node, constant: int, read: list[_Number], *, whole: bool) -> fx.Node:
    """The span up to the sum, where the mask is."""
    graph = mask.graph
    with graph.inserting_before(mask):
        total: fx.Node | int = constant + 1
        for source, index, factor in read:
            number = graph.call_function(operator.getitem, (source, index)) if index else source
            number = graph.call_method("to", (number, torch.int64))
            number = number if factor == 1 else graph.call_function(operator.mul, (number, factor))
            total = graph.call_function(operator.add, (number, total))
        return graph.call_function(prefix_span, (total, whole))


def _additive(found: Classification, dtype: torch.dtype) -> dict[str, Any]:
    """What an additive mask's values mean: see `key_span`."""
    predicate = found.predicate
    finite = [v for v in predicate.blocked if v != float("-inf")]
    exact = predicate.bias is None
    if not exact or not finite:
        return {"exact": exact}
    # everything in the mask is 0 or blocked
    return {"exact": True, "blocked": max(finite)} if all(is_blocked(v, dtype) for v in finite) else {"exact": False}
