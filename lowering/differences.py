"""How far two results lie apart, and how far they may: measured against the larger of the expected values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""The largest difference that rounding explains, as a fraction of the largest expected magnitude."""


@dataclass(frozen=True)
class Difference:
    """The largest difference between two tensors.

    Attributes:
        largest: the largest absolute difference; infinite where shapes, dtypes, whole numbers or NaNs differ.
        scale: the largest finite magnitude expected (1 if all are 0).
        tolerance: what is allowed, as a fraction of `scale`.
    """

    largest: float = 0.0
    scale: float = 1.0
    tolerance: float = 0.0

    @property
    def relative(self) -> float:
        """The difference as a fraction of the scale."""
        return self.largest / self.scale

    @property
    def allowed(self) -> bool:
        """True if rounding explains it."""
        return self.relative <= self.tolerance

    def __str__(self) -> str:
        return f"{self.relative:.1e} of the largest value (allowed {self.tolerance:.0e})"


def difference(actual: Any, expected: Any) -> Difference:
    """How far a value lies from the expected one. NaN equals NaN, and infinities of one sign are equal."""
    if not isinstance(actual, torch.Tensor) or not isinstance(expected, torch.Tensor):
        same = type(actual) is type(expected) and (not isinstance(expected, (int, float, bool)) or actual == expected)
        return Difference(0.0 if same else math.inf)
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return Difference(math.inf)
    if expected.numel() == 0:
        return Difference()
    if not expected.dtype.is_floating_point:
        return Difference(0.0 if torch.equal(actual, expected) else math.inf)
    tolerance = TOLERANCES.get(expected.dtype, 0.25)  # eight-bit floats have two or three bits of mantissa
    found, wanted = actual.detach().double(), expected.detach().double()
    apart = torch.where((found == wanted) | (found.isnan() & wanted.isnan()), 0.0, (found - wanted).abs())
    finite = wanted.abs()[wanted.isfinite()]
    scale = float(finite.max()) if finite.numel() else 0.0
    return Difference(float(apart.nan_to_num(nan=math.inf).max()), scale or 1.0, tolerance)


def worst(actual: Any, expected: Any) -> Difference:
    """The largest relative difference between the leaves of two results of the same structure."""
    found, wanted = tree_leaves(actual), tree_leaves(expected)
    if len(found) != len(wanted):
        return Difference(math.inf)
    return largest([difference(f, w) for f, w in zip(found, wanted, strict=True)])


def largest(differences: Sequence[Difference]) -> Difference:
    """The one that exceeds what it may by most; none at all counts as no difference."""
    return max(differences, key=lambda d: (not d.allowed, d.relative), default=Difference())
