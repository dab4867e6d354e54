"""The passes that make canonical calls strict, in their order."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from .attention_rank import AttentionRank
from .base import Pass
from .decompose_attention import DecomposeAttention, nothing_refused
from .empty_rows import EmptyRows
from .explicit_scale import ExplicitScale
from .key_lengths import KeyLengths, LengthsAsMasks
from .mask_shape import MaskShape
from .single_mask import SingleMask
from .static_dims import StaticDims
from .value_width import ValueWidth


def strict_passes(
    refusal: Callable[[fx.Node], str] = nothing_refused, *, key_lengths: bool = False
) -> tuple[Pass, ...]:
    """The passes after which every canonical call that is left is strict.

    Rows are looked at before masks are written out for every query and key: there is less to look at.

    Args:
        refusal: says of a strict call why the target does not take it; it is written out then.
        key_lengths: the target takes the number of valid keys in the place of a mask.
    """
    return (
        LengthsAsMasks(refusal),
        ExplicitScale(),
        AttentionRank(),
        ValueWidth(),
        SingleMask(),
        EmptyRows(),
        MaskShape(),
        DecomposeAttention(refusal),
        *((KeyLengths(),) if key_lengths else ()),
        StaticDims(),
    )
