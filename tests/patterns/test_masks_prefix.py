"""Prefix-LM, blockwise and global-token masks: what is visible besides the causal part, by sizes or by data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.export import Dim

from attnlower.patterns import Prefix

X = torch.randn(2, 3, 9, 4)
IDS = torch.tensor([[-1, 0, 0, 0, -1, 1, 1, -1, -1], [0, 0, -1, -1, 1, 1, 1, 1, -1]])
OTHER = torch.tensor([[3, 3, 3, 1, 1, 0, 0, 0, 0], [1, 0, 1, 0, 1, 0, 1, 0, 1]])
LENGTHS = torch.tensor([3, 1])

Mask = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def q(x: torch.Tensor) -> torch.Tensor:
    return torch.arange(x.shape[2])[:, None]


def k(x: torch.Tensor) -> torch.Tensor:
    return torch.arange(x.shape[2])[None]


def causal(x: torch.Tensor) -> torch.Tensor:
    return k(x) <= q(x)


def window(x: torch.Tensor) -> torch.Tensor:
    return causal(x) & (k(x) > q(x) - 3)


def pairs(d: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return d[:, None, :, None], d[:, None, None, :]


def block(d: torch.Tensor) -> torch.Tensor:
    rows, columns = pairs(d)
    return (rows == columns) & (rows >= 0)


def written(x: torch.Tensor, d: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    mask = causal(x).clone()
    mask[:, :2] = True
    return mask


PREFIXES: dict[str, tuple[Mask, set[str]]] = {
    "blocks": (lambda x, d, n: causal(x) | block(d), {"prefix"}),
    "constant": (lambda x, d, n: causal(x) | (k(x) < 3), {"prefix"}),
    "written": (written, {"prefix"}),
    "half": (lambda x, d, n: causal(x) | (k(x) < x.shape[2] // 2), {"prefix"}),
    "per-row": (lambda x, d, n: causal(x) | (k(x)[None, None] < n[:, None, None, None]), {"prefix"}),
    "blocks-additive": (lambda x, d, n: torch.where(causal(x) | block(d), 0.0, float("-inf")), {"prefix"}),
    "both-types": (lambda x, d, n: causal(x) | ((pairs(d)[0] == 0) & (pairs(d)[1] == 0)), {"prefix"}),
    "key-type": (lambda x, d, n: causal(x) | (pairs(d)[1] == 0), {"prefix"}),
    "not-neither": (lambda x, d, n: ~((k(x) > q(x)) & ~block(d)), {"prefix"}),
    "window-and-blocks": (lambda x, d, n: window(x) | block(d), {"prefix", "sliding_window"}),
    "window-and-first": (lambda x, d, n: window(x) | (k(x) < 2), {"prefix", "sliding_window"}),
    "sinks": (lambda x, d, n: causal(x) & ((k(x) > q(x) - 3) | (k(x) < 2)), {"prefix", "sliding_window"}),
    "padded": (lambda x, d, n: (causal(x) | block(d)) & (pairs(d)[1] != 1), {"prefix", "padding"}),
}
NEAR: dict[str, tuple[Mask, set[str]]] = {
    "hides": (lambda x, d, n: causal(x) & (k(x) < 3), {"opaque"}),
    "last-keys": (lambda x, d, n: causal(x) | (k(x) > 4), {"opaque"}),
    "first-queries": (lambda x, d, n: causal(x) | (q(x) < 3), {"opaque"}),
    "unlike-tensors": (lambda x, d, n: causal(x) | (pairs(d)[0] == pairs(d.flip(0))[1]), {"opaque"}),
    "unlike-blocks": (lambda x, d, n: causal(x) | (pairs(d)[0] != pairs(d)[1]), {"opaque"}),
    "diagonal": (lambda x, d, n: (k(x) == q(x)) | (pairs(d)[1] != 0), {"padding", "sliding_window"}),
}


@pytest.fixture(scope="module", params=["export", "dynamo"])
def sites(request: pytest.FixtureRequest, analyze_masks: Callable[..., Any]) -> Any:
    masks = {n: m for n, (m, _) in {**PREFIXES, **NEAR}.items()}
    shapes = [{0: Dim.DYNAMIC, 2: Dim.DYNAMIC}, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, {0: Dim.DYNAMIC}]
    return analyze_masks(masks, (X, IDS, LENGTHS), request.param, shapes)


def check(site: Any) -> None:
    for data in (IDS, OTHER):
        site.check(X, data, LENGTHS)
    site.check(torch.randn(1, 3, 5, 4), OTHER[:1, :5], LENGTHS[:1])


@pytest.mark.parametrize("name", PREFIXES)
def test_prefixes_are_proved(sites: Any, name: str) -> None:
    site = sites[name]
    assert site.kinds == PREFIXES[name][1], site.classification.reason
    assert site.verdict == "Proved"
    found = site.classification
    parts = [found.template, *getattr(found.template, "parts", ()), *found.data]
    assert any(isinstance(p, Prefix) for p in parts)
    check(site)


@pytest.mark.parametrize("name", NEAR)
def test_what_is_no_prefix(sites: Any, name: str) -> None:
    site, (_, kinds) = sites[name], NEAR[name]
    assert site.kinds == kinds, site.classification.reason
    assert (site.verdict == "Proved") == ("opaque" not in kinds)
    check(site)


def test_a_prefix_is_no_causal_mask(sites: Any) -> None:
    for name in PREFIXES:
        assert "causal" not in sites[name].kinds
        # a prefix by data of the key alone is full attention where the data say so everywhere
        assert (sites[name].classification.guard is not None) == (name == "key-type")


def test_the_difference_is_told(sites: Any) -> None:
    assert "causal except that also seen is k <= 2" in sites["constant"].classification.near
    assert "query 0 may see key 1, unlike causal" in sites["constant"].classification.near
    assert "hidden where" in sites["padded"].classification.near
