"""single_mask: mask, bias and alignment in one tensor."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from attnlower.lowering.passes.single_mask import SingleMask
from attnlower.lowering.targets import TARGETS
from attnlower.patterns import Alignment

PASSES = (SingleMask(),)
SELF = {"query": ("b", 4, "q", 8), "key": ("b", 4, "k", 8), "value": ("b", 4, "k", 8)}
MASKS: dict[str, Any] = {
    "full": ("b", 4, "q", "k"),
    "one head": ("b", 1, "q", "k"),
    "padding": ("b", 1, 1, "k"),
    "a column": ("b", 4, "q", 1),
    "rank 3": (4, "q", "k"),
    "rank 2": ("q", "k"),
    "rank 1": ("k",),
}
ALL = dataclasses.replace(TARGETS["eager"], name="all", alignments=frozenset(Alignment))


@pytest.mark.parametrize("bias", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_mask_and_bias(check: Any, mask: Any, bias: Any) -> None:
    done = check(PASSES, {**SELF, "mask": mask, "bias": bias})
    assert done.changes == ["mask and bias as one bias"]
    assert done.arguments["mask"] is None and done.arguments["bias"] is not None


@pytest.mark.parametrize("alignment", ["upper_left", "lower_right"])
@pytest.mark.parametrize("given", [("mask",), ("bias",), ("mask", "bias")], ids="+".join)
def test_masks_and_an_alignment(check: Any, dtype: torch.dtype, alignment: str, given: tuple[str, ...]) -> None:
    shapes = {**SELF, **dict.fromkeys(given, ("b", 1, 1, "k"))}
    done = check(PASSES, shapes, {"alignment": alignment}, dtype=dtype)
    assert done.arguments["alignment"] == "none"
    role = "bias" if "bias" in given else "mask"
    assert done.changes == [f"{' and '.join(given)} and alignment {alignment} as one {role}"]


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_other_ranks(check: Any, rank: int) -> None:
    lead = {2: (), 3: ("b",), 4: ("b", 4), 5: ("b", 2, 3)}[rank]
    shapes = {"query": (*lead, "q", 8), "key": (*lead, "k", 8), "value": (*lead, "k", 8), "bias": ("q", "k")}
    check(PASSES, shapes, {"alignment": "lower_right"})


def test_an_alignment_that_the_target_does_not_take(check: Any, dtype: torch.dtype) -> None:
    done = check(PASSES, settings={"alignment": "lower_right"}, dtype=dtype)
    assert done.changes == ["alignment lower_right as one mask"]
    assert done.arguments["alignment"] == "none"
    assert done.ops["arange"] == 2


@pytest.mark.parametrize("alignment", ["none", "upper_left", "lower_right"])
def test_an_alignment_that_the_target_takes_stays(check: Any, alignment: str) -> None:
    """Near miss: nothing else masks the scores."""
    done = check(PASSES, settings={"alignment": alignment}, target=ALL)
    assert not done.changes
    assert done.arguments.get("alignment", "none") == alignment


@pytest.mark.parametrize("name", ["mask", "bias"])
def test_a_mask_alone_stays(check: Any, name: str) -> None:
    done = check(PASSES, {**SELF, name: ("b", 1, "q", "k")})
    assert not done.changes and not done.refusals
    assert done.arguments[name].op == "placeholder"


def test_sizes_that_are_symbols_of_their_own(check: Any) -> None:
    """Export does not know that the sizes agree: every axis is a symbol."""
    shapes = {**SELF, "mask": ("b", 1, "q", "k"), "bias": ("b", 4, "q", "k")}
    done = check(PASSES, shapes, {"alignment": "upper_left"}, separate=True)
    assert done.changes


class Layers(torch.nn.Module):
    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        x = inputs["query"]
        for _ in range(3):
            x = torch.ops.attnlower.attention(x, x, x, inputs["mask"], inputs["bias"], "upper_left")
        return x


def test_layers_share_what_is_made(tools: Any) -> None:
    shapes = {"query": ("b", 4, "q", 8), "mask": ("b", 1, 1, "q"), "bias": (4, "q", "q")}
    program = tools.export_call(Layers(), shapes, torch.float32)
    gm, results = tools.passed(program, PASSES, TARGETS["eager"])
    assert len(results[-1].changes) == 3
    made = [str(n.target) for n in gm.graph.nodes if n.op == "call_function"]
    assert made.count("aten.where.self") == 1 and made.count("aten.arange.start_step") == 2
    inputs = tools.random_inputs(shapes, {"b": 3, "q": 6}, torch.float32)
    tools.same(tools.runner(program, gm)(inputs), Layers()(inputs))


class Writes(torch.nn.Module):
    """The mask is changed between two calls."""

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        x, mask = inputs["query"], inputs["mask"].clone()
        x = torch.ops.attnlower.attention(x, x, x, mask, inputs["bias"])
        mask.logical_not_()
        return torch.ops.attnlower.attention(x, x, x, mask, inputs["bias"])


def test_a_mask_that_is_written_to_is_merged_again(tools: Any) -> None:
    shapes = {"query": ("b", 4, "q", 8), "mask": ("b", 1, "q", "q"), "bias": (4, "q", "q")}
    program = tools.export_call(Writes(), shapes, torch.float32)
    gm, _ = tools.passed(program, PASSES, TARGETS["eager"])
    assert [str(n.target) for n in gm.graph.nodes].count("aten.where.self") == 2
    inputs = tools.random_inputs(shapes, {"b": 3, "q": 6}, torch.float32)
    tools.same(tools.runner(program, gm)(inputs), Writes()(inputs))


# --- dtypes ---------------------------------------------------------------------------------------------------


def in_float32(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Attention with nothing rounded on the way."""
    scores = query.float() @ key.float().mT * query.shape[-1] ** -0.5 + bias
    empty = (bias == float("-inf")).all(-1, keepdim=True)
    weights = torch.softmax(scores.masked_fill(empty, 0.0), -1).masked_fill(empty, 0.0)
    return (weights @ value.float()).to(query.dtype)


