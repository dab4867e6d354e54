"""Full attention: masks that block nothing, at every size; and those that only seem to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.export import Dim

from attnlower.patterns import Full

X = torch.randn(2, 3, 6, 4)
Y = torch.randn(2, 3, 9, 4)
NEG = float("-inf")
Mask = Callable[..., torch.Tensor]


def q(x: torch.Tensor) -> torch.Tensor:
    return torch.arange(x.shape[2])[:, None]


def k(y: torch.Tensor) -> torch.Tensor:
    return torch.arange(y.shape[2])[None]


POSITIVES: dict[str, Mask] = {
    "ones": lambda x, y: torch.ones(x.shape[2], y.shape[2], dtype=torch.bool),
    "ones-4d": lambda x, y: torch.ones(x.shape[0], 1, x.shape[2], y.shape[2]).bool(),
    "zeros": lambda x, y: torch.zeros(x.shape[2], y.shape[2]),
    "minus-zero": lambda x, y: torch.zeros(x.shape[2], y.shape[2]) * -1.0,
    "no-padding": lambda x, y: (1.0 - torch.ones(x.shape[0], 1, 1, y.shape[2])) * torch.finfo(torch.float32).min,
    "one-key-broadcast": lambda x, y: torch.ones(1, 1, dtype=torch.bool),
    "positions": lambda x, y: k(y) >= 0,
    "within": lambda x, y: (k(y) < y.shape[2]) & (q(x) < x.shape[2]),
    "far-window": lambda x, y: k(y) > q(x) - x.shape[2],
    "far-future": lambda x, y: k(y) <= q(x) + y.shape[2],
    "either": lambda x, y: (k(y) <= q(x)) | (k(y) > q(x)),
    "one-document": lambda x, y: torch.zeros(x.shape[2])[:, None] == torch.zeros(y.shape[2])[None],
    "nothing-filled": lambda x, y: torch.zeros(x.shape[2], y.shape[2]).masked_fill(k(y) < 0, NEG),
    "triu-beyond": lambda x, y: torch.triu(torch.full((x.shape[2], y.shape[2]), NEG), diagonal=y.shape[2]),
    "tril-beyond": lambda x, y: torch.tril(torch.ones(x.shape[2], y.shape[2]), diagonal=y.shape[2]) > 0,
}

NEAR: dict[str, Mask] = {
    "causal": lambda x, y: k(y) <= q(x),
    "one-element": lambda x, y: ~((q(x) == 2) & (k(y) == 1)),
    "last-key": lambda x, y: k(y) < y.shape[2] - 1,
    "first-key": lambda x, y: k(y) > 0,
    "not-itself": lambda x, y: k(y) != q(x),
    "one-head": lambda x, y: ((torch.arange(x.shape[1]) != 1)[:, None, None] | (k(y) <= q(x)))[None],
    "one-batch-row": lambda x, y: ((torch.arange(x.shape[0]) != 1)[:, None, None] | (k(y) <= q(x)))[:, None],
    "window-of-8": lambda x, y: k(y) > q(x) - 8,
    "constant-bias": lambda x, y: torch.full((x.shape[2], y.shape[2]), -1.0),
    "small-bias": lambda x, y: torch.where(k(y) == 0, 1e-6, 0.0),
    "finite": lambda x, y: torch.where(k(y) == 0, -1e4, 0.0),
    "nothing": lambda x, y: torch.zeros(x.shape[2], y.shape[2], dtype=torch.bool),
}
PAIRS = [(6, 9), (1, 1), (1, 5), (4, 1), (9, 3), (12, 12)]


@pytest.fixture(scope="module", params=["export-static", "export-dynamic", "dynamo-dynamic"])
def sites(request: pytest.FixtureRequest, analyze_masks: Callable[..., Any]) -> tuple[Any, bool]:
    how, _, sizes = request.param.partition("-")
    shapes = [{2: Dim("queries", max=64)}, {2: Dim("keys", max=64)}] if sizes == "dynamic" else None
    return analyze_masks({**POSITIVES, **NEAR}, (X, Y), how, shapes, cross=True), sizes == "dynamic"


def check_sizes(site: Any, dynamic: bool) -> None:
    for n, m in PAIRS if dynamic else [(6, 9)]:
        site.check(torch.randn(2, 3, n, 4), torch.randn(2, 3, m, 4))


@pytest.mark.parametrize("name", POSITIVES)
def test_masks_that_block_nothing(sites: tuple[Any, bool], name: str) -> None:
    found, dynamic = sites
    site = found[name]
    assert site.kinds == {"full"}
    assert site.verdict == "Proved"
    assert site.formula in ("true", "k <= q | k > q")
    assert site.classification.exact
    assert site.classification.template == Full()
    assert site.classification.guard is None
    check_sizes(site, dynamic)


@pytest.mark.parametrize("name", NEAR)
def test_masks_that_block_something(sites: tuple[Any, bool], name: str) -> None:
    found, dynamic = sites
    site = found[name]
    if name == "window-of-8" and not dynamic:
        assert site.kinds == {"full"}  # six queries
    else:
        assert not (site.classification.exact and site.classification.template == Full())
        assert "full" not in site.kinds
    check_sizes(site, dynamic)


@pytest.mark.parametrize("how", ["export", "dynamo"])
def test_one_query_sees_the_whole_cache(analyze_masks: Callable[..., Any], how: str) -> None:
    """A decoding step: one query at the end of what is cached."""
    masks: dict[str, Mask] = {
        "lower-right": lambda x, y: k(y) <= q(x) + (y.shape[2] - x.shape[2]),
        "position": lambda x, y: k(y) <= torch.arange(y.shape[2] - 1, y.shape[2])[:, None],
        "row": lambda x, y: (k(y) <= torch.arange(y.shape[2])[:, None])[-1:],
        "additive": lambda x, y: torch.triu(torch.full((y.shape[2], y.shape[2]), NEG), 1)[-1:],
        "upper-left": lambda x, y: k(y) <= q(x),
        "slot-before": lambda x, y: k(y) <= q(x) + (y.shape[2] - 2),
    }
    one, shapes = torch.randn(2, 3, 1, 4), [{}, {2: Dim("keys", max=64)}]
    found = analyze_masks(masks, (one, Y), how, shapes, cross=True)
    for name in ("lower-right", "position", "row", "additive"):
        assert found[name].kinds == {"full"}, name
        assert found[name].classification.exact
    for name in ("upper-left", "slot-before"):
        assert "full" not in found[name].kinds
    for site in found.by_name.values():
        for n in (1, 2, 9, 20):
            site.check(one, torch.randn(2, 3, n, 4))


def test_no_mask_at_all(capture_module: Callable[..., Any]) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.scaled_dot_product_attention(x, x, x)

    for how in ("export", "dynamo"):
        _, analysis = capture_module(Model(), (X,), how, None)
        (site,) = analysis.sites
        assert site.classification.kinds == {"full"}
        assert site.mask_value is None
        assert analysis.captured is None
        assert analysis.prover.stats.solver_calls == 0
