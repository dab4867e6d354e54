"""Training: gradients through the compiled model equal eager's, whichever variant runs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import attnlower

ONES = torch.ones(2, 8, dtype=torch.long)
HOLES = torch.tensor([[1, 1, 0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1, 1, 1]])


def cut(mask: torch.Tensor, length: int) -> torch.Tensor:
    """The first columns as a tensor of their own; Dynamo compiles anew for a view."""
    return mask[:, :length].clone(memory_format=torch.contiguous_format)


def gradients(model: torch.nn.Module, call: Any, *args: Any) -> list[torch.Tensor]:
    """Of every parameter and of the input, for a loss that weighs all outputs differently."""
    hidden = args[0].clone().requires_grad_()
    out = call(hidden, *args[1:])
    weight = torch.linspace(-1, 1, out.numel()).view_as(out)
    wanted = [hidden, *model.parameters()]
    return list(torch.autograd.grad((out * weight).sum(), wanted))


def check(model: torch.nn.Module, compiled: Any, args: tuple[Any, ...], same: Any) -> None:
    same(compiled(*args), model(*args), 1e-5)
    same(gradients(model, compiled, *args), gradients(model, model, *args), 1e-4)


@pytest.mark.parametrize("layers", [1, 3])
def test_both_variants(layers: int, dynamic: bool, models: Any, same: Any) -> None:
    model = models.Decoder(layers).train()
    options = {"target": "eager", "strict": True}
    compiled = torch.compile(model, backend="attnlower", dynamic=dynamic, options=options)
    for length in (8, 5):
        for mask in (ONES, HOLES):
            check(
                model,
                compiled,
                (torch.randn(2, length, 32), cut(mask, length)),
                same,
            )
    assert {s.action for s in attnlower.last_report().sites} == {"guarded"}


def test_without_padding(models: Any, same: Any) -> None:
    model = models.Decoder().train()
    compiled = torch.compile(model, backend="attnlower", options={"target": "eager", "strict": True})
    check(model, compiled, (torch.randn(2, 8, 32),), same)
    assert {s.action for s in attnlower.last_report().sites} == {"is_causal"}


@pytest.mark.slow
def test_through_inductor(models: Any, same: Any) -> None:
    model = models.Decoder(layers=1).train()
    compiled = torch.compile(model, backend="attnlower", dynamic=True, options={"strict": True})
    for length in (8, 5):
        for mask in (ONES, HOLES):
            check(
                model,
                compiled,
                (torch.randn(2, length, 32), cut(mask, length)),
                same,
            )
    assert {s.action for s in attnlower.last_report().sites} == {"guarded"}


def test_written_out_attention(models: Any, masks: Any, inputs: Any, same: Any) -> None:
    model = models.SelfAttention(masks.causal_min, layers=2, spelling="eager").train()
    compiled = torch.compile(model, backend="attnlower", options={"target": "eager", "strict": True})
    check(model, compiled, (inputs(),), same)
    assert {s.action for s in attnlower.last_report().sites} == {"is_causal"}


def test_a_learned_bias_keeps_learning(inputs: Any, same: Any) -> None:
    """T5: the bias gets its gradient, so it must stay in the graph."""

    class Biased(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(7, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            index = torch.arange(x.shape[2])
            bias = self.table((index[None, :] - index[:, None]).clamp(-3, 3) + 3).permute(2, 0, 1)
            bias = bias.masked_fill(index[None, :] > index[:, None], torch.finfo(torch.float32).min)
            for _ in range(2):
                x = F.scaled_dot_product_attention(x, x, x, attn_mask=bias)
            return x

    model = Biased().train()
    compiled = torch.compile(model, backend="attnlower", options={"target": "eager", "strict": True})
    check(model, compiled, (inputs(),), same)
    assert {s.action for s in attnlower.last_report().sites} == {"keep"}


def test_a_mask_that_asks_for_a_gradient_is_no_constant(inputs: Any, same: Any) -> None:
    """A learned mask that happens to be zero now is not dropped: nobody has proved that it stays so."""

    class Zero(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = torch.nn.Parameter(torch.zeros(8, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(x, x, x, attn_mask=self.bias)

    model, x = Zero().train(), inputs()
    compiled = torch.compile(model, backend="attnlower", options={"target": "eager", "strict": True})
    check(model, compiled, (x,), same)
    assert float(gradients(model, compiled, x)[1].abs().max()) > 0


def test_dropout_draws_the_same_numbers(masks: Any, inputs: Any, same: Any) -> None:
    """With the causal mask as the alignment, dropout draws what it draws with `is_causal`."""

    class Drops(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            dropout = 0.25 if self.training else 0.0
            x = F.scaled_dot_product_attention(x, x, x, attn_mask=masks.causal(x), dropout_p=dropout)
            return x + torch.rand_like(x)

    model, x = Drops().train(), inputs()
    compiled = torch.compile(model, backend="attnlower", options={"target": "eager", "strict": True})
    torch.manual_seed(7)
    result = compiled(x)
    torch.manual_seed(7)
    expected = F.scaled_dot_product_attention(x, x, x, is_causal=True, dropout_p=0.25) + torch.rand_like(x)
    same(result, expected)
    assert attnlower.last_report().sites[0].action == "is_causal"


def test_steps_of_an_optimiser(models: Any, same: Any) -> None:
    model = models.Decoder(layers=1).train()
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, backend="attnlower", options={"target": "eager", "strict": True})
    for call, parameters in ((compiled, model.parameters()), (twin, twin.parameters())):
        torch.manual_seed(2)
        optimiser = torch.optim.SGD(parameters, lr=0.1)
        for mask in (ONES, HOLES, ONES):
            optimiser.zero_grad()
            call(torch.randn(2, 8, 32), mask).square().mean().backward()
            optimiser.step()
    same(dict(model.named_parameters()), dict(twin.named_parameters()), 1e-4)


def test_gradient_checkpointing(models: Any, masks: Any, inputs: Any, same: Any) -> None:
    """Attention inside a checkpointed function is a graph of its own: it stays as it is, and is mentioned."""

    class Checkpointed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = models.DecoderLayer()

        def forward(self, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            allowed = masks.causal(hidden)[None, None] & attention_mask[:, None, None, :].to(torch.bool)
            return torch.utils.checkpoint.checkpoint(self.layer, hidden, allowed, use_reentrant=False)

    model = Checkpointed().train()
    compiled = torch.compile(model, backend="attnlower", options={"target": "eager", "strict": True})
    for mask in (ONES, HOLES):
        check(model, compiled, (torch.randn(2, 8, 32), mask), same)
    report = attnlower.last_report()
    assert report.sites == ()
    ((_, reason),) = report.near_misses
    assert "inside an activation-checkpointed region is not rewritten" in reason
