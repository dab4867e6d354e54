"""The torch.compile backend `attnlower` (entry point group `torch_dynamo_backends`)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import fx

from ..errors import OptionError
from ..patterns.prover import Prover
from .general import lazy_general
from .guarded import Compiled, GuardedCallable, buffer_values, checks_for
from .history import remember
from .logs import log, log_report, trace_graph, trace_report
from .options import BackendOptions, parse_options
from .passed_masks import causal_masks
from .plan import Plan, make_plan
from .report import Report
from .self_check import SelfCheck
from .verification import Verification

_warned: set[str] = set()


def attnlower_backend(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Compiled:
    """Lower the attention of a Dynamo graph by proof and compile the result.

    Args:
        gm: the graph as Dynamo captured it.
        example_inputs: its (fake) inputs.
        mode: torch.compile's mode, handed to Inductor.
        options: see `BackendOptions`; the options of the target's compiler are handed on.

    Raises:
        OptionError: for an unknown option or mode.
    """
    chosen = parse_options(options, mode)
    plan = plan_or_none(gm, example_inputs, chosen)
    if plan is None:
        return _compile(gm, example_inputs, chosen)
    if not chosen.verify:
        return _compile_plan(gm, example_inputs, chosen, plan)
    check = SelfCheck(gm, plan, chosen.verify)  # takes its copies before a compiler changes the graphs
    return check.beside(_compile_plan(gm, example_inputs, chosen, plan))


def plan_or_none(gm: fx.GraphModule, example_inputs: Sequence[Any], chosen: BackendOptions) -> Plan | None:
    """The plan for a graph; None after an internal error, with one warning (unless `strict`)."""
    try:
        plan = make_plan(
            gm,
            chosen.target,
            guard=chosen.padding == "guard",
            prover=Prover(chosen.timeout_ms),
            buffers={**buffer_values(gm, example_inputs), **(causal_masks(gm) if chosen.padding == "guard" else {})},
        )
    except OptionError:
        raise
    except Exception as error:
        if chosen.strict:
            raise
        _give_up(Report(target=chosen.target.name), error)
        return None
    if chosen.verify:
        plan = replace(plan, report=replace(plan.report, verifications=(Verification(),)))
    remember(plan.report)
    log_report(plan.report)
    trace_report(plan.report)
    trace_graph("before", gm)
    if plan.guarded is not None:
        trace_graph("guarded", plan.guarded.gm)
    elif plan.general.changed:
        trace_graph("after", plan.general.gm)
    return plan


def _compile_plan(gm: fx.GraphModule, example_inputs: Sequence[Any], chosen: BackendOptions, plan: Plan) -> Compiled:
    if plan.guarded is None:
        # Nothing rewritten: hand on the very graph Dynamo made.
        if not plan.general.changed:
            return _compile(gm, example_inputs, chosen)
        return _compiled_or_none(plan, plan.general.gm, example_inputs, chosen) or _compile(gm, example_inputs, chosen)
    fast = _compiled_or_none(plan, plan.guarded.gm, example_inputs, chosen)
    if fast is None:
        return _compile(gm, example_inputs, chosen)
    return GuardedCallable(fast, lazy_general(plan, gm, chosen), checks_for(gm, plan.conditions))


def _compiled_or_none(
    plan: Plan, program: fx.GraphModule, example_inputs: Sequence[Any], chosen: BackendOptions
) -> Compiled | None:
    """A rewritten graph compiled; None if that fails where the untouched graph may not (unless `strict`)."""
    from torch._dynamo.exc import RestartAnalysis, SkipFrame

    try:
        return _compile(program, example_inputs, chosen)
    except (RestartAnalysis, SkipFrame):
        raise  # Dynamo's own signals
    except Exception as error:
        if chosen.strict:
            raise
        _give_up(plan.report, error)
        return None


def _give_up(report: Report, error: Exception) -> None:
    """Record that the graph stays untouched, and warn once per reason."""
    reason = f"{type(error).__name__}: {error}"
    kept = tuple(replace(s, action="keep", conditions=()) for s in report.sites)
    remember(replace(report, sites=kept, error=reason), instead_of=report)
    log.info("left a graph untouched after an internal error (%s)", reason)
    if reason not in _warned:
        _warned.add(reason)
        warnings.warn(
            f"attnlower left a graph untouched after an internal error ({reason}); "
            "compile with options={'strict': True} to raise it",
            stacklevel=2,
        )


def _compile(gm: fx.GraphModule, example_inputs: Sequence[Any], chosen: BackendOptions) -> Compiled:
    return chosen.target.compile(gm, example_inputs, chosen.compiler)
