"""Sliding windows: the width is read off the formula and proved; a window is never taken for causal or the reverse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.export import Dim

from attnlower.patterns import Causal, SlidingWindow, build
from attnlower.patterns.classify import is_rewritable

X = torch.randn(2, 3, 6, 4)
NEG = float("-inf")
Mask = Callable[..., torch.Tensor]


def q(x: torch.Tensor) -> torch.Tensor:
    return torch.arange(x.shape[2])[:, None]


def k(x: torch.Tensor) -> torch.Tensor:
    return torch.arange(x.shape[2])[None]


def causal(x: torch.Tensor) -> torch.Tensor:
    return k(x) <= q(x)


def mistral(x: torch.Tensor) -> torch.Tensor:
    """As transformers built it for years: two triangles of finfo.min."""
    mask = torch.triu(torch.full((x.shape[2], x.shape[2]), torch.finfo(torch.float32).min), diagonal=1)
    blocked = torch.tril(torch.ones(x.shape[2], x.shape[2], dtype=torch.bool), diagonal=-3)
    return mask.masked_fill(blocked, torch.finfo(torch.float32).min)[None, None]


# Windows of 3: each query sees itself and two keys before it.
WINDOWS: dict[str, Mask] = {
    "greater": lambda x: causal(x) & (k(x) > q(x) - 3),
    "distance": lambda x: causal(x) & (q(x) - k(x) < 3),
    "distance-or-equal": lambda x: causal(x) & (q(x) - k(x) <= 2),
    "two-triangles": lambda x: (
        torch.tril(torch.ones(x.shape[2], x.shape[2])) * torch.triu(torch.ones(x.shape[2], x.shape[2]), -2) > 0
    ),
    "band": lambda x: torch.triu(torch.tril(torch.ones(x.shape[2], x.shape[2], dtype=torch.bool)), diagonal=-2),
    "additive": lambda x: torch.where(causal(x) & (k(x) > q(x) - 3), 0.0, NEG),
    "sum-of-two": lambda x: torch.where(causal(x), 0.0, NEG) + torch.where(k(x) > q(x) - 3, 0.0, NEG),
    "blocked": lambda x: ~((k(x) > q(x)) | (k(x) <= q(x) - 3)),
    "expanded": lambda x: (causal(x) & (k(x) > q(x) - 3))[None, None].expand(x.shape[0], x.shape[1], -1, -1),
    "mistral": mistral,
}
OTHERS: dict[str, tuple[Mask, int, int]] = {  # mask, keys behind, keys ahead
    "wider": (lambda x: causal(x) & (q(x) - k(x) <= 3), 3, 0),
    "itself": (lambda x: k(x) == q(x), 0, 0),
    "one": (lambda x: causal(x) & (k(x) > q(x) - 1), 0, 0),
    "both-ways": (lambda x: (q(x) - k(x)).abs() <= 2, 2, 2),
    "both-ways-apart": (lambda x: (k(x) <= q(x) + 1) & (k(x) >= q(x) - 2), 2, 1),
    "behind": (lambda x: (k(x) <= q(x) - 1) & (k(x) >= q(x) - 2), 2, -1),
}
NOT_WINDOWS: dict[str, Mask] = {
    "chunks": lambda x: causal(x) & (k(x) // 3 == q(x) // 3),
    "with-sink": lambda x: causal(x) & ((k(x) > q(x) - 3) | (k(x) == 0)),
    "dilated": lambda x: causal(x) & ((q(x) - k(x)) % 2 == 0),
    "per-head": lambda x: causal(x)[None] & (k(x) > q(x) - torch.arange(x.shape[1])[:, None, None] - 2),
    "finite": lambda x: torch.where(causal(x) & (k(x) > q(x) - 3), 0.0, -1e4),
}
EVERYTHING: dict[str, Mask] = {**WINDOWS, **{n: m for n, (m, _, _) in OTHERS.items()}, **NOT_WINDOWS}


@pytest.fixture(scope="module", params=["export-static", "export-dynamic", "dynamo-dynamic"])
def sites(request: pytest.FixtureRequest, analyze_masks: Callable[..., Any]) -> tuple[Any, bool]:
    how, _, sizes = request.param.partition("-")
    shapes = [{0: Dim.DYNAMIC, 2: Dim.DYNAMIC}] if sizes == "dynamic" else None
    return analyze_masks(EVERYTHING, (X,), how, shapes), sizes == "dynamic"


def check_sizes(site: Any, dynamic: bool) -> None:
    for b, n in [(2, 6), (1, 1), (2, 2), (1, 3), (1, 4), (2, 11)] if dynamic else [(2, 6)]:
        site.check(torch.randn(b, 3, n, 4))


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_of_three(sites: tuple[Any, bool], name: str) -> None:
    found, dynamic = sites
    site = found[name]
    assert site.kinds == {"sliding_window"}
    assert site.verdict == "Proved"
    template = site.classification.template
    assert template == SlidingWindow(build.const_int(2), build.ZERO)
    assert template.is_causal
    assert str(template) == "sliding window of 3"
    assert not is_rewritable(template)
    assert site.formula == "k <= q & k > q - 3"
    check_sizes(site, dynamic)


@pytest.mark.parametrize("name", OTHERS)
def test_other_windows(sites: tuple[Any, bool], name: str) -> None:
    found, dynamic = sites
    site, (_, behind, ahead) = found[name], OTHERS[name]
    template = site.classification.template
    if name == "itself":
        assert not (site.classification.exact and is_rewritable(template))
    else:
        assert site.kinds == {"sliding_window"}
        assert template == SlidingWindow(build.const_int(behind), build.const_int(ahead))
        assert template.is_causal == (ahead == 0)
        assert not is_rewritable(template)
    check_sizes(site, dynamic)


@pytest.mark.parametrize("name", NOT_WINDOWS)
def test_what_is_no_window(sites: tuple[Any, bool], name: str) -> None:
    found, dynamic = sites
    site = found[name]
    assert "sliding_window" not in site.kinds
    assert "causal" not in site.kinds
    check_sizes(site, dynamic)


def test_a_window_over_a_static_length(analyze_masks: Callable[..., Any]) -> None:
    """A window at least as long as the sequence is causal; one shorter is not."""
    masks: dict[str, Mask] = {f"{w}": window(w) for w in (1, 4, 5, 6, 7, 100)}
    found = analyze_masks(masks, (X,), "export")
    for name, site in found.by_name.items():
        assert site.kinds == ({"causal"} if int(name) >= 6 else {"sliding_window"})
        assert site.classification.exact
        site.check(X)
    assert found["6"].classification.template == Causal()


def window(width: int) -> Mask:
    return lambda x: causal(x) & (k(x) > q(x) - width)


def test_a_window_over_a_dynamic_length(analyze_masks: Callable[..., Any]) -> None:
    """However wide: some sequence is longer, unless the size is bounded."""
    masks: dict[str, Mask] = {"64": window(64), "32": window(32)}
    unbounded = analyze_masks(masks, (X,), "export", [{2: Dim("n")}])
    assert all(s.kinds == {"sliding_window"} for s in unbounded.by_name.values())
    bounded = analyze_masks(masks, (X,), "export", [{2: Dim("n", max=40)}])
    assert bounded["64"].kinds == {"causal"}
    assert bounded["32"].kinds == {"sliding_window"}
    for sites_ in (unbounded, bounded):
        for site in sites_.by_name.values():
            for n in (1, 6, 32, 33, 40):
                site.check(torch.randn(1, 3, n, 4))


def test_a_window_as_wide_as_the_sequence(analyze_masks: Callable[..., Any]) -> None:
    masks: dict[str, Mask] = {
        "length": lambda x: causal(x) & (k(x) > q(x) - x.shape[2]),
        "one-less": lambda x: causal(x) & (k(x) > q(x) - x.shape[2] + 1),
        "half": lambda x: causal(x) & (k(x) > q(x) - x.shape[2] // 2),
    }
    found = analyze_masks(masks, (X,), "export", [{2: Dim("n", max=64)}])
    assert found["length"].kinds == {"causal"}
    assert "causal" not in found["one-less"].kinds
    assert "causal" not in found["half"].kinds
    for site in found.by_name.values():
        for n in (1, 2, 3, 6, 9):
            site.check(torch.randn(1, 3, n, 4))


def test_a_window_over_a_cache(analyze_masks: Callable[..., Any]) -> None:
    masks: dict[str, Mask] = {
        "lower-right": lambda x, y: (
            (k(y) <= q(x) + (y.shape[2] - x.shape[2])) & (k(y) > q(x) + (y.shape[2] - x.shape[2]) - 3)
        )
    }
    shapes = [{2: Dim("queries", max=64)}, {2: Dim("keys", max=64)}]
    site = analyze_masks(masks, (X, torch.randn(2, 3, 9, 4)), "export", shapes, cross=True)["lower-right"]
    assert site.kinds == {"sliding_window"}
    assert not is_rewritable(site.classification.template)
    for n, m in ((6, 9), (1, 9), (1, 1), (3, 3), (5, 2)):
        site.check(torch.randn(2, 3, n, 4), torch.randn(2, 3, m, 4))
