"""empty_rows: zeros for queries without any key, by proof or written out."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from attnlower.lowering.passes.empty_rows import EmptyRows
from attnlower.lowering.passes.mask_shape import MaskShape
from attnlower.lowering.passes.single_mask import SingleMask
from attnlower.lowering.targets import TARGETS
from attnlower.patterns import Alignment

PASSES = (SingleMask(), EmptyRows())
ALL = dataclasses.replace(TARGETS["eager"], name="all", alignments=frozenset(Alignment))
SELF = {"query": ("b", 4, "q", 8), "key": ("b", 4, "k", 8), "value": ("b", 4, "k", 8)}
SQUARE = {"query": ("b", 4, "q", 8), "key": ("b", 4, "q", 8), "value": ("b", 4, "q", 8)}
NEG = float("-inf")
MIN = torch.finfo(torch.float32).min
PROVED = ["every query is proved to have a key"]


def switched(done: Any) -> bool:
    """True if the call was switched to NaN rows and nothing was written out."""
    return done.arguments["empty_rows"] == "nan" and not done.ops["any"] and not done.ops["where"]


def written_out(done: Any) -> bool:
    return done.arguments["empty_rows"] == "nan" and done.ops["any"] == 1


# --- without a mask -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alignment", ["none", "upper_left"])
def test_without_a_mask_there_is_a_key(check: Any, dtype: torch.dtype, alignment: str) -> None:
    done = check(PASSES, settings={"alignment": alignment}, dtype=dtype, target=ALL)
    assert switched(done)
    assert done.changes == ["every query has a key"]


def test_lower_right_of_a_square(check: Any) -> None:
    done = check(PASSES, SQUARE, {"alignment": "lower_right"}, target=ALL)
    assert switched(done) and done.arguments["alignment"] == "lower_right"


def test_lower_right_with_a_cache_in_front(check: Any) -> None:
    """More keys than queries, by the expressions of their sizes."""

    def longer(key: torch.Tensor, value: torch.Tensor, **inputs: torch.Tensor) -> dict[str, Any]:
        return {**inputs, "key": torch.cat([key, key[:, :, :1]], 2), "value": torch.cat([value, value[:, :, :1]], 2)}

    done = check(PASSES, SQUARE, {"alignment": "lower_right"}, prepare=longer, target=ALL)
    assert switched(done) and done.arguments["alignment"] == "lower_right"


def test_lower_right_with_fewer_keys(check: Any, dtype: torch.dtype) -> None:
    """Near miss: nothing says that there are as many keys as queries."""
    done = check(PASSES, SELF, {"alignment": "lower_right"}, dtype=dtype, target=ALL)
    assert written_out(done) and done.arguments["alignment"] == "none"


# --- by proof -------------------------------------------------------------------------------------------------


def positions(query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(query.shape[2])[:, None], torch.arange(key.shape[2])[None, :]


def window(q: torch.Tensor, k: torch.Tensor, **_: torch.Tensor) -> torch.Tensor:
    return (k <= q) & (k > q - 3)


def both_ways(q: torch.Tensor, k: torch.Tensor, **_: torch.Tensor) -> torch.Tensor:
    return (k - q).abs() < 3


def chunked(q: torch.Tensor, k: torch.Tensor, **_: torch.Tensor) -> torch.Tensor:
    return (k <= q) & (k // 4 == q // 4)


def with_diagonal(q: torch.Tensor, k: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
    return padding[:, None, None, :] | (k == q)


def packed(q: torch.Tensor, k: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
    document = padding.long().cumsum(1)
    return (document[:, None, :, None] == document[:, None, None, :]) & (k <= q)


def padded(q: torch.Tensor, k: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
    return padding[:, None, None, :] & (k <= q)


def strict(q: torch.Tensor, k: torch.Tensor, **_: torch.Tensor) -> torch.Tensor:
    return k < q


def behind(q: torch.Tensor, k: torch.Tensor, **_: torch.Tensor) -> torch.Tensor:
    return (k > q) & (k < q + 3)


def one_row(q: torch.Tensor, k: torch.Tensor, **_: torch.Tensor) -> torch.Tensor:
    return (k <= q) & (q != 3)


HAVE_A_KEY = [window, both_ways, chunked, with_diagonal, packed]
MAY_BE_EMPTY = [padded, strict, behind, one_row]


def made(allowed: Any, how: str, dtype: torch.dtype) -> Any:
    """Makes the mask from positions and padding: boolean, or additive."""

    def prepare(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **inputs: torch.Tensor) -> dict[str, Any]:
        mask = allowed(*positions(query, key), **inputs)
        tensors = {"query": query, "key": key, "value": value}
        if how == "bool":
            return {**tensors, "mask": mask}
        q, k = positions(query, key)
        bias = (k - q).to(dtype) * 0.5 if how == "slope" else torch.zeros(1, dtype=dtype)
        return {**tensors, "bias": bias.masked_fill(~mask, NEG)}

    return prepare


@pytest.mark.parametrize("how", ["bool", "-inf", "slope"])
@pytest.mark.parametrize("allowed", HAVE_A_KEY)
def test_masks_in_which_every_query_has_a_key(check: Any, dtype: torch.dtype, allowed: Any, how: str) -> None:
    shapes = {**SQUARE, "padding": ("b", "q")} if allowed in (with_diagonal, packed) else SQUARE
    done = check(PASSES, shapes, prepare=made(allowed, how, dtype), dtype=dtype)
    assert done.changes == PROVED
    assert done.arguments["empty_rows"] == "nan" and not done.ops["any"]


@pytest.mark.parametrize("how", ["bool", "-inf", "slope"])
@pytest.mark.parametrize("allowed", MAY_BE_EMPTY)
def test_masks_with_empty_rows(check: Any, dtype: torch.dtype, allowed: Any, how: str) -> None:
    """Near misses, some of which differ from the others in one row."""
    shapes = {**SQUARE, "padding": ("b", "q")} if allowed is padded else SQUARE
    done = check(PASSES, shapes, prepare=made(allowed, how, dtype), dtype=dtype)
    assert written_out(done)


def test_a_window_beyond_the_keys(check: Any) -> None:
    """Near miss: with fewer keys than queries the last windows lie behind the keys."""
    done = check(PASSES, SELF, prepare=made(window, "bool", torch.float32))
    assert written_out(done)


def test_a_slope_that_overflows_is_not_finite(check: Any) -> None:
    """Near miss: float16 ends at 65504, and query 66 gets -inf."""

    def prepare(**inputs: torch.Tensor) -> dict[str, Any]:
        q, k = positions(inputs["query"], inputs["key"])
        return {**inputs, "bias": (q.to(torch.float16) * -1000).masked_fill(k > q, NEG)}

    done = check(PASSES, SQUARE, prepare=prepare, dtype=torch.float16, sizes=[{"b": 2, "q": 5}, {"b": 1, "q": 80}])
    assert written_out(done)


def test_a_bias_of_the_users_may_be_minus_infinity(check: Any, dtype: torch.dtype) -> None:
    """Near miss: where the mask allows, the bias may block."""

    def prepare(bias: torch.Tensor, **inputs: torch.Tensor) -> dict[str, Any]:
        q, k = positions(inputs["query"], inputs["key"])
        return {**inputs, "bias": bias.masked_fill(k > q, NEG)}

    done = check(PASSES, {**SQUARE, "bias": ("b", 1, "q", "q")}, prepare=prepare, dtype=dtype)
    assert written_out(done)


def test_a_finite_block_leaves_no_row_empty(check: Any) -> None:
    """A row of `finfo.min` is a plain mean, with zeros and with NaN for empty rows; it is not replaced."""

    def prepare(**inputs: torch.Tensor) -> dict[str, Any]:
        q, k = positions(inputs["query"], inputs["key"])
        return {**inputs, "bias": torch.zeros(1).masked_fill(k >= q, MIN)}

    done = check(PASSES, SQUARE, prepare=prepare)
    assert done.arguments["empty_rows"] == "nan"


# --- written out ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mask", "bias"])
@pytest.mark.parametrize("axes", [("b", 1, 1, "k"), ("b", 4, "q", "k"), ("q", "k"), ("b", 1, "q", 1), ("k",), ()])
def test_any_mask(check: Any, dtype: torch.dtype, name: str, axes: Any) -> None:
    done = check(PASSES, {**SELF, name: axes}, dtype=dtype)
    assert written_out(done)
    done = check((*PASSES, MaskShape()), {**SELF, name: axes}, dtype=dtype)
    assert written_out(done)


def test_everything_blocked(check: Any, dtype: torch.dtype) -> None:
    def prepare(**inputs: torch.Tensor) -> dict[str, Any]:
        return {**inputs, "mask": torch.zeros(1, inputs["key"].shape[2], dtype=torch.bool)}

    done = check(PASSES, prepare=prepare, dtype=dtype)
    assert written_out(done)


def test_nan_in_a_bias_is_no_empty_row(tools: Any) -> None:
    shapes = {**SELF, "bias": (4, "q", "k")}
    program = tools.export_call(tools.Attend({}, None), shapes, torch.float32)
    gm, _ = tools.passed(program, PASSES, TARGETS["eager"])
    inputs = tools.random_inputs(shapes, {"b": 2, "q": 3, "k": 4}, torch.float32)
    inputs["bias"][0, 0] = NEG
    inputs["bias"][0, 0, 0] = float("nan")
    inputs["bias"][0, 1] = NEG
    found, expected = tools.runner(program, gm)(inputs), tools.Attend({}, None)(inputs)
    assert expected[0, 0, 0].isnan().all() and (expected[0, 0, 1] == 0).all()
    tools.same(found, expected)


def test_a_call_that_gives_nan_stays(check: Any) -> None:
    """Near miss: NaN is what the call is to give."""
    done = check(PASSES, {**SELF, "mask": ("b", 1, "q", "k")}, {"empty_rows": "nan"})
    assert not done.changes


class Layers(torch.nn.Module):
    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        x = inputs["query"]
        for _ in range(3):
            x = x + torch.ops.attnlower.attention(x, x, x, inputs["mask"])
        return x


def test_layers_look_at_the_rows_once(tools: Any) -> None:
    shapes = {"query": ("b", 4, "q", 8), "mask": ("b", 1, 1, "q")}
    program = tools.export_call(Layers(), shapes, torch.float32)
    gm, results = tools.passed(program, (*PASSES, MaskShape()), TARGETS["eager"])
    assert [len(r.changes) for r in results[1:]] == [0, 3, 3]
    targets = [str(n.target) for n in gm.graph.nodes]
    assert targets.count("aten.any.dim") == 1 and targets.count("aten.expand.default") == 1
    assert targets.count("aten.where.self") == 3
    for seed in range(4):
        inputs = tools.random_inputs(shapes, {"b": 3, "q": 2}, torch.float32, seed)
        tools.same(tools.runner(program, gm)(inputs), Layers()(inputs))


def test_layers_ask_for_one_proof(tools: Any) -> None:
    class Causal(torch.nn.Module):
        def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            x = inputs["query"]
            q, k = positions(x, x)
            for _ in range(3):
                x = torch.ops.attnlower.attention(x, x, x, window(q, k))
            return x

    from attnlower.lowering.passes import Canonicalize, ShareMasks
    from attnlower.lowering.passes.drop_mask import DropMask
    from attnlower.lowering.pipeline import build_variant
    from attnlower.patterns import analyze

    assert DropMask and ShareMasks
    program = tools.export_call(Causal(), {"query": ("b", 4, "q", 8)}, torch.float32)
    analysis = analyze(program.graph_module)
    asked = analysis.prover.stats.solver_calls
    build_variant(program.graph_module, analysis, TARGETS["tensorrt"], (), (Canonicalize(), *PASSES))
    assert analysis.prover.stats.solver_calls - asked <= 3
