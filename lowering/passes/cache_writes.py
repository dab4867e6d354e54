"""Keep what a program writes into its buffers and inputs, such as a static key/value cache, through torch_tensorrt.

An exported program ends with its writes: `copy_(cache, index_put(cache, [None, None, positions], rows))`.
torch_tensorrt 2.13 erases every node that nobody uses, these writes among them, and makes the cache a weight of the
engine: the second call no longer knows what the first one wrote, and no error is raised. So the writes are taken out
in front of its passes and put back behind them.

Laws. A program that reads a buffer `b` and ends with `copy_(b, f(b, x))` is `y = f(s, x)` for an input `s = b`,
followed by `copy_(b, y)`, once everything that reads `b` is done. And `copy_(b, index_put(b, i, u))` is
`index_put_(b, i, u)`, since nothing else of `b` changes; the same holds for `scatter`, and one after the other for
several. So an engine hands out the new rows alone and PyTorch writes them, in place; the cache is not copied.

Where the laws stop: if `y` or `u` is a view of what is written, it is copied first; if a buffer is written otherwise
than at the end, or read after that, the program is refused. `aten.alias`, which torch_tensorrt leaves to PyTorch,
stands between a buffer and the engine, or the buffer would become a weight again; the ops that write take all other
results too, or a partitioner might let them run before an engine that still reads (see `writing.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ...errors import TensorRTError
from ...patterns.aliasing import memory_of_value, written_tensors
from ...patterns.known import attribute
from ...patterns.metadata import tensor_of
from ..result import Change, PassResult
from ..writing import copy_into, put_into, scatter_into

_ATEN = torch.ops.aten
_COPY, _PUT, _SCATTER = copy_into._opoverload, put_into._opoverload, scatter_into._opoverload

_META = "attnlower_writes"
_PREFIX = "attnlower_state_"


@dataclass(frozen=True)
class _Copy:
    """A node `copy_(into, value)`."""

    node: fx.Node
    into: fx.Node
    value: fx.Node


@dataclass(frozen=True)
class _Write:
    """A write to be put back.

    Attributes:
        op: one of the ops of `writing.py`.
        buffer: path of the buffer that it writes into; empty for an input.
        placeholder: name of the input that it writes into; empty for a buffer.
        dim: along which the index goes; None for a copy.
        operands: the outputs of the graph that hold its index, if it has one, and its values.
    """

    op: Any
    buffer: str
    placeholder: str
    dim: int | None
    operands: tuple[int, ...]


@dataclass(frozen=True)
class _Rows:
    """A node that gives its first argument with some elements changed."""

    op: Any
    changed: fx.Node
    dim: int
    operands: tuple[fx.Node, fx.Node]


@dataclass(frozen=True)
class _Taken:
    """What `take_out_writes` did to a graph.

    Attributes:
        states: the buffers that became inputs, by the name of their placeholder.
        writes: the writes, in order.
        outputs: number of outputs that the graph had.
        codegen: what makes its `forward`.
    """

    states: dict[str, str]
    writes: tuple[_Write, ...]
    outputs: int
    codegen: Any


def take_out_writes(gm: fx.GraphModule) -> PassResult:
    """Make written buffers inputs of the graph, and what is written outputs; in place.

    Args:
        gm: the module of an exported program: ATen ops, writes at the end. Until `put_back_writes` it cannot be called.

    Raises:
        TensorRTError: if something is written in a way that torch_tensorrt would forget and that is not understood.
    """
    epilogue = _epilogue(gm)
    if not epilogue:
        return PassResult("cache_writes")
    output, values = _outputs(gm.graph)
    given = len(values)
    writes: list[_Write] = []
    changes: list[Change] = []
    for copy in epilogue:
        if copy.value is not copy.into:
            found = list(_writes_of(copy.into, copy.value, values))
            writes += found
            changes.append(Change(copy.into.name, "", f"written in PyTorch by {', '.join(str(w.op) for w in found)}"))
    output.args = (tuple(values),)
    memory = {_storage(copy.into) for copy in epilogue}
    for copy in epilogue:
        gm.graph.erase_node(copy.node)
    states = _states_as_inputs(gm, memory)
    gm.meta[_META] = _Taken(states, tuple(writes), given, gm.graph._codegen)
    gm.graph.set_codegen(fx.graph.CodeGen())
    gm.graph.lint()
    gm.recompile()
    return PassResult("cache_writes", tuple(changes))


def put_back_writes(gm: fx.GraphModule) -> PassResult:
    """Undo `take_out_writes`: buffers are read and written by PyTorch; in place.

    Raises:
        TensorRTError: if the graph was replaced in between by one without the writes.
    """
    taken: _Taken | None = gm.meta.pop(_META, None)
    graph = gm.graph
    placeholders = {n.name: n for n in graph.nodes if n.op == "placeholder"}
    if taken is None:
        if any(name.startswith(_PREFIX) for name in placeholders):
            raise TensorRTError("the writes of a graph were lost: a lowering pass replaced its module")
        return PassResult("cache_writes")
    states = _read_states(gm, taken.states, placeholders)
    output, values = _outputs(graph)
    written = {*states.values(), *(placeholders[w.placeholder] for w in taken.writes if w.placeholder)}
    values = [_own(graph, output, value, written) for value in values]
    after = [value for value in values if isinstance(value, fx.Node) and tensor_of(value) is not None]
    with graph.inserting_before(output):
        for op in (_COPY, _PUT, _SCATTER):
            group = [write for write in taken.writes if write.op is op]
            if not group:
                continue
            into = [placeholders[w.placeholder] if w.placeholder else states[w.buffer] for w in group]
            operands = [list(column) for column in zip(*([values[i] for i in w.operands] for w in group), strict=True)]
            dims = [] if op is _COPY else [[w.dim for w in group]]
            graph.call_function(op, (into, *dims, *operands, after)).meta["val"] = None
    output.args = (tuple(values[: taken.outputs]),)
    for read in states.values():
        if not read.users:
            graph.erase_node(read)
    graph.set_codegen(taken.codegen)
    graph.lint()
    gm.recompile()
    changes = tuple(Change(w.buffer or w.placeholder, "", str(w.op)) for w in taken.writes)
    return PassResult("cache_writes", changes)


def _outputs(graph: fx.Graph) -> tuple[fx.Node, list[Any]]:
    """The output node and what it returns.

    Raises:
        TensorRTError: if that is no tuple.
    """
    output = next(n for n in graph.nodes if n.op == "output")
    values = output.args[0]
    if not isinstance(values, (tuple, list)):
        raise TensorRTError("a graph that writes into buffers or inputs must return a tuple")
    return output, list(values)


def _epilogue(gm: fx.GraphModule) -> list[_Copy]:
    """The `copy_` nodes that end a program.

    Raises:
        TensorRTError: if a buffer or an input is written otherwise, twice, or read after it was written.
    """
    found: list[_Copy] = []
    memory: set[int | None] = set()
    for node in gm.graph.nodes:
        targets = [w for w in written_tensors(node) if _root(w).op in ("get_attr", "placeholder")]
        stale = node.op != "output" and any(_storage(_root(n)) in memory for n in node.all_input_nodes)
        if not targets and not stale:
            continue
        plain = node.target is _ATEN.copy_.default and len(node.args) == 2 and not node.kwargs and not node.users
        into, value = node.args[:2] if plain else (None, None)
        if stale or not isinstance(into, fx.Node) or not isinstance(value, fx.Node) or _storage(into) is None:
            raise TensorRTError(
                f"'{node.name}' writes into a buffer or an input, or reads it after that, in a way that torch_tensorrt "
                "would forget; hand it an exported program whose writes are functional (run_decompositions)"
            )
        found.append(_Copy(node, into, value))
        memory.add(_storage(into))
    return found


def _storage(node: fx.Node) -> int | None:
    """What identifies the memory of a buffer or an input; None for anything else."""
    if node.op == "placeholder":
        return id(node)
    return memory_of_value(attribute(node)) if node.op == "get_attr" else None


def _root(node: fx.Node) -> fx.Node:
    """What a tensor is a view of."""
    *_, root = _views(node)
    return root


def _views(node: fx.Node) -> Iterator[fx.Node]:
    """A tensor, what it is a view of, and so on, through ops whose schema says so."""
    yield node
    while node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
        views = any(r.alias_info is not None for r in node.target._schema.returns)
        bases = [n for n in node.all_input_nodes if tensor_of(n) is not None]
        if not views or not bases:
            return
        node = bases[0]
        yield node


def _writes_of(into: fx.Node, value: fx.Node, values: list[Any]) -> Iterator[_Write]:
    """The writes that `copy_(into, value)` comes to; their operands are appended to the outputs."""
    buffer, placeholder = (str(into.target), "") if into.op == "get_attr" else ("", into.name)
    steps: list[_Rows] = []
    changed = value
    while (rows := _rows(changed)) is not None:
        steps.append(rows)
        changed = rows.changed
    if not _reads(changed, into) or len({rows.op for rows in steps}) != 1:
        yield _Write(_COPY, buffer, placeholder, None, (_as_output(value, values),))
        return
    for rows in reversed(steps):
        yield _Write(rows.op, buffer, placeholder, rows.dim, tuple(_as_output(n, values) for n in rows.operands))


def _rows(node: fx.Node) -> _Rows | None:
    """What a node changes of its first argument, if it is one of the known ops; None if it is not."""
    arguments: tuple[Any, ...] = node.args
    if node.op != "call_function" or node.kwargs:
        return None
    if node.target is _ATEN.index_put.default:
        changed, indices, values, *accumulate = arguments
        places = [position for position, index in enumerate(indices) if index is not None]
        if len(places) != 1 or any(accumulate):
            return None
        op, dim, index = _PUT, places[0], indices[places[0]]
    elif node.target is _ATEN.index_copy.default:
        op, (changed, dim, index, values) = _PUT, arguments
    elif node.target is _ATEN.scatter.src:
        op, (changed, dim, index, values) = _SCATTER, arguments
    else:
        return None
    into, at, value = (tensor_of(n) if isinstance(n, fx.Node) else None for n in (changed, index, values))
    if into is None or at is None or value is None or at.dtype is torch.bool or not into.dim():
        return None
    return _Rows(op, changed, dim % into.dim(), (index, values))


def _reads(node: fx.Node, into: fx.Node) -> bool:
    return node is into or (node.op == into.op == "get_attr" and node.target == into.target)


def _as_output(value: fx.Node, values: list[Any]) -> int:
    if value not in values:
        values.append(value)
    return values.index(value)


def _states_as_inputs(gm: fx.GraphModule, memory: set[int | None]) -> dict[str, str]:
    """Replace every buffer in written memory by a new placeholder; returns the buffers by placeholder."""
    graph = gm.graph
    reads = [n for n in graph.nodes if n.op == "get_attr" and _storage(n) in memory - {None}]
    last = next((n for n in reversed(list(graph.nodes)) if n.op == "placeholder"), None)
    point = last.next if last is not None else next(iter(graph.nodes))
    states: dict[str, fx.Node] = {}
    for node in reads:
        path = str(node.target)
        if path not in states:
            if tensor_of(node) is None:
                raise TensorRTError(f"the buffer '{path}' has no meta['val']")
            with graph.inserting_before(point):
                states[path] = graph.placeholder(f"{_PREFIX}{len(states)}")
            states[path].meta = dict(node.meta)
        node.replace_all_uses_with(states[path])
    for node in reads:
        graph.erase_node(node)
    return {node.name: path for path, node in states.items()}


def _read_states(gm: fx.GraphModule, states: dict[str, str], placeholders: dict[str, fx.Node]) -> dict[str, fx.Node]:
    """Replace the new placeholders by their buffers, read through `aten.alias`; returns these by path."""
    reads: dict[str, fx.Node] = {}
    for name, path in states.items():
        state = placeholders.get(name)
        if state is None:
            raise TensorRTError(f"the writes of a graph were lost: its input '{name}' is gone")
        with gm.graph.inserting_before(state):
            buffer = gm.graph.get_attr(path)
            reads[path] = gm.graph.call_function(_ATEN.alias.default, (buffer,))
        buffer.meta, reads[path].meta = dict(state.meta), dict(state.meta)
        state.replace_all_uses_with(reads[path])
        gm.graph.erase_node(state)
    return reads


def _own(graph: fx.Graph, output: fx.Node, value: Any, written: set[fx.Node]) -> Any:
    """A value that no write changes: a copy of it if it is a view of something that is written."""
    if not isinstance(value, fx.Node) or not any(view in written for view in _views(value)):
        return value
    with graph.inserting_before(output):
        copied = graph.call_function(_ATEN.clone.default, (value,))
    copied.meta["val"] = value.meta.get("val")
    return copied
