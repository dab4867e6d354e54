"""Masks passed in whole: a layer compiled by itself, the mask made elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx

import attnlower
from attnlower.lowering import attnlower_backend
from attnlower.lowering.copying import copy_graph_module

LOWEST = torch.finfo(torch.float32).min
EYE = torch.ones(8, 8, dtype=torch.bool)
CAUSAL = EYE.tril()[None, None]


def layer(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(**options: Any) -> Any:
    return torch.compile(layer, backend="attnlower", options={"target": "eager", "strict": True, **options})


def additive(mask: torch.Tensor, lowest: float) -> torch.Tensor:
    return torch.zeros(mask.shape).masked_fill(~mask, lowest)


@pytest.mark.parametrize(
    "mask",
    [CAUSAL, CAUSAL[0, 0], CAUSAL.expand(2, 3, 8, 8), additive(CAUSAL, LOWEST), additive(CAUSAL, float("-inf"))],
    ids=["bool", "rank 2", "every head", "lowest", "infinite"],
)
def test_one_that_is_causal_at_present(mask: torch.Tensor, same: Any) -> None:
    x, run = torch.randn(2, 3, 8, 16), compiled()
    same(run(x, mask), layer(x, mask))
    (site,) = attnlower.last_report().sites
    assert site.action == "guarded"
    assert site.conditions == ("input 'mask' keeps its value",)
    # every call looks at the mask that is there
    other = mask.clone()
    other[..., 5, 2] = False if mask.dtype is torch.bool else mask.min()
    for given in (other, mask, torch.zeros_like(mask) == 0 if mask.dtype is torch.bool else torch.zeros_like(mask)):
        same(run(x, given), layer(x, given))


def test_the_mask_may_be_written_into_between_calls(same: Any) -> None:
    x, run, mask = torch.randn(2, 3, 8, 16), compiled(), CAUSAL.clone()
    same(run(x, mask), layer(x, mask))
    mask.data[..., 3, 1] = False
    same(run(x, mask), layer(x, mask))


@pytest.mark.parametrize(
    "mask",
    [EYE[None, None], EYE.tril(1)[None, None], EYE.tril() & EYE.triu(-3), additive(CAUSAL, -10000.0)],
    ids=["full", "one ahead", "window", "a bias"],
)
def test_any_other_is_kept(mask: torch.Tensor, same: Any) -> None:
    x = torch.randn(2, 3, 8, 16)
    same(compiled()(x, mask), layer(x, mask))
    assert [s.action for s in attnlower.last_report().sites] == ["keep"]


def test_padding_in_one_row_is_no_causal_mask(same: Any) -> None:
    x, mask = torch.randn(2, 3, 8, 16), CAUSAL.repeat(2, 1, 1, 1)
    mask[1, :, :, 0] = False
    same(compiled()(x, mask), layer(x, mask))
    assert [s.action for s in attnlower.last_report().sites] == ["keep"]


def test_not_where_the_graph_writes(same: Any) -> None:
    def writing(x: torch.Tensor, mask: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        other.fill_(True)
        return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)

    x, base = torch.randn(2, 3, 8, 16), CAUSAL.clone()
    run = torch.compile(writing, backend="attnlower", options={"target": "eager", "strict": True})
    same(run(x, base[0], base[0, 0, 4:]), layer(x, torch.cat((EYE.tril()[:4], EYE[4:]))))
    assert [s.action for s in attnlower.last_report().sites] == ["keep"]


def test_not_where_padding_is_to_be_kept(same: Any) -> None:
    x = torch.randn(2, 3, 8, 16)
    same(compiled(padding="keep")(x, CAUSAL), layer(x, CAUSAL))
    assert [s.action for s in attnlower.last_report().sites] == ["keep"]


def test_a_piece_of_a_split_graph(same: Any) -> None:
    """DDP's buckets: the mask comes from another piece, without a value while this one is compiled."""

    def piece(gm: fx.GraphModule, example_inputs: Any) -> Any:
        split, _ = copy_graph_module(gm)
        for node in split.graph.find_nodes(op="placeholder"):
            node.meta.pop("grapharg", None)
        return attnlower_backend(split, example_inputs, options={"target": "eager", "strict": True})

    x = torch.randn(2, 3, 8, 16)
    for first in (CAUSAL, EYE[None, None]):
        torch._dynamo.reset()
        run = torch.compile(layer, backend=piece)
        for mask in (first, CAUSAL, EYE[None, None], EYE.tril(1)[None, None]):
            same(run(x, mask), layer(x, mask))
        (site,) = attnlower.last_report().sites
        assert site.conditions == ("input 'mask' keeps its value",)
