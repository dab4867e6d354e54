"""Masks joined by and/or, on top of one another, in the spellings of many code bases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn as nn
from torch.export import Dim

from attnlower.patterns import AllOf, AnyOf, Causal, Chunked, SlidingWindow, build
from attnlower.patterns.masks.conjunction import kinds_of, simple_parts

X = torch.randn(2, 4, 9, 4)
MASK = torch.ones(2, 9, dtype=torch.int64).index_fill_(1, torch.tensor([0, 1]), 0)
SLOPES = torch.tensor([0.5, 0.25, 0.125, 0.0625])
NEG = float("-inf")

Mask = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def least() -> float:
    """Asked for inside: a float of the module is an input to Dynamo, of which nothing is known."""
    return torch.finfo(torch.float32).min


def q(x: torch.Tensor) -> torch.Tensor:
    return torch.arange(x.shape[2])[:, None]


def k(x: torch.Tensor) -> torch.Tensor:
    return torch.arange(x.shape[2])[None]


def causal(x: torch.Tensor) -> torch.Tensor:
    return k(x) <= q(x)


def key(m: torch.Tensor) -> torch.Tensor:
    return m[:, None, None, :] != 0


def alibi(x: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
    return slopes[:, None, None] * (k(x) - q(x)).float()


def old_llama(x: torch.Tensor, m: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """transformers 4.4x: a part of the mask is written to."""
    size = x.shape[2]
    mask = torch.triu(torch.full((size, size), least()), 1)[None, None].expand(x.shape[0], 1, -1, -1).clone()
    padded = (mask[:, :, :, : m.shape[1]] + m[:, None, None, :]) == 0
    mask[:, :, :, : m.shape[1]] = mask[:, :, :, : m.shape[1]].masked_fill(padded, least())
    return mask


def rescued(x: torch.Tensor, m: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """Rows that see nothing are opened: the work-around for kernels that give NaN there."""
    mask = torch.where(causal(x) & key(m), 0.0, least())
    return mask.mul(~torch.all(mask == least(), dim=-1, keepdim=True))


JOINED: dict[str, tuple[Mask, set[str]]] = {
    "square-subsequent": (
        lambda x, m, s: nn.Transformer.generate_square_subsequent_mask(x.shape[2]) + torch.where(key(m), 0.0, NEG),
        {"causal", "padding"},
    ),
    "slice-written": (old_llama, {"causal", "padding"}),
    "rescued-rows": (rescued, {"causal", "padding"}),
    "int-product": (lambda x, m, s: (causal(x).int() * m[:, None, None].int()).bool(), {"causal", "padding"}),
    "uint8": (lambda x, m, s: torch.ones(x.shape[2], x.shape[2], dtype=torch.uint8).tril() != 0, {"causal"}),
    "over-heads": (lambda x, m, s: (causal(x) & key(m)).expand(x.shape[0], x.shape[1], -1, -1), {"causal", "padding"}),
    "alibi": (lambda x, m, s: torch.where(causal(x), 0.0, NEG) + alibi(x, s), {"bias", "causal"}),
    "alibi-padded": (
        lambda x, m, s: torch.where(causal(x) & key(m), 0.0, least()) + alibi(x, s),
        {"bias", "causal", "padding"},
    ),
    "alibi-window": (
        lambda x, m, s: torch.where(causal(x) & (k(x) > q(x) - 3), 0.0, NEG) + alibi(x, s),
        {"bias", "sliding_window"},
    ),
    "chunks-in-a-window": (
        lambda x, m, s: causal(x) & (k(x) // 4 == q(x) // 4) & (k(x) > q(x) - 3),
        {"chunked", "sliding_window"},
    ),
    "window-or-diagonal": (lambda x, m, s: (causal(x) & key(m)) | (k(x) == q(x)), {"padding", "sliding_window"}),
    "chunks-or-window": (
        lambda x, m, s: (k(x) // 4 == q(x) // 4) | ((k(x) - q(x)).abs() <= 1),
        {"chunked", "sliding_window"},
    ),
    "padded-both-ways": (lambda x, m, s: key(m) & (m[:, None, :, None] != 0), {"padding"}),
}


@pytest.fixture(scope="module", params=["export", "dynamo"])
def sites(request: pytest.FixtureRequest, analyze_masks: Callable[..., Any]) -> Any:
    # the first mask names the inputs in their order
    masks = {
        "order": lambda x, m, s: torch.where(key(m), 0.0, 1.0) + alibi(x, s),
        **{n: m for n, (m, _) in JOINED.items()},
    }
    shapes = [{0: Dim.DYNAMIC, 2: Dim.DYNAMIC}, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, None]
    return analyze_masks(masks, (X, MASK, SLOPES), request.param, shapes)


@pytest.mark.parametrize("name", JOINED)
def test_joined_masks(sites: Any, name: str) -> None:
    site, kinds = sites[name], JOINED[name][1]
    assert site.kinds == kinds, site.classification.reason
    assert site.verdict == "Proved", site.classification.reason
    for batch, size in ((2, 9), (1, 4), (3, 14)):
        x, m = torch.randn(batch, 4, size, 4), torch.randint(0, 2, (batch, size))
        if "rescued" not in name:  # what is opened again is no longer blocked, and the bias there is zero
            site.check(x, m, SLOPES)


def test_the_words_for_several_templates() -> None:
    window = SlidingWindow(build.const_int(3), build.ZERO)
    assert kinds_of(Causal(), window) == {"sliding_window"}
    assert kinds_of(AllOf((Causal(), Chunked(4)))) == {"chunked"}
    assert kinds_of(AnyOf((Causal(), AllOf((window, Chunked(4)))))) == {"chunked", "sliding_window"}
    assert simple_parts(AnyOf((Causal(), AllOf((window, Chunked(4)))))) == (Causal(), window, Chunked(4))
    assert str(AllOf((Causal(), AnyOf((window, Chunked(4)))))) == (
        "causal (upper_left) and (sliding window of 4 or chunks of 4)"
    )
