"""Whether a variant computes what eager computes. What does not is refused: it gets no time in any result.

float32: the largest absolute difference to eager is at most 1e-5 (times the largest output, where that is above 1).
Narrower dtypes: eager itself is far from exact, so both are held against the same computation in float64: the root mean
square of the variant's error is at most 1.2 times that of eager's, and its largest error at most twice eager's
largest, which one wrong row among thousands would exceed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

TOLERANCE = 1e-5
RMS_FACTOR = 1.2
LARGEST_FACTOR = 2.0


@dataclass(frozen=True)
class Expected:
    """What a variant is held against.

    Attributes:
        eager: eager's output.
        exact: the same in float64, for dtypes narrower than float32; else None.
    """

    eager: torch.Tensor
    exact: torch.Tensor | None = None


@dataclass(frozen=True)
class Agreement:
    """How far a variant is from what is expected.

    Attributes:
        max_abs_diff: to eager, at most.
        rms_factor: its error over eager's, root mean square, both to float64; None for float32.
        largest_factor: the same of the largest errors.
        problem: why it is refused; empty if it is right.
    """

    max_abs_diff: float
    rms_factor: float | None = None
    largest_factor: float | None = None
    problem: str = ""


def agreement(output: torch.Tensor, expected: Expected) -> Agreement:
    """Compare one output with what is expected of it."""
    eager = expected.eager
    if output.shape != eager.shape or output.dtype != eager.dtype:
        theirs, ours = (f"{tuple(t.shape)} of {t.dtype}" for t in (eager, output))
        return Agreement(float("inf"), problem=f"gives {ours}, eager gives {theirs}")
    difference = _largest(_error(output, eager))
    if expected.exact is None:
        allowed = TOLERANCE * max(1.0, _largest(eager.double().abs()))
        wrong = not difference <= allowed
        return Agreement(
            difference, problem=f"differs from eager by {difference:.1e}, over {allowed:.1e}" if wrong else ""
        )
    mine, theirs = _error(output, expected.exact), _error(eager, expected.exact)
    rms = _ratio(_rms(mine), _rms(theirs))
    largest = _ratio(_largest(mine), _largest(theirs))
    problem = ""
    if not rms <= RMS_FACTOR:
        problem = f"its error to float64 is {rms:.2f} times eager's, over {RMS_FACTOR}"
    elif not largest <= LARGEST_FACTOR:
        problem = f"its largest error to float64 is {largest:.2f} times eager's, over {LARGEST_FACTOR}"
    return Agreement(difference, rms, largest, problem)


def _error(output: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Absolute differences in float64; infinite where only one of the two is a number."""
    difference = (output.double() - expected.double()).abs()
    return torch.where(output.isnan() & expected.isnan(), 0.0, difference).nan_to_num(float("inf"), float("inf"))


def _largest(values: torch.Tensor) -> float:
    return float(values.max())


def _rms(values: torch.Tensor) -> float:
    return float(values.square().mean().sqrt())


def _ratio(mine: float, theirs: float) -> float:
    return 1.0 if mine == theirs else mine / theirs if theirs else float("inf")
