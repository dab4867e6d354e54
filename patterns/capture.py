"""Bring the subgraph that computes a mask into functional ATen form, whatever capture the graph came from.

The ancestors of the mask are copied into a small graph and traced once with make_fx on the graph's own fake tensors,
so a Dynamo graph of torch functions, an ExportedProgram's graph with composite ops and sub-graphs, and a post-AOT
graph are all read through one vocabulary. Functionalisation turns in-place writes into values, so an index write into
a mask is read like any other op. Nodes that write into a tensor the mask depends on (or into an alias of it) belong
to its ancestors too.

Tracing replays ops that were traced before, so every size question it asks has been asked before and no guard arises.
Should one arise all the same, the capture is refused and the ShapeEnv stays as it was.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

from ..errors import CaptureError
from .aliasing import draws_or_nests, op_name, private_writes, writes_into, written_tensors
from .expr import CellRef
from .known import attribute, equal_tensors, known_tensors
from .metadata import input_label, tensor_of, value_of
from .sizes import shape_env_of

_COMPUTE = frozenset(
    {"linear", "matmul", "bmm", "mm", "addmm", "baddbmm", "conv1d", "conv2d", "convolution", "layer_norm", "softmax"}
    | {"native_layer_norm", "rms_norm", "scaled_dot_product_attention", "einsum", "_softmax", "group_norm", "attention"}
)
"""Ops at which walking up stops: what lies above them is the model's arithmetic, not a mask."""


@dataclass(frozen=True)
class CapturedMasks:
    """The functional ATen graph of some masks.

    Attributes:
        graph_module: computes all of them; its placeholders are the boundary.
        outputs: for each mask node of the original graph, the node (or constant) that holds it here.
        labels: how each boundary tensor is shown and whether it is an input of the original graph.
        inputs: the original node behind each boundary placeholder.
        constants: boundary tensors known by value; of several that are equal only the first is there.
        sources: for each mask the original nodes that it is computed from.
        fixed: those among them that are known by value.
        ancestors: the original nodes that were copied, in order.
        mutates: True if some of them write into tensors.
        refused: masks that were not captured, with the reason.
    """

    graph_module: fx.GraphModule
    outputs: Mapping[fx.Node, Any]
    labels: Mapping[str, CellRef]
    inputs: Mapping[str, fx.Node]
    constants: Mapping[str, torch.Tensor] = field(default_factory=dict)
    sources: Mapping[fx.Node, frozenset[fx.Node]] = field(default_factory=dict)
    fixed: frozenset[fx.Node] = frozenset()
    ancestors: tuple[fx.Node, ...] = ()
    mutates: bool = False
    refused: Mapping[fx.Node, str] = field(default_factory=dict)


def capture_masks(
    gm: fx.GraphModule,
    uses: Mapping[fx.Node, Sequence[fx.Node]],
    constants: Mapping[str, torch.Tensor] | None = None,
) -> CapturedMasks:
    """Trace the mask nodes of a graph into one functional ATen graph.

    Args:
        gm: the graph; it is not changed.
        uses: the mask nodes, each with the attention calls that read it. A mask means what it holds when it is read;
            one that is written to between its uses is refused.
        constants: tensors known by value, by placeholder or attribute name (an ExportedProgram's lifted constants).

    Raises:
        CaptureError: if a value is not recorded, the trace fails, or it would need a guard on a size.
    """
    closures, refused = _closures(gm.graph, uses)
    try:
        return _captured(gm, uses, closures, refused, constants or {})
    except CaptureError:
        if len(closures) < 2:
            raise
    for mask, closure in list(closures.items()):
        try:  # one mask that cannot be captured must not keep the others from it
            _captured(gm, uses, {mask: closure}, {}, constants or {})
        except CaptureError as error:
            refused[mask] = str(error)
            del closures[mask]
    return _captured(gm, uses, closures, refused, constants or {})


def _captured(
    gm: fx.GraphModule,
    uses: Mapping[fx.Node, Sequence[fx.Node]],
    closures: Mapping[fx.Node, _Closure],
    refused: Mapping[fx.Node, str],
    constants: Mapping[str, torch.Tensor],
) -> CapturedMasks:
    masks = list(closures)
    inner, around, mutates = _union(gm.graph, list(closures.values()))
    known = known_tensors(gm, around, constants)
    equal = equal_tensors(known)
    boundary = [n for n in around if equal.get(n, n) is n]
    sub = _copy_subgraph(gm, {mask: uses[mask] for mask in masks}, inner, boundary, equal, snapshots=mutates)
    values = [_boundary_value(gm, node) for node in boundary]
    traced = _trace(sub, values if mutates else [_alone(v) for v in values], functionalize=mutates)
    placeholders = [n for n in traced.graph.nodes if n.op == "placeholder"]
    results = tree_leaves(next(n for n in traced.graph.nodes if n.op == "output").args)
    if len(results) != len(masks) or len(placeholders) != len(boundary):
        raise CaptureError("the trace of the masks has other inputs or outputs than the graph; please report this")
    return CapturedMasks(
        graph_module=traced,
        outputs=dict(zip(masks, results, strict=True)),
        refused=refused,
        labels={p.name: _label(n) for p, n in zip(placeholders, boundary, strict=True) if _is_tensor(n)},
        inputs={p.name: n for p, n in zip(placeholders, boundary, strict=True)},
        constants={p.name: known[n] for p, n in zip(placeholders, boundary, strict=True) if n in known},
        sources={mask: closures[mask].boundary for mask in masks},
        fixed=frozenset(known),
        ancestors=tuple(inner),
        mutates=mutates,
    )


