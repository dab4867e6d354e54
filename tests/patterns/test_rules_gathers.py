"""Read rules of gathers: elements found through indices, compared with torch's own indexing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

X = torch.arange(4 * 5 * 6).reshape(4, 5, 6) * 11 % 97 - 30
ROWS, COLUMNS = torch.tensor([0, -1, 2]), torch.tensor([3, 1, -2])
GRID = torch.tensor([[0, 1], [-1, 2], [3, 0]])
LAST = torch.tensor([1, -3, 4])
Check = Callable[..., Any]


@pytest.mark.parametrize(
    "fn",
    [
        pytest.param(lambda x, i, j, g, e: x[i], id="rows"),
        pytest.param(lambda x, i, j, g, e: x[:, j], id="middle"),
        pytest.param(lambda x, i, j, g, e: x[..., e], id="last"),
        pytest.param(lambda x, i, j, g, e: x[i, j], id="adjacent"),
        pytest.param(lambda x, i, j, g, e: x[:, i, j], id="adjacent-behind"),
        pytest.param(lambda x, i, j, g, e: x[i, :, e], id="separated"),
        pytest.param(lambda x, i, j, g, e: x[None][:, i, :, e], id="separated-inside"),
        pytest.param(lambda x, i, j, g, e: x[i, j, e], id="all"),
        pytest.param(lambda x, i, j, g, e: x[i[:, None], j], id="outer"),
        pytest.param(lambda x, i, j, g, e: x[i[:, None], :, e], id="outer-separated"),
        pytest.param(lambda x, i, j, g, e: x[:, i[:, None], e[None]], id="outer-behind"),
        pytest.param(lambda x, i, j, g, e: x[g], id="matrix"),
        pytest.param(lambda x, i, j, g, e: x[:, g], id="matrix-middle"),
        pytest.param(lambda x, i, j, g, e: x[g, :, g], id="matrix-separated"),
        pytest.param(lambda x, i, j, g, e: x[g[:, :, None], j], id="matrix-broadcast"),
        pytest.param(lambda x, i, j, g, e: torch.ops.aten.index.Tensor(x, [i[0], j]), id="scalar-index"),
        pytest.param(lambda x, i, j, g, e: x[1:, i][:, :, e], id="slice-and-index"),
        pytest.param(lambda x, i, j, g, e: x[i.to(torch.int32)], id="int32"),
        pytest.param(lambda x, i, j, g, e: x[torch.arange(3)[:, None], j], id="positions"),
        pytest.param(lambda x, i, j, g, e: x[torch.arange(3), torch.arange(3) + 1], id="diagonal"),
        pytest.param(
            lambda x, i, j, g, e: x[(torch.arange(x.shape[0])[:, None], torch.arange(x.shape[1]))], id="every"
        ),
        pytest.param(lambda x, i, j, g, e: x[x.shape[0] - 1 - torch.arange(2)], id="from-the-end"),
        pytest.param(lambda x, i, j, g, e: x[-torch.arange(1, 4)], id="negative-positions"),
        pytest.param(lambda x, i, j, g, e: x.index_select(1, i.abs()), id="index-select"),
        pytest.param(lambda x, i, j, g, e: x.index_select(-1, torch.arange(3)), id="index-select-last"),
        pytest.param(lambda x, i, j, g, e: x[0].gather(1, g.abs()), id="gather"),
        pytest.param(lambda x, i, j, g, e: x[0].gather(0, g.abs()), id="gather-rows"),
        pytest.param(lambda x, i, j, g, e: torch.nn.functional.embedding(g.abs(), x[0]), id="embedding"),
        pytest.param(lambda x, i, j, g, e: x[0][g.abs(), 1], id="mixed"),
        pytest.param(lambda x, i, j, g, e: x[i][:, j], id="twice"),
        pytest.param(lambda x, i, j, g, e: x[i] > x[j], id="compared"),
    ],
)
def test_gathers(check_read: Check, fn: Any) -> None:
    inputs = (X, ROWS, COLUMNS, GRID, LAST)
    check_read(fn, *inputs, dynamic=False)
    check_read(fn, *inputs, dynamic=True, others=[(X.flip(0).repeat(2, 1, 2), ROWS, COLUMNS, GRID, LAST)])


def test_a_mask_gathered_by_position_ids(check_read: Check) -> None:
    """Packed sequences: `id[b, q] == id[b, k]`, and a causal table looked up at positions."""
    ids = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 2, 2]])
    positions = torch.tensor([[0, 1, 0, 1, 2], [0, 0, 1, 0, 1]])

    def packed(d: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        return (d[:, :, None] == d[:, None, :]) & (p[:, None, :] <= p[:, :, None])

    check_read(packed, ids, positions, others=[(ids[:1, :1], positions[:1, :1]), (ids[:1], positions[1:])])

    def looked_up(d: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        table = torch.tril(torch.ones(8, 8, dtype=torch.bool))
        return table[p[:, :, None], p[:, None, :]] & (d[:, :, None] == d[:, None, :])

    check_read(looked_up, ids, positions)


def test_padding_looked_up_as_newer_transformers_do(check_read: Check) -> None:
    padding = torch.tensor([[True, True, False], [True, False, True]])

    def fn(m: torch.Tensor) -> torch.Tensor:
        batch = torch.arange(m.shape[0])[:, None, None]
        keys = torch.arange(m.shape[1])[None, None, :]
        queries = torch.arange(m.shape[1])[None, :, None]
        return m[batch, keys] & (keys <= queries)

    reading = check_read(fn, padding, others=[(padding[:1, :1],), (torch.ones(3, 5) > 0,)])
    assert str(reading.expr).replace("c0", "b").replace("c1", "q").replace("c2", "k") == "k <= q & m_1[b, k]"


@pytest.mark.parametrize(
    ("fn", "reason"),
    [
        (lambda m, i, j: m.index_put((torch.arange(3)[:, None], j[None]), torch.tensor(0)), "several dimensions"),
        (lambda m, i, j: m.index_put((torch.arange(3), j), torch.arange(3)), "more than one value"),
        (lambda m, i, j: m.index_put((torch.tensor(1),), torch.arange(6)), "more than one value"),
        (lambda m, i, j: m.index_put((torch.tensor(1),), torch.tensor(2), accumulate=True), "accumulating"),
        (lambda m, i, j: m.scatter(1, i[:, None].abs(), m), "no read rule for aten.scatter.src"),
        (lambda m, i, j: m.index_fill(0, i.abs(), 7), "no read rule"),
        (lambda m, i, j: torch.bucketize(m, torch.arange(3)), "no read rule"),
        (lambda m, i, j: m.topk(2).indices, "no read rule"),
        (lambda m, i, j: m.argmax(-1), "no read rule"),
        (lambda m, i, j: m.masked_scatter(m > 0, m), "no read rule"),
    ],
)
def test_writes_and_searches_that_are_not_read(check_opaque: Check, fn: Any, reason: str) -> None:
    check_opaque(lambda *inputs: fn(*inputs) > 0, X[0].contiguous(), ROWS, COLUMNS, reason=reason)


@pytest.mark.parametrize(
    "fn",
    [
        lambda m: m.index_put((torch.tensor(1), torch.tensor(-1)), torch.tensor(9)),
        lambda m: m.index_put((torch.tensor([1]), torch.tensor([0])), torch.tensor([9])),
        lambda m: m.index_put((torch.tensor(-1),), torch.tensor(9)),
        lambda m: m.index_put((m > 3,), torch.tensor(9)),
        lambda m: m.index_put((m[:, 0] > 3,), torch.tensor(9)),
        lambda m: m.index_put((torch.arange(5), m[:, 0] % 6), torch.tensor(9)),
        lambda m: m.index_put((torch.arange(3), m[:3, 0] % 6 - 6), torch.tensor(9)),
        lambda m: m.index_put((torch.arange(4), torch.tensor([2])), torch.tensor(9)),
        lambda m: m.index_put((m[0] % 5, torch.arange(6)), torch.tensor([9])),
        lambda m: m.index_put((m[0] % 5, m[1] % 6), torch.tensor(9)),
        lambda m: m.index_put((torch.arange(5) // 2, m[:, 0] % 6), torch.tensor(9)),
        lambda m: m.index_put((torch.arange(4) + 1, m[:4, 0] % 6), torch.tensor(9)),
        lambda m: m.index_put((m[:, 0] % 5,), torch.tensor(9)),
        lambda m: torch.ops.aten.index_put(m, [None, m[:, 0] % 6], torch.tensor(9)),
        lambda m: m.scatter(1, m[:, :2] % 6, 7),
        lambda m: m.scatter(0, m[:3] % 5, 7),
        lambda m: m.scatter(1, m[:2, :1] % 6, 7),
        lambda m: (m > 2).scatter(-1, m % 6, True),
        lambda m: m.index_put((torch.arange(5),), torch.tensor(9)),
        lambda m: m.float().index_put((torch.tensor(1),), torch.tensor(float("-inf"))),
        lambda m: (m > 0).index_put((torch.tensor(1), torch.tensor(1)), torch.tensor(False)),
        lambda m: torch.select_scatter(m, m[0], 0, 2),
        lambda m: torch.select_scatter(m, m[:, 1], 1, -1),
        lambda m: torch.slice_scatter(m, m[:2] * 0, 0, 1, 3),
        lambda m: torch.slice_scatter(m, m[:, :2] * 0, 1, -4, -2),
        lambda m: torch.slice_scatter(m, m[:, :2] * 0 - 1, 1, 0, 4, 2),
        lambda m: torch.slice_scatter(m, m[:, 1:], 1, 1),
        lambda m: torch.slice_scatter(m, m[:, :-1], 1, None, -1),
    ],
)
def test_scattered_writes(check_read: Check, fn: Any) -> None:
    check_read(fn, X[0].contiguous(), dynamic=False)
    check_read(fn, X[1].contiguous(), dynamic=False)
