"""Which way to compute attention under a mask that leaves whole blocks out; a choice of speed alone.

"dense"   scaled_dot_product_attention with the mask tensor: every pair is computed
"flex"    flex_attention: every block of 128 x 128 pairs that the mask does not leave out
"local"   scaled_dot_product_attention over blocks of queries, each with the window of keys it may see
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ...patterns.bands import Band
from ..passes.emitting import static_size
from .processor import FlexSpeed, flex_speed
from .work import Work

CHOICES = ("auto", "flex", "local", "dense")

LONG = 2**19
"""Scores per head from which anything else than a dense mask is considered."""

FLEX_SHARE = 0.8
"""The largest share of blocks at which flex_attention is faster than a dense mask."""

SLOW_FLEX_SHARE = 0.25
"""The same on CPUs without AVX512, of which AVX2 was measured.

To compute a block there takes flex_attention 2.6 (a window of 512 keys) to 3.7 times as long (causal and padding) as
attention with a mask tensor; with AVX512 it takes 1.3 and 1.8 times as long. 4096 queries, float32, two cores each.
"""

PARTS = 4
"""Documents or chunks that a row is taken to hold where how many there are, and so what they leave out, is data."""

MANY_CALLS_SHARE = 0.35
"""The same where a model has many calls, each of which Inductor compiles a kernel for on CPUs."""

LOCAL_SHARE = 0.6
"""The largest share of keys per query at which attention over windows is faster than a dense mask."""

COPIED_BLOCK, OVERLAPPING_BLOCK = 192, 64
"""Queries that share a window of keys that is copied, or one that is a view; a chunk is a block of its own.

Measured on two CPU cores with windows of 512 keys at 4096 queries: of copied windows, blocks of 192 and 256 take least
(47 and 49 ms; 62 for 128, 58 for 384, 65 for 512), as longer ones compute more pairs and shorter ones copy more keys.
Of overlapping views blocks of 32 and 64 do (41 ms; 47 for 128, 52 for 192).
"""

NARROW = 256
"""Windows below this are narrow: flex_attention's blocks fit them better than windows do."""

FEW_CALLS = 4
"""Calls for whose flex_attention kernels it is worth waiting."""

WIDE_WINDOW, WIDE_CHUNK = 512, 256
"""Windows and chunks from which flex_attention is faster than windows in float32 where it is FAST.

There it takes 0.79 to 0.94 of their time for windows of 512 keys and more, 0.67 to 1.07 for chunks of 256 and more,
0.83 to 1.97 for narrower ones; 2048 queries, 8 heads of 64 and 4 of 256, two cores.
"""


@dataclass(frozen=True)
class Short:
    """Numbers of queries for which flex_attention is the faster kernel, whatever the mask leaves out.

    Attributes:
        causal: than PyTorch's causal kernel.
        masked: than PyTorch's kernel with a mask tensor.
    """

    causal: range
    masked: range


SHORT: Mapping[tuple[FlexSpeed, torch.dtype], Short] = {
    (FlexSpeed.FAIR, torch.float32): Short(range(192, 768), range(192, 768)),
    (FlexSpeed.FAST, torch.float32): Short(range(192, 3072), range(192, 768)),
    (FlexSpeed.FAST, torch.bfloat16): Short(range(448, 513), range(448, 768)),
}
"""From 192 to 767 queries PyTorch's kernel takes 64 of them at a time, and always whole blocks of up to 512 keys
(aten/src/ATen/native/cpu/FlashAttentionKernel.cpp), so that causality saves it little; with more it takes 256.

Measured with torch 2.13 on two cores (AMD EPYC), as flex_attention's time over the causal kernel's. FAST, 4 to 32 heads
of 64 to 256, in float32: 0.59 to 0.69 at 512 queries, 0.81 to 0.86 at 1024, 0.92 to 0.97 at 2048, 0.99 to 1.02 at 4096;
in bfloat16: 0.91 to 1.14 at 256, 0.77 to 0.99 at 448 and 512, 0.81 to 1.12 above. FAIR, 512 queries in float32 alone,
on an EPYC whose family was not written down: 0.77 to 0.93.
"""


def flex_is_faster(work: Work, device: torch.device, *, patient: bool, parted: bool) -> bool:
    """True if flex_attention beats attention with the mask tensor by enough.

    Args:
        work: what the mask leaves to do.
        device: where it runs.
        patient: many kernels are no matter: they are few, shared, or leave out more than can be known beforehand.
        parted: the mask separates documents, or chunks, by data.
    """
    share = FLEX_SHARE if patient else MANY_CALLS_SHARE
    if flex_speed(device) is not FlexSpeed.SLOW:
        return work.visited <= share
    visited = work.visited / PARTS if parted else work.visited
    return visited <= min(share, SLOW_FLEX_SHARE)


def flex_is_faster_when_short(query: torch.Tensor, calls: int, *, causal: bool) -> bool:
    """True if flex_attention beats PyTorch's kernels for so few queries, whatever the mask leaves out.

    Args:
        query: [batch, heads, queries, width], for its length, dtype and device.
        calls: how many calls the graph has; each takes seconds to compile.
        causal: beats the causal kernel, and not the one that takes a mask.
    """
    if query.device.type != "cpu" or query.dim() != 4 or calls > FEW_CALLS:
        return False
    found, queries = SHORT.get((flex_speed(query.device), query.dtype)), static_size(query.shape[2])
    return found is not None and queries is not None and queries in (found.causal if causal else found.masked)


def local_is_faster(work: Work, band: Band, *, overlapping: bool = False) -> bool:
    """True if attention over windows beats attention with the mask tensor.

    Args:
        work: what the mask leaves to do.
        band: what a query sees.
        overlapping: windows are views that share memory.
    """
    block = OVERLAPPING_BLOCK if overlapping else COPIED_BLOCK
    met = band.chunk if band.chunk else block + band.behind + band.ahead
    return met <= LOCAL_SHARE * work.keys


def local_beats_flex(band: Band, query: torch.Tensor, calls: int, *, overlapping: bool = False) -> bool:
    """True if attention over windows is the better choice where both are faster than a dense mask.

    Measured on a CPU (2 cores AMD EPYC, AVX512, torch 2.13, S=4096, 8 heads of 64, float32): windows that are views
    take 13, 20, 30 and 43 ms for 64, 128, 256 and 512 keys, flex_attention 23, 29, 33 and 51 ms. Windows that are
    copied take 62 ms for 512 keys, in bfloat16 57 ms against 96 ms; with narrower ones flex_attention is up to 1.4
    times faster, and where it is slow it is not.
    Chunks that need no mask take the causal kernel. Every call of flex_attention is a kernel of its own, which takes
    seconds to compile, so that many calls are not worth it. On some CPUs flex_attention is the faster one from
    `WIDE_WINDOW` and `WIDE_CHUNK` on.

    Args:
        band: what a query sees.
        query: for its dtype and device.
        calls: how many calls have this mask.
        overlapping: windows are views that share memory.
    """
    speed, few = flex_speed(query.device), calls <= FEW_CALLS
    if query.dtype is not torch.float32 or not few or speed is FlexSpeed.SLOW:
        return True
    if speed is FlexSpeed.FAST and band.width >= (WIDE_CHUNK if band.chunk else WIDE_WINDOW):
        return False
    return overlapping or band.width >= NARROW or bool(band.chunk and band.exact)
