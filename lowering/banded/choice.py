"""Which way to compute attention under a mask that leaves whole blocks out; a choice of speed alone.

"dense"   scaled_dot_product_attention with the mask tensor: every pair is computed
"flex"    flex_attention: every block of 128 x 128 pairs that the mask does not leave out
"local"   scaled_dot_product_attention over blocks of queries, each with the window of keys it may see
"""

from __future__ import annotations

from .work import Work

CHOICES = ("auto", "flex", "local", "dense")

FLEX_FROM = 2**19
"""Scores per head from which flex_attention is considered."""

FLEX_SHARE = 0.8
"""The largest share of blocks at which flex_attention is faster than a dense mask."""


def flex_is_faster(work: Work) -> bool:
    """True if flex_attention beats attention with the mask tensor."""
    return work.queries * work.keys >= FLEX_FROM and work.visited <= FLEX_SHARE
