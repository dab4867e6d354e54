"""How close a kept mask is to one that needs no tensor, in words, and counterexamples that can be checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.export import Dim

from attnlower.patterns import CellRef, Facts, build
from attnlower.patterns.predicate import Predicate
from attnlower.patterns.sampling import find_counterexample
from attnlower.patterns.witness import allowed_at, describe_witness

X = torch.randn(2, 3, 9, 4)
MASK = torch.ones(2, 9, dtype=torch.int64).index_fill_(1, torch.tensor([0, 1]), 0)
Q, K, B = build.coord("q"), build.coord("k"), build.coord("b")
S = build.size("s")
SQUARE = Facts({}, {"b": build.size("n"), "q": S, "k": S})


def q(x: torch.Tensor) -> torch.Tensor:
    return torch.arange(x.shape[2])[:, None]


def k(x: torch.Tensor) -> torch.Tensor:
    return torch.arange(x.shape[2])[None]


def causal(x: torch.Tensor) -> torch.Tensor:
    return k(x) <= q(x)


def key(m: torch.Tensor) -> torch.Tensor:
    return m[:, None, None, :]


WORDS: dict[str, tuple[Callable[..., torch.Tensor], list[str]]] = {
    "padding": (lambda x, m: causal(x) & (key(m) != 0), ["causal except where data_0[b, k] is 0"]),
    "padding-bool": (lambda x, m: causal(x) & (key(m) > 0), ["causal except where not data_0[b, k] > 0"]),
    "bidirectional": (
        lambda x, m: (key(m) != 0).expand(-1, 1, x.shape[2], -1),
        ["full except where data_0[b, k] is 0"],
    ),
    "window": (
        lambda x, m: causal(x) & (k(x) > q(x) - 4),
        ["equal to causal while S <= 4", "query 4 may not see key 0, unlike causal"],
    ),
    "both-ways": (lambda x, m: (k(x) - q(x)).abs() <= 2, ["equal to full while S <= 3", "unlike full"]),
    "uneven": (lambda x, m: (k(x) <= q(x) + 1) & (k(x) > q(x) - 6), ["equal to full while S <= 2"]),
    "window-padded": (
        lambda x, m: causal(x) & (k(x) > q(x) - 4) & (key(m) != 0),
        ["sliding window except where data_0[b, k] is 0", "equal to causal while S <= 4"],
    ),
    "prefix": (lambda x, m: causal(x) | (k(x) < 3), ["causal except that also seen is k <= 2"]),
    "causal": (lambda x, m: causal(x), [""]),
}


@pytest.fixture(scope="module")
def sites(analyze_masks: Callable[..., Any]) -> Any:
    masks = {"first": lambda x, m: causal(x) & (key(m) != 0), **{n: m for n, (m, _) in WORDS.items()}}
    return analyze_masks(
        masks, (X, MASK), "export", [{0: Dim.DYNAMIC, 2: Dim.DYNAMIC}, {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}]
    )


@pytest.mark.parametrize("name", WORDS)
def test_words(sites: Any, name: str) -> None:
    for words in WORDS[name][1]:
        assert words in sites[name].classification.near, sites[name].classification.near
    if name == "causal":
        assert sites[name].classification.near == ""


def test_the_length_is_exact(sites: Any) -> None:
    """Up to the length named the mask is the simple one, from the next on it is not."""
    for name, length, simple in (
        ("window", 4, causal),
        ("both-ways", 3, lambda x: causal(x) | True),
        ("uneven", 2, None),
    ):
        for n in (length, length + 1):
            x = torch.randn(1, 1, n, 4)
            mask = sites[name].mask(x, MASK[:1, :n])
            expected = torch.ones(n, n, dtype=torch.bool) if simple is None else simple(x)
            assert torch.equal(mask, expected) == (n == length)


def test_a_static_length_is_told_with_it(analyze_masks: Callable[..., Any]) -> None:
    site = analyze_masks({"window": lambda x: causal(x) & (k(x) > q(x) - 4)}, (X,), "export")["window"]
    assert "while S <= 4 (here S = 9)" in site.classification.near


def test_a_counterexample_in_words() -> None:
    window = Predicate(build.and_(build.le(K, Q), build.lt(build.sub(Q, build.const_int(4)), K)), None, Q, SQUARE)
    assert (
        describe_witness(window, {"b": 0, "q": 5, "k": 0, "s": 8})
        == "batch 0: query 5 may not see key 0, unlike causal"
    )
    assert describe_witness(window, {"q": 5, "k": 4}, "full") == "query 5 may see key 4, unlike full"
    assert describe_witness(window, {}) == "a counterexample exists"
    assert describe_witness(window, None) == "a counterexample exists"


def test_a_counterexample_with_data() -> None:
    cell = build.cell(CellRef("mask", "mask", torch.bool, True), (B, K))
    padded = Predicate(build.and_(build.le(K, Q), cell), None, Q, SQUARE)
    witness = {"b": 1, "q": 3, "k": 2, "mask[1, 2]": False}
    assert describe_witness(padded, witness) == (
        "batch 1: query 3 may not see key 2 where mask[1, 2] = false, unlike causal"
    )
    assert allowed_at(padded.allowed, padded, {**witness, "mask[1, 2]": True}) is True
    assert allowed_at(padded.allowed, padded, {"b": 1, "q": 3, "k": 2}) is None


def test_sums_are_counted_out() -> None:
    flag = build.cell(CellRef("m", "m", torch.bool, True), (B, build.coord("~0")))
    total = build.sum_over("~0", build.ite(flag, build.ONE, build.ZERO), Q)
    predicate = Predicate(build.le(total, K), None, Q, SQUARE)
    witness = {"b": 0, "q": 2, "k": 1, "m[0, 0]": True, "m[0, 1]": False, "m[0, 2]": True}
    assert allowed_at(predicate.allowed, predicate, witness) is False


# --- counterexamples by trying ----------------------------------------------------------------------------------------


def test_a_failing_float_comparison_is_found() -> None:
    from attnlower.patterns.floats import compare

    element = build.cell(CellRef("f", "f", torch.float32, True), (B, Q))
    claim = compare("lt", build.const_float(0.0), element)
    found = find_counterexample(claim, SQUARE)
    assert found is not None
    assert 0 <= found["q"] < found["s"]
    assert 0 <= found["b"] < found["n"]


def test_nothing_is_found_where_a_claim_holds() -> None:
    flag = build.cell(CellRef("m", "m", torch.bool, True), (B, build.coord("~0")))
    total = build.sum_over("~0", build.ite(flag, build.ONE, build.ZERO), Q)
    assert find_counterexample(build.le(total, build.add(Q, build.ONE)), SQUARE) is None
    assert find_counterexample(build.le(total, Q), SQUARE) is not None


def test_ranges_and_assumptions_are_obeyed() -> None:
    facts = Facts({"s": (3, 5)}, {"q": S, "k": S}, assumed=build.le(K, Q))
    found = find_counterexample(build.lt(K, Q), facts)
    assert found is not None
    assert 3 <= found["s"] <= 5
    assert found["k"] == found["q"]
    assert find_counterexample(build.le(S, build.const_int(5)), facts) is None


def test_what_cannot_be_evaluated_is_left_alone() -> None:
    from attnlower.patterns.expr import Sort

    unknown = build.apply("nobody knows", Sort.BOOL, (Q,))
    assert find_counterexample(unknown, SQUARE) is None
