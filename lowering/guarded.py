"""Run the fast variant of a program when its conditions hold, else the general one, per call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from ..patterns.aliasing import op_name
from ..patterns.conditions import AnyCondition
from ..patterns.constants import is_plain
from ..patterns.metadata import tensor_of
from .copying import copy_graph_module

Compiled = Callable[..., Any]


class GuardedCallable:
    """A compiled graph in two variants and the check that picks one at every call.

    The check is a count over each input concerned (`attention_mask.all()`), or a comparison of a buffer with the value
    it had, read back by the host. The general variant is compiled when it is first needed.
    """

    def __init__(
        self,
        fast: Compiled,
        make_general: Callable[[Sequence[Any]], Compiled],
        checks: Sequence[tuple[int, AnyCondition]],
    ) -> None:
        self._fast = fast
        self._make_general = make_general
        self._general: Compiled | None = None
        self._checks = tuple(checks)
        self._lock = threading.Lock()

    @property
    def general_is_compiled(self) -> bool:
        """True once a call has needed the general variant."""
        return self._general is not None

    def holds(self, args: Sequence[Any]) -> bool:
        """True if all conditions hold for these arguments."""
        for position, condition in self._checks:  # noqa: SIM110 (a generator takes longer)
            if not condition.holds(args[position]):
                return False
        return True

    def __call__(self, *args: Any) -> Any:
        """Run the variant that is valid for these arguments."""
        if self.holds(args):
            return self._fast(*args)
        if self._general is None:
            with self._lock:
                if self._general is None:
                    self._general = self._make_general(args)
        return self._general(*args)


def buffer_values(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> dict[str, torch.Tensor]:
    """The present values of the model's buffers among the inputs of a Dynamo graph, by node name.

    Dynamo marks the tensors that it found in modules as static inputs and hands over the real ones. A tensor that the
    caller passes in is never among them, marked or not, and a parameter neither.
    """
    found: dict[str, torch.Tensor] = {}
    placeholders = [n for n in gm.graph.nodes if n.op == "placeholder"]
    for node, value in zip(placeholders, example_inputs, strict=False):
        marked = (node.meta.get("tensor_dict") or {}).get("_dynamo_static_input_type") is not None
        source = getattr(node.meta.get("grapharg"), "source", None)
        if marked and _in_module(source) and is_plain(value) and not isinstance(value, torch.nn.Parameter):
            found[node.name] = value
    return found


def _in_module(source: Any) -> bool:
    """True if a tensor was found by way of a module."""
    while source is not None:
        if "NNModule" in type(source).__name__:
            return True
        source = getattr(source, "base", None)
    return False


def checks_for(gm: fx.GraphModule, conditions: Sequence[AnyCondition]) -> list[tuple[int, AnyCondition]]:
    """The position of each condition's input among the graph's arguments."""
    names = [n.name for n in gm.graph.nodes if n.op == "placeholder"]
    return [(names.index(c.node), c) for c in conditions]


def unwrap_floats(gm: fx.GraphModule) -> tuple[fx.GraphModule, tuple[int, ...]]:
    """A copy of a Dynamo graph that takes Python floats where Dynamo had wrapped them into 0-d tensors.

    Compiling a graph a second time would meet `tensor.item()` on an ordinary input and break the graph there; given
    the float itself, Dynamo treats it as it did the first time.

    Returns:
        The copy, and the positions of the arguments that are to be given as floats.
    """
    copied, _ = copy_graph_module(gm)
    positions: list[int] = []
    for position, node in enumerate(n for n in copied.graph.nodes if n.op == "placeholder"):
        tensor = tensor_of(node)
        if tensor is None or tensor.dim() != 0 or tensor.dtype is not torch.float64 or not node.users:
            continue
        if any(user.op != "call_method" or op_name(user) != "item" for user in node.users):
            continue
        for user in list(node.users):
            user.replace_all_uses_with(node)
            copied.graph.erase_node(user)
        positions.append(position)
    copied.recompile()
    return copied, tuple(positions)
