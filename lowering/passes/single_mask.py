"""Let every attention call have at most one mask tensor, and none together with a causal alignment.

Laws: two boolean masks are their conjunction; a boolean mask and a bias are the bias where the mask allows and -inf
elsewhere; a causal alignment is the boolean mask k <= q (UPPER_LEFT) or k - K <= q - Q (LOWER_RIGHT). An alignment
alone stays if the target takes it.

A bias in a narrower dtype than the query's is widened, which is exact. One in a wider dtype is narrowed only where no
element changes: it is 0 and -inf, or was widened from the query's dtype. Where its elements are 0 and another blocked
value, `finfo.min` say, and every query is proved to have a key, it becomes a boolean mask.

Limits: any other bias in a dtype of its own is left as it is: `scaled_dot_product_attention` adds a float32 bias to the
scores of a half precision query without rounding it, so narrowing would change the result.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ...patterns.masks.template import Alignment
from ..result import PassResult, Refusal
from .base import PassContext
from .canonical_calls import CanonicalCall, for_each_call, set_arguments
from .emitting import dtype_of_node, shape_of_node
from .erasing import erase_if_dead
from .mask_tensors import bias_where, both, causal_mask, fitted, misfit, scores_shape
from .nonempty_rows import every_query_has_a_key, only_blocked_values
from .sharing import Shared

_ATEN = torch.ops.aten


class SingleMask:
    """Merge mask, bias and alignment."""

    name = "single_mask"
    requires = ("canonicalize",)

    def run(self, context: PassContext) -> PassResult:
        """Rewrite the calls with several of them, and those whose alignment the target does not take alone."""
        shared: Shared[fx.Node] = Shared(context.gm.graph)
        return for_each_call(context, self.name, lambda call: _rewrite(call, shared))


def _rewrite(call: CanonicalCall, shared: Shared[fx.Node]) -> str | Refusal | None:
    problem = mask_problem(call.arguments)
    if problem:
        return call.refusal(problem)
    done = []
    args = call.arguments
    given = [name for name in ("mask", "bias") if args.get(name) is not None]
    alignment = Alignment(args.get("alignment", Alignment.NONE.value))
    alone = not given and alignment in call.context.target.alignments
    if len(given) + (alignment is not Alignment.NONE) > 1 or not (given or alone):
        done.append(merge_masks(call, shared))
    outcome = _fit_dtype(call, shared) if call.arguments.get("bias") is not None else None
    if isinstance(outcome, Refusal):
        return outcome
    if outcome is not None:
        done.append(outcome)
    return ", ".join(done) or None


def mask_problem(args: dict[str, Any]) -> str:
    """Why a call's masks cannot be worked with; empty if they can."""
    if args.get("alignment", Alignment.NONE.value) not in tuple(Alignment):
        return f"unknown alignment {args['alignment']!r}"
    scores = scores_shape(args["query"], args["key"])
    for name, kind in (("mask", "boolean"), ("bias", "floating")):
        tensor = args.get(name)
        if tensor is None:
            continue
        dtype = dtype_of_node(tensor)
        if (dtype is torch.bool) != (kind == "boolean") or (kind == "floating" and not dtype.is_floating_point):
            return f"the {name} is {dtype}, not {kind}"
        problem = misfit(name, tensor, scores)
        if problem:
            return problem
    return ""


def merge_masks(call: CanonicalCall, shared: Shared[fx.Node]) -> str:
    """Make one tensor of a call's mask, bias and alignment; says what was done.

    For a call without a mask problem that has at least one of them.
    """
    args = call.arguments
    query, key, mask, bias = args["query"], args["key"], args.get("mask"), args.get("bias")
    alignment = Alignment(args.get("alignment", Alignment.NONE.value))
    sources = [t for t in (mask, bias) if t is not None]
    scores = tuple(map(str, scores_shape(query, key)))

    def make() -> fx.Node:
        emitter = call.emitter()
        tensors = [fitted(emitter, t, query, key) for t in sources]
        allowed = tensors[0] if mask is not None else None
        if alignment is not Alignment.NONE:
            lengths = (alignment, *scores[-2:], str(emitter.device))
            causal = shared.get(lengths, (), call.node, lambda: causal_mask(call.emitter(), query, key, alignment))
            allowed = causal if allowed is None else both(emitter, allowed, causal)
        if bias is None or allowed is None:
            return allowed if allowed is not None else tensors[-1]
        return bias_where(emitter, allowed, tensors[-1])

    merged = shared.get((mask, bias, alignment, scores), sources, call.node, make)
    role = "mask" if bias is None else "bias"
    set_arguments(call.node, **{"mask": None, "bias": None, role: merged, "alignment": Alignment.NONE.value})
    for source in sources:
        erase_if_dead(call.node.graph, source)
    words = [name for name, t in (("mask", mask), ("bias", bias)) if t is not None]
    words += [f"alignment {alignment.value}"] if alignment is not Alignment.NONE else []
    return f"{' and '.join(words)} as one {role}"


def _fit_dtype(call: CanonicalCall, shared: Shared[fx.Node]) -> str | Refusal | None:
    """Bring a bias into the query's dtype where that changes nothing."""
    bias, dtype = call.arguments["bias"], dtype_of_node(call.arguments["query"])
    own = dtype_of_node(bias)
    if own is dtype:
        return None
    widened = torch.promote_types(own, dtype) is dtype
    values = only_blocked_values(call)
    if widened or _was_widened(call, shared, dtype) or values == {float("-inf")}:
        cast = shared.get(("cast", bias, dtype), [bias], call.node, lambda: _cast(call, bias, dtype))
        set_arguments(call.node, bias=cast)
        return f"the bias is cast to {dtype}"
    if values and every_query_has_a_key(call):
        mask = shared.get(("zero", bias), [bias], call.node, lambda: _is_zero(call, bias))
        set_arguments(call.node, bias=None, mask=mask)
        return "the bias only blocks: as a boolean mask"
    return call.refusal(f"the bias is {own}, and some of it may be no {dtype}", bias.name)


def _cast(call: CanonicalCall, bias: fx.Node, dtype: torch.dtype) -> fx.Node:
    return call.emitter().call(_ATEN._to_copy.default, bias, shape=shape_of_node(bias), dtype=dtype)


def _is_zero(call: CanonicalCall, bias: fx.Node) -> fx.Node:
    return call.emitter().call(_ATEN.eq.Scalar, bias, 0, shape=shape_of_node(bias), dtype=torch.bool)


_VIEWS = tuple(
    getattr(_ATEN, name)
    for name in ("unsqueeze", "squeeze", "expand", "view", "reshape", "slice", "select", "permute", "transpose")
)
_CASTS = (_ATEN._to_copy, _ATEN.to)


def _was_widened(call: CanonicalCall, shared: Shared[fx.Node], dtype: torch.dtype) -> bool:
    """True if every element of the bias comes from a tensor of a dtype, by views and one cast, with no write since."""
    node: Any = call.arguments["bias"]
    while isinstance(node, fx.Node) and getattr(node.target, "overloadpacket", None) in _VIEWS:
        node = node.args[0]
    if not isinstance(node, fx.Node) or getattr(node.target, "overloadpacket", None) not in _CASTS:
        return False
    source = node.args[0]
    if not isinstance(source, fx.Node) or shared.may_change([node], node, call.node):
        return False
    return dtype_of_node(source) is dtype and torch.promote_types(dtype, dtype_of_node(node)) is dtype_of_node(node)