def _is_tensor(node: fx.Node) -> bool:
    return tensor_of(node) is not None or node.op == "get_attr"


def _label(node: fx.Node) -> CellRef:
    value = value_of(node)
    dtype = value.dtype if isinstance(value, torch.Tensor) else torch.float32
    is_input = node.op in ("placeholder", "get_attr")
    return CellRef(input_label(node) if is_input else node.name, node.name, dtype, is_input)


# --- which nodes belong to a mask -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Closure:
    """The nodes to copy for one mask, the boundary, and whether any of them writes into a tensor."""

    inner: frozenset[fx.Node]
    boundary: frozenset[fx.Node]
    mutates: bool


def _closures(
    graph: fx.Graph, uses: Mapping[fx.Node, Sequence[fx.Node]]
) -> tuple[dict[fx.Node, _Closure], dict[fx.Node, str]]:
    """The closure of every mask, and the masks that are refused with the reason."""
    order = {node: position for position, node in enumerate(graph.nodes)}
    private = private_writes(graph)
    writers = [n for n in order if n not in private and written_tensors(n)]
    closures: dict[fx.Node, _Closure] = {}
    refused: dict[fx.Node, str] = {}
    for mask, calls in uses.items():
        positions = [order[c] for c in calls]
        before = [w for w in writers if order[w] < max(positions)]
        inner: set[fx.Node] = set()
        boundary: set[fx.Node] = set()
        pending: list[fx.Node] = [mask]
        while pending:
            _walk_up(pending, inner, boundary)
            pending = [w for w in before if w not in inner and writes_into(w, inner, boundary)]
            if any(op_name(n) in _BATCHING for n in inner):
                levels = (n for n in order if op_name(n) in _NESTING and n not in inner)
                pending += [n for n in levels if order[n] < max(positions)]
        late = [w for w in before if w in inner and order[w] > min(positions)]
        if late:
            refused[mask] = f"a tensor that the mask depends on is written to (node '{late[0].name}') after a first use"
        else:
            closures[mask] = _Closure(frozenset(inner), frozenset(boundary), any(w in inner for w in before))
    return closures, refused


def _union(graph: fx.Graph, closures: Sequence[_Closure]) -> tuple[list[fx.Node], list[fx.Node], bool]:
    """All closures as one, in graph order. A write that only another mask depends on leaves this one as it is."""
    inner = frozenset[fx.Node]().union(*(c.inner for c in closures))
    boundary = frozenset[fx.Node]().union(*(c.boundary for c in closures))
    nodes = list(graph.nodes)
    return [n for n in nodes if n in inner], [n for n in nodes if n in boundary], any(c.mutates for c in closures)


_BATCHING = frozenset({"_add_batch_dim", "_remove_batch_dim"})
_NESTING = frozenset({"_vmap_increment_nesting", "_vmap_decrement_nesting", "lazy_load_decompositions"})
"""vmap enters and leaves its levels by calls that pass no tensor on; they belong to whatever it maps."""


def _walk_up(start: Iterable[fx.Node], inner: set[fx.Node], boundary: set[fx.Node]) -> None:
    stack = list(start)
    while stack:
        node = stack.pop()
        if node in inner or node in boundary:
            continue
        if _stops(node):
            boundary.add(node)
            continue
        inner.add(node)
        stack.extend(node.all_input_nodes)


def _stops(node: fx.Node) -> bool:
    """Inputs, scalars (their value is recorded) and the model's own arithmetic end the walk."""
    if node.op == "placeholder":
        return True
    if node.op == "get_attr":
        return tensor_of(node) is not None or isinstance(attribute(node), torch.Tensor)
    if isinstance(value_of(node), (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool)):
        return True
    return op_name(node) in _COMPUTE


# --- tracing --------------------------------------------------------------------------------------------------


