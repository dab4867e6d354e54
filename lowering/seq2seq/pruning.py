"""Leave out of an exported program what it does not use: computations, and weights that only they used."""

from __future__ import annotations

import copy

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from ...patterns.aliasing import written_tensors
from ..copying import copy_graph_module
from ..exported import with_graph

_ATEN = torch.ops.aten


def pruned(program: ExportedProgram) -> ExportedProgram:
    """The program without dead code, and without the parameters, buffers and constants that nothing reads.

    Dropout that does nothing goes, and checks of dtypes and devices, which are fixed in a program, go too: both would
    keep alive what they touch. The user's inputs all stay. Tensors are shared with the given program.
    """
    gm, _ = copy_graph_module(program.graph_module)
    for node in list(gm.graph.nodes):
        if node.target is _ATEN._assert_tensor_metadata.default:
            gm.graph.erase_node(node)
        elif node.target is _ATEN.dropout.default and node.args[2] is False:
            node.replace_all_uses_with(node.args[0])
            gm.graph.erase_node(node)
    gm.graph.eliminate_dead_code(is_impure_node=_acts)
    gm.recompile()
    return _without_unused(with_graph(program, gm))


def _acts(node: fx.Node) -> bool:
    """True if a node must stay although nothing uses its value. One that draws random numbers need not."""
    if node.op != "call_function":
        return True
    return bool(written_tensors(node)) or "assert" in str(node.target) or "sym_constrain" in str(node.target)


def _without_unused(program: ExportedProgram) -> ExportedProgram:
    signature = copy.copy(program.graph_signature)
    mutated = {*signature.buffers_to_mutate.values()}
    nodes = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
    kept = [
        s
        for s in signature.input_specs
        if s.kind is InputKind.USER_INPUT or s.target in mutated or nodes[s.arg.name].users
    ]
    for spec in signature.input_specs:
        if spec not in kept:
            program.graph.erase_node(nodes[spec.arg.name])
    program.graph_module.recompile()
    signature.input_specs = kept
    targets = {s.target for s in kept}
    return ExportedProgram(
        root=program.graph_module,
        graph=program.graph,
        graph_signature=signature,
        state_dict={name: t for name, t in program.state_dict.items() if name in targets},
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants={name: c for name, c in program.constants.items() if name in targets},
        verifiers=list(program.verifiers),
    )
