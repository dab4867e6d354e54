"""When a canonical attention call is strict: nothing is left implicit, and an attention layer can be built from it.

A strict call has query (B, Hq, Q, E), key and value (B, Hkv, K, E) in one dtype (float32, float16 or bfloat16), with
Hq, Hkv and E static and Hq a multiple of Hkv; at most one of `mask` (boolean), `bias` (in the query's dtype), both of
shape (B or 1, Hq or 1, Q, K), and `key_lengths` (B,) in int32, and none together with a causal alignment; `scale` a
number; no dropout; and a query that may attend to no key may give NaN.

Sizes are compared as expressions: two symbols that are equal in every run so far are not the same size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from .. import build
from ..expr import Expr
from ..masks.template import Alignment
from ..metadata import tensor_of
from ..sizes import shape_of
from .canonical import canonical_arguments, is_canonical

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""The dtypes of strict calls."""

_AXES = ("batch", "heads", "queries", "keys")


def strict_problem(node: fx.Node) -> str:
    """Why a call of `attnlower::attention` is not strict, in words; empty if it is.

    Args:
        node: the call, in an ATen graph whose nodes record fake tensors.
    """
    if not is_canonical(node):
        return "not a call of attnlower::attention"
    return strict_arguments_problem(canonical_arguments(node))


def strict_arguments_problem(args: Mapping[str, Any]) -> str:
    """The same for the arguments of a call, by the canonical op's names; absent ones have its defaults."""
    tensors: list[torch.Tensor] = []
    for name in ("query", "key", "value"):
        tensor = tensor_of(args.get(name))
        if tensor is None:
            return f"the {name} has no recorded shape"
        tensors.append(tensor)
    query, key, value = tensors
    return (
        _tensor_problem(query, key, value, bool(args.get("enable_gqa")))
        or _mask_problem(args, query, key)
        or _setting_problem(args)
    )


def _tensor_problem(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, grouped: bool) -> str:
    ranks = (query.dim(), key.dim(), value.dim())
    if ranks != (4, 4, 4):
        return f"query, key and value have ranks {ranks}, not 4"
    dtypes = {query.dtype, key.dtype, value.dtype}
    if len(dtypes) > 1:
        return "query, key and value have different dtypes"
    if query.dtype not in DTYPES:
        return f"the dtype is {query.dtype}"
    q, k, v = shape_of(query), shape_of(key), shape_of(value)
    if not (q[0] is k[0] is v[0]):
        return "query, key and value have different batch sizes"
    if k[1] is not v[1] or k[2] is not v[2]:
        return "key and value have different numbers of heads or of keys"
    for what, size in (("number of query heads", q[1]), ("number of key heads", k[1]), ("head width", q[3])):
        if not size.is_const or size.value < 1:
            return f"the {what} is dynamic" if not size.is_const else f"the {what} is 0"
    if q[3] is not k[3]:
        return "query and key have different head widths"
    if v[3] is not q[3]:
        return "the value's head width is not the query's"
    if q[1].value % k[1].value != 0:
        return f"{q[1].value} query heads are no multiple of {k[1].value} key heads"
    if q[1] is not k[1] and not grouped:
        return "key heads are broadcast to the query's"
    return ""


def _mask_problem(args: Mapping[str, Any], query: torch.Tensor, key: torch.Tensor) -> str:
    alignment = args.get("alignment", Alignment.NONE.value)
    if alignment not in tuple(Alignment):
        return f"unknown alignment {alignment!r}"
    given = [name for name in ("mask", "bias", "key_lengths") if args.get(name) is not None]
    if len(given) > 1:
        return f"a {given[0]} and a {given[1]} act together"
    if not given:
        return ""
    if alignment != Alignment.NONE.value:
        return f"a {given[0]} acts together with the alignment {alignment}"
    tensor = tensor_of(args[given[0]])
    if tensor is None:
        return f"the {given[0]} has no recorded shape"
    if given[0] == "key_lengths":
        right = tensor.dtype is torch.int32 and shape_of(tensor) == (shape_of(query)[0],)
        return "" if right else "the key_lengths are not one int32 per batch entry"
    wanted = torch.bool if given[0] == "mask" else query.dtype
    if tensor.dtype is not wanted:
        return f"the {given[0]} is {tensor.dtype}, not {wanted}"
    if tensor.dim() != 4:
        return f"the {given[0]} has rank {tensor.dim()}, not 4"
    return _extent_problem(given[0], shape_of(tensor), (*shape_of(query)[:3], shape_of(key)[2]))


def _extent_problem(name: str, shape: Sequence[Expr], scores: Sequence[Expr]) -> str:
    for axis, own, full in zip(_AXES, shape, scores, strict=True):
        broadcasts = axis in ("batch", "heads") and own is build.ONE
        if own is not full and not broadcasts:
            return f"the {name}'s axis of {axis} has size {own!r}, not {full!r}"
    return ""


def _setting_problem(args: Mapping[str, Any]) -> str:
    scale, dropout = args.get("scale"), args.get("dropout_p", 0.0)
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or dropout != 0:
        return "dropout is applied to the weights"
    if scale is None:
        return "the scale is implicit"
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        return "the scale is not a number"
    if args.get("empty_rows", "zeros") != "nan":
        return "a query without any key gives zeros"
    return ""
