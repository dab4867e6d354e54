"""attention_rank: operands of rank 4 that do not broadcast over the batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from attnlower.lowering.passes.attention_rank import AttentionRank
from attnlower.lowering.passes.strict_form import strict_passes
from attnlower.lowering.targets import TARGETS

PASSES = (AttentionRank(),)
STRICT = strict_passes()
LEADS = {2: (), 3: ("b",), 4: ("b", 4), 5: ("b", 2, 3), 6: (2, "b", 2, 3)}


def operands(lead: Any) -> dict[str, Any]:
    return {"query": (*lead, "q", 8), "key": (*lead, "k", 8), "value": (*lead, "k", 6)}


@pytest.mark.parametrize("rank", LEADS)
def test_every_rank(check: Any, dtype: torch.dtype, rank: int) -> None:
    done = check(PASSES, operands(LEADS[rank]), {"scale": 0.5}, dtype=dtype)
    assert done.changes == ([] if rank == 4 else [f"rank {rank} as rank 4"])
    assert done.arguments["query"].meta["val"].dim() == 4


MASKS: list[tuple[int, Any]] = [
    (2, ("q", "k")),
    (2, ("k",)),
    (3, ("b", "q", "k")),
    (3, (1, "q", "k")),
    (3, ("b", 1, "k")),
    (3, ("q", 1)),
    (5, ("b", 2, 3, "q", "k")),
    (5, ("b", 1, 1, 1, "k")),
    (5, (1, 1, 3, "q", "k")),
    (5, (2, 1, "q", "k")),
    (5, (1, 3, "q", 1)),
    (5, (3, "q", "k")),
    (6, ("b", 2, 1, "q", "k")),
]


@pytest.mark.parametrize("name", ["mask", "bias"])
@pytest.mark.parametrize(("rank", "axes"), MASKS)
def test_masks_follow(check: Any, rank: int, axes: Any, name: str) -> None:
    shapes = {**operands(LEADS[rank]), name: axes}
    check(PASSES, shapes)
    done = check(STRICT, shapes)
    if rank != 3 or axes[0] != "k":
        assert done.problem == ""


@pytest.mark.parametrize("rank", LEADS)
def test_all_passes_make_them_strict(check: Any, dtype: torch.dtype, rank: int) -> None:
    done = check(STRICT, operands(LEADS[rank]), {"alignment": "lower_right"}, dtype=dtype)
    assert done.problem == ""


@pytest.mark.parametrize("heads", [(6, 2), (6, 1), (6, 6)])
@pytest.mark.parametrize("lead", [(), ("b",), ("b", 2)])
def test_grouped_heads(check: Any, lead: Any, heads: tuple[int, int]) -> None:
    many, few = heads
    shapes = {
        "query": (*lead, many, "q", 8),
        "key": (*lead, few, "k", 8),
        "value": (*lead, few, "k", 8),
        "mask": (many, 1, "k"),
    }
    done = check(STRICT, shapes, {"enable_gqa": True})
    assert done.problem == ""
    assert [done.arguments[n].meta["val"].shape[1] for n in ("query", "key", "value")] == [many, few, few]


@pytest.mark.parametrize("lead", [(1, 1), ("b", 1), (1,), ()])
def test_one_head_for_all_is_a_group(check: Any, lead: Any) -> None:
    shapes = {"query": ("b", 4, "q", 8), "key": (*lead, "k", 8), "value": (*lead, "k", 8)}
    done = check(STRICT, shapes)
    assert done.problem == ""
    assert done.arguments["enable_gqa"] is True
    assert done.arguments["key"].meta["val"].shape[1] == 1


def test_one_head_is_written_out_for_a_target_without_groups(check: Any) -> None:
    shapes = {"query": ("b", 4, "q", 8), "key": ("b", 1, "k", 8), "value": ("b", 1, "k", 8)}
    target = dataclasses.replace(TARGETS["eager"], name="plain", grouped_heads=False)
    done = check(STRICT, shapes, target=target)
    assert done.problem == ""
    assert done.arguments["key"].meta["val"].shape[1] == 4


def test_a_value_with_its_own_heads(check: Any) -> None:
    """Near miss of a group: the key has one head, the value one for each query head."""
    shapes = {"query": ("b", 4, "q", 8), "key": (1, 1, "k", 8), "value": ("b", 4, "k", 8)}
    done = check(STRICT, shapes)
    assert done.problem == ""
    assert done.changes[1] == "key written out for the query's batch"


@pytest.mark.parametrize("rank", LEADS)
def test_sizes_that_are_symbols_of_their_own(check: Any, rank: int) -> None:
    done = check(STRICT, {**operands(LEADS[rank]), "mask": ("q", "k")}, separate=True)
    # the keys of key and value are two symbols: nothing says that there are as many
    assert not done.calls or done.problem == ""


class Layers(torch.nn.Module):
    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        x = inputs["query"]
        for _ in range(3):
            x = x + torch.ops.attnlower.attention(x, x, x, inputs["mask"])
        return x


def test_layers_share_the_masks(tools: Any) -> None:
    shapes = {"query": ("b", 2, 3, "q", 8), "mask": ("b", 1, 1, 1, "q")}
    program = tools.export_call(Layers(), shapes, torch.float32)
    gm, _ = tools.passed(program, STRICT, TARGETS["eager"])
    targets = [str(n.target) for n in gm.graph.nodes]
    assert targets.count("aten.any.dim") == 1
    inputs = tools.random_inputs(shapes, {"b": 3, "q": 6}, torch.float32)
    tools.same(tools.runner(program, gm)(inputs), Layers()(inputs))


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        ({"query": (1, 4, "q", 8), "key": (3, 4, "k", 8), "value": (3, 4, "k", 8)}, "the key has size 3"),
        ({"query": ("q", 8), "key": ("b", "k", 8), "value": ("b", "k", 8)}, "the key has more axes"),
    ],
)
def test_what_broadcasts_the_query_is_refused(tools: Any, shapes: Any, says: str) -> None:
    program = tools.export_call(tools.Attend({}, None), shapes, torch.float32)
    _, results = tools.passed(program, PASSES, TARGETS["eager"])
    (refused,) = results[-1].refusals
    assert says in refused.reason
