"""What flex_attention is given: PyTorch's kernel for CPUs is wrong, or does not compile, for operands of some kinds.

Without what is tested here it reads beyond a value that has fewer heads than its key, takes `x[1:]` for `x`, and
refuses `x[0]` and a result that is added to something of its shape (torch 2.13).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import attnlower
from attnlower.lowering.plan import Plan

SHORT, LONG, WIDTH = 300, 1024, 16
Model = Callable[..., Tensor]


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    positions = torch.arange(q.shape[2])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=positions[None, :] <= positions[:, None])


def sink(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A window and the first key: no band, few blocks."""
    row, column = torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])[None, :]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=(column <= row) & ((column > row - 100) | (column == 0)))


def _check(model: Model, inputs: list[Tensor], *, dynamic: bool = False) -> bool:
    """Compare with eager, gradients off; True if attention went through flex_attention."""
    options = {"strict": True, "banded": "flex"} if dynamic else {"strict": True}
    if dynamic:
        for tensor in inputs:
            torch._dynamo.mark_dynamic(tensor, [i for i, size in enumerate(tensor.shape) if size >= SHORT])
    compiled = torch.compile(model, backend="attnlower", dynamic=None if dynamic else False, options=options)
    with torch.no_grad():
        expected = model(*(t.clone() for t in inputs))
        found = compiled(*(inputs if dynamic else [t.clone() for t in inputs]))  # a clone is not marked as dynamic
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    return "flex_attention" in attnlower.last_report().sites[0].reason


WAYS = pytest.mark.parametrize(
    ("attention", "length", "dynamic"),
    [(causal, SHORT, False), (sink, LONG, False), (sink, LONG, True)],
    ids=["short", "long", "dynamic"],
)

BROADCASTS = {
    "values of one batch": ((2, 4), (1, 4)),
    "values of one head": ((2, 4), (2, 1)),
    "keys of one batch": ((1, 4), (2, 4)),
    "keys of one head": ((2, 1), (2, 4)),
    "both of one batch": ((1, 4), (1, 4)),
    "crosswise": ((1, 4), (2, 1)),
}


@WAYS
@pytest.mark.parametrize("name", BROADCASTS)
def test_broadcast_keys_and_values_are_left_alone(name: str, attention: Model, length: int, dynamic: bool) -> None:
    inputs = [torch.randn(2, 4, length, WIDTH), *(torch.randn(*s, length, WIDTH) for s in BROADCASTS[name])]
    assert not _check(attention, inputs, dynamic=dynamic)


LAYOUTS: dict[str, Callable[[int], Tensor]] = {
    "side by side": lambda length: torch.randn(2, length, 4, WIDTH).transpose(1, 2),
    "heads innermost": lambda length: torch.randn(2, length, WIDTH, 4).permute(0, 3, 1, 2),
    "one head for all": lambda length: torch.randn(2, 1, length, WIDTH).expand(2, 4, length, WIDTH),
    "turned": lambda length: torch.randn(2, 4, WIDTH, length).transpose(2, 3),
    "cut out": lambda length: torch.randn(2, 4, length + 5, WIDTH + 3)[:, :, 3:-2, 1:-2],
}


@WAYS
@pytest.mark.parametrize("layout", LAYOUTS)
def test_inputs_of_every_layout(layout: str, attention: Model, length: int, dynamic: bool) -> None:
    assert _check(attention, [LAYOUTS[layout](length) for _ in range(3)], dynamic=dynamic)


VIEWS: dict[str, Callable[[Model, Tensor, Tensor, Tensor], Tensor]] = {
    "a part of the batch": lambda attention, q, k, v: attention(q[1:], k[1:], v[1:]),
    "a part of a result": lambda attention, q, k, v: attention((q + 1)[1:], (k * 2)[1:], (v - 1)[1:]),
    "a part of the heads": lambda attention, q, k, v: attention(q[:, 2:], k[:, 2:], v[:, 2:]),
    "of a stack": lambda attention, q, k, v: attention(*(torch.stack([q, k, v]) + 1).unbind(0)),
    "of a stacked input": lambda attention, q, k, v: attention(q, *torch.stack([k, v])),
    "chunks of heads": lambda attention, q, k, v: attention(*torch.cat([q, k, v], 1).chunk(3, 1)),
    "chunks of width": lambda attention, q, k, v: attention(*torch.cat([q, k, v], -1).split(WIDTH, -1)),
    "the same tensor": lambda attention, q, k, v: attention(q, q, q),
    "a part of repeated heads": lambda attention, q, k, v: attention(
        q, k[:, 2:].repeat_interleave(2, 1), v[:, 2:].repeat_interleave(2, 1)
    ),
}


@WAYS
@pytest.mark.parametrize("view", VIEWS)
def test_views_inside_the_graph(view: str, attention: Model, length: int, dynamic: bool) -> None:
    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return VIEWS[view](attention, q, k, v)

    assert _check(model, [torch.randn(2, 4, length, WIDTH) for _ in range(3)], dynamic=dynamic)


@pytest.mark.parametrize(("attention", "length"), [(causal, SHORT), (sink, LONG)], ids=["short", "long"])
def test_an_input_that_is_written_to_later(attention: Model, length: int) -> None:
    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        first = attention(q[1:], k[1:], v[1:])
        k.add_(1)
        return torch.cat([first, attention(q[1:], k[1:], v[1:])])

    assert _check(model, [torch.randn(2, 4, length, WIDTH) for _ in range(3)])


AFTERWARDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a sum": lambda out, q: out + q,
    "a gate": lambda out, q: out * torch.sigmoid(q),
    "another dtype": lambda out, q: out.double(),
    "as models do": lambda out, q: torch.relu(out.transpose(1, 2).reshape(2, -1, 4 * WIDTH)),
}


@WAYS
@pytest.mark.parametrize("name", AFTERWARDS)
def test_what_is_done_to_the_result(name: str, attention: Model, length: int, dynamic: bool) -> None:
    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return AFTERWARDS[name](attention(q, k, v), q)

    assert _check(model, [torch.randn(2, 4, length, WIDTH) for _ in range(3)], dynamic=dynamic)


@pytest.mark.parametrize(("layout", "copies"), [("side by side", 3), ("", 0)])
def test_rows_are_brought_together_where_they_are_not(layout: str, copies: int, planned: Callable[..., Plan]) -> None:
    inputs = [LAYOUTS[layout](SHORT) if layout else torch.randn(2, 4, SHORT, WIDTH) for _ in range(3)]
    with torch.no_grad():
        program = planned(causal, inputs, padding="keep").general.gm
    assert sum(n.target is torch.as_strided for n in program.graph.nodes) == copies
