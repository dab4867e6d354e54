"""Causal masks: every spelling is proved, no near miss is. Formulas are compared with real masks at several sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.export import Dim

from attnlower.patterns import Alignment, Causal
from attnlower.patterns.classify import is_rewritable

NEG = float("-inf")
X = torch.randn(2, 3, 6, 4)
Mask = Callable[..., torch.Tensor]


def least() -> float:
    """The number, not a global that holds it: Dynamo makes dynamic floats of those."""
    return torch.finfo(torch.float32).min


def rows(x: torch.Tensor) -> torch.Tensor:
    return torch.arange(x.shape[2])[:, None]


def columns(x: torch.Tensor) -> torch.Tensor:
    return torch.arange(x.shape[2])[None, :]


def causal(x: torch.Tensor) -> torch.Tensor:
    return columns(x) <= rows(x)


def square(x: torch.Tensor, value: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full((x.shape[2], x.shape[2]), value, dtype=dtype)


def ones(x: torch.Tensor) -> torch.Tensor:
    return torch.ones(x.shape[2], x.shape[2])


def gpt2(x: torch.Tensor) -> torch.Tensor:
    mask = torch.full((x.shape[2], x.shape[2]), least())
    condition = torch.arange(mask.size(-1))
    mask.masked_fill_(condition < (condition + 1).view(mask.size(-1), 1), 0)
    return mask[None, None, :, :].expand(x.shape[0], 1, x.shape[2], x.shape[2])


def llama(x: torch.Tensor) -> torch.Tensor:
    mask = torch.triu(torch.full((x.shape[2], x.shape[2]), least()), diagonal=1)
    mask = mask * (torch.arange(x.shape[2]) > torch.zeros((), dtype=torch.int64) - 1).reshape(1, -1)
    return mask[None, None].expand(x.shape[0], 1, -1, -1)


def shifted(x: torch.Tensor) -> torch.Tensor:
    """The offset by a cache that is empty."""
    past = 0
    return (torch.arange(x.shape[2] + past)[None] <= torch.arange(past, x.shape[2] + past)[:, None])[None, None]


def in_place(x: torch.Tensor) -> torch.Tensor:
    mask = torch.ones(x.shape[2], x.shape[2], dtype=torch.bool)
    mask &= columns(x) <= rows(x)
    return mask


def by_writes(x: torch.Tensor) -> torch.Tensor:
    mask = torch.zeros(x.shape[2], x.shape[2])
    mask.masked_fill_(columns(x) > rows(x), NEG)
    return mask


POSITIVES: dict[str, Mask] = {
    "compare": causal,
    "compare-turned": lambda x: rows(x) >= columns(x),
    "not-greater": lambda x: ~(columns(x) > rows(x)),
    "less-than-plus-one": lambda x: columns(x) < rows(x) + 1,
    "difference": lambda x: (columns(x) - rows(x)) <= 0,
    "difference-clamped": lambda x: (columns(x) - rows(x)).clamp(min=0) == 0,
    "minimum": lambda x: torch.minimum(columns(x), rows(x)) == columns(x),
    "tril-bool": lambda x: torch.tril(square(x, True, torch.bool)),
    "tril-ones": lambda x: torch.tril(ones(x)).bool(),
    "tril-int": lambda x: torch.tril(square(x, 1, torch.int64)) == 1,
    "tril-byte": lambda x: torch.tril(square(x, 1, torch.uint8)) != 0,
    "not-triu": lambda x: ~torch.triu(square(x, True, torch.bool), diagonal=1),
    "triu-inf": lambda x: torch.triu(square(x, NEG), diagonal=1),
    "triu-min": lambda x: torch.triu(square(x, least()), 1),
    "triu-transposed": lambda x: torch.triu(square(x, True, torch.bool)).transpose(0, 1),
    "masked-fill-inf": lambda x: torch.zeros(x.shape[2], x.shape[2]).masked_fill(~causal(x), NEG),
    "masked-fill-min": lambda x: torch.zeros(x.shape[2], x.shape[2]).masked_fill(columns(x) > rows(x), least()),
    "where-inf": lambda x: torch.where(causal(x), 0.0, NEG),
    "where-min": lambda x: torch.where(causal(x), 0.0, least()),
    "one-minus-times-min": lambda x: (1.0 - causal(x).float()) * least(),
    "int-mask-times-min": lambda x: (1 - causal(x).int()) * least(),
    "sum-of-two": lambda x: torch.triu(square(x, NEG), 1) + torch.zeros(x.shape[2]),
    "sum-of-min-and-min": lambda x: torch.triu(square(x, least()), 1) + torch.triu(square(x, least()), 2),
    "rank-3": lambda x: causal(x)[None],
    "rank-4": lambda x: causal(x)[None, None],
    "expanded": lambda x: causal(x)[None, None].expand(x.shape[0], x.shape[1], -1, -1),
    "expanded-batch": lambda x: causal(x)[None].expand(x.shape[0], -1, -1).unsqueeze(1),
    "repeated": lambda x: causal(x)[None, None].repeat(x.shape[0], 1, 1, 1),
    "cat": lambda x: torch.cat([causal(x)[:, :2], causal(x)[:, 2:]], dim=1),
    "stack": lambda x: torch.stack([causal(x), causal(x), causal(x)], 0),
    "flipped-twice": lambda x: causal(x).flip(0).flip(0),
    "flipped-both": lambda x: (rows(x) <= columns(x)).flip(0, 1),
    "and-everything": lambda x: causal(x) & (columns(x) >= 0) & (rows(x) < x.shape[2]),
    "or-nothing": lambda x: causal(x) | (columns(x) >= x.shape[2]),
    "positions-as-floats": lambda x: columns(x).float() <= rows(x).float(),
    "counted": lambda x: torch.ones(x.shape[2], dtype=torch.int64).cumsum(0)[None] - 1 <= rows(x),
    "logical-not": lambda x: torch.logical_not(columns(x) > rows(x)),
    "xor": lambda x: (columns(x) > rows(x)) ^ True,
    "gathered": lambda x: causal(x)[rows(x), columns(x)],
    "gpt2": gpt2,
    "llama": llama,
    "shifted": shifted,
    "in-place": in_place,
    "by-writes": by_writes,
    "window-of-the-length": lambda x: causal(x) & (columns(x) > rows(x) - x.shape[2]),
}
FLOATS = {n for n, f in POSITIVES.items() if f(X).dtype.is_floating_point}


@pytest.fixture(scope="module", params=["export-static", "export-dynamic", "dynamo-dynamic"])
def positives(request: pytest.FixtureRequest, analyze_masks: Callable[..., Any]) -> tuple[Any, bool]:
    how, _, sizes = request.param.partition("-")
    shapes = [{0: Dim.DYNAMIC, 2: Dim.DYNAMIC}] if sizes == "dynamic" else None
    return analyze_masks(POSITIVES, (X,), how, shapes), sizes == "dynamic"


@pytest.mark.parametrize("name", POSITIVES)
def test_every_spelling_is_proved(positives: tuple[Any, bool], name: str) -> None:
    sites, dynamic = positives
    site = sites[name]
    assert site.kinds == {"causal"}
    assert site.verdict == "Proved"
    assert site.formula == "k <= q"
    found = site.classification
    assert found.template == Causal()
    assert found.exact
    assert found.guard is None
    assert is_rewritable(found.template)
    assert site.analysis.square
    assert found.predicate.bias is None
    assert bool(found.predicate.blocked) == (name in FLOATS)
    for b, n in ((2, 6), (1, 1), (1, 2), (3, 9)) if dynamic else ((2, 6),):
        site.check(torch.randn(b, 3, n, 4))


def test_one_proof_serves_all_spellings_that_read_alike(positives: tuple[Any, bool]) -> None:
    sites, _ = positives
    alike = ["compare", "compare-turned", "not-greater", "less-than-plus-one", "tril-bool", "tril-int", "not-triu"]
    alike += ["rank-3", "rank-4", "expanded", "repeated", "cat", "flipped-twice", "logical-not", "xor", "gathered"]
    assert all(sites[n].classification is sites["compare"].classification for n in alike)
    assert sites.analysis.prover.stats.masks < len(POSITIVES) / 2


# --- near misses ----------------------------------------------------------------------------------------------


def one_flipped(mask: torch.Tensor, row: int, column: int) -> torch.Tensor:
    mask = mask.clone()
    mask[row, column] = ~mask[row, column]
    return mask


def one_written(x: torch.Tensor) -> torch.Tensor:
    mask = causal(x)
    mask[0, 3] = True
    return mask


def one_erased(x: torch.Tensor) -> torch.Tensor:
    mask = causal(x)
    mask[3, 1] = False
    return mask


def row_written(x: torch.Tensor) -> torch.Tensor:
    mask = torch.where(causal(x), 0.0, NEG)
    mask[2] = 0.0
    return mask


def head_written(x: torch.Tensor) -> torch.Tensor:
    mask = causal(x)[None, None].repeat(1, x.shape[1], 1, 1)
    mask[:, 1, 0, 1] = True
    return mask


NEAR: dict[str, Mask] = {
    "less": lambda x: columns(x) < rows(x),
    "less-or-zero": lambda x: (columns(x) < rows(x)) | (rows(x) == 0),
    "plus-one": lambda x: columns(x) <= rows(x) + 1,
    "minus-one": lambda x: columns(x) <= rows(x) - 1,
    "transposed": lambda x: causal(x).transpose(0, 1),
    "turned": lambda x: rows(x) <= columns(x),
    "reversed": lambda x: causal(x).flip(0),
    "tril-1": lambda x: torch.tril(square(x, True, torch.bool), 1),
    "tril-minus-1": lambda x: torch.tril(square(x, True, torch.bool), -1),
    "triu-inf-0": lambda x: torch.triu(square(x, NEG), 0),
    "triu-inf-2": lambda x: torch.triu(square(x, NEG), 2),
    "one-written": one_written,
    "one-erased": one_erased,
    "one-more": lambda x: causal(x) | ((rows(x) == 0) & (columns(x) == 3)),
    "row-written": row_written,
    "head-written": head_written,
    "another-head": lambda x: causal(x)[None] | (torch.arange(x.shape[1]) == 2)[:, None, None],
    "one-head-stacked": lambda x: torch.stack([causal(x), causal(x), columns(x) <= rows(x) + 1]),
    "another-batch-row": lambda x: (causal(x)[None] | (torch.arange(x.shape[0]) == 1)[:, None, None])[:, None],
    "every-second": lambda x: causal(x) & (columns(x) % 2 == 0),
    "chunks": lambda x: causal(x) & (columns(x) // 2 == rows(x) // 2),
    "window": lambda x: causal(x) & (columns(x) > rows(x) - 3),
    "prefix": lambda x: causal(x) | (columns(x) < 2),
    "no-first-key": lambda x: causal(x) & (columns(x) > 0),
    "finite-1": lambda x: torch.where(causal(x), 0.0, -1.0),
    "finite-10": lambda x: torch.where(causal(x), 0.0, -10.0),
    "finite-1e4": lambda x: torch.where(causal(x), 0.0, -1e4),
    "finite-1e9": lambda x: torch.where(causal(x), 0.0, -1e9),
    "finite-half-min": lambda x: torch.where(causal(x), 0.0, torch.finfo(torch.float16).min),
    "positive-inf": lambda x: torch.where(causal(x), 0.0, float("inf")),
    "nan": lambda x: torch.where(causal(x), 0.0, float("nan")),
    "inf-times-zero": lambda x: (1.0 - causal(x).float()) * NEG,
    "allowed-bias": lambda x: torch.where(causal(x), 1.0, NEG),
    "alibi": lambda x: torch.where(causal(x), (columns(x) - rows(x)).float() * 0.5, NEG),
    "alibi-per-head": lambda x: torch.where(
        causal(x), columns(x).float() * torch.pow(2.0, -torch.arange(x.shape[1]).float())[:, None, None], NEG
    ),
    "everything-blocked": lambda x: torch.full((x.shape[2], x.shape[2]), NEG),
    "nothing-allowed": lambda x: causal(x) & (columns(x) < 0),
    "int-overflow": lambda x: (columns(x) * 100).to(torch.uint8) <= (rows(x) * 100).to(torch.uint8),
    "bfloat16-positions": lambda x: columns(x).to(torch.bfloat16) <= rows(x).to(torch.bfloat16),
}
OPAQUE = {"int-overflow", "bfloat16-positions"}
BIASED = {n for n in NEAR if n.startswith(("finite", "allowed", "alibi", "positive-inf", "nan", "inf-times"))}


@pytest.fixture(scope="module", params=["export-dynamic", "dynamo-dynamic"])
def near(request: pytest.FixtureRequest, analyze_masks: Callable[..., Any]) -> tuple[Any, bool]:
    how, _, sizes = request.param.partition("-")
    shapes = [{0: Dim.DYNAMIC, 2: Dim.DYNAMIC}] if sizes == "dynamic" else None
    return analyze_masks(NEAR, (X,), how, shapes), sizes == "dynamic"


@pytest.mark.parametrize("name", NEAR)
def test_no_near_miss_is_proved(near: tuple[Any, bool], name: str) -> None:
    sites, dynamic = near
    site = sites[name]
    found = site.classification
    assert not (found.exact and found.template is not None and is_rewritable(found.template)), site.formula
    assert site.kinds != {"causal"}
    assert found.guard is None
    if name in OPAQUE:
        assert site.verdict in ("Unknown", "Refuted")
        return
    if name in BIASED:
        assert "bias" in site.kinds
        assert found.predicate.bias is not None
    for b, n in ((2, 6), (1, 1), (1, 2), (3, 9)) if dynamic else ((2, 6),):
        x = torch.randn(b, 3, n, 4)
        try:
            actual = site.mask(x)
        except (IndexError, RuntimeError):  # a write at row 3 needs four rows
            continue
        if not actual.isnan().any():
            site.check(x)


@pytest.mark.parametrize("name", ["less", "plus-one", "transposed", "one-written", "another-head", "another-batch-row"])
def test_a_refusal_comes_with_a_counterexample(near: tuple[Any, bool], name: str) -> None:
    sites, _ = near
    site = sites[name]
    assert site.verdict == "Refuted"
    witness = site.classification.verdict.witness
    assert "query" in site.classification.reason
    symbols = [n for n in witness if n not in "bhqk"]
    n = max(witness["q"], witness["k"]) + 1
    # the smallest length at which the witness lies inside the mask
    n = next((int(witness[s]) for s in symbols if int(witness[s]) >= n), max(n, 6))
    b = max(2, witness.get("b", 0) + 1)
    x = torch.randn(b, 3, n, 4)
    actual = site.mask(x).expand(b, 3, n, n)
    assert bool(actual[witness.get("b", 0), witness.get("h", 0), witness["q"], witness["k"]]) != (
        witness["k"] <= witness["q"]
    )


def test_a_mask_that_is_causal_only_beyond_length_one(analyze_masks: Callable[..., Any]) -> None:
    """An exported program says "at least 2" of a dynamic size, and takes 1 all the same."""
    masks = {"longer": lambda x: causal(x) & (torch.ones(x.shape[2], x.shape[2]) * x.shape[2] > 1)}
    for dim in (Dim.DYNAMIC, Dim.AUTO, Dim("n", min=2, max=64)):
        site = analyze_masks(masks, (X,), "export", [{2: dim}])["longer"]
        assert site.formula == "k <= q & s0 > 1" or "> 1" in site.formula
        assert not site.classification.exact or site.kinds != {"causal"}
        for n in (1, 2, 6):
            site.check(torch.randn(2, 3, n, 4))
    assert analyze_masks(masks, (X,), "export")["longer"].kinds == {"causal"}


# --- numbers of queries and keys that differ ------------------------------------------------------------------


def cross(y_minus_x: Callable[[torch.Tensor, torch.Tensor], torch.Tensor | int]) -> Mask:
    def mask(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        q, k = torch.arange(x.shape[2])[:, None], torch.arange(y.shape[2])[None]
        return k <= q + y_minus_x(x, y)

    return mask


CROSS: dict[str, Mask] = {
    "upper-left": cross(lambda x, y: 0),
    "lower-right": cross(lambda x, y: y.shape[2] - x.shape[2]),
    "offset": cross(lambda x, y: 2),
    "tril": lambda x, y: torch.tril(torch.ones(x.shape[2], y.shape[2], dtype=torch.bool)),
    "tril-lower-right": lambda x, y: torch.tril(
        torch.ones(x.shape[2], y.shape[2], dtype=torch.bool), diagonal=y.shape[2] - x.shape[2]
    ),
}
EXPECTED = {
    "upper-left": Causal(),
    "lower-right": Causal(Alignment.LOWER_RIGHT),
    "tril": Causal(),
    "tril-lower-right": Causal(Alignment.LOWER_RIGHT),
}
Y = torch.randn(2, 3, 9, 4)
PAIR_SIZES = [(6, 9), (9, 6), (1, 4), (4, 1), (5, 5), (1, 1)]


@pytest.mark.parametrize("how", ["export", "dynamo"])
@pytest.mark.parametrize("equal_samples", [False, True])
def test_independent_numbers_of_queries_and_keys(
    analyze_masks: Callable[..., Any], how: str, equal_samples: bool
) -> None:
    """Upper left is not lower right, even where the sample has as many queries as keys."""
    y = torch.randn(2, 3, 6, 4) if equal_samples else Y
    if how == "dynamo" and equal_samples:
        pytest.skip("Dynamo gives equal sizes one symbol, and guards on it")
    shapes = [{2: Dim("queries", max=64)}, {2: Dim("keys", max=64)}]
    sites = analyze_masks(CROSS, (X, y), how, shapes, cross=True)
    for name, template in EXPECTED.items():
        site = sites[name]
        assert site.kinds == {"causal"}
        assert site.classification.template == template, name
        assert not site.analysis.square
        assert is_rewritable(site.classification.template) == (template == Causal())
        for q, k in PAIR_SIZES:
            site.check(torch.randn(2, 3, q, 4), torch.randn(2, 3, k, 4))
    offset = sites["offset"].classification.template
    assert isinstance(offset, Causal)
    assert repr(offset.offset) == "2"
    assert not is_rewritable(offset)


def test_static_numbers_of_queries_and_keys_that_differ(analyze_masks: Callable[..., Any]) -> None:
    sites = analyze_masks(CROSS, (X, Y), "export", cross=True)
    assert sites["upper-left"].classification.template == Causal()
    lower = sites["lower-right"].classification.template
    assert lower == Causal(Alignment.LOWER_RIGHT)
    assert not is_rewritable(lower)
    for site in sites.by_name.values():
        site.check(X, Y)


# --- the flag itself ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["export", "dynamo"])
def test_is_causal_already_set(capture_module: Callable[..., Any], how: str) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)

    _, analysis = capture_module(Model(), (X,), how, None)
    (site,) = analysis.sites
    assert site.call.is_causal
    assert site.mask_value is None
    assert site.classification.kinds == {"causal"}
    assert str(site.classification.predicate) == "k <= q"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", ["inf", "min"])
def test_additive_masks_of_other_dtypes(analyze_masks: Callable[..., Any], dtype: torch.dtype, value: str) -> None:
    number = NEG if value == "inf" else torch.finfo(dtype).min
    masks = {
        "triu": lambda x: torch.triu(torch.full((x.shape[2], x.shape[2]), number, dtype=dtype), 1),
        "where": lambda x: torch.where(causal(x), 0.0, torch.full((), number, dtype=dtype)),
        "finite": lambda x: torch.where(causal(x), 0.0, -10000.0).to(dtype),
    }
    sites = analyze_masks(masks, (X.to(dtype),), "export")
    for name in ("triu", "where"):
        assert sites[name].kinds == {"causal"}
        assert sites[name].classification.exact
        sites[name].check(X.to(dtype))
    assert sites["finite"].kinds == {"bias"}
    assert not sites["finite"].classification.exact
