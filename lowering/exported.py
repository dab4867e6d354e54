"""ExportedPrograms: take one apart for reading, and put the rewritten graph back with a valid signature."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import fx
from torch.export import ExportedProgram, ModuleCallEntry
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument

from ..patterns.aliasing import memory_of_value, writes_into, written_tensors
from ..patterns.known import is_literal_name
from ..patterns.sizes import ranges_of


def lifted_constants(program: ExportedProgram) -> dict[str, torch.Tensor]:
    """Constant tensors (not parameters, not buffers) by the name of their placeholder."""
    return _unchanging(program, InputKind.CONSTANT_TENSOR)


def fixed_buffers(program: ExportedProgram) -> dict[str, torch.Tensor]:
    """Buffers, persistent or not, that the program does not write into, by the name of their placeholder."""
    return _unchanging(program, InputKind.BUFFER)


def _unchanging(program: ExportedProgram, kind: InputKind) -> dict[str, torch.Tensor]:
    """Tensors of a kind that no run of the program changes.

    A program that is not functionalised writes into buffers without listing them in its signature. Memory that is
    shared with a written buffer or with a parameter counts as written.
    """
    signature = program.graph_signature
    tensors = {**program.constants, **program.state_dict}
    nodes = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
    writers = [n for n in program.graph.nodes if written_tensors(n)]

    def written(spec: InputSpec) -> bool:
        if spec.kind is InputKind.PARAMETER or spec.target in signature.buffers_to_mutate.values():
            return True
        node = nodes.get(spec.arg.name)
        return spec.kind is InputKind.BUFFER and any(writes_into(w, set(), {node}) for w in writers if node is not None)

    own = [spec for spec in signature.input_specs if spec.target is not None]
    changing = {memory_of_value(tensors.get(str(spec.target))) for spec in own if written(spec)}
    return {
        spec.arg.name: value
        for spec in own
        if spec.kind is kind
        and isinstance(value := tensors.get(str(spec.target)), torch.Tensor)
        and memory_of_value(value) not in changing
    }


def origins(program: ExportedProgram) -> dict[str, str]:
    """What a report calls the tensors that a program brings along, by the name of their placeholder."""
    words = {InputKind.BUFFER: "buffer", InputKind.CONSTANT_TENSOR: "constant"}
    return {
        spec.arg.name: f"{words[spec.kind]} '{spec.target}'"
        for spec in program.graph_signature.input_specs
        if spec.kind in words and not is_literal_name(str(spec.target))
    }


def user_inputs(program: ExportedProgram) -> dict[str, str]:
    """The user's tensor inputs: name to name of the placeholder."""
    return {
        spec.arg.name: spec.arg.name
        for spec in program.graph_signature.input_specs
        if spec.kind is InputKind.USER_INPUT and isinstance(spec.arg, TensorArgument)
    }


def size_ranges(program: ExportedProgram) -> dict[str, tuple[int, int | None]]:
    """The inclusive ranges of the program's size symbols."""
    return ranges_of(program.range_constraints)


def with_graph(program: ExportedProgram, gm: fx.GraphModule) -> ExportedProgram:
    """The program with another graph that has the same inputs and as many outputs.

    Weights, buffers and constants are the same tensor objects as the program's.
    """
    signature = copy.deepcopy(program.graph_signature)
    output = next(n for n in gm.graph.nodes if n.op == "output")
    renamed: dict[str, str] = {}
    for spec, value in zip(signature.output_specs, output.args[0], strict=True):
        if isinstance(value, fx.Node) and hasattr(spec.arg, "name") and spec.arg.name != value.name:
            renamed[spec.arg.name] = value.name
            spec.arg.name = value.name
    return ExportedProgram(
        root=gm,
        graph=gm.graph,
        graph_signature=signature,
        state_dict=program.state_dict,
        range_constraints=copy.deepcopy(program.range_constraints),
        module_call_graph=_renamed(program.module_call_graph, renamed),
        example_inputs=program.example_inputs,
        constants=program.constants,
        verifiers=list(program.verifiers),
    )


def _renamed(module_call_graph: list[ModuleCallEntry], renamed: Mapping[str, str]) -> list[ModuleCallEntry]:
    """A copy of the module call graph in which outputs carry the names they have now."""
    copied = copy.deepcopy(module_call_graph)
    for entry in copied:
        signature = getattr(entry, "signature", None)
        for argument in (*getattr(signature, "inputs", ()), *getattr(signature, "outputs", ())):
            if getattr(argument, "name", None) in renamed:
                argument.name = renamed[argument.name]
    return copied
