"""Trace a graph of mask ancestors to functional ATen ops, on the fake tensors that its inputs were recorded with."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import make_fx

from ...errors import CaptureError
from ..aliasing import op_name, written_tensors
from ..metadata import tensor_of
from ..sizes import shape_env_of
from .closure import BATCHING, NESTING
from .guards import no_new_guards
from .quick_shapes import quick_shapes


def alone(value: Any) -> Any:
    """A fake tensor inside of some memory, as one with memory of its own: tracing would ask how much there is."""
    if not isinstance(value, FakeTensor) or value.layout is not torch.strided:
        return value
    offset = value.storage_offset()
    if isinstance(offset, int) and offset == 0:
        return value
    env = value.fake_mode.shape_env
    with value.fake_mode, env.suppress_guards() if env is not None else contextlib.nullcontext():
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


def trace(sub: fx.GraphModule, values: Sequence[Any], *, functionalize: bool) -> fx.GraphModule:
    """The graph as functional ATen ops.

    Args:
        sub: the graph; only read.
        values: what its placeholders hold, fake tensors and symbolic numbers.
        functionalize: turn writes into values.

    Raises:
        CaptureError: if the trace fails or would need a guard on a size.
    """
    fakes = [v for v in values if isinstance(v, FakeTensor)]
    shape_env = fakes[0].fake_mode.shape_env if fakes else shape_env_of(values)
    fake_mode = fakes[0].fake_mode if fakes else _mode_of(sub)
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(torch.no_grad())
        guards = stack.enter_context(no_new_guards(shape_env))
        stack.enter_context(_functorch_levels_restored())
        if shape_env is not None:
            # without it some kernels ask more of the sizes than the first trace did
            stack.enter_context(enable_python_dispatcher())
        if fake_mode is not None:
            stack.enter_context(tracing(TracingContext(fake_mode)))
            stack.enter_context(_set_up(fake_mode))
            stack.enter_context(quick_shapes(fake_mode, writes=functionalize))
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
        or op_name(node) in BATCHING | NESTING
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
