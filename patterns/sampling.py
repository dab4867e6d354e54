"""Counterexamples by trying: random small sizes and inputs, evaluated exactly.

The solver knows nothing of float arithmetic and little of sums. Where its answer "may fail" rests on those, a concrete
case that does fail settles the matter; that none was found proves nothing.
"""

from __future__ import annotations

import random

import torch

from . import build
from .evaluate import EvaluationError, evaluate
from .expr import CellRef, Expr, cells, coords, sizes
from .facts import Facts

_ROUNDS = 12
_LARGEST = 7


def find_counterexample(claim: Expr, facts: Facts) -> dict[str, int | bool] | None:
    """Sizes, coordinates and input elements at which a condition fails; None if none was found.

    Args:
        claim: BOOL expression whose cells are inputs.
        facts: ranges of sizes and extents of coordinates; an assumption among them is obeyed.
    """
    source = random.Random(0)
    for attempt in range(_ROUNDS):
        try:
            found = _try(claim, facts, source, attempt)
        except (EvaluationError, RuntimeError, OverflowError):
            return None
        if found is not None:
            return found
    return None


def _try(claim: Expr, facts: Facts, source: random.Random, attempt: int) -> dict[str, int | bool] | None:
    numbers: dict[str, int] = {}
    for name in sorted(sizes(claim, facts.assumed, *facts.extents.values())):
        low, high = facts.ranges.get(name, (0, None))
        low = max(low, 1)
        numbers[name] = source.randint(low, max(low, min(high if high is not None else low + _LARGEST, low + _LARGEST)))
    extents = {name: int(evaluate(extent, numbers, {}).item()) for name, extent in facts.extents.items()}
    names = [n for n in extents if n in coords(claim)]
    if any(extents[n] <= 0 or extents[n] > 4096 for n in names):
        return None
    # long static axes are looked at in part: a counterexample anywhere will do
    length = 2 * _LARGEST if len(names) > 2 else 64
    grids = {
        name: torch.tensor(sorted(source.sample(range(extents[name]), min(extents[name], length)))).view(
            *(-1 if i == p else 1 for i in range(len(names)))
        )
        for p, name in enumerate(names)
    }
    used = cells(claim, facts.assumed)
    inputs = {
        c.payload.label: _sample(c.payload, len(c.args), max([_LARGEST, *extents.values()]), attempt) for c in used
    }
    holds = evaluate(build.or_(build.not_(facts.assumed), claim), {**numbers, **grids}, inputs)
    failing = (~holds).expand(tuple(g.numel() for g in grids.values())).nonzero()
    if not len(failing):
        return None
    place = {n: int(grids[n].flatten()[int(i)]) for n, i in zip(names, failing[0], strict=True)}
    return {**numbers, **place, **_elements(claim, {**numbers, **place}, inputs)}


def _sample(ref: CellRef, rank: int, longest: int, attempt: int) -> torch.Tensor:
    """Values for an input: small numbers, ones, positions, or noise, in turn."""
    shape = (min(longest, 64 if rank > 2 else 4096) + 1,) * rank
    generator = torch.Generator().manual_seed(attempt)
    if ref.dtype is torch.bool:
        return torch.rand(shape, generator=generator) > (0.5, 0.2, 0.8)[attempt % 3]
    if ref.dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(ref.dtype)
    if attempt % 3 == 1 and rank:
        return (torch.arange(shape[-1]) % (3 + attempt)).expand(shape).clone().to(ref.dtype)
    return torch.randint(0, (2, 3, 4)[attempt % 3], shape, generator=generator).to(ref.dtype)


def _elements(
    claim: Expr, place: dict[str, int], inputs: dict[str, torch.Tensor], most: int = 6
) -> dict[str, int | bool]:
    """The input elements that the claim reads at a place, outside of sums."""
    found: dict[str, int | bool] = {}
    for cell in cells(claim):
        try:
            index = [int(evaluate(a, place, inputs).item()) for a in cell.args]
        except EvaluationError:
            continue  # inside a sum
        tensor = inputs[cell.payload.label]
        if len(found) < most and all(0 <= i < n for i, n in zip(index, tensor.shape, strict=True)):
            value = tensor[tuple(index)].item()
            if not isinstance(value, float):
                found[f"{cell.payload.label}[{', '.join(map(str, index))}]"] = value
    return found
