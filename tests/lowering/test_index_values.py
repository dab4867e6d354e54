"""Values of an index_put with the rank of what they are put into: the same result, and only where the law holds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx

from attnlower.lowering.passes.index_values import write_index_values

_PUT = torch.ops.aten.index_put.default


def graph_of(whole: Tensor, indices: list[Tensor | None], values: Tensor) -> fx.GraphModule:
    """`index_put(whole, indices, values)`."""
    graph = fx.Graph()
    given = [graph.placeholder(name) for name in ("whole", "index", "values")]
    (index,) = [i for i in indices if i is not None][:1]
    for node, value in zip(given, (whole, index, values), strict=True):
        node.meta["val"] = value
    places = [None if i is None else given[1] for i in indices]
    node = graph.call_function(_PUT, (given[0], places, given[2]))
    node.meta["val"] = whole
    graph.output((node,))
    return fx.GraphModule(torch.nn.Module(), graph)


INDEX = torch.tensor([3, 1])
CASES: dict[str, Callable[[], tuple[Tensor, list[Tensor | None], Tensor]]] = {
    "rows of a batch of one": lambda: (torch.zeros(1, 2, 6, 4), [None, None, INDEX], torch.randn(2, 2, 4)),
    "one row for every head": lambda: (torch.zeros(3, 2, 6, 4), [None, None, INDEX], torch.randn(4)),
    "a scalar": lambda: (torch.zeros(2, 6), [None, INDEX], torch.tensor(2.0)),
    "the first axis": lambda: (torch.zeros(6, 4), [INDEX], torch.randn(4)),
}


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_the_result_is_the_same(make: Callable[[], tuple[Tensor, list[Tensor | None], Tensor]]) -> None:
    whole, indices, values = make()
    gm = graph_of(whole, indices, values)
    assert write_index_values(gm).changed
    gm.graph.lint()
    gm.recompile()
    (put,) = (n for n in gm.graph.nodes if n.target is _PUT)
    assert put.args[2].meta["val"].dim() == whole.dim()
    assert torch.equal(gm(whole, INDEX, values)[0], torch.ops.aten.index_put(whole, indices, values))
    assert not write_index_values(gm).changed


@pytest.mark.parametrize(
    "case",
    [
        (torch.zeros(1, 2, 6, 4), [None, None, INDEX], torch.randn(1, 2, 2, 4)),
        (torch.zeros(2, 6), [None, torch.tensor([True] * 6)], torch.tensor(2.0)),
        (torch.zeros(2, 6), [None, INDEX[None]], torch.randn(2)),
        (torch.zeros(6, 6), [INDEX, INDEX], torch.randn(2)),
    ],
    ids=["full rank", "boolean index", "index of rank 2", "two indices"],
)
def test_what_the_law_does_not_cover_stays(case: tuple[Tensor, list[Tensor | None], Tensor]) -> None:
    gm = graph_of(*case)
    assert not write_index_values(gm).changed


@pytest.mark.parametrize("constant, changed", [([-1], True), ([2, -6], True), ([0, 5], False)], ids=str)
def test_constant_places_are_counted_from_the_start(constant: list[int], changed: bool) -> None:
    whole, places = torch.zeros(1, 2, 6, 4), torch.tensor(constant)
    values = torch.randn(1, 2, len(constant), 4)
    gm = graph_of(whole, [None, None, places], values)
    gm.register_buffer("places", places)
    index = next(n for n in gm.graph.nodes if n.name == "index")
    with gm.graph.inserting_after(index):
        held = gm.graph.get_attr("places")
    held.meta["val"] = places
    index.replace_all_uses_with(held)
    assert write_index_values(gm).changed == changed
    gm.graph.lint()
    gm.recompile()
    (put,) = (n for n in gm.graph.nodes if n.target is _PUT)
    assert (getattr(gm, put.args[1][2].target) >= 0).all()
    expected = torch.ops.aten.index_put(whole, [None, None, places], values)
    assert torch.equal(gm(whole, places, values)[0], expected)
    assert not write_index_values(gm).changed
