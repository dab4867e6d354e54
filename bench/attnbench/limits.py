"""The physical limit: the least time that the necessary work can take on this machine.

    limit = max(operations / peak operations per second, bytes / peak bytes per second)

Both peaks are measured here, in the run itself: the operations by a large matrix product in the dtype of the row, the
bytes by copying a buffer that no cache holds. Only *necessary* work counts: pairs of a query and a key that the mask
allows, inputs read once, outputs written once. A cache that keeps inputs between calls can undercut the bytes' part.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .clock import synchronize


@dataclass(frozen=True)
class Work:
    """What a computation cannot do without: floating-point operations, bytes to and from memory."""

    operations: float
    bytes: float

    def __add__(self, other: Work) -> Work:
        return Work(self.operations + other.operations, self.bytes + other.bytes)


@dataclass(frozen=True)
class Peak:
    """What a machine can do at most, measured: floating-point operations and bytes per second."""

    operations_per_second: float
    bytes_per_second: float

    def seconds(self, work: Work) -> float:
        """The limit for some work, in seconds."""
        return max(work.operations / self.operations_per_second, work.bytes / self.bytes_per_second)

    def to_dict(self) -> dict[str, float]:
        """The same as JSON data."""
        return dict(vars(self))


def limit(work: Work, peak: Peak) -> dict[str, float]:
    """The limit of a row as JSON data: operations, bytes and seconds."""
    return {"operations": work.operations, "bytes": work.bytes, "seconds": peak.seconds(work)}


def attention_work(pairs: float, queries: int, keys: int, heads: int, kv_heads: int, width: int, size: int) -> Work:
    """One attention call.

        operations = 4 * width * heads * pairs             (a product and a sum per element, for scores and for values)
        bytes      = size * width * (2 * heads * queries + 2 * kv_heads * keys)          (q and output, k and v)

    Args:
        pairs: allowed pairs of a query and a key in one head, summed over the batch.
        queries: query rows, summed over the batch; `keys` alike.
        keys: key rows, summed over the batch.
        heads: query heads.
        kv_heads: key and value heads.
        width: elements in one head's row.
        size: bytes of an element.
    """
    return Work(4.0 * width * heads * pairs, float(size * width * (2 * heads * queries + 2 * kv_heads * keys)))


def linear_work(parameters: int, tokens: int, size: int) -> Work:
    """Matrix products with weights: 2 operations per weight and token, each weight read once."""
    return Work(2.0 * parameters * tokens, float(parameters * size))


def measure_peak(dtype: torch.dtype, device: torch.device, *, side: int = 2048, megabytes: int = 256) -> Peak:
    """The machine's peak: a product of two square matrices in `dtype`, a copy of a large buffer; best of several."""
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    source = torch.zeros(megabytes * 2**20, dtype=torch.uint8, device=device).view(torch.float32)
    target = torch.empty_like(source)
    product = _best(lambda: torch.mm(left, right), device)
    copy = _best(lambda: target.copy_(source), device)
    return Peak(2.0 * side**3 / product, 2.0 * source.nbytes / copy)


def _best(call: Callable[[], Any], device: torch.device, repeats: int = 9) -> float:
    seconds: list[float] = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)
