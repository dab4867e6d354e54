"""Copy a graph, so that the user's own is never changed."""

from __future__ import annotations

import copy
import types

import torch
from torch import fx
from torch.fx._lazy_graph_module import _LazyGraphModule


def copy_graph_module(gm: fx.GraphModule) -> tuple[fx.GraphModule, dict[fx.Node, fx.Node]]:
    """A graph module with a copy of the graph and the same tensors, and the map from old to new nodes."""
    graph = fx.Graph(tracer_cls=getattr(gm.graph, "_tracer_cls", None))
    nodes: dict[fx.Node, fx.Node] = {}
    value = graph.graph_copy(gm.graph, nodes)
    old_output = next((n for n in gm.graph.nodes if n.op == "output"), None)
    if old_output is not None:
        nodes[old_output] = graph.output(value)
        nodes[old_output].meta = dict(old_output.meta)
    for old_node, new_node in nodes.items():
        rename(new_node, old_node.name)  # fx changes names such as `input`, which the signature refers to
        # Dynamo hangs an input's source on the node itself; AOTAutograd asks for it.
        for name, value in vars(old_node).items():
            if name.startswith("_dynamo") and not hasattr(new_node, name):
                object.__setattr__(new_node, name, value)
    graph.set_codegen(copy.copy(gm.graph._codegen))
    new = _class_for(gm)(gm, graph, class_name=type(gm).__name__)
    new.meta = dict(gm.meta)
    _copy_module_state(gm, new)
    # Dynamo and export keep facts about the module in plain attributes; Inductor reads some of them.
    for name, fact in vars(gm).items():
        if name in vars(new) or isinstance(fact, (torch.nn.Module, torch.Tensor)):
            continue
        own_method = isinstance(fact, types.MethodType) and fact.__self__ is gm
        object.__setattr__(new, name, types.MethodType(fact.__func__, new) if own_method else fact)
    return new, nodes


def _class_for(gm: fx.GraphModule) -> type[fx.GraphModule]:
    """Dynamo's modules write their Python code when it is first run, which Inductor never does; so do their copies."""
    return _LazyGraphModule if isinstance(gm, _LazyGraphModule) else fx.GraphModule


def restore_graph(gm: fx.GraphModule, graph: fx.Graph) -> None:
    """Fill the graph of a module, the object itself, with the nodes of another."""
    own = gm.graph
    for node in reversed(list(own.nodes)):
        own.erase_node(node)
    nodes: dict[fx.Node, fx.Node] = {}
    value = own.graph_copy(graph, nodes)
    output = next((n for n in graph.nodes if n.op == "output"), None)
    if output is not None:
        nodes[output] = own.output(value)
        nodes[output].meta = dict(output.meta)
    for old, new in nodes.items():
        rename(new, old.name)
    gm.recompile()


def rename(node: fx.Node, name: str) -> None:
    """Give a node exactly this name, which no other node of its graph may have."""
    if node.name != name:
        node.name = name
        node.graph._graph_namespace._rename_object(node, name)


_HOOKS = tuple(name for name in vars(torch.nn.Module()) if name.startswith(("_forward_", "_backward_")))


def _copy_module_state(gm: fx.GraphModule, new: fx.GraphModule) -> None:
    """What `fx.GraphModule` makes anew: hooks, training flags, which buffers are saved, which tensors are no buffers.

    Modules that the graph calls are the user's own objects and stay as they are (`Module.train` would reach into them).
    """
    for name in _HOOKS:
        object.__setattr__(new, name, copy.copy(getattr(gm, name)))
    originals = dict(gm.named_modules(remove_duplicate=False))
    for path, module in new.named_modules(remove_duplicate=False):
        original = originals.get(path)
        if original is None or original is module:
            continue
        module.training = original.training
        for name in list(module._buffers):
            if name in original._non_persistent_buffers_set:
                module._non_persistent_buffers_set.add(name)
            elif name not in original._buffers:
                tensor = module._buffers.pop(name)
                object.__setattr__(module, name, tensor)
