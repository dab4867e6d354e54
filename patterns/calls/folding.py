"""Batch and head axes in one: views between (B, H, X, Y) and (B * H, X, Y).

Law: a view or reshape keeps the elements in row-major order. If the last two sizes stay, then (b, h, x, y) and
(b * H + h, x, y) are the same element, whatever the view was meant for. Everything is read from recorded shapes; sizes
that are not the same expression are taken to differ.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from torch import fx

from ..aliasing import op_name
from ..expr import Expr
from ..metadata import tensor_of
from ..reshapes import EXPANSIONS, RESHAPES
from ..sizes import shape_of

Lead = tuple[Expr, Expr]
"""The sizes of the batch and of the head axis."""

_KEEPING = frozenset({"contiguous", "clone", "alias"})


class Fold(enum.Enum):
    """What a view does to the batch and head axes."""

    SAME = "same"
    MERGE = "merge"
    SPLIT = "split"


def fold_of(node: object) -> tuple[Fold, Lead | None] | None:
    """What a view does: MERGE (B, H, X, Y) to (B * H, X, Y), SPLIT the way back, SAME if every size stays.

    Returns:
        The kind with (B, H), which is None for SAME; None if the node is no such view.
    """
    if not isinstance(node, fx.Node) or node.op not in ("call_function", "call_method") or not node.args:
        return None
    name = op_name(node)
    before, after = tensor_of(node.args[0]), tensor_of(node)
    if name not in RESHAPES | EXPANSIONS or before is None or after is None:
        return None
    if before.dtype != after.dtype:  # x.view(torch.int32) reads the bits anew
        return None
    old, new = shape_of(before), shape_of(after)
    if old == new:
        return Fold.SAME, None
    if name not in RESHAPES:
        return None
    if len(old) == 4 and len(new) == 3 and old[2:] == new[1:]:
        return Fold.MERGE, (old[0], old[1])
    if len(old) == 3 and len(new) == 4 and old[1:] == new[2:]:
        return Fold.SPLIT, (new[0], new[1])
    return None


def keeps_elements(node: object) -> bool:
    """True for a copy, and for a view that keeps every size."""
    if not isinstance(node, fx.Node) or node.op not in ("call_function", "call_method") or not node.args:
        return False
    found = fold_of(node)
    return op_name(node) in _KEEPING or (found is not None and found[0] is Fold.SAME)


def unfolded(node: object, lead: Lead, seen: Callable[[fx.Node], None]) -> fx.Node | None:
    """The tensor (B, H, X, Y) whose first two axes a node has merged.

    Args:
        node: a tensor (B * H, X, Y), or already (B, H, X, Y).
        lead: (B, H).
        seen: told about every node that is looked through.
    """
    current = node
    while isinstance(current, fx.Node):
        tensor = tensor_of(current)
        if tensor is None:
            return None
        if tensor.dim() == 4:
            return current if shape_of(tensor)[:2] == lead else None
        if not keeps_elements(current) and fold_of(current) != (Fold.MERGE, lead):
            return None
        seen(current)
        current = current.args[0]
    return None


def split_user(node: fx.Node, lead: Lead) -> fx.Node | None:
    """The view of (B * H, Q, E) as (B, H, Q, E), if it is the only use of a node."""
    users = [u for u in node.users if op_name(u) != "_assert_tensor_metadata"]
    return users[0] if len(users) == 1 and fold_of(users[0]) == (Fold.SPLIT, lead) else None
