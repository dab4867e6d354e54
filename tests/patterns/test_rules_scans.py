"""Read rules of scans: sums along an axis, closed where the summed values are known well enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from attnlower.patterns import Prover, build

X = torch.zeros(3, 5)
OTHERS = [(torch.zeros(1, 1),), (torch.zeros(4, 2),), (torch.zeros(2, 9),)]
Check = Callable[..., Any]


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: torch.ones(x.shape[1], dtype=torch.int64).cumsum(0),
        lambda x: torch.ones(x.shape[1], dtype=torch.bool).cumsum(0),
        lambda x: torch.ones(x.shape[1], dtype=torch.int32).cumsum(0) - 1,
        lambda x: torch.full((x.shape[0], x.shape[1]), 3).cumsum(-1),
        lambda x: torch.full((x.shape[0], x.shape[1]), 3).cumsum(0),
        lambda x: torch.zeros(x.shape[1], dtype=torch.int64).cumsum(0),
        lambda x: torch.arange(x.shape[0])[:, None].expand(-1, x.shape[1]).cumsum(1),
        lambda x: (torch.arange(x.shape[1]) >= 0).cumsum(0),
        lambda x: torch.ones(x.shape, dtype=torch.int64).cumsum(0).cumsum(1),
        lambda x: torch.arange(x.shape[1]).diff(),
        lambda x: torch.arange(x.shape[1]).diff(prepend=torch.tensor([-1])),
        lambda x: (torch.arange(x.shape[1]).diff(prepend=torch.tensor([-1])) != 1).cumsum(0),
        lambda x: (torch.arange(x.shape[1])[None].diff(dim=-1, prepend=torch.tensor([[-1]])) == 1).cumsum(-1),
    ],
)
def test_sums_of_what_does_not_vary(check_read: Check, fn: Any) -> None:
    check_read(fn, X, dynamic=False)
    check_read(fn, X, dynamic=True, others=OTHERS[1:])


def test_packed_sequence_detection_on_plain_positions_is_all_one_document(check_read: Check) -> None:
    """What transformers does to position_ids: `cumsum(diff != 1)` is zero for 0, 1, 2, ..."""

    def fn(x: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(x.shape[1])[None].expand(x.shape[0], -1)
        first = positions[:, :1] - 1
        document = (torch.diff(positions, prepend=first, dim=-1) != 1).cumsum(-1)
        return document[:, :, None] == document[:, None, :]

    assert check_read(fn, X, others=OTHERS).expr is build.TRUE


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: torch.arange(x.shape[1]).cumsum(0) > 3,
        lambda x: torch.eye(4, dtype=torch.int64).cumsum(0) > 0,
        # Two sums of one diagonal: along each axis alone it varies, along both at once it does not.
        lambda x: torch.eye(4, dtype=torch.int64).cumsum(0).cumsum(1) > 1,
        lambda x: torch.eye(4, dtype=torch.int64).cumsum(1).cumsum(0) > 1,
        lambda x: (torch.arange(4)[None] == torch.arange(4)[:, None]).cumsum(0).cumsum(1) > 2,
        lambda x: (torch.arange(x.shape[1]) > 0).cumsum(0) > 1,
        lambda x: (torch.arange(x.shape[1]) < x.shape[1] - 1).cumsum(0),
        lambda x: x.long().cumsum(1),
        lambda x: (x > 0).cumsum(1),
        lambda x: (x > 0).cumsum(0),
        lambda x: (x > 0).flip(1).cumsum(1).flip(1),
        lambda x: ((x > 0).cumsum(1) == 0).cumsum(1),
        lambda x: (x > 0).cumsum(1)[:, None] <= (x > 0).cumsum(1)[..., None],
        lambda x: (x[0] > 0).sum().cumsum(0),
    ],
)
def test_running_sums_of_data(check_read: Check, fn: Any) -> None:
    check_read(fn, X, others=OTHERS)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: (x > 0).sum(1),
        lambda x: (x > 0).sum(1, keepdim=True),
        lambda x: (x > 0).sum((0, 1)),
        lambda x: (x > 0).sum(),
        lambda x: (x > 0).long().sum(0),
        lambda x: x.new_ones(x.shape, dtype=torch.bool).sum(1),
        lambda x: ((x > 0).cumsum(-1) == 0).sum(-1),
        lambda x: (x > 0).any(),
        lambda x: (x > 0).any(1),
        lambda x: (x > 0).any(0, keepdim=True),
        lambda x: (x > 0).all(),
        lambda x: (x > 0).all(-1),
        lambda x: (x > 0).all(1, keepdim=True),
        lambda x: x.all(1),
        lambda x: (x.long() + 3).any(1),
        lambda x: (x > 0).any((0, 1)),
        lambda x: ~(x[:, None] >= x[..., None]).any(-1, keepdim=True),
        lambda x: (x > 0).sum(1)[:, None] - (x > 0).cumsum(1),
        lambda x: (x[:, :1] > 0).sum(1),
    ],
)
def test_reductions(check_read: Check, fn: Any) -> None:
    check_read(fn, X, others=OTHERS)


def test_sums_that_round_or_wrap_are_not_read(check_opaque: Check) -> None:
    check_opaque(lambda x: torch.ones(300).cumsum(0) > 0, X, reason="sums in torch.float32")
    check_opaque(lambda x: torch.ones(300, dtype=torch.bfloat16).cumsum(0) > 0, X, reason="sums in")
    narrow = torch.uint8
    check_opaque(lambda x: torch.ones(300, dtype=narrow).cumsum(0, dtype=narrow) > 0, X, reason="sums in")
    check_opaque(lambda x: x.cumprod(1) > 0, X, reason="no read rule for aten.cumprod")
    check_opaque(lambda x: x.sum(1) > 0, X, reason="sums in torch.float32")
    check_opaque(lambda x: x.sum(1, dtype=torch.int64) > 0, X, reason="floats converted to integers")


def test_documents_of_given_positions(check_read: Check) -> None:
    positions = torch.tensor([[0, 1, 2, 0, 1], [3, 4, 5, 6, 7]])

    def fn(p: torch.Tensor) -> torch.Tensor:
        document = (torch.diff(p, prepend=p[:, :1] - 1, dim=-1) != 1).cumsum(-1)
        return document[:, :, None] == document[:, None, :]

    reading = check_read(fn, positions, others=[(torch.tensor([[4, 5, 0], [1, 0, 1]]),), (torch.tensor([[7]]),)])
    assert not Prover().holds(reading.expr, reading.facts)
    assert not Prover().holds(build.not_(reading.expr), reading.facts)
