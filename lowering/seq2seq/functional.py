"""Exported programs that give what they would write into their inputs as further outputs.

Law: a program that ends with `x <- index_put(x, i, rows)` is one that returns `i` and `rows`, followed by
that write. Only the new rows leave the program; the cache stays where it is. A write of another form returns all that
the input becomes. A view of what is written is copied before it leaves.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, OutputSpec, TensorArgument
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.utils._pytree import tree_structure

from ...errors import ProgramError
from ...patterns.metadata import tensor_of
from ..copying import copy_graph_module

_ATEN = torch.ops.aten
Decompositions = Mapping[Any, Callable[..., Any]]


@dataclass(frozen=True)
class Write:
    """A write that the caller makes.

    Attributes:
        into: place of the written tensor among the flat user inputs.
        dim: along which `index` goes; None if the whole tensor is replaced.
        index: place of the index among the outputs; None if the whole tensor is replaced.
        values: place of what is written among the outputs.
    """

    into: int
    dim: int | None
    index: int | None
    values: int

    def make(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Write what a run has returned into the inputs that it was given."""
        cell, values = inputs[self.into], outputs[self.values]
        if self.dim is None or self.index is None:
            cell.copy_(values)
        else:
            _ATEN.index_put_(cell, [*[None] * self.dim, outputs[self.index]], values)


@dataclass(frozen=True)
class FunctionalProgram:
    """A program that writes nothing.

    Attributes:
        program: its outputs are flat: the user's, then what is to be written.
        outputs: number of the user's.
        writes: what the caller writes after a run.
    """

    program: ExportedProgram
    outputs: int
    writes: tuple[Write, ...]


def functional(program: ExportedProgram, decompositions: Decompositions) -> FunctionalProgram:
    """Take the writes into inputs out of a program.

    Args:
        program: it may write into the user's inputs, not into buffers. It is not changed.
        decompositions: as of `ExportedProgram.run_decompositions`.

    Raises:
        ProgramError: if it writes into buffers, or returns something else than tensors.
    """
    done = program.run_decompositions(dict(decompositions))
    gm, _ = copy_graph_module(done.graph_module)
    signature = copy.deepcopy(done.graph_signature)
    output = gm.graph.output_node()
    values: list[Any] = list(output.args[0])  # type: ignore[arg-type]
    inputs = [spec.arg.name for spec in signature.input_specs if spec.kind is InputKind.USER_INPUT]
    pairs = list(zip(signature.output_specs, values, strict=True))
    if any(spec.kind not in (OutputKind.USER_OUTPUT, OutputKind.USER_INPUT_MUTATION) for spec, _ in pairs):
        raise ProgramError("a program that writes into buffers cannot be made functional")
    written = [(spec, node) for spec, node in pairs if spec.kind is OutputKind.USER_INPUT_MUTATION]
    kept = [node for spec, node in pairs if spec.kind is OutputKind.USER_OUTPUT]
    outputs = len(kept)
    writes = [_write(inputs.index(str(spec.target)), str(spec.target), node, kept) for spec, node in written]
    if any(not isinstance(node, fx.Node) or tensor_of(node) is None for node in kept):
        raise ProgramError("a program that returns something else than tensors cannot be made functional")
    targets = {str(spec.target) for spec, _ in written}
    kept = [_own(gm.graph, output, node, targets) for node in kept]
    output.args = (tuple(kept),)
    gm.graph.eliminate_dead_code()
    gm.recompile()
    signature.output_specs = [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(node.name), None) for node in kept]
    return FunctionalProgram(_program(done, gm, signature), outputs, tuple(writes))


def _write(into: int, name: str, value: fx.Node, kept: list[fx.Node]) -> Write:
    """What is written into an input; its operands are appended to the outputs."""
    rows = _rows(value, name)
    if rows is None:
        return Write(into, None, None, _place(value, kept))
    dim, index, values = rows
    return Write(into, dim, _place(index, kept), _place(values, kept))


def _rows(value: fx.Node, name: str) -> tuple[int, fx.Node, fx.Node] | None:
    """Dim, index and values of a write into some rows of the input of that name; None if it is another write."""
    if value.kwargs or not value.args or not isinstance(value.args[0], fx.Node) or value.args[0].name != name:
        return None
    arguments: Any = value.args
    if value.target is _ATEN.index_copy.default:
        _, dim, index, values = arguments
    elif value.target is _ATEN.index_put.default and len(arguments) == 3:
        _, indices, values = arguments
        places = [i for i, place in enumerate(indices) if place is not None]
        if len(places) != 1:
            return None
        dim, index = places[0], indices[places[0]]
    else:
        return None
    cell, at, new = tensor_of(value), tensor_of(index), tensor_of(values)
    if cell is None or at is None or new is None or at.dim() != 1 or at.dtype is torch.bool or new.dim() != cell.dim():
        return None
    dim %= cell.dim()
    wanted = [at.shape[0] if i == dim else size for i, size in enumerate(cell.shape)]
    if not all(statically_known_true(a == b) for a, b in zip(new.shape, wanted, strict=True)):
        return None
    return dim, index, values


def _own(graph: fx.Graph, output: fx.Node, node: Any, written: set[str]) -> Any:
    """The value, or a copy of it if it is a view of an input that is written."""
    root = node
    while isinstance(root, fx.Node) and root.op == "call_function" and isinstance(root.target, torch._ops.OpOverload):
        views = any(r.alias_info is not None for r in root.target._schema.returns)
        if not views or not root.all_input_nodes:
            return node
        root = root.all_input_nodes[0]
    if not isinstance(root, fx.Node) or root.name not in written:
        return node
    with graph.inserting_before(output):
        copied = graph.call_function(_ATEN.clone.default, (node,))
    copied.meta = dict(node.meta)
    return copied


def _place(node: fx.Node, kept: list[fx.Node]) -> int:
    if node not in kept:
        kept.append(node)
    return kept.index(node)


def _program(done: ExportedProgram, gm: fx.GraphModule, signature: Any) -> ExportedProgram:
    calls = copy.deepcopy(done.module_call_graph)
    whole = calls[0].signature
    if whole is not None:
        whole.outputs = []  # only those of submodules are named
        whole.out_spec = tree_structure(tuple(signature.output_specs))
    return ExportedProgram(
        root=gm,
        graph=gm.graph,
        graph_signature=signature,
        state_dict=done.state_dict,
        range_constraints=copy.deepcopy(done.range_constraints),
        module_call_graph=calls[:1],
        example_inputs=done.example_inputs,
        constants=done.constants,
        verifiers=list(done.verifiers),
    )
