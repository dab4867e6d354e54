"""Padding: keys hidden by data, alone and with other masks; guards that say when it is needless; what is no padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.export import Dim

from attnlower.patterns import Causal, Condition, Full, SlidingWindow, build
from attnlower.patterns.analyze import Analysis

X = torch.randn(2, 3, 6, 4)
NEG = float("-inf")
Mask = Callable[..., torch.Tensor]

LEFT = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
RIGHT = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]])
HOLES = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 1, 0, 1, 1, 1]])
NONE = torch.zeros(2, 6, dtype=torch.int64)
ALL = torch.ones(2, 6, dtype=torch.int64)
DATA = {"left": LEFT, "right": RIGHT, "holes": HOLES, "none": NONE, "all": ALL}


def least() -> float:
    return torch.finfo(torch.float32).min


def causal(x: torch.Tensor) -> torch.Tensor:
    return torch.arange(x.shape[2])[None] <= torch.arange(x.shape[2])[:, None]


def wide(m: torch.Tensor) -> torch.Tensor:
    """(B, K) as (B, 1, 1, K)."""
    return m[:, None, None, :]


# --- spellings ------------------------------------------------------------------------------------------------

PADDING: dict[str, Mask] = {
    "bool": lambda x, m: wide(m).bool(),
    "not-zero": lambda x, m: wide(m) != 0,
    "expanded": lambda x, m: wide(m).expand(-1, 1, x.shape[2], -1) != 0,
    "masked-fill": lambda x, m: torch.zeros(m.shape)[:, None, None].masked_fill(wide(m) == 0, NEG),
    "where-min": lambda x, m: torch.where(wide(m).bool(), 0.0, least()),
    "looked-up": lambda x, m: m.bool()[
        torch.arange(m.shape[0])[:, None, None, None], torch.arange(m.shape[1])[None, None, None]
    ],
}
EXACTLY_ONE: dict[str, Mask] = {
    "one": lambda x, m: wide(m) == 1,
    "one-minus-times-min": lambda x, m: torch.where((1.0 - wide(m).float()).bool(), least(), 0.0),
}
CAUSAL: dict[str, Mask] = {
    "both": lambda x, m: causal(x) & wide(m).bool(),
    "sum": lambda x, m: torch.where(causal(x), 0.0, NEG) + torch.where(wide(m).bool(), 0.0, NEG),
    "sum-min": lambda x, m: (
        torch.triu(torch.full((x.shape[2], x.shape[2]), least()), 1) + torch.where(wide(m) != 0, 0.0, least())
    ),
    "filled": lambda x, m: (
        torch.triu(torch.full((x.shape[2], x.shape[2]), least()), 1)[None, None]
        .expand(x.shape[0], 1, -1, -1)
        .masked_fill(wide(m) == 0, least())
    ),
    "hf": lambda x, m: torch.where(causal(x)[None, None] & wide(m).bool(), torch.zeros(()), torch.full((), least())),
}
WINDOW: dict[str, Mask] = {
    "window": lambda x, m: (
        causal(x) & (torch.arange(x.shape[2])[None] > torch.arange(x.shape[2])[:, None] - 3) & wide(m).bool()
    )
}
NOT_PADDING: dict[str, tuple[Mask, set[str]]] = {
    "packed": (lambda x, m: causal(x) & (m[:, None, :, None] == m[:, None, None, :]), {"causal", "packed"}),
    "queries": (lambda x, m: m[:, None, :, None].bool() & wide(m * 0 + 1).bool(), {"padding"}),
    "outer": (lambda x, m: m[:, None, :, None].bool() & wide(m).bool(), {"padding"}),
    "per-query": (lambda x, m: causal(x) & (m[:, None, :, None] >= wide(m)), {"causal", "packed"}),
    "either": (lambda x, m: causal(x) | wide(m).bool(), {"prefix"}),
    "row-or-key": (lambda x, m: m[:, None, :, None].bool() | wide(m).bool(), {"padding"}),
    "finite": (lambda x, m: (1.0 - wide(m).float()) * -10000.0, {"bias"}),
    "finite-causal": (
        lambda x, m: torch.where(causal(x), 0.0, NEG) + (1.0 - wide(m).float()) * -1e4,
        {"bias", "causal"},
    ),
    "sum": (lambda x, m: wide(m.cumsum(-1)) > 2, {"padding"}),
    "product": (lambda x, m: wide(m.cumprod(-1)) > 0, {"opaque"}),
    "sorted": (lambda x, m: wide(m.sort(-1).values) > 0, {"opaque"}),
    "rolled": (lambda x, m: causal(x) & (wide(m.roll(1, -1)) > 0), {"causal", "padding"}),
}
UNREAD = {"product": "cumprod", "sorted": "sort"}
EVERYTHING: dict[str, dict[str, Mask]] = {
    "padding": PADDING,
    "exactly-one": EXACTLY_ONE,
    "causal": CAUSAL,
    "window": WINDOW,
    "not": {n: m for n, (m, _) in NOT_PADDING.items()},
}


@pytest.fixture(scope="module", params=["export-static", "export-dynamic", "dynamo-dynamic"])
def sites(request: pytest.FixtureRequest, analyze_masks: Callable[..., Any]) -> tuple[Any, bool]:
    how, _, sizes = request.param.partition("-")
    shapes = [{0: Dim.DYNAMIC, 2: Dim.DYNAMIC}, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}] if sizes == "dynamic" else None
    masks = {f"{group}/{n}": m for group, named in EVERYTHING.items() for n, m in named.items()}
    return analyze_masks(masks, (X, HOLES), how, shapes), sizes == "dynamic"


def check_data(site: Any, dynamic: bool) -> None:
    for data in DATA.values():
        site.check(X, data)
    if dynamic:
        for b, n in ((1, 1), (3, 2), (2, 9)):
            site.check(torch.randn(b, 3, n, 4), torch.randint(0, 2, (b, n)))


def label(site: Any) -> str:
    """The name under which the formula speaks of the mask."""
    return str(site.classification.guard.conditions[0].label)


@pytest.mark.parametrize("name", PADDING)
def test_padding(sites: tuple[Any, bool], name: str) -> None:
    found, dynamic = sites
    site = found[f"padding/{name}"]
    assert site.kinds == {"padding"}
    assert site.verdict == "Proved"
    assert not site.classification.exact
    guard = site.classification.guard
    assert guard.template == Full()
    (condition,) = guard.conditions
    assert (condition.relation, condition.value) == ("!=", 0)
    assert str(condition) == f"{label(site)}.all()"
    assert site.formula == f"{label(site)}[b, k]"
    check_data(site, dynamic)


@pytest.mark.parametrize("name", EXACTLY_ONE)
def test_padding_that_must_be_one(sites: tuple[Any, bool], name: str) -> None:
    """`mask == 1` is not `mask != 0`: `attention_mask.all()` holds for a mask of twos."""
    found, dynamic = sites
    site = found[f"exactly-one/{name}"]
    assert site.kinds == {"padding"}
    guard = site.classification.guard
    assert guard.template == Full()
    (condition,) = guard.conditions
    assert (condition.relation, condition.value) == ("==", 1)
    assert str(condition) == f"({label(site)} == 1).all()"
    check_data(site, dynamic)
    site.check(X, HOLES * 2)


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_with_padding(sites: tuple[Any, bool], name: str) -> None:
    found, dynamic = sites
    site = found[f"causal/{name}"]
    assert site.kinds == {"causal", "padding"}
    assert site.verdict == "Proved"
    assert site.classification.template == Causal()
    assert not site.classification.exact
    assert site.classification.guard.template == Causal()
    assert site.formula == f"k <= q & {label(site)}[b, k]"
    assert "causal" in site.classification.reason
    assert "padding" in site.classification.reason
    check_data(site, dynamic)


def test_a_window_with_padding(sites: tuple[Any, bool]) -> None:
    found, dynamic = sites
    site = found["window/window"]
    assert site.kinds == {"sliding_window", "padding"}
    assert site.classification.template == SlidingWindow(build.const_int(2), build.ZERO)
    assert site.classification.guard is None  # without the padding it is still banded
    check_data(site, dynamic)


@pytest.mark.parametrize("name", NOT_PADDING)
def test_what_is_no_padding(sites: tuple[Any, bool], name: str) -> None:
    found, dynamic = sites
    site, (_, kinds) = found[f"not/{name}"], NOT_PADDING[name]
    assert site.kinds == kinds
    assert not site.classification.exact
    guard = site.classification.guard
    if name.startswith("finite"):
        # a mask of ones adds nothing at all
        assert [str(c) for c in guard.conditions] == [f"({label(site)} == 1).all()"]
    elif name == "either":
        assert guard.template == Full()  # whatever is causal besides
    elif name == "rolled":
        assert guard.template == Causal()
    else:
        assert guard is None
    assert (site.verdict == "Proved") == ("opaque" not in kinds)
    if name not in UNREAD:
        check_data(site, dynamic)


@pytest.mark.parametrize("name", UNREAD)
def test_data_that_no_rule_reads_is_named(sites: tuple[Any, bool], name: str) -> None:
    found, _ = sites
    site = found[f"not/{name}"]
    assert site.verdict == "Unknown"
    verdict = site.classification.verdict
    assert UNREAD[name] in verdict.reason
    assert "could not be read" in site.classification.reason
    assert verdict.node


# --- guards hold -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", ["padding", "exactly-one", "causal", "not"])
def test_under_its_guard_a_mask_is_the_template(sites: tuple[Any, bool], group: str) -> None:
    """The real mask, whenever the condition holds for the real data, blocks exactly what the template blocks."""
    found, _ = sites
    for name in EVERYTHING[group]:
        site = found[f"{group}/{name}"]
        guard = site.classification.guard
        if guard is None:
            continue
        for data in (*DATA.values(), ALL * 2, ALL * -1, ALL.roll(1)):
            if not all(bool(c.holds(data)) for c in guard.conditions):
                continue
            actual = site.mask(X, data).expand(2, 3, 6, 6)
            if actual.dtype is not torch.bool:
                assert ((actual == 0) | (actual <= least())).all()
                actual = actual == 0
            expected = causal(X) if guard.template == Causal() else torch.ones(6, 6, dtype=torch.bool)
            assert torch.equal(actual, expected.expand(2, 3, 6, 6)), (name, data)


# --- fully blocked rows ---------------------------------------------------------------------------------------


def test_rows_that_are_fully_blocked(analyze_masks: Callable[..., Any]) -> None:
    """Left padding blocks whole rows: zeros under -inf and bool, the mean under finfo.min. Neither is rewritten."""
    masks: dict[str, Mask] = {
        "bool": CAUSAL["both"],
        "inf": CAUSAL["sum"],
        "min": CAUSAL["hf"],
        "both": lambda x, m: torch.where(causal(x), 0.0, NEG) + torch.where(wide(m).bool(), 0.0, least()),
    }
    found = analyze_masks(masks, (X, LEFT), "export")
    zeroes = {name: site.classification.predicate.zeroes_empty_rows for name, site in found.by_name.items()}
    assert zeroes == {"bool": True, "inf": True, "min": False, "both": False}
    for name, site in found.by_name.items():
        assert not site.classification.exact
        site.check(X, LEFT)
        out = F.scaled_dot_product_attention(X, X, X, attn_mask=site.mask(X, LEFT))
        if name in ("bool", "inf"):
            assert (out[0, :, 0] == 0).all() or out[0, :, 0].isnan().all()
        if name == "min":
            torch.testing.assert_close(out[0, :, 0], X[0].mean(-2))


# --- real layouts ---------------------------------------------------------------------------------------------


class Padded(torch.nn.Module):
    def __init__(self, mask: Mask) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, x, x, attn_mask=self.mask(x, attention_mask))


@pytest.mark.parametrize("how", ["export", "dynamo"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool, torch.uint8, torch.float32])
def test_dtypes_of_attention_masks(capture_module: Callable[..., Any], how: str, dtype: torch.dtype) -> None:
    model = Padded(lambda x, m: causal(x) & wide(m).bool())
    _, analysis = capture_module(model, (X, HOLES.to(dtype)), how, None)
    found = analysis.sites[0].classification
    assert found.kinds == {"causal", "padding"}
    assert str(found.predicate) == "k <= q & attention_mask[b, k]"
    assert found.guard.conditions == (Condition("attention_mask", found.guard.conditions[0].node, "!=", 0),)
    for data in DATA.values():
        assert bool(found.guard.conditions[0].holds(data.to(dtype))) == bool(data.all())


@pytest.mark.parametrize("how", ["export", "dynamo"])
def test_a_float_mask_that_is_compared_with_infinity(capture_module: Callable[..., Any], how: str) -> None:
    model = Padded(lambda x, m: causal(x) & (wide(m) != NEG))
    _, analysis = capture_module(model, (X, torch.where(HOLES.bool(), 0.0, NEG)), how, None)
    found = analysis.sites[0].classification
    assert found.kinds == {"causal", "padding"}
    assert found.guard is None or found.guard.template == Causal()
    if found.guard is not None:
        data = torch.where(HOLES.bool(), 0.0, NEG)
        assert not all(bool(c.holds(data)) for c in found.guard.conditions)


@pytest.mark.parametrize("how", ["export", "dynamo"])
def test_an_additive_mask_as_input_is_a_bias(capture_module: Callable[..., Any], how: str) -> None:
    """What is in it only the caller knows: it may be blocked keys, and it is no padding."""
    model = Padded(lambda x, m: m)
    _, analysis = capture_module(model, (X, torch.where(causal(X), 0.0, NEG)), how, None)
    found = analysis.sites[0].classification
    assert found.kinds == {"bias"}
    assert not found.exact
    assert found.guard is None
    assert str(found.predicate) == "true; bias attention_mask[q, k]"


@pytest.mark.parametrize("how", ["export", "dynamo"])
def test_square_cross_attention_with_padding(analyze_masks: Callable[..., Any], how: str) -> None:
    """As many queries as keys by chance: padding of the source, no causality, and the sizes stay apart."""

    class Cross(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(x, y, y, attn_mask=wide(m).bool())

    masks: dict[str, Mask] = {"cross": lambda x, y, m: wide(m).bool()}
    y = torch.randn(2, 3, 6, 4)
    n = Dim("keys", max=64)
    shapes = [{2: Dim("queries", max=64)}, {2: n}, {1: n}]
    site = analyze_masks(masks, (X, y, HOLES), how, shapes, cross=True)["cross"]
    assert site.kinds == {"padding"}
    assert site.classification.guard.template == Full()
    if how == "export":
        assert not site.analysis.square
        for q, k in ((6, 6), (1, 9), (9, 1)):
            site.check(torch.randn(2, 3, q, 4), torch.randn(2, 3, k, 4), torch.randint(0, 2, (2, k)))


def t5_bias(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    """Buckets of relative positions, looked up in a table: here `m` is the table."""
    relative = torch.arange(x.shape[2])[None] - torch.arange(x.shape[2])[:, None]
    bucket = torch.minimum(relative.abs(), torch.full_like(relative, 3))
    return F.embedding(bucket, m).permute(2, 0, 1)[None]


@pytest.mark.parametrize("how", ["export", "dynamo"])
def test_a_learned_bias_is_kept(capture_module: Callable[..., Any], how: str) -> None:
    table = torch.randn(4, 3)
    for mask, kinds in (
        (t5_bias, {"bias"}),
        (lambda x, m: t5_bias(x, m) + torch.where(causal(x), 0.0, least()), {"bias", "causal"}),
    ):
        _, analysis = capture_module(Padded(mask), (X, table), how, None)
        found = analysis.sites[0].classification
        assert found.kinds == kinds
        assert not found.exact
        assert found.guard is None
        assert "attention_mask[" in str(found.predicate.bias)


def two_layers(analysis: Analysis) -> None:
    first, second = analysis.sites
    assert first.classification is not None
    assert second.classification is not None
    assert first.classification.guard == second.classification.guard


def test_two_masks_of_one_input_share_their_condition(capture_module: Callable[..., Any]) -> None:
    class Two(torch.nn.Module):
        def forward(self, x: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            mask = wide(attention_mask).bool() & causal(x)
            x = F.scaled_dot_product_attention(x, x, x, attn_mask=mask)
            again = wide(attention_mask) != 0
            return F.scaled_dot_product_attention(x, x, x, attn_mask=again & causal(x))

    for how in ("export", "dynamo"):
        two_layers(capture_module(Two(), (X, HOLES), how, None)[1])
