"""Copy a graph, so that the user's own is never changed."""

from __future__ import annotations

import copy

import torch
from torch import fx


def copy_graph_module(gm: fx.GraphModule) -> tuple[fx.GraphModule, dict[fx.Node, fx.Node]]:
    """A graph module with a copy of the graph and the same tensors, and the map from old to new nodes."""
    graph = fx.Graph(tracer_cls=getattr(gm.graph, "_tracer_cls", None))
    nodes: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(gm.graph, nodes, return_output_node=True)
    if output is not None:
        value, old_output = output
        new_output = graph.output(value)
        new_output.meta = dict(old_output.meta)
        nodes[old_output] = new_output
    for old_node, new_node in nodes.items():
        # Dynamo hangs an input's source on the node itself; AOTAutograd asks for it.
        for name, value in vars(old_node).items():
            if name.startswith("_dynamo") and not hasattr(new_node, name):
                object.__setattr__(new_node, name, value)
    graph.set_codegen(copy.copy(gm.graph._codegen))
    new = fx.GraphModule(gm, graph, class_name=type(gm).__name__)
    new.meta = dict(gm.meta)
    # Dynamo and export keep facts about the module in plain attributes; Inductor reads some of them.
    for name, value in vars(gm).items():
        if name not in vars(new) and not isinstance(value, (torch.nn.Module, torch.Tensor)):
            object.__setattr__(new, name, value)
    new.train(gm.training)
    return new, nodes
