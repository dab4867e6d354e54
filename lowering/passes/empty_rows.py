"""Let no attention call have to know what a query without any key gives.

Law: if every query may attend to some key, `empty_rows="zeros"` and "nan" are the same. So the call is switched to
"nan" where that is plain (no mask, or causal from the upper left: key 0 is always there), or proved of its mask.
Everywhere else the rows are looked at: a query without any key may attend to all of them, and what it gets is replaced
by zeros,

    row = mask.any(-1);  out = where(row, attention(mask | ~row), 0)

and for an additive mask, in which a row is empty if it is -inf throughout, attention(where(row, mask, 0)). A mask's
rows are looked at once for all calls that share it.

Limits: an alignment from the lower right has empty rows if there are fewer keys than queries; unless that is excluded
it becomes a mask. Rows are empty by their mask; a score that overflows makes none. Calls without any key (K = 0) are
out of scope: in eager mode they give zeros under both settings.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from ...patterns import build
from ...patterns.facts import Facts
from ...patterns.masks.template import Alignment
from ...patterns.metadata import tensor_of
from ...patterns.sizes import int_expr, ranges_of, shape_env_of
from ..result import PassResult, Refusal
from .base import PassContext
from .canonical_calls import CanonicalCall, continue_with, for_each_call, set_arguments
from .emitting import Emitter, Size, dtype_of_node, shape_of_node
from .erasing import erase_if_dead
from .mask_tensors import scores_shape
from .nonempty_rows import every_query_has_a_key
from .sharing import Shared
from .single_mask import mask_problem, merge_masks

_ATEN = torch.ops.aten


@dataclass(frozen=True)
class Rows:
    """What is made of a mask.

    Attributes:
        present: boolean, the mask's shape with 1 for the keys; True where a query has a key.
        mask: the mask with the empty rows opened.
    """

    present: fx.Node
    mask: fx.Node


class EmptyRows:
    """Switch to "nan", with zeros written out where rows may be empty."""

    name = "empty_rows"
    requires = ("single_mask",)

    def run(self, context: PassContext) -> PassResult:
        """Rewrite the canonical calls that ask for zeros."""
        shared: Shared[Rows] = Shared(context.gm.graph)
        nodes: Shared[fx.Node] = Shared(context.gm.graph)
        proofs: dict[object, bool] = {}
        return for_each_call(context, self.name, lambda call: _rewrite(call, shared, nodes, proofs))


def _rewrite(
    call: CanonicalCall, shared: Shared[Rows], nodes: Shared[fx.Node], proofs: dict[object, bool]
) -> str | Refusal | None:
    args = call.arguments
    if args.get("empty_rows", "zeros") != "zeros":
        return None
    problem = mask_problem(args)
    if problem:
        return call.refusal(problem)
    given = [name for name in ("mask", "bias") if args.get(name) is not None]
    alignment = Alignment(args.get("alignment", Alignment.NONE.value))
    if len(given) > 1 or (given and alignment is not Alignment.NONE):
        return call.refusal("several masks act together")
    if not given:
        if alignment is not Alignment.LOWER_RIGHT or _keys_suffice(call):
            set_arguments(call.node, empty_rows="nan")
            return "every query has a key"
        merge_masks(call, nodes)
        given = ["mask"]
    elif _proved(call, given[0], proofs):
        set_arguments(call.node, empty_rows="nan")
        return "every query is proved to have a key"
    mask = call.arguments[given[0]]
    rows = shared.get(mask, [mask], call.node, lambda: _look(call.emitter(), mask))
    set_arguments(call.node, **{given[0]: rows.mask, "empty_rows": "nan"})
    zero = shared_zero(call, nodes)
    zeroed = zero_where_empty(call.emitter(call.node.next), rows.present, call.node, zero)
    continue_with(call, zeroed, zeroed)
    erase_if_dead(call.node.graph, mask)
    return f"queries without any key in '{mask.name}' get zeros"


def _proved(call: CanonicalCall, name: str, proofs: dict[object, bool]) -> bool:
    """Asked once for each mask that calls share."""
    found = call.site.analysis.classification if call.site is not None else None
    if call.site is None or found is None:
        return False
    read = found.predicate
    key = (call.arguments[name], read.value, tuple(read.facts.extents.items()), call.site.analysis.call.is_causal)
    if key not in proofs:
        proofs[key] = every_query_has_a_key(call)
    return proofs[key]


def _keys_suffice(call: CanonicalCall) -> bool:
    """True if there are provably no fewer keys than queries."""
    args = call.arguments
    *_, queries, keys = scores_shape(args["query"], args["key"])
    env = shape_env_of(t for t in (tensor_of(args["query"]), tensor_of(args["key"])) if t is not None)
    return call.context.prover.holds(build.le(int_expr(queries), int_expr(keys)), Facts(ranges_of(env)))


def _look(emitter: Emitter, mask: fx.Node) -> Rows:
    shape, dtype = shape_of_node(mask), dtype_of_node(mask)
    present = rows_with_a_key(emitter, mask)
    if dtype is torch.bool:
        absent = emitter.call(_ATEN.logical_not.default, present, shape=_row_shape(mask), dtype=torch.bool)
        return Rows(present, emitter.call(_ATEN.logical_or.default, mask, absent, shape=shape, dtype=torch.bool))
    zero = emitter.scalar(0.0, dtype)
    return Rows(present, emitter.call(_ATEN.where.self, present, mask, zero, shape=shape, dtype=dtype))


def shared_zero(call: CanonicalCall, shared: Shared[fx.Node]) -> fx.Node:
    """A zero in the dtype of a call's output, one for all calls."""
    dtype = dtype_of_node(call.node)
    return shared.get(("zero", dtype, call.emitter().device), (), call.node, lambda: call.emitter().scalar(0.0, dtype))


def rows_with_a_key(emitter: Emitter, mask: fx.Node) -> fx.Node:
    """Boolean, the shape of a boolean or additive mask with 1 for the keys: True where a query has a key."""
    shape = shape_of_node(mask)
    open_keys = mask
    if dtype_of_node(mask) is not torch.bool:  # NaN counts as a key: what it gives is NaN, not zero
        open_keys = emitter.call(_ATEN.ne.Scalar, mask, float("-inf"), shape=shape, dtype=torch.bool)
    return emitter.call(_ATEN.any.dim, open_keys, -1, True, shape=_row_shape(mask), dtype=torch.bool)


def _row_shape(mask: fx.Node) -> tuple[Size, ...]:
    shape = shape_of_node(mask)
    return (*shape[:-1], 1) if shape else ()


def zero_where_empty(emitter: Emitter, present: fx.Node, output: fx.Node, zero: fx.Node) -> fx.Node:
    """Zeros, of which one is given, in the rows of an output (..., Q, Ev) whose queries have no key."""
    shape, dtype = shape_of_node(output), dtype_of_node(output)
    return emitter.call(_ATEN.where.self, present, output, zero, shape=shape, dtype=dtype)
