"""Where a span starts at the first key and one number says where it ends, let the compiled code cut the caches itself.

`attnlower::span_attention` is Python: a call takes 35 us longer than PyTorch's kernel by itself, and 100 us inside of a
model, whose own work is then in the processor's caches (one AMD EPYC core). If its span is a `prefix_span`, its end
can be a size of the compiled program, `u0 = stop.item()`, by which Inductor cuts keys, values and mask without a copy.
That size is unbacked, no symbol of the user's: no guard arises.

Of keys there is at least one; where none may be seen the result is made zero afterwards.

Left as they are: heads that PyTorch's kernel would have to repeat, keys or values that broadcast, masks that would be
repeated for grouped heads, values of a width of their own, a capacity that is a symbol.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import fx
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode

from ...patterns.metadata import tensor_of
from ..passes.emitting import same_size, static_size
from ..span_attention import MOST_ROWS, prefix_span, span_attention

_KERNEL = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def prefixes_as_sizes(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> AbstractContextManager[None]:
    """Rewrite the calls of a Dynamo graph, in place, that end where a number says; none without a ShapeEnv.

    Returns:
        The context to compile the graph in.
    """
    mode = detect_fake_mode(example_inputs)
    if mode is None or mode.shape_env is None:
        return contextlib.nullcontext()
    stops: dict[tuple[fx.Node, int], tuple[fx.Node, fx.Node]] = {}
    for node in list(gm.graph.nodes):
        if node.op != "call_function" or node.target is not span_attention:
            continue
        call = _PrefixCall.of(gm, node)
        if call is None:
            continue
        key = (call.span, call.capacity)
        if key not in stops:
            stops[key] = _stop_as_size(*key)
        call.rewrite(*stops[key])
    if not stops:
        return contextlib.nullcontext()
    for span in {span for span, _ in stops}:
        if not span.users:
            gm.graph.erase_node(span)
    gm.graph.lint()
    gm.recompile()
    return _sizes_from_tensors(mode)


@contextlib.contextmanager
def _sizes_from_tensors(mode: FakeTensorMode) -> Iterator[None]:
    """Let a number in a tensor become a size."""
    before, mode.allow_scalar_outputs = mode.allow_scalar_outputs, True
    try:
        yield
    finally:
        mode.allow_scalar_outputs = before


def _stop_as_size(span: fx.Node, capacity: int) -> tuple[fx.Node, fx.Node]:
    """Where a prefix ends, as a size from 1 to the capacity, and whether it has a key; in front of its span."""
    graph, (stop, _) = span.graph, span.args
    with graph.inserting_before(span):
        some = graph.call_function(operator.gt, (stop, 0))
        inside = graph.call_method("clamp", (stop, 1, capacity))
        size = graph.call_method("item", (inside,))
        for holds, bound in ((operator.ge, 1), (operator.le, capacity)):
            graph.call_function(torch._check, (graph.call_function(holds, (size, bound)),))
    return size, some


def _fit(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """True if nothing broadcasts: the kernel takes the sizes as it finds them, and would read beyond the memory."""
    pairs = ((query, key, 0), (query, key, 3), *((key, value, axis) for axis in range(4)))
    return all(len(t.shape) == 4 for t in (query, key, value)) and all(
        same_size(left.shape[axis], right.shape[axis]) for left, right, axis in pairs
    )


class _PrefixCall:
    """A call of `span_attention` that can be written for a size.

    Args:
        node: the call.
        span: the `prefix_span` it reads.
        arguments: its arguments by name.
        sizes: query heads, queries, width; the batch may be a symbol.
        groups: key heads.
        capacity: keys that there is room for.
    """

    def __init__(
        self,
        node: fx.Node,
        span: fx.Node,
        arguments: dict[str, Any],
        sizes: tuple[int, int, int],
        groups: int,
        capacity: int,
    ) -> None:
        self.span, self.capacity = span, capacity
        self._node, self._arguments, self._groups = node, arguments, groups
        self._heads, self._queries, self._width = sizes

    @classmethod
    def of(cls, gm: fx.GraphModule, node: fx.Node) -> _PrefixCall | None:
        """The call at a node; None if it has to stay as it is."""
        bound = node.normalized_arguments(gm, normalize_to_only_use_kwargs=True)
        arguments = dict(bound.kwargs) if bound is not None else {}
        span, mask = arguments.get("span"), arguments.get("mask")
        query, key, value = (tensor_of(arguments.get(name)) for name in ("query", "key", "value"))
        if not isinstance(span, fx.Node) or span.target is not prefix_span or isinstance(span.args[1], fx.Node):
            return None
        if query is None or key is None or value is None or query.dtype not in _DTYPES:
            return None
        if not _fit(query, key, value) or any(static_size(t.stride()[-1]) != 1 for t in (query, key, value)):
            return None
        heads, queries, width, groups, capacity = (static_size(s) for s in (*query.shape[1:], *key.shape[1:3]))
        if not heads or not queries or not width or not groups or not capacity:  # symbols, or nothing at all
            return None
        grouped = heads != groups
        if grouped and (not arguments.get("enable_gqa") or heads % groups or heads // groups * queries > MOST_ROWS):
            return None
        call = cls(node, span, arguments, (heads, queries, width), groups, capacity)
        return call if mask is None or bool(span.args[1]) or call._takes_mask(mask, grouped) else None

    def _takes_mask(self, mask: fx.Node, grouped: bool) -> bool:
        tensor, query = tensor_of(mask), tensor_of(self._arguments["query"])
        if tensor is None or query is None or tensor.dtype not in (torch.bool, query.dtype):
            return False
        if not 2 <= len(tensor.shape) <= 4:
            return False
        same_heads = len(tensor.shape) < 4 or static_size(tensor.shape[1]) == 1
        return not grouped or (same_heads and self._queries == 1 and len(tensor.shape) != 3)

    def rewrite(self, size: fx.Node, some: fx.Node) -> None:
        """Put the kernel on the keys in front of `size` in the call's place."""
        node, graph, args = self._node, self._node.graph, self._arguments
        query, mask = args["query"], None if self.span.args[1] else args.get("mask")
        dtype = tensor_of(query).dtype  # type: ignore[union-attr]
        rows = self._heads // self._groups * self._queries
        grouped = self._heads != self._groups
        twice = not grouped and self._queries == 1 and dtype is torch.bfloat16  # see `span_attention`
        with graph.inserting_before(node):
            key, value = (graph.call_method("narrow", (args[name], 2, 0, size)) for name in ("key", "value"))
            inside = None if mask is None else self._cut(mask, size, dtype)
            if grouped:
                query = graph.call_method("reshape", (query, -1, self._groups, rows, self._width))
            elif twice:
                query = graph.call_method("expand", (query, -1, -1, 2, -1))
            settings = {"attn_mask": inside, "scale": args.get("scale")}
            both = graph.call_function(_KERNEL, (query, key, value), settings)
            out = graph.call_function(operator.getitem, (both, 0))
            if grouped:
                out = graph.call_method("reshape", (out, -1, self._heads, self._queries, self._width))
            elif twice:
                out = graph.call_method("narrow", (out, 2, 0, 1))
            # where() and not a product: with no key at all the first one was attended to, whatever it holds
            new = graph.call_function(torch.where, (some, out, 0.0))
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        graph.erase_node(node)

    def _cut(self, mask: fx.Node, size: fx.Node, dtype: torch.dtype) -> fx.Node:
        """The mask of the keys that are left: of rank 4 and additive, as the kernel wants it."""
        graph, tensor = mask.graph, tensor_of(mask)
        cut = graph.call_method("narrow", (mask, -1, 0, size))
        for _ in range(4 - tensor.dim()):  # type: ignore[union-attr]
            cut = graph.call_method("unsqueeze", (cut, 0))
        if tensor.dtype is not torch.bool:  # type: ignore[union-attr]
            return cut
        low, high = (graph.call_function(torch.tensor, (v,), {"dtype": dtype}) for v in (float("-inf"), 0.0))
        return graph.call_function(torch.where, (cut, high, low))
