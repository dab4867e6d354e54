"""Put ATen calls into a graph together with what the graph records about its values.

Shapes are handed in, as they are recorded on the operands; no op is run on fake tensors to find them out, since
comparing sizes would add guards. A size that is needed at run time is an int where it is static, a node that already
holds that size, or a new `aten.sym_size.int`.

What is recorded goes where the graph keeps it: `meta["val"]`, or `meta["example_value"]` in a graph from Dynamo.
"""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._mode_utils import no_dispatch

from ...errors import LegalizeError
from ...patterns.expr import Expr
from ...patterns.metadata import tensor_of, value_of
from ...patterns.sizes import int_expr, shape_env_of

Size = int | torch.SymInt
_KEPT_META = ("nn_module_stack", "stack_trace", "torch_fn", "custom")


def static_size(size: Size) -> int | None:
    """A size as an int; None if it is dynamic."""
    expr = int_expr(size)
    return int(expr.value) if expr.is_const else None


def same_size(left: Size, right: Size) -> bool:
    """True if two sizes are the same expression; two symbols that merely have equal hints are not."""
    return int_expr(left) is int_expr(right)


def fake_of_shape(like: torch.Tensor, shape: Sequence[Size], dtype: torch.dtype) -> torch.Tensor:
    """A fake tensor of these sizes, in the mode and on the device of another, without a guard on any size."""
    if type(like) is FakeTensor and all(type(size) is int for size in shape):
        with no_dispatch():  # what new_empty() would make of it, in a tenth of the time
            return FakeTensor(like.fake_mode, torch.empty(tuple(shape), dtype=dtype, device="meta"), like.device)
    env = shape_env_of([like, *shape])
    # the cache of fake tensors asks for memory formats, and would guard on the answers
    with env.suppress_guards() if env is not None else contextlib.nullcontext():
        return like.new_empty(tuple(shape), dtype=dtype)


@functools.lru_cache(maxsize=1024)  # a schema's arguments are made anew each time that they are looked at
def _takes_dtype(target: torch._ops.OpOverload) -> bool:
    return any(a.name == "dtype" and a.kwarg_only for a in target._schema.arguments)


class SizeNodes:
    """The nodes of a graph that hold a size, by the size's expression."""

    def __init__(self, graph: fx.Graph) -> None:
        self._nodes: dict[Expr, list[fx.Node]] = {}
        for node in graph.nodes:
            self.add(node)

    def add(self, node: fx.Node) -> None:
        """Take note of a node if it holds a size."""
        value = value_of(node)
        if isinstance(value, torch.SymInt):
            self._nodes.setdefault(int_expr(value), []).append(node)

    def before(self, size: torch.SymInt, point: fx.Node) -> fx.Node | None:
        """A node in front of a point that holds the size; None if there is none."""
        found = self._nodes.get(int_expr(size), ())
        return next((n for n in found if not n._erased and n < point), None)


class Emitter:
    """Inserts ATen calls in front of a node.

    Args:
        sizes: the size nodes of the graph; new ones are added.
        before: the node in front of which the calls go.
        serving: the attention call that they serve; they carry its module stack, and its device unless told otherwise.

    Raises:
        LegalizeError: if the attention call records no tensor.
    """

    def __init__(self, sizes: SizeNodes, before: fx.Node, serving: fx.Node) -> None:
        self._sizes, self._before = sizes, before
        self._meta = {name: serving.meta[name] for name in _KEPT_META if name in serving.meta}
        recorded = tensor_of(serving)
        if recorded is None:
            raise LegalizeError(f"node '{serving.name}' has no meta['val']; run FakeTensorProp on the graph")
        self._recorded = recorded
        self._key = "example_value" if "example_value" in serving.meta else "val"

    @property
    def device(self) -> torch.device:
        """The device of the attention call."""
        return self._recorded.device

    def call(
        self,
        target: torch._ops.OpOverload,
        *args: Any,
        shape: Sequence[Size],
        dtype: torch.dtype,
        **kwargs: Any,
    ) -> fx.Node:
        """Insert a call.

        Args:
            target: the ATen op.
            args: its positional arguments.
            shape: the sizes of its result.
            dtype: the dtype of its result.
            kwargs: its keyword arguments; one called `dtype`, where the op has it, is the result's dtype.
        """
        named = {"dtype": dtype, **kwargs} if _takes_dtype(target) else kwargs
        node = self._insert(target, args, named)
        node.meta[self._key] = fake_of_shape(self._recorded, shape, dtype)
        return node

    def first_of(
        self, target: torch._ops.OpOverload, *args: Any, shape: Sequence[Size], dtypes: Sequence[torch.dtype]
    ) -> fx.Node:
        """Insert a call that returns several tensors of one shape, and take the first.

        Args:
            target: the ATen op.
            args: its positional arguments.
            shape: the sizes of its results.
            dtypes: the dtypes of its results.
        """
        several = self._insert(target, args, {})
        several.meta[self._key] = tuple(fake_of_shape(self._recorded, shape, dtype) for dtype in dtypes)
        first = self._insert(operator.getitem, (several, 0), {})
        first.meta[self._key] = several.meta[self._key][0]
        return first

    def size(self, tensor: fx.Node, dim: int) -> int | fx.Node:
        """The size of a tensor's dim: an int if it is static, else a node that holds it.

        Raises:
            LegalizeError: if the node records no tensor.
        """
        recorded = tensor_of(tensor)
        if recorded is None:
            raise LegalizeError(f"node '{tensor.name}' has no meta['val']; run FakeTensorProp on the graph")
        size: Any = recorded.shape[dim]
        static = static_size(size)
        if static is not None:
            return static
        found = self._sizes.before(size, self._before)
        if found is None:
            found = self._insert(torch.ops.aten.sym_size.int, (tensor, dim % recorded.dim()), {})
            found.meta[self._key] = size
            self._sizes.add(found)
        return found

    def integer(self, function: Callable[..., Any], *args: int | fx.Node) -> int | fx.Node:
        """Arithmetic on sizes: an int if it is static, else a node that holds it.

        Args:
            function: of `operator`: add, sub, mul or floordiv.
            args: ints, and nodes that hold integers.
        """
        value = function(*(value_of(a) if isinstance(a, fx.Node) else a for a in args))
        static = static_size(value)
        if static is not None:
            return static
        found = self._sizes.before(value, self._before)
        if found is None:
            found = self._insert(function, args, {})
            found.meta[self._key] = value
            self._sizes.add(found)
        return found

    def scalar(self, value: float, dtype: torch.dtype) -> fx.Node:
        """A tensor of rank 0."""
        return self.call(torch.ops.aten.scalar_tensor.default, value, shape=(), dtype=dtype, device=self.device)

    def _insert(self, target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        with self._before.graph.inserting_before(self._before):
            node = self._before.graph.call_function(target, args, kwargs)
        node.meta.update(self._meta)
        return node


def shape_of_node(node: fx.Node) -> tuple[Size, ...]:
    """The sizes of a node's tensor.

    Raises:
        LegalizeError: if the node records no tensor.
    """
    recorded = tensor_of(node)
    if recorded is None:
        raise LegalizeError(f"node '{node.name}' has no meta['val']; run FakeTensorProp on the graph")
    return tuple(recorded.shape)


def dtype_of_node(node: fx.Node) -> torch.dtype:
    """The dtype of a node's tensor.

    Raises:
        LegalizeError: if the node records no tensor.
    """
    recorded = tensor_of(node)
    if recorded is None:
        raise LegalizeError(f"node '{node.name}' has no meta['val']; run FakeTensorProp on the graph")
    return recorded.dtype