def _copy_subgraph(
    gm: fx.GraphModule,
    uses: Mapping[fx.Node, Sequence[fx.Node]],
    inner: Sequence[fx.Node],
    boundary: Sequence[fx.Node],
    equal: Mapping[fx.Node, fx.Node],
    *,
    snapshots: bool,
) -> fx.GraphModule:
    """The nodes as a graph of their own that returns the masks.

    Constants that are `equal` to another one are replaced by it. With `snapshots` each mask is cloned where it is first
    used: a later write, on which only another mask depends, may go into the same memory.
    """
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    order = {node: position for position, node in enumerate(gm.graph.nodes)}
    first_use = {mask: min(order[call] for call in calls) for mask, calls in uses.items()}
    taken: dict[fx.Node, fx.Node] = {}

    def take(before: float) -> None:
        for mask in uses:
            if mask not in taken and first_use[mask] < before:
                taken[mask] = _snapshot(graph, env[mask]) if snapshots else env[mask]

    private = private_writes(gm.graph)
    made: dict[Any, fx.Node] = {}
    for position, node in enumerate(boundary):
        env[node] = graph.placeholder(f"boundary_{position}_{node.name}")
    env.update({node: env[first] for node, first in equal.items()})
    for node in inner:
        take(order[node])
        key = None if snapshots else _same_value_key(node, env)
        if key is not None and key in made:
            env[node] = made[key]  # layers that build equal masks build them once here
            continue
        env[node] = graph.node_copy(node, env.__getitem__)
        env[node].target = private.get(node, node.target)
        if key is not None:
            made[key] = env[node]
    take(math.inf)
    graph.output(tuple(taken[mask] for mask in uses))
    return fx.GraphModule(gm, graph)


def _snapshot(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """A copy. Its strides are given: to preserve the source's, the kernel would compare products of sizes."""
    return graph.call_function(torch.ops.aten.clone.default, (node,), {"memory_format": torch.contiguous_format})


def _same_value_key(node: fx.Node, env: Mapping[fx.Node, fx.Node]) -> Any:
    """What two nodes must have in common to hold the same value; None if even then they may differ."""
    if node.op not in ("call_function", "call_method") or draws_or_nests(node):
        return None

    def plain(argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return env[argument]
        if isinstance(argument, (list, tuple)):
            return (type(argument).__name__, *(plain(a) for a in argument))
        if isinstance(argument, dict):
            return tuple((name, plain(a)) for name, a in sorted(argument.items()))
        if isinstance(argument, slice):
            return ("slice", plain(argument.start), plain(argument.stop), plain(argument.step))
        return (type(argument), repr(argument))

    return node.op, node.target, plain(node.args), plain(dict(node.kwargs))


def _boundary_value(gm: fx.GraphModule, node: fx.Node) -> Any:
    value = value_of(node)
    if value is None and node.op == "get_attr":
        value = attribute(node)
    if value is None:
        raise CaptureError(
            f"node '{node.name}' has no meta['val'] (or meta['example_value']), so its shape and dtype are unknown; "
            "trace the model with torch.export, torch.compile or make_fx, or run FakeTensorProp on the graph"
        )
    return value


def _alone(value: Any) -> Any:
    """A fake tensor inside of some memory, as one with memory of its own: tracing would ask how much there is."""
    if not isinstance(value, FakeTensor) or value.layout is not torch.strided:
        return value
    offset = value.storage_offset()
    if isinstance(offset, int) and offset == 0:
        return value
    env = value.fake_mode.shape_env
    with value.fake_mode, env.suppress_guards() if env is not None else contextlib.nullcontext():
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


def _trace(sub: fx.GraphModule, values: Sequence[Any], *, functionalize: bool) -> fx.GraphModule:
    fakes = [v for v in values if isinstance(v, FakeTensor)]
    shape_env = fakes[0].fake_mode.shape_env if fakes else shape_env_of(values)
    fake_mode = fakes[0].fake_mode if fakes else _mode_of(sub)
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(torch.no_grad())
        guards = stack.enter_context(_no_new_guards(shape_env))
        stack.enter_context(_functorch_levels_restored())
        if shape_env is not None:
            # without it some kernels ask more of the sizes than the first trace did
            stack.enter_context(enable_python_dispatcher())
        if fake_mode is not None:
            stack.enter_context(tracing(TracingContext(fake_mode)))
            stack.enter_context(_set_up(fake_mode))
            if not fakes:
                stack.enter_context(fake_mode)
        try:
            if functionalize and _plain(sub):
                function = torch.func.functionalize(sub, remove="mutations")
                traced = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*values)
            else:
                traced = make_fx(sub, tracing_mode="fake", _allow_non_fake_inputs=True)(*values)
                if functionalize:
                    # A second trace: functionalisation would shift the vmap levels that a Dynamo graph names by number.
                    function = torch.func.functionalize(traced, remove="mutations")
                    traced = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*values)
        except Exception as error:
            first, *_ = str(error).strip().splitlines() or [""]  # the rest is advice to whoever writes the model
            raise CaptureError(f"the mask could not be traced to ATen: {type(error).__name__}: {first}") from error
    if guards:
        raise CaptureError(f"reading the mask would add a guard to the program: {guards[0]}")
    return traced


