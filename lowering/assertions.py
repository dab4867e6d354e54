"""Assert at run time what the caller of `lower` has vouched for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor

from ..patterns.conditions import Condition
from ..patterns.metadata import tensor_of

aten = torch.ops.aten


def insert_assertions(gm: fx.GraphModule, conditions: Sequence[Condition]) -> None:
    """Check each condition right after the inputs; a call that breaks one raises RuntimeError with its text."""
    placeholders = [n for n in gm.graph.nodes if n.op == "placeholder"]
    by_name = {n.name: n for n in placeholders}
    for condition in conditions:
        with gm.graph.inserting_after(placeholders[-1]):
            node = by_name[condition.node]
            compare = aten.eq.Scalar if condition.relation == "==" else aten.ne.Scalar
            steps: list[tuple[Any, tuple[Any, ...]]] = [(compare, (condition.value,)), (aten.all.default, ())]
            last = placeholders[-1]
            for target, rest in steps:
                with gm.graph.inserting_after(last):
                    created = gm.graph.call_function(target, (node, *rest))
                created.meta["val"] = _fake_result(target, node, rest)
                node = last = created
            with gm.graph.inserting_after(last):
                message = f"attnlower: the assumption {condition} does not hold for this call"
                gm.graph.call_function(aten._assert_async.msg, (node, message))
    gm.recompile()


def _fake_result(target: Any, node: fx.Node, rest: tuple[Any, ...]) -> Any:
    value = tensor_of(node)
    if isinstance(value, FakeTensor):
        with value.fake_mode:
            return target(value, *rest)
    return None if value is None else target(value, *rest)
