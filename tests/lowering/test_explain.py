"""explain: formulas show inputs by their parameters' names, however they are given, and hooks see them as given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import attnlower


class Padded(torch.nn.Module):
    """Keys that are not padded, one layer."""

    def forward(self, x: torch.Tensor, flags: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, x, x, attn_mask=flags[:, None, None, :])


class AnyNumber(Padded):
    """The same, with parameters that have no name."""

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return super().forward(*tensors)


X, FLAGS = torch.randn(2, 2, 8, 4), torch.ones(2, 8, dtype=torch.bool)


@pytest.mark.parametrize(
    ("args", "kwargs"), [((X, FLAGS), {}), ((X,), {"flags": FLAGS}), ((), {"x": X, "flags": FLAGS})]
)
def test_inputs_have_their_parameters_names(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    (site,) = attnlower.explain(Padded(), *args, **kwargs).sites
    assert (site.formula, site.conditions) == ("flags[b, k]", ("flags.all()",))


def test_a_function_and_parameters_without_names() -> None:
    (site,) = attnlower.explain(Padded().forward, X, FLAGS).sites
    assert site.formula == "flags[b, k]"
    (site,) = attnlower.explain(AnyNumber(), X, FLAGS).sites
    assert site.kinds == {"padding"}


def test_a_report_of_nothing_says_so() -> None:
    assert "nothing has been compiled" in str(attnlower.Report())
    report = attnlower.explain(lambda x: x + 1, X)
    assert str(report).startswith("attnlower: 0 attention call(s)")


def test_hooks_see_what_was_given_by_position() -> None:
    model = Padded()
    seen: list[int] = []
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args)))
    assert attnlower.explain(model, X, FLAGS).sites[0].kinds == {"padding"}
    assert set(seen) == {2}
