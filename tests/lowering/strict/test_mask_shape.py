"""mask_shape: masks of rank 4 with every row and column written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attnlower.lowering.passes.mask_shape import MaskShape
from attnlower.lowering.passes.single_mask import SingleMask
from attnlower.lowering.targets import TARGETS
from attnlower.patterns.expr import Expr
from attnlower.patterns.sizes import shape_of

PASSES = (SingleMask(), MaskShape())
SELF = {"query": ("b", 4, "q", 8), "key": ("b", 4, "k", 8), "value": ("b", 4, "k", 8)}
SHAPES: dict[str, tuple[Any, Any]] = {
    "heads broadcast": (("b", 1, 1, "k"), ("b", 1, "q", "k")),
    "a column": (("b", 4, "q", 1), ("b", 4, "q", "k")),
    "one number": ((1, 1, 1, 1), (1, 1, "q", "k")),
    "rank 3": ((4, "q", "k"), (1, 4, "q", "k")),
    "rank 3, broadcast": ((4, 1, "k"), (1, 4, "q", "k")),
    "rank 2": (("q", "k"), (1, 1, "q", "k")),
    "rank 1": (("k",), (1, 1, "q", "k")),
    "rank 0": ((), (1, 1, "q", "k")),
}


def axes(done: Any, name: str) -> list[Any]:
    """The shape of a mask by letters."""
    args = done.arguments
    query, key = (shape_of(args[n].meta["val"]) for n in ("query", "key"))
    letters: dict[Expr, Any] = {query[0]: "b", query[2]: "q", key[2]: "k"}
    return [letters.get(s, s.value if s.is_const else "?") for s in shape_of(args[name].meta["val"])]


@pytest.mark.parametrize("name", ["mask", "bias"])
@pytest.mark.parametrize(("given", "wanted"), SHAPES.values(), ids=SHAPES)
def test_every_shape(check: Any, dtype: torch.dtype, name: str, given: Any, wanted: Any) -> None:
    done = check(PASSES, {**SELF, name: given}, dtype=dtype)
    assert axes(done, name) == list(wanted)
    assert len(done.changes) == 1


@pytest.mark.parametrize("given", [("b", 4, "q", "k"), (1, 1, "q", "k"), ("b", 1, "q", "k"), (1, 4, "q", "k")])
def test_a_mask_of_that_shape_stays(check: Any, given: Any) -> None:
    """Near miss: batch and heads may broadcast."""
    done = check(PASSES, {**SELF, "mask": given})
    assert not done.changes
    assert done.arguments["mask"].op == "placeholder"


@pytest.mark.parametrize("given", [("b", 1, 1, "k"), ("b", 4, "q", "k"), ("q", "k")])
def test_sizes_that_are_symbols_of_their_own(check: Any, given: Any) -> None:
    """Nothing says that the mask's sizes are the query's: it is expanded to them."""
    done = check(PASSES, {**SELF, "mask": given}, separate=True)
    expected = {4: [1 if g == 1 else g for g in given], 2: [1, 1, "q", "k"]}[len(given)]
    expected[2] = "q"
    assert axes(done, "mask") == expected


def test_static_sizes(check: Any, dtype: torch.dtype) -> None:
    shapes = {"query": (2, 4, 5, 8), "key": (2, 4, 7, 8), "value": (2, 4, 7, 8), "bias": (1, 7)}
    done = check(PASSES, shapes, dtype=dtype)
    assert list(done.arguments["bias"].meta["val"].shape) == [1, 1, 5, 7]
    assert done.ops["sym_size"] == 0


class Layers(torch.nn.Module):
    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        x = inputs["query"]
        for _ in range(3):
            x = torch.ops.attnlower.attention(x, x, x, inputs["mask"])
        return torch.ops.attnlower.attention(x, x[:, :, :1], x[:, :, :1], inputs["mask"][..., :1])


def test_layers_share_one_mask(tools: Any) -> None:
    """Near miss: the last call reads another one."""
    shapes = {"query": ("b", 4, "q", 8), "mask": ("b", 1, 1, "q")}
    program = tools.export_call(Layers(), shapes, torch.float32)
    gm, results = tools.passed(program, PASSES, TARGETS["eager"])
    assert len(results[-1].changes) == 4
    assert [str(n.target) for n in gm.graph.nodes].count("aten.expand.default") == 2
    inputs = tools.random_inputs(shapes, {"b": 3, "q": 6}, torch.float32)
    tools.same(tools.runner(program, gm)(inputs), Layers()(inputs))


class Writes(torch.nn.Module):
    """The mask is changed between two calls."""

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        x, mask = inputs["query"], inputs["mask"].clone()
        x = torch.ops.attnlower.attention(x, x, x, mask)
        mask.logical_not_()
        return torch.ops.attnlower.attention(x, x, x, mask)


def test_a_mask_that_is_written_to_is_shaped_again(tools: Any) -> None:
    shapes = {"query": ("b", 4, "q", 8), "mask": ("b", 1, 1, "q")}
    program = tools.export_call(Writes(), shapes, torch.float32)
    gm, _ = tools.passed(program, PASSES, TARGETS["eager"])
    assert [str(n.target) for n in gm.graph.nodes].count("aten.expand.default") == 2
    inputs = tools.random_inputs(shapes, {"b": 3, "q": 6}, torch.float32)
    tools.same(tools.runner(program, gm)(inputs), Writes()(inputs))


def test_size_nodes_are_reused(check: Any) -> None:
    """The query's length is asked for once, however many calls and masks need it."""

    def twice(**inputs: torch.Tensor) -> dict[str, Any]:
        length = inputs["query"].shape[2]
        mask = inputs.pop("mask") & (torch.arange(length)[:, None] >= 0)
        return {**inputs, "mask": mask[:, :, :1]}

    done = check(PASSES, {**SELF, "mask": ("b", 1, 1, "k")}, prepare=twice)
    lengths = [n for n in done.gm.graph.nodes if n.name.startswith("sym_size") and n.args[1] == 2]
    assert len(lengths) == 1


@pytest.mark.parametrize("lead", [(), ("b",), ("b", 2, 2)])
def test_other_ranks_are_refused(check: Any, lead: Any) -> None:
    shapes = {"query": (*lead, "q", 8), "key": (*lead, "k", 8), "value": (*lead, "k", 8), "mask": (1, "k")}
    done = check(PASSES, shapes)
    assert done.refusals == [f"the query has rank {len(lead) + 2}, not 4"]
