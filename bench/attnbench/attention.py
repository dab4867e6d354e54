"""A single attention call with a mask made by transformers' own functions, and the variants of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import attnlower

from .check import Expected
from .comparison import Comparison
from .limits import attention_work

Given = Mapping[str, torch.Tensor]
MakeMask = Callable[..., torch.Tensor | None]
ByHand = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Shape:
    """The sizes of an attention call; `length` tokens are queries and keys alike."""

    length: int
    batch: int = 1
    heads: int = 8
    kv_heads: int = 8
    width: int = 64


class MaskedAttention(torch.nn.Module):
    """Attention as transformers' models call it: the mask is computed in the call, from what the model is given."""

    def __init__(self, mask: MakeMask, shape: Shape):
        super().__init__()
        self.mask = mask
        self.is_causal = True
        self.num_key_value_groups = shape.heads // shape.kv_heads

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **given: torch.Tensor
    ) -> torch.Tensor:
        """Attention of [batch, heads, length, width]; gives [batch, length, heads, width].

        Args:
            query: queries.
            key: keys, with as many heads or fewer; `value` alike.
            value: values.
            given: what the mask is made of, such as `attention_mask` [batch, length].
        """
        hidden = query[:, 0]  # transformers takes the batch, the length, the dtype and the device from it
        output: torch.Tensor = sdpa_attention_forward(self, query, key, value, self.mask(hidden, **given))[0]
        return output


def comparison(
    shape: Shape,
    dtype: torch.dtype,
    device: torch.device,
    mask: MakeMask,
    given: Given,
    by_hand: Mapping[str, ByHand],
    seed: int = 0,
) -> Comparison:
    """All variants of one attention call.

    Args:
        shape: its sizes.
        dtype: of queries, keys and values.
        device: where it runs.
        mask: makes the mask inside the compiled call: `mask(hidden, **given)` with hidden [batch, length, any].
        given: the tensors that the mask is made of, by the name that `mask` takes them under.
        by_hand: `call(query, key, value, **given)` with the decision made by a person, by name; each is compiled here.
        seed: of the random queries, keys and values.
    """
    generator = torch.Generator().manual_seed(seed)
    heads = (shape.heads, shape.kv_heads, shape.kv_heads)
    tensors = [torch.randn(shape.batch, h, shape.length, shape.width, generator=generator) for h in heads]
    inputs = [t.to(device=device, dtype=dtype) for t in tensors]
    module = MaskedAttention(mask, shape).eval()
    variants: dict[str, Any] = {
        "inductor": torch.compile(module, dynamic=False),
        "attnlower": torch.compile(module, backend="attnlower", dynamic=False),
        **{name: torch.compile(call, dynamic=False) for name, call in by_hand.items()},
    }

    def expected(eager: torch.Tensor) -> Expected:
        exact = module(*(t.double() for t in inputs), **given) if dtype != torch.float32 else None
        return Expected(eager, exact)

    return Comparison(
        eager=lambda: module(*inputs, **given),
        variants={name: (lambda call=call: call(*inputs, **given)) for name, call in variants.items()},
        by_hand=frozenset(by_hand),
        expected=expected,
        work=attention_work(
            allowed_pairs(mask, inputs[0][:, 0], given),
            shape.batch * shape.length,
            shape.batch * shape.length,
            shape.heads,
            shape.kv_heads,
            shape.width,
            inputs[0].element_size(),
        ),
        notes=lambda: {"attnlower": decisions()},
    )


def allowed_pairs(mask: MakeMask, hidden: torch.Tensor, given: Given) -> float:
    """How many pairs of a query and a key the mask allows, summed over the batch; counted in the mask itself."""
    batch, length = hidden.shape[:2]
    made = mask(hidden, **given)
    if made is None:  # transformers leaves it to is_causal
        return batch * length * (length + 1) / 2
    return float(made.expand(batch, -1, length, length).sum())


def decisions() -> list[dict[str, str]]:
    """What attnlower did at each attention call that it compiled last: formula, action and reason, each once."""
    sites = [{"formula": s.formula, "action": s.action, "reason": s.reason} for s in attnlower.last_report().sites]
    return [site for index, site in enumerate(sites) if site not in sites[:index]]
