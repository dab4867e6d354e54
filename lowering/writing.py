"""Ops that write into state behind a compiled graph: many writes in one call, after everything that reads.

A partitioner orders calls by the values they take. `after` names what must have been computed before anything is
written; nothing is read from it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.library.custom_op("attnlower::copy_into", mutates_args={"into"})
def copy_into(into: Sequence[Tensor], values: Sequence[Tensor], after: Sequence[Tensor]) -> None:
    """`into[i].copy_(values[i])`; each pair has one shape.

    Args:
        into: tensors to be written.
        values: what they become.
        after: values that must have been computed.
    """
    for tensor, value in zip(into, values, strict=True):
        tensor.copy_(value)


@torch.library.custom_op("attnlower::put_into", mutates_args={"into"})
def put_into(
    into: Sequence[Tensor],
    dims: Sequence[int],
    indices: Sequence[Tensor],
    values: Sequence[Tensor],
    after: Sequence[Tensor],
) -> None:
    """`into[i][:, ..., indices[i]] = values[i]`, the index at dim `dims[i]`.

    Args:
        into: tensors to be written.
        dims: where the index goes.
        indices: places along that dim, int64 or int32.
        values: what goes there, as `aten.index_put` takes it.
        after: values that must have been computed.

    Raises:
        IndexError: if a place is out of range (on a GPU, an assertion on the device).
    """
    for tensor, dim, index, value in zip(into, dims, indices, values, strict=True):
        torch.ops.aten.index_put_(tensor, [*[None] * dim, index], value)


@torch.library.custom_op("attnlower::scatter_into", mutates_args={"into"})
def scatter_into(
    into: Sequence[Tensor],
    dims: Sequence[int],
    indices: Sequence[Tensor],
    values: Sequence[Tensor],
    after: Sequence[Tensor],
) -> None:
    """`into[i].scatter_(dims[i], indices[i], values[i])`.

    Args:
        into: tensors to be written.
        dims: along which dim.
        indices: places along that dim, int64, of the values' shape.
        values: what goes there.
        after: values that must have been computed.
    """
    for tensor, dim, index, value in zip(into, dims, indices, values, strict=True):
        tensor.scatter_(dim, index, value)


@copy_into.register_fake
def _fake_copy(into: Sequence[Tensor], values: Sequence[Tensor], after: Sequence[Tensor]) -> None:
    return None


@put_into.register_fake
@scatter_into.register_fake
def _fake_rows(
    into: Sequence[Tensor],
    dims: Sequence[int],
    indices: Sequence[Tensor],
    values: Sequence[Tensor],
    after: Sequence[Tensor],
) -> None:
    return None
