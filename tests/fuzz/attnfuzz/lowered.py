"""The whole way: export attention with random masks, lower it for the `eager` target, compare the outputs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from random import Random

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


def _dynamic(program: Program) -> object:
    if not program.dynamic:
        return None
    dims = dict.fromkeys("BHQK", torch.export.Dim.AUTO)
    return (tuple({i: dims[a] for i, a in enumerate(spec.axes) if a in dims} for spec in INPUTS),)