def test_a_narrower_bias_is_widened(check: Any) -> None:
    def narrow(bias: torch.Tensor, **inputs: torch.Tensor) -> dict[str, Any]:
        return {**inputs, "bias": bias.to(torch.float16)}

    done = check(PASSES, {**SELF, "bias": (4, "q", "k")}, prepare=narrow)
    assert done.changes == ["the bias is cast to torch.float32"]
    assert done.arguments["bias"].meta["val"].dtype is torch.float32


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_a_bias_that_was_widened_is_narrowed(check: Any, half: torch.dtype) -> None:
    def wide(bias: torch.Tensor, **inputs: torch.Tensor) -> dict[str, Any]:
        return {**inputs, "bias": bias.float()[:, None].expand(-1, 4, -1, -1)}

    done = check(PASSES, {**SELF, "bias": ("b", "q", "k")}, prepare=wide, dtype=half)
    assert done.changes == [f"the bias is cast to {half}"]


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_a_bias_that_was_written_to_since_stays(check: Any, half: torch.dtype) -> None:
    """Near miss: what was added in place is no half precision number."""

    def wide(bias: torch.Tensor, **inputs: torch.Tensor) -> dict[str, Any]:
        widened = bias.float()
        widened.add_(0.1003)
        return {**inputs, "bias": widened}

    done = check(PASSES, {**SELF, "bias": (4, "q", "k")}, prepare=wide, dtype=half)
    assert not done.changes
    assert len(done.refusals) == 1


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_a_wider_bias_stays(check: Any, half: torch.dtype) -> None:
    """Near miss: rounding a bias of any values would change the result."""

    def add(wide_bias: torch.Tensor, **inputs: torch.Tensor) -> dict[str, Any]:
        return {**inputs, "bias": wide_bias}

    shapes = {**SELF, "wide_bias": (4, "q", "k")}
    done = check(PASSES, shapes, prepare=add, dtype=half)
    assert not done.changes
    assert done.refusals == [f"the bias is torch.float32, and some of it may be no {half}"]


def blocks(value: float, diagonal: bool = True) -> Any:
    def prepare(padding: torch.Tensor, **inputs: torch.Tensor) -> dict[str, Any]:
        """Padding, with a key for every query or without."""
        length = inputs["query"].shape[2]
        index = torch.arange(length)
        allowed = padding[:, None, None, :]
        if diagonal:
            allowed = allowed | (index[None, :] == index[:, None])
        bias = torch.zeros(1, 1, length, length).masked_fill(~allowed, value)
        return {**inputs, "bias": bias}

    return prepare


SQUARE = {"query": ("b", 4, "q", 8), "key": ("b", 4, "q", 8), "value": ("b", 4, "q", 8), "padding": ("b", "q")}


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_zeros_and_infinities_are_narrowed(check: Any, half: torch.dtype) -> None:
    done = check(PASSES, SQUARE, prepare=blocks(float("-inf"), diagonal=False), dtype=half)
    assert done.changes == [f"the bias is cast to {half}"]


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_zeros_and_finite_blocks_become_boolean(check: Any, half: torch.dtype) -> None:
    done = check(PASSES, SQUARE, prepare=blocks(torch.finfo(torch.float32).min), dtype=half)
    assert done.changes == ["the bias only blocks: as a boolean mask"]
    assert done.arguments["mask"].meta["val"].dtype is torch.bool


@pytest.mark.parametrize("value", [torch.finfo(torch.float32).min, -100.3])
@pytest.mark.parametrize("diagonal", [True, False])
def test_near_misses_of_blocks(check: Any, value: float, diagonal: bool) -> None:
    """Near misses: a row that is blocked throughout is a plain mean with `finfo.min`; -100.3 blocks nothing."""
    if value < -1000 and diagonal:
        return
    done = check(PASSES, SQUARE, prepare=blocks(value, diagonal), dtype=torch.bfloat16)
    assert not done.changes
    assert len(done.refusals) == 1


# --- refusals -------------------------------------------------------------------------------------------------


def test_a_mask_larger_than_the_scores_is_refused(tools: Any) -> None:
    shapes = {"query": (1, 4, "q", 8), "key": (1, 4, "k", 8), "value": (1, 4, "k", 8), "mask": (3, 1, "q", "k")}
    program = tools.export_call(tools.Attend({"alignment": "upper_left"}, None), shapes, torch.float32)
    _, results = tools.passed(program, PASSES, TARGETS["eager"])
    assert [r.reason for r in results[-1].refusals] == ["the mask has size 3 where the scores have 1"]
