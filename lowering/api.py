"""`lower` and `explain`: the entry points for programs that are already captured, and for looking without touching."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from ..errors import OptionError, ProgramError
from ..patterns.conditions import Condition, parse_conditions
from ..patterns.metadata import input_label, tensor_of
from ..patterns.prover import DEFAULT_TIMEOUT_MS, Prover
from .assertions import insert_assertions
from .exported import fixed_buffers, lifted_constants, origins, size_ranges, user_inputs, with_graph
from .history import last_report
from .inspecting import inspection, inspector
from .logs import log_report, trace_graph, trace_report
from .options import checked_timeout, with_banded
from .pipeline import Variant
from .plan import make_assumed_variant
from .report import Report
from .target import Target
from .targets import find_target

if TYPE_CHECKING:
    from .inductor_hook import InductorPass


@dataclass(frozen=True)
class Lowered:
    """A lowered program and what was done to it.

    Attributes:
        program: of the kind that was given: ExportedProgram or GraphModule. It shares its weights with the input.
        report: one entry per attention call.
    """

    program: Any
    report: Report


def lower(
    program: ExportedProgram | fx.GraphModule,
    *,
    target: str | Target = "inductor",
    assume: str | Iterable[str] | None = None,
    check_assumptions: bool = False,
    banded: str | None = None,
    timeout_ms: int = DEFAULT_TIMEOUT_MS,
) -> Lowered:
    """Lower the attention of a captured program by proof.

    Constants of an ExportedProgram, and buffers that it does not write into, are read by their values; the report says
    of each proof on which of them it rests. Parameters are never.

    Args:
        program: an ExportedProgram, or a GraphModule from Dynamo, export or make_fx. It is not changed.
        target: the backend to be served: "inductor" or "eager", or a `Target`.
        assume: conditions on inputs that the caller vouches for, e.g. ``"attention_mask.all()"`` when nothing is ever
            padded; several joined by "and" or as several strings. Recorded in the report.
        check_assumptions: assert the assumptions at run time.
        banded: how attention under a sliding window, chunks and the like is computed: "auto", "local" (in blocks of
            queries with their own keys) or "dense" (with the mask); the target's own way by default.
        timeout_ms: longest time for one question to the solver, in milliseconds.

    Returns:
        The lowered program, of the same kind, and the report.

    Raises:
        ProgramError: if `program` is neither.
        OptionError: for an unknown target, an assumption that cannot be read or names no input, or a wrong time-out.
        LegalizeError: if the target cannot express a call.
    """
    chosen = with_banded(find_target(target), banded)
    prover = Prover(checked_timeout(timeout_ms))
    if isinstance(program, ExportedProgram):
        assumed = _parsed(assume, user_inputs(program))
        variant, report = make_assumed_variant(
            program.graph_module,
            chosen,
            assumed,
            constants={**lifted_constants(program), **fixed_buffers(program)},
            origins=origins(program),
            ranges=size_ranges(program),
            prover=prover,
        )
        _note(report, program.graph_module, variant)
        if check_assumptions:
            insert_assertions(variant.gm, assumed)
        return Lowered(with_graph(program, variant.gm), report)
    if isinstance(program, fx.GraphModule):
        assumed = _parsed(assume, _tensor_inputs(program))
        variant, report = make_assumed_variant(program, chosen, assumed, prover=prover)
        _note(report, program, variant)
        if check_assumptions:
            insert_assertions(variant.gm, assumed)
        return Lowered(variant.gm, report)
    raise ProgramError(
        f"lower takes an ExportedProgram or a GraphModule, not {type(program).__name__}; "
        "use torch.export.export(model, ...) or torch.compile(model, backend='attnlower')"
    )


def _note(report: Report, before: fx.GraphModule, variant: Variant) -> None:
    """Log what was done, and write it into torch's structured trace."""
    log_report(report)
    trace_report(report)
    trace_graph("before", before)
    if variant.changed:
        trace_graph("after", variant.gm)


def _parsed(assume: str | Iterable[str] | None, inputs: Mapping[str, str]) -> tuple[Condition, ...]:
    """The assumptions as conditions on inputs."""
    if assume is None:
        return ()
    texts = [assume] if isinstance(assume, str) else list(assume) if isinstance(assume, Iterable) else [assume]
    wrong = [t for t in texts if not isinstance(t, str)]
    if wrong:
        raise OptionError(f"assume takes text such as 'attention_mask.all()', one or several, not {wrong[0]!r}")
    return parse_conditions(texts, inputs)