def _plain(sub: fx.GraphModule) -> bool:
    """True if functionalisation can take the graph as it is.

    It enters no vmap and calls no other graph, and no write is spelled as an operator (`aten.__iand__`), which only
    tracing takes apart.
    """
    return not any(
        node.op == "call_module"
        or isinstance(node.target, torch._ops.HigherOrderOperator)
        or op_name(node) in _BATCHING | _NESTING
        or (op_name(node).startswith("__i") and bool(written_tensors(node)))
        for node in sub.graph.nodes
    )


def _mode_of(sub: fx.GraphModule) -> Any:
    for node in sub.graph.nodes:
        tensor = tensor_of(node)
        if isinstance(tensor, FakeTensor):
            return tensor.fake_mode
    return None


@contextlib.contextmanager
def _set_up(fake_mode: Any) -> Iterator[None]:
    """Allow real inputs, and do without the cache, which asks questions about sizes of its own."""
    before = fake_mode.allow_non_fake_inputs, fake_mode.cache_enabled
    fake_mode.allow_non_fake_inputs, fake_mode.cache_enabled = True, False
    try:
        yield
    finally:
        fake_mode.allow_non_fake_inputs, fake_mode.cache_enabled = before


@contextlib.contextmanager
def _functorch_levels_restored() -> Iterator[None]:
    """Leave every vmap level that a failed trace has entered."""
    depth = len(torch._C._functorch.get_interpreter_stack() or ())
    try:
        yield
    finally:
        while len(torch._C._functorch.get_interpreter_stack() or ()) > depth:
            torch._C._functorch.pop_dynamic_layer_stack_and_undo_to_depth(
                len(torch._C._functorch.get_interpreter_stack()) - 1
            )


@contextlib.contextmanager
def _no_new_guards(shape_env: Any) -> Iterator[list[str]]:
    """Suppress guards on the ShapeEnv and list those that were asked for and are not there already.

    The ShapeEnv caches its answers, and an answer from the cache is not logged: a trace that was refused for a guard
    would go through the next time. So the cache is passed by.
    """
    asked: list[str] = []
    if shape_env is None:
        yield asked
        return
    original = shape_env._log_guard
    present = {guard.expr for guard in shape_env.guards}
    uncached = getattr(getattr(type(shape_env), "_inner_evaluate_expr", None), "__wrapped__", None)

    def record(prefix: str, guard: Any, *args: Any, **kwargs: Any) -> None:
        if guard not in present and not _for_layout_only() and not _tells_0_and_1_apart(guard):
            asked.append(str(guard))

    shape_env._log_guard = record
    if uncached is not None:
        shape_env._inner_evaluate_expr = functools.partial(uncached, shape_env)
    try:
        with shape_env.suppress_guards(), shape_env.ignore_fresh_unbacked_symbols():
            yield asked
    finally:
        for name in ("_log_guard", "_inner_evaluate_expr"):
            vars(shape_env).pop(name, None)
        if shape_env._log_guard != original:
            shape_env._log_guard = original


def _tells_0_and_1_apart(guard: Any) -> bool:
    """True for what follows from "no size is 0 or 1": the capture has settled that, a loaded program has forgotten it.

    Such are `s0 >= 2`, `s0**2 != 1` and `2 <= s0*s1`: a product of sizes grows with each of them, so what holds where
    all of them are 2 holds above.
    """
    import sympy

    if not isinstance(guard, (sympy.Ge, sympy.Gt, sympy.Le, sympy.Lt, sympy.Ne)):
        return False
    relation = guard.reversed if guard.lhs.is_number else guard
    coefficient, product = relation.lhs.as_coeff_Mul()
    factors = [f.as_base_exp() for f in sympy.Mul.make_args(product)]
    if not relation.rhs.is_Integer or coefficient < 1 or isinstance(relation, (sympy.Le, sympy.Lt)):
        return False
    if not all(base.is_Symbol and power.is_Integer and power >= 1 for base, power in factors):
        return False
    least = relation.lhs.subs(dict.fromkeys(relation.lhs.free_symbols, 2))
    return bool(least > relation.rhs or (least == relation.rhs and isinstance(relation, sympy.Ge)))


_LAYOUT_QUESTIONS = {
    "_extract_tensor_metadata",  # make_fx notes a tensor's memory format, of which reading makes no use
    "compute_elementwise_output_logical_to_physical_perm",  # strides of a new tensor, which say nothing of its values
}


def _for_layout_only() -> bool:
    """True if a question is about the strides of a new tensor, or about a memory format that is only noted."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_name not in _LAYOUT_QUESTIONS:
        frame = frame.f_back
    return frame is not None
