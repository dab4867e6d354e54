"""What an IAttention layer is built from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..patterns.masks.template import Alignment


@dataclass(frozen=True)
class StrictCall:
    """The arguments of an attention call in the form that IAttention takes.

    Tensors are ITensors of the network, or torch tensors where they are weights.

    Attributes:
        query: (B, Hq, Q, E). key: (B, Hkv, K, E). value: (B, Hkv, K, E).
        mask: (B or 1, Hq or 1, Q, K), boolean (True = may attend) or in the query's dtype (added); None without one.
        key_lengths: (B,), int32: keys from there on are blocked; None without.
        alignment: where a causal mask starts; NONE with a mask.
        scale: factor on the scores.
    """

    query: Any
    key: Any
    value: Any
    mask: Any = None
    key_lengths: Any = None
    alignment: Alignment = Alignment.NONE
    scale: float = 1.0
