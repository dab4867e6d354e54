"""Packed documents: by given numbers, by counted breaks, by truth values; on the law that lets positions restart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.export import Dim

from attnlower.patterns import Causal, SlidingWindow

X = torch.randn(2, 3, 9, 4)
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2], [4, 4, 4, 4, 4, 1, 1, 1, 0]])
RESTARTS = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 4, 5, 6, 7, 8]])
ODD = torch.tensor([[0, 1, 1, 2, 7, 8, 3, 3, 4], [5, 4, 3, 2, 1, 0, 1, 2, 3]])

Mask = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def index(x: torch.Tensor) -> torch.Tensor:
    return torch.arange(x.shape[2])


def causal(x: torch.Tensor) -> torch.Tensor:
    return index(x)[None] <= index(x)[:, None]


def pairs(d: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return d[:, None, :, None], d[:, None, None, :]


def same(d: torch.Tensor) -> torch.Tensor:
    rows, columns = pairs(d)
    return rows == columns


def breaks(p: torch.Tensor) -> torch.Tensor:
    """What transformers counts: the places where the positions do not go on by one."""
    return (torch.diff(p, prepend=p[:, :1] - 1, dim=-1) != 1).cumsum(-1)


def earlier(p: torch.Tensor) -> torch.Tensor:
    rows, columns = pairs(p)
    return columns <= rows


def within(p: torch.Tensor, width: int) -> torch.Tensor:
    rows, columns = pairs(p)
    return columns > rows - width


PACKED: dict[str, tuple[Mask, set[str]]] = {
    "given": (lambda x, d: causal(x) & same(d), {"causal", "packed"}),
    "alone": (lambda x, d: same(d), {"packed"}),
    "difference": (lambda x, d: causal(x) & (pairs(d)[0] - pairs(d)[1] == 0), {"causal", "packed"}),
    "not-unlike": (lambda x, d: causal(x) & ~(pairs(d)[0] != pairs(d)[1]), {"causal", "packed"}),
    "floats": (lambda x, d: causal(x) & same(d.float()), {"causal", "packed"}),
    "truths": (lambda x, d: causal(x) & same(d > 0), {"causal", "packed"}),
    "xor": (lambda x, d: causal(x) & ~(pairs(d > 0)[0] ^ pairs(d > 0)[1]), {"causal", "packed"}),
    "without-zero": (lambda x, d: causal(x) & same(d) & (pairs(d)[1] != 0), {"causal", "packed", "padding"}),
    "halved": (lambda x, d: same(d // 2), {"packed"}),
    "counted": (lambda x, d: causal(x) & same(breaks(d)), {"causal", "packed"}),
    "summed": (lambda x, d: causal(x) & same(d.cumsum(-1)), {"causal", "packed"}),
    "additive": (lambda x, d: torch.where(causal(x) & same(d), 0.0, float("-inf")), {"causal", "packed"}),
    "restarting": (lambda x, d: same(breaks(d)) & earlier(d), {"causal", "packed"}),
    "restarting-window": (lambda x, d: same(breaks(d)) & earlier(d) & within(d, 3), {"sliding_window", "packed"}),
    "in-a-window": (
        lambda x, d: same(d) & causal(x) & (index(x)[None] > index(x)[:, None] - 3),
        {"sliding_window", "packed"},
    ),
    "sorted": (lambda x, d: causal(x) & same(d.sort(-1).values), {"causal", "packed"}),
}
NEAR: dict[str, Mask] = {
    "unlike": lambda x, d: causal(x) & ~same(d),
    "elsewhere": lambda x, d: causal(x) & (pairs(d)[0] == pairs(d.flip(-1))[1]),
    "next": lambda x, d: causal(x) & (pairs(d)[0] == pairs(d)[1] + 1),
    "scaled": lambda x, d: causal(x) & (pairs(d)[0] == 2 * pairs(d)[1]),
    "other-row": lambda x, d: causal(x) & (pairs(d)[0] == pairs(d.flip(0))[1]),
    "other-truths": lambda x, d: causal(x) & ~(pairs(d > 0)[0] ^ pairs(d > 1)[1]),
}


@pytest.fixture(scope="module", params=["export", "dynamo"])
def sites(request: pytest.FixtureRequest, analyze_masks: Callable[..., Any]) -> Any:
    masks = {**{n: m for n, (m, _) in PACKED.items()}, **NEAR}
    shapes = [{0: Dim.DYNAMIC, 2: Dim.DYNAMIC}, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}]
    return analyze_masks(masks, (X, DOCUMENTS), request.param, shapes)


def check(site: Any) -> None:
    for data in (DOCUMENTS, RESTARTS, ODD):
        site.check(X, data)
    site.check(torch.randn(1, 3, 5, 4), ODD[:1, :5])
    site.check(torch.randn(1, 3, 1, 4), ODD[:1, :1])


@pytest.mark.parametrize("name", PACKED)
def test_documents_are_proved(sites: Any, name: str) -> None:
    site = sites[name]
    assert site.kinds == PACKED[name][1]
    assert site.verdict == "Proved"
    assert not site.classification.exact
    assert site.classification.guard is None
    if name != "sorted":  # no rule reads a sort; what it gives is compared with itself all the same
        check(site)


@pytest.mark.parametrize("name", NEAR)
def test_what_is_no_document(sites: Any, name: str) -> None:
    site = sites[name]
    assert "packed" not in site.kinds
    assert site.verdict == "Refuted"
    check(site)


def test_restarting_positions_are_indices_within_a_document(sites: Any) -> None:
    """`position[k] <= position[q]` says `k <= q` where no break lies between: proved by the telescoped sum."""
    assert sites["restarting"].classification.template == Causal()
    window = sites["restarting-window"].classification.template
    assert isinstance(window, SlidingWindow)
    assert window.is_causal


@pytest.mark.parametrize(
    "mask",
    [
        # a break is where the positions go on by two: then a distance of positions is twice that of the indices
        lambda x, d: same((torch.diff(d, prepend=d[:, :1] - 1, dim=-1) != 2).cumsum(-1)) & within(d, 3) & earlier(d),
        # the documents of one tensor, the positions of another
        lambda x, d: same(breaks(d)) & earlier(d.flip(-1)),
        # breaks are not counted, but numbered by something else
        lambda x, d: same(d) & earlier(d + d.flip(-1)),
    ],
)
def test_positions_that_do_not_follow_the_documents(analyze_masks: Callable[..., Any], mask: Mask) -> None:
    shapes = [{0: Dim.DYNAMIC, 2: Dim.DYNAMIC}, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}]
    site = analyze_masks({"mask": mask}, (X, DOCUMENTS), "export", shapes)["mask"]
    assert site.classification.template != Causal()
    assert "causal" not in site.kinds
    check(site)


def test_one_document_of_plain_positions_is_causal(analyze_masks: Callable[..., Any]) -> None:
    def mask(x: torch.Tensor) -> torch.Tensor:
        positions = index(x)[None].expand(x.shape[0], -1)
        return same(breaks(positions)) & earlier(positions)

    site = analyze_masks({"plain": mask}, (X,), "export", [{0: Dim.DYNAMIC, 2: Dim.DYNAMIC}])["plain"]
    assert site.kinds == {"causal"}
    assert site.classification.exact