def _tensor_inputs(gm: fx.GraphModule) -> dict[str, str]:
    """Names by which a graph's tensor inputs may be called: the node's own and the user's."""
    found: dict[str, str] = {}
    for node in gm.graph.nodes:
        if node.op == "placeholder" and tensor_of(node) is not None:
            found.setdefault(input_label(node), node.name)
            found[node.name] = node.name
    return found


def explain(model_or_program: Any, *args: Any, **kwargs: Any) -> Report:
    """Say what attnlower finds in a model or program and would do about it. Changes nothing.

    Args:
        model_or_program: an ExportedProgram, a GraphModule, or a model or function to be captured like torch.compile.
        args: arguments of the model, if it is one. It is called once on copies of them, without gradients.
        kwargs: likewise.

    Raises:
        ProgramError: if it is none of these.
    """
    if isinstance(model_or_program, (ExportedProgram, fx.GraphModule)) and not args and not kwargs:
        return lower(model_or_program).report
    if isinstance(model_or_program, ExportedProgram):
        raise ProgramError("explain takes an ExportedProgram without arguments; it holds its own example inputs")
    if not callable(model_or_program):
        raise ProgramError(f"explain takes a model, a function or a program, not {type(model_or_program).__name__}")
    return _explain_by_compiling(model_or_program, args, kwargs)


def _explain_by_compiling(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Report:
    buffers = [(b, b.detach().clone()) for b in model.buffers()] if isinstance(model, torch.nn.Module) else []

    def call(*inner_args: Any, **inner_kwargs: Any) -> Any:
        return model(*inner_args, **inner_kwargs)

    # Dynamo counts recompilations by code object; with one of its own no earlier call of `explain` counts against it.
    call.__code__ = call.__code__.replace()
    compiled = torch.compile(call, backend=inspector)
    # Tensors are cloned apart: deepcopy refuses those that other operations have made.
    clones: dict[int, Any] = {id(t): t.detach().clone() for t in tree_leaves((args, kwargs)) if type(t) is torch.Tensor}
    copied_args, copied_kwargs = copy.deepcopy(_by_name(model, args, kwargs), clones)
    with inspection() as found, torch.no_grad(), torch.random.fork_rng():
        try:
            compiled(*copied_args, **copied_kwargs)
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)
    return found.report()


def inductor_pass(
    *, assume: str | Iterable[str] | None = None, timeout_ms: int = DEFAULT_TIMEOUT_MS, strict: bool = False
) -> InductorPass:
    """A custom pass of Inductor that lowers attention by proof, for `torch._inductor.config.pre_grad_custom_pass`.

    The caches of Inductor and AOTAutograd stay in use: the pass names itself by its sources, its options and the ranges
    of the sizes it proves for. Where a cache has the compiled graph, the pass does not run and nothing is reported.
    Training graphs are served too.

    Args:
        assume: conditions on inputs that the caller vouches for, such as ``"attention_mask.all()"``; names are those of
            the function or model that is compiled. Nothing checks them.
        timeout_ms: longest time for one question to the solver, in milliseconds.
        strict: raise internal errors and do not leave the graph untouched.

    Raises:
        OptionError: for an assumption that cannot be read, or a time-out that is no positive whole number.
    """
    from .inductor_hook import InductorPass

    texts = [] if assume is None else [assume] if isinstance(assume, str) else list(assume)
    return InductorPass(parse_conditions(texts, _EveryName()), checked_timeout(timeout_ms), strict)


class _EveryName(dict[str, str]):
    """Inputs by name before there is a graph: any name will do."""

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str)

    def __missing__(self, name: str) -> str:
        return name


def _by_name(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with those given by position under their parameters' names, which formulas then show."""
    module = isinstance(model, torch.nn.Module)
    if module and model._forward_pre_hooks:  # a hook sees which are given by position
        return args, kwargs
    try:
        parameters = list(inspect.signature(model.forward if module else model).parameters.values())[: len(args)]
    except (TypeError, ValueError):  # a function without a signature
        return args, kwargs
    names = [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    if len(names) < len(args) or kwargs.keys() & set(names):
        return args, kwargs
    return (), {**dict(zip(names, args, strict=True)), **kwargs}


__all__ = ["Condition", "Lowered", "explain", "inductor_pass", "last_report", "lower"]
