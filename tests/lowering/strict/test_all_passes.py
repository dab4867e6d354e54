"""All passes of the strict form on random calls: equal to eager, and strict or written out with a reason."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attnlower.lowering.passes.strict_form import strict_passes
from attnlower.lowering.targets import TARGETS
from attnlower.patterns import Alignment

SIZES = (
    {"b": 2, "q": 5, "k": 7, "h": 4},
    {"b": 1, "q": 1, "k": 1, "h": 4},
    {"b": 3, "q": 6, "k": 2, "h": 4},
    {"b": 1, "q": 2, "k": 9, "h": 4},
)
TARGETS_DRAWN = (
    TARGETS["eager"],
    dataclasses.replace(TARGETS["eager"], name="all", alignments=frozenset(Alignment)),
    dataclasses.replace(TARGETS["eager"], name="few", alignments=frozenset({Alignment.NONE}), grouped_heads=False),
)


@dataclass(frozen=True)
class Case:
    """A random call.

    Attributes:
        shapes: the inputs' axes.
        options: the op's other arguments.
        dtype: of query, key and value.
        bias_dtype: of the bias.
        target: the backend.
        separate: every dynamic axis is a symbol of its own.
    """

    shapes: dict[str, tuple[Any, ...]]
    options: dict[str, Any]
    dtype: torch.dtype
    bias_dtype: torch.dtype
    target: Any
    separate: bool


@st.composite
def cases(draw: st.DrawFn) -> Case:
    rank = draw(st.integers(2, 5))
    lead: tuple[Any, ...] = tuple(draw(st.sampled_from(["b", 1, 2])) for _ in range(rank - 3))
    heads, key_heads = draw(st.sampled_from([(4, 4), (4, 2), (6, 1), (1, 1)])) if rank > 2 else (0, 0)
    grouped = rank > 2 and (heads != key_heads or draw(st.booleans()))
    if grouped and heads > key_heads == 1 and draw(st.booleans()):
        grouped = False  # matmul broadcasts a single head
    queries, keys = draw(st.sampled_from([("q", "k"), ("q", "q"), (1, "k"), (5, 7)]))
    width, value_width = draw(st.sampled_from([(8, 8), (8, 8), (8, 6), (4, 8)]))
    own = tuple(1 if draw(st.integers(0, 4)) == 0 else axis for axis in lead)
    query = (*lead, *([heads] if rank > 2 else []), queries, width)
    key = (*own, *([key_heads] if rank > 2 else []), keys, width)
    shapes: dict[str, tuple[Any, ...]] = {"query": query, "key": key, "value": (*key[:-1], value_width)}
    for name in draw(st.sampled_from([(), ("mask",), ("bias",), ("mask", "bias")])):
        full = (*query[:-1], keys)
        axes = tuple(1 if draw(st.integers(0, 3)) == 0 else axis for axis in full)
        shapes[name] = axes[draw(st.integers(0, len(axes))) :]
    options: dict[str, Any] = {
        "alignment": draw(st.sampled_from(["none", "upper_left", "lower_right"])),
        "empty_rows": draw(st.sampled_from(["zeros", "nan"])),
        "enable_gqa": grouped,
        "scale": draw(st.sampled_from([None, 0.3, 1.0])),
    }
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16]))
    bias_dtype = draw(st.sampled_from([dtype, dtype, torch.float32]))
    return Case(shapes, options, dtype, bias_dtype, draw(st.sampled_from(TARGETS_DRAWN)), draw(st.integers(0, 3)) == 0)


def as_given(bias_dtype: torch.dtype) -> Any:
    def prepare(**inputs: torch.Tensor) -> dict[str, Any]:
        if "bias" in inputs and inputs["bias"].dtype is not bias_dtype:
            return {
                **inputs,
                "bias": inputs["bias"] * torch.ones((), dtype=bias_dtype).reshape((1,) * inputs["bias"].dim()),
            }
        return inputs

    return prepare


@pytest.mark.parametrize("refuses", [False, True], ids=["takes all", "refuses all"])
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=cases())
def test_random_calls(check: Any, refuses: bool, case: Case) -> None:
    passes = strict_passes(lambda call: "refused") if refuses else strict_passes()
    done = check(
        passes,
        case.shapes,
        case.options,
        dtype=case.dtype,
        target=case.target,
        separate=case.separate,
        sizes=SIZES,
        prepare=as_given(case.bias_dtype),
    )
    assert not done.refusals or done.calls == []
    assert not (refuses and done.calls)
    if done.calls:
        assert done.problem == ""
    else:
        assert done.what_decomposed.startswith("decomposed: ")
