"""Who writes into whose memory: what a mask means depends on every write into it and into its views.

Everything is read from schemas, names and recorded storages; where these say nothing, a write is assumed.
"""

from __future__ import annotations

import functools
import operator
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from .metadata import tensor_of


def op_name(node: fx.Node) -> str:
    """The bare name of what a node calls: ``add`` for `aten.add.Tensor`, `torch.add`, `operator.add` and `x.add`."""
    return name_of(node.target)


def name_of(target: Any) -> str:
    """The bare name of a node's target, as `op_name`."""
    if isinstance(target, str):
        return target
    if isinstance(target, torch._ops.OpOverload):
        return str(target.overloadpacket.__name__)
    return str(getattr(target, "__name__", target))


_DRAWING = ("rand", "dropout", "bernoulli", "multinomial", "normal", "poisson", "exponential", "uniform", "empty")


def draws_or_nests(node: fx.Node) -> bool:
    """True if a second call with equal arguments may give another value: random numbers, unset memory, vmap levels."""
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return True
    if isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags:
        return True
    name = op_name(node)
    module = str(getattr(node.target, "__module__", "") or "")
    return any(word in name for word in _DRAWING) or "functorch" in module


def written_tensors(node: fx.Node) -> list[fx.Node]:
    """The argument nodes into whose memory a node writes."""
    if node.op not in ("call_function", "call_method"):
        return []
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return _schema_writes(node, target)
    writes: list[Any] = []
    if _writes_first(target) and node.args:
        writes.append(node.args[0])
    if kwargs := node.kwargs:
        if kwargs.get("inplace") is True:
            writes.append(node.args[0] if node.args else kwargs.get("input"))
        writes.append(kwargs.get("out"))
    if not writes:  # of nearly every node, and walking a tree takes its time
        return []
    return [w for w in tree_leaves(writes) if isinstance(w, fx.Node)]


@functools.lru_cache(maxsize=1024)  # every node of a graph is asked, and they call a few functions
def _writes_first(target: Any) -> bool:
    """True if a function or method writes into its first argument, by its name: `add_`, `setitem`, `operator.iadd`."""
    name = name_of(target)
    if name.endswith("_"):
        # operator.and_ and or_ end in an underscore because `and` is a keyword; they write nothing
        if not name.endswith("__"):
            return getattr(target, "__module__", "") != "_operator"
        name = name.removeprefix("__").removesuffix("__")
    return name in _WRITING_OPERATORS


_WRITING_OPERATORS = frozenset(
    {"setitem", "iadd", "isub", "imul", "imatmul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor"}
    | {"ilshift", "irshift"}
)


_PURE_OPERATORS: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.imod: operator.mod,
    operator.iand: operator.and_,
    operator.ior: operator.or_,
    operator.ixor: operator.xor,
    torch.ops.aten.add_.Tensor: torch.ops.aten.add.Tensor,
    torch.ops.aten.sub_.Tensor: torch.ops.aten.sub.Tensor,
    torch.ops.aten.mul_.Tensor: torch.ops.aten.mul.Tensor,
    torch.ops.aten.bitwise_and_.Tensor: torch.ops.aten.bitwise_and.Tensor,
    torch.ops.aten.bitwise_or_.Tensor: torch.ops.aten.bitwise_or.Tensor,
}
"""In-place operators and what they are without the write."""


def private_writes(graph: fx.Graph) -> dict[fx.Node, Any]:
    """In-place operators whose write nobody can see, each with the operator that gives the same value without it.

    `x += y` is `x + y` if x was made for it: nothing else uses x or shares its memory, and the dtype stays.
    """
    candidates = [n for n in graph.nodes if n.op == "call_function" and n.target in _PURE_OPERATORS]
    if not candidates:
        return {}
    sharing = Counter(memory for n in graph.nodes if (memory := memory_of(n)) is not None)
    return {n: _PURE_OPERATORS[n.target] for n in candidates if _writes_privately(n, sharing)}


def _writes_privately(node: fx.Node, sharing: Mapping[int, int]) -> bool:
    if len(node.args) != 2:
        return False
    written, other = node.args
    if not isinstance(written, fx.Node) or written.op not in ("call_function", "call_method"):
        return False
    if len(list(_view_bases(written))) != 1:  # a loaded program records no memory that views share
        return False
    before, after, memory = tensor_of(written), tensor_of(node), memory_of(written)
    if before is None or after is None or memory is None or len(written.users) != 1:
        return False
    # the value and the result of the operator itself are the only two that may share the memory
    shared = sharing[memory] - (1 if memory_of(node) == memory else 0)
    operand = tensor_of(other)
    same_dtype = operand.dtype == before.dtype if operand is not None else isinstance(other, int)
    return shared == 1 and before.dtype == after.dtype and before.dtype.is_floating_point is False and same_dtype


def _schema_writes(node: fx.Node, target: torch._ops.OpOverload) -> list[fx.Node]:
    found = [
        node.args[position] if position < len(node.args) else node.kwargs.get(name)
        for position, name in _written_arguments(target)
    ]
    return [w for w in tree_leaves(found) if isinstance(w, fx.Node)] if found else []


@functools.lru_cache(maxsize=4096)
def _written_arguments(target: torch._ops.OpOverload) -> tuple[tuple[int, str], ...]:
    """The arguments that an ATen op writes to, by position and name."""
    return tuple(
        (position, argument.name)
        for position, argument in enumerate(target._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def writes_into(writer: fx.Node, inner: set[fx.Node], boundary: set[fx.Node]) -> bool:
    """True if a node writes into a tensor of the closure, directly or through a view."""
    storages = {s for n in (*inner, *boundary) if (s := memory_of(n)) is not None}
    for written in written_tensors(writer):
        if written in inner or written in boundary or memory_of(written) in storages:
            return True
        if any(base in inner or base in boundary for base in _view_bases(written)):
            return True
    return False


def memory_of(node: fx.Node) -> int | None:
    """A number that stands for the memory behind a node's tensor; None if it is not recorded."""
    return memory_of_value(tensor_of(node))


def memory_of_value(value: object) -> int | None:
    """A number that stands for the memory behind a tensor, the same for all its views; None for anything else."""
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        return None
    try:
        return int(value.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return None


def _view_bases(node: fx.Node) -> Iterator[fx.Node]:
    """The chain of tensors that a value may be a view of."""
    current: fx.Node | None = node
    seen: set[fx.Node] = set()
    while current is not None and current not in seen and current.op in ("call_function", "call_method"):
        seen.add(current)
        yield current
        if isinstance(current.target, torch._ops.OpOverload):
            views = any(r.alias_info is not None for r in current.target._schema.returns)
        else:
            views = op_name(current) in _VIEW_NAMES or bool(written_tensors(current))
        bases = [n for n in current.all_input_nodes if tensor_of(n) is not None]
        current = bases[0] if views and bases else None
    if current is not None:
        yield current


_VIEW_NAMES = frozenset(
    {"getitem", "view", "reshape", "expand", "expand_as", "unsqueeze", "squeeze", "transpose", "permute", "narrow", "t"}
    | {"select", "chunk", "split", "unbind", "detach", "contiguous", "to", "flatten", "movedim", "swapaxes", "view_as"}
    | {"diagonal", "unfold", "as_strided", "type", "float", "bool", "long", "int", "mT", "T"}
)
