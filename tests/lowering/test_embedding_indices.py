"""Constant indices of embeddings as int32: the same rows, and only where it is needed and possible."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from attnlower.lowering.passes.embedding_indices import write_embedding_indices

_EMBEDDING = torch.ops.aten.embedding.default


def graph_of(
    indices: torch.Tensor, *, table_is_constant: bool = False, indices_are_input: bool = False
) -> fx.GraphModule:
    """`embedding(table, indices)`."""
    root = torch.nn.Module()
    root.register_buffer("rows", torch.randn(9, 4))
    root.register_buffer("indices", indices)
    graph = fx.Graph()
    given = graph.placeholder("given")
    table = graph.get_attr("rows") if table_is_constant else given
    places = given if indices_are_input else graph.get_attr("indices")
    table.meta["val"], places.meta["val"] = torch.randn(9, 4), indices
    node = graph.call_function(_EMBEDDING, (table, places))
    node.meta["val"] = torch.randn(*indices.shape, 4)
    graph.output((node,))
    return fx.GraphModule(root, graph)


def index_dtypes(gm: fx.GraphModule) -> list[torch.dtype]:
    return [n.args[1].meta["val"].dtype for n in gm.graph.nodes if n.target is _EMBEDDING]


def test_the_rows_are_the_same() -> None:
    indices = torch.tensor([[0, 3], [8, 1]])
    gm = graph_of(indices)
    assert write_embedding_indices(gm).changed
    gm.recompile()
    gm.graph.lint()
    table = torch.randn(9, 4)
    assert index_dtypes(gm) == [torch.int32]
    assert torch.equal(gm(table)[0], table[indices])
    assert not write_embedding_indices(gm).changed


@pytest.mark.parametrize(
    "gm",
    [
        graph_of(torch.tensor([1, 2**31])),
        graph_of(torch.tensor([1, -(2**31) - 1])),
        graph_of(torch.tensor([1, 2], dtype=torch.int32)),
        graph_of(torch.tensor([1, 2]), table_is_constant=True),
        graph_of(torch.tensor([1, 2]), table_is_constant=True, indices_are_input=True),
        graph_of(torch.zeros(0, dtype=torch.int64)),
    ],
    ids=["too large", "too small", "int32 already", "constant table", "indices are an input", "no index"],
)
def test_what_needs_no_change_or_has_none_stays(gm: fx.GraphModule) -> None:
    code = gm.code
    assert not write_embedding_indices(gm).changed
    gm.recompile()
    assert gm.code == code
