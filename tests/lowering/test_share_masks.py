"""share_masks: attention calls with equal masks read one tensor."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from attnlower.lowering.passes import Canonicalize, DropMask, GuardPadding, MaskToAlignment, ShareMasks

ALONE = (Canonicalize(), DropMask(), MaskToAlignment(), GuardPadding(), ShareMasks())


class Each(torch.nn.Module):
    """Every layer makes its own mask."""

    def __init__(self, *masks: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.masks = masks

    def forward(
        self, x: torch.Tensor, attention_mask: torch.Tensor | None = None, other: torch.Tensor | None = None
    ) -> torch.Tensor:
        for mask in self.masks:
            if other is not None:
                made = mask(x, attention_mask, other)
            else:
                made = mask(x) if attention_mask is None else mask(x, attention_mask)
            x = F.scaled_dot_product_attention(x, x, x, attn_mask=made)
        return x


def window(x: torch.Tensor) -> torch.Tensor:
    index = torch.arange(x.shape[2])
    return (index[None, :] <= index[:, None]) & (index[None, :] > index[:, None] - 3)


def window_written_differently(x: torch.Tensor) -> torch.Tensor:
    ones = torch.ones(x.shape[2], x.shape[2], dtype=torch.bool)
    return ones.tril() & ones.triu(-2)


def window_of_rank_4(x: torch.Tensor) -> torch.Tensor:
    return window(x)[None, None]


def window_in_floats(x: torch.Tensor) -> torch.Tensor:
    return torch.zeros(x.shape[2], x.shape[2]).masked_fill(~window(x), float("-inf"))


def window_of_four(x: torch.Tensor) -> torch.Tensor:
    index = torch.arange(x.shape[2])
    return (index[None, :] <= index[:, None]) & (index[None, :] > index[:, None] - 4)


def read_masks(done: Any) -> list[Any]:
    """The distinct mask tensors that the canonical calls read."""
    calls = [n for n in done.variant.gm.graph.nodes if n.target is torch.ops.attnlower.attention.default]
    return list(dict.fromkeys(n.kwargs["mask"] or n.kwargs["bias"] for n in calls))


@pytest.mark.parametrize("second", [window, window_written_differently])
def test_equal_masks_become_one(
    second: Callable[..., torch.Tensor], capture: str, dynamic: bool, inputs: Any, run_passes: Any, same: Any
) -> None:
    model, x = Each(window, second, second), inputs()
    done = run_passes(model, (x,), ALONE, capture, dynamic)
    changes = done.result("share_masks").changes
    (mask,) = read_masks(done)
    assert [c.what for c in changes] == [f"shares '{mask.name}'"] * 2
    assert done.after["arange"] == 1
    assert done.after["tril"] == 0
    for length in (8, 5, 1) if dynamic else (8,):
        same(done.run(x[:, :, :length]), model(x[:, :, :length]))


def test_padding_of_one_input(
    capture: str, dynamic: bool, masks: SimpleNamespace, inputs: Any, run_passes: Any, same: Any
) -> None:
    model, x = Each(masks.padded, masks.padded), inputs()
    holes = torch.tensor([[1, 1, 0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1, 1, 1]])
    done = run_passes(model, (x, holes), ALONE, capture, dynamic)
    assert len(read_masks(done)) == 1
    same(done.run(x, holes), model(x, holes))


@pytest.mark.parametrize(
    "second",
    [window_of_four, window_of_rank_4, window_in_floats],
    ids=["another width", "another rank", "another dtype"],
)
def test_near_misses_stay_apart(
    second: Callable[..., torch.Tensor], capture: str, dynamic: bool, inputs: Any, run_passes: Any, same: Any
) -> None:
    model, x = Each(window, second), inputs()
    done = run_passes(model, (x,), ALONE, capture, dynamic)
    assert len(read_masks(done)) == 2
    assert not done.result("share_masks").changed
    same(done.run(x), model(x))


def test_padding_of_two_inputs_stays_apart(
    capture: str, masks: SimpleNamespace, inputs: Any, run_passes: Any, same: Any
) -> None:
    def first(x: torch.Tensor, one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
        return masks.padded(x, one)

    def second(x: torch.Tensor, one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
        return masks.padded(x, two)

    model = Each(first, second)
    args = (inputs(), torch.tensor([[1] * 8, [0] * 4 + [1] * 4]), torch.tensor([[1] * 6 + [0] * 2, [1] * 8]))
    done = run_passes(model, args, ALONE, capture)
    assert len(read_masks(done)) == 2
    same(done.run(*args), model(*args))


def test_random_masks_stay_apart(capture: str, inputs: Any, run_passes: Any, same: Any) -> None:
    """Two draws are not one draw, though they are written alike."""

    def draw(x: torch.Tensor) -> torch.Tensor:
        return torch.rand(x.shape[2], x.shape[2]) < 0.7

    model, x = Each(draw, draw), inputs()
    done = run_passes(model, (x,), ALONE, capture)
    assert len(read_masks(done)) == 2
    torch.manual_seed(3)
    expected = model(x)
    torch.manual_seed(3)
    same(done.run(x), expected)


def test_a_learned_bias_keeps_its_gradient(inputs: Any, run_passes: Any) -> None:
    class Learned(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = torch.nn.Parameter(torch.randn(8, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(2):
                x = F.scaled_dot_product_attention(x, x, x, attn_mask=self.bias * 2)
            return x

    model, x = Learned(), inputs()
    done = run_passes(model, (x,), ALONE, "dynamo", dynamic=False)
    assert not done.result("share_masks").changed
    done.run(x).sum().backward()
    expected = torch.autograd.grad(model(x).sum(), model.bias)[0]
    torch.testing.assert_close(model.bias.grad, expected)


def test_a_mask_that_is_written_to_after_its_layer(capture: str, inputs: Any, run_passes: Any, same: Any) -> None:
    """The write must not reach the next layer's mask, which is equal to what the first one was."""

    class Spoils(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first = window(x)
            x = F.scaled_dot_product_attention(x, x, x, attn_mask=first)
            first.logical_not_()
            second = window(x)
            return F.scaled_dot_product_attention(x, x, x, attn_mask=second)

    x = inputs()
    done = run_passes(Spoils(), (x,), ALONE, capture)
    assert not done.result("share_masks").changed
    same(done.run(x), Spoils()(x))


def test_written_out_attention_is_left_alone(
    capture: str, models: SimpleNamespace, inputs: Any, run_passes: Any, same: Any
) -> None:
    model, x = models.SelfAttention(window_in_floats, layers=2, spelling="eager"), inputs()
    done = run_passes(model, (x,), ALONE, capture)
    assert done.before == done.after
    same(done.run(x), model(x))


def test_one_proof_for_all_layers(inputs: Any, run_passes: Any) -> None:
    """Masks that are the same expression are proved once, however many layers there are."""
    few = run_passes(Each(*[window] * 2), (inputs(),), ALONE).analysis.prover.stats
    many = run_passes(Each(*[window] * 12), (inputs(),), ALONE).analysis.prover.stats
    assert few.masks == many.masks == 1
    assert few.solver_calls == many.solver_calls
