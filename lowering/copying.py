"""Copy a graph, so that the user's own is never changed."""

from __future__ import annotations

import copy
import types

import torch
from torch import fx
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.fx.node import map_arg


def copy_graph_module(gm: fx.GraphModule) -> tuple[fx.GraphModule, dict[fx.Node, fx.Node]]:
    """A graph module with a copy of the graph and the same tensors, and the map from old to new nodes."""
    graph = fx.Graph(tracer_cls=getattr(gm.graph, "_tracer_cls", None))
    nodes = _copy_nodes(gm.graph, graph)
    for old_node, new_node in nodes.items():
        # Dynamo hangs an input's source on the node itself; AOTAutograd asks for it.
        for name, value in vars(old_node).items() if old_node.op == "placeholder" else ():
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
    for node in reversed(list(gm.graph.nodes)):
        gm.graph.erase_node(node)
    _copy_nodes(graph, gm.graph)
    gm.recompile()


def _copy_nodes(source: fx.Graph, graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Fill an empty graph with copies of another's nodes, names and all; the map from old to new nodes."""
    nodes: dict[fx.Node, fx.Node] = {}
    if all(hasattr(graph, name) for name in _INNARDS) and hasattr(graph._find_nodes_lookup_table, "table"):
        _insert_copies(source, graph, nodes)
        return nodes
    value = graph.graph_copy(source, nodes)
    output = next((n for n in source.nodes if n.op == "output"), None)
    if output is not None:
        nodes[output] = graph.output(value)
        nodes[output].meta = dict(output.meta)
    for old, new in nodes.items():
        rename(new, old.name)  # fx changes names such as `input`, which the signature refers to
    return nodes


_INNARDS = ("_insert", "_len", "_find_nodes_lookup_table", "_graph_namespace")


def _insert_copies(source: fx.Graph, graph: fx.Graph, nodes: dict[fx.Node, fx.Node]) -> None:
    """What `fx.Graph.graph_copy` does, in a third of its time: names are taken over, not made and checked anew."""
    names, taken = graph._graph_namespace, source._graph_namespace
    names._used_names.update(taken._used_names)
    names._base_count.update(taken._base_count)
    new_of, insert, table = nodes.__getitem__, graph._insert, graph._find_nodes_lookup_table.table
    for old in source.nodes:
        args, kwargs = old.args, old.kwargs
        args = map_arg(args, new_of) if args else ()
        kwargs = map_arg(kwargs, new_of) if kwargs else {}
        new = fx.Node(graph, old.name, old.op, old.target, args, kwargs, old.type)
        new.meta.update(old.meta)  # assigning it would look the node up
        names._obj_to_name[new] = old.name
        insert(new)
        table[old.op, old.target if old.op == "call_function" else None][new] = None
        nodes[old] = new
    graph._len += len(nodes)


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
