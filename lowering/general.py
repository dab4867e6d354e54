"""Compile the variant of a graph that is valid for every input, when a call first needs it.

By then Dynamo has fixed the guards of the graph. Where nothing is left to guard (all sizes are numbers), the variant is
compiled as it is: Dynamo checks what it rests on before every call. Otherwise the compiled code could rest on sizes
that nobody checks. Then it goes through torch.compile again, which gives it guards of its own and makes every call some
150 us longer (2 cores of an AMD EPYC). Dynamo reads no flex_attention that it did not write itself: a variant that has
some is then made anew, from what Dynamo makes of the untouched graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import _disable_current_modes

from ..patterns.metadata import value_of
from ..patterns.prover import Prover
from .copying import copy_graph_module
from .guarded import Compiled, unwrap_floats
from .logs import log, trace_graph
from .options import BackendOptions
from .pipeline import Variant
from .plan import Plan, make_plan
from .target import run_as_it_is


def lazy_general(plan: Plan, gm: fx.GraphModule, chosen: BackendOptions) -> Callable[[Sequence[Any]], Compiled]:
    """What compiles the general variant, given the arguments of the call that needs it.

    Args:
        plan: makes the variant.
        gm: the untouched graph.
        chosen: the target and its compiler's options.
    """

    def make(args: Sequence[Any]) -> Compiled:
        general = _variant_or_none(plan.make_general, chosen)
        changed = general is not None and general.changed
        program = general.gm if general is not None and changed else gm
        if changed:
            trace_graph("after", program)
        if chosen.target.compile is run_as_it_is:
            return program.forward
        compiled = _compiled_as_it_is(program, args, chosen) if _nothing_to_guard(program, args) else None
        if compiled is not None:
            return compiled
        if general is not None and any(site.emit is not None for site in general.sites):
            return _compiled_again(gm, chosen, lambda graph: _lowered(graph, chosen))
        return _compiled_again(program, chosen, lambda graph: graph)

    return make


def _nothing_to_guard(program: fx.GraphModule, args: Sequence[Any]) -> bool:
    """True if all that a compiler may rest on is checked by Dynamo: sizes and strides, dtypes, the mode of gradients.

    Not so if some size is a symbol, or a float is hidden in a tensor. Inputs that share memory are told apart by the
    compiler where they are written to, gradients need its context later, and only CPUs have been measured.
    """
    if any(_is_symbolic(value_of(node)) for node in program.graph.nodes) or unwrap_floats(program)[1]:
        return False
    if not all(type(a) in (torch.Tensor, torch.nn.Parameter) and a.device.type == "cpu" for a in args):
        return False
    if torch.is_grad_enabled() and any(a.requires_grad for a in args):
        return False
    return len({a.untyped_storage()._cdata for a in args}) == len(args)


def _is_symbolic(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        strides = value.stride() if value.layout is torch.strided else ()
        return any(not isinstance(size, int) for size in (*value.shape, *strides))
    if isinstance(value, (tuple, list)):
        return any(_is_symbolic(v) for v in value)
    return isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool))


def _compiled_as_it_is(program: fx.GraphModule, args: Sequence[Any], chosen: BackendOptions) -> Compiled | None:
    """The program compiled for these arguments; None if that fails outside of Dynamo."""
    mode = FakeTensorMode(shape_env=ShapeEnv())  # for the sizes that a program itself reads from its tensors
    try:
        with _disable_current_modes():  # as Dynamo does for a compiler
            fakes = [mode.from_tensor(a, static_shapes=True) for a in args]
            return chosen.target.compile(copy_graph_module(program)[0], fakes, chosen.compiler)
    except Exception as error:
        log.info("compile a general variant by way of Dynamo (%s: %s)", type(error).__name__, error)
        return None


def _compiled_again(
    program: fx.GraphModule, chosen: BackendOptions, lowered: Callable[[fx.GraphModule], fx.GraphModule]
) -> Compiled:
    """The program through torch.compile; `lowered` changes what Dynamo makes of it."""
    dynamic = any(n.op == "placeholder" and isinstance(value_of(n), torch.SymInt) for n in program.graph.nodes)

    def compiler(graph: fx.GraphModule, example_inputs: Sequence[Any]) -> Compiled:
        return chosen.target.compile(lowered(graph), example_inputs, chosen.compiler)

    unwrapped, floats = unwrap_floats(program)
    compiled = torch.compile(unwrapped, backend=compiler, dynamic=dynamic)

    def run(*args: Any) -> Any:
        given = list(args)
        for position in floats:
            given[position] = float(given[position])
        return compiled(*given)

    return run


def _variant_or_none(make: Callable[[], Variant], chosen: BackendOptions) -> Variant | None:
    """A general variant; None after an internal error (unless `strict`)."""
    try:
        return make()
    except Exception as error:
        if chosen.strict:
            raise
        log.info("left a general variant untouched after an internal error (%s: %s)", type(error).__name__, error)
        return None


def _lowered(graph: fx.GraphModule, chosen: BackendOptions) -> fx.GraphModule:
    """A graph lowered for every input; the graph itself after an internal error."""

    def make() -> Variant:
        return make_plan(graph, chosen.target, guard=False, prover=Prover(chosen.timeout_ms)).general

    general = _variant_or_none(make, chosen)
    return graph if general is None else general.gm
