"""The whole way: attention with random masks, exported and lowered or compiled, against eager, by its outputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import torch
import torch.nn.functional as F

import attnlower

from .completeness import random_members
from .oracle import Tally
from .program import INPUTS, Program, make_inputs
from .soundness import random_batch

Tensors = Sequence[torch.Tensor]


class Attend(torch.nn.Module):
    """One attention call for each mask program; the arguments are those of `INPUTS`."""

    def __init__(self, programs: Sequence[Program]) -> None:
        super().__init__()
        self.programs = list(programs)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The attention of x to y under each mask."""
        x, y = inputs[0], inputs[1]
        masks = [program(*inputs)[-1] for program in self.programs]
        return tuple(F.scaled_dot_product_attention(x, y, y, attn_mask=mask) for mask in masks)


def fuzz_lowered(rng: Random, tally: Tally, count: int = 6) -> None:
    """Lower some random programs and some that are a template, and compare with eager."""
    if rng.random() < 0.5:
        programs = [m.program for m in random_members(rng, count, dynamic=rng.random() < 0.3)]
    else:
        programs = random_batch(rng, count)
    _check(rng, programs, tally)


def _check(rng: Random, programs: Sequence[Program], tally: Tally) -> None:
    first = programs[0]
    inputs = make_inputs(rng, first.sizes)
    values = tuple(inputs[i.name] for i in INPUTS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(Attend(programs), values, dynamic_shapes=_dynamic(first), strict=False)
    except Exception:
        if len(programs) > 1:
            half = len(programs) // 2
            _check(rng, programs[:half], tally)
            _check(rng, programs[half:], tally)
            return
        tally.counts["not exported"] += 1
        return
    try:
        lowered = attnlower.lower(program, target="eager")
    except Exception as error:
        for single in programs:
            tally.fail("crash", single, None, f"one of these cannot be lowered: {type(error).__name__}: {error}")
        return
    actions = [site.action for site in lowered.report.sites]
    for kind in ("random", "ones", "random"):
        inputs = make_inputs(rng, first.sizes, kind)
        values = tuple(inputs[i.name] for i in INPUTS)
        try:
            expected = Attend(programs)(*values)
        except (RuntimeError, IndexError):
            continue
        found = lowered.program.module()(*values)
        for single, action, left, right in zip(programs, actions, found, expected, strict=True):
            tally.counts["programs"] += kind == "ones"
            tally.counts["outputs compared"] += 1
            tally.counts[f"action {action}"] += kind == "ones"
            if not torch.allclose(left, right, atol=1e-5, rtol=1e-5, equal_nan=True):
                tally.fail("lowered", single, inputs, f"action {action}: the output is not eager's")


def fuzz_compiled(rng: Random, tally: Tally, count: int = 4) -> None:
    """Compile some programs with the backend, whose guards choose a variant per call, and compare with eager."""
    if rng.random() < 0.6:
        programs = [m.program for m in random_members(rng, count, dynamic=rng.random() < 0.4)]
    else:
        programs = random_batch(rng, count)
    first = programs[0]
    function = _attend_function(programs)
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="attnlower", options={"target": "eager"}, dynamic=first.dynamic)
    sizes = [first.sizes] * 3
    if first.dynamic:
        sizes.append({**first.sizes, "B": first.sizes["B"] + 1, "H": first.sizes["H"] + 1})
    for number, chosen in enumerate(sizes):
        inputs = make_inputs(rng, chosen, "ones" if number % 2 else "random")
        values = [inputs[i.name] for i in INPUTS]
        try:
            expected = function(*values)
        except (RuntimeError, IndexError):
            continue
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                found = compiled(*values)
        except Exception as error:
            tally.counts[f"not compiled: {type(error).__name__}"] += 1
            break
        report = attnlower.last_report()
        if number == 0 and report is not None:
            tally.counts.update(f"compiled action {site.action}" for site in report.sites)
        for warning in said:
            if "attnlower" in str(warning.message):
                tally.fail("crash", first, inputs, f"one of {count} compiled together: {warning.message}")
        for single, left, right in zip(programs, found, expected, strict=True):
            tally.counts["programs"] += number == 0
            tally.counts["compiled outputs compared"] += 1
            if not torch.allclose(left, right, atol=1e-5, rtol=1e-5, equal_nan=True):
                tally.fail("lowered", single, inputs, "the compiled output is not eager's")
    torch._dynamo.reset()


def _attend_function(programs: Sequence[Program]) -> Callable[..., tuple[torch.Tensor, ...]]:
    """Attention under each mask as a plain function of all inputs, which Dynamo can trace."""
    names: dict[str, Any] = {"torch": torch, "F": F, "inf": float("inf"), "nan": float("nan")}
    calls = []
    for number, program in enumerate(programs):
        exec(program.source(f"mask{number}"), names)
        mask = f"mask{number}({', '.join(i.name for i in program.used)})"
        calls.append(f"F.scaled_dot_product_attention(x, y, y, attn_mask={mask})")
    arguments = ", ".join(i.name for i in INPUTS)
    exec(f"def attend({arguments}):\n    return ({', '.join(calls)},)\n", names)
    function: Callable[..., tuple[torch.Tensor, ...]] = names["attend"]
    return function


def _dynamic(program: Program) -> object:
    if not program.dynamic:
        return None
    dims = dict.fromkeys("BHQK", torch.export.Dim.AUTO)
    return (tuple({i: dims[a] for i, a in enumerate(spec.axes) if a in dims} for spec in INPUTS),)
