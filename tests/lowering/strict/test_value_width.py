"""value_width: one head width for query, key and value."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attnlower.lowering.passes.explicit_scale import ExplicitScale
from attnlower.lowering.passes.strict_form import strict_passes
from attnlower.lowering.passes.value_width import ValueWidth

PASSES = (ExplicitScale(), ValueWidth())


def operands(width: Any, value_width: Any) -> dict[str, Any]:
    return {"query": ("b", 4, "q", width), "key": ("b", 4, "k", width), "value": ("b", 4, "k", value_width)}


@pytest.mark.parametrize(("width", "value_width"), [(8, 6), (8, 1), (6, 8), (1, 8)])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_the_narrower_is_padded(check: Any, dtype: torch.dtype, width: int, value_width: int, scale: Any) -> None:
    shapes = {**operands(width, value_width), "mask": ("b", 1, 1, "k")}
    done = check(PASSES, shapes, {"scale": scale}, dtype=dtype)
    which = "query and key" if width < value_width else "value"
    assert done.changes[-1] == f"{which} of width {min(width, value_width)} padded to {max(width, value_width)}"
    assert done.arguments["scale"] == pytest.approx(width**-0.5 if scale is None else scale)
    done = check(strict_passes(), shapes, {"scale": scale}, dtype=dtype)
    assert done.problem == ""


def test_one_width_stays(check: Any) -> None:
    """Near miss."""
    done = check(PASSES, operands(8, 8), {"scale": 0.5})
    assert not done.changes


@pytest.mark.parametrize(("width", "value_width"), [("h", 6), (6, "h")])
def test_a_dynamic_width_stays(check: Any, width: Any, value_width: Any) -> None:
    """Near miss: nothing says which is wider."""
    done = check((ValueWidth0(),), operands(width, value_width), {"scale": 0.5})
    assert not done.changes


class ValueWidth0(ValueWidth):
    """The pass on calls whose scale is written out in the model."""

    requires = ("canonicalize",)


def test_without_a_scale_nothing_is_padded(check: Any) -> None:
    """Near miss: the scale would be taken for the padded width."""
    done = check((ValueWidth0(),), operands(6, 8))
    assert not done.changes
