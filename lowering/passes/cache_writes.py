"""Keep what a program writes into its buffers and inputs, such as a static key/value cache, through torch_tensorrt.

An exported program ends with its writes: `copy_(cache, index_put(cache, [None, None, positions], update))`.
torch_tensorrt 2.13 erases every node that nobody uses, these writes among them, and makes the cache a weight of the
engine: the second call no longer knows what the first one wrote, and no error is raised. So the writes are taken out
in front of its passes and put back behind them.

Laws. A program that reads a buffer `b` and ends with `copy_(b, f(b, x))` is `y = f(s, x)` for an input `s = b`,
followed by `copy_(b, y)`. And `copy_(b, index_put(b, i, u))` is `index_put_(b, i, u)`, since nothing else of `b`
changes; the same holds for `scatter`, and one after the other for several. So an engine hands out the new rows alone
and PyTorch writes them, in place; the cache is not copied.

Where the laws stop: if `x` or `u` is a view of what is written, it is copied first; if a buffer is written otherwise
than at the end, or read after that, the program is refused. `aten.alias`, which torch_tensorrt leaves to PyTorch,
stands between a buffer and the engine, or the buffer would become a weight again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ...errors import TensorRTError
from ...patterns.aliasing import written_tensors
from ...patterns.known import attribute
from ...patterns.metadata import tensor_of
from ..result import Change, PassResult

_ATEN = torch.ops.aten
_IN_PLACE: dict[Any, Any] = {
    _ATEN.index_put.default: _ATEN.index_put_.default,
    _ATEN.index_copy.default: _ATEN.index_copy_.default,
    _ATEN.scatter.src: _ATEN.scatter_.src,
    _ATEN.scatter.value: _ATEN.scatter_.value,
}
"""Ops that change some elements of their first argument, and the same in place."""

_META = "attnlower_writes"
_PREFIX = "attnlower_state_"


@dataclass(frozen=True)
class _Copy:
    """A node `copy_(into, value)`."""

    node: fx.Node
    into: fx.Node
    value: fx.Node


@dataclass(frozen=True)
class _Output:
    """An operand of a write: this output of the graph."""

    position: int


@dataclass(frozen=True)
class _Write:
    """A write to be put back.

    Attributes:
        op: the in-place op.
        buffer: path of the buffer that it writes into; empty for an input.
        placeholder: name of the input that it writes into; empty for a buffer.
        arguments: its other arguments, tensors as outputs of the graph.
    """

    op: Any
    buffer: str
    placeholder: str
    arguments: tuple[Any, ...]


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
    _read_states(gm, taken.states, placeholders)
    output, values = _outputs(graph)
    written = {placeholders[w.placeholder] for w in taken.writes if w.placeholder}
    values = [_own(graph, output, value, written) for value in values]
    into: dict[str, fx.Node] = {}
    with graph.inserting_before(output):
        for write in taken.writes:
            target = placeholders.get(write.placeholder) or into.get(write.buffer)
            if target is None:
                target = into[write.buffer] = graph.get_attr(write.buffer)
                target.meta["val"] = attribute(target)
            done = graph.call_function(write.op, (target, *(_filled(a, values) for a in write.arguments)))
            done.meta["val"] = target.meta.get("val")
    output.args = (tuple(values[: taken.outputs]),)
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
    value = attribute(node) if node.op == "get_attr" else None
    if isinstance(value, torch.Tensor) and value.layout is torch.strided:
        return int(value.untyped_storage()._cdata)
    return None


def _root(node: fx.Node) -> fx.Node:
    """What a tensor is a view of, through ops whose schema says so."""
    while node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
        views = any(r.alias_info is not None for r in node.target._schema.returns)
        bases = [n for n in node.all_input_nodes if tensor_of(n) is not None]
        if not views or not bases:
            break
        node = bases[0]
    return node


def _writes_of(into: fx.Node, value: fx.Node, values: list[Any]) -> Iterator[_Write]:
    """The writes that `copy_(into, value)` comes to; their operands are appended to the outputs."""
    buffer, placeholder = (str(into.target), "") if into.op == "get_attr" else ("", into.name)
    steps: list[fx.Node] = []
    node: Any = value
    while _is_step(node):
        steps.append(node)
        node = node.args[0]
    if not steps or not _reads(node, into):
        yield _Write(_ATEN.copy_.default, buffer, placeholder, (_as_output(value, values),))
        return
    for step in reversed(steps):
        operands = tuple(_as_output(argument, values) for argument in step.args[1:])
        yield _Write(_IN_PLACE[step.target], buffer, placeholder, operands)


def _is_step(node: Any) -> bool:
    if not isinstance(node, fx.Node) or node.target not in _IN_PLACE or node.kwargs:
        return False
    return all(tensor_of(n) is not None for n in node.all_input_nodes)


def _reads(node: Any, into: fx.Node) -> bool:
    if not isinstance(node, fx.Node) or node.op != into.op:
        return False
    return node is into or (node.op == "get_attr" and node.target == into.target)


def _as_output(argument: Any, values: list[Any]) -> Any:
    """An argument with every tensor in it as an output."""
    if isinstance(argument, (list, tuple)):
        return [_as_output(entry, values) for entry in argument]
    if not isinstance(argument, fx.Node):
        return argument
    if argument not in values:
        values.append(argument)
    return _Output(values.index(argument))


def _filled(argument: Any, values: Sequence[Any]) -> Any:
    """Undoes `_as_output`."""
    if isinstance(argument, list):
        return [_filled(entry, values) for entry in argument]
    return values[argument.position] if isinstance(argument, _Output) else argument


def _states_as_inputs(gm: fx.GraphModule, memory: set[int | None]) -> dict[str, str]:
    """Replace every buffer in written memory by a new placeholder; returns the buffers by placeholder."""
    graph = gm.graph
    reads = [n for n in graph.nodes if n.op == "get_attr" and _storage(n) in memory - {None}]
    last = next((n for n in reversed(list(graph.nodes)) if n.op == "placeholder"), None)
    point = last.next if last is not None else next(iter(graph.nodes))
    states: dict[str, fx.Node] = {}
    for node in reads:
        if not node.users:
            continue
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


def _read_states(gm: fx.GraphModule, states: dict[str, str], placeholders: dict[str, fx.Node]) -> None:
    """Replace the new placeholders by their buffers."""
    for name, path in states.items():
        state = placeholders.get(name)
        if state is None:
            raise TensorRTError(f"the writes of a graph were lost: its input '{name}' is gone")
        with gm.graph.inserting_before(state):
            buffer = gm.graph.get_attr(path)
            read = gm.graph.call_function(_ATEN.alias.default, (buffer,))
        buffer.meta, read.meta = dict(state.meta), dict(state.meta)
        state.replace_all_uses_with(read)
        gm.graph.erase_node(state)
        if not read.users:
            gm.graph.erase_node(read)
            gm.graph.erase_node(buffer)


def _own(graph: fx.Graph, output: fx.Node, value: Any, written: set[fx.Node]) -> Any:
    """A value that no write changes: a copy of it if it is a view of something that is written."""
    if not isinstance(value, fx.Node):
        return value
    root = _root(value)
    if root.op != "get_attr" and root not in written:
        return value
    if root.op == "get_attr" and not any(user.target is _ATEN.alias.default for user in root.users):
        return value  # a weight
    with graph.inserting_before(output):
        copied = graph.call_function(_ATEN.clone.default, (value,))
    copied.meta["val"] = value.meta.get("val")
    return copied
