"""Chunked attention: the size is read off the divisions and proved; no window and no other chunks are taken for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.export import Dim

from attnlower.patterns import Chunked, Refuted

X = torch.randn(2, 3, 9, 4)
OTHERS = tuple(torch.randn(b, 3, n, 4) for b, n in ((1, 1), (1, 3), (3, 17)))


def q(x: torch.Tensor) -> torch.Tensor:
    return torch.arange(x.shape[2])[:, None]


def k(x: torch.Tensor) -> torch.Tensor:
    return torch.arange(x.shape[2])[None]


def causal(x: torch.Tensor) -> torch.Tensor:
    return k(x) <= q(x)


def blocks(x: torch.Tensor) -> torch.Tensor:
    """Chunk numbers counted by a running sum of chunk starts."""
    return (torch.arange(x.shape[2]) % 4 == 0).cumsum(0)


CHUNKS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Chunked]] = {
    "equal": (lambda x: causal(x) & (k(x) // 4 == q(x) // 4), Chunked(4)),
    "difference": (lambda x: causal(x) & ((q(x) // 4 - k(x) // 4).abs() == 0), Chunked(4)),
    "from-the-start": (lambda x: causal(x) & (k(x) >= q(x) // 4 * 4), Chunked(4)),
    "remainder": (lambda x: causal(x) & (q(x) - k(x) <= q(x) % 4), Chunked(4)),
    "floor-div": (
        lambda x: causal(x) & (torch.div(k(x), 5, rounding_mode="floor") == torch.div(q(x), 5, rounding_mode="floor")),
        Chunked(5),
    ),
    "shifted": (lambda x: causal(x) & ((k(x) + 1) // 4 == (q(x) + 1) // 4), Chunked(4, shift=1)),
    "both-ways": (lambda x: k(x) // 3 == q(x) // 3, Chunked(3, is_causal=False)),
    "additive": (
        lambda x: torch.where(causal(x), 0.0, float("-inf")) + torch.where(k(x) // 2 == q(x) // 2, 0.0, float("-inf")),
        Chunked(2),
    ),
    "not-other": (lambda x: ~((k(x) > q(x)) | (k(x) // 4 != q(x) // 4)), Chunked(4)),
}
NEAR: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "unlike-sizes": lambda x: causal(x) & (k(x) // 4 == q(x) // 3),
    "next-chunk": lambda x: causal(x) & (k(x) // 4 + 1 == q(x) // 4),
    "earlier-chunks": lambda x: k(x) // 4 <= q(x) // 4,
    "one-shifted": lambda x: causal(x) & ((k(x) + 1) // 4 == q(x) // 4),
    "window": lambda x: causal(x) & (k(x) > q(x) - 4),
    "last-missing": lambda x: causal(x) & (k(x) // 4 == q(x) // 4) & (k(x) % 4 != 3),
    "counted": lambda x: causal(x) & (blocks(x)[None] == blocks(x)[:, None] + 1),
}


@pytest.fixture(scope="module", params=["export", "dynamo"])
def sites(request: pytest.FixtureRequest, analyze_masks: Callable[..., Any]) -> Any:
    masks = {**{n: m for n, (m, _) in CHUNKS.items()}, **NEAR}
    return analyze_masks(masks, (X,), request.param, [{0: Dim.DYNAMIC, 2: Dim.DYNAMIC}])


@pytest.mark.parametrize("name", CHUNKS)
def test_chunks_are_proved(sites: Any, name: str) -> None:
    site, expected = sites[name], CHUNKS[name][1]
    assert site.kinds == {"chunked"}
    assert site.verdict == "Proved"
    assert site.classification.template == expected
    assert site.classification.exact
    assert site.classification.guard is None
    size = expected.size - expected.shift
    assert f"{'causal' if expected.is_causal else 'full'} while S <= {size}" in site.classification.near
    for x in (X, *OTHERS):
        site.check(x)


@pytest.mark.parametrize("name", NEAR)
def test_what_is_no_chunk(sites: Any, name: str) -> None:
    site = sites[name]
    assert "chunked" not in site.kinds
    assert not isinstance(site.classification.template, Chunked)
    for x in (X, *OTHERS):
        site.check(x)


def test_the_counterexample_is_real(sites: Any) -> None:
    site = sites["unlike-sizes"]
    verdict = site.classification.verdict
    assert isinstance(verdict, Refuted)
    n = max(verdict.witness["q"], verdict.witness["k"]) + 1
    mask = site.mask(torch.randn(1, 3, n, 4))
    at = verdict.witness["q"], verdict.witness["k"]
    assert bool(mask[at]) != (at[1] <= at[0])
    assert f"query {at[0]}" in site.classification.reason
    assert f"key {at[1]}" in site.classification.reason


def test_chunks_longer_than_the_sequence_are_causal(analyze_masks: Callable[..., Any]) -> None:
    site = analyze_masks({"long": lambda x: causal(x) & (k(x) // 9 == q(x) // 9)}, (X,), "export")["long"]
    assert site.kinds == {"causal"}
    assert site.classification.exact
