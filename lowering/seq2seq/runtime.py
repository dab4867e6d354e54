"""What runs the three programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

Encoded = tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]
Encode = Callable[[Tensor, Tensor], Encoded]
Decode = Callable[
    [Tensor, Tensor, Tensor, Sequence[Tensor], Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]], Tensor
]


@dataclass(frozen=True)
class Runtime:
    """The programs as functions; the decoders write the self-attention caches in place.

    Attributes:
        name: of the backend.
        encoder: (source, mask) -> (hidden states, cross keys, cross values).
        prefill: (ids, position, source mask, self keys, self values, cross keys, cross values) -> logits.
        step: likewise, for one token.
    """

    name: str
    encoder: Encode
    prefill: Decode
    step: Decode
